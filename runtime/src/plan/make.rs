use std::sync::Arc;

use inlay_devices::kernels::{GradsParams, ZeroGrads};
use inlay_devices::program::{self, Call, Program, Region, Slot, aligned, stats, step};

use super::analyze::{Analysis, Role, Step, analyze};
use super::arena::{Lifetime, place};
use super::contexts::{Backward, Forward};
use super::fuse::fuse;
use super::hooks::{Loss, LossContext, UpdateContext};
use super::lower::{Bound, Draft, Lowering, u};
use super::prologue::{Destination, Negative, Prologue, Source, Write};
use super::rows;
use super::view::View;
use super::{Mode, OutputSource, ParameterSlot, Plan, PlanError, PlanOutput, PlanRequest};
use crate::graph::{DType, Graph};
use crate::ops::OpError;

pub(super) fn plan(graph: &Graph, request: &PlanRequest<'_>) -> Result<Plan, PlanError> {
    let mut analysis = analyze(graph, request)?;
    let wanted = wanted_outputs(graph, &analysis, &request.mode)?;
    let values: Vec<usize> = wanted.iter().map(|&o| analysis.outputs[o]).collect();
    prune(&mut analysis, &values);
    if let Some(rows) = request.rows {
        rows::check(graph, &analysis, rows)?;
    }
    fuse(&mut analysis, &values);
    prune(&mut analysis, &values);
    if request.rows.is_some() {
        rows::check_uses(&analysis)?;
    }
    check_sizes(&analysis)?;

    let shapes: Vec<_> = request.parameters.iter().map(|p| p.shape.clone()).collect();
    let parameters = parameter_slots(request);
    let params_len = parameters.last().map_or(0, |p| aligned(p.offset + p.len()));
    let mut lowering = match request.rows {
        None => Lowering::new(&analysis, &shapes),
        Some(rows) => {
            let shapes = parameters.iter().map(|slot| (slot.offset, slot.shape.as_slice()));
            Lowering::with_rows(&analysis, shapes, rows, params_len)
        }
    };
    lowering.merged = request.merged;
    let mut tape = Vec::new();
    for step in &analysis.steps {
        let saved = forward(&mut lowering, step)?;
        tape.push((step, saved));
    }
    let mut outputs = Vec::new();
    for (&output, &value) in wanted.iter().zip(&values) {
        outputs.push((output, read_output(&mut lowering, value)?));
    }
    let forward_len = lowering.drafts.len();
    let mut labels = None;
    let mut backward_len = forward_len;
    if let Mode::Train { output, loss, optimizer } = request.mode {
        let value = values[0];
        find_needs(&mut lowering, &tape)?;
        check_influence(&lowering, request, output, value)?;
        lowering.label = "gradients".to_owned();
        let (step, grads) = (lowering.step_slot(), lowering.grads_slot(params_len));
        lowering.call::<ZeroGrads>(&GradsParams { len: u(params_len) }, &[step, grads]);
        labels = Some(lower_loss(&mut lowering, value, loss)?);
        for (step, saved) in tape.iter().rev() {
            backward(&mut lowering, step, saved)?;
        }
        backward_len = lowering.drafts.len();
        lowering.label = "optimizer".to_owned();
        optimizer.lower(&mut UpdateContext { lowering: &mut lowering, len: params_len });
    }
    let parameters = (parameters, params_len);
    finish(&analysis, lowering, [forward_len, backward_len], outputs, parameters, labels)
}

/// Positions of the outputs that the plan computes.
fn wanted_outputs(graph: &Graph, analysis: &Analysis, mode: &Mode<'_>) -> Result<Vec<usize>, PlanError> {
    let Mode::Train { output, .. } = mode else { return Ok((0..graph.outputs().len()).collect()) };
    let found = graph.outputs().iter().position(|p| p.name == *output && p.dtype == DType::F32);
    match found {
        Some(i) if matches!(analysis.values[analysis.outputs[i]].role, Role::Step | Role::Parameter(_)) => Ok(vec![i]),
        _ => {
            let floats = graph.outputs().iter().filter(|p| p.dtype == DType::F32).map(|p| p.name.as_str());
            let known = floats.collect::<Vec<_>>().join(", ");
            Err(PlanError::UnknownOutput { name: (*output).to_owned(), known })
        }
    }
}

/// Drops steps that nothing needs.
fn prune(analysis: &mut Analysis, outputs: &[usize]) {
    let mut needed = vec![false; analysis.values.len()];
    outputs.iter().for_each(|&o| needed[o] = true);
    let mut steps = std::mem::take(&mut analysis.steps);
    steps.reverse();
    steps.retain(|step| {
        let keep = step.outputs.iter().flatten().any(|&o| needed[o]);
        if keep {
            step.inputs.iter().flatten().for_each(|&i| needed[i] = true);
        }
        keep
    });
    steps.reverse();
    analysis.steps = steps;
}

/// Sizes must fit the kernels' 32 bits.
fn check_sizes(analysis: &Analysis) -> Result<(), PlanError> {
    for value in analysis.steps.iter().flat_map(|s| s.inputs.iter().chain(&s.outputs)).flatten() {
        let value = &analysis.values[*value];
        let count = value.ty.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if count.is_none_or(|n| n > i32::MAX as usize) {
            return Err(PlanError::TooLarge { name: value.name.clone(), shape: value.ty.shape.clone() });
        }
    }
    Ok(())
}

fn parameter_slots(request: &PlanRequest<'_>) -> Vec<ParameterSlot> {
    let mut offset = 0;
    let slot = |p: &super::Binding| {
        let slot = ParameterSlot { name: p.name.clone(), shape: p.shape.clone(), offset };
        offset += aligned(slot.len());
        slot
    };
    request.parameters.iter().map(slot).collect()
}

fn forward<'a>(lowering: &mut Lowering<'a>, step: &'a Step) -> Result<Vec<View>, PlanError> {
    let fail = |source| PlanError::node(&step.label, step.op, source);
    let mut cx = Forward::new(lowering, step);
    step.op.forward(&mut cx).map_err(fail)?;
    let saved = cx.into_saved();
    debug_assert!(step.outputs.iter().flatten().all(|&o| lowering.is_set(o)), "{:?} sets its outputs", step.op);
    Ok(saved)
}

fn backward<'a>(lowering: &mut Lowering<'a>, step: &'a Step, saved: &[View]) -> Result<(), PlanError> {
    let wanted = step.inputs.iter().flatten().any(|&i| lowering.needs[i]);
    let mut reached = false;
    for &output in step.outputs.iter().flatten() {
        let view = lowering.value(output).map_err(|e| PlanError::node(&step.label, step.op, e))?;
        reached |= lowering.gradient(&view).is_some();
    }
    if !wanted || !reached {
        return Ok(());
    }
    let mut cx = Backward::new(lowering, step, saved);
    step.op.backward(&mut cx).map_err(|source| PlanError::node(&step.label, step.op, source))
}

/// Marks the values that lie between a parameter and the output.
fn find_needs(lowering: &mut Lowering<'_>, tape: &[(&Step, Vec<View>)]) -> Result<(), PlanError> {
    for (value, needs) in lowering.analysis.values.iter().zip(&mut lowering.needs) {
        *needs = matches!(value.role, Role::Parameter(_));
    }
    for (step, _) in tape {
        let from = |(i, input): (usize, &Option<usize>)| input.is_some_and(|v| lowering.needs[v]).then_some(i);
        let mut reached = step.inputs.iter().enumerate().filter_map(from).peekable();
        if reached.peek().is_none() {
            continue;
        }
        let blocked = reached.find(|&i| !step.op.differentiable(i));
        for &output in step.outputs.iter().flatten() {
            if lowering.analysis.values[output].ty.dtype != DType::F32 {
                continue;
            }
            if blocked.is_some() {
                let source = OpError::NotDifferentiable { what: "this node" };
                return Err(PlanError::node(&step.label, step.op, source));
            }
            lowering.needs[output] = true;
        }
    }
    Ok(())
}

/// Every parameter must have a way to the output.
fn check_influence(
    lowering: &Lowering<'_>,
    request: &PlanRequest<'_>,
    output: &str,
    value: usize,
) -> Result<(), PlanError> {
    // Steps were pruned to those that the output needs, so a parameter in use has a way.
    let analysis = lowering.analysis;
    let inputs = || analysis.steps.iter().flat_map(|s| &s.inputs).flatten().chain([&value]);
    let used = |index: usize| inputs().any(|&i| matches!(analysis.values[i].role, Role::Parameter(p) if p == index));
    for (i, parameter) in request.parameters.iter().enumerate() {
        if !used(i) || !lowering.needs[value] {
            return Err(PlanError::NoInfluence { name: parameter.name.clone(), output: output.to_owned() });
        }
    }
    Ok(())
}

fn lower_loss(lowering: &mut Lowering<'_>, value: usize, loss: &dyn Loss) -> Result<crate::ops::TensorType, PlanError> {
    lowering.label = "loss".to_owned();
    let fail = |source| PlanError::Node { node: "loss".into(), op: "loss".into(), source };
    let view = lowering.value(value).map_err(fail)?;
    let shape = view.shape().to_vec();
    let ty = loss.labels(&shape)?;
    let (labels, destination) = if ty.dtype == DType::F32 {
        let view = lowering.fed(&ty.shape);
        (view.clone(), Destination::Floats(view))
    } else {
        let buffer = lowering.buffers.add(Region::Ints, ty.len());
        let view = View::contiguous(buffer, &ty.shape);
        (view.clone(), Destination::Ints { view, limit: loss.classes(&shape), negative: Negative::Ignored })
    };
    lowering.writes.push(Write { source: Source::Labels, destination });
    let prediction = lowering.contiguous(&view);
    super::contexts::add_gradient(lowering, &view, |lowering, gradient, accumulate| {
        // A parameter that is the prediction adds to its gradient; everything else starts with the loss.
        let own = if accumulate { lowering.scratch(gradient.shape()) } else { gradient.clone() };
        loss.lower(&mut LossContext { lowering, prediction, labels, gradient: own.clone() });
        if accumulate {
            lowering.copy(&own, gradient, true);
        }
        Ok(())
    })
    .map_err(fail)?;
    Ok(ty)
}

/// Makes an output readable, and says where it is.
fn read_output(lowering: &mut Lowering<'_>, value: usize) -> Result<Option<View>, PlanError> {
    let analysis = lowering.analysis;
    let it = &analysis.values[value];
    let on_host = it.ty.dtype != DType::F32 && matches!(it.role, Role::Prologue | Role::Constant { host: Some(_), .. });
    if on_host {
        return Ok(None);
    }
    lowering.label.clone_from(&it.name);
    let fail = |source| PlanError::Node { node: it.name.clone(), op: "output".into(), source };
    if it.ty.dtype != DType::F32 {
        let what = "an integer or boolean output that depends on computed floats";
        return Err(fail(OpError::Unsupported { what, way_out: "export the model without this output" }));
    }
    let view = lowering.value(value).map_err(fail)?;
    let view = lowering.contiguous(&view);
    lowering.buffers.get_mut(view.buffer).read = true;
    Ok(Some(view))
}

fn finish(
    analysis: &Analysis,
    mut lowering: Lowering<'_>,
    [forward_len, backward_len]: [usize; 2],
    outputs: Vec<(usize, Option<View>)>,
    (parameters, row_len): (Vec<ParameterSlot>, usize),
    labels: Option<crate::ops::TensorType>,
) -> Result<Plan, PlanError> {
    let drafts = std::mem::take(&mut lowering.drafts);
    place_arena(&mut lowering, &drafts);
    let buffers = &mut lowering.buffers;
    buffers.set_region_len(Region::Step, step::LEN);
    buffers.set_region_len(Region::Stats, stats::LEN);
    buffers.set_region_len(Region::Consts, lowering.consts.len());
    let buffers = &lowering.buffers;
    let mut calls: Vec<Call> = drafts
        .into_iter()
        .map(|draft| Call {
            kernel: draft.kernel,
            params: draft.params,
            operands: draft.operands.iter().map(|o| placed(o.0, &lowering)).collect(),
            label: draft.label,
        })
        .collect();
    let update = calls.split_off(backward_len);
    let backward = calls.split_off(forward_len);
    let program = Program {
        region_lens: std::array::from_fn(|i| buffers.region_len(Region::ALL[i])),
        consts: lowering.consts.clone(),
        weights: lowering.weights.clone(),
        forward: calls,
        backward,
        update,
    };
    program.validate()?;
    let writes = std::mem::take(&mut lowering.writes).into_iter().map(|write| {
        let (Destination::Floats(view) | Destination::Ints { view, .. }) = &write.destination;
        let at = lowering.buffers.slot(view).offset;
        (write, at)
    });
    let host: Vec<usize> =
        outputs.iter().filter(|(_, view)| view.is_none()).map(|(o, _)| analysis.outputs[*o]).collect();
    let prologue = Prologue::new(analysis, writes.collect(), &host, labels.clone());
    let outputs = outputs.into_iter().map(|(output, view)| {
        let value = analysis.outputs[output];
        PlanOutput {
            name: analysis.output_names[output].clone(),
            ty: analysis.values[value].ty.clone(),
            source: view.map_or(OutputSource::Host(value), |view| OutputSource::Device(lowering.buffers.slot(&view))),
        }
    });
    let outputs = outputs.collect();
    Ok(Plan { program: Arc::new(program), prologue, outputs, parameters, row_len, labels })
}

fn placed(bound: Bound, lowering: &Lowering<'_>) -> program::Operand {
    match bound {
        Bound::Absent => program::Operand::Absent,
        Bound::Weight(id) => program::Operand::Weight(id),
        Bound::Slot { buffer, offset, len } => {
            let buffer = lowering.buffers.get(buffer);
            program::Operand::Slot(Slot::new(buffer.region, buffer.offset + offset, len))
        }
    }
}

/// Gives every arena buffer its place.
fn place_arena(lowering: &mut Lowering<'_>, drafts: &[Draft]) {
    let mut lives: Vec<Option<Lifetime>> = vec![None; lowering.buffers.len()];
    for (at, draft) in drafts.iter().enumerate() {
        for operand in &draft.operands {
            if let Bound::Slot { buffer, .. } = operand.0 {
                let len = lowering.buffers.get(buffer).len;
                let life = lives[buffer.index()].get_or_insert(Lifetime { len, first: at, last: at });
                life.last = at;
            }
        }
    }
    for (i, life) in lives.iter_mut().enumerate() {
        let buffer = lowering.buffers.by_index(i);
        if buffer.region != Region::Arena || buffer.len == 0 {
            *life = None;
            continue;
        }
        if buffer.fed || buffer.read {
            let life = life.get_or_insert(Lifetime { len: buffer.len, first: 0, last: 0 });
            // The host writes before the first call, and reads after the last.
            if buffer.fed {
                life.first = 0;
            }
            if buffer.read {
                life.last = drafts.len();
            }
        }
    }
    let (offsets, total) = place(&lives);
    for (i, offset) in offsets.into_iter().enumerate() {
        if lowering.buffers.by_index(i).region == Region::Arena {
            lowering.buffers.set_offset(i, offset);
        }
    }
    lowering.buffers.set_region_len(Region::Arena, total);
}
