//! Every exported family through onnxruntime and `personalize predict`, and adapters to other programs and back:
//! `tests/onnxruntime/compare.py` and `interop.py` say what holds. Kinds beside LoRA
//! through onnxruntime and the runtime: [`kinds`].

use std::collections::BTreeMap;
use std::process::Command;

use conformance::{binary, root, setup_file};
use inlay_converter::export::{Options, export};
use inlay_converter::kinds::{Activation, Kind, Kinds, Places};
use inlay_converter::quantize::Quant;
use inlay_runtime::device::DeviceOptions;
use inlay_runtime::{
    Adapter, AdapterOptions, Base, Device, HostData, HostTensor, Session, SessionOptions, Verify, npz,
};

/// Runs the comparison for the cases whose names start with one of `cases`.
fn compare(cases: &[&str]) {
    script("compare.py", cases);
}

/// Runs a script of `tests/onnxruntime` that must succeed.
fn script(name: &str, arguments: &[&str]) {
    let output = Command::new(setup_file("venv/bin/python"))
        .arg(root().join("tests/onnxruntime").join(name))
        .args(arguments)
        .env("CONVERTER", binary("converter"))
        .env("PERSONALIZE", binary("personalize"))
        .output()
        .expect("the virtual environment's python starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
}

#[test]
fn mlp() {
    compare(&["mlp", "seq_mlp", "twins"]);
}

#[test]
fn cnn() {
    compare(&["cnn", "global_cnn"]);
}

#[test]
fn mobile() {
    compare(&["mobile"]);
}

#[test]
fn enlarging() {
    compare(&["unet", "decoder"]);
}

#[test]
fn encoder() {
    compare(&["encoder"]);
}

#[test]
fn decoders() {
    compare(&["gpt2", "llama", "gelus"]);
}

#[test]
fn calibrated() {
    for name in ["=mlp_ts20", "=encoder_ts17", "=gpt2_ts17", "=llama_ts17"] {
        script("compare.py", &["--quant", "int4-calibrated", name]);
    }
}

#[test]
fn quantized() {
    compare(&["quantized/"]);
}

#[test]
fn golden() {
    compare(&["golden/"]);
}

#[test]
fn minilm() {
    setup_file("minilm/model.safetensors");
    compare(&["minilm/"]);
}

#[test]
fn interop_of_mlps() {
    script("interop.py", &["mlp", "mlp_rslora", "mlp_linear_rank1", "seq_mlp_mse"]);
}

#[test]
fn interop_of_cnns() {
    script("interop.py", &["cnn", "cnn_bn"]);
}

#[test]
fn interop_of_encoders() {
    script("interop.py", &["encoder", "encoder_all"]);
}

/// Largest difference between onnxruntime and the runtime, relative to the largest output but at least to 1.
const TOLERANCE: f32 = 1e-4;

/// An adapter of `options` with random values, in onnxruntime and in the runtime: without it both compute the base, and fed
/// with it both compute the same.
fn kinds(source: &str, quant: Quant, kinds: &Kinds, options: &AdapterOptions) {
    kinds_at(source, quant, kinds, &[], None, options);
}

/// The same with LoRA at these targets, and a basis of that rank. LoRA-XS is fed as the LoRA that it is.
fn kinds_at(source: &str, quant: Quant, kinds: &Kinds, targets: &[&str], basis: Option<u16>, options: &AdapterOptions) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let fixture = |kind: &str| root().join("tests/fixtures").join(format!("{source}.{kind}"));
    let (model, out) = (fixture("onnx"), at("base"));
    let targets = targets.iter().map(|glob| (*glob).to_owned()).collect();
    let samples = Some(fixture("inputs.npz"));
    export(
        &Options {
            model,
            out,
            quant: quant.into(),
            targets,
            kinds: kinds.clone(),
            samples,
            max_error: None,
            report: None,
            basis,
            calibrate: None,
            no_kv_cache: false,
        },
        &|_| (),
    )
    .unwrap_or_else(|e| panic!("{source}: {e}"));
    let base = Base::open(at("base"), Verify::Full).unwrap();
    let mut adapter = Adapter::new(&base, options).unwrap();
    let shapes: Vec<_> = adapter.tensors().map(|(b, _)| (b.name.clone(), b.shape.clone())).collect();
    let mut state = 7u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from((state >> 16) as u16) / 32768.0 - 1.0
    };
    for (name, shape) in shapes {
        let middle = if name.ends_with("ia3_l") { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| middle + 0.5 * random()).collect();
        adapter.set_tensor(&name, &values).unwrap();
    }
    let fed = adapter.to_lora(&base).unwrap();
    let feed = |(binding, values): (&inlay_runtime::adapters::Binding, &[f32])| {
        let values: Vec<f32> = values.iter().map(|x| x * binding.scale).collect();
        (binding.name.clone(), HostTensor::new(binding.shape.clone(), HostData::F32(values)).unwrap())
    };
    let feeds: Vec<(String, HostTensor)> = fed.tensors().map(feed).collect();
    npz::write(&at("adapter.npz"), feeds.iter().map(|(n, x)| (n.as_str(), x))).unwrap();
    let output = Command::new(setup_file("venv/bin/python"))
        .arg(root().join("tests/onnxruntime/feed.py"))
        .args([at("base/model.onnx"), fixture("inputs.npz"), at("adapter.npz"), at("out.npz")])
        .output()
        .expect("the virtual environment's python starts");
    assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
    let theirs: BTreeMap<String, HostTensor> = npz::read(&at("out.npz")).unwrap().into_iter().collect();

    let device = DeviceOptions { device: Device::Cpu, ..DeviceOptions::default() };
    let mut session = Session::new(base, SessionOptions { device, ..SessionOptions::default() }).unwrap();
    let inputs = npz::read(&fixture("inputs.npz")).unwrap();
    let inputs: Vec<(&str, &HostTensor)> = inputs.iter().map(|(n, x)| (n.as_str(), x)).collect();
    let plain = session.predict(&inputs).unwrap();
    session.set_adapter(Some(adapter)).unwrap();
    let adapted = session.predict(&inputs).unwrap();
    for ((name, plain), (_, adapted)) in plain.iter().zip(&adapted) {
        let same = |a: &HostTensor, b: &HostTensor, what: &str| {
            assert_eq!(a.shape(), b.shape(), "{source} {what}: shape of {name}");
            let (a, b) = (a.to_floats(), b.to_floats());
            let largest = b.iter().fold(1f32, |most, x| most.max(x.abs()));
            let worst =
                a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0f32, |m, d| if d > m || d.is_nan() { d } else { m });
            assert!(worst / largest <= TOLERANCE, "{source} {what}: {name} differs by {worst:.1e}");
            worst / largest
        };
        let of = |run: &str| &theirs[&format!("{run}.{name}")];
        same(plain, of("base"), "without an adapter");
        same(adapted, of("fed"), "fed");
        same(adapted, of("default"), "fed, with default optimization");
        assert_eq!(of("base"), of("again"), "{source}: an adapter leaves no trace in onnxruntime");
        assert_ne!(of("base"), of("fed"), "{source}: the adapter does something");
        assert_ne!(plain, adapted);
    }
}

#[test]
fn ia3() {
    let named = Kinds { chosen: vec![Kind::Ia3], ia3_feedforward: vec!["head".into()], ..Kinds::default() };
    kinds("mlp_dyn18", Quant::Int8, &named, &AdapterOptions::kind("ia3", 0));
    let default = Kinds { chosen: vec![Kind::Ia3], ..Kinds::default() };
    for quant in [Quant::None, Quant::Int8] {
        kinds("encoder_ts17", quant, &default, &AdapterOptions::kind("ia3", 0));
    }
}

#[test]
fn lookups() {
    let lora = Kinds::default();
    let options = AdapterOptions::lora(3).targets(["*word_embeddings"]);
    for quant in [Quant::None, Quant::Int8] {
        kinds_at("encoder_ts17", quant, &lora, &["*word_embeddings"], None, &options);
    }
    kinds_at("gpt2_dyn18", Quant::Int8, &lora, &["*wte"], None, &AdapterOptions::lora(2));
    let both = Kinds { chosen: vec![Kind::Lora, Kind::Prompt], ..Kinds::default() };
    let options = options.and(AdapterOptions::kind("prompt", 4)).and(AdapterOptions::lora(2).targets(["*query"]));
    kinds_at("encoder_dyn23_sdpa", Quant::Int8, &both, &["*word_embeddings", "*query"], None, &options);
}

#[test]
fn lora_xs() {
    let options = AdapterOptions::kind("lora-xs", 8).alpha(4.0);
    for quant in [Quant::None, Quant::Int8, Quant::Int4] {
        kinds_at("encoder_ts17", quant, &Kinds::default(), &[], Some(8), &options);
    }
}

#[test]
fn bottleneck() {
    for (activation, places) in [(Activation::Relu, Places::Pfeiffer), (Activation::Gelu, Places::Houlsby)] {
        let (bottleneck_activation, bottleneck_places) = (activation, places);
        let default =
            Kinds { chosen: vec![Kind::Bottleneck], bottleneck_activation, bottleneck_places, ..Kinds::default() };
        kinds("encoder_dyn23", Quant::Int8, &default, &AdapterOptions::kind("bottleneck", 5));
    }
}

#[test]
fn prompt() {
    let default = Kinds { chosen: vec![Kind::Prompt], ..Kinds::default() };
    for source in ["encoder_ts17", "encoder_ts17_sdpa", "encoder_dyn23_sdpa"] {
        kinds(source, Quant::Int8, &default, &AdapterOptions::kind("prompt", 4));
    }
}

#[test]
fn all_kinds_at_once() {
    let all = Kinds { chosen: Kind::ALL.to_vec(), ..Kinds::default() };
    let options = AdapterOptions::lora(2).alpha(2.0).and(AdapterOptions::kind("ia3", 0));
    let options = options.and(AdapterOptions::kind("bottleneck", 3)).and(AdapterOptions::kind("prompt", 2));
    kinds("encoder_dyn18", Quant::None, &all, &options);
}
