//! What can go wrong, each with the way out.

use std::path::{Path, PathBuf};

/// Why a model could not be read, exported or inspected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A place that cannot be written to as asked.
    #[error("{path}: {detail}", path = path.display())]
    Place {
        /// The place.
        path: PathBuf,
        /// What is wrong with it, and the way out.
        detail: &'static str,
    },
    /// The file is not an ONNX model, or a damaged one.
    #[error("{path}: not a readable ONNX model: {detail}", path = path.display())]
    NotOnnx {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        detail: String,
    },
    /// The file is ONNX, but breaks a rule of the format.
    #[error("invalid model: {0}")]
    Invalid(String),
    /// The external data of a tensor cannot be used.
    #[error("tensor {tensor:?}: external data {location:?}: {detail}")]
    ExternalData {
        /// The tensor.
        tensor: String,
        /// Its `location`.
        location: String,
        /// What is wrong with it.
        detail: String,
    },
    /// An operator that no part of Inlay runs.
    #[error("node {node:?}: operator {domain}{op_type} is not supported; {way_out}", domain = domain_prefix(domain))]
    UnsupportedOp {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// The operator's domain, empty for ai.onnx.
        domain: String,
        /// What to do.
        way_out: String,
    },
    /// A supported operator, used in a way that is not.
    #[error("node {node:?} ({op_type}): {detail}")]
    UnsupportedUse {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// What is not supported, and what to do.
        detail: String,
    },
    /// Types and shapes do not fit together.
    #[error("types and shapes do not fit: {0}")]
    Types(String),
    /// A pattern of `--targets` is no glob.
    #[error("target pattern {pattern:?}: {source}")]
    TargetPattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        source: globset::Error,
    },
    /// A pattern of `--targets` names no module.
    #[error("target pattern {pattern:?} matches no linear or convolution; the model has: {available}")]
    TargetMatchesNothing {
        /// The pattern.
        pattern: String,
        /// Some of the module paths.
        available: String,
    },
    /// A point was asked for where no adapter can be trained.
    #[error("target {path:?}: node {node:?} ({op_type}) cannot carry an adapter: {reason}; {way_out}")]
    TargetNotTrainable {
        /// The module path.
        path: String,
        /// The node that stands in the way.
        node: String,
        /// Its operator.
        op_type: String,
        /// Why.
        reason: String,
        /// What to do.
        way_out: String,
    },
    /// No point at all can be trained.
    #[error("no linear or convolution of this model can carry an adapter: {0}")]
    NoPoints(String),
    /// An adapter kind found no module of its own accord.
    #[error("no module of this model is known to carry adapters of kind {kind:?}; name some with {option}")]
    NoPlaces {
        /// The kind.
        kind: &'static str,
        /// The option that names modules.
        option: &'static str,
    },
    /// A module was chosen for a kind that is for linears.
    #[error("pattern {pattern:?} matches {path:?}, which is no linear; adapters of kind {kind:?} are for linears only")]
    NotALinear {
        /// The kind.
        kind: &'static str,
        /// The module.
        path: String,
        /// The pattern that matched it.
        pattern: String,
    },
    /// Virtual tokens cannot go through this model.
    #[error("prompt tuning: {reason}; {way_out}")]
    NoPrompt {
        /// What stands in the way.
        reason: String,
        /// What to do.
        way_out: &'static str,
    },
    /// There is nothing for `--calibrate` to scale.
    #[error("--calibrate: no weight can be given factors: {reason}; leave it out, or export with --quant int4 or int8")]
    NothingToCalibrate {
        /// Why not.
        reason: String,
    },
    /// The samples do not fit the model.
    #[error("samples {path}: {detail}", path = path.display())]
    Samples {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The reference could not run the model.
    #[error("verification: {what} does not run: {detail}")]
    Oracle {
        /// Which model.
        what: &'static str,
        /// What the reference said.
        detail: String,
    },
    /// The exported graph computes something else than the source.
    #[error(
        "verification: output {output:?} of the exported graph differs from the source by {found:.3e} \
         (at most {allowed:.1e} of max(1, |y|) is allowed); nothing was written; please report this model"
    )]
    StructureDiffers {
        /// The output.
        output: String,
        /// The largest difference, relative to max(1, |y|).
        found: f32,
        /// The tolerance.
        allowed: f32,
    },
    /// Quantization costs more than `--max-error`.
    #[error(
        "quantization moves output {output:?} by {found:.3e}, more than --max-error {allowed}; \
         nothing was written; raise --max-error, or export with --quant none"
    )]
    QuantizationError {
        /// The output.
        output: String,
        /// The largest absolute difference.
        found: f32,
        /// The limit.
        allowed: f32,
    },
    /// A rule of `--quant-rule` cannot be followed.
    #[error("--quant-rule {rule:?}: {detail}")]
    QuantRule {
        /// The rule.
        rule: String,
        /// Why, and what to do.
        detail: String,
    },
    /// int4 was asked for in vain.
    #[error(
        "no weight is stored as int4, which takes linears before the output head whose inputs fill blocks; \
         use --quant int8 without --int4-block, --int4-method and --qdq, or a smaller --int4-block"
    )]
    NoInt4,
    /// int4, or a form of it, was asked for in vain, since weights keep the integers that they have.
    #[error(
        "{kept} weights are quantized already and keep their integers, and no other weight is stored as int4 as was asked; \
         leave out --quant int4, --int4-block and --int4-method, or name weights to quantize anew with --quant-rule 'GLOB=int4'"
    )]
    KeptIntegers {
        /// How many weights keep their integers.
        kept: usize,
    },
    /// The quantizer refused a tensor.
    #[error("tensor {tensor:?}: {detail}")]
    Quantize {
        /// The tensor.
        tensor: String,
        /// Why.
        detail: String,
    },
    /// The folder was not written by `converter export`, or was changed since.
    #[error("{path}: {detail}", path = path.display())]
    NotExported {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong.
        detail: String,
    },
    /// The base cannot be opened.
    #[error(transparent)]
    Base(Box<inlay_runtime::LoadError>),
    /// The adapter cannot be read or written.
    #[error("{path}: {}", Chain(source.as_ref()), path = path.display())]
    Adapter {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: Box<inlay_runtime::AdapterError>,
    },
    /// The adapter cannot be merged.
    #[error(transparent)]
    Merge(Box<inlay_runtime::merge::MergeError>),
    /// A parameter of an adapter has no place in the format asked for.
    #[error("parameter {parameter:?}: {detail}")]
    NotInFile {
        /// The parameter.
        parameter: String,
        /// Why, and what to do.
        detail: String,
    },
}

impl From<inlay_runtime::LoadError> for Error {
    fn from(error: inlay_runtime::LoadError) -> Self {
        Error::Base(Box::new(error))
    }
}

impl From<inlay_runtime::merge::MergeError> for Error {
    fn from(error: inlay_runtime::merge::MergeError) -> Self {
        Error::Merge(Box::new(error))
    }
}

fn domain_prefix(domain: &str) -> String {
    if domain.is_empty() { String::new() } else { format!("{domain}.") }
}

/// Turns an [`std::io::Error`] into an [`Error`] that names the file.
pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::Io { path: path.to_owned(), source }
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with its causes.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
