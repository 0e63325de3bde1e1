//! Recurrent front ends run as onnxruntime runs them, whichever way they go.

use std::path::{Path, PathBuf};

use inlay_converter::export::{Options, export};
use inlay_converter::kinds::Kinds;
use inlay_converter::oracle::{Feed, Values};
use inlay_converter::quantize::Quant;
use inlay_converter::verify;
use inlay_runtime::npz;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/recurrent").join(name)
}

/// The verification of the export compares with tract, this test with onnxruntime.
fn check(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let options = Options {
        model: fixture(&format!("{name}.onnx")),
        out: out.clone(),
        quant: Quant::None.into(),
        targets: Vec::new(),
        kinds: Kinds::default(),
        samples: None,
        calibrate: None,
        basis: None,
        max_error: None,
        report: None,
        no_kv_cache: false,
    };
    let report = export(&options, &|_| ()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let paths: Vec<&str> = report.points.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(paths, ["head"], "{name}");

    let arrays = npz::read(&fixture(&format!("{name}.npz"))).unwrap();
    let array = |name: &str| &arrays.iter().find(|(n, _)| n == name).unwrap().1;
    let (x, expected) = (array("x"), array("logits"));
    let values = Values::F32(x.floats().unwrap().to_vec());
    let feed = Feed { name: "x".into(), dims: x.shape().to_vec(), values };
    let found = verify::run_exported(&out, &[feed]).unwrap().remove(0);
    assert_eq!(found.dims, expected.shape());
    for (a, b) in found.values.iter().zip(expected.floats().unwrap()) {
        assert!((a - b).abs() < 1e-5, "{name}: {a} for {b}");
    }
}

#[test]
fn lstm() {
    ["lstm_forward", "lstm_reverse", "lstm_bidirectional"].into_iter().for_each(check);
}

#[test]
fn gru() {
    ["gru_forward", "gru_reverse", "gru_bidirectional"].into_iter().for_each(check);
}

#[test]
fn rnn() {
    check("rnn_reverse");
}
