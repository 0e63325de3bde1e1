//! Arithmetic on the host, for small tensors.

use super::OpError;
use crate::graph::{HostData, HostTensor};
use crate::plan::{broadcast, contiguous_strides};

/// Positions of the elements of a strided view, in row-major order of `shape`.
pub(crate) fn positions(shape: &[usize], strides: &[isize], offset: usize) -> Vec<usize> {
    let mut all = vec![offset as isize];
    for (&d, &s) in shape.iter().zip(strides) {
        all = all.into_iter().flat_map(|p| (0..d as isize).map(move |i| p + i * s)).collect();
    }
    all.into_iter().map(|p| p as usize).collect()
}

/// A tensor repeated as ONNX broadcasts.
pub(crate) fn expand(x: &HostTensor, shape: &[usize]) -> HostTensor {
    if x.shape() == shape {
        return x.clone();
    }
    let own = contiguous_strides(x.shape());
    let lead = shape.len() - x.shape().len();
    let strides: Vec<isize> = (0..shape.len())
        .map(|i| if i < lead || x.shape()[i - lead] != shape[i] { 0 } else { own[i - lead] as isize })
        .collect();
    x.select(shape, &positions(shape, &strides, 0))
}

/// A function of two integers, or nothing where it has no value.
pub(crate) type IntFn = fn(i64, i64) -> Option<i64>;

/// `f(a, b)` element by element, with broadcasting; both of one element type.
pub(crate) fn binary(
    a: &HostTensor,
    b: &HostTensor,
    float: impl Fn(f32, f32) -> f32,
    int: IntFn,
) -> Result<HostTensor, OpError> {
    let shape = broadcast(a.shape(), b.shape()).ok_or_else(|| mismatch(a, b))?;
    let (a, b) = (expand(a, &shape), expand(b, &shape));
    let no_value = || OpError::Value {
        what: "the result of integer arithmetic",
        found: "no 64-bit integer".into(),
        expected: "one",
    };
    let data: HostData = match (a.data(), b.data()) {
        (HostData::F32(a), HostData::F32(b)) => a.iter().zip(b).map(|(&a, &b)| float(a, b)).collect::<Vec<_>>().into(),
        (HostData::I64(a), HostData::I64(b)) => {
            let all: Option<Vec<i64>> = a.iter().zip(b).map(|(&a, &b)| int(a, b)).collect();
            all.ok_or_else(no_value)?.into()
        }
        (HostData::I32(a), HostData::I32(b)) => {
            let one = |(&a, &b): (&i32, &i32)| int(a.into(), b.into()).and_then(|x| i32::try_from(x).ok());
            let all: Option<Vec<i32>> = a.iter().zip(b).map(one).collect();
            all.ok_or_else(no_value)?.into()
        }
        _ => return Err(OpError::DType { input: 1, found: b.dtype(), expected: "numbers of the type of input 0" }),
    };
    Ok(HostTensor::of(shape, data))
}

/// `f(a, b)` as truth values, with broadcasting.
pub(crate) fn compare(
    a: &HostTensor,
    b: &HostTensor,
    float: impl Fn(f32, f32) -> bool,
    int: impl Fn(i64, i64) -> bool,
) -> Result<HostTensor, OpError> {
    let shape = broadcast(a.shape(), b.shape()).ok_or_else(|| mismatch(a, b))?;
    if a.dtype() != b.dtype() {
        return Err(OpError::DType { input: 1, found: b.dtype(), expected: "the type of input 0" });
    }
    let (a, b) = (expand(a, &shape), expand(b, &shape));
    let truth: Vec<bool> = match (a.ints(), b.ints()) {
        (Some(a), Some(b)) => a.into_iter().zip(b).map(|(a, b)| int(a, b)).collect(),
        _ => a.to_floats().into_iter().zip(b.to_floats()).map(|(a, b)| float(a, b)).collect(),
    };
    Ok(HostTensor::of(shape, truth))
}

fn mismatch(a: &HostTensor, b: &HostTensor) -> OpError {
    OpError::Shape { shapes: vec![a.shape().to_vec(), b.shape().to_vec()], rule: "they must broadcast" }
}
