use std::sync::Arc;

use crate::graph::{DType, Graph, HostTensor, ValueId};

/// A bias that changes with the weight that it belongs to, where one node reads it.
#[derive(Clone, Debug)]
pub struct MergedBias {
    /// The node that adds it.
    pub node: String,
    /// Which of the node's inputs it is.
    pub input: usize,
    /// Its values, their last dimension the outputs of the point.
    pub values: Arc<HostTensor>,
}

/// The biases between the product `node` and where (IA)3 scales it at the point `path`, times a factor for each output;
/// `None` when the graph is not as the converter writes it.
pub(super) fn scaled(graph: &Graph, path: &str, node: &str, factors: &[f32]) -> Option<Vec<MergedBias>> {
    let parameter = graph.values.iter().position(|value| value.name == format!("{path}.{FACTORS}"))?;
    let is_parameter = |id: &ValueId| id.index() == parameter;
    let product = graph.nodes.iter().find(|node| node.inputs.iter().flatten().any(is_parameter))?;
    let result = product.inputs.iter().flatten().find(|id| !is_parameter(id))?;
    let mut biases = Vec::new();
    for (node, input) in between(graph, *result, node)? {
        let constant = graph.values[graph.nodes[node].inputs[input]?.index()].constant.as_ref()?;
        let bias = HostTensor::from_window(constant.dtype, &constant.dims, &constant.window)?;
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
        biases.push(MergedBias { node: graph.nodes[node].name.clone(), input, values });
    }
    Some(biases)
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
