use std::fmt::Display;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ash::vk;
use vulkano::command_buffer::allocator::StandardCommandBufferAllocator;
use vulkano::command_buffer::{
    CommandBuffer, CommandBufferBeginInfo, CommandBufferLevel, CommandBufferUsage, RecordingCommandBuffer,
};
use vulkano::descriptor_set::allocator::StandardDescriptorSetAllocator;
use vulkano::device::{Device, DeviceCreateInfo, Queue, QueueCreateInfo};
use vulkano::instance::debug::DebugUtilsMessenger;
use vulkano::memory::allocator::StandardMemoryAllocator;
use vulkano::sync::fence::Fence;
use vulkano::{ValidationError, VulkanError, VulkanObject};

use crate::backend::DeviceError;

use super::memory;
use super::physical::Candidate;

/// How long dropped objects wait for work that was given up on, before they are leaked.
const DRAIN: Duration = Duration::from_secs(5);

/// An open device with its queue and allocators.
pub(super) struct Gpu {
    pub(super) name: String,
    pub(super) device: Arc<Device>,
    pub(super) memory: Arc<StandardMemoryAllocator>,
    pub(super) descriptors: Arc<StandardDescriptorSetAllocator>,
    /// Whether device memory is host memory too, so that nothing need be copied to reach it.
    pub(super) unified: bool,
    pub(super) dispatches_per_submit: usize,
    queue: Arc<Queue>,
    commands: Arc<StandardCommandBufferAllocator>,
    /// Limit of work that prepares and copies.
    pub(super) patience: Duration,
    /// Limit of a program's run.
    pub(super) timeout: Duration,
    failure: Mutex<Failure>,
    _messenger: Option<DebugUtilsMessenger>,
}

/// What went wrong on the queue. Nothing more is submitted after that.
#[derive(Default)]
struct Failure {
    failed: bool,
    /// Fences of work that was given up on and may still be running.
    abandoned: Vec<Fence>,
    /// They were waited for, and did not end: nobody waits again.
    stuck: bool,
}

impl Gpu {
    /// Opens the device of `candidate`.
    ///
    /// # Errors
    /// When the driver refuses.
    pub(super) fn open(
        candidate: &Candidate,
        timeout: Option<Duration>,
        staged: bool,
        messenger: Option<DebugUtilsMessenger>,
    ) -> Result<Arc<Self>, DeviceError> {
        let name = candidate.info.name.clone();
        let info = DeviceCreateInfo {
            queue_create_infos: vec![QueueCreateInfo {
                queue_family_index: candidate.queue_family,
                ..QueueCreateInfo::default()
            }],
            ..DeviceCreateInfo::default()
        };
        let fail = |why: String| DeviceError::Driver { device: name.clone(), call: "opening the device", why };
        let (device, mut queues) =
            Device::new(candidate.physical.clone(), info).map_err(|error| fail(error.to_string()))?;
        let queue = queues.next().ok_or_else(|| fail("no queue".to_owned()))?;
        Ok(Arc::new(Gpu {
            memory: Arc::new(StandardMemoryAllocator::new_default(device.clone())),
            descriptors: Arc::new(StandardDescriptorSetAllocator::new(device.clone(), Default::default())),
            unified: !staged && memory::is_unified(&candidate.physical),
            dispatches_per_submit: candidate.profile.dispatches_per_submit,
            queue,
            commands: Arc::new(StandardCommandBufferAllocator::new(device.clone(), Default::default())),
            patience: candidate.profile.timeout,
            timeout: timeout.unwrap_or(candidate.profile.timeout),
            failure: Mutex::default(),
            _messenger: messenger,
            device,
            name,
        }))
    }

    /// An error of `call` on this device.
    pub(super) fn error(&self, call: &'static str, why: impl Display) -> DeviceError {
        DeviceError::Driver { device: self.name.clone(), call, why: why.to_string() }
    }

    /// Records a command buffer that may be submitted again after each run.
    ///
    /// # Errors
    /// When the driver refuses.
    pub(super) fn record(
        &self,
        commands: impl FnOnce(&mut RecordingCommandBuffer) -> Result<(), Box<ValidationError>>,
    ) -> Result<CommandBuffer, DeviceError> {
        let fail = |why: &dyn Display| self.error("recording commands", why);
        let begin =
            CommandBufferBeginInfo { usage: CommandBufferUsage::MultipleSubmit, ..CommandBufferBeginInfo::default() };
        let family = self.queue.queue_family_index();
        let mut recording =
            RecordingCommandBuffer::new(self.commands.clone(), family, CommandBufferLevel::Primary, begin)
                .map_err(|e| fail(&e))?;
        commands(&mut recording).map_err(|e| fail(&e))?;
        // SAFETY: every command was recorded through vulkano's checked functions, outside of render passes and queries.
        unsafe { recording.end() }.map_err(|e| fail(&e))
    }

    /// Runs command buffers in order, one submission each, and waits for at most `limit` until all are done.
    ///
    /// All that they use must live in an [`InUse`] of this device, or longer.
    ///
    /// # Errors
    /// When the driver fails, or the work is not finished in time: then it may still be running, and the device takes
    /// no more work.
    pub(super) fn run(&self, buffers: &[&CommandBuffer], limit: Duration) -> Result<(), DeviceError> {
        let Some((last, earlier)) = buffers.split_last() else { return Ok(()) };
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.failed {
            return Err(self.failed_before());
        }
        let fence = Fence::from_pool(self.device.clone()).map_err(|e| self.error("making a fence", e))?;
        let result = earlier
            .iter()
            .try_for_each(|buffer| self.submit(buffer, vk::Fence::null()))
            .and_then(|()| self.submit(last, fence.handle()))
            .and_then(|()| {
                fence.wait(Some(limit)).map_err(|error| match error {
                    VulkanError::Timeout => DeviceError::Timeout { device: self.name.clone(), limit },
                    error => self.error("waiting for the device", error),
                })
            });
        match &result {
            Ok(()) => {}
            Err(DeviceError::Timeout { .. }) => {
                failure.failed = true;
                failure.abandoned.push(fence);
            }
            Err(_) => {
                failure.failed = true;
                // Earlier buffers may be running though the last was refused. A lost device answers at once.
                let _ = self.queue.with(|mut queue| queue.wait_idle());
            }
        }
        result
    }

    /// Refuses a device that failed: work that was given up on may still be using its memory.
    ///
    /// # Errors
    /// When a run or a copy failed before.
    pub(super) fn ready(&self) -> Result<(), DeviceError> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.failed { Err(self.failed_before()) } else { Ok(()) }
    }

    fn failed_before(&self) -> DeviceError {
        self.error("using the device", "it failed before; open it again")
    }

    fn submit(&self, buffer: &CommandBuffer, fence: vk::Fence) -> Result<(), DeviceError> {
        let buffers = [buffer.handle()];
        let info = vk::SubmitInfo::default().command_buffers(&buffers);
        let submit = self.device.fns().v1_0.queue_submit;
        // SAFETY: the queue is locked by `with` and belongs to this device, as do buffer and fence. The buffer is complete,
        // and no earlier submission of it is pending: `run` waits for each, and submits nothing after a wait that failed.
        // What it uses outlives the work by the contract of `run`.
        let result = self.queue.with(|_| unsafe { submit(self.queue.handle(), 1, &info, fence) });
        result.result().map_err(|error| self.error("submitting work", VulkanError::from(error)))
    }

    /// Makes a fence with a flag that does not exist.
    pub(super) fn misuse(&self) {
        let fns = &self.device.fns().v1_0;
        let info = vk::FenceCreateInfo::default().flags(vk::FenceCreateFlags::from_raw(1 << 30));
        let mut fence = vk::Fence::null();
        // SAFETY: drivers ignore flags that they do not know; the fence is destroyed, and never used.
        unsafe {
            if (fns.create_fence)(self.device.handle(), &info, std::ptr::null(), &mut fence) == vk::Result::SUCCESS {
                (fns.destroy_fence)(self.device.handle(), fence, std::ptr::null());
            }
        }
    }

    /// Waits for work that was given up on; false when it was still running after [`DRAIN`].
    fn drained(&self) -> bool {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if !failure.stuck {
            failure.abandoned.retain(|fence| matches!(fence.wait(Some(DRAIN)), Err(VulkanError::Timeout)));
            failure.stuck = !failure.abandoned.is_empty();
        }
        !failure.stuck
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if !self.drained() {
            // Destroying a device that is working would be undefined; it stays until the process ends.
            let failure = self.failure.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(std::mem::take(&mut failure.abandoned));
            std::mem::forget((
                self.device.clone(),
                self.memory.clone(),
                self.commands.clone(),
                self.descriptors.clone(),
            ));
        }
    }
}

/// Something that submitted work may use. Dropping it waits for work that was given up on, and leaks the value when
/// that work does not end.
pub(super) struct InUse<T> {
    value: ManuallyDrop<T>,
    gpu: Arc<Gpu>,
}

impl<T> InUse<T> {
    pub(super) fn new(gpu: &Arc<Gpu>, value: T) -> Self {
        InUse { value: ManuallyDrop::new(value), gpu: gpu.clone() }
    }

    pub(super) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }
}

impl<T> Deref for InUse<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for InUse<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for InUse<T> {
    fn drop(&mut self) {
        if self.gpu.drained() {
            // SAFETY: the value is dropped once, here, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}
