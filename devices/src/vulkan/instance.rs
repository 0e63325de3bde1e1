use std::sync::{Arc, Mutex, PoisonError};

use vulkano::instance::debug::{
    DebugUtilsMessageSeverity, DebugUtilsMessageType, DebugUtilsMessenger, DebugUtilsMessengerCallback,
    DebugUtilsMessengerCreateInfo, ValidationFeatureEnable,
};
use vulkano::instance::{Instance, InstanceCreateFlags, InstanceCreateInfo, InstanceExtensions};
use vulkano::{Validated, Version, VulkanLibrary};

use crate::backend::DeviceError;

const LAYER: &str = "VK_LAYER_KHRONOS_validation";

/// Messages of severity error that the validation layer reported, shared by everything opened with it.
#[derive(Clone, Debug, Default)]
pub struct ValidationLog(Arc<Mutex<Vec<String>>>);

impl ValidationLog {
    /// The errors so far.
    pub fn errors(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn push(&self, message: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(message);
    }
}

/// A Vulkan instance and what must live as long as it does.
pub(super) struct Loaded {
    pub(super) instance: Arc<Instance>,
    pub(super) log: ValidationLog,
    /// Without a live messenger the layer watches and says nothing.
    pub(super) messenger: Option<DebugUtilsMessenger>,
}

/// Loads libvulkan and makes an instance, with the validation layer if asked.
///
/// # Errors
/// When there is no loader, no driver, or no validation layer though it was asked for.
pub(super) fn load(validation: bool) -> Result<Loaded, DeviceError> {
    let missing = |why: String| DeviceError::NoVulkan { why };
    let library = VulkanLibrary::new().map_err(|error| missing(error.to_string()))?;
    if library.api_version() < Version::V1_1 {
        return Err(missing(format!("the loader offers Vulkan {}, 1.1 is needed", library.api_version())));
    }

    let mut info = InstanceCreateInfo {
        flags: InstanceCreateFlags::ENUMERATE_PORTABILITY,
        application_name: Some("inlay".to_owned()),
        enabled_extensions: InstanceExtensions {
            khr_portability_enumeration: library.supported_extensions().khr_portability_enumeration,
            ..InstanceExtensions::empty()
        },
        ..InstanceCreateInfo::default()
    };
    if !info.enabled_extensions.khr_portability_enumeration {
        info.flags = InstanceCreateFlags::empty();
    }
    if validation {
        let found = library.layer_properties().is_ok_and(|mut layers| layers.any(|layer| layer.name() == LAYER));
        if !found {
            return Err(missing(format!("validation was asked for, and the layer {LAYER} is not installed")));
        }
        info.enabled_layers.push(LAYER.to_owned());
        info.enabled_extensions.ext_debug_utils = true;
        info.enabled_extensions.ext_validation_features = true;
        info.enabled_validation_features.push(ValidationFeatureEnable::SynchronizationValidation);
    }
    let instance = Instance::new(library, info).map_err(|error| match error {
        Validated::Error(error) => missing(error.to_string()),
        Validated::ValidationError(error) => missing(error.to_string()),
    })?;

    let log = ValidationLog::default();
    let messenger = validation.then(|| messenger(&instance, log.clone())).transpose()?;
    Ok(Loaded { instance, log, messenger })
}

fn messenger(instance: &Arc<Instance>, log: ValidationLog) -> Result<DebugUtilsMessenger, DeviceError> {
    // SAFETY: the callback makes no Vulkan calls.
    let callback = unsafe {
        DebugUtilsMessengerCallback::new(move |_, _, data| {
            log.push(format!("{}: {}", data.message_id_name.unwrap_or("unnamed"), data.message));
        })
    };
    let info = DebugUtilsMessengerCreateInfo {
        message_severity: DebugUtilsMessageSeverity::ERROR,
        message_type: DebugUtilsMessageType::GENERAL | DebugUtilsMessageType::VALIDATION,
        ..DebugUtilsMessengerCreateInfo::user_callback(callback)
    };
    DebugUtilsMessenger::new(instance.clone(), info)
        .map_err(|error| DeviceError::NoVulkan { why: format!("the validation messenger could not be made: {error}") })
}
