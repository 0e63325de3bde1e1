//! How much memory a real model takes: MiniLM-L6, int8 and int4, beside its mapping.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use conformance::{binary, setup_file};
use inlay_runtime::train::losses::Mse;
use inlay_runtime::{
    Adapter, AdapterOptions, Base, Dataset, Device, DeviceOptions, HostTensor, Session, SessionOptions, TrainOptions,
    Trainer, Verify,
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Opened, planned and predicting, everything but the mapped file.
const LIMIT_MIB: f32 = 30.0;

const QUANTS: [&str; 2] = ["int8", "int4"];

fn export(out: &Path, quant: &str) {
    let source = setup_file("minilm/encoder.onnx");
    let mut command = Command::new(binary("converter"));
    command.arg("export").arg(source).args(["--quant", quant]).arg("--out").arg(out);
    let output = command.output().expect("converter starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn inputs([batch, tokens]: [usize; 2]) -> [(&'static str, HostTensor); 3] {
    let ints = |f: &dyn Fn(usize) -> i64| {
        HostTensor::new([batch, tokens], (0..batch * tokens).map(f).collect::<Vec<i64>>())
            .expect("one value an element")
    };
    [
        ("input_ids", ints(&|i| 1000 + (i as i64 * 7919) % 20000)),
        ("attention_mask", ints(&|i| i64::from(i % tokens < tokens - 5))),
        ("token_type_ids", ints(&|_| 0)),
    ]
}

#[test]
fn minilm_is_opened_planned_and_predicts_within_30_mib() {
    for quant in QUANTS {
        let folder = tempfile::tempdir().expect("the system has a temporary folder");
        export(folder.path(), quant);
        HEAP.reset_peak_usage();
        let device = DeviceOptions { device: Device::Cpu, threads: Some(2), ..DeviceOptions::default() };
        let options = SessionOptions { device, ..SessionOptions::default() };
        let base = Base::open(folder.path(), Verify::Full).expect("just exported");
        let mut session = Session::new(base, options).expect("the CPU opens");
        for shape in [[1, 32], [8, 64]] {
            let inputs = inputs(shape);
            let inputs = inputs.each_ref().map(|(name, values)| (*name, values));
            let outputs = session.predict(&inputs).expect("the shape fits");
            assert_eq!(outputs[0].1.shape(), [shape[0], shape[1], 384]);
            let peak = HEAP.peak_usage_as_mb();
            eprintln!("{quant} {shape:?}: peak of the heap {peak:.1} MiB");
            assert!(peak < LIMIT_MIB, "{quant} {shape:?}: peak of the heap {peak:.1} MiB");
        }
    }
}

/// The 36 linears of its layers alone are 40.5 MiB as floats: trained within less, no float copy of them is ever there.
#[test]
fn minilm_trains_within_less_than_its_float_weights() {
    const LIMIT_MIB: f32 = 36.0;
    let shape = [2, 32];
    for quant in QUANTS {
        let folder = tempfile::tempdir().expect("the system has a temporary folder");
        export(folder.path(), quant);
        HEAP.reset_peak_usage();
        let device = DeviceOptions { device: Device::Cpu, threads: Some(2), ..DeviceOptions::default() };
        let options = SessionOptions { device, ..SessionOptions::default() };
        let base = Base::open(folder.path(), Verify::Full).expect("just exported");
        let adapter = Adapter::new(&base, &AdapterOptions::lora(4).targets(["*query", "*value"]).seed(1))
            .expect("they are points");
        let wanted = (0..shape[0] * shape[1] * 384).map(|i| (i as f32 * 0.7).sin() * 0.1).collect::<Vec<f32>>();
        let labels = HostTensor::new([shape[0], shape[1], 384], wanted).expect("one value an element");
        let arrays = inputs(shape).into_iter().chain([("labels", labels)]);
        let data = Dataset::new(&base, arrays.map(|(name, x)| (name.to_owned(), x))).expect("inputs of the model");
        let mut session = Session::new(base, options).expect("the CPU opens");
        let mse = TrainOptions::new().steps(6).batch_size(shape[0]).lr(5e-3).loss(&Mse);
        let mut trainer = Trainer::new(&mut session, adapter, &data, mse.seed(1)).expect("the data fits");
        let mut seen = Vec::new();
        trainer
            .run(|step| {
                seen.push(step.loss);
                ControlFlow::Continue(())
            })
            .expect("it trains");
        let peak = HEAP.peak_usage_as_mb();
        eprintln!("{quant} {shape:?}: losses {seen:?}, peak of the heap {peak:.1} MiB");
        assert!(seen[5] < seen[0] * 0.98, "{quant}: the loss does not fall: {seen:?}");
        assert!(peak < LIMIT_MIB, "{quant} {shape:?}: peak of the heap {peak:.1} MiB");
    }
}

/// `RLIMIT_DATA` counts what is allocated but not what is mapped from a file.
#[test]
fn minilm_predicts_within_64_mib_of_data() {
    for (quant, shape) in QUANTS.into_iter().flat_map(|q| [["1", "32"], ["8", "64"]].map(|shape| (q, shape))) {
        let folder = tempfile::tempdir().expect("the system has a temporary folder");
        export(folder.path(), quant);
        let mut command = Command::new("prlimit");
        command.arg("--data=67108864").arg(binary("personalize")).arg("predict");
        let data = folder.path().join("data.npz");
        let [batch, tokens] = shape.map(|n| n.parse().expect("a number"));
        let arrays = inputs([batch, tokens]);
        inlay_runtime::npz::write(&data, arrays.iter().map(|(name, x)| (*name, x))).expect("the folder is writable");
        command
            .arg("--base")
            .arg(folder.path())
            .arg("--data")
            .arg(&data)
            .arg("--out")
            .arg(folder.path().join("out.npz"));
        command.args(["--batch-size", shape[0], "--device", "cpu", "--threads", "2"]);
        let output = command.output().expect("prlimit (util-linux) starts");
        assert!(output.status.success(), "{quant} {shape:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
