//! The export from end to end.

use std::fs;
use std::path::{Path, PathBuf};

use inlay_format::metadata::FORMAT_KEY;

use crate::canonicalize::canonicalize;
use crate::error::{Error, Result, io};
use crate::insert::insert;
use crate::points::{candidates, select};
use crate::quantize::{Quant, quantize};
use crate::read::read;
use crate::report::{PackedWeight, Report, Skipped, bytes, notes};
use crate::verify::{MAX_VERIFIED_BYTES, smoke_test, verify};
use crate::write::{DATA_FILE, MODEL_FILE, write_model, write_weights};

/// What to export, where to, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The ONNX file.
    pub model: PathBuf,
    /// The folder to write; made if it is not there.
    pub out: PathBuf,
    /// How weights are stored.
    pub quant: Quant,
    /// Globs over module paths that choose the insertion points; all that can be trained if empty.
    pub targets: Vec<String>,
    /// Real inputs for the verification, a `.npz`.
    pub samples: Option<PathBuf>,
    /// Largest absolute difference that quantization may make at any output.
    pub max_error: Option<f32>,
}

/// What the export is doing, for progress bars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading and rewriting the graph.
    Read,
    /// Writing weights: bytes of the source done, and in all.
    Write(u64, u64),
    /// Comparing with the source.
    Verify,
}

/// Exports a model. Nothing is written to `options.out` before everything is verified.
///
/// # Errors
/// If the model cannot be read, is not supported, or the result differs from it; `options.out` is then as it was.
pub fn export(options: &Options, progress: &dyn Fn(Stage)) -> Result<Report> {
    progress(Stage::Read);
    let source = read(&options.model)?;
    if source.metadata.contains_key(FORMAT_KEY) {
        return Err(Error::Invalid("the model was written by converter export; export its source instead".into()));
    }
    expect_replaceable(&options.out)?;
    let canonical = canonicalize(&source)?;
    let all = candidates(&canonical);
    let chosen = select(&all, &options.targets)?;

    let mut graph = canonical.clone();
    let points = insert(&mut graph, &chosen)?;
    let packing = quantize(&mut graph, options.quant);

    let folder = temporary_folder(&options.out)?;
    let total: u64 = graph.constants.values().map(|t| t.byte_len() as u64).sum();
    let done = std::cell::Cell::new(0);
    let written = write_weights(&graph, &packing, folder.path(), &|n| {
        done.set(done.get() + n);
        progress(Stage::Write(done.get(), total));
    })?;
    let packed = packing
        .layouts
        .keys()
        .map(|name| PackedWeight { name: name.clone(), shape: canonical.constants[name].dims().to_vec() });
    let kept = packing.kept.into_iter().filter(|k| canonical.constants.contains_key(&k.name));
    let mut report = Report {
        source: options.model.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        producer: source.producer.clone(),
        quant: options.quant,
        source_bytes: source.bytes,
        model_bytes: 0,
        data_bytes: written.data_bytes,
        packed: packed.collect(),
        kept: kept.collect(),
        points: chosen.iter().map(Into::into).collect(),
        skipped: all.iter().filter_map(Skipped::of).collect(),
        outputs: Vec::new(),
        not_verified: None,
        notes: notes(options.quant, &chosen),
    };
    write_model(&written, &points, "{}", folder.path())?;
    progress(Stage::Verify);
    let samples = options.samples.as_deref();
    if source.bytes > MAX_VERIFIED_BYTES {
        smoke_test(&canonical, folder.path(), samples)?;
        let limit = bytes(MAX_VERIFIED_BYTES);
        report.not_verified = Some(format!(
            "the source is larger than {limit}, so the reference did not run it; the exported model runs and gives numbers"
        ));
    } else {
        report.outputs = verify(&source, &canonical, folder.path(), samples, options.max_error)?;
    }
    report.model_bytes = write_model(&written, &points, &report.metadata(), folder.path())?;
    publish(folder, &options.out)?;
    Ok(report)
}

/// Only an earlier export may be replaced: another model in `out` may be the source itself.
fn expect_replaceable(out: &Path) -> Result<()> {
    let (model, data) = (out.join(MODEL_FILE), out.join(DATA_FILE));
    let is_export = || read(&model).is_ok_and(|m| m.metadata.contains_key(FORMAT_KEY));
    if (model.exists() || data.exists()) && !is_export() {
        let path = if model.exists() { model } else { data };
        let detail = "was not written by converter export and would be replaced; choose another --out".to_owned();
        return Err(Error::NotExported { path, detail });
    }
    Ok(())
}

/// A folder beside `out`, so that moving it there is a rename; it vanishes if it is not moved.
fn temporary_folder(out: &Path) -> Result<tempfile::TempDir> {
    let parent = match out.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(io(parent))?;
    tempfile::Builder::new().prefix(".inlay-export-").tempdir_in(parent).map_err(io(parent))
}

/// Moves the finished files to `out`.
fn publish(folder: tempfile::TempDir, out: &Path) -> Result<()> {
    if !out.exists() {
        open_to_readers(folder.path())?;
        fs::rename(folder.path(), out).map_err(io(out))?;
        let _ = folder.keep();
    } else {
        // The old graph names its weights by a fingerprint: until the second rename it refuses the new ones.
        for file in [DATA_FILE, MODEL_FILE] {
            fs::rename(folder.path().join(file), out.join(file)).map_err(io(out))?;
        }
    }
    sync_folder(out)
}

/// Temporary folders are for their owner only; an exported one has the rights of any new folder.
#[cfg(unix)]
fn open_to_readers(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let parent = folder.parent().unwrap_or(Path::new("."));
    let mode = fs::metadata(parent).map_err(io(parent))?.permissions().mode() & 0o777;
    fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o700)).map_err(io(folder))
}

#[cfg(not(unix))]
fn open_to_readers(_: &Path) -> Result<()> {
    Ok(())
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> Result<()> {
    fs::File::open(folder).and_then(|f| f.sync_all()).map_err(io(folder))
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> Result<()> {
    Ok(())
}
