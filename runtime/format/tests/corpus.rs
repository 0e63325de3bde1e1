//! The corpus of the fuzz targets, and the golden files, replayed.

use std::fs;
use std::path::Path;

#[path = "../fuzz/fuzz_targets/check.rs"]
mod check;

fn replay(folder: &str, check: fn(&[u8])) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = fs::read_dir(folder).expect("the corpus is committed").map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.is_file()).collect();
    for file in &files {
        let bytes = fs::read(file).unwrap();
        check(&bytes);
        // Without what the target adds by itself.
        if let Some(body) = bytes.len().checked_sub(20).map(|body| &bytes[4..4 + body]) {
            check(body);
        }
    }
    files.len()
}

#[test]
fn records() {
    assert!(replay("fuzz/corpus/record", check::record) >= 50);
    assert!(replay("tests/golden", check::record) > 6);
}

#[test]
fn states() {
    assert!(replay("fuzz/corpus/state", check::state) >= 5);
    assert!(replay("tests/golden", check::state) > 6);
}
