//! Numbers of a file that size loops and allocations, checked before anything follows them.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::graph::{Attribute, Dim, Graph, Node};

/// Most dimensions of a value.
const MAX_RANK: i64 = 16;
/// Largest extent of a kernel, stride, dilation or padding, and most groups or parts.
const MAX_EXTENT: i64 = 1 << 16;
/// Most elements of a value that a constant shape asks for, and of all that the graph makes of constants.
pub const MAX_ELEMENTS: i64 = 1 << 28;

/// Most nodes of a graph, before and after functions are inlined.
pub const MAX_NODES: usize = 200_000;
/// Most constants of a graph.
pub const MAX_CONSTANTS: usize = 200_000;
/// Most inputs, and most outputs, of a graph or of a node.
pub const MAX_PORTS: usize = 10_000;
/// Most nodes one after another on a way from an input to an output.
pub const MAX_DEPTH: usize = 100_000;
/// Most memory that inlined functions take (bytes): calls repeat their body.
pub const MAX_INLINED_BYTES: usize = 256 << 20;
/// How many times over the bytes of the files may serve as initializers: those of external data may overlap.
pub const MAX_OVERLAP: u64 = 8;
/// Most graphs inside each other.
pub const MAX_NESTED: usize = 8;
/// Most files of external data.
pub const MAX_FILES: usize = 1024;

/// # Errors
/// If the graph is larger than any model of the sizes that the converter is for.
pub fn check_size(graph: &Graph) -> Result<()> {
    let widest = graph.nodes.iter().map(|n| n.inputs.len().max(n.outputs.len())).max().unwrap_or(0);
    for (what, found, most) in [
        ("nodes", graph.nodes.len(), MAX_NODES),
        ("constants", graph.constants.len(), MAX_CONSTANTS),
        ("inputs", graph.inputs.len(), MAX_PORTS),
        ("outputs", graph.outputs.len(), MAX_PORTS),
        ("inputs or outputs at one node", widest, MAX_PORTS),
        ("nodes one after another", depth(graph), MAX_DEPTH),
    ] {
        if found > most {
            return Err(Error::Invalid(format!(
                "the graph has {found} {what}, more than the {most} that are supported"
            )));
        }
    }
    Ok(())
}

/// Nodes on the longest way through a sorted graph.
fn depth(graph: &Graph) -> usize {
    let mut depths: HashMap<&str, usize> = HashMap::new();
    for node in &graph.nodes {
        let before = node.inputs.iter().filter_map(|i| depths.get(i.as_str())).max().copied().unwrap_or(0);
        depths.extend(node.outputs.iter().map(|o| (o.as_str(), before + 1)));
    }
    depths.into_values().max().unwrap_or(0)
}

/// # Errors
/// If an attribute, a constant shape or an input's shape is beyond what any model needs.
pub fn check(graph: &Graph) -> Result<()> {
    for port in &graph.inputs {
        let known = port.ty.dims.iter().flatten().filter_map(|d| match d {
            Dim::Known(n) => Some(i64::try_from(*n).unwrap_or(i64::MAX)),
            _ => None,
        });
        if port.ty.dims.as_ref().is_some_and(|d| d.len() as i64 > MAX_RANK) || product(known) > MAX_ELEMENTS {
            return Err(Error::Invalid(format!("graph input {:?} is too large: {:?}", port.name, port.ty.dims)));
        }
    }
    for (name, tensor) in &graph.constants {
        if tensor.dims().len() as i64 > MAX_RANK {
            return Err(Error::Invalid(format!(
                "constant {name:?} has {} dimensions, at most {MAX_RANK} are supported",
                tensor.dims().len()
            )));
        }
    }
    let mut made = 0i64;
    for node in &graph.nodes {
        for (name, value) in &node.attributes {
            let values = match value {
                Attribute::Int(i) => std::slice::from_ref(i),
                Attribute::Ints(i) => i,
                _ => continue,
            };
            let Some(range) = range(name) else { continue };
            if let Some(bad) = values.iter().find(|v| !range.contains(v)) {
                return Err(node.unsupported(format!("attribute {name:?} is {bad}, expected {range:?}")));
            }
        }
        let elements = asked_elements(graph, node);
        if !node.is("Reshape") {
            made = made.saturating_add(elements);
        }
        if elements.max(made) > MAX_ELEMENTS {
            return Err(node.unsupported("its constant inputs ask for too many elements"));
        }
    }
    Ok(())
}

fn range(attribute: &str) -> Option<std::ops::RangeInclusive<i64>> {
    Some(match attribute {
        "axis" | "axes" | "batch_dims" | "perm" => -MAX_RANK..=MAX_RANK,
        "num_heads" | "q_num_heads" | "kv_num_heads" | "rotary_embedding_dim" => 0..=MAX_EXTENT,
        "kernel_shape" | "strides" | "dilations" | "group" | "num_outputs" => 1..=MAX_EXTENT,
        "output_shape" => 1..=MAX_EXTENT,
        "pads" | "output_padding" => 0..=MAX_EXTENT,
        _ => return None,
    })
}

/// How many elements the constants of a node make its output have.
fn asked_elements(graph: &Graph, node: &Node) -> i64 {
    let ints = |index: usize| graph.constant_ints(node, index);
    let shape = match node.op_type.as_str() {
        "ConstantOfShape" => ints(0),
        "Expand" | "Reshape" => ints(1),
        "Resize" => ints(3),
        "Range" => match (ints(0).as_deref(), ints(1).as_deref(), ints(2).as_deref()) {
            (Some([start]), Some([limit]), Some([delta])) if *delta != 0 => {
                Some(vec![limit.saturating_sub(*start).saturating_div(*delta)])
            }
            _ => None,
        },
        _ => None,
    };
    product(shape.into_iter().flatten().filter(|&d| d > 0))
}

fn product(dims: impl Iterator<Item = i64>) -> i64 {
    dims.fold(1, |n: i64, d| n.saturating_mul(d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn refused(node: Node) -> bool {
        let mut graph = Graph { nodes: vec![node], ..Graph::default() };
        graph.constants.insert("huge".into(), Tensor::from_i64(&[2], &[1 << 40, 1 << 40]));
        graph.constants.insert("zero".into(), Tensor::from_i64(&[], &[0]));
        graph.constants.insert("one".into(), Tensor::from_i64(&[], &[1]));
        graph.constants.insert("far".into(), Tensor::from_i64(&[], &[i64::MAX]));
        check(&graph).is_err()
    }

    #[test]
    fn sizes_beyond_the_limits_are_named() {
        let nodes = |count: usize| (0..count).map(|i| Node::new("Relu", &i.to_string(), &["x"], &i.to_string()));
        let refused = |graph: &Graph| check_size(graph).unwrap_err().to_string();
        assert!(check_size(&Graph { nodes: nodes(3).collect(), ..Graph::default() }).is_ok());
        let many = Graph { nodes: nodes(MAX_NODES + 1).collect(), ..Graph::default() };
        assert!(refused(&many).contains("200001 nodes,"), "{}", refused(&many));
        let chain = nodes(MAX_DEPTH + 1).enumerate().map(|(i, node)| match i {
            0 => node,
            i => Node { inputs: vec![(i - 1).to_string()], ..node },
        });
        let deep = Graph { nodes: chain.collect(), ..Graph::default() };
        assert!(refused(&deep).contains("one after another"), "{}", refused(&deep));
        let mut wide = Node::new("Concat", "c", &[], "y");
        wide.inputs = vec!["x".into(); MAX_PORTS + 1];
        assert!(refused(&Graph { nodes: vec![wide], ..Graph::default() }).contains("at one node"));
    }

    #[test]
    fn what_no_model_needs_is_refused() {
        let ints = |name: &str, v: &[i64]| Node::new("Conv", "n", &["x"], "y").with(name, Attribute::Ints(v.to_vec()));
        assert!(refused(Node::new("Softmax", "n", &["x"], "y").with("axis", Attribute::Int(-68_719_476_737))));
        assert!(refused(ints("kernel_shape", &[3, 1 << 40])));
        assert!(refused(ints("strides", &[0])));
        assert!(refused(Node::new("Expand", "n", &["x", "huge"], "y")));
        assert!(refused(Node::new("Range", "n", &["zero", "far", "one"], "y")));
        assert!(!refused(Node::new("Range", "n", &["zero", "one", "one"], "y")));
        // Each is allowed, all together are not.
        let node = |i: usize| Node::new("ConstantOfShape", &i.to_string(), &["large"], &i.to_string());
        let with = |count| {
            let mut graph = Graph { nodes: (0..count).map(node).collect(), ..Graph::default() };
            graph.constants.insert("large".into(), Tensor::from_i64(&[1], &[1 << 25]));
            graph
        };
        assert!(check(&with(8)).is_ok() && check(&with(9)).is_err());
        assert!(!refused(ints("pads", &[0, 1])));
    }
}
