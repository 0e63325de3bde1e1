//! The corpora of the fuzz targets, replayed.

use std::fs;
use std::path::Path;

#[path = "../fuzz/fuzz_targets/check.rs"]
mod check;

fn replay(target: &str, check: fn(&[u8]), at_least: usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files: Vec<_> = fs::read_dir(folder).expect("the corpus is committed").map(|e| e.unwrap().path()).collect();
    assert!(files.len() >= at_least, "{} files", files.len());
    for file in files {
        check(&fs::read(&file).unwrap());
    }
}

#[test]
fn onnx() {
    replay("onnx", check::onnx, 8);
}

#[test]
fn external_data() {
    replay("external", check::external, 14);
}

#[test]
fn npz() {
    replay("npz", check::npz, 11);
}

#[test]
fn peft() {
    replay("peft", check::peft, 4);
}

#[test]
fn base() {
    replay("base", check::base, 1);
}
