use bytemuck::{Pod, Zeroable};

use super::{Args, Binding, Contract, Real, Sample, SampleOperand, cover};
use crate::program::{stats, step};

/// Global L2 norm of the gradients, and the factor that clips it.
///
/// `stats[GRAD_NORM] = sqrt(sum_i grads[i]^2)`, `stats[CLIP] = min(MAX_NORM / (stats[GRAD_NORM] + 1e-6), 1)`, or 1 when
/// MAX_NORM (read from step) is infinite. stats is all of [`Region::Stats`](crate::program::Region::Stats); its other
/// elements keep their value. The sum has a fixed order on one device.
pub struct GradNorm;

/// Parameters of [`GradNorm`] and [`ZeroGrads`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct GradsParams {
    /// Number of gradients.
    pub len: u32,
}

/// Step contents of samples, changed by `change`.
fn step_sample(change: impl FnOnce(&mut [f32])) -> SampleOperand {
    let mut values = vec![0.0; step::LEN];
    values[step::LR] = 0.01;
    values[step::BIAS_CORRECTION_1] = 0.1;
    values[step::BIAS_CORRECTION_2] = 0.02;
    values[step::MAX_NORM] = f32::INFINITY;
    change(&mut values);
    SampleOperand::Floats(values)
}

/// Stats contents of samples.
fn stats_sample(clip: f32) -> SampleOperand {
    let mut values = vec![0.5; stats::LEN];
    values[stats::CLIP] = clip;
    SampleOperand::Floats(values)
}

const LENS: [u32; 3] = [1, 67, 5003];

impl Contract for GradNorm {
    type Params = GradsParams;
    const NAME: &'static str = "grad_norm";
    const BINDINGS: &'static [Binding] = &[Binding::read("grads"), Binding::read("step"), Binding::read_write("stats")];

    fn lens(p: &GradsParams) -> Vec<usize> {
        vec![p.len as usize, step::LEN, stats::LEN]
    }

    fn plain<T: Real>(p: &GradsParams, args: &mut Args<'_, T>) {
        let (grads, step, stats) = (args.input(0), args.input(1), args.output(2));
        let norm = grads[..p.len as usize].iter().fold(T::of(0.0), |sum, &g| sum + g * g).sqrt();
        let max = step[step::MAX_NORM];
        let clip = max / (norm + T::of(1e-6));
        stats[stats::GRAD_NORM] = norm;
        stats[stats::CLIP] = if max.is_finite() && clip < T::of(1.0) { clip } else { T::of(1.0) };
    }

    fn workgroups(_: &GradsParams) -> [u32; 3] {
        [1, 1, 1]
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for len in LENS {
            for max in [f32::INFINITY, 1e9, 0.1] {
                let step = step_sample(|step| step[step::MAX_NORM] = max);
                samples.push(Sample::random::<Self>(1, &GradsParams { len }).with(1, step));
            }
        }
        samples
    }
}

/// Starts a batch: `grads[i] = ACCUMULATE == 0 ? 0 : grads[i]`, with ACCUMULATE read from step.
pub struct ZeroGrads;

impl Contract for ZeroGrads {
    type Params = GradsParams;
    const NAME: &'static str = "zero_grads";
    const BINDINGS: &'static [Binding] = &[Binding::read("step"), Binding::read_write("grads")];

    fn lens(p: &GradsParams) -> Vec<usize> {
        vec![step::LEN, p.len as usize]
    }

    fn plain<T: Real>(p: &GradsParams, args: &mut Args<'_, T>) {
        let (step, grads) = (args.input(0), args.output(1));
        if step[step::ACCUMULATE] == T::of(0.0) {
            grads[..p.len as usize].fill(T::of(0.0));
        }
    }

    fn workgroups(p: &GradsParams) -> [u32; 3] {
        cover(p.len as usize, 256)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for len in LENS {
            for accumulate in [0.0, 1.0] {
                let step = step_sample(|step| step[step::ACCUMULATE] = accumulate);
                samples.push(Sample::random::<Self>(1, &GradsParams { len }).with(0, step));
            }
        }
        samples
    }
}

/// AdamW, as PyTorch does it: with `g = CLIP grads`,
/// `params *= 1 - LR weight_decay; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
/// params -= LR (m / BIAS_CORRECTION_1) / (sqrt(v / BIAS_CORRECTION_2) + eps)`.
///
/// LR and the corrections are read from step; CLIP from stats, which is all of
/// [`Region::Stats`](crate::program::Region::Stats).
pub struct AdamW;

/// Parameters of [`AdamW`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct AdamWParams {
    /// Number of parameters.
    pub len: u32,
    /// Decay of m.
    pub beta1: f32,
    /// Decay of v.
    pub beta2: f32,
    /// Added to the root of v.
    pub eps: f32,
    /// Decay of the parameters, times LR.
    pub weight_decay: f32,
}

impl Contract for AdamW {
    type Params = AdamWParams;
    const NAME: &'static str = "adamw";
    const BINDINGS: &'static [Binding] = &[
        Binding::read_write("params"),
        Binding::read("grads"),
        Binding::read_write("m"),
        Binding::read_write("v"),
        Binding::read("step"),
        Binding::read("stats"),
    ];

    fn lens(p: &AdamWParams) -> Vec<usize> {
        let len = p.len as usize;
        vec![len, len, len, len, step::LEN, stats::LEN]
    }

    fn plain<T: Real>(p: &AdamWParams, args: &mut Args<'_, T>) {
        let (params, grads, m, v) = (args.output(0), args.input(1), args.output(2), args.output(3));
        let (step, clip) = (args.input(4), args.input(5)[stats::CLIP]);
        let (one, beta1, beta2) = (T::of(1.0), T::of(f64::from(p.beta1)), T::of(f64::from(p.beta2)));
        let decay = one - step[step::LR] * T::of(f64::from(p.weight_decay));
        for i in 0..p.len as usize {
            let g = clip * grads[i];
            m[i] = beta1 * m[i] + (one - beta1) * g;
            v[i] = beta2 * v[i] + (one - beta2) * g * g;
            let denominator = (v[i] / step[step::BIAS_CORRECTION_2]).sqrt() + T::of(f64::from(p.eps));
            params[i] = params[i] * decay - step[step::LR] * (m[i] / step[step::BIAS_CORRECTION_1]) / denominator;
        }
    }

    fn workgroups(p: &AdamWParams) -> [u32; 3] {
        cover(p.len as usize, 256)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for len in LENS {
            for (weight_decay, clip) in [(0.0, 1.0), (0.1, 0.3)] {
                let p = AdamWParams { len, beta1: 0.9, beta2: 0.999, eps: 1e-3, weight_decay };
                let mut sample = Sample::random::<Self>(2, &p).with(4, step_sample(|_| {})).with(5, stats_sample(clip));
                if let SampleOperand::Floats(v) = &mut sample.operands[3] {
                    v.iter_mut().for_each(|v| *v = v.abs());
                }
                samples.push(sample);
            }
        }
        samples
    }
}

/// Stochastic gradient descent, as PyTorch does it: `g = CLIP grads + weight_decay params`; with momentum
/// `m = FIRST ? g : momentum m + g` and `g = m`; `params -= LR g`.
///
/// LR and FIRST are read from step; CLIP from stats, which is all of
/// [`Region::Stats`](crate::program::Region::Stats). m is absent when momentum is 0.
pub struct Sgd;

/// Parameters of [`Sgd`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SgdParams {
    /// Number of parameters.
    pub len: u32,
    /// Decay of m.
    pub momentum: f32,
    /// Decay of the parameters, as part of the gradient.
    pub weight_decay: f32,
}

impl Contract for Sgd {
    type Params = SgdParams;
    const NAME: &'static str = "sgd";
    const BINDINGS: &'static [Binding] = &[
        Binding::read_write("params"),
        Binding::read("grads"),
        Binding::read_write("m").optional(),
        Binding::read("step"),
        Binding::read("stats"),
    ];

    fn lens(p: &SgdParams) -> Vec<usize> {
        let len = p.len as usize;
        vec![len, len, if p.momentum != 0.0 { len } else { 0 }, step::LEN, stats::LEN]
    }

    fn plain<T: Real>(p: &SgdParams, args: &mut Args<'_, T>) {
        let (params, grads, mut m) = (args.output(0), args.input(1), args.optional_output(2));
        let (step, clip) = (args.input(3), args.input(4)[stats::CLIP]);
        for i in 0..p.len as usize {
            let mut g = clip * grads[i] + T::of(f64::from(p.weight_decay)) * params[i];
            if let Some(m) = &mut m {
                m[i] = if step[step::FIRST] != T::of(0.0) { g } else { T::of(f64::from(p.momentum)) * m[i] + g };
                g = m[i];
            }
            params[i] -= step[step::LR] * g;
        }
    }

    fn workgroups(p: &SgdParams) -> [u32; 3] {
        cover(p.len as usize, 256)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for len in LENS {
            for (momentum, weight_decay, first) in [(0.0, 0.0, 0.0), (0.0, 0.1, 1.0), (0.9, 0.0, 1.0), (0.9, 0.1, 0.0)]
            {
                let p = SgdParams { len, momentum, weight_decay };
                samples.push(
                    Sample::random::<Self>(3, &p)
                        .with(3, step_sample(|step| step[step::FIRST] = first))
                        .with(4, stats_sample(0.7)),
                );
            }
        }
        samples
    }
}
