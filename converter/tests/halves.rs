//! Models in half precision become f32 models that compute the same, with points where the float model has them.

use std::path::{Path, PathBuf};

use inlay_converter::export::{Options, export};
use inlay_converter::kinds::Kinds;
use inlay_converter::quantize::Quant;
use inlay_converter::read::read;
use inlay_converter::report::Report;
use inlay_converter::{samples, verify};
use inlay_runtime::npz;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn exported(model: &Path, fixture: &str, out: &Path, quant: Quant) -> Report {
    let options = Options {
        model: model.to_owned(),
        out: out.to_owned(),
        quant: quant.into(),
        targets: Vec::new(),
        kinds: Kinds::default(),
        samples: Some(fixtures().join(format!("{fixture}.inputs.npz"))),
        basis: None,
        max_error: None,
        report: None,
        calibrate: None,
        no_kv_cache: false,
    };
    export(&options, &|_| ()).unwrap_or_else(|e| panic!("{}: {e}", model.display()))
}

/// The largest difference of the exported model from what onnxruntime computes with the source.
fn difference(name: &str, fixture: &str, folder: &Path) -> f32 {
    let graph = read(&folder.join("model.onnx")).unwrap().graph;
    let feeds = samples::read(&graph, &fixtures().join(format!("{fixture}.inputs.npz"))).unwrap();
    let expected = npz::read(&fixtures().join(format!("halves/{name}.outputs.npz"))).unwrap();
    let mut largest = 0f32;
    for output in verify::run_exported(folder, &feeds).unwrap() {
        let (_, array) = expected.iter().find(|(n, _)| *n == output.name).expect("the fixture has every output");
        assert_eq!(array.shape(), output.dims, "{name}");
        for (a, b) in output.values.iter().zip(array.floats().unwrap()) {
            largest = largest.max((a - b).abs() / b.abs().max(1.0));
        }
    }
    largest
}

fn check(name: &str) {
    let about = std::fs::read(fixtures().join("halves/halves.json")).unwrap();
    let about = &serde_json::from_slice::<Value>(&about).unwrap()[name];
    let fixture = about["fixture"].as_str().unwrap();
    let in_halves = about["computes_in_halves"].as_bool().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = |name: &str| folder.path().join(name);
    let float = exported(&fixtures().join(format!("{fixture}.onnx")), fixture, &out("float"), Quant::Int8);
    let model = fixtures().join(format!("halves/{name}.onnx"));
    let paths = |report: &Report| report.points.iter().map(|p| p.path.clone()).collect::<Vec<_>>();
    // onnxruntime rounds every intermediate value to a half, where the source does.
    let rounded = if in_halves { 0.02 } else { 0.0 };
    for (quant, scheme, tolerance) in
        [(Quant::None, "f16", 1e-4), (Quant::F16, "f16", 1e-4), (Quant::Int8, "int8", 0.1)]
    {
        let report = exported(&model, fixture, &out("half"), quant);
        assert_eq!(paths(&report), paths(&float), "{name}");
        assert!(report.skipped.is_empty(), "{name}: {:?}", report.skipped);
        assert!(report.packed.iter().any(|w| w.scheme == scheme), "{name}: {:?}", report.packed);
        if quant != Quant::Int8 {
            assert!(report.packed.iter().all(|w| w.error == 0.0 && w.bytes == w.source_bytes), "{:?}", report.packed);
        } else {
            assert_eq!(report.packed.len(), float.packed.len(), "{name}");
        }
        assert_eq!(report.notes.iter().any(|n| n.contains("half precision")), in_halves, "{name}: {:?}", report.notes);
        let found = difference(name, fixture, &out("half"));
        assert!(found <= tolerance + rounded, "{name} {quant:?}: {found} from onnxruntime");
    }
}

macro_rules! models {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*
    };
}

models! { cnn_halves mlp_halves encoder_halves encoder_half_weights }
