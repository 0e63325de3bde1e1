use std::sync::Arc;

use super::{Analysis, Step, Uses, is_frozen, pair};
use crate::graph::{Attributes, DType};
use crate::ops::{self, TensorType, matmul_n_bits};
use crate::plan::Role;

/// MatMul, Gemm and MatMulNBits with a frozen weight become [`ops::LINEAR`], which takes a following bias and LoRA branch along.
pub(super) fn fuse(analysis: &mut Analysis, outputs: &[usize]) {
    for i in 0..analysis.steps.len() {
        let step = &analysis.steps[i];
        if let Some(step) = from_matmul(analysis, step).or_else(|| from_gemm(analysis, step)) {
            analysis.steps[i] = step;
        } else if let Some(step) = from_matmul_n_bits(analysis, i) {
            analysis.steps[i] = step;
        }
    }
    let mut uses = Uses::new(analysis, outputs);
    for i in 0..analysis.steps.len() {
        let step = &analysis.steps[i];
        if step.op.op_type() != "Add" {
            continue;
        }
        let Some([a, b]) = pair(step) else { continue };
        let joined = [(a, b), (b, a)].into_iter().find_map(|(x, y)| {
            with_bias(analysis, &uses, step, x, y).or_else(|| with_lora(analysis, &uses, step, x, y))
        });
        if let Some(joined) = joined {
            analysis.steps[i] = joined;
            uses = Uses::new(analysis, outputs);
        }
    }
}

/// x [.., K] times a frozen [K, N].
fn from_matmul(analysis: &Analysis, step: &Step) -> Option<Step> {
    let [x, w] = pair(step).filter(|_| step.op.op_type() == "MatMul")?;
    let (x_ty, w_ty) = (&analysis.values[x].ty, &analysis.values[w].ty);
    let fits = is_frozen(analysis, w) && w_ty.shape.len() == 2 && x_ty.shape.len() >= 2;
    fits.then(|| linear(step, Attributes::default(), vec![Some(x), Some(w)]))
}

/// x [M, K] times a frozen [K, N], or [N, K] with transB, and maybe a frozen bias [N].
fn from_gemm(analysis: &Analysis, step: &Step) -> Option<Step> {
    if step.op.op_type() != "Gemm" {
        return None;
    }
    let attributes = &step.attributes;
    let (x, w) = (step.inputs[0]?, step.inputs[1]?);
    let plain = attributes.int("transA", 0) == 0 && attributes.float("alpha", 1.0) == 1.0;
    if !plain || !is_frozen(analysis, w) {
        return None;
    }
    let transposed = attributes.int("transB", 0) != 0;
    let n = analysis.values[w].ty.shape[usize::from(!transposed)];
    let mut inputs = vec![Some(x), Some(w)];
    if let Some(bias) = step.inputs.get(2).copied().flatten() {
        if attributes.float("beta", 1.0) != 1.0 || !is_bias(analysis, bias, n) {
            return None;
        }
        inputs.push(Some(bias));
    }
    Some(linear(step, Attributes::default().with_int("transposed", i64::from(transposed)), inputs))
}

/// x [.., K] times a frozen int4 [N, K], and maybe a frozen bias [N]; the weight becomes a value.
fn from_matmul_n_bits(analysis: &mut Analysis, at: usize) -> Option<Step> {
    let step = &analysis.steps[at];
    if step.op.op_type() != "MatMulNBits" {
        return None;
    }
    let (x, bias) = (step.inputs[0]?, step.inputs.get(matmul_n_bits::BIAS).copied().flatten());
    if bias.is_some_and(|bias| !is_frozen(analysis, bias)) {
        return None;
    }
    let frozen = matmul_n_bits::packed(&analysis.view(step)).ok()?;
    let (name, ty) = (frozen.name().to_owned(), TensorType::new(DType::F32, frozen.shape()));
    let w = analysis.add(name, ty, Role::Constant { host: None, frozen: Some(frozen) });
    let mut inputs = vec![Some(x), Some(w)];
    inputs.extend(bias.map(Some));
    Some(linear(&analysis.steps[at], Attributes::default().with_int("transposed", 1), inputs))
}

fn linear(step: &Step, attributes: Attributes, inputs: Vec<Option<usize>>) -> Step {
    Step { op: &ops::LINEAR, attributes: Arc::new(attributes), inputs, ..step.clone() }
}

fn is_bias(analysis: &Analysis, value: usize, n: usize) -> bool {
    let ty = &analysis.values[value].ty;
    is_frozen(analysis, value) && ty.len() == n && ty.shape.last() == Some(&n)
}

/// `Add(Linear(x, W), bias)`.
fn with_bias(analysis: &Analysis, uses: &Uses, add: &Step, y: usize, bias: usize) -> Option<Step> {
    let linear = uses.made_only_for(analysis, y, ops::LINEAR_TYPE)?;
    let ty = &analysis.values[y].ty;
    let fits = linear.inputs.get(2).copied().flatten().is_none()
        && is_bias(analysis, bias, *ty.shape.last()?)
        && analysis.values[bias].ty.shape.len() <= ty.shape.len();
    fits.then(|| {
        let mut inputs = linear.inputs.clone();
        inputs.resize(inputs.len().max(3), None);
        inputs[2] = Some(bias);
        Step { inputs, outputs: add.outputs.clone(), ..linear.clone() }
    })
}

/// `Add(Linear(x, W), MatMul(MatMul(x, A), B))`.
fn with_lora(analysis: &Analysis, uses: &Uses, add: &Step, y: usize, branch: usize) -> Option<Step> {
    let linear = uses.made_only_for(analysis, y, ops::LINEAR_TYPE)?;
    if linear.inputs.len() > 3 {
        return None;
    }
    let [down, b] = pair(uses.made_only_for(analysis, branch, "MatMul")?)?;
    let [x, a] = pair(uses.made_only_for(analysis, down, "MatMul")?)?;
    // The scaling that B is fed with becomes a factor of the product.
    let (b, factor) = match uses.made_only_for(analysis, b, ops::SCALE_TYPE) {
        Some(scale) => (scale.inputs[0]?, scale.attributes.float("factor", 1.0)),
        None => (b, 1.0),
    };
    let parameter = |value: usize| matches!(analysis.values[value].role, Role::Parameter(_));
    let fits = Some(x) == linear.inputs[0]
        && parameter(a)
        && parameter(b)
        && analysis.values[y].ty == analysis.values[branch].ty;
    fits.then(|| {
        let mut inputs = linear.inputs.clone();
        inputs.resize(3, None);
        inputs.extend([Some(a), Some(b)]);
        let attributes = Attributes::clone(&linear.attributes).with_float("factor", factor);
        Step { attributes: Arc::new(attributes), inputs, outputs: add.outputs.clone(), ..linear.clone() }
    })
}
