//! Demonstrations of Inlay on real data.
#![forbid(unsafe_code)]

/// Drawing.
pub mod svg;

/// Quality against bytes.
pub mod quality;

/// Ten people, one smartwatch model each, one adapter each.
pub mod watch;

/// What can go wrong in a demonstration.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// The result of a demonstration's step.
pub type Result<T> = std::result::Result<T, Error>;
