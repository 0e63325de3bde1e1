//! The bytes of packed weights, written and read back.

use inlay_format::quant::{Form, Layout, Parts, PartsMut, ZeroPoints};
use prost::bytes::Bytes;

use super::{Packing, Storage, scale_name, sums, zero_point_name};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::integers::Stored;
use crate::tensor::{DType, Tensor};

/// The tensors of a packed weight.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Packed elements.
    pub data: Tensor,
    /// Scales, if the scheme has any.
    pub scales: Option<Tensor>,
    /// Zero points, if the spelling wants them.
    pub zero_points: Option<Tensor>,
    /// Norm of the difference from the floats, relative to their norm.
    pub error: f32,
}

/// Packs the values of a constant.
///
/// # Errors
/// If a value is not finite, or too large for the scheme.
pub fn pack(name: &str, tensor: &Tensor, storage: &Storage) -> Result<Packed> {
    let Storage { scheme, form, layout, .. } = *storage;
    let (values, dims) = (tensor.to_f32(), matrix(tensor, layout));
    let (data, scales, zero_points) = encode(name, tensor, &values, dims, storage)?;
    let error = error(storage, Parts { data: &data, scales: &scales, zero_points: &zero_points }, dims, &values);
    let spelt = Spelt { scheme: scheme.name(), form, qdq: storage.qdq, stored: tensor.dims(), matrix: dims };
    let (data, scales, zero_points) = spelt.tensors(data, &scales, zero_points)?;
    Ok(Packed { data, scales, zero_points, error })
}

/// How an ONNX graph has a packed weight.
pub(crate) struct Spelt<'a> {
    /// The scheme's name.
    pub scheme: &'a str,
    /// Which elements share a scale.
    pub form: Form,
    /// Whether blocks are spelled as DequantizeLinear.
    pub qdq: bool,
    /// The shape of a weight that is not in blocks of int4.
    pub stored: &'a [usize],
    /// The weight as a matrix [K, N].
    pub matrix: [usize; 2],
}

impl Spelt<'_> {
    /// The elements, scales and zero points that a graph has for those that kernels have.
    pub fn tensors(
        &self,
        data: Vec<u8>,
        scales: &[f32],
        zero_points: Vec<u8>,
    ) -> Result<(Tensor, Option<Tensor>, Option<Tensor>)> {
        let ([k, n], Form { block, .. }) = (self.matrix, self.form);
        let tensor_of = |dtype, dims: &[usize], bytes: Vec<u8>| Tensor::new(dtype, dims.to_vec(), bytes.into());
        if self.scheme == "int4" {
            let blocks = k / block;
            let scales = Some(Tensor::from_f32(&[n, blocks], scales));
            return Ok(if self.qdq {
                let middle = vec![0x88; n * blocks.div_ceil(2)];
                let rows = if zero_points.is_empty() { &middle } else { &zero_points };
                let flat = repack(rows, [n, blocks], blocks.next_multiple_of(2), blocks);
                let zero_points = tensor_of(DType::U4, &[n, blocks], flat)?;
                (tensor_of(DType::U4, &[n, k], data)?, scales, Some(zero_points))
            } else {
                let zero_points = match self.form.zero_points {
                    ZeroPoints::None => None,
                    ZeroPoints::Integer => Some(tensor_of(DType::U8, &[n, blocks.div_ceil(2)], zero_points)?),
                    ZeroPoints::Float => Some(tensor_of(DType::F32, &[n, blocks], zero_points)?),
                };
                (tensor_of(DType::U8, &[n, blocks, block / 2], data)?, scales, zero_points)
            });
        }
        Ok(match self.scheme {
            "uint8" => {
                let dims = k.checked_div(block).map_or(vec![n], |blocks| vec![n, blocks]);
                let zero_points = tensor_of(DType::U8, &dims, zero_points)?;
                (tensor_of(DType::U8, self.stored, data)?, Some(Tensor::from_f32(&dims, scales)), Some(zero_points))
            }
            "int8" => (tensor_of(DType::I8, self.stored, data)?, Some(Tensor::from_f32(&[n], scales)), None),
            "f16" => (tensor_of(DType::F16, self.stored, data)?, None, None),
            _ => (tensor_of(DType::F32, self.stored, data)?, None, None),
        })
    }
}

/// Elements, scales and zero points of `tensor`, whose `values` these are, as kernels want them.
fn encode(
    name: &str,
    tensor: &Tensor,
    values: &[f32],
    dims: [usize; 2],
    storage: &Storage,
) -> Result<(Vec<u8>, Vec<f32>, Vec<u8>)> {
    let Storage { scheme, form, layout, kept, .. } = *storage;
    if let Some(integers) = tensor.integers().filter(|_| kept) {
        let Stored { data, scales, zero_points } = integers.stored(tensor.rewrites(), layout, scheme.name(), form);
        return Ok((data, scales, zero_points));
    }
    let sizes = scheme.sizes(layout, dims, form).expect("storage is chosen by shape");
    let (mut data, mut scales) = (vec![0; sizes.data], vec![0.0; sizes.scales]);
    let mut zero_points = vec![0; sizes.zero_points];
    let parts = PartsMut { data: &mut data, scales: &mut scales, zero_points: &mut zero_points };
    scheme.encode(values, layout, dims, parts).map_err(|e| Error::Quantize {
        tensor: name.to_owned(),
        detail: format!("{e}; keep it float with --quant-rule 'PATH=none'"),
    })?;
    if storage.keep_sums {
        sums::keep(values, layout, dims, &mut data, &scales);
    }
    Ok((data, scales, zero_points))
}

/// The values of a constant as devices hold it: what packing makes of them, where it is packed.
///
/// # Errors
/// As for [`pack`].
pub fn values(name: &str, tensor: &Tensor, packing: &Packing) -> Result<Vec<f32>> {
    let Some(storage) = packing.weights.get(name) else { return Ok(tensor.to_f32()) };
    let dims = matrix(tensor, storage.layout);
    let mut values = tensor.to_f32();
    let (data, scales, zero_points) = encode(name, tensor, &values, dims, storage)?;
    let parts = Parts { data: &data, scales: &scales, zero_points: &zero_points };
    storage.scheme.decode(parts, storage.layout, dims, 0, &mut values);
    Ok(values)
}

/// The floats of the packed constant `name` as the exported `graph` has them, in the order of `tensor`.
///
/// # Errors
/// If the graph does not have the constant as `storage` says.
pub fn dequantized(name: &str, tensor: &Tensor, storage: &Storage, graph: &Graph) -> Result<Vec<f32>> {
    let missing = || Error::Invalid(format!("the exported file lacks a part of the packed weight {name:?}"));
    let Storage { scheme, form, layout, .. } = *storage;
    let dims = matrix(tensor, layout);
    let sizes = scheme.sizes(layout, dims, form).ok_or_else(missing)?;
    let data = graph.constants.get(name).ok_or_else(missing)?.bytes();
    let scales = graph.constants.get(&scale_name(name)).map_or(Vec::new(), Tensor::to_f32);
    let zero_points = match graph.constants.get(&zero_point_name(name)) {
        Some(flat) if storage.scheme.name() == "int4" && storage.qdq && form.zero_points == ZeroPoints::Integer => {
            let blocks = dims[0] / form.block;
            repack(&flat.bytes(), [dims[1], blocks], blocks, blocks.next_multiple_of(2)).into()
        }
        Some(rows) if form.zero_points != ZeroPoints::None => rows.bytes(),
        _ => Bytes::new(),
    };
    if (data.len(), scales.len(), zero_points.len()) != (sizes.data, sizes.scales, sizes.zero_points) {
        return Err(missing());
    }
    let mut values = vec![0.0; tensor.len()];
    let parts = Parts { data: &data, scales: &scales, zero_points: &zero_points };
    scheme.decode(parts, layout, dims, 0, &mut values);
    Ok(values)
}

/// The constant as a matrix [K, N].
fn matrix(tensor: &Tensor, layout: Layout) -> [usize; 2] {
    let dims = tensor.dims();
    match layout {
        Layout::KN => [dims[0], dims[1]],
        Layout::NK => [dims[1..].iter().product(), dims[0]],
    }
}

/// Nibbles of `rows` rows of `columns`, packed with another distance of rows; what is between rows is zero.
fn repack(bytes: &[u8], [rows, columns]: [usize; 2], from: usize, to: usize) -> Vec<u8> {
    let mut packed = vec![0u8; (rows * to).div_ceil(2)];
    for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
        let (source, target) = (row * from + column, row * to + column);
        let nibble = (bytes[source / 2] >> (4 * (source % 2))) & 15;
        packed[target / 2] |= nibble << (4 * (target % 2));
    }
    packed
}

fn error(storage: &Storage, parts: Parts<'_>, dims: [usize; 2], values: &[f32]) -> f32 {
    const CHUNK: usize = 1 << 14;
    let (mut square, mut norm) = (0f64, 0f64);
    let mut decoded = [0f32; CHUNK];
    for (i, values) in values.chunks(CHUNK).enumerate() {
        let decoded = &mut decoded[..values.len()];
        storage.scheme.decode(parts, storage.layout, dims, i * CHUNK, decoded);
        for (&a, &b) in values.iter().zip(&*decoded) {
            square += f64::from(a - b).powi(2);
            norm += f64::from(a).powi(2);
        }
    }
    (square / norm.max(f64::MIN_POSITIVE)).sqrt() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_odd_length_are_joined_and_parted() {
        let rows = [0x21, 0x03, 0x54, 0x06];
        let flat = repack(&rows, [2, 3], 4, 3);
        assert_eq!(flat, [0x21, 0x43, 0x65]);
        assert_eq!(repack(&flat, [2, 3], 3, 4), rows);
    }
}
