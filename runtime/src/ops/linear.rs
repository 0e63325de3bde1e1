use inlay_devices::kernels::{Linear as LinearKernel, LinearParams};
use inlay_format::quant::{Form, ZeroPoints};

use super::matmul::transposed;
use super::{Case, CaseInput, INLAY, NodeView, Op, OpError, TensorType};
use crate::graph::Attributes;
use crate::plan::{Backward, Forward, Frozen, Lowering, Operand, View, accumulated, u};

/// `y = x W + bias + factor (x A) B`, with frozen W and bias, and parameters A and B.
///
/// Inputs: x [.., K]; W [K, N], or [N, K] when `transposed` is 1; then, each optional, bias [N]; A [K, R] and
/// B [R, N]. Attribute `factor` is LoRA's scaling. Made by fusion from MatMul, Gemm, Add and MatMul pairs.
pub struct Linear;

struct Sizes {
    m: usize,
    k: usize,
    n: usize,
}

fn sizes(node: &NodeView<'_>) -> Result<Sizes, OpError> {
    let (x, w) = (node.shape(0)?, node.shape(1)?);
    let transposed = node.attributes.int("transposed", 0) != 0;
    let [k, n] = match (w, transposed) {
        (&[k, n], false) | (&[n, k], true) => [k, n],
        _ => return Err(node.shape_error("a weight has two dimensions")),
    };
    if x.last() != Some(&k) {
        return Err(node.shape_error("x has as many columns as the weight has inputs"));
    }
    Ok(Sizes { m: x.iter().product::<usize>() / k.max(1), k, n })
}

impl Op for Linear {
    fn op_type(&self) -> &'static str {
        super::LINEAR_TYPE
    }

    fn domain(&self) -> &'static str {
        INLAY
    }

    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError> {
        let x = node.ty(0)?;
        let mut shape = x.shape.clone();
        *shape.last_mut().ok_or(OpError::Missing { input: 0 })? = sizes(node)?.n;
        Ok(vec![TensorType::new(x.dtype, shape)])
    }

    fn differentiable(&self, input: usize) -> bool {
        matches!(input, 0 | 3 | 4)
    }

    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError> {
        let Sizes { m, k, n } = sizes(&cx.node())?;
        let x = cx.contiguous_input(0)?;
        let bias = match cx.node().optional(2) {
            Some(_) => Some(cx.contiguous_input(2)?),
            None => None,
        };
        let y = cx.output(0);
        let (frozen, attributes) = (frozen(cx.frozen(1))?, cx.attributes());
        let (w, form) = weight(cx, &frozen, attributes)?;
        let bias_flag = if bias.is_some() { LinearParams::BIAS } else { 0 };
        let params = LinearParams { m: u(m), k: u(k), n: u(n), flags: form | bias_flag };
        cx.call::<LinearKernel>(&params, &[(&x).into(), w, bias.as_ref().into(), (&y).into()]);
        if cx.node().optional(3).is_some() {
            let (a, b) = (cx.input(3)?, cx.input(4)?);
            // Where each sample has parameters of its own, they have a dimension for it.
            let (samples, [_, rank]) = a.shape().split_last_chunk().expect("a parameter is a matrix");
            let of_one = m / samples.iter().product::<usize>().max(1);
            let rows = |view: &View, columns| {
                view.reshaped(&[samples, &[of_one, columns]].concat()).expect("row-major views take any shape")
            };
            let hidden = cx.scratch(&[samples, &[of_one, *rank]].concat());
            let (x, y) = (rows(&x, k), rows(&y, n));
            cx.matmul(1.0, [&x, &a], &hidden, false)?;
            let factor = cx.attributes().float("factor", 1.0);
            cx.matmul(factor, [&hidden, &b], &y, true)?;
            cx.save(hidden);
        }
        Ok(())
    }

    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError> {
        let Sizes { m, k, n } = sizes(&cx.node())?;
        let Some(dy) = cx.contiguous_gradient(0) else { return Ok(()) };
        let dy = matrix(&dy, m, n);
        let mut dhidden = None;
        if cx.node().optional(3).is_some() {
            let (a, b) = (cx.input(3)?, cx.input(4)?);
            let hidden = cx.saved(0);
            let factor = cx.attributes().float("factor", 1.0);
            cx.add_strided(4, b.shape(), |l, db, acc| l.matmul(factor, [&transposed(&hidden), &dy], db, acc))?;
            let d = cx.scratch(hidden.shape());
            cx.matmul(factor, [&dy, &transposed(&b)], &d, false)?;
            if cx.wants(3) {
                let x = cx.contiguous_input(0)?;
                let x = matrix(&x, m, k);
                cx.add_strided(3, a.shape(), |l, da, acc| l.matmul(1.0, [&transposed(&x), &d], da, acc))?;
            }
            dhidden = Some((d, a));
        }
        if !cx.wants(0) {
            return Ok(());
        }
        let (frozen, attributes) = (frozen(cx.frozen(1))?, cx.attributes());
        let (w, form) = weight(cx, &frozen, attributes)?;
        cx.add(0, |l, dx, acc| {
            let flags = LinearParams::TRANSPOSE | form | accumulated(acc);
            let params = LinearParams { m: u(m), k: u(k), n: u(n), flags };
            l.call::<LinearKernel>(&params, &[(&dy).into(), w, Operand::ABSENT, dx.into()]);
            match dhidden {
                Some((d, a)) => l.matmul(1.0, [&d, &transposed(&a)], &matrix(dx, m, k), true),
                None => Ok(()),
            }
        })
    }

    fn samples(&self) -> Vec<Case> {
        let plain = Attributes::default();
        let lora = plain.clone().with_float("factor", 0.5);
        let transposed = lora.clone().with_int("transposed", 1);
        let x = || CaseInput::step(1, &[2, 3, 17]);
        let bias = || CaseInput::constant(3, &[9]);
        let (a, b) = (|| CaseInput::step(4, &[17, 2]), || CaseInput::step(5, &[2, 9]));
        let case = |label: &str, attributes: &Attributes, inputs| Case::new(label, attributes.clone(), inputs);
        let int4 = |form| CaseInput::int4(2, [9, 32], form);
        let wide = || CaseInput::step(1, &[2, 3, 32]);
        let nk = plain.clone().with_int("transposed", 1);
        vec![
            case("int4", &nk, vec![wide(), int4(Form { block: 32, zero_points: ZeroPoints::None })]),
            case(
                "int4 with zero points",
                &nk,
                vec![wide(), int4(Form { block: 16, zero_points: ZeroPoints::Integer }), bias()],
            ),
            case("int8", &plain, vec![x(), CaseInput::int8(2, &[17, 9], 1)]),
            case(
                "uint8",
                &plain,
                vec![x(), CaseInput::uint8(2, &[17, 9], 1, Form { block: 0, zero_points: ZeroPoints::Integer })],
            ),
            case("f32 and bias", &plain, vec![x(), CaseInput::constant(2, &[17, 9]), bias()]),
            case("lora", &lora, vec![x(), CaseInput::int8(2, &[17, 9], 1), bias(), a(), b()]),
            case(
                "transposed lora",
                &transposed,
                vec![x(), CaseInput::int8(2, &[9, 17], 0), CaseInput::Absent, a(), b()],
            ),
        ]
    }
}

fn frozen(frozen: Option<Frozen>) -> Result<Frozen, OpError> {
    frozen.ok_or(OpError::NotConstant { input: 1 })
}

fn weight(lowering: &mut Lowering<'_>, frozen: &Frozen, attributes: &Attributes) -> Result<(Operand, u32), OpError> {
    let n_axis = usize::from(attributes.int("transposed", 0) == 0);
    let (operand, weight) = lowering.weight(frozen, n_axis)?;
    Ok((operand, LinearParams::weight_flags(&weight)))
}

/// A row-major view as a matrix.
fn matrix(view: &View, rows: usize, columns: usize) -> View {
    view.reshaped(&[rows, columns]).expect("row-major views take any shape")
}
