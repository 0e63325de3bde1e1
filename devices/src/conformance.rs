//! One check for every body of every kernel: run a sample, compare with the plain body in f64.

use std::sync::Arc;

use crate::backend::{Backend, DeviceError};
use crate::kernels::{Access, Element, Kernel, Sample, SampleOperand};
use crate::plain::PlainExecutable;
use crate::program::{Call, Operand, Program, Region, Segment, Slot, aligned};

/// Largest allowed error of an f32 body, relative to `max(1, largest |expected|)`.
pub const TOLERANCE_F32: f64 = 1e-4;

/// Runs `sample` on `backend` and gives the worst error of everything that it writes, relative to
/// `max(1, largest |expected|)`, against the plain body in f64. Infinite when one is NaN or infinite and the other not.
///
/// # Errors
/// When the backend fails.
pub fn check(backend: &dyn Backend, kernel: &'static dyn Kernel, sample: &Sample) -> Result<f64, DeviceError> {
    let program = Arc::new(program(kernel, sample));
    let expected = run_plain_f64(Arc::clone(&program), sample)?;
    let mut executable = backend.compile(Arc::clone(&program))?;
    let arena = arena(sample);
    executable.write(Region::Arena, 0, &arena)?;
    executable.write_ints(0, &ints(sample))?;
    executable.run(&[Segment::Forward])?;
    let mut found = vec![0.0; arena.len()];
    executable.read(Region::Arena, 0, &mut found)?;
    Ok(worst_error(&program.forward[0], &found, &expected))
}

/// A program that makes one call, with the floats of `sample` in the arena.
pub fn program(kernel: &'static dyn Kernel, sample: &Sample) -> Program {
    let mut program = Program::default();
    let mut place = |region: Region, len: usize| {
        let end = &mut program.region_lens[region.index()];
        let slot = Slot::new(region, *end, len);
        *end += aligned(len);
        Operand::Slot(slot)
    };
    let mut weights = Vec::new();
    let operands = sample.operands.iter().map(|operand| match operand {
        SampleOperand::Floats(values) => place(Region::Arena, values.len()),
        SampleOperand::Ints(values) => place(Region::Ints, values.len()),
        SampleOperand::Weight(weight) => {
            weights.push(weight.clone());
            Operand::Weight(weights.len() - 1)
        }
        SampleOperand::Absent => Operand::Absent,
    });
    let operands = operands.collect();
    program.weights = weights;
    program.forward.push(Call { kernel, params: sample.params.clone(), operands, label: sample.label.clone() });
    program
}

/// Contents of the arena of [`program`] before the call.
pub fn arena(sample: &Sample) -> Vec<f32> {
    let floats = sample.operands.iter().filter_map(|operand| match operand {
        SampleOperand::Floats(values) => Some(values.as_slice()),
        _ => None,
    });
    padded(floats)
}

/// Contents of the integers of [`program`].
pub fn ints(sample: &Sample) -> Vec<i32> {
    let ints = sample.operands.iter().filter_map(|operand| match operand {
        SampleOperand::Ints(values) => Some(values.as_slice()),
        _ => None,
    });
    padded(ints)
}

/// Operands one after the other, each from a place where a slot may start.
fn padded<'a, T: Copy + Default + 'a>(operands: impl Iterator<Item = &'a [T]>) -> Vec<T> {
    let mut all = Vec::new();
    for values in operands {
        all.extend_from_slice(values);
        all.resize(aligned(all.len()), T::default());
    }
    all
}

/// The arena after plain f64 bodies ran the forward calls of `program` on the data of `sample`.
fn run_plain_f64(program: Arc<Program>, sample: &Sample) -> Result<Vec<f64>, DeviceError> {
    let mut plain = PlainExecutable::<f64>::new(program)?;
    for (to, from) in plain.memory.floats_mut(Region::Arena).iter_mut().zip(arena(sample)) {
        *to = f64::from(from);
    }
    plain.memory.ints_mut().copy_from_slice(&ints(sample));
    plain.run(&[Segment::Forward]);
    Ok(plain.memory.floats(Region::Arena).to_vec())
}

/// Worst error of the operands that `call` writes, each relative to its own largest expected value.
pub fn worst_error(call: &Call, found: &[f32], expected: &[f64]) -> f64 {
    let mut worst = 0f64;
    for (binding, operand) in call.kernel.bindings().iter().zip(&call.operands) {
        let Operand::Slot(slot) = operand else { continue };
        if binding.element != Element::Float || matches!(binding.access, Access::Read | Access::Scratch) {
            continue;
        }
        let range = slot.offset..slot.offset + slot.len;
        let (found, expected) = (&found[range.clone()], &expected[range]);
        let finite = expected.iter().filter(|x| x.is_finite());
        let largest = finite.fold(1f64, |largest, x| largest.max(x.abs()));
        for (&found, &expected) in found.iter().zip(expected) {
            let found = f64::from(found);
            let error = if found == expected || found.is_nan() && expected.is_nan() {
                0.0
            } else if found.is_finite() && expected.is_finite() {
                (found - expected).abs() / largest
            } else {
                f64::INFINITY
            };
            worst = worst.max(error);
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::ALL;
    use crate::plain::PlainReal;

    fn run<T: PlainReal>(program: Program, sample: &Sample) -> Vec<T> {
        let mut plain = PlainExecutable::<T>::new(Arc::new(program)).expect("samples are valid");
        for (to, from) in plain.memory.floats_mut(Region::Arena).iter_mut().zip(arena(sample)) {
            *to = T::of(f64::from(from));
        }
        plain.memory.ints_mut().copy_from_slice(&ints(sample));
        plain.run(&[Segment::Forward]);
        plain.memory.floats(Region::Arena).to_vec()
    }

    #[test]
    fn plain_f32_bodies_agree_with_f64() {
        for kernel in ALL {
            let samples = kernel.samples();
            assert!(!samples.is_empty(), "{kernel:?} has no samples");
            for sample in samples {
                let program = program(*kernel, &sample);
                let call = program.forward[0].clone();
                let expected = run::<f64>(program.clone(), &sample);
                let error = worst_error(&call, &run::<f32>(program, &sample), &expected);
                assert!(error <= TOLERANCE_F32, "{kernel:?} {}: error {error:e}", sample.label);
            }
        }
    }

    #[test]
    fn decompositions_agree_with_plain_bodies() {
        let mut decomposed = Vec::new();
        for kernel in ALL {
            for sample in kernel.samples() {
                let whole = program(*kernel, &sample);
                let pieces = whole.decomposed(|_| false);
                if pieces.forward.len() == 1 {
                    continue;
                }
                decomposed.push(kernel.name());
                let expected = run::<f64>(whole.clone(), &sample);
                let found: Vec<f32> = run::<f64>(pieces, &sample).iter().map(|&x| x as f32).collect();
                let error = worst_error(&whole.forward[0], &found, &expected);
                assert!(error <= 1e-6, "{kernel:?} {}: error {error:e}", sample.label);
            }
        }
        decomposed.dedup();
        assert_eq!(decomposed, ["attention", "attention_grad"]);
    }

    #[test]
    fn samples_show_what_a_kernel_does() {
        for kernel in ALL {
            let changes = kernel.samples().iter().filter(|s| arena(s) != run::<f32>(program(*kernel, s), s)).count();
            assert!(2 * changes >= kernel.samples().len(), "{kernel:?}: only {changes} samples change anything");
        }
    }
}
