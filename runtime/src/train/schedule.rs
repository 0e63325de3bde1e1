//! Learning-rate schedules, as Hugging Face's `get_*_schedule_with_warmup`.

use std::f64::consts::PI;

/// How the learning rate changes over a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Schedule {
    /// Stays at its peak.
    #[default]
    Constant,
    /// Falls in a straight line from its peak to 0 after the last step.
    Linear,
    /// Falls along half a cosine from its peak to 0 after the last step.
    Cosine,
}

impl Schedule {
    /// Every schedule.
    pub const ALL: [Schedule; 3] = [Schedule::Constant, Schedule::Linear, Schedule::Cosine];

    /// What `--schedule` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Schedule::Constant => "constant",
            Schedule::Linear => "linear",
            Schedule::Cosine => "cosine",
        }
    }

    /// The factor on the peak learning rate at `step` (from 0) of a run of `steps`, after `warmup` steps of a
    /// straight rise from 0.
    pub fn factor(self, step: u64, steps: u64, warmup: u64) -> f64 {
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let progress = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => (1.0 - progress).max(0.0),
            Schedule::Cosine if progress >= 1.0 => 0.0,
            Schedule::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(schedule: Schedule, steps: u64, warmup: u64) -> Vec<f64> {
        (0..=steps).map(|step| schedule.factor(step, steps, warmup)).collect()
    }

    #[track_caller]
    fn assert_near(found: &[f64], expected: &[f64]) {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {expected:?}");
        assert_eq!(found.len(), expected.len());
    }

    #[test]
    fn values_of_transformers() {
        assert_near(&factors(Schedule::Constant, 4, 2), &[0.0, 0.5, 1.0, 1.0, 1.0]);
        assert_near(&factors(Schedule::Linear, 6, 2), &[0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]);
        assert_near(&factors(Schedule::Cosine, 6, 2), &[0.0, 0.5, 1.0, 0.853_553_4, 0.5, 0.146_446_6, 0.0]);
        assert_near(&factors(Schedule::Linear, 2, 0), &[1.0, 0.5, 0.0]);
    }

    #[test]
    fn odd_lengths_stay_in_range() {
        for schedule in Schedule::ALL {
            for (steps, warmup) in [(0, 0), (1, 1), (3, 5), (5, 5)] {
                for step in 0..10 {
                    let factor = schedule.factor(step, steps, warmup);
                    assert!((0.0..=1.0).contains(&factor), "{schedule:?} {step}/{steps} after {warmup}: {factor}");
                }
            }
        }
    }
}
