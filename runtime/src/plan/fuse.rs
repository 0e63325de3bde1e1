//! Joins steps into coarser ones, where the graph spells in primitives what a kernel does at once.

mod attention;
mod linear;
mod rms_norm;

use super::analyze::{Analysis, Role, Step};

/// Rewrites the steps. What is left without a use afterwards is for the caller to drop.
pub(crate) fn fuse(analysis: &mut Analysis, outputs: &[usize]) {
    linear::fuse(analysis, outputs);
    rms_norm::fuse(analysis, outputs);
    attention::fuse(analysis, outputs);
}

/// Which step makes each value, and how often each is used.
struct Uses {
    producer: Vec<Option<usize>>,
    count: Vec<usize>,
}

impl Uses {
    fn new(analysis: &Analysis, outputs: &[usize]) -> Self {
        let mut uses = Uses { producer: vec![None; analysis.values.len()], count: vec![0; analysis.values.len()] };
        for (i, step) in analysis.steps.iter().enumerate() {
            step.outputs.iter().flatten().for_each(|&o| uses.producer[o] = Some(i));
            step.inputs.iter().flatten().for_each(|&v| uses.count[v] += 1);
        }
        outputs.iter().for_each(|&o| uses.count[o] += 1);
        uses
    }

    /// The step that makes a value, when it has that op and one output.
    fn made_by<'a>(&self, analysis: &'a Analysis, value: usize, op_type: &str) -> Option<&'a Step> {
        let step = &analysis.steps[self.producer[value]?];
        (step.op.op_type() == op_type && step.outputs.len() == 1).then_some(step)
    }

    /// The same, when nothing else uses the value.
    fn made_only_for<'a>(&self, analysis: &'a Analysis, value: usize, op_type: &str) -> Option<&'a Step> {
        if self.count[value] == 1 { self.made_by(analysis, value, op_type) } else { None }
    }
}

/// Both inputs of a step that has two.
fn pair(step: &Step) -> Option<[usize; 2]> {
    match step.inputs.as_slice() {
        [Some(a), Some(b)] => Some([*a, *b]),
        _ => None,
    }
}

fn is_frozen(analysis: &Analysis, value: usize) -> bool {
    matches!(&analysis.values[value].role, Role::Constant { .. })
}
