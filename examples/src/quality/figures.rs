use std::path::Path;

use inlay_runtime::Dtype;
use serde::{Deserialize, Serialize};

use super::enrolment::Enrolment;
use crate::Result;

/// The figures of a case.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Figures {
    /// The case's name.
    pub case: String,
    /// Accuracy of the base, a person each (%).
    pub base: Vec<f64>,
    /// Accuracy of the base on what everybody does, a person each (%); empty where there is no such test.
    pub base_standard: Vec<f64>,
    /// How a class is enrolled that comes later, where that was tried.
    pub enrolment: Option<Enrolment>,
    /// Seeds a person.
    pub seeds: u64,
    /// Whether a development build ran, whose times say little of a release.
    pub is_development: bool,
    /// A row for each size of each family.
    pub rows: Vec<Row>,
}

/// An adapter of one kind, place and size, trained for each person and seed.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Row {
    /// The kinds, joined by `+`.
    pub kind: String,
    /// The rank, width or length; 0 if it has none.
    pub size: u16,
    /// Where it sits, in words.
    pub place: String,
    /// Learning rate.
    pub lr: f32,
    /// Numbers that are trained.
    pub parameters: usize,
    /// Time of a step (ms): the median of the steps of a run, the least of the runs.
    pub ms_per_step: f64,
    /// What became of it at each dtype of the record.
    pub stored: Vec<Stored>,
}

/// The runs of a row, stored at one dtype.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Stored {
    /// Name of the dtype.
    pub dtype: String,
    /// Size of the record (bytes).
    pub bytes: usize,
    /// Gained accuracy (percentage points), a run each: people, and seeds of each.
    pub lifts: Vec<f64>,
    /// The same on what everybody does; empty where there is no such test.
    pub standard: Vec<f64>,
    /// Runs whose values this dtype rounds to nothing: no record can be made, and the base stays.
    pub refused: usize,
}

impl Row {
    /// What became of it at `dtype`.
    pub fn at(&self, dtype: Dtype) -> Option<&Stored> {
        self.stored.iter().find(|stored| stored.dtype == dtype.name())
    }

    /// Kind, size and place, as people say it.
    pub fn label(&self) -> String {
        match self.size {
            0 => format!("{}, {}", self.kind, self.place),
            size => format!("{} {size}, {}", self.kind, self.place),
        }
    }
}

/// Mean, standard deviation, least and greatest of some figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Their mean.
    pub mean: f64,
    /// Standard deviation of the population.
    pub sd: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of `values`; all zero when there are none.
    pub fn of(values: &[f64]) -> Self {
        if values.is_empty() {
            return Spread { mean: 0.0, sd: 0.0, min: 0.0, max: 0.0 };
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let sd = (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
        let min = values.iter().copied().fold(f64::INFINITY, f64::min);
        let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Spread { mean, sd, min, max }
    }
}

impl Figures {
    /// Reads them from the file in `folder`; `None` if there is none.
    ///
    /// # Errors
    /// When the file cannot be read, or is none that [`Figures::write`] wrote.
    pub fn read(folder: &Path, case: &str) -> Result<Option<Self>> {
        let path = folder.join(format!("{case}.json"));
        if !path.is_file() {
            return Ok(None);
        }
        let read = serde_json::from_slice(&std::fs::read(&path)?);
        Ok(Some(read.map_err(|error| format!("{}: {error}; run the case again", path.display()))?))
    }

    /// Writes them to a file in `folder`, named after the case.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(format!("{}.json", self.case));
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_that_of_the_values() {
        assert_eq!(Spread::of(&[1.0, 3.0, 1.0, 3.0]), Spread { mean: 2.0, sd: 1.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of(&[]).mean, 0.0);
    }
}
