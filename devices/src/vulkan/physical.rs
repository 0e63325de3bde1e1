use std::cmp::Reverse;
use std::sync::Arc;

use vulkano::Version;
use vulkano::device::QueueFlags;
use vulkano::device::physical::{PhysicalDevice, PhysicalDeviceType};
use vulkano::instance::Instance;

use crate::backend::{DeviceError, DeviceInfo, DeviceKind};
use crate::kernels::MAX_PARAMS_WORDS;
use crate::profiles::{self, Identity, Profile};

use super::Choice;

/// The largest workgroup of any GPU body.
const WORKGROUP: u32 = 256;
/// The most shared memory that any GPU body takes, in bytes.
const SHARED_BYTES: u32 = 16 << 10;

/// A physical device that is able to run the GPU bodies.
#[derive(Clone)]
pub(super) struct Candidate {
    pub(super) physical: Arc<PhysicalDevice>,
    pub(super) queue_family: u32,
    pub(super) info: DeviceInfo,
    pub(super) profile: &'static Profile,
}

/// Every device that meets the floor, hardware first.
///
/// # Errors
/// When the driver cannot list its devices.
pub(super) fn candidates(instance: &Arc<Instance>) -> Result<Vec<Candidate>, DeviceError> {
    let physical =
        instance.enumerate_physical_devices().map_err(|error| DeviceError::NoVulkan { why: error.to_string() })?;
    let mut found: Vec<Candidate> = physical.filter_map(candidate).collect();
    found.sort_by_key(|candidate| Reverse(rank(candidate.physical.properties().device_type)));
    Ok(found)
}

/// The device that `choice` means.
///
/// # Errors
/// When none fits.
pub(super) fn choose(candidates: Vec<Candidate>, choice: &Choice) -> Result<Candidate, DeviceError> {
    let names = || candidates.iter().map(|c| format!("\"{}\"", c.info.name)).collect::<Vec<_>>().join(", ");
    let none = |why: &str| DeviceError::NoVulkan {
        why: format!("{why} (found: {})", if candidates.is_empty() { "none".into() } else { names() }),
    };
    let chosen = match choice {
        Choice::Any => {
            candidates.first().ok_or_else(|| none("no device meets the floor: Vulkan 1.1 with a compute queue"))?
        }
        Choice::Gpu => candidates
            .iter()
            .find(|c| c.info.kind == DeviceKind::VulkanGpu)
            .ok_or_else(|| none("no GPU among the devices"))?,
        Choice::Named(name) => {
            let wanted = name.to_lowercase();
            let exact = candidates.iter().find(|c| c.info.name.to_lowercase() == wanted);
            exact.or_else(|| candidates.iter().find(|c| c.info.name.to_lowercase().contains(&wanted))).ok_or_else(
                || DeviceError::NoSuchDevice {
                    name: name.clone(),
                    found: if candidates.is_empty() { "none".into() } else { names() },
                },
            )?
        }
    };
    Ok(chosen.clone())
}

/// `None` when the device is below the floor.
fn candidate(physical: Arc<PhysicalDevice>) -> Option<Candidate> {
    let properties = physical.properties();
    let queue_family = physical
        .queue_family_properties()
        .iter()
        .position(|family| family.queue_flags.contains(QueueFlags::COMPUTE))?;
    let meets_floor = physical.api_version() >= Version::V1_1
        && properties.max_push_constants_size as usize >= 4 * MAX_PARAMS_WORDS
        && properties.max_compute_work_group_invocations >= WORKGROUP
        && properties.max_compute_work_group_size[0] >= WORKGROUP
        && properties.max_compute_shared_memory_size >= SHARED_BYTES
        && properties.min_storage_buffer_offset_alignment.as_devicesize() <= 4 * crate::program::SLOT_ALIGN as u64;
    if !meets_floor {
        return None;
    }
    let profile = profiles::find(&Identity { vendor_id: properties.vendor_id, device_name: &properties.device_name });
    let info = describe(&physical, profile);
    Some(Candidate { queue_family: u32::try_from(queue_family).ok()?, info, profile, physical })
}

fn describe(physical: &PhysicalDevice, profile: &Profile) -> DeviceInfo {
    let properties = physical.properties();
    let features = physical.supported_features();
    let software = properties.device_type == PhysicalDeviceType::Cpu;
    let driver =
        [&properties.driver_name, &properties.driver_info].into_iter().flatten().filter(|text| !text.is_empty());
    let driver: Vec<String> = driver.cloned().chain([format!("{:#x}", properties.driver_version)]).collect();
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let yes = |flag: bool| if flag { "yes" } else { "no" }.to_owned();
    let memory: u64 = physical
        .memory_properties()
        .memory_heaps
        .iter()
        .filter(|heap| heap.flags.contains(vulkano::memory::MemoryHeapFlags::DEVICE_LOCAL))
        .map(|heap| heap.size)
        .sum();
    let limits = vec![
        ("Vulkan", physical.api_version().to_string()),
        ("device memory", mib(memory)),
        ("storage buffer", mib(u64::from(properties.max_storage_buffer_range))),
        ("storage buffer alignment", format!("{} B", properties.min_storage_buffer_offset_alignment.as_devicesize())),
        ("storage buffers a stage", properties.max_per_stage_descriptor_storage_buffers.to_string()),
        ("workgroup", properties.max_compute_work_group_invocations.to_string()),
        ("shared memory", format!("{} KiB", properties.max_compute_shared_memory_size >> 10)),
        ("subgroup", properties.subgroup_size.map_or_else(|| "unknown".to_owned(), |size| size.to_string())),
        ("f16 arithmetic", yes(features.shader_float16)),
        ("int8 arithmetic", yes(features.shader_int8)),
        ("16-bit storage", yes(features.storage_buffer16_bit_access)),
        ("8-bit storage", yes(features.storage_buffer8_bit_access)),
        ("integer dot product", yes(features.shader_integer_dot_product)),
    ];
    DeviceInfo {
        kind: if software { DeviceKind::VulkanCpu } else { DeviceKind::VulkanGpu },
        name: properties.device_name.clone(),
        driver: driver.join(" "),
        profile: profile.name,
        uuid: properties.device_uuid.unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect(),
        limits,
    }
}

fn rank(device_type: PhysicalDeviceType) -> u8 {
    match device_type {
        PhysicalDeviceType::DiscreteGpu => 4,
        PhysicalDeviceType::IntegratedGpu => 3,
        PhysicalDeviceType::VirtualGpu => 2,
        PhysicalDeviceType::Cpu => 0,
        _ => 1,
    }
}
