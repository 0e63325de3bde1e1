//! What a device must offer to run programs, and how it fails.

use std::sync::Arc;
use std::time::Duration;

use crate::kernels::KernelError;
use crate::program::{Program, Region, Segment};

/// What kind of hardware a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceKind {
    /// The CPU backend.
    Cpu,
    /// A GPU driven through Vulkan.
    VulkanGpu,
    /// A Vulkan implementation that runs on the CPU (lavapipe, SwiftShader): for tests, never chosen by itself.
    VulkanCpu,
}

/// A device that opened.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Kind of hardware.
    pub kind: DeviceKind,
    /// The driver's name of the device, or the CPU's features.
    pub name: String,
    /// Driver name and version; empty for the CPU.
    pub driver: String,
    /// Name of the profile in use (see `profiles::PROFILES`); `cpu` for the CPU.
    pub profile: &'static str,
    /// Device UUID, as 32 hexadecimal digits; empty for the CPU.
    pub uuid: String,
    /// Limits and features worth showing, as name and value.
    pub limits: Vec<(&'static str, String)>,
}

/// Why a device could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The program breaks a kernel's contract.
    #[error(transparent)]
    Program(#[from] KernelError),
    /// There is no Vulkan loader or driver here.
    #[error("no Vulkan device: {why}; install a Vulkan driver or use --device cpu")]
    NoVulkan {
        /// What was tried and what it said.
        why: String,
    },
    /// No device of that name.
    #[error("no Vulkan device named \"{name}\"; found: {found}")]
    NoSuchDevice {
        /// The name asked for.
        name: String,
        /// The names of the devices that opened.
        found: String,
    },
    /// The driver reported an error.
    #[error("{device}: {call} failed: {why}")]
    Driver {
        /// Device name.
        device: String,
        /// What was being done.
        call: &'static str,
        /// The driver's words.
        why: String,
    },
    /// Work was not finished in time.
    #[error("{device}: work was not finished within {limit:?}; raise --vulkan-timeout or use --device cpu")]
    Timeout {
        /// Device name.
        device: String,
        /// The time allowed.
        limit: Duration,
    },
    /// The device computes something else than the CPU does.
    #[error("{device}: self-test of kernel \"{kernel}\" differs from the CPU by {error:e}; the device is not used")]
    SelfTest {
        /// Device name.
        device: String,
        /// The kernel.
        kernel: &'static str,
        /// Worst error, relative to the norm of the expected values.
        error: f32,
    },
    /// The program does not fit the device.
    #[error("{device}: {what} needs {needed} bytes, the limit is {limit}; use --device cpu")]
    TooLarge {
        /// Device name.
        device: String,
        /// What is too large.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The system does not have the memory.
    #[error("{device}: the program needs {needed} bytes of memory, more than there are; use a smaller batch")]
    Memory {
        /// Device name.
        device: String,
        /// Bytes needed.
        needed: usize,
    },
    /// Threads could not be started.
    #[error("cannot start {threads} worker threads")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A device that compiles programs.
pub trait Backend: Send + Sync {
    /// What this device is.
    fn info(&self) -> &DeviceInfo;

    /// Makes `program` ready to run: validates it, allocates its regions (zeroed; `Consts` filled) and, on a GPU,
    /// uploads weights that are not there yet and records the command buffers.
    ///
    /// # Errors
    /// When the program breaks a contract or the device cannot hold it.
    fn compile(&self, program: Arc<Program>) -> Result<Box<dyn Executable>, DeviceError>;
}

/// A compiled program with its memory.
pub trait Executable: Send {
    /// Copies floats into a region other than [`Region::Ints`], from element `offset` on.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the range is outside the region.
    fn write(&mut self, region: Region, offset: usize, values: &[f32]) -> Result<(), DeviceError>;

    /// Copies integers into [`Region::Ints`], from element `offset` on.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the range is outside the region.
    fn write_ints(&mut self, offset: usize, values: &[i32]) -> Result<(), DeviceError>;

    /// Copies floats out of a region other than [`Region::Ints`], from element `offset` on.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the range is outside the region.
    fn read(&mut self, region: Region, offset: usize, values: &mut [f32]) -> Result<(), DeviceError>;

    /// Runs segments in the order given and waits until they are done.
    ///
    /// # Errors
    /// When the device fails or is too slow. The contents of all regions are then lost; the host carries on from
    /// its own copies.
    fn run(&mut self, segments: &[Segment]) -> Result<(), DeviceError>;
}
