use super::buffers::BufferId;

/// A strided view of a buffer: where a value, or a part of one, lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub(crate) buffer: BufferId,
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
}

/// Row-major strides.
pub(crate) fn contiguous_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * shape[i + 1].max(1);
    }
    strides
}

/// Strides over `to` of a contiguous tensor of `shape` that is broadcast to it as ONNX does; 0 where it repeats.
pub(crate) fn broadcast_strides(shape: &[usize], strides: &[usize], to: &[usize]) -> Vec<usize> {
    let lead = to.len() - shape.len();
    (0..to.len()).map(|i| if i < lead || shape[i - lead] != to[i] { 0 } else { strides[i - lead] }).collect()
}

/// The shape that both broadcast to.
pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let dim = |s: &[usize], i: usize| if i < rank - s.len() { 1 } else { s[i - (rank - s.len())] };
    (0..rank)
        .map(|i| match (dim(a, i), dim(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

impl View {
    /// All of a buffer, row-major.
    pub(crate) fn contiguous(buffer: BufferId, shape: &[usize]) -> Self {
        View { buffer, offset: 0, shape: shape.to_vec(), strides: contiguous_strides(shape) }
    }

    /// Shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Strides (elements), one per dimension.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements from the first to the last that the view touches.
    pub(crate) fn extent(&self) -> usize {
        if self.count() == 0 {
            return 0;
        }
        1 + self.shape.iter().zip(&self.strides).map(|(d, s)| (d - 1) * s).sum::<usize>()
    }

    /// Whether elements are in row-major order without gaps.
    pub(crate) fn is_contiguous(&self) -> bool {
        let expected = contiguous_strides(&self.shape);
        self.shape.iter().zip(&self.strides).zip(expected).all(|((&d, &s), e)| d == 1 || s == e)
    }

    /// Whether the view visits every element of a buffer of `len` elements exactly once.
    pub(crate) fn covers(&self, len: usize) -> bool {
        let mut dims: Vec<_> =
            self.shape.iter().zip(&self.strides).filter(|(d, _)| **d != 1).map(|(&d, &s)| (s, d)).collect();
        dims.sort_unstable();
        let mut next = 1;
        self.offset == 0
            && dims.into_iter().all(|(s, d)| {
                let dense = s == next;
                next *= d;
                dense
            })
            && next == len
    }

    /// The view with its dimensions in another order.
    pub(crate) fn permuted(&self, perm: &[usize]) -> Self {
        View {
            shape: perm.iter().map(|&p| self.shape[p]).collect(),
            strides: perm.iter().map(|&p| self.strides[p]).collect(),
            ..self.clone()
        }
    }

    /// The dimensions from the largest stride to the smallest: in this order a view without gaps is row-major.
    pub(crate) fn memory_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.shape.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(self.strides[i]));
        order
    }

    /// `len` of the indices of `axis`, from `start` on, `step` apart.
    pub(crate) fn sliced(&self, axis: usize, start: usize, step: usize, len: usize) -> Self {
        let mut view = self.clone();
        if len > 0 {
            view.offset += start * self.strides[axis];
        }
        view.shape[axis] = len;
        view.strides[axis] *= step;
        view
    }

    /// The view repeated along dimensions that have one index, and along new leading ones.
    pub(crate) fn broadcast_to(&self, shape: &[usize]) -> Self {
        View { strides: broadcast_strides(&self.shape, &self.strides, shape), shape: shape.to_vec(), ..self.clone() }
    }

    /// The same elements in another shape, or `None` when strides cannot say that.
    pub(crate) fn reshaped(&self, shape: &[usize]) -> Option<Self> {
        if shape.iter().product::<usize>() != self.count() {
            return None;
        }
        if self.count() == 0 || self.is_contiguous() {
            return Some(View { shape: shape.to_vec(), strides: contiguous_strides(shape), ..self.clone() });
        }
        // Old dimensions that follow each other without a gap are one; each new dimension must lie inside one.
        let mut merged: Vec<(usize, usize)> = Vec::new();
        for (&d, &s) in self.shape.iter().zip(&self.strides).filter(|(d, _)| **d != 1) {
            match merged.last_mut() {
                Some((len, stride)) if *stride == d * s => {
                    *len *= d;
                    *stride = s;
                }
                _ => merged.push((d, s)),
            }
        }
        let mut strides = vec![0; shape.len()];
        let mut groups = merged.into_iter().rev();
        let (mut left, mut stride) = groups.next()?;
        for (i, &d) in shape.iter().enumerate().rev() {
            if d == 1 {
                strides[i] = 1;
                continue;
            }
            if left == 1 {
                (left, stride) = groups.next()?;
            }
            if left % d != 0 {
                return None;
            }
            strides[i] = stride;
            stride *= d;
            left /= d;
        }
        Some(View { shape: shape.to_vec(), strides, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(shape: &[usize], strides: &[usize]) -> View {
        View { buffer: BufferId::for_test(), offset: 0, shape: shape.to_vec(), strides: strides.to_vec() }
    }

    #[test]
    fn reshapes_of_strided_views() {
        // [B, T, H d] as heads: a view both ways.
        let heads = view(&[2, 5, 12], &[60, 12, 1]).reshaped(&[2, 5, 3, 4]).unwrap().permuted(&[0, 2, 1, 3]);
        assert_eq!(heads.shape, [2, 3, 5, 4]);
        assert_eq!(heads.strides, [60, 4, 12, 1]);
        assert_eq!(heads.permuted(&[0, 2, 1, 3]).reshaped(&[2, 5, 12]).unwrap().strides, [60, 12, 1]);
        // Heads cannot be joined with time where they lie.
        assert_eq!(heads.reshaped(&[2, 15, 4]), None);
        assert_eq!(heads.reshaped(&[6, 5, 4]), None);
        assert_eq!(heads.reshaped(&[2, 3, 5, 2, 2]).unwrap().strides, [60, 4, 12, 2, 1]);
        assert!(heads.covers(120) && !heads.covers(121));
        assert!(!heads.sliced(2, 0, 1, 4).covers(120));
    }

    #[test]
    fn broadcasting() {
        assert_eq!(broadcast(&[2, 1, 4], &[3, 1]), Some(vec![2, 3, 4]));
        assert_eq!(broadcast(&[2], &[3]), None);
        assert_eq!(broadcast(&[0, 1], &[5]), Some(vec![0, 5]));
        assert_eq!(view(&[3, 1], &[1, 1]).broadcast_to(&[2, 3, 4]).strides, [0, 1, 0]);
    }
}
