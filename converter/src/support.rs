//! Which operators the runtime runs, and through which of their inputs a gradient flows.

use inlay_runtime::ops;

use crate::canonicalize;
use crate::error::{Error, Result};
use crate::graph::Node;

/// Operators of ai.onnx that canonicalization always replaces, beside those that become primitives, and what they become.
pub const REWRITTEN: &[(&str, &str)] = &[
    ("BatchNormalization", "part of the Conv before it, else Mul and Add"),
    ("CastLike", "Cast"),
    ("Constant", "an initializer"),
    ("Dropout", "nothing: it is off at inference"),
    ("Sum", "a chain of Add"),
];

/// Operators of ai.onnx that are replaced where they are of a usual form, else refused, and what they become.
pub const REPLACED: &[(&str, &str)] = &[
    ("ConvInteger", "of dynamic quantization: Conv of f32 with the same integers as its weight"),
    ("DequantizeLinear", "of an initializer: the weight, whose integers are kept"),
    ("DynamicQuantizeLinear", "nothing: activations stay f32"),
    ("If", "the branch that is taken, where constants and known shapes decide"),
    ("MatMulInteger", "of dynamic quantization: MatMul of f32 with the same integers as its weight"),
    ("QuantizeLinear", "with the DequantizeLinear after it: Clip to the range that its integers hold"),
];

/// Operators that the runtime runs, but that only the converter writes.
const WRITTEN: &[&str] = &["DequantizeLinear", "MatMulNBits"];

/// Whether the runtime runs `op_type` of `domain`.
pub fn supported(domain: &str, op_type: &str) -> bool {
    ops::find(domain, op_type).is_some()
}

/// Whether a gradient flows from the output of `node` to its input `index`.
pub fn flows(node: &Node, index: usize) -> bool {
    ops::find(&node.domain, &node.op_type).is_some_and(|op| op.differentiable(index))
}

/// # Errors
/// If the canonical `node` is not supported.
pub fn check(node: &Node) -> Result<()> {
    let written = WRITTEN.contains(&node.op_type.as_str());
    if supported(&node.domain, &node.op_type) && !written { Ok(()) } else { Err(unsupported(node)) }
}

/// # Errors
/// If `node`, as an exporter wrote it, is not supported.
pub fn check_source(node: &Node) -> Result<()> {
    let rewritten = node.domain.is_empty() && REWRITTEN.iter().any(|(op, _)| *op == node.op_type);
    if rewritten || canonicalize::expansion(node).is_some() { Ok(()) } else { check(node) }
}

fn unsupported(node: &Node) -> Error {
    let way_out = match node.op_type.as_str() {
        _ if !node.domain.is_empty() => {
            "export the model with standard ONNX operators only, without runtime-specific fusion"
        }
        "If" | "Loop" | "Scan" => "export the model without control flow that depends on data",
        "DequantizeLinear"
        | "QuantizeLinear"
        | "DynamicQuantizeLinear"
        | "QLinearConv"
        | "QLinearMatMul"
        | "MatMulInteger"
        | "ConvInteger" => {
            "quantize it as QuantizeLinear and DequantizeLinear with constant scales (QuantFormat.QDQ), or export the \
             float model; the converter quantizes it"
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
    fn an_error_names_node_operator_and_way_out() {
        let mut node = Node::new("QAttention", "fused", &["x"], "y");
        node.domain = "com.microsoft".into();
        let text = check(&node).unwrap_err().to_string();
        assert!(
            text.contains("\"fused\"") && text.contains("com.microsoft.QAttention") && text.contains("standard ONNX")
        );
    }
}
