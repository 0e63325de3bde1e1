//! Models that onnxruntime's quantizers wrote keep their integers, and compute what onnxruntime computes with them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use inlay_converter::export::{Options, export};
use inlay_converter::graph::Graph;
use inlay_converter::kinds::Kinds;
use inlay_converter::quantize::{Quant, Quantization};
use inlay_converter::read::read;
use inlay_converter::report::Report;
use inlay_converter::tensor::{DType, Tensor};
use inlay_converter::{check, samples, verify};
use inlay_runtime::npz;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn model(name: &str) -> PathBuf {
    fixtures().join(format!("quantized/{name}.onnx"))
}

/// The float fixture that `name` was made from, and the step of its activations.
fn about(name: &str) -> (String, f32) {
    let json = std::fs::read(fixtures().join("quantized/quantized.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    (json[name]["fixture"].as_str().unwrap().to_owned(), json[name]["step"].as_f64().unwrap() as f32)
}

fn exported(name: &str, out: &Path, quant: Quantization) -> Report {
    let options = Options {
        model: model(name),
        out: out.to_owned(),
        quant,
        targets: Vec::new(),
        kinds: Kinds::default(),
        samples: Some(fixtures().join(format!("{}.inputs.npz", about(name).0))),
        calibrate: None,
        basis: None,
        max_error: None,
        report: None,
        no_kv_cache: false,
    };
    export(&options, &|_| ()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The integers of a quantized tensor, in order and from 0 on: what they are, wherever they lie and however they are signed.
fn levels(mut codes: Vec<i64>) -> Vec<i64> {
    codes.sort_unstable();
    let least = codes.first().copied().unwrap_or(0);
    codes.into_iter().map(|q| q - least).collect()
}

/// The integers of every quantized weight of a graph, by name.
fn integers(graph: &Graph) -> HashMap<String, Vec<i64>> {
    let bits: HashMap<&str, i64> = graph
        .nodes
        .iter()
        .filter(|n| n.op_type == "MatMulNBits")
        .map(|n| (n.inputs[1].as_str(), n.int("bits").unwrap()))
        .chain(
            graph
                .nodes
                .iter()
                .filter(|n| n.op_type == "GatherBlockQuantized")
                .map(|n| (n.inputs[0].as_str(), n.int("bits").unwrap_or(4))),
        )
        .collect();
    let weight = |(name, t): (&String, &Tensor)| {
        let is_weight = matches!(t.dtype, DType::I8 | DType::U8 | DType::U4 | DType::I4) && t.dims().len() > 1;
        let dtype = match bits.get(name.as_str()) {
            Some(2) => DType::U2,
            Some(4) => DType::U4,
            _ => t.dtype,
        };
        let elements = t.byte_len() * 8 / if dtype == DType::U2 { 2 } else { 4 };
        let packed = matches!(dtype, DType::U2 | DType::U4 | DType::I4);
        let t = if packed { Tensor::new(dtype, vec![elements], t.bytes()).unwrap() } else { t.clone() };
        // Zero points are tensors of the same kind, but fewer.
        (is_weight && t.len() >= 256).then(|| (name.clone(), levels(t.to_i64().unwrap())))
    };
    graph.constants.iter().filter_map(weight).collect()
}

/// Exports `name`; all `weights` integer tensors of the source are there, and outputs are within `steps` steps of the
/// activations and `tolerance` of what onnxruntime computes with the source.
fn kept(name: &str, weights: usize, scheme: &str, steps: f32, tolerance: f32) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let report = exported(name, &out, Quant::None.into());
    let found = integers(&read(&out.join("model.onnx")).unwrap().graph);
    let source = integers(&read(&model(name)).unwrap().graph);
    assert_eq!(source.len(), weights, "{name}: {:?}", source.keys());
    for (weight, levels) in &source {
        assert!(found.values().any(|found| found == levels), "{name}: {weight} is not there; {:?}", found.keys());
    }
    let exact = report.packed.iter().filter(|w| w.error < 1e-6).count();
    assert!(exact >= weights, "{name}: {:?}", report.packed);
    assert!(report.packed.iter().any(|w| w.scheme == scheme), "{name}: {:?}", report.packed);

    let graph = read(&out.join("model.onnx")).unwrap().graph;
    let (fixture, step) = about(name);
    let feeds = samples::read(&graph, &fixtures().join(format!("{fixture}.inputs.npz"))).unwrap();
    let expected = npz::read(&fixtures().join(format!("quantized/{name}.outputs.npz"))).unwrap();
    let allowed = tolerance + steps * step;
    let mut largest = 0f32;
    for output in verify::run_exported(&out, &feeds).unwrap() {
        let (_, array) = expected.iter().find(|(n, _)| *n == output.name).expect("the fixture has every output");
        assert_eq!(array.shape(), output.dims);
        for (a, b) in output.values.iter().zip(array.floats().unwrap()) {
            largest = largest.max((a - b).abs());
        }
    }
    assert!(largest <= allowed, "{name}: {largest} from onnxruntime, {allowed} is allowed, a step is {step}");
    let verdict = check::check(&model(name)).unwrap();
    assert!(verdict.exportable, "{name}: {:?}", verdict.blockers);
    assert_eq!(verdict.points.len(), report.points.len(), "{name}");
}

macro_rules! models {
    ($($name:ident: $weights:literal $scheme:literal within $steps:literal steps and $tolerance:literal;)*) => {
        $(
            #[test]
            fn $name() {
                kept(stringify!($name), $weights, $scheme, $steps, $tolerance);
            }
        )*

        #[test]
        fn every_model_is_tested() {
            for entry in std::fs::read_dir(fixtures().join("quantized")).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if let Some(name) = name.strip_suffix(".onnx") {
                    assert!([$(stringify!($name)),*].contains(&name), "{name}");
                }
            }
        }
    };
}

models! {
    cnn_qdq_channels: 9 "int8" within 3.0 steps and 1e-5;
    cnn_qdq_tensor: 9 "uint8" within 3.0 steps and 1e-5;
    mlp_qdq_channels: 5 "int8" within 3.0 steps and 1e-5;
    mlp_qat: 0 "int8" within 3.0 steps and 1e-5;
    cnn_dynamic: 9 "uint8" within 3.0 steps and 1e-5;
    encoder_dynamic_channels: 14 "int8" within 6.0 steps and 1e-5;
    encoder_dynamic_uint8: 14 "uint8" within 6.0 steps and 1e-5;
    encoder_nbits2: 12 "int4" within 0.0 steps and 1e-4;
    encoder_nbits4: 12 "int4" within 0.0 steps and 1e-4;
    encoder_nbits4_zeros: 14 "int4" within 0.0 steps and 1e-4;
    encoder_nbits4_hqq: 12 "int4" within 0.0 steps and 1e-4;
    encoder_nbits8: 12 "uint8" within 0.0 steps and 1e-4;
    encoder_qdq_int4: 12 "int4" within 0.0 steps and 1e-4;
    encoder_qdq_uint4: 12 "int4" within 0.0 steps and 1e-4;
    encoder_cast_mul: 12 "int8" within 0.0 steps and 1e-4;
    encoder_nbits8_symmetric: 12 "uint8" within 0.0 steps and 1e-4;
    encoder_qdq_int8_blocks: 12 "uint8" within 0.0 steps and 1e-4;
}

#[test]
fn a_rule_quantizes_anew() {
    let folder = tempfile::tempdir().unwrap();
    let rule = "*query=f16".parse().unwrap();
    let quant = Quantization { rules: vec![rule], ..Quant::Int8.into() };
    let report = exported("encoder_nbits4", &folder.path().join("out"), quant);
    let schemes = |scheme| report.packed.iter().filter(|w| w.scheme == scheme).count();
    assert_eq!((schemes("f16"), schemes("int4") > 5), (2, true), "{:?}", report.packed);
    assert!(report.notes.iter().any(|note| note.contains("keep the integers")), "{:?}", report.notes);
}
