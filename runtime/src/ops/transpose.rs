use super::host;
use super::{Case, CaseInput, NodeView, Op, OpError, Simplified, TensorType};
use crate::graph::{Attributes, HostTensor};
use crate::plan::{Backward, Forward, contiguous_strides};

/// Dimensions in another order. Costs nothing: strides say it.
pub struct Transpose;

fn perm(node: &NodeView<'_>) -> Result<Vec<usize>, OpError> {
    let rank = node.shape(0)?.len();
    let perm: Vec<usize> = match node.attributes.ints("perm") {
        Some(perm) => perm.iter().map(|&p| node.axis(p, rank)).collect::<Result<_, _>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    if sorted == (0..rank).collect::<Vec<_>>() { Ok(perm) } else { Err(node.shape_error("perm lists every axis once")) }
}

impl Op for Transpose {
    fn op_type(&self) -> &'static str {
        "Transpose"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let x = node.ty(0)?;
        Ok(vec![TensorType::new(x.dtype, perm(node)?.into_iter().map(|p| x.shape[p]).collect::<Vec<_>>())])
    }

    fn simplify(&self, node: &NodeView<'_>) -> Result<Option<Simplified>, OpError> {
        let x = node.input(0)?;
        let perm = perm(node)?;
        if x.zero {
            return Ok(Some(Simplified::Zero));
        }
        Ok(match (x.frozen, x.value) {
            (Some(frozen), None) if perm == [1, 0] => Some(Simplified::Frozen(frozen.transpose())),
            _ => None,
        })
    }

    fn on_host(&self) -> bool {
        true
    }

    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        let x = node.value(0)?;
        let perm = perm(node)?;
        let strides = contiguous_strides(x.shape());
        let shape: Vec<usize> = perm.iter().map(|&p| x.shape()[p]).collect();
        let strides: Vec<isize> = perm.iter().map(|&p| strides[p] as isize).collect();
        Ok(vec![x.select(&shape, &host::positions(&shape, &strides, 0))])
    }

    fn differentiable(&self, _: usize) -> bool {
        true
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let perm = perm(&cx.node())?;
        let x = cx.input(0)?;
        cx.set_output(0, x.permuted(&perm));
        Ok(())
    }

    fn backward(&self, _: &mut Backward<'_, '_>) -> Result<(), OpError> {
        // The gradient is shared.
        Ok(())
    }

    fn samples(&self) -> Vec<Case> {
        let perm = Attributes::default().with_ints("perm", &[0, 2, 1, 3]);
        vec![
            Case::new("reversed", Attributes::default(), vec![CaseInput::step(1, &[2, 3, 4])]),
            Case::new("heads", perm, vec![CaseInput::step(1, &[2, 3, 4, 5])]),
        ]
    }
}
