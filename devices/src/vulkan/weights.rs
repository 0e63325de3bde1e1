use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::backend::DeviceError;
use crate::weight::Window;

use super::gpu::{Gpu, InUse};
use super::memory::{DeviceBuffer, Staging};

/// A window of a mapping in device memory. Programs that use the same window share it.
pub(super) struct DeviceWindow {
    pub(super) buffer: InUse<DeviceBuffer>,
    /// Keeps the address from being taken by another mapping while it is a key.
    _window: Window,
}

/// Windows in device memory, by address and size.
#[derive(Default)]
pub(super) struct Weights(Mutex<HashMap<(usize, usize), Weak<DeviceWindow>>>);

impl Weights {
    /// The window in device memory, copied there when no living program uses it.
    ///
    /// # Errors
    /// When it does not fit, or the device fails.
    pub(super) fn get(
        &self,
        gpu: &Arc<Gpu>,
        name: &str,
        window: &Window,
        staging: Option<&Arc<Staging>>,
    ) -> Result<Arc<DeviceWindow>, DeviceError> {
        let bytes = window.bytes();
        let key = (bytes.as_ptr() as usize, bytes.len());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = all.get(&key).and_then(Weak::upgrade) {
            return Ok(present);
        }
        all.retain(|_, window| window.strong_count() > 0);

        // GPU bodies read whole words, and four of them at once: the last ones may reach past the end.
        let padded = (bytes.len() as u64).next_multiple_of(16);
        let limit = u64::from(gpu.device.physical_device().properties().max_storage_buffer_range);
        if padded > limit {
            return Err(DeviceError::TooLarge {
                device: gpu.name.clone(),
                what: format!("weight \"{name}\""),
                needed: padded,
                limit,
            });
        }
        let buffer = InUse::new(gpu, DeviceBuffer::new(gpu, padded, staging.cloned())?);
        buffer.write(gpu, 0, bytes)?;
        let made = Arc::new(DeviceWindow { buffer, _window: window.clone() });
        all.insert(key, Arc::downgrade(&made));
        Ok(made)
    }
}
