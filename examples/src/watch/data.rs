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

    /// Writes `window` and `labels` to an `.npz` file.
    ///
    /// # Errors
    /// When there are no windows, or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        if self.is_empty() {
            return Err(format!("{}: no windows to write", path.display()).into());
        }
        let length = self.x.len() / self.len() / CHANNELS;
        let window = HostTensor::new([self.len(), CHANNELS, length], self.x.clone());
        let labels = HostTensor::new([self.len()], self.labels.clone());
        let (window, labels) = window.zip(labels).expect("as many values as the shape says");
        Ok(npz::write(path, [("window", &window), ("labels", &labels)])?)
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
        let mut arrays: HashMap<String, HostTensor> = npz::read(&path)?.into_iter().collect();
        let mut take = |name: &str| {
            let array = arrays.remove(name).and_then(|array| array.ints());
            array.ok_or_else(|| format!("{}: no array of integers \"{name}\"", path.display()))
        };
        let samples = take("samples")?.into_iter().map(from_bits).collect::<Result<Vec<f32>>>()?;
        let (lengths, people, exercises) = (take("length")?, take("person")?, take("exercise")?);

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
        self.windows(person, |start, end, n| {
            let _ = start;
            100 * end <= self.recipe.calibrate_percent * n
        })
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
