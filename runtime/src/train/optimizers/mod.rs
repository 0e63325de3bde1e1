//! Optimizers: one file each; `ALL` lists them.

mod adamw;
mod sgd;

pub use adamw::AdamW;
pub use sgd::Sgd;

use std::fmt;

use inlay_devices::kernels::{GradNorm, GradsParams};
use inlay_devices::program::{Region, stats};

use crate::plan::{Operand, UpdateContext};

/// Every optimizer.
pub static ALL: &[&dyn Optimizer] = &[&AdamW, &Sgd];

/// From gradients to updated parameters.
pub trait Optimizer: Sync {
    /// Name, as in `--optimizer`.
    fn name(&self) -> &'static str;

    /// Number in a state file.
    fn id(&self) -> u16;

    /// The weight decay unless another is asked for.
    fn default_weight_decay(&self) -> f32;

    /// What it keeps for each parameter between steps, in the order of the state file.
    fn state(&self, settings: &OptimizerSettings) -> &'static [Region];

    /// Emits the update of all parameters. `stats` holds the clip factor.
    fn lower(&self, settings: &OptimizerSettings, cx: &mut UpdateContext<'_, '_>, stats: Operand);
}

impl fmt::Debug for dyn Optimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for dyn Optimizer {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

/// The optimizer of that name.
pub fn find(name: &str) -> Option<&'static dyn Optimizer> {
    ALL.iter().copied().find(|optimizer| optimizer.name() == name)
}

/// The numbers of an optimizer that stay the same over a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerSettings {
    /// SGD's momentum; 0 for none.
    pub momentum: f32,
    /// Weight decay: decoupled in AdamW, added to the gradient in SGD.
    pub weight_decay: f32,
    /// AdamW's decay of m.
    pub beta1: f32,
    /// AdamW's decay of v.
    pub beta2: f32,
    /// What AdamW adds to the root of v.
    pub eps: f32,
}

impl OptimizerSettings {
    /// PyTorch's defaults for `optimizer`.
    pub fn new(optimizer: &dyn Optimizer) -> Self {
        let weight_decay = optimizer.default_weight_decay();
        OptimizerSettings { momentum: 0.0, weight_decay, beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

/// An optimizer with its numbers, as a plan takes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Configured {
    pub optimizer: &'static dyn Optimizer,
    pub settings: OptimizerSettings,
}

impl crate::plan::Optimizer for Configured {
    fn lower(&self, cx: &mut UpdateContext<'_, '_>) {
        let stats = cx.stats(0, stats::LEN);
        let operands = [cx.grads(), cx.step(), stats];
        cx.call::<GradNorm>(&GradsParams { len: len(cx) }, &operands);
        self.optimizer.lower(&self.settings, cx, stats);
    }
}

/// The number of parameters as kernels take it.
fn len(cx: &UpdateContext<'_, '_>) -> u32 {
    u32::try_from(cx.len()).expect("a plan checks the sizes of its values")
}
