//! The shape of a transformer: where a linear ends a sub-layer, and what comes right after its bias.

use crate::graph::{Graph, Links, Node};
use crate::points::frozen_weight;

/// A part of a transformer's layer whose result is added to what went into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubLayer {
    /// Attention and its output projection.
    Attention,
    /// The network of linears with a nonlinearity between them.
    FeedForward,
}

/// Nonlinearities of feed-forward networks. Canonical graphs have Gelu in one node.
const NONLINEARITIES: [&str; 6] = ["Gelu", "Relu", "LeakyRelu", "Tanh", "Sigmoid", "HardSigmoid"];
/// Nodes that only move numbers, on the way back from a linear.
const MOVES: [&str; 5] = ["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"];

/// The sub-layer that the linear `node` ends, if it ends one: its result, bias included, is used only by an addition to
/// another computed value.
pub fn sub_layer(graph: &Graph, links: &Links, node: &str) -> Option<SubLayer> {
    let node = graph.nodes.iter().find(|n| n.name == node)?;
    let result = with_bias(graph, links, node);
    let add = &graph.nodes[links.only_consumer(&result)?];
    let residual = add.inputs.iter().find(|i| **i != result)?;
    if !add.is("Add") || graph.constants.contains_key(residual) {
        return None;
    }
    let mut value = node.input(0)?;
    loop {
        let maker = &graph.nodes[links.producer(value)?];
        value = match maker.op_type.as_str() {
            op if NONLINEARITIES.contains(&op) => return Some(SubLayer::FeedForward),
            op if MOVES.contains(&op) => maker.input(0)?,
            "MatMul" if frozen_weight(graph, links, maker).is_none() => return Some(SubLayer::Attention),
            "Mul" => match computed(graph, maker)[..] {
                [one] => one,
                // The product of a gate and a value.
                _ => return Some(SubLayer::FeedForward),
            },
            "Add" | "Sub" | "Div" => match computed(graph, maker)[..] {
                [one] => one,
                _ => return None,
            },
            _ => return None,
        };
    }
}

fn computed<'a>(graph: &Graph, node: &'a Node) -> Vec<&'a str> {
    node.inputs.iter().map(String::as_str).filter(|i| !graph.constants.contains_key(*i)).collect()
}

/// What the linear `node` computes with its bias: its output, or that of the Add of a constant after it.
pub fn with_bias(graph: &Graph, links: &Links, node: &Node) -> String {
    let output = node.output();
    let bias = |i: usize| {
        let add = &graph.nodes[i];
        let other = add.inputs.iter().find(|i| *i != output)?;
        (add.is("Add") && graph.constants.contains_key(other)).then(|| add.output().to_owned())
    };
    links.only_consumer(output).and_then(bias).unwrap_or_else(|| output.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Port, ValueType};
    use crate::tensor::{DType, Tensor};

    /// Attention and a feed-forward network, each added to what went in.
    fn layer() -> Graph {
        let port = |name: &str| Port { name: name.into(), ty: ValueType { dtype: DType::F32, dims: None } };
        let mut g = Graph {
            inputs: vec![port("x")],
            outputs: vec![port("y")],
            nodes: vec![
                Node::new("MatMul", "value", &["x", "w"], "v0"),
                Node::new("Add", "value_bias", &["b", "v0"], "v"),
                Node::new("MatMul", "mix", &["x", "v"], "m"),
                Node::new("Transpose", "t", &["m"], "mt"),
                Node::new("MatMul", "out", &["mt", "w"], "o0"),
                Node::new("Add", "out_bias", &["o0", "b"], "o"),
                Node::new("Add", "first", &["o", "x"], "h"),
                Node::new("MatMul", "up", &["h", "w"], "u0"),
                Node::new("Gelu", "act", &["u0"], "u"),
                Node::new("MatMul", "down", &["u", "w"], "d"),
                Node::new("Add", "second", &["h", "d"], "y"),
            ],
            ..Graph::default()
        };
        g.constants.insert("w".into(), Tensor::from_f32(&[4, 4], &[0.0; 16]));
        g.constants.insert("b".into(), Tensor::from_f32(&[4], &[0.0; 4]));
        g
    }

    #[test]
    fn linears_that_end_a_sub_layer() {
        let g = layer();
        let links = g.links();
        let place = |node| sub_layer(&g, &links, node);
        assert_eq!(place("out"), Some(SubLayer::Attention));
        assert_eq!(place("down"), Some(SubLayer::FeedForward));
        assert_eq!((place("value"), place("up")), (None, None));
        assert_eq!(with_bias(&g, &links, &g.nodes[0]), "v");
        assert_eq!(with_bias(&g, &links, &g.nodes[9]), "d");
    }
}
