//! Linear weights take the layout `[K, N]`, and Gemm loses its factors. A weight with other users (tied heads) stays.

use crate::error::Result;
use crate::graph::{Attribute, Graph, Node};
use crate::tensor::{DType, Rewrite};

pub(super) fn run(graph: &mut Graph) -> Result<()> {
    transposed_constants(graph);
    let mut i = 0;
    while i < graph.nodes.len() {
        if graph.nodes[i].is("Gemm") {
            i += gemm(graph, i)?;
        }
        i += 1;
    }
    Ok(())
}

/// `Transpose(constant)` becomes a transposed constant.
fn transposed_constants(graph: &mut Graph) {
    // What is asked of them stays true: a constant that is turned has no other user.
    let links = graph.links();
    for i in (0..graph.nodes.len()).rev() {
        let node = &graph.nodes[i];
        if !node.is("Transpose") || node.ints("perm").is_some_and(|p| p != [1, 0]) {
            continue;
        }
        let weight = node.inputs[0].clone();
        let Some(tensor) = graph.constants.get(&weight) else { continue };
        let alone = links.only_consumer(&weight).is_some() && !links.is_output(node.output());
        if !alone || tensor.dims().len() != 2 || tensor.dtype != DType::F32 {
            continue;
        }
        let tensor = tensor.rewritten(Rewrite::Transpose);
        graph.constants.insert(weight.clone(), tensor);
        let output = graph.nodes.remove(i).output().to_owned();
        graph.replace_uses(&output, &weight);
    }
}

/// Returns how many nodes were put before the Gemm.
fn gemm(graph: &mut Graph, i: usize) -> Result<usize> {
    let node = graph.nodes[i].clone();
    let alpha = node.float("alpha").unwrap_or(1.0);
    let beta = node.float("beta").unwrap_or(1.0);
    if alpha != 1.0 {
        scale_input(graph, i, 1, alpha)?;
    }
    if beta != 1.0 && node.input(2).is_some() {
        scale_input(graph, i, 2, beta)?;
    }
    let weight = graph.nodes[i].inputs[1].clone();
    let alone = graph.links().only_consumer(&weight).is_some();
    let mut trans_b = node.int("transB").unwrap_or(0) != 0;
    if trans_b
        && alone
        && let Some(w) = graph.constants.get(&weight).filter(|w| w.dtype == DType::F32 && w.dims().len() == 2)
    {
        let w = w.rewritten(Rewrite::Transpose);
        graph.constants.insert(weight, w);
        trans_b = false;
    }
    let attributes = &mut graph.nodes[i].attributes;
    attributes.clear();
    if trans_b {
        attributes.insert("transB".into(), Attribute::Int(1));
    }
    if node.int("transA").unwrap_or(0) == 0 {
        return Ok(0);
    }
    let name = graph.fresh_name(&format!("{}.a", node.name));
    let transpose = Node::new("Transpose", &name, &[&node.inputs[0]], &name).with("perm", Attribute::Ints(vec![1, 0]));
    graph.nodes[i].inputs[0] = name;
    graph.nodes.insert(i, transpose);
    Ok(1)
}

/// Folds a factor into a constant input, which is copied first if others use it too.
fn scale_input(graph: &mut Graph, node: usize, input: usize, factor: f32) -> Result<()> {
    let name = graph.nodes[node].inputs[input].clone();
    let Some(tensor) = graph.constants.get(&name).filter(|t| t.dtype == DType::F32) else {
        return Err(graph.nodes[node]
            .unsupported("alpha or beta is not 1 and its matrix is computed; multiply outside of Gemm instead"));
    };
    let tensor = tensor.rewritten(Rewrite::Scale(factor));
    if graph.links().only_consumer(&name).is_some() {
        graph.constants.insert(name, tensor);
    } else {
        let name = graph.add_constant(&format!("{name}.scaled"), tensor);
        graph.nodes[node].inputs[input] = name;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, ops, run};
    use super::*;
    use crate::tensor::Tensor;

    fn weight() -> (&'static str, Tensor) {
        ("w", Tensor::from_f32(&[2, 3], &[1., 2., 3., 4., 5., 6.]))
    }

    #[test]
    fn gemm_loses_its_attributes() {
        let gemm = Node::new("Gemm", "fc", &["x", "w", "c"], "y")
            .with("transB", Attribute::Int(1))
            .with("alpha", Attribute::Float(2.0))
            .with("beta", Attribute::Float(0.5));
        let mut g = graph(&[3], &[weight(), ("c", Tensor::from_f32(&[2], &[2., 4.]))], vec![gemm]);
        run(&mut g, super::run);
        assert!(g.nodes[0].attributes.is_empty());
        assert_eq!(g.constants["w"].dims(), [3, 2]);
        assert_eq!(g.constants["w"].to_f32(), [2., 8., 4., 10., 6., 12.]);
        assert_eq!(g.constants["c"].to_f32(), [1., 2.]);
    }

    #[test]
    fn a_tied_weight_keeps_its_layout() {
        let mut nodes = vec![
            Node::new("Transpose", "t", &["w"], "t").with("perm", Attribute::Ints(vec![1, 0])),
            Node::new("MatMul", "m", &["x", "t"], "h"),
            Node::new("MatMul", "n", &["h", "w"], "y"),
        ];
        let w = Tensor::from_f32(&[64, 8], &vec![0.5; 512]);
        let mut g = graph(&[8], &[("w", w.clone())], nodes.clone());
        run(&mut g, super::run);
        assert_eq!(ops(&g), ["Transpose", "MatMul", "MatMul"]);
        nodes[2] = Node::new("Relu", "n", &["h"], "y");
        let mut g = graph(&[8], &[("w", w)], nodes);
        run(&mut g, super::run);
        assert_eq!(ops(&g), ["MatMul", "Relu"]);
        assert_eq!(g.constants["w"].dims(), [8, 64]);
    }
}
