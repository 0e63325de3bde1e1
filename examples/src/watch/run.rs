//! The demo itself: export the bases, calibrate each person's adapter, classify what comes later.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use inlay_runtime::{
    Adapter, AdapterOptions, AdapterStore, Base, Dataset, Device, DeviceOptions, Dtype, Session, SessionOptions,
    StoreError, TrainOptions, Trainer, Verify,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::data::{Data, Fold, Windows, folder};
use super::report::Row;
use crate::Result;

/// Seed of the adapters' initial values and of the order of samples.
const SEED: u64 = 1;
/// Windows classified at once.
const PREDICT_BATCH: usize = 64;

/// The command-line tools that run as processes of their own.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The program `converter`.
    pub converter: PathBuf,
    /// The program `personalize`.
    pub personalize: PathBuf,
}

impl Tools {
    /// The tools in the folder of the running program.
    ///
    /// # Errors
    /// When they are not there.
    pub fn beside_this() -> Result<Self> {
        let this = std::env::current_exe()?;
        let find = |name: &str| {
            let path = this.with_file_name(name).with_extension(std::env::consts::EXE_EXTENSION);
            if path.is_file() {
                Ok(path)
            } else {
                Err(format!("{} is missing; run the demo with ./dev demo", path.display()))
            }
        };
        Ok(Tools { converter: find("converter")?, personalize: find("personalize")? })
    }
}

/// What to run, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The people, all of them if empty.
    pub people: Vec<u32>,
    /// Where to train.
    pub device: Device,
    /// The folder for bases, adapters and samples.
    pub out: PathBuf,
    /// The tools.
    pub tools: Tools,
}

/// What the demo has got to.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A model was exported.
    Exported(&'a str, &'a Export),
    /// So many optimizer steps of one person were taken.
    Trained {
        /// The person.
        person: u32,
        /// Steps.
        steps: usize,
    },
    /// A person's later windows were classified.
    Classified(u32),
}

/// What `converter export --json` says of a base.
#[derive(Clone, Debug, Deserialize)]
pub struct Export {
    /// Size of the float model (bytes).
    pub source_bytes: u64,
    /// Size of the exported `.onnx` (bytes).
    pub model_bytes: u64,
    /// Size of the exported `.onnx.data` (bytes).
    pub data_bytes: u64,
    /// How the outputs differ from the float model's.
    pub outputs: Vec<Difference>,
}

/// How one output differs.
#[derive(Clone, Debug, Deserialize)]
pub struct Difference {
    /// Its name.
    pub name: String,
    /// Largest absolute difference.
    pub max_abs: f32,
}

/// Someone's adapter, calibrated and judged.
struct Calibrated {
    accepted: bool,
    bytes: u64,
    steps: usize,
    ms_per_step: f64,
    device: String,
}

/// Runs the demo; `observe` hears how far it has got. One row a person, in the order of the folds.
///
/// # Errors
/// When a file is missing or damaged, a tool fails, or training does.
pub fn run(options: &Options, observe: &mut dyn FnMut(Event<'_>)) -> Result<Vec<Row>> {
    let data = Data::read(&folder())?;
    let wanted = |person: &u32| options.people.is_empty() || options.people.contains(person);
    let mut rows = Vec::new();
    for fold in data.recipe.folds.iter().filter(|fold| fold.people.iter().any(wanted)) {
        let base = options.out.join("bases").join(fold.model.trim_end_matches(".onnx"));
        let exported = export(&options.tools, &folder().join(&fold.model), &base)?;
        observe(Event::Exported(&fold.model, &exported));

        // The other people of the fold are needed too: theirs are the adapters of somebody else.
        let mut calibrated = Vec::with_capacity(fold.people.len());
        for person in &fold.people {
            calibrated.push(calibrate(options, &data, fold, &base, *person, observe)?);
        }
        for (at, person) in fold.people.iter().enumerate().filter(|(_, person)| wanted(person)) {
            let other = (at + 1) % fold.people.len();
            let samples = options.out.join(format!("{}.npz", user(*person)));
            data.test(*person).write(&samples)?;
            let classify = |person: u32, accepted| classify(options, &base, &samples, person, accepted);
            let (mine, theirs) = (&calibrated[at], &calibrated[other]);
            let own = classify(*person, mine.accepted)?;
            let another = classify(fold.people[other], theirs.accepted)?;
            observe(Event::Classified(*person));
            rows.push(Row {
                person: *person,
                base: own.base.accuracy,
                own: if mine.accepted { own.adapter.accuracy } else { own.base.accuracy },
                other: another.adapter.accuracy,
                bytes: if mine.accepted { mine.bytes } else { 0 },
                steps: mine.steps,
                ms_per_step: mine.ms_per_step,
                device: mine.device.clone(),
                if_accepted: (!mine.accepted).then_some(own.adapter.accuracy),
            });
        }
    }
    rows.sort_by_key(|row| row.person);
    Ok(rows)
}

/// Optimizer steps of a whole run, for progress bars.
///
/// # Errors
/// When the data cannot be read.
pub fn total_steps(options: &Options) -> Result<usize> {
    let folds = Data::read(&folder())?.recipe.folds.into_iter();
    let wanted = |fold: &Fold| options.people.is_empty() || fold.people.iter().any(|p| options.people.contains(p));
    Ok(folds.filter(wanted).map(|fold| 2 * fold.steps * fold.people.len()).sum())
}

/// Name of a person in the stores.
fn user(person: u32) -> String {
    format!("person-{person:02}")
}

/// The store of adapters in use, or of those that were refused.
fn store(out: &Path, accepted: bool) -> PathBuf {
    out.join(if accepted { "adapters" } else { "refused" })
}

/// `converter export` of the float `model` to the folder `base`, with insertion points on the two Linears.
fn export(tools: &Tools, model: &Path, base: &Path) -> Result<Export> {
    let mut command = Command::new(&tools.converter);
    command.arg("export").arg(model).arg("--out").arg(base).args(["--quant", "int8", "--targets", "fc*", "--json"]);
    json_of(command)
}

/// Trains the adapter of `person` and saves it, in the store of adapters in use if it proved itself.
///
/// First a rehearsal without the windows that are held back. Whoever gains on those trains again, on all windows; whoever
/// does not keeps the base, so that a calibration gone wrong does no harm.
fn calibrate(
    options: &Options,
    data: &Data,
    fold: &Fold,
    base: &Path,
    person: u32,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<Calibrated> {
    let device = DeviceOptions {
        device: options.device.clone(),
        cache_dir: Some(options.out.join("cache")),
        ..DeviceOptions::default()
    };
    let session = SessionOptions { device, ..SessionOptions::default() };
    let mut session = Session::new(Base::open(base, Verify::Full)?, session)?;
    let windows = data.calibration(person);
    let (rehearsal, held_back) = windows.hold_back(data.recipe.held_back_percent);
    let held_back = dataset(session.base(), held_back)?;

    let mut train = |session: &mut Session, windows: Windows| {
        let samples = dataset(session.base(), windows)?;
        let rank = u16::try_from(fold.rank)?;
        let adapter = Adapter::new(session.base(), &AdapterOptions::lora(rank).alpha(fold.alpha).seed(SEED))?;
        let how = TrainOptions::new()
            .steps(fold.steps as u64)
            .batch_size(data.recipe.batch_size)
            .lr(fold.lr)
            .weight_decay(fold.weight_decay)
            .seed(SEED);
        let mut trainer = Trainer::new(session, adapter, &samples, how)?;
        let trained = trainer.run(|_| {
            observe(Event::Trained { person, steps: 1 });
            ControlFlow::Continue(())
        })?;
        let device = trainer.device().to_owned();
        Ok::<_, crate::Error>((trained, device))
    };

    let (rehearsed, _) = train(&mut session, rehearsal)?;
    let accuracy = |session: &mut Session, adapter| {
        session.set_adapter(adapter)?;
        let found = session.evaluate(&held_back, None, None, PREDICT_BATCH, |_| ())?;
        found.accuracy.ok_or_else(|| crate::Error::from("cross-entropy has an accuracy"))
    };
    let without = accuracy(&mut session, None)?;
    let accepted = accuracy(&mut session, Some(rehearsed.adapter.clone()))? > without;
    session.set_adapter(None)?;
    let (trained, device) = train(&mut session, windows)?;

    let record = trained.adapter.to_record(Dtype::F16)?;
    AdapterStore::open(store(&options.out, accepted))?.save(&user(person), &record)?;
    // An earlier run may have judged otherwise.
    if let Ok(stale) = AdapterStore::open_existing(store(&options.out, !accepted)) {
        match stale.delete(&user(person)) {
            Ok(()) | Err(StoreError::NoAdapter { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Calibrated { accepted, bytes: record.len() as u64, steps: fold.steps, ms_per_step: trained.ms_per_step, device })
}

fn dataset(base: &Base, windows: Windows) -> Result<Dataset> {
    Ok(Dataset::new(base, windows.into_arrays()?)?)
}

/// What `personalize eval --json` says.
#[derive(Deserialize)]
struct Evaluated {
    base: Figures,
    adapter: Figures,
}

#[derive(Deserialize)]
struct Figures {
    accuracy: f64,
}

/// Classifies `samples` in a new process, with and without the adapter of `person`.
fn classify(options: &Options, base: &Path, samples: &Path, person: u32, accepted: bool) -> Result<Evaluated> {
    let mut command = Command::new(&options.tools.personalize);
    command.arg("eval").arg("--base").arg(base).arg("--data").arg(samples);
    command.arg("--user").arg(user(person)).arg("--store").arg(store(&options.out, accepted));
    command.arg("--device").arg(options.device.to_string()).arg("--cache-dir").arg(options.out.join("cache"));
    command.arg("--batch-size").arg(PREDICT_BATCH.to_string()).arg("--json");
    json_of(command)
}

/// Runs a tool, and reads what it prints.
fn json_of<T: DeserializeOwned>(mut command: Command) -> Result<T> {
    let output = command.output().map_err(|error| format!("{}: {error}", command.get_program().to_string_lossy()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?} failed ({}): {}", output.status, said.trim()).into());
    }
    let read = serde_json::from_slice(&output.stdout);
    read.map_err(|error| format!("{command:?} printed no result that is understood: {error}").into())
}
