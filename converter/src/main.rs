//! The command line of the converter.
#![forbid(unsafe_code)]

mod adapters;

use std::io::{IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use inlay_converter::check::check;
use inlay_converter::export::{Options, Stage, export};
use inlay_converter::inspect::inspect;
use inlay_converter::kinds::{Activation, Kind, Kinds, Places};
use inlay_converter::quantize::{INT4_BLOCK, Quant, Quantization, Rule};
use inlay_runtime::adapters::Targets;

/// A trained ONNX model in, a frozen quantized base with insertion points for adapters out.
#[derive(Parser)]
#[command(name = "converter", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write model.onnx and model.onnx.data, verified against the source
    Export(Box<ExportArgs>),
    /// Say whether a model can be exported, what blocks it, and where adapters could go; exit code 1 if it cannot
    Check {
        /// The ONNX file
        model: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List insertion points, sizes, and operators with whether they can be trained through
    Inspect {
        /// An exported folder, or any ONNX file
        path: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Print a page
        #[arg(long, conflicts_with = "json")]
        html: bool,
    },
    #[command(flatten)]
    Adapter(adapters::AdapterCommand),
}

#[derive(clap::Args)]
struct ExportArgs {
    /// The ONNX file, operator sets 13 to 23
    model: PathBuf,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How weights are stored
    #[arg(long, value_enum, default_value = "int8")]
    quant: QuantArg,
    /// Another scheme for modules whose path matches; may be given several times, the last match counts
    #[arg(long, value_name = "GLOB=SCHEME")]
    quant_rule: Vec<Rule>,
    /// Elements of an int4 block
    #[arg(long, value_name = "N", default_value_t = INT4_BLOCK, value_parser = int4_block)]
    int4_block: usize,
    /// How int4 scales are found
    #[arg(long, value_enum, default_value = "search")]
    int4_method: Int4MethodArg,
    /// Write int4 as DequantizeLinear of operator set 21, not as com.microsoft.MatMulNBits
    #[arg(long)]
    qdq: bool,
    /// Modules that get a LoRA point: globs over their paths, separated by commas; lookups of embeddings only by globs that match no
    /// linear [default: all linears and convolutions that can be trained]
    #[arg(long, value_name = "GLOB,...", value_parser = globs)]
    targets: Option<Globs>,
    /// Adapter kinds to prepare for in the file; onnxruntime can run these
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', default_value = "lora")]
    kinds: Vec<KindArg>,
    /// Add what LoRA-XS needs at every linear: the first N singular directions of its weight, as int8
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    basis: Option<u16>,
    /// Modules whose outputs (IA)3 scales [default: keys and values, by their names; none if --ia3-feedforward is given]
    #[arg(long, value_name = "GLOB,...", value_parser = globs)]
    ia3_targets: Option<Globs>,
    /// Modules whose inputs (IA)3 scales [default: the last linear of each feed-forward network; none if --ia3-targets is
    /// given]
    #[arg(long, value_name = "GLOB,...", value_parser = globs)]
    ia3_feedforward: Option<Globs>,
    /// Modules that a bottleneck follows [default: by --bottleneck-places]
    #[arg(long, value_name = "GLOB,...", value_parser = globs)]
    bottleneck_targets: Option<Globs>,
    /// After which sub-layers of a transformer bottlenecks go [default: pfeiffer]
    #[arg(long, value_enum, value_name = "PLACES", conflicts_with = "bottleneck_targets")]
    bottleneck_places: Option<PlacesArg>,
    /// Nonlinearity of bottlenecks [default: relu]
    #[arg(long, value_enum, value_name = "FUNCTION")]
    bottleneck_activation: Option<ActivationArg>,
    /// Real inputs for the verification: arrays named after the model's inputs [default: generated]
    #[arg(long, value_name = "FILE.npz")]
    samples: Option<PathBuf>,
    /// Scale weights by what they meet on these inputs before they are quantized (AWQ), where a norm or linear before them can take
    /// the inverse; arrays named after the model's inputs
    #[arg(long, value_name = "FILE.npz")]
    calibrate: Option<PathBuf>,
    /// Fail if quantization moves any output by more
    #[arg(long, value_name = "X", value_parser = positive)]
    max_error: Option<f32>,
    /// Take a decoder's cache out: the inputs named past... and the outputs that continue them
    #[arg(long)]
    no_kv_cache: bool,
    /// Write the report as a page
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum QuantArg {
    /// Symmetric int8, one scale per output channel or table row
    Int8,
    /// int4 in blocks for linears; int8 for tables, convolutions and the output head
    Int4,
    /// Half precision
    F16,
    /// f32, as the source has them
    None,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Int4MethodArg {
    /// Symmetric, the scale with the least squared error
    Search,
    /// Half-quadratic quantization: zero points, for skewed weights
    Hqq,
}

#[derive(Clone, Copy, ValueEnum)]
enum KindArg {
    /// Low-rank adaptation
    Lora,
    /// (IA)3: factors of keys, values and feed-forward inputs
    Ia3,
    /// Bottleneck adapters: down, nonlinearity, up, residual
    Bottleneck,
    /// Prompt tuning: virtual tokens before the words
    Prompt,
}

#[derive(Clone, Copy, ValueEnum)]
enum PlacesArg {
    /// After attention and after the feed-forward network
    Houlsby,
    /// After the feed-forward network
    Pfeiffer,
}

#[derive(Clone, Copy, ValueEnum)]
enum ActivationArg {
    Relu,
    Gelu,
}

impl ExportArgs {
    /// What `--kinds` and the options of single kinds ask for; an option of a kind that is not asked for is an error.
    fn kinds(&self) -> Result<Kinds, String> {
        let chosen: Vec<Kind> = self
            .kinds
            .iter()
            .map(|kind| match kind {
                KindArg::Lora => Kind::Lora,
                KindArg::Ia3 => Kind::Ia3,
                KindArg::Bottleneck => Kind::Bottleneck,
                KindArg::Prompt => Kind::Prompt,
            })
            .collect();
        let given = [
            ("--targets", Kind::Lora, self.targets.is_some()),
            ("--ia3-targets", Kind::Ia3, self.ia3_targets.is_some()),
            ("--ia3-feedforward", Kind::Ia3, self.ia3_feedforward.is_some()),
            ("--bottleneck-targets", Kind::Bottleneck, self.bottleneck_targets.is_some()),
            ("--bottleneck-places", Kind::Bottleneck, self.bottleneck_places.is_some()),
            ("--bottleneck-activation", Kind::Bottleneck, self.bottleneck_activation.is_some()),
        ];
        if let Some((option, kind, _)) = given.iter().find(|(_, kind, given)| *given && !chosen.contains(kind)) {
            return Err(format!("{option} is for adapters of kind {0}; add {0} to --kinds", kind.name()));
        }
        Ok(Kinds {
            chosen,
            ia3_targets: patterns(&self.ia3_targets),
            ia3_feedforward: patterns(&self.ia3_feedforward),
            bottleneck_targets: patterns(&self.bottleneck_targets),
            bottleneck_places: match self.bottleneck_places {
                Some(PlacesArg::Houlsby) => Places::Houlsby,
                Some(PlacesArg::Pfeiffer) | None => Places::Pfeiffer,
            },
            bottleneck_activation: match self.bottleneck_activation {
                Some(ActivationArg::Gelu) => Activation::Gelu,
                Some(ActivationArg::Relu) | None => Activation::Relu,
            },
        })
    }
}

#[derive(Clone)]
struct Globs(Vec<String>);

/// The patterns that were given, if any.
fn patterns(globs: &Option<Globs>) -> Vec<String> {
    globs.as_ref().map_or_else(Vec::new, |globs| globs.0.clone())
}

fn globs(text: &str) -> Result<Globs, String> {
    let patterns: Vec<&str> = Targets::split(text).collect();
    Targets::new(&patterns).map_err(|e| e.to_string())?;
    Ok(Globs(patterns.into_iter().map(|pattern| pattern.trim().to_owned()).collect()))
}

fn positive(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if x >= 0.0 && x.is_finite() => Ok(x),
        _ => Err("expected a number that is not negative".into()),
    }
}

fn int4_block(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if n.is_power_of_two() && (16..=256).contains(&n) => Ok(n),
        _ => Err("expected 16, 32, 64, 128 or 256".into()),
    }
}

fn main() -> ExitCode {
    // A panic of the reference implementation is caught and becomes an error; its own message would only confuse.
    std::panic::set_hook(Box::new(|_| {}));
    let cli = Cli::parse();
    let json = match &cli.command {
        Command::Export(args) => args.json,
        Command::Check { json, .. } | Command::Inspect { json, .. } => *json,
        Command::Adapter(command) => command.on().json,
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| match cli.command {
        Command::Export(args) => run_export(*args).map(|()| true),
        Command::Check { model, json } => run_check(&model, json),
        Command::Inspect { path, json, html } => run_inspect(&path, json, html).map(|()| true),
        Command::Adapter(command) => {
            adapters::run(command).map_err(|e| e.to_string()).and_then(|text| print(&text)).map(|()| true)
        }
    }));
    match outcome {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) => ExitCode::FAILURE,
        Ok(Err(message)) => fail(&message, json),
        Err(panic) => {
            let detail = panic.downcast_ref::<String>().map(String::as_str);
            fail(&format!("internal error, please report it: {}", detail.unwrap_or("no detail")), json)
        }
    }
}

fn fail(message: &str, json: bool) -> ExitCode {
    if json {
        eprintln!("{}", serde_json::json!({ "error": message }));
    } else {
        eprintln!("error: {message}");
    }
    ExitCode::FAILURE
}

fn run_export(args: ExportArgs) -> Result<(), String> {
    let kinds = args.kinds().unwrap_or_else(|e| Cli::command().error(ErrorKind::ArgumentConflict, e).exit());
    let options = Options {
        kinds,
        model: args.model,
        out: args.out,
        quant: Quantization {
            default: match args.quant {
                QuantArg::Int8 => Quant::Int8,
                QuantArg::Int4 => Quant::Int4,
                QuantArg::F16 => Quant::F16,
                QuantArg::None => Quant::None,
            },
            rules: args.quant_rule,
            int4_block: args.int4_block,
            hqq: args.int4_method == Int4MethodArg::Hqq,
            qdq: args.qdq,
        },
        targets: args.targets.map(|globs| globs.0).unwrap_or_default(),
        report: args.report,
        samples: args.samples,
        calibrate: args.calibrate,
        basis: args.basis,
        max_error: args.max_error,
        no_kv_cache: args.no_kv_cache,
    };
    let progress = Progress::start();
    let report = export(&options, &|stage| progress.show(stage));
    progress.bar.finish_and_clear();
    let report = report.map_err(|e| e.to_string())?;
    print(&if args.json { json(&report) } else { report.text() })
}

/// Whether the model can be exported.
fn run_check(model: &std::path::Path, as_json: bool) -> Result<bool, String> {
    let verdict = check(model).map_err(|e| e.to_string())?;
    print(&if as_json { json(&verdict) } else { verdict.text() })?;
    Ok(verdict.exportable)
}

fn run_inspect(path: &std::path::Path, as_json: bool, as_html: bool) -> Result<(), String> {
    let inspection = inspect(path).map_err(|e| e.to_string())?;
    print(&match (as_json, as_html) {
        (true, _) => json(&inspection),
        (_, true) => inspection.html(),
        _ => inspection.text(),
    })
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("reports have string keys and plain values") + "\n"
}

/// Prints to stdout; a reader that closes the pipe early is no error.
fn print(text: &str) -> Result<(), String> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(format!("stdout: {e}")),
        _ => Ok(()),
    }
}

/// A bar on stderr for people, once the export takes longer than a second.
struct Progress {
    bar: ProgressBar,
    started: Instant,
}

impl Progress {
    fn start() -> Progress {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(1) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{msg:22} {wide_bar} {bytes}/{total_bytes}");
        bar.set_style(style.expect("the template is valid"));
        Progress { bar, started: Instant::now() }
    }

    fn show(&self, stage: Stage) {
        if self.started.elapsed() < Duration::from_secs(1) && stage != Stage::Verify {
            return;
        }
        match stage {
            Stage::Read => self.bar.set_message("reading"),
            Stage::Calibrate => self.bar.set_message("calibrating"),
            Stage::Write(done, total) => {
                self.bar.set_message("writing weights");
                self.bar.set_length(total);
                self.bar.set_position(done);
            }
            Stage::Verify => self.bar.set_message("comparing with source"),
        }
    }
}
