//! Stage 5, second half: what was written is read back and compared with the source, number by number.

use std::path::Path;

use inlay_runtime::device::DeviceOptions;
use inlay_runtime::{Base, Device, HostData, HostTensor, Session, SessionOptions, Verify};
use serde::Serialize;

use crate::canonicalize;
use crate::error::{Error, Result, io};
use crate::graph::Graph;
use crate::oracle::{self, Feed, Output, Values};
use crate::quantize::{Packing, dequantized};
use crate::read::{self, Model};
use crate::samples::{self, Attempt};
use crate::tensor::Rewrite;
use crate::write::{MODEL_FILE, write_model, write_weights};

/// Largest difference of the exported graph from the source with the same weights, relative to max(1, |y|).
pub const STRUCTURE_TOLERANCE: f32 = 1e-4;

/// The reference does not run a larger source (bytes): it holds several copies of the weights.
pub const MAX_VERIFIED_BYTES: u64 = 200 << 20;

/// How one output compares.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputReport {
    /// Its name.
    pub name: String,
    /// Largest difference from the source with the same weights, relative to max(1, |y|), if the reference ran it.
    pub structure: Option<f32>,
    /// Largest difference from the float source.
    pub max_abs: f32,
    /// Norm of the difference from the float source, relative to the norm of its output.
    pub relative_l2: f32,
    /// Cosine between this output and the float source's.
    pub cosine: f32,
}

/// A graph as it was written, with how its constants are packed.
#[derive(Clone, Copy, Debug)]
pub struct PackedGraph<'a> {
    /// The graph; its constants are still floats.
    pub graph: &'a Graph,
    /// How they are packed.
    pub packing: &'a Packing,
}

/// Compares the model in `folder`, exported from `source` by way of `packed`, with its source.
///
/// # Errors
/// If the two differ by more than [`STRUCTURE_TOLERANCE`], by more than `max_error` through quantization, or if
/// either does not run.
pub fn verify(
    source: &Model,
    packed: PackedGraph<'_>,
    folder: &Path,
    samples: Option<&Path>,
    max_error: Option<f32>,
) -> Result<Vec<OutputReport>> {
    let mut graph = canonicalize::inlined(source)?;
    let Runs { feeds, float, found } = run_both(
        attempts(&graph, samples)?,
        "the source",
        &|feeds| oracle::run(&graph, source.opset, feeds, "the source"),
        &|feeds| run_exported(folder, feeds),
    )?;
    let exported = read::read(&folder.join(MODEL_FILE))?.graph;
    let substituted = substitute(&mut graph, &packed, &exported)?;
    let same_weights = if substituted {
        oracle::run(&graph, source.opset, &feeds, "the source with quantized weights")?
    } else {
        float.clone()
    };
    let mut reports = Vec::new();
    for (float, same) in float.iter().zip(&same_weights) {
        let missing = || Error::Invalid(format!("output {:?} is lost in the exported model", float.name));
        let found = found.iter().find(|o| o.name == float.name).ok_or_else(missing)?;
        reports.push(compare(float, Some(same), found, max_error)?);
    }
    Ok(reports)
}

/// What both models compute with the same inputs.
struct Runs {
    feeds: Vec<Feed>,
    float: Vec<Output>,
    found: Vec<Output>,
}

fn attempts(graph: &Graph, samples: Option<&Path>) -> Result<Vec<Attempt>> {
    Ok(match samples {
        Some(path) => vec![samples::read(graph, path)?.into()],
        None => samples::attempts(graph),
    })
}

/// Runs the float model, which is `what`, and the exported one on the first inputs that both take: open dimensions may have to
/// be larger than a kernel, or fit a shape inside.
fn run_both(
    attempts: Vec<Attempt>,
    what: &'static str,
    float: &dyn Fn(&[Feed]) -> Result<Vec<Output>>,
    exported: &dyn Fn(&[Feed]) -> Result<Vec<Output>>,
) -> Result<Runs> {
    let run = |feeds: Vec<Feed>| {
        let (float, found) = (float(&feeds)?, exported(&feeds)?);
        Ok(Runs { feeds, float, found })
    };
    let mut errors = Vec::new();
    for Attempt { feeds, turned } in attempts {
        let runs = match (run(feeds), turned) {
            (Ok(runs), Some(turned)) if expect_finite(&runs.float, what).is_err() => run(turned),
            (runs, _) => runs,
        };
        match runs {
            Ok(runs) => return expect_finite(&runs.float, what).map(|()| runs),
            Err(e) => errors.push(e),
        }
    }
    // The first inputs may have been too small, and the last too large.
    let last = errors.pop().expect("there are inputs to try");
    let Some(Error::Oracle { what, detail }) = errors.into_iter().next() else { return Err(last) };
    let others = format!("other sizes do not either, the last one: {last}; give real inputs with --samples");
    Err(Error::Oracle { what, detail: format!("{detail}; {others}") })
}

/// What the runtime computes with the base in `folder`, on the CPU.
///
/// # Errors
/// If it does not open or run there.
pub fn run_exported(folder: &Path, feeds: &[Feed]) -> Result<Vec<Output>> {
    Exported::open(folder)?.run(feeds)
}

/// A base that was written, open on the CPU.
pub(crate) struct Exported {
    base: Base,
    session: Session,
}

impl Exported {
    /// Opens the base in `folder`.
    pub fn open(folder: &Path) -> Result<Self> {
        let base = Base::open(folder, Verify::Full).map_err(|e| does_not_run(&e))?;
        let device = DeviceOptions { device: Device::Cpu, ..DeviceOptions::default() };
        let options = SessionOptions { device, ..SessionOptions::default() };
        let session = Session::new(base.clone(), options).map_err(|e| does_not_run(&e))?;
        Ok(Exported { base, session })
    }

    /// What it computes.
    pub fn run(&mut self, feeds: &[Feed]) -> Result<Vec<Output>> {
        let mut inputs = Vec::with_capacity(feeds.len());
        for feed in feeds {
            let dtype = self.base.inputs().iter().find(|p| p.name == feed.name).map(|p| p.dtype);
            inputs.push((feed.name.as_str(), host_tensor(feed, dtype)));
        }
        let inputs: Vec<(&str, &HostTensor)> = inputs.iter().map(|(name, t)| (*name, t)).collect();
        let outputs = self.session.predict(&inputs).map_err(|e| does_not_run(&e))?;
        let output = |(name, t): (String, HostTensor)| Output { name, dims: t.shape().to_vec(), values: t.to_floats() };
        Ok(outputs.into_iter().map(output).collect())
    }
}

fn does_not_run(error: &dyn std::error::Error) -> Error {
    Error::Oracle { what: "the exported model", detail: chain(error) }
}

fn host_tensor(feed: &Feed, dtype: Option<inlay_runtime::DType>) -> HostTensor {
    use inlay_runtime::DType;
    let data = match (&feed.values, dtype) {
        (Values::F32(v), _) => HostData::F32(v.clone()),
        (Values::I64(v), Some(DType::Bool)) => HostData::Bool(v.iter().map(|&v| v != 0).collect()),
        (Values::I64(v), Some(DType::I32)) => HostData::I32(v.iter().map(|&v| v as i32).collect()),
        (Values::I64(v), _) => HostData::I64(v.clone()),
    };
    HostTensor::new(feed.dims.clone(), data).expect("feeds have as many values as their shape says")
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |e| e.source()).fold(error.to_string(), |text, e| format!("{text}: {e}"))
}

/// Compares a model that is too large for the reference with its own float form, which the runtime maps from the disk.
/// Takes the graph to let go of the source before that.
///
/// # Errors
/// If the two differ by more than `max_error`, or either does not run.
pub fn verify_large(
    canonical: Graph,
    folder: &Path,
    samples: Option<&Path>,
    max_error: Option<f32>,
) -> Result<Vec<OutputReport>> {
    let parent = folder.parent().unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new().prefix(".inlay-float-").tempdir_in(parent).map_err(io(parent))?;
    let written = write_weights(&canonical, &Packing::default(), temporary.path(), &|_| ())?;
    write_model(&written, &[], "{}", temporary.path())?;
    let attempts = attempts(&canonical, samples)?;
    drop(canonical);
    let Runs { float, found, .. } =
        run_both(attempts, "the model in float", &|feeds| run_exported(temporary.path(), feeds), &|feeds| {
            run_exported(folder, feeds)
        })?;
    expect_finite(&found, "the exported model")?;
    float.iter().zip(&found).map(|(float, found)| compare(float, None, found, max_error)).collect()
}

fn expect_finite(outputs: &[Output], what: &'static str) -> Result<()> {
    match outputs.iter().find(|o| o.values.iter().any(|v| !v.is_finite())) {
        Some(bad) => {
            let detail = format!("output {:?} is not finite; give real inputs with --samples", bad.name);
            Err(Error::Oracle { what, detail })
        }
        None => Ok(()),
    }
}

/// Puts the dequantized weights of `exported` where they come from in `source`; whether there were any.
fn substitute(source: &mut Graph, packed: &PackedGraph<'_>, exported: &Graph) -> Result<bool> {
    for (name, storage) in &packed.packing.weights {
        let tensor = &packed.graph.constants[name];
        let origin = tensor.origin.as_ref().and_then(|o| source.constants.get_mut(o));
        let Some(origin) = origin else { continue };
        let values = dequantized(name, tensor, storage, exported)?;
        *origin = origin.with_source(&tensor.undo_rewrites(values));
        let transposed = origin.rewritten(Rewrite::Transpose);
        let copies = packed.graph.tied.iter().filter(|(_, table)| *table == name).map(|(copy, _)| copy.clone());
        source.constants.extend(copies.map(|copy| (copy, transposed.clone())));
    }
    Ok(!packed.packing.weights.is_empty())
}

fn compare(float: &Output, same: Option<&Output>, found: &Output, max_error: Option<f32>) -> Result<OutputReport> {
    let name = float.name.clone();
    let differs =
        |found: f32| Err(Error::StructureDiffers { output: name.clone(), found, allowed: STRUCTURE_TOLERANCE });
    if float.dims != found.dims || same.is_some_and(|same| same.values.len() != found.values.len()) {
        return differs(f32::INFINITY);
    }
    // A NaN must not get lost in max().
    let structure = same.map(|same| {
        let pairs = found.values.iter().zip(&same.values);
        pairs
            .map(|(a, b)| (a - b).abs() / b.abs().max(1.0))
            .fold(0.0, |m: f32, d| if d > m || d.is_nan() { d } else { m })
    });
    if let Some(structure) = structure.filter(|s| s.is_nan() || *s > STRUCTURE_TOLERANCE) {
        return differs(structure);
    }
    let (mut max_abs, mut square, mut norm, mut norm_found, mut dot) = (0f32, 0f64, 0f64, 0f64, 0f64);
    for (&a, &b) in found.values.iter().zip(&float.values) {
        max_abs = max_abs.max((a - b).abs());
        let (a, b) = (f64::from(a), f64::from(b));
        square += (a - b) * (a - b);
        norm += b * b;
        norm_found += a * a;
        dot += a * b;
    }
    let report = OutputReport {
        name,
        structure,
        max_abs,
        relative_l2: (square / norm.max(f64::MIN_POSITIVE)).sqrt() as f32,
        cosine: (dot / (norm * norm_found).sqrt().max(f64::MIN_POSITIVE)) as f32,
    };
    match max_error {
        Some(allowed) if report.max_abs > allowed => {
            Err(Error::QuantizationError { output: report.name, found: report.max_abs, allowed })
        }
        _ => Ok(report),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(values: &[f32]) -> Output {
        Output { name: "y".into(), dims: vec![values.len()], values: values.to_vec() }
    }

    #[test]
    fn structure_and_quantization_are_told_apart() {
        let (float, same) = (output(&[1.0, 100.0]), output(&[1.01, 100.0]));
        let report = compare(&float, Some(&same), &output(&[1.01, 100.001]), None).unwrap();
        assert!(report.structure.unwrap() < 2e-5 && (report.max_abs - 0.01).abs() < 1e-3);
        let other = output(&[1.02, 100.0]);
        assert!(matches!(compare(&float, Some(&same), &other, None), Err(Error::StructureDiffers { .. })));
        let nan = output(&[f32::NAN, 100.0]);
        assert!(matches!(compare(&float, Some(&same), &nan, None), Err(Error::StructureDiffers { .. })));
        assert!(matches!(compare(&float, Some(&same), &same, Some(0.005)), Err(Error::QuantizationError { .. })));
    }
}
