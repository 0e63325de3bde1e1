//! PEFT folders as PEFT itself saved them: the adapters of the golden runs, read and written again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use conformance::adapters::{self, distance, floats, refs};
use inlay_format::points::{LORA, Point, PointOp};
use inlay_runtime::peft::{self, CONFIG_FILE, Prefix, TENSORS_FILE};
use inlay_runtime::{Adapter, AdapterOptions, Base, Dataset, Device, TrainOptions, Trainer, npz};
use safetensors::SafeTensors;

/// Values and shape by key.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn folders() -> Vec<PathBuf> {
    let golden = conformance::root().join("tests/golden");
    let mut folders: Vec<PathBuf> =
        fs::read_dir(golden).unwrap().map(|run| run.unwrap().path().join("adapter")).filter(|f| f.is_dir()).collect();
    folders.sort();
    assert!(folders.len() >= 3, "golden runs are missing: {folders:?}");
    folders
}

fn tensors(folder: &Path) -> Tensors {
    let bytes = fs::read(folder.join(TENSORS_FILE)).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    parsed.iter().map(|(key, view)| (key.to_owned(), (view.shape().to_vec(), values(view.data())))).collect()
}

/// The insertion points that tensors of these shapes belong to.
fn points(tensors: &Tensors) -> Vec<Point<String>> {
    let modules = tensors.keys().filter_map(|key| key.strip_suffix(".lora_A.weight"));
    let point = |module: &str| {
        let (a, b) = (&tensors[&format!("{module}.lora_A.weight")].0, &tensors[&format!("{module}.lora_B.weight")].0);
        let path = module.strip_prefix("base_model.model.").unwrap();
        Point {
            path: path.into(),
            op: if a.len() == 2 { PointOp::Linear } else { PointOp::Conv },
            node: path.into(),
            weight: path.into(),
            d_in: a[1] as u32,
            d_out: b[0] as u32,
            kernel: a[2..].iter().map(|extent| *extent as u32).collect(),
            kinds: [LORA.to_owned()].into_iter().collect(),
            row_scale: None,
            input_scale: None,
            feedforward: false,
        }
    };
    modules.map(point).collect()
}

#[test]
fn every_golden_adapter_is_read_in_the_layout_of_the_file() {
    let mut convolutions = 0;
    for folder in folders() {
        let tensors = tensors(&folder);
        let points = points(&tensors);
        let (adapter, prefix) = peft::read(&folder, &points, &|_| None).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
        assert_eq!(prefix, Prefix::None);
        assert_eq!(adapter.points.len(), points.len(), "{folder:?}");
        for point in &points {
            let read = adapter.points.iter().find(|read| read.path == point.path).unwrap();
            let rank = usize::from(read.rank);
            let saved = |half: &str| &tensors[&format!("base_model.model.{}.{half}.weight", point.path)].1;
            let (a, b) = (saved("lora_A"), saved("lora_B"));
            if point.op == PointOp::Conv {
                convolutions += 1;
                assert_eq!((&read.a, &read.b), (a, b), "{folder:?} {}", point.path);
                continue;
            }
            let (d_in, d_out) = (point.d_in as usize, point.d_out as usize);
            for r in 0..rank {
                let column: Vec<f32> = (0..d_in).map(|i| read.a[i * rank + r]).collect();
                assert_eq!(column, a[r * d_in..][..d_in], "{folder:?} {}.lora_A row {r}", point.path);
                let column: Vec<f32> = (0..d_out).map(|o| b[o * rank + r]).collect();
                assert_eq!(read.b[r * d_out..][..d_out], column, "{folder:?} {}.lora_B column {r}", point.path);
            }
        }
    }
    assert!(convolutions > 0, "no golden adapter has a convolution");
}

#[test]
fn every_golden_adapter_is_written_as_peft_wrote_it() {
    for folder in folders() {
        let saved = tensors(&folder);
        let points = points(&saved);
        let (adapter, _) = peft::read(&folder, &points, &|_| None).unwrap();
        let written = tempfile::tempdir().unwrap();
        peft::write(written.path(), &adapter, &points, &|_| None).unwrap();
        assert_eq!(tensors(written.path()), saved, "{folder:?}");

        let settings = |folder: &Path| -> serde_json::Value {
            serde_json::from_slice(&fs::read(folder.join(CONFIG_FILE)).unwrap()).unwrap()
        };
        let (ours, theirs) = (settings(written.path()), settings(&folder));
        for (name, value) in ours.as_object().unwrap() {
            // PEFT's list of targets is as the user wrote it, ours names every module.
            if name != "target_modules" {
                assert_eq!(value, &theirs[name], "{folder:?}: {name}");
            }
        }
    }
}

/// What `tests/golden/make_peft_goldens.py` made: a case, its model, its inputs, where LoRA sits.
const CASES: [(&str, &str, &str, &str); 4] = [
    ("lookup", "golden/encoder/model.onnx", "golden/encoder/data.npz", "*word_embeddings,*query"),
    ("patterns", "golden/encoder/model.onnx", "golden/encoder/data.npz", "*query,*value"),
    ("whole", "golden/encoder/model.onnx", "golden/encoder/data.npz", "*query,classifier"),
    ("fan_in_fan_out", "fixtures/gpt2_dyn18.onnx", "fixtures/gpt2_dyn18.inputs.npz", "*c_attn,*wte"),
];

/// A case's base, with its inputs, and its folder.
fn case(name: &str, quant: &str, out: &Path) -> (Base, adapters::Arrays, PathBuf) {
    let (_, model, data, targets) = CASES.iter().find(|(known, ..)| *known == name).expect("a case");
    let tests = conformance::root().join("tests");
    let base = adapters::export(&tests.join(model), out, &["--quant", quant, "--targets", targets]);
    let mut arrays = npz::read(&tests.join(data)).unwrap();
    arrays.retain(|(name, _)| base.inputs().iter().any(|port| port.name == *name));
    (base, arrays, tests.join("golden/peft").join(name))
}

/// Ranks and alphas of single modules, lookups, whole modules and transposed weights: what PEFT saved computes here what it
/// computes there, and goes back out as it came.
#[test]
fn what_peft_computes_is_computed_here() {
    for (name, ..) in CASES {
        let scratch = tempfile::tempdir().unwrap();
        let (base, arrays, folder) = case(name, "none", &scratch.path().join("base"));
        let expected: BTreeMap<_, _> = npz::read(&folder.join("expected.npz")).unwrap().into_iter().collect();
        let (adapter, prefix) =
            Adapter::from_peft(&base, folder.join("adapter")).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(prefix, Prefix::None);
        let mut session = adapters::session(&base, Device::Cpu);
        session.set_adapter(Some(adapter.clone())).unwrap();
        let found = session.predict(&refs(&arrays)).unwrap();
        let error = distance(floats(&found), expected["output"].floats().unwrap());
        assert!(error <= 1e-5, "{name}: off by {error:.1e}");
        let kinds: Vec<&str> = adapter.parts().iter().map(|part| part.kind().name()).collect();
        let ranks: Vec<u16> = adapter.parts().iter().map(|part| part.settings().rank).collect();
        match name {
            "patterns" => assert_eq!(ranks, [2, 3, 5, 5], "two alphas at rank 5"),
            "whole" => assert_eq!(kinds, ["lora", "bias", "norm", "dense"]),
            _ => assert_eq!(ranks, [3]),
        }

        let out = scratch.path().join("peft");
        adapter.to_peft(&base, &out).unwrap();
        let (ours, theirs) = (tensors(&out), tensors(&folder.join("adapter")));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{name}");
        for (key, (shape, values)) in &ours {
            let (their_shape, their_values) = &theirs[key];
            assert_eq!(shape, their_shape, "{key}");
            // Of a whole module the difference was kept, and is added to the base's again.
            let limit = if key.contains("lora_") { 0.0 } else { 1e-6 };
            assert!(values.iter().zip(their_values).all(|(a, b)| (a - b).abs() <= limit), "{name}: {key}");
        }
        let (again, _) = Adapter::from_peft(&base, &out).unwrap();
        session.set_adapter(Some(again)).unwrap();
        assert!(distance(floats(&session.predict(&refs(&arrays)).unwrap()), floats(&found)) <= 1e-6, "{name}");
    }
}

#[test]
fn what_the_base_lacks_is_an_error() {
    let scratch = tempfile::tempdir().unwrap();
    // Without points at the classifier and at the table.
    let (base, ..) = case("patterns", "none", &scratch.path().join("base"));
    for (name, missing) in [("lookup", "word_embeddings"), ("whole", "\"classifier.weight\"")] {
        let folder = conformance::root().join("tests/golden/peft").join(name).join("adapter");
        let refused = Adapter::from_peft(&base, folder).unwrap_err();
        let source = std::error::Error::source(&refused).map(ToString::to_string).unwrap_or_default();
        assert!(format!("{refused} {source}").contains(missing), "{name}: {refused}");
    }
    let head = Adapter::new(&base, &AdapterOptions::kind("head", 3)).unwrap();
    let refused = head.to_peft(&base, scratch.path().join("peft")).unwrap_err().to_string();
    assert!(refused.contains("\"head\""), "{refused}");
}

/// LoRA of a lookup trains as PEFT trains it: losses, first gradients, last parameters; from int8 and int4 tables too.
#[test]
fn lookups_are_trained_as_peft_trains_them() {
    for quant in ["none", "int8", "int4"] {
        let scratch = tempfile::tempdir().unwrap();
        let (base, arrays, folder) = case("lookup", quant, &scratch.path().join("base"));
        let expected: BTreeMap<_, _> = npz::read(&folder.join("expected.npz")).unwrap().into_iter().collect();
        let (adapter, _) = Adapter::from_peft(&base, folder.join("adapter")).unwrap();
        let mut session = adapters::session(&base, Device::Cpu);
        let data = Dataset::read(&base, conformance::root().join("tests/golden/encoder/data.npz")).unwrap();
        let options = TrainOptions::new().steps(10).batch_size(4).lr(1e-2).weight_decay(0.0).shuffle(false);
        let train = options.clone();
        // The golden's batches are the first five, in turn.
        let data = data.select(&(0..20).collect::<Vec<_>>());
        let mut trainer = Trainer::new(&mut session, adapter, &data, train).unwrap();
        let limit = if quant == "none" { 1e-4 } else { 0.2 };
        let near = |what: &str, found: &[f32], key: &str| {
            let theirs = &expected[key];
            let &[rows, columns] = theirs.shape() else { panic!("{key} is a matrix") };
            let theirs = theirs.floats().unwrap();
            // PEFT's are transposed.
            let theirs: Vec<f32> = (0..columns).flat_map(|c| (0..rows).map(move |r| theirs[r * columns + c])).collect();
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let off = norm(&mut found.iter().zip(&theirs).map(|(a, b)| a - b)) / norm(&mut theirs.iter().copied());
            assert!(off <= 10.0 * limit, "{quant}, {what} {key}: off by {off:.1e}");
        };
        let key = |prefix: &str, name: &str| {
            let (path, half) = name.rsplit_once(".lora_").unwrap();
            if path.ends_with("word_embeddings") {
                format!("{prefix}.{path}.lora_embedding_{half}.default")
            } else {
                format!("{prefix}.{path}.lora_{half}.default.weight")
            }
        };
        for (step, loss) in expected["losses"].floats().unwrap().iter().enumerate() {
            let found = trainer.step().unwrap().expect("a step").loss;
            assert!(f64::from(found / loss - 1.0).abs() <= limit, "{quant}, step {step}: loss {found} not {loss}");
            if step == 0 {
                for (name, gradient) in trainer.gradients().unwrap() {
                    near("gradient", gradient.floats().unwrap(), &key("grad", &name));
                }
            }
        }
        let trained = trainer.adapter();
        drop(trainer);
        if quant == "none" {
            trained.tensors().for_each(|(binding, values)| near("trained", values, &key("final", &binding.name)));
        }
        // Merged into the table it is what it was, up to what the table's scheme loses.
        session.set_adapter(Some(trained.clone())).unwrap();
        let adapted = session.predict(&refs(&arrays)).unwrap();
        session.merge(&trained, &inlay_runtime::merge::MergeOptions::keep_float("f32").unwrap()).unwrap();
        let merged = session.predict(&refs(&arrays)).unwrap();
        assert!(distance(floats(&merged), floats(&adapted)) <= 2e-5, "{quant}: merged");
        assert!(session.unmerge());
    }
}

#[test]
fn new_adapters_of_lookups_leave_words_that_they_never_meet() {
    let scratch = tempfile::tempdir().unwrap();
    let (base, ..) = case("lookup", "int8", &scratch.path().join("base"));
    let new = Adapter::new(&base, &AdapterOptions::lora(2).targets(["*word_embeddings"])).unwrap();
    assert!(new.changes_nothing());
    let (binding, a) = new.tensors().next().unwrap();
    assert!(binding.name.ends_with("lora_A") && a.iter().all(|x| *x == 0.0));
    let default = Adapter::new(&base, &AdapterOptions::lora(2)).unwrap();
    assert!(default.points().all(|point| point.path().ends_with("query")), "lookups are named, or left out");
}
