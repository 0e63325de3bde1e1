use super::{Case, CaseInput, NodeView, Op, OpError, Simplified, TensorType};
use crate::graph::{Attributes, DType};
use crate::plan::{Backward, Forward, HostOrFrozen};

/// `y = (q - zero_point) scale` of an int8 initializer: what spells a quantized weight, and is never computed.
pub struct DequantizeLinear;

impl Op for DequantizeLinear {
    fn op_type(&self) -> &'static str {
        "DequantizeLinear"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        Ok(vec![TensorType::new(DType::F32, node.shape(0)?)])
    }

    fn simplify(&self, node: &NodeView<'_>) -> Result<Option<Simplified>, OpError> {
        let unsupported =
            |what| OpError::Unsupported { what, way_out: "run `converter export` on the original float model" };
        let q = node.input(0)?.frozen.ok_or_else(|| unsupported("DequantizeLinear of computed values"))?;
        if node.attributes.int("block_size", 0) != 0 {
            return Err(unsupported("DequantizeLinear in blocks"));
        }
        if let Some(zero_point) = node.optional(2)
            && !zero_point.frozen.is_some_and(|z| z.is_zero())
        {
            return Err(unsupported("a zero point that is not zero"));
        }
        let scale = node.input(1)?;
        let scales = match (scale.value, scale.frozen) {
            (Some(value), _) => HostOrFrozen::Host(value),
            (None, Some(frozen)) => HostOrFrozen::Frozen(frozen),
            (None, None) => return Err(OpError::NotConstant { input: 1 }),
        };
        let axis = node.axis(node.attributes.int("axis", 1), node.shape(0)?.len())?;
        Ok(Some(Simplified::Frozen(q.dequantize(&scales, axis)?)))
    }

    fn differentiable(&self, _: usize) -> bool {
        false
    }

    fn forward(&self, _: &mut Forward<'_, '_>) -> Result<(), OpError> {
        Err(OpError::NotConstant { input: 0 })
    }

    fn backward(&self, _: &mut Backward<'_, '_>) -> Result<(), OpError> {
        Err(OpError::NotDifferentiable { what: "DequantizeLinear" })
    }

    fn samples(&self) -> Vec<Case> {
        // Int8 inputs of other ops' cases are spelled with this op.
        vec![Case::new("through Identity", Attributes::default(), vec![CaseInput::int8(1, &[4, 6], 1)])]
    }
}
