use std::time::Duration;

use super::Profile;

/// NVIDIA, Jetson included.
pub(super) const PROFILE: Profile = Profile {
    name: "nvidia",
    matches: |id| id.vendor_id == 0x10de,
    dispatches_per_submit: 256,
    timeout: Duration::from_secs(20),
};
