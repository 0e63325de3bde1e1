//! Index arithmetic of strided operands.

/// Product of `dims`; saturates instead of overflowing, so that a check against a slot then fails.
pub fn count(dims: &[u32]) -> usize {
    dims.iter().fold(1usize, |n, &d| n.saturating_mul(d as usize))
}

/// Elements from the first to the last that a strided operand touches: `1 + sum (dim - 1) stride`; 0 when a
/// dimension is 0.
pub fn extent(dims: &[u32], strides: &[u32]) -> usize {
    if dims.contains(&0) {
        return 0;
    }
    dims.iter().zip(strides).fold(1usize, |n, (&d, &s)| n.saturating_add((d as usize - 1).saturating_mul(s as usize)))
}

/// Offset of row-major element `index` of `dims` in an operand with `strides`.
pub fn offset(mut index: usize, dims: &[u32], strides: &[u32]) -> usize {
    let mut at = 0;
    for (&d, &s) in dims.iter().zip(strides).rev() {
        at += index % d as usize * s as usize;
        index /= d as usize;
    }
    at
}

/// Row-major strides of `dims`.
pub fn contiguous<const N: usize>(dims: [u32; N]) -> [u32; N] {
    let mut strides = [1; N];
    for i in (0..N.saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * dims[i + 1];
    }
    strides
}

/// Refuses a written operand of which two indices may be the same element: each stride must step over all that the
/// smaller ones reach.
///
/// # Errors
/// Names the operand, its dimensions and strides.
pub fn check_written(name: &str, dims: &[u32], strides: &[u32]) -> Result<(), String> {
    let mut by_stride: Vec<_> = dims.iter().zip(strides).filter(|(d, _)| **d > 1).collect();
    by_stride.sort_by_key(|(_, s)| **s);
    let mut reach = 0u64;
    for (&d, &s) in by_stride {
        if u64::from(s) <= reach {
            return Err(format!("{name} is written with dims {dims:?} and strides {strides:?}, which overlap"));
        }
        reach = reach.saturating_add(u64::from(d - 1).saturating_mul(s.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_follow_strides() {
        assert_eq!(contiguous([2, 3, 4]), [12, 4, 1]);
        assert_eq!(offset(7, &[2, 3, 4], &[12, 4, 1]), 7);
        assert_eq!(offset(7, &[3, 4], &[1, 3]), 1 + 3 * 3);
        assert_eq!(extent(&[3, 4], &[1, 3]), 12);
        assert_eq!(extent(&[3, 0], &[1, 3]), 0);
        assert_eq!(extent(&[u32::MAX; 4], &[u32::MAX; 4]), usize::MAX);
    }

    #[test]
    fn written_elements_are_distinct() {
        for (dims, strides, distinct) in [
            ([2, 3, 4], [12, 4, 1], true),
            ([2, 3, 4], [12, 1, 3], true),
            ([2, 1, 4], [5, 0, 1], true),
            ([2, 3, 4], [12, 3, 1], false),
            ([2, 1, 4], [0, 0, 1], false),
            ([2, 1, 2], [1, 0, 1], false),
        ] {
            assert_eq!(check_written("y", &dims, &strides).is_ok(), distinct, "{dims:?} {strides:?}");
        }
    }
}
