//! The adapter record, version 1: one adapter as bytes, bound to its base and checksummed.
//!
//! `docs/adapter-format.md` states every byte. [`encode`] writes into a caller's buffer, [`Record::decode`] borrows from
//! the bytes; neither allocates. The record stores a kind id and each point's tensors opaquely: their meaning and
//! shapes belong to the adapter kind.

use core::fmt;

use heapless::Vec;
use serde::{Deserialize, Serialize};

use crate::metadata::{Fingerprint, write_hex};
use crate::points::MAX_POINTS;

mod decode;
mod encode;

pub use decode::{Point, Record, Tensor};
pub use encode::{PointValues, encode, encoded_len};

/// First bytes of every record.
pub const MAGIC: [u8; 4] = *b"INLA";
/// The version that this crate writes, and the newest that it reads.
pub const VERSION: u8 = 1;
/// Largest record.
pub const MAX_RECORD_BYTES: usize = 256 << 20;
/// Most tensors of one point.
pub const MAX_TENSORS: usize = 8;
/// Bytes of a record's checksum.
pub const CHECKSUM_BYTES: usize = 16;
/// The kind id of LoRA. A point's tensors are `lora_A`, `lora_B`.
pub const LORA_KIND: u16 = 1;

/// What a record says about its adapter as a whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Header {
    /// The base that the adapter was trained on.
    pub base: BaseId,
    /// The adapter kind.
    pub kind: u16,
    /// How the payload stores an element.
    pub dtype: Dtype,
    /// Whether `scaling` is alpha / sqrt(r) instead of alpha / r.
    pub rslora: bool,
    /// Rank `r`, 0 for kinds that have none.
    pub rank: u16,
    /// LoRA's alpha.
    pub alpha: f32,
}

/// How a payload stores an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
}

impl Dtype {
    /// Every dtype of version 1.
    pub const ALL: [Dtype; 2] = [Dtype::F32, Dtype::F16];

    /// What `--dtype` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
        }
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 => 2,
        }
    }

    fn code(self) -> u8 {
        match self {
            Dtype::F32 => 0,
            Dtype::F16 => 1,
        }
    }

    fn from_code(code: u8) -> Result<Self, RecordError> {
        Self::ALL.into_iter().find(|dtype| dtype.code() == code).ok_or(RecordError::UnknownDtype { code })
    }
}

/// The identity of a base as a record stores it: the first 16 bytes of its [`Fingerprint`], shown as hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BaseId(pub [u8; 16]);

impl From<Fingerprint> for BaseId {
    fn from(fingerprint: Fingerprint) -> Self {
        Self(first(&fingerprint.0))
    }
}

impl fmt::Display for BaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for BaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BaseId({self})")
    }
}

/// How a record names a point: the first 8 bytes of BLAKE3 over its module path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PathHash(pub [u8; 8]);

impl PathHash {
    /// The name of the point at `path`.
    pub fn of(path: &str) -> Self {
        Self(first(blake3::hash(path.as_bytes()).as_bytes()))
    }
}

impl fmt::Display for PathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for PathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PathHash({self})")
    }
}

/// The checksum at the end of a record or state file, by which a state names its record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RecordChecksum(pub [u8; CHECKSUM_BYTES]);

impl RecordChecksum {
    /// The checksum of a file that starts with `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(first(blake3::hash(bytes).as_bytes()))
    }
}

impl fmt::Display for RecordChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for RecordChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordChecksum({self})")
    }
}

fn first<const N: usize>(bytes: &[u8; 32]) -> [u8; N] {
    core::array::from_fn(|i| bytes[i])
}

/// The header as postcard writes it, after magic and version.
#[derive(Serialize, Deserialize)]
struct HeaderBytes {
    base: BaseId,
    kind: u16,
    encoding: u8,
    rank: u16,
    alpha: f32,
    points: u16,
}

const DTYPE_BITS: u8 = 0x0F;
const RSLORA_BIT: u8 = 0x10;
const _: () = assert!(MAX_POINTS <= u16::MAX as usize);

/// A table entry as postcard writes it.
#[derive(Serialize, Deserialize)]
struct Entry {
    path: PathHash,
    elements: Vec<u32, MAX_TENSORS>,
}

/// Why a record cannot be read or written.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The bytes do not start as a record does.
    #[error("not an adapter record: it does not start with \"INLA\"")]
    NotARecord,
    /// Fewer bytes than the record asks for.
    #[error("the adapter record is cut short: it has {found} bytes and needs at least {needed}; copy it again")]
    Truncated {
        /// Bytes that it needs, as far as can be told.
        needed: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// The checksum does not match.
    #[error("the adapter record was altered: its checksum does not match; copy it again, or train anew")]
    Altered,
    /// A whole record with something behind it.
    #[error("{extra} bytes follow the end of the adapter record; copy it again")]
    TrailingBytes {
        /// How many.
        extra: u64,
    },
    /// Written by a later version of this format.
    #[error("the adapter record has format version {found}, this program reads up to {VERSION}; update the program")]
    NewerVersion {
        /// Its version.
        found: u8,
    },
    /// The payload dtype is not one of version 1.
    #[error(
        "the adapter record stores its values in dtype {code}, which this program does not know; update the program"
    )]
    UnknownDtype {
        /// Its code.
        code: u8,
    },
    /// The kind is in no list of the program. Raised by the caller, who knows the list.
    #[error("the adapter record is of kind {kind}, which this program does not know; update the program")]
    UnknownKind {
        /// The kind.
        kind: u16,
    },
    /// The adapter was trained on another base.
    #[error(
        "the adapter belongs to another base: it was trained on {found}.., the open base is {expected}..; open that base, or train anew"
    )]
    OtherBase {
        /// The open base.
        expected: BaseId,
        /// The base in the record.
        found: BaseId,
    },
    /// A checksummed record that breaks a rule of the format.
    #[error("the adapter record is malformed: {reason}; the program that wrote it is at fault")]
    Malformed {
        /// The rule.
        reason: &'static str,
    },
    /// More bytes than [`MAX_RECORD_BYTES`].
    #[error("the adapter record has {found} bytes, more than the limit of {MAX_RECORD_BYTES}")]
    TooLarge {
        /// Its size.
        found: u64,
    },
    /// A writer was given no points, or more than [`MAX_POINTS`].
    #[error("an adapter record holds 1 to {MAX_POINTS} points, not {found}")]
    Points {
        /// How many it was given.
        found: usize,
    },
    /// A writer was given a point without tensors, with an empty one, or with more than [`MAX_TENSORS`].
    #[error("point {point} of the adapter has {found} tensors; 1 to {MAX_TENSORS} are allowed, none of them empty")]
    Tensors {
        /// Index of the point.
        point: usize,
        /// How many it has.
        found: usize,
    },
    /// A writer was given two points with the same path, or with paths of the same hash.
    #[error("two points of the adapter have the same path (hash {path})")]
    RepeatedPath {
        /// The hash.
        path: PathHash,
    },
    /// A writer was given a value that is NaN or infinite, or becomes so in the payload's dtype.
    #[error("element {element} of tensor {tensor} at point {point} is {value}, which {} cannot hold; lower the learning rate, or save as f32", dtype.name())]
    NotFinite {
        /// Index of the point.
        point: usize,
        /// Index of the tensor within the point.
        tensor: usize,
        /// Index of the element within the tensor.
        element: usize,
        /// The value.
        value: f32,
        /// The payload's dtype.
        dtype: Dtype,
    },
    /// A writer was given an alpha that is NaN or infinite.
    #[error("alpha is {alpha}, expected a finite number")]
    Alpha {
        /// The alpha.
        alpha: f32,
    },
    /// A writer's buffer is shorter than [`encoded_len`] says.
    #[error("the buffer has {found} bytes, the adapter record needs {needed}")]
    Buffer {
        /// Bytes that the record needs.
        needed: usize,
        /// Bytes of the buffer.
        found: usize,
    },
}

#[cfg(test)]
mod tests;
