use super::{AdapterError, FragmentNode};
use crate::base::Base;
use crate::graph::{Attributes, Graph, ValueId};
use crate::plan::{ELEMENTWISE, Shapes};

/// What a head reads of a tensor.
#[derive(Debug)]
pub(crate) struct Features {
    /// The nodes that make features of the tensor.
    pub nodes: Vec<FragmentNode>,
    /// The features `[B, C]` or `[B, T, C]`.
    pub value: String,
    /// C.
    pub width: usize,
    /// Whether there are features for each of T tokens.
    pub of_tokens: bool,
}

impl Features {
    /// Those of the tensor of that name: as it is where its last axis holds them, averaged where its axis 1 does.
    pub fn of(base: &Base, tensor: &str) -> Result<Features, AdapterError> {
        let graph = base.graph();
        let no_features = |found| AdapterError::Features { tensor: tensor.to_owned(), found };
        let value = graph.value(tensor).ok_or_else(|| no_features("no computed floats"))?;
        let shapes = Shapes::of(graph)?;
        let shape = shapes.get(value).ok_or_else(|| no_features("no computed floats"))?;
        let is_map = shape.len() > 2 && has_channels(graph, &shapes, value);
        match (shape, is_map) {
            ([_, Some(width)], _) | ([_, _, Some(width)], false) => {
                let of_tokens = shape.len() == 3;
                Ok(Features { nodes: Vec::new(), value: tensor.to_owned(), width: *width, of_tokens })
            }
            ([_, Some(channels), _] | [_, Some(channels), _, _], true) => {
                let (pooled, flat) = (format!("{tensor}.head_pooled"), format!("{tensor}.head_features"));
                let flatten = FragmentNode {
                    attributes: Attributes::default().with_int("axis", 1),
                    ..FragmentNode::new("Flatten", &[&pooled], flat.clone())
                };
                let nodes = vec![FragmentNode::new("GlobalAveragePool", &[tensor], pooled), flatten];
                Ok(Features { nodes, value: flat, width: *channels, of_tokens: false })
            }
            ([_, None], _) | ([_, _, None], false) | ([_, None, _] | [_, None, _, _], true) => {
                Err(no_features("features whose number depends on the input"))
            }
            ([_, _, _, _], false) => Err(no_features("four dimensions, and no convolution or pooling made it")),
            _ => Err(no_features("one dimension, or too many")),
        }
    }
}

/// Ops that make an axis 1 of channels, and axes of space after it.
const MAKE_CHANNELS: &[&str] =
    &["Conv", "BatchNormalization", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"];
/// Ops beside [`ELEMENTWISE`] that leave axes where they are, if they leave as many.
const KEEP_AXES: &[&str] = &["Concat", "Pad", "Slice", "Softmax", "ReduceMean", "ReduceMax", "ReduceSum"];
/// Ops that may join axes.
const JOIN_AXES: &[&str] = &["Reshape", "Flatten", "Squeeze", "Unsqueeze"];

/// Whether axis 1 of a value holds channels: a convolution or pooling made it, and nothing moved the axis since. The axes of
/// other values end in features.
fn has_channels(graph: &Graph, shapes: &Shapes, value: ValueId) -> bool {
    let mut seen = vec![false; graph.values.len()];
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        if std::mem::replace(&mut seen[value.index()], true) {
            continue;
        }
        let Some(node) = graph.maker(value) else { continue };
        let op = node.op.op_type();
        if MAKE_CHANNELS.contains(&op) {
            return true;
        }
        let shape = shapes.get(value);
        open.extend(node.inputs.iter().flatten().filter(|&&input| match (shape, shapes.get(input)) {
            (Some(to), Some(from)) if ELEMENTWISE.contains(&op) || KEEP_AXES.contains(&op) => to.len() == from.len(),
            // Planes may become lines; channels stay if there are as many.
            (Some([_, Some(to), ..]), Some([_, Some(from), ..])) => JOIN_AXES.contains(&op) && to == from,
            _ => false,
        }));
    }
    false
}
