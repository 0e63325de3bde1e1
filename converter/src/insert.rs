//! Stage 4: LoRA branches as standard ONNX.
//!
//! Linear: `y = base(x) + (x A) B`. Conv: `y = base(x) + conv(conv(x, A), B)`. `A` and `B` are optional graph inputs
//! whose default has rank 0, so that the branch adds nothing until it is fed.

use inlay_format::points::{LORA, LoraName, Point, PointOp, RankName, check_all};

use crate::error::{Error, Result};
use crate::graph::{Dim, Graph, Node, Port, ValueType};
use crate::points::Candidate;
use crate::tensor::{DType, Tensor};

/// Inserts a LoRA branch at every one of `chosen`, and returns the points as the exported file lists them.
///
/// # Errors
/// If a point's name or size is beyond what devices accept.
pub fn insert(graph: &mut Graph, chosen: &[Candidate]) -> Result<Vec<Point<String>>> {
    let mut points = Vec::with_capacity(chosen.len());
    for candidate in chosen {
        points.push(point(graph, candidate)?);
    }
    check_all(&points).map_err(|(i, e)| invalid(&chosen[i], &e.to_string()))?;
    for (point, candidate) in points.iter().zip(chosen) {
        branch(graph, point);
        if let (Some(name), Some(scale)) = (&point.row_scale, graph.row_scales.get(&candidate.node)) {
            graph.constants.insert(name.clone(), Tensor::from_f32(&[scale.len()], scale));
        }
    }
    Ok(points)
}

fn invalid(candidate: &Candidate, detail: &str) -> Error {
    Error::Invalid(format!("point {:?} (node {:?}): {detail}", candidate.path, candidate.node))
}

fn point(graph: &Graph, candidate: &Candidate) -> Result<Point<String>> {
    let size = |n: usize| u32::try_from(n).map_err(|_| invalid(candidate, "a size is beyond 32 bits"));
    let mut point = Point {
        path: candidate.path.clone(),
        op: candidate.op,
        node: candidate.node.clone(),
        weight: candidate.weight.clone(),
        d_in: size(candidate.d_in)?,
        d_out: size(candidate.d_out)?,
        kernel: Default::default(),
        kinds: Default::default(),
        row_scale: graph.row_scales.contains_key(&candidate.node).then(|| format!("{}.row_scale", candidate.path)),
    };
    for &k in &candidate.kernel {
        point.kernel.push(size(k)?).map_err(|_| invalid(candidate, "the kernel has too many dimensions"))?;
    }
    point.kinds.push(LORA.to_owned()).expect("one kind fits");
    Ok(point)
}

fn branch(graph: &mut Graph, point: &Point<String>) {
    let (a, b) = (LoraName::a(&point.path).to_string(), LoraName::b(&point.path).to_string());
    let rank_axis = usize::from(point.op == PointOp::Linear);
    add_parameter(graph, &a, &point.lora_a_shape(0), rank_axis, &point.path);
    add_parameter(graph, &b, &point.lora_b_shape(0), 1 - rank_axis, &point.path);
    let i = graph.nodes.iter().position(|n| n.name == point.node).expect("candidates are nodes of this graph");
    let [base, down, up] = ["base", "lora_down", "lora_up"].map(|s| graph.fresh_name(&format!("{}.{s}", point.path)));
    let output = std::mem::replace(&mut graph.nodes[i].outputs[0], base.clone());
    let node = &graph.nodes[i];
    let op_type = if point.op == PointOp::Linear { "MatMul" } else { "Conv" };
    let mut first = Node::new(op_type, &down, &[&node.inputs[0], &a], &down);
    if point.op == PointOp::Conv {
        first.attributes.clone_from(&node.attributes);
    }
    let second = Node::new(op_type, &up, &[&down, &b], &up);
    let add = Node::new("Add", &format!("{}.lora_add", point.path), &[&base, &up], &output);
    graph.nodes.splice(i + 1..i + 1, [first, second, add]);
}

fn add_parameter(graph: &mut Graph, name: &str, shape: &[usize], rank_axis: usize, path: &str) {
    let mut dims: Vec<Dim> = shape.iter().map(|&d| Dim::Known(d)).collect();
    dims[rank_axis] = Dim::Symbol(RankName(path).to_string());
    graph.inputs.push(Port { name: name.to_owned(), ty: ValueType { dtype: DType::F32, dims: Some(dims) } });
    graph.constants.insert(name.to_owned(), Tensor::from_f32(shape, &[]));
}
