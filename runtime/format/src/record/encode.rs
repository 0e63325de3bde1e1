use half::f16;
use heapless::Vec;

use super::{
    CHECKSUM_BYTES, Dtype, Entry, Header, HeaderBytes, MAGIC, MAX_RECORD_BYTES, MAX_TENSORS, PathHash, RSLORA_BIT,
    RecordChecksum, RecordError, VERSION,
};
use crate::points::MAX_POINTS;

/// The parameters of one point, for [`encode`].
#[derive(Clone, Copy, Debug)]
pub struct PointValues<'a> {
    /// Module path of the point.
    pub path: &'a str,
    /// Its tensors, row-major, in the order of the adapter kind (LoRA: `lora_A`, `lora_B`).
    pub tensors: &'a [&'a [f32]],
}

/// Bytes of the record that [`encode`] makes of `points`.
///
/// # Errors
/// [`RecordError`] when the points break a limit of the format.
pub fn encoded_len(header: &Header, points: &[PointValues<'_>]) -> Result<usize, RecordError> {
    let mut len = MAGIC.len() + 1 + size(&header_bytes(header, points)?) + CHECKSUM_BYTES;
    for (index, point) in points.iter().enumerate() {
        let entry = entry(index, point)?;
        let elements: usize = point.tensors.iter().map(|t| t.len()).sum();
        len = len.saturating_add(size(&entry)).saturating_add(elements.saturating_mul(header.dtype.bytes()));
    }
    if len > MAX_RECORD_BYTES { Err(RecordError::TooLarge { found: len as u64 }) } else { Ok(len) }
}

/// Writes the record into the front of `out`, which must have [`encoded_len`] bytes, and returns it.
///
/// Sorts `points` into the record's order. The same adapter gives the same bytes in whatever order its points come.
///
/// # Errors
/// [`RecordError`] when the points break a rule of the format, among them a value that is not finite in the payload's dtype.
/// `out` then holds nothing of use.
pub fn encode<'o>(
    header: &Header,
    points: &mut [PointValues<'_>],
    out: &'o mut [u8],
) -> Result<&'o mut [u8], RecordError> {
    let needed = encoded_len(header, points)?;
    let found = out.len();
    let out = out.get_mut(..needed).ok_or(RecordError::Buffer { needed, found })?;
    if !header.alpha.is_finite() {
        return Err(RecordError::Alpha { alpha: header.alpha });
    }
    check_values(header.dtype, points)?;
    points.sort_unstable_by_key(|point| PathHash::of(point.path));

    let (body, checksum) = out.split_at_mut(needed - CHECKSUM_BYTES);
    let (start, mut rest) = body.split_at_mut(MAGIC.len() + 1);
    start[..MAGIC.len()].copy_from_slice(&MAGIC);
    start[MAGIC.len()] = VERSION;
    rest = put(&header_bytes(header, points)?, rest);
    let mut previous = None;
    for (index, point) in points.iter().enumerate() {
        let entry = entry(index, point)?;
        if previous == Some(entry.path) {
            return Err(RecordError::RepeatedPath { path: entry.path });
        }
        previous = Some(entry.path);
        rest = put(&entry, rest);
    }
    let values = points.iter().flat_map(|point| point.tensors.iter().copied().flatten());
    for (bytes, value) in rest.chunks_exact_mut(header.dtype.bytes()).zip(values) {
        match header.dtype {
            Dtype::F32 => bytes.copy_from_slice(&value.to_le_bytes()),
            Dtype::F16 => bytes.copy_from_slice(&f16::from_f32(*value).to_le_bytes()),
        }
    }
    checksum.copy_from_slice(&RecordChecksum::of(body).0);
    Ok(out)
}

fn header_bytes(header: &Header, points: &[PointValues<'_>]) -> Result<HeaderBytes, RecordError> {
    if points.is_empty() || points.len() > MAX_POINTS {
        return Err(RecordError::Points { found: points.len() });
    }
    Ok(HeaderBytes {
        base: header.base,
        kind: header.kind,
        encoding: header.dtype.code() | if header.rslora { RSLORA_BIT } else { 0 },
        rank: header.rank,
        alpha: header.alpha,
        points: u16::try_from(points.len()).expect("MAX_POINTS fits u16"),
    })
}

fn entry(index: usize, point: &PointValues<'_>) -> Result<Entry, RecordError> {
    let refused = RecordError::Tensors { point: index, found: point.tensors.len() };
    if point.tensors.is_empty() || point.tensors.iter().any(|t| t.is_empty()) {
        return Err(refused);
    }
    let mut elements: Vec<u32, MAX_TENSORS> = Vec::new();
    for tensor in point.tensors {
        let count = u32::try_from(tensor.len()).map_err(|_| RecordError::TooLarge { found: tensor.len() as u64 })?;
        elements.push(count).map_err(|_| refused)?;
    }
    Ok(Entry { path: PathHash::of(point.path), elements })
}

fn check_values(dtype: Dtype, points: &[PointValues<'_>]) -> Result<(), RecordError> {
    let holds = |value: f32| match dtype {
        Dtype::F32 => value.is_finite(),
        Dtype::F16 => f16::from_f32(value).is_finite(),
    };
    for (point, values) in points.iter().enumerate() {
        for (tensor, values) in values.tensors.iter().enumerate() {
            if let Some(element) = values.iter().position(|v| !holds(*v)) {
                return Err(RecordError::NotFinite { point, tensor, element, value: values[element], dtype });
            }
        }
    }
    Ok(())
}

fn size<T: serde::Serialize>(value: &T) -> usize {
    postcard::experimental::serialized_size(value).expect("plain data has a size")
}

fn put<'o, T: serde::Serialize>(value: &T, out: &'o mut [u8]) -> &'o mut [u8] {
    let written = postcard::to_slice(value, out).expect("encoded_len counted these bytes").len();
    &mut out[written..]
}
