//! Half precision becomes single: what is f16 or bf16 in the source is f32 from here on, inputs and outputs too. Constants keep
//! their bytes and are widened when they are read, which is exact.

use crate::graph::{Attribute, Graph, Node};
use crate::tensor::DType;

/// Attributes that name the type that a node makes or computes in.
const TYPES: &[&str] = &["to", "dtype", "output_dtype", "softmax_precision"];

pub(super) fn run(graph: &mut Graph) {
    for tensor in graph.constants.values_mut().filter(|t| is_half(t.dtype)) {
        *tensor = tensor.as_f32();
    }
    for port in graph.inputs.iter_mut().chain(&mut graph.outputs).filter(|p| is_half(p.ty.dtype)) {
        port.ty.dtype = DType::F32;
    }
    for node in &mut graph.nodes {
        for (name, value) in &mut node.attributes {
            match value {
                Attribute::Tensor(t) if is_half(t.dtype) => *t = t.as_f32(),
                Attribute::Int(code) if TYPES.contains(&name.as_str()) && is_half_code(*code) => {
                    *code = DType::F32.onnx().into();
                }
                _ => {}
            }
        }
    }
    fold_casts(graph);
}

/// A Cast of a float constant to f32 becomes the constant.
fn fold_casts(graph: &mut Graph) {
    let links = graph.links();
    let mut kept = Vec::with_capacity(graph.nodes.len());
    for node in std::mem::take(&mut graph.nodes) {
        let to_f32 = node.is("Cast") && node.int("to") == Some(DType::F32.onnx().into());
        let tensor = graph.constant_input(&node, 0).filter(|t| to_f32 && t.dtype.is_float());
        match tensor.map(|t| t.as_f32()) {
            Some(mut folded) if !links.is_output(node.output()) => {
                folded.origin = Some(node.output().to_owned());
                graph.constants.insert(node.output().to_owned(), folded);
            }
            _ => kept.push(node),
        }
    }
    graph.nodes = kept;
}

/// What a user should know about a source that computes in half precision.
pub(crate) fn note(source: &Graph) -> Option<String> {
    let ports = source.inputs.iter().chain(&source.outputs).filter(|p| is_half(p.ty.dtype));
    let ports: Vec<&str> = ports.map(|p| p.name.as_str()).collect();
    let casts = |node: &Node| node.is("Cast") && node.int("to").is_some_and(is_half_code);
    let computed = "the source computes in half precision, the exported model in f32";
    match ports.as_slice() {
        [] => source.nodes.iter().any(casts).then(|| computed.to_owned()),
        ports => Some(format!("{computed}; so are its inputs and outputs that were not: {}", ports.join(", "))),
    }
}

fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

fn is_half_code(code: i64) -> bool {
    i32::try_from(code).ok().and_then(DType::from_onnx).is_some_and(is_half)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::testing::{graph, ops};
    use super::*;
    use crate::tensor::Tensor;

    fn halves(dims: &[usize], value: f32) -> Tensor {
        let bytes = f16::from_f32(value).to_le_bytes().repeat(dims.iter().product());
        Tensor::new(DType::F16, dims.to_vec(), bytes.into()).unwrap()
    }

    fn cast(name: &str, from: &str, to: DType) -> Node {
        Node::new("Cast", name, &[from], name).with("to", Attribute::Int(to.onnx().into()))
    }

    #[test]
    fn a_cast_half_is_a_float_weight() {
        let nodes = vec![cast("w", "w16", DType::F32), Node::new("MatMul", "m", &["x", "w"], "y")];
        let mut g = graph(&[4], &[("w16", halves(&[4, 2], 0.1))], nodes);
        run(&mut g);
        assert_eq!(ops(&g), ["MatMul"]);
        assert_eq!(g.constants["w"].dtype, DType::F32);
        assert_eq!(g.constants["w"].to_f32(), [f16::from_f32(0.1).to_f32(); 8]);
        assert_eq!(note(&g), None);
    }

    #[test]
    fn a_graph_of_halves_is_a_graph_of_floats() {
        let filled = Node::new("ConstantOfShape", "f", &["s"], "f").with("value", Attribute::Tensor(halves(&[1], 2.0)));
        let nodes = vec![cast("i", "x", DType::F16), filled, Node::new("Add", "a", &["i", "f"], "y")];
        let mut g = graph(&[4], &[("s", Tensor::from_i64(&[1], &[4]))], nodes);
        g.inputs[0].ty.dtype = DType::F16;
        g.outputs[0].ty.dtype = DType::BF16;
        assert!(note(&g).unwrap().ends_with("x, y"));
        run(&mut g);
        assert_eq!((g.inputs[0].ty.dtype, g.outputs[0].ty.dtype), (DType::F32, DType::F32));
        assert_eq!(g.nodes[0].int("to"), Some(1));
        assert_eq!(g.nodes[1].attributes["value"], Attribute::Tensor(halves(&[1], 2.0).as_f32()));
    }
}
