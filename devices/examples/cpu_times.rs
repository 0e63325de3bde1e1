//! Times the CPU bodies at the shapes of a MiniLM-L6 training step: `cpu_times [THREADS]`.
#![allow(clippy::print_stdout, reason = "prints a table")]

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use inlay_devices::backend::{Backend, DeviceError};
use inlay_devices::conformance;
use inlay_devices::cpu::CpuBackend;
use inlay_devices::kernels::{
    Attention, AttentionGrad, AttentionGradParams, AttentionParams, Binary, BinaryOp, BinaryParams, Contract, Kernel,
    LayerNorm, LayerNormGrad, LayerNormParams, Linear, LinearParams, Matmul, MatmulParams, Sample, SampleOperand,
    Unary, UnaryOp, UnaryParams, kernel, sample,
};
use inlay_devices::program::{Region, Segment};
use inlay_format::quant::{Layout, SCHEMES, scheme};

/// Measurements of a call; the fastest counts.
const RUNS: usize = 6;

/// Seconds of a measurement: much longer than the steps in which the system counts CPU time.
const SPAN: f64 = 0.06;

struct Case {
    name: &'static str,
    kernel: &'static dyn Kernel,
    sample: Sample,
    /// Multiplications and additions.
    flops: f64,
    /// Calls in a training step of six layers with LoRA on query and value.
    calls: usize,
}

fn case<C: Contract>(name: &'static str, params: &C::Params, flops: f64, calls: usize) -> Case
where
    C::Params: std::fmt::Debug,
{
    Case { name, kernel: kernel::<C>(), sample: Sample::random::<C>(1, params), flops, calls }
}

fn linear(
    name: &'static str,
    scheme_name: &str,
    layout: Layout,
    [m, k, n]: [u32; 3],
    flags: u32,
    calls: usize,
) -> Case {
    let scheme = scheme(scheme_name).unwrap_or(SCHEMES[0]);
    let weight = sample::weight(2, scheme, scheme.forms()[0], layout, [k as usize, n as usize]);
    let params = LinearParams { m, k, n, flags: flags | LinearParams::weight_flags(&weight) };
    let mut case = case::<Linear>(name, &params, 2.0 * f64::from(m) * f64::from(k) * f64::from(n), calls);
    case.sample = case.sample.with(1, SampleOperand::Weight(weight));
    case
}

fn cases(batch: u32, tokens: u32) -> Vec<Case> {
    const T: u32 = LinearParams::TRANSPOSE;
    let (m, heads, d) = (batch * tokens, 12, 32);
    let (kn, nk) = (Layout::KN, Layout::NK);
    let rows = [tokens * heads * d, d, heads * d];
    let mask = AttentionParams::MASK;
    let attention = AttentionParams {
        batch,
        heads,
        tq: tokens,
        tk: tokens,
        d,
        dv: d,
        q: rows,
        k: rows,
        v: rows,
        o: rows,
        mask: [tokens, 0, 0, 1],
        scale: 0.17,
        flags: mask,
    };
    let attention_grad = AttentionGradParams {
        batch,
        heads,
        tq: tokens,
        tk: tokens,
        d,
        dv: d,
        grad_o: rows,
        q: rows,
        k: rows,
        v: rows,
        grad_q: rows,
        grad_k: rows,
        grad_v: rows,
        scale: 0.17,
        flags: AttentionGradParams::DQ | AttentionGradParams::DK | AttentionGradParams::DV,
    };
    let scores = 2.0 * f64::from(batch * heads * tokens * tokens * d);
    let product = |name, p: MatmulParams, calls| {
        case::<Matmul>(name, &p, 2.0 * f64::from(p.m) * f64::from(p.n) * f64::from(p.k), calls)
    };
    let gelu = UnaryParams { len: m * 1536, op: UnaryOp::GeluErf as u32, flags: 0, a: 0.0, b: 0.0 };
    let gelu_grad = UnaryParams { flags: UnaryParams::GRADIENT, ..gelu };
    let flat = [0, 0, 0, 0, 1];
    let add = BinaryParams { dims: [1, 1, 1, 1, m * 384], a: flat, b: flat, op: BinaryOp::Add as u32, flags: 0 };
    let norm =
        LayerNormParams { rows: m, cols: 384, eps: 1e-12, flags: LayerNormParams::GAMMA | LayerNormParams::BETA };
    let norm_grad = LayerNormParams { flags: LayerNormParams::GAMMA, ..norm };
    vec![
        linear("linear int8 384x384", "int8", kn, [m, 384, 384], LinearParams::BIAS, 24),
        linear("linear int8 384x1536", "int8", kn, [m, 384, 1536], LinearParams::BIAS, 6),
        linear("linear int8 1536x384", "int8", kn, [m, 1536, 384], LinearParams::BIAS, 6),
        linear("linear int8 384x384 transposed", "int8", kn, [m, 384, 384], T, 22),
        linear("linear int8 384x1536 transposed", "int8", kn, [m, 384, 1536], T, 6),
        linear("linear int8 1536x384 transposed", "int8", kn, [m, 1536, 384], T, 6),
        linear("linear int4 384x384", "int4", nk, [m, 384, 384], LinearParams::BIAS, 0),
        linear("linear int4 384x1536", "int4", nk, [m, 384, 1536], LinearParams::BIAS, 0),
        linear("linear int4 1536x384", "int4", nk, [m, 1536, 384], LinearParams::BIAS, 0),
        linear("linear int4 384x384 transposed", "int4", nk, [m, 384, 384], T, 0),
        linear("linear int4 384x1536 transposed", "int4", nk, [m, 384, 1536], T, 0),
        linear("linear int4 1536x384 transposed", "int4", nk, [m, 1536, 384], T, 0),
        linear("linear f16 384x1536", "f16", kn, [m, 384, 1536], LinearParams::BIAS, 0),
        linear("linear f16 384x1536 transposed", "f16", kn, [m, 384, 1536], T, 0),
        linear("linear int8 NK 384x384", "int8", nk, [m, 384, 384], 0, 0),
        linear("linear int8 NK 384x384 transposed", "int8", nk, [m, 384, 384], T, 0),
        linear("linear f32 384x1536", "f32", kn, [m, 384, 1536], 0, 0),
        linear("linear f32 384x1536 transposed", "f32", kn, [m, 384, 1536], T, 0),
        product("matmul x A", MatmulParams::contiguous(m, 4, 384), 12),
        product("matmul h B", MatmulParams { flags: 1, ..MatmulParams::contiguous(m, 384, 4) }, 12),
        product("matmul dB = h^T dy", MatmulParams { a: [0, 0, 1, 4], ..MatmulParams::contiguous(4, 384, m) }, 12),
        product("matmul dh = dy B^T", MatmulParams { b: [0, 0, 1, 384], ..MatmulParams::contiguous(m, 4, 384) }, 12),
        product("matmul dA = x^T dh", MatmulParams { a: [0, 0, 1, 384], ..MatmulParams::contiguous(384, 4, m) }, 12),
        product(
            "matmul dx = dh A^T",
            MatmulParams { b: [0, 0, 1, 4], flags: 1, ..MatmulParams::contiguous(m, 384, 4) },
            12,
        ),
        case::<Attention>("attention", &attention, 2.0 * scores, 6),
        case::<AttentionGrad>("attention_grad", &attention_grad, 4.0 * scores, 6),
        case::<Unary>("gelu", &gelu, 0.0, 6),
        case::<Unary>("gelu gradient", &gelu_grad, 0.0, 6),
        case::<LayerNorm>("layer_norm", &norm, 0.0, 13),
        case::<LayerNormGrad>("layer_norm_grad", &norm_grad, 0.0, 12),
        case::<Binary>("add", &add, 0.0, 13),
    ]
}

/// Seconds from some start: of this thread's CPU time where one thread computes and the system tells, so that other
/// work on the machine does not count; else of wall time.
fn now(threads: usize) -> f64 {
    let cpu = (threads == 1).then(|| std::fs::read_to_string("/proc/thread-self/schedstat").ok()).flatten();
    let nanoseconds = cpu.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    nanoseconds.map_or_else(|| START.elapsed().as_secs_f64(), |ns| ns * 1e-9)
}

fn main() -> Result<(), DeviceError> {
    let threads = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1);
    let cpu = CpuBackend::new(threads)?;
    println!("{cpu:?}");
    for (batch, tokens) in [(8, 64), (1, 32)] {
        let mut total = 0.0;
        println!("\n{:36} {:>10} {:>10} {:>10}", format!("{batch} x {tokens}"), "us", "GFLOP/s", "ms a step");
        for case in cases(batch, tokens) {
            let program = Arc::new(conformance::program(case.kernel, &case.sample));
            let mut executable = cpu.compile(program)?;
            executable.write(Region::Arena, 0, &conformance::arena(&case.sample))?;
            executable.run(&[Segment::Forward])?;
            let mut best = f64::INFINITY;
            for _ in 0..RUNS {
                let (start, mut calls, mut more) = (now(threads), 0, 1);
                while now(threads) - start < SPAN {
                    for _ in 0..more {
                        executable.run(&[Segment::Forward])?;
                    }
                    (calls, more) = (calls + more, calls + more);
                }
                best = best.min((now(threads) - start) / f64::from(calls));
            }
            let step = best * case.calls as f64 * 1e3;
            total += step;
            println!("{:36} {:10.1} {:10.1} {:10.2}", case.name, best * 1e6, case.flops / best * 1e-9, step);
        }
        println!("{:36} {:10} {:10} {total:10.2}", "together", "", "");
    }
    Ok(())
}
