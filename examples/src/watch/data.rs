//! The recordings, and the windows cut from them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use half::f16;
use inlay_runtime::{HostTensor, npz};
use serde::Deserialize;

use crate::Result;

/// Axes of the sensor: three of acceleration, three of angular velocity.
pub const CHANNELS: usize = 6;

/// The folder with the data and the float models.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("watch")
}

/// `folds.json`: how windows are cut, and which model a person gets.
#[derive(Clone, Debug, Deserialize)]
pub struct Recipe {
    /// Names of the exercises, by label.
    pub classes: Vec<String>,
    /// Samples a window.
    pub window: usize,
    /// Samples from one window's start to the next one's.
    pub stride: usize,
    /// Windows that end within this first part of their recording are for calibration.
    pub calibrate_percent: usize,
    /// Windows that begin after this part of their recording are classified.
    pub test_from_percent: usize,
    /// The last part of each recording's calibration windows, on which an adapter has to prove itself.
    pub held_back_percent: usize,
    /// Windows a step.
    pub batch_size: usize,
    /// The models.
    pub folds: Vec<Fold>,
}

/// One model, and how to personalize it.
#[derive(Clone, Debug, Deserialize)]
pub struct Fold {
    /// File name of the float model.
    pub model: String,
    /// The people whom the model never saw.
    pub people: Vec<u32>,
    /// Rank of the adapters.
    pub rank: usize,
    /// Learning rate.
    pub lr: f32,
    /// LoRA's alpha.
    pub alpha: f32,
    /// Optimizer steps.
    pub steps: usize,
    /// Weight decay of AdamW.
    pub weight_decay: f32,
}

/// One exercise of one person, once with each arm.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The person, from 1.
    pub person: u32,
    /// The exercise's label.
    pub exercise: i64,
    /// `[n, CHANNELS]`, in the sensor's units.
    pub samples: Vec<f32>,
}

impl Recording {
    /// Number of samples an axis.
    pub fn len(&self) -> usize {
        self.samples.len() / CHANNELS
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
}

/// Windows `[B, CHANNELS, T]` with a label each.
#[derive(Clone, Debug, Default)]
pub struct Windows {
    /// The samples.
    pub x: Vec<f32>,
    /// The exercise of each window.
    pub labels: Vec<i64>,
    /// The recording from which each window was cut.
    recordings: Vec<usize>,
}

impl Windows {
    /// Number of windows.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Parts off the last `percent` of each recording's windows, at least one: what is left, and what was held back.
    pub fn hold_back(&self, percent: usize) -> (Windows, Windows) {
        let mut counts: HashMap<usize, usize> = HashMap::new();
        for recording in &self.recordings {
            *counts.entry(*recording).or_default() += 1;
        }
        let (mut kept, mut held) = (Windows::default(), Windows::default());
        let mut seen: HashMap<usize, usize> = HashMap::new();
        for (index, recording) in self.recordings.iter().enumerate() {
            let at = seen.entry(*recording).or_default();
            let from_end = counts[recording] - *at;
            *at += 1;
            let last = ((counts[recording] * percent + 50) / 100).max(1);
            let side = if from_end <= last { &mut held } else { &mut kept };
            let size = self.x.len() / self.len();
            side.x.extend_from_slice(&self.x[index * size..(index + 1) * size]);
            side.labels.push(self.labels[index]);
            side.recordings.push(*recording);
        }
        (kept, held)
    }

    /// The arrays `window` and `labels`, as a base takes them.
    ///
    /// # Errors
    /// When there are no windows.
    pub fn into_arrays(self) -> Result<[(String, HostTensor); 2]> {
        if self.is_empty() {
            return Err("no windows: the recordings are too short".into());
        }
        let length = self.x.len() / self.len() / CHANNELS;
        let window = HostTensor::new([self.len(), CHANNELS, length], self.x);
        let labels = HostTensor::new([self.labels.len()], self.labels);
        let (window, labels) = window.zip(labels).expect("as many values as the shapes say");
        Ok([("window".into(), window), ("labels".into(), labels)])
    }

    /// Writes them to an `.npz` file.
    ///
    /// # Errors
    /// When there are no windows, or the file cannot be written.
    pub fn write(self, path: &Path) -> Result<()> {
        let arrays = self.into_arrays()?;
        Ok(npz::write(path, arrays.iter().map(|(name, array)| (name.as_str(), array)))?)
    }
}

/// The vendored recordings and how to use them.
#[derive(Clone, Debug)]
pub struct Data {
    /// How windows are cut, and which model a person gets.
    pub recipe: Recipe,
    recordings: Vec<Recording>,
}

impl Data {
    /// Reads `folds.json` and `watch.npz` of `folder`.
    ///
    /// # Errors
    /// When a file is missing, or is not what `make_models.py` writes.
    pub fn read(folder: &Path) -> Result<Self> {
        let recipe: Recipe = serde_json::from_slice(&std::fs::read(folder.join("folds.json"))?)?;
        let path = folder.join("watch.npz");
        let arrays: HashMap<String, HostTensor> = npz::read(&path)?.into_iter().collect();
        let ints = |name: &str| {
            let values = arrays.get(name).and_then(HostTensor::ints);
            values.ok_or_else(|| format!("{}: no array of integers \"{name}\"", path.display()))
        };
        let samples = ints("samples")?.into_iter().map(from_bits).collect::<Result<Vec<f32>>>()?;
        let (lengths, people, exercises) = (ints("length")?, ints("person")?, ints("exercise")?);

        let mut rest = samples.as_slice();
        let mut recordings = Vec::with_capacity(lengths.len());
        for ((length, person), exercise) in lengths.into_iter().zip(people).zip(exercises) {
            let values = usize::try_from(length)?.checked_mul(CHANNELS).filter(|values| *values <= rest.len());
            let (taken, left) = rest.split_at(values.ok_or("watch.npz: the lengths go beyond the samples")?);
            rest = left;
            recordings.push(Recording { person: u32::try_from(person)?, exercise, samples: taken.to_vec() });
        }
        Ok(Data { recipe, recordings })
    }

    /// Windows for `person`'s calibration.
    pub fn calibration(&self, person: u32) -> Windows {
        self.windows(person, |_, end, n| 100 * end <= self.recipe.calibrate_percent * n)
    }

    /// `person`'s later windows, no sample of which is among the calibration.
    pub fn test(&self, person: u32) -> Windows {
        self.windows(person, |start, _, n| 100 * start >= self.recipe.test_from_percent * n)
    }

    /// Windows of `person`'s recordings for which `keep(start, end, length of the recording)` holds.
    fn windows(&self, person: u32, keep: impl Fn(usize, usize, usize) -> bool) -> Windows {
        let (window, stride) = (self.recipe.window, self.recipe.stride);
        let mut cut = Windows::default();
        for (index, recording) in self.recordings.iter().enumerate().filter(|(_, r)| r.person == person) {
            let n = recording.len();
            for start in (0..=n.saturating_sub(window)).step_by(stride).filter(|start| start + window <= n) {
                if !keep(start, start + window, n) {
                    continue;
                }
                for channel in 0..CHANNELS {
                    let axis = recording.samples[channel..].iter().step_by(CHANNELS);
                    cut.x.extend(axis.skip(start).take(window));
                }
                cut.labels.push(recording.exercise);
                cut.recordings.push(index);
            }
        }
        cut
    }
}

fn from_bits(bits: i64) -> Result<f32> {
    Ok(f16::from_bits(u16::try_from(bits)?).to_f32())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Data {
        Data::read(&folder()).expect("the vendored data")
    }

    #[test]
    fn everybody_is_held_out_once_and_has_every_exercise_on_both_sides() {
        let data = data();
        let mut people: Vec<u32> = data.recipe.folds.iter().flat_map(|fold| fold.people.clone()).collect();
        people.sort_unstable();
        assert_eq!(people, (1..=10).collect::<Vec<u32>>());
        for person in people {
            for windows in [data.calibration(person), data.test(person), data.calibration(person).hold_back(25).1] {
                let mut exercises = windows.labels.clone();
                exercises.dedup();
                assert_eq!(exercises, (0..7).chain(0..7).collect::<Vec<i64>>(), "person {person}");
            }
        }
    }

    #[test]
    fn windows_are_those_that_the_models_were_made_with() {
        let data = data();
        let windows = data.calibration(1);
        let (kept, held) = windows.hold_back(data.recipe.held_back_percent);
        assert_eq!((windows.len(), kept.len(), held.len(), data.test(1).len()), (178, 132, 46, 534));
        // The first window's first values along time, then the next axis.
        assert_eq!(
            (windows.x[0], windows.x[1], windows.x[data.recipe.window]),
            (0.870_117_2, 0.864_746_1, 0.024_185_18)
        );
        assert!(windows.x.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn nothing_calibrated_on_is_tested_on() {
        let data = data();
        let recipe = &data.recipe;
        assert!(recipe.calibrate_percent < recipe.test_from_percent);
        let empty = data.windows(11, |_, _, _| true);
        assert!(empty.is_empty() && empty.into_arrays().is_err());
    }
}
