//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::TypedValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use inlay_runtime::adapters::{self, Targets};
use inlay_runtime::train::{self, Schedule};
use inlay_runtime::{Device, Dtype, store};

/// Largest size of a dimension that the command line takes.
const MAX_SIZE: i64 = 1 << 16;

/// Trains and uses personal adapters on a frozen base.
#[derive(Debug, Parser)]
#[command(name = "personalize", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train an adapter on a person's data and store it.
    Train(Box<Train>),
    /// Compute a base's outputs, with or without an adapter.
    Predict(Predict),
    /// Measure the loss and accuracy of a base, and of an adapter on it.
    Eval(Eval),
    /// List, export, import, delete and roll back stored adapters.
    #[command(subcommand)]
    Adapters(Adapters),
    /// List the devices that open, and test them.
    Devices(Devices),
    /// Time training and prediction on random inputs.
    Bench(Bench),
}

impl Command {
    /// Whether the result, or the error, is for machines.
    pub fn json(&self) -> bool {
        match self {
            Command::Train(args) => args.json.json,
            Command::Predict(args) => args.json.json,
            Command::Eval(args) => args.json.json,
            Command::Adapters(args) => args.json(),
            Command::Devices(args) => args.json.json,
            Command::Bench(args) => args.json.json,
        }
    }
}

/// For whom output is.
#[derive(Debug, Args)]
pub struct Json {
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Where computation happens.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// auto, cpu, vulkan, or vulkan:NAME
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = parse_device)]
    pub device: Device,
    /// CPU threads [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Remember which device is fastest in this folder
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Give up on the GPU when a run takes longer, such as 500ms or 10s
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub vulkan_timeout: Option<Duration>,
}

/// A store of adapters.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// The folder where adapters are stored
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// The key under which the store is encrypted: a file of 32 random bytes, or of 64 hexadecimal digits
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// An adapter in a store.
#[derive(Debug, Args)]
pub struct StoredArgs {
    /// Whose adapter it is
    #[arg(long, value_name = "NAME", value_parser = parse_user)]
    pub user: String,
    /// Which of the user's adapters [default: the one without a name]
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    pub name: Option<String>,
    /// Store
    #[command(flatten)]
    pub store: StoreArgs,
}

/// What to do with stored adapters.
#[derive(Debug, Subcommand)]
pub enum Adapters {
    /// List the adapters of a store, and sweep what no adapter needs.
    List {
        /// Store
        #[command(flatten)]
        store: StoreArgs,
        /// Output
        #[command(flatten)]
        json: Json,
    },
    /// Write an adapter's record to a file, not encrypted.
    Export {
        /// Adapter
        #[command(flatten)]
        adapter: StoredArgs,
        /// The file to write; it must not be there
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Output
        #[command(flatten)]
        json: Json,
    },
    /// Store the record in a file.
    Import {
        /// Adapter
        #[command(flatten)]
        adapter: StoredArgs,
        /// The file to read
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// Output
        #[command(flatten)]
        json: Json,
    },
    /// Delete an adapter, the record before it and its training state.
    Delete {
        /// Adapter
        #[command(flatten)]
        adapter: StoredArgs,
        /// Output
        #[command(flatten)]
        json: Json,
    },
    /// Bring back the record before the last save; again: undo that.
    Rollback {
        /// Adapter
        #[command(flatten)]
        adapter: StoredArgs,
        /// Output
        #[command(flatten)]
        json: Json,
    },
}

impl Adapters {
    fn json(&self) -> bool {
        match self {
            Adapters::List { json, .. }
            | Adapters::Export { json, .. }
            | Adapters::Import { json, .. }
            | Adapters::Delete { json, .. }
            | Adapters::Rollback { json, .. } => json.json,
        }
    }
}

/// Which adapter to use.
#[derive(Debug, Args)]
pub struct AdapterArgs {
    /// Use the adapter of this user
    #[arg(long, value_name = "NAME", requires = "store", value_parser = parse_user)]
    pub user: Option<String>,
    /// Which of the user's adapters [default: the one without a name]
    #[arg(long, value_name = "NAME", requires = "user", value_parser = parse_name)]
    pub name: Option<String>,
    /// The key under which the store is encrypted: a file of 32 random bytes, or of 64 hexadecimal digits
    #[arg(long, value_name = "FILE", requires = "store")]
    pub key_file: Option<PathBuf>,
    /// The folder where adapters are stored
    #[arg(long, value_name = "DIR", requires = "user")]
    pub store: Option<PathBuf>,
    /// Use this adapter: a record, or a PEFT folder
    #[arg(long, value_name = "FILE|PEFT_DIR", conflicts_with = "user")]
    pub adapter: Option<PathBuf>,
}

/// Arguments of `train`.
#[derive(Debug, Args)]
#[command(next_line_help = false)]
pub struct Train {
    /// The folder of an exported model
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// Arrays named after the model's inputs, and labels
    #[arg(long, value_name = "FILE.npz")]
    pub data: PathBuf,
    /// Start from the stored adapter although it was trained on another base, and say what the change costs
    #[arg(long, requires = "hold_back", conflicts_with_all = ["NewAdapter", "prototypes"])]
    pub allow_base_change: bool,
    /// The folder of the base that the stored adapter was trained on, to compare with
    #[arg(long, value_name = "DIR", requires = "allow_base_change")]
    pub old_base: Option<PathBuf>,
    /// Where the adapter goes; the store is created if it is not there
    #[command(flatten)]
    pub stored: StoredArgs,
    /// Adapter and its start
    #[command(flatten)]
    pub adapter: NewAdapter,
    /// Optimizer steps to take; 0 with --prototypes, for a head of class means as it is
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    pub steps: Option<u64>,
    /// Times to go through the data [default: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub epochs: Option<u64>,
    /// Samples of a step
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=MAX_SIZE))]
    pub batch_size: u32,
    /// Peak learning rate
    #[arg(long, value_name = "X", default_value_t = 1e-3, value_parser = parse_positive, allow_negative_numbers = true)]
    pub lr: f32,
    /// How the learning rate changes
    #[arg(long, value_name = "NAME", default_value = "constant", value_parser = schedule_names())]
    pub schedule: Schedule,
    /// Steps over which the learning rate rises from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub warmup: u64,
    /// Optimizer
    #[arg(long, value_name = "NAME", default_value = "adamw", value_parser = optimizer_names())]
    pub optimizer: String,
    /// Momentum of sgd [default: 0]
    #[arg(long, value_name = "X", value_parser = parse_fraction, allow_negative_numbers = true)]
    pub momentum: Option<f32>,
    /// Weight decay [default: 0.01 for adamw, 0 for sgd]
    #[arg(long, value_name = "X", value_parser = parse_not_negative, allow_negative_numbers = true)]
    pub weight_decay: Option<f32>,
    /// Largest global norm of the gradients
    #[arg(long, value_name = "X", value_parser = parse_positive, allow_negative_numbers = true)]
    pub clip_norm: Option<f32>,
    /// Batches whose gradients one step adds up
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub accumulate: u32,
    /// Loss [default: cross-entropy for integer labels, mse for float labels]
    #[arg(long, value_name = "NAME", value_parser = loss_names())]
    pub loss: Option<String>,
    /// Output of the model that the loss is taken of [default: the first]
    #[arg(long, value_name = "NAME")]
    pub output: Option<String>,
    /// Part of the samples to hold back; the adapter is stored only if it beats the base on them
    #[arg(long, value_name = "X", value_parser = parse_share, allow_negative_numbers = true)]
    pub hold_back: Option<f32>,
    /// How the record stores values
    #[arg(long, default_value = "f16", conflicts_with = "adapter_budget")]
    pub dtype: DtypeArg,
    /// Start the head at the means of its classes
    #[arg(long)]
    pub prototypes: bool,
    /// Keep the samples in their order
    #[arg(long)]
    pub no_shuffle: bool,
    /// Seed of the adapter's start, the order of samples and what is held back
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Write one JSON object a step
    #[arg(long, value_name = "FILE.jsonl")]
    pub log: Option<PathBuf>,
    /// Device
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Output
    #[command(flatten)]
    pub json: Json,
}

/// What adapter to train.
#[derive(Debug, Args)]
pub struct NewAdapter {
    /// Kind of adapter, or several such as lora+head [default: lora]
    #[arg(long, value_name = "KIND[+KIND...]", value_parser = parse_kinds)]
    pub kind: Option<String>,
    /// Classes of a head [default: 2]; with --init-adapter, new classes are added up to this number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub classes: Option<u16>,
    /// The tensor that a head reads [default: what the model's own classifier reads]
    #[arg(long, value_name = "TENSOR", conflicts_with = "init_adapter")]
    pub head_on: Option<String>,
    /// Choose kind, rank, points and dtype so that the record fits, such as 4KB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, conflicts_with_all = ["kind", "classes", "head_on", "rank", "rank_pattern", "alpha", "alpha_pattern", "rslora", "targets", "prompt_init", "init_adapter"])]
    pub adapter_budget: Option<usize>,
    /// Rank, or what the kind has in its place, as a bottleneck's width or a prompt's length [default: 4; 8 for these two; the
    /// basis's for lora-xs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub rank: Option<u16>,
    /// Other ranks at the points whose path matches
    #[arg(long, value_name = "GLOB=N,...", value_delimiter = ',', value_parser = parse_pattern::<u16>)]
    pub rank_pattern: Vec<(String, u16)>,
    /// Other alphas at the points whose path matches
    #[arg(long, value_name = "GLOB=X,...", value_delimiter = ',', value_parser = parse_pattern::<f32>)]
    pub alpha_pattern: Vec<(String, f32)>,
    /// Alpha; scaling is alpha / rank [default: 2 x rank]
    #[arg(long, value_name = "X", value_parser = parse_positive, allow_negative_numbers = true)]
    pub alpha: Option<f32>,
    /// Scale by alpha / sqrt(rank)
    #[arg(long)]
    pub rslora: bool,
    /// Only points whose path matches one of these globs [default: all points]
    #[arg(long, value_name = "GLOB,...", value_parser = parse_targets)]
    pub targets: Option<String>,
    /// Start a prompt from the embeddings of these token ids, repeated to its length
    #[arg(long, value_name = "ID,...", value_delimiter = ',')]
    pub prompt_init: Vec<u32>,
    /// Start from this adapter: a record, or a PEFT folder
    #[arg(long, value_name = "FILE|PEFT_DIR", conflicts_with_all = ["kind", "rank", "rank_pattern", "alpha", "alpha_pattern", "rslora", "targets", "prompt_init"])]
    pub init_adapter: Option<PathBuf>,
}

impl Train {
    /// What contradicts itself, where the parser cannot tell.
    pub fn conflict(&self) -> Option<String> {
        if self.momentum.is_some() && self.optimizer != "sgd" {
            return Some(format!("--momentum has no meaning for {}; use --optimizer sgd", self.optimizer));
        }
        if self.steps != Some(0) {
            return None;
        }
        match (self.prototypes, self.hold_back, &self.log) {
            (false, ..) => Some("--steps 0 trains nothing; take at least 1, or add --prototypes".to_owned()),
            (true, Some(_), _) => {
                Some("--hold-back judges training, and --steps 0 does none; leave one out".to_owned())
            }
            (true, None, Some(_)) => Some("--log is of steps, and --steps 0 takes none; leave one out".to_owned()),
            (true, None, None) => None,
        }
    }
}

/// Arguments of `predict`.
#[derive(Debug, Args)]
pub struct Predict {
    /// The folder of an exported model
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// Arrays named after the model's inputs
    #[arg(long, value_name = "FILE.npz")]
    pub data: PathBuf,
    /// Adapter
    #[command(flatten)]
    pub adapter: AdapterArgs,
    /// Where to write arrays named after the model's outputs
    #[arg(long, value_name = "FILE.npz")]
    pub out: PathBuf,
    /// Samples computed at once
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=MAX_SIZE))]
    pub batch_size: u32,
    /// Device
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Output
    #[command(flatten)]
    pub json: Json,
}

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct Eval {
    /// The folder of an exported model
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// Arrays named after the model's inputs, and labels
    #[arg(long, value_name = "FILE.npz")]
    pub data: PathBuf,
    /// Adapter
    #[command(flatten)]
    pub adapter: AdapterArgs,
    /// Loss [default: cross-entropy for integer labels, mse for float labels]
    #[arg(long, value_name = "NAME", value_parser = loss_names())]
    pub loss: Option<String>,
    /// Output of the model that the loss is taken of [default: the first]
    #[arg(long, value_name = "NAME")]
    pub output: Option<String>,
    /// Samples computed at once
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=MAX_SIZE))]
    pub batch_size: u32,
    /// Device
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Output
    #[command(flatten)]
    pub json: Json,
}

/// Arguments of `devices`.
#[derive(Debug, Args)]
pub struct Devices {
    /// CPU threads [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Output
    #[command(flatten)]
    pub json: Json,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// The folder of an exported model
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// Samples of a step
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_SIZE))]
    pub batch_size: u32,
    /// Size of every other open dimension, such as the tokens of a sample
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_SIZE))]
    pub seq: Option<u32>,
    /// Adapter
    #[command(flatten)]
    pub adapter: NewAdapter,
    /// Output of the model that the loss is taken of [default: the first]
    #[arg(long, value_name = "NAME")]
    pub output: Option<String>,
    /// Training steps and predictions to time, after as many as a fifth to warm up
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
    /// Device
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Output
    #[command(flatten)]
    pub json: Json,
}

/// How a record stores values.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DtypeArg {
    /// 4 bytes an element
    F32,
    /// 2 bytes an element
    F16,
    /// 1 byte an element, and a scale for each unit of rank
    Int8,
    /// Half a byte an element, and a scale for each unit of rank
    Int4,
}

impl From<DtypeArg> for Dtype {
    fn from(dtype: DtypeArg) -> Self {
        match dtype {
            DtypeArg::F32 => Dtype::F32,
            DtypeArg::F16 => Dtype::F16,
            DtypeArg::Int8 => Dtype::Int8,
            DtypeArg::Int4 => Dtype::Int4,
        }
    }
}

fn loss_names() -> clap::builder::PossibleValuesParser {
    train::losses::ALL.iter().map(|loss| loss.name()).collect::<Vec<_>>().into()
}

fn optimizer_names() -> clap::builder::PossibleValuesParser {
    train::optimizers::ALL.iter().map(|optimizer| optimizer.name()).collect::<Vec<_>>().into()
}

fn parse_device(text: &str) -> Result<Device, String> {
    text.parse().map_err(|error: inlay_runtime::device::ParseDeviceError| error.to_string())
}

fn schedule_names() -> impl TypedValueParser<Value = Schedule> {
    let names: clap::builder::PossibleValuesParser = Schedule::ALL.map(|schedule| schedule.name()).into();
    names.map(|name| {
        Schedule::ALL.into_iter().find(|schedule| schedule.name() == name).expect("the parser knows these names only")
    })
}

fn parse_share(text: &str) -> Result<f32, String> {
    parse_number(text, |x| x > 0.0 && x < 1.0, "a number above 0 and below 1")
}

fn parse_user(text: &str) -> Result<String, String> {
    store::check_user(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

fn parse_name(text: &str) -> Result<String, String> {
    store::check_name(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

fn parse_targets(text: &str) -> Result<String, String> {
    Targets::parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Kinds joined by `+`, each once.
fn parse_kinds(text: &str) -> Result<String, String> {
    let known = || adapters::KINDS.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ");
    let kinds: Vec<&str> = text.split('+').collect();
    for (i, kind) in kinds.iter().enumerate() {
        if adapters::find(kind).is_none() {
            return Err(format!("there is no adapter kind \"{kind}\"; use one of: {}", known()));
        }
        if kinds[..i].contains(kind) {
            return Err(format!("{kind} is there twice"));
        }
    }
    Ok(text.to_owned())
}

/// A glob and a value, as in `*.query=8`.
fn parse_pattern<T: std::str::FromStr>(text: &str) -> Result<(String, T), String> {
    let pair = text.rsplit_once('=').and_then(|(glob, value)| Some((glob.to_owned(), value.parse().ok()?)));
    pair.ok_or_else(|| "expected GLOB=NUMBER, such as '*.query=8'".to_owned())
}

/// A number of bytes such as `900`, `4KB` or `1MB`; KB are 1024 bytes.
fn parse_bytes(text: &str) -> Result<usize, String> {
    const UNITS: [(&str, usize); 3] = [("MB", 1 << 20), ("KB", 1 << 10), ("B", 1)];
    let (number, unit) =
        UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit))).unwrap_or((text, 1));
    let bytes = number.trim().parse::<usize>().ok().and_then(|n| n.checked_mul(unit)).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "expected a number of bytes such as 900 or 4KB".to_owned())
}

fn parse_number(text: &str, fits: impl Fn(f32) -> bool, expected: &str) -> Result<f32, String> {
    text.parse().ok().filter(|x: &f32| x.is_finite() && fits(*x)).ok_or_else(|| format!("expected {expected}"))
}

fn parse_positive(text: &str) -> Result<f32, String> {
    parse_number(text, |x| x > 0.0, "a number above 0")
}

fn parse_not_negative(text: &str) -> Result<f32, String> {
    parse_number(text, |x| x >= 0.0, "a number of at least 0")
}

fn parse_fraction(text: &str) -> Result<f32, String> {
    parse_number(text, |x| (0.0..1.0).contains(&x), "a number from 0 to below 1")
}

/// A duration such as `1ns`, `20us`, `1.5ms`, `10s` or `2m`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 5] = [("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0)];
    let parse = || {
        let (number, seconds) = UNITS.iter().find_map(|(unit, s)| Some((text.strip_suffix(unit)?, s)))?;
        Duration::try_from_secs_f64(number.trim().parse::<f64>().ok()? * seconds).ok().filter(|d| !d.is_zero())
    };
    parse().ok_or_else(|| "expected a duration such as 500ms or 10s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn kinds_patterns_and_bytes() {
        assert_eq!(parse_kinds("lora+head").as_deref(), Ok("lora+head"));
        for bad in ["", "lora+", "dora", "lora+lora"] {
            assert!(parse_kinds(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_pattern("*.query=8"), Ok(("*.query".to_owned(), 8u16)));
        assert!(parse_pattern::<u16>("8").is_err() && parse_pattern::<u16>("a=b").is_err());
        assert_eq!((parse_bytes("900"), parse_bytes("4KB"), parse_bytes("2 MB")), (Ok(900), Ok(4096), Ok(2 << 20)));
        for bad in ["", "KB", "-1", "0", "99999999999999999999", "4GB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("1ns"), Ok(Duration::from_nanos(1)));
        assert_eq!(parse_duration("1.5ms"), Ok(Duration::from_micros(1500)));
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "s", "10", "-1s", "1e400s", "nans", "0s", "5h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
