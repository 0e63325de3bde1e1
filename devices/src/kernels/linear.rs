use bytemuck::{Pod, Zeroable};
use inlay_format::quant::Layout;

use super::{ACCUMULATE, Args, Binding, Contract, Real, Sample, SampleOperand, sample, to_words};
use crate::weight::Weight;

/// Product with a frozen weight, forward or backward.
///
/// Forward: `y[m, n] = sum_k x[m, k] W[k, n] + bias[n]`, with x: [M, K], W: [K, N], y: [M, N].
/// Transposed (the gradient of the input): `y[m, k] = sum_n x[m, n] W[k, n]`, with x: [M, N], y: [M, K].
/// `W` is dequantized on the way: its scales belong to n, the output forward and the contracted axis transposed, and may
/// belong to blocks of k too.
/// With [`ACCUMULATE`] `y +=`, else `y =`.
pub struct Linear;

/// Parameters of [`Linear`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct LinearParams {
    /// Rows of x and y.
    pub m: u32,
    /// Logical rows of W.
    pub k: u32,
    /// Logical columns of W.
    pub n: u32,
    /// [`ACCUMULATE`], [`LinearParams::TRANSPOSE`], [`LinearParams::BIAS`], and [`LinearParams::weight_flags`].
    pub flags: u32,
}

impl LinearParams {
    /// Multiply by W^T.
    pub const TRANSPOSE: u32 = 2;
    /// `bias` is present. Not together with TRANSPOSE.
    pub const BIAS: u32 = 4;
    /// The weight is stored as [N, K] (as its `layout()` says; repeated here for the GPU body).
    pub const LAYOUT_NK: u32 = 8;

    /// What the GPU body must know of a weight: [`LinearParams::LAYOUT_NK`] and [`Weight::form_flags`].
    pub fn weight_flags(weight: &Weight) -> u32 {
        let layout = if weight.layout() == Layout::NK { Self::LAYOUT_NK } else { 0 };
        layout | weight.form_flags()
    }

    /// Contracted length and output length.
    pub fn inner_outer(&self) -> (usize, usize) {
        let (k, n) = (self.k as usize, self.n as usize);
        if self.flags & Self::TRANSPOSE == 0 { (k, n) } else { (n, k) }
    }
}

impl Contract for Linear {
    type Params = LinearParams;
    const NAME: &'static str = "linear";
    const BINDINGS: &'static [Binding] =
        &[Binding::read("x"), Binding::weight("w"), Binding::read("bias").optional(), Binding::read_write("y")];

    fn lens(p: &LinearParams) -> Vec<usize> {
        let (inner, outer) = p.inner_outer();
        let m = p.m as usize;
        let bias = if p.flags & LinearParams::BIAS != 0 { outer } else { 0 };
        vec![m * inner, inner * outer, bias, m * outer]
    }

    fn check(p: &LinearParams, weight: Option<&Weight>) -> Result<(), String> {
        let layout = if p.flags & LinearParams::LAYOUT_NK != 0 { Layout::NK } else { Layout::KN };
        match weight {
            Some(w) if w.layout() != layout || (w.k(), w.n()) != (p.k as usize, p.n as usize) => {
                Err(format!("{w:?} is not {layout:?} [{}, {}]", p.k, p.n))
            }
            Some(w) if w.form_flags() != p.flags & Weight::FORM_MASK => Err(format!("{w:?} has another form")),
            _ if p.flags & LinearParams::TRANSPOSE != 0 && p.flags & LinearParams::BIAS != 0 => {
                Err("a transposed product takes no bias".into())
            }
            _ => Ok(()),
        }
    }

    fn plain<T: Real>(p: &LinearParams, args: &mut Args<'_, T>) {
        let (x, w, bias, y) = (args.input(0), args.weight(1), args.optional_input(2), args.output(3));
        let (inner, outer) = p.inner_outer();
        let transpose = p.flags & LinearParams::TRANSPOSE != 0;
        for m in 0..p.m as usize {
            for o in 0..outer {
                let mut sum = bias.map_or(T::of(0.0), |b| b[o]);
                for i in 0..inner {
                    let w = if transpose { w.get(o, i) } else { w.get(i, o) };
                    sum += x[m * inner + i] * T::of(f64::from(w));
                }
                let y = &mut y[m * outer + o];
                *y = if p.flags & ACCUMULATE != 0 { *y + sum } else { sum };
            }
        }
    }

    fn workgroups(p: &LinearParams) -> [u32; 3] {
        let (_, outer) = p.inner_outer();
        [(outer as u32).div_ceil(64), p.m.div_ceil(64), 1]
    }

    fn samples() -> Vec<Sample> {
        const T: u32 = LinearParams::TRANSPOSE;
        let mut samples = Vec::new();
        let shapes = [(1, 1, 1), (3, 5, 7), (1, 64, 33), (65, 31, 67), (17, 128, 64), (5, 48, 19)];
        for (seed, (m, k, n)) in (0..).zip(shapes) {
            for weight in sample::weights(seed + 20, [k as usize, n as usize]) {
                for flags in [0, ACCUMULATE, LinearParams::BIAS, T, T | ACCUMULATE] {
                    let p = LinearParams { m, k, n, flags: flags | LinearParams::weight_flags(&weight) };
                    let lens = Self::lens(&p);
                    let bias = if lens[2] > 0 {
                        SampleOperand::Floats(sample::floats(seed + 10, lens[2]))
                    } else {
                        SampleOperand::Absent
                    };
                    samples.push(Sample {
                        label: format!("{p:?} {weight:?}"),
                        params: to_words(&p),
                        operands: vec![
                            SampleOperand::Floats(sample::floats(seed, lens[0])),
                            SampleOperand::Weight(weight.clone()),
                            bias,
                            SampleOperand::Floats(sample::floats(seed + 30, lens[3])),
                        ],
                    });
                }
            }
        }
        samples
    }
}
