//! Constants: element types, values, and the rewrites that lead from a source weight to the exported one.

use std::sync::Arc;

use half::{bf16, f16};
use prost::bytes::Bytes;

use crate::error::{Error, Result};
use crate::integers::Integers;

/// An ONNX element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float
    F32,
    /// 8-bit unsigned integer
    U8,
    /// 8-bit integer
    I8,
    /// 16-bit unsigned integer
    U16,
    /// 16-bit integer
    I16,
    /// 32-bit integer
    I32,
    /// 64-bit integer
    I64,
    /// boolean, one byte
    Bool,
    /// 16-bit float
    F16,
    /// 64-bit float
    F64,
    /// 32-bit unsigned integer
    U32,
    /// 64-bit unsigned integer
    U64,
    /// bfloat16
    BF16,
    /// 4-bit unsigned integer, two a byte
    U4,
    /// 4-bit integer, two a byte
    I4,
    /// 2-bit unsigned integer, four a byte
    U2,
}

/// Number in ONNX, type, bits.
const CODES: &[(i32, DType, usize)] = &[
    (1, DType::F32, 32),
    (2, DType::U8, 8),
    (3, DType::I8, 8),
    (4, DType::U16, 16),
    (5, DType::I16, 16),
    (6, DType::I32, 32),
    (7, DType::I64, 64),
    (9, DType::Bool, 8),
    (10, DType::F16, 16),
    (11, DType::F64, 64),
    (12, DType::U32, 32),
    (13, DType::U64, 64),
    (16, DType::BF16, 16),
    (21, DType::U4, 4),
    (22, DType::I4, 4),
    (25, DType::U2, 2),
];

impl DType {
    /// The type with this number in `TensorProto.DataType`, if it is one that the converter reads.
    pub fn from_onnx(code: i32) -> Option<DType> {
        CODES.iter().find(|(c, ..)| *c == code).map(|(_, t, _)| *t)
    }

    /// The number in `TensorProto.DataType`.
    pub fn onnx(self) -> i32 {
        CODES.iter().find(|(_, t, _)| *t == self).expect("every type is in CODES").0
    }

    /// Bytes of a tensor of this shape; `None` if that overflows.
    pub fn bytes(self, dims: &[usize]) -> Option<usize> {
        let bits = CODES.iter().find(|(_, t, _)| *t == self).expect("every type is in CODES").2;
        let elements = element_count(dims)?;
        if bits < 8 { Some(elements.div_ceil(8 / bits)) } else { elements.checked_mul(bits / 8) }
    }

    /// Whether gradients can flow through values of this type.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64 | DType::F16 | DType::BF16)
    }
}

/// A step from a source weight to the exported one. Every step can be undone, so that the verification
/// can put quantized values back into the source.
#[derive(Clone, Debug, PartialEq)]
pub enum Rewrite {
    /// `[a, b] -> [b, a]`.
    Transpose,
    /// Row `i` (axis 0) times `factor[i]`.
    ScaleRows(Vec<f32>),
    /// Element `j` of the last axis times `factor[j]`.
    ScaleColumns(Vec<f32>),
    /// Every element times the factor.
    Scale(f32),
}

/// A constant: a view of the mapped source, or a few bytes of our own, and the rewrites applied when it is read.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Element type.
    pub dtype: DType,
    dims: Vec<usize>,
    source_dims: Vec<usize>,
    /// Element type of `source`: narrower than `dtype` where floats are widened when they are read.
    stored: DType,
    source: Bytes,
    /// What the floats are made of, where the source has integers; `source` is empty then.
    integers: Option<Arc<Integers>>,
    rewrites: Vec<Rewrite>,
    /// The initializer of the source that this one comes from.
    pub origin: Option<String>,
}

/// The number of elements of `dims`, unless the product of any of them overflows.
pub fn element_count(dims: &[usize]) -> Option<usize> {
    let most = dims.iter().filter(|d| **d > 0).try_fold(1usize, |n, &d| n.checked_mul(d))?;
    Some(if dims.contains(&0) { 0 } else { most })
}

impl Tensor {
    /// A tensor over little-endian `bytes`.
    ///
    /// # Errors
    /// If the shape overflows or does not fit the number of bytes.
    pub fn new(dtype: DType, dims: Vec<usize>, bytes: Bytes) -> Result<Tensor> {
        let expected = dtype.bytes(&dims);
        if expected != Some(bytes.len()) {
            return Err(Error::Invalid(format!(
                "shape {dims:?} of {dtype:?} needs {} bytes, found {}",
                expected.map_or("too many".to_owned(), |n| n.to_string()),
                bytes.len()
            )));
        }
        let source_dims = dims.clone();
        let stored = dtype;
        Ok(Tensor {
            dtype,
            stored,
            source_dims,
            dims,
            source: bytes,
            integers: None,
            rewrites: Vec::new(),
            origin: None,
        })
    }

    /// The floats of `integers`, which are made when they are read.
    pub fn from_integers(integers: Integers) -> Tensor {
        let dims = integers.dims().to_vec();
        Tensor {
            dtype: DType::F32,
            stored: DType::F32,
            source_dims: dims.clone(),
            dims,
            source: Bytes::new(),
            integers: Some(Arc::new(integers)),
            rewrites: Vec::new(),
            origin: None,
        }
    }

    /// What the floats are made of before the rewrites, where the source has integers.
    pub fn integers(&self) -> Option<&Integers> {
        self.integers.as_deref()
    }

    /// A f32 tensor.
    pub fn from_f32(dims: &[usize], values: &[f32]) -> Tensor {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new(DType::F32, dims.to_vec(), bytes.into()).expect("the caller's shape fits the values")
    }

    /// An i64 tensor.
    pub fn from_i64(dims: &[usize], values: &[i64]) -> Tensor {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new(DType::I64, dims.to_vec(), bytes.into()).expect("the caller's shape fits the values")
    }

    /// An i8 tensor, from its bytes.
    pub fn from_i8(dims: &[usize], values: Vec<u8>) -> Tensor {
        Tensor::new(DType::I8, dims.to_vec(), values.into()).expect("the caller's shape fits the values")
    }

    /// The shape, after the rewrites.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the values.
    pub fn byte_len(&self) -> usize {
        self.dtype.bytes(&self.dims).expect("checked when the tensor was made")
    }

    /// Bytes of the values as the source has them.
    pub fn source_byte_len(&self) -> usize {
        self.integers().map_or(self.source.len(), Integers::byte_len)
    }

    /// The same floats as f32, made when they are read.
    pub fn as_f32(&self) -> Tensor {
        debug_assert!(self.dtype.is_float());
        Tensor { dtype: DType::F32, ..self.clone() }
    }

    /// Whether f16 holds every value, because the source has halves, and nothing but their order was changed.
    pub fn is_of_halves(&self) -> bool {
        self.stored == DType::F16 && self.rewrites.iter().all(|r| *r == Rewrite::Transpose)
    }

    /// What was done to the source.
    pub fn rewrites(&self) -> &[Rewrite] {
        &self.rewrites
    }

    /// This tensor with one more rewrite; only of f32 tensors, and only where the shape allows it.
    pub fn rewritten(&self, rewrite: Rewrite) -> Tensor {
        debug_assert_eq!(self.dtype, DType::F32);
        let mut t = self.clone();
        if rewrite == Rewrite::Transpose {
            t.dims.reverse();
        }
        if rewrite == Rewrite::Transpose && t.rewrites.last() == Some(&rewrite) {
            t.rewrites.pop();
        } else {
            t.rewrites.push(rewrite);
        }
        t
    }

    /// The same tensor made of other floats: `values` are those before the rewrites.
    pub fn with_source(&self, values: &[f32]) -> Tensor {
        let source = Tensor::from_f32(&self.source_dims, values).source;
        Tensor { dtype: DType::F32, stored: DType::F32, source, integers: None, ..self.clone() }
    }

    /// The values' bytes, little-endian; a view where nothing was rewritten or widened.
    pub fn bytes(&self) -> Bytes {
        if self.rewrites.is_empty() && self.integers.is_none() && self.stored == self.dtype {
            return self.source.clone();
        }
        self.to_f32().iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    /// The values as f32, after the rewrites; integers and other floats are converted.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = self.decode();
        let mut dims = self.source_dims.clone();
        for rewrite in &self.rewrites {
            values = apply(rewrite, values, &mut dims);
        }
        values
    }

    /// The values of the source initializer that lead to `values` here: the rewrites undone.
    /// Rows that were scaled by zero keep what the source has.
    pub fn undo_rewrites(&self, values: Vec<f32>) -> Vec<f32> {
        let mut dims = self.dims.clone();
        let mut values = values;
        let mut kept = None;
        for rewrite in self.rewrites.iter().rev() {
            let inverted = |f: &f32| if *f == 0.0 { f32::NAN } else { 1.0 / f };
            let inverse = match rewrite {
                Rewrite::Transpose => Rewrite::Transpose,
                Rewrite::ScaleRows(f) => Rewrite::ScaleRows(f.iter().map(inverted).collect()),
                Rewrite::ScaleColumns(f) => Rewrite::ScaleColumns(f.iter().map(inverted).collect()),
                Rewrite::Scale(f) => Rewrite::Scale(inverted(f)),
            };
            values = apply(&inverse, values, &mut dims);
        }
        for (i, v) in values.iter_mut().enumerate() {
            if v.is_nan() {
                *v = kept.get_or_insert_with(|| self.decode())[i];
            }
        }
        values
    }

    /// The values as i64, if the type is an integer or boolean.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        let b = &self.source;
        Some(match self.dtype {
            DType::I64 => read(b, i64::from_le_bytes),
            DType::I32 => read(b, |c| i32::from_le_bytes(c).into()),
            DType::U32 => read(b, |c| u32::from_le_bytes(c).into()),
            DType::I16 => read(b, |c| i16::from_le_bytes(c).into()),
            DType::U16 => read(b, |c| u16::from_le_bytes(c).into()),
            DType::I8 => read(b, |c| i8::from_le_bytes(c).into()),
            DType::U8 | DType::Bool => b.iter().map(|&v| v.into()).collect(),
            DType::U4 => b.iter().flat_map(|&v| [i64::from(v & 15), i64::from(v >> 4)]).take(self.len()).collect(),
            DType::I4 => {
                let signed = |v: u8| i64::from(v.cast_signed() >> 4);
                b.iter().flat_map(|&v| [signed(v << 4), signed(v)]).take(self.len()).collect()
            }
            DType::U2 => {
                b.iter().flat_map(|&v| [0, 2, 4, 6].map(|at| i64::from((v >> at) & 3))).take(self.len()).collect()
            }
            _ => return None,
        })
    }

    /// The value of a tensor with one element, as f32.
    pub fn scalar(&self) -> Option<f32> {
        (self.len() == 1).then(|| self.to_f32()[0])
    }

    fn decode(&self) -> Vec<f32> {
        if let Some(integers) = &self.integers {
            return integers.floats();
        }
        let b = &self.source;
        match self.stored {
            DType::F32 => read(b, f32::from_le_bytes),
            DType::F64 => read(b, |c| f64::from_le_bytes(c) as f32),
            DType::F16 => read(b, |c| f16::from_le_bytes(c).to_f32()),
            DType::BF16 => read(b, |c| bf16::from_le_bytes(c).to_f32()),
            DType::U64 => read(b, |c| u64::from_le_bytes(c) as f32),
            _ => self.to_i64().expect("the other types are integers").into_iter().map(|v| v as f32).collect(),
        }
    }
}

fn read<const N: usize, T>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.chunks_exact(N).map(|c| value(c.try_into().expect("chunks_exact gives N bytes"))).collect()
}

fn apply(rewrite: &Rewrite, mut values: Vec<f32>, dims: &mut [usize]) -> Vec<f32> {
    match rewrite {
        Rewrite::Transpose => {
            let (rows, columns) = (dims[0], dims[1]);
            dims.reverse();
            let mut out = vec![0.0; values.len()];
            for r in 0..rows {
                for c in 0..columns {
                    out[c * rows + r] = values[r * columns + c];
                }
            }
            out
        }
        Rewrite::ScaleRows(factors) => {
            let row = values.len() / factors.len().max(1);
            for (row, f) in values.chunks_exact_mut(row.max(1)).zip(factors) {
                row.iter_mut().for_each(|v| *v *= f);
            }
            values
        }
        Rewrite::ScaleColumns(factors) => {
            for row in values.chunks_exact_mut(factors.len().max(1)) {
                row.iter_mut().zip(factors).for_each(|(v, f)| *v *= f);
            }
            values
        }
        Rewrite::Scale(f) => {
            values.iter_mut().for_each(|v| *v *= f);
            values
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewrites_apply_in_order_and_undo() {
        let t = Tensor::from_f32(&[2, 3], &[1., 2., 3., 4., 5., 6.])
            .rewritten(Rewrite::ScaleRows(vec![2.0, 0.0]))
            .rewritten(Rewrite::Transpose)
            .rewritten(Rewrite::ScaleRows(vec![1.0, 2.0, 4.0]))
            .rewritten(Rewrite::ScaleColumns(vec![3.0, 5.0]))
            .rewritten(Rewrite::Scale(0.5));
        assert_eq!(t.dims(), [3, 2]);
        assert_eq!(t.to_f32(), [3., 0., 12., 0., 36., 0.]);
        assert_eq!(t.undo_rewrites(t.to_f32()), [1., 2., 3., 4., 5., 6.]);
    }

    #[test]
    fn shape_must_fit_bytes() {
        assert!(Tensor::new(DType::F32, vec![2, 2], Bytes::from(vec![0; 15])).is_err());
        assert!(Tensor::new(DType::F32, vec![usize::MAX, 8], Bytes::new()).is_err());
        assert!(Tensor::new(DType::F32, vec![0, 8], Bytes::new()).is_ok());
        // Nothing is there, but whoever multiplies the other sizes would overflow.
        assert!(Tensor::new(DType::F32, vec![0, 1 << 40, 1 << 40], Bytes::new()).is_err());
    }

    #[test]
    fn narrow_types_convert() {
        let t = Tensor::new(DType::F16, vec![1], Bytes::copy_from_slice(&f16::from_f32(1.5).to_le_bytes())).unwrap();
        assert_eq!(t.scalar(), Some(1.5));
        let t = Tensor::new(DType::I8, vec![2], vec![255u8, 3].into()).unwrap();
        assert_eq!(t.to_i64(), Some(vec![-1, 3]));
    }

    #[test]
    fn halves_are_floats_when_they_are_read() {
        let bytes: Vec<u8> = [1.5f32, -0.25].iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let t = Tensor::new(DType::F16, vec![1, 2], bytes.into()).unwrap().as_f32();
        assert_eq!((t.dtype, t.byte_len(), t.source_byte_len()), (DType::F32, 8, 4));
        assert_eq!(t.bytes(), Tensor::from_f32(&[1, 2], &[1.5, -0.25]).bytes());
        let turned = t.rewritten(Rewrite::Transpose);
        assert!(turned.is_of_halves() && !turned.rewritten(Rewrite::Scale(3.0)).is_of_halves());
        let replaced = turned.with_source(&[0.1, 0.2]);
        assert!(!replaced.is_of_halves());
        assert_eq!(replaced.to_f32(), [0.1, 0.2]);
    }
}
