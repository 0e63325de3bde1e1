//! A base on a device, with or without an adapter.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use inlay_devices::backend::{DeviceError, DeviceInfo};
use inlay_devices::program::Segment;
use inlay_format::metadata::Fingerprint;
use inlay_format::record::{BaseId, RecordError};

use crate::adapters::{Adapter, AdapterError};
use crate::base::{Base, LoadError, Verify};
use crate::data::{Dataset, concatenate, select_rows};
use crate::device::{DeviceOptions, Devices};
use crate::engine::{Engine, InPlace, PlanKey, Ready, RunError};
use crate::graph::HostTensor;
use crate::log::LogSink;
use crate::merge::MergeError;
use crate::onnx::Dim;
use crate::plan::FeedError;

mod merged;
mod residents;
mod rows;

use residents::{Changes, Resident};

/// How a session computes.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Which device, and how to open it.
    pub device: DeviceOptions,
    /// Where events go.
    pub log: LogSink,
    /// Plans that are kept: one for each set of input shapes, prediction and training apart. Each has its own memory.
    pub plan_cache: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions { device: DeviceOptions::default(), log: LogSink::default(), plan_cache: 4 }
    }
}

/// Why a session cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The base cannot be opened.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device cannot be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The adapter cannot be used here.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A batch cannot be computed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// No adapter of that name is resident.
    #[error("no adapter \"{name}\" is resident; there are: {known}")]
    NotResident {
        /// The name asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// An adapter whose kind cannot differ between the samples of a batch.
    #[error(
        "adapter \"{name}\" is of kind \"{kind}\", which cannot differ between the samples of one batch; predict the samples of each adapter in a batch of their own"
    )]
    NotMixable {
        /// The adapter.
        name: String,
        /// Its kind.
        kind: &'static str,
    },
    /// The adapter cannot be merged.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// Adapters are of the base, not of what was merged into it.
    #[error("an adapter is merged into the base; unmerge it before another is merged, used or trained")]
    IsMerged,
    /// An output does not have one row a sample, so that batches cannot be joined.
    #[error(
        "output \"{name}\" has shape {shape:?} for a batch of {batch}, not one row a sample; predict all samples in one batch"
    )]
    NotPerSample {
        /// The output.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Samples in the batch.
        batch: usize,
    },
}

/// A base on a device, with or without an adapter. Adapters are swapped without opening the base again.
///
/// ```
/// use inlay_runtime::{HostTensor, Session};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut session = Session::open("tests/data/tiny")?;
/// let x = HostTensor::new([2, 3], vec![0.5, -1.0, 2.0, 1.0, 0.0, -0.5]).expect("six values");
/// let outputs = session.predict(&[("x", &x)])?;
/// assert_eq!(outputs[0].0, "logits");
/// assert_eq!(outputs[0].1.shape(), [2, 2]);
/// # Ok(())
/// # }
/// ```
pub struct Session {
    pub(crate) engine: Engine,
    /// By name.
    residents: BTreeMap<String, Arc<Resident>>,
    in_use: Option<Arc<Resident>>,
    merged: Option<Arc<InPlace>>,
}

impl Session {
    /// Opens an exported folder on the device that [`Device::Auto`](crate::Device::Auto) chooses.
    ///
    /// # Errors
    /// When the base is damaged or no converter exported it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SessionError> {
        Self::new(Base::open(path, Verify::Full)?, SessionOptions::default())
    }

    /// A session on an open base.
    ///
    /// # Errors
    /// When the device cannot be opened.
    pub fn new(base: Base, options: SessionOptions) -> Result<Self, SessionError> {
        let devices = Devices::open(&options.device, &options.log)?;
        Ok(Self::on(Engine::new(base, devices, options.log, options.plan_cache)))
    }

    pub(crate) fn on(engine: Engine) -> Self {
        Session { engine, residents: BTreeMap::new(), in_use: None, merged: None }
    }

    /// The base.
    pub fn base(&self) -> &Base {
        self.engine.base()
    }

    /// The device in use; until the first batch the CPU, where a choice is still to be made.
    pub fn device(&self) -> &DeviceInfo {
        self.engine.device()
    }

    /// The adapter in use.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.in_use.as_ref().map(|resident| resident.adapter())
    }

    /// Puts an adapter in use, or none; gives back the one that was. To swap between several, see
    /// [`Session::add_adapter`].
    ///
    /// An adapter is refused when its values change nothing, such as a factor of zeros at every point, and when one of its
    /// points is where no output depends on it. That no number on the way swallows its effect only inputs can prove: see
    /// [`Session::prove_effect`].
    ///
    /// # Errors
    /// When the adapter belongs to another base or has no effect, or another is merged; the one in use stays.
    pub fn set_adapter(&mut self, adapter: Option<Adapter>) -> Result<Option<Adapter>, SessionError> {
        let next = adapter.map(|adapter| self.resident(adapter)).transpose()?;
        Ok(std::mem::replace(&mut self.in_use, next).map(residents::taken))
    }

    /// Puts an adapter in use that was checked, or is about to be trained.
    pub(crate) fn swap_adapter(&mut self, adapter: Option<Adapter>) -> Option<Adapter> {
        let next = adapter.map(|adapter| self.unchecked(adapter));
        std::mem::replace(&mut self.in_use, next).map(residents::taken)
    }

    /// Every output for one batch of inputs, by name.
    ///
    /// # Errors
    /// When an input is missing or does not fit, or the device fails.
    pub fn predict(&mut self, inputs: &[(&str, &HostTensor)]) -> Result<Vec<(String, HostTensor)>, SessionError> {
        let adapters = [self.in_use.clone()];
        self.run(inputs, self.changes(), None, &adapters)
    }

    /// Makes ready what a prediction for inputs of these names and shapes needs: its plan is made, and the parameters of
    /// the adapter in use are on the device. Predictions do this themselves; done ahead, the first one does not wait.
    ///
    /// # Errors
    /// As for [`Session::predict`].
    pub fn prepare(&mut self, inputs: &[(&str, &[usize])]) -> Result<(), SessionError> {
        let inputs = inputs.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
        let key = self.key(inputs, self.changes(), None);
        let adapters = [self.in_use.clone()];
        Ok(self.engine.run(&key, |ready| residents::write(ready, &key.bindings, &adapters))?)
    }

    /// Computes a batch with the parameters of one adapter, or of one a sample.
    fn run(
        &mut self,
        inputs: &[(&str, &HostTensor)],
        changes: Changes,
        rows: Option<usize>,
        adapters: &[Option<Arc<Resident>>],
    ) -> Result<Vec<(String, HostTensor)>, SessionError> {
        let shapes = inputs.iter().map(|(name, x)| ((*name).to_owned(), x.shape().to_vec())).collect();
        let key = self.key(shapes, changes, rows);
        let outputs = self.engine.run(&key, |ready| {
            residents::write(ready, &key.bindings, adapters)?;
            let Ready { plan, executable, .. } = ready;
            let fed = plan.feed(executable.as_mut(), inputs, None)?;
            executable.run(&[Segment::Forward])?;
            let read = |(at, output): (usize, &crate::plan::PlanOutput)| {
                Ok((output.name.clone(), plan.read(executable.as_mut(), &fed, at)?))
            };
            plan.outputs().iter().enumerate().map(read).collect::<Result<Vec<_>, FeedError>>()
        })?;
        Ok(outputs)
    }

    /// The plan of a prediction.
    fn key(&self, inputs: Vec<(String, Vec<usize>)>, changes: Changes, rows: Option<usize>) -> PlanKey {
        let Changes { bindings, fragments } = changes;
        PlanKey { inputs, bindings, fragments, training: None, rows, merged: self.merged.clone() }
    }

    /// What the adapter in use changes.
    fn changes(&self) -> Changes {
        self.in_use.as_ref().map(|resident| resident.changes().clone()).unwrap_or_default()
    }

    /// Every output for all samples of a data set, computed `batch_size` at a time; `progress` hears how many are done.
    ///
    /// # Errors
    /// As for [`Session::predict`], and when an output does not have one row a sample.
    pub fn predict_all(
        &mut self,
        data: &Dataset,
        batch_size: usize,
        mut progress: impl FnMut(usize),
    ) -> Result<Vec<(String, HostTensor)>, SessionError> {
        let mut joined: Vec<(String, Vec<HostTensor>)> = Vec::new();
        self.for_each_batch(data, batch_size, |rows, outputs| {
            for (at, (name, output)) in outputs.into_iter().enumerate() {
                match joined.get_mut(at) {
                    Some((_, parts)) => parts.push(output),
                    None => joined.push((name, vec![output])),
                }
            }
            progress(rows.end);
            Ok::<_, SessionError>(())
        })?;
        Ok(joined.into_iter().map(|(name, parts)| (name, concatenate(&parts))).collect())
    }

    /// Hands the outputs of each batch, one row a sample, to `each`, with the positions of its samples.
    pub(crate) fn for_each_batch<E: From<SessionError>>(
        &mut self,
        data: &Dataset,
        batch_size: usize,
        mut each: impl FnMut(Range<usize>, Vec<(String, HostTensor)>) -> Result<(), E>,
    ) -> Result<(), E> {
        let batch = batch_rows(self.base(), batch_size, data.len());
        for start in (0..data.len()).step_by(batch) {
            let valid = start..(start + batch).min(data.len());
            let rows = padded_rows(valid.clone(), batch);
            let inputs: Vec<(&str, HostTensor)> =
                data.inputs().iter().map(|(name, x)| (name.as_str(), select_rows(x, &rows))).collect();
            let inputs: Vec<(&str, &HostTensor)> = inputs.iter().map(|(name, x)| (*name, x)).collect();
            let mut outputs = self.predict(&inputs)?;
            for (name, output) in &mut outputs {
                if output.shape().first() != Some(&batch) {
                    let (name, shape) = (std::mem::take(name), output.shape().to_vec());
                    return Err(SessionError::NotPerSample { name, shape, batch }.into());
                }
                if valid.len() < batch {
                    *output = select_rows(output, &(0..valid.len()).collect::<Vec<_>>());
                }
            }
            each(valid, outputs)?;
        }
        Ok(())
    }
}

/// Checks that an adapter belongs to the base with this fingerprint.
pub(crate) fn expect_base(adapter: &Adapter, fingerprint: Fingerprint) -> Result<(), AdapterError> {
    let (expected, found) = (BaseId::from(fingerprint), adapter.base());
    if expected == found { Ok(()) } else { Err(RecordError::OtherBase { expected, found }.into()) }
}

/// Samples of a batch: as many as wanted and there are, or as many as the base insists on.
pub(crate) fn batch_rows(base: &Base, wanted: usize, samples: usize) -> usize {
    let fixed = base.inputs().iter().find_map(|port| match port.shape.first() {
        Some(Dim::Fixed(rows)) => Some(*rows),
        _ => None,
    });
    fixed.unwrap_or(wanted.min(samples)).max(1)
}

/// `rows` and then the last of them again, up to `batch`.
pub(crate) fn padded_rows(rows: impl IntoIterator<Item = usize>, batch: usize) -> Vec<usize> {
    let mut padded: Vec<usize> = rows.into_iter().collect();
    let last = padded.last().copied().unwrap_or(0);
    padded.resize(batch, last);
    padded
}
