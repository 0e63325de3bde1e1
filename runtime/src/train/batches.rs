use crate::random::Random;

use super::options::{Length, TrainOptions};

/// Which samples each step takes: through the data in order, or in a new random order each epoch.
#[derive(Clone, Debug)]
pub(super) struct Batches {
    samples: usize,
    batch: usize,
    accumulate: usize,
    shuffle: bool,
    seed: u64,
    length: Length,
    epoch: Option<(u64, Vec<usize>)>,
}

/// Streams of one seed below this number are other things than epochs.
const FIRST_EPOCH_STREAM: u64 = 16;

impl Batches {
    pub fn new(options: &TrainOptions, samples: usize, batch: usize) -> Self {
        Batches {
            samples,
            batch,
            accumulate: options.accumulate,
            shuffle: options.shuffle,
            seed: options.seed,
            length: options.length,
            epoch: None,
        }
    }

    /// Optimizer steps of the run.
    pub fn steps(&self) -> u64 {
        match self.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => epochs.saturating_mul(self.steps_per_epoch()),
        }
    }

    /// The epoch of a step, both from 0.
    pub fn epoch_of(&self, step: u64) -> u64 {
        step / self.steps_per_epoch()
    }

    /// The batches of a step (from 0), each as the samples in it. They follow from the seed and the step alone.
    pub fn of_step(&mut self, step: u64) -> Vec<Vec<usize>> {
        let per_epoch = self.steps_per_epoch();
        let (epoch, within) = (step / per_epoch, (step % per_epoch) as usize);
        let order = match &self.epoch {
            Some((known, order)) if *known == epoch => order,
            _ => {
                let order = if self.shuffle {
                    Random::new(self.seed, FIRST_EPOCH_STREAM + epoch).permutation(self.samples)
                } else {
                    (0..self.samples).collect()
                };
                &self.epoch.insert((epoch, order)).1
            }
        };
        let per_step = self.batch * self.accumulate;
        let end = ((within + 1) * per_step).min(self.samples);
        order[within * per_step..end].chunks(self.batch).map(<[usize]>::to_vec).collect()
    }

    fn steps_per_epoch(&self) -> u64 {
        self.samples.div_ceil(self.batch * self.accumulate).max(1) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_once_an_epoch() {
        for accumulate in [1, 2, 3] {
            let options = TrainOptions::new().epochs(2).accumulate(accumulate).seed(3);
            let mut batches = Batches::new(&options, 10, 4);
            let mut orders = Vec::new();
            for epoch in 0..2 {
                let mut order = Vec::new();
                for step in 0..batches.steps() / 2 {
                    let step = epoch * batches.steps() / 2 + step;
                    assert_eq!(batches.epoch_of(step), epoch);
                    let of_step = batches.of_step(step);
                    assert!(of_step.len() <= accumulate && of_step.iter().all(|batch| (1..=4).contains(&batch.len())));
                    order.extend(of_step.concat());
                }
                orders.push(order.clone());
                order.sort_unstable();
                assert!(order.into_iter().eq(0..10));
            }
            assert_ne!(orders[0], orders[1]);
        }
    }

    #[test]
    fn order_is_kept_when_asked() {
        let options = TrainOptions::new().steps(5).shuffle(false);
        let mut batches = Batches::new(&options, 5, 2);
        assert_eq!(batches.steps(), 5);
        let found: Vec<_> = (0..5).map(|step| batches.of_step(step)).collect();
        assert_eq!(found, [[vec![0, 1]], [vec![2, 3]], [vec![4]], [vec![0, 1]], [vec![2, 3]]]);
    }
}
