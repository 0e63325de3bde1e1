//! A class that comes later: a head of class means learns it from the samples of a calibration, the others stay.

use inlay_runtime::train::prototypes;
use inlay_runtime::{Adapter, AdapterOptions, HostTensor, LABELS, Session};
use serde::{Deserialize, Serialize};

use super::case::{Samples, select};
use super::sweep::{accuracy, dataset};
use crate::Result;

/// Samples answered at once.
const PREDICT_BATCH: usize = 64;

/// How a head does before and after a class is enrolled, as the mean over people (%).
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Enrolment {
    /// Samples of the new class.
    pub samples: usize,
    /// Accuracy on the other classes before.
    pub others_before: f64,
    /// Accuracy on them after.
    pub others_after: f64,
    /// Accuracy on the new class.
    pub new: f64,
}

impl Enrolment {
    /// The mean of several.
    pub fn mean(all: &[Enrolment]) -> Self {
        let n = all.len().max(1) as f64;
        let of = |value: fn(&Enrolment) -> f64| all.iter().map(value).sum::<f64>() / n;
        Enrolment {
            samples: all.iter().map(|one| one.samples).max().unwrap_or(0),
            others_before: of(|one| one.others_before),
            others_after: of(|one| one.others_after),
            new: of(|one| one.new),
        }
    }
}

/// Someone's head for all classes but the last, and then with it.
///
/// # Errors
/// When the samples lack a class, or a batch cannot be computed.
pub fn enrol(session: &mut Session, classes: u16, calibration: &Samples, test: &Samples) -> Result<Enrolment> {
    let new = classes - 1;
    let [known, added] = [false, true].map(|is_new| rows_of(calibration, new, is_new));
    let [others, last] = [false, true].map(|is_new| rows_of(test, new, is_new));

    let head = Adapter::new(session.base(), &AdapterOptions::head(None, new))?;
    let known = dataset(session, &known)?;
    let head = prototypes(session, &head, &known, PREDICT_BATCH)?;
    session.set_adapter(Some(head.clone()))?;
    let others_before = accuracy(session, &others)?.0;

    let added = dataset(session, &added)?;
    let head = prototypes(session, &head, &added, PREDICT_BATCH)?;
    session.set_adapter(Some(head))?;
    let (others_after, new) = (accuracy(session, &others)?.0, accuracy(session, &last)?.0);
    session.set_adapter(None)?;
    Ok(Enrolment { samples: added.len(), others_before, others_after, new })
}

/// The samples whose label is `class`, or those of the other classes.
fn rows_of(samples: &Samples, class: u16, is_class: bool) -> Samples {
    let labels = samples.iter().find(|(name, _)| name == LABELS).and_then(|(_, array)| HostTensor::ints(array));
    let labels = labels.unwrap_or_default().into_iter().enumerate();
    let rows: Vec<usize> =
        labels.filter(|(_, label)| (*label == i64::from(class)) == is_class).map(|(row, _)| row).collect();
    select(samples, &rows)
}
