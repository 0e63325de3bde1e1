use inlay_format::points::{LoraName, Point, PointOp};

use super::node;
use crate::graph::{Graph, Node};

/// Linear: `y = base(x) + (x A) B`. Conv: `y = base(x) + conv(conv(x, A), B)`. Lookup: `y = base(ids) + A[ids] B`.
pub(super) fn insert(graph: &mut Graph, point: &Point<String>) {
    let (a, b) = (LoraName::a(&point.path).to_string(), LoraName::b(&point.path).to_string());
    let i = node(graph, point);
    let [base, down, up] = ["base", "lora_down", "lora_up"].map(|s| graph.fresh_name(&format!("{}.{s}", point.path)));
    let output = std::mem::replace(&mut graph.nodes[i].outputs[0], base.clone());
    let node = &graph.nodes[i];
    let op_type = if point.op == PointOp::Conv { "Conv" } else { "MatMul" };
    let mut first = Node::new(op_type, &down, &[&node.inputs[0], &a], &down);
    match point.op {
        PointOp::Linear => {}
        PointOp::Conv => first.attributes.clone_from(&node.attributes),
        PointOp::Embedding => first = Node::new("Gather", &down, &[&a, &node.inputs[1]], &down),
    }
    let second = Node::new(op_type, &up, &[&down, &b], &up);
    let add = Node::new("Add", &format!("{}.lora_add", point.path), &[&base, &up], &output);
    graph.nodes.splice(i + 1..i + 1, [first, second, add]);
}
