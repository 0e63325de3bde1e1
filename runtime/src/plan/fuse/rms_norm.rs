use std::sync::Arc;

use super::{Analysis, Step, Uses, pair};
use crate::graph::Attributes;
use crate::ops;
use crate::plan::Role;

/// `x / sqrt(mean(x^2) + epsilon)` over the last dimension becomes [`ops::RMS_NORM`], which takes a following scale along.
pub(super) fn fuse(analysis: &mut Analysis, outputs: &[usize]) {
    let mut uses = Uses::new(analysis, outputs);
    for i in 0..analysis.steps.len() {
        let step = &analysis.steps[i];
        if let Some(step) = normalized(analysis, &uses, step).or_else(|| scaled(analysis, &uses, step)) {
            analysis.steps[i] = step;
            uses = Uses::new(analysis, outputs);
        }
    }
}

/// `x * reciprocal(root)`, `x * (1 / root)` or `x / root`.
fn normalized(analysis: &Analysis, uses: &Uses, step: &Step) -> Option<Step> {
    let [a, b] = pair(step)?;
    let (x, (squared, epsilon)) = match step.op.op_type() {
        "Div" => (a, root(analysis, uses, b)?),
        "Mul" => [(a, b), (b, a)].into_iter().find_map(|(x, factor)| {
            let root_of = match uses.made_only_for(analysis, factor, "Reciprocal") {
                Some(reciprocal) => reciprocal.inputs[0]?,
                None => {
                    let [one, of] = pair(uses.made_only_for(analysis, factor, "Div")?)?;
                    (analysis.scalar(one)? == 1.0).then_some(of)?
                }
            };
            Some((x, root(analysis, uses, root_of)?))
        })?,
        _ => return None,
    };
    (squared == x).then(|| Step {
        op: &ops::RMS_NORM,
        attributes: Arc::new(Attributes::default().with_float("epsilon", epsilon)),
        inputs: vec![Some(x)],
        ..step.clone()
    })
}

/// x and epsilon of `sqrt(mean(x^2) + epsilon)`, the mean over the last dimension, which stays.
fn root(analysis: &Analysis, uses: &Uses, value: usize) -> Option<(usize, f32)> {
    let sum = uses.made_only_for(analysis, value, "Sqrt")?.inputs[0]?;
    let [a, b] = pair(uses.made_only_for(analysis, sum, "Add")?)?;
    let (mean, epsilon) = match analysis.scalar(b) {
        Some(epsilon) => (a, epsilon),
        None => (b, analysis.scalar(a)?),
    };
    let mean = uses.made_only_for(analysis, mean, "ReduceMean")?;
    let square = mean.inputs[0]?;
    let last = analysis.values[square].ty.shape.len().checked_sub(1)? as i64;
    let axes = analysis.view(mean).optional_ints(1).ok().flatten();
    let axes = axes.or_else(|| mean.attributes.ints("axes").map(<[i64]>::to_vec))?;
    if mean.attributes.int("keepdims", 1) != 1 || (axes != [-1] && axes != [last]) {
        return None;
    }
    if let Some(power) = uses.made_only_for(analysis, square, "Pow") {
        let [x, exponent] = pair(power)?;
        return (analysis.scalar(exponent)? == 2.0).then_some((x, epsilon));
    }
    let [x, same] = pair(uses.made_only_for(analysis, square, "Mul")?)?;
    (x == same).then_some((x, epsilon))
}

/// A norm without a scale, times a vector that is frozen or trained.
fn scaled(analysis: &Analysis, uses: &Uses, step: &Step) -> Option<Step> {
    let [a, b] = pair(step).filter(|_| step.op.op_type() == "Mul")?;
    [(a, b), (b, a)].into_iter().find_map(|(y, scale)| {
        let norm = uses.made_only_for(analysis, y, ops::RMS_NORM_TYPE)?;
        let (ty, scale_ty) = (&analysis.values[y].ty, &analysis.values[scale].ty);
        let is_vector = scale_ty.shape.last() == ty.shape.last() && Some(&scale_ty.len()) == ty.shape.last();
        let is_given = matches!(analysis.values[scale].role, Role::Constant { .. } | Role::Parameter(_));
        let fits = norm.inputs.len() == 1 && is_vector && is_given && scale_ty.shape.len() <= ty.shape.len();
        fits.then(|| Step { inputs: vec![norm.inputs[0], Some(scale)], outputs: step.outputs.clone(), ..norm.clone() })
    })
}
