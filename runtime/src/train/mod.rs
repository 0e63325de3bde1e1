//! Training: batches to gradients to an adapter, on a session.

/// Losses.
pub mod losses;
/// Optimizers.
pub mod optimizers;

mod batches;
mod error;
mod evaluate;
mod options;
mod prototypes;
mod schedule;
mod shadow;
mod trainer;

pub use error::TrainError;
pub use evaluate::{Evaluation, Verdict};
pub use options::{Length, TrainOptions};
pub use prototypes::prototypes;
pub use schedule::Schedule;
pub use trainer::{StepReport, Trained, Trainer};
