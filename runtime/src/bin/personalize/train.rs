use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use inlay_format::record::{Record, RecordChecksum};
use inlay_runtime::store::{AdapterId, AdapterStore, SealError, StoreError};
use inlay_runtime::train::{Evaluation, StepReport, Verdict, losses, optimizers, prototypes};
use inlay_runtime::{Adapter, Base, Dataset, Dtype, HostTensor, Session, TrainOptions, Trainer};
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
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ms_per_step: Option<f64>,
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
    expect_classes(&adapter, &data, args)?;
    let Outcome { adapter, steps, loss, ms_per_step, carried_over, verdict } = match args.steps {
        Some(0) => Outcome::of_means(adapter),
        _ => train(&mut session, adapter, &data, args, old.as_deref())?,
    };
    let record = adapter.to_record(dtype)?;
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
        steps,
        loss,
        ms_per_step,
        device,
        carried_over: carried_over.map(CarriedOver::from),
        held_back: verdict.map(HeldBack::from),
    };
    let trained = match loss.zip(ms_per_step) {
        Some((loss, ms)) => {
            format!("{steps} steps on {} samples, last loss {loss:.4}, {ms:.2} ms a step on {device}", data.len())
        }
        None => format!("class means of {} samples on {device}", data.len()),
    };
    let mut text = format!(
        "{}: {trained}\n{parameters} parameters at {points} points -> {} ({} bytes)",
        id.user,
        path.display(),
        record.len(),
    );
    if let Some(Change { verdict, on_old_base }) = carried_over {
        text.push_str(&format!("\ncarried over to this base, before training: {verdict}"));
        if let Some(old) = on_old_base {
            text.push_str(&format!("\nthe change of the base costs it {}", Cost { old, new: verdict.adapter }));
        }
    }
    if let Some(verdict) = verdict {
        text.push_str(&format!("\non {} samples held back: {verdict}", verdict.base.samples));
    }
    output::result(args.json.json, &summary, &text)
}

/// A class that the head does not have is said before the work, with the option that gives it one.
fn expect_classes(adapter: &Adapter, data: &Dataset, args: &Train) -> Result<(), Failure> {
    let of_head = args.output.as_deref().is_none_or(|output| adapter.outputs().any(|own| own == output));
    let largest = data.labels().and_then(HostTensor::ints).and_then(|labels| labels.into_iter().max());
    match (adapter.head_classes(), largest) {
        (Some(classes), Some(largest)) if of_head && usize::try_from(largest).is_ok_and(|class| class >= classes) => {
            let wanted = largest + 1;
            Err(format!("labels go up to {largest}, and the head has {classes} classes; use --classes {wanted}").into())
        }
        _ => Ok(()),
    }
}

/// What became of an adapter.
struct Outcome {
    adapter: Adapter,
    steps: u64,
    loss: Option<f32>,
    ms_per_step: Option<f64>,
    carried_over: Option<Change>,
    verdict: Option<Verdict>,
}

impl Outcome {
    /// A head of class means, without training.
    fn of_means(adapter: Adapter) -> Self {
        Outcome { adapter, steps: 0, loss: None, ms_per_step: None, carried_over: None, verdict: None }
    }
}

/// What an adapter of another base does on this one.
#[derive(Clone, Copy)]
struct Change {
    verdict: Verdict,
    on_old_base: Option<Evaluation>,
}

/// Trains `adapter`, which was made of the record `old` of another base, if that is given.
fn train(
    session: &mut Session,
    adapter: Adapter,
    data: &Dataset,
    args: &Train,
    old: Option<&[u8]>,
) -> Result<Outcome, Failure> {
    let mut trainer = Trainer::new(session, adapter, data, options(args))?;
    let on_old_base = match (old, &args.old_base) {
        (Some(record), Some(base)) => Some(on_old_base(args, base, record, trainer.held_back())?),
        _ => None,
    };
    let verdict = if old.is_some() { trainer.judge()? } else { None };
    let carried_over = verdict.map(|verdict| Change { verdict, on_old_base });
    let mut log = args.log.as_deref().map(|log| Log::create(log, args)).transpose()?;

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
    Ok(Outcome {
        adapter: trained.adapter,
        steps: trained.steps,
        loss: Some(trained.loss),
        ms_per_step: Some(trained.ms_per_step),
        carried_over,
        verdict: trained.verdict,
    })
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

impl From<Change> for CarriedOver {
    fn from(Change { verdict, on_old_base }: Change) -> Self {
        CarriedOver { on_new_base: verdict.into(), on_old_base: on_old_base.map(Figures::from) }
    }
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
    /// Replaces the file at `path`, unless the run reads it.
    fn create(path: &Path, args: &Train) -> Result<Self, Failure> {
        let inputs = [Some(&args.data), args.adapter.init_adapter.as_ref(), args.stored.store.key_file.as_ref()];
        run::expect_no_input("--log", path, &args.base, &inputs)?;
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
