use std::sync::Arc;
use std::time::Duration;

use vulkano::buffer::Subbuffer;
use vulkano::command_buffer::CommandBuffer;
use vulkano::descriptor_set::{DescriptorSet, WriteDescriptorSet};
use vulkano::pipeline::PipelineBindPoint;

use crate::backend::{DeviceError, Executable};
use crate::kernels::MAX_PARAMS_WORDS;
use crate::program::{Call, Operand, Program, Region, SLOT_ALIGN, Segment, Slot};
use crate::weight::{Packed, Window};

use super::Shared;
use super::gpu::{Gpu, InUse};
use super::memory::{DeviceBuffer, Staging};
use super::pipelines::{Pipeline, storage_buffers};
use super::record::{Hazards, compute_barrier, full_barrier};
use super::weights::DeviceWindow;

/// Bytes of an element.
const ELEMENT: u64 = 4;

/// Bytes that are bound in place of an absent operand.
const NOTHING: u64 = ELEMENT * SLOT_ALIGN as u64;

/// A program in device memory, with its command buffers.
pub(super) struct VulkanExecutable(InUse<Compiled>);

struct Compiled {
    /// One a region, by [`Region::index`]. An empty region has a small buffer all the same.
    regions: Vec<DeviceBuffer>,
    weights: Vec<DeviceWeight>,
    /// Command buffers of each segment, in order.
    segments: [Vec<CommandBuffer>; Segment::ALL.len()],
    /// What the command buffers refer to.
    bound: Vec<Bound>,
    /// Bound in place of absent operands, a piece for each: calls that shared one would seem to depend on each other.
    nothing: DeviceBuffer,
    nothing_bound: u64,
    region_lens: [usize; Region::ALL.len()],
}

/// Elements, scales and zero points of a weight.
type DeviceWeight = [Option<Arc<DeviceWindow>>; 3];

/// A call, ready to record.
struct Bound {
    pipeline: Arc<Pipeline>,
    set: Arc<DescriptorSet>,
    params: [u32; MAX_PARAMS_WORDS],
    workgroups: [u32; 3],
}

impl VulkanExecutable {
    /// Allocates, uploads, binds and records a program that [`Program::validate`] accepted.
    ///
    /// # Errors
    /// When the program does not fit the device, or the driver refuses.
    pub(super) fn new(shared: &Shared, program: &Program) -> Result<Self, DeviceError> {
        let gpu = &shared.gpu;
        let staging = Staging::new(gpu)?;
        let mut regions = Vec::new();
        for region in Region::ALL {
            let bytes = ELEMENT * (program.region_len(region) as u64).max(64);
            regions.push(DeviceBuffer::new(gpu, bytes, staging.clone())?);
        }
        let mut weights = Vec::new();
        for weight in &program.weights {
            let upload = |window: Option<&Window>| {
                window.map(|window| shared.weights.get(gpu, weight.name(), window, staging.as_ref())).transpose()
            };
            let Packed { data, scales, zero_points } = weight.packed();
            weights.push([upload(Some(data))?, upload(scales.as_ref())?, upload(zero_points.as_ref())?]);
        }
        let calls = Segment::ALL.iter().flat_map(|segment| program.calls(*segment));
        let operands: usize = calls.map(|call| call.operands.len()).sum();
        let compiled = Compiled {
            nothing: DeviceBuffer::new(gpu, NOTHING * (operands as u64).max(1), staging)?,
            nothing_bound: 0,
            regions,
            weights,
            segments: Default::default(),
            bound: Vec::new(),
            region_lens: program.region_lens,
        };
        let mut compiled = InUse::new(gpu, compiled);
        compiled.zero(gpu)?;
        compiled.regions[Region::Consts.index()].write(gpu, 0, bytemuck::cast_slice(&program.consts))?;
        for segment in Segment::ALL {
            compiled.record(shared, program, segment)?;
        }
        Ok(VulkanExecutable(compiled))
    }

    /// Byte offset of an element range that must be inside `region`.
    fn offset(&self, region: Region, offset: usize, len: usize) -> u64 {
        let size = self.0.region_lens[region.index()];
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= size),
            "{len} elements from {offset} on are outside {region:?} of {size}"
        );
        ELEMENT * offset as u64
    }

    fn write_bytes(&mut self, region: Region, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.0.regions[region.index()].write(self.0.gpu(), offset, bytes)
    }
}

impl Executable for VulkanExecutable {
    fn write(&mut self, region: Region, offset: usize, values: &[f32]) -> Result<(), DeviceError> {
        assert!(region != Region::Ints, "Ints holds integers");
        let offset = self.offset(region, offset, values.len());
        self.write_bytes(region, offset, bytemuck::cast_slice(values))
    }

    fn write_ints(&mut self, offset: usize, values: &[i32]) -> Result<(), DeviceError> {
        let offset = self.offset(Region::Ints, offset, values.len());
        self.write_bytes(Region::Ints, offset, bytemuck::cast_slice(values))
    }

    fn read(&mut self, region: Region, offset: usize, values: &mut [f32]) -> Result<(), DeviceError> {
        assert!(region != Region::Ints, "Ints holds integers");
        let offset = self.offset(region, offset, values.len());
        self.0.regions[region.index()].read(self.0.gpu(), offset, bytemuck::cast_slice_mut(values))
    }

    fn run(&mut self, segments: &[Segment]) -> Result<(), DeviceError> {
        self.run_within(segments, self.0.gpu().timeout)
    }
}

impl VulkanExecutable {
    /// Runs segments and waits for at most `limit`.
    ///
    /// # Errors
    /// When the device fails or is too slow.
    pub(super) fn run_within(&mut self, segments: &[Segment], limit: Duration) -> Result<(), DeviceError> {
        let buffers: Vec<&CommandBuffer> =
            segments.iter().flat_map(|segment| &self.0.segments[*segment as usize]).collect();
        self.0.gpu().run(&buffers, limit)
    }
}

impl Compiled {
    /// Fills every region with zeros.
    fn zero(&self, gpu: &Arc<Gpu>) -> Result<(), DeviceError> {
        let commands = gpu.record(|recording| {
            for region in &self.regions {
                let words = region.bytes().clone().reinterpret::<[u32]>();
                // SAFETY: nothing else uses the region yet.
                unsafe { recording.fill_buffer(&words, 0) }?;
            }
            full_barrier(recording)
        })?;
        let commands = InUse::new(gpu, commands);
        gpu.run(&[&commands], gpu.patience)
    }

    fn record(&mut self, shared: &Shared, program: &Program, segment: Segment) -> Result<(), DeviceError> {
        let calls = program.calls(segment);
        let mut hazards = Hazards::default();
        for part in calls.chunks(shared.gpu.dispatches_per_submit) {
            let mut bound = Vec::new();
            for call in part {
                bound.push(self.bind(shared, program, call)?);
            }
            let commands = shared.gpu.record(|recording| {
                full_barrier(recording)?;
                hazards = Hazards::default();
                for (call, bound) in part.iter().zip(&bound) {
                    if hazards.must_wait(call) && shared.barriers {
                        compute_barrier(recording)?;
                    }
                    let layout = &bound.pipeline.layout;
                    let set = bound.set.as_raw();
                    // SAFETY: the set holds one storage buffer a binding of the pipeline, each at least as long as the
                    // kernel's contract lets the body touch (checked by `Program::validate`); `Compiled` keeps them
                    // alive; barriers order calls that touch the same elements.
                    unsafe {
                        recording.bind_pipeline_compute(&bound.pipeline.pipeline)?;
                        recording.bind_descriptor_sets(PipelineBindPoint::Compute, layout, 0, &[set], &[])?;
                        recording.push_constants(layout, 0, &bound.params)?;
                        recording.dispatch(bound.workgroups)?;
                    }
                }
                full_barrier(recording)
            })?;
            self.segments[segment as usize].push(commands);
            self.bound.extend(bound);
        }
        Ok(())
    }

    fn bind(&mut self, shared: &Shared, program: &Program, call: &Call) -> Result<Bound, DeviceError> {
        let gpu = &shared.gpu;
        let limits = gpu.device.physical_device().properties();
        let too_large = |what: &str, needed: u64, limit: u64| DeviceError::TooLarge {
            device: gpu.name.clone(),
            what: format!("{what} of kernel \"{}\" for \"{}\"", call.kernel.name(), call.label),
            needed,
            limit,
        };
        let scheme = call.operands.iter().find_map(|operand| match operand {
            Operand::Weight(weight) => Some(program.weights[*weight].scheme().name()),
            _ => None,
        });
        let buffers = storage_buffers(call.kernel);
        if buffers > limits.max_per_stage_descriptor_storage_buffers {
            return Err(too_large(
                "the number of operands",
                buffers.into(),
                limits.max_per_stage_descriptor_storage_buffers.into(),
            ));
        }
        let mut bound: Vec<Subbuffer<[u8]>> = Vec::new();
        for operand in &call.operands {
            match operand {
                Operand::Slot(slot) => {
                    let bytes = ELEMENT * slot.len as u64;
                    if bytes > u64::from(limits.max_storage_buffer_range) {
                        return Err(too_large("an operand", bytes, limits.max_storage_buffer_range.into()));
                    }
                    bound.push(self.slot(slot));
                }
                Operand::Weight(weight) => {
                    for part in self.weights[*weight].clone() {
                        bound.push(part.map_or_else(|| self.nothing(), |part| part.buffer.bytes().clone()));
                    }
                }
                Operand::Absent => bound.push(self.nothing()),
            }
        }
        let workgroups = call.kernel.workgroups(&call.params);
        if let Some((needed, limit)) =
            workgroups.iter().zip(limits.max_compute_work_group_count).find(|(n, limit)| **n > *limit)
        {
            return Err(too_large("the number of workgroups", u64::from(*needed), limit.into()));
        }
        let pipeline = shared.pipelines.get(gpu, call.kernel, scheme)?;
        let writes =
            bound.into_iter().enumerate().map(|(number, buffer)| WriteDescriptorSet::buffer(number as u32, buffer));
        let set = DescriptorSet::new(gpu.descriptors.clone(), pipeline.set_layout.clone(), writes, [])
            .map_err(|e| gpu.error("binding operands", format!("{} for {}: {e}", call.kernel.name(), call.label)))?;
        let mut params = [0; MAX_PARAMS_WORDS];
        params[..call.params.len()].copy_from_slice(&call.params);
        Ok(Bound { pipeline, set, params, workgroups })
    }

    /// The bytes of a slot.
    fn slot(&mut self, slot: &Slot) -> Subbuffer<[u8]> {
        if slot.len == 0 {
            return self.nothing();
        }
        let (start, end) = (ELEMENT * slot.offset as u64, ELEMENT * (slot.offset + slot.len) as u64);
        self.regions[slot.region.index()].bytes().clone().slice(start..end)
    }
    /// A buffer that nothing else is bound to.
    fn nothing(&mut self) -> Subbuffer<[u8]> {
        let start = NOTHING * self.nothing_bound;
        self.nothing_bound += 1;
        self.nothing.bytes().clone().slice(start..start + NOTHING)
    }
}
