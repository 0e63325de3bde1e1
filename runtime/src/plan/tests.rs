mod gradients;
mod kinds;
mod models;

use std::sync::Arc;

use inlay_devices::backend::{DeviceError, Executable};
use inlay_devices::kernels::{Copy, CopyParams, Fill, FillParams};
use inlay_devices::plain::{PlainExecutable, PlainReal};
use inlay_devices::program::{Region, Segment};

use super::*;
use crate::graph::DType;

/// The reference backend behind the interface of devices, its arena poisoned.
pub(super) struct Plain<T>(pub PlainExecutable<T>);

impl<T: PlainReal> Plain<T> {
    pub fn new(plan: &Plan) -> Self {
        let mut plain = Plain(PlainExecutable::new(Arc::clone(plan.program())).expect("the program is valid"));
        plain.poison();
        plain
    }

    /// What nobody wrote must not be read.
    pub fn poison(&mut self) {
        self.0.memory.floats_mut(Region::Arena).fill(T::of(f64::NAN));
    }

    pub fn output(&self, plan: &Plan, output: usize) -> Vec<f64> {
        let OutputSource::Device(slot) = plan.outputs[output].source else { panic!("a host output") };
        let all = self.0.memory.floats(slot.region);
        all[slot.offset..slot.offset + slot.len].iter().map(|x| x.to_f64()).collect()
    }
}

impl<T: PlainReal> Executable for Plain<T> {
    fn write(&mut self, region: Region, offset: usize, values: &[f32]) -> Result<(), DeviceError> {
        let to = &mut self.0.memory.floats_mut(region)[offset..offset + values.len()];
        to.iter_mut().zip(values).for_each(|(to, &x)| *to = T::of(f64::from(x)));
        Ok(())
    }

    fn write_ints(&mut self, offset: usize, values: &[i32]) -> Result<(), DeviceError> {
        self.0.memory.ints_mut()[offset..offset + values.len()].copy_from_slice(values);
        Ok(())
    }

    fn read(&mut self, region: Region, offset: usize, values: &mut [f32]) -> Result<(), DeviceError> {
        let from = &self.0.memory.floats(region)[offset..offset + values.len()];
        values.iter_mut().zip(from).for_each(|(to, x)| *to = x.to_f64() as f32);
        Ok(())
    }

    fn run(&mut self, segments: &[Segment]) -> Result<(), DeviceError> {
        self.0.run(segments);
        Ok(())
    }
}

/// `L = sum labels * prediction`: its gradient is the labels.
struct Weighted;

impl Loss for Weighted {
    fn labels(&self, prediction: &[usize]) -> Result<TensorType, PlanError> {
        Ok(TensorType::new(DType::F32, prediction))
    }

    fn lower(&self, cx: &mut LossContext<'_, '_>) {
        let len = cx.shape().iter().product();
        let (labels, gradient) = (cx.labels(), cx.gradient());
        cx.call::<Copy>(&CopyParams::contiguous(u(len)), &[labels, gradient]);
    }
}

struct NoUpdate;

impl Optimizer for NoUpdate {
    fn lower(&self, cx: &mut UpdateContext<'_, '_>) {
        let m = cx.m();
        let len = u(cx.len());
        cx.call::<Fill>(&FillParams { len, value: 0.0 }, &[m]);
    }
}

fn train(output: &str) -> Mode<'_> {
    Mode::Train { output, loss: &Weighted, optimizer: &NoUpdate }
}
