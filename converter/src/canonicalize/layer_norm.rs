//! `(x - mean) / sqrt(var + epsilon) * scale + bias`, written as primitives, becomes LayerNormalization.

use super::replacement;
use crate::error::Result;
use crate::graph::{Attribute, Dim, Graph, Links, Node};
use crate::tensor::Tensor;

pub(super) fn run(graph: &mut Graph) -> Result<()> {
    let mut links = graph.links();
    for i in 0..graph.nodes.len() {
        if let Some(found) = find(graph, &links, i) {
            fuse(graph, found);
            links = graph.links();
        }
    }
    Ok(())
}

struct Found {
    /// Makes the last value of the cluster.
    root: usize,
    x: String,
    scale: Option<String>,
    bias: Option<String>,
    /// How many trailing dimensions are normalized.
    trailing: usize,
    epsilon: f32,
}

fn find(graph: &Graph, links: &Links, i: usize) -> Option<Found> {
    let node = &graph.nodes[i];
    let make = |value: &str| links.producer(value).map(|p| &graph.nodes[p]);
    let (centred, root) = match (node.op_type.as_str(), node.inputs.as_slice()) {
        ("Div", [d, s]) => (d, make(s)?),
        ("Mul", [a, b]) => {
            let reciprocal = |v: &str| make(v).filter(|n| n.is("Reciprocal")).and_then(|n| make(n.input(0)?));
            match (reciprocal(a), reciprocal(b)) {
                (_, Some(s)) => (a, s),
                (Some(s), _) => (b, s),
                _ => return None,
            }
        }
        _ => return None,
    };
    let sum = root.is("Sqrt").then(|| make(root.input(0)?)).flatten().filter(|n| n.is("Add"))?;
    let scalar = |v: &str| graph.constants.get(v).and_then(Tensor::scalar);
    let (variance, epsilon) = match sum.inputs.as_slice() {
        [a, b] => scalar(b).map(|e| (a, e)).or_else(|| scalar(a).map(|e| (b, e)))?,
        _ => return None,
    };
    let (square, axes) = mean(graph, make(variance)?)?;
    let square = make(square)?;
    let difference = match (square.op_type.as_str(), square.inputs.as_slice()) {
        ("Pow", [d, e]) if scalar(e) == Some(2.0) => d,
        ("Mul", [a, b]) if a == b => a,
        _ => return None,
    };
    let difference = make(difference)?;
    let centred = make(centred).filter(|n| n.is("Sub") && difference.is("Sub"))?;
    let x = centred.input(0).filter(|&x| difference.input(0) == Some(x))?;
    for sub in [centred, difference] {
        let (of, same_axes) = mean(graph, make(sub.input(1)?)?)?;
        if of != x || same_axes != axes {
            return None;
        }
    }
    let trailing = trailing(&axes, graph.rank(x)?)?;
    let mut found = Found { root: i, x: x.to_owned(), scale: None, bias: None, trailing, epsilon };
    // Scale and bias are part of it where they have exactly the normalized shape.
    if let Some((next, scale)) = applied(graph, links, i, "Mul", trailing) {
        found.scale = Some(scale);
        found.root = next;
        if let Some((next, bias)) = applied(graph, links, next, "Add", trailing) {
            found.bias = Some(bias);
            found.root = next;
        }
    }
    Some(found)
}

/// What a ReduceMean with kept dimensions averages, and over which axes.
fn mean<'a>(graph: &Graph, node: &'a Node) -> Option<(&'a str, Vec<i64>)> {
    let kept = node.is("ReduceMean") && node.int("keepdims").unwrap_or(1) == 1;
    kept.then(|| Some((node.input(0)?, graph.constant_ints(node, 1)?))).flatten()
}

/// How many trailing dimensions `axes` are, if that is what they are.
fn trailing(axes: &[i64], rank: usize) -> Option<usize> {
    let rank = rank as i64;
    let mut axes: Vec<i64> = axes.iter().map(|&a| if a < 0 { a + rank } else { a }).collect();
    axes.sort_unstable();
    let first = rank - axes.len() as i64;
    (!axes.is_empty() && axes.iter().copied().eq(first..rank)).then_some(axes.len())
}

fn applied(graph: &Graph, links: &Links, node: usize, op_type: &str, trailing: usize) -> Option<(usize, String)> {
    let value = graph.nodes[node].output();
    let next = links.only_consumer(value)?;
    let user = graph.nodes.get(next).filter(|n| n.is(op_type))?;
    let other = user.inputs.iter().find(|i| *i != value)?;
    let shape = normalized_shape(graph, value, trailing)?;
    (graph.constants.get(other)?.dims() == shape).then(|| (next, other.clone()))
}

fn normalized_shape(graph: &Graph, value: &str, trailing: usize) -> Option<Vec<usize>> {
    let dims = graph.types.get(value)?.dims.as_ref()?;
    let known = dims[dims.len().checked_sub(trailing)?..].iter().map(|d| match d {
        Dim::Known(n) => Some(*n),
        _ => None,
    });
    known.collect()
}

fn fuse(graph: &mut Graph, found: Found) {
    let root = graph.nodes[found.root].clone();
    let scale = found.scale.or_else(|| {
        let shape = normalized_shape(graph, root.output(), found.trailing)?;
        let ones = Tensor::from_f32(&shape, &vec![1.0; shape.iter().product()]);
        Some(graph.add_constant(&format!("{}.scale", root.name), ones))
    });
    let Some(scale) = scale else { return };
    let mut inputs = vec![found.x.as_str(), scale.as_str()];
    inputs.extend(found.bias.as_deref());
    graph.nodes[found.root] = replacement("LayerNormalization", &root, &inputs)
        .with("axis", Attribute::Int(-(found.trailing as i64)))
        .with("epsilon", Attribute::Float(found.epsilon));
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, ops, run, scalar};
    use super::*;

    fn primitives(tail: Vec<Node>) -> Graph {
        let constants = [
            ("axes", Tensor::from_i64(&[1], &[-1])),
            ("two", scalar(2.0)),
            ("eps", scalar(1e-6)),
            ("g", Tensor::from_f32(&[4], &[1., 2., 3., 4.])),
            ("b", Tensor::from_f32(&[4], &[0.; 4])),
        ];
        let mut nodes = vec![
            Node::new("ReduceMean", "m", &["x", "axes"], "m"),
            Node::new("Sub", "d", &["x", "m"], "d"),
            Node::new("Pow", "q", &["d", "two"], "q"),
            Node::new("ReduceMean", "v", &["q", "axes"], "v"),
            Node::new("Add", "e", &["v", "eps"], "e"),
            Node::new("Sqrt", "s", &["e"], "s"),
        ];
        nodes.extend(tail);
        graph(&[3, 4], &constants, nodes)
    }

    #[test]
    fn with_scale_and_bias() {
        let mut g = primitives(vec![
            Node::new("Div", "n", &["d", "s"], "n"),
            Node::new("Mul", "w", &["n", "g"], "w"),
            Node::new("Add", "y", &["b", "w"], "y"),
        ]);
        run(&mut g, super::run);
        assert_eq!(ops(&g), ["LayerNormalization"]);
        assert_eq!(g.nodes[0].inputs, ["x", "g", "b"]);
        assert_eq!(g.nodes[0].float("epsilon"), Some(1e-6));
        assert_eq!(g.nodes[0].int("axis"), Some(-1));
    }

    #[test]
    fn without_scale_and_with_a_reciprocal() {
        let mut g =
            primitives(vec![Node::new("Reciprocal", "r", &["s"], "r"), Node::new("Mul", "n", &["r", "d"], "y")]);
        run(&mut g, super::run);
        assert_eq!(ops(&g), ["LayerNormalization"]);
        assert_eq!(g.constant_input(&g.nodes[0], 1).unwrap().to_f32(), [1.0; 4]);
    }

    #[test]
    fn other_axes_stay_primitives() {
        assert_eq!(trailing(&[0], 3), None);
        assert_eq!(trailing(&[1, 2], 3), Some(2));
        assert_eq!(trailing(&[-1], 3), Some(1));
    }
}
