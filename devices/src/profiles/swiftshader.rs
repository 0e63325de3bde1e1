use std::time::Duration;

use super::Profile;

/// Google's Vulkan on the CPU, as in the Android emulator and in Chromium.
pub(super) const PROFILE: Profile = Profile {
    name: "swiftshader",
    matches: |id| id.device_name.starts_with("SwiftShader"),
    dispatches_per_submit: 4096,
    timeout: Duration::from_secs(300),
};
