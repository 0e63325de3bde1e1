//! What each value of a graph is, for concrete shapes: known, fed, a parameter, or computed on the device.

use std::collections::HashMap;
use std::sync::Arc;

use inlay_devices::weight::Weight;

use super::frozen::Frozen;
use super::{Binding, PlanError, PlanRequest};
use crate::base::{Constant, Port};
use crate::graph::{Attributes, DType, Graph, HostTensor, Node, ValueId};
use crate::merge::Merged;
use crate::onnx::Dim;
use crate::ops::{self, Input, NodeView, Op, Simplified, TensorType};

/// Floats that are copied out of the file when the plan is made (elements).
const MAX_HOST_FLOATS: usize = 1024;

/// Where a value comes from.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    /// Known when the plan is made, in one form or both.
    Constant { host: Option<Arc<HostTensor>>, frozen: Option<Frozen> },
    /// Zero everywhere.
    Zero,
    /// Fed, or computed by the host from what is fed.
    Prologue,
    /// A trainable parameter.
    Parameter(usize),
    /// Computed by the device, or floats that are fed to it.
    Step,
}

#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub name: String,
    pub ty: TensorType,
    pub role: Role,
}

/// A node that is left to do, on the host or on the device.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub label: String,
    pub op: &'static dyn Op,
    pub attributes: Arc<Attributes>,
    pub inputs: Vec<Option<usize>>,
    pub outputs: Vec<Option<usize>>,
}

/// A graph for concrete shapes.
#[derive(Debug, Default)]
pub(crate) struct Analysis {
    pub values: Vec<Value>,
    pub steps: Vec<Step>,
    pub prologue: Vec<Step>,
    /// Value of each graph input, in the graph's order.
    pub inputs: Vec<usize>,
    /// Value of each graph output, in the graph's order.
    pub outputs: Vec<usize>,
    pub output_names: Vec<String>,
    /// Value of each value of the graph.
    pub of_graph: Vec<Option<usize>>,
}

impl Analysis {
    pub fn add(&mut self, name: String, ty: TensorType, role: Role) -> usize {
        self.values.push(Value { name, ty, role });
        self.values.len() - 1
    }

    /// A node's inputs and outputs as ops see them.
    pub fn view<'a>(&'a self, step: &'a Step) -> NodeView<'a> {
        let inputs = step.inputs.iter().map(|i| i.map(|i| self.input(i))).collect();
        NodeView { attributes: &step.attributes, inputs, outputs: step.outputs.len() }
    }

    fn input(&self, value: usize) -> Input<'_> {
        let value = &self.values[value];
        let (known, frozen) = match &value.role {
            Role::Constant { host, frozen } => (host.as_deref(), frozen.as_ref()),
            _ => (None, None),
        };
        Input { ty: &value.ty, value: known, frozen, zero: matches!(value.role, Role::Zero) }
    }

    /// The single float that a value is known to be.
    pub fn scalar(&self, value: usize) -> Option<f32> {
        match &self.values[value].role {
            Role::Constant { host: Some(host), .. } => host.scalar(),
            _ => None,
        }
    }
}

/// Classifies every value of `graph`.
pub(crate) fn analyze(graph: &Graph, request: &PlanRequest<'_>) -> Result<Analysis, PlanError> {
    let mut analysis = Analysis::default();
    let mut ids: Vec<Option<usize>> = vec![None; graph.values.len()];
    check_inputs(graph, request)?;
    for (port, id) in graph.inputs().iter().zip(&graph.input_ids) {
        let shape = request.shape(&port.name).expect("checked").to_vec();
        let role = if port.dtype == DType::F32 { Role::Step } else { Role::Prologue };
        let value = analysis.add(port.name.clone(), TensorType::new(port.dtype, shape), role);
        analysis.inputs.push(value);
        ids[id.index()] = Some(value);
    }
    bind_parameters(graph, request, &mut analysis, &mut ids)?;
    for (i, value) in graph.values.iter().enumerate() {
        if let (Some(constant), None) = (&value.constant, ids[i]) {
            ids[i] = Some(add_constant(&mut analysis, constant));
        }
    }
    for node in &graph.nodes {
        classify(graph, node, request.merged, &mut analysis, &mut ids)?;
    }
    let value_of = |id: &ValueId| ids[id.index()].expect("every value of the graph was visited");
    analysis.outputs = graph.output_ids.iter().map(value_of).collect();
    analysis.output_names = graph.outputs().iter().map(|p| p.name.clone()).collect();
    analysis.of_graph = ids;
    Ok(analysis)
}

fn add_constant(analysis: &mut Analysis, constant: &Constant) -> usize {
    let small = constant.dtype != DType::F32 || constant.dims.iter().product::<usize>() <= MAX_HOST_FLOATS;
    let host = small
        .then(|| HostTensor::from_window(constant.dtype, &constant.dims, &constant.window))
        .flatten()
        .map(Arc::new);
    let role = Role::Constant { host, frozen: Frozen::new(constant) };
    analysis.add(constant.name.clone(), TensorType::new(constant.dtype, constant.dims.clone()), role)
}

/// The frozen weight that the linear or convolution of that name multiplies with, or the table whose rows a lookup takes.
pub(crate) fn node_weight(graph: &Graph, node: &str) -> Option<Weight> {
    let node = graph.nodes.iter().find(|known| known.name == node)?;
    let n_axis = match node.op.op_type() {
        "MatMul" => 1,
        "Gemm" => usize::from(node.attributes.int("transB", 0) == 0),
        "Conv" | "Gather" | PACKED => 0,
        _ => return None,
    };
    let frozen = match node.op.op_type() {
        PACKED => packed_input(graph, node)?,
        "Gather" => frozen_input(graph, node, 0)?,
        _ => frozen_input(graph, node, 1)?,
    };
    frozen.weight(n_axis).ok()
}

/// One row of the table that the Gather of that name looks up; `None` when it has no such row, or no frozen table.
pub(crate) fn table_row(graph: &Graph, node: &str, row: usize) -> Option<Vec<f32>> {
    let node = graph.nodes.iter().find(|known| known.name == node)?;
    let weight = frozen_input(graph, node, 0)?.weight(0).ok()?;
    (row < weight.n()).then(|| (0..weight.k()).map(|k| weight.view().get(k, row)).collect())
}

/// The packed weight of a node whose op multiplies with packed elements itself.
fn packed_input(graph: &Graph, node: &Node) -> Option<Frozen> {
    let mut analysis = Analysis::default();
    let mut ids = vec![None; graph.values.len()];
    let mut inputs = vec![None];
    for input in node.inputs.iter().skip(1) {
        let input = input.map(|input| known(graph, input, MAX_WEIGHT_NODES, &mut analysis, &mut ids));
        inputs.push(match input {
            Some(known) => Some(known?),
            None => None,
        });
    }
    let attributes = Arc::clone(&node.attributes);
    let step = Step { label: node.name.clone(), op: node.op, attributes, inputs, outputs: Vec::new() };
    ops::matmul_n_bits::packed(&analysis.view(&step)).ok()
}

/// What a node has as an input, when it depends on constants only.
fn frozen_input(graph: &Graph, node: &Node, input: usize) -> Option<Frozen> {
    let mut analysis = Analysis::default();
    let mut ids = vec![None; graph.values.len()];
    let value = node.inputs.get(input).copied().flatten()?;
    let weight = known(graph, value, MAX_WEIGHT_NODES, &mut analysis, &mut ids)?;
    match &analysis.values[weight].role {
        Role::Constant { frozen: Some(frozen), .. } if frozen.is_dequantized() => Some(frozen.clone()),
        Role::Constant { host: Some(host), .. } => Frozen::from_host(&analysis.values[weight].name, host),
        _ => None,
    }
}

/// The op that multiplies with packed elements itself.
const PACKED: &str = "MatMulNBits";

/// Nodes between an initializer and the node that it is a weight of, at most.
const MAX_WEIGHT_NODES: usize = 8;

/// A value that depends on constants only.
fn known(
    graph: &Graph,
    id: ValueId,
    depth: usize,
    analysis: &mut Analysis,
    ids: &mut [Option<usize>],
) -> Option<usize> {
    if ids[id.index()].is_none() {
        if let Some(constant) = &graph.values[id.index()].constant {
            ids[id.index()] = Some(add_constant(analysis, constant));
        } else {
            let node = graph.nodes.iter().find(|node| node.outputs.contains(&Some(id)))?;
            for input in node.inputs.iter().flatten() {
                known(graph, *input, depth.checked_sub(1)?, analysis, ids)?;
            }
            classify(graph, node, None, analysis, ids).ok()?;
        }
    }
    ids[id.index()]
}

fn classify(
    graph: &Graph,
    node: &Node,
    merged: Option<&Merged>,
    analysis: &mut Analysis,
    ids: &mut [Option<usize>],
) -> Result<(), PlanError> {
    let value_of = |id: &ValueId| ids[id.index()].expect("the graph is in topological order");
    let mut step = Step {
        label: node.name.clone(),
        op: node.op,
        attributes: Arc::clone(&node.attributes),
        inputs: node.inputs.iter().map(|i| i.as_ref().map(value_of)).collect(),
        outputs: vec![None; node.outputs.len()],
    };
    for (input, values) in merged.map_or(&[][..], |merged| merged.vectors_at(&node.name)) {
        let ty = TensorType::new(DType::F32, values.shape());
        let name = format!("{} merged {input}", node.name);
        let frozen = Frozen::from_host(&name, values);
        let role = Role::Constant { host: Some(Arc::clone(values)), frozen };
        step.inputs[*input] = Some(analysis.add(name, ty, role));
    }
    let merged = merged.is_some_and(|merged| merged.weight(&node.name).is_some());
    let fail = |source| PlanError::node(&node.name, node.op, source);
    let view = analysis.view(&step);
    let types = node.op.infer(&view).map_err(fail)?;
    let simplified = match types.first() {
        Some(ty) if ty.is_empty() && ty.dtype == DType::F32 && node.outputs.len() == 1 => Some(Simplified::Zero),
        // What the base's weight is says nothing about the merged one.
        _ if merged => None,
        _ => node.op.simplify(&view).map_err(fail)?,
    };
    // What one output is, when it is nothing new.
    if let (Some(simplified), [Some(output)]) = (simplified, node.outputs.as_slice()) {
        let ty = types.into_iter().next().ok_or_else(|| fail(ops::OpError::Missing { input: 0 }))?;
        let value = match simplified {
            Simplified::Same(input) => step.inputs[input].expect("an op names an input that is there"),
            Simplified::Zero => analysis.add(name(graph, *output), ty, Role::Zero),
            Simplified::Frozen(frozen) => {
                analysis.add(name(graph, *output), ty, Role::Constant { host: None, frozen: Some(frozen) })
            }
        };
        ids[output.index()] = Some(value);
        return Ok(());
    }
    let roles: Vec<_> = step.inputs.iter().flatten().map(|&i| &analysis.values[i].role).collect();
    let known = |role: &&Role| matches!(role, Role::Constant { host: Some(_), .. });
    if node.op.on_host() && !merged && (!node.op.needs_values() || roles.iter().all(known)) {
        let results = node.op.evaluate(&view).map_err(fail)?;
        for (output, result) in node.outputs.iter().zip(results) {
            if let Some(output) = output {
                let ty = TensorType::new(result.dtype(), result.shape());
                let role = Role::Constant { host: Some(Arc::new(result)), frozen: None };
                ids[output.index()] = Some(analysis.add(name(graph, *output), ty, role));
            }
        }
        return Ok(());
    }
    // What the base's weight is, the host knows; a merged one it does not.
    let on_host = node.op.on_host() && !merged && roles.iter().all(|r| known(r) || matches!(r, Role::Prologue));
    let role = if on_host { Role::Prologue } else { Role::Step };
    for (i, (output, ty)) in node.outputs.iter().zip(types).enumerate() {
        if let Some(output) = output {
            let value = analysis.add(name(graph, *output), ty, role.clone());
            ids[output.index()] = Some(value);
            step.outputs[i] = Some(value);
        }
    }
    if on_host {
        analysis.prologue.push(step)
    } else {
        analysis.steps.push(step)
    }
    Ok(())
}

fn name(graph: &Graph, id: ValueId) -> String {
    graph.values[id.index()].name.clone()
}

/// Checks that exactly the inputs are given, and that shapes fit the graph and each other.
fn check_inputs(graph: &Graph, request: &PlanRequest<'_>) -> Result<(), PlanError> {
    if let Some((name, _)) = request.inputs.iter().find(|(name, _)| graph.inputs().iter().all(|p| p.name != *name)) {
        let known = graph.inputs().iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(PlanError::UnknownInput { name: (*name).to_owned(), known });
    }
    let mut symbols = HashMap::new();
    for port in graph.inputs() {
        let shape = request.shape(&port.name).ok_or_else(|| PlanError::MissingInput { name: port.name.clone() })?;
        check_shape(port, shape, &mut symbols)?;
    }
    Ok(())
}

/// Checks a shape against the graph; symbols of one name have one size.
fn check_shape<'g>(port: &'g Port, shape: &[usize], symbols: &mut HashMap<&'g str, usize>) -> Result<(), PlanError> {
    let fits = port.shape.len() == shape.len()
        && port.shape.iter().zip(shape).all(|(dim, &size)| match dim {
            Dim::Fixed(expected) => *expected == size,
            Dim::Symbol(name) if name.is_empty() => true,
            Dim::Symbol(name) => *symbols.entry(name).or_insert(size) == size,
        });
    if fits {
        return Ok(());
    }
    let dims = port.shape.iter().map(|d| match d {
        Dim::Fixed(size) => size.to_string(),
        Dim::Symbol(name) => match symbols.get(name.as_str()) {
            Some(size) => format!("{name} = {size}"),
            None => name.clone(),
        },
    });
    let expected = format!("[{}]", dims.collect::<Vec<_>>().join(", "));
    Err(PlanError::InputShape { name: port.name.clone(), expected, found: shape.to_vec() })
}

/// Bound parameters become values; others take their defaults like any constant.
fn bind_parameters(
    graph: &Graph,
    request: &PlanRequest<'_>,
    analysis: &mut Analysis,
    ids: &mut [Option<usize>],
) -> Result<(), PlanError> {
    let mut symbols = HashMap::new();
    for (i, Binding { name, shape, scale }) in request.parameters.iter().enumerate() {
        let Some(at) = graph.parameters().iter().position(|p| p.name == *name) else {
            return Err(PlanError::UnknownParameter { name: name.clone() });
        };
        let id = graph.parameter_ids[at];
        if ids[id.index()].is_some() {
            return Err(PlanError::UnknownParameter { name: format!("{name} (bound twice)") });
        }
        check_shape(&graph.parameters()[at], shape, &mut symbols)?;
        let ty = TensorType::new(DType::F32, shape.clone());
        let parameter = analysis.add(name.clone(), ty.clone(), Role::Parameter(i));
        let value = if *scale == 1.0 {
            parameter
        } else {
            let scaled = analysis.add(format!("{name} scaled"), ty, Role::Step);
            analysis.steps.push(Step {
                label: name.clone(),
                op: &ops::SCALE,
                attributes: Arc::new(Attributes::default().with_float("factor", *scale)),
                inputs: vec![Some(parameter)],
                outputs: vec![Some(scaled)],
            });
            scaled
        };
        ids[id.index()] = Some(value);
    }
    Ok(())
}
