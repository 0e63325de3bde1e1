//! Plans on a device: made once, kept, and moved to the CPU when a GPU fails.

use std::sync::Arc;

use inlay_devices::backend::{DeviceError, DeviceInfo, Executable};
use inlay_devices::program::Segment;

use crate::base::Base;
use crate::device::Devices;
use crate::graph::Fragment;
use crate::log::LogSink;
use crate::lru::Lru;
use crate::merge::Merged;
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
    /// What the adapter adds to the graph.
    pub fragments: Vec<Fragment>,
    /// `None` for prediction.
    pub training: Option<Training>,
    /// Samples that have parameters of their own.
    pub rows: Option<usize>,
    /// The weights that take the place of the base's.
    pub merged: Option<Arc<InPlace>>,
}

/// Merged weights, told from others by their version.
#[derive(Debug)]
pub(crate) struct InPlace {
    pub version: Version,
    pub merged: Merged,
}

impl PartialEq for InPlace {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version
    }
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
        let merged = self.merged.as_ref().map(|in_place| &in_place.merged);
        let (parameters, fragments) = (&self.bindings, &self.fragments);
        Plan::new(base, &PlanRequest { inputs: &inputs, parameters, fragments, mode, rows: self.rows, merged })
    }

    fn segments(&self) -> &'static [Segment] {
        if self.training.is_some() { &Segment::ALL } else { &[Segment::Forward] }
    }
}

/// A number that no other parameters have: an executable that holds it has them already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version(u64);

impl Version {
    /// No parameters but zeros.
    pub const ZEROS: Version = Version(0);
}

/// A plan that is ready to run.
pub(crate) struct Ready {
    pub plan: Plan,
    pub executable: Box<dyn Executable>,
    /// The parameters that the executable holds, of each sample where they have their own; `None` when they have to be
    /// written.
    pub versions: Vec<Option<Version>>,
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

    /// Forgets the plans that were made with merged weights, and those weights with them.
    pub fn forget_merged(&mut self) {
        self.plans.retain(|key| key.merged.is_none());
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
            let versions = vec![None; key.rows.unwrap_or(1)];
            Ok(Ready { plan, executable, versions })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use inlay_devices::backend::{Backend, DeviceKind};
    use inlay_devices::plain::Plain;
    use inlay_devices::program::{Program, Region};

    use super::*;
    use crate::adapters::{Adapter, AdapterOptions};
    use crate::base::Verify;
    use crate::data::Dataset;
    use crate::device::Choosing;
    use crate::session::Session;
    use crate::train::{TrainOptions, Trainer};

    /// The plain backend, which calls itself a GPU and fails for good after so many calls that can fail.
    struct Failing {
        plain: Plain,
        info: DeviceInfo,
        calls: Arc<Calls>,
    }

    struct Calls {
        left: AtomicUsize,
    }

    impl Calls {
        fn next(&self) -> Result<(), DeviceError> {
            let enough = |left: usize| left.checked_sub(1);
            match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough) {
                Ok(_) => Ok(()),
                Err(_) => Err(DeviceError::Timeout { device: "fails".into(), limit: Duration::from_nanos(1) }),
            }
        }
    }

    impl Failing {
        fn after(calls: usize) -> Self {
            let plain = Plain::default();
            let info = DeviceInfo { kind: DeviceKind::VulkanGpu, name: "fails".into(), ..plain.info().clone() };
            Failing { plain, info, calls: Arc::new(Calls { left: AtomicUsize::new(calls) }) }
        }
    }

    impl Backend for Failing {
        fn info(&self) -> &DeviceInfo {
            &self.info
        }

        fn compile(&self, program: Arc<Program>) -> Result<Box<dyn Executable>, DeviceError> {
            self.calls.next()?;
            Ok(Box::new(FailingExecutable { plain: self.plain.compile(program)?, calls: Arc::clone(&self.calls) }))
        }
    }

    struct FailingExecutable {
        plain: Box<dyn Executable>,
        calls: Arc<Calls>,
    }

    impl Executable for FailingExecutable {
        fn write(&mut self, region: Region, offset: usize, values: &[f32]) -> Result<(), DeviceError> {
            self.calls.next()?;
            self.plain.write(region, offset, values)
        }

        fn write_ints(&mut self, offset: usize, values: &[i32]) -> Result<(), DeviceError> {
            self.calls.next()?;
            self.plain.write_ints(offset, values)
        }

        fn read(&mut self, region: Region, offset: usize, values: &mut [f32]) -> Result<(), DeviceError> {
            self.calls.next()?;
            self.plain.read(region, offset, values)
        }

        fn run(&mut self, segments: &[Segment]) -> Result<(), DeviceError> {
            self.calls.next()?;
            self.plain.run(segments)
        }
    }

    struct Run {
        losses: Vec<f32>,
        record: Vec<u8>,
        outputs: Vec<(String, crate::HostTensor)>,
        events: Vec<String>,
        device: String,
    }

    /// Trains and predicts on a GPU that fails after so many calls.
    fn run(calls: usize, choice: Choosing) -> Run {
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&events);
        let log = LogSink::new(move |event| sink.lock().unwrap().push(event.to_string()));
        let base = Base::open("tests/data/tiny", Verify::Full).unwrap();
        let devices = Devices::with_gpu(Arc::new(Plain::default()), Arc::new(Failing::after(calls)), choice);
        let mut session = Session::on(Engine::new(base, devices, log, 2));
        let data = Dataset::read(session.base(), "tests/data/tiny.npz").unwrap();
        let adapter = Adapter::new(session.base(), &AdapterOptions::lora(2).seed(1)).unwrap();
        let options = TrainOptions::new().steps(6).batch_size(16).accumulate(2).lr(1e-2);
        let mut losses = Vec::new();
        let trained = Trainer::new(&mut session, adapter, &data, options).unwrap().run(|step| {
            losses.push(step.loss);
            ControlFlow::Continue(())
        });
        let adapter = trained.unwrap().adapter;
        let record = adapter.to_record(crate::Dtype::F32).unwrap();
        session.set_adapter(Some(adapter)).unwrap();
        let outputs = session.predict_all(&data, 16, |_| ()).unwrap();
        let device = session.device().name.clone();
        let events = events.lock().unwrap().clone();
        Run { losses, record, outputs, events, device }
    }

    #[test]
    fn a_gpu_that_fails_anywhere_loses_no_step() {
        let whole = run(usize::MAX, Choosing::Gpu);
        assert_eq!((whole.device.as_str(), whole.events.len()), ("fails", 0));
        for calls in 0..150 {
            let run = run(calls, Choosing::Gpu);
            assert_eq!(run.losses, whole.losses, "after {calls} calls");
            assert_eq!(run.record, whole.record, "after {calls} calls");
            assert_eq!(run.outputs, whole.outputs, "after {calls} calls");
            if run.device == "fails" {
                assert!(calls > 80, "too few calls to mean much");
                return;
            }
            let [event] = run.events.as_slice() else { panic!("{:?}", run.events) };
            assert!(event.starts_with("fails failed, the CPU carries on without losing a step"), "{event}");
        }
        panic!("a run takes fewer calls than this");
    }

    #[test]
    fn a_device_is_chosen_once_and_told() {
        let chosen = run(usize::MAX, Choosing::Undecided);
        let [event] = chosen.events.as_slice() else { panic!("{:?}", chosen.events) };
        assert!(event.contains("ms on the CPU") && event.contains("ms on fails, measured now"), "{event}");
        let refused = run(3, Choosing::Undecided);
        assert_eq!(refused.device, "CPU (plain bodies)");
        let [event] = refused.events.as_slice() else { panic!("{:?}", refused.events) };
        assert!(event.starts_with("not using fails: "), "{event}");
        assert_eq!(chosen.record, refused.record);
    }
}
