use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::PoisonError;

use bytemuck::{Pod, Zeroable};

use super::sync::{
    Arc, AtomicUsize, Builder, Condvar, JoinHandle, Mutex, MutexGuard, Ordering, SCRATCH_LEN, SPINS, spin_loop,
};

/// A cache line, so that scratch starts at one.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Line([f32; 16]);

fn scratch() -> Vec<Line> {
    vec![Line([0.0; 16]); SCRATCH_LEN / 16]
}

/// A fixed set of threads that run the tasks of one job at a time. Nothing is allocated after it was made.
///
/// Which thread runs a task is open; what a task computes must depend on its number alone. Results are then the same
/// for any number of threads.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Scratch of the thread that asks; held while a job runs, so that jobs of several askers take turns.
    caller: Mutex<Vec<Line>>,
}

/// A task body: task number, scratch of the thread.
type Body<'a> = dyn Fn(usize, &mut [f32]) + Sync + 'a;

struct Shared {
    state: Mutex<State>,
    /// Signals a new job or the end.
    wake: Condvar,
    /// Signals that the last worker left a job.
    left: Condvar,
    /// Copy of `State::epoch` to spin on.
    epoch: AtomicUsize,
    /// Workers inside the job. Raised only under the lock of `state`.
    active: AtomicUsize,
    /// Next task of the job.
    next: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// The open job; a worker may enter while it is there.
    job: Option<Job>,
    /// Counts jobs.
    epoch: usize,
    stop: bool,
    panic: Option<Box<dyn Any + Send>>,
}

#[derive(Clone, Copy)]
struct Job {
    body: *const Body<'static>,
    tasks: usize,
}

// SAFETY: the body is `Sync`, and `Pool::run` keeps it alive until every worker left the job.
unsafe impl Send for Job {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while a lock is held; a body's panic is carried to the asker.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool that computes on `threads` threads, the asking one included; 1 starts none.
    ///
    /// # Errors
    /// When the system starts no more threads.
    pub fn new(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: Condvar::new(),
            left: Condvar::new(),
            epoch: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
        });
        let mut pool = Pool { shared, workers: Vec::new(), caller: Mutex::new(scratch()) };
        for i in 1..threads {
            let shared = Arc::clone(&pool.shared);
            // On an error `pool` is dropped, which ends the threads started so far.
            let worker = Builder::new().name(format!("inlay-{i}")).spawn(move || shared.work())?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Number of threads that compute, the asking one included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `body` for every task in `0..tasks` and returns when all are done. `body` must not ask the pool again.
    ///
    /// # Panics
    /// When `body` does.
    pub fn run(&self, tasks: usize, body: impl Fn(usize, &mut [f32]) + Sync) {
        let mut scratch = lock(&self.caller);
        let scratch = bytemuck::cast_slice_mut(scratch.as_mut_slice());
        if self.workers.is_empty() || tasks <= 1 {
            (0..tasks).for_each(|task| body(task, scratch));
            return;
        }
        let body: &Body<'_> = &body;
        // SAFETY: only the lifetime is changed. Workers use the body between entering the job and leaving it; `close`
        // runs before this function returns or unwinds, shuts the job, and waits until all have left.
        let erased = unsafe { std::mem::transmute::<*const Body<'_>, *const Body<'static>>(body) };
        self.shared.open(Job { body: erased, tasks });
        let closing = Close(&self.shared);
        self.shared.take_tasks(tasks, body, scratch);
        drop(closing);
        let panic = lock(&self.shared.state).panic.take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Cuts each output into chunks of its given length, and runs `body` with the chunks of the same number.
    pub fn split<const N: usize>(
        &self,
        outputs: [(&mut [f32], usize); N],
        body: impl Fn(usize, [&mut [f32]; N], &mut [f32]) + Sync,
    ) {
        let tasks = outputs.iter().map(|(y, chunk)| y.len().div_ceil(*chunk)).max().unwrap_or(0);
        let outputs = outputs.map(|(y, chunk)| (Disjoint::new(y), chunk));
        self.run(tasks, |task, scratch| {
            let chunks = outputs.each_ref().map(|(y, chunk)| {
                let start = (task * chunk).min(y.len());
                // SAFETY: chunks of different tasks do not overlap, and each task runs once.
                unsafe { y.range(start, (*chunk).min(y.len() - start)) }
            });
            body(task, chunks, scratch);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.epoch.fetch_add(1, Ordering::Release);
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches what its bodies throw; there is no panic to report.
            let _ = worker.join();
        }
    }
}

/// Shuts the job when dropped, also while unwinding.
struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Shared {
    fn open(&self, job: Job) {
        let mut state = lock(&self.state);
        self.next.store(0, Ordering::Relaxed);
        state.job = Some(job);
        state.epoch += 1;
        self.epoch.store(state.epoch, Ordering::Release);
        drop(state);
        self.wake.notify_all();
    }

    /// Lets no more workers in, and waits for those inside.
    fn close(&self) {
        // Tasks that are left, when the asker unwinds, are not started.
        self.next.fetch_add(usize::MAX / 2, Ordering::Relaxed);
        lock(&self.state).job = None;
        for _ in 0..SPINS {
            if self.active.load(Ordering::Acquire) == 0 {
                return;
            }
            spin_loop();
        }
        let mut state = lock(&self.state);
        while self.active.load(Ordering::Acquire) != 0 {
            state = self.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take_tasks(&self, tasks: usize, body: &Body<'_>, scratch: &mut [f32]) {
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            body(task, scratch);
        }
    }

    /// What a worker does until the pool ends.
    fn work(&self) {
        let mut scratch = scratch();
        let mut seen = 0;
        loop {
            for _ in 0..SPINS {
                if self.epoch.load(Ordering::Acquire) != seen {
                    break;
                }
                spin_loop();
            }
            let mut state = lock(&self.state);
            while state.epoch == seen && !state.stop {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stop {
                return;
            }
            seen = state.epoch;
            let Some(job) = state.job else { continue };
            self.active.fetch_add(1, Ordering::Relaxed);
            drop(state);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                // SAFETY: this worker is inside the job, so that the body is alive; see `Pool::run`.
                let body = unsafe { &*job.body };
                self.take_tasks(job.tasks, body, bytemuck::cast_slice_mut(&mut scratch));
            }));
            let mut state = lock(&self.state);
            if let Err(panic) = outcome {
                state.panic = Some(panic);
            }
            self.active.fetch_sub(1, Ordering::Release);
            self.left.notify_all();
        }
    }
}

/// A slice of which tasks write disjoint parts.
pub struct Disjoint {
    ptr: *mut f32,
    len: usize,
}

// SAFETY: access goes through `range`, whose callers keep parts disjoint.
unsafe impl Sync for Disjoint {}

impl Disjoint {
    /// The parts of `y`, which the caller keeps borrowed while they are in use.
    pub fn new(y: &mut [f32]) -> Self {
        Disjoint { ptr: y.as_mut_ptr(), len: y.len() }
    }

    /// Length of the whole.
    pub fn len(&self) -> usize {
        self.len
    }

    /// First element.
    pub fn as_ptr(&self) -> *mut f32 {
        self.ptr
    }

    /// `len` elements from `start` on.
    ///
    /// # Safety
    /// - The slice given to `new` is still borrowed by the caller's function.
    /// - No other part in use overlaps this one.
    ///
    /// # Panics
    /// When the part is outside of the whole.
    #[allow(clippy::mut_from_ref, reason = "the parts are disjoint by contract")]
    pub unsafe fn range(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start <= self.len && len <= self.len - start, "part inside the whole");
        // SAFETY: inside the whole, which the caller keeps borrowed; disjoint from others by contract.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_on_any_number_of_threads() {
        for threads in 1..=4 {
            let pool = Pool::new(threads).expect("threads start");
            for tasks in [0, 1, 2, 7, 100] {
                for _ in 0..50 {
                    let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(tasks, |task, scratch| {
                        scratch[0] += 1.0;
                        counts[task].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} threads, {tasks} tasks");
                }
            }
        }
    }

    #[test]
    fn chunks_cover_outputs_of_different_lengths() {
        let pool = Pool::new(3).expect("threads start");
        let (mut a, mut b) = (vec![0.0; 10], vec![0.0; 7]);
        pool.split([(&mut a, 3), (&mut b, 2)], |task, [a, b], _| {
            a.fill(task as f32);
            b.fill(task as f32);
        });
        assert_eq!(a, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0]);
        assert_eq!(b, [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0]);
    }

    #[test]
    fn a_panic_reaches_the_asker_and_the_pool_lives_on() {
        let pool = Pool::new(3).expect("threads start");
        for bad in 0..6 {
            let run = AssertUnwindSafe(|| pool.run(6, |task, _| assert!(task != bad, "task {bad}")));
            assert!(catch_unwind(run).is_err());
            pool.run(6, |_, _| {});
        }
    }
}
