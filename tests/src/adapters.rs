//! Bases and adapters for tests: exported fixtures, LoRA with random values, and what holds for batches that mix them.

use std::path::Path;
use std::process::Command;

use inlay_format::points::{LORA, Point};
use inlay_runtime::peft::{self, LoraTensors, PeftLora};
use inlay_runtime::random::Random;
use inlay_runtime::{Adapter, Base, Device, DeviceOptions, HostTensor, Session, SessionOptions, Verify, npz};

use crate::{binary, root};

/// What a prediction gives, or is given.
pub type Arrays = Vec<(String, HostTensor)>;

/// Exports a model and opens it.
///
/// # Panics
/// When the converter refuses it.
pub fn export(source: &Path, out: &Path, arguments: &[&str]) -> Base {
    let mut command = Command::new(binary("converter"));
    let output = command.arg("export").arg(source).arg("--out").arg(out).args(arguments).output();
    let output = output.expect("the converter starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Base::open(out, Verify::Full).expect("just exported")
}

/// A LoRA adapter with random values at the points whose paths end as one of `ends`.
///
/// # Panics
/// When the base refuses it.
pub fn random_lora(base: &Base, rank: u16, alpha: f32, ends: &[&str], seed: u64) -> Adapter {
    let chosen = |point: &&Point<String>| point.offers(LORA) && ends.iter().any(|end| point.path.ends_with(end));
    let tensors = |(i, point): (usize, &Point<String>)| {
        let mut random = Random::new(seed, i as u64);
        let kernel: u32 = point.kernel.iter().product();
        let mut values = |len: usize, bound: f32| (0..len).map(|_| random.uniform(bound)).collect();
        let (of_all, rank) = (rank, usize::from(rank));
        LoraTensors {
            path: point.path.clone(),
            rank: of_all,
            alpha,
            a: values(point.lora_a_shape(rank).iter().product(), 1.7 / ((point.d_in * kernel) as f32).sqrt()),
            b: values(point.lora_b_shape(rank).iter().product(), 0.3 * rank as f32 / alpha.abs()),
        }
    };
    let points = base.points().iter().filter(chosen).enumerate().map(tensors).collect();
    let folder = tempfile::tempdir().expect("the system has a temporary folder");
    let lora = PeftLora { rslora: false, points, saved: Vec::new() };
    // Without the factors of folded normalizations and calibration, which reading applies.
    peft::write(folder.path(), &lora, base.points(), &|name| Some(ones(base, name)))
        .expect("the values fit the points");
    Adapter::from_peft(base, folder.path()).expect("just written").0
}

fn ones(base: &Base, factor: &str) -> Vec<f32> {
    base.floats(factor).map_or(Vec::new(), |factors| vec![1.0; factors.len()])
}

/// A session on that device, with one thread: nothing waits for another core of a busy machine.
///
/// # Panics
/// When the device does not open.
pub fn session(base: &Base, device: Device) -> Session {
    let device = DeviceOptions { device, threads: Some(1), ..DeviceOptions::default() };
    Session::new(base.clone(), SessionOptions { device, ..SessionOptions::default() }).expect("the device opens")
}

/// A committed fixture, exported, and its inputs.
///
/// # Panics
/// When the converter refuses it.
pub fn fixture(name: &str, quant: &str, out: &Path) -> (Base, Arrays) {
    fixture_as(name, &["--quant", quant], out)
}

/// The same with any arguments of `converter export`.
///
/// # Panics
/// As [`fixture`].
pub fn fixture_as(name: &str, arguments: &[&str], out: &Path) -> (Base, Arrays) {
    let folder = root().join("tests/fixtures");
    let base = export(&folder.join(format!("{name}.onnx")), out, arguments);
    (base, npz::read(&folder.join(format!("{name}.inputs.npz"))).expect("inputs are committed"))
}

/// Arrays as predictions take them.
pub fn refs(inputs: &[(String, HostTensor)]) -> Vec<(&str, &HostTensor)> {
    inputs.iter().map(|(name, x)| (name.as_str(), x)).collect()
}

/// One sample of an array of `rows`.
///
/// # Panics
/// When the array holds no floats.
pub fn row(x: &HostTensor, rows: usize, at: usize) -> Vec<f32> {
    let values = x.floats().expect("a float output");
    let one = values.len() / rows;
    values[at * one..][..one].to_vec()
}

/// The largest difference, relative to the largest value but at least to 1.
///
/// # Panics
/// When there are not as many of both.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(1f32, |most, x| most.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

/// The first output.
///
/// # Panics
/// When it holds no floats.
pub fn floats(outputs: &Arrays) -> &[f32] {
    outputs[0].1.floats().expect("a float output")
}

/// Checks that every sample of a batch with an adapter of its own gives what it gives alone. `ends` are those of the
/// points' paths; one of the adapters has the first of them only.
///
/// # Panics
/// When one does not.
pub fn mix(base: &Base, inputs: &Arrays, ends: &[&str], device: Device, limit: f32) {
    let mut session = session(base, device);
    let inputs = refs(inputs);
    let rows = inputs[0].1.shape()[0];
    assert!(rows > 1, "one sample is no batch");
    let mut alone: Vec<Arrays> = vec![session.predict(&inputs).expect("the base runs")];
    for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
        let ends = if i == 1 { &ends[..1] } else { ends };
        let adapter = random_lora(base, 1 + 2 * i as u16, 3.0, ends, i as u64);
        session.add_adapter(name, adapter).expect("it is this base's");
        session.use_adapter(Some(name)).expect("it is resident");
        alone.push(session.predict(&inputs).expect("the adapter runs"));
        assert!(distance(floats(&alone[0]), floats(&alone[i + 1])) > 1e-3, "{name} changes something");
    }
    // In another order, and back: what the device holds of one batch must not show in the next.
    for shift in [0, 1, 0] {
        let which: Vec<usize> = (0..rows).map(|row| (row + shift) % 4).collect();
        let names: Vec<Option<&str>> = which.iter().map(|&i| [None, Some("a"), Some("b"), Some("c")][i]).collect();
        let mixed = session.predict_rows(&names, &inputs).expect("the graph keeps samples apart");
        for (output, (name, found)) in mixed.iter().enumerate() {
            for (at, &i) in which.iter().enumerate() {
                let error = distance(&row(found, rows, at), &row(&alone[i][output].1, rows, at));
                assert!(error < limit, "{name}, sample {at} with adapter {i}: {error:e}");
            }
        }
    }
}
