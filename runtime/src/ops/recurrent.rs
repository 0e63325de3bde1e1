use inlay_devices::kernels::{BinaryOp, UnaryOp};

use super::{Case, CaseInput, NodeView, Op, OpError, TensorType};
use crate::graph::{Attributes, DType};
use crate::plan::{Backward, Forward, Lowering, View};

/// `LSTM`, `GRU` and `RNN` as ONNX has them, forward only: x [T, B, I], W [D, G H, I], R [D, G H, H], bias [D, 2 G H] and
/// initial states [D, B, H], with D directions and G gates; Y [T, D, B, H] and the last states [D, B, H].
///
/// The products with W are one for all of time; then every step of time is a few small kernels.
pub struct Recurrent {
    op_type: &'static str,
    /// Gates of a cell.
    gates: usize,
}

/// The ops of this family.
pub static RECURRENT: [Recurrent; 3] = [
    Recurrent { op_type: "LSTM", gates: 4 },
    Recurrent { op_type: "GRU", gates: 3 },
    Recurrent { op_type: "RNN", gates: 1 },
];

/// Most steps of time: each takes kernels of its own.
const MAX_STEPS: usize = 4096;

// Positions of inputs.
const BIAS: usize = 3;
const LENGTHS: usize = 4;
const STATE: usize = 5;
const CELL: usize = 6;
const PEEPHOLES: usize = 7;

/// Sizes of a node.
struct Sizes {
    steps: usize,
    batch: usize,
    inputs: usize,
    hidden: usize,
    directions: usize,
}

impl Recurrent {
    fn sizes(&self, node: &NodeView<'_>) -> Result<Sizes, OpError> {
        let shapes = (node.shape(0)?, node.shape(1)?, node.shape(2)?);
        let (&[steps, batch, inputs], &[directions, rows, columns], &[_, _, hidden]) = shapes else {
            return Err(node.shape_error("x is [T, B, I], W is [D, G H, I], R is [D, G H, H]"));
        };
        let expected = if node.attributes.string("direction", "forward") == "bidirectional" { 2 } else { 1 };
        let fits = directions == expected
            && rows == self.gates * hidden
            && columns == inputs
            && node.shape(2)? == [directions, rows, hidden]
            && node.optional(BIAS).is_none_or(|b| b.ty.shape == [directions, 2 * rows]);
        let state = |input| node.optional(input).is_none_or(|s| s.ty.shape == [directions, batch, hidden]);
        if !fits || !state(STATE) || (self.gates == 4 && !state(CELL)) {
            return Err(node.shape_error("W, R, bias and states fit the directions, gates and hidden units"));
        }
        let unsupported = |what| OpError::Unsupported { what, way_out: "export the model without it" };
        if node.attributes.int("layout", 0) != 0 {
            return Err(unsupported("layout = 1 of a recurrent op"));
        }
        if node.attributes.float("clip", 0.0) != 0.0 || node.attributes.int("input_forget", 0) != 0 {
            return Err(unsupported("clip or input_forget of a recurrent op"));
        }
        if self.gates == 4 && node.optional(PEEPHOLES).is_some_and(|p| !p.zero && !p.is_all(0.0)) {
            return Err(unsupported("a peephole of an LSTM"));
        }
        if node.optional(LENGTHS).is_some() {
            let whole = node.ints(LENGTHS)?.iter().all(|&l| l == steps as i64);
            if !whole {
                return Err(unsupported("a recurrent op over sequences of different lengths"));
            }
        }
        if steps > MAX_STEPS {
            return Err(OpError::Value {
                what: "the number of time steps of a recurrent op",
                found: steps.to_string(),
                expected: "at most 4096: feed shorter sequences",
            });
        }
        Ok(Sizes { steps, batch, inputs, hidden, directions })
    }
}

impl Op for Recurrent {
    fn op_type(&self) -> &'static str {
        self.op_type
    }

    fn limits(&self) -> &'static str {
        "usual activations; no sequence_lens, peepholes, clip or layout = 1"
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let Sizes { steps, batch, hidden, directions, .. } = self.sizes(node)?;
        let state = TensorType::new(DType::F32, [directions, batch, hidden]);
        let all = TensorType::new(DType::F32, [steps, directions, batch, hidden]);
        Ok([all, state.clone(), state].into_iter().take(node.outputs).collect())
    }

    fn differentiable(&self, _: usize) -> bool {
        false
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let node = cx.node();
        let Sizes { steps, batch, inputs, hidden, directions } = self.sizes(&node)?;
        let gates = self.gates;
        let reset_after = node.attributes.int("linear_before_reset", 0) != 0;
        let x = cx.contiguous_input(0)?.reshaped(&[1, steps * batch, inputs]).expect("it is row-major");
        let [w, r] = [cx.contiguous_input(1)?, cx.contiguous_input(2)?];
        let bias = if node.optional(BIAS).is_some() { Some(cx.contiguous_input(BIAS)?) } else { None };
        let first = |cx: &mut Forward<'_, '_>, input: usize| -> Result<View, OpError> {
            if input < node.inputs.len() && node.optional(input).is_some() {
                return cx.contiguous_input(input);
            }
            let zeros = cx.scratch(&[directions, batch, hidden]);
            cx.fill(&zeros, 0.0);
            Ok(zeros)
        };
        let h = first(cx, STATE)?;
        let c = if gates == 4 { Some(first(cx, CELL)?) } else { None };
        let outputs: [Option<View>; 3] = std::array::from_fn(|i| cx.has_output(i).then(|| cx.output(i)));
        for d in 0..directions {
            let backwards = d == 1 || node.attributes.string("direction", "forward") == "reverse";
            // One matrix a gate, so that each gate of all rows lies together.
            let of = |view: &View, columns: usize| {
                view.sliced(0, d, 1, 1).reshaped(&[gates, hidden, columns]).map(|v| v.permuted(&[0, 2, 1]))
            };
            let [w, r] = [of(&w, inputs), of(&r, hidden)].map(|v| v.expect("one direction is row-major"));
            let of_bias = |part: usize| {
                let row = bias.as_ref()?.sliced(0, d, 1, 1).sliced(1, part * gates * hidden, 1, gates * hidden);
                Some(row.reshaped(&[gates, 1, hidden]).expect("one direction is row-major"))
            };
            let through = cx.scratch(&[gates, steps * batch, hidden]);
            cx.matmul(1.0, [&x, &w], &through, false)?;
            let [bias_w, bias_r] = [of_bias(0), of_bias(1)];
            let through = added(cx, &through, bias_w.as_ref())?;
            let mut cell = Cell {
                h: contiguous_part(cx, &h, d),
                c: c.as_ref().map(|c| contiguous_part(cx, c, d)),
                r,
                bias: bias_r,
                reset_after,
            };
            for step in 0..steps {
                let t = if backwards { steps - 1 - step } else { step };
                let now = cx.scratch(&[gates, batch, hidden]);
                cx.copy(&through.sliced(1, t * batch, 1, batch), &now, false);
                match gates {
                    4 => cell.lstm(cx, &now)?,
                    3 => cell.gru(cx, &now)?,
                    _ => cell.rnn(cx, &now)?,
                }
                if let Some(y) = &outputs[0] {
                    let to = y.sliced(0, t, 1, 1).sliced(1, d, 1, 1);
                    let from = cell.h.reshaped(&[1, 1, batch, hidden]).expect("it is row-major");
                    cx.copy(&from, &to, false);
                }
            }
            for (output, last) in outputs[1..].iter().zip([Some(&cell.h), cell.c.as_ref()]) {
                if let (Some(output), Some(last)) = (output, last) {
                    let from = last.reshaped(&[1, batch, hidden]).expect("it is row-major");
                    cx.copy(&from, &output.sliced(0, d, 1, 1), false);
                }
            }
        }
        Ok(())
    }

    fn backward(&self, _: &mut Backward<'_, '_>) -> Result<(), OpError> {
        Err(OpError::NotDifferentiable { what: "a recurrent op" })
    }

    fn samples(&self) -> Vec<Case> {
        let (steps, batch, inputs, hidden) = (3, 2, 5, 4);
        let case = |direction: &str, d: usize, states: bool| {
            let rows = self.gates * hidden;
            let mut fed = vec![
                CaseInput::step(1, &[steps, batch, inputs]),
                CaseInput::constant(2, &[d, rows, inputs]),
                CaseInput::constant(3, &[d, rows, hidden]),
                CaseInput::constant(4, &[d, 2 * rows]),
            ];
            if states {
                fed.extend([CaseInput::Absent, CaseInput::constant(5, &[d, batch, hidden])]);
            }
            let attributes =
                Attributes::default().with_string("direction", direction).with_int("hidden_size", hidden as i64);
            Case::new(direction, attributes, fed).outputs(2)
        };
        vec![case("forward", 1, false), case("reverse", 1, true), case("bidirectional", 2, true)]
    }
}

/// The state of a cell [B, H], and what it multiplies it with.
struct Cell {
    h: View,
    /// Of LSTM.
    c: Option<View>,
    /// [G, H, H], transposed.
    r: View,
    /// [G, 1, H].
    bias: Option<View>,
    /// Of GRU: whether the reset gate applies to the product instead of the state.
    reset_after: bool,
}

impl Cell {
    /// Gates i, o, f, c.
    fn lstm(&mut self, l: &mut Lowering<'_>, now: &View) -> Result<(), OpError> {
        l.matmul(1.0, [&self.state(), &self.r], now, true)?;
        let now = added(l, now, self.bias.as_ref())?;
        let [open, new] = [(UnaryOp::Sigmoid, 0, 3), (UnaryOp::Tanh, 3, 1)].map(|(op, first, count)| {
            let part = now.sliced(0, first, 1, count);
            let (from, to) = (l.scratch(part.shape()), l.scratch(part.shape()));
            l.copy(&part, &from, false);
            l.unary(op, [0.0; 2], &from, &to, false);
            to
        });
        let c = self.c.take().expect("an LSTM has cells");
        let (next, h, bounded) = (l.scratch(c.shape()), l.scratch(c.shape()), l.scratch(c.shape()));
        l.binary(BinaryOp::Mul, [&gate(&open, 2), &c], &next, false)?;
        l.binary(BinaryOp::Mul, [&gate(&open, 0), &gate(&new, 0)], &next, true)?;
        l.unary(UnaryOp::Tanh, [0.0; 2], &next, &bounded, false);
        l.binary(BinaryOp::Mul, [&gate(&open, 1), &bounded], &h, false)?;
        (self.h, self.c) = (h, Some(next));
        Ok(())
    }

    /// Gates z, r, h.
    fn gru(&mut self, l: &mut Lowering<'_>, now: &View) -> Result<(), OpError> {
        let product = l.scratch(now.shape());
        l.matmul(1.0, [&self.state(), &self.r], &product, false)?;
        let product = added(l, &product, self.bias.as_ref())?;
        let both = |view: &View| view.sliced(0, 0, 1, 2);
        let (sum, open) = (l.scratch(both(now).shape()), l.scratch(both(now).shape()));
        l.binary(BinaryOp::Add, [&both(now), &both(&product)], &sum, false)?;
        l.unary(UnaryOp::Sigmoid, [0.0; 2], &sum, &open, false);
        let (z, reset) = (gate(&open, 0), gate(&open, 1));
        let shape = self.h.shape().to_vec();
        let kept = l.scratch(&shape);
        if self.reset_after {
            l.binary(BinaryOp::Mul, [&reset, &gate(&product, 2)], &kept, false)?;
        } else {
            let state = l.scratch(&shape);
            l.binary(BinaryOp::Mul, [&reset, &self.h], &state, false)?;
            l.matmul(1.0, [&state, &gate(&self.r, 2)], &kept, false)?;
        }
        let (sum, new, h) = (l.scratch(&shape), l.scratch(&shape), l.scratch(&shape));
        l.binary(BinaryOp::Add, [&gate(now, 2), &kept], &sum, false)?;
        let bias = self.bias.as_ref().filter(|_| !self.reset_after).map(|bias| gate(bias, 2));
        let sum = added(l, &sum, bias.as_ref())?;
        l.unary(UnaryOp::Tanh, [0.0; 2], &sum, &new, false);
        // h' = n + z (h - n)
        let difference = l.scratch(&shape);
        l.binary(BinaryOp::Sub, [&self.h, &new], &difference, false)?;
        l.binary(BinaryOp::Mul, [&z, &difference], &h, false)?;
        l.copy(&new, &h, true);
        self.h = h;
        Ok(())
    }

    fn rnn(&mut self, l: &mut Lowering<'_>, now: &View) -> Result<(), OpError> {
        l.matmul(1.0, [&self.state(), &self.r], now, true)?;
        let now = added(l, now, self.bias.as_ref())?;
        let h = l.scratch(self.h.shape());
        let flat = now.reshaped(self.h.shape()).expect("it is row-major");
        l.unary(UnaryOp::Tanh, [0.0; 2], &flat, &h, false);
        self.h = h;
        Ok(())
    }

    /// The state as one factor of the products of all gates.
    fn state(&self) -> View {
        let shape = [&[1], self.h.shape()].concat();
        self.h.reshaped(&shape).expect("it is row-major")
    }
}

/// One gate of several.
fn gate(gates: &View, index: usize) -> View {
    let part = gates.sliced(0, index, 1, 1);
    View { shape: part.shape[1..].to_vec(), strides: part.strides[1..].to_vec(), ..part }
}

/// One direction of several [D, B, H], row-major and where kernels can be bound.
fn contiguous_part(l: &mut Lowering<'_>, states: &View, direction: usize) -> View {
    let part = gate(states, direction);
    let copy = l.scratch(part.shape());
    l.copy(&part, &copy, false);
    copy
}

/// `x + bias`, which broadcasts.
fn added(l: &mut Lowering<'_>, x: &View, bias: Option<&View>) -> Result<View, OpError> {
    let Some(bias) = bias else { return Ok(x.clone()) };
    let sum = l.scratch(x.shape());
    l.binary(BinaryOp::Add, [x, bias], &sum, false)?;
    Ok(sum)
}
