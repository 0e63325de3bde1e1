use std::time::Duration;

use super::Profile;

/// Mesa's Vulkan on the CPU. Compiles a pipeline at its first dispatch, which counts towards the time-out.
pub(super) const PROFILE: Profile = Profile {
    name: "lavapipe",
    matches: |id| id.device_name.starts_with("llvmpipe"),
    dispatches_per_submit: 256,
    timeout: Duration::from_secs(300),
};
