use inlay_devices::kernels::{self, AdamWParams};
use inlay_devices::program::Region;
use inlay_format::state::ADAMW;

use super::{Optimizer, OptimizerSettings, len};
use crate::plan::{Operand, UpdateContext};

/// AdamW (Loshchilov and Hutter, 2019), as PyTorch does it.
pub struct AdamW;

impl Optimizer for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn id(&self) -> u16 {
        ADAMW
    }

    fn default_weight_decay(&self) -> f32 {
        0.01
    }

    fn state(&self, _settings: &OptimizerSettings) -> &'static [Region] {
        &[Region::M, Region::V]
    }

    fn lower(&self, settings: &OptimizerSettings, cx: &mut UpdateContext<'_, '_>, stats: Operand) {
        let &OptimizerSettings { beta1, beta2, eps, weight_decay, .. } = settings;
        let params = AdamWParams { len: len(cx), beta1, beta2, eps, weight_decay };
        let operands = [cx.params(), cx.grads(), cx.m(), cx.v(), cx.step(), stats];
        cx.call::<kernels::AdamW>(&params, &operands);
    }
}
