//! Models that are quantized already become float models whose weights remember their integers, which the export keeps.
//!
//! Activations stay f32: where the source rounds them to integers, only the range that those can hold is kept, as a Clip.

mod activations;
mod products;
mod weights;

use crate::error::Result;
use crate::graph::{Graph, Links, Node};
use crate::integers::{Integers, Shares};
use crate::tensor::Tensor;

/// One spelling of quantization.
type Rule = fn(&mut Rewriter<'_>, usize) -> Result<bool>;

/// Every spelling: the rule rewrites the node at an index and says so, or leaves the graph as it is.
const RULES: &[Rule] = &[
    weights::quantize_constant,
    weights::dequantize,
    weights::scaled_cast,
    weights::dequantized_rows,
    weights::gathered_blocks,
    products::n_bits,
    products::integer,
    products::dynamic,
    activations::fake_quantize,
];

/// Rewrites what is quantized in `graph`, whose nodes are of operator set `opset`. What fits no rule is left, to be refused.
///
/// # Errors
/// If a quantized weight contradicts itself.
pub(super) fn run(graph: &mut Graph, opset: i64) -> Result<()> {
    const SPELT: &[&str] = &[
        "DequantizeLinear",
        "QuantizeLinear",
        "MatMulInteger",
        "ConvInteger",
        "MatMulNBits",
        "DynamicQuantizeMatMul",
        "GatherBlockQuantized",
        "Cast",
    ];
    if !graph.nodes.iter().any(|node| SPELT.contains(&node.op_type.as_str())) {
        return Ok(());
    }
    let mut rewriter = Rewriter { links: graph.links(), graph, opset };
    for rule in RULES {
        let mut i = 0;
        while i < rewriter.graph.nodes.len() {
            if rule(&mut rewriter, i)? {
                rewriter.links = rewriter.graph.links();
            }
            i += 1;
        }
        rewriter.graph.sweep();
        rewriter.links = rewriter.graph.links();
    }
    Ok(())
}

/// A graph that is being rewritten.
struct Rewriter<'a> {
    graph: &'a mut Graph,
    opset: i64,
    /// Of the graph as it is when a rule is called.
    links: Links,
}

impl Rewriter<'_> {
    /// Adds the floats of a quantized weight, which was called `name` with one of the endings that quantizers append.
    fn weight(&mut self, name: &str, integers: Integers) -> String {
        self.constant_of(name, Tensor::from_integers(integers))
    }

    /// The same of a tensor of integers, possibly rewritten.
    fn constant_of(&mut self, name: &str, mut tensor: Tensor) -> String {
        let stem = ["_quantized", "_Q4", "_Q8", "_Q2"].iter().find_map(|end| {
            let at = name.rfind(end).filter(|&at| at > 0)?;
            // `_Q4G32` names the block too.
            name[at + end.len()..].chars().all(|c| c == 'G' || c.is_ascii_digit()).then(|| &name[..at])
        });
        let stem = stem.unwrap_or(name);
        let same = |t: &Tensor| t.integers() == tensor.integers() && t.rewrites() == tensor.rewrites();
        if self.graph.constants.get(stem).is_some_and(same) {
            return stem.to_owned();
        }
        let name = self.graph.fresh_name(stem);
        tensor.origin = Some(name.clone());
        self.graph.constants.insert(name.clone(), tensor);
        name
    }

    /// Removes the node at `i`, whose result is the constant `name`.
    fn becomes_constant(&mut self, i: usize, name: &str) {
        let output = self.graph.nodes[i].output().to_owned();
        if self.links.is_output(&output) {
            let node = Node::new("Identity", &self.graph.nodes[i].name.clone(), &[name], &output);
            self.graph.nodes[i] = Node { opset: self.opset, ..node };
            return;
        }
        self.graph.replace_uses(&output, name);
        // Its result has no user now: it is swept.
        self.graph.nodes[i] = Node { opset: self.opset, ..Node::new("Identity", &output, &[name], &output) };
    }

    /// The constant at the input `index` of `node`.
    fn constant(&self, node: &Node, index: usize) -> Option<&Tensor> {
        self.graph.constant_input(node, index)
    }
}

/// Which elements of a tensor of rank `rank` share one of `scales`, as the ONNX operators say it; `None` if they do not fit.
fn shares(scales: &Tensor, rank: usize, axis: i64, block: i64) -> Option<Shares> {
    let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok();
    match usize::try_from(block) {
        Ok(block) if block > 0 => Some(Shares::Blocks { axis: axis.filter(|&axis| axis < rank)?, block }),
        _ if scales.len() == 1 => Some(Shares::All),
        _ => Some(Shares::Axis(axis.filter(|&axis| axis < rank)?)),
    }
}
