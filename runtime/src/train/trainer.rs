use std::ops::ControlFlow;
use std::time::Instant;

use inlay_devices::program::{Region, Segment, stats, step};
use inlay_format::record::Record;
use inlay_format::state::{self, State};

use super::batches::Batches;
use super::error::TrainError;
use super::evaluate::{Verdict, find_output};
use super::losses::{self, Loss, check_labels};
use super::optimizers::{Configured, OptimizerSettings};
use super::options::TrainOptions;
use super::shadow::{Shadow, read_region};
use crate::adapters::{Adapter, AdapterError};
use crate::data::{DataError, Dataset, select_rows};
use crate::engine::{PlanKey, Ready, Training, Version};
use crate::graph::HostTensor;
use crate::plan::FeedError;
use crate::session::{Session, batch_rows, expect_base, padded_rows};

/// Trains an adapter on a data set.
///
/// Take single steps with [`Trainer::step`], or all with [`Trainer::run`]. The host holds a copy of everything that a
/// step changes: when a GPU fails, the CPU repeats the step, and when the loss turns NaN the last good adapter is kept.
///
/// ```
/// use std::ops::ControlFlow;
///
/// use inlay_runtime::{Adapter, AdapterOptions, Dataset, Session, TrainOptions, Trainer};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut session = Session::open("tests/data/tiny")?;
/// let data = Dataset::read(session.base(), "tests/data/tiny.npz")?;
/// let adapter = Adapter::new(session.base(), &AdapterOptions::lora(2).seed(7))?;
///
/// let options = TrainOptions::new().steps(20).batch_size(8).lr(1e-2).seed(7);
/// let mut trainer = Trainer::new(&mut session, adapter, &data, options)?;
/// let trained = trainer.run(|step| {
///     println!("step {} of {}: loss {}", step.step, step.steps, step.loss);
///     ControlFlow::Continue(())
/// })?;
/// assert_eq!(trained.steps, 20);
/// session.set_adapter(Some(trained.adapter))?;
/// # Ok(())
/// # }
/// ```
pub struct Trainer<'s> {
    session: &'s mut Session,
    data: &'s Dataset,
    /// Samples to train on, and to hold back, by their positions in `data`.
    rows: Vec<usize>,
    held_back: Vec<usize>,
    adapter: Adapter,
    options: TrainOptions,
    settings: OptimizerSettings,
    loss: &'static dyn Loss,
    key: PlanKey,
    batches: Batches,
    batch: usize,
    rows_per_sample: usize,
    shadow: Shadow,
    /// Of the parameters in `shadow`.
    version: Version,
    step: u64,
    millis: Vec<f64>,
    last_loss: Option<f32>,
}

/// A step that was taken.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// Number of the step, from 1.
    pub step: u64,
    /// Steps of the run.
    pub steps: u64,
    /// Epoch, from 1.
    pub epoch: u64,
    /// Mean loss over the samples of the step, before the update.
    pub loss: f32,
    /// Learning rate.
    pub lr: f32,
    /// Global L2 norm of the gradients before clipping.
    pub grad_norm: f32,
    /// Time (ms).
    pub ms: f64,
}

/// A run that ended well.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Trained {
    /// The adapter.
    pub adapter: Adapter,
    /// Steps that were taken, over all runs of the trainer.
    pub steps: u64,
    /// Whether the callback stopped the run early.
    pub stopped: bool,
    /// Loss of the last step, before its update.
    pub loss: f32,
    /// Median time of a step (ms).
    pub ms_per_step: f64,
    /// How base and adapter do on the samples held back.
    pub verdict: Option<Verdict>,
}

/// One micro-batch.
struct Micro {
    inputs: Vec<(String, HostTensor)>,
    labels: HostTensor,
    samples: usize,
}

impl<'s> Trainer<'s> {
    /// Prepares a run: checks everything and makes the plan, before the first step.
    ///
    /// # Errors
    /// When an option is out of range, the labels do not fit, the adapter is of another base, or the loss cannot be
    /// differentiated at one of its points.
    pub fn new(
        session: &'s mut Session,
        adapter: Adapter,
        data: &'s Dataset,
        options: TrainOptions,
    ) -> Result<Self, TrainError> {
        if let Some((option, found, expected)) = options.out_of_range() {
            return Err(TrainError::Option { option, found, expected });
        }
        session.expect_unmerged()?;
        expect_base(&adapter, session.base().fingerprint())?;
        let labels = data.labels().ok_or(DataError::NoLabels)?;
        let loss = options.loss.unwrap_or_else(|| losses::for_labels(labels));
        let output = find_output(session.base(), Some(&adapter), options.output.as_deref())?;
        let (rows, held_back) = match options.hold_back {
            Some(fraction) => data.split(fraction, options.seed)?,
            None => ((0..data.len()).collect(), Vec::new()),
        };
        let settings = options.settings();
        let batch = batch_rows(session.base(), options.batch_size, rows.len());
        let inputs = data.inputs().iter().map(|(name, array)| {
            let mut shape = array.shape().to_vec();
            shape[0] = batch;
            (name.clone(), shape)
        });
        let optimizer = Configured { optimizer: options.optimizer, settings };
        let key = PlanKey {
            inputs: inputs.collect(),
            bindings: adapter.bindings(),
            fragments: adapter.fragments(),
            training: Some(Training { output, loss, optimizer }),
            rows: None,
            merged: None,
        };
        let (prediction, expected) = session.engine.run(&key, |ready| {
            let plan = &ready.plan;
            let labels = plan.labels().expect("a plan that trains has labels");
            Ok((plan.outputs()[0].ty.shape.clone(), labels.clone()))
        })?;
        if prediction.first() != Some(&batch) {
            let name = key.training.as_ref().expect("it trains").output.clone();
            return Err(crate::session::SessionError::NotPerSample { name, shape: prediction, batch }.into());
        }
        check_labels(labels, &expected, loss.classes(&prediction))?;
        let batches = Batches::new(&options, rows.len(), batch);
        if options.warmup > batches.steps() {
            let (option, found) = ("warm-up", options.warmup.to_string());
            return Err(TrainError::Option { option, found, expected: "at most the steps of the run" });
        }
        let version = session.engine.next_version();
        Ok(Trainer {
            data,
            held_back,
            settings,
            loss,
            batches,
            batch,
            rows,
            rows_per_sample: loss.rows_per_sample(&prediction),
            shadow: Shadow::new(&adapter, options.optimizer.state(&settings)),
            adapter,
            options,
            key,
            version,
            step: 0,
            millis: Vec::new(),
            last_loss: None,
            session,
        })
    }

    /// Steps of the run.
    pub fn steps(&self) -> u64 {
        self.batches.steps()
    }

    /// Steps taken.
    pub fn steps_taken(&self) -> u64 {
        self.step
    }

    /// The adapter after the last good step.
    pub fn adapter(&self) -> Adapter {
        let mut adapter = self.adapter.clone();
        self.shadow.store(&mut adapter);
        adapter
    }

    /// Name of the device in use.
    pub fn device(&self) -> &str {
        &self.session.device().name
    }

    /// Takes one step; `None` when the run is over.
    ///
    /// # Errors
    /// When the device fails, or the loss or a parameter turns NaN or infinite. The adapter then stays as it was.
    pub fn step(&mut self) -> Result<Option<StepReport>, TrainError> {
        if self.step >= self.steps() {
            return Ok(None);
        }
        let start = Instant::now();
        let micros = self.micros();
        let mut values = self.step_values(&micros);
        let (shadow, version) = (&self.shadow, self.version);
        let next = self.session.engine.next_version();
        let rows_per_sample = self.rows_per_sample;
        let (loss, grad_norm, after) = self.session.engine.run(&self.key, |ready| {
            if ready.versions != [Some(version)] {
                shadow.write(&ready.plan, ready.executable.as_mut())?;
            }
            ready.versions = vec![None];
            let Ready { plan, executable, .. } = &mut *ready;
            let (mut loss, mut found) = (0.0, [0.0; stats::LEN]);
            for (i, micro) in micros.iter().enumerate() {
                let inputs: Vec<_> = micro.inputs.iter().map(|(name, x)| (name.as_str(), x)).collect();
                plan.feed(executable.as_mut(), &inputs, Some(&micro.labels))?;
                values[step::VALID_ROWS] = (micro.samples * rows_per_sample) as f32;
                values[step::ACCUMULATE] = if i == 0 { 0.0 } else { 1.0 };
                executable.write(Region::Step, 0, &values)?;
                let last = i + 1 == micros.len();
                executable.run(if last { &Segment::ALL } else { &[Segment::Forward, Segment::Backward] })?;
                executable.read(Region::Stats, 0, &mut found)?;
                loss += found[stats::LOSS];
            }
            let after = shadow.read(plan, executable.as_mut())?;
            ready.versions = vec![Some(next)];
            Ok((loss, found[stats::GRAD_NORM], after))
        })?;
        let number = self.step + 1;
        for (what, value) in [("the loss", Some(loss).filter(|x| !x.is_finite())), ("a parameter", after.not_finite())]
        {
            if let Some(value) = value {
                return Err(TrainError::NotFinite { what, value, step: number });
            }
        }
        let ms = start.elapsed().as_secs_f64() * 1e3;
        let epoch = self.batches.epoch_of(self.step) + 1;
        (self.shadow, self.version, self.step) = (after, next, number);
        self.millis.push(ms);
        self.last_loss = Some(loss);
        Ok(Some(StepReport { step: number, steps: self.steps(), epoch, loss, lr: values[step::LR], grad_norm, ms }))
    }

    /// Takes the steps that are left; `observe` hears of each, and may stop the run. Then the adapter has to pass.
    ///
    /// # Errors
    /// As for [`Trainer::step`]; when the adapter changes nothing; and when samples were held back and it does not beat
    /// the base on them.
    pub fn run(&mut self, mut observe: impl FnMut(&StepReport) -> ControlFlow<()>) -> Result<Trained, TrainError> {
        let mut stopped = false;
        while let Some(report) = self.step()? {
            if observe(&report).is_break() {
                stopped = self.step < self.steps();
                break;
            }
        }
        let adapter = self.adapter();
        if adapter.changes_nothing() {
            return Err(AdapterError::ChangesNothing.into());
        }
        let verdict = self.verdict(&adapter)?;
        if let Some(verdict) = verdict.filter(|verdict| !verdict.is_better()) {
            return Err(TrainError::NotBetter { verdict });
        }
        let (loss, ms_per_step) = (self.last_loss.unwrap_or(f32::NAN), median(&self.millis));
        Ok(Trained { adapter, steps: self.step, stopped, loss, ms_per_step, verdict })
    }

    /// The gradients of the last step before clipping, by the names of the graph inputs.
    ///
    /// # Errors
    /// When no step was taken.
    pub fn gradients(&mut self) -> Result<Vec<(String, HostTensor)>, TrainError> {
        let version = self.version;
        let read = self.session.engine.run(&self.key, |ready| {
            let Ready { plan, executable, versions } = ready;
            if *versions != [Some(version)] {
                return Ok(None);
            }
            Ok::<_, FeedError>(Some(read_region(Region::Grads, plan, executable.as_mut())?))
        })?;
        let mut rest = read.filter(|_| self.step > 0).ok_or(TrainError::NoGradients)?.into_iter();
        let gradient = |(binding, values): (&crate::plan::Binding, &[f32])| {
            let values: Vec<f32> = rest.by_ref().take(values.len()).collect();
            (binding.name.clone(), HostTensor::of(binding.shape.clone(), values))
        };
        Ok(self.adapter.tensors().map(gradient).collect())
    }

    /// What is needed beside `record` (the adapter, as saved) to continue this run later: the bytes of a state file.
    ///
    /// # Errors
    /// When `record` is no record.
    pub fn state(&self, record: &[u8]) -> Result<Vec<u8>, TrainError> {
        let record = Record::decode(record).map_err(AdapterError::from)?;
        let header = state::Header {
            record: record.checksum(),
            optimizer: self.options.optimizer.id(),
            step: self.step,
            seed: self.options.seed,
        };
        let arrays: Vec<&[f32]> = self.shadow.arrays.iter().map(|(_, values)| values.as_slice()).collect();
        let arrays: Vec<&[&[f32]]> = arrays.iter().map(std::slice::from_ref).collect();
        let mut bytes = vec![0; state::encoded_len(&header, &arrays)?];
        state::encode(&header, &arrays, &mut bytes)?;
        Ok(bytes)
    }

    /// Continues where the run that wrote `state` stopped: the same parameters, optimizer memory, step and order.
    ///
    /// # Errors
    /// When the state is damaged, of another adapter or optimizer, or does not continue `record`.
    pub fn resume(&mut self, record: &[u8], state: &[u8]) -> Result<(), TrainError> {
        let record = Record::decode(record).map_err(AdapterError::from)?;
        let state = State::decode(state)?;
        state.expect(record.checksum(), self.options.optimizer.id())?;
        let (expected, parameters) = (self.shadow.arrays.len(), self.shadow.len());
        let (found, elements) = (state.arrays().len(), state.elements());
        if (found, elements) != (expected, parameters) {
            return Err(TrainError::StateSize { found, elements, expected, parameters });
        }
        for ((_, values), saved) in self.shadow.arrays.iter_mut().zip(state.arrays()) {
            *values = saved.collect();
        }
        self.options.seed = state.header().seed;
        self.batches = Batches::new(&self.options, self.rows.len(), self.batch);
        self.step = state.header().step;
        self.version = self.session.engine.next_version();
        Ok(())
    }

    /// The micro-batches of the next step, short ones padded.
    fn micros(&mut self) -> Vec<Micro> {
        let labels = self.data.labels().expect("checked when the trainer was made");
        let of_step = self.batches.of_step(self.step);
        let micro = |positions: Vec<usize>| {
            let samples = positions.len();
            let rows = padded_rows(positions.into_iter().map(|at| self.rows[at]), self.batch);
            let inputs = self.data.inputs().iter().map(|(name, x)| (name.clone(), select_rows(x, &rows)));
            Micro { inputs: inputs.collect(), labels: select_rows(labels, &rows), samples }
        };
        of_step.into_iter().map(micro).collect()
    }

    /// The contents of the step region, but for what differs between micro-batches.
    fn step_values(&self, micros: &[Micro]) -> [f32; step::LEN] {
        let TrainOptions { lr, schedule, warmup, clip_norm, .. } = &self.options;
        let OptimizerSettings { beta1, beta2, .. } = self.settings;
        let terms: usize = micros.iter().map(|micro| self.loss.terms(&micro.labels, micro.samples)).sum();
        let taken = i32::try_from(self.step + 1).unwrap_or(i32::MAX);
        let correction = |beta: f32| (1.0 - f64::from(beta).powi(taken)) as f32;
        let mut values = [0.0; step::LEN];
        values[step::LR] = (f64::from(*lr) * schedule.factor(self.step, self.steps(), *warmup)) as f32;
        values[step::BIAS_CORRECTION_1] = correction(beta1);
        values[step::BIAS_CORRECTION_2] = correction(beta2);
        // A step of ignored labels alone has no gradient.
        values[step::LOSS_SCALE] = (1.0 / terms.max(1) as f64) as f32;
        values[step::MAX_NORM] = clip_norm.unwrap_or(f32::INFINITY);
        values[step::FIRST] = if self.step == 0 { 1.0 } else { 0.0 };
        values
    }

    /// The positions of the samples that were held back, in ascending order; none if none were.
    pub fn held_back(&self) -> &[usize] {
        &self.held_back
    }

    /// How base and adapter, as it now is, do on the samples held back; `None` if none were.
    ///
    /// # Errors
    /// When the device fails, or the adapter changes nothing yet.
    pub fn judge(&mut self) -> Result<Option<Verdict>, TrainError> {
        let adapter = self.adapter();
        self.verdict(&adapter)
    }

    fn verdict(&mut self, adapter: &Adapter) -> Result<Option<Verdict>, TrainError> {
        if self.held_back.is_empty() {
            return Ok(None);
        }
        let data = self.data.select(&self.held_back);
        let output = self.key.training.as_ref().expect("it trains").output.clone();
        // What the adapter adds, the base alone does not have.
        let start = adapter.outputs().any(|added| added == output).then(|| self.adapter.clone());
        let before = self.session.swap_adapter(None);
        let mut evaluate = |adapter| {
            self.session.swap_adapter(adapter);
            self.session.evaluate(&data, Some(self.loss), Some(&output), self.batch, |_| ())
        };
        let verdict = evaluate(start).and_then(|base| Ok(Verdict { base, adapter: evaluate(Some(adapter.clone()))? }));
        self.session.swap_adapter(before);
        verdict.map(Some)
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
