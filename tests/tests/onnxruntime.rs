//! Every exported family through onnxruntime and `personalize predict`, and adapters to other programs and back:
//! `tests/onnxruntime/compare.py` and `interop.py` say what holds.

use std::process::Command;

use conformance::{binary, root, setup_file};

/// Runs the comparison for the cases whose names start with one of `cases`.
fn compare(cases: &[&str]) {
    script("compare.py", cases);
}

/// Runs a script of `tests/onnxruntime` that must succeed.
fn script(name: &str, arguments: &[&str]) {
    let output = Command::new(setup_file("venv/bin/python"))
        .arg(root().join("tests/onnxruntime").join(name))
        .args(arguments)
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

#[test]
fn interop_of_mlps() {
    script("interop.py", &["mlp", "mlp_rslora", "mlp_linear_rank1", "seq_mlp_mse"]);
}

#[test]
fn interop_of_cnns() {
    script("interop.py", &["cnn", "cnn_bn"]);
}

#[test]
fn interop_of_encoders() {
    script("interop.py", &["encoder", "encoder_all"]);
}
