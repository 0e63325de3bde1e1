use super::*;
use crate::conformance::{self, TOLERANCE_F32};
use crate::kernels::{
    ACCUMULATE, ALL, AdamW, AdamWParams, Attention, AttentionGrad, AttentionGradParams, AttentionParams, Binary,
    BinaryOp, BinaryParams, Contract, Copy, CopyParams, GradNorm, GradsParams, Kernel, LayerNorm, LayerNormGrad,
    LayerNormParams, Linear, LinearParams, Matmul, MatmulParams, Reduce, ReduceOp, ReduceParams, Sample, SampleOperand,
    Softmax, SoftmaxParams, Unary, UnaryOp, UnaryParams, kernel, sample,
};
use crate::program::step;

type Call = (&'static dyn Kernel, Sample);

/// Every sample of every kernel, and calls large enough for several tasks, stretches of k and passes over scratch.
fn calls() -> Vec<Call> {
    let samples = ALL.iter().flat_map(|kernel| kernel.samples().into_iter().map(|sample| (*kernel, sample)));
    samples.chain(large_linears()).chain(large_calls()).collect()
}

fn large_linears() -> Vec<Call> {
    const T: u32 = LinearParams::TRANSPOSE;
    let mut calls = Vec::new();
    for (m, k, n) in [(61, 801, 150), (3, 500, 700), (1, 1000, 333), (9, 40, 3001), (13, 848, 90), (7, 768, 35)] {
        for weight in sample::weights(3, [k as usize, n as usize]) {
            for flags in [LinearParams::BIAS | ACCUMULATE, T] {
                let p = LinearParams { m, k, n, flags: flags | LinearParams::weight_flags(&weight) };
                let sample = Sample::random::<Linear>(2, &p).with(1, SampleOperand::Weight(weight.clone()));
                calls.push((kernel::<Linear>(), sample));
            }
        }
    }
    calls
}

fn call<C: Contract>(params: &C::Params) -> Call
where
    C::Params: fmt::Debug,
{
    (kernel::<C>(), Sample::random::<C>(4, params))
}

fn large_calls() -> Vec<Call> {
    let (batch, heads, tq, tk, d, dv) = (2, 3, 70, 90, 33, 40);
    let rows = |t: u32, d: u32| [t * heads * d, d, heads * d];
    let attention = AttentionParams {
        batch,
        heads,
        tq,
        tk,
        d,
        dv,
        q: rows(tq, d),
        k: rows(tk, d),
        v: rows(tk, dv),
        o: rows(tq, dv),
        mask: [tk, 0, 0, 1],
        scale: 0.2,
        flags: AttentionParams::MASK,
    };
    let attention_grad = AttentionGradParams {
        batch,
        heads,
        tq,
        tk,
        d,
        dv,
        grad_o: rows(tq, dv),
        q: rows(tq, d),
        k: rows(tk, d),
        v: rows(tk, dv),
        grad_q: rows(tq, d),
        grad_k: rows(tk, d),
        grad_v: rows(tk, dv),
        scale: 0.2,
        flags: AttentionGradParams::DQ | AttentionGradParams::DK | AttentionGradParams::DV,
    };
    let product = MatmulParams::contiguous(200, 4, 500);
    let norm = LayerNormParams { rows: 100, cols: 389, eps: 1e-5, flags: LayerNormParams::GAMMA };
    let gelu = UnaryParams { len: 50_001, op: UnaryOp::GeluErf as u32, flags: 0, a: 0.0, b: 0.0 };
    let add = BinaryParams {
        dims: [1, 1, 7, 100, 91],
        a: [0, 0, 9100, 91, 1],
        b: [0, 0, 91, 0, 1],
        op: BinaryOp::Add as u32,
        flags: ACCUMULATE,
    };
    let mean = ReduceParams {
        kept: [1, 1, 6, 500],
        kept_strides: [0, 0, 30_000, 1],
        reduced: [1, 1, 1, 60],
        reduced_strides: [0, 0, 0, 500],
        op: ReduceOp::Sum as u32,
        scale: 1.0 / 60.0,
        flags: 0,
    };
    let turn = CopyParams {
        dims: [1, 1, 1, 5, 100, 60],
        src: [0, 0, 0, 6000, 1, 100],
        dst: [0, 0, 0, 6000, 60, 1],
        ..CopyParams::contiguous(1)
    };
    let mut step = vec![0.5; step::LEN];
    step[step::MAX_NORM] = 3.0;
    let adamw = AdamWParams { len: 40_000, beta1: 0.9, beta2: 0.999, eps: 1e-3, weight_decay: 0.01 };
    let (adamw, mut state) = call::<AdamW>(&adamw);
    if let SampleOperand::Floats(v) = &mut state.operands[3] {
        v.iter_mut().for_each(|v| *v = v.abs());
    }
    vec![
        call::<Attention>(&attention),
        call::<AttentionGrad>(&attention_grad),
        call::<Matmul>(&product),
        call::<Matmul>(&MatmulParams { m: 500, k: 200, a: [0, 0, 1, 500], ..product }),
        call::<Matmul>(&MatmulParams { n: 700, k: 3, a: [0, 0, 3, 1], b: [0, 0, 1, 3], c: [0, 0, 700, 1], ..product }),
        call::<LayerNorm>(&norm),
        call::<LayerNormGrad>(&norm),
        call::<Softmax>(&SoftmaxParams { rows: 300, cols: 128, flags: 0 }),
        call::<Unary>(&gelu),
        call::<Binary>(&add),
        call::<Reduce>(&mean),
        call::<Copy>(&turn),
        call::<Copy>(&CopyParams::contiguous(50_000)),
        {
            let (kernel, sample) = call::<GradNorm>(&GradsParams { len: 40_000 });
            (kernel, sample.with(1, SampleOperand::Floats(step.clone())))
        },
        (adamw, state.with(4, SampleOperand::Floats(step))),
    ]
}

#[test]
fn every_body_is_that_of_a_kernel() {
    for (name, _) in BODIES {
        assert!(ALL.iter().any(|kernel| kernel.name() == *name), "{name}");
    }
}

#[test]
fn every_body_agrees_with_the_plain_one() {
    for isa in Isa::available() {
        let cpu = CpuBackend::with_isa(2, isa).expect("threads start");
        for (kernel, sample) in calls() {
            let error = conformance::check(&cpu, kernel, &sample).expect("samples are valid");
            assert!(error <= TOLERANCE_F32, "{isa:?} {kernel:?} {}: error {error:e}", sample.label);
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let run = |backend: &CpuBackend, (kernel, sample): &Call| -> Vec<u32> {
        let mut arena = conformance::arena(sample);
        let mut executable = backend.compile(Arc::new(conformance::program(*kernel, sample))).expect("a valid sample");
        executable.write(Region::Arena, 0, &arena).expect("the CPU does not fail");
        executable.write_ints(0, &conformance::ints(sample)).expect("the CPU does not fail");
        executable.run(&[Segment::Forward]).expect("the CPU does not fail");
        executable.read(Region::Arena, 0, &mut arena).expect("the CPU does not fail");
        arena.into_iter().map(f32::to_bits).collect()
    };
    let backends = [1, 2, 3].map(|threads| CpuBackend::new(threads).expect("threads start"));
    for call in calls() {
        let [one, two, three] = backends.each_ref().map(|backend| run(backend, &call));
        assert!(one == two && one == three, "{:?} {}", call.0, call.1.label);
    }
}
