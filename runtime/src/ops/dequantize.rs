use inlay_format::quant::{Form, ZeroPoints};

use super::{Case, CaseInput, NodeView, Op, OpError, Simplified, TensorType};
use crate::graph::{Attributes, DType};
use crate::plan::{Backward, Forward, HostOrFrozen};

/// `y = (q - zero_point) scale` of an initializer: what spells a quantized weight, and is never computed. int8 has one
/// scale per channel and no zero point, uint8 both; uint4 and uint8 matrices may have scales and zero points for blocks of
/// the second axis.
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
        let scales = HostOrFrozen::of(node, 1)?;
        let axis = node.axis(node.attributes.int("axis", 1), node.shape(0)?.len())?;
        let zero_point = match node.optional(2) {
            Some(z) => Some(z.frozen.ok_or_else(|| unsupported("a computed zero point"))?),
            None => None,
        };
        let block = node.attributes.int("block_size", 0);
        if block != 0 {
            let blocked = match (node.shape(0)?, node.shape(1)?) {
                (&[n, k], &[rows, blocks]) => axis == 1 && rows == n && i64::try_from(k) == Ok(block * blocks as i64),
                _ => false,
            };
            if !blocked {
                return Err(unsupported("DequantizeLinear in blocks of anything but the second axis of a matrix"));
            }
            return Ok(Some(Simplified::Frozen(q.dequantize_blocks(&scales, zero_point)?)));
        }
        Ok(Some(Simplified::Frozen(q.dequantize(&scales, zero_point, axis)?)))
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
        let case = |label, input| Case::new(label, Attributes::default(), vec![input]);
        let form = |block, zero_points| Form { block, zero_points };
        vec![
            case("int8", CaseInput::int8(1, &[4, 6], 1)),
            case("uint8", CaseInput::uint8(1, &[4, 6], 1, form(0, ZeroPoints::Integer))),
            case("uint8 in blocks", CaseInput::uint8(1, &[3, 48], 0, form(16, ZeroPoints::Integer))),
            case("int4", CaseInput::int4(1, [4, 64], form(32, ZeroPoints::None))),
            case("int4, zero points of odd blocks", CaseInput::int4(1, [3, 48], form(16, ZeroPoints::Integer))),
        ]
    }
}
