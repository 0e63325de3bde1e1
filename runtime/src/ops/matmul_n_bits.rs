use inlay_format::quant::{Form, Int4, Layout, PartsMut, Scheme, ZeroPoints};

use super::{Case, CaseInput, NodeView, Op, OpError, TensorType};
use crate::graph::{Attributes, DType, HostTensor};
use crate::plan::{Backward, Forward, Frozen, HostOrFrozen};

/// `y = x W^T + bias` with a frozen int4 W [N, K], of ONNX Runtime's domain. It is fused to
/// [`LINEAR`](super::LINEAR), always.
///
/// Inputs: x [.., K]; B uint8 [N, blocks, block / 2]; scales f32 [N, blocks] in any shape; then, each optional, zero
/// points, packed in uint8 [N, ceil(blocks / 2)] or f32 [N, blocks], in any shape; g_idx, which must be absent; bias [N].
pub struct MatMulNBits;

/// Position of the bias among the inputs.
pub(crate) const BIAS: usize = 5;

/// The frozen [N, K].
pub(crate) fn packed(node: &NodeView<'_>) -> Result<Frozen, OpError> {
    let unsupported =
        |what| OpError::Unsupported { what, way_out: "run `converter export` on the original float model" };
    let size = |name: &str| usize::try_from(node.attributes.int(name, 0)).unwrap_or(0);
    let (n, k, block) = (size("N"), size("K"), size("block_size"));
    if size("bits") != 4 || size("weight_prepacked") != 0 {
        return Err(unsupported("MatMulNBits of other than plain 4 bits"));
    }
    if node.optional(4).is_some() {
        return Err(unsupported("MatMulNBits with g_idx"));
    }
    if block == 0 || !k.is_multiple_of(block) || node.shape(1)? != [n, k / block, block / 2] {
        return Err(node.shape_error("B is [N, K / block_size, block_size / 2], and K a multiple of block_size"));
    }
    let b = node.input(1)?.frozen.ok_or(OpError::NotConstant { input: 1 })?;
    let zero_points = match node.optional(3) {
        Some(_) => Some(HostOrFrozen::of(node, 3)?),
        None => None,
    };
    b.blocked([n, k], &HostOrFrozen::of(node, 2)?, zero_points.as_ref())
}

impl Op for MatMulNBits {
    fn op_type(&self) -> &'static str {
        "MatMulNBits"
    }

    fn domain(&self) -> &'static str {
        "com.microsoft"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let x = node.ty(0)?;
        let &[n, k] = packed(node)?.shape().as_slice() else { unreachable!("a packed weight is a matrix") };
        let mut shape = x.shape.clone();
        match shape.last_mut() {
            Some(last) if *last == k && x.shape.len() > 1 => *last = n,
            _ => return Err(node.shape_error("x has at least two dimensions, the last one K")),
        }
        if let Some(bias) = node.optional(BIAS)
            && bias.ty.shape != [n]
        {
            return Err(node.shape_error("the bias has one element for each of N"));
        }
        Ok(vec![TensorType::new(x.dtype, shape)])
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn forward(&self, _: &mut Forward<'_, '_>) -> Result<(), OpError> {
        Err(OpError::NotConstant { input: BIAS })
    }

    fn backward(&self, _: &mut Backward<'_, '_>) -> Result<(), OpError> {
        Err(OpError::NotDifferentiable { what: "MatMulNBits" })
    }

    fn samples(&self) -> Vec<Case> {
        let case = |label: &str, zero_points: ZeroPoints, bias: bool| {
            let (n, k, form) = (9, 48, Form { block: 16, zero_points });
            let sizes = Int4.sizes(Layout::NK, [k, n], form).expect("48 is a multiple of 16");
            let (mut data, mut scales) = (vec![0; sizes.data], vec![0.0; sizes.scales]);
            let mut zeros = vec![0; sizes.zero_points];
            let parts = PartsMut { data: &mut data, scales: &mut scales, zero_points: &mut zeros };
            let CaseInput::Constant(values) = CaseInput::constant(2, &[n, k]) else { unreachable!() };
            Int4.encode(values.floats().expect("floats"), Layout::NK, [k, n], parts).expect("they are finite");
            let packed = |shape: &[usize], bytes| CaseInput::Packed { dtype: DType::U8, shape: shape.into(), bytes };
            let mut inputs = vec![
                CaseInput::step(1, &[2, 3, k]),
                packed(&[n, 3, 8], data),
                CaseInput::Constant(HostTensor::of([n * 3], scales)),
                match zero_points {
                    ZeroPoints::None => CaseInput::Absent,
                    ZeroPoints::Integer => packed(&[n * 2], zeros),
                    ZeroPoints::Float => {
                        CaseInput::Constant(HostTensor::of([n, 3], bytemuck::pod_collect_to_vec::<u8, f32>(&zeros)))
                    }
                },
            ];
            if bias {
                inputs.extend([CaseInput::Absent, CaseInput::constant(3, &[n])]);
            }
            let attributes = Attributes::default()
                .with_int("N", n as i64)
                .with_int("K", k as i64)
                .with_int("bits", 4)
                .with_int("block_size", 16);
            Case::new(label, attributes, inputs)
        };
        vec![
            case("symmetric", ZeroPoints::None, false),
            case("zero points and bias", ZeroPoints::Integer, true),
            case("zero points between the levels", ZeroPoints::Float, false),
        ]
    }
}
