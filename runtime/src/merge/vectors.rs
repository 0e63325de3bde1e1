use std::sync::Arc;

use super::MergeError;
use crate::adapters::{At, Site};
use crate::graph::{DType, Graph, HostTensor, ValueId};

/// A changed bias or gain, where one node reads it.
#[derive(Clone, Debug)]
pub struct MergedVector {
    /// The name of its initializer, or the point with whose weight it changes.
    pub path: String,
    /// The node that reads it.
    pub node: String,
    /// Which of the node's inputs it is.
    pub input: usize,
    /// Its values; those of a bias end in a dimension of the outputs.
    pub values: Arc<HostTensor>,
}

impl MergedVector {
    /// The vector of a site plus a difference.
    pub(super) fn plus(graph: &Graph, site: &Site, delta: &[f32]) -> Result<Self, MergeError> {
        let Site { path, node, .. } = site;
        let changed = || {
            let At::Vector { input, .. } = site.at else { return None };
            let reader = graph.nodes.iter().find(|known| known.name == *node)?;
            // What a Gemm adds is beta times its C.
            let beta = if reader.op.op_type() == "Gemm" { reader.attributes.float("beta", 1.0) } else { 1.0 };
            let vector = constant(graph, reader.inputs.get(input).copied().flatten()?)?;
            let values = vector.floats()?;
            if beta == 0.0 || values.len() != delta.len() {
                return None;
            }
            let values: Vec<f32> = values.iter().zip(delta).map(|(value, delta)| value + delta / beta).collect();
            Some((input, HostTensor::new(vector.shape(), values)?))
        };
        let (input, values) =
            changed().ok_or_else(|| MergeError::NoVector { path: path.clone(), node: node.clone() })?;
        if !values.floats().is_some_and(|values| values.iter().all(|value| value.is_finite())) {
            return Err(MergeError::NotFinite { path: path.clone() });
        }
        Ok(MergedVector { path: path.clone(), node: node.clone(), input, values: Arc::new(values) })
    }

    fn is_at(&self, node: &str, input: usize) -> bool {
        self.node == node && self.input == input
    }
}

/// The biases between the product `node` and where (IA)3 scales it at the point `path`, times a factor for each output: those
/// of the base, or what was made of them, which is taken out of `vectors`. `None` when the graph is not as the converter
/// writes it.
pub(super) fn scaled(
    graph: &Graph,
    path: &str,
    node: &str,
    factors: &[f32],
    vectors: &mut Vec<MergedVector>,
) -> Option<Vec<MergedVector>> {
    let parameter = graph.values.iter().position(|value| value.name == format!("{path}.{FACTORS}"))?;
    let is_parameter = |id: &ValueId| id.index() == parameter;
    let product = graph.nodes.iter().find(|node| node.inputs.iter().flatten().any(is_parameter))?;
    let result = product.inputs.iter().flatten().find(|id| !is_parameter(id))?;
    let mut biases = Vec::new();
    for (node, input) in between(graph, *result, node)? {
        let (reader, id) = (graph.nodes[node].name.clone(), graph.nodes[node].inputs[input]?);
        let bias = match vectors.iter().position(|vector| vector.is_at(&reader, input)) {
            Some(at) => vectors.swap_remove(at).values,
            None => Arc::new(constant(graph, id)?),
        };
        let (mut shape, values) = (bias.shape().to_vec(), bias.floats()?);
        let times = |(i, factor): (usize, f32)| values[i] * factor;
        let n = factors.len();
        let values: Vec<f32> = match shape.last_mut() {
            Some(last) if *last == n => (0..values.len()).map(|i| times((i, factors[i % n]))).collect(),
            Some(last) if *last == 1 => {
                *last = n;
                (0..values.len() * n).map(|i| times((i / n, factors[i % n]))).collect()
            }
            None => {
                shape.push(n);
                (0..n).map(|i| times((0, factors[i]))).collect()
            }
            Some(_) => return None,
        };
        let values = Arc::new(HostTensor::new(shape, values)?);
        biases.push(MergedVector { path: path.to_owned(), node: reader, input, values });
    }
    Some(biases)
}

/// The values of an initializer.
fn constant(graph: &Graph, id: ValueId) -> Option<HostTensor> {
    let constant = graph.values[id.index()].constant.as_ref()?;
    HostTensor::from_window(constant.dtype, &constant.dims, &constant.window)
}

/// The suffix of (IA)3's parameter.
const FACTORS: &str = "ia3_l";

/// The nodes, with the input, that add a bias on the way from `node` to `value`; `None` if that is not the way.
fn between(graph: &Graph, value: ValueId, node: &str) -> Option<Vec<(usize, usize)>> {
    let maker = graph.nodes.iter().position(|node| node.outputs.contains(&Some(value)))?;
    let inputs = &graph.nodes[maker].inputs;
    let is_bias = |input: usize| {
        let id = inputs.get(input).copied().flatten()?;
        let (dtype, _) = graph.constant(id).filter(|_| !graph.parameter_ids.contains(&id))?;
        (dtype == DType::F32).then_some((maker, input))
    };
    if graph.nodes[maker].name == node {
        let input = if graph.nodes[maker].op.op_type() == "MatMulNBits" { 5 } else { 2 };
        return Some(is_bias(input).into_iter().collect());
    }
    if graph.nodes[maker].op.op_type() != "Add" {
        return None;
    }
    let mut found = inputs.iter().flatten().find_map(|input| between(graph, *input, node))?;
    found.extend((0..2).find_map(is_bias));
    Some(found)
}
