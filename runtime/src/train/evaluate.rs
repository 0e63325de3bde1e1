use std::fmt;

use super::error::TrainError;
use super::losses::{self, Loss, check_labels};
use crate::adapters::Adapter;
use crate::base::Base;
use crate::data::{DataError, Dataset, select_rows};
use crate::graph::DType;
use crate::plan::PlanError;
use crate::session::Session;

/// How well a session answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Samples that were answered.
    pub samples: usize,
    /// Mean loss.
    pub loss: f64,
    /// Part of the answers that are right, for losses where that means something.
    pub accuracy: Option<f64>,
}

/// How base and adapter do on samples that neither was trained on. Where the adapter adds the output, the base is the
/// adapter as it was before training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// The base alone.
    pub base: Evaluation,
    /// The base with the adapter.
    pub adapter: Evaluation,
}

impl Verdict {
    /// Whether the adapter has a lower loss, and answers no fewer samples right.
    pub fn is_better(&self) -> bool {
        self.adapter.loss < self.base.loss && self.adapter.accuracy >= self.base.accuracy
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "loss {:.4}, of the base {:.4}", self.adapter.loss, self.base.loss)?;
        if let (Some(adapter), Some(base)) = (self.adapter.accuracy, self.base.accuracy) {
            write!(f, "; accuracy {:.1} %, of the base {:.1} %", 100.0 * adapter, 100.0 * base)?;
        }
        Ok(())
    }
}

impl Session {
    /// The mean loss, and accuracy, over a labelled data set, of the base with the adapter in use.
    ///
    /// Loss and output are those of [`TrainOptions`](super::TrainOptions): the ones that fit, unless named. An output that the
    /// adapter in use adds, such as a head's, comes first.
    ///
    /// # Errors
    /// When there are no labels, or they do not fit the output, or a batch cannot be computed.
    pub fn evaluate(
        &mut self,
        data: &Dataset,
        loss: Option<&'static dyn Loss>,
        output: Option<&str>,
        batch_size: usize,
        mut progress: impl FnMut(usize),
    ) -> Result<Evaluation, TrainError> {
        let labels = data.labels().ok_or(DataError::NoLabels)?;
        let loss = loss.unwrap_or_else(|| losses::for_labels(labels));
        let output = find_output(self.base(), self.adapter(), output)?;
        let (mut sum, mut correct, mut terms) = (0.0, Some(0), 0);
        self.for_each_batch(data, batch_size, |rows, outputs| {
            let answers = outputs.iter().find(|(name, _)| *name == output).map(|(_, answers)| answers);
            let answers = answers.expect("find_output took it from base and adapter");
            let expected = loss.labels(answers.shape()).map_err(run_error)?;
            check_labels(labels, &expected, loss.classes(answers.shape()))?;
            let labels = select_rows(labels, &rows.clone().collect::<Vec<_>>());
            sum += loss.sum(answers, &labels);
            correct = correct.zip(loss.correct(answers, &labels)).map(|(all, more)| all + more);
            terms += loss.terms(&labels, labels.shape()[0]);
            progress(rows.end);
            Ok::<_, TrainError>(())
        })?;
        let accuracy = correct.map(|correct| correct as f64 / terms as f64);
        Ok(Evaluation { samples: data.len(), loss: sum / terms as f64, accuracy })
    }
}

/// The output of that name, or the first, if it holds floats. Those that the adapter adds come before those of the base.
pub(super) fn find_output(base: &Base, adapter: Option<&Adapter>, name: Option<&str>) -> Result<String, TrainError> {
    let floats = || {
        let own = base.outputs().iter().filter(|port| port.dtype == DType::F32).map(|port| port.name.as_str());
        adapter.into_iter().flat_map(Adapter::outputs).chain(own)
    };
    let found = floats().find(|output| name.is_none_or(|name| name == *output));
    found.map(str::to_owned).ok_or_else(|| TrainError::Output {
        name: name.unwrap_or("(first)").to_owned(),
        known: floats().collect::<Vec<_>>().join(", "),
    })
}

pub(super) fn run_error(error: PlanError) -> TrainError {
    TrainError::Run(error.into())
}
