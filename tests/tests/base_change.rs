//! The app ships a new base: a person's adapter is refused on it, and carried over when that is asked for.

use std::path::Path;
use std::process::{Command, Output};

use conformance::{binary, root};
use inlay_runtime::store::AdapterStore;
use inlay_runtime::{Adapter, Base, HostTensor, Verify, npz};

fn run(command: &mut Command) -> Output {
    command.output().expect("the binary was built")
}

fn succeeds(command: &mut Command) -> serde_json::Value {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("--json prints JSON")
}

fn train(folder: &Path, base: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("personalize"));
    command.arg("train").arg("--base").arg(folder.join(base)).arg("--data").arg(folder.join("data.npz"));
    command.arg("--store").arg(folder.join("store")).args(["--user", "anna", "--device", "cpu", "--json"]);
    command.args(["--hold-back", "0.25", "--lr", "0.01", "--dtype", "int8"]).args(arguments);
    command
}

/// Trains on one base, carries over to another, and says what that cost. `kind` are the arguments that choose the adapter.
fn carry_over(kind: &[&str]) {
    let scratch = tempfile::tempdir().expect("a folder");
    let folder = scratch.path();
    let source = root().join("tests/golden/mlp");
    for (base, quant) in [("old", "none"), ("new", "int8")] {
        let mut export = Command::new(binary("converter"));
        export.arg("export").arg(source.join("model.onnx")).arg("--out").arg(folder.join(base));
        succeeds(export.args(["--quant", quant, "--json"]));
    }
    // Everything is of one class, which is soon learnt.
    let mut arrays = npz::read(&source.join("data.npz")).expect("the data are committed");
    for (name, array) in &mut arrays {
        if name == "labels" {
            let labels = array.shape().iter().product();
            *array = HostTensor::new(array.shape().to_vec(), vec![1i64; labels]).expect("as many");
        }
    }
    let written = npz::write(&folder.join("data.npz"), arrays.iter().map(|(name, array)| (name.as_str(), array)));
    written.expect("the folder is writable");

    let first = succeeds(train(folder, "old", kind).args(["--epochs", "3", "--seed", "1"]));
    assert!(first["carried_over"].is_null());
    let store = AdapterStore::open_existing(folder.join("store")).expect("training made it");
    let old = store.load("anna").expect("training saved it");

    let mut eval = Command::new(binary("personalize"));
    eval.arg("eval").arg("--base").arg(folder.join("new")).arg("--data").arg(folder.join("data.npz"));
    eval.arg("--store").arg(folder.join("store")).args(["--user", "anna", "--device", "cpu", "--json"]);
    let refused = run(&mut eval);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("belongs to another base"), "{refused:?}");
    let without = run(train(folder, "new", &["--allow-base-change"]).args(kind));
    assert_eq!(without.status.code(), Some(2), "a new start is no change of base: {without:?}");
    let unchanged = run(&mut train(folder, "old", &["--allow-base-change"]));
    assert_eq!(unchanged.status.code(), Some(1), "{unchanged:?}");
    assert!(String::from_utf8_lossy(&unchanged.stderr).contains("on this very base"), "{unchanged:?}");

    let old_base = folder.join("old").to_str().expect("UTF-8").to_owned();
    let arguments = ["--allow-base-change", "--old-base", &old_base, "--epochs", "5", "--seed", "1"];
    let wrong =
        run(&mut train(folder, "new", &["--allow-base-change", "--old-base", folder.join("new").to_str().unwrap()]));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("belongs to another base"), "{wrong:?}");
    assert_eq!(store.load("anna").expect("it is there"), old, "what is refused changes nothing");

    let moved = succeeds(&mut train(folder, "new", &arguments));
    let loss = |which: &str, of: &str| moved[which][of]["loss"].as_f64().expect("a loss");
    assert_eq!(loss("carried_over", "base"), loss("held_back", "base"), "{moved}");
    assert!(loss("carried_over", "adapter") < loss("carried_over", "base"), "it is a warm start: {moved}");
    assert!(loss("held_back", "adapter") <= loss("carried_over", "adapter"), "{moved}");
    // Both runs hold the same samples back: what the record does on its own base is what the first one ended with, but for
    // the rounding of the record.
    let on_old = loss("carried_over", "on_old_base");
    let before = first["held_back"]["adapter"]["loss"].as_f64().expect("a loss");
    assert!((on_old - before).abs() < 0.02 * before, "{on_old} on the old base, {before} when it was trained");
    assert!(on_old != loss("carried_over", "adapter"), "the bases differ: {moved}");
    succeeds(&mut eval);
    let new = Base::open(folder.join("new"), Verify::Full).expect("the base is whole");
    assert!(Adapter::from_record(&new, &store.load("anna").expect("it was replaced")).is_ok());
    assert_eq!(store.load_previous("anna").expect("it is whole"), Some(old), "the old base's is kept");
}

#[test]
fn lora_is_carried_over_to_a_new_base_when_asked() {
    carry_over(&["--rank", "2"]);
}

#[test]
fn biases_are_carried_over_to_a_new_base_when_asked() {
    carry_over(&["--kind", "bias"]);
}

#[test]
fn whole_weights_are_carried_over_to_a_new_base_when_asked() {
    carry_over(&["--kind", "dense"]);
}
