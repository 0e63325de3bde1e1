use inlay_format::record::{Dtype, PathHash, RecordError};

use super::stack::StackError;
use super::targets::TargetError;
use crate::peft::PeftError;
use crate::plan::PlanError;

/// Why an adapter cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// No such kind.
    #[error("there is no adapter kind \"{found}\"; use one of: {known}")]
    Kind {
        /// The name asked for.
        found: String,
        /// The names that there are.
        known: String,
    },
    /// A rank out of range.
    #[error("{kind}: {what} is {found}, expected 1 to {max}")]
    Rank {
        /// The kind.
        kind: &'static str,
        /// What the kind calls it.
        what: &'static str,
        /// The one asked for.
        found: u16,
        /// The largest that it may be.
        max: u16,
    },
    /// A rank for a kind that has none.
    #[error("{kind}: rank is {found}, but this kind has none; leave it out")]
    Unsized {
        /// The kind.
        kind: &'static str,
        /// The rank asked for.
        found: u16,
    },
    /// An alpha, or rsLoRA, for a kind that has no `scaling`.
    #[error("{kind}: this kind has no alpha; leave alpha and rsLoRA out")]
    Unscaled {
        /// The kind.
        kind: &'static str,
    },
    /// No parts.
    #[error("an adapter needs at least one part")]
    Empty,
    /// A point twice in one adapter.
    #[error("point \"{path}\" is in two parts of kind \"{kind}\"; name each point once")]
    RepeatedPoint {
        /// The point.
        path: String,
        /// The kind.
        kind: &'static str,
    },
    /// Two parts that take the same place.
    #[error("two parts of the adapter want \"{name}\"; leave the point out of the targets of one of them")]
    Conflict {
        /// Name of the graph input or value.
        name: String,
    },
    /// An alpha that scales the adapter to nothing or to nonsense.
    #[error("alpha is {found}, expected a finite number other than 0")]
    Alpha {
        /// The alpha asked for.
        found: f32,
    },
    /// Target patterns that do not select.
    #[error(transparent)]
    Targets(#[from] TargetError),
    /// The base has no point for this kind.
    #[error("the base has no place for adapters of kind \"{kind}\"; {way_out}")]
    NoPoints {
        /// The kind.
        kind: &'static str,
        /// How to get a base that has one.
        way_out: &'static str,
    },
    /// The adapter computes what the base does.
    #[error("the adapter changes nothing: a factor is zero at every point; train it with a learning rate above 0")]
    ChangesNothing,
    /// A point that no output depends on.
    #[error("point \"{path}\" has no effect: no output of the base depends on it; leave it out of the targets")]
    OffPath {
        /// The point.
        path: String,
    },
    /// Whole, and still without effect on what the base computes.
    #[error(
        "the adapter has no effect: on {samples} samples every output is the base's, bit for bit; train longer, save in a wider dtype, or choose other points"
    )]
    NoEffect {
        /// Samples that it was tried on.
        samples: usize,
    },
    /// Rounded to the record's dtype, it computes what the base does.
    #[error("the adapter is so small that {} rounds it to nothing; train longer, or save as f32", dtype.name())]
    RoundsToNothing {
        /// The dtype.
        dtype: Dtype,
    },
    /// A point whose node the graph does not have.
    #[error("point \"{path}\": the base has no node \"{node}\"; export it again with this version's converter")]
    NoNode {
        /// The point.
        path: String,
        /// The node that it names.
        node: String,
    },
    /// A tensor that a head cannot read.
    #[error(
        "a head cannot sit on \"{tensor}\": it has {found}; name a tensor [B, C] or [B, T, C], or a map [B, C, L] or [B, C, H, W] of a convolution, with fixed C"
    )]
    Features {
        /// The tensor.
        tensor: String,
        /// What it is.
        found: &'static str,
    },
    /// No head where one is needed.
    #[error("the adapter has no head; train it with --kind head, alone or with another kind")]
    NoHead,
    /// A head cannot have that many classes.
    #[error("the head has {found} classes and cannot get {asked}: classes are added, up to 65535")]
    Classes {
        /// Classes that it has.
        found: usize,
        /// Classes asked for.
        asked: usize,
    },
    /// A point without a basis for LoRA-XS.
    #[error("point \"{path}\": the base holds no basis for LoRA-XS; export it with --basis 16")]
    NoBasis {
        /// The point.
        path: String,
    },
    /// A core of another size than the basis has.
    #[error(
        "lora-xs: rank is {found}, the basis of this base has rank {expected}; leave the rank out, or export with --basis {found}"
    )]
    BasisRank {
        /// The rank asked for.
        found: u16,
        /// The rank of the basis.
        expected: u16,
    },
    /// No adapter is that small.
    #[error("no adapter of this base fits {bytes} bytes; the smallest needs {smallest}")]
    Budget {
        /// The bytes that there are.
        bytes: usize,
        /// The bytes of the smallest.
        smallest: usize,
    },
    /// No prompt where one is needed.
    #[error("the adapter has no prompt; make one of kind prompt")]
    NoPrompt,
    /// No tokens to start a prompt from.
    #[error("a prompt cannot start from no tokens; name at least one id")]
    NoTokens,
    /// An id that is not in the table of word embeddings.
    #[error("a prompt cannot start from token {found}: the table of the base has {rows} rows")]
    UnknownToken {
        /// The id.
        found: u32,
        /// Rows of the table.
        rows: u32,
    },
    /// A tensor that the adapter does not have, or of another size.
    #[error("the adapter has no tensor \"{name}\" of {found} finite elements")]
    Tensor {
        /// The name asked for.
        name: String,
        /// Elements given.
        found: usize,
    },
    /// A part that has no place in a PEFT folder.
    #[error(
        "a PEFT folder has no place for kind \"{kind}\" in this adapter: it takes lora with dense, norm and bias, or ia3 alone; keep the record"
    )]
    NotInPeft {
        /// The kind.
        kind: &'static str,
    },
    /// The record cannot be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The PEFT folder cannot be read or written.
    #[error(transparent)]
    Peft(#[from] PeftError),
    /// The adapter does not fit the graph of the base.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The record names a point that the base does not have.
    #[error(
        "the adapter has a point (path hash {path}) that the base does not list; open the base that it was trained on"
    )]
    UnknownPoint {
        /// Hash of the point's path.
        path: PathHash,
    },
    /// Adapters that cannot be summed.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// The record's tensors are not those of its kind at a point.
    #[error(
        "point \"{path}\": the adapter has tensors of {found:?} elements, expected {expected:?}; train anew on this base"
    )]
    Sizes {
        /// The point.
        path: String,
        /// Elements of each tensor found.
        found: Vec<usize>,
        /// Elements of each tensor expected.
        expected: Vec<usize>,
    },
}
