use inlay_devices::kernels::BinaryOp;

use super::{Case, CaseInput, NodeView, Op, OpError, TensorType};
use crate::graph::{Attributes, HostTensor};
use crate::plan::{Backward, Forward, Lowering, View};

/// `y = (x - mean) / sqrt(var + epsilon) scale + bias` per channel, with frozen statistics.
pub struct BatchNormalization;

/// Factor and addend of each channel.
fn affine(cx: &Forward<'_, '_>) -> Result<[Vec<f32>; 2], OpError> {
    let node = cx.node();
    let channels = node.shape(0)?[1];
    let vector = |input: usize| {
        let values = cx.frozen(input).ok_or(OpError::NotConstant { input })?.floats()?;
        if values.len() == channels { Ok(values) } else { Err(node.shape_error("one number per channel")) }
    };
    let [scale, bias, mean, variance] = [vector(1)?, vector(2)?, vector(3)?, vector(4)?];
    let epsilon = node.attributes.float("epsilon", 1e-5);
    let factor: Vec<f32> = scale.iter().zip(&variance).map(|(s, v)| s / (v + epsilon).sqrt()).collect();
    let addend = bias.iter().zip(&mean).zip(&factor).map(|((b, m), f)| b - m * f).collect();
    Ok([factor, addend])
}

/// One number per channel, broadcasting over [B, C, ..].
fn channel_constant(lowering: &mut Lowering<'_>, values: &[f32], rank: usize) -> View {
    let mut shape = vec![1; rank - 1];
    shape[0] = values.len();
    lowering.constant(&shape, values)
}

impl Op for BatchNormalization {
    fn op_type(&self) -> &'static str {
        "BatchNormalization"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        if node.attributes.int("training_mode", 0) != 0 || node.outputs > 1 {
            return Err(OpError::Unsupported {
                what: "BatchNormalization in training mode",
                way_out: "export the model in evaluation mode",
            });
        }
        if node.shape(0)?.len() < 2 {
            return Err(node.shape_error("x is [B, C, ..]"));
        }
        Ok(vec![node.ty(0)?.clone()])
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let [factor, addend] = affine(cx)?;
        let x = cx.input(0)?;
        let rank = x.shape().len();
        let factor = channel_constant(cx, &factor, rank);
        let addend = channel_constant(cx, &addend, rank);
        let scaled = cx.scratch(x.shape());
        let y = cx.output(0);
        cx.binary(BinaryOp::Mul, [&x, &factor], &scaled, false)?;
        cx.binary(BinaryOp::Add, [&scaled, &addend], &y, false)?;
        cx.save(factor);
        Ok(())
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let Some(dy) = cx.gradient(0) else { return Ok(()) };
        let factor = cx.saved(0);
        cx.add(0, |l, dx, acc| l.binary(BinaryOp::Mul, [&dy, &factor], dx, acc))
    }

    fn samples(&self) -> Vec<Case> {
        let variance = CaseInput::Constant(HostTensor::of([3], vec![0.5f32, 1.0, 2.0]));
        let inputs = |shape: &[usize]| {
            vec![
                CaseInput::step(1, shape),
                CaseInput::constant(2, &[3]),
                CaseInput::constant(3, &[3]),
                CaseInput::constant(4, &[3]),
                variance.clone(),
            ]
        };
        let epsilon = Attributes::default().with_float("epsilon", 1e-3);
        vec![
            Case::new("signal", Attributes::default(), inputs(&[2, 3, 5])),
            Case::new("features", epsilon, inputs(&[4, 3])),
        ]
    }
}
