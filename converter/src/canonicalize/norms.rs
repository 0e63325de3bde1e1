//! RMS normalization, and the normalizations of a sum.
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>

use super::primitives::Primitives;
use crate::error::Result;
use crate::graph::Attribute;

const STATISTICS: &str = "export the model for inference";

/// `x / sqrt(mean(x^2) + epsilon) * scale`.
pub(super) fn rms(p: &mut Primitives<'_>) -> Result<()> {
    p.refuse_output(1, "inv_std_var", STATISTICS)?;
    let (x, scale) = (p.input(0)?, p.input(1)?);
    if p.optional(2).is_some_and(|_| p.old.op_type != "RMSNormalization") {
        return Err(p.unsupported("a bias is not supported; export the model with LayerNormalization"));
    }
    // Operator set 23 normalizes with epsilon 1e-5 unless told, as onnxruntime does.
    let epsilon = p.old.float("epsilon").unwrap_or(1e-5);
    let axis = p.old.int("axis").unwrap_or(-1);
    let axes = match (axis, p.rank(&x)) {
        (..=-1, _) => (axis..0).collect(),
        (_, Some(rank)) if axis < rank as i64 => (axis - rank as i64..0).collect(),
        _ => return Err(p.unsupported("attribute axis counts from the front, and the rank is not known")),
    };
    normalize(p, &x, &scale, epsilon, axes);
    Ok(())
}

/// The RMS normalization of `input + skip + bias`, and that sum.
pub(super) fn skip_rms(p: &mut Primitives<'_>) -> Result<()> {
    let sum = sum(p, 3)?;
    let (scale, epsilon) = (p.input(2)?, p.old.float("epsilon").unwrap_or(1e-12));
    normalize(p, &sum, &scale, epsilon, vec![-1]);
    Ok(())
}

/// The layer normalization of `input + skip + bias`, and that sum.
pub(super) fn skip_layer_norm(p: &mut Primitives<'_>) -> Result<()> {
    let sum = sum(p, 4)?;
    let (scale, epsilon) = (p.input(2)?, p.old.float("epsilon").unwrap_or(1e-12));
    let beta = p.optional(3);
    let mut inputs = vec![sum.as_str(), &scale];
    inputs.extend(beta.as_deref());
    let norm = p.finish("LayerNormalization", &inputs);
    norm.attributes.insert("axis".into(), Attribute::Int(-1));
    norm.attributes.insert("epsilon".into(), Attribute::Float(epsilon));
    Ok(())
}

/// Of the first two inputs and the bias, also as the fourth output.
fn sum(p: &mut Primitives<'_>, bias: usize) -> Result<String> {
    p.refuse_output(1, "mean", STATISTICS)?;
    p.refuse_output(2, "inv_std_var", STATISTICS)?;
    let (x, skip) = (p.input(0)?, p.input(1)?);
    let mut sum = p.push("Add", "sum", &[&x, &skip]);
    if let Some(bias) = p.optional(bias) {
        sum = p.push("Add", "biased", &[&sum, &bias]);
    }
    p.set_output(3, &sum);
    Ok(sum)
}

fn normalize(p: &mut Primitives<'_>, x: &str, scale: &str, epsilon: f32, axes: Vec<i64>) {
    let square = p.push("Mul", "square", &[x, x]);
    let mean = p.mean("mean", &square, &axes);
    let epsilon = p.number("epsilon", epsilon);
    let shifted = p.push("Add", "shifted", &[&mean, &epsilon]);
    let root = p.push("Sqrt", "root", &[&shifted]);
    let normal = p.push("Div", "normal", &[x, &root]);
    p.finish("Mul", &[&normal, scale]);
}
