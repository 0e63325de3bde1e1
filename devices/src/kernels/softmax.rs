use bytemuck::{Pod, Zeroable};

use super::{ACCUMULATE, Args, Binding, Contract, Real, Sample, SampleOperand, cover, sample};

/// Softmax of each row: `y[r, c] = e^(x[r, c] - max_c x) / sum_c e^(x[r, c] - max_c x)`, x and y: [rows, cols].
///
/// A row of nothing but -inf gives zeros. With [`SoftmaxParams::IN_PLACE`] x is absent and y is its own input.
pub struct Softmax;

/// Parameters of [`Softmax`] and [`SoftmaxGrad`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct SoftmaxParams {
    /// Number of rows.
    pub rows: u32,
    /// Elements of a row.
    pub cols: u32,
    /// [`SoftmaxParams::IN_PLACE`]; for the gradient also [`ACCUMULATE`].
    pub flags: u32,
}

impl SoftmaxParams {
    /// The input is absent and read from the output. Not together with ACCUMULATE.
    pub const IN_PLACE: u32 = 2;

    fn lens(&self) -> (usize, usize) {
        let len = self.rows as usize * self.cols as usize;
        (len, if self.flags & Self::IN_PLACE != 0 { 0 } else { len })
    }
}

/// Softmax of one row where it stands.
pub(crate) fn softmax_row<T: Real>(row: &mut [T]) {
    let max = row.iter().fold(T::of(f64::NEG_INFINITY), |m, &x| m.max(x));
    if max == T::of(f64::NEG_INFINITY) {
        row.fill(T::of(0.0));
        return;
    }
    let mut sum = T::of(0.0);
    for x in row.iter_mut() {
        *x = (*x - max).exp();
        sum += *x;
    }
    for x in row {
        *x /= sum;
    }
}

impl Contract for Softmax {
    type Params = SoftmaxParams;
    const NAME: &'static str = "softmax";
    const BINDINGS: &'static [Binding] = &[Binding::read("x").optional(), Binding::read_write("y")];

    fn lens(p: &SoftmaxParams) -> Vec<usize> {
        let (len, input) = p.lens();
        vec![input, len]
    }

    fn plain<T: Real>(p: &SoftmaxParams, args: &mut Args<'_, T>) {
        let (x, y) = (args.optional_input(0), args.output(1));
        let cols = p.cols as usize;
        for r in 0..p.rows as usize {
            let row = &mut y[r * cols..][..cols];
            if let Some(x) = x {
                row.copy_from_slice(&x[r * cols..][..cols]);
            }
            softmax_row(row);
        }
    }

    fn workgroups(p: &SoftmaxParams) -> [u32; 3] {
        cover(p.rows as usize, 1)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (rows, cols) in [(1, 1), (3, 7), (5, 64), (2, 259)] {
            for flags in [0, SoftmaxParams::IN_PLACE] {
                let p = SoftmaxParams { rows, cols, flags };
                let mut x = sample::floats(5, Self::lens(&p)[1]);
                x.iter_mut().for_each(|x| *x *= 8.0);
                // The last row is fully masked, the first one up to its last element.
                let (first, last) = (cols as usize - 1, (rows as usize - 1) * cols as usize);
                x[..first].fill(f32::NEG_INFINITY);
                if rows > 1 {
                    x[last..].fill(f32::NEG_INFINITY);
                }
                let at = if flags == 0 { 0 } else { 1 };
                samples.push(Sample::random::<Self>(1, &p).with(at, SampleOperand::Floats(x)));
            }
        }
        samples
    }
}

/// Gradient of [`Softmax`]: `dx[r, c] = y[r, c] (dy[r, c] - sum_j dy[r, j] y[r, j])`; with [`ACCUMULATE`] `dx +=`.
///
/// With [`SoftmaxParams::IN_PLACE`] dy is absent and read from dx.
pub struct SoftmaxGrad;

impl Contract for SoftmaxGrad {
    type Params = SoftmaxParams;
    const NAME: &'static str = "softmax_grad";
    const BINDINGS: &'static [Binding] =
        &[Binding::read("y"), Binding::read("dy").optional(), Binding::read_write("dx")];

    fn lens(p: &SoftmaxParams) -> Vec<usize> {
        let (len, input) = p.lens();
        vec![len, input, len]
    }

    fn plain<T: Real>(p: &SoftmaxParams, args: &mut Args<'_, T>) {
        let (y, dy, dx) = (args.input(0), args.optional_input(1), args.output(2));
        let cols = p.cols as usize;
        for r in 0..p.rows as usize {
            let range = r * cols..(r + 1) * cols;
            let (y, dx) = (&y[range.clone()], &mut dx[range.clone()]);
            let dy = dy.map(|dy| &dy[range]);
            let mut dot = T::of(0.0);
            for c in 0..cols {
                dot += y[c] * dy.map_or(dx[c], |dy| dy[c]);
            }
            for c in 0..cols {
                let value = y[c] * (dy.map_or(dx[c], |dy| dy[c]) - dot);
                dx[c] = if p.flags & ACCUMULATE != 0 { dx[c] + value } else { value };
            }
        }
    }

    fn workgroups(p: &SoftmaxParams) -> [u32; 3] {
        cover(p.rows as usize, 1)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (rows, cols) in [(1, 1), (3, 7), (5, 64), (2, 259)] {
            for flags in [0, ACCUMULATE, SoftmaxParams::IN_PLACE] {
                samples.push(Sample::random::<Self>(3, &SoftmaxParams { rows, cols, flags }));
            }
        }
        samples
    }
}
