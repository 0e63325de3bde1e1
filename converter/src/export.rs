//! The export from end to end.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use inlay_format::metadata::FORMAT_KEY;
use inlay_format::points::PointOp;
use inlay_runtime::{Base, Verify};

use crate::arithmetic::trained_on;
use crate::basis;
use crate::calibrate::calibrate;
use crate::canonicalize::{canonicalize, note_of_halves};
use crate::drawing;
use crate::error::{Error, Result, io};
use crate::insert::insert;
use crate::kinds::{Kinds, choose};
use crate::kv_cache;
use crate::points::{candidates, lookups};
use crate::quantize::{Quantization, Site, quantize};
use crate::read::read;
use crate::report::{PackedWeight, PointReport, Report, Skipped, bytes, notes};
use crate::verify::{MAX_VERIFIED_BYTES, PackedGraph, verify, verify_large};
use crate::write::{DATA_FILE, MODEL_FILE, write_model, write_weights};

/// What to export, where to, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The ONNX file.
    pub model: PathBuf,
    /// The folder to write; made if it is not there.
    pub out: PathBuf,
    /// How weights are stored.
    pub quant: Quantization,
    /// Globs over module paths that choose LoRA's insertion points; all that can be trained if empty.
    pub targets: Vec<String>,
    /// The adapter kinds to prepare for, and where.
    pub kinds: Kinds,
    /// Real inputs for the verification, a `.npz`.
    pub samples: Option<PathBuf>,
    /// Real inputs for which linears are scaled before they are quantized, a `.npz`.
    pub calibrate: Option<PathBuf>,
    /// Rank of the bases for LoRA-XS, one at every linear among the points; none if there is none.
    pub basis: Option<u16>,
    /// Largest absolute difference that quantization may make at any output.
    pub max_error: Option<f32>,
    /// Where to write the report as a page.
    pub report: Option<PathBuf>,
    /// Whether a decoder's cache of keys and values is taken out.
    pub no_kv_cache: bool,
}

/// What the export is doing, for progress bars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading and rewriting the graph.
    Read,
    /// Running the model on the calibration inputs, and choosing factors.
    Calibrate,
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
    let mut source = read(&options.model)?;
    if source.metadata.contains_key(FORMAT_KEY) {
        return Err(Error::Invalid("the model was written by converter export; export its source instead".into()));
    }
    let out = resolve(&options.out)?;
    expect_replaceable(&out)?;
    let page = options.report.as_deref().map(|path| Page::create(path, &options.model)).transpose()?;
    if options.no_kv_cache {
        kv_cache::remove(&mut source)?;
    }
    let canonical = canonicalize(&source)?;
    let mut all = candidates(&canonical);
    all.extend(lookups(&canonical, &all));
    let chosen = choose(&canonical, &all, &options.targets, &options.kinds)?;

    let sites = Site::all(&canonical);
    let temporary = temporary_folder(&out)?;
    let folder = temporary.folder.path();
    let calibrated = options.calibrate.as_deref().map(|file| {
        progress(Stage::Calibrate);
        calibrate(&canonical, &sites, &options.quant, file, folder.parent().unwrap_or(Path::new(".")))
    });
    let calibrated = calibrated.transpose()?;
    let mut graph = calibrated.as_ref().map_or(&canonical, |calibrated| &calibrated.graph).clone();
    let mut points = insert(&mut graph, &chosen, options.kinds.bottleneck_activation)?;
    let packing = quantize(&mut graph, &sites, &options.quant)?;
    if let Some(rank) = options.basis {
        basis::add(&mut graph, &mut points, &packing, usize::from(rank))?;
    }

    let total: u64 = graph.constants.values().map(|t| t.byte_len() as u64).sum();
    let done = std::cell::Cell::new(0);
    let written = write_weights(&graph, &packing, folder, &|n| {
        done.set(done.get() + n);
        progress(Stage::Write(done.get(), total));
    })?;
    let packed = packing.weights.iter().map(|(name, storage)| {
        let source = &canonical.constants[name];
        PackedWeight {
            name: name.clone(),
            paths: sites.get(name).map_or(Vec::new(), |site| site.paths.clone()),
            shape: source.dims().to_vec(),
            scheme: storage.scheme.name(),
            source_bytes: source.source_byte_len() as u64,
            bytes: written.packed[name].bytes,
            error: written.packed[name].error,
            reason: storage.reason.clone(),
        }
    });
    let kept = packing.kept.iter().filter(|k| canonical.constants.contains_key(&k.name)).cloned();
    let told = notes(&packing, chosen.iter().map(|c| &c.candidate));
    let mut report = Report {
        source: options.model.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        producer: source.producer.clone(),
        quant: options.quant.default,
        rules: options.quant.rules.clone(),
        source_bytes: source.bytes,
        model_bytes: 0,
        data_bytes: written.data_bytes,
        packed: packed.collect(),
        kept: kept.collect(),
        points: points.iter().zip(&chosen).map(|(p, c)| PointReport::new(p, c.candidate.source.describe())).collect(),
        trained: Vec::new(),
        skipped: all.iter().filter(|c| c.op != PointOp::Embedding).filter_map(Skipped::of).collect(),
        outputs: Vec::new(),
        calibration: None,
        not_verified: None,
        notes: note_of_halves(&source.graph).into_iter().chain(told).collect(),
        drawing: drawing::svg(&canonical, &chosen.iter().map(|c| c.candidate.path.as_str()).collect()),
    };
    write_model(&written, &points, "{}", folder)?;
    progress(Stage::Verify);
    report.calibration = calibrated.map(|calibrated| calibrated.report(folder)).transpose()?;
    let samples = options.samples.as_deref();
    if source.bytes > MAX_VERIFIED_BYTES {
        // All that maps the source goes, so that one form of the model is in memory at a time.
        drop((source, graph));
        report.outputs = verify_large(canonical, folder, samples, options.max_error)?;
        let limit = bytes(MAX_VERIFIED_BYTES);
        report.not_verified = Some(format!(
            "the source is larger than {limit}, so the reference did not run it; the exported model is compared with its \
             float form in the runtime"
        ));
    } else {
        let packed = PackedGraph { graph: &graph, packing: &packing };
        report.outputs = verify(&source, packed, folder, samples, options.max_error)?;
    }
    report.trained = trained_on(&Base::open(folder, Verify::Graph)?, &report.points);
    report.model_bytes = write_model(&written, &points, &report.metadata(), folder)?;
    let page = page.map(|page| page.fill(&report.html())).transpose()?;
    publish(temporary, &out)?;
    page.map(Page::publish).transpose()?;
    Ok(report)
}

/// Only an earlier export may be replaced: another model in `out` may be the source itself.
pub(crate) fn expect_replaceable(out: &Path) -> Result<()> {
    let (model, data) = (out.join(MODEL_FILE), out.join(DATA_FILE));
    let is_export = || read(&model).is_ok_and(|m| m.metadata.contains_key(FORMAT_KEY));
    if (model.exists() || data.exists()) && !is_export() {
        let path = if model.exists() { model } else { data };
        let detail =
            "is no undamaged file of converter export and would be replaced; delete it or choose another --out"
                .to_owned();
        return Err(Error::NotExported { path, detail });
    }
    Ok(())
}

/// `out` without links, if it is there.
pub(crate) fn resolve(out: &Path) -> Result<PathBuf> {
    match fs::canonicalize(out) {
        Ok(real) => Ok(real),
        Err(_) if out.is_symlink() => {
            Err(Error::Place { path: out.to_path_buf(), detail: "is a link to nothing; choose another --out" })
        }
        Err(_) => Ok(out.to_path_buf()),
    }
}

/// A page that is written when all else is done, to a place that is known to take it before.
struct Page {
    path: PathBuf,
    file: tempfile::NamedTempFile,
}

impl Page {
    fn create(path: &Path, model: &Path) -> Result<Self> {
        let same = |a: &Path, b: &Path| fs::canonicalize(a).is_ok_and(|a| fs::canonicalize(b).is_ok_and(|b| a == b));
        if same(path, model) {
            return Err(Error::Place { path: path.to_path_buf(), detail: "is the model; choose another --report" });
        }
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.prefix(".inlay-report-").tempfile_in(parent(path)).map_err(io(path))?;
        Ok(Page { path: path.to_path_buf(), file })
    }

    fn fill(self, text: &str) -> Result<Self> {
        self.file.as_file().write_all(text.as_bytes()).map_err(io(&self.path))?;
        Ok(self)
    }

    fn publish(self) -> Result<()> {
        self.file.persist(&self.path).map(drop).map_err(|e| io(&self.path)(e.error))
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

const TEMPORARY: &str = ".inlay-export-";
const LOCK: &str = "export.lock";

/// A folder that is written before it becomes the export. It vanishes if it does not, and the next export sweeps it if this
/// process is killed.
pub(crate) struct Temporary {
    pub folder: tempfile::TempDir,
    /// Held while the folder is in use.
    _lock: File,
}

/// A folder beside `out`, so that moving it there is a rename; inside of it where `out` is a mount point.
pub(crate) fn temporary_folder(out: &Path) -> Result<Temporary> {
    let beside = parent(out);
    fs::create_dir_all(beside).map_err(io(beside))?;
    let is_there = out.is_dir();
    let place = if is_there && !on_one_file_system(beside, out) { out } else { beside };
    sweep(place);
    let create = |place: &Path| tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(place);
    let folder = match create(place) {
        // A folder whose parent is somebody else's.
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied && is_there => create(out),
        other => other,
    };
    let folder = folder.map_err(io(place))?;
    // It gets its name when it is held: another export takes a lock that nobody holds for one of a killed process.
    let (path, unnamed) = (folder.path().join(LOCK), folder.path().join("lock"));
    let lock = File::create(&unnamed).map_err(io(&unnamed))?;
    lock.lock().and_then(|()| fs::rename(&unnamed, &path)).map_err(io(&path))?;
    Ok(Temporary { folder, _lock: lock })
}

/// Removes what killed exports left in `place`. Whoever cannot need not.
fn sweep(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let stale = entry.file_name().to_str().is_some_and(|name| name.starts_with(TEMPORARY))
            && File::open(entry.path().join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
        if stale {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(unix)]
fn on_one_file_system(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    device(a) == device(b)
}

#[cfg(not(unix))]
fn on_one_file_system(_: &Path, _: &Path) -> bool {
    true
}

/// Moves the finished files to `out`.
pub(crate) fn publish(temporary: Temporary, out: &Path) -> Result<()> {
    let folder = temporary.folder;
    let lock = folder.path().join(LOCK);
    fs::remove_file(&lock).map_err(io(&lock))?;
    if !out.exists() {
        give_rights_of(parent(out), folder.path())?;
        fs::rename(folder.path(), out).map_err(io(out))?;
        let _ = folder.keep();
        return sync_folder(out);
    }
    let others = fs::read_dir(out).map_err(io(out))?.flatten().any(|entry| {
        let name = entry.file_name();
        name != DATA_FILE && name != MODEL_FILE
    });
    // An earlier export is replaced at once, so that a crash leaves the one or the other; it vanishes with `folder`.
    if !others {
        give_rights_of(out, folder.path())?;
        if exchange(folder.path(), out) {
            return sync_folder(out);
        }
    }
    // The old graph names its weights by a fingerprint: until the second rename it refuses the new ones.
    for file in [DATA_FILE, MODEL_FILE] {
        fs::rename(folder.path().join(file), out.join(file)).map_err(io(out))?;
    }
    sync_folder(out)
}

/// Exchanges two folders in one step, where the system can.
#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> bool {
    false
}

/// Temporary folders are for their owner only; an exported one has the rights of `model`.
#[cfg(unix)]
fn give_rights_of(model: &Path, folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(model).map_err(io(model))?.permissions().mode() & 0o777;
    fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o700)).map_err(io(folder))
}

#[cfg(not(unix))]
fn give_rights_of(_: &Path, _: &Path) -> Result<()> {
    Ok(())
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(io(folder))
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> Result<()> {
    Ok(())
}
