use inlay_devices::kernels::{self, MseParams};

use super::{Loss, size, sum_rows};
use crate::graph::{DType, HostTensor};
use crate::ops::TensorType;
use crate::plan::{self, LossContext, PlanError};

/// Mean squared error: `(output - label)^2`, mean over all elements.
///
/// output and labels: [B, ..].
pub struct Mse;

impl plan::Loss for Mse {
    fn labels(&self, prediction: &[usize]) -> Result<TensorType, PlanError> {
        if prediction.is_empty() {
            let rule = "it needs a dimension for samples";
            return Err(PlanError::Loss { loss: self.name().to_owned(), shape: prediction.to_vec(), rule });
        }
        Ok(TensorType::new(DType::F32, prediction))
    }

    fn lower(&self, cx: &mut LossContext<'_, '_>) {
        let (rows, columns) = cx.shape().split_first().expect("labels() asks for a dimension");
        let (rows, columns): (usize, usize) = (*rows, columns.iter().product());
        let params = MseParams { rows: size(rows), cols: size(columns), flags: MseParams::GRADIENT };
        let row_loss = cx.scratch(rows);
        let operands = [cx.prediction(), cx.labels(), cx.step(), row_loss, cx.gradient()];
        cx.call::<kernels::Mse>(&params, &operands);
        sum_rows(cx, row_loss, size(rows));
    }
}

impl Loss for Mse {
    fn name(&self) -> &'static str {
        "mse"
    }

    fn rows_per_sample(&self, _prediction: &[usize]) -> usize {
        1
    }

    fn as_plan(&self) -> &dyn plan::Loss {
        self
    }

    fn sum(&self, output: &HostTensor, labels: &HostTensor) -> f64 {
        let pairs = output.floats().unwrap_or_default().iter().zip(labels.floats().unwrap_or_default());
        pairs.map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum()
    }

    fn correct(&self, _output: &HostTensor, _labels: &HostTensor) -> Option<usize> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_are_summed() {
        let output = HostTensor::of([2, 2], vec![1.0, 2.0, 3.0, 4.0]);
        let labels = HostTensor::of([2, 2], vec![1.0, 0.0, 6.0, 4.5]);
        assert_eq!(Mse.sum(&output, &labels), 4.0 + 9.0 + 0.25);
        assert_eq!(Mse.correct(&output, &labels), None);
    }
}
