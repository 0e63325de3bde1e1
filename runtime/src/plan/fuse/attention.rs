use std::sync::Arc;

use super::{Analysis, Step, Uses, pair};
use crate::graph::{Attributes, DType};
use crate::ops;

/// `MatMul(Softmax(scale MatMul(q, k^T) + mask), v)` becomes [`ops::ATTENTION`].
pub(super) fn fuse(analysis: &mut Analysis, outputs: &[usize]) {
    let mut uses = Uses::new(analysis, outputs);
    for i in 0..analysis.steps.len() {
        if let Some(step) = from_output(analysis, &uses, &analysis.steps[i]) {
            analysis.steps[i] = step;
            uses = Uses::new(analysis, outputs);
        }
    }
}

fn from_output(analysis: &Analysis, uses: &Uses, step: &Step) -> Option<Step> {
    let [probabilities, v] = pair(step).filter(|_| step.op.op_type() == "MatMul")?;
    if analysis.values[v].ty.shape.len() != 4 || analysis.values[probabilities].ty.shape.len() != 4 {
        return None;
    }
    let softmax = match uses.made_only_for(analysis, probabilities, "Where") {
        Some(guard) => guarded(analysis, uses, guard)?,
        None => uses.made_only_for(analysis, probabilities, "Softmax")?,
    };
    let axis = softmax.attributes.int("axis", -1);
    if axis != -1 && axis != 3 {
        return None;
    }
    let mut scores = softmax.inputs[0]?;
    let mut mask = None;
    if let Some(add) = uses.made_only_for(analysis, scores, "Add") {
        let [a, b] = pair(add)?;
        // The scores are computed; the mask is whatever else there is.
        let is_scores = |value| {
            uses.made_only_for(analysis, value, "MatMul").is_some()
                || scaled(analysis, uses, value)
                    .is_some_and(|(inner, _)| uses.made_only_for(analysis, inner, "MatMul").is_some())
        };
        (scores, mask) = if is_scores(a) { (a, Some(b)) } else { (b, Some(a)) };
    }
    let mut factor = 1.0;
    if let Some((inner, by)) = scaled(analysis, uses, scores) {
        (scores, factor) = (inner, by);
    }
    let product = uses.made_only_for(analysis, scores, "MatMul")?;
    let [mut q, mut k] = pair(product)?;
    for operand in [&mut q, &mut k] {
        if let Some((inner, by)) = scaled(analysis, uses, *operand) {
            *operand = inner;
            factor *= by;
        }
    }
    fits(analysis, [q, k, v], mask, scores)?;
    let mut inputs = vec![Some(q), Some(k), Some(v)];
    inputs.extend(mask.map(Some));
    Some(Step {
        op: &ops::ATTENTION,
        attributes: Arc::new(Attributes::default().with_float("factor", factor)),
        inputs,
        ..step.clone()
    })
}

/// `Where(IsNaN(p), 0, p)`: rows that are masked all over give 0, as the kernel does.
fn guarded<'a>(analysis: &'a Analysis, uses: &Uses, guard: &Step) -> Option<&'a Step> {
    let [Some(cond), Some(zero), Some(p)] = guard.inputs[..] else { return None };
    let nan = uses.made_only_for(analysis, cond, "IsNaN")?;
    let zero = match &analysis.values[zero].role {
        super::Role::Zero => 0.0,
        _ => analysis.scalar(zero)?,
    };
    let fits = nan.inputs[0] == Some(p) && zero == 0.0 && uses.count[p] == 2;
    if fits { uses.made_by(analysis, p, "Softmax") } else { None }
}

/// A value that is another one times a number, and both.
fn scaled(analysis: &Analysis, uses: &Uses, value: usize) -> Option<(usize, f32)> {
    if let Some(step) = uses.made_only_for(analysis, value, "Mul") {
        let [a, b] = pair(step)?;
        return analysis.scalar(b).map(|by| (a, by)).or_else(|| analysis.scalar(a).map(|by| (b, by)));
    }
    let [a, b] = pair(uses.made_only_for(analysis, value, "Div")?)?;
    analysis.scalar(b).map(|by| (a, 1.0 / by))
}

/// Whether shapes are those of attention: q [B, H, Tq, d], k [B, H, d, Tk], v [B, H, Tk, dv].
fn fits(analysis: &Analysis, [q, k, v]: [usize; 3], mask: Option<usize>, scores: usize) -> Option<()> {
    let shape = |value: usize| <[usize; 4]>::try_from(analysis.values[value].ty.shape.as_slice()).ok();
    let ([b, h, tq, d], [kb, kh, kd, tk], [vb, vh, vt, _]) = (shape(q)?, shape(k)?, shape(v)?);
    let mask_fits = mask.is_none_or(|mask| {
        let ty = &analysis.values[mask].ty;
        let lead = 4usize.saturating_sub(ty.shape.len());
        ty.dtype == DType::F32
            && ty.shape.len() <= 4
            && ty.shape.iter().enumerate().all(|(i, &d)| d == 1 || d == [b, h, tq, tk][lead + i])
    });
    let fits = (kb, kh, kd) == (b, h, d) && (vb, vh, vt) == (b, h, tk) && shape(scores)? == [b, h, tq, tk] && mask_fits;
    fits.then_some(())
}
