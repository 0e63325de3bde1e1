use heapless::Vec;

use super::dtype::pack;
use super::{
    ALPHA_BIT, BaseId, CHECKSUM_BYTES, Dtype, Entry, MAGIC, MAX_PARTS, MAX_RECORD_BYTES, MAX_TENSORS, NO_ALPHA,
    PartBytes, PartHeader, PathHash, RSLORA_BIT, RecordChecksum, RecordError, Size, VERSION,
};
use crate::points::MAX_POINTS;

/// A part of an adapter, for [`encode`].
#[derive(Debug)]
pub struct PartValues<'p, 'a> {
    /// What the part says as a whole.
    pub header: PartHeader,
    /// Its points, in any order.
    pub points: &'p mut [PointValues<'a>],
}

/// The parameters of one point, for [`encode`].
#[derive(Clone, Copy, Debug)]
pub struct PointValues<'a> {
    /// Module path of the point.
    pub path: &'a str,
    /// Its tensors, in the order of the adapter kind (LoRA: `lora_A`, `lora_B`).
    pub tensors: &'a [TensorValues<'a>],
}

/// A tensor, for [`encode`].
#[derive(Clone, Copy, Debug)]
pub struct TensorValues<'a> {
    /// Its elements, group by group.
    pub values: &'a [f32],
    /// Runs of elements, all of one length, that share a scale where the dtype has scales.
    pub groups: usize,
}

/// Bytes of the record that [`encode`] makes of `parts`.
///
/// # Errors
/// [`RecordError`] when the parts break a limit of the format.
pub fn encoded_len(parts: &[PartValues<'_, '_>]) -> Result<usize, RecordError> {
    if parts.is_empty() || parts.len() > MAX_PARTS {
        return Err(RecordError::Parts { found: parts.len() });
    }
    let all_points: usize = parts.iter().map(|part| part.points.len()).sum();
    if parts.iter().any(|part| part.points.is_empty()) || all_points > MAX_POINTS {
        return Err(RecordError::Points { found: all_points });
    }
    // The number of parts is one byte.
    let mut len = (MAGIC.len() + 1 + size_of::<BaseId>() + 1 + CHECKSUM_BYTES) as u64;
    for part in parts {
        let (start, alpha, points) = part_bytes(part);
        len += size(&start) + alpha.as_ref().map_or(0, size) + size(&points);
        for point in &*part.points {
            let entry = entry(point)?;
            let tensors: u64 = entry.tensors.iter().map(|t| part.header.dtype.tensor_bytes(t.groups, t.len)).sum();
            len = len.saturating_add(size(&entry.short(part.header.rank))).saturating_add(tensors);
        }
    }
    if len > MAX_RECORD_BYTES as u64 { Err(RecordError::TooLarge { found: len }) } else { Ok(len as usize) }
}

/// Writes the record of an adapter of `base` into the front of `out`, which must have [`encoded_len`] bytes, and returns it.
///
/// Sorts `parts` and their points into the record's order. The same adapter gives the same bytes in whatever order
/// they come.
///
/// # Errors
/// [`RecordError`] when the parts break a rule of the format, among them a value that is not finite in the payload's dtype.
/// `out` then holds nothing of use.
pub fn encode<'o>(
    base: BaseId,
    parts: &mut [PartValues<'_, '_>],
    out: &'o mut [u8],
) -> Result<&'o mut [u8], RecordError> {
    let needed = encoded_len(parts)?;
    let found = out.len();
    let out = out.get_mut(..needed).ok_or(RecordError::Buffer { needed, found })?;
    for part in &mut *parts {
        check_values(part)?;
        part.points.sort_unstable_by_key(|point| PathHash::of(point.path));
    }
    parts.sort_unstable_by_key(|part| part.header.order());
    check_repeats(parts)?;

    let (body, checksum) = out.split_at_mut(needed - CHECKSUM_BYTES);
    let (start, rest) = body.split_at_mut(MAGIC.len() + 1);
    start[..MAGIC.len()].copy_from_slice(&MAGIC);
    start[MAGIC.len()] = VERSION;
    let count = u8::try_from(parts.len()).expect("MAX_PARTS fits u8");
    let mut rest = put(&count, put(&base, rest));
    for part in &*parts {
        let (start, alpha, points) = part_bytes(part);
        rest = put(&start, rest);
        if let Some(alpha) = alpha {
            rest = put(&alpha, rest);
        }
        rest = put(&points, rest);
        for point in &*part.points {
            rest = put(&entry(point)?.short(part.header.rank), rest);
        }
    }
    for part in &*parts {
        for tensor in part.points.iter().flat_map(|point| point.tensors) {
            let (bytes, after) = rest.split_at_mut(tensor_bytes(part.header.dtype, tensor));
            pack(part.header.dtype, tensor.values, tensor.groups, bytes);
            rest = after;
        }
    }
    checksum.copy_from_slice(&RecordChecksum::of(body).0);
    Ok(out)
}

/// The part's header: its start, alpha if it has one, the number of points, which was checked.
fn part_bytes(part: &PartValues<'_, '_>) -> (PartBytes, Option<f32>, u16) {
    let PartHeader { kind, dtype, rslora, rank, alpha } = part.header;
    let alpha = Some(alpha).filter(|alpha| *alpha != NO_ALPHA);
    let flag = |is_set, bit| if is_set { bit } else { 0 };
    let encoding = dtype.code() | flag(rslora, RSLORA_BIT) | flag(alpha.is_some(), ALPHA_BIT);
    let points = u16::try_from(part.points.len()).expect("MAX_POINTS fits u16");
    (PartBytes { kind, encoding, rank }, alpha, points)
}

fn entry(point: &PointValues<'_>) -> Result<Entry, RecordError> {
    let path = PathHash::of(point.path);
    let refused = RecordError::Tensors { path, found: point.tensors.len() };
    if point.tensors.is_empty() {
        return Err(refused);
    }
    let mut tensors: Vec<Size, MAX_TENSORS> = Vec::new();
    for TensorValues { values, groups } in point.tensors {
        let (elements, groups) = (values.len(), *groups);
        if groups == 0 || elements == 0 || elements % groups != 0 {
            return Err(RecordError::Groups { path, elements, groups });
        }
        let too_large = RecordError::TooLarge { found: elements as u64 };
        let fits = |n: usize| u32::try_from(n).map_err(|_| too_large);
        let size = Size { groups: fits(groups)?, len: fits(elements / groups)? };
        if !size.is_valid() {
            return Err(too_large);
        }
        tensors.push(size).map_err(|_| refused)?;
    }
    Ok(Entry { path, tensors })
}

fn tensor_bytes(dtype: Dtype, tensor: &TensorValues<'_>) -> usize {
    let (groups, len) = (tensor.groups as u32, (tensor.values.len() / tensor.groups) as u32);
    // `encoded_len` found all of them to fit `MAX_RECORD_BYTES`.
    dtype.tensor_bytes(groups, len) as usize
}

fn check_values(part: &PartValues<'_, '_>) -> Result<(), RecordError> {
    let PartHeader { alpha, dtype, .. } = part.header;
    if !alpha.is_finite() {
        return Err(RecordError::Alpha { alpha });
    }
    for point in &*part.points {
        for (tensor, TensorValues { values, .. }) in point.tensors.iter().enumerate() {
            if let Some(element) = values.iter().position(|v| !dtype.holds(*v)) {
                let (path, value) = (PathHash::of(point.path), values[element]);
                return Err(RecordError::NotFinite { path, tensor, element, value, dtype });
            }
        }
    }
    Ok(())
}

/// Parts and points are in order: what occurs twice in a part stands side by side.
fn check_repeats(parts: &[PartValues<'_, '_>]) -> Result<(), RecordError> {
    let hash = |point: &PointValues<'_>| PathHash::of(point.path);
    for (index, part) in parts.iter().enumerate() {
        let kind = part.header.kind;
        if let Some(pair) = part.points.windows(2).find(|pair| hash(&pair[0]) == hash(&pair[1])) {
            return Err(RecordError::RepeatedPath { path: hash(&pair[0]) });
        }
        for other in parts[..index].iter().filter(|other| other.header.kind == kind) {
            if other.header.order() == part.header.order() {
                return Err(RecordError::RepeatedPart { kind });
            }
            let repeated = |point: &&PointValues<'_>| other.points.binary_search_by_key(&hash(point), hash).is_ok();
            if let Some(point) = part.points.iter().find(repeated) {
                return Err(RecordError::RepeatedPath { path: hash(point) });
            }
        }
    }
    Ok(())
}

fn size<T: serde::Serialize>(value: &T) -> u64 {
    postcard::experimental::serialized_size(value).expect("plain data has a size") as u64
}

fn put<'o, T: serde::Serialize>(value: &T, out: &'o mut [u8]) -> &'o mut [u8] {
    let written = postcard::to_slice(value, out).expect("encoded_len counted these bytes").len();
    &mut out[written..]
}
