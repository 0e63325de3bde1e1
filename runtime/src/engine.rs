//! Plans on a device: made once, kept, and moved to the CPU when a GPU fails.

use std::sync::Arc;

use inlay_devices::backend::{DeviceError, DeviceInfo, Executable};
use inlay_devices::program::Segment;

use crate::base::Base;
use crate::device::Devices;
use crate::log::LogSink;
use crate::lru::Lru;
use crate::plan::{Binding, FeedError, Mode, Plan, PlanError, PlanRequest};
use crate::train::losses::Loss;
use crate::train::optimizers::Configured;

/// Why a batch could not be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The model cannot be run with these shapes.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The batch does not fit the model, or the device failed.
    #[error(transparent)]
    Feed(#[from] FeedError),
}

impl From<DeviceError> for RunError {
    fn from(error: DeviceError) -> Self {
        RunError::Feed(error.into())
    }
}

/// What a plan is made for, owned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PlanKey {
    /// Name and shape of each input.
    pub inputs: Vec<(String, Vec<usize>)>,
    pub bindings: Vec<Binding>,
    /// `None` for prediction.
    pub training: Option<Training>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Training {
    pub output: String,
    pub loss: &'static dyn Loss,
    pub optimizer: Configured,
}

impl PlanKey {
    fn plan(&self, base: &Base) -> Result<Plan, PlanError> {
        let inputs: Vec<(&str, &[usize])> =
            self.inputs.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        let mode = match &self.training {
            None => Mode::Predict,
            Some(Training { output, loss, optimizer }) => Mode::Train { output, loss: loss.as_plan(), optimizer },
        };
        Plan::new(base, &PlanRequest { inputs: &inputs, parameters: &self.bindings, mode })
    }

    fn segments(&self) -> &'static [Segment] {
        if self.training.is_some() { &Segment::ALL } else { &[Segment::Forward] }
    }
}

/// A number that no other parameters have: an executable that holds it has them already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version(u64);

/// A plan that is ready to run.
pub(crate) struct Ready {
    pub plan: Plan,
    pub executable: Box<dyn Executable>,
    /// The parameters that the executable holds; `None` when they have to be written.
    pub version: Option<Version>,
}

/// The devices of a session and the plans on them.
pub(crate) struct Engine {
    base: Base,
    devices: Devices,
    log: LogSink,
    plans: Lru<PlanKey, Ready>,
    versions: u64,
}

impl Engine {
    pub fn new(base: Base, devices: Devices, log: LogSink, plan_cache: usize) -> Self {
        Engine { base, devices, log, plans: Lru::new(plan_cache), versions: 0 }
    }

    pub fn base(&self) -> &Base {
        &self.base
    }

    /// The device in use; the CPU as long as none was chosen.
    pub fn device(&self) -> &DeviceInfo {
        self.devices.current().info()
    }

    pub fn next_version(&mut self) -> Version {
        self.versions += 1;
        Version(self.versions)
    }

    /// Has `work` done on the plan of `key`. When a GPU fails at it, the CPU does it again from the start: `work` writes
    /// all that the executable does not hold by its `version`.
    pub fn run<T>(
        &mut self,
        key: &PlanKey,
        mut work: impl FnMut(&mut Ready) -> Result<T, FeedError>,
    ) -> Result<T, RunError> {
        let error = match self.ready(key) {
            Ok(ready) => match work(ready) {
                Err(FeedError::Device(error)) => error,
                done => return Ok(done?),
            },
            Err(RunError::Feed(FeedError::Device(error))) => error,
            Err(error) => return Err(error),
        };
        if !self.devices.fall_back(&error, &self.log) {
            return Err(error.into());
        }
        self.plans.clear();
        Ok(work(self.ready(key)?)?)
    }

    fn ready(&mut self, key: &PlanKey) -> Result<&mut Ready, RunError> {
        let Engine { base, devices, log, plans, .. } = self;
        plans.get_or_try_insert(key.clone(), |key| {
            let plan = key.plan(base)?;
            devices.decide(base.fingerprint(), &plan, key.segments(), log);
            let executable = devices.current().compile(Arc::clone(plan.program()))?;
            Ok(Ready { plan, executable, version: None })
        })
    }
}
