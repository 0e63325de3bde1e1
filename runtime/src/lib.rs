//! The runtime of Inlay: map a base, train an adapter, predict, on the device.
//!
//! Modules are listed in the order in which data flows through them. Most apps need what is re-exported here:
//! a [`Session`] on a [`Base`], a [`Dataset`], a [`Trainer`] that makes an [`Adapter`], an [`AdapterStore`] to keep it.
//!
//! ```
//! use std::ops::ControlFlow;
//!
//! use inlay_runtime::{Adapter, AdapterOptions, AdapterStore, Dataset, Dtype, Session, TrainOptions, Trainer};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! let mut session = Session::open("tests/data/tiny")?;
//! let data = Dataset::read(session.base(), "tests/data/tiny.npz")?;
//! let store = AdapterStore::open(folder.path())?;
//!
//! // Train, and keep the adapter only if it beats the base on a fifth of the samples that it never saw.
//! let adapter = Adapter::new(session.base(), &AdapterOptions::lora(2).seed(1))?;
//! let options = TrainOptions::new().epochs(20).batch_size(8).lr(1e-2).hold_back(0.2).seed(1);
//! let trained = Trainer::new(&mut session, adapter, &data, options)?.run(|_| ControlFlow::Continue(()))?;
//! store.save("anna", &trained.adapter.to_record(Dtype::F16)?)?;
//!
//! // Later, in another process: put it in use, and answer.
//! let adapter = Adapter::from_record(session.base(), &store.load("anna")?)?;
//! session.set_adapter(Some(adapter))?;
//! let outputs = session.predict_all(&data, 16, |_| ())?;
//! assert_eq!(outputs[0].1.shape()[0], data.len());
//! # Ok(())
//! # }
//! ```

/// What happens beside the result.
pub mod log;

/// Seeded random numbers.
pub mod random;

/// NumPy archives.
pub mod npz;

/// Bases: exported models, mapped, checked and shared.
pub mod base;

/// The bounded reader of ONNX files.
pub mod onnx;

/// Typed graphs and small tensors on the host.
pub mod graph;

/// Operators: shape rules and lowering to kernels, forward and backward.
pub mod ops;

/// Plans: a graph for concrete shapes as a static program.
pub mod plan;

/// Which device computes.
pub mod device;

mod engine;
mod lru;

/// Samples, checked against a base.
pub mod data;

/// Small trainable changes to a frozen base.
pub mod adapters;

pub mod peft;

pub mod merge;

/// A base on a device.
pub mod session;

mod probe;

/// Batches to an adapter.
pub mod train;

pub mod store;

pub use adapters::{Adapter, AdapterError, AdapterOptions};
pub use base::{Base, LoadError, Port, Verify};
pub use data::{DataError, Dataset, IGNORED_LABEL, LABELS};
pub use device::{Device, DeviceOptions};
pub use engine::RunError;
pub use graph::{DType, HostData, HostTensor};
pub use inlay_format::record::Dtype;
pub use log::{Event, LogSink};
pub use onnx::Dim;
pub use session::{Session, SessionError, SessionOptions};
pub use store::{AdapterStore, StoreError};
pub use train::{TrainError, TrainOptions, Trainer};
