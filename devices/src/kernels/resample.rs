use bytemuck::{Pod, Zeroable};

use super::strided::count;
use super::{ACCUMULATE, Args, Binding, Contract, Real, Sample, SampleOperand, cover, sample};
use crate::weight::Weight;

/// Product with a banded matrix along one axis: `y[o, i, :] = sum_t w[i, t] x[o, first[i] + t, :]`, with [`ACCUMULATE`]
/// `y +=`.
///
/// `x: [outer, x_len, inner]`, `first: [y_len]`, `w: [y_len, taps]`, `y: [outer, y_len, inner]`. Row i of the matrix is 0 but for
/// its `taps` elements from column `first[i]` on. The host refuses bands that leave `0..x_len`; a body that meets one gives
/// NaN.
pub struct Resample;

/// Parameters of [`Resample`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ResampleParams {
    /// Elements before the axis.
    pub outer: u32,
    /// Length of the axis of x: columns of the matrix.
    pub x_len: u32,
    /// Length of the axis of y: rows of the matrix.
    pub y_len: u32,
    /// Elements after the axis.
    pub inner: u32,
    /// Elements of a row of the matrix that may not be 0; at most `x_len`.
    pub taps: u32,
    /// [`ACCUMULATE`].
    pub flags: u32,
}

impl Contract for Resample {
    type Params = ResampleParams;
    const NAME: &'static str = "resample";
    const BINDINGS: &'static [Binding] =
        &[Binding::read("x"), Binding::ints("first"), Binding::read("w"), Binding::read_write("y")];

    fn lens(p: &ResampleParams) -> Vec<usize> {
        vec![
            count(&[p.outer, p.x_len, p.inner]),
            p.y_len as usize,
            count(&[p.y_len, p.taps]),
            count(&[p.outer, p.y_len, p.inner]),
        ]
    }

    fn check(p: &ResampleParams, _: Option<&Weight>) -> Result<(), String> {
        if p.taps == 0 || p.taps > p.x_len {
            return Err(format!("a band of {} in rows of {}", p.taps, p.x_len));
        }
        Ok(())
    }

    fn plain<T: Real>(p: &ResampleParams, args: &mut Args<'_, T>) {
        let (x, first, w, y) = (args.input(0), args.ints(1), args.input(2), args.output(3));
        let [x_len, y_len, inner, taps] = [p.x_len, p.y_len, p.inner, p.taps].map(|n| n as usize);
        for o in 0..p.outer as usize {
            for i in 0..y_len {
                let first = usize::try_from(first[i]).ok().filter(|&first| first + taps <= x_len);
                for c in 0..inner {
                    let sum = first.map_or(T::of(f64::NAN), |first| {
                        (0..taps)
                            .fold(T::of(0.0), |sum, t| sum + w[i * taps + t] * x[(o * x_len + first + t) * inner + c])
                    });
                    let y = &mut y[(o * y_len + i) * inner + c];
                    *y = if p.flags & ACCUMULATE != 0 { *y + sum } else { sum };
                }
            }
        }
    }

    fn workgroups(p: &ResampleParams) -> [u32; 3] {
        cover(count(&[p.outer, p.y_len, p.inner]), 256)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        let shapes = [(1, 1, 1, 1, 1), (3, 5, 11, 7, 2), (2, 9, 4, 1, 4), (37, 6, 13, 1, 1), (1, 8, 3, 130, 8)];
        for (outer, x_len, y_len, inner, taps) in shapes {
            for flags in [0, ACCUMULATE] {
                let p = ResampleParams { outer, x_len, y_len, inner, taps, flags };
                let first = sample::ints(9, y_len as usize, (x_len - taps + 1) as i32);
                samples.push(Sample::random::<Self>(2, &p).with(1, SampleOperand::Ints(first)));
            }
        }
        samples
    }
}
