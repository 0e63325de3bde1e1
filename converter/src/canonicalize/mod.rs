//! Stage 2: the many spellings of exporters become one. [`ALL`] is the order.

mod attention;
mod batch_norm;
mod branches;
mod clip;
mod constants;
mod functions;
mod gelu;
mod gelus;
mod halves;
mod identity;
mod layer_norm;
mod layout;
mod matmul;
mod norms;
mod opset;
mod pad;
mod primitives;
mod quantized;
mod recurrent;
mod rotary;
mod tied;
mod variadic;

pub(crate) use halves::note as note_of_halves;
pub use primitives::{ALL as EXPANSIONS, Expansion, find as expansion};

use crate::error::{Error, Result};
use crate::graph::{Graph, Node, OPSET};
use crate::read::Model;
use crate::{bounds, folding, support, types};

/// One rewrite of the graph. What it computes stays the same; only the spelling changes.
pub struct Pass {
    /// Its name, for reports.
    pub name: &'static str,
    /// Applies it wherever it fits.
    pub run: fn(&mut Graph) -> Result<()>,
}

/// The passes that need types, in the order in which they run.
pub const ALL: &[Pass] = &[
    Pass { name: "operator set 21", run: opset::run },
    Pass { name: "two inputs", run: variadic::run },
    Pass { name: "plain recurrent cells", run: recurrent::run },
    Pass { name: "no identity", run: identity::run },
    // What depended on an exporter's CastLike is constant only now.
    Pass { name: "constants folded", run: |graph| types::infer(graph, OPSET) },
    Pass { name: "bounds that are known", run: clip::run },
    Pass { name: "LayerNormalization", run: layer_norm::run },
    Pass { name: "Gelu", run: gelu::run },
    Pass { name: "Pad folded", run: pad::run },
    Pass { name: "BatchNormalization folded", run: batch_norm::run },
    Pass { name: "tied heads", run: tied::run },
    Pass { name: "weight layout", run: layout::run },
];

/// The canonical graph of `model`: operator set 21, typed, functions inlined, only supported operators.
///
/// # Errors
/// If an operator, or a use of it, is not supported, or if types contradict each other.
pub fn canonicalize(model: &Model) -> Result<Graph> {
    canonicalize_flat(flattened(model)?, model.opset)
}

/// The same of a graph that is flattened already.
///
/// # Errors
/// As for [`canonicalize`].
pub(crate) fn canonicalize_flat(flat: Graph, opset: i64) -> Result<Graph> {
    let mut graph = primitive(flat, opset)?;
    types::infer(&mut graph, opset)?;
    for pass in ALL {
        (pass.run)(&mut graph)?;
        graph.sort()?;
        graph.sweep();
    }
    for node in &graph.nodes {
        support::check(node)?;
    }
    Ok(graph)
}

/// The graph of `model` with functions inlined, Constant nodes made constants, operators that stand for several
/// ([`EXPANSIONS`]) as primitives, and nothing that no output needs.
///
/// # Errors
/// If a function cannot be inlined, or an operator is unknown.
pub fn inlined(model: &Model) -> Result<Graph> {
    primitive(flattened(model)?, model.opset)
}

fn primitive(mut graph: Graph, opset: i64) -> Result<Graph> {
    for node in &graph.nodes {
        support::check_source(node)?;
    }
    bounds::check(&graph)?;
    folding::check(&graph)?;
    primitives::run(&mut graph, opset)?;
    Ok(graph)
}

/// Functions in branches in functions.
const MAX_ROUNDS: usize = 16;

/// The graph of `model` with functions inlined, Constant nodes made constants, halves made floats, quantized weights made floats
/// that remember their integers, and nothing that no output needs, whatever its operators.
///
/// # Errors
/// If a function cannot be inlined.
pub(crate) fn flattened(model: &Model) -> Result<Graph> {
    let mut graph = model.graph.clone();
    for round in 0.. {
        if round == MAX_ROUNDS {
            return Err(Error::Invalid(format!("functions and branches hold each other more than {MAX_ROUNDS} deep")));
        }
        functions::inline(&mut graph, model)?;
        graph.sweep();
        constants::run(&mut graph)?;
        identity::run(&mut graph)?;
        graph.sort()?;
        // Branches may hold calls, and functions branches.
        if !branches::run(&mut graph, model.opset)? {
            break;
        }
    }
    halves::run(&mut graph);
    quantized::run(&mut graph, model.opset)?;
    graph.sort()?;
    graph.sweep();
    Ok(graph)
}

/// What a node that replaces others inherits from the one that makes their last value.
fn replacement(op_type: &str, old: &Node, inputs: &[&str]) -> Node {
    Node { scope: old.scope.clone(), ..Node::new(op_type, &old.name, inputs, old.output()) }
}

#[cfg(test)]
mod testing {
    use crate::graph::{Dim, Graph, Node, Port, ValueType};
    use crate::tensor::{DType, Tensor};

    /// A graph from `x: f32 [B, dims...]` to `y`.
    pub fn graph(dims: &[usize], constants: &[(&str, Tensor)], nodes: Vec<Node>) -> Graph {
        let mut shape = vec![Dim::Symbol("B".into())];
        shape.extend(dims.iter().map(|&d| Dim::Known(d)));
        let x = Port { name: "x".into(), ty: ValueType { dtype: DType::F32, dims: Some(shape) } };
        let y = Port { name: "y".into(), ty: ValueType { dtype: DType::F32, dims: None } };
        Graph {
            nodes,
            inputs: vec![x],
            outputs: vec![y],
            constants: constants.iter().map(|(n, t)| ((*n).to_owned(), t.clone())).collect(),
            ..Graph::default()
        }
    }

    /// The operators of the graph, in order.
    pub fn ops(graph: &Graph) -> Vec<&str> {
        graph.nodes.iter().map(|n| n.op_type.as_str()).collect()
    }

    /// A constant of one element.
    pub fn scalar(value: f32) -> Tensor {
        Tensor::from_f32(&[], &[value])
    }

    /// Types the graph, runs the pass, removes what is no longer used.
    pub fn run(graph: &mut Graph, pass: fn(&mut Graph) -> crate::error::Result<()>) {
        crate::types::infer(graph, 21).unwrap();
        pass(graph).unwrap();
        graph.sort().unwrap();
        graph.sweep();
    }
}
