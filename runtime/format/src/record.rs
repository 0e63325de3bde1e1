//! The adapter record, version 3: one adapter as bytes, bound to its base and checksummed.
//!
//! `docs/adapter-format.md` states every byte. [`encode`] writes into a caller's buffer, [`Record::decode`] borrows from
//! the bytes, of this version or an older one; neither allocates. An adapter is a list of parts; a part has a kind id and
//! stores its points' tensors opaquely: their meaning and shapes belong to the adapter kind.

use core::fmt;

use heapless::Vec;
use serde::{Deserialize, Serialize};

use crate::metadata::{Fingerprint, write_hex};
use crate::points::MAX_POINTS;

mod decode;
mod dtype;
mod encode;
mod error;

pub use decode::{Part, Point, Record, Tensor};
pub use dtype::Dtype;
pub use encode::{PartValues, PointValues, TensorValues, encode, encoded_len};
pub use error::RecordError;

/// First bytes of every record.
pub const MAGIC: [u8; 4] = *b"INLA";
/// The version that this crate writes, and the newest that it reads.
pub const VERSION: u8 = 3;
/// Largest record.
pub const MAX_RECORD_BYTES: usize = 256 << 20;
/// Most parts of a record.
pub const MAX_PARTS: usize = 64;
/// Most tensors of one point.
pub const MAX_TENSORS: usize = 8;
/// Most elements of one tensor.
pub const MAX_ELEMENTS: usize = 1 << 30;
/// Bytes of a record's checksum.
pub const CHECKSUM_BYTES: usize = 16;
/// The kind id of LoRA. A point's tensors are `lora_A`, `lora_B`.
pub const LORA_KIND: u16 = 1;

/// What a record says about a part of its adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PartHeader {
    /// The adapter kind.
    pub kind: u16,
    /// How the payload stores an element.
    pub dtype: Dtype,
    /// Whether `scaling` is alpha / sqrt(r) instead of alpha / r.
    pub rslora: bool,
    /// Rank `r`, or what the kind has in its place; 0 for kinds that have none.
    pub rank: u16,
    /// LoRA's alpha.
    pub alpha: f32,
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

/// The start of a part's header as postcard writes it. Alpha (f32), if there is one, and the number of points (u16) follow.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct PartBytes {
    kind: u16,
    encoding: u8,
    rank: u16,
}

const DTYPE_BITS: u8 = 0x0F;
const RSLORA_BIT: u8 = 0x10;
/// An alpha follows, other than [`NO_ALPHA`]. In versions 1 and 2 there always is one, and this bit is not set.
const ALPHA_BIT: u8 = 0x20;
/// The alpha of a part that writes none.
const NO_ALPHA: f32 = 1.0;
const _: () = assert!(MAX_POINTS <= u16::MAX as usize);

impl PartHeader {
    /// Where the part stands among the others.
    fn order(&self) -> (u16, u16, u8, u32) {
        (self.kind, self.rank, self.dtype.code() | if self.rslora { RSLORA_BIT } else { 0 }, self.alpha.to_bits())
    }
}

/// A table entry as postcard writes it, in its short spelling.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    path: PathHash,
    tensors: Vec<Size, MAX_TENSORS>,
}

impl Entry {
    /// With 0 for what goes without saying: as many groups as the part's rank, groups as long as those of the first tensor.
    fn short(mut self, rank: u16) -> Self {
        let first = self.tensors.first().map_or(0, |size| size.len);
        for (i, size) in self.tensors.iter_mut().enumerate() {
            size.groups = if size.groups == u32::from(rank) { 0 } else { size.groups };
            size.len = if i > 0 && size.len == first { 0 } else { size.len };
        }
        self
    }

    /// What [`Entry::short`] was made of.
    fn long(mut self, rank: u16) -> Self {
        let first = self.tensors.first().map_or(0, |size| size.len);
        for size in &mut self.tensors {
            size.groups = if size.groups == 0 { rank.into() } else { size.groups };
            size.len = if size.len == 0 { first } else { size.len };
        }
        self
    }
}

/// A table entry of version 1.
#[derive(Deserialize)]
struct EntryV1 {
    path: PathHash,
    elements: Vec<u32, MAX_TENSORS>,
}

impl From<EntryV1> for Entry {
    fn from(EntryV1 { path, elements }: EntryV1) -> Self {
        Self { path, tensors: elements.into_iter().map(|len| Size { groups: 1, len }).collect() }
    }
}

/// The size of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Size {
    /// Runs of elements that share a scale.
    groups: u32,
    /// Elements of one group.
    len: u32,
}

impl Size {
    fn elements(self) -> u64 {
        u64::from(self.groups) * u64::from(self.len)
    }

    fn is_valid(self) -> bool {
        (1..=MAX_ELEMENTS as u64).contains(&self.elements())
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
