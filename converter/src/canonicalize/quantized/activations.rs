//! Activations that pass through integers.

use super::Rewriter;
use crate::error::Result;
use crate::graph::Node;
use crate::tensor::{DType, Tensor};

/// `DequantizeLinear(QuantizeLinear(x))` with the same scale and zero point becomes `Clip(x)` to the range of the integers.
/// What is cut off there may be a Relu, which quantizers leave to the range.
pub(super) fn fake_quantize(r: &mut Rewriter<'_>, i: usize) -> Result<bool> {
    let node = r.graph.nodes[i].clone();
    let before = node.input(0).filter(|_| node.is("DequantizeLinear")).and_then(|q| r.links.producer(q));
    let Some(quantize) = before.map(|at| r.graph.nodes[at].clone()).filter(|n| n.is("QuantizeLinear")) else {
        return Ok(false);
    };
    let value = |node: &Node, index| r.constant(node, index).map(|t| (t.dtype, t.to_f32()));
    if value(&quantize, 1) != value(&node, 1) || value(&quantize, 2) != value(&node, 2) {
        return Err(node.unsupported("a value is quantized by one scale and dequantized by another"));
    }
    let Some(scale) = r.constant(&node, 1).and_then(Tensor::scalar).filter(|s| *s > 0.0) else {
        return Err(node.unsupported("only one constant scale for a whole activation is supported"));
    };
    let zero = r.constant(&node, 2);
    let integers = match zero.map(|z| z.dtype).or_else(|| output_type(&quantize)).unwrap_or(DType::U8) {
        DType::U8 => [0.0, 255.0],
        DType::I8 => [-128.0, 127.0],
        DType::U16 => [0.0, 65535.0],
        DType::I16 => [-32768.0, 32767.0],
        other => return Err(node.unsupported(format!("activations in {other:?} are not supported"))),
    };
    let zero = zero.and_then(Tensor::scalar).unwrap_or(0.0);
    let mut inputs = vec![quantize.inputs[0].clone()];
    for (what, q) in ["low", "high"].into_iter().zip(integers) {
        let bound = Tensor::from_f32(&[], &[(q - zero) * scale]);
        inputs.push(r.graph.add_constant(&format!("{}.{what}", quantize.name), bound));
    }
    let clip = Node { inputs, ..Node::new("Clip", &node.name, &[], node.output()) };
    r.graph.nodes[i] = Node { opset: r.opset, scope: node.scope, ..clip };
    Ok(true)
}

/// The type that the attribute `output_dtype` names.
fn output_type(node: &Node) -> Option<DType> {
    DType::from_onnx(i32::try_from(node.int("output_dtype")?).ok()?)
}
