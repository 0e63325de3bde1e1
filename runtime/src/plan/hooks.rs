use inlay_devices::kernels::Contract;
use inlay_devices::program::{Region, stats, step};

use super::PlanError;
use super::lower::{Lowering, Operand};
use super::view::View;
use crate::ops::TensorType;

/// A loss: how far predictions are from labels, and its gradient.
pub trait Loss {
    /// Type of the labels for predictions of this shape; integers are class numbers.
    ///
    /// # Errors
    /// [`PlanError::Loss`] when the loss has no meaning for this shape.
    fn labels(&self, prediction: &[usize]) -> Result<TensorType, PlanError>;

    /// For integer labels, the number of classes: the host refuses labels outside `0..classes`, but
    /// for [`IGNORED_LABEL`](super::IGNORED_LABEL), which it writes as -1.
    fn classes(&self, prediction: &[usize]) -> usize {
        prediction.last().copied().unwrap_or(0)
    }

    /// Emits the loss, into the [`LOSS`](stats::LOSS) of Stats, and the gradient of the prediction (`=`).
    fn lower(&self, cx: &mut LossContext<'_, '_>);
}

/// An optimizer: from gradients to updated parameters.
pub trait Optimizer {
    /// Emits the update of all parameters. Gradients are complete.
    fn lower(&self, cx: &mut UpdateContext<'_, '_>);
}

/// What a [`Loss`] emits with. All operands are row-major.
#[derive(Debug)]
pub struct LossContext<'c, 'a> {
    pub(super) lowering: &'c mut Lowering<'a>,
    pub(super) prediction: View,
    pub(super) labels: View,
    pub(super) gradient: View,
}

impl LossContext<'_, '_> {
    /// Shape of the prediction, and of its gradient.
    pub fn shape(&self) -> &[usize] {
        self.prediction.shape()
    }

    /// The prediction.
    pub fn prediction(&self) -> Operand {
        (&self.prediction).into()
    }

    /// The labels: floats, or integers.
    pub fn labels(&self) -> Operand {
        (&self.labels).into()
    }

    /// The gradient of the prediction, to be written (`=`).
    pub fn gradient(&self) -> Operand {
        (&self.gradient).into()
    }

    /// The small buffer that the host writes each step; see [`step`].
    pub fn step(&mut self) -> Operand {
        self.lowering.step_slot()
    }

    /// The scalars that a step produces from element `offset` on; see [`stats`].
    pub fn stats(&mut self, offset: usize, len: usize) -> Operand {
        self.lowering.stats_slot(offset, len)
    }

    /// A piece of the arena with undefined contents.
    pub fn scratch(&mut self, len: usize) -> Operand {
        self.lowering.scratch(&[len]).into()
    }

    /// Emits a call of a kernel.
    pub fn call<C: Contract>(&mut self, params: &C::Params, operands: &[Operand]) {
        self.lowering.call::<C>(params, operands);
    }
}

/// What an [`Optimizer`] emits with.
#[derive(Debug)]
pub struct UpdateContext<'c, 'a> {
    pub(super) lowering: &'c mut Lowering<'a>,
    pub(super) len: usize,
}

impl UpdateContext<'_, '_> {
    /// Elements of all parameters together, the padding between them included; its gradient is 0.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All parameters.
    pub fn params(&mut self) -> Operand {
        self.lowering.whole(Region::Params, self.len)
    }

    /// All gradients.
    pub fn grads(&mut self) -> Operand {
        self.lowering.whole(Region::Grads, self.len)
    }

    /// First moment or momentum of each parameter.
    pub fn m(&mut self) -> Operand {
        self.lowering.whole(Region::M, self.len)
    }

    /// Second moment of each parameter.
    pub fn v(&mut self) -> Operand {
        self.lowering.whole(Region::V, self.len)
    }

    /// The small buffer that the host writes each step; see [`step`].
    pub fn step(&mut self) -> Operand {
        self.lowering.step_slot()
    }

    /// The scalars that a step produces from element `offset` on; see [`stats`].
    pub fn stats(&mut self, offset: usize, len: usize) -> Operand {
        self.lowering.stats_slot(offset, len)
    }

    /// A piece of the arena with undefined contents.
    pub fn scratch(&mut self, len: usize) -> Operand {
        self.lowering.scratch(&[len]).into()
    }

    /// Emits a call of a kernel.
    pub fn call<C: Contract>(&mut self, params: &C::Params, operands: &[Operand]) {
        self.lowering.call::<C>(params, operands);
    }
}

impl Lowering<'_> {
    fn whole(&mut self, region: Region, len: usize) -> Operand {
        let buffer = self.buffers.whole(region, len);
        View::contiguous(buffer, &[len]).into()
    }

    pub(super) fn step_slot(&mut self) -> Operand {
        self.whole(Region::Step, step::LEN)
    }

    fn stats_slot(&mut self, offset: usize, len: usize) -> Operand {
        let buffer = self.buffers.whole(Region::Stats, stats::LEN);
        View { offset, ..View::contiguous(buffer, &[len]) }.into()
    }

    pub(super) fn grads_slot(&mut self, len: usize) -> Operand {
        self.whole(Region::Grads, len)
    }
}
