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
