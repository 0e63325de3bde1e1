use inlay_devices::kernels::UnaryOp;

use super::{Case, CaseInput, INLAY, NodeView, Op, OpError, TensorType};
use crate::graph::Attributes;
use crate::plan::{Backward, Forward};

/// `y = factor x`. Made where a parameter is fed scaled.
pub struct Scale;

impl Op for Scale {
    fn op_type(&self) -> &'static str {
        super::SCALE_TYPE
    }

    fn domain(&self) -> &'static str {
        INLAY
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        Ok(vec![node.ty(0)?.clone()])
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let x = cx.contiguous_input(0)?;
        let y = cx.output(0);
        let factor = cx.attributes().float("factor", 1.0);
        cx.unary(UnaryOp::Affine, [factor, 0.0], &x, &y, false);
        Ok(())
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let Some(dy) = cx.contiguous_gradient(0) else { return Ok(()) };
        let factor = cx.attributes().float("factor", 1.0);
        cx.add(0, |l, dx, acc| {
            l.unary(UnaryOp::Affine, [factor, 0.0], &dy, dx, acc);
            Ok(())
        })
    }

    fn samples(&self) -> Vec<Case> {
        vec![Case::new("half", Attributes::default().with_float("factor", 0.5), vec![CaseInput::step(1, &[3, 4])])]
    }
}
