use super::host;
use super::{Case, CaseInput, NodeView, Op, OpError, Simplified, TensorType, axis_of};
use crate::graph::{Attributes, HostTensor};
use crate::plan::{Backward, Forward, contiguous_strides};

/// A range of indices of some axes.
pub struct Slice;

/// First index, distance and number of the indices of every axis.
type Ranges = Vec<(usize, i64, usize)>;

fn ranges(node: &NodeView<'_>) -> Result<Ranges, OpError> {
    let shape = node.shape(0)?;
    let (starts, ends) = (node.ints(1)?, node.ints(2)?);
    let axes = match node.optional_ints(3)? {
        Some(axes) => axes,
        None => (0..starts.len() as i64).collect(),
    };
    let steps = node.optional_ints(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err(node.shape_error("starts, ends, axes and steps have one length"));
    }
    let mut ranges: Ranges = shape.iter().map(|&d| (0, 1, d)).collect();
    for i in 0..starts.len() {
        let axis = axis_of(axes[i], shape.len())?;
        let (len, step) = (shape[axis] as i64, steps[i]);
        let from_front = |x: i64| if x < 0 { x.saturating_add(len) } else { x };
        let (start, end) = (from_front(starts[i]), from_front(ends[i]));
        ranges[axis] = match step {
            1.. => {
                let (start, end) = (start.clamp(0, len), end.clamp(0, len));
                let count = (end - start).max(0).unsigned_abs().div_ceil(step.unsigned_abs());
                (start as usize, step, count as usize)
            }
            ..0 if len > 0 => {
                let (start, end) = (start.clamp(0, len - 1), end.clamp(-1, len - 1));
                let count = (start - end).max(0).unsigned_abs().div_ceil(step.unsigned_abs());
                (start as usize, step, count as usize)
            }
            ..0 => (0, 1, 0),
            0 => {
                return Err(OpError::Value { what: "a step", found: "0".into(), expected: "another number" });
            }
        };
    }
    Ok(ranges)
}

impl Op for Slice {
    fn op_type(&self) -> &'static str {
        "Slice"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let shape: Vec<usize> = ranges(node)?.into_iter().map(|(_, _, count)| count).collect();
        Ok(vec![TensorType::new(node.ty(0)?.dtype, shape)])
    }

    fn simplify(&self, node: &NodeView<'_>) -> Result<Option<Simplified>, OpError> {
        let whole = ranges(node)?.iter().zip(node.shape(0)?).all(|(&range, &len)| range == (0, 1, len));
        Ok(whole.then_some(Simplified::Same(0)))
    }

    fn on_host(&self) -> bool {
        true
    }

    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        let x = node.value(0)?;
        let ranges = ranges(node)?;
        let own = contiguous_strides(x.shape());
        let shape: Vec<usize> = ranges.iter().map(|r| r.2).collect();
        let strides: Vec<isize> = ranges.iter().zip(&own).map(|(r, &s)| r.1 as isize * s as isize).collect();
        let offset = ranges.iter().zip(&own).map(|(r, s)| r.0 * s).sum();
        let positions = if shape.contains(&0) { Vec::new() } else { host::positions(&shape, &strides, offset) };
        Ok(vec![x.select(&shape, &positions)])
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let ranges = ranges(&cx.node())?;
        let mut view = cx.input(0)?;
        for (axis, (start, step, count)) in ranges.into_iter().enumerate() {
            let step = usize::try_from(step).map_err(|_| OpError::Unsupported {
                what: "a slice with a negative step of computed floats",
                way_out: "reverse the data before it is fed",
            })?;
            view = view.sliced(axis, start, step, count);
        }
        cx.set_output(0, view);
        Ok(())
    }

    fn backward(&self, _: &mut Backward<'_, '_>) -> Result<(), OpError> {
        // The gradient is a part of that of the input.
        Ok(())
    }

    fn samples(&self) -> Vec<Case> {
        let case = |label: &str, lists: &[&[i64]]| {
            let mut inputs = vec![CaseInput::step(1, &[4, 5, 3])];
            inputs.extend(lists.iter().map(|list| CaseInput::ints(list)));
            Case::new(label, Attributes::default(), inputs)
        };
        vec![
            case("leading", &[&[1], &[3]]),
            case("from the end", &[&[-2, 0], &[i64::MAX, -1], &[1, 2]]),
            case("every other", &[&[0], &[5], &[1], &[2]]),
        ]
    }
}

/// Cuts an axis in parts.
pub struct Split;

/// The axis and the length of each part.
fn parts(node: &NodeView<'_>) -> Result<(usize, Vec<usize>), OpError> {
    let shape = node.shape(0)?;
    let axis = node.axis(node.attributes.int("axis", 0), shape.len())?;
    let listed = match node.optional_ints(1)? {
        Some(split) => Some(split),
        None => node.attributes.ints("split").map(<[i64]>::to_vec),
    };
    let bad = || node.shape_error("parts add up to the axis");
    let parts: Vec<usize> = match listed {
        Some(split) => split.into_iter().map(usize::try_from).collect::<Result<_, _>>().map_err(|_| bad())?,
        None => {
            let each = shape[axis].div_ceil(node.outputs.max(1));
            (0..node.outputs).map(|i| each.min(shape[axis].saturating_sub(i * each))).collect()
        }
    };
    if parts.len() != node.outputs || parts.iter().sum::<usize>() != shape[axis] {
        return Err(bad());
    }
    Ok((axis, parts))
}

impl Op for Split {
    fn op_type(&self) -> &'static str {
        "Split"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let x = node.ty(0)?;
        let (axis, parts) = parts(node)?;
        let part = |len: usize| {
            let mut ty = x.clone();
            ty.shape[axis] = len;
            ty
        };
        Ok(parts.into_iter().map(part).collect())
    }

    fn on_host(&self) -> bool {
        true
    }

    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        let x = node.value(0)?;
        let (axis, parts) = parts(node)?;
        let own = contiguous_strides(x.shape());
        let strides: Vec<isize> = own.iter().map(|&s| s as isize).collect();
        let mut start = 0;
        let part = |len: usize| {
            let mut shape = x.shape().to_vec();
            shape[axis] = len;
            let positions =
                if shape.contains(&0) { Vec::new() } else { host::positions(&shape, &strides, start * own[axis]) };
            start += len;
            x.select(&shape, &positions)
        };
        Ok(parts.into_iter().map(part).collect())
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let (axis, parts) = parts(&cx.node())?;
        let x = cx.input(0)?;
        let mut start = 0;
        for (output, len) in parts.into_iter().enumerate() {
            cx.set_output(output, x.sliced(axis, start, 1, len));
            start += len;
        }
        Ok(())
    }

    fn backward(&self, _: &mut Backward<'_, '_>) -> Result<(), OpError> {
        // The gradients are parts of that of the input.
        Ok(())
    }

    fn samples(&self) -> Vec<Case> {
        let axis = Attributes::default().with_int("axis", 1);
        vec![
            Case::new("listed", axis.clone(), vec![CaseInput::step(1, &[3, 6, 2]), CaseInput::ints(&[1, 3, 2])])
                .outputs(3),
            Case::new("even", axis, vec![CaseInput::step(1, &[3, 6])]).outputs(2),
        ]
    }
}
