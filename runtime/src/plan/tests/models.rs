use std::path::{Path, PathBuf};

use inlay_devices::kernels::sample;

use super::*;
use crate::base::LoadError;
use crate::graph::GraphError;
use crate::npz;
use crate::onnx::{self, Dim};
use crate::plan::arena::SEPARATE;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

/// Ops that the converter rewrites, so that the runtime has no need of them.
const CONVERTED: &[&str] =
    &["Attention", "CastLike", "RMSNormalization", "RotaryEmbedding", "SimplifiedLayerNormalization"];

/// Whether the converter rewrites `op`: those, and all of onnxruntime's own.
fn converted(op: &str) -> bool {
    CONVERTED.contains(&op) || op.starts_with("com.microsoft")
}

fn arrays(path: &Path) -> Vec<(String, HostTensor)> {
    npz::read(path).unwrap()
}

fn predict<T: PlainReal>(plan: &Plan, inputs: &[(String, HostTensor)]) -> Vec<HostTensor> {
    let inputs: Vec<(&str, &HostTensor)> = inputs.iter().map(|(n, x)| (n.as_str(), x)).collect();
    let mut plain = Plain::<T>::new(plan);
    let fed = plan.feed(&mut plain, &inputs, None).unwrap();
    plain.run(&[Segment::Forward]).unwrap();
    (0..plan.outputs().len()).map(|i| plan.read(&mut plain, &fed, i).unwrap()).collect()
}

fn plan(base: &Base, inputs: &[(String, HostTensor)]) -> Result<Plan, PlanError> {
    let shapes: Vec<(&str, &[usize])> = inputs.iter().map(|(n, x)| (n.as_str(), x.shape())).collect();
    Plan::new(
        base,
        &PlanRequest {
            inputs: &shapes,
            parameters: &[],
            fragments: &[],
            mode: Mode::Predict,
            rows: None,
            merged: None,
        },
    )
}

fn fixtures() -> Vec<PathBuf> {
    let files = std::fs::read_dir(FIXTURES).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "onnx")).collect();
    files.sort();
    files
}

/// Exports of PyTorch, before the converter sees them: what the runtime reads, it computes as PyTorch does.
#[test]
fn exports_compute_what_pytorch_computes() {
    let mut computed = 0;
    let mut problems = Vec::new();
    for path in fixtures() {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let base = match Base::open_foreign(&path) {
            Ok(base) => base,
            Err(LoadError::Graph(GraphError::UnsupportedOp { op, .. })) if converted(&op) => continue,
            Err(LoadError::NotOnnx { source: onnx::WireError::Unsupported { .. }, .. }) => continue,
            // In folders that exports do not have.
            Err(_) if name.ends_with("_parts") => continue,
            Err(error) => {
                problems.push(format!("{name}: {error}"));
                continue;
            }
        };
        let inputs = crate::Dataset::read(&base, path.with_extension("inputs.npz")).unwrap().inputs().to_vec();
        let expected = arrays(&path.with_extension("outputs.npz"));
        let plan = match plan(&base, &inputs) {
            Ok(plan) => plan,
            Err(error) => {
                problems.push(format!("{name}: {error}"));
                continue;
            }
        };
        let attention = plan.program().forward.iter().filter(|c| c.kernel.name() == "attention").count();
        let is_text = ["encoder", "gpt2", "llama"].iter().any(|family| name.starts_with(family));
        if is_text && attention != 2 {
            let calls: Vec<_> = plan.program().forward.iter().map(|c| c.kernel.name()).collect();
            problems.push(format!("{name}: {attention} fused attentions in {calls:?}"));
        }
        let norms = plan.program().forward.iter().filter(|c| c.kernel.name() == "layer_norm").count();
        if name.starts_with("llama") && norms != 5 {
            problems.push(format!("{name}: {norms} fused norms, not 5"));
        }
        let y = predict::<f32>(&plan, &inputs).remove(0);
        let first = &plan.outputs()[0].name;
        let e = &expected.iter().find(|(name, _)| name == first).expect("the fixture has every output").1;
        let worst = y
            .to_floats()
            .iter()
            .zip(e.to_floats())
            .map(|(y, e)| (y - e).abs())
            .fold(0.0, |worst, e| if e > worst || e.is_nan() { e } else { worst });
        if y.shape() != e.shape() || worst.is_nan() || worst > 1e-4 {
            problems.push(format!("{name}: {:?} {:?} differ by {worst}", y.shape(), e.shape()));
        }
        // Buffers that share memory give what buffers of their own give.
        SEPARATE.set(true);
        let separate = self::plan(&base, &inputs).unwrap();
        SEPARATE.set(false);
        if predict::<f32>(&separate, &inputs)[0] != y {
            problems.push(format!("{name}: reuse of memory changes the result"));
        }
        let arena = |plan: &Plan| plan.program().region_len(Region::Arena);
        assert!(arena(&plan) < arena(&separate), "{name}");
        computed += 1;
    }
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(computed >= 20, "only {computed} fixtures were computed");
}

/// Gradients of biases and norms of whole models, along a random direction; and that memory is shared safely.
#[test]
fn whole_models_are_differentiated() {
    let vectors = |name: &str| name.ends_with("bias") || name.ends_with("norm.weight") || name.ends_with("Norm.weight");
    let models = ["encoder_ts17", "encoder_dyn18", "encoder_ts17_sdpa", "cnn_ts13", "mlp_ts13", "seq_mlp_dyn21"];
    for name in models.into_iter().chain(["gpt2_ts17", "llama_ts14_sdpa", "llama_ts17", "llama_dyn18"]) {
        let path = Path::new(FIXTURES).join(name).with_extension("onnx");
        let base = Base::open_trainable(&path, vectors).unwrap();
        let inputs = arrays(&path.with_extension("inputs.npz"));
        let shapes: Vec<(&str, &[usize])> = inputs.iter().map(|(n, x)| (n.as_str(), x.shape())).collect();
        let shape = |port: &crate::base::Port| match port.shape.as_slice() {
            [Dim::Fixed(len)] => vec![*len],
            other => panic!("{other:?}"),
        };
        let all: Vec<Binding> =
            base.parameters().iter().map(|p| Binding { name: p.name.clone(), shape: shape(p), scale: 1.0 }).collect();
        assert!(all.len() > 2, "{name}: {} parameters", all.len());
        let output = base.outputs()[0].name.clone();
        let make = |parameters: &[Binding]| {
            Plan::new(
                &base,
                &PlanRequest {
                    inputs: &shapes,
                    parameters,
                    fragments: &[],
                    mode: train(&output),
                    rows: None,
                    merged: None,
                },
            )
        };
        // Some are not used, such as those of a pooler.
        let used: Vec<Binding> = all.into_iter().filter(|b| make(std::slice::from_ref(b)).is_ok()).collect();
        let plan = make(&used).unwrap();
        SEPARATE.set(true);
        let separate = make(&used).unwrap();
        SEPARATE.set(false);
        let labels_shape = plan.labels().unwrap().shape.clone();
        let labels = HostTensor::of(labels_shape.clone(), sample::floats(9, labels_shape.iter().product()));
        let fed: Vec<(&str, &HostTensor)> = inputs.iter().map(|(n, x)| (n.as_str(), x)).collect();
        let params = sample::floats(5, plan.program().region_len(Region::Params));
        let direction = sample::floats(6, params.len());
        let run = |plan: &Plan, at: f64, segments: &[Segment]| {
            let mut plain = Plain::<f64>::new(plan);
            let values = plain.0.memory.floats_mut(Region::Params);
            for (v, (p, d)) in values.iter_mut().zip(params.iter().zip(&direction)) {
                *v = 0.5 + 0.3 * f64::from(*p) + at * f64::from(*d);
            }
            plan.feed(&mut plain, &fed, Some(&labels)).unwrap();
            plain.run(segments).unwrap();
            let loss: f64 =
                plain.output(plan, 0).iter().zip(labels.floats().unwrap()).map(|(y, w)| y * f64::from(*w)).sum();
            (loss, plain.0.memory.floats(Region::Grads).to_vec())
        };
        const H: f64 = 1e-5;
        let difference = (run(&plan, H, &[Segment::Forward]).0 - run(&plan, -H, &[Segment::Forward]).0) / (2.0 * H);
        let (_, gradients) = run(&plan, 0.0, &[Segment::Forward, Segment::Backward]);
        let slope: f64 = plan
            .parameters()
            .iter()
            .flat_map(|slot| slot.offset..slot.offset + slot.len())
            .map(|i| gradients[i] * f64::from(direction[i]))
            .sum();
        assert!((slope - difference).abs() <= 1e-6 * difference.abs().max(1.0), "{name}: {slope} {difference}");
        let (_, apart) = run(&separate, 0.0, &[Segment::Forward, Segment::Backward]);
        assert!(gradients == apart, "{name}: reuse of memory changes gradients");
    }
}

/// What a hostile file may say: errors, never panics.
#[test]
fn altered_models_never_panic() {
    for name in ["mlp_ts13", "cnn_dyn18", "encoder_ts17"] {
        let path = Path::new(FIXTURES).join(name).with_extension("onnx");
        let inputs = arrays(&path.with_extension("inputs.npz"));
        let mut file = std::fs::read(&path).unwrap();
        let graph = onnx::read(&file).unwrap();
        // Weights may be anything: only the structure is altered.
        let inside_weights = |at: usize| {
            let raw = |t: &onnx::Tensor| matches!(&t.data, onnx::TensorData::Raw(r) if r.contains(&at));
            graph.graph.initializers.iter().any(raw)
        };
        let step = if name == "mlp_ts13" { 3 } else { 23 };
        for at in (0..file.len()).step_by(step).filter(|&at| !inside_weights(at)) {
            let bit = 1 << (at / step % 8);
            file[at] ^= bit;
            if let Ok(base) = Base::from_onnx(file.clone()) {
                let _ = plan(&base, &inputs);
            }
            file[at] ^= bit;
        }
    }
}
