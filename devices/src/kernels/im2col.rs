use bytemuck::{Pod, Zeroable};

use super::strided::count;
use super::{ACCUMULATE, Args, Binding, Contract, Real, Sample, cover};
use crate::weight::Weight;

/// Patches of images as rows, so that a convolution becomes a product.
///
/// `cols[(b, ho, wo), (c, i, j)] = x[b, c, ho sh + i dh - pt, wo sw + j dw - pl]`, 0 outside of x.
/// x: [B, C, H, W], cols: [B Ho Wo, C kh kw]. One dimension is h = 1.
pub struct Im2col;

/// Parameters of [`Im2col`] and [`Col2im`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Im2colParams {
    /// B.
    pub batch: u32,
    /// C.
    pub channels: u32,
    /// H.
    pub h: u32,
    /// W.
    pub w: u32,
    /// Ho.
    pub out_h: u32,
    /// Wo.
    pub out_w: u32,
    /// Rows of a patch.
    pub kernel_h: u32,
    /// Columns of a patch.
    pub kernel_w: u32,
    /// Distance of patches.
    pub stride_h: u32,
    /// Distance of patches.
    pub stride_w: u32,
    /// Rows of zeros above x.
    pub pad_top: u32,
    /// Columns of zeros to the left of x.
    pub pad_left: u32,
    /// Distance of the rows of a patch.
    pub dilation_h: u32,
    /// Distance of the columns of a patch.
    pub dilation_w: u32,
    /// [`ACCUMULATE`] ([`Col2im`] only).
    pub flags: u32,
}

impl Im2colParams {
    /// Elements of x.
    pub fn x_len(&self) -> usize {
        count(&[self.batch, self.channels, self.h, self.w])
    }

    /// Elements of cols.
    pub fn cols_len(&self) -> usize {
        count(&[self.batch, self.out_h, self.out_w, self.channels, self.kernel_h, self.kernel_w])
    }

    /// Calls `visit` with (position in cols, position in x, or `None` in the padding), in the order of cols.
    fn for_each(&self, mut visit: impl FnMut(usize, Option<usize>)) {
        let inside = |out: u32, stride: u32, kernel: u32, dilation: u32, pad: u32, len: u32| {
            let at = (u64::from(out) * u64::from(stride) + u64::from(kernel) * u64::from(dilation))
                .checked_sub(pad.into())?;
            (at < u64::from(len)).then_some(at as usize)
        };
        let mut at = 0;
        for b in 0..self.batch as usize {
            for ho in 0..self.out_h {
                for wo in 0..self.out_w {
                    for c in 0..self.channels as usize {
                        for i in 0..self.kernel_h {
                            let row = inside(ho, self.stride_h, i, self.dilation_h, self.pad_top, self.h);
                            for j in 0..self.kernel_w {
                                let column = inside(wo, self.stride_w, j, self.dilation_w, self.pad_left, self.w);
                                let x = row.zip(column).map(|(row, column)| {
                                    ((b * self.channels as usize + c) * self.h as usize + row) * self.w as usize
                                        + column
                                });
                                visit(at, x);
                                at += 1;
                            }
                        }
                    }
                }
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.stride_h == 0 || self.stride_w == 0 || self.dilation_h == 0 || self.dilation_w == 0 {
            return Err("strides and dilations start at 1".into());
        }
        Ok(())
    }

    fn samples<C: Contract<Params = Self>>(flags: &[u32]) -> Vec<Sample> {
        let none = Im2colParams {
            batch: 1,
            channels: 1,
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
        let line = Im2colParams { batch: 2, channels: 3, w: 17, out_w: 17, kernel_w: 5, pad_left: 2, ..none };
        let strided = Im2colParams {
            batch: 2,
            channels: 5,
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
        let dilated = Im2colParams {
            channels: 2,
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
        for p in [none, line, strided, dilated] {
            for &flags in flags {
                samples.push(Sample::random::<C>(2, &Im2colParams { flags, ..p }));
            }
        }
        samples
    }
}

impl Contract for Im2col {
    type Params = Im2colParams;
    const NAME: &'static str = "im2col";
    const BINDINGS: &'static [Binding] = &[Binding::read("x"), Binding::write("cols")];

    fn lens(p: &Im2colParams) -> Vec<usize> {
        vec![p.x_len(), p.cols_len()]
    }

    fn check(p: &Im2colParams, _: Option<&Weight>) -> Result<(), String> {
        p.check()
    }

    fn plain<T: Real>(p: &Im2colParams, args: &mut Args<'_, T>) {
        let (x, cols) = (args.input(0), args.output(1));
        p.for_each(|at, from| cols[at] = from.map_or(T::of(0.0), |from| x[from]));
    }

    fn workgroups(p: &Im2colParams) -> [u32; 3] {
        cover(p.cols_len(), 256)
    }

    fn samples() -> Vec<Sample> {
        Im2colParams::samples::<Self>(&[0])
    }
}

/// Gradient of [`Im2col`]: each element of x gets the sum of the places in cols that it was copied to.
///
/// `x[b, c, h, w] = sum of cols[(b, ho, wo), (c, i, j)] with ho sh + i dh - pt = h and wo sw + j dw - pl = w`; with
/// [`ACCUMULATE`] `x +=`. A GPU body gathers per element of x.
pub struct Col2im;

impl Contract for Col2im {
    type Params = Im2colParams;
    const NAME: &'static str = "col2im";
    const BINDINGS: &'static [Binding] = &[Binding::read("cols"), Binding::read_write("x")];

    fn lens(p: &Im2colParams) -> Vec<usize> {
        vec![p.cols_len(), p.x_len()]
    }

    fn check(p: &Im2colParams, _: Option<&Weight>) -> Result<(), String> {
        p.check()
    }

    fn plain<T: Real>(p: &Im2colParams, args: &mut Args<'_, T>) {
        let (cols, x) = (args.input(0), args.output(1));
        if p.flags & ACCUMULATE == 0 {
            x[..p.x_len()].fill(T::of(0.0));
        }
        p.for_each(|at, to| {
            if let Some(to) = to {
                x[to] += cols[at];
            }
        });
    }

    fn workgroups(p: &Im2colParams) -> [u32; 3] {
        cover(p.x_len(), 256)
    }

    fn samples() -> Vec<Sample> {
        Im2colParams::samples::<Self>(&[0, ACCUMULATE])
    }
}
