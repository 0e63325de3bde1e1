//! Commands on adapters: `merge`, `import-peft`, `export-peft`, `export-ort`, `export-gguf`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use inlay_converter::error::{Error, Result};
use inlay_converter::interop::{self, ARCHITECTURES, Architecture, Heads};
use inlay_converter::merge::merge;
use inlay_converter::write::{DATA_FILE, MODEL_FILE};
use inlay_runtime::merge::MergeOptions;
use inlay_runtime::peft::Prefix;
use inlay_runtime::{Adapter, Base, Dtype};
use serde::Serialize;

/// An adapter and the base that it was trained on.
#[derive(Args)]
pub struct OnBase {
    /// A record, or a PEFT folder
    adapter: PathBuf,
    /// The exported folder that the adapter belongs to
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// What to write
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Commands on adapters.
#[derive(Subcommand)]
pub enum AdapterCommand {
    /// Merge an adapter into its base: plain ONNX without insertion points
    Merge {
        #[command(flatten)]
        on: OnBase,
        /// Store merged weights as floats of this kind, instead of quantizing them anew
        #[arg(long, value_name = "SCHEME", num_args = 0..=1, default_missing_value = "f32")]
        keep_float: Option<String>,
    },
    /// Turn a PEFT folder into an adapter record
    ImportPeft {
        #[command(flatten)]
        on: OnBase,
        /// How the record stores its values
        #[arg(long, default_value = "f32", value_parser = dtype)]
        dtype: Dtype,
    },
    /// Write an adapter as a PEFT folder, for PyTorch
    ExportPeft {
        #[command(flatten)]
        on: OnBase,
    },
    /// Write an adapter as an .onnx_adapter file, for onnxruntime
    ExportOrt {
        #[command(flatten)]
        on: OnBase,
    },
    /// Write a LoRA adapter as a GGUF file, for llama.cpp
    ExportGguf {
        #[command(flatten)]
        on: OnBase,
        /// Model family
        #[arg(long, value_name = "NAME", value_parser = architecture)]
        arch: &'static Architecture,
        /// Attention heads, for families whose heads llama.cpp interleaves
        #[arg(long, value_name = "N", requires = "kv_heads")]
        heads: Option<u32>,
        /// Attention heads of keys and values
        #[arg(long, value_name = "N", requires = "heads")]
        kv_heads: Option<u32>,
    },
}

fn dtype(name: &str) -> Result<Dtype, String> {
    let known = || Dtype::ALL.map(Dtype::name).join(", ");
    Dtype::ALL.into_iter().find(|dtype| dtype.name() == name).ok_or_else(|| format!("expected one of: {}", known()))
}

fn architecture(name: &str) -> Result<&'static Architecture, String> {
    let known = || ARCHITECTURES.iter().map(|architecture| architecture.name).collect::<Vec<_>>().join(", ");
    Architecture::find(name).ok_or_else(|| format!("expected one of: {}", known()))
}

/// What was written, for machines.
#[derive(Serialize)]
struct Written {
    out: PathBuf,
    points: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
}

impl AdapterCommand {
    /// What every command has.
    pub fn on(&self) -> &OnBase {
        match self {
            AdapterCommand::Merge { on, .. }
            | AdapterCommand::ImportPeft { on, .. }
            | AdapterCommand::ExportPeft { on }
            | AdapterCommand::ExportOrt { on }
            | AdapterCommand::ExportGguf { on, .. } => on,
        }
    }
}

/// Runs a command; gives what it prints.
pub fn run(command: AdapterCommand) -> Result<String> {
    let on = command.on();
    expect_no_input(on)?;
    let base = interop::open_base(&on.base)?;
    let (adapter, prefix) = interop::open_adapter(&base, &on.adapter)?;
    // Other programs know no bases of LoRA-XS.
    let adapter = interop::expanded(&base, &adapter, &on.adapter)?;
    let bytes = match &command {
        AdapterCommand::Merge { keep_float, .. } => return run_merge(&base, &adapter, on, keep_float.as_deref()),
        AdapterCommand::ImportPeft { dtype, .. } => Some(interop::write_record(&adapter, *dtype, &on.out)?),
        AdapterCommand::ExportPeft { .. } => {
            interop::export_peft(&base, &adapter, &on.out)?;
            None
        }
        AdapterCommand::ExportOrt { .. } => Some(interop::export_ort(&base, &adapter, &on.out)?),
        AdapterCommand::ExportGguf { arch, heads, kv_heads, .. } => {
            let heads = heads.zip(*kv_heads).map(|(queries, keys)| Heads { queries, keys });
            Some(interop::export_gguf(&base, &adapter, arch, heads, &on.out)?)
        }
    };
    let points = adapter.points().count();
    let prefix = prefix.filter(|prefix| *prefix != Prefix::None).map(|prefix| prefix.to_string());
    if on.json {
        return Ok(crate::json(&Written { out: on.out.clone(), points, bytes, prefix }));
    }
    let mut text = prefix.map(|prefix| format!("note: {prefix}\n")).unwrap_or_default();
    let bytes = bytes.map(|bytes| format!(", {bytes} bytes")).unwrap_or_default();
    text += &format!("{}: {points} points{bytes}\n", on.out.display());
    Ok(text)
}

/// What is read is not written over.
fn expect_no_input(OnBase { adapter, base, out, .. }: &OnBase) -> Result<()> {
    let Ok(written) = out.canonicalize() else { return Ok(()) };
    let model = if base.is_dir() { base.join(MODEL_FILE) } else { base.clone() };
    let inputs = [adapter.clone(), base.join(DATA_FILE), model];
    match inputs.iter().any(|input| input.canonicalize().is_ok_and(|input| input == written)) {
        true => Err(Error::Place { path: out.clone(), detail: "is an input of this command; choose another --out" }),
        false => Ok(()),
    }
}

fn run_merge(base: &Base, adapter: &Adapter, on: &OnBase, keep_float: Option<&str>) -> Result<String> {
    let options = keep_float.map(MergeOptions::keep_float).transpose()?.unwrap_or_default();
    let report = merge(base, &on.base, adapter, &options, &on.out)?;
    Ok(if on.json { crate::json(&report) } else { report.text() })
}
