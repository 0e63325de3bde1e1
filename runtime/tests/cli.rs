//! The command line `personalize`: what it prints, its exit codes, and that bad input changes nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use inlay_runtime::{HostTensor, npz};
use serde_json::Value;
use tempfile::TempDir;

const BASE: &str = "tests/data/tiny";
const DATA: &str = "tests/data/tiny.npz";

fn personalize<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_personalize")).args(arguments).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("output is text")
}

/// Runs a command that must succeed; gives the JSON that it printed.
#[track_caller]
fn json<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Value {
    let output = personalize(arguments.into_iter().chain(["--json"]));
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// Runs a command that must fail with this exit code, and print one error that contains `expected`.
#[track_caller]
fn fails<'a>(code: i32, arguments: impl IntoIterator<Item = &'a str>, expected: &str) {
    let output = personalize(arguments);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert_eq!(errors.matches("error:").count(), 1, "{errors}");
    assert!(errors.contains(expected), "{errors}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
}

/// A folder with a store in it.
struct Scratch {
    folder: TempDir,
}

impl Scratch {
    fn new() -> Self {
        Scratch { folder: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.at(name).to_str().expect("temporary folders have plain names").to_owned()
    }

    /// Trains `anna`'s adapter.
    fn trained(self) -> Self {
        json(self.train(DATA).iter().map(String::as_str));
        self
    }

    fn train(&self, data: &str) -> Vec<String> {
        let store = self.name("store");
        let fixed = ["train", "--base", BASE, "--user", "anna", "--rank", "2", "--lr", "0.02", "--steps", "30"];
        let paths = ["--data", data, "--store", &store];
        fixed.into_iter().chain(paths).map(str::to_owned).collect()
    }

    /// Every file with its bytes.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        fn walk(folder: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => walk(&path, files),
                    false => files.push((path.clone(), fs::read(path).unwrap())),
                }
            }
        }
        let mut files = Vec::new();
        walk(self.folder.path(), &mut files);
        files.sort();
        files
    }

    fn write(&self, name: &str, arrays: &[(&str, HostTensor)]) -> String {
        npz::write(&self.at(name), arrays.iter().map(|(name, array)| (*name, array))).unwrap();
        self.name(name)
    }
}

fn floats(shape: &[usize], value: f32) -> HostTensor {
    HostTensor::new(shape, vec![value; shape.iter().product()]).unwrap()
}

fn ints(shape: &[usize], value: i64) -> HostTensor {
    HostTensor::new(shape, vec![value; shape.iter().product()]).unwrap()
}

#[test]
fn train_predict_eval() {
    let scratch = Scratch::new();
    let log = scratch.name("log.jsonl");
    let train = scratch.train(DATA);
    let summary = json(train.iter().map(String::as_str).chain(["--log", &log, "--hold-back", "0.2", "--dtype", "f32"]));
    assert_eq!(summary["steps"], 30);
    assert_eq!(summary["user"], "anna");
    assert_eq!(summary["parameters"], 42);
    let record = PathBuf::from(summary["record"].as_str().unwrap());
    assert_eq!(fs::metadata(record).unwrap().len(), summary["bytes"].as_u64().unwrap());
    assert_eq!(summary["held_back"]["samples"], 12);

    let lines: Vec<Value> =
        fs::read_to_string(&log).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 30);
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line["step"], i + 1);
        assert!(line["loss"].is_f64() && line["ms"].is_f64() && line["lr"].is_f64());
    }
    assert_eq!(lines[29]["loss"], summary["loss"]);

    let store = scratch.name("store");
    let user = ["--user", "anna", "--store", &store];
    let eval = json(["eval", "--base", BASE, "--data", DATA, "--device", "cpu"].into_iter().chain(user));
    assert!(eval["adapter"]["loss"].as_f64() < eval["base"]["loss"].as_f64(), "{eval}");
    assert!(eval["adapter"]["accuracy"].as_f64() > eval["base"]["accuracy"].as_f64(), "{eval}");

    let predict = |out: &str, adapter: &[&str]| {
        let out = scratch.name(out);
        json(["predict", "--base", BASE, "--data", DATA, "--out", &out].into_iter().chain(adapter.iter().copied()));
        npz::read(Path::new(&out)).unwrap().remove(0)
    };
    let (name, base) = predict("base.npz", &[]);
    assert_eq!((name.as_str(), base.shape()), ("logits", &[60, 2][..]));
    let (_, with_user) = predict("user.npz", &user);
    assert_ne!(base, with_user);
    let (_, with_file) = predict("file.npz", &["--adapter", summary["record"].as_str().unwrap()]);
    assert_eq!(with_user, with_file);
    let (_, by_seven) = predict("seven.npz", &["--batch-size", "7"]);
    let pairs = by_seven.floats().unwrap().iter().zip(base.floats().unwrap());
    assert!(pairs.map(|(a, b)| (a - b).abs()).all(|error| error < 1e-5));
}

#[test]
fn stored_adapters_are_listed_moved_rolled_back_and_deleted() {
    let scratch = Scratch::new().trained();
    let [store, file] = ["store", "anna.adapter"].map(|name| scratch.name(name));
    let first = fs::read(scratch.at("store/anna.adapter")).unwrap();
    let retrained = scratch.train(DATA);
    json(retrained.iter().map(String::as_str).chain(["--dtype", "int4", "--seed", "5"]));
    let second = fs::read(scratch.at("store/anna.adapter")).unwrap();
    assert!(second.len() < first.len());

    let adapters = |arguments: &[&'static str]| {
        let mut all = vec!["adapters"];
        all.extend(arguments);
        all.into_iter().map(str::to_owned).chain(["--store".to_owned(), store.clone()]).collect::<Vec<String>>()
    };
    let run = |arguments: &[&'static str], more: &[&str]| {
        let arguments = adapters(arguments);
        json(arguments.iter().map(String::as_str).chain(more.iter().copied()))
    };
    let anna = ["--user", "anna"];
    run(&["export"], &[&anna[..], &["--out", &file]].concat());
    assert_eq!(fs::read(&file).unwrap(), second);
    run(&["import"], &[&anna[..], &["--name", "work", "--from", &file]].concat());
    run(&["rollback"], &anna);
    assert_eq!(fs::read(scratch.at("store/anna.adapter")).unwrap(), first);

    fs::write(scratch.at("store/ben.adapter"), "damaged").unwrap();
    let listed = run(&["list"], &[]);
    let adapters_of = listed["adapters"].as_array().unwrap();
    assert_eq!(adapters_of.len(), 3, "{listed}");
    assert_eq!(adapters_of[0]["parts"][0]["dtype"], "f16");
    assert_eq!(adapters_of[0]["parts"][0]["parameters"], 42);
    assert_eq!((&adapters_of[0]["previous"], &adapters_of[0]["user"]), (&Value::Bool(true), &Value::from("anna")));
    assert_eq!((&adapters_of[1]["name"], &adapters_of[1]["bytes"]), (&"work".into(), &second.len().into()));
    assert!(adapters_of[2]["error"].as_str().unwrap().contains("not an adapter record"), "{listed}");

    run(&["delete"], &anna);
    let again = adapters(&["delete", "--user", "anna"]);
    fails(1, again.iter().map(String::as_str), "no adapter of \"anna\"");
    let bad = adapters(&["delete", "--user", "anna", "--name", "a name that is too long"]);
    fails(2, bad.iter().map(String::as_str), "longer than 16 bytes");
}

#[test]
fn an_encrypted_store_needs_its_key() {
    let scratch = Scratch::new();
    let [key, other, store] = ["key", "other", "store"].map(|name| scratch.name(name));
    fs::write(&key, "0123456789abcdef".repeat(4)).unwrap();
    fs::write(&other, [7; 32]).unwrap();
    let train = scratch.train(DATA);
    json(train.iter().map(String::as_str).chain(["--key-file", &key]));
    assert!(fs::read(scratch.at("store/anna.adapter")).unwrap().starts_with(b"INLX"));
    let eval = ["eval", "--base", BASE, "--data", DATA, "--user", "anna", "--store", &store];
    json(eval.into_iter().chain(["--key-file", &key]));
    fails(1, eval, "it is encrypted; open the store with its key");
    fails(1, eval.into_iter().chain(["--key-file", &other]), "encrypted under another key");
    let before = scratch.files();
    // Found before the work, and nothing is overwritten.
    fails(1, train.iter().map(String::as_str), "it is encrypted; open the store with its key");
    fs::write(&other, "a password").unwrap();
    fails(1, eval.into_iter().chain(["--key-file", &other]), "expected a key of 32 bytes");
    fs::write(&other, [7; 32]).unwrap();
    assert_eq!(scratch.files(), before);
}

#[test]
fn people_get_text() {
    let scratch = Scratch::new().trained();
    let store = scratch.name("store");
    let output = personalize(["eval", "--base", BASE, "--data", DATA, "--user", "anna", "--store", &store]);
    let found = text(&output.stdout);
    assert!(found.contains("with adapter  loss ") && found.contains("accuracy"), "{found}");
    let output = personalize(["bench", "--base", BASE, "--batch-size", "4", "--repeats", "2", "--device", "cpu"]);
    assert!(text(&output.stdout).contains("ms a training step"), "{}", text(&output.stderr));
}

#[test]
fn bench_and_devices_speak_json() {
    let bench = ["bench", "--base", BASE, "--batch-size", "4", "--repeats", "3", "--rank", "1", "--targets", "head"];
    let timed = json(bench.into_iter().chain(["--threads", "1", "--device", "cpu"]));
    assert!(timed["ms_per_step"].as_f64() > Some(0.0) && timed["ms_per_forward"].as_f64() > Some(0.0), "{timed}");
    assert_eq!((&timed["points"], &timed["parameters"]), (&Value::from(1), &Value::from(10)));
    let devices = json(["devices"]);
    assert_eq!(devices["devices"][0]["kind"], "cpu");
}

#[test]
fn a_new_start_takes_the_place_of_options_for_one() {
    let scratch = Scratch::new().trained();
    let record = scratch.name("store/anna.adapter");
    let train = scratch.train(DATA);
    let without_rank = train.iter().filter(|a| !["--rank", "2"].contains(&a.as_str())).map(String::as_str);
    let again = json(without_rank.chain(["--init-adapter", &record]));
    assert_eq!(again["parameters"], 42);
    fails(2, train.iter().map(String::as_str).chain(["--init-adapter", &record]), "cannot be used with");
}

#[test]
fn heads_and_budgets() {
    let scratch = Scratch::new();
    let (store, out) = (scratch.name("store"), scratch.name("out.npz"));
    let train = |user: &'static str, more: &[&'static str]| -> Vec<String> {
        let fixed = ["train", "--base", BASE, "--data", DATA, "--lr", "0.02", "--steps", "20", "--user", user];
        fixed.iter().chain(more).map(|a| (*a).to_owned()).chain(["--store".to_owned(), store.clone()]).collect()
    };
    let run = |arguments: Vec<String>| json(arguments.iter().map(String::as_str));
    let head = run(train("head", &["--kind", "lora+head", "--rank", "2", "--classes", "3", "--prototypes"]));
    // LoRA at fc1, and a head on the eight features after it.
    assert_eq!((&head["points"], &head["parameters"]), (&Value::from(2), &Value::from(2 * (3 + 8) + 8 * 3 + 3)));
    let who = ["--user", "head", "--store", &store];
    let evaluated = json(["eval", "--base", BASE, "--data", DATA].into_iter().chain(who));
    assert!(evaluated.get("base").is_none() && evaluated["adapter"]["accuracy"].as_f64() > Some(0.5), "{evaluated}");
    let inputs = scratch.write("x.npz", &[("x", floats(&[4, 3], 0.5))]);
    json(["predict", "--base", BASE, "--data", &inputs, "--out", &out].into_iter().chain(who));
    let arrays = npz::read(Path::new(&out)).unwrap();
    assert!(arrays.iter().any(|(name, y)| name == "head" && y.shape() == [4, 3]), "{arrays:?}");

    let small = run(train("small", &["--adapter-budget", "150"]));
    assert!(small["bytes"].as_u64() <= Some(150), "{small}");
    let refused = |more: &[&'static str], expected: &str| {
        fails(1, train("refused", more).iter().map(String::as_str), expected);
    };
    refused(&["--adapter-budget", "20"], "no adapter of this base fits 20 bytes");
    refused(&["--kind", "head", "--rank", "2"], "--rank has no meaning for adapters of kind head");
    refused(&["--kind", "lora", "--classes", "2"], "--classes has no meaning");
    refused(&["--kind", "bias", "--alpha", "2"], "--alpha has no meaning");
    refused(&["--rank-pattern", "nose=2"], "matches no point");
    refused(&["--kind", "lora-xs"], "--basis");
    fails(
        2,
        train("refused", &["--kind", "lora+dora"]).iter().map(String::as_str),
        "there is no adapter kind \"dora\"",
    );
    fails(
        2,
        train("refused", &["--adapter-budget", "1KB", "--rank", "2"]).iter().map(String::as_str),
        "cannot be used with",
    );
    // The budget chooses the dtype.
    fails(
        2,
        train("refused", &["--adapter-budget", "1KB", "--dtype", "f32"]).iter().map(String::as_str),
        "cannot be used with",
    );
}

/// Samples around one centre a class, three of each.
fn clusters(scratch: &Scratch, name: &str, classes: &[i64]) -> String {
    let centre = |class: i64| [[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0], [-3.0, -3.0, 1.0]][class as usize];
    let rows: Vec<(i64, f32)> = classes.iter().flat_map(|&c| [0.0, 0.2, -0.2].map(|off| (c, off))).collect();
    let x: Vec<f32> = rows.iter().flat_map(|(class, off)| centre(*class).map(|x: f32| x + off)).collect();
    let labels: Vec<i64> = rows.iter().map(|(class, _)| *class).collect();
    let arrays = [
        ("x", HostTensor::new([rows.len(), 3], x).unwrap()),
        ("labels", HostTensor::new([rows.len()], labels).unwrap()),
    ];
    scratch.write(name, &arrays)
}

#[test]
fn a_new_class_is_enrolled_from_three_samples_without_a_step() {
    let scratch = Scratch::new();
    let (store, record) = (scratch.name("store"), scratch.name("store/anna.adapter"));
    let (known, three) = (clusters(&scratch, "known.npz", &[0, 1, 2]), clusters(&scratch, "three.npz", &[3]));
    let all = clusters(&scratch, "all.npz", &[0, 1, 2, 3]);
    let enrol = |data: &str, more: &[&str]| {
        let fixed = ["train", "--base", BASE, "--user", "anna", "--store", &store, "--prototypes", "--steps", "0"];
        json(fixed.into_iter().chain(["--data", data]).chain(more.iter().copied()))
    };
    let accuracy = |data: &str| {
        let eval = json(["eval", "--base", BASE, "--data", data, "--user", "anna", "--store", &store]);
        eval["adapter"]["accuracy"].as_f64().unwrap()
    };
    let summary = enrol(&known, &["--kind", "head", "--classes", "3"]);
    assert_eq!((&summary["steps"], summary.get("loss")), (&Value::from(0), None), "{summary}");
    assert_eq!(accuracy(&known), 1.0);
    enrol(&three, &["--init-adapter", &record, "--classes", "4"]);
    assert_eq!((accuracy(&three), accuracy(&all)), (1.0, 1.0));

    let fixed = ["train", "--base", BASE, "--user", "bert", "--store", &store, "--kind", "head", "--data", &known];
    let refused =
        |code, more: &[&str], expected: &str| fails(code, fixed.into_iter().chain(more.iter().copied()), expected);
    refused(1, &[], "labels go up to 2, and the head has 2 classes; use --classes 3");
    refused(2, &["--steps", "0"], "--prototypes");
    refused(2, &["--steps", "0", "--prototypes", "--hold-back", "0.5"], "--hold-back");
    refused(2, &["--steps", "0", "--prototypes", "--log", "log.jsonl"], "--log");
}

#[test]
fn what_a_run_reads_is_not_written_over() {
    let scratch = Scratch::new().trained();
    let inputs = scratch.write("x.npz", &[("x", floats(&[4, 3], 0.5))]);
    let record = scratch.name("store/anna.adapter");
    let base = scratch.name("base");
    fs::create_dir(&base).unwrap();
    for file in ["model.onnx", "model.onnx.data"] {
        if let Ok(bytes) = fs::read(Path::new(BASE).join(file)) {
            fs::write(scratch.at("base").join(file), bytes).unwrap();
        }
    }
    let model = format!("{base}/model.onnx");
    let before = scratch.files();
    for out in [&inputs, &record, &model] {
        let predict = ["predict", "--base", &base, "--data", &inputs, "--adapter", &record, "--out", out];
        fails(1, predict, "is an input of this run");
        let train = scratch.train(&inputs);
        fails(1, train.iter().map(String::as_str).chain(["--log", &inputs]), "no array \"labels\"");
    }
    assert_eq!(scratch.files(), before);
}

#[test]
fn a_store_is_listed_with_what_is_wrong_with_it() {
    let scratch = Scratch::new().trained();
    let (store, key) = (scratch.name("store"), scratch.name("key"));
    fs::write(&key, [7; 32]).unwrap();
    let output = personalize(["adapters", "list", "--store", &store, "--key-file", &key]);
    assert_eq!(output.status.code(), Some(1), "no adapter of this store can be read with that key");
    assert!(
        text(&output.stdout).contains("anna") && text(&output.stderr).contains("none of these adapters can be read")
    );
    // What cannot be imported makes no store.
    let nothing = scratch.name("nothing");
    let import = |from: &str, expected: &str| {
        fails(1, ["adapters", "import", "--user", "anna", "--store", &nothing, "--from", from], expected);
        assert!(!scratch.at("nothing").exists());
    };
    import(&scratch.name("nofile"), "nofile");
    import(&key, "not an adapter record");
}

#[test]
fn bad_arguments_exit_with_2() {
    let scratch = Scratch::new();
    let train = scratch.train(DATA);
    let train = || train.iter().map(String::as_str);
    fails(2, ["nose"], "unrecognized subcommand");
    fails(2, ["train", "--base", BASE], "--data");
    fails(2, train().chain(["--device", "gpu"]), "use auto, cpu, vulkan or vulkan:NAME");
    fails(2, train().chain(["--batch-size", "0"]), "--batch-size");
    fails(2, ["bench", "--base", BASE, "--batch-size", "4294967295"], "--batch-size");
    fails(2, train().chain(["--epochs", "3"]), "cannot be used with");
    fails(2, train().chain(["--clip-norm", "nan"]), "a number above 0");
    fails(2, train().chain(["--weight-decay", "-1"]), "--weight-decay");
    fails(2, train().chain(["--optimizer", "adam"]), "adamw");
    fails(2, train().chain(["--loss", "hinge"]), "cross-entropy");
    fails(2, train().chain(["--schedule", "square"]), "constant, linear, cosine");
    fails(2, train().chain(["--momentum", "0.9"]), "--optimizer sgd");
    fails(2, train().chain(["--hold-back", "0"]), "--hold-back");
    fails(2, train().chain(["--targets", "[fc"]), "--targets");
    fails(2, ["eval", "--base", BASE, "--data", DATA, "--store", "s", "--user", ""], "--user");
    fails(2, train().chain(["--vulkan-timeout", "soon"]), "a duration such as 500ms or 10s");
    fails(2, ["predict", "--base", BASE, "--data", DATA, "--out", "x.npz", "--user", "anna"], "--store");
    assert!(scratch.files().is_empty());
}

#[test]
fn bad_data_exits_with_1_and_changes_nothing() {
    let scratch = Scratch::new().trained();
    let x = || ("x", floats(&[4, 3], 0.5));
    let labels = || ("labels", ints(&[4], 1));
    let mut nan = vec![0.0; 12];
    nan[7] = f32::NAN;
    let nan = HostTensor::new([4, 3], nan).unwrap();
    let cases: Vec<(&str, Vec<(&str, HostTensor)>)> = vec![
        ("no array \"x\"", vec![labels()]),
        ("no array \"labels\"", vec![x()]),
        ("an array \"y\" that the model does not take", vec![x(), labels(), ("y", ints(&[4], 0))]),
        ("shape [4, 2], expected [samples, 3]", vec![("x", floats(&[4, 2], 0.0)), labels()]),
        ("holds i64, expected f32", vec![("x", ints(&[4, 3], 0)), labels()]),
        ("\"labels\" has 3 samples, \"x\" has 4", vec![x(), ("labels", ints(&[3], 0))]),
        ("sample 0: 2 is out of range, expected 0 to 1", vec![x(), ("labels", ints(&[4], 2))]),
        ("sample 0: -1 is out of range, expected 0 to 1", vec![x(), ("labels", ints(&[4], -1))]),
        ("sample 2: a value is NaN", vec![("x", nan), labels()]),
        ("a value is inf", vec![("x", floats(&[4, 3], f32::INFINITY)), labels()]),
        ("no samples", vec![("x", floats(&[0, 3], 0.0)), ("labels", ints(&[0], 0))]),
        ("\"labels\" has shape [4, 2], expected [samples]", vec![x(), ("labels", ints(&[4, 2], 0))]),
    ];
    for (expected, arrays) in cases {
        let data = scratch.write("bad.npz", &arrays);
        let before = scratch.files();
        let train = scratch.train(&data);
        fails(1, train.iter().map(String::as_str), expected);
        assert_eq!(scratch.files(), before, "{expected}");
    }

    let before = scratch.files();
    let missing = scratch.train("nowhere.npz");
    fails(1, missing.iter().map(String::as_str), "nowhere.npz");
    let no_archive = scratch.train("tests/cli.rs");
    fails(1, no_archive.iter().map(String::as_str), "not a NumPy .npz archive");
    let train = scratch.train(DATA);
    let train = || train.iter().map(String::as_str);
    fails(1, train().chain(["--targets", "nose"]), "matches no point; the points are: ");
    fails(1, train().chain(["--output", "nose"]), "no float output \"nose\"; it has: logits");
    let wild = train().map(|a| if a == "0.02" { "1e20" } else { a });
    fails(1, wild.chain(["--optimizer", "sgd"]), "the adapter of the step before is kept");
    assert_eq!(scratch.files(), before);
}

#[test]
fn what_does_not_beat_the_base_is_not_stored() {
    let scratch = Scratch::new().trained();
    let before = scratch.files();
    let train = scratch.train(DATA);
    let wild = train.iter().map(|a| match a.as_str() {
        "0.02" => "300",
        "30" => "1",
        other => other,
    });
    fails(1, wild.chain(["--optimizer", "sgd", "--hold-back", "0.25"]), "does not beat the base on the 15 samples");
    assert_eq!(scratch.files(), before);
}

#[test]
fn damaged_files_exit_with_1_and_change_nothing() {
    let scratch = Scratch::new().trained();
    let record = fs::read(scratch.at("store/anna.adapter")).unwrap();
    let store = scratch.name("store");
    let out = scratch.name("out.npz");
    let predict = |adapter: &str, expected: &str| {
        fails(1, ["predict", "--base", BASE, "--data", DATA, "--out", &out, "--adapter", adapter], expected);
        assert!(!scratch.at("out.npz").exists());
    };
    let damaged = scratch.name("damaged.adapter");
    let mut flipped = record.clone();
    flipped[record.len() / 2] ^= 1;
    fs::write(&damaged, &flipped).unwrap();
    predict(&damaged, "was altered");
    fs::write(&damaged, &record[..record.len() - 5]).unwrap();
    predict(&damaged, "cut short");
    fs::write(&damaged, b"nothing").unwrap();
    predict(&damaged, "not an adapter record");
    predict(&scratch.name("nowhere"), "nowhere");
    fails(
        1,
        ["predict", "--base", BASE, "--data", DATA, "--out", &out, "--user", "bob", "--store", &store],
        "no adapter of \"bob\"",
    );

    let base = scratch.at("base");
    fs::create_dir(&base).unwrap();
    let model = fs::read(Path::new(BASE).join("model.onnx")).unwrap();
    let path = base.to_str().unwrap();
    let bad_base = |bytes: &[u8], expected: &str| {
        fs::write(base.join("model.onnx"), bytes).unwrap();
        let before = scratch.files();
        fails(1, ["eval", "--base", path, "--data", DATA], expected);
        assert_eq!(scratch.files(), before);
    };
    bad_base(b"", "not a readable ONNX model");
    bad_base(b"no model at all", "not a readable ONNX model");
    bad_base(&model[..model.len() / 2], "model.onnx");
    let mut flipped = model.clone();
    flipped[model.len() / 3] ^= 1;
    bad_base(&flipped, "model.onnx");
    let unexported = fs::read("../tests/fixtures/mlp_ts13.onnx").unwrap();
    bad_base(&unexported, "was not exported by the converter; run `converter export");
    fails(1, ["eval", "--base", "nowhere", "--data", DATA], "nowhere");
}

#[test]
fn a_store_that_cannot_be_written_is_found_before_training() {
    let scratch = Scratch::new();
    fs::write(scratch.at("store"), "a file").unwrap();
    let before = scratch.files();
    let train = scratch.train(DATA);
    fails(1, train.iter().map(String::as_str), "store");
    assert_eq!(scratch.files(), before);
}

#[test]
fn a_log_on_a_full_disk_stops_the_run() {
    if !Path::new("/dev/full").exists() {
        eprintln!("NOT TESTED: there is no /dev/full here");
        return;
    }
    let scratch = Scratch::new().trained();
    let before = scratch.files();
    let train = scratch.train(DATA);
    fails(1, train.iter().map(String::as_str).chain(["--log", "/dev/full"]), "/dev/full: No space left");
    assert_eq!(scratch.files(), before);
}

#[test]
fn errors_for_machines_are_json() {
    let output = personalize(["eval", "--base", "nowhere", "--data", DATA, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let error: Value = serde_json::from_slice(&output.stderr).expect("one JSON object");
    assert!(error["error"].as_str().unwrap().contains("nowhere"), "{error}");
}

#[test]
fn no_vulkan_is_said() {
    let output = Command::new(env!("CARGO_BIN_EXE_personalize"))
        .args(["eval", "--base", BASE, "--data", DATA, "--device", "vulkan:no such device"])
        .output()
        .unwrap();
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("no Vulkan device"), "{errors}");
}
