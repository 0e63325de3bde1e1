//! Weights of models that are quantized already: their integers, with what makes floats of them.

use inlay_format::quant::{Form, Layout, MIDDLE, ZeroPoints};

use crate::error::{Error, Result};
use crate::tensor::{DType, Rewrite, Tensor};

/// Integers of any shape, with scales and zero points: `w = (q - zero_point) scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct Integers {
    elements: Tensor,
    scales: Vec<f32>,
    /// As many as scales; integers, but for some in blocks.
    zero_points: Vec<f32>,
    shares: Shares,
}

/// Which elements share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shares {
    /// All.
    All,
    /// Those at one index of an axis.
    Axis(usize),
    /// Blocks of so many along an axis; the last may be shorter.
    Blocks {
        /// The axis.
        axis: usize,
        /// Elements of a block.
        block: usize,
    },
}

/// The blocks that devices have, the longest first.
const BLOCKS: [usize; 5] = [256, 128, 64, 32, 16];

/// Integers as devices have them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// Packed elements.
    pub data: Vec<u8>,
    /// Scales.
    pub scales: Vec<f32>,
    /// Zero points, if the form has any.
    pub zero_points: Vec<u8>,
}

impl Integers {
    /// The constant `elements` with `scales` and, unless they are all zero, `zero_points`.
    ///
    /// # Errors
    /// If there are not as many scales or zero points as elements that share one, or they are not finite.
    pub fn new(elements: Tensor, scales: &Tensor, zero_points: Option<&Tensor>, shares: Shares) -> Result<Integers> {
        let dims = elements.dims();
        if dims.contains(&0) {
            return Err(Error::Invalid(format!("quantized weight of shape {dims:?}: it has no elements")));
        }
        let count = match shares {
            Shares::All => 1,
            Shares::Axis(axis) => *dims.get(axis).unwrap_or(&0),
            Shares::Blocks { axis, block } => {
                let parts = dims.get(axis).map_or(0, |d| d.div_ceil(block.max(1)));
                dims.iter().enumerate().map(|(i, &d)| if i == axis { parts } else { d }).product()
            }
        };
        let invalid = |what: &str, found: usize| {
            Error::Invalid(format!("quantized weight of shape {dims:?}: {found} {what} where {count} are expected"))
        };
        if elements.to_i64().is_none() {
            return Err(Error::Invalid(format!("quantized weight of type {:?}", elements.dtype)));
        }
        if scales.len() != count || !scales.dtype.is_float() {
            return Err(invalid("float scales", scales.len()));
        }
        let zero_points = match zero_points {
            None => vec![0.0; count],
            Some(z) if z.len() == count && z.dtype.is_float() => z.to_f32(),
            Some(z) if z.len() == count => {
                let values = z.to_i64().ok_or_else(|| Error::Invalid("zero points that are no numbers".into()))?;
                values.into_iter().map(|z| z as f32).collect()
            }
            Some(z) => return Err(invalid("zero points", z.len())),
        };
        let scales = scales.to_f32();
        if scales.iter().chain(&zero_points).any(|x| !x.is_finite()) {
            return Err(Error::Invalid("a scale or a zero point of a quantized weight is not finite".into()));
        }
        Ok(Integers { elements, scales, zero_points, shares })
    }

    /// The shape.
    pub fn dims(&self) -> &[usize] {
        self.elements.dims()
    }

    /// Bytes of elements and scales in the source.
    pub fn byte_len(&self) -> usize {
        self.elements.byte_len() + 4 * self.scales.len()
    }

    /// The floats.
    pub fn floats(&self) -> Vec<f32> {
        let values = self.elements.to_i64().expect("checked when it was made");
        let dims = self.dims();
        let (axis, block) = match self.shares {
            Shares::All => (0, usize::MAX),
            Shares::Axis(axis) => (axis, 1),
            Shares::Blocks { axis, block } => (axis, block),
        };
        let length = dims.get(axis).copied().unwrap_or(1).max(1);
        let inner: usize = dims.iter().skip(axis + 1).product();
        let inner = inner.max(1);
        let whole = matches!(self.shares, Shares::Axis(_));
        let share = |i: usize| match self.shares {
            Shares::All => 0,
            _ if whole => i / inner % length,
            _ => (i / (inner * length) * length.div_ceil(block) + i / inner % length / block) * inner + i % inner,
        };
        let value = |(i, q): (usize, i64)| (q as f32 - self.zero_points[share(i)]) * self.scales[share(i)];
        values.into_iter().enumerate().map(value).collect()
    }

    /// How devices can store the integers as they are after `rewrites`, with `linear` as they multiply: scheme and form.
    ///
    /// # Errors
    /// Says why they cannot.
    pub fn storage(
        &self,
        rewrites: &[Rewrite],
        layout: Layout,
        linear: bool,
    ) -> std::result::Result<(&'static str, Form), String> {
        let bits = match self.elements.dtype {
            DType::U2 => 2,
            DType::U4 | DType::I4 => 4,
            DType::U8 | DType::I8 => 8,
            other => return Err(format!("the source has it in {other:?}, which devices do not store")),
        };
        let turned = rewrites.iter().filter(|r| **r == Rewrite::Transpose).count() % 2 == 1;
        let n_axis = self.n_axis(layout, turned);
        let mut at = false;
        for rewrite in rewrites {
            match rewrite {
                Rewrite::Transpose => at = !at,
                Rewrite::ScaleRows(_) if (if at { self.dims().len() - 1 } else { 0 }) != n_axis => {
                    return Err("a normalization scales its inputs".into());
                }
                Rewrite::ScaleColumns(_) if (if at { 0 } else { self.dims().len() - 1 }) != n_axis => {
                    return Err("calibration scales its inputs".into());
                }
                _ => {}
            }
        }
        let k = self.dims().iter().product::<usize>() / self.dims()[n_axis].max(1);
        let fits = |block: usize| BLOCKS.contains(&block) && k.is_multiple_of(block);
        let middle = if self.elements.dtype == DType::I4 { 0.0 } else { f32::from(MIDDLE) };
        let zero_points = match &self.zero_points {
            zeros if zeros.iter().all(|&z| z == middle) => ZeroPoints::None,
            zeros if zeros.iter().all(|&z| z.fract() == 0.0 && (0.0..16.0).contains(&(z + self.shift()))) => {
                ZeroPoints::Integer
            }
            _ => ZeroPoints::Float,
        };
        let bytes = self.zero_points.iter().all(|&z| z.fract() == 0.0 && (0.0..256.0).contains(&(z + self.shift())));
        match self.shares {
            Shares::Axis(axis) if axis != n_axis => Err("the source has a scale for each of its inputs".into()),
            Shares::Blocks { axis, .. } if axis == n_axis || self.dims().len() != 2 => {
                Err("the source has blocks along its outputs".into())
            }
            Shares::Blocks { block: of, .. } => {
                // Blocks that devices do not have are parted; each part has the scale of the whole.
                let block = BLOCKS.into_iter().find(|&block| fits(block) && of.is_multiple_of(block));
                let block = block.ok_or_else(|| format!("the source has blocks of {of} in {k}"))?;
                if bits <= 4 && linear {
                    Ok(("int4", Form { block, zero_points }))
                } else if layout == Layout::KN && !linear {
                    Err("the source has it in blocks".into())
                } else if !bytes {
                    Err("the source has zero points between its levels".into())
                } else {
                    Ok(("uint8", Form { block, zero_points: ZeroPoints::Integer }))
                }
            }
            Shares::All | Shares::Axis(_) => {
                let block = BLOCKS.into_iter().find(|&block| fits(block));
                match block.filter(|_| bits <= 4 && linear) {
                    Some(block) => Ok(("int4", Form { block, zero_points })),
                    None if self.is_centred() => Ok(("int8", Form::WHOLE)),
                    None if !bytes => Err("the source has zero points between its levels".into()),
                    None => Ok(("uint8", Form { block: 0, zero_points: ZeroPoints::Integer })),
                }
            }
        }
    }

    /// The integers after `rewrites` as `scheme` stores them in `form`, which [`Integers::storage`] gave.
    pub fn stored(&self, rewrites: &[Rewrite], layout: Layout, scheme: &str, form: Form) -> Stored {
        let turned = rewrites.iter().filter(|r| **r == Rewrite::Transpose).count() % 2 == 1;
        let n_axis = self.n_axis(layout, turned);
        let n = self.dims()[n_axis];
        let k = self.dims().iter().product::<usize>() / n.max(1);
        let blocks = k.checked_div(form.block).unwrap_or(1);
        // Of each output and block: where its scale is in the source.
        let share = |i: usize| {
            let (at_n, at_block) = (i / blocks, i % blocks);
            match self.shares {
                Shares::All => 0,
                Shares::Axis(_) => at_n,
                Shares::Blocks { axis, block } => {
                    let at_block = at_block * form.block / block;
                    if axis > n_axis { at_n * k.div_ceil(block) + at_block } else { at_block * n + at_n }
                }
            }
        };
        let mut factors = vec![1f32; n];
        for rewrite in rewrites {
            match rewrite {
                Rewrite::Transpose => {}
                Rewrite::Scale(f) => factors.iter_mut().for_each(|x| *x *= f),
                Rewrite::ScaleRows(rows) | Rewrite::ScaleColumns(rows) => {
                    factors.iter_mut().zip(rows).for_each(|(x, f)| *x *= f)
                }
            }
        }
        let scales = (0..n * blocks).map(|i| self.scales[share(i)] * factors[i / blocks]).collect();
        let shift = self.shift();
        let zero_point = |i: usize| self.zero_points[share(i)] + shift;
        let mut codes: Vec<u8> = self
            .elements
            .to_i64()
            .expect("checked when it was made")
            .into_iter()
            .map(|q| (q as f32 + shift) as u8)
            .collect();
        // Outputs lie on the first axis, or on the last one; elsewhere in memory than in the source they are turned.
        let (rows, columns) = (self.dims()[0], self.dims()[1..].iter().product::<usize>());
        if (n_axis == 0) != (layout == Layout::NK) {
            codes = (0..columns)
                .flat_map(|c| (0..rows).map(move |r| (r, c)))
                .map(|(r, c)| codes[r * columns + c])
                .collect();
        }
        match scheme {
            "int4" => {
                let nibbles = |row: Vec<u8>| -> Vec<u8> {
                    row.chunks(2).map(|pair| pair[0] | (pair.get(1).unwrap_or(&0) << 4)).collect()
                };
                let row = |at_n: usize| nibbles((0..blocks).map(|b| zero_point(at_n * blocks + b) as u8).collect());
                let zero_points = match form.zero_points {
                    ZeroPoints::None => Vec::new(),
                    ZeroPoints::Integer => (0..n).flat_map(row).collect(),
                    ZeroPoints::Float => (0..n * blocks).flat_map(|i| zero_point(i).to_le_bytes()).collect(),
                };
                Stored { data: nibbles(codes), scales, zero_points }
            }
            "int8" => {
                let data = codes.into_iter().map(|q| q ^ 0x80).collect();
                Stored { data, scales, zero_points: Vec::new() }
            }
            _ => Stored { data: codes, scales, zero_points: (0..n * blocks).map(|i| zero_point(i) as u8).collect() },
        }
    }

    /// The axis of the outputs in the source: after an odd number of transpositions it is the other one of a matrix.
    fn n_axis(&self, layout: Layout, turned: bool) -> usize {
        if (layout == Layout::NK) != turned { 0 } else { self.dims().len() - 1 }
    }

    /// What is added to integers to make them unsigned.
    fn shift(&self) -> f32 {
        match self.elements.dtype {
            DType::I8 => 128.0,
            DType::I4 => 8.0,
            _ => 0.0,
        }
    }

    /// Whether int8 without zero points has all that the integers can be.
    fn is_centred(&self) -> bool {
        matches!(self.elements.dtype, DType::I8 | DType::U8)
            && self.zero_points.iter().all(|&z| z + self.shift() == 128.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn integers(
        dtype: DType,
        dims: &[usize],
        bytes: Vec<u8>,
        scales: &[f32],
        zero: &[i64],
        shares: Shares,
    ) -> Integers {
        let elements = Tensor::new(dtype, dims.to_vec(), bytes.into()).unwrap();
        let zero = Tensor::from_i64(&[zero.len()], zero);
        Integers::new(elements, &Tensor::from_f32(&[scales.len()], scales), Some(&zero), shares).unwrap()
    }

    #[test]
    fn floats_have_the_scale_of_their_share() {
        let bytes = vec![1, 2, 3, 4, 5, 6, 7, 8];
        let of = |scales: &[f32], zero: &[i64], shares| {
            integers(DType::U8, &[2, 4], bytes.clone(), scales, zero, shares).floats()
        };
        assert_eq!(of(&[2.0], &[1], Shares::All), [0., 2., 4., 6., 8., 10., 12., 14.]);
        assert_eq!(of(&[1.0, 2.0], &[0, 8], Shares::Axis(0)), [1., 2., 3., 4., -6., -4., -2., 0.]);
        let blocks = Shares::Blocks { axis: 1, block: 3 };
        assert_eq!(of(&[1., 2., 3., 4.], &[0, 0, 5, 8], blocks), [1., 2., 3., 8., 0., 3., 6., 0.]);
        let blocks = Shares::Blocks { axis: 0, block: 2 };
        assert_eq!(of(&[1., 2., 3., 4.], &[0; 4], blocks), [1., 4., 9., 16., 5., 12., 21., 32.]);
    }

    #[test]
    fn unsigned_integers_around_128_are_int8() {
        let q = integers(DType::U8, &[2, 2], vec![0, 128, 255, 129], &[1.0], &[128], Shares::All);
        let (scheme, form) = q.storage(&[], Layout::KN, true).unwrap();
        assert_eq!((scheme, form), ("int8", Form::WHOLE));
        let stored = |rewrites: &[Rewrite], layout| -> Vec<i8> {
            q.stored(rewrites, layout, scheme, form).data.into_iter().map(u8::cast_signed).collect()
        };
        // In the order of the rewritten weight, whichever axis its outputs are.
        for layout in [Layout::KN, Layout::NK] {
            assert_eq!(stored(&[], layout), [-128, 0, 127, 1]);
            assert_eq!(stored(&[Rewrite::Transpose], layout), [-128, 127, 0, 1]);
        }
    }

    #[test]
    fn what_devices_do_not_have_is_told() {
        let q = integers(DType::U8, &[2, 2], vec![0; 4], &[1.0, 1.0], &[3, 3], Shares::Axis(0));
        assert!(q.storage(&[], Layout::KN, true).unwrap_err().contains("each of its inputs"));
        assert_eq!(q.storage(&[], Layout::NK, true).unwrap().0, "uint8");
        assert_eq!(q.storage(&[Rewrite::Transpose], Layout::KN, true).unwrap().0, "uint8");
        let scaled = [Rewrite::ScaleRows(vec![1.0; 2])];
        assert!(q.storage(&scaled, Layout::NK, true).is_ok());
        let turned = [Rewrite::Transpose, scaled[0].clone()];
        assert!(q.storage(&turned, Layout::KN, true).unwrap_err().contains("normalization"));
    }
}
