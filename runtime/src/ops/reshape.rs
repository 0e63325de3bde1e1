use super::{Case, CaseInput, NodeView, Op, OpError, Simplified, TensorType, axis_of};
use crate::graph::{Attributes, HostTensor};
use crate::plan::{Backward, Forward};

/// Ops that only change the shape: `Reshape`, `Flatten`, `Squeeze`, `Unsqueeze`, `Identity`, `Dropout`.
///
/// They cost nothing where strides can say the new shape.
pub struct Reshape {
    op_type: &'static str,
    shape: fn(&NodeView<'_>) -> Result<Vec<usize>, OpError>,
}

/// The ops of this family.
pub static RESHAPE: [Reshape; 6] = [
    Reshape { op_type: "Reshape", shape: reshape },
    Reshape { op_type: "Flatten", shape: flatten },
    Reshape { op_type: "Squeeze", shape: squeeze },
    Reshape { op_type: "Unsqueeze", shape: unsqueeze },
    Reshape { op_type: "Identity", shape: |node| Ok(node.shape(0)?.to_vec()) },
    Reshape { op_type: "Dropout", shape: |node| Ok(node.shape(0)?.to_vec()) },
];

fn reshape(node: &NodeView<'_>) -> Result<Vec<usize>, OpError> {
    let from = node.shape(0)?;
    let wanted = node.ints(1)?;
    let keep_zero = node.attributes.int("allowzero", 0) != 0;
    let bad = || node.shape_error("the new shape must have as many elements");
    let mut shape = Vec::with_capacity(wanted.len());
    let mut open = None;
    for (i, &d) in wanted.iter().enumerate() {
        shape.push(match d {
            0 if !keep_zero => *from.get(i).ok_or_else(bad)?,
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            d => usize::try_from(d).map_err(|_| bad())?,
        });
    }
    let count: usize = from.iter().product();
    let known = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(bad)?;
    if let Some(open) = open {
        shape[open] = count.checked_div(known).unwrap_or(0);
    }
    if shape.iter().product::<usize>() == count { Ok(shape) } else { Err(bad()) }
}

fn flatten(node: &NodeView<'_>) -> Result<Vec<usize>, OpError> {
    let shape = node.shape(0)?;
    let axis = match node.attributes.int("axis", 1) {
        axis if axis == shape.len() as i64 => shape.len(),
        axis => node.axis(axis, shape.len())?,
    };
    Ok(vec![shape[..axis].iter().product(), shape[axis..].iter().product()])
}

fn listed_axes(node: &NodeView<'_>, rank: usize) -> Result<Option<Vec<usize>>, OpError> {
    let axes = match node.optional_ints(1)? {
        Some(axes) => Some(axes),
        None => node.attributes.ints("axes").map(<[i64]>::to_vec),
    };
    axes.map(|axes| axes.into_iter().map(|a| axis_of(a, rank)).collect()).transpose()
}

fn squeeze(node: &NodeView<'_>) -> Result<Vec<usize>, OpError> {
    let shape = node.shape(0)?;
    let axes = listed_axes(node, shape.len())?.unwrap_or_else(|| (0..shape.len()).filter(|&i| shape[i] == 1).collect());
    if axes.iter().any(|&a| shape[a] != 1) {
        return Err(node.shape_error("squeezed dimensions are 1"));
    }
    Ok((0..shape.len()).filter(|i| !axes.contains(i)).map(|i| shape[i]).collect())
}

fn unsqueeze(node: &NodeView<'_>) -> Result<Vec<usize>, OpError> {
    let shape = node.shape(0)?;
    let count =
        node.optional_ints(1)?.map_or_else(|| node.attributes.ints("axes").map_or(0, <[i64]>::len), |a| a.len());
    let rank = shape.len() + count;
    let axes = listed_axes(node, rank)?.ok_or(OpError::Missing { input: 1 })?;
    let mut rest = shape.iter();
    let dims = (0..rank).map(|i| if axes.contains(&i) { Some(1) } else { rest.next().copied() });
    dims.collect::<Option<Vec<_>>>().ok_or_else(|| node.shape_error("an axis is listed twice"))
}

impl Op for Reshape {
    fn op_type(&self) -> &'static str {
        self.op_type
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        if node.outputs > 1 {
            return Err(OpError::Unsupported { what: "a second output", way_out: "re-export the model for inference" });
        }
        Ok(vec![TensorType::new(node.ty(0)?.dtype, (self.shape)(node)?)])
    }

    fn simplify(&self, node: &NodeView<'_>) -> Result<Option<Simplified>, OpError> {
        let x = node.input(0)?;
        let shape = (self.shape)(node)?;
        if shape == x.ty.shape {
            return Ok(Some(Simplified::Same(0)));
        }
        if x.zero {
            return Ok(Some(Simplified::Zero));
        }
        // Large constants stay where they are.
        Ok(match (x.frozen, x.value) {
            (Some(frozen), None) => frozen.reshape(&shape).map(Simplified::Frozen),
            _ => None,
        })
    }

    fn on_host(&self) -> bool {
        true
    }

    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        Ok(vec![node.value(0)?.clone().reshaped(&(self.shape)(node)?)])
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let x = cx.input(0)?;
        let shape = &cx.output_type(0).shape;
        match x.reshaped(shape) {
            Some(view) => cx.set_output(0, view),
            None => {
                let y = cx.output(0);
                let rows = y.reshaped(x.shape()).expect("it is row-major");
                cx.copy(&x, &rows, false);
            }
        }
        Ok(())
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let (x, y) = (cx.input(0)?, cx.output(0)?);
        if x.buffer == y.buffer {
            // The gradient is shared.
            return Ok(());
        }
        let Some(dy) = cx.contiguous_gradient(0) else { return Ok(()) };
        let dy = dy.reshaped(x.shape()).expect("it is row-major");
        let (target, accumulate) = cx.target(0)?;
        cx.copy(&dy, &target, accumulate);
        Ok(())
    }

    fn samples(&self) -> Vec<Case> {
        let plain = Attributes::default();
        let case = |label: &str, attributes: Attributes, inputs| Case::new(label, attributes, inputs);
        let x = |shape: &[usize]| CaseInput::step(1, shape);
        match self.op_type {
            "Reshape" => vec![
                case("split", plain.clone(), vec![x(&[2, 12]), CaseInput::ints(&[0, 3, -1])]),
                case("join", plain, vec![x(&[2, 3, 4]), CaseInput::ints(&[-1, 4])]),
            ],
            "Flatten" => vec![
                case("default", plain.clone(), vec![x(&[2, 3, 4])]),
                case("all", plain.with_int("axis", 0), vec![x(&[2, 3])]),
            ],
            "Squeeze" => vec![
                case("listed", plain.clone(), vec![x(&[2, 1, 3, 1]), CaseInput::ints(&[1])]),
                case("all", plain, vec![x(&[1, 3, 1])]),
            ],
            "Unsqueeze" => vec![case("two", plain, vec![x(&[2, 3]), CaseInput::ints(&[-1, 0])])],
            _ => vec![case("plain", plain, vec![x(&[2, 3])])],
        }
    }
}
