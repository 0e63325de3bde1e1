use super::losses::Loss;
use super::optimizers::{self, Optimizer, OptimizerSettings};
use super::schedule::Schedule;

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many optimizer steps.
    Steps(u64),
    /// So many times through the data.
    Epochs(u64),
}

/// How to train.
///
/// ```
/// use inlay_runtime::{TrainOptions, train::Schedule};
///
/// let options = TrainOptions::new().steps(200).batch_size(8).lr(5e-3).schedule(Schedule::Cosine, 10).seed(1);
/// ```
#[derive(Clone, Debug)]
pub struct TrainOptions {
    pub(super) length: Length,
    pub(super) batch_size: usize,
    pub(super) accumulate: usize,
    pub(super) lr: f32,
    pub(super) schedule: Schedule,
    pub(super) warmup: u64,
    pub(super) optimizer: &'static dyn Optimizer,
    pub(super) momentum: f32,
    pub(super) weight_decay: Option<f32>,
    pub(super) clip_norm: Option<f32>,
    pub(super) loss: Option<&'static dyn Loss>,
    pub(super) output: Option<String>,
    pub(super) shuffle: bool,
    pub(super) hold_back: Option<f32>,
    pub(super) seed: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        TrainOptions {
            length: Length::Epochs(10),
            batch_size: 16,
            accumulate: 1,
            lr: 1e-3,
            schedule: Schedule::Constant,
            warmup: 0,
            optimizer: &optimizers::AdamW,
            momentum: 0.0,
            weight_decay: None,
            clip_norm: None,
            loss: None,
            output: None,
            shuffle: true,
            hold_back: None,
            seed: 0,
        }
    }
}

impl TrainOptions {
    /// Ten epochs of AdamW at a constant rate of 1e-3, 16 samples a step, shuffled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes so many optimizer steps.
    #[must_use]
    pub fn steps(self, steps: u64) -> Self {
        TrainOptions { length: Length::Steps(steps), ..self }
    }

    /// Goes through the data so many times.
    #[must_use]
    pub fn epochs(self, epochs: u64) -> Self {
        TrainOptions { length: Length::Epochs(epochs), ..self }
    }

    /// Sets the samples of a batch. The last batch of an epoch may be shorter; its loss is the mean over its samples.
    #[must_use]
    pub fn batch_size(self, samples: usize) -> Self {
        TrainOptions { batch_size: samples, ..self }
    }

    /// Has each step add up the gradients of so many batches: the step of one large batch, in the memory of a small one.
    #[must_use]
    pub fn accumulate(self, batches: usize) -> Self {
        TrainOptions { accumulate: batches, ..self }
    }

    /// Sets the peak learning rate.
    #[must_use]
    pub fn lr(self, lr: f32) -> Self {
        TrainOptions { lr, ..self }
    }

    /// Sets how the learning rate changes, after `warmup` steps of a straight rise from 0.
    #[must_use]
    pub fn schedule(self, schedule: Schedule, warmup: u64) -> Self {
        TrainOptions { schedule, warmup, ..self }
    }

    /// Sets the optimizer, one of [`optimizers::ALL`](super::optimizers::ALL).
    #[must_use]
    pub fn optimizer(self, optimizer: &'static dyn Optimizer) -> Self {
        TrainOptions { optimizer, ..self }
    }

    /// Sets SGD's momentum.
    #[must_use]
    pub fn momentum(self, momentum: f32) -> Self {
        TrainOptions { momentum, ..self }
    }

    /// Sets the weight decay; 0.01 for AdamW and 0 for SGD unless set.
    #[must_use]
    pub fn weight_decay(self, weight_decay: f32) -> Self {
        TrainOptions { weight_decay: Some(weight_decay), ..self }
    }

    /// Scales gradients down to this global L2 norm where theirs is larger.
    #[must_use]
    pub fn clip_norm(self, norm: f32) -> Self {
        TrainOptions { clip_norm: Some(norm), ..self }
    }

    /// Sets the loss, one of [`losses::ALL`](super::losses::ALL); unless set, cross-entropy for integer labels and mse for floats.
    #[must_use]
    pub fn loss(self, loss: &'static dyn Loss) -> Self {
        TrainOptions { loss: Some(loss), ..self }
    }

    /// Sets the output that the loss is taken of; the first unless set.
    #[must_use]
    pub fn output(self, name: impl Into<String>) -> Self {
        TrainOptions { output: Some(name.into()), ..self }
    }

    /// Whether samples are shuffled before each epoch.
    #[must_use]
    pub fn shuffle(self, shuffle: bool) -> Self {
        TrainOptions { shuffle, ..self }
    }

    /// Keeps this part of the samples out of training; the run fails unless the adapter beats the base on them.
    #[must_use]
    pub fn hold_back(self, fraction: f32) -> Self {
        TrainOptions { hold_back: Some(fraction), ..self }
    }

    /// Sets the seed of the order of samples, and of which are held back; 0 unless set.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        TrainOptions { seed, ..self }
    }

    pub(super) fn settings(&self) -> OptimizerSettings {
        let defaults = OptimizerSettings::new(self.optimizer);
        OptimizerSettings {
            momentum: self.momentum,
            weight_decay: self.weight_decay.unwrap_or(defaults.weight_decay),
            ..defaults
        }
    }

    /// The first option that is out of range: its name, its value, and what fits.
    pub(super) fn out_of_range(&self) -> Option<(&'static str, String, &'static str)> {
        let checks: [(&'static str, f64, bool, &'static str); 8] = [
            ("batch size", self.batch_size as f64, self.batch_size > 0, "at least 1"),
            ("accumulated batches", self.accumulate as f64, self.accumulate > 0, "at least 1"),
            (
                "length",
                match self.length {
                    Length::Steps(n) | Length::Epochs(n) => n as f64,
                },
                !matches!(self.length, Length::Steps(0) | Length::Epochs(0)),
                "at least 1",
            ),
            ("learning rate", self.lr.into(), self.lr.is_finite() && self.lr > 0.0, "a number above 0"),
            ("momentum", self.momentum.into(), (0.0..1.0).contains(&self.momentum), "0 to below 1"),
            (
                "weight decay",
                self.weight_decay.unwrap_or(0.0).into(),
                self.weight_decay.is_none_or(|x| x.is_finite() && x >= 0.0),
                "a number of at least 0",
            ),
            (
                "clip norm",
                self.clip_norm.unwrap_or(1.0).into(),
                self.clip_norm.is_none_or(|x| x.is_finite() && x > 0.0),
                "a number above 0",
            ),
            (
                "part held back",
                self.hold_back.unwrap_or(0.5).into(),
                self.hold_back.is_none_or(|x| x > 0.0 && x < 1.0),
                "above 0 and below 1",
            ),
        ];
        checks.into_iter().find(|(_, _, fits, _)| !fits).map(|(name, value, _, fits)| (name, value.to_string(), fits))
    }
}
