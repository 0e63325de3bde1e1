//! Activation-aware scaling before quantization (AWQ, Lin et al., 2023): the weights that meet large values are made larger, and
//! their inputs smaller, so that rounding costs them less. What the floats compute stays the same.
//!
//! Linears that read one value form a group. Each of its channels is divided by a factor `s`, which whatever makes the value
//! absorbs exactly (a norm's gain, the linear before), and the rows of the group's weights are multiplied by it:
//! `x W = (x / s) (s W)`. Factors are `mean |x| ^ alpha`, with the alpha for which quantized weights compute most nearly what
//! the floats do.

mod capture;
pub mod fold;
mod report;
mod search;

use std::collections::HashMap;
use std::path::Path;

use inlay_format::points::CALIBRATION_SUFFIX;

pub use report::{CalibrationReport, Closeness, GroupReport, OutputError, SkippedGroup};

use crate::error::{Error, Result, io};
use crate::graph::{Graph, Links, Port, ValueType};
use crate::points::frozen_weight;
use crate::quantize::{Packing, Quantization, Sites, quantize};
use crate::samples::{self, Feed};
use crate::tensor::{DType, Rewrite, Tensor};
use crate::verify::Exported;
use crate::write::{write_model, write_weights};
use fold::{Axis, Divided, fold, is_linear, readers, weight_can_change};
use report::Sums;
use search::{Found, Quantized, search};

/// A graph whose weights were scaled, and what is needed to say what came of it.
pub struct Calibrated {
    /// The graph. It computes what it did, and says at which nodes factors are.
    pub graph: Graph,
    groups: Vec<GroupReport>,
    skipped: Vec<SkippedGroup>,
    batches: Vec<Vec<Feed>>,
    /// The float model, and the one that is quantized without factors.
    float: tempfile::TempDir,
    plain: tempfile::TempDir,
}

/// Linears that read one value.
struct Group {
    value: String,
    /// Indices of the nodes.
    linears: Vec<usize>,
    modules: Vec<String>,
    channels: usize,
}

/// Scales the weights of the canonical graph for the `quantization` that will follow. `file` has inputs of the model, as `.npz`;
/// temporary files are put into `scratch`.
///
/// # Errors
/// If the inputs do not fit the model, if it does not run, or if no linear can be given factors.
pub fn calibrate(
    canonical: &Graph,
    sites: &Sites,
    quantization: &Quantization,
    file: &Path,
    scratch: &Path,
) -> Result<Calibrated> {
    let batches = capture::batches(canonical, samples::read(canonical, file)?);
    let mut quantized = canonical.clone();
    let packing = quantize(&mut quantized, sites, quantization)?;
    let links = canonical.links();
    let (mut scalable, mut skipped) = (Vec::new(), Vec::new());
    for group in groups(canonical, &links, sites, &packing) {
        match group.fold(canonical, &links) {
            Ok(divided) => scalable.push((group, divided)),
            Err(reason) => skipped.push(SkippedGroup { modules: group.modules, reason }),
        }
    }
    if scalable.is_empty() {
        let reason = match skipped.first() {
            Some(group) => format!("of {:?}, {}", group.modules.join(", "), group.reason),
            None => "it is for linears that are stored as int4 or int8, and there are none".to_owned(),
        };
        return Err(Error::NothingToCalibrate { reason });
    }

    let float = written(&watched(canonical, &scalable), &Packing::default(), scratch)?;
    let values = scalable.iter().map(|(group, _)| (group.value.clone(), group.channels)).collect();
    let activations = capture::capture(float.path(), &values, &batches)?;
    let mut graph = canonical.clone();
    let mut reports = Vec::new();
    for (group, divided) in &scalable {
        let weights = group.linears.iter().filter_map(|&at| quantized_weight(canonical, &links, at, &packing));
        let found = search(&activations[&group.value], weights)?;
        if found.alpha > 0.0 {
            group.apply(&mut graph, &links, divided, &found)?;
        }
        let Found { alpha, before, after, .. } = found;
        reports.push(GroupReport { modules: group.modules.clone(), alpha, before, after });
    }
    let plain = written(&quantized, &packing, scratch)?;
    Ok(Calibrated { graph, groups: reports, skipped, batches, float, plain })
}

impl Calibrated {
    /// What was done, and how the outputs of the model that was exported to `folder` compare with those without factors.
    ///
    /// # Errors
    /// If a model does not run.
    pub fn report(self, folder: &Path) -> Result<CalibrationReport> {
        let [mut float, mut plain, mut scaled] =
            [Exported::open(self.float.path())?, Exported::open(self.plain.path())?, Exported::open(folder)?];
        let mut sums: Vec<(String, [Sums; 2])> = Vec::new();
        for feeds in &self.batches {
            let expected = float.run(feeds)?;
            for (which, found) in [plain.run(feeds)?, scaled.run(feeds)?].iter().enumerate() {
                for output in found {
                    let Some(expected) = expected.iter().find(|e| e.name == output.name) else { continue };
                    let known = sums.iter().position(|(name, _)| *name == output.name);
                    let at = known.unwrap_or_else(|| {
                        sums.push((output.name.clone(), Default::default()));
                        sums.len() - 1
                    });
                    sums[at].1[which].add(&expected.values, &output.values);
                }
            }
        }
        let outputs = sums.into_iter().map(|(name, [before, after])| OutputError {
            name,
            before: before.closeness(),
            after: after.closeness(),
        });
        Ok(CalibrationReport { groups: self.groups, skipped: self.skipped, outputs: outputs.collect() })
    }
}

/// Linears by the value that they read, of which at least one will be stored with scales, in the order of the graph.
fn groups(graph: &Graph, links: &Links, sites: &Sites, packing: &Packing) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut taken: HashMap<&str, usize> = HashMap::new();
    for (at, node) in graph.nodes.iter().enumerate().filter(|(_, node)| is_linear(node)) {
        let (Some((weight, axis)), Some(value)) = (frozen_weight(graph, links, node), node.input(0)) else { continue };
        let group = *taken.entry(value).or_insert_with(|| {
            let channels = graph.constants[weight].dims()[1 - axis];
            groups.push(Group { value: value.to_owned(), linears: Vec::new(), modules: Vec::new(), channels });
            groups.len() - 1
        });
        let module = sites.get(weight).and_then(|site| site.paths.first()).unwrap_or(&node.name);
        groups[group].linears.push(at);
        groups[group].modules.push(module.clone());
    }
    groups.retain(|group| group.linears.iter().any(|&at| has_scales(graph, links, at, packing)));
    groups
}

/// Whether the weight of a linear is stored with scales of its own making.
fn has_scales(graph: &Graph, links: &Links, at: usize, packing: &Packing) -> bool {
    let storage = frozen_weight(graph, links, &graph.nodes[at]).and_then(|(name, _)| packing.weights.get(name));
    storage.is_some_and(|storage| matches!(storage.scheme.name(), "int4" | "int8") && !storage.kept)
}

impl Group {
    /// The constants that are divided by factors when the group's weights are multiplied by them.
    fn fold(&self, graph: &Graph, links: &Links) -> Result<Vec<Divided>, String> {
        if links.is_output(&self.value) {
            return Err("their input is an output of the model".into());
        }
        // Both are in the order of the graph, once per use.
        let readers = readers(graph, links, &self.value);
        if readers != self.linears {
            let other = readers.iter().find(|at| !self.linears.contains(at));
            let node = &graph.nodes[*other.unwrap_or(&self.linears[0])];
            return Err(format!("{} {:?} reads their input too", node.op_type, node.name));
        }
        for &at in &self.linears {
            let node = &graph.nodes[at];
            let tensor = graph.constant_input(node, 1).ok_or("the weight is a table's transpose")?;
            weight_can_change(links, &node.inputs[1], tensor)?;
        }
        fold(graph, links, &self.value, self.channels)
    }

    /// Multiplies the weights by the factors, and divides what makes their input.
    fn apply(&self, graph: &mut Graph, links: &Links, divided: &[Divided], found: &Found) -> Result<()> {
        for &at in &self.linears {
            let (weight, axis) = frozen_weight(graph, links, &graph.nodes[at]).expect("groups are of linears");
            let (weight, axis) = (weight.to_owned(), if axis == 0 { Axis::Last } else { Axis::First });
            let tensor = graph.constants[&weight].rewritten(scale(axis, found.factors.clone()));
            graph.constants.insert(weight, tensor);
            graph.input_scales.insert(graph.nodes[at].name.clone(), found.factors.clone());
        }
        let inverse: Vec<f32> = found.factors.iter().map(|f| 1.0 / f).collect();
        for &Divided { node, input, axis, is_weight } in divided {
            let name = graph.nodes[node].inputs[input].clone();
            let tensor = graph.constants[&name].rewritten(scale(axis, inverse.clone()));
            if is_weight {
                graph.constants.insert(name, tensor);
                let scales = graph.row_scales.entry(graph.nodes[node].name.clone());
                let scales = scales.or_insert_with(|| vec![1.0; inverse.len()]);
                scales.iter_mut().zip(&inverse).for_each(|(scale, f)| *scale *= f);
                continue;
            }
            // Exporters share equal constants: the other readers keep theirs.
            let own = if links.only_consumer(&name).is_some() {
                graph.constants.insert(name.clone(), tensor);
                name
            } else {
                let own = graph.fresh_name(&format!("{name}.calibrated"));
                graph.constants.insert(own.clone(), tensor);
                graph.nodes[node].inputs[input].clone_from(&own);
                own
            };
            let factors = Tensor::from_f32(&[inverse.len()], &inverse);
            if graph.constants.insert(format!("{own}{CALIBRATION_SUFFIX}"), factors).is_some() {
                return Err(Error::Invalid(format!("initializer {own:?} has a calibration scale already")));
            }
        }
        Ok(())
    }
}

fn scale(axis: Axis, factors: Vec<f32>) -> Rewrite {
    match axis {
        Axis::First => Rewrite::ScaleRows(factors),
        Axis::Last => Rewrite::ScaleColumns(factors),
    }
}

/// The weight of a linear as [N, K], if it is stored with scales.
fn quantized_weight<'a>(graph: &'a Graph, links: &Links, at: usize, packing: &'a Packing) -> Option<Quantized<'a>> {
    if !has_scales(graph, links, at, packing) {
        return None;
    }
    let (name, axis) = frozen_weight(graph, links, &graph.nodes[at])?;
    let tensor = &graph.constants[name];
    let values = if axis == 0 { tensor.to_f32() } else { tensor.rewritten(Rewrite::Transpose).to_f32() };
    Some(Quantized { name, values, storage: &packing.weights[name] })
}

/// The graph with the inputs of the groups as outputs too.
fn watched(graph: &Graph, scalable: &[(Group, Vec<Divided>)]) -> Graph {
    let mut graph = graph.clone();
    for (group, _) in scalable {
        let unknown = ValueType { dtype: DType::F32, dims: None };
        let ty = graph.types.get(&group.value).cloned().unwrap_or(unknown);
        graph.outputs.push(Port { name: group.value.clone(), ty });
    }
    graph
}

/// A temporary folder with the model.
fn written(graph: &Graph, packing: &Packing, scratch: &Path) -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix(".inlay-calibration-").tempdir_in(scratch).map_err(io(scratch))?;
    let written = write_weights(graph, packing, folder.path(), &|_| ())?;
    write_model(&written, &[], "{}", folder.path())?;
    Ok(folder)
}
