//! Gradients of every adapter kind on a real base: against finite differences, and from one device to another.

use std::collections::BTreeMap;

use inlay_runtime::adapters::{AdapterKind, KINDS};
use inlay_runtime::random::Random;
use inlay_runtime::{Adapter, AdapterOptions, Base, Dataset, Device, TrainOptions, Trainer};

use crate::adapters::{export, session};
use crate::root;

/// The arguments of an export of the golden encoder that has a place for every kind, on int4 weights.
pub const EVERY_KIND: [&str; 10] = [
    "--quant",
    "int4",
    "--int4-block",
    "16",
    "--kinds",
    "lora,ia3,bottleneck,prompt",
    "--basis",
    "8",
    "--targets",
    "*,*word_embeddings",
];

/// A new adapter of each kind, LoRA at a lookup among them, with values at which gradients are not zero.
pub struct Everywhere {
    /// The base.
    pub base: Base,
    /// Its data.
    pub data: Dataset,
    /// What it is called, and the adapter.
    pub adapters: Vec<(String, Adapter)>,
}

impl Everywhere {
    /// Exports the base to `out`.
    ///
    /// # Panics
    /// When the converter or a kind refuses it.
    pub fn new(out: &std::path::Path) -> Self {
        let golden = root().join("tests/golden/encoder");
        let base = export(&golden.join("model.onnx"), out, &EVERY_KIND);
        let data = Dataset::read(&base, golden.join("data.npz")).expect("committed data");
        let size = |kind: &dyn AdapterKind| match kind.name() {
            "head" => 10,
            "lora-xs" => kind.default_size(&base),
            _ => kind.size().map_or(0, |_| 3),
        };
        let mut options: Vec<(String, AdapterOptions)> =
            KINDS.iter().map(|kind| (kind.name().to_owned(), AdapterOptions::kind(kind.name(), size(*kind)))).collect();
        options.push(("lookup".into(), AdapterOptions::lora(3).targets(["*word_embeddings"])));
        let adapters = options.into_iter().map(|(name, options)| {
            let mut adapter = Adapter::new(&base, &options).unwrap_or_else(|error| panic!("{name}: {error}"));
            for (i, (tensor, start)) in values(&adapter).into_iter().enumerate() {
                let mut random = Random::new(11, i as u64);
                let moved: Vec<f32> = start.iter().map(|x| x + random.uniform(0.1)).collect();
                adapter.set_tensor(&tensor, &moved).expect("it fits");
            }
            (name, adapter)
        });
        let adapters = adapters.collect();
        Everywhere { base, data, adapters }
    }
}

fn values(adapter: &Adapter) -> BTreeMap<String, Vec<f32>> {
    adapter.tensors().map(|(binding, values)| (binding.name.clone(), values.to_vec())).collect()
}

/// The loss of the first batch, and its gradients.
///
/// # Panics
/// When training is refused.
pub fn gradients(base: &Base, data: &Dataset, adapter: &Adapter, device: &Device) -> (f64, BTreeMap<String, Vec<f32>>) {
    let mut session = session(base, device.clone());
    let options = TrainOptions::new().steps(1).batch_size(6).lr(1e-6).weight_decay(0.0).shuffle(false);
    let mut trainer = Trainer::new(&mut session, adapter.clone(), data, options).expect("the kind trains");
    let loss = trainer.step().expect("the step runs").expect("there is a step").loss;
    let gradients = trainer.gradients().expect("a step was taken");
    (f64::from(loss), gradients.into_iter().map(|(name, x)| (name, x.to_floats())).collect())
}

/// Compares the gradient along its own direction with central differences of the loss.
///
/// # Panics
/// When they differ by more than `limit` of the slope.
pub fn check_slope(name: &str, base: &Base, data: &Dataset, adapter: &Adapter, device: &Device, limit: f64) {
    /// Far enough that rounding of the loss is small, near enough that its curvature is.
    const H: f64 = 1e-2;
    let (_, gradients) = gradients(base, data, adapter, device);
    let slope = gradients.values().flatten().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    assert!(slope > 1e-2, "{name}: a gradient of {slope:.1e} shows nothing");
    let loss = |step: f64| {
        let mut moved = adapter.clone();
        for (tensor, mut values) in values(adapter) {
            let along = |x: f32, gradient: f32| (f64::from(x) + step * f64::from(gradient) / slope) as f32;
            values.iter_mut().zip(&gradients[&tensor]).for_each(|(x, gradient)| *x = along(*x, *gradient));
            moved.set_tensor(&tensor, &values).expect("it fits");
        }
        self::gradients(base, data, &moved, device).0
    };
    let difference = (loss(H) - loss(-H)) / (2.0 * H);
    eprintln!("{name}: slope {slope:.5}, differences {difference:.5}");
    let error = (difference / slope - 1.0).abs();
    assert!(error <= limit, "{name}: the gradient says {slope}, differences {difference}");
}
