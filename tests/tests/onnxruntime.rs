//! Every exported family through onnxruntime and `personalize predict`: `tests/onnxruntime/compare.py` says what holds.

use std::process::Command;

use conformance::{binary, root, setup_file};

/// Runs the comparison for the cases whose names start with one of `cases`.
fn compare(cases: &[&str]) {
    let output = Command::new(setup_file("venv/bin/python"))
        .arg(root().join("tests/onnxruntime/compare.py"))
        .args(cases)
        .env("CONVERTER", binary("converter"))
        .env("PERSONALIZE", binary("personalize"))
        .output()
        .expect("the virtual environment's python starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
}

#[test]
fn mlp() {
    compare(&["mlp", "seq_mlp", "twins"]);
}

#[test]
fn cnn() {
    compare(&["cnn", "global_cnn"]);
}

#[test]
fn encoder() {
    compare(&["encoder"]);
}

#[test]
fn decoders() {
    compare(&["gpt2", "llama", "gelus"]);
}

#[test]
fn golden() {
    compare(&["golden/"]);
}

#[test]
fn minilm() {
    setup_file("minilm/model.safetensors");
    compare(&["minilm/"]);
}
