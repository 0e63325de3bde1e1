//! The runtime of Inlay: map a base, train an adapter, predict, on the device.

/// NumPy archives.
pub mod npz;

pub mod store;
pub mod peft;
