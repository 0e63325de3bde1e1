//! Numbers of a file that size loops and allocations, checked before anything follows them.

use crate::error::{Error, Result};
use crate::graph::{Attribute, Dim, Graph, Node};

/// Most dimensions of a value.
const MAX_RANK: i64 = 16;
/// Largest extent of a kernel, stride, dilation or padding, and most groups or parts.
const MAX_EXTENT: i64 = 1 << 16;
/// Most elements of a value that a constant shape asks for.
const MAX_ELEMENTS: i64 = 1 << 28;

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
        if asked_elements(graph, node) > MAX_ELEMENTS {
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
        "pads" => 0..=MAX_EXTENT,
        _ => return None,
    })
}

/// How many elements the constants of a node make its output have.
fn asked_elements(graph: &Graph, node: &Node) -> i64 {
    let ints = |index: usize| graph.constant_ints(node, index);
    let shape = match node.op_type.as_str() {
        "ConstantOfShape" => ints(0),
        "Expand" | "Reshape" => ints(1),
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
    fn what_no_model_needs_is_refused() {
        let ints = |name: &str, v: &[i64]| Node::new("Conv", "n", &["x"], "y").with(name, Attribute::Ints(v.to_vec()));
        assert!(refused(Node::new("Softmax", "n", &["x"], "y").with("axis", Attribute::Int(-68_719_476_737))));
        assert!(refused(ints("kernel_shape", &[3, 1 << 40])));
        assert!(refused(ints("strides", &[0])));
        assert!(refused(Node::new("Expand", "n", &["x", "huge"], "y")));
        assert!(refused(Node::new("Range", "n", &["zero", "far", "one"], "y")));
        assert!(!refused(Node::new("Range", "n", &["zero", "one", "one"], "y")));
        assert!(!refused(ints("pads", &[0, 1])));
    }
}
