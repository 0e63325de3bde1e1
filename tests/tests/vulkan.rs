//! Golden runs through Vulkan, and what happens when Vulkan fails.
//!
//! The device is the one that `INLAY_VULKAN_DEVICE` names, by default lavapipe.

use std::env;
use std::fs;
use std::process::{Command, Output};

use conformance::adapters;
use conformance::golden::{self, Tolerances, Weights};
use conformance::slopes::{self, Everywhere};
use conformance::{binary, root};
use inlay_devices::backend::DeviceKind;
use inlay_devices::vulkan;
use inlay_runtime::Device;
use inlay_runtime::merge::MergeOptions;

/// The device to test, or `None`, said aloud, where there is no Vulkan and none is required.
fn device() -> Option<String> {
    let name = env::var("INLAY_VULKAN_DEVICE").unwrap_or_else(|_| "llvmpipe".into());
    let listed = vulkan::devices(false).unwrap_or_default();
    if listed.iter().any(|device| device.name.contains(&name)) {
        return Some(format!("vulkan:{name}"));
    }
    assert!(env::var_os("INLAY_REQUIRE_VULKAN").is_none(), "no Vulkan device \"{name}\"; run `./dev setup`");
    eprintln!("NOT TESTED: there is no Vulkan device \"{name}\" here; `./dev test` installs one");
    None
}

macro_rules! goldens {
    ($($name:ident $weights:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            if let Some(device) = device() {
                let (run, _) = stringify!($name).rsplit_once('_').expect("names end in the weights");
                golden::check(run, Weights::$weights, &device, Tolerances::VULKAN);
            }
        })*
    };
}

goldens! {
    mlp_f32 F32,
    mlp_int8 Int8,
    mlp_cosine_clip_int8 Int8,
    mlp_sgd_f32 F32,
    seq_mlp_mse_int8 Int8,
    cnn_f32 F32,
    cnn_int8 Int8,
    encoder_f32 F32,
    encoder_int8 Int8,
    tiny_llama_int8 Int8,
    mlp_int4_int4 Int4,
    encoder_int4_int4 Int4,
    small_mobile_int8 Int8,
}

#[test]
fn samples_of_a_batch_have_adapters_of_their_own() {
    let Some(device) = device() else { return };
    for (name, quant, first) in
        [("cnn_dyn23", "int8", "conv1"), ("unet_ts17", "int8", "down1"), ("encoder_dyn18", "int8", "query")]
    {
        let folder = tempfile::tempdir().expect("the system has a temporary folder");
        let (base, inputs) = adapters::fixture(name, quant, folder.path());
        adapters::mix(&base, &inputs, &[first, ""], device.parse().expect("a device"), 1e-4);
    }
}

#[test]
fn merging_changes_the_weights_on_the_device_and_unmerging_gives_them_back() {
    let Some(device) = device() else { return };
    let folder = tempfile::tempdir().expect("the system has a temporary folder");
    let (base, inputs) = adapters::fixture("mlp_dyn18", "int8", folder.path());
    let inputs = adapters::refs(&inputs);
    let mut session = adapters::session(&base, device.parse().expect("a device"));
    let adapter = adapters::random_lora(&base, 3, 2.0, &[""], 5);
    let plain = session.predict(&inputs).expect("the base runs");
    for _ in 0..2 {
        session.set_adapter(Some(adapter.clone())).expect("it is this base's");
        let adapted = session.predict(&inputs).expect("the adapter runs");
        session.merge(&adapter, &MergeOptions::keep_float("f32").expect("a float")).expect("LoRA merges");
        let merged = session.predict(&inputs).expect("it runs");
        let error = adapters::distance(adapters::floats(&merged), adapters::floats(&adapted));
        assert!(error < 1e-4, "{error:e}");
        assert!(session.unmerge());
        assert_eq!(session.predict(&inputs).expect("the base runs"), plain, "bit for bit");
    }
}

/// Every kind, through an int4 base: the gradients are those of the CPU.
#[test]
fn gradients_of_every_kind_are_those_of_the_cpu() {
    let Some(device) = device() else { return };
    let folder = tempfile::tempdir().expect("the system has a temporary folder");
    let Everywhere { base, data, adapters } = Everywhere::new(folder.path());
    for (name, adapter) in &adapters {
        let on = |device: &Device| slopes::gradients(&base, &data, adapter, device);
        let (loss, found) = on(&device.parse().expect("a device"));
        let (expected_loss, expected) = on(&Device::Cpu);
        assert!(
            (loss / expected_loss - 1.0).abs() <= Tolerances::VULKAN.loss,
            "{name}: loss {loss} not {expected_loss}"
        );
        assert_eq!(found.len(), expected.len());
        for (tensor, expected) in &expected {
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let all = norm(&mut expected.iter().copied());
            let off = norm(&mut found[tensor].iter().zip(expected).map(|(a, b)| a - b));
            assert!(
                off <= Tolerances::VULKAN.gradient * all.max(1e-3),
                "{name}, {tensor}: off by {off:.1e} of {all:.1e}"
            );
        }
    }
}

/// Trains the MLP golden for twelve steps; gives the output and the losses.
fn train(arguments: &[&str], drivers: Option<&str>) -> (Output, Vec<f64>) {
    let folder = root().join("tests/golden/mlp");
    let scratch = tempfile::tempdir().expect("the system has a temporary folder");
    let at = |name: &str| scratch.path().join(name);
    let exported = Command::new(binary("converter"))
        .arg("export")
        .arg(folder.join("model.onnx"))
        .arg("--out")
        .arg(at("base"))
        .output();
    assert!(exported.expect("converter starts").status.success(), "export");
    let mut command = Command::new(binary("personalize"));
    command
        .arg("train")
        .arg("--base")
        .arg(at("base"))
        .arg("--data")
        .arg(folder.join("data.npz"))
        .arg("--store")
        .arg(at("store"));
    command.args(["--user", "u", "--steps", "12", "--batch-size", "8", "--json", "--seed", "3"]);
    command.arg("--log").arg(at("log")).args(arguments);
    if let Some(drivers) = drivers {
        command.env("VK_DRIVER_FILES", drivers).env("VK_ICD_FILENAMES", drivers);
    }
    let output = command.output().expect("personalize starts");
    let log = fs::read_to_string(at("log")).unwrap_or_default();
    let losses = log.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).expect("--log writes JSON");
        line["loss"].as_f64().expect("a step has a loss")
    });
    (output, losses.collect())
}

#[test]
fn a_fence_that_times_out_moves_the_run_to_the_cpu_without_losing_a_step() {
    let Some(device) = device() else { return };
    let (_, expected) = train(&["--device", "cpu"], None);
    let (output, losses) = train(&["--device", &device, "--vulkan-timeout", "1ns"], None);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.contains("1ns") && errors.contains("CPU"), "the change of device is said: {errors}");
    assert_eq!(losses, expected, "every step, and each computed by the CPU");
}

#[test]
fn without_a_driver_auto_takes_the_cpu_and_vulkan_is_an_error() {
    let (output, losses) = train(&["--device", "auto"], Some("/nowhere/driver.json"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(losses.len(), 12);
    let (output, losses) = train(&["--device", "vulkan"], Some("/nowhere/driver.json"));
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("--device cpu") && losses.is_empty(), "{errors}");
}

#[test]
fn auto_never_takes_a_device_that_is_a_cpu() {
    if vulkan::devices(false).unwrap_or_default().iter().any(|device| device.kind == DeviceKind::VulkanGpu) {
        eprintln!("NOT TESTED: there is a real GPU here");
        return;
    }
    let (output, losses) = train(&["--device", "auto"], None);
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).expect("--json prints JSON");
    assert!(summary["device"].as_str().expect("a name").starts_with("CPU"), "{summary}");
    assert_eq!(losses.len(), 12);
}
