//! The Vulkan backend.
//!
//! libvulkan is loaded when a device is asked for, and not before. A program becomes buffers, descriptor sets and
//! command buffers once; each run only submits them again. Every failure is an error that leaves the host able to
//! carry on elsewhere: nothing here panics because a driver is missing, slow or lost.

mod executable;
mod gpu;
mod instance;
mod memory;
mod physical;
mod pipelines;
mod record;
mod self_test;
mod weights;

pub use instance::ValidationLog;
pub use self_test::KernelReport;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::backend::{Backend, DeviceError, DeviceInfo, Executable};
use crate::kernels;
use crate::program::{Program, Segment};

use executable::VulkanExecutable;
use gpu::Gpu;
use pipelines::Pipelines;
use weights::Weights;

/// Which device to open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The best GPU; never a device of type CPU.
    #[default]
    Gpu,
    /// The best GPU, or a software device when there is none.
    Any,
    /// The device of this name, else the best one whose name contains it; upper and lower case are the same.
    Named(String),
}

/// How to open a device.
#[derive(Clone, Debug, Default)]
pub struct VulkanOptions {
    /// Which device.
    pub choice: Choice,
    /// How long a run may take before it counts as failed; `None` for the device profile's own limit.
    pub timeout: Option<Duration>,
    /// Load the Khronos validation layer, with synchronization validation; opening fails where it is not installed.
    pub validation: bool,
    /// Reach device memory through staging buffers even where the host could write it, as on a discrete GPU.
    pub staged: bool,
    /// Leave out the barriers between dependent dispatches. Results are undefined: tests use it to prove that
    /// validation notices.
    #[doc(hidden)]
    pub without_barriers: bool,
}

/// The devices that could be opened, best first.
///
/// # Errors
/// When there is no Vulkan here, or validation was asked for and is not installed.
pub fn devices(validation: bool) -> Result<Vec<DeviceInfo>, DeviceError> {
    let loaded = instance::load(validation)?;
    Ok(physical::candidates(&loaded.instance)?.into_iter().map(|candidate| candidate.info).collect())
}

/// An open Vulkan device.
///
/// The first time that a program uses a kernel, the kernel's samples are run and compared with the plain bodies: a
/// device that computes something else is never used.
pub struct Vulkan {
    info: DeviceInfo,
    log: ValidationLog,
    shared: Shared,
    tested: Mutex<HashSet<&'static str>>,
}

/// What all programs of a device share.
struct Shared {
    gpu: Arc<Gpu>,
    pipelines: Pipelines,
    weights: Weights,
    barriers: bool,
}

impl Vulkan {
    /// Opens a device.
    ///
    /// # Errors
    /// When there is no Vulkan, no such device, or the driver refuses.
    pub fn open(options: &VulkanOptions) -> Result<Self, DeviceError> {
        let loaded = instance::load(options.validation)?;
        let candidate = physical::choose(physical::candidates(&loaded.instance)?, &options.choice)?;
        let gpu = Gpu::open(&candidate, options.timeout, options.staged, loaded.messenger)?;
        let shared = Shared {
            gpu,
            pipelines: Pipelines::default(),
            weights: Weights::default(),
            barriers: !options.without_barriers,
        };
        Ok(Vulkan { info: candidate.info, log: loaded.log, shared, tested: Mutex::default() })
    }

    /// What the validation layer reported; empty without [`VulkanOptions::validation`].
    pub fn validation(&self) -> &ValidationLog {
        &self.log
    }

    /// Makes an invalid call that does nothing: tests use it to prove that validation notices.
    #[doc(hidden)]
    pub fn misuse(&self) {
        self.shared.gpu.misuse();
    }

    /// Runs the samples of every kernel and compares them with the plain bodies.
    ///
    /// # Errors
    /// When the device fails. A wrong result is no error here, but a report whose `passed` is false.
    pub fn self_test(&self) -> Result<Vec<KernelReport>, DeviceError> {
        kernels::ALL.iter().map(|kernel| self_test::run(&self.shared, *kernel)).collect()
    }

    /// Tests each kernel of `program` that was not tested on this device before.
    fn test_kernels(&self, program: &Program) -> Result<(), DeviceError> {
        let used = Segment::ALL.iter().flat_map(|segment| program.calls(*segment)).map(|call| call.kernel);
        for kernel in used {
            let mut tested = self.tested.lock().unwrap_or_else(PoisonError::into_inner);
            if tested.contains(kernel.name()) {
                continue;
            }
            let report = self_test::run(&self.shared, kernel)?;
            if !report.passed {
                let device = self.info.name.clone();
                return Err(DeviceError::SelfTest { device, kernel: kernel.name(), error: report.worst_error as f32 });
            }
            tested.insert(kernel.name());
        }
        Ok(())
    }
}

impl Backend for Vulkan {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn compile(&self, program: Arc<Program>) -> Result<Box<dyn Executable>, DeviceError> {
        program.validate()?;
        let program = program.decomposed(pipelines::has_body);
        self.test_kernels(&program)?;
        Ok(Box::new(VulkanExecutable::new(&self.shared, &program)?))
    }
}
