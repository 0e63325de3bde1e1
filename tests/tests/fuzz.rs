//! The corpora of the fuzz targets, replayed and altered at random.
//!
//! `INLAY_FUZZ_RUNS=1000000 cargo nextest run --test fuzz` runs longer, where there is no cargo-fuzz.

use std::path::Path;
use std::{env, fs};

use inlay_runtime::random::Random;

#[path = "../fuzz/fuzz_targets/check.rs"]
mod check;

/// Altered files a target, unless the environment says otherwise.
const RUNS: usize = 500;

fn replay(target: &str, check: fn(&[u8]), at_least: usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(folder).expect("the corpus is committed").map(|e| e.unwrap().path()).collect();
    files.sort_unstable();
    assert!(files.len() >= at_least, "{} files", files.len());
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    for bytes in &corpus {
        check(bytes);
    }
    let runs = env::var("INLAY_FUZZ_RUNS").map_or(RUNS, |runs| runs.parse().expect("a number of runs"));
    let mut random = Random::new(0, 0);
    for run in 0..runs {
        let bytes = altered(&corpus, &mut random);
        // What a panic was about is found again by its number.
        if runs > RUNS {
            fs::write(env::temp_dir().join(format!("fuzz-{target}")), &bytes).unwrap();
        }
        assert!(bytes.len() < 1 << 20, "run {run}");
        check(&bytes);
    }
}

/// A file of the corpus with a few changes.
fn altered(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    const EXTREMES: [u8; 8] = [0, 1, 0x0a, 0x12, 0x7f, 0x80, 0xfe, 0xff];
    let mut below = |n: usize| random.below(n as u64) as usize;
    let mut bytes = corpus[below(corpus.len())].clone();
    for _ in 0..=below(4) {
        let at = below(bytes.len());
        let len = below(16).min(bytes.len() - at.min(bytes.len()));
        match below(7) {
            _ if bytes.is_empty() => bytes.push(EXTREMES[below(8)]),
            0 => bytes[at] ^= 1 << below(8),
            1 => bytes[at] = EXTREMES[below(8)],
            2 => bytes[at] = bytes[at].wrapping_add(1),
            3 => drop(bytes.drain(at..at + len)),
            4 => drop(bytes.splice(at..at, std::iter::repeat_n(EXTREMES[below(8)], len))),
            5 => bytes.extend_from_within(at..at + len),
            _ => {
                let other = &corpus[below(corpus.len())];
                let from = below(other.len());
                let part = &other[from..other.len().min(from + 4 * len)];
                bytes.splice(at..at + len, part.iter().copied());
            }
        }
    }
    bytes
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

#[test]
fn records_of_strangers() {
    replay("stranger", check::stranger, 8);
}

#[test]
fn sealed_files() {
    replay("sealed_file", check::sealed_file, 3);
}
