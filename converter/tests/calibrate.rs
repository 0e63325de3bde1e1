//! Calibration: factors that leave what the floats compute as it is, and what quantized weights compute closer to it.

use std::path::{Path, PathBuf};

use inlay_converter::calibrate::fold::readers;
use inlay_converter::calibrate::{Calibrated, calibrate};
use inlay_converter::canonicalize::canonicalize;
use inlay_converter::export::{Options, export};
use inlay_converter::graph::Graph;
use inlay_converter::insert::insert;
use inlay_converter::interop::{Architecture, export_gguf};
use inlay_converter::kinds::{Kinds, choose};
use inlay_converter::points::candidates;
use inlay_converter::quantize::{Packing, Quant, Quantization, Site, quantize};
use inlay_converter::read::read;
use inlay_converter::samples::{self, Feed, Output};
use inlay_converter::tensor::Rewrite;
use inlay_converter::verify::run_exported;
use inlay_converter::write::{write_model, write_weights};
use inlay_runtime::peft::{self, LoraTensors, PeftLora, SavedTensor};
use inlay_runtime::random::Random;
use inlay_runtime::{Adapter, Base, Device, DeviceOptions, HostTensor, Session, SessionOptions, Verify, npz};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn inputs(name: &str) -> PathBuf {
    fixtures().join(format!("{name}.inputs.npz"))
}

fn options(name: &str, out: &Path, quant: Quant) -> Options {
    Options {
        model: fixtures().join(format!("{name}.onnx")),
        out: out.to_owned(),
        quant: quant.into(),
        targets: Vec::new(),
        kinds: Kinds::default(),
        samples: Some(inputs(name)),
        calibrate: Some(inputs(name)),
        basis: None,
        max_error: None,
        report: None,
        no_kv_cache: false,
    }
}

fn canonical(name: &str) -> Graph {
    canonicalize(&read(&fixtures().join(format!("{name}.onnx"))).unwrap()).unwrap()
}

/// The fixture with a few channels that are much larger where a norm makes them, and weights that are as much smaller there.
fn with_outliers(name: &str) -> Graph {
    let mut graph = canonical(name);
    let links = graph.links();
    let linear = |graph: &Graph, at: usize| ["MatMul", "Gemm"].iter().any(|op| graph.nodes[at].is(op));
    for at in 0..graph.nodes.len() {
        let node = graph.nodes[at].clone();
        // The gain of an RMS normalization is a product with a constant.
        if !(node.is("LayerNormalization") || node.is("Mul")) {
            continue;
        }
        let constants: Vec<String> =
            node.inputs.iter().filter(|i| graph.constants.get(*i).is_some_and(|c| c.len() > 1)).cloned().collect();
        // The value may be flattened on the way.
        let readers = |value: &str| readers(&graph, &links, value);
        let mut users = readers(node.output());
        if let [one] = users[..]
            && graph.nodes[one].is("Reshape")
        {
            users = readers(graph.nodes[one].output());
        }
        let weights: Vec<String> = users.iter().map(|&at| graph.nodes[at].inputs[1].clone()).collect();
        let alone = constants.iter().chain(&weights).all(|name| {
            links.only_consumer(name).is_some() && graph.constants.get(name).is_some_and(|c| !c.is_empty())
        });
        if constants.is_empty() || !users.iter().all(|&at| linear(&graph, at)) || !alone {
            continue;
        }
        let channels = graph.constants[&constants[0]].len();
        let factor = |large: f32| (0..channels).map(|c| if c % 16 == 3 { large } else { 1.0 }).collect::<Vec<f32>>();
        for name in constants {
            let tensor = graph.constants[&name].rewritten(Rewrite::ScaleColumns(factor(24.0)));
            graph.constants.insert(name, tensor);
        }
        for name in weights {
            let tensor = graph.constants[&name].rewritten(Rewrite::ScaleRows(factor(1.0 / 24.0)));
            graph.constants.insert(name, tensor);
        }
    }
    graph
}

/// int4 in blocks that small models fill.
fn int4() -> Quantization {
    Quantization { int4_block: 16, ..Quant::Int4.into() }
}

fn calibrated(name: &str, graph: &Graph, scratch: &Path) -> Calibrated {
    calibrate(graph, &Site::all(graph), &int4(), &inputs(name), scratch).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Writes a graph in float, with LoRA everywhere.
fn base(graph: &Graph, folder: &Path) -> Base {
    let mut graph = graph.clone();
    let chosen = choose(&graph, &candidates(&graph), &[], &Kinds::default()).unwrap();
    let points = insert(&mut graph, &chosen, Kinds::default().bottleneck_activation).unwrap();
    std::fs::create_dir(folder).unwrap();
    let written = write_weights(&graph, &Packing::default(), folder, &|_| ()).unwrap();
    write_model(&written, &points, "{}", folder).unwrap();
    Base::open(folder, Verify::Full).unwrap()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(1f32, |most, x| most.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

fn outputs(graph: &Graph, name: &str, folder: &Path) -> Vec<Output> {
    let feeds: Vec<Feed> = samples::read(graph, &inputs(name)).unwrap();
    run_exported(folder, &feeds).unwrap()
}

/// A decoder with grouped keys, one with a fused projection, an encoder with norms after its sub-layers, a plain network.
const MODELS: [&str; 5] = ["llama_ts17", "llama_dyn21_sdpa", "gpt2_ts17", "encoder_ts17", "mlp_ts20"];

#[test]
fn what_the_floats_compute_stays() {
    for name in MODELS {
        let scratch = tempfile::tempdir().unwrap();
        let graph = with_outliers(name);
        let scaled = calibrated(name, &graph, scratch.path()).graph;
        assert!(!scaled.input_scales.is_empty(), "{name}: no factors were chosen");
        let folders = ["plain", "scaled"].map(|name| scratch.path().join(name));
        base(&graph, &folders[0]);
        base(&scaled, &folders[1]);
        let [expected, found] = folders.each_ref().map(|folder| outputs(&graph, name, folder));
        for (expected, found) in expected.iter().zip(&found) {
            let distance = distance(&found.values, &expected.values);
            assert!(distance < 1e-5, "{name}, output {}: {distance}", found.name);
        }
    }
}

#[test]
fn outliers_cost_less_and_nothing_costs_more() {
    for name in MODELS {
        let scratch = tempfile::tempdir().unwrap();
        for outliers in [false, true] {
            let graph = if outliers { with_outliers(name) } else { canonical(name) };
            let calibrated = calibrated(name, &graph, scratch.path());
            let mut scaled = calibrated.graph.clone();
            let packing = quantize(&mut scaled, &Site::all(&graph), &int4()).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let written = write_weights(&scaled, &packing, folder.path(), &|_| ()).unwrap();
            write_model(&written, &[], "{}", folder.path()).unwrap();
            let report = calibrated.report(folder.path()).unwrap();
            assert!(!report.groups.is_empty(), "{name}");
            for group in &report.groups {
                assert!(group.after <= group.before, "{name}: {group:?}");
            }
            for output in &report.outputs {
                let (before, after) = (output.before.relative_l2, output.after.relative_l2);
                eprintln!("{name} outliers {outliers}: {before} -> {after}, {} groups", report.groups.len());
                // Where factors matter little, the errors of these small random networks add up as chance wills.
                let has_outliers = outliers && ["llama", "gpt2"].iter().any(|decoder| name.starts_with(decoder));
                let bound = if has_outliers { 0.95 } else { 1.2 };
                assert!(after <= bound * before, "{name}, outliers {outliers}: {before} -> {after}");
            }
        }
    }
}

#[test]
fn peft_adapters_mean_the_same_on_a_calibrated_base() {
    for name in ["llama_ts17", "gpt2_ts17", "mlp_ts20"] {
        let scratch = tempfile::tempdir().unwrap();
        let graph = with_outliers(name);
        let calibrated = calibrated(name, &graph, scratch.path()).graph;
        let [plain, scaled] =
            [(&graph, "plain"), (&calibrated, "scaled")].map(|(g, f)| base(g, &scratch.path().join(f)));
        assert!(scaled.points().iter().any(|point| point.input_scale.is_some()), "{name}");
        let folder = scratch.path().join("peft");
        // Equal biases of this small model are one initializer, which PEFT cannot be given back.
        let whole = !name.starts_with("gpt2");
        peft::write(&folder, &lora_and_modules(&plain, whole), plain.points(), &|_| None).unwrap();

        let run = |base: &Base| {
            let adapter = Adapter::from_peft(base, &folder).unwrap_or_else(|e| panic!("{name}: {e}")).0;
            let device = DeviceOptions { device: Device::Cpu, ..DeviceOptions::default() };
            let options = SessionOptions { device, ..SessionOptions::default() };
            let mut session = Session::new(base.clone(), options).unwrap();
            let arrays = npz::read(&inputs(name)).unwrap();
            let inputs: Vec<(&str, &HostTensor)> =
                arrays.iter().filter(|(n, _)| n != "labels").map(|(n, x)| (n.as_str(), x)).collect();
            let without = session.predict(&inputs).unwrap()[0].1.to_floats();
            session.add_adapter("a", adapter.clone()).unwrap();
            session.use_adapter(Some("a")).unwrap();
            (adapter, without, session.predict(&inputs).unwrap()[0].1.to_floats())
        };
        let (on_plain, without, expected) = run(&plain);
        let (on_scaled, _, found) = run(&scaled);
        assert!(distance(&without, &expected) > 1e-2, "{name}: the adapter changes nothing");
        let difference = distance(&found, &expected);
        assert!(difference < 2e-5, "{name}: {difference}");

        // And back: what is written is what was read.
        let files = [(&plain, &on_plain, "a"), (&scaled, &on_scaled, "b")].map(|(base, adapter, file)| {
            let folder = scratch.path().join(file);
            adapter.to_peft(base, &folder).unwrap();
            std::fs::read(folder.join(peft::TENSORS_FILE)).unwrap()
        });
        same_floats(&files[0], &files[1]);
        if name.starts_with("llama") {
            let lora: Vec<_> = [(&plain, "c"), (&scaled, "d")]
                .map(|(base, file)| {
                    let folder = scratch.path().join(format!("{file}.peft"));
                    let lora = lora_and_modules(&plain, false);
                    peft::write(&folder, &lora, plain.points(), &|_| None).unwrap();
                    let out = scratch.path().join(file);
                    let adapter = Adapter::from_peft(base, &folder).unwrap().0;
                    export_gguf(base, &adapter, Architecture::find("qwen2").unwrap(), None, &out).unwrap();
                    std::fs::read(out).unwrap()
                })
                .into();
            same_floats(&lora[0], &lora[1]);
        }
    }
}

/// LoRA at every point but the head, and, if they are wanted, modules that are saved whole: weights of linears, gains of norms.
fn lora_and_modules(base: &Base, whole: bool) -> PeftLora {
    let mut random = Random::new(5, 0);
    let mut values = |len: usize, bound: f32| (0..len).map(|_| random.uniform(bound)).collect::<Vec<f32>>();
    let rank = 3u16;
    let mut points = Vec::new();
    let mut saved = Vec::new();
    for (i, point) in base.points().iter().enumerate().filter(|(_, point)| point.path != "lm_head") {
        let (d_in, d_out) = (point.d_in as usize, point.d_out as usize);
        if i % 5 == 4 && whole {
            let shape = vec![d_out, d_in];
            let name = format!("{}.weight", point.path);
            saved.push(SavedTensor { name, values: values(d_out * d_in, 0.5 / (d_in as f32).sqrt()), shape });
            continue;
        }
        let a = values(d_in * usize::from(rank), 1.7 / (d_in as f32).sqrt());
        let b = values(d_out * usize::from(rank), 0.2);
        points.push(LoraTensors { path: point.path.clone(), rank, alpha: 4.0, a, b });
    }
    for name in ["model.layers.0.input_layernorm.weight", "model.layers.1.post_attention_layernorm.weight"] {
        if let Some(gain) = base.floats(name).filter(|_| whole) {
            let values: Vec<f32> = gain.iter().zip(values(gain.len(), 0.3)).map(|(a, b)| a + b).collect();
            saved.push(SavedTensor { name: name.into(), shape: vec![gain.len()], values });
        }
    }
    PeftLora { rslora: false, points, saved }
}

/// Files of the same names and sizes, with numbers that differ by rounding alone.
fn same_floats(a: &[u8], b: &[u8]) {
    assert_eq!(a.len(), b.len());
    let offset = a.len() % 4;
    for (a, b) in a[offset..].chunks_exact(4).zip(b[offset..].chunks_exact(4)) {
        let [x, y] = [a, b].map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        assert!(a == b || (x - y).abs() <= 1e-5 * x.abs().max(1e-2), "{x} and {y}");
    }
}

#[test]
fn an_export_says_what_was_scaled_and_is_the_same_twice() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["a", "b"].map(|out| {
        let out = folder.path().join(out);
        let report = export(&options("llama_ts17", &out, Quant::Int4), &|_| ()).unwrap();
        let calibration = report.calibration.as_ref().expect("it was asked for");
        assert!(calibration.groups.iter().any(|g| g.modules.len() == 3 && g.modules[0].ends_with("q_proj")));
        assert!(report.text().contains("on the calibration inputs") && report.html().contains("not scaled because"));
        // Two query heads share a key head.
        let heads = calibration.skipped.iter().find(|group| group.modules[0].ends_with("o_proj"));
        assert!(heads.is_some_and(|group| !group.reason.is_empty()), "{:?}", calibration.skipped);
        ["model.onnx", "model.onnx.data"].map(|f| std::fs::read(out.join(f)).unwrap())
    });
    assert_eq!(files[0], files[1]);
}

#[test]
fn nothing_to_scale_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for quant in [Quant::None, Quant::F16] {
        let error = export(&options("llama_ts17", &out, quant), &|_| ()).unwrap_err().to_string();
        assert!(error.contains("--calibrate") && error.contains("--quant int4"), "{error}");
    }
    // Its one linear reads what is pooled.
    let error = export(&options("mobile_ts17", &out, Quant::Int8), &|_| ()).unwrap_err().to_string();
    assert!(error.contains("--calibrate"), "{error}");
    assert!(!out.exists());
}
