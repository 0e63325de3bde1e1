//! `converter check`: a verdict, with all that stands in the way at once.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use inlay_converter::check::check;
use inlay_converter::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use prost::Message;

fn to_float() -> AttributeProto {
    AttributeProto { name: "to".into(), i: 1, r#type: 2, ..AttributeProto::default() }
}

/// A chain of operators from x to y, as a file.
fn chain(path: &Path, ops: &[&str]) {
    let value = |name: &str| {
        let tensor_type = Some(TensorTypeProto { elem_type: 1, shape: None });
        ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
    };
    let name = |i: usize| match i {
        0 => "x".to_owned(),
        i if i == ops.len() => "y".to_owned(),
        i => format!("h{i}"),
    };
    let node = |(i, op): (usize, &&str)| NodeProto {
        op_type: (*op).into(),
        input: vec![name(i)],
        output: vec![name(i + 1)],
        attribute: if *op == "Cast" { vec![to_float()] } else { Vec::new() },
        ..NodeProto::default()
    };
    let graph = GraphProto {
        node: ops.iter().enumerate().map(node).collect(),
        input: vec![value("x")],
        output: vec![value("y")],
        ..GraphProto::default()
    };
    let model = ModelProto {
        ir_version: 10,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 21 }],
        graph: Some(graph),
        ..ModelProto::default()
    };
    fs::write(path, model.encode_to_vec()).unwrap();
}

#[test]
fn every_operator_that_blocks_is_named_with_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    chain(&path, &["Relu", "Fancy", "Fancy", "Loop", "Relu"]);
    let verdict = check(&path).unwrap();
    assert!(!verdict.exportable);
    let blockers: Vec<(usize, &str)> = verdict.blockers.iter().map(|b| (b.nodes, b.detail.as_str())).collect();
    assert_eq!(blockers.len(), 2, "{blockers:?}");
    assert!(blockers[0].0 == 2 && blockers[0].1.contains("Fancy_1"), "{blockers:?}");
    assert!(blockers[1].0 == 1 && blockers[1].1.contains("control flow"), "{blockers:?}");
    assert!(verdict.text().contains("cannot be exported") && verdict.text().contains("(and 1 more)"));
    chain(&path, &["Relu"]);
    let verdict = check(&path).unwrap();
    assert!(verdict.blockers[0].detail.contains("can carry an adapter"), "{verdict:?}");
}

#[test]
fn transposed_convolutions_are_no_points_and_block_nothing() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/unet_dyn20.onnx");
    let verdict = check(&model).unwrap();
    assert!(verdict.exportable, "{verdict:?}");
    let skipped: Vec<&str> = verdict.skipped.iter().map(|s| s.path.as_str()).collect();
    assert_eq!(skipped, ["up3", "depthwise", "grouped"]);
    assert!(verdict.skipped.iter().all(|s| s.reason.contains("transposed")), "{:?}", verdict.skipped);
}

#[test]
fn the_exit_code_is_the_verdict() {
    let run =
        |model: &Path| Command::new(env!("CARGO_BIN_EXE_converter")).args(["check", "--json"]).arg(model).output();
    let mlp = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/mlp_ts13.onnx");
    let output = run(&mlp).unwrap();
    assert!(output.status.success());
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["exportable"], true);
    assert_eq!(json["points"].as_array().unwrap().len(), 5);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    chain(&path, &["Fancy"]);
    let output = run(&path).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["exportable"], false);
    assert_eq!(run(Path::new("/absent")).unwrap().status.code(), Some(1));
}

#[test]
fn a_verdict_on_thousands_of_nodes_takes_time_in_proportion() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let mut seconds = [2_000, 8_000].map(|nodes| {
        let ops: Vec<&str> = ["Identity", "Cast", "Relu", "Neg"].into_iter().cycle().take(nodes).collect();
        chain(&path, &ops);
        let start = Instant::now();
        let verdict = check(&path).unwrap();
        assert!(verdict.blockers[0].detail.contains("can carry an adapter"), "{:?}", verdict.blockers);
        start.elapsed().as_secs_f64()
    });
    // Four times the nodes, and once more as much for a busy machine; sixteen times the time is what a pass over all
    // nodes for each of them costs.
    seconds[0] += 0.1;
    assert!(seconds[1] < 8.0 * seconds[0], "{seconds:?}");
}
