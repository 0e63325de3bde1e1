//! A Pad with zeros whose only users are convolutions becomes their padding.
//!
//! Exporters write TensorFlow's `SAME` padding this way, with pads computed from the shape of the input: constant folding
//! has made them constants before.

use crate::error::Result;
use crate::graph::{Attribute, Graph, Node};

pub(super) fn run(graph: &mut Graph) -> Result<()> {
    let mut i = 0;
    while i < graph.nodes.len() {
        let node = &graph.nodes[i];
        let Some(pads) = zero_pads(graph, node) else {
            i += 1;
            continue;
        };
        let links = graph.links();
        let users = links.consumers(node.output()).to_vec();
        let fits = !users.is_empty()
            && !links.is_output(node.output())
            && users.iter().all(|&user| takes(&graph.nodes[user], node.output(), pads.len()));
        if !fits {
            i += 1;
            continue;
        }
        let (from, to) = (node.output().to_owned(), node.inputs[0].clone());
        for user in users {
            add(&mut graph.nodes[user], &pads);
        }
        graph.nodes.remove(i);
        graph.replace_uses(&from, &to);
    }
    Ok(())
}

/// The zeros that `node` puts before and behind every spatial axis, if that is all it does.
fn zero_pads(graph: &Graph, node: &Node) -> Option<Vec<[i64; 2]>> {
    if !node.is("Pad") || node.string("mode").is_some_and(|mode| mode != "constant") {
        return None;
    }
    if node.input(2).is_some() && graph.constant_input(node, 2)?.scalar() != Some(0.0) {
        return None;
    }
    let rank = graph.rank(node.input(0)?)?;
    let listed = graph.constant_ints(node, 1)?;
    let axes = match node.input(3) {
        Some(_) => graph.constant_ints(node, 3)?,
        None => (0..rank as i64).collect(),
    };
    if listed.len() != 2 * axes.len() || listed.iter().any(|&p| p < 0) || rank < 3 {
        return None;
    }
    let mut pads = vec![[0; 2]; rank];
    for (at, &axis) in axes.iter().enumerate() {
        let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()?;
        *pads.get_mut(axis)? = [listed[at], listed[axes.len() + at]];
    }
    let spatial = pads.split_off(2);
    (pads == [[0; 2]; 2]).then_some(spatial)
}

/// Whether `node` is a convolution of `value` over that many axes, with explicit pads.
fn takes(node: &Node, value: &str, axes: usize) -> bool {
    let explicit = node.string("auto_pad").is_none_or(|auto| auto == "NOTSET" || auto == "VALID");
    let data = node.inputs.iter().position(|input| input == value) == Some(0);
    let once = node.inputs.iter().filter(|input| *input == value).count() == 1;
    node.is("Conv") && explicit && data && once && node.ints("pads").is_none_or(|pads| pads.len() == 2 * axes)
}

/// Adds to the pads of a convolution.
fn add(conv: &mut Node, pads: &[[i64; 2]]) {
    let valid = conv.string("auto_pad") == Some("VALID");
    let mut own = conv.ints("pads").filter(|_| !valid).map_or_else(|| vec![0; 2 * pads.len()], <[i64]>::to_vec);
    for (i, [before, after]) in pads.iter().enumerate() {
        own[i] = own[i].saturating_add(*before);
        own[pads.len() + i] = own[pads.len() + i].saturating_add(*after);
    }
    conv.attributes.remove("auto_pad");
    conv.attributes.insert("pads".into(), Attribute::Ints(own));
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, ops, run, scalar};
    use super::*;
    use crate::tensor::Tensor;

    fn padded(pads: &[i64], fill: f32, conv: Node) -> Graph {
        graph(
            &[2, 8, 8],
            &[
                ("pads", Tensor::from_i64(&[pads.len()], pads)),
                ("fill", scalar(fill)),
                ("w", Tensor::from_f32(&[1, 2, 3, 3], &[1.0; 18])),
            ],
            vec![Node::new("Pad", "pad", &["x", "pads", "fill"], "p"), conv],
        )
    }

    #[test]
    fn zeros_before_a_convolution_are_its_pads() {
        let conv = || Node::new("Conv", "c", &["p", "w"], "y");
        let mut g = padded(&[0, 0, 0, 1, 0, 0, 1, 2], 0.0, conv().with("pads", Attribute::Ints(vec![1, 1, 1, 1])));
        run(&mut g, super::run);
        assert_eq!(ops(&g), ["Conv"]);
        assert_eq!(g.nodes[0].ints("pads"), Some([1, 2, 2, 3].as_slice()));
        assert_eq!(g.nodes[0].inputs, ["x", "w"]);
    }

    #[test]
    fn other_padding_stays() {
        let conv = || Node::new("Conv", "c", &["p", "w"], "y");
        let same = conv().with("auto_pad", Attribute::String("SAME_UPPER".into()));
        let pool = Node::new("MaxPool", "c", &["p"], "y").with("kernel_shape", Attribute::Ints(vec![2, 2]));
        for mut g in [
            padded(&[0, 0, 0, 1, 0, 0, 1, 2], 1.0, conv()),
            padded(&[0, 0, 0, -1, 0, 0, 1, 2], 0.0, conv()),
            padded(&[1, 0, 0, 0, 0, 0, 0, 0], 0.0, conv()),
            padded(&[0, 0, 0, 1, 0, 0, 1, 2], 0.0, same),
            padded(&[0, 0, 0, 1, 0, 0, 1, 2], 0.0, pool),
        ] {
            run(&mut g, super::run);
            assert_eq!(g.nodes[0].op_type, "Pad");
        }
    }
}
