use std::time::Duration;

use super::Profile;

/// Qualcomm Adreno. The kernel driver resets the GPU when one submission runs for seconds.
pub(super) const PROFILE: Profile = Profile {
    name: "adreno",
    matches: |id| id.vendor_id == 0x5143,
    dispatches_per_submit: 32,
    timeout: Duration::from_secs(20),
};
