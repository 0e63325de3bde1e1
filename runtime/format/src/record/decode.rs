use half::f16;
use serde::Deserialize;

use super::{
    BaseId, CHECKSUM_BYTES, DTYPE_BITS, Dtype, Entry, Header, HeaderBytes, MAGIC, MAX_RECORD_BYTES, PathHash,
    RSLORA_BIT, RecordChecksum, RecordError, VERSION,
};
use crate::metadata::Fingerprint;
use crate::points::MAX_POINTS;

/// A record that was checked as a whole, borrowed from its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    header: Header,
    table: &'a [u8],
    payload: &'a [u8],
    points: usize,
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

    /// What the record says about the adapter as a whole.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The record's checksum, by which a [`State`](crate::state::State) names it.
    pub fn checksum(&self) -> RecordChecksum {
        self.checksum
    }

    /// Checks that the adapter was trained on the base with this fingerprint.
    ///
    /// # Errors
    /// [`RecordError::OtherBase`] with both identities.
    pub fn expect_base(&self, fingerprint: &Fingerprint) -> Result<(), RecordError> {
        let (expected, found) = (BaseId::from(*fingerprint), self.header.base);
        if expected == found { Ok(()) } else { Err(RecordError::OtherBase { expected, found }) }
    }

    /// The points in ascending order of their path hashes.
    pub fn points(&self) -> impl ExactSizeIterator<Item = Point<'a>> + use<'a> {
        let (dtype, mut table, mut payload) = (self.header.dtype, self.table, self.payload);
        (0..self.points).map(move |_| {
            let (entry, rest) = postcard::take_from_bytes::<Entry>(table).expect("the table was checked");
            let (bytes, after) = payload.split_at(payload_bytes(&entry, dtype) as usize);
            (table, payload) = (rest, after);
            Point { entry_elements: entry.elements, path: entry.path, dtype, payload: bytes }
        })
    }

    /// The point at this module path, if the adapter has one there.
    pub fn point(&self, path: &str) -> Option<Point<'a>> {
        let path = PathHash::of(path);
        self.points().find(|point| point.path == path)
    }

    fn check_contents(&self) -> Result<(), RecordError> {
        if !self.header.alpha.is_finite() {
            return Err(malformed("its alpha is not finite"));
        }
        let mut previous = None;
        for point in self.points() {
            if previous.is_some_and(|previous| previous >= point.path) {
                return Err(malformed("its points are not in order"));
            }
            previous = Some(point.path);
            if point.entry_elements.is_empty() || point.entry_elements.contains(&0) {
                return Err(malformed("a point has no tensors, or an empty one"));
            }
            if point.tensors().any(|tensor| tensor.values().any(|value| !value.is_finite())) {
                return Err(malformed("a value is not finite"));
            }
        }
        Ok(())
    }
}

/// The tensors of one point.
#[derive(Clone, Debug)]
pub struct Point<'a> {
    /// Which point of the base it is.
    pub path: PathHash,
    entry_elements: heapless::Vec<u32, { super::MAX_TENSORS }>,
    dtype: Dtype,
    payload: &'a [u8],
}

impl<'a> Point<'a> {
    /// The tensors in the order of the adapter kind.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'a>> + use<'a> {
        let (dtype, mut payload) = (self.dtype, self.payload);
        self.entry_elements.clone().into_iter().map(move |elements| {
            let (bytes, rest) = payload.split_at(elements as usize * dtype.bytes());
            payload = rest;
            Tensor { dtype, bytes }
        })
    }

    /// The tensors as an array, or `None` if the point has another number of them.
    pub fn tensors_exactly<const N: usize>(&self) -> Option<[Tensor<'a>; N]> {
        let tensors: heapless::Vec<Tensor<'a>, { super::MAX_TENSORS }> = self.tensors().collect();
        tensors.as_slice().try_into().ok()
    }
}

/// One tensor's elements, as the payload stores them.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.bytes.len() / self.dtype.bytes()
    }

    /// The elements, widened to f32, row-major.
    pub fn values(&self) -> impl Iterator<Item = f32> + use<'a> {
        let dtype = self.dtype;
        self.bytes.chunks_exact(dtype.bytes()).map(move |bytes| match (dtype, bytes) {
            (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            _ => unreachable!("chunks have the size of an element"),
        })
    }
}

/// Header, table and payload of `bytes`, and the length that they ask for, which may be another than `bytes` has.
///
/// Does not look at the checksum, nor at what the payload holds.
fn parse(bytes: &[u8]) -> Result<(Record<'_>, u64), RecordError> {
    let found = bytes.len() as u64;
    let version = *bytes.get(MAGIC.len()).ok_or_else(|| truncated(found))?;
    match version {
        VERSION => {}
        0 => return Err(malformed("its version is 0")),
        found => return Err(RecordError::NewerVersion { found }),
    }
    let (header, table_onwards) = take::<HeaderBytes>(&bytes[MAGIC.len() + 1..], found)?;
    let dtype = Dtype::from_code(header.encoding & DTYPE_BITS)?;
    if header.encoding & !(DTYPE_BITS | RSLORA_BIT) != 0 {
        return Err(malformed("unknown flags are set"));
    }
    let points = usize::from(header.points);
    if points == 0 || points > MAX_POINTS {
        return Err(malformed("the number of points is out of range"));
    }
    let (mut rest, mut payload_len) = (table_onwards, 0u64);
    for _ in 0..points {
        let (entry, after) = take::<Entry>(rest, found)?;
        payload_len += payload_bytes(&entry, dtype);
        rest = after;
    }
    let before_payload = found - rest.len() as u64;
    let record = Record {
        header: Header {
            base: header.base,
            kind: header.kind,
            dtype,
            rslora: header.encoding & RSLORA_BIT != 0,
            rank: header.rank,
            alpha: header.alpha,
        },
        table: &table_onwards[..table_onwards.len() - rest.len()],
        payload: usize::try_from(payload_len).ok().and_then(|len| rest.get(..len)).unwrap_or(rest),
        points,
        checksum: RecordChecksum([0; CHECKSUM_BYTES]),
    };
    Ok((record, before_payload + payload_len + CHECKSUM_BYTES as u64))
}

/// At most `MAX_TENSORS` counts below 2^32, so it cannot overflow.
fn payload_bytes(entry: &Entry, dtype: Dtype) -> u64 {
    entry.elements.iter().map(|elements| u64::from(*elements) * dtype.bytes() as u64).sum()
}

fn take<'a, T: Deserialize<'a>>(bytes: &'a [u8], found: u64) -> Result<(T, &'a [u8]), RecordError> {
    postcard::take_from_bytes(bytes).map_err(|error| match error {
        postcard::Error::DeserializeUnexpectedEnd => truncated(found),
        _ => malformed("its header or table cannot be decoded"),
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
