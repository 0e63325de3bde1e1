use std::path::{Path, PathBuf};

use super::*;
use crate::base::LoadError;
use crate::graph::GraphError;
use crate::npz::{self, Values};
use crate::onnx;
use crate::plan::arena::SEPARATE;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

/// Ops that the converter rewrites, so that the runtime has no need of them.
const CONVERTED: [&str; 2] = ["Attention", "CastLike"];

fn arrays(path: &Path) -> Vec<(String, HostTensor)> {
    let tensor = |(name, array): (String, npz::Array)| {
        let data = match array.values() {
            Values::F32(x) => HostTensor::of(array.shape(), x.clone()),
            Values::I64(x) => HostTensor::of(array.shape(), x.clone()),
        };
        (name, data)
    };
    npz::read(path).unwrap().into_iter().map(tensor).collect()
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
    Plan::new(base, &PlanRequest { inputs: &shapes, parameters: &[], mode: Mode::Predict })
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
            Err(LoadError::Graph(GraphError::UnsupportedOp { op, .. })) if CONVERTED.contains(&op.as_str()) => continue,
            Err(LoadError::NotOnnx { source: onnx::WireError::Unsupported { .. }, .. }) => continue,
            Err(error) => {
                problems.push(format!("{name}: {error}"));
                continue;
            }
        };
        let inputs = arrays(&path.with_extension("inputs.npz"));
        let expected = arrays(&path.with_extension("outputs.npz"));
        let plan = match plan(&base, &inputs) {
            Ok(plan) => plan,
            Err(error) => {
                problems.push(format!("{name}: {error}"));
                continue;
            }
        };
        let attention = plan.program().forward.iter().filter(|c| c.kernel.name() == "attention").count();
        if name.starts_with("encoder") && attention != 2 {
            let calls: Vec<_> = plan.program().forward.iter().map(|c| c.kernel.name()).collect();
            problems.push(format!("{name}: {attention} fused attentions in {calls:?}"));
        }
        let y = predict::<f32>(&plan, &inputs).remove(0);
        let e = &expected[0].1;
        let worst = y.to_floats().iter().zip(e.to_floats()).map(|(y, e)| (y - e).abs()).fold(0.0, f32::max);
        if y.shape() != e.shape() || !(worst <= 1e-4) {
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
