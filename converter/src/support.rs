//! Which operators the runtime runs, and through which of their inputs a gradient flows.

use crate::error::{Error, Result};
use crate::graph::Node;

/// Through which inputs of an operator a gradient flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradient {
    /// Through every float input.
    All,
    /// Through the first input only; the others are parameters.
    First,
    /// Through none.
    None,
}

use Gradient::{All, First, None as No};

/// The canonical operators of ai.onnx.
pub const OPERATORS: &[(&str, Gradient)] = &[
    ("Add", All),
    ("And", No),
    ("AveragePool", All),
    ("Cast", All),
    ("Clip", First),
    ("Concat", All),
    ("ConstantOfShape", No),
    ("Conv", First),
    ("Div", All),
    ("Equal", No),
    ("Erf", All),
    ("Exp", All),
    ("Expand", First),
    ("Flatten", All),
    ("Gather", First),
    ("GatherND", No),
    ("Gelu", All),
    ("Gemm", All),
    ("GlobalAveragePool", All),
    ("GlobalMaxPool", All),
    ("Greater", No),
    ("GreaterOrEqual", No),
    ("Identity", All),
    ("IsNaN", No),
    ("LayerNormalization", First),
    ("LeakyRelu", All),
    ("Less", No),
    ("LessOrEqual", No),
    ("Log", All),
    ("MatMul", All),
    ("Max", All),
    ("MaxPool", All),
    ("Min", All),
    ("Mul", All),
    ("Neg", All),
    ("Not", No),
    ("Or", No),
    ("Pow", First),
    ("Range", No),
    ("Reciprocal", All),
    ("ReduceMax", First),
    ("ReduceMean", First),
    ("ReduceSum", First),
    ("Relu", All),
    ("Reshape", First),
    ("Shape", No),
    ("Sigmoid", All),
    ("Slice", First),
    ("Softmax", All),
    ("Split", First),
    ("Sqrt", All),
    ("Squeeze", First),
    ("Sub", All),
    ("Tanh", All),
    ("Transpose", All),
    ("Trilu", First),
    ("Unsqueeze", First),
    ("Where", All),
];

/// Operators that canonicalization always replaces.
const REWRITTEN: &[&str] = &["BatchNormalization", "CastLike", "Constant", "Dropout"];

/// How a gradient flows through `op_type` of ai.onnx; `None` if the operator is not supported.
pub fn gradient(op_type: &str) -> Option<Gradient> {
    OPERATORS.binary_search_by_key(&op_type, |(name, _)| name).ok().map(|i| OPERATORS[i].1)
}

/// Whether a gradient flows from the output of `node` to its input `index`.
pub fn flows(node: &Node, index: usize) -> bool {
    let gradient =
        if node.is("DequantizeLinear") || !node.domain.is_empty() { No } else { gradient(&node.op_type).unwrap_or(No) };
    match gradient {
        All => !node.is("Where") || index > 0,
        First => index == 0,
        No => false,
    }
}

/// # Errors
/// If the canonical `node` is not supported.
pub fn check(node: &Node) -> Result<()> {
    if node.domain.is_empty() && gradient(&node.op_type).is_some() {
        return Ok(());
    }
    Err(unsupported(node))
}

/// # Errors
/// If `node`, as an exporter wrote it, is not supported.
pub fn check_source(node: &Node) -> Result<()> {
    if node.domain.is_empty() && REWRITTEN.contains(&node.op_type.as_str()) {
        return Ok(());
    }
    check(node)
}

fn unsupported(node: &Node) -> Error {
    let way_out = match node.op_type.as_str() {
        _ if !node.domain.is_empty() => {
            "export the model with standard ONNX operators only, without runtime-specific fusion"
        }
        "Attention" | "RMSNormalization" | "RotaryEmbedding" => {
            "export the model with opset_version=21 or lower, so that it is written as primitives"
        }
        "If" | "Loop" | "Scan" => "export the model without control flow that depends on data",
        "DequantizeLinear" | "QuantizeLinear" | "DynamicQuantizeLinear" => {
            "export the float model; the converter quantizes it"
        }
        _ => "replace it in the model, or export the part of the model before it",
    };
    Error::UnsupportedOp {
        node: node.name.clone(),
        op_type: node.op_type.clone(),
        domain: node.domain.clone(),
        way_out: way_out.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted() {
        assert!(OPERATORS.is_sorted_by_key(|(name, _)| name));
    }

    #[test]
    fn an_error_names_node_operator_and_way_out() {
        let mut node = Node::new("FusedMatMul", "fused", &["x"], "y");
        node.domain = "com.microsoft".into();
        let text = check(&node).unwrap_err().to_string();
        assert!(
            text.contains("\"fused\"") && text.contains("com.microsoft.FusedMatMul") && text.contains("standard ONNX")
        );
    }
}
