//! Kinds that run in our runtime, against PyTorch: `tests/golden/make_kind_goldens.py` says what is compared.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use conformance::slopes::{Everywhere, check_slope};
use conformance::{binary, root};
use inlay_runtime::train::optimizers;
use inlay_runtime::{Adapter, AdapterOptions, Dataset, Dtype, HostTensor, Session, TrainOptions, Trainer, npz};

fn export(source: &str, quant: &str, more: &[&str], out: &Path) {
    let model = root().join("tests/golden").join(source).join("model.onnx");
    let mut command = Command::new(binary("converter"));
    command.arg("export").arg(model).args(["--quant", quant, "--out"]).arg(out).args(more);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The distance as a part of the norm.
fn off(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    square(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / square(&mut expected.iter().copied())
}

/// Trains what PyTorch trained, and compares losses, first gradients, parameters and outputs.
fn check(name: &str, source: &str, batch_size: usize, lr: f32, options: &[(&str, Option<&[&str]>)]) {
    let folder = tempfile::tempdir().unwrap();
    // What PyTorch trained through is what int4 makes of this source.
    let int4: &[&str] = &["--int4-block", "16", "--int4-method", "search", "--quant-rule", "*.value=int4"];
    let (quant, more) = if source.ends_with("int4") { ("int4", int4) } else { ("none", &[][..]) };
    export(source, quant, more, folder.path());
    let golden = root().join("tests/golden");
    let expected: BTreeMap<String, HostTensor> =
        npz::read(&golden.join("kinds").join(name).with_extension("npz")).unwrap().into_iter().collect();
    let floats = |key: &str| expected[key].floats().unwrap_or_else(|| panic!("no {key}"));
    // A parameter of PyTorch, row-major as ours: Linear weights are transposed.
    let as_ours = |key: &str, shape: &[usize]| {
        let theirs = &expected[key];
        let values = theirs.floats().unwrap();
        match (theirs.shape(), shape) {
            (&[rows, columns], &[a, b]) => {
                assert_eq!((rows, columns), (b, a), "{key}");
                (0..columns).flat_map(|c| (0..rows).map(move |r| values[r * columns + c])).collect()
            }
            _ => values.to_vec(),
        }
    };

    let mut session = Session::open(folder.path()).unwrap();
    let data = Dataset::read(session.base(), golden.join(source).join("data.npz")).unwrap();
    let part = |(kind, targets): &(&str, Option<&[&str]>)| {
        let part = AdapterOptions::kind(*kind, if *kind == "head" { CLASSES } else { 0 });
        targets.map_or(part.clone(), |targets| part.targets(targets.iter().copied()))
    };
    let options = options.iter().map(part).reduce(AdapterOptions::and).unwrap();
    let adapter = Adapter::new(session.base(), &options).unwrap();
    let points: Vec<String> = adapter.tensors().map(|(binding, _)| binding.name.clone()).collect();
    let trained_there: Vec<&str> = expected.keys().filter_map(|key| key.strip_prefix("delta.")).collect();
    assert_eq!(points.len(), trained_there.len(), "{points:?} against {trained_there:?}");
    // Dense points are modules, the others parameters, as both name them; a head is a classifier.
    let parameter = |tensor: &str| match tensor.strip_suffix(".delta") {
        Some(path) if expected.contains_key(&format!("delta.{path}")) => path.to_owned(),
        Some(path) => format!("{path}.weight"),
        None => format!("classifier.{}", tensor.rsplit_once("head_").expect("a head's tensor").1),
    };

    let train = TrainOptions::new()
        .steps(20)
        .batch_size(batch_size)
        .lr(lr)
        .shuffle(false)
        .optimizer(optimizers::find("adamw").unwrap())
        .weight_decay(0.0);
    let mut trainer = Trainer::new(&mut session, adapter, &data, train).unwrap();
    for (step, loss) in floats("losses").iter().enumerate() {
        let report = trainer.step().unwrap().unwrap();
        let error = f64::from(report.loss / loss - 1.0).abs();
        assert!(error <= 1e-4, "{name}, step {step}: loss {} not {loss}", report.loss);
        if step == 0 {
            for (tensor, gradient) in trainer.gradients().unwrap() {
                let theirs = as_ours(&format!("grad.{}", parameter(&tensor)), gradient.shape());
                let error = off(gradient.floats().unwrap(), &theirs);
                assert!(error <= 1e-4, "{name}, gradient of {tensor}: off by {error:.1e} of its norm");
            }
        }
    }
    let trained = trainer.adapter();
    for (binding, values) in trained.tensors() {
        let theirs = as_ours(&format!("delta.{}", parameter(&binding.name)), &binding.shape);
        let error = off(values, &theirs);
        assert!(error <= 1e-3, "{name}, trained {}: off by {error:.1e} of its norm", binding.name);
    }
    let record = trained.to_record(Dtype::F32).unwrap();
    let read = Adapter::from_record(session.base(), &record).unwrap();
    assert_eq!(read, trained);
    // A head's output comes last; without one the base's is the only one.
    let has_head = read.head_classes().is_some();
    let mut output = |adapter| {
        session.set_adapter(adapter).unwrap();
        session.predict_all(&data, batch_size, |_| ()).unwrap().pop().unwrap().1.to_floats()
    };
    for (adapter, key) in [(None, "initial_output"), (Some(read), "final_output")] {
        if adapter.is_none() && has_head {
            continue;
        }
        let error = off(&output(adapter), floats(key));
        assert!(error <= 1e-3, "{name}, {key}: off by {error:.1e} of its norm");
    }
}

/// All biases but those of keys, which PyTorch left alone.
const BIASES: &[&str] = &["*.{query,value,dense,LayerNorm,classifier}.bias", "classifier.bias"];

#[test]
fn biases_are_trained_as_pytorch_trains_them() {
    check("bias_encoder", "encoder", 4, 1e-2, &[("bias", Some(BIASES))]);
    check("bias_cnn", "cnn", 8, 1e-2, &[("bias", None)]);
}

#[test]
fn norm_gains_are_trained_as_pytorch_trains_them() {
    check("norm_encoder", "encoder", 4, 2e-2, &[("norm", None)]);
    check("norm_llama", "tiny_llama", 4, 2e-2, &[("norm", None)]);
    check("bias_norm_encoder", "encoder", 4, 1e-2, &[("norm", None), ("bias", Some(BIASES))]);
}

#[test]
fn whole_weights_are_trained_as_pytorch_trains_them() {
    check("dense_encoder", "encoder", 4, 1e-3, &[("dense", Some(&["*.1.attention.self.query", "classifier"]))]);
    check("dense_cnn", "cnn", 8, 1e-3, &[("dense", Some(&["block1.conv1", "fc"]))]);
}

/// Of the encoders among the goldens.
const CLASSES: u16 = 10;

#[test]
fn int4_bases_are_trained_through_as_pytorch_does_it() {
    check("bias_norm_int4", "encoder_int4", 4, 1e-2, &[("norm", None), ("bias", Some(BIASES))]);
    let dense = &["*.1.attention.self.query", "*.0.attention.output.dense"];
    check("dense_int4", "encoder_int4", 4, 1e-3, &[("dense", Some(dense))]);
    check("head_int4", "encoder_int4", 4, 1e-2, &[("head", None)]);
}

/// The f32 outputs of a session with an adapter.
fn outputs(session: &mut Session, adapter: Option<&Adapter>, data: &Dataset) -> Vec<f32> {
    session.set_adapter(adapter.cloned()).unwrap();
    let outputs = session.predict_all(data, 8, |_| ()).unwrap();
    session.set_adapter(None).unwrap();
    outputs[0].1.to_floats()
}

#[test]
fn lora_xs_trains_cores_alone_and_expands_to_lora() {
    for quant in ["none", "int8"] {
        let folder = tempfile::tempdir().unwrap();
        export("encoder", quant, &["--basis", "8"], folder.path());
        let again = tempfile::tempdir().unwrap();
        export("encoder", quant, &["--basis", "8"], again.path());
        for file in ["model.onnx", "model.onnx.data"] {
            let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
            assert!(read(folder.path()) == read(again.path()), "{file} differs from one export to the next");
        }

        let mut session = Session::open(folder.path()).unwrap();
        let data = Dataset::read(session.base(), root().join("tests/golden/encoder/data.npz")).unwrap();
        let new = Adapter::new(session.base(), &AdapterOptions::kind("lora-xs", 8)).unwrap();
        assert!(new.changes_nothing());
        assert_eq!(new.parameter_count(), 13 * 8 * 8, "a core at each linear");
        let options = TrainOptions::new().steps(30).batch_size(11).lr(2e-2).seed(1);
        let mut losses = Vec::new();
        let mut trainer = Trainer::new(&mut session, new, &data, options).unwrap();
        while let Some(step) = trainer.step().unwrap() {
            losses.push(step.loss);
        }
        assert!(losses[29] < 0.8 * losses[0], "{quant}: loss {} -> {}", losses[0], losses[29]);
        let trained = trainer.adapter();

        // Elements of 4 bits and one scale of 2 bytes a core.
        let record = trained.to_record(Dtype::Int4).unwrap();
        assert_eq!(inlay_format::record::Record::decode(&record).unwrap().payload_bytes(), 13 * (8 * 8 / 2 + 2));

        let lora = trained.to_lora(session.base()).unwrap();
        let (xs, plain) = (outputs(&mut session, Some(&trained), &data), outputs(&mut session, Some(&lora), &data));
        assert!(off(&plain, &xs) < 1e-5, "{quant}: as LoRA off by {:.1e}", off(&plain, &xs));
        assert!(off(&xs, &outputs(&mut session, None, &data)) > 1e-2, "the adapter has an effect");
        let peft = tempfile::tempdir().unwrap();
        lora.to_peft(session.base(), peft.path()).unwrap();
        let (read, _) = Adapter::from_peft(session.base(), peft.path()).unwrap();
        assert_eq!(read, lora);
        let other = Adapter::new(session.base(), &AdapterOptions::kind("lora-xs", 4)).unwrap_err().to_string();
        assert!(other.contains("has rank 8"), "{other}");
    }
}

/// A batch in which one sample has LoRA-XS, one LoRA and one none: each gives what it gives alone.
#[test]
fn lora_xs_mixes_with_lora_in_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    export("encoder", "int8", &["--basis", "8"], folder.path());
    let mut session = Session::open(folder.path()).unwrap();
    let data = Dataset::read(session.base(), root().join("tests/golden/encoder/data.npz")).unwrap().select(&[0, 1, 2]);
    let inputs: Vec<(&str, &HostTensor)> = data.inputs().iter().map(|(name, x)| (name.as_str(), x)).collect();
    let mut alone = vec![session.predict(&inputs).unwrap()[0].1.to_floats()];
    for (i, (kind, size)) in [("lora-xs", 8), ("lora", 2)].into_iter().enumerate() {
        let mut adapter = Adapter::new(session.base(), &AdapterOptions::kind(kind, size)).unwrap();
        let tensors: Vec<(String, usize)> = adapter.tensors().map(|(b, x)| (b.name.clone(), x.len())).collect();
        for (at, (name, len)) in tensors.into_iter().enumerate() {
            let mut random = inlay_runtime::random::Random::new(i as u64, at as u64);
            adapter.set_tensor(&name, &(0..len).map(|_| random.uniform(0.2)).collect::<Vec<f32>>()).unwrap();
        }
        session.add_adapter(kind, adapter).unwrap();
        session.use_adapter(Some(kind)).unwrap();
        alone.push(session.predict(&inputs).unwrap()[0].1.to_floats());
        assert!(off(&alone[i + 1], &alone[0]) > 1e-2, "{kind} has an effect");
    }
    let rows = [Some("lora-xs"), None, Some("lora")];
    for _ in 0..2 {
        let mixed = session.predict_rows(&rows, &inputs).unwrap()[0].1.to_floats();
        let one = mixed.len() / 3;
        for (row, adapter) in [1, 0, 2].into_iter().enumerate() {
            let range = row * one..(row + 1) * one;
            let error = off(&mixed[range.clone()], &alone[adapter][range]);
            assert!(error < 1e-5, "sample {row} with {:?}: off by {error:.1e}", rows[row]);
        }
    }
}

/// What each kind trains is listed, LoRA-XS as far as the file has a basis.
#[test]
fn inspect_counts_every_kind() {
    let folder = tempfile::tempdir().unwrap();
    let inspect = |more: &[&str]| {
        export("encoder", "int8", more, folder.path());
        let output = Command::new(binary("converter")).arg("inspect").arg(folder.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let line = |text: &str, kind: &str| {
        let found = text.lines().find(|line| line.starts_with(&format!("{kind} ")) && line.contains(" trains "));
        found.unwrap_or_default().to_owned()
    };
    let plain = inspect(&[]);
    for kind in ["lora", "dense", "bias", "norm", "head"] {
        assert!(!line(&plain, kind).is_empty(), "{kind}: {plain}");
    }
    assert!(line(&plain, "lora-xs").contains("export with --basis"), "{plain}");
    for kind in ["ia3", "bottleneck", "prompt"] {
        assert!(line(&plain, kind).is_empty(), "{kind}: {plain}");
    }
    let all = inspect(&["--kinds", "lora,ia3,bottleneck,prompt", "--basis", "8"]);
    for kind in ["ia3", "bottleneck", "prompt"] {
        assert!(!line(&all, kind).is_empty(), "{kind}: {all}");
    }
    let cores = line(&all, "lora-xs");
    assert!(cores.contains("r = 8") && cores.contains("trains 832 ") && !cores.contains("--basis"), "{all}");
}

#[test]
fn a_base_without_a_basis_says_how_to_get_one() {
    let folder = tempfile::tempdir().unwrap();
    export("mlp", "none", &[], folder.path());
    let session = Session::open(folder.path()).unwrap();
    let refused = Adapter::new(session.base(), &AdapterOptions::kind("lora-xs", 8)).unwrap_err().to_string();
    assert!(refused.contains("--basis"), "{refused}");
}

/// A head on a tensor: trained until its loss has fallen, and read from its record again.
fn check_head(source: &str, tensor: &str, per_token: bool) {
    let folder = tempfile::tempdir().unwrap();
    export(source, "none", &[], folder.path());
    let mut session = Session::open(folder.path()).unwrap();
    let inputs = npz::read(&root().join("tests/golden").join(source).join("data.npz")).unwrap();
    let samples = inputs[0].1.shape()[0];
    let mut shape = vec![samples];
    shape.extend(per_token.then(|| inputs[0].1.shape()[1]));
    // Every second sample is of the other class.
    let each = shape.iter().product::<usize>() / samples;
    let labels: Vec<i64> = (0..samples).flat_map(|i| vec![i as i64 % 2; each]).collect();
    let inputs = inputs.into_iter().filter(|(name, _)| name != "labels");
    let labels = ("labels".to_owned(), HostTensor::new(shape.clone(), labels).unwrap());
    let data = Dataset::new(session.base(), inputs.chain([labels])).unwrap();

    let new = Adapter::new(session.base(), &AdapterOptions::head(Some(tensor), 2)).unwrap();
    let options = TrainOptions::new().steps(60).batch_size(samples).lr(5e-2).seed(1);
    let mut losses = Vec::new();
    let mut trainer = Trainer::new(&mut session, new, &data, options).unwrap();
    while let Some(step) = trainer.step().unwrap() {
        losses.push(step.loss);
    }
    let trained = trainer.adapter();
    // The labels are arbitrary: what means over a map hold of them can be little.
    assert!(losses[59] < 0.999 * losses[0], "{source} {tensor}: loss {} -> {}", losses[0], losses[59]);
    let read = Adapter::from_record(session.base(), &trained.to_record(Dtype::F32).unwrap()).unwrap();
    assert_eq!(read, trained, "{source} {tensor}");
    session.set_adapter(Some(read)).unwrap();
    let outputs = session.predict_all(&data, samples, |_| ()).unwrap();
    shape.push(2);
    assert_eq!((outputs[1].0.as_str(), outputs[1].1.shape()), ("head", shape.as_slice()), "{source} {tensor}");
}

#[test]
fn heads_sit_on_tokens_on_maps_and_on_the_outputs_of_points() {
    let layer = "/bert/encoder/layer.0";
    // Tokens: after a normalization, and what a point and its adapter compute.
    check_head("encoder", "/bert/embeddings/LayerNorm/LayerNormalization_output_0", true);
    check_head("encoder", &format!("{layer}/attention/self/query/MatMul_output_0"), true);
    // Maps of signals: averaged over their length, whether an activation made them or a convolution with a point.
    check_head("cnn", "/block1/Relu_1_output_0", false);
    check_head("cnn", "/block1/conv1/Conv_output_0", false);
    // Maps of images.
    check_head("small_mobile", "/block1/act/Clip_output_0", false);
    check_head("small_mobile", "/block1/project/project.0/Conv_output_0", false);
    // Features, and the base's own answers.
    check_head("cnn", "/Flatten_output_0", false);
    check_head("cnn", "logits", false);
}

#[test]
fn what_a_head_cannot_read_is_refused_with_names_of_the_model() {
    let folder = tempfile::tempdir().unwrap();
    export("encoder", "int8", &["--kinds", "lora,ia3,bottleneck,prompt"], folder.path());
    let session = Session::open(folder.path()).unwrap();
    let refused =
        |tensor: &str| Adapter::new(session.base(), &AdapterOptions::head(Some(tensor), 2)).unwrap_err().to_string();
    let nose = refused("nose");
    assert!(nose.contains("/bert/") && !nose.contains("lora_") && !nose.contains("dequantized"), "{nose}");
    // What the converter inserted, and what its weights are made of, is no tensor of the model.
    let query = "bert.encoder.layer.0.attention.self.query";
    for inserted in ["base", "lora_down", "lora_up"] {
        let error = refused(&format!("{query}.{inserted}"));
        assert!(error.contains("matches no point"), "{error}");
    }
    // [B, heads, T, T]: no convolution made it, so that no axis is known to hold channels.
    let attention = refused("/bert/encoder/layer.0/attention/self/MatMul_output_0");
    assert!(attention.contains("no convolution or pooling made it"), "{attention}");
}

/// Every kind through an int4 base: the gradient is the slope of the loss.
#[test]
fn gradients_of_every_kind_are_slopes() {
    let folder = tempfile::tempdir().unwrap();
    let everywhere = Everywhere::new(folder.path());
    assert_eq!(everywhere.adapters.len(), inlay_runtime::adapters::KINDS.len() + 1);
    for (name, adapter) in &everywhere.adapters {
        check_slope(name, &everywhere.base, &everywhere.data, adapter, &inlay_runtime::Device::Cpu, 0.02);
    }
}

/// The sizes that the product promises, on MiniLM.
#[test]
fn minilm_adapters_are_a_few_kb() {
    let folder = tempfile::tempdir().unwrap();
    let source = conformance::setup_file("minilm/encoder.onnx");
    let base = conformance::adapters::export(&source, &folder.path().join("base"), &["--basis", "16"]);
    let filled = |options: &AdapterOptions| {
        let mut adapter = Adapter::new(&base, options).unwrap();
        let tensors: Vec<(String, usize)> = adapter.tensors().map(|(b, x)| (b.name.clone(), x.len())).collect();
        for (i, (name, len)) in tensors.into_iter().enumerate() {
            let mut random = inlay_runtime::random::Random::new(7, i as u64);
            let values: Vec<f32> = (0..len).map(|_| random.uniform(1.0)).collect();
            adapter.set_tensor(&name, &values).unwrap();
        }
        adapter
    };
    let cores = filled(&AdapterOptions::kind("lora-xs", 16));
    assert_eq!(cores.points().count(), 36);
    for (dtype, expected) in [(Dtype::Int4, 4_680), (Dtype::Int8, 9_288)] {
        let record = cores.to_record(dtype).unwrap();
        assert_eq!(inlay_format::record::Record::decode(&record).unwrap().payload_bytes(), expected);
    }
    let lora = filled(&AdapterOptions::lora(1).targets(["*query", "*value"]));
    assert_eq!(lora.points().count(), 12);
    let store = inlay_runtime::AdapterStore::open(folder.path().join("store")).unwrap();
    store.save("anna", &lora.to_record(Dtype::Int4).unwrap()).unwrap();
    let bytes = std::fs::metadata(store.path_of("anna").unwrap()).unwrap().len();
    eprintln!("q, v of rank 1 in all layers at int4: {bytes} bytes");
    assert!(bytes <= 6 * 1024, "{bytes}");
}
