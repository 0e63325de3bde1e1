//! What the host computes and writes for each batch: masks, positions, ids.

use std::sync::Arc;

use inlay_devices::backend::{DeviceError, Executable};
use inlay_devices::program::Region;

use super::analyze::{Analysis, Role, Step};
use super::view::View;
use crate::graph::{Attributes, HostData, HostTensor};
use crate::ops::{Input, NodeView, Op, OpError, TensorType};

/// A value that the host writes before the forward segment.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub source: Source,
    pub destination: Destination,
}

#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A value of the analysis.
    Value(usize),
    /// The same every time.
    Constant(HostTensor),
    /// The labels.
    Labels,
}

#[derive(Clone, Debug)]
pub(crate) enum Destination {
    Floats(View),
    /// Integers `0..limit`, and negative ones as far as they mean something.
    Ints {
        view: View,
        limit: usize,
        negative: Negative,
    },
}

/// What negative integers mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Negative {
    /// Counted from the end.
    FromEnd,
    /// [`IGNORED_LABEL`] is a label that does not count; others are out of range.
    Ignored,
}

/// The label of what does not count, as in PyTorch: padding, and what a prompt says.
pub const IGNORED_LABEL: i64 = -100;

/// Why a batch cannot be fed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FeedError {
    /// An input is missing.
    #[error("input \"{name}\" is missing")]
    Missing {
        /// Name of the input.
        name: String,
    },
    /// An input that the plan does not have.
    #[error("there is no input \"{name}\"")]
    Unknown {
        /// Name of the input.
        name: String,
    },
    /// An input of another type or shape than the plan was made for.
    #[error("input \"{name}\" is {found:?}, expected {expected:?}")]
    Type {
        /// Name of the input.
        name: String,
        /// What was given.
        found: TensorType,
        /// What the plan was made for.
        expected: TensorType,
    },
    /// An id, position or label out of range.
    #[error("\"{name}\" holds {found}, expected 0 to {}", .limit - 1)]
    Range {
        /// Name of the value.
        name: String,
        /// The number.
        found: i64,
        /// One more than the largest that fits.
        limit: usize,
    },
    /// NaN or infinity.
    #[error("\"{name}\" holds {found} at element {at}")]
    NotFinite {
        /// Name of the value.
        name: String,
        /// The number.
        found: f32,
        /// Where.
        at: usize,
    },
    /// The host's part of the graph failed on these inputs.
    #[error("node \"{node}\" ({op}): {source}")]
    Node {
        /// Node name.
        node: String,
        /// Op.
        op: String,
        /// The cause.
        source: OpError,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// The host's program.
#[derive(Clone, Debug)]
pub(crate) struct Prologue {
    nodes: Vec<HostNode>,
    /// Names and types of what is fed, with the value it becomes.
    inputs: Vec<(String, TensorType, usize)>,
    /// Labels, where the plan trains.
    labels: Option<TensorType>,
    names: Vec<String>,
    writes: Vec<(Write, usize)>,
    constants: Vec<Option<Arc<HostTensor>>>,
}

#[derive(Clone, Debug)]
struct HostNode {
    label: String,
    op: &'static dyn Op,
    attributes: Arc<Attributes>,
    inputs: Vec<Option<usize>>,
    outputs: Vec<Option<usize>>,
}

/// The values of one batch.
pub(crate) type HostValues = Vec<Option<Arc<HostTensor>>>;

impl Prologue {
    /// Keeps the nodes that `writes` and `wanted` values need. Each write has its place in its region.
    pub fn new(analysis: &Analysis, writes: Vec<(Write, usize)>, wanted: &[usize], labels: Option<TensorType>) -> Self {
        let mut needed = vec![false; analysis.values.len()];
        for (write, _) in &writes {
            if let Source::Value(value) = write.source {
                needed[value] = true;
            }
        }
        wanted.iter().for_each(|&value| needed[value] = true);
        let mut nodes: Vec<&Step> = Vec::new();
        for step in analysis.prologue.iter().rev() {
            if step.outputs.iter().flatten().any(|&o| needed[o]) {
                step.inputs.iter().flatten().for_each(|&i| needed[i] = true);
                nodes.push(step);
            }
        }
        let nodes = nodes.into_iter().rev().map(|step| HostNode {
            label: step.label.clone(),
            op: step.op,
            attributes: Arc::clone(&step.attributes),
            inputs: step.inputs.clone(),
            outputs: step.outputs.clone(),
        });
        let constants = analysis.values.iter().zip(&needed).map(|(value, needed)| match &value.role {
            Role::Constant { host: Some(host), .. } if *needed => Some(Arc::clone(host)),
            _ => None,
        });
        Prologue {
            nodes: nodes.collect(),
            inputs: analysis
                .inputs
                .iter()
                .map(|&i| (analysis.values[i].name.clone(), analysis.values[i].ty.clone(), i))
                .collect(),
            labels,
            names: analysis.values.iter().map(|v| v.name.clone()).collect(),
            writes,
            constants: constants.collect(),
        }
    }

    /// Computes what the host computes, and writes what the device reads.
    pub fn run(
        &self,
        executable: &mut dyn Executable,
        inputs: &[(&str, &HostTensor)],
        labels: Option<&HostTensor>,
    ) -> Result<HostValues, FeedError> {
        let mut values = self.constants.clone();
        if let Some((name, _)) = inputs.iter().find(|(name, _)| self.inputs.iter().all(|(known, ..)| known != name)) {
            return Err(FeedError::Unknown { name: (*name).to_owned() });
        }
        for (name, ty, value) in &self.inputs {
            let (_, given) = inputs
                .iter()
                .find(|(given, _)| given == name)
                .ok_or_else(|| FeedError::Missing { name: name.clone() })?;
            values[*value] = Some(Arc::new(checked(name, ty, given)?));
        }
        let labels = match (&self.labels, labels) {
            (None, _) => None,
            (Some(_), None) => return Err(FeedError::Missing { name: LABELS.to_owned() }),
            (Some(ty), Some(labels)) => Some(checked(LABELS, ty, labels)?),
        };
        for node in &self.nodes {
            node.run(&mut values)?;
        }
        for (write, at) in &self.writes {
            let (name, value) = match &write.source {
                Source::Value(value) => {
                    (self.names[*value].as_str(), values[*value].as_deref().expect("the nodes that make it were kept"))
                }
                Source::Constant(value) => ("a constant", value),
                Source::Labels => (LABELS, labels.as_ref().expect("a plan that writes labels has their type")),
            };
            match &write.destination {
                Destination::Floats(_) => match value.data() {
                    HostData::F32(x) => executable.write(Region::Arena, *at, x)?,
                    _ => executable.write(Region::Arena, *at, &value.to_floats())?,
                },
                Destination::Ints { limit, negative, .. } => {
                    executable.write_ints(*at, &narrowed(name, value, *limit, *negative)?)?;
                }
            }
        }
        Ok(values)
    }
}

/// Name of the labels in data and messages.
pub const LABELS: &str = "labels";

impl HostNode {
    fn run(&self, values: &mut HostValues) -> Result<(), FeedError> {
        let fail = |source| FeedError::Node { node: self.label.clone(), op: format!("{:?}", self.op), source };
        let inputs: Vec<_> = self.inputs.iter().map(|i| i.and_then(|i| values[i].clone())).collect();
        let types: Vec<_> = inputs.iter().map(|i| i.as_ref().map(|t| TensorType::new(t.dtype(), t.shape()))).collect();
        let view = NodeView {
            attributes: &self.attributes,
            inputs: inputs
                .iter()
                .zip(&types)
                .map(|(value, ty)| {
                    ty.as_ref().map(|ty| Input { ty, value: value.as_deref(), frozen: None, zero: false })
                })
                .collect(),
            outputs: self.outputs.len(),
        };
        let results = self.op.evaluate(&view).map_err(fail)?;
        for (output, result) in self.outputs.iter().zip(results) {
            if let Some(output) = output {
                values[*output] = Some(Arc::new(result));
            }
        }
        Ok(())
    }
}

/// A copy of what is fed, integers widened as the graph wants them.
fn checked(name: &str, ty: &TensorType, given: &HostTensor) -> Result<HostTensor, FeedError> {
    use crate::graph::DType;
    let wrong = || FeedError::Type {
        name: name.to_owned(),
        found: TensorType::new(given.dtype(), given.shape()),
        expected: ty.clone(),
    };
    if given.shape() != ty.shape {
        return Err(wrong());
    }
    if let Some(floats) = given.floats()
        && let Some(at) = floats.iter().position(|x| !x.is_finite())
    {
        return Err(FeedError::NotFinite { name: name.to_owned(), found: floats[at], at });
    }
    match (given.dtype(), ty.dtype) {
        (found, expected) if found == expected => Ok(given.clone()),
        (DType::I32, DType::I64) => Ok(HostTensor::of(given.shape(), given.ints().expect("integers are integers"))),
        _ => Err(wrong()),
    }
}

/// Integers `0..limit` as the device takes them; an ignored label is -1.
fn narrowed(name: &str, value: &HostTensor, limit: usize, negative: Negative) -> Result<Vec<i32>, FeedError> {
    let ints = value.ints().unwrap_or_default();
    ints.into_iter()
        .map(|found| {
            let from_front = match negative {
                Negative::FromEnd if found < 0 => found.saturating_add(limit as i64),
                Negative::Ignored if found == IGNORED_LABEL => return Ok(-1),
                _ => found,
            };
            usize::try_from(from_front)
                .ok()
                .filter(|&id| id < limit)
                .and_then(|id| i32::try_from(id).ok())
                .ok_or_else(|| FeedError::Range { name: name.to_owned(), found, limit })
        })
        .collect()
}
