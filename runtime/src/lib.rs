//! The runtime of Inlay: map a base, train an adapter, predict, on the device.

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

/// NumPy archives.
pub mod npz;

pub mod store;
pub mod peft;
