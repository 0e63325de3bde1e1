use std::ops::Range;

use super::wire::{Field, Message, WireError, push};
use super::{MAX_ENTRIES, MAX_RANK};

/// Numbers of ONNX `TensorProto.DataType`.
#[allow(missing_docs)]
pub mod data_type {
    pub const FLOAT: i32 = 1;
    pub const UINT8: i32 = 2;
    pub const INT8: i32 = 3;
    pub const INT32: i32 = 6;
    pub const INT64: i32 = 7;
    pub const BOOL: i32 = 9;
    pub const FLOAT16: i32 = 10;
    pub const DOUBLE: i32 = 11;
    pub const UINT4: i32 = 21;
}

/// A `TensorProto`.
#[derive(Clone, Debug, Default)]
pub struct Tensor {
    /// Name, empty for the value of an attribute.
    pub name: String,
    /// Shape.
    pub dims: Vec<usize>,
    /// Element type, one of [`data_type`].
    pub data_type: i32,
    /// Where the elements are.
    pub data: TensorData,
}

/// Where the elements of a [`Tensor`] are.
#[derive(Clone, Debug)]
pub enum TensorData {
    /// Little-endian elements in this range of the `.onnx` file.
    Raw(Range<usize>),
    /// Little-endian elements that were spelled as typed lists.
    Typed(Vec<u8>),
    /// In another file.
    External {
        /// File name.
        location: String,
        /// First byte.
        offset: usize,
        /// Number of bytes; the rest of the file where the exporter left it out.
        length: Option<usize>,
    },
}

impl Default for TensorData {
    fn default() -> Self {
        TensorData::Typed(Vec::new())
    }
}

pub(super) fn tensor(message: Message<'_>) -> Result<Tensor, WireError> {
    let message = message.named("a tensor");
    let mut tensor = Tensor::default();
    let (mut dims, mut ints) = (Vec::new(), Vec::new());
    let (mut fixed, mut raw, mut external) = (Vec::new(), None, Vec::new());
    let mut is_external = false;
    let limit = message.bytes.len();
    message.fields(|number, field| {
        match (number, field) {
            (1, Field::Bytes(list)) => list.packed_varints(MAX_RANK, &mut dims)?,
            (1, field) => push(&mut dims, field.int(&message)?, MAX_RANK, "a tensor", "dimensions")?,
            (2, field) => tensor.data_type = enumeration(field, &message)?,
            (8, field) => tensor.name = field.message(&message)?.name()?,
            (9, field) => raw = Some(field.message(&message)?.range()),
            // float_data, double_data: the same bytes as raw data when packed.
            (4, Field::Bytes(list)) => fixed.extend_from_slice(list.packed_fixed::<4>()?.as_flattened()),
            (4, Field::Fixed32(bits)) => fixed.extend_from_slice(&bits.to_le_bytes()),
            (10, Field::Bytes(list)) => fixed.extend_from_slice(list.packed_fixed::<8>()?.as_flattened()),
            (10, Field::Fixed64(bits)) => fixed.extend_from_slice(&bits.to_le_bytes()),
            // int32_data, int64_data.
            (5 | 7, Field::Bytes(list)) => list.packed_varints(limit, &mut ints)?,
            (5 | 7, field) => push(&mut ints, field.int(&message)?, limit, "a tensor", "elements")?,
            (13, field) => push(
                &mut external,
                entry(field.message(&message)?.named("external data"))?,
                MAX_ENTRIES,
                "a tensor",
                "external data entries",
            )?,
            (14, field) => is_external = field.int(&message)? == 1,
            (3, _) => return Err(unsupported(&tensor, "segments")),
            (6, _) => return Err(unsupported(&tensor, "string elements")),
            (11, _) => return Err(unsupported(&tensor, "unsigned 64-bit elements")),
            _ => {}
        }
        Ok(())
    })?;
    if tensor.data_type == 0 {
        return Err(message.malformed("a tensor has no element type"));
    }
    tensor.dims = dims
        .into_iter()
        .map(|d| usize::try_from(d).map_err(|_| message.malformed("a dimension is negative")))
        .collect::<Result<_, _>>()?;
    tensor.data = match (is_external, raw) {
        (true, _) => external_data(&external, &message)?,
        (false, Some(range)) => TensorData::Raw(range),
        (false, None) if !fixed.is_empty() => TensorData::Typed(fixed),
        (false, None) => TensorData::Typed(int_bytes(&ints, tensor.data_type)),
    };
    Ok(tensor)
}

fn unsupported(tensor: &Tensor, feature: &'static str) -> WireError {
    WireError::Unsupported { what: format!("tensor \"{}\"", tensor.name), feature }
}

pub(super) fn enumeration(field: Field<'_>, of: &Message<'_>) -> Result<i32, WireError> {
    i32::try_from(field.int(of)?).map_err(|_| of.malformed("an enumeration is out of range"))
}

/// A `StringStringEntryProto`.
fn entry(message: Message<'_>) -> Result<(String, String), WireError> {
    let (mut key, mut value) = (String::new(), String::new());
    message.fields(|number, field| {
        match number {
            1 => key = field.message(&message)?.name()?,
            2 => value = field.message(&message)?.name()?,
            _ => {}
        }
        Ok(())
    })?;
    Ok((key, value))
}

fn external_data(entries: &[(String, String)], of: &Message<'_>) -> Result<TensorData, WireError> {
    let get = |key: &str| entries.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
    let number = |key: &str| {
        get(key).map(|v| v.parse::<usize>().map_err(|_| of.malformed("an offset or length is no number"))).transpose()
    };
    Ok(TensorData::External {
        location: get("location").ok_or_else(|| of.malformed("external data without a location"))?.to_owned(),
        offset: number("offset")?.unwrap_or(0),
        length: number("length")?,
    })
}

/// The low bytes of each integer, as many as the element type has.
fn int_bytes(ints: &[i64], data_type: i32) -> Vec<u8> {
    let width = match data_type {
        data_type::INT64 => 8,
        data_type::INT32 | data_type::FLOAT => 4,
        data_type::FLOAT16 => 2,
        _ => 1,
    };
    ints.iter().flat_map(|i| i.to_le_bytes().into_iter().take(width)).collect()
}
