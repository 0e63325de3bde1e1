//! The pool of `inlay-devices`, the very file, on shuttle's threads and locks: a scheduler of its own decides after each
//! operation which thread goes on, so that what happens once in a million runs on a device happens here. Atomics are modelled as
//! sequentially consistent: weaker orderings than the pool needs would not be found.

#[path = "../../../devices/src/cpu/pool.rs"]
#[allow(dead_code, reason = "kernels use the rest")]
mod pool;

/// What `pool.rs` takes from its surroundings.
mod sync {
    pub use shuttle::hint::spin_loop;
    pub use shuttle::sync::atomic::{AtomicUsize, Ordering};
    pub use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard};
    pub use shuttle::thread::{Builder, JoinHandle};

    /// Enough for a thread to look, find nothing, and sleep.
    pub const SPINS: usize = 2;
    /// Bodies here need none.
    pub const SCRATCH_LEN: usize = 16;
}

use pool::Pool;
use sync::{AtomicUsize, Ordering};

/// Interleavings that each test tries; the scheduler's seed is fixed, so they are the same every time.
const RUNS: usize = 5_000;

fn main() {
    let models: [(&str, fn()); 3] = [
        ("jobs run each task once and end", jobs_run_each_task_once_and_end),
        ("outputs are seen by the asker", outputs_are_seen_by_the_asker),
        ("askers take turns", askers_take_turns),
    ];
    for (name, model) in models {
        model();
        println!("{name}: {} interleavings", 2 * RUNS);
    }
}

fn explore(body: impl Fn() + Send + Sync + 'static) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    let body = std::sync::Arc::new(body);
    let random = std::sync::Arc::clone(&body);
    let config = || {
        let mut config = shuttle::Config::new();
        config.stack_size = 0x20000;
        config.silence_warnings = true;
        config
    };
    shuttle::Runner::new(RandomScheduler::new_from_seed(7, RUNS), config()).run(move || random());
    shuttle::Runner::new(PctScheduler::new_from_seed(7, 3, RUNS), config()).run(move || body());
}

fn jobs_run_each_task_once_and_end() {
    explore(|| {
        let pool = Pool::new(3).expect("threads start");
        for tasks in [2, 3] {
            // On the asker's stack: a worker that stays in a job that is over would touch what is gone.
            let counts = [const { std::sync::atomic::AtomicUsize::new(0) }; 3];
            pool.run(tasks, |task, _| {
                counts[task].fetch_add(1, Ordering::Relaxed);
            });
            let counts = counts.map(|count| count.into_inner());
            assert!(counts.iter().enumerate().all(|(task, count)| *count == usize::from(task < tasks)), "{counts:?}");
        }
    });
}

fn outputs_are_seen_by_the_asker() {
    explore(|| {
        let pool = Pool::new(2).expect("threads start");
        let mut y = [0.0; 3];
        pool.split([(&mut y, 1)], |task, [y], _| y[0] = task as f32 + 1.0);
        assert_eq!(y, [1.0, 2.0, 3.0]);
    });
}

fn askers_take_turns() {
    explore(|| {
        let pool = sync::Arc::new(Pool::new(2).expect("threads start"));
        let done = sync::Arc::new(AtomicUsize::new(0));
        let other = {
            let (pool, done) = (sync::Arc::clone(&pool), sync::Arc::clone(&done));
            shuttle::thread::spawn(move || pool.run(2, |_, _| { done.fetch_add(1, Ordering::SeqCst); }))
        };
        pool.run(2, |_, _| { done.fetch_add(1, Ordering::SeqCst); });
        other.join().expect("it ends");
        assert_eq!(done.load(Ordering::SeqCst), 4);
    });
}
