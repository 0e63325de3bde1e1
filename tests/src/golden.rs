//! Golden runs: the command lines, followed step by step, against what PyTorch + PEFT computed from the same start.
//!
//! `tests/golden/make_goldens.py` made them and says what each file holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use inlay_format::record::Record;
use inlay_runtime::store::AdapterStore;
use inlay_runtime::{HostTensor, npz};
use safetensors::SafeTensors;
use serde::Deserialize;

use crate::{binary, root};

/// The learning rate of the run that measures the first gradients, a power of two: `(before - after) / lr` is exact
/// but for the rounding of `after`.
const GRADIENT_LR: f32 = 16.0;
const USER: &str = "golden";
const LAYER: &str = "VK_LAYER_KHRONOS_validation";

/// The weights that a run is trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// As the source has them.
    F32,
    /// Quantized on export; PyTorch held the dequantized weights.
    Int8,
    /// Quantized to int4 on export, as MatMulNBits; PyTorch held the dequantized weights.
    Int4,
    /// The same, as DequantizeLinear in blocks.
    Int4Qdq,
}

/// How far numbers may be from PyTorch's.
#[derive(Clone, Copy, Debug)]
pub struct Tolerances {
    /// Each step's loss, relative.
    pub loss: f64,
    /// The first step's gradient of each A and B, relative to its norm.
    pub gradient: f64,
    /// Outputs, relative to the largest but at least to 1.
    pub output: f64,
    /// Trained parameters and what they compute, relative to the norm: twenty steps of rounding have gone into them.
    pub trained: f64,
}

impl Tolerances {
    /// On the CPU.
    pub const CPU: Tolerances = Tolerances { loss: 1e-4, gradient: 1e-4, output: 1e-4, trained: 1e-3 };
    /// Through Vulkan.
    pub const VULKAN: Tolerances = Tolerances { loss: 1e-3, gradient: 1e-4, output: 1e-3, trained: 1e-2 };
}

/// One run of `tests/golden/manifest.json`.
#[derive(Debug, Deserialize)]
pub struct Golden {
    /// What it is called.
    pub name: String,
    source: PathBuf,
    data: PathBuf,
    adapter: PathBuf,
    expected: BTreeMap<String, PathBuf>,
    output: String,
    loss: String,
    steps: u32,
    batch_size: u32,
    paths: Vec<String>,
    #[serde(default)]
    export: Vec<String>,
    arguments: Vec<String>,
}

#[derive(Deserialize)]
struct Manifest {
    runs: Vec<Golden>,
}

/// A line of `--log`.
#[derive(Deserialize)]
struct LoggedStep {
    loss: f64,
    lr: f64,
}

type Arrays = BTreeMap<String, HostTensor>;

/// Every golden run.
///
/// # Panics
/// When the manifest cannot be read.
pub fn all() -> Vec<Golden> {
    let text = fs::read_to_string(folder().join("manifest.json")).expect("the manifest is committed");
    serde_json::from_str::<Manifest>(&text).expect("the manifest lists runs").runs
}

/// Exports, predicts, trains and predicts again as the run says, on `device`, and compares everything.
///
/// # Panics
/// When a command fails or a number differs.
pub fn check(name: &str, weights: Weights, device: &str, tolerances: Tolerances) {
    let golden = all().into_iter().find(|run| run.name == name).unwrap_or_else(|| panic!("no golden run \"{name}\""));
    let scratch = tempfile::tempdir().expect("the system has a temporary folder");
    Check { golden, weights, device, tolerances, scratch: scratch.path() }.run();
}

fn folder() -> PathBuf {
    root().join("tests/golden")
}

struct Check<'a> {
    golden: Golden,
    weights: Weights,
    device: &'a str,
    tolerances: Tolerances,
    scratch: &'a Path,
}

impl Check<'_> {
    fn run(&self) {
        let (quant, key, spelling) = match self.weights {
            Weights::F32 => ("none", "f32", None),
            Weights::Int8 => ("int8", "int8", None),
            Weights::Int4 => ("int4", "int4", None),
            Weights::Int4Qdq => ("int4", "int4", Some("--qdq")),
        };
        let expected = read(&folder().join(&self.golden.expected[key]));
        let mut inputs = read(&self.data());
        inputs.remove("labels").expect("golden data has labels");
        npz::write(&self.at("inputs.npz"), inputs.iter().map(|(name, array)| (name.as_str(), array)))
            .expect("the temporary folder is writable");
        let mut export = Command::new(binary("converter"));
        export.arg("export").arg(folder().join(&self.golden.source)).args(["--quant", quant]);
        execute(export.args(&self.golden.export).args(spelling).arg("--out").arg(self.at("base")));

        let output = |key: &str| floats(&expected, key);
        self.close("base output", &self.predict(&[]), output("base_output"), self.tolerances.output);
        let adapter = self.adapter();
        let initial = self.predict(&["--adapter".as_ref(), adapter.as_os_str()]);
        self.close("output with the initial adapter", &initial, output("initial_output"), self.tolerances.output);
        if self.golden.steps == 0 {
            return;
        }

        self.check_gradients(&expected);
        let log = self.train("trained", &self.golden.arguments);
        assert_eq!(log.len(), floats(&expected, "losses").len(), "steps");
        let steps = log.iter().zip(floats(&expected, "losses")).zip(floats(&expected, "lrs")).enumerate();
        for (step, ((found, &loss), &lr)) in steps {
            assert!((found.lr - f64::from(lr)).abs() <= 1e-6 * f64::from(lr), "step {step}: lr {} not {lr}", found.lr);
            let error = (found.loss / f64::from(loss) - 1.0).abs();
            let limit = self.tolerances.loss;
            assert!(error <= limit, "step {step}: loss {} not {loss}, {error:.1e} > {limit:.0e}", found.loss);
        }
        for (name, values) in self.stored("trained", "final") {
            self.near(&format!("trained {name}"), &values, floats(&expected, &name), self.tolerances.trained);
        }
        let store = self.at("trained");
        let trained = self.predict(&["--user".as_ref(), USER.as_ref(), "--store".as_ref(), store.as_os_str()]);
        self.close("output of the trained adapter", &trained, output("final_output"), self.tolerances.trained);
    }

    /// One step of plain gradient descent, from which the gradients follow.
    fn check_gradients(&self, expected: &Arrays) {
        let batch_size = self.golden.batch_size.to_string();
        let lr = GRADIENT_LR.to_string();
        let arguments = ["--no-shuffle", "--steps", "1", "--batch-size", &batch_size, "--lr", &lr];
        let arguments = arguments.into_iter().chain(["--loss", &self.golden.loss]);
        let arguments = arguments.chain(["--optimizer", "sgd", "--weight-decay", "0"]);
        self.train("gradients", &arguments.map(str::to_owned).collect::<Vec<_>>());
        let before = fs::read(self.adapter().join("adapter_model.safetensors")).expect("the adapter is committed");
        let before = SafeTensors::deserialize(&before).expect("the adapter is whole");
        for (name, after) in self.stored("gradients", "grad") {
            let key = format!("base_model.model.{}.weight", name.trim_start_matches("grad."));
            let before = before.tensor(&key).expect("the adapter has every point");
            let before = before.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let gradient: Vec<f32> = before.zip(after).map(|(before, after)| (before - after) / GRADIENT_LR).collect();
            self.near(&name, &gradient, floats(expected, &name), self.tolerances.gradient);
        }
    }

    /// Trains from the initial adapter into a store of its own; gives what was logged.
    fn train(&self, store: &str, arguments: &[String]) -> Vec<LoggedStep> {
        let log = self.at(&format!("{store}.jsonl"));
        let mut command = self.personalize("train");
        command.arg("--base").arg(self.at("base")).arg("--data").arg(self.data());
        command.arg("--init-adapter").arg(self.adapter()).arg("--store").arg(self.at(store)).args(["--user", USER]);
        command.arg("--log").arg(&log).args(["--dtype", "f32", "--device", self.device]).args(arguments);
        let summary = self.execute(command.arg("--json"));
        let mut summaries = serde_json::Deserializer::from_slice(&summary).into_iter::<serde_json::Value>();
        let summary = summaries.next().expect("--json prints something").expect("--json prints JSON");
        let device = summary["device"].as_str().expect("the summary names the device");
        let wanted = self.device.strip_prefix("vulkan:").unwrap_or("CPU");
        assert!(device.contains(wanted), "trained on {device}, not on {wanted}");
        let text = fs::read_to_string(&log).expect("--log wrote a file");
        text.lines().map(|line| serde_json::from_str(line).expect("--log writes JSON")).collect()
    }

    /// The stored parameters as `{prefix}.{path}.lora_A` and `.lora_B`, in PEFT's shapes.
    fn stored(&self, store: &str, prefix: &str) -> Vec<(String, Vec<f32>)> {
        let store = AdapterStore::open_existing(self.at(store)).expect("training made the store");
        let bytes = store.load(USER).expect("training stored an adapter");
        let record = Record::decode(&bytes).expect("a loaded record is whole");
        let part = record.parts().next().expect("a record has a part");
        assert_eq!(part.points().len(), self.golden.paths.len(), "points in the record");
        let mut found = Vec::new();
        for path in &self.golden.paths {
            let point = part.point(path).unwrap_or_else(|| panic!("the record has no point {path}"));
            for (tensor, matrix) in point.tensors().zip(["lora_A", "lora_B"]) {
                let name = format!("{prefix}.{path}.{matrix}");
                let values: Vec<f32> = tensor.values().collect();
                // The record has A as PEFT does, and of B a row for each unit of rank.
                let rank = tensor.groups();
                let d_out = values.len() / rank;
                found.push((name, if matrix == "lora_B" { transpose(&values, rank, d_out) } else { values }));
            }
        }
        found
    }

    fn predict(&self, adapter: &[&std::ffi::OsStr]) -> Vec<f32> {
        let out = self.at("out.npz");
        let mut command = self.personalize("predict");
        command.arg("--base").arg(self.at("base")).arg("--data").arg(self.at("inputs.npz"));
        self.execute(command.arg("--out").arg(&out).args(["--device", self.device]).args(adapter));
        floats(&read(&out), &self.golden.output).to_vec()
    }

    /// A command on the device. On a Vulkan one the validation layer watches it, synchronization included.
    fn personalize(&self, what: &str) -> Command {
        let mut command = Command::new(binary("personalize"));
        command.arg(what);
        if self.is_validated() {
            command.envs([
                ("VK_INSTANCE_LAYERS", LAYER),
                ("VK_KHRONOS_VALIDATION_VALIDATE_SYNC", "1"),
                ("VK_KHRONOS_VALIDATION_REPORT_FLAGS", "error,warn"),
                ("VK_KHRONOS_VALIDATION_DEBUG_ACTION", "VK_DBG_LAYER_ACTION_LOG_MSG"),
            ]);
            command.env("VK_KHRONOS_VALIDATION_LOG_FILENAME", self.at("validation.txt"));
        }
        command
    }

    /// Runs a command of [`Self::personalize`] that must succeed, without a word of the validation layer.
    fn execute(&self, command: &mut Command) -> Vec<u8> {
        let said = execute(command);
        if self.is_validated() {
            // On standard output, after everything else.
            let alive = b"Logging validation error to";
            assert!(said.windows(alive.len()).any(|part| part == alive), "the validation layer is not loaded");
            let complaints = fs::read_to_string(self.at("validation.txt")).unwrap_or_default();
            assert_eq!(complaints.trim(), "", "{command:?}");
        }
        said
    }

    fn is_validated(&self) -> bool {
        self.device.starts_with("vulkan") && std::env::var_os("INLAY_REQUIRE_VULKAN").is_some()
    }

    /// Every element within `limit` of the largest, at least of 1.
    fn close(&self, what: &str, found: &[f32], expected: &[f32], limit: f64) {
        assert_eq!(found.len(), expected.len(), "{what}: elements");
        let largest = expected.iter().fold(1f32, |most, value| most.max(value.abs()));
        let error = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / largest;
        assert!(f64::from(error) <= limit && found.iter().all(|x| x.is_finite()), "{what}: {error:.1e} > {limit:.0e}");
    }

    /// The distance within `limit` of the norm.
    fn near(&self, what: &str, found: &[f32], expected: &[f32], limit: f64) {
        assert_eq!(found.len(), expected.len(), "{what}: elements");
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let distance = square(&mut found.iter().zip(expected).map(|(a, b)| a - b));
        let norm = square(&mut expected.iter().copied());
        assert!(distance <= limit * norm, "{what}: off by {:.1e} of its norm, more than {limit:.0e}", distance / norm);
    }

    fn data(&self) -> PathBuf {
        folder().join(&self.golden.data)
    }

    fn adapter(&self) -> PathBuf {
        folder().join(&self.golden.adapter)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }
}

/// `[rows, columns]` -> `[columns, rows]`, row-major.
fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

fn read(path: &Path) -> Arrays {
    npz::read(path).unwrap_or_else(|error| panic!("{error}")).into_iter().collect()
}

fn floats<'a>(arrays: &'a Arrays, name: &str) -> &'a [f32] {
    arrays.get(name).and_then(HostTensor::floats).unwrap_or_else(|| panic!("no floats \"{name}\""))
}

/// Runs a command that must succeed; gives what it printed.
fn execute(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{}: {errors}", output.status);
    output.stdout
}
