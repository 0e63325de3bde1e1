use super::host;
use super::{Case, CaseInput, NodeView, Op, OpError, Simplified, TensorType};
use crate::graph::{Attributes, HostTensor};
use crate::plan::{Backward, Forward, broadcast};

/// Repeats along dimensions of length 1.
pub struct Expand;

fn shape(node: &NodeView<'_>) -> Result<Vec<usize>, OpError> {
    let bad = || node.shape_error("the input must broadcast to the shape");
    let wanted = node.ints(1)?.into_iter().map(usize::try_from).collect::<Result<Vec<_>, _>>().map_err(|_| bad())?;
    broadcast(node.shape(0)?, &wanted).ok_or_else(bad)
}

impl Op for Expand {
    fn op_type(&self) -> &'static str {
        "Expand"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        Ok(vec![TensorType::new(node.ty(0)?.dtype, shape(node)?)])
    }

    fn simplify(&self, node: &NodeView<'_>) -> Result<Option<Simplified>, OpError> {
        let x = node.input(0)?;
        if x.zero {
            return Ok(Some(Simplified::Zero));
        }
        Ok((shape(node)? == x.ty.shape).then_some(Simplified::Same(0)))
    }

    fn on_host(&self) -> bool {
        true
    }

    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        Ok(vec![host::expand(node.value(0)?, &shape(node)?)])
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let x = cx.input(0)?;
        let y = cx.output(0);
        cx.copy(&x.broadcast_to(y.shape()), &y, false);
        Ok(())
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let Some(dy) = cx.contiguous_gradient(0) else { return Ok(()) };
        cx.add(0, |l, dx, acc| l.reduce_broadcast(&dy, dx, acc))
    }

    fn samples(&self) -> Vec<Case> {
        let case = |label: &str, shape: &[usize], to: &[i64]| {
            Case::new(label, Attributes::default(), vec![CaseInput::step(1, shape), CaseInput::ints(to)])
        };
        vec![
            case("inner", &[2, 1, 3], &[2, 4, 3]),
            case("leading", &[3], &[2, 4, 3]),
            case("smaller target", &[2, 3], &[1, 3]),
        ]
    }
}
