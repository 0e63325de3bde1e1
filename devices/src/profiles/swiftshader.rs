use std::time::Duration;

use super::Profile;

/// Google's Vulkan on the CPU, as in the Android emulator and in Chromium. Command buffers are as short as a phone's, so
/// that tests meet many.
pub(super) const PROFILE: Profile = Profile {
    name: "swiftshader",
    matches: |id| id.device_name.starts_with("SwiftShader"),
    dispatches_per_submit: 32,
    timeout: Duration::from_secs(300),
};
