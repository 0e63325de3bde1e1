//! (IA)3, bottlenecks and prompts, which live in the exported file, against PyTorch: `tests/golden/make_infile_goldens.py`
//! made the runs and says what each file holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use conformance::golden::{Tolerances, Weights};
use conformance::root;
use inlay_converter::export::{Options, export};
use inlay_converter::kinds::{Activation, Kind, Kinds, Places};
use inlay_converter::quantize::Quant;
use inlay_runtime::device::DeviceOptions;
use inlay_runtime::peft::Prefix;
use inlay_runtime::{
    Adapter, AdapterOptions, Base, Dataset, Device, Dtype, HostTensor, Session, SessionOptions, TrainOptions, Trainer,
    Verify, npz,
};
use safetensors::SafeTensors;

fn golden(name: &str) -> PathBuf {
    root().join("tests/golden").join(name)
}

fn kinds(chosen: Kind) -> Kinds {
    Kinds {
        chosen: vec![chosen],
        // PEFT's targets for BERT.
        ia3_targets: if chosen == Kind::Ia3 { vec!["*.key".into(), "*.value".into()] } else { Vec::new() },
        ia3_feedforward: if chosen == Kind::Ia3 { vec!["*output.dense".into()] } else { Vec::new() },
        ..Kinds::default()
    }
}

fn exported(folder: &Path, weights: Weights, kinds: Kinds) -> Base {
    let options = Options {
        model: golden("encoder/model.onnx"),
        out: folder.join("base"),
        quant: (if weights == Weights::Int8 { Quant::Int8 } else { Quant::None }).into(),
        targets: Vec::new(),
        kinds,
        samples: None,
        max_error: None,
        report: None,
        calibrate: None,
        basis: None,
        no_kv_cache: false,
    };
    export(&options, &|_| ()).unwrap_or_else(|e| panic!("{e}"));
    Base::open(folder.join("base"), Verify::Full).unwrap()
}

fn close(what: &str, found: &[f32], expected: &[f32], limit: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: elements");
    let largest = expected.iter().fold(1f32, |most, value| most.max(value.abs()));
    let error = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / largest;
    assert!(f64::from(error) <= limit && found.iter().all(|x| x.is_finite()), "{what}: {error:.1e} > {limit:.0e}");
}

fn near(what: &str, found: &[f32], expected: &[f32], limit: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: elements");
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let distance = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    let norm = norm(&mut expected.iter().copied());
    assert!(distance <= limit * norm, "{what}: off by {:.1e} of its norm, more than {limit:.0e}", distance / norm);
}

struct Run {
    session: Session,
    data: Dataset,
    expected: BTreeMap<String, HostTensor>,
}

impl Run {
    fn floats(&self, name: &str) -> &[f32] {
        self.expected[name].floats().unwrap()
    }

    fn predict(&mut self, adapter: Option<Adapter>) -> Vec<f32> {
        self.session.set_adapter(adapter).unwrap();
        let inputs: Vec<(&str, &HostTensor)> = self.data.inputs().iter().map(|(n, x)| (n.as_str(), x)).collect();
        self.session.predict(&inputs).unwrap().remove(0).1.to_floats()
    }
}

fn check(name: &str, weights: Weights, kinds: Kinds, options: AdapterOptions) {
    let folder = tempfile::tempdir().unwrap();
    let base = exported(folder.path(), weights, kinds);
    let device = DeviceOptions { device: Device::Cpu, ..DeviceOptions::default() };
    let session = Session::new(base.clone(), SessionOptions { device, ..SessionOptions::default() }).unwrap();
    let key = if weights == Weights::Int8 { "int8" } else { "f32" };
    let expected = npz::read(&golden("infile").join(name).join(format!("{key}.npz"))).unwrap().into_iter().collect();
    let data = Dataset::read(&base, golden("encoder/data.npz")).unwrap();
    let mut run = Run { session, data, expected };
    let limits = Tolerances::CPU;

    let before = run.predict(None);
    close("base output", &before, run.floats("base_output"), limits.output);
    let mut adapter = Adapter::new(&base, &options).unwrap();
    let mut set = 0;
    for (parameter, values) in &run.expected {
        if let Some(parameter) = parameter.strip_prefix("start.") {
            adapter.set_tensor(parameter, values.floats().unwrap()).unwrap();
            set += 1;
        }
    }
    assert_eq!(set, adapter.tensors().count(), "every tensor has a start");
    let initial = run.predict(Some(adapter.clone()));
    close("output with the initial adapter", &initial, run.floats("initial_output"), limits.output);
    let after = run.predict(None);
    assert_eq!(after, before, "an adapter leaves no trace");

    let training = TrainOptions::new().steps(20).batch_size(4).lr(1e-2).weight_decay(0.0).shuffle(false);
    let mut trainer = Trainer::new(&mut run.session, adapter, &run.data, training).unwrap();
    let mut losses = Vec::new();
    while let Some(step) = trainer.step().unwrap() {
        losses.push(step.loss);
        if losses.len() == 1 {
            for (name, gradient) in trainer.gradients().unwrap() {
                let expected = run.expected[&format!("grad.{name}")].floats().unwrap();
                near(&format!("gradient of {name}"), gradient.floats().unwrap(), expected, limits.gradient);
            }
        }
    }
    let trained = trainer.adapter();
    drop(trainer);
    assert_eq!(losses.len(), run.floats("losses").len());
    for (step, (found, loss)) in losses.iter().zip(run.floats("losses")).enumerate() {
        let error = f64::from(found / loss - 1.0).abs();
        assert!(error <= limits.loss, "step {step}: loss {found} not {loss}");
    }
    for (binding, values) in trained.tensors() {
        near(
            &format!("trained {}", binding.name),
            values,
            run.floats(&format!("final.{}", binding.name)),
            limits.trained,
        );
    }
    let last = run.predict(Some(trained.clone()));
    close("output of the trained adapter", &last, run.floats("final_output"), limits.trained);

    let record = trained.to_record(Dtype::F32).unwrap();
    assert_eq!(Adapter::from_record(&base, &record).unwrap(), trained, "the record holds all of it");
}

macro_rules! goldens {
    ($($name:ident: $kinds:expr, $options:expr;)*) => {
        $(mod $name {
            use super::*;

            #[test]
            fn f32() {
                check(stringify!($name), Weights::F32, $kinds, $options);
            }

            #[test]
            fn int8() {
                check(stringify!($name), Weights::Int8, $kinds, $options);
            }
        })*

        #[test]
        fn every_run_is_tested() {
            let folders = std::fs::read_dir(golden("infile")).unwrap();
            let mut names: Vec<String> = folders.map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

goldens! {
    bottleneck: kinds(Kind::Bottleneck), AdapterOptions::kind("bottleneck", 3);
    bottleneck_houlsby: Kinds {
        bottleneck_places: Places::Houlsby,
        bottleneck_activation: Activation::Gelu,
        ..kinds(Kind::Bottleneck)
    }, AdapterOptions::kind("bottleneck", 2);
    ia3: kinds(Kind::Ia3), AdapterOptions::kind("ia3", 0);
    prompt: kinds(Kind::Prompt), AdapterOptions::kind("prompt", 5);
}

#[test]
fn prompts_start_from_real_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let base = exported(folder.path(), Weights::F32, kinds(Kind::Prompt));
    let new = || Adapter::new(&base, &AdapterOptions::kind("prompt", 3)).unwrap();
    let adapter = new().prompt_from_tokens(&base, &[7, 3]).unwrap();
    let (_, prompt) = adapter.tensors().next().unwrap();
    assert_eq!(prompt.len(), 3 * 48);
    assert_eq!(prompt[..48], prompt[96..], "tokens repeat where there are too few");
    assert_ne!(prompt[..48], prompt[48..96]);
    assert!(new().prompt_from_tokens(&base, &[200]).unwrap_err().to_string().contains("200"));
    assert!(new().prompt_from_tokens(&base, &[]).is_err());
}

/// The folder that PEFT saved gives what PEFT computed, and goes back out as it came.
#[test]
fn peft_s_ia3_comes_in_and_goes_out() {
    let folder = tempfile::tempdir().unwrap();
    let base = exported(folder.path(), Weights::F32, kinds(Kind::Ia3));
    let (adapter, prefix) = Adapter::from_peft(&base, golden("infile/ia3/adapter")).unwrap();
    assert_eq!(prefix, Prefix::None);
    let expected: BTreeMap<String, HostTensor> =
        npz::read(&golden("infile/ia3/f32.npz")).unwrap().into_iter().collect();
    assert_eq!(adapter.tensors().count(), 8);
    for (binding, values) in adapter.tensors() {
        assert_eq!(values, expected[&format!("start.{}", binding.name)].floats().unwrap(), "{}", binding.name);
    }
    let out = folder.path().join("peft");
    adapter.to_peft(&base, &out).unwrap();
    assert_eq!(Adapter::from_peft(&base, &out).unwrap().0, adapter);
    let tensors = |folder: &Path| -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
        let bytes = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        file.iter().map(|(key, view)| (key.to_owned(), (view.shape().to_vec(), view.data().to_vec()))).collect()
    };
    assert_eq!(tensors(&out), tensors(&golden("infile/ia3/adapter")), "names, shapes and bytes are PEFT's");
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["peft_type"], "IA3");
    assert_eq!(config["feedforward_modules"].as_array().unwrap().len(), 4);
}

#[test]
fn ia3_of_other_places_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let outputs = Kinds {
        ia3_targets: vec!["*.key".into(), "*.value".into(), "*output.dense".into()],
        ia3_feedforward: Vec::new(),
        ..kinds(Kind::Ia3)
    };
    let base = exported(folder.path(), Weights::F32, outputs);
    let text = Adapter::from_peft(&base, golden("infile/ia3/adapter")).unwrap_err().to_string();
    assert!(text.contains("scales its inputs") && text.contains("--ia3-feedforward"), "{text}");
    let lora = folder.path().join("lora");
    std::fs::create_dir(&lora).unwrap();
    let base = exported(&lora, Weights::F32, kinds(Kind::Bottleneck));
    assert!(Adapter::from_peft(&base, golden("infile/ia3/adapter")).is_err(), "the base has no points for (IA)3");
    let text = Adapter::new(&base, &AdapterOptions::kind("prompt", 4)).unwrap_err().to_string();
    assert!(text.contains("--kinds prompt"), "{text}");
}
