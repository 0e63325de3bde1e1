use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use inlay_format::points::{MAX_RANK, PointOp};
use safetensors::SafeTensorError;

use super::{CONFIG_FILE, Prefix, TENSORS_FILE};

/// Why a PEFT folder cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeftError {
    /// A file of the folder is not there.
    #[error("{} is not a PEFT adapter folder: it has no {missing}; save the adapter with `save_pretrained(DIR)`", .folder.display())]
    NotAFolder {
        /// The folder.
        folder: PathBuf,
        /// The file.
        missing: &'static str,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is over the limit.
    #[error("{} has more than {limit} bytes, too many for an adapter", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// The settings are not a JSON object.
    #[error("{CONFIG_FILE} is not a JSON object")]
    Config(#[source] serde_json::Error),
    /// A setting is missing.
    #[error("{CONFIG_FILE} has no \"{name}\"; save the adapter with `save_pretrained(DIR)`")]
    MissingSetting {
        /// The setting.
        name: &'static str,
    },
    /// A setting asks for what this runtime does not compute.
    #[error(
        "{CONFIG_FILE} sets \"{name}\" to {value}, which is not supported: use plain LoRA with ranks of 1 to {MAX_RANK}"
    )]
    Setting {
        /// The setting.
        name: String,
        /// Its value as JSON.
        value: String,
    },
    /// The tensors are not a safetensors file.
    #[error("{TENSORS_FILE} is not a valid safetensors file; copy it again")]
    Tensors(#[source] SafeTensorError),
    /// Tensors that are not LoRA's, nor of a module that is saved whole.
    #[error("{TENSORS_FILE} holds tensors that are neither LoRA weights nor of a module of \"modules_to_save\": {}; save an adapter without them", Listed(.keys))]
    OtherTensors {
        /// Their keys.
        keys: Vec<String>,
    },
    /// Two keys mean the same tensor.
    #[error("\"{first}\" and \"{second}\" in {TENSORS_FILE} are the same tensor of one module")]
    SameModule {
        /// One key.
        first: String,
        /// The other.
        second: String,
    },
    /// A module has one of two tensors.
    #[error("module \"{module}\" in {TENSORS_FILE} has {has} but no {lacks}; save the adapter again")]
    HalfAModule {
        /// The module.
        module: String,
        /// What it has.
        has: &'static str,
        /// What it lacks.
        lacks: &'static str,
    },
    /// LoRA of a lookup where the base has a linear or convolution, or the other way round.
    #[error(
        "module \"{path}\" in {TENSORS_FILE} is not the base's {op:?} of that path; use the base that the adapter was trained on"
    )]
    OtherOp {
        /// The point.
        path: String,
        /// What the base has there.
        op: PointOp,
    },
    /// A parameter of a whole module that the base cannot take.
    #[error("\"{name}\", of a module that the adapter saves whole, {reason}")]
    Saved {
        /// The parameter.
        name: String,
        /// What is wrong, and what to do.
        reason: &'static str,
    },
    /// A pattern of ranks or alphas that is no regular expression here.
    #[error(
        "{CONFIG_FILE}: the pattern \"{pattern}\" of \"{setting}\" cannot be used: {reason}; name modules by their full paths"
    )]
    Pattern {
        /// `rank_pattern` or `alpha_pattern`.
        setting: &'static str,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No tensors at all.
    #[error("{TENSORS_FILE} holds no tensors; train the adapter first")]
    Empty,
    /// Modules that are no insertion points of the base.
    #[error(
        "the adapter's modules are not the base's insertion points, under any one prefix; modules without a point: {}; points without a module: {}; export the base with --targets for these modules",
        Listed(.modules), Listed(.points)
    )]
    NoMatch {
        /// Modules of the adapter that are no points.
        modules: Vec<String>,
        /// Points of the base that are no modules.
        points: Vec<String>,
    },
    /// Two prefixes under which every module is an insertion point.
    #[error(
        "the adapter's modules match the base's insertion points in two ways: {first}, and {second}; rename its keys to full module paths"
    )]
    Ambiguous {
        /// One way.
        first: Prefix,
        /// The other.
        second: Prefix,
    },
    /// A tensor has another shape than its point asks for.
    #[error(
        "tensor \"{key}\" has shape {found:?}, the base's insertion point asks for {expected:?}; use the base that the adapter was trained on"
    )]
    Shape {
        /// The tensor's key.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that it should have.
        expected: Vec<usize>,
    },
    /// A module scales its inputs where the point scales outputs, or the other way round.
    #[error(
        "module \"{path}\" scales its {}, the base's point its {}; export the base with --ia3-{} for it",
        if *.expected { "outputs" } else { "inputs" }, if *.expected { "inputs" } else { "outputs" },
        if *.expected { "targets" } else { "feedforward" }
    )]
    Feedforward {
        /// The point.
        path: String,
        /// Whether the point scales its inputs.
        expected: bool,
    },
    /// A tensor has an element type other than F32, F16 and BF16.
    #[error("tensor \"{key}\" has dtype {found}, expected F32, F16 or BF16; save the adapter in one of them")]
    Dtype {
        /// The tensor's key.
        key: String,
        /// Its dtype.
        found: String,
    },
    /// A tensor holds NaN or infinity.
    #[error("tensor \"{key}\" holds NaN or infinity; train the adapter again with a lower learning rate")]
    NotFinite {
        /// The tensor's key.
        key: String,
    },
    /// The factor of a folded normalization or calibration cannot be applied.
    #[error("point \"{path}\": the factor \"{name}\" that was folded into its weight {reason}; export the base again")]
    Factor {
        /// The point.
        path: String,
        /// Name of the initializer.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The adapter to write has a point that the base lacks.
    #[error("the adapter's point \"{path}\" is not in the base; use the base that it was trained on")]
    UnknownPoint {
        /// The point.
        path: String,
    },
    /// The adapter to write has a tensor of another size than the base's point asks for.
    #[error(
        "a tensor of the adapter's point \"{path}\" has {found} elements, the base asks for {expected}; use the base that it was trained on"
    )]
    Elements {
        /// The point.
        path: String,
        /// Elements of the tensor.
        found: usize,
        /// Elements that it should have.
        expected: usize,
    },
}

impl PeftError {
    /// The error of `action` on `path`, for `map_err`.
    pub(super) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> PeftError + use<'a> {
        move |source| PeftError::Io { action, path: path.into(), source }
    }
}

/// A few names, for people.
struct Listed<'a>(&'a [String]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        for (i, name) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}\"{name}\"", if i == 0 { "" } else { ", " })?;
        }
        match self.0.len() {
            0 => f.write_str("none"),
            len if len > SHOWN => write!(f, " and {} more", len - SHOWN),
            _ => Ok(()),
        }
    }
}
