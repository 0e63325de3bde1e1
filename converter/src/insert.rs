//! Stage 4: adapters as standard ONNX. One module a kind.
//!
//! Every parameter of an adapter is an optional graph input, `<path>.<name>`, whose default changes nothing: LoRA has rank 0,
//! a bottleneck width 0, a prompt no tokens, and (IA)3 factors of one.

mod bottleneck;
mod ia3;
mod lora;
pub mod prompt;
pub(crate) mod remove;

use std::collections::HashMap;

use inlay_format::kinds::{IA3, IN_FILE, parameters};
use inlay_format::points::{Point, check_all};

use crate::blocks::with_bias;
use crate::error::{Error, Result};
use crate::graph::{Dim, Graph, Node, Port, ValueType};
use crate::kinds::{Activation, Chosen, Kind};
use crate::points::Candidate;
use crate::tensor::{DType, Tensor};

/// Inserts every kind of every one of `chosen`, and returns the points as the exported file lists them.
///
/// # Errors
/// If a point's name or size is beyond what devices accept, or a prompt has no place.
pub fn insert(graph: &mut Graph, chosen: &[Chosen], activation: Activation) -> Result<Vec<Point<String>>> {
    let mut points = chosen.iter().map(point).collect::<Result<Vec<_>>>()?;
    add_factors(graph, &mut points);
    check_all(&points).map_err(|(i, e)| invalid(&chosen[i].candidate, &e.to_string()))?;
    for (point, chosen) in points.iter().zip(chosen) {
        let result = result(graph, point);
        for kind in &chosen.kinds {
            add_parameters(graph, point, *kind);
            match kind {
                Kind::Ia3 => ia3::insert(graph, point, &result),
                Kind::Lora => lora::insert(graph, point),
                Kind::Bottleneck => bottleneck::insert(graph, point, &result, activation),
                Kind::Prompt => prompt::insert(graph, point)?,
            }
        }
    }
    Ok(points)
}

/// Names the factors that were folded into the weights of the points, and adds them as constants. Linears that read one value have
/// one constant with the factors of their inputs.
fn add_factors(graph: &mut Graph, points: &mut [Point<String>]) {
    let mut of_values: HashMap<String, String> = HashMap::new();
    let tensor = |factors: &Vec<f32>| Tensor::from_f32(&[factors.len()], factors);
    for point in points {
        if let Some(factors) = graph.row_scales.get(&point.node) {
            let name = name(point, "row_scale");
            graph.constants.insert(name.clone(), tensor(factors));
            point.row_scale = Some(name);
        }
        if let Some(factors) = graph.input_scales.get(&point.node) {
            let value = graph.nodes[node(graph, point)].inputs[0].clone();
            let name = of_values.entry(value).or_insert_with(|| name(point, "input_scale")).clone();
            graph.constants.insert(name.clone(), tensor(factors));
            point.input_scale = Some(name);
        }
    }
}

fn invalid(candidate: &Candidate, detail: &str) -> Error {
    Error::Invalid(format!("point {:?} (node {:?}): {detail}", candidate.path, candidate.node))
}

fn point(chosen: &Chosen) -> Result<Point<String>> {
    let candidate = &chosen.candidate;
    let size = |n: usize| u32::try_from(n).map_err(|_| invalid(candidate, "a size is beyond 32 bits"));
    let mut point = Point {
        path: candidate.path.clone(),
        op: candidate.op,
        node: candidate.node.clone(),
        weight: candidate.weight.clone(),
        d_in: size(candidate.d_in)?,
        d_out: size(candidate.d_out)?,
        kernel: Default::default(),
        kinds: chosen.kinds.iter().map(|kind| kind.name().to_owned()).collect(),
        row_scale: None,
        input_scale: None,
        feedforward: chosen.feedforward,
    };
    for &k in &candidate.kernel {
        point.kernel.push(size(k)?).map_err(|_| invalid(candidate, "the kernel has too many dimensions"))?;
    }
    Ok(point)
}

/// What the base computes at a point, bias included.
fn result(graph: &Graph, point: &Point<String>) -> String {
    with_bias(graph, &graph.links(), &graph.nodes[node(graph, point)])
}

fn node(graph: &Graph, point: &Point<String>) -> usize {
    graph.nodes.iter().position(|n| n.name == point.node).expect("candidates are nodes of this graph")
}

/// The graph inputs of `kind`, with the defaults that change nothing.
fn add_parameters(graph: &mut Graph, point: &Point<String>, kind: Kind) {
    let size = IN_FILE.iter().find_map(|(name, size)| if *name == kind.name() { *size } else { None });
    for parameter in parameters(kind.name(), point, 0) {
        let name = name(point, parameter.suffix);
        let mut dims: Vec<Dim> = parameter.shape.iter().map(|&d| Dim::Known(d)).collect();
        if let (Some(axis), Some(size)) = (parameter.size_axis, size) {
            dims[axis] = Dim::Symbol(self::name(point, size));
        }
        let default = if kind.name() == IA3 { 1.0 } else { 0.0 };
        let values = vec![default; parameter.shape.iter().product()];
        graph.inputs.push(Port { name: name.clone(), ty: ValueType { dtype: DType::F32, dims: Some(dims) } });
        graph.constants.insert(name, Tensor::from_f32(&parameter.shape, &values));
    }
}

/// `<path>.<suffix>`.
fn name(point: &Point<String>, suffix: &str) -> String {
    format!("{}.{suffix}", point.path)
}

/// Lets the maker of `value` make another value, whose name is returned, and puts what `nodes` gives for it right after.
/// The last of them has to make `value`.
fn interpose(graph: &mut Graph, value: &str, stem: &str, nodes: impl FnOnce(&mut Graph, &str) -> Vec<Node>) {
    let inner = graph.fresh_name(stem);
    let (i, output) = graph
        .nodes
        .iter()
        .enumerate()
        .find_map(|(i, n)| Some((i, n.outputs.iter().position(|o| o == value)?)))
        .expect("points are at computed values");
    graph.nodes[i].outputs[output].clone_from(&inner);
    let nodes = nodes(graph, &inner);
    debug_assert_eq!(nodes.last().map(Node::output), Some(value));
    graph.nodes.splice(i + 1..i + 1, nodes);
}
