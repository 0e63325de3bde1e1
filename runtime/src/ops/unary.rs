use inlay_devices::kernels::UnaryOp;

use super::{Case, CaseInput, NodeView, Op, OpError, TensorType};
use crate::graph::{Attributes, DType, HostData, HostTensor};
use crate::plan::{Backward, Forward, Lowering, View};

/// An elementwise function of one input: a chain of [`UnaryOp`]s with their constants.
pub struct Unary {
    op_type: &'static str,
    chain: fn(&NodeView<'_>) -> Result<Chain, OpError>,
    /// Keeps sample inputs positive, or away from where the slope jumps.
    inputs: Domain,
}

type Chain = Vec<(UnaryOp, [f32; 2])>;

#[derive(Clone, Copy, PartialEq)]
enum Domain {
    All,
    Positive,
}

const fn simple(op_type: &'static str, chain: fn(&NodeView<'_>) -> Result<Chain, OpError>) -> Unary {
    Unary { op_type, chain, inputs: Domain::All }
}

const fn positive(op_type: &'static str, chain: fn(&NodeView<'_>) -> Result<Chain, OpError>) -> Unary {
    Unary { op_type, chain, inputs: Domain::Positive }
}

fn one(op: UnaryOp) -> Result<Chain, OpError> {
    Ok(vec![(op, [0.0; 2])])
}

/// The ops of this family.
pub static UNARY: [Unary; 21] = [
    simple("Relu", |_| one(UnaryOp::Relu)),
    simple("LeakyRelu", |n| Ok(vec![(UnaryOp::LeakyRelu, [n.attributes.float("alpha", 0.01), 0.0])])),
    simple("Tanh", |_| one(UnaryOp::Tanh)),
    simple("Sigmoid", |_| one(UnaryOp::Sigmoid)),
    simple("HardSigmoid", |n| {
        let affine = [n.attributes.float("alpha", 0.2), n.attributes.float("beta", 0.5)];
        Ok(vec![(UnaryOp::Affine, affine), (UnaryOp::Clip, [0.0, 1.0])])
    }),
    simple("Gelu", |n| match n.attributes.string("approximate", "none") {
        "none" => one(UnaryOp::GeluErf),
        "tanh" => one(UnaryOp::GeluTanh),
        other => Err(OpError::Value { what: "approximate", found: other.to_owned(), expected: "none or tanh" }),
    }),
    simple("Erf", |_| one(UnaryOp::Erf)),
    simple("Exp", |_| one(UnaryOp::Exp)),
    positive("Log", |_| one(UnaryOp::Log)),
    positive("Sqrt", |_| one(UnaryOp::Sqrt)),
    positive("Reciprocal", |_| one(UnaryOp::Reciprocal)),
    simple("Neg", |_| Ok(vec![(UnaryOp::Affine, [-1.0, 0.0])])),
    simple("Abs", |_| one(UnaryOp::Abs)),
    simple("Sin", |_| one(UnaryOp::Sin)),
    simple("Cos", |_| one(UnaryOp::Cos)),
    simple("Clip", |n| {
        let bound = |input: usize, default: f32| match n.optional(input) {
            None => Ok(default),
            Some(_) => n.value(input)?.scalar().ok_or_else(|| n.shape_error("bounds are single numbers")),
        };
        Ok(vec![(UnaryOp::Clip, [bound(1, f32::MIN)?, bound(2, f32::MAX)?])])
    }),
    simple("HardSwish", |_| one(UnaryOp::HardSwish)),
    simple("Softplus", |_| one(UnaryOp::Softplus)),
    simple("Elu", |n| Ok(vec![(UnaryOp::Elu, [n.attributes.float("alpha", 1.0), 0.0])])),
    simple("Selu", |n| {
        let (alpha, gamma) = (n.attributes.float("alpha", 1.673_263_2), n.attributes.float("gamma", 1.050_701));
        Ok(vec![(UnaryOp::Elu, [alpha, 0.0]), (UnaryOp::Affine, [gamma, 0.0])])
    }),
    simple("Celu", |n| {
        let alpha = n.attributes.float("alpha", 1.0);
        let scale = |factor| (UnaryOp::Affine, [factor, 0.0]);
        Ok(vec![scale(1.0 / alpha), (UnaryOp::Elu, [1.0, 0.0]), scale(alpha)])
    }),
];

impl Op for Unary {
    fn op_type(&self) -> &'static str {
        self.op_type
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        Ok(vec![node.ty(0)?.clone()])
    }

    fn on_host(&self) -> bool {
        true
    }

    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        let x = node.value(0)?;
        let data: HostData = match x.data() {
            HostData::F32(floats) => {
                let chain = (self.chain)(node)?;
                let value = |&x: &f32| chain.iter().fold(x, |x, (op, [a, b])| op.value(x, *a, *b));
                floats.iter().map(value).collect::<Vec<f32>>().into()
            }
            HostData::I64(ints) => {
                let function: fn(i64) -> i64 = match self.op_type {
                    "Neg" => i64::wrapping_neg,
                    "Abs" => i64::wrapping_abs,
                    "Clip" => return clip_ints(node, ints),
                    _ => return Err(OpError::DType { input: 0, found: DType::I64, expected: "floats" }),
                };
                ints.iter().map(|&x| function(x)).collect::<Vec<i64>>().into()
            }
            _ => return Err(OpError::DType { input: 0, found: x.dtype(), expected: "floats" }),
        };
        Ok(vec![HostTensor::of(x.shape(), data)])
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let chain = (self.chain)(&cx.node())?;
        let x = cx.input(0)?;
        let mut x = cx.dense(&x);
        for (op, constants) in chain {
            let y = like(cx, &x);
            cx.unary(op, constants, &x, &y, false);
            cx.save(std::mem::replace(&mut x, y));
        }
        cx.set_output(0, x);
        Ok(())
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let chain = (self.chain)(&cx.node())?;
        let Some(mut dy) = cx.gradient(0) else { return Ok(()) };
        for (i, (op, constants)) in chain.into_iter().enumerate().rev() {
            let x = cx.saved(i);
            if i > 0 {
                let dx = like(cx, &x);
                cx.unary_gradient(op, constants, [&x, &dy], &dx, false);
                dy = dx;
                continue;
            }
            let (target, accumulate) = cx.target(0)?;
            if target.strides() == x.strides() && cx.is_dense(&target) {
                cx.unary_gradient(op, constants, [&x, &dy], &target, accumulate);
            } else {
                let dx = like(cx, &x);
                cx.unary_gradient(op, constants, [&x, &dy], &dx, false);
                cx.copy(&dx, &target, accumulate);
            }
        }
        Ok(())
    }

    fn samples(&self) -> Vec<Case> {
        let input = |shape: &[usize]| match CaseInput::step(5, shape) {
            CaseInput::Step(x) => {
                let shift = |x: f32| if self.inputs == Domain::Positive { x + 1.5 } else { 3.5 * x };
                CaseInput::Step(HostTensor::of(shape, x.to_floats().into_iter().map(shift).collect::<Vec<_>>()))
            }
            other => other,
        };
        let mut cases = vec![Case::new("plain", Attributes::default(), vec![input(&[3, 7])])];
        match self.op_type {
            "Gelu" => {
                cases.push(Case::new(
                    "tanh",
                    Attributes::default().with_string("approximate", "tanh"),
                    vec![input(&[5])],
                ));
            }
            "LeakyRelu" | "Elu" | "Celu" => {
                cases.push(Case::new("alpha", Attributes::default().with_float("alpha", 0.3), vec![input(&[5])]));
            }
            "Clip" => {
                let bounds = vec![input(&[2, 9]), CaseInput::float(-0.5), CaseInput::float(0.7)];
                cases.push(Case::new("both bounds", Attributes::default(), bounds));
                let bounds = vec![input(&[2, 9]), CaseInput::Absent, CaseInput::float(0.2)];
                cases.push(Case::new("upper bound", Attributes::default(), bounds));
            }
            _ => {}
        }
        cases
    }
}

/// Room for a value that lies as `x` does.
fn like(lowering: &mut Lowering<'_>, x: &View) -> View {
    let room = lowering.scratch(&[x.count()]);
    View { buffer: room.buffer, offset: 0, ..x.clone() }
}

fn clip_ints(node: &NodeView<'_>, ints: &[i64]) -> Result<Vec<HostTensor>, OpError> {
    let bound =
        |input: usize, default: i64| Ok(node.optional_ints(input)?.and_then(|b| b.first().copied()).unwrap_or(default));
    let (low, high) = (bound(1, i64::MIN)?, bound(2, i64::MAX)?);
    let clipped: Vec<i64> = ints.iter().map(|&x| x.max(low).min(high)).collect();
    Ok(vec![HostTensor::of(node.shape(0)?, clipped)])
}
