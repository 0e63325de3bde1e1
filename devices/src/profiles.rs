//! What is known of families of Vulkan devices, as data.
//!
//! A vendor's fault or limit is a field of a profile; kernels and the backend know no vendors. One file a family;
//! [`profiles::PROFILES`] lists them, the first that matches is used.

mod adreno;
mod generic;
mod lavapipe;
mod mali;
mod nvidia;
mod swiftshader;

use std::time::Duration;

/// What a profile may match on.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// PCI or Khronos vendor id.
    pub vendor_id: u32,
    /// The driver's name of the device.
    pub device_name: &'a str,
}

/// How to treat a family of devices.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// Short lower-case name.
    pub name: &'static str,
    /// Whether a device belongs to the family.
    pub matches: fn(&Identity<'_>) -> bool,
    /// Dispatches per command buffer. Phones kill the work of an app whose command buffer holds the GPU for too long,
    /// and their screens share that GPU.
    pub dispatches_per_submit: usize,
    /// How long a run may take before the device counts as hung, unless the caller says otherwise.
    pub timeout: Duration,
}

/// Every profile; the last matches everything.
pub const PROFILES: &[Profile] =
    &[lavapipe::PROFILE, swiftshader::PROFILE, nvidia::PROFILE, adreno::PROFILE, mali::PROFILE, generic::PROFILE];

/// The first profile that matches.
pub fn find(identity: &Identity<'_>) -> &'static Profile {
    PROFILES.iter().find(|profile| (profile.matches)(identity)).expect("the last profile matches everything")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_found() {
        let name = |vendor_id, device_name| find(&Identity { vendor_id, device_name }).name;
        assert_eq!(name(0x10005, "llvmpipe (LLVM 15.0.6, 256 bits)"), "lavapipe");
        assert_eq!(name(0x1ae0, "SwiftShader Device (Subzero)"), "swiftshader");
        assert_eq!(name(0x10de, "Orin (nvgpu)"), "nvidia");
        assert_eq!(name(0x5143, "Adreno (TM) 740"), "adreno");
        assert_eq!(name(0x13b5, "Mali-G715"), "mali");
        assert_eq!(name(0x1002, "AMD Radeon"), "generic");
    }

    #[test]
    fn names_are_unique() {
        for (i, profile) in PROFILES.iter().enumerate() {
            assert!(PROFILES[..i].iter().all(|other| other.name != profile.name), "{}", profile.name);
        }
    }
}
