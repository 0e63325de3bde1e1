use inlay_format::state::StateError;

use super::evaluate::Verdict;
use crate::adapters::AdapterError;
use crate::data::DataError;
use crate::engine::RunError;
use crate::session::SessionError;

/// Why a run cannot start, go on or be accepted. The trainer's adapter is that of the last good step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// An option is out of range.
    #[error("{option} is {found}, expected {expected}")]
    Option {
        /// What it is.
        option: &'static str,
        /// Its value.
        found: String,
        /// What fits.
        expected: &'static str,
    },
    /// The data cannot be trained on.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The adapter cannot be trained.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A head cannot be made of the means of classes.
    #[error("no head from the means of classes: {why}")]
    Prototypes {
        /// What is in the way.
        why: &'static str,
    },
    /// A step cannot be computed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The adapter cannot be evaluated.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Training went astray.
    #[error(
        "{what} became {value} at step {step}; the adapter of the step before is kept; lower the learning rate or clip gradients"
    )]
    NotFinite {
        /// What is not finite: the loss, or a parameter.
        what: &'static str,
        /// Its value.
        value: f32,
        /// The step, from 1.
        step: u64,
    },
    /// The adapter is not better than none.
    #[error("the adapter does not beat the base on the {} samples held back: {verdict}; give more data, or take fewer steps at a lower rate", .verdict.base.samples)]
    NotBetter {
        /// How both did.
        verdict: Verdict,
    },
    /// The model has no output of that name that a loss can be taken of.
    #[error("the model has no float output \"{name}\"; it has: {known}")]
    Output {
        /// The name.
        name: String,
        /// The outputs that it has.
        known: String,
    },
    /// There are no gradients to read.
    #[error("there are no gradients: no step was taken since the run started or changed its device")]
    NoGradients,
    /// A state file does not continue this run.
    #[error(transparent)]
    State(#[from] StateError),
    /// A state file is of another adapter.
    #[error(
        "the training state has {found} arrays of {elements} values, expected {expected} of {parameters}; it belongs to another adapter"
    )]
    StateSize {
        /// Arrays in the state.
        found: usize,
        /// Values of each.
        elements: usize,
        /// Arrays that this optimizer has.
        expected: usize,
        /// Parameters of this adapter.
        parameters: usize,
    },
}
