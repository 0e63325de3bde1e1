//! Packed weights in the graph.

use inlay_format::quant::{Layout, ZeroPoints};

use super::{Storage, scale_name, turned, zero_point_name};
use crate::graph::{Attribute, Graph, Node};
use crate::points::frozen_weight;

/// Lets every user of the constant `name` read what `storage` says of it.
pub(super) fn spell(graph: &mut Graph, name: &str, storage: &Storage) {
    match storage.scheme.name() {
        _ if storage.form.block > 0 => blocks(graph, name, storage),
        "f16" => {
            const FLOAT: i64 = 1;
            before(graph, name, |float| Node::new("Cast", float, &[name], float).with("to", Attribute::Int(FLOAT)));
        }
        scheme => before(graph, name, |float| {
            let mut inputs = vec![name.to_owned(), scale_name(name)];
            inputs.extend((scheme == "uint8").then(|| zero_point_name(name)));
            let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
            Node::new("DequantizeLinear", float, &inputs, float).with("axis", Attribute::Int(storage.layout.axis()))
        }),
    }
}

/// Puts the node that makes the floats of `name` before all of its users.
fn before(graph: &mut Graph, name: &str, node: impl Fn(&str) -> Node) {
    let float = format!("{name}.dequantized");
    graph.replace_uses(name, &float);
    graph.nodes.insert(0, node(&float));
}

/// The users of a weight in blocks: MatMul, Gemm, and MatMul with a Transpose of it. The constant is stored as [N, K].
fn blocks(graph: &mut Graph, name: &str, storage: &Storage) {
    let links = graph.links();
    let axis = |node| frozen_weight(graph, &links, node).and_then(|(weight, axis)| (weight == name).then_some(axis));
    let users: Vec<(usize, usize)> =
        graph.nodes.iter().enumerate().filter_map(|(i, node)| Some((i, axis(node)?))).collect();
    let tensor = &graph.constants[name];
    if users.iter().any(|(_, axis)| *axis == 1) {
        // All users agree on the axis.
        let tensor = turned(tensor);
        graph.constants.insert(name.to_owned(), tensor);
    }
    let [n, k] = <[usize; 2]>::try_from(graph.constants[name].dims()).expect("linear weights are matrices");
    debug_assert_eq!(storage.layout, Layout::NK);
    let int = |n: usize| Attribute::Int(n as i64);
    if storage.qdq {
        let float = format!("{name}.dequantized");
        let turned = format!("{float}.transposed");
        for &(i, _) in &users {
            let node = &mut graph.nodes[i];
            if node.is("Gemm") {
                node.inputs[1].clone_from(&float);
                node.attributes.insert("transB".into(), Attribute::Int(1));
            } else {
                node.inputs[1].clone_from(&turned);
            }
        }
        for node in graph.nodes.iter_mut().filter(|node| node.is("Gather") && node.input(0) == Some(name)) {
            node.inputs[0].clone_from(&float);
        }
        if graph.nodes.iter().any(|node| node.inputs.contains(&turned)) {
            let perm = Attribute::Ints(vec![1, 0]);
            graph.nodes.insert(0, Node::new("Transpose", &turned, &[&float], &turned).with("perm", perm));
        }
        let inputs = [name, &scale_name(name), &zero_point_name(name)];
        let node = Node::new("DequantizeLinear", &float, &inputs, &float)
            .with("axis", Attribute::Int(1))
            .with("block_size", int(storage.form.block));
        graph.nodes.insert(0, node);
    } else {
        n_bits(graph, name, storage, [k, n], users.into_iter().map(|(i, _)| i));
    }
    // The users read another value now.
    graph.nodes.retain(|node| !(node.is("Transpose") && node.input(0) == Some(name)));
}

/// The nodes `users` become MatMulNBits.
fn n_bits(graph: &mut Graph, name: &str, storage: &Storage, [k, n]: [usize; 2], users: impl Iterator<Item = usize>) {
    let int = |n: usize| Attribute::Int(n as i64);
    for i in users {
        let node = &mut graph.nodes[i];
        let bias = node.inputs.get(2).filter(|c| !c.is_empty()).cloned();
        node.inputs.truncate(1);
        node.inputs.extend([name.to_owned(), scale_name(name)]);
        if storage.form.zero_points != ZeroPoints::None {
            node.inputs.push(zero_point_name(name));
        }
        if let Some(bias) = bias {
            node.inputs.resize(5, String::new());
            node.inputs.push(bias);
        }
        node.op_type = "MatMulNBits".into();
        node.domain = "com.microsoft".into();
        node.attributes = [
            ("K", int(k)),
            ("N", int(n)),
            ("bits", int(4)),
            ("block_size", int(storage.form.block)),
            // Activations stay f32.
            ("accuracy_level", int(1)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
    }
}
