//! Stage 5, second half: what was written is read back and compared with the source, number by number.

use std::path::Path;

use serde::Serialize;

use crate::canonicalize;
use crate::error::{Error, Result};
use crate::graph::{Graph, OPSET};
use crate::oracle::{self, Feed, Output};
use crate::quantize::scale_name;
use crate::read::{self, Model};
use crate::samples;
use crate::tensor::{DType, Tensor};
use crate::write::MODEL_FILE;

/// Largest difference of the exported graph from the source with the same weights, relative to max(1, |y|).
pub const STRUCTURE_TOLERANCE: f32 = 1e-4;

/// Weights of a larger model (bytes) are not compared: the reference holds several copies of them.
pub const MAX_VERIFIED_BYTES: u64 = 200 << 20;

/// How one output compares.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputReport {
    /// Its name.
    pub name: String,
    /// Largest difference from the source with the same weights, relative to max(1, |y|).
    pub structure: f32,
    /// Largest difference from the float source.
    pub max_abs: f32,
    /// Norm of the difference from the float source, relative to the norm of its output.
    pub relative_l2: f32,
    /// Cosine between this output and the float source's.
    pub cosine: f32,
}

/// Compares the model in `folder`, exported from `source` by way of `canonical`, with its source.
///
/// # Errors
/// If the two differ by more than [`STRUCTURE_TOLERANCE`], by more than `max_error` through quantization, or if
/// either does not run.
pub fn verify(
    source: &Model,
    canonical: &Graph,
    folder: &Path,
    samples: Option<&Path>,
    max_error: Option<f32>,
) -> Result<Vec<OutputReport>> {
    let exported = exported(folder)?;
    let mut graph = canonicalize::inlined(source)?;
    let (feeds, float) = match samples {
        Some(path) => {
            let feeds = samples::read(&graph, path)?;
            let outputs = oracle::run(&graph, source.opset, &feeds, "the source")?;
            (feeds, outputs)
        }
        None => run_generated(&graph, source.opset)?,
    };
    if let Some(bad) = float.iter().find(|o| o.values.iter().any(|v| !v.is_finite())) {
        let detail = format!("output {:?} of the source is not finite; give real inputs with --samples", bad.name);
        return Err(Error::Oracle { what: "the source", detail });
    }
    let substituted = substitute(&mut graph, canonical, &exported);
    let same_weights = if substituted {
        oracle::run(&graph, source.opset, &feeds, "the source with quantized weights")?
    } else {
        float.clone()
    };
    drop(graph);
    let found = oracle::run(&exported, OPSET, &feeds, "the exported graph")?;
    let mut reports = Vec::new();
    for ((float, same), found) in float.iter().zip(&same_weights).zip(&found) {
        reports.push(compare(float, same, found, max_error)?);
    }
    Ok(reports)
}

fn run_generated(graph: &Graph, opset: i64) -> Result<(Vec<Feed>, Vec<Output>)> {
    let mut last = None;
    for open in samples::OPEN_SIZES {
        let feeds = samples::generate(graph, open);
        match oracle::run(graph, opset, &feeds, "the source") {
            Ok(outputs) => return Ok((feeds, outputs)),
            // An open dimension may have to be larger than a kernel, or than a fixed shape inside.
            Err(e) => last = last.or(Some(e)),
        }
    }
    Err(last.expect("at least one size was tried"))
}

/// The graph in `folder`, with adapters of rank 1 that add nothing, because tract has no dimension of size 0.
///
/// # Errors
/// If it cannot be read.
pub fn exported(folder: &Path) -> Result<Graph> {
    let mut graph = read::read(&folder.join(MODEL_FILE))?.graph;
    for tensor in graph.constants.values_mut().filter(|t| t.is_empty()) {
        let dims: Vec<usize> = tensor.dims().iter().map(|&d| d.max(1)).collect();
        *tensor = Tensor::from_f32(&dims, &vec![0.0; dims.iter().product()]);
    }
    Ok(graph)
}

/// Puts the dequantized weights of `exported` where they come from in `source`; whether there were any.
fn substitute(source: &mut Graph, canonical: &Graph, exported: &Graph) -> bool {
    let mut any = false;
    for (name, tensor) in &canonical.constants {
        let packed = exported.constants.get(name).filter(|t| t.dtype == DType::I8);
        let scales = exported.constants.get(&scale_name(name));
        let origin = tensor.origin.as_ref().and_then(|o| source.constants.get_mut(o));
        let (Some(packed), Some(scales), Some(origin)) = (packed, scales, origin) else { continue };
        let axis = exported.nodes.iter().find(|n| n.is("DequantizeLinear") && n.inputs[0] == *name);
        let axis = axis.and_then(|n| n.int("axis")).unwrap_or(0) as usize;
        let inner: usize = packed.dims()[axis + 1..].iter().product();
        let scales = scales.to_f32();
        let mut values = packed.to_f32();
        for (i, v) in values.iter_mut().enumerate() {
            *v *= scales[i / inner % scales.len()];
        }
        *origin = Tensor::from_f32(origin.dims(), &tensor.undo_rewrites(values));
        any = true;
    }
    any
}

fn compare(float: &Output, same: &Output, found: &Output, max_error: Option<f32>) -> Result<OutputReport> {
    let name = float.name.clone();
    let differs =
        |found: f32| Err(Error::StructureDiffers { output: name.clone(), found, allowed: STRUCTURE_TOLERANCE });
    if float.dims != found.dims || same.values.len() != found.values.len() {
        return differs(f32::INFINITY);
    }
    let pairs = || found.values.iter().zip(&same.values);
    // A NaN must not get lost in max().
    let structure = pairs()
        .map(|(a, b)| (a - b).abs() / b.abs().max(1.0))
        .fold(0.0, |m: f32, d| if d > m || d.is_nan() { d } else { m });
    if structure.is_nan() || structure > STRUCTURE_TOLERANCE {
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
        let report = compare(&float, &same, &output(&[1.01, 100.001]), None).unwrap();
        assert!(report.structure < 2e-5 && (report.max_abs - 0.01).abs() < 1e-3);
        let other = output(&[1.02, 100.0]);
        assert!(matches!(compare(&float, &same, &other, None), Err(Error::StructureDiffers { .. })));
        let nan = output(&[f32::NAN, 100.0]);
        assert!(matches!(compare(&float, &same, &nan, None), Err(Error::StructureDiffers { .. })));
        assert!(matches!(compare(&float, &same, &same, Some(0.005)), Err(Error::QuantizationError { .. })));
    }
}
