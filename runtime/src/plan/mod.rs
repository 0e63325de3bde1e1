//! Plans: a graph for concrete shapes, lowered to a static program.

mod analyze;
mod arena;
mod buffers;
mod contexts;
mod emit;
mod frozen;
mod fuse;
mod hooks;
mod lower;
mod make;
mod prologue;
mod rows;
mod shapes;
mod view;

pub use contexts::{Backward, Forward};
pub use frozen::Frozen;
pub use hooks::{Loss, LossContext, Optimizer, UpdateContext};
pub use lower::{Lowering, Operand};
pub use prologue::{FeedError, IGNORED_LABEL, LABELS};
pub use view::View;

pub(crate) use analyze::{Role, node_weight, table_row};
pub(crate) use emit::accumulated;
pub(crate) use frozen::HostOrFrozen;
pub(crate) use lower::u;
pub(crate) use rows::ELEMENTWISE;
pub(crate) use shapes::Shapes;
pub(crate) use view::{broadcast, contiguous_strides};

use std::sync::Arc;

use inlay_devices::backend::{DeviceError, Executable};
use inlay_devices::kernels::KernelError;
use inlay_devices::program::{Program, Slot};

use crate::base::Base;
use crate::graph::{Fragment, FragmentError, Graph, HostTensor};
use crate::merge::Merged;
use crate::ops::{Op, OpError, TensorType};
use prologue::{HostValues, Prologue};

/// What a plan is made for.
#[derive(Clone, Copy)]
pub struct PlanRequest<'a> {
    /// Shape of every input of the base, by name.
    pub inputs: &'a [(&'a str, &'a [usize])],
    /// The parameters that take the place of defaults. All others keep theirs, and cost nothing.
    pub parameters: &'a [Binding],
    /// What an adapter adds to the graph.
    pub fragments: &'a [Fragment],
    /// What the plan does.
    pub mode: Mode<'a>,
    /// For prediction only: how many samples the batch has, when each has parameters of its own.
    pub rows: Option<usize>,
    /// Weights that take the place of the base's.
    pub merged: Option<&'a Merged>,
}

impl<'a> PlanRequest<'a> {
    pub(crate) fn shape(&self, name: &str) -> Option<&'a [usize]> {
        self.inputs.iter().find(|(n, _)| *n == name).map(|(_, shape)| *shape)
    }
}

/// A parameter of an adapter: it takes the place of a graph input with a default, or fragments read it.
#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    /// Name of the graph input, such as `encoder.query.lora_A`, or as fragments have it.
    pub name: String,
    /// Shape, with the rank that it has.
    pub shape: Vec<usize>,
    /// The graph is fed `scale` times the parameter: LoRA's `scaling` for B, else 1.
    pub scale: f32,
}

impl Binding {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// What a plan does.
#[derive(Clone, Copy)]
pub enum Mode<'a> {
    /// Only [`Segment::Forward`](inlay_devices::program::Segment::Forward); every output can be read.
    Predict,
    /// All segments; the trained output can be read.
    Train {
        /// Name of the output that the loss is taken of.
        output: &'a str,
        /// The loss.
        loss: &'a dyn Loss,
        /// The optimizer.
        optimizer: &'a dyn Optimizer,
    },
}

/// Why a plan cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The shape of an input is not given.
    #[error("input \"{name}\" is missing")]
    MissingInput {
        /// Name of the input.
        name: String,
    },
    /// An input that the base does not have.
    #[error("the base has no input \"{name}\"; it has: {known}")]
    UnknownInput {
        /// Name of the input.
        name: String,
        /// Those that it has.
        known: String,
    },
    /// A shape that does not fit the base.
    #[error("\"{name}\" has shape {found:?}, the base expects {expected}")]
    InputShape {
        /// Name of the input or parameter.
        name: String,
        /// What the base says.
        expected: String,
        /// What was given.
        found: Vec<usize>,
    },
    /// A parameter that the base has no place for.
    #[error("the base has no place for the parameter \"{name}\"; it belongs to an adapter of another base")]
    UnknownParameter {
        /// Name of the parameter.
        name: String,
    },
    /// An output that the base does not have, or that cannot be trained.
    #[error("the base has no float output \"{name}\"; it has: {known}")]
    UnknownOutput {
        /// Name of the output.
        name: String,
        /// Those that it has.
        known: String,
    },
    /// Training would not change anything.
    #[error("the parameter \"{name}\" has no influence on the output \"{output}\"; leave its point out of the targets")]
    NoInfluence {
        /// Name of the parameter.
        name: String,
        /// The trained output.
        output: String,
    },
    /// A fragment does not fit the base.
    #[error(transparent)]
    Fragment(#[from] FragmentError),
    /// A value too large for the plan's 32-bit sizes.
    #[error("\"{name}\" of shape {shape:?} is too large; use a smaller batch")]
    TooLarge {
        /// Name of the value.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// The loss does not fit the output.
    #[error("loss {loss} does not fit an output of shape {shape:?}: {rule}")]
    Loss {
        /// Name of the loss.
        loss: String,
        /// Shape of the output.
        shape: Vec<usize>,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// An input without one row a sample, where each sample should have its own adapter.
    #[error(
        "input \"{name}\" of shape {found:?} does not have one row for each of {rows} adapters; give one adapter, or none, for each sample"
    )]
    RowsOfInput {
        /// The input.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// Adapters given.
        rows: usize,
    },
    /// A node that mixes samples, or is not known not to, where each sample should have its own adapter.
    #[error(
        "node \"{node}\" ({op}) is not known to keep the samples of a batch apart; predict the samples of each adapter in a batch of their own"
    )]
    MixesRows {
        /// Node name.
        node: String,
        /// Op.
        op: String,
    },
    /// A node cannot be run with these shapes.
    #[error("node \"{node}\" ({op}): {source}")]
    Node {
        /// Node name.
        node: String,
        /// Op.
        op: String,
        /// The cause.
        source: OpError,
    },
    /// The program breaks a kernel's contract: a fault of this library.
    #[error("internal error: {0}; please report it")]
    Program(#[from] KernelError),
}

impl PlanError {
    pub(crate) fn node(label: &str, op: &'static dyn Op, source: OpError) -> Self {
        PlanError::Node { node: label.to_owned(), op: format!("{op:?}"), source }
    }
}

/// Where a parameter lies: the same elements of
/// [`Region::Params`](inlay_devices::program::Region::Params) and its gradient, `m` and `v`. Where each sample has its
/// own, that of the first; the others follow at distances of [`Plan::row_len`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterSlot {
    /// Name of the graph input.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// First element.
    pub offset: usize,
}

impl ParameterSlot {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An output of a plan.
#[derive(Clone, Debug)]
pub struct PlanOutput {
    /// Name.
    pub name: String,
    /// Element type and shape.
    pub ty: TensorType,
    source: OutputSource,
}

#[derive(Clone, Debug)]
enum OutputSource {
    Device(Slot),
    Host(usize),
}

/// A graph for concrete shapes: a static program, and what the host does before it for each batch.
#[derive(Clone, Debug)]
pub struct Plan {
    program: Arc<Program>,
    prologue: Prologue,
    outputs: Vec<PlanOutput>,
    parameters: Vec<ParameterSlot>,
    row_len: usize,
    labels: Option<TensorType>,
}

/// What the host computed for a batch; needed to read outputs.
#[derive(Debug)]
pub struct Fed(HostValues);

impl Plan {
    /// Makes a plan.
    ///
    /// # Errors
    /// When shapes, parameters or the output do not fit the base, or a node cannot be run or differentiated.
    pub fn new(base: &Base, request: &PlanRequest<'_>) -> Result<Self, PlanError> {
        Self::of_graph(base.graph(), request)
    }

    pub(crate) fn of_graph(graph: &Graph, request: &PlanRequest<'_>) -> Result<Self, PlanError> {
        if request.fragments.is_empty() {
            return make::plan(graph, request);
        }
        let parameters = request.parameters.iter().map(|p| (p.name.as_str(), p.shape.as_slice()));
        make::plan(&graph.with_fragments(request.fragments, parameters)?, request)
    }

    /// What a [`Backend`](inlay_devices::backend::Backend) compiles.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// The outputs that can be read.
    pub fn outputs(&self) -> &[PlanOutput] {
        &self.outputs
    }

    /// Where parameters lie, in the order of the request.
    pub fn parameters(&self) -> &[ParameterSlot] {
        &self.parameters
    }

    /// Elements that all parameters of one sample, or of all, take in
    /// [`Region::Params`](inlay_devices::program::Region::Params).
    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// Type of the labels, where the plan trains.
    pub fn labels(&self) -> Option<&TensorType> {
        self.labels.as_ref()
    }

    /// Checks a batch, computes what the host computes, and writes what the device reads. Call before each run of
    /// the forward segment.
    ///
    /// # Errors
    /// When an input or the labels are missing, not finite, out of range, or of another type than the plan has.
    pub fn feed(
        &self,
        executable: &mut dyn Executable,
        inputs: &[(&str, &HostTensor)],
        labels: Option<&HostTensor>,
    ) -> Result<Fed, FeedError> {
        self.prologue.run(executable, inputs, labels).map(Fed)
    }

    /// Reads an output, by its position in [`Plan::outputs`], after the forward segment.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&self, executable: &mut dyn Executable, fed: &Fed, output: usize) -> Result<HostTensor, DeviceError> {
        let PlanOutput { ty, source, .. } = &self.outputs[output];
        Ok(match source {
            OutputSource::Device(slot) => {
                let mut values = vec![0.0; slot.len];
                executable.read(slot.region, slot.offset, &mut values)?;
                HostTensor::of(ty.shape.clone(), values)
            }
            OutputSource::Host(value) => {
                HostTensor::clone(fed.0[*value].as_deref().expect("the nodes that make outputs were kept"))
            }
        })
    }
}

#[cfg(test)]
mod tests;
