use super::{BaseId, Dtype, MAX_PARTS, MAX_RECORD_BYTES, MAX_TENSORS, PathHash, VERSION};
use crate::points::MAX_POINTS;

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
    /// The payload dtype is not one of its version.
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
    /// A writer was given no parts, or more than [`MAX_PARTS`].
    #[error("an adapter record holds 1 to {MAX_PARTS} parts, not {found}")]
    Parts {
        /// How many it was given.
        found: usize,
    },
    /// A writer was given two parts of the same kind, rank, alpha and dtype.
    #[error("two parts of the adapter have kind {kind} and the same settings; make them one")]
    RepeatedPart {
        /// Their kind.
        kind: u16,
    },
    /// A writer was given a part without points, or more than [`MAX_POINTS`] in all.
    #[error("an adapter record holds 1 to {MAX_POINTS} points, and some in each part, not {found}")]
    Points {
        /// How many it was given.
        found: usize,
    },
    /// A writer was given a point without tensors, or with more than [`MAX_TENSORS`].
    #[error("point {path} of the adapter has {found} tensors; 1 to {MAX_TENSORS} are allowed")]
    Tensors {
        /// Hash of the point's path.
        path: PathHash,
        /// How many it has.
        found: usize,
    },
    /// A writer was given an empty tensor, or one whose elements do not make groups of one size.
    #[error("point {path} of the adapter has a tensor of {elements} elements in {groups} groups; give it equal groups")]
    Groups {
        /// Hash of the point's path.
        path: PathHash,
        /// Elements of the tensor.
        elements: usize,
        /// Its groups.
        groups: usize,
    },
    /// A writer was given two points with the same path, or with paths of the same hash, in parts of one kind.
    #[error("two points of the adapter have the same path (hash {path}) and kind")]
    RepeatedPath {
        /// The hash.
        path: PathHash,
    },
    /// A writer was given a value that is NaN or infinite, or becomes so in the payload's dtype.
    #[error("element {element} of tensor {tensor} at point {path} is {value}, which {} cannot hold; lower the learning rate, or save as f32", dtype.name())]
    NotFinite {
        /// Hash of the point's path.
        path: PathHash,
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
    /// A writer's buffer is shorter than [`encoded_len`](super::encoded_len) says.
    #[error("the buffer has {found} bytes, the adapter record needs {needed}")]
    Buffer {
        /// Bytes that the record needs.
        needed: usize,
        /// Bytes of the buffer.
        found: usize,
    },
}
