//! Whether each sample of a batch goes its own way through a graph: what it takes to give each its own parameters.

use super::PlanError;
use super::analyze::{Analysis, Role, Step};
use crate::graph::Graph;
use crate::ops::{self, axis_of};

/// Ops that take each element of the output from the elements of the inputs at its place.
pub(crate) const ELEMENTWISE: &[&str] = &[
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Max",
    "Min",
    "Mod",
    "Equal",
    "Less",
    "LessOrEqual",
    "Greater",
    "GreaterOrEqual",
    "And",
    "Or",
    "Where",
    "IsNaN",
    "Not",
    "Cast",
    "Expand",
    "Identity",
    "Dropout",
    "Relu",
    "LeakyRelu",
    "Tanh",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Gelu",
    "Erf",
    "Exp",
    "Log",
    "Sqrt",
    "Reciprocal",
    "Neg",
    "Abs",
    "Sin",
    "Cos",
    "Clip",
    "Softplus",
    "Swish",
];

/// Ops that keep row-major order.
const RESHAPES: &[&str] = &["Reshape", "Flatten", "Squeeze", "Unsqueeze"];

/// Ops that treat every sample alike when the first axis is that of samples, and look at no other.
const PER_IMAGE: &[&str] =
    &["Conv", "ConvTranspose", "BatchNormalization", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"];

/// What a value depends on.
#[derive(Clone, Copy)]
enum Of<'a> {
    /// No sample: the same for all.
    None,
    /// In row-major order, one part of equal size a sample, which depends on that sample only.
    Each,
    /// Several samples, for all that is known of this node.
    Several(&'a Step),
}

/// Checks that with `rows` samples in the batch, everything that the device computes keeps them apart, in order.
pub(super) fn check(graph: &Graph, analysis: &Analysis, rows: usize) -> Result<(), PlanError> {
    let mut of = vec![Of::None; analysis.values.len()];
    let batch = graph.inputs().first().and_then(|port| port.shape.first());
    for (port, &value) in graph.inputs().iter().zip(&analysis.inputs) {
        let shape = &analysis.values[value].ty.shape;
        if shape.first() != Some(&rows) || port.shape.first() != batch {
            return Err(PlanError::RowsOfInput { name: port.name.clone(), found: shape.clone(), rows });
        }
        of[value] = Of::Each;
    }
    let on_host = analysis.prologue.iter().map(|step| (step, true));
    for (step, on_host) in on_host.chain(analysis.steps.iter().map(|step| (step, false))) {
        let inputs: Vec<Of<'_>> = step.inputs.iter().map(|i| i.map_or(Of::None, |i| of[i])).collect();
        let several = inputs.iter().copied().find(|of| matches!(of, Of::Several(_)));
        let out = match several {
            Some(several) => several,
            None if !inputs.iter().any(|of| matches!(of, Of::Each)) => Of::None,
            None if (Node { analysis, step, of: &inputs, rows }).keeps_rows_apart() == Some(true) => Of::Each,
            None => Of::Several(step),
        };
        // What the host computes may not be needed.
        if let (Of::Several(culprit), false) = (out, on_host) {
            return Err(PlanError::MixesRows { node: culprit.label.clone(), op: format!("{:?}", culprit.op) });
        }
        step.outputs.iter().flatten().for_each(|&output| of[output] = out);
    }
    Ok(())
}

/// Checks that every parameter is used where each sample can have its own.
pub(super) fn check_uses(analysis: &Analysis) -> Result<(), PlanError> {
    for step in &analysis.steps {
        for (at, value) in step.inputs.iter().enumerate() {
            let is_parameter = value.is_some_and(|v| matches!(analysis.values[v].role, Role::Parameter(_)));
            let fits = match step.op.op_type() {
                ops::LINEAR_TYPE => at == 3 || at == 4,
                "Conv" => at == 1,
                _ => false,
            };
            if is_parameter && !fits {
                return Err(PlanError::MixesRows { node: step.label.clone(), op: format!("{:?}", step.op) });
            }
        }
    }
    Ok(())
}

/// A node that depends on samples.
struct Node<'a> {
    analysis: &'a Analysis,
    step: &'a Step,
    /// What each input depends on.
    of: &'a [Of<'a>],
    rows: usize,
}

impl Node<'_> {
    /// `None` where the node is not as its op wants it.
    fn keeps_rows_apart(&self) -> Option<bool> {
        let shapes_fit = (0..self.step.inputs.len()).filter(|&i| self.each(i)).all(|i| {
            self.shape(i).is_some_and(|shape| shape.first().is_some_and(|first| first.is_multiple_of(self.rows)))
        });
        let output = self.step.outputs.iter().flatten().next().map(|&o| self.analysis.values[o].ty.shape.as_slice())?;
        let x = self.shape(0)?;
        let attributes = &self.step.attributes;
        let only = |first: usize| (0..self.step.inputs.len()).all(|i| i == first || !self.each(i));
        // An input that the samples' axis of the output is the first axis of.
        let leads = |i: usize| {
            !self.each(i) || self.shape(i).is_some_and(|s| s.len() == output.len() && s.first() == output.first())
        };
        let apart = match self.step.op.op_type() {
            op if ELEMENTWISE.contains(&op) => (0..self.step.inputs.len()).all(leads),
            op if RESHAPES.contains(&op) => only(0),
            op if PER_IMAGE.contains(&op) => only(0),
            ops::SCALE_TYPE => true,
            "MatMul" => (leads(0) && output.len() >= 2) && (leads(1) && (!self.each(1) || output.len() >= 3)),
            "MatMulNBits" => only(0) && output.len() >= 2,
            "Gemm" => only(0) && attributes.int("transA", 0) == 0,
            "LayerNormalization" => only(0) && axis_of(attributes.int("axis", -1), x.len()).ok()? != 0,
            "Softmax" | "LogSoftmax" => axis_of(attributes.int("axis", -1), x.len()).ok()? != 0,
            "Transpose" => attributes.ints("perm").is_some_and(|perm| perm.first() == Some(&0)),
            "Concat" => axis_of(attributes.int("axis", 0), x.len()).ok()? != 0,
            "Split" => only(0) && axis_of(attributes.int("axis", 0), x.len()).ok()? != 0,
            "Gather" if self.each(0) => {
                only(0) && (axis_of(attributes.int("axis", 0), x.len()).ok()? != 0 || self.gathers_own(1))
            }
            "Gather" => axis_of(attributes.int("axis", 0), x.len()).ok()? == 0,
            "GatherND" => only(0) && attributes.int("batch_dims", 0) == 0 && self.gathers_own(*self.shape(1)?.last()?),
            // The axes are an input, or all of them.
            "ReduceSum" | "ReduceMean" | "ReduceMax" => only(0) && self.axes(1)?.iter().all(|axis| *axis != 0),
            "Resize" => only(0) && ops::resize::keeps_first_axis(&self.analysis.view(self.step)).ok()?,
            "Slice" => only(0) && self.axes(3)?.iter().all(|axis| *axis != 0),
            _ => false,
        };
        Some(shapes_fit && apart)
    }

    fn each(&self, input: usize) -> bool {
        matches!(self.of[input], Of::Each)
    }

    fn shape(&self, input: usize) -> Option<&[usize]> {
        let value = self.step.inputs.get(input).copied().flatten()?;
        Some(&self.analysis.values[value].ty.shape)
    }

    /// The axes that an input lists, counted from the front.
    fn axes(&self, input: usize) -> Option<Vec<usize>> {
        let rank = self.shape(0)?.len();
        let axes = match self.ints(input) {
            Some(axes) => axes,
            None => self.step.attributes.ints("axes")?.to_vec(),
        };
        axes.into_iter().map(|axis| axis_of(axis, rank).ok()).collect()
    }

    fn ints(&self, input: usize) -> Option<Vec<i64>> {
        match &self.analysis.values[self.step.inputs.get(input).copied().flatten()?].role {
            Role::Constant { host: Some(host), .. } => host.ints(),
            _ => None,
        }
    }

    /// Whether known tuples of `width` indices, of which the first is along the first axis, take what belongs to each
    /// sample from that sample's part.
    fn gathers_own(&self, width: usize) -> bool {
        let (Some(indices), Some(&[len, ..])) = (self.ints(1), self.shape(0)) else { return false };
        let tuples = indices.len() / width.max(1);
        if width == 0 || tuples == 0 || !tuples.is_multiple_of(self.rows) || !len.is_multiple_of(self.rows) {
            return false;
        }
        let (part, own) = (len / self.rows, tuples / self.rows);
        indices.chunks_exact(width).enumerate().all(|(i, tuple)| {
            let first = if tuple[0] < 0 { tuple[0] + len as i64 } else { tuple[0] };
            usize::try_from(first).is_ok_and(|first| first / part == i / own)
        })
    }
}
