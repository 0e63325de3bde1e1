//! Every model that the two PyTorch exporters wrote is exported, and computes what PyTorch computed.

use std::path::{Path, PathBuf};

use inlay_converter::export::{Options, export};
use inlay_converter::inspect::inspect;
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

fn options(name: &str, out: &Path, quant: Quant) -> Options {
    let folder = fixtures();
    Options {
        model: folder.join(format!("{name}.onnx")),
        out: out.to_owned(),
        quant: quant.into(),
        targets: Vec::new(),
        kinds: Kinds::default(),
        samples: Some(folder.join(format!("{name}.inputs.npz"))),
        calibrate: None,
        basis: None,
        max_error: None,
        report: None,
        no_kv_cache: false,
    }
}

/// `path op d_in d_out kernel` of every module, sorted; a module that is called twice gets a suffix the second time.
fn modules(name: &str) -> Vec<String> {
    let json = std::fs::read(fixtures().join(format!("{name}.json"))).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let mut seen = std::collections::HashMap::new();
    let mut lines: Vec<String> = json["modules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| {
            let mut path = m["path"].as_str().unwrap().to_owned();
            let count = seen.entry(path.clone()).or_insert(0);
            if *count > 0 {
                path = format!("{path}_{count}");
            }
            *count += 1;
            let kernel = m.get("kernel").map_or("[]".to_owned(), Value::to_string);
            format!("{path} {} {} {} {kernel}", m["op"].as_str().unwrap(), m["d_in"], m["d_out"])
        })
        .collect();
    lines.sort();
    lines
}

fn points(report: &Report) -> Vec<String> {
    let line = |p: &inlay_converter::report::PointReport| {
        let kernel = serde_json::to_string(&p.kernel).unwrap();
        format!("{} {} {} {} {kernel}", p.path, p.op, p.d_in, p.d_out)
    };
    let mut lines: Vec<String> = report.points.iter().map(line).collect();
    lines.sort();
    lines
}

/// The largest difference of the exported model from what PyTorch computed.
fn difference(name: &str, folder: &Path) -> f32 {
    let graph = read(&folder.join("model.onnx")).unwrap().graph;
    let feeds = samples::read(&graph, &fixtures().join(format!("{name}.inputs.npz"))).unwrap();
    let found = verify::run_exported(folder, &feeds).unwrap();
    let expected = npz::read(&fixtures().join(format!("{name}.outputs.npz"))).unwrap();
    let mut largest = 0f32;
    for output in found {
        let (_, array) = expected.iter().find(|(n, _)| *n == output.name).expect("the fixture has every output");
        assert_eq!(array.shape(), output.dims);
        for (a, b) in output.values.iter().zip(array.floats().unwrap()) {
            largest = largest.max((a - b).abs() / b.abs().max(1.0));
        }
    }
    largest
}

fn check(name: &str, float_tolerance: f32, int8_tolerance: f32) {
    for (quant, tolerance) in [(Quant::None, float_tolerance), (Quant::Int8, int8_tolerance)] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let report = export(&options(name, &out, quant), &|_| ()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(points(&report), modules(name), "{name}");
        // Only convolutions with groups or dilations, and transposed ones, are left out.
        let of_its_kind = |reason: &str| ["groups", "dilated", "transposed"].iter().any(|kind| reason.contains(kind));
        assert!(report.skipped.iter().all(|s| of_its_kind(&s.reason)), "{name}: {:?}", report.skipped);
        assert_eq!(
            report.skipped.len(),
            LEFT_OUT.iter().find(|(family, _)| name.starts_with(family)).map_or(0, |(_, count)| *count),
            "{name}: {:?}",
            report.skipped
        );
        assert_eq!(report.packed.is_empty(), quant == Quant::None, "{name}");
        let found = difference(name, &out);
        assert!(found <= tolerance, "{name} {quant:?}: {found} from PyTorch, {tolerance} is allowed");
    }
}

/// How many convolutions of a family carry no adapter.
const LEFT_OUT: [(&str, usize); 3] = [("mobile", 5), ("unet", 3), ("decoder", 1)];

/// Decoders with a cache, with the weights of `llama_ts17`.
const CACHED: [&str; 3] = ["llama_cache_ts17", "llama_cache_dyn21", "llama_cache_ort"];

macro_rules! fixtures {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name), 1e-4, 0.1);
        })*

        #[test]
        fn every_fixture_is_tested() {
            let mut listed = vec![$(stringify!($name)),*];
            listed.extend(CACHED);
            for entry in std::fs::read_dir(fixtures()).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|e| e == "onnx") {
                    let name = path.file_stem().unwrap().to_str().unwrap();
                    assert!(listed.contains(&name), "{name} is not in the list");
                }
            }
        }
    };
}

fixtures! {
    mlp_ts13 mlp_ts20 mlp_dyn18 mlp_dyn23 mlp_dyn18_stripped seq_mlp_ts13 seq_mlp_dyn21
    cnn_ts13 cnn_ts17_bn cnn_dyn18 cnn_dyn21_unoptimized cnn_dyn23 global_cnn_ts17 global_cnn_dyn20
    mobile_ts17 mobile_dyn20 unet_ts17 unet_dyn20 decoder_ts13 decoder_dyn18 twins_ts17 twins_dyn20
    encoder_ts13 encoder_ts17 encoder_ts17_tanh encoder_ts17_sdpa encoder_ts20
    encoder_dyn18 encoder_dyn20_tanh encoder_dyn21_sdpa encoder_dyn23 encoder_dyn23_sdpa
    attention_ts17 attention_ts20 attention_dyn21 transformer_ts17 transformer_ts20 transformer_dyn21
    mlp_ts20_parts autoencoder_ts17 autoencoder_dyn21
    gpt2_ts17 gpt2_dyn18 gpt2_dyn21_sdpa gpt2_ort gelus_ort
    llama_ts14_sdpa llama_ts17 llama_dyn18 llama_dyn21_sdpa llama_dyn23 llama_dyn23_sdpa llama_ort_mha
}

#[test]
fn a_cache_is_taken_out() {
    for name in CACHED {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let with_cache = Options { samples: None, ..options(name, &out, Quant::None) };
        let without = Options { no_kv_cache: true, ..with_cache.clone() };
        let report = export(&without, &|_| ()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let base = inlay_runtime::Base::open(&out, inlay_runtime::Verify::Full).unwrap();
        let names = |ports: &[inlay_runtime::Port]| ports.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        assert_eq!((names(base.inputs()).len(), names(base.outputs())), (2, vec!["logits".to_owned()]), "{name}");
        assert_eq!(points(&report), modules(name), "{name}");
        let found = difference("llama_ts17", &out);
        assert!(found <= 1e-4, "{name}: {found} from PyTorch");
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let error = export(&options("llama_cache_ort", &out, Quant::None), &|_| ()).unwrap_err().to_string();
    assert!(error.contains("GroupQueryAttention") && error.contains("--no-kv-cache"), "{error}");
    let no_cache = Options { no_kv_cache: true, ..options("llama_ts17", &out, Quant::None) };
    assert!(export(&no_cache, &|_| ()).unwrap_err().to_string().contains("past"));
}

#[test]
fn a_cache_is_an_input_like_any_other() {
    for name in &CACHED[..2] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        export(&options(name, &out, Quant::None), &|_| ()).unwrap();
        assert!(difference(name, &out) <= 1e-4, "{name}");
    }
}

#[test]
fn padding_that_the_graph_computes_becomes_that_of_the_convolution() {
    for name in ["mobile_ts17", "mobile_dyn20"] {
        let inspection = inspect(&fixtures().join(format!("{name}.onnx"))).unwrap();
        let ops: Vec<&str> = inspection.ops.iter().map(|op| op.op_type.as_str()).collect();
        assert!(!ops.contains(&"Pad") && !ops.contains(&"Shape"), "{name}: {ops:?}");
    }
}

#[test]
fn an_inspection_is_a_page() {
    let page = inspect(&fixtures().join("encoder_dyn23_sdpa.onnx")).unwrap().html();
    assert!(page.starts_with("<!doctype html>") && page.contains("<td>bert.encoder.layer.0.attention.self.query</td>"));
    assert!(page.contains("<tr><td>Softmax</td><td>2</td><td>differentiable</td></tr>"), "{page}");
}

#[test]
fn factors_of_folded_norms_are_kept_or_their_loss_is_said() {
    for (name, factors, said) in
        [("cnn_ts17_bn", 6, false), ("cnn_dyn21_unoptimized", 6, false), ("cnn_ts13", 0, true), ("cnn_dyn18", 0, true)]
    {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let report = export(&options(name, &out, Quant::None), &|_| ()).unwrap();
        let base = inlay_runtime::Base::open(&out, inlay_runtime::Verify::Full).unwrap();
        assert_eq!(base.points().iter().filter(|p| p.row_scale.is_some()).count(), factors, "{name}");
        assert_eq!(report.notes.iter().any(|n| n.contains("folded BatchNormalization")), said, "{name}");
    }
}

#[test]
fn two_exports_are_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["a", "b"].map(|name| {
        let out = folder.path().join(name);
        export(&options("cnn_ts17_bn", &out, Quant::Int8), &|_| ()).unwrap();
        ["model.onnx", "model.onnx.data"].map(|f| std::fs::read(out.join(f)).unwrap())
    });
    assert_eq!(files[0], files[1]);
}

#[test]
fn a_limit_on_the_error_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let options = Options { max_error: Some(1e-7), ..options("mlp_ts20", &out, Quant::Int8) };
    assert!(export(&options, &|_| ()).unwrap_err().to_string().contains("--max-error"));
    assert!(!out.exists());
}
