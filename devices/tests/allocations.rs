//! A step on the CPU allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use inlay_devices::backend::Backend;
use inlay_devices::conformance;
use inlay_devices::cpu::CpuBackend;
use inlay_devices::kernels::{ALL, Kernel, Linear, LinearParams, Sample, SampleOperand, kernel, sample};
use inlay_devices::program::{Region, Segment};
use inlay_format::quant::{self, Form, Int8};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: by the caller's contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: by the caller's contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn large_linear() -> Sample {
    let p = LinearParams { m: 64, k: 500, n: 300, flags: 0 };
    let weight = sample::weight(1, &Int8, Form::WHOLE, quant::Layout::KN, [500, 300]);
    Sample::random::<Linear>(1, &p).with(1, SampleOperand::Weight(weight))
}

#[test]
fn a_step_allocates_nothing() {
    let cpu = CpuBackend::new(2).expect("threads start");
    let mut calls: Vec<(&'static dyn Kernel, Sample)> = vec![(kernel::<Linear>(), large_linear())];
    calls.extend(ALL.iter().filter_map(|kernel| Some((*kernel, kernel.samples().pop()?))));
    assert_eq!(calls.len(), ALL.len() + 1, "a sample of each");
    for (kernel, sample) in calls {
        let mut executable = cpu.compile(Arc::new(conformance::program(kernel, &sample))).expect("a valid sample");
        executable.write(Region::Arena, 0, &conformance::arena(&sample)).expect("the CPU does not fail");
        executable.write_ints(0, &conformance::ints(&sample)).expect("the CPU does not fail");
        executable.run(&[Segment::Forward]).expect("the CPU does not fail");
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        executable.run(&[Segment::Forward]).expect("the CPU does not fail");
        assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "{} allocates", kernel.name());
    }
}
