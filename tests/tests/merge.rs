//! Factors merged into weights: (IA)3 becomes scales and biases, or is refused by name.

use std::path::Path;
use std::process::Command;

use conformance::adapters::{self, Arrays, distance, floats, refs};
use conformance::{binary, root, setup_file};
use inlay_runtime::merge::{MergeError, MergeOptions, Merged};
use inlay_runtime::plan::{Mode, Plan, PlanRequest};
use inlay_runtime::random::Random;
use inlay_runtime::{Adapter, AdapterOptions, Base, Device, Dtype, Session, SessionError, npz};

/// A model, where (IA)3 scales outputs, where inputs, and the paths of the former.
const MODELS: [(&str, &str, &str); 2] = [
    ("golden/encoder/model.onnx", "*.key,*.value", "*.output.dense"),
    ("fixtures/mlp_dyn18.onnx", "fc2,body.0", "head"),
];
const QUANTS: [&[&str]; 4] = [
    &["--quant", "none"],
    &["--quant", "int8"],
    &["--quant", "int4", "--int4-block", "16"],
    &["--quant", "int4", "--int4-block", "16", "--int4-method", "hqq"],
];
/// Gains of RMS normalizations, and no biases.
const LLAMA: &str = "golden/tiny_llama/model.onnx";
/// Biases of convolutions and of Gemm.
const CNN: &str = "golden/cnn/model.onnx";

fn base(model: &str, quant: &[&str], more: &[&str], out: &Path) -> (Base, Arrays) {
    let (_, outputs, inputs) = MODELS.iter().find(|(name, ..)| *name == model).expect("a model of the list");
    let ia3 = ["--ia3-targets", outputs, "--ia3-feedforward", inputs];
    source(model, quant, &[&ia3[..], more].concat(), out)
}

fn source(model: &str, quant: &[&str], more: &[&str], out: &Path) -> (Base, Arrays) {
    let arguments = [quant, more].concat();
    let source = root().join("tests").join(model);
    let data = match source.with_file_name("data.npz") {
        data if data.exists() => data,
        _ => source.with_extension("inputs.npz"),
    };
    let base = adapters::export(&source, out, &arguments);
    let names: Vec<String> = base.inputs().iter().map(|port| port.name.clone()).collect();
    let mut arrays = npz::read(&data).expect("inputs are committed");
    arrays.retain(|(name, _)| names.contains(name));
    (base, arrays)
}

fn kind(name: &str, size: u16, targets: &str) -> AdapterOptions {
    AdapterOptions::kind(name, size).targets(targets.split(','))
}

/// An adapter with random values: factors lie around one, and some change the sign.
fn random(base: &Base, options: &AdapterOptions) -> Adapter {
    let mut adapter = Adapter::new(base, options).expect("the base has such points");
    let names: Vec<(String, usize)> = adapter.tensors().map(|(b, values)| (b.name.clone(), values.len())).collect();
    for (i, (name, len)) in names.into_iter().enumerate() {
        let mut random = Random::new(3, i as u64);
        let middle = if name.ends_with("ia3_l") { 0.8 } else { 0.0 };
        let values: Vec<f32> = (0..len).map(|_| middle + random.uniform(1.0)).collect();
        adapter.set_tensor(&name, &values).expect("it fits");
    }
    adapter
}

/// Kernel calls of a prediction.
fn calls(base: &Base, inputs: &Arrays, merged: Option<&Merged>) -> usize {
    let shapes: Vec<(&str, &[usize])> = inputs.iter().map(|(name, x)| (name.as_str(), x.shape())).collect();
    let request =
        PlanRequest { inputs: &shapes, parameters: &[], fragments: &[], mode: Mode::Predict, rows: None, merged };
    Plan::new(base, &request).expect("the base runs").program().forward.len()
}

/// What `converter merge` makes of an adapter.
fn converted(base: &Path, adapter: &Adapter, more: &[&str], out: &Path) -> Result<Base, String> {
    let record = out.with_extension("record");
    std::fs::write(&record, adapter.to_record(Dtype::F32).expect("finite")).expect("writable");
    let mut merge = Command::new(binary("converter"));
    merge.arg("merge").arg(&record).arg("--base").arg(base).arg("--out").arg(out).args(more);
    let output = merge.output().expect("the converter starts");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(Base::open(out, inlay_runtime::Verify::Full).expect("just written"))
}

/// The distance to the next float.
fn ulp(x: f32) -> f32 {
    x.abs().next_up() - x.abs()
}

#[test]
fn factors_of_outputs_become_scales_and_cost_nothing() {
    for (model, outputs, _) in MODELS {
        for quant in QUANTS {
            let folder = tempfile::tempdir().expect("the system has a temporary folder");
            let (at, out) = (folder.path().join("base"), folder.path().join("merged"));
            // Every kind that the converter takes out again.
            let kinds = if model.contains("encoder") { "lora,ia3,bottleneck,prompt" } else { "lora,ia3" };
            let (base, inputs) = base(model, quant, &["--kinds", kinds], &at);
            let fed = refs(&inputs);
            let adapter = random(&base, &kind("ia3", 0, outputs));
            let mut session = adapters::session(&base, Device::Cpu);
            let plain = session.predict(&fed).expect("the base runs");
            session.set_adapter(Some(adapter.clone())).expect("it is this base's");
            let adapted = session.predict(&fed).expect("the adapter runs");
            assert!(distance(floats(&adapted), floats(&plain)) > 1e-3, "{model}: the adapter changes something");

            let points = session.merge(&adapter, &MergeOptions::default()).expect("factors of outputs merge").to_vec();
            assert_eq!(points.len(), adapter.points().count());
            assert!(points.iter().all(|point| point.requantization.is_none() && point.biases.len() == 1));
            let merged = session.predict(&fed).expect("it runs");
            let error = distance(floats(&merged), floats(&adapted));
            assert!(error < 1e-5, "{model} {quant:?}: merged it differs by {error:e}");
            assert!(session.unmerge());
            assert_eq!(session.predict(&fed).expect("the base runs"), plain, "{model}: bit for bit");

            // The base's weight is what factors of one leave; the first is not one, since nothing would be merged then.
            let mut ones = adapter.clone();
            for point in adapter.points() {
                let mut values = vec![1.0; point.tensors()[0].len()];
                values[0] = 2.0;
                ones.set_tensor(&point.parameters()[0].name, &values).expect("it fits");
            }
            let ones = Merged::new(&base, &ones, &MergeOptions::default()).expect("it merges");
            for point in adapter.points() {
                let of = |points: &[inlay_runtime::merge::MergedPoint]| {
                    points.iter().find(|merged| merged.path == point.path()).expect("every point merges").weight.clone()
                };
                let (ours, base, factors) = (of(&points), of(ones.points()), &point.tensors()[0]);
                for (n, factor) in factors.iter().enumerate().skip(1) {
                    for k in 0..ours.k() {
                        let (found, expected) = (ours.view().get(k, n), factor * base.view().get(k, n));
                        let off = (found - expected).abs();
                        assert!(off <= 2.0 * ulp(expected), "{} [{k}, {n}]: {found} {expected}", point.path());
                    }
                }
            }
            let merged = Merged::new(&base, &adapter, &MergeOptions::default()).expect("it merges");
            assert_eq!(calls(&base, &inputs, Some(&merged)), calls(&base, &inputs, None), "merged costs nothing");

            let merged = converted(&at, &adapter, &[], &out).expect("it merges");
            assert!(merged.parameters().is_empty() && merged.points().is_empty());
            let names = |base: &Base| base.inputs().iter().map(|port| port.name.clone()).collect::<Vec<_>>();
            assert_eq!(names(&merged), names(&base));
            let found = adapters::session(&merged, Device::Cpu).predict(&fed).expect("it runs");
            let error = distance(floats(&found), floats(&adapted));
            assert!(error < 1e-5, "{model} {quant:?}: converted it differs by {error:e}");
            assert_eq!(calls(&merged, &inputs, None), calls(&base, &inputs, None), "no branch is left");
            in_onnxruntime(&out, &inputs, &adapted);
        }
    }
}

/// Checks what onnxruntime makes of a file.
fn in_onnxruntime(base: &Path, inputs: &Arrays, expected: &Arrays) {
    let (given, nothing, out) = (base.join("in.npz"), base.join("none.npz"), base.join("out.npz"));
    npz::write(&given, inputs.iter().map(|(n, x)| (n.as_str(), x))).expect("writable");
    npz::write(&nothing, std::iter::empty::<(&str, &inlay_runtime::HostTensor)>()).expect("writable");
    let output = Command::new(setup_file("venv/bin/python"))
        .arg(root().join("tests/onnxruntime/feed.py"))
        .args([&base.join("model.onnx"), &given, &nothing, &out])
        .output()
        .expect("the virtual environment's python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (name, found) in npz::read(&out).expect("just written") {
        let (_, output) = name.split_once('.').expect("names are of runs and outputs");
        let (_, expected) = expected.iter().find(|(name, _)| name == output).expect("an output");
        let error = distance(&found.to_floats(), &expected.to_floats());
        assert!(error < 1e-4, "{name}: onnxruntime differs by {error:e}");
    }
}

#[test]
fn factors_of_inputs_merge_into_floats_only() {
    let keep = MergeOptions::keep_float("f32").expect("a float");
    for (model, outputs, inputs_at) in MODELS {
        for quant in QUANTS {
            let folder = tempfile::tempdir().expect("the system has a temporary folder");
            let (at, out) = (folder.path().join("base"), folder.path().join("merged"));
            let (base, inputs) = base(model, quant, &["--kinds", "lora,ia3"], &at);
            let fed = refs(&inputs);
            // All of it at once: y = l (x W + x A B + b), or (l x) W where the inputs are scaled.
            let all = kind("ia3", 0, &format!("{outputs},{inputs_at}")).and(AdapterOptions::lora(2));
            let (some, all) = (random(&base, &kind("ia3", 0, inputs_at)), random(&base, &all));
            let mut session = adapters::session(&base, Device::Cpu);
            for adapter in [some, all] {
                session.set_adapter(Some(adapter.clone())).expect("it is this base's");
                let adapted = session.predict(&fed).expect("the adapter runs");
                session.merge(&adapter, &keep).expect("floats have no scales");
                let error = distance(floats(&session.predict(&fed).expect("it runs")), floats(&adapted));
                assert!(error < 2e-5, "{model} {quant:?}: as floats it differs by {error:e}");
                assert!(session.unmerge());
                if quant[1] == "none" {
                    let merged = converted(&at, &adapter, &[], &out).expect("it merges");
                    let found = adapters::session(&merged, Device::Cpu).predict(&fed).expect("it runs");
                    assert!(distance(floats(&found), floats(&adapted)) < 2e-5);
                    continue;
                }
                let refused = session.merge(&adapter, &MergeOptions::default()).expect_err("scales are of outputs");
                let scaled = matches!(refused, SessionError::Merge(MergeError::ScaledInputs { .. }));
                assert!(scaled && refused.to_string().contains("--keep-float"), "{refused}");
                assert!(session.merged().is_empty());
                let refused = converted(&at, &adapter, &[], &out).expect_err("the same");
                assert!(refused.contains("factors of inputs") && !out.exists(), "{refused}");
            }
        }
    }
}

/// Adapters of kinds that are in vectors, alone and with others, on models with each spelling of a bias and a gain.
fn of_vectors(model: &str) -> Vec<AdapterOptions> {
    let (bias, norm) = (|| AdapterOptions::kind("bias", 0), || AdapterOptions::kind("norm", 0));
    match model {
        LLAMA => vec![norm()],
        CNN => vec![bias(), bias().and(AdapterOptions::lora(2))],
        // At keys and values a bias is both moved and scaled: l (x W + b + delta).
        _ => {
            let scaled = bias().and(norm()).and(kind("ia3", 0, MODELS[0].1));
            vec![bias(), norm().and(AdapterOptions::lora(2)), scaled]
        }
    }
}

#[test]
fn biases_and_gains_merge_and_cost_nothing() {
    for model in [MODELS[0].0, LLAMA, CNN] {
        for quant in QUANTS {
            let folder = tempfile::tempdir().expect("the system has a temporary folder");
            let (at, out) = (folder.path().join("base"), folder.path().join("merged"));
            let (base, inputs) = match model == MODELS[0].0 {
                true => base(model, quant, &["--kinds", "lora,ia3"], &at),
                false => source(model, quant, &[], &at),
            };
            let fed = refs(&inputs);
            let mut session = adapters::session(&base, Device::Cpu);
            let plain = session.predict(&fed).expect("the base runs");
            for wanted in of_vectors(model) {
                let adapter = random(&base, &wanted);
                // Vectors are floats; LoRA beside them changes weights that would be quantized anew.
                let keep = adapter.parts().iter().any(|part| part.kind().name() == "lora");
                let options = if keep { MergeOptions::keep_float("f32").expect("a float") } else { Default::default() };
                session.set_adapter(Some(adapter.clone())).expect("it is this base's");
                let adapted = session.predict(&fed).expect("the adapter runs");
                assert!(distance(floats(&adapted), floats(&plain)) > 1e-3, "{model}: the adapter changes something");
                session.merge(&adapter, &options).expect("vectors merge");
                let error = distance(floats(&session.predict(&fed).expect("it runs")), floats(&adapted));
                assert!(error < 2e-5, "{model} {quant:?} {wanted:?}: merged it differs by {error:e}");
                assert!(session.unmerge());
                assert_eq!(session.predict(&fed).expect("the base runs"), plain, "{model}: bit for bit");
                let merged = Merged::new(&base, &adapter, &options).expect("it merges");
                assert_eq!(calls(&base, &inputs, Some(&merged)), calls(&base, &inputs, None), "merged costs nothing");

                let more: &[&str] = if keep { &["--keep-float"] } else { &[] };
                let merged = converted(&at, &adapter, more, &out).expect("it merges");
                let found = adapters::session(&merged, Device::Cpu).predict(&fed).expect("it runs");
                let error = distance(floats(&found), floats(&adapted));
                assert!(error < 2e-5, "{model} {quant:?} {wanted:?}: converted it differs by {error:e}");
                in_onnxruntime(&out, &inputs, &adapted);
            }
        }
    }
}

/// The model has an output more, which onnxruntime computes as the session does with the adapter.
#[test]
fn heads_are_written_into_the_model() {
    for (model, tensor) in [
        (MODELS[0].0, None),
        (MODELS[0].0, Some("/bert/embeddings/LayerNorm/LayerNormalization_output_0")),
        (CNN, Some("/block1/Relu_1_output_0")),
        (CNN, Some("/block1/conv1/Conv_output_0")),
    ] {
        let folder = tempfile::tempdir().expect("the system has a temporary folder");
        let (at, out) = (folder.path().join("base"), folder.path().join("merged"));
        let (base, inputs) = source(model, QUANTS[1], &[], &at);
        let mut session = adapters::session(&base, Device::Cpu);
        let head = || AdapterOptions::head(tensor, 5);
        for wanted in [head(), head().and(AdapterOptions::kind("bias", 0))] {
            let adapter = random(&base, &wanted);
            let refused = session.merge(&adapter, &MergeOptions::default()).expect_err("it adds an output");
            assert!(matches!(refused, SessionError::Merge(MergeError::Head)), "{refused}");
            assert!(refused.to_string().contains("converter merge"), "{refused}");
            session.set_adapter(Some(adapter.clone())).expect("it is this base's");
            let adapted = session.predict(&refs(&inputs)).expect("the adapter runs");
            assert_eq!(adapted.len(), 2);
            let merged = converted(&at, &adapter, &[], &out).expect("it is written");
            let names: Vec<&str> = merged.outputs().iter().map(|port| port.name.as_str()).collect();
            assert_eq!(names, [adapted[0].0.as_str(), "head"], "{model} {tensor:?}");
            let found = adapters::session(&merged, Device::Cpu).predict(&refs(&inputs)).expect("it runs");
            for ((name, found), (_, expected)) in found.iter().zip(&adapted) {
                let error = distance(&found.to_floats(), &expected.to_floats());
                assert!(error < 1e-5, "{model} {tensor:?} {name}: differs by {error:e}");
            }
            in_onnxruntime(&out, &inputs, &adapted);
        }
    }
}

#[test]
fn merged_layers_can_stay_halves() {
    let (model, keep) = (MODELS[1].0, MergeOptions::keep_float("f16").expect("a float"));
    for quant in &QUANTS[1..] {
        let folder = tempfile::tempdir().expect("the system has a temporary folder");
        let (at, out) = (folder.path().join("base"), folder.path().join("merged"));
        let (base, inputs) = source(model, quant, &[], &at);
        let fed = refs(&inputs);
        let adapter = random(&base, &AdapterOptions::lora(2));
        let mut session = adapters::session(&base, Device::Cpu);
        session.set_adapter(Some(adapter.clone())).expect("it is this base's");
        let adapted = session.predict(&fed).expect("the adapter runs");
        let points = session.merge(&adapter, &keep).expect("LoRA merges").to_vec();
        for point in &points {
            assert_eq!(point.weight.scheme().name(), "f16", "{}", point.path);
            // Ten bits of mantissa: half a unit in the last place of each element.
            let lost = point.requantization.as_ref().expect("halves round");
            assert!(lost.relative > 0.0 && lost.relative < 5e-4, "{}: {lost}", point.path);
        }
        let merged = session.predict(&fed).expect("it runs");
        let error = distance(floats(&merged), floats(&adapted));
        assert!(error < 2e-3, "{quant:?}: as halves it differs by {error:e}");
        let requantized = session.unmerge() && session.merge(&adapter, &MergeOptions::default()).is_ok();
        assert!(requantized);
        let coarse = distance(floats(&session.predict(&fed).expect("it runs")), floats(&adapted));
        assert!(error < coarse, "{quant:?}: halves lose {error:e}, {coarse:e} is lost without them");

        let file = converted(&at, &adapter, &["--keep-float", "f16"], &out).expect("it merges");
        let found = adapters::session(&file, Device::Cpu).predict(&fed).expect("it runs");
        assert!(distance(floats(&found), floats(&merged)) < 1e-5);
        in_onnxruntime(&out, &inputs, &merged);
    }
}

#[test]
fn what_no_weight_computes_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("the system has a temporary folder");
    let (at, out) = (folder.path().join("base"), folder.path().join("merged"));
    let model = MODELS[0].0;
    let (base, inputs) = base(model, QUANTS[1], &["--kinds", "lora,ia3,bottleneck,prompt"], &at);
    let mut session: Session = adapters::session(&base, Device::Cpu);
    let plain = session.predict(&refs(&inputs)).expect("the base runs");
    for (name, size) in [("bottleneck", 2), ("prompt", 3)] {
        let adapter = random(&base, &AdapterOptions::kind(name, size));
        for options in [MergeOptions::default(), MergeOptions::keep_float("f32").expect("a float")] {
            let refused = session.merge(&adapter, &options).expect_err("no weight computes it");
            assert!(matches!(refused, SessionError::Merge(MergeError::Kind { kind }) if kind == name), "{refused}");
        }
        let refused = converted(&at, &adapter, &[], &out).expect_err("no weight computes it");
        assert!(refused.contains(&format!("\"{name}\" cannot be merged")) && !out.exists(), "{refused}");
    }
    assert_eq!(session.predict(&refs(&inputs)).expect("the base runs"), plain, "a refused merge leaves no trace");
}
