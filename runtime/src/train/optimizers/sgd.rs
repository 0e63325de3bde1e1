use inlay_devices::kernels::{self, SgdParams};
use inlay_devices::program::Region;
use inlay_format::state::SGD;

use super::{Optimizer, OptimizerSettings, len};
use crate::plan::{Operand, UpdateContext};

/// Stochastic gradient descent with momentum, as PyTorch does it.
pub struct Sgd;

impl Optimizer for Sgd {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn id(&self) -> u16 {
        SGD
    }

    fn default_weight_decay(&self) -> f32 {
        0.0
    }

    fn state(&self, settings: &OptimizerSettings) -> &'static [Region] {
        if settings.momentum == 0.0 { &[] } else { &[Region::M] }
    }

    fn lower(&self, settings: &OptimizerSettings, cx: &mut UpdateContext<'_, '_>, stats: Operand) {
        let &OptimizerSettings { momentum, weight_decay, .. } = settings;
        let params = SgdParams { len: len(cx), momentum, weight_decay };
        let m = if momentum == 0.0 { Operand::ABSENT } else { cx.m() };
        let operands = [cx.params(), cx.grads(), m, cx.step(), stats];
        cx.call::<kernels::Sgd>(&params, &operands);
    }
}
