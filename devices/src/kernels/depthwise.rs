use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use inlay_format::quant::Layout;

use super::strided::count;
use super::{ACCUMULATE, Args, Binding, Contract, Real, Sample, SampleOperand, cover, sample};
use crate::weight::Weight;

/// Depthwise convolution, channels last: every output channel sees one input channel.
///
/// `y[b, ho, wo, n] = bias[n] + sum_ij x[b, ho sh + i dh - pt, wo sw + j dw - pl, n / M] W[(i, j), n]`, x being 0 outside.
/// x: [B, H, W, C], W: a frozen weight of k = kh kw and n = C M, stored as [N, K], y: [B, Ho, Wo, C M]. One dimension is
/// h = 1.
pub struct Depthwise;

/// Parameters of [`Depthwise`] and [`DepthwiseGrad`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct DepthwiseParams {
    /// B.
    pub batch: u32,
    /// C.
    pub channels: u32,
    /// M: output channels of an input channel.
    pub multiplier: u32,
    /// H.
    pub h: u32,
    /// W.
    pub w: u32,
    /// Ho.
    pub out_h: u32,
    /// Wo.
    pub out_w: u32,
    /// Rows of the kernel.
    pub kernel_h: u32,
    /// Columns of the kernel.
    pub kernel_w: u32,
    /// Distance of windows.
    pub stride_h: u32,
    /// Distance of windows.
    pub stride_w: u32,
    /// Rows of zeros above x.
    pub pad_top: u32,
    /// Columns of zeros to the left of x.
    pub pad_left: u32,
    /// Distance of the rows of the kernel.
    pub dilation_h: u32,
    /// Distance of the columns of the kernel.
    pub dilation_w: u32,
    /// [`ACCUMULATE`] ([`DepthwiseGrad`] only), [`DepthwiseParams::BIAS`], and
    /// [`Weight::form_flags`].
    pub flags: u32,
}

impl DepthwiseParams {
    /// The bias is present ([`Depthwise`] only).
    pub const BIAS: u32 = 2;

    /// Elements of x.
    pub fn x_len(&self) -> usize {
        count(&[self.batch, self.h, self.w, self.channels])
    }

    /// Elements of y.
    pub fn y_len(&self) -> usize {
        count(&[self.batch, self.out_h, self.out_w, self.channels, self.multiplier])
    }

    /// N.
    pub fn out_channels(&self) -> usize {
        count(&[self.channels, self.multiplier])
    }

    /// K: elements of a kernel.
    pub fn taps(&self) -> usize {
        count(&[self.kernel_h, self.kernel_w])
    }

    /// The taps of a window that lie inside x, with the pixel of x under each: (tap, h W + w).
    pub fn under(&self, ho: usize, wo: usize) -> impl Iterator<Item = (usize, usize)> {
        let [h, w] = self.axes();
        h.under(ho).flat_map(move |(i, row)| w.under(wo).map(move |(j, col)| (i * w.kernel + j, row * w.len + col)))
    }

    /// The windows that a pixel of x is in, with its tap in each: (tap, ho Wo + wo).
    pub fn over(&self, row: usize, col: usize) -> impl Iterator<Item = (usize, usize)> {
        let [h, w] = self.axes();
        h.over(row).flat_map(move |(i, ho)| w.over(col).map(move |(j, wo)| (i * w.kernel + j, ho * w.out + wo)))
    }

    fn axes(&self) -> [Axis; 2] {
        let axis = |len: u32, out: u32, kernel: u32, stride: u32, pad: u32, dilation: u32| Axis {
            len: len as usize,
            out: out as usize,
            kernel: kernel as usize,
            stride: stride as usize,
            pad: pad as usize,
            dilation: dilation as usize,
        };
        [
            axis(self.h, self.out_h, self.kernel_h, self.stride_h, self.pad_top, self.dilation_h),
            axis(self.w, self.out_w, self.kernel_w, self.stride_w, self.pad_left, self.dilation_w),
        ]
    }

    fn check(&self, weight: Option<&Weight>) -> Result<(), String> {
        if self.stride_h == 0 || self.stride_w == 0 || self.dilation_h == 0 || self.dilation_w == 0 {
            return Err("strides and dilations start at 1".into());
        }
        match weight {
            Some(w) if w.layout() != Layout::NK || (w.k(), w.n()) != (self.taps(), self.out_channels()) => {
                Err(format!("{w:?} has no {} kernels of {}", self.out_channels(), self.taps()))
            }
            Some(w) if w.form_flags() != self.flags & Weight::FORM_MASK => Err(format!("{w:?} has another form")),
            _ => Ok(()),
        }
    }

    /// Sample calls with every scheme; the weight is binding `at`.
    fn samples<C: Contract<Params = Self>>(at: usize, flags: &[u32]) -> Vec<Sample> {
        let none = DepthwiseParams {
            batch: 1,
            channels: 1,
            multiplier: 1,
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
            dilation_h: 1,
            dilation_w: 1,
            flags: 0,
        };
        let line = DepthwiseParams { batch: 2, channels: 5, w: 17, out_w: 17, kernel_w: 5, pad_left: 2, ..none };
        let square = DepthwiseParams {
            batch: 2,
            channels: 67,
            h: 7,
            w: 6,
            out_h: 7,
            out_w: 6,
            kernel_h: 3,
            kernel_w: 3,
            pad_top: 1,
            pad_left: 1,
            ..none
        };
        let strided = DepthwiseParams {
            channels: 33,
            multiplier: 2,
            h: 9,
            w: 11,
            out_h: 4,
            out_w: 3,
            kernel_h: 3,
            kernel_w: 2,
            stride_h: 2,
            stride_w: 4,
            pad_top: 1,
            ..none
        };
        let dilated = DepthwiseParams {
            channels: 4,
            multiplier: 3,
            h: 8,
            w: 8,
            out_h: 6,
            out_w: 8,
            kernel_h: 3,
            kernel_w: 3,
            pad_top: 1,
            pad_left: 3,
            dilation_h: 2,
            dilation_w: 3,
            ..none
        };
        let mut samples = Vec::new();
        // As many taps as blocks of int4 need.
        let wide = DepthwiseParams { channels: 3, w: 40, out_w: 9, kernel_w: 32, ..none };
        for p in [none, line, square, strided, dilated, wide] {
            let weights = sample::weights(3, [p.taps(), p.out_channels()]);
            for weight in weights.into_iter().filter(|weight| weight.layout() == Layout::NK) {
                for &flags in flags {
                    let p = DepthwiseParams { flags: flags | weight.form_flags(), ..p };
                    samples.push(Sample::random::<C>(2, &p).with(at, SampleOperand::Weight(weight.clone())));
                }
            }
        }
        samples
    }
}

/// One spatial dimension of a depthwise convolution.
#[derive(Clone, Copy)]
struct Axis {
    len: usize,
    out: usize,
    kernel: usize,
    stride: usize,
    pad: usize,
    dilation: usize,
}

impl Axis {
    /// The taps inside x of the window `out`, with the place in x under each.
    fn under(self, out: usize) -> impl Iterator<Item = (usize, usize)> {
        let start = out * self.stride;
        // Taps before `first` lie in the padding in front of x, those from `end` on behind it.
        let first = self.pad.saturating_sub(start).div_ceil(self.dilation).min(self.kernel);
        let end = (self.len + self.pad).saturating_sub(start).div_ceil(self.dilation).min(self.kernel);
        let taps: Range<usize> = first..end.max(first);
        taps.map(move |tap| (tap, start + tap * self.dilation - self.pad))
    }

    /// The windows over the place `at` of x, with the tap that meets it.
    fn over(self, at: usize) -> impl Iterator<Item = (usize, usize)> {
        (0..self.kernel).filter_map(move |tap| {
            let start = (at + self.pad).checked_sub(tap * self.dilation)?;
            (start % self.stride == 0 && start / self.stride < self.out).then_some((tap, start / self.stride))
        })
    }
}

impl Contract for Depthwise {
    type Params = DepthwiseParams;
    const NAME: &'static str = "depthwise";
    const BINDINGS: &'static [Binding] =
        &[Binding::read("x"), Binding::weight("w"), Binding::read("bias").optional(), Binding::write("y")];

    fn lens(p: &DepthwiseParams) -> Vec<usize> {
        let bias = if p.flags & DepthwiseParams::BIAS != 0 { p.out_channels() } else { 0 };
        vec![p.x_len(), p.taps() * p.out_channels(), bias, p.y_len()]
    }

    fn check(p: &DepthwiseParams, weight: Option<&Weight>) -> Result<(), String> {
        p.check(weight)
    }

    fn plain<T: Real>(p: &DepthwiseParams, args: &mut Args<'_, T>) {
        let (x, w, bias, y) = (args.input(0), args.weight(1), args.optional_input(2), args.output(3));
        let (n, c, m) = (p.out_channels(), p.channels as usize, p.multiplier as usize);
        let pixels = count(&[p.out_h, p.out_w]);
        for (at, y) in y[..p.y_len()].iter_mut().enumerate() {
            let (channel, pixel, b) = (at % n, at / n % pixels, at / n / pixels);
            let image = b * count(&[p.h, p.w]);
            let mut sum = bias.map_or(T::of(0.0), |bias| bias[channel]);
            for (tap, under) in p.under(pixel / p.out_w as usize, pixel % p.out_w as usize) {
                sum += x[(image + under) * c + channel / m] * T::of(f64::from(w.get(tap, channel)));
            }
            *y = sum;
        }
    }

    fn workgroups(p: &DepthwiseParams) -> [u32; 3] {
        cover(p.y_len(), 256)
    }

    fn samples() -> Vec<Sample> {
        DepthwiseParams::samples::<Self>(1, &[0, DepthwiseParams::BIAS])
    }
}

/// Gradient of the input of [`Depthwise`]; with [`ACCUMULATE`] `dx +=`, else `dx =`.
///
/// `dx[b, h, w, c] = sum of dy[b, ho, wo, c M + m] W[(i, j), c M + m] with ho sh + i dh - pt = h and
/// wo sw + j dw - pl = w`.
pub struct DepthwiseGrad;

impl Contract for DepthwiseGrad {
    type Params = DepthwiseParams;
    const NAME: &'static str = "depthwise_grad";
    const BINDINGS: &'static [Binding] = &[Binding::read("dy"), Binding::weight("w"), Binding::read_write("dx")];

    fn lens(p: &DepthwiseParams) -> Vec<usize> {
        vec![p.y_len(), p.taps() * p.out_channels(), p.x_len()]
    }

    fn check(p: &DepthwiseParams, weight: Option<&Weight>) -> Result<(), String> {
        p.check(weight)
    }

    fn plain<T: Real>(p: &DepthwiseParams, args: &mut Args<'_, T>) {
        let (dy, w, dx) = (args.input(0), args.weight(1), args.output(2));
        let (n, c, m) = (p.out_channels(), p.channels as usize, p.multiplier as usize);
        let pixels = count(&[p.h, p.w]);
        for (at, dx) in dx[..p.x_len()].iter_mut().enumerate() {
            let (channel, pixel, b) = (at % c, at / c % pixels, at / c / pixels);
            let image = b * count(&[p.out_h, p.out_w]);
            let mut sum = if p.flags & ACCUMULATE != 0 { *dx } else { T::of(0.0) };
            for (tap, over) in p.over(pixel / p.w as usize, pixel % p.w as usize) {
                for out in channel * m..(channel + 1) * m {
                    sum += dy[(image + over) * n + out] * T::of(f64::from(w.get(tap, out)));
                }
            }
            *dx = sum;
        }
    }

    fn workgroups(p: &DepthwiseParams) -> [u32; 3] {
        cover(p.x_len(), 256)
    }

    fn samples() -> Vec<Sample> {
        DepthwiseParams::samples::<Self>(1, &[0, ACCUMULATE])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_under_a_window_and_windows_over_a_pixel_are_the_same_pairs() {
        for (len, kernel, stride, pad, dilation) in [(7, 3, 1, 1, 1), (9, 2, 4, 0, 1), (8, 3, 2, 4, 3), (2, 5, 1, 6, 1)]
        {
            let out = (len + 2 * pad - (kernel - 1) * dilation - 1) / stride + 1;
            let axis = Axis { len, out, kernel, stride, pad, dilation };
            let mut under: Vec<_> = (0..out).flat_map(|o| axis.under(o).map(move |(tap, at)| (tap, at, o))).collect();
            let mut over: Vec<_> = (0..len).flat_map(|at| axis.over(at).map(move |(tap, o)| (tap, at, o))).collect();
            under.sort_unstable();
            over.sort_unstable();
            assert_eq!(under, over);
            assert!(!under.is_empty());
        }
    }
}
