//! The converter of Inlay: a trained ONNX model in, a frozen quantized base with insertion points out.
//!
//! [`export::export`] is the whole way, [`inspect::inspect`] and [`check::check`] look and write nothing. The modules, in the order in
//! which a model passes through them:
//!
//! - [`read`]: an ONNX file becomes a [`graph`] of nodes and [`tensor`]s, with the messages of [`proto`];
//! - [`integers`]: weights that are quantized already;
//! - [`footprint`] and [`bounds`]: what a file would take in memory, and numbers that size loops and allocations, are checked;
//! - [`types`]: types, shapes and constant folding, by tract on the graph without its weights;
//! - [`kv_cache`]: a decoder's cache is taken out, when asked;
//! - [`canonicalize`]: the many spellings of exporters become one, of operators that [`support`] knows;
//! - [`paths`] and [`points`]: module paths, and where adapters can be inserted;
//! - [`kinds`]: which adapter kinds go where, by the [`blocks`] of a transformer;
//! - [`calibrate`]: weights scaled by what they are multiplied with, when asked;
//! - [`insert`]: adapter branches as standard ONNX;
//! - [`quantize`]: which weights are packed;
//! - [`basis`]: what LoRA-XS needs of each weight;
//! - [`write`](mod@write): the exported files, with [`encode`];
//! - [`verify`]: the exported files compared with the source, which the [`oracle`] runs on [`samples`];
//! - [`report`]: what was done; [`arithmetic`]: how little adapters train.
//!
//! [`merge`](mod@merge) puts an adapter into the weights of its base, [`interop`] writes adapters for other programs.
#![deny(unsafe_code)]

pub mod arithmetic;
pub mod basis;
pub mod blocks;
pub mod bounds;
pub mod calibrate;
pub mod canonicalize;
pub mod check;
mod drawing;
pub mod encode;
pub mod error;
pub mod export;
pub mod folding;
pub mod footprint;
pub mod graph;
mod html;
pub mod insert;
pub mod inspect;
pub mod integers;
pub mod interop;
pub mod kinds;
pub mod kv_cache;
pub mod merge;
#[cfg_attr(not(feature = "tract"), path = "without_tract/oracle.rs")]
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
#[cfg_attr(not(feature = "tract"), path = "without_tract/types.rs")]
pub mod types;
pub mod verify;
pub mod write;
