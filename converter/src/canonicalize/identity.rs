//! Identity, Dropout at inference, and Cast to the type that the value has already are removed.

use std::collections::HashMap;

use crate::error::Result;
use crate::graph::{Graph, Links, Node};

pub(super) fn run(graph: &mut Graph) -> Result<()> {
    let links = graph.links();
    let mut same: HashMap<String, String> = HashMap::new();
    let mut rest = Vec::with_capacity(graph.nodes.len());
    for node in std::mem::take(&mut graph.nodes) {
        if is_identity(graph, &links, &node)? && !links.is_output(node.output()) {
            // One without a name has no users.
            if !node.output().is_empty() {
                same.insert(node.output().to_owned(), node.inputs[0].clone());
            }
        } else {
            rest.push(node);
        }
    }
    for input in rest.iter_mut().flat_map(|node| &mut node.inputs) {
        *input = first(&mut same, std::mem::take(input));
    }
    graph.nodes = rest;
    of_outputs(graph)
}

/// The value at the start of the chain that leads to `value`. A chain that closes ends somewhere, and is refused when the
/// graph is sorted.
fn first(same: &mut HashMap<String, String>, mut value: String) -> String {
    let mut passed = Vec::new();
    while let Some(before) = same.get(&value).filter(|&before| *before != value && passed.len() <= same.len()) {
        passed.push(std::mem::replace(&mut value, before.clone()));
    }
    // The next one that comes along here takes one step.
    for one in passed {
        same.insert(one, value.clone());
    }
    value
}

/// The name of an output is a promise: the value itself takes that name.
fn of_outputs(graph: &mut Graph) -> Result<()> {
    let mut i = 0;
    while i < graph.nodes.len() {
        let node = &graph.nodes[i];
        i += 1;
        if !graph.outputs.iter().any(|o| o.name == node.output()) {
            continue;
        }
        let links = graph.links();
        if !is_identity(graph, &links, node)? {
            continue;
        }
        let (from, to) = (node.output().to_owned(), node.inputs[0].clone());
        let Some(producer) = links.producer(&to).filter(|_| !links.is_output(&to)) else { continue };
        i -= 1;
        graph.nodes.remove(i);
        graph.replace_uses(&to, &from);
        let producer = &mut graph.nodes[if producer > i { producer - 1 } else { producer }];
        for output in producer.outputs.iter_mut().filter(|o| **o == to) {
            output.clone_from(&from);
        }
    }
    Ok(())
}

fn is_identity(graph: &Graph, links: &Links, node: &Node) -> Result<bool> {
    if node.is("Identity") {
        return Ok(node.input(0).is_some());
    }
    if node.is("Dropout") {
        let training = graph.constant_input(node, 2);
        if node.input(2).is_some() && training.and_then(|t| t.scalar()) != Some(0.0) {
            return Err(node.unsupported("training_mode is on or not constant; export the model after model.eval()"));
        }
        let mask = node.outputs.get(1).filter(|s| !s.is_empty());
        return Ok(node.input(0).is_some() && mask.is_none_or(|m| links.consumers(m).is_empty() && !links.is_output(m)));
    }
    if node.is("Cast") {
        let from = node.input(0).and_then(|x| graph.dtype(x));
        return Ok(from.is_some_and(|t| node.int("to") == Some(t.onnx().into())));
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, ops, run};
    use super::*;
    use crate::graph::Attribute;
    use crate::tensor::{DType, Tensor};

    #[test]
    fn identities_vanish_and_outputs_keep_their_names() {
        let mut g = graph(
            &[256],
            &[("w", Tensor::from_f32(&[256], &[1.; 256]))],
            vec![
                Node::new("Identity", "a", &["w"], "w2"),
                Node::new("Cast", "c", &["x"], "c").with("to", Attribute::Int(1)),
                Node::new("Add", "b", &["c", "w2"], "h"),
                Node::new("Dropout", "d", &["h"], "y"),
            ],
        );
        run(&mut g, super::run);
        assert_eq!(ops(&g), ["Add"]);
        assert_eq!(g.nodes[0].inputs, ["x", "w"]);
        assert_eq!(g.nodes[0].output(), "y");
    }

    #[test]
    fn chains_vanish_in_any_order_and_those_that_close_end() {
        let identity = |from: &str, to: &str| Node::new("Identity", to, &[from], to);
        let mut g = graph(
            &[4],
            &[],
            vec![Node::new("Relu", "r", &["c"], "y"), identity("b", "c"), identity("a", "b"), identity("x", "a")],
        );
        super::run(&mut g).unwrap();
        assert_eq!((g.nodes.len(), g.nodes[0].inputs[0].as_str()), (1, "x"));
        let mut g =
            graph(&[4], &[], vec![identity("b", "a"), identity("a", "b"), Node::new("Add", "s", &["a", "b"], "y")]);
        super::run(&mut g).unwrap();
        assert!(g.sort().is_err());
    }

    #[test]
    fn dropout_in_training_is_refused() {
        let on = Tensor::new(DType::Bool, vec![], vec![1u8].into()).unwrap();
        let mut g = graph(&[4], &[("on", on)], vec![Node::new("Dropout", "d", &["x", "", "on"], "y")]);
        assert!(super::run(&mut g).unwrap_err().to_string().contains("eval()"));
    }
}
