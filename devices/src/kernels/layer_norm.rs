use bytemuck::{Pod, Zeroable};

use super::{ACCUMULATE, Args, Binding, Contract, Real, Sample, cover};

/// Layer normalization of each row.
///
/// `mean = sum_c x / C`, `rstd = 1 / sqrt(sum_c (x - mean)^2 / C + eps)`,
/// `y[r, c] = (x[r, c] - mean[r]) rstd[r] gamma[c] + beta[c]`, with x and y: [R, C], gamma and beta: \[C\].
/// stats: [R, 2] = (mean, rstd) is kept for the gradient. With [`LayerNormParams::UNCENTRED`] mean is 0: RMS
/// normalization.
pub struct LayerNorm;

/// Parameters of [`LayerNorm`], [`LayerNormGrad`] and [`LayerNormParamGrad`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct LayerNormParams {
    /// R.
    pub rows: u32,
    /// C.
    pub cols: u32,
    /// Added to the variance. Unused by the gradients.
    pub eps: f32,
    /// [`LayerNormParams::GAMMA`], [`LayerNormParams::BETA`], [`LayerNormParams::UNCENTRED`]; for the gradients also
    /// [`ACCUMULATE`].
    pub flags: u32,
}

impl LayerNormParams {
    /// gamma (for [`LayerNormParamGrad`]: dgamma) is present.
    pub const GAMMA: u32 = 2;
    /// beta (for [`LayerNormParamGrad`]: dbeta) is present.
    pub const BETA: u32 = 4;
    /// The mean is taken to be 0, as in RMS normalization. Unused by [`LayerNormParamGrad`], which reads it in stats.
    pub const UNCENTRED: u32 = 8;

    fn is_centred(&self) -> bool {
        self.flags & LayerNormParams::UNCENTRED == 0
    }

    fn len(&self) -> usize {
        self.rows as usize * self.cols as usize
    }

    fn vector(&self, flag: u32) -> usize {
        if self.flags & flag != 0 { self.cols as usize } else { 0 }
    }
}

const SHAPES: [(u32, u32); 5] = [(1, 1), (1, 7), (5, 3), (3, 384), (7, 131)];

impl Contract for LayerNorm {
    type Params = LayerNormParams;
    const NAME: &'static str = "layer_norm";
    const BINDINGS: &'static [Binding] = &[
        Binding::read("x"),
        Binding::read("gamma").optional(),
        Binding::read("beta").optional(),
        Binding::write("y"),
        Binding::write("stats"),
    ];

    fn lens(p: &LayerNormParams) -> Vec<usize> {
        let vector = |flag| p.vector(flag);
        vec![p.len(), vector(LayerNormParams::GAMMA), vector(LayerNormParams::BETA), p.len(), 2 * p.rows as usize]
    }

    fn plain<T: Real>(p: &LayerNormParams, args: &mut Args<'_, T>) {
        let (x, gamma, beta) = (args.input(0), args.optional_input(1), args.optional_input(2));
        let (y, stats) = (args.output(3), args.output(4));
        let (cols, len) = (p.cols as usize, T::of(f64::from(p.cols)));
        for r in 0..p.rows as usize {
            let x = &x[r * cols..][..cols];
            let mean = if p.is_centred() { x.iter().fold(T::of(0.0), |sum, &x| sum + x) / len } else { T::of(0.0) };
            let variance = x.iter().fold(T::of(0.0), |sum, &x| sum + (x - mean) * (x - mean)) / len;
            let rstd = T::of(1.0) / (variance + T::of(f64::from(p.eps))).sqrt();
            for c in 0..cols {
                let normal = (x[c] - mean) * rstd;
                y[r * cols + c] = normal * gamma.map_or(T::of(1.0), |g| g[c]) + beta.map_or(T::of(0.0), |b| b[c]);
            }
            stats[2 * r] = mean;
            stats[2 * r + 1] = rstd;
        }
    }

    fn workgroups(p: &LayerNormParams) -> [u32; 3] {
        cover(p.rows as usize, 1)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (rows, cols) in SHAPES {
            for flags in [0, LayerNormParams::GAMMA, LayerNormParams::GAMMA | LayerNormParams::BETA] {
                for flags in [flags, flags | LayerNormParams::UNCENTRED] {
                    samples.push(Sample::random::<Self>(3, &LayerNormParams { rows, cols, eps: 1e-3, flags }));
                }
            }
        }
        samples
    }
}

/// Gradient of [`LayerNorm`] with respect to x.
///
/// With `n = (x - mean) rstd` and `g = dy gamma`: `dx = rstd (g - sum_c g / C - n sum_c (g n) / C)`, where
/// [`LayerNormParams::UNCENTRED`] leaves out `sum_c g / C`; with [`ACCUMULATE`] `dx +=`.
pub struct LayerNormGrad;

impl Contract for LayerNormGrad {
    type Params = LayerNormParams;
    const NAME: &'static str = "layer_norm_grad";
    const BINDINGS: &'static [Binding] = &[
        Binding::read("x"),
        Binding::read("gamma").optional(),
        Binding::read("stats"),
        Binding::read("dy"),
        Binding::read_write("dx"),
    ];

    fn lens(p: &LayerNormParams) -> Vec<usize> {
        vec![p.len(), p.vector(LayerNormParams::GAMMA), 2 * p.rows as usize, p.len(), p.len()]
    }

    fn plain<T: Real>(p: &LayerNormParams, args: &mut Args<'_, T>) {
        let (x, gamma, stats, dy) = (args.input(0), args.optional_input(1), args.input(2), args.input(3));
        let dx = args.output(4);
        let (cols, len) = (p.cols as usize, T::of(f64::from(p.cols)));
        for r in 0..p.rows as usize {
            let (mean, rstd) = (stats[2 * r], stats[2 * r + 1]);
            let normal = |c: usize| (x[r * cols + c] - mean) * rstd;
            let g = |c: usize| dy[r * cols + c] * gamma.map_or(T::of(1.0), |gamma| gamma[c]);
            let (mut sum, mut dot) = (T::of(0.0), T::of(0.0));
            for c in 0..cols {
                sum += g(c);
                dot += g(c) * normal(c);
            }
            if !p.is_centred() {
                sum = T::of(0.0);
            }
            for c in 0..cols {
                let value = rstd * (g(c) - sum / len - normal(c) * dot / len);
                let dx = &mut dx[r * cols + c];
                *dx = if p.flags & ACCUMULATE != 0 { *dx + value } else { value };
            }
        }
    }

    fn workgroups(p: &LayerNormParams) -> [u32; 3] {
        cover(p.rows as usize, 1)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (rows, cols) in SHAPES {
            for flags in [0, LayerNormParams::GAMMA, ACCUMULATE, LayerNormParams::GAMMA | ACCUMULATE] {
                for flags in [flags, flags | LayerNormParams::UNCENTRED] {
                    samples.push(Sample::random::<Self>(4, &LayerNormParams { rows, cols, eps: 0.0, flags }));
                }
            }
        }
        samples
    }
}

/// Gradient of [`LayerNorm`] with respect to gamma and beta, where an adapter trains them.
///
/// `dgamma[c] = sum_r dy[r, c] (x[r, c] - mean[r]) rstd[r]`, `dbeta[c] = sum_r dy[r, c]`; with [`ACCUMULATE`] `+=`.
pub struct LayerNormParamGrad;

impl Contract for LayerNormParamGrad {
    type Params = LayerNormParams;
    const NAME: &'static str = "layer_norm_param_grad";
    const BINDINGS: &'static [Binding] = &[
        Binding::read("x"),
        Binding::read("stats"),
        Binding::read("dy"),
        Binding::read_write("dgamma").optional(),
        Binding::read_write("dbeta").optional(),
    ];

    fn lens(p: &LayerNormParams) -> Vec<usize> {
        let vector = |flag| p.vector(flag);
        vec![p.len(), 2 * p.rows as usize, p.len(), vector(LayerNormParams::GAMMA), vector(LayerNormParams::BETA)]
    }

    fn plain<T: Real>(p: &LayerNormParams, args: &mut Args<'_, T>) {
        let (x, stats, dy) = (args.input(0), args.input(1), args.input(2));
        let (mut dgamma, mut dbeta) = (args.optional_output(3), args.optional_output(4));
        let cols = p.cols as usize;
        let put = |to: &mut T, value: T| *to = if p.flags & ACCUMULATE != 0 { *to + value } else { value };
        for c in 0..cols {
            let (mut gamma, mut beta) = (T::of(0.0), T::of(0.0));
            for r in 0..p.rows as usize {
                let dy = dy[r * cols + c];
                gamma += dy * (x[r * cols + c] - stats[2 * r]) * stats[2 * r + 1];
                beta += dy;
            }
            if let Some(dgamma) = &mut dgamma {
                put(&mut dgamma[c], gamma);
            }
            if let Some(dbeta) = &mut dbeta {
                put(&mut dbeta[c], beta);
            }
        }
    }

    fn workgroups(p: &LayerNormParams) -> [u32; 3] {
        cover(p.cols as usize, 64)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (rows, cols) in SHAPES {
            for present in
                [LayerNormParams::GAMMA, LayerNormParams::BETA, LayerNormParams::GAMMA | LayerNormParams::BETA]
            {
                for flags in [present, present | ACCUMULATE] {
                    samples.push(Sample::random::<Self>(5, &LayerNormParams { rows, cols, eps: 0.0, flags }));
                }
            }
        }
        samples
    }
}
