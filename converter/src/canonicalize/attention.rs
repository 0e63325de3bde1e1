//! Attention of operator set 23 becomes primitives: `softmax(scale q k^T + mask) v`.
//!
//! A boolean mask says who takes part. Rows that are masked all over give 0, as in PyTorch.
//! <https://onnx.ai/onnx/operators/onnx__Attention.html>

use super::replacement;
use crate::error::Result;
use crate::graph::{Attribute, Dim, Graph, Node};
use crate::tensor::{DType, Tensor};
use crate::types;

/// Inputs and outputs beside q, k, v, attn_mask and the result.
const INPUTS: [&str; 3] = ["past_key", "past_value", "nonpad_kv_seqlen"];
const OUTPUTS: [&str; 3] = ["present_key", "present_value", "qk_matmul_output"];

/// Needs no types, but finds some out: the reference would take a boolean mask for numbers.
pub(super) fn run(graph: &mut Graph, opset: i64) -> Result<()> {
    let is_attention = |n: &Node| n.is("Attention");
    if !graph.nodes.iter().any(is_attention) {
        return Ok(());
    }
    graph.nodes.iter().filter(|n| is_attention(n)).try_for_each(expect_plain)?;
    let mut typed = graph.clone();
    types::infer(&mut typed, opset)?;
    while let Some(i) = graph.nodes.iter().position(is_attention) {
        let old = graph.nodes[i].clone();
        let mut parts = Parts { graph, nodes: Vec::new(), old };
        parts.build(&typed)?;
        let nodes = parts.nodes;
        graph.nodes.splice(i..=i, nodes);
    }
    Ok(())
}

/// Refuses what the primitives do not do.
fn expect_plain(node: &Node) -> Result<()> {
    let refuse = |what: &str| Err(node.unsupported(format!("{what} is not supported; {WAY_OUT}")));
    for attribute in ["is_causal", "qk_matmul_output_mode"] {
        if node.int(attribute).unwrap_or(0) != 0 {
            return refuse(&format!("attribute {attribute}"));
        }
    }
    if node.float("softcap").unwrap_or(0.0) != 0.0 {
        return refuse("attribute softcap");
    }
    if !matches!(node.int("softmax_precision"), None | Some(0 | 1)) {
        return refuse("attribute softmax_precision other than float32");
    }
    if node.int("q_num_heads") != node.int("kv_num_heads") {
        return refuse("attribute kv_num_heads other than q_num_heads");
    }
    for (i, name) in INPUTS.iter().enumerate() {
        if node.input(4 + i).is_some() {
            return refuse(&format!("input {name}"));
        }
    }
    for (output, name) in node.outputs.iter().skip(1).zip(OUTPUTS) {
        if !output.is_empty() {
            return refuse(&format!("output {name}"));
        }
    }
    Ok(())
}

const WAY_OUT: &str = "export the model with opset_version=21 or lower, so that attention is written as primitives";

struct Parts<'a> {
    graph: &'a mut Graph,
    nodes: Vec<Node>,
    old: Node,
}

impl Parts<'_> {
    fn build(&mut self, typed: &Graph) -> Result<()> {
        let old = self.old.clone();
        let [Some(q), Some(k), Some(v)] = [0, 1, 2].map(|i| old.input(i)) else {
            return Err(old.unsupported("q, k or v is missing"));
        };
        if [q, k, v].iter().any(|x| typed.dtype(x) != Some(DType::F32)) {
            return Err(old.unsupported("q, k and v have to be float32"));
        }
        let heads = match (typed.rank(q), old.int("q_num_heads")) {
            (Some(4), _) => None,
            (Some(3), Some(heads)) if heads > 0 => Some(heads),
            (Some(3), _) => return Err(old.unsupported("attribute q_num_heads is missing")),
            _ => return Err(old.unsupported("q has to have 3 or 4 dimensions")),
        };
        if [k, v].iter().any(|x| typed.rank(x) != typed.rank(q)) {
            return Err(old.unsupported("q, k and v have to have as many dimensions as each other"));
        }
        let heads_of = |x: &str| size(typed, x, 1).filter(|_| heads.is_none());
        for x in [k, v] {
            if let (Some(a), Some(b)) = (heads_of(q), heads_of(x))
                && a != b
            {
                return Err(old.unsupported(format!("{a} heads of q with {b} of k or v are not supported; {WAY_OUT}")));
            }
        }
        let scale = self.scale(typed, q, heads)?;

        let (q, v) = (self.split("q", q, heads, [0, 2, 1, 3]), self.split("v", v, heads, [0, 2, 1, 3]));
        let k = match heads {
            Some(_) => self.split("k", k, heads, [0, 2, 3, 1]),
            None => self.transpose("k", k, [0, 1, 3, 2]),
        };
        let scale = self.constant("scale", Tensor::from_f32(&[], &[scale]));
        let q = self.push("Mul", "scaled", &[&q, &scale]);
        let mut scores = self.push("MatMul", "scores", &[&q, &k]);
        let mask = old.input(3).map(|mask| self.mask(typed, mask)).transpose()?;
        if let Some(mask) = &mask {
            scores = self.push("Add", "masked", &[&scores, mask]);
        }
        let mut p = self.push("Softmax", "softmax", &[&scores]);
        self.last().attributes.insert("axis".into(), Attribute::Int(-1));
        if mask.is_some() {
            let zero = self.constant("zero", Tensor::from_f32(&[], &[0.0]));
            let nan = self.push("IsNaN", "nan", &[&p]);
            p = self.push("Where", "probabilities", &[&nan, &zero, &p]);
        }
        if heads.is_none() {
            self.nodes.push(replacement("MatMul", &old, &[&p, &v]));
            return Ok(());
        }
        let y = self.push("MatMul", "heads", &[&p, &v]);
        let y = self.transpose("joined", &y, [0, 2, 1, 3]);
        let shape = self.constant("joined_shape", Tensor::from_i64(&[3], &[0, 0, -1]));
        self.nodes.push(replacement("Reshape", &old, &[&y, &shape]));
        Ok(())
    }

    /// The attribute, or one over the root of the size of a head.
    fn scale(&self, typed: &Graph, q: &str, heads: Option<i64>) -> Result<f32> {
        if let Some(scale) = self.old.float("scale") {
            return Ok(scale);
        }
        let width = match heads {
            Some(heads) => size(typed, q, 2).map(|n| n / heads as usize),
            None => size(typed, q, 3),
        };
        match width {
            Some(d) if d > 0 => Ok(1.0 / (d as f32).sqrt()),
            _ => Err(self.old.unsupported("attribute scale is missing, and the size of a head is not known")),
        }
    }

    /// The mask as numbers to add.
    fn mask(&mut self, typed: &Graph, mask: &str) -> Result<String> {
        match typed.dtype(mask) {
            Some(DType::F32) => Ok(mask.to_owned()),
            Some(DType::Bool) => {
                let zero = self.constant("zero", Tensor::from_f32(&[], &[0.0]));
                let never = self.constant("never", Tensor::from_f32(&[], &[f32::NEG_INFINITY]));
                Ok(self.push("Where", "mask", &[mask, &zero, &never]))
            }
            _ => Err(self.old.unsupported("attn_mask has to be float32 or boolean")),
        }
    }

    /// [B, T, H d] with its heads apart and permuted; with no `heads` to make, `x` itself.
    fn split(&mut self, name: &str, x: &str, heads: Option<i64>, perm: [i64; 4]) -> String {
        let Some(heads) = heads else { return x.to_owned() };
        let shape = self.constant("split_shape", Tensor::from_i64(&[4], &[0, 0, heads, -1]));
        let split = self.push("Reshape", &format!("{name}_split"), &[x, &shape]);
        self.transpose(name, &split, perm)
    }

    fn transpose(&mut self, name: &str, x: &str, perm: [i64; 4]) -> String {
        let value = self.push("Transpose", name, &[x]);
        self.last().attributes.insert("perm".into(), Attribute::Ints(perm.to_vec()));
        value
    }

    fn push(&mut self, op_type: &str, name: &str, inputs: &[&str]) -> String {
        let name = self.graph.fresh_name(&format!("{}/{name}", self.old.name));
        let scope = self.old.scope.clone();
        self.nodes.push(Node { scope, ..Node::new(op_type, &name, inputs, &name) });
        name
    }

    fn last(&mut self) -> &mut Node {
        self.nodes.last_mut().expect("a node was pushed")
    }

    fn constant(&mut self, name: &str, tensor: Tensor) -> String {
        self.graph.add_constant(&format!("{}/{name}", self.old.name), tensor)
    }
}

/// The dimension `axis` of a value, where it is known.
fn size(graph: &Graph, value: &str, axis: usize) -> Option<usize> {
    if let Some(tensor) = graph.constants.get(value) {
        return tensor.dims().get(axis).copied();
    }
    match graph.types.get(value)?.dims.as_ref()?.get(axis)? {
        Dim::Known(n) => Some(*n),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, ops};
    use super::*;
    use crate::oracle::{self, Feed, Values};

    fn attention(inputs: &[&str]) -> Node {
        Node { opset: 23, ..Node::new("Attention", "sdpa", inputs, "y") }
    }

    /// Two queries and keys of one head of size 4, as `dims` have them.
    fn attend(dims: &[usize], node: Node, mask: Tensor) -> Vec<f32> {
        let mut g = graph(dims, &[("mask", mask)], vec![node]);
        run(&mut g, 23).unwrap();
        g.sort().unwrap();
        assert!(g.nodes.iter().all(|n| !n.is("Attention")));
        let x = vec![2.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0];
        let feed = Feed { name: "x".into(), dims: [&[1], dims].concat(), values: Values::F32(x) };
        oracle::run(&g, 23, &[feed], "the primitives").unwrap().remove(0).values
    }

    #[test]
    fn masks_of_both_types_and_a_row_without_a_key() {
        let never = f32::NEG_INFINITY;
        let float = Tensor::from_f32(&[2, 2], &[0.0, never, never, never]);
        let boolean = Tensor::new(DType::Bool, vec![2, 2], vec![1, 0, 0, 0].into()).unwrap();
        for mask in [float, boolean] {
            let y = attend(&[1, 2, 4], attention(&["x", "x", "x", "mask"]), mask);
            assert_eq!(y, [2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        }
    }

    #[test]
    fn three_dimensions_and_the_default_scale() {
        let unused = Tensor::from_f32(&[1], &[0.0]);
        let heads = |n: Node| n.with("q_num_heads", Attribute::Int(1)).with("kv_num_heads", Attribute::Int(1));
        let three = attend(&[2, 4], heads(attention(&["x", "x", "x"])), unused.clone());
        let four = attend(&[1, 2, 4], attention(&["x", "x", "x"]), unused);
        // Scores are 4 and 0, times 1 / 2.
        let own = 2.0 / (1.0 + (-2f32).exp());
        assert_eq!(three, four);
        assert!((four[0] - own).abs() < 1e-5 && (four[1] - (2.0 - own)).abs() < 1e-5, "{four:?}");
    }

    #[test]
    fn no_mask_needs_no_guard() {
        let mut g = graph(&[1, 2, 4], &[], vec![attention(&["x", "x", "x"])]);
        run(&mut g, 23).unwrap();
        assert_eq!(ops(&g), ["Transpose", "Mul", "MatMul", "Softmax", "MatMul"]);
        assert_eq!((g.nodes[4].name.as_str(), g.nodes[4].output()), ("sdpa", "y"));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let mut present = attention(&["x", "x", "x"]);
        present.outputs.push("present".into());
        for (node, named) in [
            (attention(&["x", "x", "x"]).with("is_causal", Attribute::Int(1)), "is_causal"),
            (attention(&["x", "x", "x"]).with("softcap", Attribute::Float(9.0)), "softcap"),
            (attention(&["x", "x", "x"]).with("q_num_heads", Attribute::Int(2)), "kv_num_heads"),
            (attention(&["x", "x", "x", "", "x"]), "past_key"),
            (attention(&["x", "x", "x", "few"]), "attn_mask"),
            (attention(&["x", "two", "two"]), "1 heads of q with 2"),
            (present, "present_key"),
        ] {
            let two = Tensor::from_f32(&[1, 2, 2, 4], &[0.0; 16]);
            let mut g = graph(&[1, 2, 4], &[("two", two), ("few", Tensor::from_i64(&[1], &[1]))], vec![node]);
            let error = run(&mut g, 23).unwrap_err().to_string();
            assert!(error.contains("\"sdpa\"") && error.contains(named), "{error}");
        }
    }
}
