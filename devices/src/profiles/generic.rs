use std::time::Duration;

use super::Profile;

/// The floor: assumes nothing.
pub(super) const PROFILE: Profile =
    Profile { name: "generic", matches: |_| true, dispatches_per_submit: 64, timeout: Duration::from_secs(20) };
