//! The converter of Inlay: a trained ONNX model in, a frozen quantized base with insertion points out.
#![deny(unsafe_code)]

pub mod error;
pub mod tensor;
pub mod graph;
pub mod proto;
pub mod read;
pub mod encode;
pub mod support;
pub mod types;
pub mod canonicalize;
