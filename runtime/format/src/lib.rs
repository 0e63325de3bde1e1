//! Formats of Inlay: quantization layouts, insertion points, the adapter record.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

/// Quantization schemes.
pub mod quant;
