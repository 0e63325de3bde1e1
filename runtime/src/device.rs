//! Devices: which one computes, and how that is decided.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use inlay_devices::backend::{Backend, DeviceError, DeviceKind};
use inlay_devices::cpu::CpuBackend;
use inlay_devices::program::Segment;
use inlay_devices::vulkan::{Choice, Vulkan, VulkanOptions};
use inlay_format::metadata::Fingerprint;
use serde::{Deserialize, Serialize};

use crate::log::{Event, LogSink};
use crate::plan::Plan;

/// Where to compute.
///
/// ```
/// use inlay_runtime::Device;
///
/// assert_eq!("auto".parse(), Ok(Device::Auto));
/// assert_eq!("vulkan:Mali".parse(), Ok(Device::Vulkan(Some("Mali".into()))));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The CPU, or a GPU where that is faster on this model; measured once. Never a Vulkan device that is a CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A Vulkan device: the best one, or the one of this name. Software devices too, for tests.
    Vulkan(Option<String>),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Vulkan(None) => f.write_str("vulkan"),
            Device::Vulkan(Some(name)) => write!(f, "vulkan:{name}"),
        }
    }
}

/// A device name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{found}\" is no device; use auto, cpu, vulkan or vulkan:NAME")]
pub struct ParseDeviceError {
    /// What was given.
    pub found: String,
}

impl FromStr for Device {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, ParseDeviceError> {
        match (text, text.split_once(':')) {
            ("auto", _) => Ok(Device::Auto),
            ("cpu", _) => Ok(Device::Cpu),
            ("vulkan", _) => Ok(Device::Vulkan(None)),
            (_, Some(("vulkan", name))) if !name.is_empty() => Ok(Device::Vulkan(Some(name.to_owned()))),
            _ => Err(ParseDeviceError { found: text.to_owned() }),
        }
    }
}

/// How to open devices.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Which device.
    pub device: Device,
    /// CPU threads; as many as the machine has unless set.
    pub threads: Option<usize>,
    /// A folder where [`Device::Auto`] remembers what it measured; nothing is remembered unless set.
    pub cache_dir: Option<PathBuf>,
    /// How long a run on a GPU may take; the device profile's limit unless set.
    pub vulkan_timeout: Option<Duration>,
}

/// The CPU, and maybe a GPU.
pub(crate) struct Devices {
    cpu: Arc<dyn Backend>,
    gpu: Option<Arc<dyn Backend>>,
    choice: Choosing,
    cache_dir: Option<PathBuf>,
    threads: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choosing {
    Cpu,
    Gpu,
    /// Both are open, and the first plan decides.
    Undecided,
}

/// Runs that are timed, after one to warm up.
const TIMED_RUNS: u32 = 3;

impl Devices {
    /// Opens what `options` ask for.
    pub fn open(options: &DeviceOptions, log: &LogSink) -> Result<Self, DeviceError> {
        let threads = match options.threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let vulkan = |choice| {
            let vulkan = VulkanOptions { choice, timeout: options.vulkan_timeout, ..VulkanOptions::default() };
            Ok::<Arc<dyn Backend>, DeviceError>(Arc::new(Vulkan::open(&vulkan)?))
        };
        let (gpu, choice) = match &options.device {
            Device::Cpu => (None, Choosing::Cpu),
            Device::Vulkan(None) => (Some(vulkan(Choice::Any)?), Choosing::Gpu),
            Device::Vulkan(Some(name)) => (Some(vulkan(Choice::Named(name.clone()))?), Choosing::Gpu),
            Device::Auto => match vulkan(Choice::Gpu) {
                Ok(gpu) if gpu.info().kind == DeviceKind::VulkanGpu => (Some(gpu), Choosing::Undecided),
                Ok(_) | Err(DeviceError::NoVulkan { .. }) => (None, Choosing::Cpu),
                Err(error) => {
                    log.tell(&Event::DeviceRefused { device: "Vulkan", error: &error });
                    (None, Choosing::Cpu)
                }
            },
        };
        let cpu = Arc::new(CpuBackend::new(threads)?);
        Ok(Devices { cpu, gpu, choice, cache_dir: options.cache_dir.clone(), threads })
    }

    /// Two open devices.
    #[cfg(test)]
    pub fn with_gpu(cpu: Arc<dyn Backend>, gpu: Arc<dyn Backend>, choice: Choosing) -> Self {
        Devices { cpu, gpu: Some(gpu), choice, cache_dir: None, threads: 1 }
    }

    /// The device in use; the CPU while none was chosen.
    pub fn current(&self) -> &Arc<dyn Backend> {
        match (&self.choice, &self.gpu) {
            (Choosing::Gpu, Some(gpu)) => gpu,
            _ => &self.cpu,
        }
    }

    /// Makes the CPU the device in use after `error`; false when it already was.
    pub fn fall_back(&mut self, error: &DeviceError, log: &LogSink) -> bool {
        let failed = match self.gpu.take() {
            Some(gpu) if self.choice == Choosing::Gpu => gpu,
            _ => return false,
        };
        self.choice = Choosing::Cpu;
        log.tell(&Event::FellBack { device: &failed.info().name, error });
        true
    }

    /// Decides between CPU and GPU, when both are open, by what was remembered or by timing `segments` of `plan`.
    pub fn decide(&mut self, base: Fingerprint, plan: &Plan, segments: &[Segment], log: &LogSink) {
        let (Choosing::Undecided, Some(gpu)) = (self.choice, &self.gpu) else { return };
        let cache = self.cache_dir.as_deref().map(|dir| dir.join(self.cache_name(gpu.as_ref(), base)));
        let remembered = cache.as_deref().and_then(Times::load);
        let times = match remembered {
            Some(times) => Ok(times),
            None => Times::measure(self.cpu.as_ref(), gpu.as_ref(), plan, segments),
        };
        let gpu = &gpu.info().name;
        match times {
            Ok(times) => {
                let (faster, device) = if times.gpu_ms < times.cpu_ms {
                    (Choosing::Gpu, gpu)
                } else {
                    (Choosing::Cpu, &self.cpu.info().name)
                };
                let when = if remembered.is_some() { "earlier" } else { "now" };
                let why =
                    format!("{:.2} ms on the CPU, {:.2} ms on {gpu}, measured {when}", times.cpu_ms, times.gpu_ms);
                log.tell(&Event::DeviceChosen { device, why: &why });
                self.choice = faster;
                if let (Some(path), None) = (cache, remembered)
                    && let Err(error) = times.save(&path)
                {
                    log.tell(&Event::CacheUnusable { error: &error });
                }
            }
            Err(error) => {
                log.tell(&Event::DeviceRefused { device: gpu, error: &error });
                self.choice = Choosing::Cpu;
            }
        }
    }

    /// The file that remembers: one for each pair of devices, driver and base.
    fn cache_name(&self, gpu: &dyn Backend, base: Fingerprint) -> String {
        let (cpu, gpu) = (self.cpu.info(), gpu.info());
        let key = format!("{}\n{}\n{}\n{}\n{base}", gpu.uuid, gpu.driver, cpu.name, self.threads);
        let hash = blake3::hash(key.as_bytes()).to_hex();
        format!("device-{}.json", &hash[..16])
    }
}

/// How long one run takes on each of two devices.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Times {
    cpu_ms: f64,
    gpu_ms: f64,
}

impl Times {
    fn measure(cpu: &dyn Backend, gpu: &dyn Backend, plan: &Plan, segments: &[Segment]) -> Result<Self, DeviceError> {
        Ok(Times { cpu_ms: time(cpu, plan, segments)?, gpu_ms: time(gpu, plan, segments)? })
    }

    /// What was remembered; a file that cannot be read is as good as none.
    fn load(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    fn save(&self, path: &Path) -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir)?;
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }
}

/// The fastest of a few runs (ms), on inputs that are all zero.
fn time(backend: &dyn Backend, plan: &Plan, segments: &[Segment]) -> Result<f64, DeviceError> {
    let mut executable = backend.compile(Arc::clone(plan.program()))?;
    executable.run(segments)?;
    let mut fastest = f64::INFINITY;
    for _ in 0..TIMED_RUNS {
        let start = Instant::now();
        executable.run(segments)?;
        fastest = fastest.min(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(fastest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for device in [Device::Auto, Device::Cpu, Device::Vulkan(None), Device::Vulkan(Some("Mali-G78".into()))] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for bad in ["", "gpu", "vulkan:", "cpu:0", "Auto"] {
            assert!(bad.parse::<Device>().is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_remembered_and_damage_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache/device.json");
        let times = Times { cpu_ms: 1.5, gpu_ms: 0.25 };
        assert_eq!(Times::load(&path), None);
        times.save(&path).unwrap();
        assert_eq!(Times::load(&path), Some(times));
        fs::write(&path, "{").unwrap();
        assert_eq!(Times::load(&path), None);
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(times.save(&folder.path().join("file/device.json")).is_err());
    }
}
