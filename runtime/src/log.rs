//! What happens beside the result: told to a sink that the caller hands in, and to nobody else.

use std::fmt;
use std::sync::Arc;

use inlay_devices::backend::DeviceError;

/// Something that the caller may want to know.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A device was chosen.
    DeviceChosen {
        /// Its name.
        device: &'a str,
        /// Why this one.
        why: &'a str,
    },
    /// A device was not used.
    DeviceRefused {
        /// Its name.
        device: &'a str,
        /// Why not.
        error: &'a DeviceError,
    },
    /// A device failed; the CPU repeats what was not finished and carries on.
    FellBack {
        /// The name of the device that failed.
        device: &'a str,
        /// How it failed.
        error: &'a DeviceError,
    },
    /// The cache folder cannot be used; devices are measured again next time.
    CacheUnusable {
        /// The cause.
        error: &'a std::io::Error,
    },
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::DeviceChosen { device, why } => write!(f, "using {device}: {why}"),
            Event::DeviceRefused { device, error } => write!(f, "not using {device}: {error}"),
            Event::FellBack { device, error } => {
                write!(f, "{device} failed, the CPU carries on without losing a step: {error}")
            }
            Event::CacheUnusable { error } => write!(f, "the device choice cannot be remembered: {error}"),
        }
    }
}

/// Where events go. Nowhere by default.
#[derive(Clone, Default)]
pub struct LogSink(Option<Arc<Sink>>);

type Sink = dyn Fn(&Event<'_>) + Send + Sync;

impl LogSink {
    /// A sink that calls `tell` for each event.
    pub fn new(tell: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        LogSink(Some(Arc::new(tell)))
    }

    pub(crate) fn tell(&self, event: &Event<'_>) {
        if let Some(sink) = &self.0 {
            sink(event);
        }
    }
}

impl fmt::Debug for LogSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "LogSink(..)" } else { "LogSink(none)" })
    }
}
