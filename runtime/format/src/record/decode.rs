use serde::Deserialize;

use super::dtype::{fault, value_at};
use super::{
    ALPHA_BIT, BaseId, CHECKSUM_BYTES, DTYPE_BITS, Dtype, Entry, EntryV1, MAGIC, MAX_PARTS, MAX_RECORD_BYTES,
    MAX_TENSORS, NO_ALPHA, PartBytes, PartHeader, PathHash, RSLORA_BIT, RecordChecksum, RecordError, Size, VERSION,
};
use crate::metadata::Fingerprint;
use crate::points::MAX_POINTS;

/// A record that was checked as a whole, borrowed from its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    version: u8,
    base: BaseId,
    parts: usize,
    /// Headers and tables of the parts, and what follows them.
    tables: &'a [u8],
    payload: &'a [u8],
    checksum: RecordChecksum,
}

impl<'a> Record<'a> {
    /// Reads and checks `bytes`, which must be one record and nothing else.
    ///
    /// # Errors
    /// [`RecordError`] with the reason, as `docs/adapter-format.md` orders them.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let found = bytes.len() as u64;
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(RecordError::TooLarge { found });
        }
        if !bytes.iter().zip(&MAGIC).all(|(a, b)| a == b) {
            return Err(RecordError::NotARecord);
        }
        let parsed = parse(bytes);
        let Some(checksum) = matching_checksum(bytes) else {
            return Err(match parsed {
                Ok((_, needed)) if needed > found => RecordError::Truncated { needed, found },
                Ok((_, whole)) if is_record(bytes, whole) => RecordError::TrailingBytes { extra: found - whole },
                Err(error @ RecordError::Truncated { .. }) => error,
                _ => RecordError::Altered,
            });
        };
        match parsed {
            Ok((record, needed)) if needed == found => {
                record.check_contents()?;
                Ok(Record { checksum, ..record })
            }
            Ok(_) | Err(RecordError::Truncated { .. }) => Err(malformed("its lengths do not add up")),
            Err(error) => Err(error),
        }
    }

    /// The version of the format that it was written in.
    pub fn version(&self) -> u8 {
        self.version
    }

    /// The base that the adapter was trained on.
    pub fn base(&self) -> BaseId {
        self.base
    }

    /// The record's checksum, by which a [`State`](crate::state::State) names it.
    pub fn checksum(&self) -> RecordChecksum {
        self.checksum
    }

    /// Bytes of the elements and scales of all parts.
    pub fn payload_bytes(&self) -> usize {
        self.payload.len()
    }

    /// Checks that the adapter was trained on the base with this fingerprint.
    ///
    /// # Errors
    /// [`RecordError::OtherBase`] with both identities.
    pub fn expect_base(&self, fingerprint: &Fingerprint) -> Result<(), RecordError> {
        let (expected, found) = (BaseId::from(*fingerprint), self.base);
        if expected == found { Ok(()) } else { Err(RecordError::OtherBase { expected, found }) }
    }

    /// The parts, in the order of the record.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = Part<'a>> + use<'a> {
        let (version, mut tables, mut payload) = (self.version, self.tables, self.payload);
        (0..self.parts).map(move |_| {
            let (part, rest) = parse_part(version, tables, 0).expect("the parts were checked");
            let (bytes, after) = payload.split_at(part.payload_bytes as usize);
            (tables, payload) = (rest, after);
            Part { payload: bytes, ..part.part }
        })
    }

    fn check_contents(&self) -> Result<(), RecordError> {
        let mut previous = None;
        for (index, part) in self.parts().enumerate() {
            if !part.header.alpha.is_finite() {
                return Err(malformed("an alpha is not finite"));
            }
            let order = part.header.order();
            if previous.is_some_and(|previous| previous >= order) {
                return Err(malformed("its parts are not in order"));
            }
            previous = Some(order);
            part.check_contents()?;
            if self.parts().take(index).any(|other| other.header.kind == part.header.kind && other.meets(&part)) {
                return Err(malformed("a point occurs twice"));
            }
        }
        Ok(())
    }
}

/// A part of an adapter: the points of one kind, dtype, rank and alpha.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    header: PartHeader,
    version: u8,
    points: usize,
    table: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Part<'a> {
    /// What the record says about the part as a whole.
    pub fn header(&self) -> &PartHeader {
        &self.header
    }

    /// The points in ascending order of their path hashes.
    pub fn points(&self) -> impl ExactSizeIterator<Item = Point<'a>> + use<'a> {
        let (version, dtype, rank) = (self.version, self.header.dtype, self.header.rank);
        let (mut table, mut payload) = (self.table, self.payload);
        (0..self.points).map(move |_| {
            let (entry, rest) = take_entry(version, rank, table, 0).expect("the table was checked");
            let (bytes, after) = payload.split_at(payload_bytes(&entry, dtype) as usize);
            (table, payload) = (rest, after);
            Point { path: entry.path, tensors: entry.tensors, dtype, payload: bytes }
        })
    }

    /// The point at this path, if the part has one there.
    pub fn point(&self, path: &str) -> Option<Point<'a>> {
        let path = PathHash::of(path);
        self.points().find(|point| point.path == path)
    }

    fn check_contents(&self) -> Result<(), RecordError> {
        let mut previous = None;
        for point in self.points() {
            if previous.is_some_and(|previous| previous >= point.path) {
                return Err(malformed("its points are not in order"));
            }
            previous = Some(point.path);
            if let Some(reason) =
                point.tensors().find_map(|tensor| fault(self.version, tensor.dtype, tensor.bytes, tensor.size))
            {
                return Err(malformed(reason));
            }
        }
        Ok(())
    }

    /// Whether the two have a point in common. Both are in order.
    fn meets(&self, other: &Part<'_>) -> bool {
        let mut others = other.points().map(|point| point.path).peekable();
        self.points().any(|point| {
            while others.next_if(|path| *path < point.path).is_some() {}
            others.peek() == Some(&point.path)
        })
    }
}

/// The tensors of one point.
#[derive(Clone, Debug)]
pub struct Point<'a> {
    /// Which point of the base it is.
    pub path: PathHash,
    tensors: heapless::Vec<Size, MAX_TENSORS>,
    dtype: Dtype,
    payload: &'a [u8],
}

impl<'a> Point<'a> {
    /// The tensors in the order of the adapter kind.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'a>> + use<'a> {
        let (dtype, mut payload) = (self.dtype, self.payload);
        self.tensors.clone().into_iter().map(move |size| {
            let (bytes, rest) = payload.split_at(tensor_bytes(size, dtype) as usize);
            payload = rest;
            Tensor { dtype, size, bytes }
        })
    }

    /// The tensors as an array, or `None` if the point has another number of them.
    pub fn tensors_exactly<const N: usize>(&self) -> Option<[Tensor<'a>; N]> {
        let tensors: heapless::Vec<Tensor<'a>, MAX_TENSORS> = self.tensors().collect();
        tensors.as_slice().try_into().ok()
    }
}

/// One tensor's elements, as the payload stores them.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    dtype: Dtype,
    size: Size,
    bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.size.elements() as usize
    }

    /// The number of groups, each with a scale of its own where the dtype has scales. 1 in records of version 1.
    pub fn groups(&self) -> usize {
        self.size.groups as usize
    }

    /// The elements as f32, group by group.
    pub fn values(&self) -> impl ExactSizeIterator<Item = f32> + use<'a> {
        let Tensor { dtype, size, bytes } = *self;
        (0..self.elements()).map(move |index| value_at(dtype, bytes, size, index))
    }
}

/// The record in `bytes`, and the length that it asks for, which may be another than `bytes` has.
///
/// Does not look at the checksum, nor at what the payload holds.
fn parse(bytes: &[u8]) -> Result<(Record<'_>, u64), RecordError> {
    let found = bytes.len() as u64;
    let version = *bytes.get(MAGIC.len()).ok_or_else(|| truncated(found))?;
    match version {
        1..=VERSION => {}
        0 => return Err(malformed("its version is 0")),
        found => return Err(RecordError::NewerVersion { found }),
    }
    let (base, rest) = take::<BaseId>(&bytes[MAGIC.len() + 1..], found)?;
    let (parts, tables) = if version == 1 { (1, rest) } else { take::<u8>(rest, found)? };
    if parts == 0 || usize::from(parts) > MAX_PARTS {
        return Err(malformed("the number of parts is out of range"));
    }
    let (mut rest, mut payload_len, mut points) = (tables, 0u64, 0);
    for _ in 0..parts {
        let (parsed, after) = parse_part(version, rest, found)?;
        payload_len = payload_len.saturating_add(parsed.payload_bytes);
        points += parsed.part.points;
        if points > MAX_POINTS {
            return Err(malformed("the number of points is out of range"));
        }
        rest = after;
    }
    let before_payload = found - rest.len() as u64;
    let record = Record {
        version,
        base,
        parts: usize::from(parts),
        tables,
        payload: usize::try_from(payload_len).ok().and_then(|len| rest.get(..len)).unwrap_or(rest),
        checksum: RecordChecksum([0; CHECKSUM_BYTES]),
    };
    Ok((record, before_payload.saturating_add(payload_len).saturating_add(CHECKSUM_BYTES as u64)))
}

/// A part without its payload, and how much that has.
struct ParsedPart<'a> {
    part: Part<'a>,
    payload_bytes: u64,
}

/// The header and table at the start of `bytes`, and what follows them. `found` is the length of the record.
fn parse_part(version: u8, bytes: &[u8], found: u64) -> Result<(ParsedPart<'_>, &[u8]), RecordError> {
    let (PartBytes { kind, encoding, rank }, rest) = take::<PartBytes>(bytes, found)?;
    let dtype = Dtype::from_code(encoding & DTYPE_BITS, version)?;
    let known = DTYPE_BITS | RSLORA_BIT | if version < 3 { 0 } else { ALPHA_BIT };
    if encoding & !known != 0 {
        return Err(malformed("unknown flags are set"));
    }
    let has_alpha = version < 3 || encoding & ALPHA_BIT != 0;
    let (alpha, rest) = if has_alpha { take::<f32>(rest, found)? } else { (NO_ALPHA, rest) };
    if version >= 3 && has_alpha && alpha == NO_ALPHA {
        return Err(malformed("an alpha is written that goes without saying"));
    }
    let (points, table) = take::<u16>(rest, found)?;
    let points = usize::from(points);
    if points == 0 || points > MAX_POINTS {
        return Err(malformed("the number of points is out of range"));
    }
    let (mut rest, mut payload) = (table, 0u64);
    for _ in 0..points {
        let (entry, after) = take_entry(version, rank, rest, found)?;
        payload = payload.saturating_add(payload_bytes(&entry, dtype));
        rest = after;
    }
    let part = Part {
        header: PartHeader { kind, dtype, rslora: encoding & RSLORA_BIT != 0, rank, alpha },
        version,
        points,
        table: &table[..table.len() - rest.len()],
        payload: &[],
    };
    Ok((ParsedPart { part, payload_bytes: payload }, rest))
}

/// The table entry at the start of `bytes`, in a part of `rank`.
fn take_entry(version: u8, rank: u16, bytes: &[u8], found: u64) -> Result<(Entry, &[u8]), RecordError> {
    let (entry, rest) = match version {
        1 => take::<EntryV1>(bytes, found).map(|(entry, rest)| (Entry::from(entry), rest))?,
        2 => take::<Entry>(bytes, found)?,
        _ => {
            let (short, rest) = take::<Entry>(bytes, found)?;
            let entry = short.clone().long(rank);
            if entry.clone().short(rank) != short {
                return Err(malformed("a size is written that goes without saying"));
            }
            (entry, rest)
        }
    };
    if entry.tensors.is_empty() || !entry.tensors.iter().all(|size| size.is_valid()) {
        return Err(malformed("a point has no tensors, or one of a size that is out of range"));
    }
    Ok((entry, rest))
}

/// At most `MAX_TENSORS` tensors of at most `MAX_ELEMENTS`, so it cannot overflow.
fn payload_bytes(entry: &Entry, dtype: Dtype) -> u64 {
    entry.tensors.iter().map(|size| tensor_bytes(*size, dtype)).sum()
}

fn tensor_bytes(size: Size, dtype: Dtype) -> u64 {
    dtype.tensor_bytes(size.groups, size.len)
}

fn take<'a, T: Deserialize<'a>>(bytes: &'a [u8], found: u64) -> Result<(T, &'a [u8]), RecordError> {
    postcard::take_from_bytes(bytes).map_err(|error| match error {
        postcard::Error::DeserializeUnexpectedEnd => truncated(found),
        _ => malformed("a header or table cannot be decoded"),
    })
}

/// The checksum at the end of `bytes`, if it is the one of what precedes it.
fn matching_checksum(bytes: &[u8]) -> Option<RecordChecksum> {
    let (body, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>()?;
    let computed = RecordChecksum::of(body);
    (computed.0 == *checksum).then_some(computed)
}

fn is_record(bytes: &[u8], len: u64) -> bool {
    usize::try_from(len).ok().and_then(|len| bytes.get(..len)).and_then(matching_checksum).is_some()
}

fn truncated(found: u64) -> RecordError {
    RecordError::Truncated { needed: found + 1, found }
}

fn malformed(reason: &'static str) -> RecordError {
    RecordError::Malformed { reason }
}
