//! Weights around attention whose errors nothing averages out.

use std::collections::HashSet;

use crate::graph::{Graph, Links, Node};
use crate::points::frozen_weight;

/// The weights of the linears that make the values of attention: each error in them is added up over all tokens.
pub(super) fn values(graph: &Graph) -> HashSet<String> {
    let links = graph.links();
    let mut values = HashSet::new();
    let mut scores = HashSet::new();
    for [probabilities, value] in products(graph, &links) {
        values.extend(weights_behind(graph, &links, value));
        let softmax = back(graph, &links, probabilities, |node| node.is("Softmax"));
        let product = softmax.and_then(|node| back(graph, &links, &node.inputs[0], |node| node.is("MatMul")));
        if let Some(product) = product {
            scores.extend(product.inputs.iter().flat_map(|input| weights_behind(graph, &links, input)));
        }
    }
    // One weight for queries, keys and values is a quarter of a layer: too much to spare.
    values.retain(|weight| !scores.contains(weight));
    values
}

/// The weights of the linears behind the last attention: what follows averages nothing over tokens any more.
pub(super) fn behind_last(graph: &Graph) -> HashSet<String> {
    let links = graph.links();
    let products: Vec<usize> = (0..graph.nodes.len()).filter(|&i| is_product(graph, &links, &graph.nodes[i])).collect();
    let reached = |from: &[usize], next: &dyn Fn(&Node) -> Vec<usize>| {
        let (mut seen, mut open) = (HashSet::new(), from.to_vec());
        while let Some(i) = open.pop() {
            open.extend(next(&graph.nodes[i]).into_iter().filter(|&next| seen.insert(next)));
        }
        seen
    };
    let after =
        reached(&products, &|node| node.outputs.iter().flat_map(|output| links.consumers(output).to_vec()).collect());
    let before = reached(&products, &|node| node.inputs.iter().filter_map(|input| links.producer(input)).collect());
    let last = after.difference(&before).filter_map(|&i| frozen_weight(graph, &links, &graph.nodes[i]));
    last.map(|(weight, _)| weight.to_owned()).collect()
}

/// The two inputs of each product of probabilities and values.
fn products<'a>(graph: &'a Graph, links: &Links) -> Vec<[&'a str; 2]> {
    let products = graph.nodes.iter().filter(|node| is_product(graph, links, node));
    products.map(|node| [node.inputs[0].as_str(), node.inputs[1].as_str()]).collect()
}

fn is_product(graph: &Graph, links: &Links, node: &Node) -> bool {
    let [probabilities, _] = node.inputs.as_slice() else { return false };
    node.is("MatMul")
        && frozen_weight(graph, links, node).is_none()
        && back(graph, links, probabilities, |node| node.is("Softmax")).is_some()
}

/// What passes a value on element by element, or moves it.
const PASSED: &[&str] = &[
    "Add",
    "Cast",
    "Concat",
    "Div",
    "Expand",
    "Gather",
    "Identity",
    "Mul",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Sub",
    "Transpose",
    "Unsqueeze",
    "Where",
];

/// The nearest node behind `value` that `is` it, through what passes values on.
fn back<'a>(graph: &'a Graph, links: &Links, value: &str, is: impl Fn(&Node) -> bool) -> Option<&'a Node> {
    let (mut seen, mut open) = (HashSet::new(), vec![value.to_owned()]);
    while let Some(value) = open.pop() {
        let Some(node) = links.producer(&value).map(|i| &graph.nodes[i]).filter(|_| seen.insert(value)) else {
            continue;
        };
        if is(node) {
            return Some(node);
        }
        if PASSED.contains(&node.op_type.as_str()) {
            open.extend(node.inputs.iter().cloned());
        }
    }
    None
}

/// The weights of the nearest linears behind `value`.
fn weights_behind(graph: &Graph, links: &Links, value: &str) -> Vec<String> {
    let (mut seen, mut open, mut weights) = (HashSet::new(), vec![value.to_owned()], Vec::new());
    while let Some(value) = open.pop() {
        let Some(node) = links.producer(&value).map(|i| &graph.nodes[i]).filter(|_| seen.insert(value)) else {
            continue;
        };
        if let Some((weight, _)) = frozen_weight(graph, links, node) {
            weights.push(weight.to_owned());
        } else if PASSED.contains(&node.op_type.as_str()) {
            open.extend(node.inputs.iter().cloned());
        }
    }
    weights
}
