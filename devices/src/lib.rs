//! Kernels of Inlay and the devices that run them.
//!
//! A [`Program`](program::Program) is a static list of kernel calls over a few flat memory regions. It is made
//! once per set of input shapes, by the runtime; a [`Backend`](backend::Backend) compiles it and then runs it any
//! number of times without allocating. Backends know kernels and no ONNX ops.

/// Frozen weights as typed windows into a mapping that somebody else owns.
pub mod weight;

/// Kernel contracts: formula, shapes, bindings, parameters and the plain body of each.
pub mod kernels;

/// Static programs: memory regions, slots, calls, segments.
pub mod program;

/// What a device must offer to run programs, and how it fails.
pub mod backend;

/// The reference backend: plain bodies, in f32 or f64.
pub mod plain;

/// The CPU backend: fast bodies on a fixed number of threads.
pub mod cpu;

/// One check for every body of every kernel: run a sample, compare with the plain body in f64.
pub mod conformance;

/// What is known of families of Vulkan devices.
pub mod profiles;

/// The Vulkan backend.
pub mod vulkan;
