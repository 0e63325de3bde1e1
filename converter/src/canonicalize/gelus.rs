//! The Gelu kinds of onnxruntime, spelled as exporters do, so that Gelu is then found.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>

use super::primitives::Primitives;
use crate::error::Result;

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// `0.5 x (1 + erf(x / sqrt 2))`, of `x` and a bias.
pub(super) fn gelu(p: &mut Primitives<'_>) -> Result<()> {
    let x = biased(p)?;
    let root = p.number("root", std::f32::consts::SQRT_2);
    let scaled = p.push("Div", "scaled", &[&x, &root]);
    let erf = p.push("Erf", "erf", &[&scaled]);
    half(p, &x, &erf);
    Ok(())
}

/// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, of `x` and a bias.
pub(super) fn fast_gelu(p: &mut Primitives<'_>) -> Result<()> {
    let x = biased(p)?;
    let three = p.number("three", 3.0);
    let cube = p.push("Pow", "cube", &[&x, &three]);
    let factor = p.number("factor", CUBIC);
    let cubic = p.push("Mul", "cubic", &[&cube, &factor]);
    let sum = p.push("Add", "sum", &[&x, &cubic]);
    let scale = p.number("scale", SQRT_2_OVER_PI);
    let scaled = p.push("Mul", "scaled", &[&sum, &scale]);
    let tanh = p.push("Tanh", "tanh", &[&scaled]);
    half(p, &x, &tanh);
    Ok(())
}

/// `x sigmoid(alpha x)`.
pub(super) fn quick_gelu(p: &mut Primitives<'_>) -> Result<()> {
    let x = p.input(0)?;
    let alpha = p.number("alpha", p.old.float("alpha").unwrap_or(1.702));
    let scaled = p.push("Mul", "scaled", &[&x, &alpha]);
    let gate = p.push("Sigmoid", "gate", &[&scaled]);
    p.finish("Mul", &[&x, &gate]);
    Ok(())
}

fn biased(p: &mut Primitives<'_>) -> Result<String> {
    let x = p.input(0)?;
    Ok(match p.optional(1) {
        Some(bias) => p.push("Add", "biased", &[&x, &bias]),
        None => x,
    })
}

/// `0.5 (x (1 + gate))`.
fn half(p: &mut Primitives<'_>, x: &str, gate: &str) {
    let (one, half) = (p.number("one", 1.0), p.number("half", 0.5));
    let gate = p.push("Add", "gate", &[gate, &one]);
    let gated = p.push("Mul", "gated", &[x, &gate]);
    p.finish("Mul", &[&gated, &half]);
}
