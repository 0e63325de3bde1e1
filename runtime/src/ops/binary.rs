use inlay_devices::kernels::{BinaryOp, ReduceOp, UnaryOp};

use super::host::{self, IntFn};
use super::{Case, CaseInput, NodeView, Op, OpError, Simplified, TensorType};
use crate::graph::{Attributes, DType, HostTensor};
use crate::plan::{Backward, Forward, Lowering, View, broadcast};

/// Elementwise arithmetic of two inputs that broadcast.
pub struct Binary {
    op_type: &'static str,
    op: BinaryOp,
    int: IntFn,
}

/// The ops of this family.
pub static BINARY: [Binary; 7] = [
    Binary { op_type: "Add", op: BinaryOp::Add, int: i64::checked_add },
    Binary { op_type: "Sub", op: BinaryOp::Sub, int: i64::checked_sub },
    Binary { op_type: "Mul", op: BinaryOp::Mul, int: i64::checked_mul },
    Binary { op_type: "Div", op: BinaryOp::Div, int: i64::checked_div },
    Binary { op_type: "Pow", op: BinaryOp::Pow, int: |a, b| a.checked_pow(u32::try_from(b).ok()?) },
    Binary { op_type: "Max", op: BinaryOp::Max, int: |a, b| Some(a.max(b)) },
    Binary { op_type: "Min", op: BinaryOp::Min, int: |a, b| Some(a.min(b)) },
];

impl Binary {
    /// The exponent of a power, where it is one number.
    fn exponent(&self, node: &NodeView<'_>) -> Option<f32> {
        if self.op != BinaryOp::Pow {
            return None;
        }
        node.optional(1)?.value?.scalar()
    }
}

impl Op for Binary {
    fn op_type(&self) -> &'static str {
        self.op_type
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        if node.inputs.len() != 2 {
            return Err(OpError::Unsupported { what: "another number of inputs than two", way_out: "chain the node" });
        }
        let (a, b) = (node.ty(0)?, node.ty(1)?);
        if a.dtype != b.dtype && self.op != BinaryOp::Pow {
            return Err(OpError::DType { input: 1, found: b.dtype, expected: "the type of input 0" });
        }
        let shape = broadcast(&a.shape, &b.shape).ok_or_else(|| node.shape_error("they must broadcast"))?;
        Ok(vec![TensorType::new(a.dtype, shape)])
    }

    fn simplify(&self, node: &NodeView<'_>) -> Result<Option<Simplified>, OpError> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        let shape = broadcast(&a.ty.shape, &b.ty.shape);
        let whole = |shape_of: &TensorType| Some(&shape_of.shape) == shape.as_ref();
        Ok(match self.op {
            // Defaults of adapters that are not fed: a bias of zeros on nothing, factors of one.
            BinaryOp::Add if (a.zero && b.is_all(0.0)) || (b.zero && a.is_all(0.0)) => Some(Simplified::Zero),
            BinaryOp::Mul if whole(a.ty) && b.is_all(1.0) => Some(Simplified::Same(0)),
            BinaryOp::Add | BinaryOp::Sub if b.zero && whole(a.ty) => Some(Simplified::Same(0)),
            BinaryOp::Add if a.zero && whole(b.ty) => Some(Simplified::Same(1)),
            BinaryOp::Mul if a.zero || b.zero => Some(Simplified::Zero),
            BinaryOp::Div if a.zero => Some(Simplified::Zero),
            _ => None,
        })
    }

    fn on_host(&self) -> bool {
        true
    }

    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        let (a, b) = (node.value(0)?, node.value(1)?);
        // ONNX lets the exponent have another type than the base.
        let converted =
            (a.dtype() == DType::F32 && b.dtype() != DType::F32).then(|| HostTensor::of(b.shape(), b.to_floats()));
        Ok(vec![host::binary(a, converted.as_ref().unwrap_or(b), |a, b| self.op.value(a, b), self.int)?])
    }

    fn differentiable(&self, input: usize) -> bool {
        input == 0 || self.op != BinaryOp::Pow
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        if let Some(exponent) = self.exponent(&cx.node()) {
            let x = cx.contiguous_input(0)?;
            if x.shape() == cx.output_type(0).shape {
                let y = cx.output(0);
                cx.unary(UnaryOp::Pow, [exponent, 0.0], &x, &y, false);
                return Ok(());
            }
        }
        let (a, b) = (cx.input(0)?, cx.input(1)?);
        let shape = &cx.output_type(0).shape;
        let lies_otherwise = |view: &&View| view.shape() == shape && !view.is_contiguous() && cx.is_dense(view);
        let order = [&a, &b].into_iter().find(lies_otherwise).map(View::memory_order);
        if let Some(order) = order {
            // The result lies as that operand does, such as with channels last.
            let [a, b] = [a, b].map(|view| view.broadcast_to(shape).permuted(&order));
            let y = cx.scratch(&order.iter().map(|&d| shape[d]).collect::<Vec<_>>());
            cx.binary(self.op, [&a, &b], &y, false)?;
            let mut back = order.clone();
            order.iter().enumerate().for_each(|(i, &d)| back[d] = i);
            cx.set_output(0, y.permuted(&back));
            return Ok(());
        }
        let y = cx.output(0);
        cx.binary(self.op, [&a, &b], &y, false)
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let Some(dy) = cx.gradient(0) else { return Ok(()) };
        let (a, b) = (cx.input(0)?, cx.input(1)?);
        match self.op {
            BinaryOp::Add => {
                sum_into(cx, 0, 1.0, &dy)?;
                sum_into(cx, 1, 1.0, &dy)
            }
            BinaryOp::Sub => {
                sum_into(cx, 0, 1.0, &dy)?;
                sum_into(cx, 1, -1.0, &dy)
            }
            BinaryOp::Mul => {
                spread(cx, 0, 1.0, &dy, |l, t, acc| l.binary(BinaryOp::Mul, [&dy, &b], t, acc))?;
                spread(cx, 1, 1.0, &dy, |l, t, acc| l.binary(BinaryOp::Mul, [&dy, &a], t, acc))
            }
            BinaryOp::Div => {
                spread(cx, 0, 1.0, &dy, |l, t, acc| l.binary(BinaryOp::Div, [&dy, &b], t, acc))?;
                if !cx.wants(1) {
                    return Ok(());
                }
                // db = -dy y / b
                let y = cx.output(0)?;
                let product = cx.scratch(dy.shape());
                cx.binary(BinaryOp::Mul, [&dy, &y], &product, false)?;
                let quotient = cx.scratch(dy.shape());
                cx.binary(BinaryOp::Div, [&product, &b], &quotient, false)?;
                sum_into(cx, 1, -1.0, &quotient)
            }
            BinaryOp::Pow => self.backward_of_pow(cx, &dy, [&a, &b]),
            // Where both are equal the first is the one taken.
            BinaryOp::Max => masked(cx, &dy, [&a, &b], [BinaryOp::Ge, BinaryOp::Lt]),
            _ => masked(cx, &dy, [&a, &b], [BinaryOp::Le, BinaryOp::Gt]),
        }
    }

    fn samples(&self) -> Vec<Case> {
        let positive = matches!(self.op, BinaryOp::Pow | BinaryOp::Div);
        let input = |seed, shape: &[usize]| match CaseInput::step(seed, shape) {
            CaseInput::Step(x) if positive => {
                CaseInput::Step(HostTensor::of(shape, x.to_floats().into_iter().map(|x| x + 1.5).collect::<Vec<_>>()))
            }
            other => other,
        };
        let constant = |seed, shape: &[usize]| match input(seed, shape) {
            CaseInput::Step(x) => CaseInput::Constant(x),
            other => other,
        };
        let case = |label: &str, inputs| Case::new(label, Attributes::default(), inputs);
        let mut cases = vec![
            case("times a constant", vec![input(1, &[3, 5]), constant(2, &[5])]),
            case("times a number", vec![input(1, &[2, 3]), CaseInput::float(1.5)]),
        ];
        if self.op == BinaryOp::Pow {
            cases.push(case("squared", vec![CaseInput::step(3, &[4, 3]), CaseInput::float(2.0)]));
            return cases;
        }
        cases.extend([
            case("same shape", vec![input(1, &[3, 5]), input(2, &[3, 5])]),
            case("broadcast both ways", vec![input(1, &[4, 1, 3]), input(2, &[2, 1])]),
            case("broadcast leading", vec![input(1, &[3]), input(2, &[2, 4, 3])]),
        ]);
        cases
    }
}

impl Binary {
    /// `da = dy b a^(b - 1)`.
    fn backward_of_pow(&self, cx: &mut Backward<'_, '_>, dy: &View, [a, b]: [&View; 2]) -> Result<(), OpError> {
        if let Some(exponent) = self.exponent(&cx.node())
            && a.shape() == dy.shape()
        {
            let (x, dy) = (cx.contiguous(a), cx.contiguous_gradient(0).expect("it is there"));
            return cx.add(0, |l, dx, acc| {
                l.unary_gradient(UnaryOp::Pow, [exponent, 0.0], [&x, &dy], dx, acc);
                Ok(())
            });
        }
        let minus_one = cx.constant(&[], &[-1.0]);
        let [less, power, slope] = [(); 3].map(|()| cx.scratch(dy.shape()));
        cx.binary(BinaryOp::Add, [b, &minus_one], &less, false)?;
        cx.binary(BinaryOp::Pow, [a, &less], &power, false)?;
        cx.binary(BinaryOp::Mul, [&power, b], &slope, false)?;
        spread(cx, 0, 1.0, dy, |l, t, acc| l.binary(BinaryOp::Mul, [dy, &slope], t, acc))
    }
}

/// Adds `factor from` to the gradient of an input, summed over what was broadcast.
fn sum_into(cx: &mut Backward<'_, '_>, input: usize, factor: f32, from: &View) -> Result<(), OpError> {
    if !cx.wants(input) {
        return Ok(());
    }
    let shape = cx.input(input)?.shape().to_vec();
    if shape == from.shape() {
        if factor == 1.0 {
            return cx.pass(0, input);
        }
        let factor = cx.constant(&[], &[factor]);
        return cx.add(input, |l, t, acc| l.binary(BinaryOp::Mul, [from, &factor], t, acc));
    }
    cx.add(input, |l, t, acc| {
        let lead = from.shape().len() - t.shape().len();
        let broadcast = |&i: &usize| i < lead || t.shape()[i - lead] != from.shape()[i];
        let axes: Vec<usize> = (0..from.shape().len()).filter(broadcast).collect();
        l.reduce(ReduceOp::Sum, from, &axes, factor, t, acc)
    })
}

/// Has `emit` compute a gradient of the shape of `dy`, and adds it to that of an input, summed over what was
/// broadcast.
fn spread<'a>(
    cx: &mut Backward<'_, 'a>,
    input: usize,
    factor: f32,
    dy: &View,
    emit: impl FnOnce(&mut Lowering<'a>, &View, bool) -> Result<(), OpError>,
) -> Result<(), OpError> {
    if !cx.wants(input) {
        return Ok(());
    }
    if cx.input(input)?.shape() == dy.shape() {
        return cx.add(input, emit);
    }
    let whole = cx.scratch(dy.shape());
    emit(cx, &whole, false)?;
    sum_into(cx, input, factor, &whole)
}

/// Each input's gradient is dy where its comparison holds.
fn masked(cx: &mut Backward<'_, '_>, dy: &View, [a, b]: [&View; 2], comparisons: [BinaryOp; 2]) -> Result<(), OpError> {
    for (input, op) in comparisons.into_iter().enumerate() {
        if cx.wants(input) {
            let mask = cx.scratch(dy.shape());
            cx.binary(op, [a, b], &mask, false)?;
            spread(cx, input, 1.0, dy, |l, t, acc| l.binary(BinaryOp::Mul, [dy, &mask], t, acc))?;
        }
    }
    Ok(())
}
