use std::time::Duration;

use super::Profile;

/// Arm Mali and Immortalis. The kernel driver stops a job that runs for seconds.
pub(super) const PROFILE: Profile = Profile {
    name: "mali",
    matches: |id| id.vendor_id == 0x13b5,
    dispatches_per_submit: 32,
    timeout: Duration::from_secs(20),
};
