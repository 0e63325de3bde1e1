//! Formats of Inlay: quantization layouts, insertion points, the adapter record.
//!
//! What a converter writes and a device reads, and nothing else: no allocator, no file system, no arithmetic beyond
//! decoding. The modules, in the order in which an adapter meets them:
//!
//! - [`quant`]: how frozen weights are packed, and how the exported ONNX spells it;
//! - [`points`]: where an adapter may be inserted into a base;
//! - [`kinds`]: which parameters an adapter kind has there, where the exported file has them;
//! - [`metadata`]: what an exported file says about itself;
//! - [`record`]: an adapter as bytes (`docs/adapter-format.md`);
//! - [`state`]: what resuming a run needs beyond the record.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod kinds;
pub mod metadata;
pub mod points;
pub mod quant;
pub mod record;
pub mod state;
