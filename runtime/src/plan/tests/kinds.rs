use std::path::Path;

use inlay_devices::kernels::sample;
use inlay_format::points::{Point, PointOp};

use super::*;
use crate::adapters::{Adapter, AdapterOptions, Head, KINDS};
use crate::npz;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

/// An export of PyTorch, with a point at each linear and convolution whose weight is an initializer.
fn open(name: &str) -> (Base, Vec<(String, HostTensor)>) {
    let path = Path::new(FIXTURES).join(name).with_extension("onnx");
    let base = Base::open_foreign(&path).unwrap();
    let point = |node: &crate::graph::Node| {
        let (_, dims) = base.graph().constant(node.inputs.get(1).copied().flatten()?)?;
        let transposed = node.attributes.int("transB", 0) != 0;
        let (op, [d_in, d_out]) = match (node.op.op_type(), dims) {
            ("Conv", [d_out, d_in, ..]) => (PointOp::Conv, [d_in, d_out]),
            ("Gemm", [d_out, d_in]) if transposed => (PointOp::Linear, [d_in, d_out]),
            ("Gemm" | "MatMul", [d_in, d_out]) => (PointOp::Linear, [d_in, d_out]),
            _ => return None,
        };
        let kernel: &[usize] = if op == PointOp::Conv { &dims[2..] } else { &[] };
        Some(Point {
            path: node.name.clone(),
            op,
            node: node.name.clone(),
            weight: "w".to_owned(),
            d_in: u(*d_in),
            d_out: u(*d_out),
            kernel: kernel.iter().map(|&k| u(k)).collect(),
            kinds: Default::default(),
            row_scale: None,
            input_scale: None,
            feedforward: false,
        })
    };
    let points = base.graph().nodes().iter().filter_map(point).collect();
    (base.with_points(points), npz::read(&path.with_extension("inputs.npz")).unwrap())
}

struct Case<'a> {
    base: &'a Base,
    inputs: &'a [(String, HostTensor)],
    adapter: &'a Adapter,
}

impl Case<'_> {
    fn plan(&self, mode: Mode<'_>) -> Result<Plan, PlanError> {
        let shapes: Vec<(&str, &[usize])> = self.inputs.iter().map(|(n, x)| (n.as_str(), x.shape())).collect();
        let (parameters, fragments) = (self.adapter.bindings(), self.adapter.fragments());
        Plan::new(
            self.base,
            &PlanRequest {
                inputs: &shapes,
                parameters: &parameters,
                fragments: &fragments,
                mode,
                rows: None,
                merged: None,
            },
        )
    }

    /// The first output, or that of a head, with parameters of one value, or along a direction.
    fn run(&self, plan: &Plan, output: usize, at: impl Fn(usize) -> f64, labels: Option<&HostTensor>) -> Plain<f64> {
        let mut plain = Plain::<f64>::new(plan);
        let params = plain.0.memory.floats_mut(Region::Params);
        params.iter_mut().enumerate().for_each(|(i, p)| *p = at(i));
        let fed: Vec<(&str, &HostTensor)> = self.inputs.iter().map(|(n, x)| (n.as_str(), x)).collect();
        plan.feed(&mut plain, &fed, labels).unwrap();
        let segments: &[Segment] =
            if labels.is_some() { &[Segment::Forward, Segment::Backward] } else { &[Segment::Forward] };
        plain.run(segments).unwrap();
        assert!(plain.output(plan, output).iter().all(|y| y.is_finite()));
        plain
    }

    /// Compares the gradient along a random direction, at parameters that are not zero, with central differences.
    fn check_gradient(&self, output: &str) -> Result<(), String> {
        let plan = self.plan(train(output)).map_err(|e| e.to_string())?;
        let shape = plan.labels().unwrap().shape.clone();
        let weights = sample::floats(9, shape.iter().product());
        let labels = HostTensor::of(shape, weights.clone());
        let len = plan.program().region_len(Region::Params);
        let (params, direction) = (sample::floats(5, len), sample::floats(6, len));
        let value = |i: usize, h: f64| 0.1 * f64::from(params[i]) + h * f64::from(direction[i]);
        let loss = |h: f64| -> f64 {
            let plain = self.run(&plan, 0, |i| value(i, h), Some(&labels));
            plain.output(&plan, 0).iter().zip(&weights).map(|(y, w)| y * f64::from(*w)).sum()
        };
        const H: f64 = 1e-5;
        let difference = (loss(H) - loss(-H)) / (2.0 * H);
        let gradients = self.run(&plan, 0, |i| value(i, 0.0), Some(&labels)).0.memory.floats(Region::Grads).to_vec();
        let elements = plan.parameters().iter().flat_map(|slot| slot.offset..slot.offset + slot.len());
        let slope: f64 = elements.map(|i| gradients[i] * f64::from(direction[i])).sum();
        let error = (slope - difference).abs() / difference.abs().max(1.0);
        if error <= 1e-6 && slope != 0.0 { Ok(()) } else { Err(format!("gradient {slope}, differences {difference}")) }
    }
}

/// Every kind that a base without our conversion has a place for: at zero it computes what the base does, and its gradient
/// is that of finite differences.
#[test]
fn kinds_start_at_the_base_and_have_gradients() {
    let mut checked = Vec::new();
    for name in ["mlp_ts13", "cnn_ts13", "encoder_ts17", "encoder_dyn20_tanh"] {
        let (base, inputs) = open(name);
        let output = base.outputs()[0].name.clone();
        let empty = plan_of_base(&base, &inputs);
        for kind in KINDS {
            if kind.sites(&base).is_empty() {
                continue;
            }
            let options = AdapterOptions::kind(kind.name(), kind.size().map_or(0, |_| 3));
            let adapter = Adapter::new(&base, &options).unwrap_or_else(|e| panic!("{name}, {kind:?}: {e}"));
            assert!(adapter.changes_nothing());
            // What has no influence on the output (a pooler) is no target.
            let used = |path: &str| {
                let one = Adapter::new(&base, &options.clone().targets([globset::escape(path)])).unwrap();
                let trained = if kind.name() == "head" { Head::OUTPUT } else { &output };
                Case { base: &base, inputs: &inputs, adapter: &one }.plan(train(trained)).is_ok()
            };
            let paths: Vec<String> = adapter.points().map(|p| p.path().to_owned()).filter(|path| used(path)).collect();
            let targets = paths.iter().map(|path| globset::escape(path));
            let adapter = Adapter::new(&base, &options.clone().targets(targets)).unwrap();
            let case = Case { base: &base, inputs: &inputs, adapter: &adapter };
            let plan = case.plan(Mode::Predict).unwrap();
            let outputs = case.run(&plan, 0, |_| 0.0, None).output(&plan, 0);
            assert_eq!(outputs.len(), empty.len());
            for (y, e) in outputs.iter().zip(&empty) {
                assert!((y - e).abs() <= 1e-9 * e.abs().max(1.0), "{name}, {kind:?}: {y} {e}");
            }
            let trained = if kind.name() == "head" { Head::OUTPUT } else { &output };
            case.check_gradient(trained).unwrap_or_else(|e| panic!("{name}, {kind:?}: {e}"));
            checked.push(format!("{name} {} {}", kind.name(), paths.len()));
        }
    }
    assert_eq!(
        checked,
        [
            "mlp_ts13 bias 4",
            "mlp_ts13 dense 5",
            "mlp_ts13 head 1",
            "cnn_ts13 bias 9",
            "cnn_ts13 dense 9",
            "cnn_ts13 head 1",
            // Biases that are equal lie in this file once, and reach the others through Identity.
            "encoder_ts17 bias 8",
            "encoder_ts17 norm 5",
            "encoder_ts17 dense 13",
            "encoder_ts17 head 1",
            "encoder_dyn20_tanh bias 18",
            "encoder_dyn20_tanh norm 5",
            "encoder_dyn20_tanh dense 13",
            "encoder_dyn20_tanh head 1",
        ]
    );
}

fn plan_of_base(base: &Base, inputs: &[(String, HostTensor)]) -> Vec<f64> {
    let shapes: Vec<(&str, &[usize])> = inputs.iter().map(|(n, x)| (n.as_str(), x.shape())).collect();
    let request =
        PlanRequest { inputs: &shapes, parameters: &[], fragments: &[], mode: Mode::Predict, rows: None, merged: None };
    let plan = Plan::new(base, &request).unwrap();
    let mut plain = Plain::<f64>::new(&plan);
    let fed: Vec<(&str, &HostTensor)> = inputs.iter().map(|(n, x)| (n.as_str(), x)).collect();
    plan.feed(&mut plain, &fed, None).unwrap();
    plain.run(&[Segment::Forward]).unwrap();
    plain.output(&plan, 0)
}
