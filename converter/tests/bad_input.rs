//! Bad files and bad arguments: one clear error, exit code 1 or 2, no panic, nothing written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use inlay_converter::export::{Options, export};
use inlay_converter::inspect::inspect;
use inlay_converter::kinds::Kinds;
use inlay_converter::proto::{
    EXTERNAL, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use inlay_converter::quantize::Quant;
use prost::Message;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn refused(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.onnx");
    fs::write(&model, bytes).unwrap();
    refused_file(&model)
}

fn refused_file(model: &Path) -> String {
    let out = model.parent().unwrap().join("out");
    let options = Options {
        model: model.to_owned(),
        out: out.clone(),
        quant: Quant::Int8.into(),
        targets: Vec::new(),
        kinds: Kinds::default(),
        samples: None,
        calibrate: None,
        basis: None,
        max_error: None,
        report: None,
        no_kv_cache: false,
    };
    let error = export(&options, &|_| ()).unwrap_err().to_string();
    assert!(!out.exists(), "a refused export wrote something");
    error
}

fn value(name: &str) -> ValueInfoProto {
    let shape = Some(TensorShapeProto::default());
    let tensor_type = Some(TensorTypeProto { elem_type: 1, shape });
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
}

fn node(op_type: &str, input: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: op_type.into(),
        input: input.iter().map(|&s| s.into()).collect(),
        output: vec![output.into()],
        ..NodeProto::default()
    }
}

fn model(nodes: Vec<NodeProto>, initializers: Vec<TensorProto>) -> ModelProto {
    ModelProto {
        ir_version: 10,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 21 }],
        graph: Some(GraphProto {
            node: nodes,
            initializer: initializers,
            input: vec![value("x")],
            output: vec![value("y")],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

fn weight(dims: &[i64], bytes: usize) -> TensorProto {
    TensorProto {
        name: "w".into(),
        dims: dims.to_vec(),
        data_type: 1,
        raw_data: vec![0u8; bytes].into(),
        ..TensorProto::default()
    }
}

#[test]
fn files_that_are_no_models() {
    assert!(refused(b"").contains("empty"));
    assert!(refused(b"not a protobuf at all").contains("not a readable ONNX model"));
    assert!(refused(&[0x89, b'P', b'N', b'G', 0, 0, 0, 0]).contains("not a readable ONNX model"));
    assert!(refused(&ModelProto::default().encode_to_vec()).contains("not a readable ONNX model"));
}

#[test]
fn truncated_files_are_refused() {
    let bytes = fs::read(fixture("mlp_ts13.onnx")).unwrap();
    for cut in (1..bytes.len()).step_by(bytes.len() / 40) {
        refused(&bytes[..cut]);
    }
}

#[test]
fn flipped_bits_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    for (name, flips) in [("mlp_ts13.onnx", 200), ("cnn_ts17_bn.onnx", 100), ("encoder_ts17.onnx", 40)] {
        let bytes = fs::read(fixture(name)).unwrap();
        // The head of a file is dense with structure, its body with weights.
        for at in (0..bytes.len()).step_by(bytes.len() / flips).chain(0..flips) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(&path, &flipped).unwrap();
            // A flipped weight is another valid model; all that is asked is an answer.
            let _ = inspect(&path);
        }
    }
}

#[test]
fn graphs_that_break_the_rules() {
    let refuse = |nodes, initializers| refused(&model(nodes, initializers).encode_to_vec());
    let cycle =
        refuse(vec![node("Add", &["x", "b"], "a"), node("Relu", &["a"], "b"), node("Relu", &["b"], "y")], vec![]);
    assert!(cycle.contains("leads back"), "{cycle}");
    let twice = refuse(vec![node("Relu", &["x"], "y"), node("Neg", &["x"], "y")], vec![]);
    assert!(twice.contains("defined twice"), "{twice}");
    let same = refuse(vec![node("Relu", &["x"], "y")], vec![weight(&[1], 4), weight(&[1], 4)]);
    assert!(same.contains("defined twice"), "{same}");
    let missing = refuse(vec![node("Relu", &["z"], "y")], vec![]);
    assert!(missing.contains("made by no node"), "{missing}");
    let unknown = refuse(vec![node("Fancy", &["x"], "y")], vec![]);
    assert!(unknown.contains("Fancy"), "{unknown}");
    let no_linear = refuse(vec![node("Relu", &["x"], "y")], vec![]);
    assert!(no_linear.contains("can carry an adapter"), "{no_linear}");
    let old = ModelProto {
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 9 }],
        ..model(vec![node("Relu", &["x"], "y")], vec![])
    };
    assert!(refused(&old.encode_to_vec()).contains("operator set 9"));
}

#[test]
fn shapes_that_do_not_fit_their_bytes() {
    for (dims, bytes) in [(vec![4, 4], 60), (vec![-1, 4], 64), (vec![i64::MAX, i64::MAX], 64), (vec![1 << 40], 0)] {
        let text = refused(&model(vec![node("MatMul", &["x", "w"], "y")], vec![weight(&dims, bytes)]).encode_to_vec());
        assert!(text.contains("\"w\""), "{text}");
    }
}

#[test]
fn external_data_stays_inside_the_folder_and_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    fs::create_dir(&inside).unwrap();
    fs::write(folder.path().join("secret"), [0; 64]).unwrap();
    fs::write(inside.join("data"), [0; 64]).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("../secret", inside.join("link")).unwrap();
    let try_entry = |location: &str, offset: &str, length: &str| {
        let entry = |k: &str, v: &str| StringStringEntryProto { key: k.into(), value: v.into() };
        let w = TensorProto {
            external_data: vec![entry("location", location), entry("offset", offset), entry("length", length)],
            data_location: EXTERNAL,
            ..weight(&[4, 4], 0)
        };
        let path = inside.join("m.onnx");
        fs::write(&path, model(vec![node("MatMul", &["x", "w"], "y")], vec![w]).encode_to_vec()).unwrap();
        refused_file(&path)
    };
    let secret = folder.path().join("secret");
    for location in ["../secret", secret.to_str().unwrap(), ""] {
        assert!(try_entry(location, "0", "64").contains("inside the model's folder"), "{location}");
    }
    #[cfg(unix)]
    assert!(try_entry("link", "0", "64").contains("out of the model's folder"));
    assert!(try_entry("absent", "0", "64").contains("absent"));
    for (offset, length) in [("1", "64"), ("65", "0"), ("18446744073709551615", "64"), ("0", "18446744073709551615")] {
        assert!(try_entry("data", offset, length).contains("past the end"), "{offset} {length}");
    }
    assert!(try_entry("data", "-1", "64").contains("not a number"));
    assert!(try_entry("data", "0", "32").contains("needs 64 bytes"));
}

fn converter(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_converter")).args(args).output().unwrap()
}

#[test]
fn exit_codes_and_one_line_of_error() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let out = out.to_str().unwrap();
    let mlp = fixture("mlp_ts13.onnx");
    let mlp = mlp.to_str().unwrap();
    for bad in [
        &["export", mlp][..],
        &["export", mlp, "--out", out, "--quant", "int3"],
        &["export", mlp, "--out", out, "--kinds", "nose"],
        &["export", mlp, "--out", out, "--max-error", "nan"],
        &["export", mlp, "--out", out, "--targets", "[fc"],
        &["inspect"],
        &["nothing"],
    ] {
        assert_eq!(converter(bad).status.code(), Some(2), "{bad:?}");
    }
    for (args, expected) in [
        (&["export", "/absent.onnx", "--out", out][..], "/absent.onnx"),
        (&["export", mlp, "--out", out, "--targets", "nothing.*"], "nothing.*"),
        (&["export", mlp, "--out", out, "--samples", mlp], "not a NumPy"),
        (&["export", mlp, "--out", "/proc/nowhere/out"], "/proc/nowhere"),
        (&["export", mlp, "--out", out, "--report", "/absent/report.html"], "/absent/report.html"),
        (&["export", mlp, "--out", out, "--report", mlp], "choose another --report"),
        (&["inspect", "/absent"], "/absent"),
    ] {
        let output = converter(args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(
            text.starts_with("error: ") && text.lines().count() == 1 && text.contains(expected),
            "{args:?}: {text}"
        );
    }
    assert!(!Path::new(out).exists());
}

#[test]
fn a_failed_export_leaves_the_folder_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mlp = fixture("mlp_ts13.onnx");
    let args = |extra: &[&'static str]| {
        let mut args = vec!["export".to_owned(), mlp.display().to_string(), "--out".into(), out.display().to_string()];
        args.extend(extra.iter().map(|s| (*s).to_owned()));
        args
    };
    let run = |args: Vec<String>| converter(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(run(args(&["--json"])).status.success());
    let read = || ["model.onnx", "model.onnx.data"].map(|f| fs::read(out.join(f)).unwrap());
    let before = read();
    assert_eq!(run(args(&["--max-error", "1e-9"])).status.code(), Some(1));
    assert_eq!(read(), before);
    assert!(run(args(&["--quant", "none"])).status.success());
    assert_ne!(read(), before);
    let again = converter(&["export", out.join("model.onnx").to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary folder is left");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 2);
}

#[test]
fn a_model_that_is_no_export_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    fs::copy(fixture("mlp_ts13.onnx"), &model).unwrap();
    let output = converter(&["export", model.to_str().unwrap(), "--out", folder.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("choose another --out"));
    assert_eq!(fs::read(&model).unwrap(), fs::read(fixture("mlp_ts13.onnx")).unwrap());
}
