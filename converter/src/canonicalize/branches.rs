//! `If` whose condition is constant, or follows from constants and known shapes, becomes the branch that is taken.

use std::collections::HashSet;

use super::functions::heap_bytes;
use crate::bounds::{self, MAX_INLINED_BYTES, check_size};
use crate::error::{Error, Result};
use crate::graph::{Attribute, Graph, Node, Port, ValueType};
use crate::tensor::DType;
use crate::{folding, types};

/// Most nodes of the kind in a graph.
const MAX_BRANCHES: usize = 1024;

/// Whether any was replaced.
pub(super) fn run(graph: &mut Graph, opset: i64) -> Result<bool> {
    if graph.nodes.iter().filter(|node| node.is("If")).count() > MAX_BRANCHES {
        return Err(Error::Invalid(format!("the graph has more than the {MAX_BRANCHES} If that are supported")));
    }
    let mut bytes = 0;
    let conditions: Vec<(usize, bool)> = (0..graph.nodes.len())
        .filter(|&i| graph.nodes[i].is("If"))
        .filter_map(|i| Some((i, condition(graph, graph.nodes[i].input(0)?, opset)?)))
        .collect();
    // From the last one, so that indices stay.
    for &(i, holds) in conditions.iter().rev() {
        inline(graph, i, holds, opset, &mut bytes)?;
    }
    if !conditions.is_empty() {
        graph.sort()?;
        graph.sweep();
        check_size(graph)?;
    }
    Ok(!conditions.is_empty())
}

/// The value of a condition, if it is known.
fn condition(graph: &Graph, name: &str, opset: i64) -> Option<bool> {
    let known = |graph: &Graph| graph.constants.get(name)?.to_i64()?.first().map(|&c| c != 0);
    if let Some(holds) = known(graph) {
        return Some(holds);
    }
    // Only what the condition follows from.
    let ty = ValueType { dtype: DType::Bool, dims: None };
    let result = graph.fresh_name("condition");
    let mut cone = Graph { outputs: vec![Port { name: result.clone(), ty }], ..graph.clone() };
    cone.nodes.push(Node { opset, ..Node::new("Not", &result, &[name], &result) });
    cone.sweep();
    let used: HashSet<&String> = cone.nodes.iter().flat_map(|n| &n.inputs).collect();
    cone.inputs = graph.inputs.iter().filter(|port| used.contains(&port.name)).cloned().collect();
    if cone.nodes.iter().any(|node| node.is("If")) {
        return None;
    }
    cone.sort().ok()?;
    bounds::check(&cone).and_then(|()| folding::check(&cone)).ok()?;
    types::infer(&mut cone, opset).ok()?;
    known(&cone)
}

/// The node at `i` becomes one of its branches, whose values get its name before theirs.
fn inline(graph: &mut Graph, i: usize, holds: bool, opset: i64, bytes: &mut usize) -> Result<()> {
    let node = graph.nodes[i].clone();
    let name = if holds { "then_branch" } else { "else_branch" };
    let Some(Attribute::Graph(branch)) = node.attributes.get(name) else {
        return Err(node.unsupported(format!("it has no {name}")));
    };
    if branch.outputs.len() < node.outputs.len() {
        return Err(node.unsupported("its branch has fewer outputs than it has"));
    }
    let made = branch.nodes.iter().flat_map(|n| &n.outputs).chain(branch.constants.keys());
    let own: HashSet<&str> = made.map(String::as_str).filter(|name| !name.is_empty()).collect();
    let rename =
        |value: &String| if own.contains(value.as_str()) { format!("{}/{value}", node.name) } else { value.clone() };
    let mut nodes = Vec::with_capacity(branch.nodes.len() + node.outputs.len());
    for inner in &branch.nodes {
        let mut inner = inner.clone();
        inner.name = format!("{}/{}", node.name, inner.name);
        inner.inputs = inner.inputs.iter().map(rename).collect();
        inner.outputs = inner.outputs.iter().map(rename).collect();
        inner.scope = inner.scope.or_else(|| node.scope.clone());
        if inner.attributes.values().any(|a| matches!(a, Attribute::Graph(_))) {
            return Err(inner.unsupported("a branch inside a branch is not supported; export the model without it"));
        }
        *bytes += heap_bytes(&inner);
        if *bytes > MAX_INLINED_BYTES {
            return Err(Error::Invalid(format!("branches inlined take more than {MAX_INLINED_BYTES} bytes")));
        }
        nodes.push(inner);
    }
    for (output, from) in node.outputs.iter().zip(&branch.outputs).filter(|(output, _)| !output.is_empty()) {
        nodes.push(Node { opset, ..Node::new("Identity", output, &[&rename(&from.name)], output) });
    }
    for (constant, tensor) in &branch.constants {
        graph.constants.insert(rename(constant), tensor.clone());
    }
    graph.nodes.splice(i..=i, nodes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, ops, scalar};
    use super::*;
    use crate::tensor::Tensor;

    fn branch(op: &str) -> Attribute {
        let ty = ValueType { dtype: DType::F32, dims: None };
        Attribute::Graph(std::sync::Arc::new(Graph {
            nodes: vec![Node::new(op, "inner", &["x", "c"], "h")],
            outputs: vec![Port { name: "h".into(), ty }],
            constants: [("c".to_owned(), scalar(2.0))].into(),
            ..Graph::default()
        }))
    }

    fn conditional(condition: Vec<Node>, constants: &[(&str, Tensor)]) -> Graph {
        let node = Node::new("If", "if", &["cond"], "y").with("then_branch", branch("Mul"));
        let nodes = condition.into_iter().chain([node.with("else_branch", branch("Add"))]).collect();
        graph(&[4], constants, nodes)
    }

    #[test]
    fn the_branch_that_is_taken_stays() {
        for (holds, op) in [(1u8, "Mul"), (0, "Add")] {
            let cond = Tensor::new(DType::Bool, vec![], vec![holds].into()).unwrap();
            let mut g = conditional(Vec::new(), &[("cond", cond)]);
            assert!(run(&mut g, 21).unwrap());
            assert_eq!(ops(&g), [op, "Identity"]);
            assert_eq!(g.nodes[0].inputs, ["x", "if/c"]);
        }
    }

    #[test]
    fn known_shapes_decide_and_data_does_not() {
        let of_shape = vec![
            Node::new("Shape", "s", &["x"], "s").with("start", Attribute::Int(1)),
            Node::new("Equal", "e", &["s", "four"], "cond"),
        ];
        let mut g = conditional(of_shape, &[("four", Tensor::from_i64(&[1], &[4]))]);
        assert!(run(&mut g, 21).unwrap());
        assert_eq!(ops(&g), ["Mul", "Identity"]);
        let of_data = vec![Node::new("ReduceMax", "m", &["x"], "m"), Node::new("Greater", "e", &["m", "zero"], "cond")];
        let mut g = conditional(of_data, &[("zero", scalar(0.0))]);
        assert!(!run(&mut g, 21).unwrap());
    }
}
