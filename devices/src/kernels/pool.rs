use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::strided::count;
use super::{ACCUMULATE, Args, Binding, Contract, Real, Sample, SampleOperand, cover, sample};
use crate::weight::Weight;

/// Largest element or mean of each window of each plane: `y[p, ho, wo] = op over x[p, ho sh + i dh - pt, wo sw + j dw - pl]`
/// for `i < kh`, `j < kw`, inside x.
///
/// x: [P, H, W] with P = B C, y: [P, Ho, Wo]; one dimension is h = 1. The mean divides by the elements inside x, or, with
/// [`PoolParams::COUNT_INCLUDE_PAD`], by those inside x and its padding. A window with no element gives 0 for the mean and
/// -inf for the largest.
pub struct Pool;

/// Parameters of [`Pool`] and [`PoolGrad`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct PoolParams {
    /// P, batch times channels.
    pub planes: u32,
    /// H.
    pub h: u32,
    /// W.
    pub w: u32,
    /// Ho.
    pub out_h: u32,
    /// Wo.
    pub out_w: u32,
    /// Rows of a window.
    pub kernel_h: u32,
    /// Columns of a window.
    pub kernel_w: u32,
    /// Distance of windows.
    pub stride_h: u32,
    /// Distance of windows.
    pub stride_w: u32,
    /// Padding above x.
    pub pad_top: u32,
    /// Padding to the left of x.
    pub pad_left: u32,
    /// Padding below x. Only counts for COUNT_INCLUDE_PAD.
    pub pad_bottom: u32,
    /// Padding to the right of x. Only counts for COUNT_INCLUDE_PAD.
    pub pad_right: u32,
    /// Distance of the rows of a window.
    pub dilation_h: u32,
    /// Distance of the columns of a window.
    pub dilation_w: u32,
    /// A [`PoolOp`].
    pub op: u32,
    /// [`PoolParams::COUNT_INCLUDE_PAD`]; for the gradient also [`ACCUMULATE`].
    pub flags: u32,
}

/// The functions of [`Pool`]. Numbers are part of the GPU body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PoolOp {
    /// Largest.
    Max = 0,
    /// Mean.
    Average = 1,
}

impl PoolParams {
    /// The mean divides by padding too.
    pub const COUNT_INCLUDE_PAD: u32 = 2;

    /// Elements of x.
    pub fn x_len(&self) -> usize {
        count(&[self.planes, self.h, self.w])
    }

    /// Elements of y.
    pub fn y_len(&self) -> usize {
        count(&[self.planes, self.out_h, self.out_w])
    }

    /// Of one axis of a window: the `k` whose element is inside x.
    fn inside(out: u32, kernel: u32, stride: u32, pad: u32, dilation: u32, len: u32) -> Range<u32> {
        let start = out * stride;
        let first = pad.saturating_sub(start).div_ceil(dilation).min(kernel);
        let end = (len + pad).saturating_sub(start).div_ceil(dilation).min(kernel);
        first..end.max(first)
    }

    /// Number of elements that a mean divides by.
    fn divisor(&self, ho: u32, wo: u32, inside: usize) -> usize {
        if self.flags & Self::COUNT_INCLUDE_PAD == 0 {
            return inside;
        }
        let padded = |out: u32, kernel: u32, stride: u32, dilation: u32, len: u32| {
            len.saturating_sub(out * stride).div_ceil(dilation).min(kernel) as usize
        };
        padded(ho, self.kernel_h, self.stride_h, self.dilation_h, self.h + self.pad_top + self.pad_bottom)
            * padded(wo, self.kernel_w, self.stride_w, self.dilation_w, self.w + self.pad_left + self.pad_right)
    }

    /// Calls `visit` with (position in y, divisor of a mean, positions in x) for every window.
    fn for_each(&self, mut visit: impl FnMut(usize, usize, &mut dyn Iterator<Item = usize>)) {
        let mut at = 0;
        for plane in 0..self.planes as usize {
            for ho in 0..self.out_h {
                let rows = Self::inside(ho, self.kernel_h, self.stride_h, self.pad_top, self.dilation_h, self.h);
                for wo in 0..self.out_w {
                    let columns =
                        Self::inside(wo, self.kernel_w, self.stride_w, self.pad_left, self.dilation_w, self.w);
                    let mut window = rows.clone().flat_map(|i| {
                        let row = (ho * self.stride_h + i * self.dilation_h - self.pad_top) as usize;
                        columns.clone().map(move |j| {
                            let column = (wo * self.stride_w + j * self.dilation_w - self.pad_left) as usize;
                            (plane * self.h as usize + row) * self.w as usize + column
                        })
                    });
                    visit(at, self.divisor(ho, wo, rows.len() * columns.len()), &mut window);
                    at += 1;
                }
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.stride_h == 0 || self.stride_w == 0 || self.dilation_h == 0 || self.dilation_w == 0 {
            return Err("strides and dilations start at 1".into());
        }
        if self.op > PoolOp::Average as u32 {
            return Err(format!("no function {}", self.op));
        }
        Ok(())
    }

    /// Sample parameters of every kind, with coarse values for x so that equal ones meet.
    fn samples<C: Contract<Params = Self>>(flags: &[u32]) -> Vec<Sample> {
        let none = PoolParams {
            planes: 1,
            h: 1,
            w: 1,
            out_h: 1,
            out_w: 1,
            kernel_h: 1,
            kernel_w: 1,
            stride_h: 1,
            stride_w: 1,
            pad_top: 0,
            pad_left: 0,
            pad_bottom: 0,
            pad_right: 0,
            dilation_h: 1,
            dilation_w: 1,
            op: 0,
            flags: 0,
        };
        let line = PoolParams { planes: 5, w: 16, out_w: 8, kernel_w: 2, stride_w: 2, ..none };
        let odd = PoolParams {
            planes: 3,
            h: 7,
            w: 10,
            out_h: 4,
            out_w: 4,
            kernel_h: 3,
            kernel_w: 4,
            stride_h: 2,
            stride_w: 3,
            pad_top: 1,
            pad_left: 2,
            pad_bottom: 1,
            pad_right: 1,
            ..none
        };
        // ceil_mode: the last window reaches beyond the padding.
        let beyond = PoolParams { w: 6, out_w: 4, kernel_w: 3, stride_w: 2, pad_left: 1, pad_right: 1, ..none };
        let dilated = PoolParams { planes: 2, w: 11, out_w: 7, kernel_w: 3, dilation_w: 2, ..none };
        let global = PoolParams { planes: 4, h: 5, w: 13, kernel_h: 5, kernel_w: 13, ..none };
        let mut samples = Vec::new();
        for p in [none, line, odd, beyond, dilated, global] {
            for op in [PoolOp::Max as u32, PoolOp::Average as u32] {
                for &flags in flags {
                    let p = PoolParams { op, flags, ..p };
                    let mut sample = Sample::random::<C>(2, &p);
                    if matches!(sample.operands[0], SampleOperand::Floats(_)) {
                        let x = sample::floats(3, C::lens(&p)[0]).iter().map(|x| (x * 4.0).round() / 4.0).collect();
                        sample = sample.with(0, SampleOperand::Floats(x));
                    }
                    samples.push(sample);
                }
            }
        }
        samples
    }
}

impl Contract for Pool {
    type Params = PoolParams;
    const NAME: &'static str = "pool";
    const BINDINGS: &'static [Binding] = &[Binding::read("x"), Binding::write("y")];

    fn lens(p: &PoolParams) -> Vec<usize> {
        vec![p.x_len(), p.y_len()]
    }

    fn check(p: &PoolParams, _: Option<&Weight>) -> Result<(), String> {
        p.check()
    }

    fn plain<T: Real>(p: &PoolParams, args: &mut Args<'_, T>) {
        let (x, y) = (args.input(0), args.output(1));
        p.for_each(|at, divisor, window| {
            y[at] = if p.op == PoolOp::Max as u32 {
                window.fold(T::of(f64::NEG_INFINITY), |max, i| max.max(x[i]))
            } else {
                window.fold(T::of(0.0), |sum, i| sum + x[i]) / T::of(divisor.max(1) as f64)
            };
        });
    }

    fn workgroups(p: &PoolParams) -> [u32; 3] {
        cover(p.y_len(), 256)
    }

    fn samples() -> Vec<Sample> {
        PoolParams::samples::<Self>(&[0, PoolParams::COUNT_INCLUDE_PAD])
    }
}

/// Gradient of [`Pool`]; with [`ACCUMULATE`] `dx +=`, else `dx =`.
///
/// Max: dy of each window goes to its first largest element in row-major order. Mean: dy / divisor goes to every
/// element of the window. x is bound for Max and absent for the mean. A GPU body gathers per element of dx.
pub struct PoolGrad;

impl Contract for PoolGrad {
    type Params = PoolParams;
    const NAME: &'static str = "pool_grad";
    const BINDINGS: &'static [Binding] =
        &[Binding::read("x").optional(), Binding::read("dy"), Binding::read_write("dx")];

    fn lens(p: &PoolParams) -> Vec<usize> {
        vec![if p.op == PoolOp::Max as u32 { p.x_len() } else { 0 }, p.y_len(), p.x_len()]
    }

    fn check(p: &PoolParams, _: Option<&Weight>) -> Result<(), String> {
        p.check()
    }

    fn plain<T: Real>(p: &PoolParams, args: &mut Args<'_, T>) {
        let (x, dy, dx) = (args.optional_input(0), args.input(1), args.output(2));
        if p.flags & ACCUMULATE == 0 {
            dx[..p.x_len()].fill(T::of(0.0));
        }
        p.for_each(|at, divisor, window| match x {
            Some(x) => {
                if let Some(first) = window.reduce(|best, i| if x[i] > x[best] { i } else { best }) {
                    dx[first] += dy[at];
                }
            }
            None => window.for_each(|i| dx[i] += dy[at] / T::of(divisor as f64)),
        });
    }

    fn workgroups(p: &PoolParams) -> [u32; 3] {
        cover(p.x_len(), 256)
    }

    fn samples() -> Vec<Sample> {
        let pad = PoolParams::COUNT_INCLUDE_PAD;
        PoolParams::samples::<Self>(&[0, pad, ACCUMULATE, pad | ACCUMULATE])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_stop_at_the_edges() {
        // Length 6, pad 1, kernel 3, stride 2: windows start at -1, 1, 3, 5.
        let inside: Vec<_> = (0..4).map(|out| PoolParams::inside(out, 3, 2, 1, 1, 6)).collect();
        assert_eq!(inside, [1..3, 0..3, 0..3, 0..1]);
        assert_eq!(PoolParams::inside(0, 3, 1, 4, 1, 2), 3..3);
    }
}
