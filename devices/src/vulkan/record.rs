use vulkano::ValidationError;
use vulkano::command_buffer::RecordingCommandBuffer;
use vulkano::sync::{AccessFlags, DependencyInfo, MemoryBarrier, PipelineStages};

use crate::kernels::Access;
use crate::program::{Call, Operand, Slot};

/// Orders everything before with everything after: dispatches, copies, and the host's reads.
pub(super) fn full_barrier(recording: &mut RecordingCommandBuffer) -> Result<(), Box<ValidationError>> {
    let device = PipelineStages::COMPUTE_SHADER | PipelineStages::ALL_TRANSFER;
    let writes = AccessFlags::SHADER_WRITE | AccessFlags::TRANSFER_WRITE;
    let reads = AccessFlags::SHADER_READ | AccessFlags::TRANSFER_READ;
    barrier(recording, device, writes, device | PipelineStages::HOST, writes | reads | AccessFlags::HOST_READ)
}

/// Orders the dispatches before with those after.
pub(super) fn compute_barrier(recording: &mut RecordingCommandBuffer) -> Result<(), Box<ValidationError>> {
    let compute = PipelineStages::COMPUTE_SHADER;
    barrier(
        recording,
        compute,
        AccessFlags::SHADER_WRITE,
        compute,
        AccessFlags::SHADER_READ | AccessFlags::SHADER_WRITE,
    )
}

fn barrier(
    recording: &mut RecordingCommandBuffer,
    src_stages: PipelineStages,
    src_access: AccessFlags,
    dst_stages: PipelineStages,
    dst_access: AccessFlags,
) -> Result<(), Box<ValidationError>> {
    let barrier = MemoryBarrier { src_stages, src_access, dst_stages, dst_access, ..MemoryBarrier::default() };
    let info = DependencyInfo { memory_barriers: [barrier].into_iter().collect(), ..DependencyInfo::default() };
    // SAFETY: a global memory barrier names no resource; vulkano checks that the queue knows its stages.
    unsafe { recording.pipeline_barrier(&info) }?;
    Ok(())
}

/// What dispatches since the last barrier have touched.
#[derive(Default)]
pub(super) struct Hazards {
    read: Vec<Slot>,
    written: Vec<Slot>,
}

impl Hazards {
    /// Whether a barrier must come before `call`; notes what `call` touches, after that barrier.
    pub(super) fn must_wait(&mut self, call: &Call) -> bool {
        let touched = || {
            call.kernel.bindings().iter().zip(&call.operands).filter_map(|(binding, operand)| match operand {
                Operand::Slot(slot) => Some((binding.access, *slot)),
                _ => None,
            })
        };
        let clash = |slots: &[Slot], slot: &Slot| slots.iter().any(|other| other.overlaps(slot));
        let wait = touched()
            .any(|(access, slot)| clash(&self.written, &slot) || (access != Access::Read && clash(&self.read, &slot)));
        if wait {
            *self = Hazards::default();
        }
        for (access, slot) in touched() {
            if access == Access::Read { &mut self.read } else { &mut self.written }.push(slot);
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Binary, BinaryOp, BinaryParams, kernel, to_words};
    use crate::program::{Region, SLOT_ALIGN};

    /// y = a + b over slots of the arena, by number.
    fn call(a: usize, b: usize, y: usize) -> Call {
        let slot = |i: usize| Operand::Slot(Slot::new(Region::Arena, i * SLOT_ALIGN, SLOT_ALIGN));
        let strides = [0, 0, 0, 0, 1];
        let params =
            BinaryParams { dims: [1, 1, 1, 1, 64], a: strides, b: strides, op: BinaryOp::Add as u32, flags: 0 };
        Call {
            kernel: kernel::<Binary>(),
            params: to_words(&params),
            operands: vec![slot(a), slot(b), slot(y)],
            label: String::new(),
        }
    }

    #[test]
    fn dependent_calls_wait_and_independent_ones_do_not() {
        let mut hazards = Hazards::default();
        assert!(!hazards.must_wait(&call(0, 1, 2)), "the first call");
        assert!(!hazards.must_wait(&call(0, 1, 3)), "reads what others read");
        assert!(hazards.must_wait(&call(2, 1, 4)), "reads what was written");
        assert!(!hazards.must_wait(&call(3, 0, 5)), "written before the last barrier");
        assert!(hazards.must_wait(&call(0, 0, 4)), "writes what was written");
        assert!(hazards.must_wait(&call(1, 1, 0)), "writes what was read");
    }
}
