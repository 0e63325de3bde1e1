//! BatchNormalization: folded into the Conv before it, else `x * factor + shift`.

use super::replacement;
use crate::error::Result;
use crate::graph::{Graph, Node};
use crate::tensor::{DType, Rewrite, Tensor};

pub(super) fn run(graph: &mut Graph) -> Result<()> {
    let mut i = 0;
    while i < graph.nodes.len() {
        if !graph.nodes[i].is("BatchNormalization") {
            i += 1;
            continue;
        }
        let node = graph.nodes[i].clone();
        let (factor, shift) = affine(graph, &node)?;
        let links = graph.links();
        let conv = links
            .producer(&node.inputs[0])
            .filter(|_| links.only_consumer(&node.inputs[0]).is_some())
            .filter(|&c| foldable(graph, &graph.nodes[c], factor.len()));
        match conv {
            Some(conv) => {
                fold(graph, conv, &factor, &shift);
                let output = node.output().to_owned();
                graph.nodes[conv].outputs[0] = output;
                graph.nodes.remove(i);
            }
            None => {
                let [mul, add] = spell_out(graph, &node, &factor, &shift)?;
                graph.nodes.splice(i..=i, [mul, add]);
                i += 2;
            }
        }
    }
    Ok(())
}

/// `y = x * factor + shift` per channel.
fn affine(graph: &Graph, node: &Node) -> Result<(Vec<f32>, Vec<f32>)> {
    let parameter = |index: usize| {
        graph
            .constant_input(node, index)
            .map(Tensor::to_f32)
            .ok_or_else(|| node.unsupported("its scale, bias, mean and variance must be constants"))
    };
    let (scale, bias, mean, var) = (parameter(1)?, parameter(2)?, parameter(3)?, parameter(4)?);
    let channels = scale.len();
    if [bias.len(), mean.len(), var.len()].iter().any(|&n| n != channels) {
        return Err(node.unsupported("its parameters differ in length"));
    }
    let epsilon = f64::from(node.float("epsilon").unwrap_or(1e-5));
    let factor: Vec<f64> =
        scale.iter().zip(&var).map(|(&s, &v)| f64::from(s) / (f64::from(v) + epsilon).sqrt()).collect();
    let shift = factor.iter().zip(&bias).zip(&mean).map(|((&f, &b), &m)| (f64::from(b) - f64::from(m) * f) as f32);
    let shift = shift.collect();
    Ok((factor.iter().map(|&f| f as f32).collect(), shift))
}

fn foldable(graph: &Graph, conv: &Node, channels: usize) -> bool {
    let weight = conv.is("Conv").then(|| graph.constant_input(conv, 1)).flatten();
    let bias_is_constant = conv.input(2).is_none() || graph.constant_input(conv, 2).is_some();
    bias_is_constant && weight.is_some_and(|w| w.dtype == DType::F32 && w.dims().first() == Some(&channels))
}

fn fold(graph: &mut Graph, conv: usize, factor: &[f32], shift: &[f32]) {
    let node = graph.nodes[conv].clone();
    let bias = graph.constant_input(&node, 2).map_or_else(|| vec![0.0; shift.len()], Tensor::to_f32);
    let bias: Vec<f32> = bias.iter().zip(factor).zip(shift).map(|((b, f), s)| b * f + s).collect();
    let weight = graph.constants[&node.inputs[1]].rewritten(Rewrite::ScaleRows(factor.to_vec()));
    let bias = graph.add_constant(&format!("{}.bias", node.name), Tensor::from_f32(&[bias.len()], &bias));
    let weight_name = if graph.links().only_consumer(&node.inputs[1]).is_some() {
        graph.constants.insert(node.inputs[1].clone(), weight);
        node.inputs[1].clone()
    } else {
        graph.add_constant(&format!("{}.weight", node.name), weight)
    };
    let scales = graph.row_scales.entry(node.name.clone()).or_insert_with(|| vec![1.0; factor.len()]);
    scales.iter_mut().zip(factor).for_each(|(s, f)| *s *= f);
    let node = &mut graph.nodes[conv];
    node.inputs.resize(3, String::new());
    node.inputs[1] = weight_name;
    node.inputs[2] = bias;
}

fn spell_out(graph: &mut Graph, node: &Node, factor: &[f32], shift: &[f32]) -> Result<[Node; 2]> {
    let rank = graph.rank(&node.inputs[0]).ok_or_else(|| node.unsupported("the rank of its input is not known"))?;
    let mut dims = vec![factor.len()];
    dims.resize(rank.max(2) - 1, 1);
    let name = &node.name;
    let factor = graph.add_constant(&format!("{name}.factor"), Tensor::from_f32(&dims, factor));
    let shift = graph.add_constant(&format!("{name}.shift"), Tensor::from_f32(&dims, shift));
    let scaled = graph.fresh_name(&format!("{name}.scaled"));
    let mul = Node::new("Mul", &scaled, &[&node.inputs[0], &factor], &scaled);
    if let Some(ty) = graph.types.get(node.output()).cloned() {
        graph.types.insert(scaled.clone(), ty);
    }
    Ok([mul, replacement("Add", node, &[&scaled, &shift])])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, ops, run};
    use super::*;

    fn constants() -> Vec<(&'static str, Tensor)> {
        vec![
            ("w", Tensor::from_f32(&[2, 1, 1], &[1., 2.])),
            ("s", Tensor::from_f32(&[2], &[2., 3.])),
            ("b", Tensor::from_f32(&[2], &[1., -1.])),
            ("m", Tensor::from_f32(&[2], &[0.5, 0.])),
            ("v", Tensor::from_f32(&[2], &[4. - 1e-5, 1. - 1e-5])),
        ]
    }

    #[test]
    fn folds_into_the_conv_before_it() {
        let mut g = graph(
            &[1, 8],
            &constants(),
            vec![
                Node::new("Conv", "conv", &["x", "w"], "h"),
                Node::new("BatchNormalization", "bn", &["h", "s", "b", "m", "v"], "y"),
            ],
        );
        run(&mut g, super::run);
        assert_eq!(ops(&g), ["Conv"]);
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close(&g.constant_input(&g.nodes[0], 1).unwrap().to_f32(), &[1., 6.]));
        assert!(close(&g.constant_input(&g.nodes[0], 2).unwrap().to_f32(), &[0.5, -1.]));
        assert!(close(&g.row_scales["conv"], &[1., 3.]));
        assert_eq!(g.nodes[0].output(), "y");
    }

    #[test]
    fn stands_alone_as_mul_and_add() {
        let mut g =
            graph(&[2, 8], &constants(), vec![Node::new("BatchNormalization", "bn", &["x", "s", "b", "m", "v"], "y")]);
        run(&mut g, super::run);
        assert_eq!(ops(&g), ["Mul", "Add"]);
        assert_eq!(g.constant_input(&g.nodes[0], 1).unwrap().dims(), [2, 1]);
    }
}
