//! What the pool is made of. `tests/pool-model` compiles the pool with a model checker's in their place.

pub use std::hint::spin_loop;
pub use std::sync::atomic::{AtomicUsize, Ordering};
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard};
pub use std::thread::{Builder, JoinHandle};

/// Floats of scratch that each thread has: 256 KiB.
pub const SCRATCH_LEN: usize = 64 * 1024;

/// How often a thread looks for work before it sleeps: some tens of microseconds, the time between two calls of a step.
pub const SPINS: usize = 4000;
