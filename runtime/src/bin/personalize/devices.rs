use std::fmt;

use inlay_devices::backend::{Backend, DeviceError, DeviceInfo, DeviceKind};
use inlay_devices::cpu::CpuBackend;
use inlay_devices::vulkan::{self, Choice, Vulkan, VulkanOptions};
use serde::Serialize;

use crate::args::Devices;
use crate::output::{self, Failure};

#[derive(Serialize)]
struct Listed {
    devices: Vec<Opened>,
    /// Why there is no Vulkan, where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    vulkan: Option<String>,
}

#[derive(Serialize)]
struct Opened {
    kind: &'static str,
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    driver: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uuid: String,
    profile: &'static str,
    limits: Vec<(&'static str, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    self_test: Option<SelfTest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct SelfTest {
    passed: bool,
    kernels: usize,
    /// Largest error of a kernel, relative to the norm of what the plain body computes.
    worst_error: f64,
    worst_kernel: &'static str,
    failed: Vec<&'static str>,
}

/// `personalize devices`.
pub fn run(args: &Devices) -> Result<(), Failure> {
    let threads = args.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
    let mut listed = Listed { devices: vec![opened(CpuBackend::new(threads)?.info())], vulkan: None };
    match vulkan::devices(false) {
        Ok(devices) => listed.devices.extend(devices.iter().map(tested)),
        Err(error) => listed.vulkan = Some(error.to_string()),
    }
    output::result(args.json.json, &listed, &listed)
}

/// A Vulkan device, opened and put to the test.
fn tested(info: &DeviceInfo) -> Opened {
    let test = || -> Result<SelfTest, DeviceError> {
        let choice = Choice::Named(info.name.clone());
        let reports = Vulkan::open(&VulkanOptions { choice, ..VulkanOptions::default() })?.self_test()?;
        let worst = reports.iter().max_by(|a, b| a.worst_error.total_cmp(&b.worst_error));
        Ok(SelfTest {
            passed: reports.iter().all(|report| report.passed),
            kernels: reports.len(),
            worst_error: worst.map_or(0.0, |report| report.worst_error),
            worst_kernel: worst.map_or("", |report| report.kernel),
            failed: reports.iter().filter(|report| !report.passed).map(|report| report.kernel).collect(),
        })
    };
    match test() {
        Ok(self_test) => Opened { self_test: Some(self_test), ..opened(info) },
        Err(error) => Opened { error: Some(error.to_string()), ..opened(info) },
    }
}

fn opened(info: &DeviceInfo) -> Opened {
    Opened {
        kind: match info.kind {
            DeviceKind::VulkanGpu => "vulkan gpu",
            DeviceKind::VulkanCpu => "vulkan cpu",
            _ => "cpu",
        },
        name: info.name.clone(),
        driver: info.driver.clone(),
        uuid: info.uuid.clone(),
        profile: info.profile,
        limits: info.limits.clone(),
        self_test: None,
        error: None,
    }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, device) in self.devices.iter().enumerate() {
            let line = if i == 0 { "" } else { "\n" };
            write!(f, "{line}{}\n  kind       {}\n  profile    {}", device.name, device.kind, device.profile)?;
            if !device.driver.is_empty() {
                write!(f, "\n  driver     {}", device.driver)?;
            }
            for (name, value) in &device.limits {
                write!(f, "\n  {name:<34} {value}")?;
            }
            match (&device.self_test, &device.error) {
                (Some(test), _) if test.passed => {
                    let SelfTest { kernels, worst_error, worst_kernel, .. } = test;
                    write!(
                        f,
                        "\n  self-test  {kernels} kernels passed, worst error {worst_error:.1e} ({worst_kernel})"
                    )?;
                }
                (Some(test), _) => {
                    let failed = test.failed.join(", ");
                    write!(
                        f,
                        "\n  self-test  FAILED in {failed}: error {:.1e}; the device is not used",
                        test.worst_error
                    )?;
                }
                (None, Some(error)) => write!(f, "\n  self-test  FAILED: {error}")?,
                (None, None) => {}
            }
        }
        match &self.vulkan {
            Some(why) => write!(f, "\n{why}"),
            None => Ok(()),
        }
    }
}
