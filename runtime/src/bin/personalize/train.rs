use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use inlay_format::record::{Record, RecordChecksum};
use inlay_runtime::store::{AdapterId, AdapterStore, SealError, StoreError};
use inlay_runtime::train::{Evaluation, StepReport, Verdict, losses, optimizers, prototypes};
use inlay_runtime::{Adapter, Base, Dataset, Dtype, TrainOptions, Trainer};
use serde::Serialize;

use crate::args::Train;
use crate::eval::Figures;
use crate::output::{self, Failure, Progress};
use crate::{new, run};

#[derive(Serialize)]
struct Summary<'a> {
    user: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    record: &'a Path,
    bytes: usize,
    points: usize,
    parameters: usize,
    samples: usize,
    steps: u64,
    loss: f32,
    ms_per_step: f64,
    device: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    carried_over: Option<CarriedOver>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_back: Option<HeldBack>,
}

#[derive(Serialize)]
struct HeldBack {
    samples: usize,
    base: Figures,
    adapter: Figures,
}

/// What a change of the base does to an adapter, before it is trained further.
#[derive(Serialize)]
struct CarriedOver {
    #[serde(flatten)]
    on_new_base: HeldBack,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_old_base: Option<Figures>,
}

/// `personalize train`.
pub fn run(args: &Train) -> Result<(), Failure> {
    let mut session = run::session(&args.base, &args.device)?;
    let data = Dataset::read(session.base(), &args.data)?;
    // A store that cannot be written is found before the work, not after it.
    let store = run::with_key(AdapterStore::open(&args.stored.store.store)?, args.stored.store.key_file.as_deref())?;
    store.check_writable()?;
    let id = run::id(&args.stored);
    let path = store.path_of(&id)?;
    let before = Before::find(&store, &id)?;
    let old = if args.allow_base_change { Some(of_another_base(session.base(), store.load(&id)?)?) } else { None };
    let (mut adapter, chosen) = match &old {
        Some(record) => (Adapter::rebind(session.base(), record)?, None),
        None => new::adapter(session.base(), &args.adapter, args.seed)?,
    };
    if args.prototypes {
        adapter = prototypes(&mut session, &adapter, &data, args.batch_size as usize)?;
    }
    let dtype = chosen.unwrap_or_else(|| Dtype::from(args.dtype));
    let (points, parameters) = (adapter.points().count(), adapter.parameter_count());
    let mut trainer = Trainer::new(&mut session, adapter, &data, options(args))?;
    let carried_over = if old.is_some() { trainer.judge()? } else { None };
    let on_old_base = match (&old, &args.old_base) {
        (Some(record), Some(base)) => Some(on_old_base(args, base, record, trainer.held_back())?),
        _ => None,
    };
    let inputs = [Some(&args.data), args.adapter.init_adapter.as_ref()];
    let mut log = args.log.as_deref().map(|log| Log::create(log, &inputs)).transpose()?;

    let mut progress = Progress::new("training", trainer.steps());
    let mut log_error = None;
    let trained = trainer.run(|step| {
        progress.set(step.step, format_args!("loss {:.4}", step.loss));
        match log.as_mut().map_or(Ok(()), |log| log.write(step)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                log_error = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    drop(progress);
    if let Some(error) = log_error {
        return Err(error);
    }
    if let Some(log) = log {
        log.finish()?;
    }
    let trained = trained?;
    let record = trained.adapter.to_record(dtype)?;
    before.save(&store, &id, &record)?;

    let device = &session.device().name;
    let summary = Summary {
        user: &id.user,
        name: id.name.as_deref(),
        record: &path,
        bytes: record.len(),
        points,
        parameters,
        samples: data.len(),
        steps: trained.steps,
        loss: trained.loss,
        ms_per_step: trained.ms_per_step,
        device,
        carried_over: carried_over.map(|verdict| CarriedOver {
            on_new_base: HeldBack::from(verdict),
            on_old_base: on_old_base.map(Figures::from),
        }),
        held_back: trained.verdict.map(HeldBack::from),
    };
    let mut text = format!(
        "{}: {} steps on {} samples, last loss {:.4}, {:.2} ms a step on {device}\n{} parameters at {points} points -> {} ({} bytes)",
        id.user,
        trained.steps,
        data.len(),
        trained.loss,
        trained.ms_per_step,
        parameters,
        path.display(),
        record.len(),
    );
    if let Some(verdict) = carried_over {
        text.push_str(&format!("\ncarried over to this base, before training: {verdict}"));
        if let Some(old) = on_old_base {
            text.push_str(&format!("\nthe change of the base costs it {}", Cost { old, new: verdict.adapter }));
        }
    }
    if let Some(verdict) = trained.verdict {
        text.push_str(&format!("\non {} samples held back: {verdict}", verdict.base.samples));
    }
    output::result(args.json.json, &summary, &text)
}

/// The record, unless it belongs to `base`: then there is no change of the base.
fn of_another_base(base: &Base, record: Vec<u8>) -> Result<Vec<u8>, Failure> {
    if Record::decode(&record)?.expect_base(&base.fingerprint()).is_ok() {
        return Err(
            "the stored adapter was trained on this very base; to train it further, export it from the store and \
                    name the file with --init-adapter instead of --allow-base-change"
                .into(),
        );
    }
    Ok(record)
}

/// How the stored adapter does on the base that it was trained on, over the samples that are held back here.
fn on_old_base(args: &Train, base: &Path, record: &[u8], held_back: &[usize]) -> Result<Evaluation, Failure> {
    let mut session = run::session(base, &args.device)?;
    let adapter = Adapter::from_record(session.base(), record)?;
    let data = Dataset::read(session.base(), &args.data)?.select(held_back);
    session.set_adapter(Some(adapter))?;
    let loss = args.loss.as_deref().and_then(losses::find);
    Ok(session.evaluate(&data, loss, args.output.as_deref(), args.batch_size as usize, |_| ())?)
}

/// What an adapter loses from one base to the next.
struct Cost {
    old: Evaluation,
    new: Evaluation,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cost { old, new } = self;
        write!(f, "{:+.4} of loss, from {:.4} on the old base", new.loss - old.loss, old.loss)?;
        if let (Some(old), Some(new)) = (old.accuracy, new.accuracy) {
            write!(f, "; {:+.1} points of accuracy, from {:.1} %", 100.0 * (new - old), 100.0 * old)?;
        }
        Ok(())
    }
}

/// What the store held when the run began, so that another process's save meanwhile is not lost.
enum Before {
    Record(Option<RecordChecksum>),
    /// Something damaged, which may be replaced.
    Damaged,
}

impl Before {
    fn find(store: &AdapterStore, id: &AdapterId) -> Result<Self, StoreError> {
        match store.load_if_any(id) {
            Ok(record) => Ok(Before::Record(record.as_deref().map(checksum))),
            Err(StoreError::Record { .. } | StoreError::Sealed { source: SealError::Altered, .. }) => {
                Ok(Before::Damaged)
            }
            Err(error) => Err(error),
        }
    }

    fn save(self, store: &AdapterStore, id: &AdapterId, record: &[u8]) -> Result<(), StoreError> {
        match self {
            Before::Record(previous) => store.save_over(id, record, previous),
            Before::Damaged => store.save(id, record),
        }
    }
}

fn checksum(record: &[u8]) -> RecordChecksum {
    Record::decode(record).expect("a store gives whole records").checksum()
}

impl From<Verdict> for HeldBack {
    fn from(verdict: Verdict) -> Self {
        HeldBack { samples: verdict.base.samples, base: verdict.base.into(), adapter: verdict.adapter.into() }
    }
}

fn options(args: &Train) -> TrainOptions {
    let mut options = TrainOptions::new()
        .batch_size(args.batch_size as usize)
        .accumulate(args.accumulate as usize)
        .lr(args.lr)
        .schedule(args.schedule, args.warmup)
        .optimizer(optimizers::find(&args.optimizer).expect("the command line lists the optimizers that there are"))
        .shuffle(!args.no_shuffle)
        .seed(args.seed);
    if let Some(steps) = args.steps {
        options = options.steps(steps);
    }
    if let Some(epochs) = args.epochs {
        options = options.epochs(epochs);
    }
    if let Some(momentum) = args.momentum {
        options = options.momentum(momentum);
    }
    if let Some(weight_decay) = args.weight_decay {
        options = options.weight_decay(weight_decay);
    }
    if let Some(norm) = args.clip_norm {
        options = options.clip_norm(norm);
    }
    if let Some(loss) = args.loss.as_deref().and_then(losses::find) {
        options = options.loss(loss);
    }
    if let Some(output) = &args.output {
        options = options.output(output);
    }
    if let Some(fraction) = args.hold_back {
        options = options.hold_back(fraction);
    }
    options
}

/// One JSON object a step.
struct Log {
    path: PathBuf,
    file: BufWriter<File>,
}

#[derive(Serialize)]
struct LogLine {
    step: u64,
    loss: f32,
    lr: f32,
    ms: f64,
    grad_norm: f32,
}

impl Log {
    /// Replaces the file at `path`, unless it is one of `inputs`.
    fn create(path: &Path, inputs: &[Option<&PathBuf>]) -> Result<Self, Failure> {
        let same =
            |input: &PathBuf| path.canonicalize().is_ok_and(|path| input.canonicalize().is_ok_and(|i| i == path));
        if inputs.iter().flatten().any(|input| same(input)) {
            return Err(format!("--log {} is an input of this run; choose another file", path.display()).into());
        }
        let file = File::create(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Log { path: path.to_path_buf(), file: BufWriter::new(file) })
    }

    fn write(&mut self, step: &StepReport) -> Result<(), Failure> {
        let &StepReport { step, loss, lr, ms, grad_norm, .. } = step;
        let line = serde_json::to_string(&LogLine { step, loss, lr, ms, grad_norm })?;
        // Flushed each step: whoever follows the file sees the run as it goes.
        let written = writeln!(self.file, "{line}").and_then(|()| self.file.flush());
        written.map_err(|error| format!("{}: {error}", self.path.display()).into())
    }

    fn finish(mut self) -> Result<(), Failure> {
        self.file.flush().map_err(|error| format!("{}: {error}", self.path.display()).into())
    }
}
