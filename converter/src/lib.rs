//! The converter of Inlay: a trained ONNX model in, a frozen quantized base with insertion points out.
//!
//! The modules, in the order in which a model passes through them. [`export::export`] is all of them in a row.
#![deny(unsafe_code)]

pub mod canonicalize;
pub mod encode;
pub mod error;
pub mod export;
pub mod graph;
pub mod insert;
pub mod inspect;
pub mod oracle;
pub mod paths;
pub mod points;
pub mod proto;
pub mod quantize;
pub mod read;
pub mod report;
pub mod samples;
pub mod support;
pub mod tensor;
pub mod types;
pub mod verify;
pub mod write;
