//! A bounded reader of the ONNX protobuf format, for the parts that exported files contain.
//!
//! Everything is checked before use: lengths against the bytes that are there, counts and nesting against fixed
//! limits. Tensor contents are not copied; they stay ranges of the file.

mod model;
mod tensor;
mod wire;

pub use model::{Attribute, AttributeValue, Dim, Graph, Metadata, Model, Node, ValueInfo, read};
pub use tensor::{Tensor, TensorData, data_type};
pub use wire::WireError;

/// Most nodes of a graph.
pub const MAX_NODES: usize = 1 << 17;
/// Most initializers of a graph.
pub const MAX_INITIALIZERS: usize = 1 << 17;
/// Most inputs and outputs of a graph or of one node.
pub const MAX_VALUES: usize = 1 << 15;
/// Most attributes of a node, and most metadata entries and opset imports of a model.
pub const MAX_ENTRIES: usize = 256;
/// Longest name (bytes of UTF-8).
pub const MAX_NAME_BYTES: usize = 1 << 12;
/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 8;
/// Longest list of numbers in an attribute.
pub const MAX_LIST: usize = 1 << 16;

#[cfg(test)]
mod tests;
