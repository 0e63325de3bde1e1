use std::sync::Arc;

use crate::backend::{DeviceError, Executable};
use crate::conformance::{TOLERANCE_F32, worst_error};
use crate::kernels::{Kernel, Sample, SampleOperand};
use crate::plain::PlainExecutable;
use crate::program::{Call, Operand, Program, Region, Segment, Slot, aligned};

use super::Shared;
use super::executable::VulkanExecutable;
use super::pipelines::has_body;

/// What the self-test found of a kernel.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KernelReport {
    /// The kernel.
    pub kernel: &'static str,
    /// Samples compared.
    pub samples: usize,
    /// Largest error of all outputs of all samples, relative to `max(1, largest |expected|)`.
    pub worst_error: f64,
    /// The sample that had it.
    pub worst_sample: String,
    /// Whether the error is within tolerance.
    pub passed: bool,
}

/// Runs all samples of `kernel` as one program, and compares with the plain body in f64.
pub(super) fn run(shared: &Shared, kernel: &'static dyn Kernel) -> Result<KernelReport, DeviceError> {
    let samples = kernel.samples();
    let (program, arena, ints) = program(kernel, &samples);
    let program = Arc::new(program);

    let mut plain = PlainExecutable::<f64>::new(program.clone())?;
    for (to, from) in plain.memory.floats_mut(Region::Arena).iter_mut().zip(&arena) {
        *to = f64::from(*from);
    }
    plain.memory.ints_mut().copy_from_slice(&ints);
    plain.run(&[Segment::Forward]);

    let mut executable = VulkanExecutable::new(shared, &program.decomposed(has_body))?;
    executable.write(Region::Arena, 0, &arena)?;
    executable.write_ints(0, &ints)?;
    executable.run_within(&[Segment::Forward], shared.gpu.patience)?;
    let mut found = vec![0.0; arena.len()];
    executable.read(Region::Arena, 0, &mut found)?;

    let expected = plain.memory.floats(Region::Arena);
    let mut report = KernelReport {
        kernel: kernel.name(),
        samples: samples.len(),
        worst_error: 0.0,
        worst_sample: String::new(),
        passed: true,
    };
    for call in &program.forward {
        let error = worst_error(call, &found, expected);
        if error > report.worst_error {
            report.worst_error = error;
            report.worst_sample.clone_from(&call.label);
        }
    }
    report.passed = report.worst_error <= TOLERANCE_F32;
    Ok(report)
}

/// One call a sample, with the contents of [`Region::Arena`] and [`Region::Ints`].
fn program(kernel: &'static dyn Kernel, samples: &[Sample]) -> (Program, Vec<f32>, Vec<i32>) {
    let mut program = Program::default();
    let (mut arena, mut ints) = (Vec::new(), Vec::new());
    for sample in samples {
        let operands = sample.operands.iter().map(|operand| match operand {
            SampleOperand::Absent => Operand::Absent,
            SampleOperand::Weight(weight) => {
                program.weights.push(weight.clone());
                Operand::Weight(program.weights.len() - 1)
            }
            SampleOperand::Floats(values) => Operand::Slot(append(&mut arena, Region::Arena, values)),
            SampleOperand::Ints(values) => Operand::Slot(append(&mut ints, Region::Ints, values)),
        });
        let operands = operands.collect();
        program.forward.push(Call { kernel, params: sample.params.clone(), operands, label: sample.label.clone() });
    }
    program.region_lens[Region::Arena.index()] = arena.len();
    program.region_lens[Region::Ints.index()] = ints.len();
    (program, arena, ints)
}

fn append<T: Copy + Default>(contents: &mut Vec<T>, region: Region, values: &[T]) -> Slot {
    let slot = Slot::new(region, contents.len(), values.len());
    contents.extend_from_slice(values);
    contents.resize(aligned(contents.len()), T::default());
    slot
}
