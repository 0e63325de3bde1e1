use inlay_devices::kernels::{SoftmaxCrossEntropy, SoftmaxCrossEntropyParams};

use super::{Loss, size, sum_rows};
use crate::graph::{DType, HostTensor};
use crate::ops::TensorType;
use crate::plan::{self, IGNORED_LABEL, LossContext, PlanError};

/// Cross-entropy of class labels: `log sum_c e^logits[.., c] - logits[.., label]`, mean over all labels that count.
///
/// logits: [B, .., C], labels: [B, ..] in `0..C`, or [`IGNORED_LABEL`] for what does not count.
pub struct CrossEntropy;

impl CrossEntropy {
    /// Each row of logits with its label, where that counts.
    fn rows<'a>(output: &'a HostTensor, labels: &HostTensor) -> impl Iterator<Item = (&'a [f32], usize)> + use<'a> {
        let classes = output.shape().last().copied().unwrap_or(1).max(1);
        let logits = output.floats().unwrap_or_default().chunks_exact(classes);
        // Labels are checked against the classes before anything is computed.
        let labels = labels.ints().unwrap_or_default().into_iter();
        logits.zip(labels).filter(|(_, label)| *label != IGNORED_LABEL).map(|(row, label)| (row, label as usize))
    }
}

impl plan::Loss for CrossEntropy {
    fn labels(&self, prediction: &[usize]) -> Result<TensorType, PlanError> {
        match prediction {
            [rows @ .., classes] if !rows.is_empty() && *classes > 1 => Ok(TensorType::new(DType::I64, rows)),
            _ => Err(PlanError::Loss {
                loss: self.name().to_owned(),
                shape: prediction.to_vec(),
                rule: "the last dimension holds the scores of two or more classes",
            }),
        }
    }

    fn lower(&self, cx: &mut LossContext<'_, '_>) {
        let (classes, rows) = cx.shape().split_last().expect("labels() asks for two dimensions");
        let (rows, classes): (usize, usize) = (rows.iter().product(), *classes);
        let params = SoftmaxCrossEntropyParams {
            rows: size(rows),
            classes: size(classes),
            flags: SoftmaxCrossEntropyParams::GRADIENT,
        };
        let row_loss = cx.scratch(rows);
        let operands = [cx.prediction(), cx.labels(), cx.step(), row_loss, cx.gradient()];
        cx.call::<SoftmaxCrossEntropy>(&params, &operands);
        sum_rows(cx, row_loss, size(rows));
    }
}

impl Loss for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn terms(&self, labels: &HostTensor, samples: usize) -> usize {
        let row: usize = labels.shape()[1..].iter().product();
        let labels = labels.ints().unwrap_or_default();
        labels.iter().take(samples * row).filter(|&&label| label != IGNORED_LABEL).count()
    }

    fn rows_per_sample(&self, prediction: &[usize]) -> usize {
        prediction.get(1..prediction.len().saturating_sub(1)).unwrap_or_default().iter().product()
    }

    fn as_plan(&self) -> &dyn plan::Loss {
        self
    }

    fn sum(&self, output: &HostTensor, labels: &HostTensor) -> f64 {
        Self::rows(output, labels)
            .map(|(row, label)| {
                let max = row.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(f64::from(x)));
                let sum: f64 = row.iter().map(|&x| (f64::from(x) - max).exp()).sum();
                sum.ln() + max - f64::from(row[label])
            })
            .sum()
    }

    fn correct(&self, output: &HostTensor, labels: &HostTensor) -> Option<usize> {
        let first_largest = |row: &[f32]| (0..row.len()).reduce(|best, at| if row[at] > row[best] { at } else { best });
        Some(Self::rows(output, labels).filter(|(row, label)| first_largest(row) == Some(*label)).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_pytorch() {
        // torch.nn.functional.cross_entropy(torch.tensor([[1., 2, 3], [0, 0, 0]]), torch.tensor([0, 2]), reduction="sum")
        let logits = HostTensor::of([2, 3], vec![1.0, 2.0, 3.0, 0.0, 0.0, 0.0]);
        let labels = HostTensor::of([2], vec![0i64, 2]);
        assert!((CrossEntropy.sum(&logits, &labels) - 3.506_218_2).abs() < 1e-6);
        assert_eq!(CrossEntropy.correct(&logits, &labels), Some(0));
        let labels = HostTensor::of([2], vec![2i64, 0]);
        assert_eq!(CrossEntropy.correct(&logits, &labels), Some(2));
        let ignored = HostTensor::of([2], vec![IGNORED_LABEL, 2]);
        // torch: cross_entropy(..., torch.tensor([-100, 2]), reduction="sum")
        assert!((CrossEntropy.sum(&logits, &ignored) - 1.098_612_3).abs() < 1e-6);
        assert_eq!((CrossEntropy.terms(&ignored, 2), CrossEntropy.terms(&ignored, 1)), (1, 0));
        let large = HostTensor::of([1, 2], vec![1e30, -1e30]);
        assert_eq!(CrossEntropy.sum(&large, &HostTensor::of([1], vec![0i64])), 0.0);
    }
}
