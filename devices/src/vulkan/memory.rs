use std::sync::Arc;

use vulkano::DeviceSize;
use vulkano::buffer::{Buffer, BufferCreateInfo, BufferUsage, Subbuffer};
use vulkano::command_buffer::{BufferCopy, CopyBufferInfo};
use vulkano::device::physical::{PhysicalDevice, PhysicalDeviceType};
use vulkano::memory::MemoryPropertyFlags;
use vulkano::memory::allocator::{AllocationCreateInfo, DeviceLayout, MemoryTypeFilter};

use crate::backend::DeviceError;

use super::gpu::{Gpu, InUse};
use super::record::full_barrier;

/// Size of a staging buffer, in bytes: what is larger travels in parts.
const STAGING_BYTES: u64 = 4 << 20;

const UNIFIED: MemoryPropertyFlags = MemoryPropertyFlags::DEVICE_LOCAL.union(MemoryPropertyFlags::HOST_VISIBLE);

/// Whether the host can reach most of the device's memory without loss.
pub(super) fn is_unified(physical: &PhysicalDevice) -> bool {
    let memory = physical.memory_properties();
    let largest = memory.memory_heaps.iter().map(|heap| heap.size).max().unwrap_or(0);
    let shares = memory
        .memory_types
        .iter()
        .any(|t| t.property_flags.contains(UNIFIED) && memory.memory_heaps[t.heap_index as usize].size >= largest / 2);
    shares && matches!(physical.properties().device_type, PhysicalDeviceType::IntegratedGpu | PhysicalDeviceType::Cpu)
}

/// Bytes in device memory, with the means to copy them in and out.
pub(super) struct DeviceBuffer {
    buffer: Subbuffer<[u8]>,
    staging: Option<Arc<Staging>>,
}

/// A host-visible buffer through which others are reached.
pub(super) struct Staging(Subbuffer<[u8]>);

impl Staging {
    /// A staging buffer where `gpu` needs one.
    ///
    /// # Errors
    /// When there is no memory left.
    pub(super) fn new(gpu: &Gpu) -> Result<Option<Arc<Self>>, DeviceError> {
        if gpu.unified {
            return Ok(None);
        }
        let usage = BufferUsage::TRANSFER_SRC | BufferUsage::TRANSFER_DST;
        let filter = MemoryTypeFilter {
            required_flags: MemoryPropertyFlags::HOST_VISIBLE,
            preferred_flags: MemoryPropertyFlags::HOST_CACHED,
            not_preferred_flags: MemoryPropertyFlags::DEVICE_LOCAL,
        };
        Ok(Some(Arc::new(Staging(allocate(gpu, STAGING_BYTES, usage, filter)?))))
    }
}

impl DeviceBuffer {
    /// `bytes` bytes of uninitialized device memory.
    ///
    /// # Errors
    /// When there is no memory left.
    pub(super) fn new(gpu: &Gpu, bytes: u64, staging: Option<Arc<Staging>>) -> Result<Self, DeviceError> {
        let usage = BufferUsage::STORAGE_BUFFER | BufferUsage::TRANSFER_SRC | BufferUsage::TRANSFER_DST;
        let filter = if staging.is_none() {
            MemoryTypeFilter {
                required_flags: UNIFIED,
                preferred_flags: MemoryPropertyFlags::HOST_CACHED,
                not_preferred_flags: MemoryPropertyFlags::empty(),
            }
        } else {
            MemoryTypeFilter::PREFER_DEVICE
        };
        Ok(DeviceBuffer { buffer: allocate(gpu, bytes, usage, filter)?, staging })
    }

    /// The buffer.
    pub(super) fn bytes(&self) -> &Subbuffer<[u8]> {
        &self.buffer
    }

    /// Copies `data` to the bytes from `offset` on. No work that uses them may be running.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn write(&self, gpu: &Arc<Gpu>, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        const CALL: &str = "copying to the device";
        gpu.ready()?;
        if data.is_empty() {
            return Ok(()); // vulkano has no empty slices
        }
        let Some(staging) = &self.staging else {
            return put(gpu, &self.buffer.clone().slice(offset..offset + data.len() as u64), data);
        };
        let mut offset = offset;
        for part in data.chunks(STAGING_BYTES as usize) {
            put(gpu, &staging.0.clone().slice(..part.len() as u64), part)?;
            copy(gpu, CALL, staging, &self.buffer, [0, offset, part.len() as u64], true)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Copies the bytes from `offset` on to `data`. No work that writes them may be running.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn read(&self, gpu: &Arc<Gpu>, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        const CALL: &str = "copying from the device";
        gpu.ready()?;
        if data.is_empty() {
            return Ok(());
        }
        let Some(staging) = &self.staging else {
            return get(gpu, &self.buffer.clone().slice(offset..offset + data.len() as u64), data);
        };
        let mut offset = offset;
        for part in data.chunks_mut(STAGING_BYTES as usize) {
            copy(gpu, CALL, staging, &self.buffer, [offset, 0, part.len() as u64], false)?;
            get(gpu, &staging.0.clone().slice(..part.len() as u64), part)?;
            offset += part.len() as u64;
        }
        Ok(())
    }
}

fn allocate(
    gpu: &Gpu,
    bytes: u64,
    usage: BufferUsage,
    memory_type_filter: MemoryTypeFilter,
) -> Result<Subbuffer<[u8]>, DeviceError> {
    let limit = gpu.device.physical_device().properties().max_buffer_size.unwrap_or(DeviceSize::MAX);
    let too_large =
        |limit| DeviceError::TooLarge { device: gpu.name.clone(), what: "a buffer".into(), needed: bytes, limit };
    if bytes > limit {
        return Err(too_large(limit));
    }
    let layout = DeviceLayout::from_size_alignment(bytes.max(1), 64).ok_or_else(|| too_large(DeviceSize::MAX / 2))?;
    let info = BufferCreateInfo { usage, ..BufferCreateInfo::default() };
    let place = AllocationCreateInfo { memory_type_filter, ..AllocationCreateInfo::default() };
    let buffer =
        Buffer::new(gpu.memory.clone(), info, place, layout).map_err(|e| gpu.error("allocating memory", root(&e)))?;
    Ok(Subbuffer::new(buffer))
}

/// The innermost cause of an error: vulkano's outer ones do not print theirs.
fn root(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn put(gpu: &Gpu, target: &Subbuffer<[u8]>, data: &[u8]) -> Result<(), DeviceError> {
    target.write().map_err(|e| gpu.error("writing mapped memory", e))?.copy_from_slice(data);
    Ok(())
}

fn get(gpu: &Gpu, source: &Subbuffer<[u8]>, data: &mut [u8]) -> Result<(), DeviceError> {
    data.copy_from_slice(&source.read().map_err(|e| gpu.error("reading mapped memory", e))?);
    Ok(())
}

/// Copies between staging and device memory; `[src_offset, dst_offset, size]` in bytes.
fn copy(
    gpu: &Arc<Gpu>,
    call: &'static str,
    staging: &Arc<Staging>,
    buffer: &Subbuffer<[u8]>,
    [src_offset, dst_offset, size]: [u64; 3],
    to_device: bool,
) -> Result<(), DeviceError> {
    let (src, dst) = if to_device { (&staging.0, buffer) } else { (buffer, &staging.0) };
    let region = BufferCopy { src_offset, dst_offset, size, ..BufferCopy::default() };
    let info =
        CopyBufferInfo { regions: [region].into_iter().collect(), ..CopyBufferInfo::buffers(src.clone(), dst.clone()) };
    let commands = gpu.record(|recording| {
        full_barrier(recording)?;
        // SAFETY: both ranges are inside their buffers (vulkano checks), and barriers order the copy with all else.
        unsafe { recording.copy_buffer(&info) }?;
        full_barrier(recording)
    })?;
    let work = InUse::new(gpu, (commands, staging.clone(), buffer.clone()));
    gpu.run(&[&work.0], gpu.patience).map_err(|error| match error {
        DeviceError::Driver { device, why, .. } => DeviceError::Driver { device, call, why },
        other => other,
    })
}
