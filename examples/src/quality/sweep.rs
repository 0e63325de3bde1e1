use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use inlay_runtime::train::prototypes;
use inlay_runtime::{
    Adapter, AdapterError, Base, Dataset, Device, DeviceOptions, Dtype, Session, SessionOptions, TrainOptions, Trainer,
    Verify,
};

use super::case::{Case, Family, Fold, Person, Samples};
use super::data::to_floats;
use super::enrolment::{Enrolment, enrol};
use super::figures::{Figures, Row, Stored};
use crate::Result;

/// Learning rates to choose from, for each family of a case.
const RATES: [f32; 4] = [1e-3, 3e-3, 1e-2, 3e-2];
/// Samples answered at once.
const PREDICT_BATCH: usize = 64;

/// How to run a case.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program `converter`.
    pub converter: PathBuf,
    /// The folder for bases and figures.
    pub out: PathBuf,
    /// CPU threads.
    pub threads: usize,
    /// A shorter run: so many people, one seed, one size a family, so many steps, the first learning rate.
    pub short: Option<Short>,
}

/// A run that shows that everything works, and whose figures mean nothing.
#[derive(Clone, Copy, Debug)]
pub struct Short {
    /// People of the first fold.
    pub people: usize,
    /// Steps.
    pub steps: u64,
}

/// Runs a case; `observe` hears of each row.
///
/// # Errors
/// When data is missing, an export fails, or training does.
pub fn run(case: &Case, options: &Options, observe: &mut dyn FnMut(&Row)) -> Result<Figures> {
    let mut case = *case;
    let mut folds = (case.folds)()?;
    if let Some(short) = options.short {
        (case.steps, case.seeds) = (short.steps, 1);
        folds.truncate(1);
        folds.iter_mut().for_each(|fold| fold.people.truncate(short.people));
    }
    let mut sweep = Sweep { case, options, folds, bases: HashMap::new() };
    let mut figures = Figures {
        case: case.name.into(),
        base: sweep.accuracies(|person| Some(&person.test))?,
        base_standard: sweep.accuracies(|person| person.standard.as_ref())?,
        enrolment: if case.enrols { Some(sweep.enrolment()?) } else { None },
        seeds: case.seeds,
        is_development: cfg!(debug_assertions),
        rows: Vec::new(),
    };
    for family in case.families {
        let lr = if options.short.is_some() { RATES[0] } else { sweep.choose_rate(family)? };
        let middle = [family.middle()];
        for &size in if options.short.is_some() { &middle[..] } else { family.sizes } {
            let row = sweep.row(family, size, lr, &figures)?;
            observe(&row);
            figures.rows.push(row);
        }
    }
    Ok(figures)
}

struct Sweep<'a> {
    case: Case,
    options: &'a Options,
    folds: Vec<Fold>,
    /// By model and arguments of the export.
    bases: HashMap<(PathBuf, Vec<String>), PathBuf>,
}

impl Sweep<'_> {
    /// The accuracy of the base on some samples of each person (%).
    fn accuracies(&mut self, samples: impl Fn(&Person) -> Option<&Samples>) -> Result<Vec<f64>> {
        let mut found = Vec::new();
        for at in 0..self.folds.len() {
            let mut session = self.session(at, Vec::new())?;
            for samples in self.folds[at].people.iter().filter_map(&samples) {
                found.push(accuracy(&mut session, samples)?.0);
            }
        }
        Ok(found)
    }

    /// What a class that comes later costs, over everybody.
    fn enrolment(&mut self) -> Result<Enrolment> {
        let mut found = Vec::new();
        for at in 0..self.folds.len() {
            let mut session = self.session(at, Vec::new())?;
            for person in &self.folds[at].people {
                found.push(enrol(&mut session, self.case.classes, &person.calibration, &person.test)?);
            }
        }
        Ok(Enrolment::mean(&found))
    }

    /// The learning rate with which they do best on the part of their calibration that was held back.
    fn choose_rate(&mut self, family: &Family) -> Result<f32> {
        let mut scores = [(0.0, 0.0); RATES.len()];
        let size = family.middle();
        let folds = self.folds.len();
        for at in 0..folds.min(self.case.rehearsing) {
            let mut session = self.session(at, family.export_args(size))?;
            // The folds share them out.
            let people = (self.case.rehearsing - at).div_ceil(folds);
            for person in self.folds[at].people.iter().take(people) {
                for (score, lr) in scores.iter_mut().zip(RATES) {
                    let (adapter, _) = self.train(&mut session, &person.rehearsal, family, size, lr, 1)?;
                    session.set_adapter(Some(adapter))?;
                    let (accuracy, loss) = accuracy(&mut session, &person.held_back)?;
                    session.set_adapter(None)?;
                    *score = (score.0 + accuracy, score.1 - loss);
                }
            }
        }
        let order = |a: &(f64, f64), b: &(f64, f64)| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1));
        let best = (0..RATES.len()).max_by(|&a, &b| order(&scores[a], &scores[b]));
        Ok(RATES[best.expect("there are rates")])
    }

    /// Trains a family at one size for everybody, and tests what can be read back of its records.
    fn row(&mut self, family: &Family, size: u16, lr: f32, base: &Figures) -> Result<Row> {
        let new = |dtype: Dtype| Stored {
            dtype: dtype.name().into(),
            bytes: 0,
            lifts: Vec::new(),
            standard: Vec::new(),
            refused: 0,
        };
        let mut stored: Vec<Stored> = Dtype::ALL.into_iter().map(new).collect();
        let (mut parameters, mut millis) = (0, Vec::new());
        let mut bases = base.base.iter();
        let mut standards = base.base_standard.iter();
        for at in 0..self.folds.len() {
            let mut session = self.session(at, family.export_args(size))?;
            for person in &self.folds[at].people {
                let before = bases.next().expect("the base was tested on everybody");
                let before_standard = person.standard.as_ref().and_then(|_| standards.next());
                for seed in 1..=self.case.seeds {
                    let (adapter, ms) = self.train(&mut session, &person.calibration, family, size, lr, seed)?;
                    parameters = adapter.parameter_count();
                    millis.push(ms);
                    for (stored, dtype) in stored.iter_mut().zip(Dtype::ALL) {
                        stored.bytes = stored.bytes.max(adapter.record_bytes(dtype)?);
                        let refused = !reopen(&mut session, &adapter, dtype)?;
                        stored.refused += usize::from(refused);
                        stored.lifts.push(accuracy(&mut session, &person.test)?.0 - before);
                        if let (Some(samples), Some(before)) = (&person.standard, before_standard) {
                            stored.standard.push(accuracy(&mut session, samples)?.0 - before);
                        }
                    }
                    session.set_adapter(None)?;
                }
            }
        }
        // Other work on the machine only ever adds to a time.
        let ms_per_step = millis.into_iter().fold(f64::INFINITY, f64::min);
        let (kind, place) = (family.kind.into(), family.place.into());
        Ok(Row { kind, size, place, lr, parameters, ms_per_step, stored })
    }

    /// A trained adapter, and the time of a step (ms). Heads start from the means of the classes.
    fn train(
        &self,
        session: &mut Session,
        samples: &Samples,
        family: &Family,
        size: u16,
        lr: f32,
        seed: u64,
    ) -> Result<(Adapter, f64)> {
        let data = dataset(session, samples)?;
        let mut adapter = Adapter::new(session.base(), &family.options(size, self.case.classes, seed))?;
        if family.has_head() {
            adapter = prototypes(session, &adapter, &data, PREDICT_BATCH)?;
        }
        let how = TrainOptions::new().steps(self.case.steps).batch_size(self.case.batch_size).lr(lr).seed(seed);
        let trained = Trainer::new(session, adapter, &data, how)?.run(|_| ControlFlow::Continue(()))?;
        Ok((trained.adapter, trained.ms_per_step))
    }

    /// A session on a fold's model, exported with these arguments.
    fn session(&mut self, fold: usize, arguments: Vec<String>) -> Result<Session> {
        let base = self.export(fold, arguments)?;
        let device =
            DeviceOptions { device: Device::Cpu, threads: Some(self.options.threads), ..DeviceOptions::default() };
        Ok(Session::new(Base::open(base, Verify::Full)?, SessionOptions { device, ..SessionOptions::default() })?)
    }

    fn export(&mut self, fold: usize, arguments: Vec<String>) -> Result<PathBuf> {
        let model = &self.folds[fold].model;
        let key = (model.clone(), arguments);
        if let Some(base) = self.bases.get(&key) {
            return Ok(base.clone());
        }
        let base = self.options.out.join("bases").join(format!("{}-{}", self.case.name, self.bases.len()));
        converter(&self.options.converter, model, &base, &key.1)?;
        self.bases.insert(key, base.clone());
        Ok(base)
    }
}

/// `converter export` of `model` to int8 in the folder `base`.
fn converter(converter: &Path, model: &Path, base: &Path, arguments: &[String]) -> Result<()> {
    let mut command = Command::new(converter);
    command.arg("export").arg(model).arg("--out").arg(base).args(arguments).arg("--json");
    let output = command.output().map_err(|error| format!("{}: {error}", converter.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?} failed ({}): {}", output.status, said.trim()).into());
    }
    Ok(())
}

/// Puts in use what a record of `adapter` holds. Where `dtype` rounds all of it to nothing the base stays, and the answer is no.
fn reopen(session: &mut Session, adapter: &Adapter, dtype: Dtype) -> Result<bool> {
    let next = match adapter.to_record(dtype) {
        Ok(record) => Some(Adapter::from_record(session.base(), &record)?),
        Err(AdapterError::RoundsToNothing { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let kept = next.is_some();
    session.set_adapter(next)?;
    Ok(kept)
}

/// Accuracy (%) and loss of the adapter in use, or of the base.
pub(super) fn accuracy(session: &mut Session, samples: &Samples) -> Result<(f64, f64)> {
    let data = dataset(session, samples)?;
    let found = session.evaluate(&data, None, None, PREDICT_BATCH, |_| ())?;
    let accuracy = found.accuracy.ok_or("the loss of class labels has an accuracy")?;
    Ok((100.0 * accuracy, found.loss))
}

pub(super) fn dataset(session: &Session, samples: &Samples) -> Result<Dataset> {
    let inputs = session.base().inputs().iter().map(|port| (port.name.clone(), port.dtype)).collect();
    Ok(Dataset::new(session.base(), to_floats(samples.clone(), &inputs))?)
}
