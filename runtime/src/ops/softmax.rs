use inlay_devices::kernels::{BinaryOp, ReduceOp, Softmax as SoftmaxKernel, SoftmaxGrad, SoftmaxParams, UnaryOp};

use super::{Case, CaseInput, NodeView, Op, OpError, TensorType};
use crate::graph::Attributes;
use crate::plan::{Backward, Forward, Lowering, View, u};

/// `Softmax` and `LogSoftmax` along an axis.
pub struct Softmax {
    op_type: &'static str,
    log: bool,
}

/// `e^x / sum e^x`.
pub static SOFTMAX: Softmax = Softmax { op_type: "Softmax", log: false };
/// `x - log sum e^x`.
pub static LOG_SOFTMAX: Softmax = Softmax { op_type: "LogSoftmax", log: true };

/// The order of dimensions that puts the axis last, which is its own inverse.
fn axis_last(node: &NodeView<'_>) -> Result<Vec<usize>, OpError> {
    let rank = node.shape(0)?.len();
    let axis = node.axis(node.attributes.int("axis", -1), rank)?;
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(axis, rank - 1);
    Ok(perm)
}

fn params(x: &View, flags: u32) -> SoftmaxParams {
    let cols = x.shape().last().copied().unwrap_or(1);
    SoftmaxParams { rows: u(x.count() / cols.max(1)), cols: u(cols), flags }
}

/// One element for each row of `x`, from a reduction along the last axis.
fn row_reduction(l: &mut Lowering<'_>, op: ReduceOp, x: &View) -> Result<View, OpError> {
    let rank = x.shape().len();
    let mut shape = x.shape().to_vec();
    shape[rank - 1] = 1;
    let rows = l.scratch(&shape);
    l.reduce(op, x, &[rank - 1], 1.0, &rows, false)?;
    Ok(rows)
}

impl Op for Softmax {
    fn op_type(&self) -> &'static str {
        self.op_type
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        axis_last(node)?;
        Ok(vec![node.ty(0)?.clone()])
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let perm = axis_last(&cx.node())?;
        let x = cx.input(0)?.permuted(&perm);
        let x = cx.contiguous(&x);
        let y = cx.scratch(x.shape());
        if self.log {
            let max = row_reduction(cx, ReduceOp::Max, &x)?;
            let [shifted, exp] = [(); 2].map(|()| cx.scratch(x.shape()));
            cx.binary(BinaryOp::Sub, [&x, &max], &shifted, false)?;
            cx.unary(UnaryOp::Exp, [0.0; 2], &shifted, &exp, false);
            let sum = row_reduction(cx, ReduceOp::Sum, &exp)?;
            let log = cx.scratch(sum.shape());
            cx.unary(UnaryOp::Log, [0.0; 2], &sum, &log, false);
            cx.binary(BinaryOp::Sub, [&shifted, &log], &y, false)?;
        } else {
            cx.call::<SoftmaxKernel>(&params(&x, 0), &[(&x).into(), (&y).into()]);
        }
        cx.set_output(0, y.permuted(&perm));
        Ok(())
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let perm = axis_last(&cx.node())?;
        let Some(dy) = cx.gradient(0) else { return Ok(()) };
        let y = cx.output(0)?.permuted(&perm);
        let dy = cx.contiguous_copy(&dy.permuted(&perm));
        let dx = cx.scratch(y.shape());
        if self.log {
            // dx = dy - softmax(x) sum dy
            let probabilities = cx.scratch(y.shape());
            cx.unary(UnaryOp::Exp, [0.0; 2], &y, &probabilities, false);
            let sum = row_reduction(cx, ReduceOp::Sum, &dy)?;
            let part = cx.scratch(y.shape());
            cx.binary(BinaryOp::Mul, [&probabilities, &sum], &part, false)?;
            cx.binary(BinaryOp::Sub, [&dy, &part], &dx, false)?;
        } else {
            let params = params(&y, 0);
            cx.call::<SoftmaxGrad>(&params, &[(&y).into(), (&dy).into(), (&dx).into()]);
        }
        let (target, accumulate) = cx.target(0)?;
        cx.copy(&dx, &target.permuted(&perm), accumulate);
        Ok(())
    }

    fn samples(&self) -> Vec<Case> {
        let axis = Attributes::default().with_int("axis", 1);
        vec![
            Case::new("last axis", Attributes::default(), vec![CaseInput::step(1, &[3, 5])]),
            Case::new("inner axis", axis, vec![CaseInput::step(2, &[2, 4, 3])]),
        ]
    }
}
