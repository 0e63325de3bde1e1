//! The backend node tests of ONNX, for every operator that is claimed: through the converter, the exported file and the
//! runtime on the CPU. `tests/node/skipped.txt` lists what does not pass, and why.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use conformance::{root, setup_file};
use inlay_converter::canonicalize::canonicalize;
use inlay_converter::quantize::{Quant, quantize};
use inlay_converter::read::read;
use inlay_converter::support::REWRITTEN;
use inlay_converter::write::{write_model, write_weights};
use inlay_converter::{samples, verify};
use inlay_runtime::{npz, ops};

/// Largest difference, relative to max(1, |y|).
const TOLERANCE: f32 = 1e-4;

#[test]
fn claimed_operators_compute_what_onnx_says() {
    let standard = ops::ALL.iter().filter(|op| op.domain().is_empty()).map(|op| op.op_type());
    let claimed: BTreeSet<&str> = standard.chain(REWRITTEN.iter().map(|(op, _)| *op)).collect();
    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    let tests = folder.path().join("tests");
    let status = Command::new(setup_file("venv/bin/python"))
        .arg(root().join("tests/node/make_cases.py"))
        .arg(&tests)
        .args(&claimed)
        .status()
        .expect("the virtual environment's python starts");
    assert!(status.success());
    let list = |name: &str| fs::read_to_string(tests.join(name)).expect("make_cases.py wrote it");
    assert_eq!(
        list("operators.txt"),
        include_str!("../node/operators.txt"),
        "onnx knows other operators: copy its list"
    );

    let skipped: BTreeMap<&str, &str> = include_str!("../node/skipped.txt")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(' ').unwrap_or_else(|| panic!("{line:?} gives no reason")))
        .collect();
    let (mut passed, mut wrong, mut unseen) = (0, Vec::new(), skipped.clone());
    for line in list("tests.txt").lines() {
        let name = line.split_once(' ').map_or(line, |(name, _)| name);
        let outcome = run(&tests.join(name));
        match (outcome, unseen.remove(name)) {
            (Ok(()), None) => passed += 1,
            (Err(_), Some(_)) => {}
            (Ok(()), Some(_)) => wrong.push(format!("{name} passes: take it from the list")),
            (Err(why), None) => wrong.push(format!("{name} {why}")),
        }
    }
    wrong.extend(unseen.keys().map(|name| format!("{name} is on the list, and no test")));
    eprintln!(
        "{passed} tests pass, {} are skipped, {} have other types",
        skipped.len(),
        list("types.txt").lines().count()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(passed > 300, "only {passed} tests ran");
}

/// Runs a test with its inputs fed; where some must be known before, with all but the first as constants.
fn run(test: &Path) -> Result<(), String> {
    match run_model(test, "fed") {
        Ok(()) => Ok(()),
        Err(fed) => {
            run_model(test, "known").map_err(|known| if known == fed { fed } else { format!("{fed}; known: {known}") })
        }
    }
}

fn run_model(test: &Path, inputs: &str) -> Result<(), String> {
    let fail = |e: &dyn std::fmt::Display| e.to_string();
    let model = read(&test.join(format!("{inputs}.onnx"))).map_err(|e| fail(&e))?;
    let mut graph = canonicalize(&model).map_err(|e| fail(&e))?;
    let feeds = samples::read(&graph, &test.join(format!("{inputs}.npz"))).map_err(|e| fail(&e))?;
    let packing = quantize(&mut graph, &BTreeMap::new(), &Quant::None.into()).map_err(|e| fail(&e))?;
    let out = test.join("base");
    fs::create_dir_all(&out).map_err(|e| fail(&e))?;
    let written = write_weights(&graph, &packing, &out, &|_| ()).map_err(|e| fail(&e))?;
    write_model(&written, &[], "{}", &out).map_err(|e| fail(&e))?;
    let found = verify::run_exported(&out, &feeds).map_err(|e| fail(&e))?;
    let expected = npz::read(&test.join("outputs.npz")).map_err(|e| fail(&e))?;
    for (name, expected) in expected {
        let found = found.iter().find(|o| o.name == name).ok_or_else(|| format!("output {name:?} is lost"))?;
        if found.dims != expected.shape() {
            return Err(format!("output {name:?} has shape {:?}, expected {:?}", found.dims, expected.shape()));
        }
        let differs = |(a, b): (&f32, &f32)| {
            let same = a == b || a.is_nan() && b.is_nan();
            let difference = (a - b).abs();
            !same && (difference.is_nan() || difference > TOLERANCE * b.abs().max(1.0))
        };
        if let Some((a, b)) = found.values.iter().zip(&expected.to_floats()).find(|&(a, b)| differs((a, b))) {
            return Err(format!("output {name:?} holds {a}, expected {b}"));
        }
    }
    Ok(())
}
