//! Losses: one file each; `ALL` lists them.

mod cross_entropy;
mod mse;

pub use cross_entropy::CrossEntropy;
pub use mse::Mse;

use std::fmt;

use inlay_devices::kernels::{Reduce, ReduceOp, ReduceParams};
use inlay_devices::program::stats;

use crate::data::DataError;
use crate::graph::{DType, HostTensor};
use crate::ops::TensorType;
use crate::plan::{self, IGNORED_LABEL, LABELS, LossContext, Operand};

/// Every loss.
pub static ALL: &[&dyn Loss] = &[&CrossEntropy, &Mse];

/// What training makes small: a mean over terms.
pub trait Loss: plan::Loss + Sync {
    /// Name, as in `--loss`.
    fn name(&self) -> &'static str;

    /// Terms that the mean is taken over, of the first `samples` of these labels.
    fn terms(&self, labels: &HostTensor, samples: usize) -> usize {
        samples * labels.shape()[1..].iter().product::<usize>()
    }

    /// The sum of all terms, computed on the host.
    fn sum(&self, output: &HostTensor, labels: &HostTensor) -> f64;

    /// How many terms are answered correctly, for losses where that means something.
    fn correct(&self, output: &HostTensor, labels: &HostTensor) -> Option<usize>;

    /// Rows of the kernel a sample, for a prediction of this shape: [`VALID_ROWS`](inlay_devices::program::step) counts
    /// these.
    fn rows_per_sample(&self, prediction: &[usize]) -> usize;

    /// This loss as a plan takes it.
    fn as_plan(&self) -> &dyn plan::Loss;
}

impl fmt::Debug for dyn Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for dyn Loss {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

/// The loss of that name.
pub fn find(name: &str) -> Option<&'static dyn Loss> {
    ALL.iter().copied().find(|loss| loss.name() == name)
}

/// The loss that labels of this element type are for.
pub fn for_labels(labels: &HostTensor) -> &'static dyn Loss {
    if labels.dtype() == DType::F32 { &Mse } else { &CrossEntropy }
}

/// Checks labels against what a loss takes for one batch: type, shape but for the number of samples, and range.
pub(crate) fn check_labels(labels: &HostTensor, expected: &TensorType, classes: usize) -> Result<(), DataError> {
    let name = || LABELS.to_owned();
    let is_float = |dtype| dtype == DType::F32;
    if is_float(labels.dtype()) != is_float(expected.dtype) {
        return Err(DataError::Type { name: name(), found: labels.dtype(), expected: expected.dtype });
    }
    if labels.shape().get(1..) != expected.shape.get(1..) {
        let dims: String = expected.shape.iter().skip(1).map(|dim| format!(", {dim}")).collect();
        let expected = format!("[samples{dims}]");
        return Err(DataError::Shape { name: name(), found: labels.shape().to_vec(), expected });
    }
    let last = classes as i64 - 1;
    let values = labels.ints().unwrap_or_default();
    if !values.is_empty() && values.iter().all(|&value| value == IGNORED_LABEL) {
        return Err(DataError::AllIgnored);
    }
    match values.iter().position(|value| *value != IGNORED_LABEL && !(0..=last).contains(value)) {
        Some(at) => {
            let row: usize = labels.shape()[1..].iter().product();
            Err(DataError::Range { name: name(), sample: at / row.max(1), value: values[at], last })
        }
        None => Ok(()),
    }
}

/// Emits the sum of the rows' losses.
fn sum_rows(cx: &mut LossContext<'_, '_>, row_loss: Operand, rows: u32) {
    let loss = cx.stats(stats::LOSS, 1);
    let sum = ReduceParams {
        kept: [1; 4],
        kept_strides: [0; 4],
        reduced: [1, 1, 1, rows],
        reduced_strides: [0, 0, 0, 1],
        op: ReduceOp::Sum as u32,
        scale: 1.0,
        flags: 0,
    };
    cx.call::<Reduce>(&sum, &[row_loss, loss]);
}

/// A size as kernels take it; plans refuse what is larger.
fn size(size: usize) -> u32 {
    u32::try_from(size).expect("a plan checks the sizes of its values")
}
