//! Identity, Dropout at inference, and Cast to the type that the value has already are removed.

use crate::error::Result;
use crate::graph::{Graph, Node};

pub(super) fn run(graph: &mut Graph) -> Result<()> {
    let mut i = 0;
    while i < graph.nodes.len() {
        if !is_identity(graph, &graph.nodes[i])? {
            i += 1;
            continue;
        }
        let node = &graph.nodes[i];
        let (from, to) = (node.output().to_owned(), node.inputs[0].clone());
        let links = graph.links();
        if !links.is_output(&from) {
            graph.nodes.remove(i);
            graph.replace_uses(&from, &to);
        } else if let Some(producer) = links.producer(&to).filter(|_| !links.is_output(&to)) {
            // The output's name is a promise, so the value itself takes that name.
            graph.nodes.remove(i);
            graph.replace_uses(&to, &from);
            for output in graph.nodes[producer].outputs.iter_mut().filter(|o| **o == to) {
                output.clone_from(&from);
            }
        } else {
            i += 1;
        }
    }
    Ok(())
}

fn is_identity(graph: &Graph, node: &Node) -> Result<bool> {
    if node.is("Identity") {
        return Ok(node.input(0).is_some());
    }
    if node.is("Dropout") {
        let training = graph.constant_input(node, 2);
        if node.input(2).is_some() && training.and_then(|t| t.scalar()) != Some(0.0) {
            return Err(node.unsupported("training_mode is on or not constant; export the model after model.eval()"));
        }
        let mask = node.outputs.get(1).filter(|s| !s.is_empty());
        let links = graph.links();
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
    fn dropout_in_training_is_refused() {
        let on = Tensor::new(DType::Bool, vec![], vec![1u8].into()).unwrap();
        let mut g = graph(&[4], &[("on", on)], vec![Node::new("Dropout", "d", &["x", "", "on"], "y")]);
        assert!(super::run(&mut g).unwrap_err().to_string().contains("eval()"));
    }
}
