use bytemuck::{Pod, Zeroable};

use super::strided::{check_written, contiguous, count, extent, offset};
use super::{ACCUMULATE, Args, Binding, Contract, Real, Sample, cover};
use crate::weight::Weight;

/// Strided copy: `dst[dst_offset + i] = src[src_offset + i]` over the indices i of `dims`; with [`ACCUMULATE`] `dst +=`.
///
/// Transposition, slicing, concatenation, expansion (source stride 0) and their gradients. No destination stride is 0.
/// Other elements of dst keep their value.
pub struct Copy;

/// Parameters of [`struct@Copy`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct CopyParams {
    /// Shape, leading dimensions 1 where there are fewer.
    pub dims: [u32; 6],
    /// Strides of src.
    pub src: [u32; 6],
    /// Strides of dst.
    pub dst: [u32; 6],
    /// First element of src.
    pub src_offset: u32,
    /// First element of dst.
    pub dst_offset: u32,
    /// [`ACCUMULATE`].
    pub flags: u32,
}

impl CopyParams {
    /// A copy of `len` elements.
    pub fn contiguous(len: u32) -> Self {
        let dims = [1, 1, 1, 1, 1, len];
        CopyParams { dims, src: contiguous(dims), dst: contiguous(dims), src_offset: 0, dst_offset: 0, flags: 0 }
    }
}

impl Contract for Copy {
    type Params = CopyParams;
    const NAME: &'static str = "copy";
    const BINDINGS: &'static [Binding] = &[Binding::read("src"), Binding::read_write("dst")];

    fn lens(p: &CopyParams) -> Vec<usize> {
        let len = |offset: u32, strides| match extent(&p.dims, strides) {
            0 => 0,
            len => len.saturating_add(offset as usize),
        };
        vec![len(p.src_offset, &p.src), len(p.dst_offset, &p.dst)]
    }

    fn check(p: &CopyParams, _: Option<&Weight>) -> Result<(), String> {
        check_written("dst", &p.dims, &p.dst)
    }

    fn plain<T: Real>(p: &CopyParams, args: &mut Args<'_, T>) {
        let (src, dst) = (args.input(0), args.output(1));
        for i in 0..count(&p.dims) {
            let value = src[p.src_offset as usize + offset(i, &p.dims, &p.src)];
            let dst = &mut dst[p.dst_offset as usize + offset(i, &p.dims, &p.dst)];
            *dst = if p.flags & ACCUMULATE != 0 { *dst + value } else { value };
        }
    }

    fn workgroups(p: &CopyParams) -> [u32; 3] {
        cover(count(&p.dims), 256)
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        let plain = CopyParams::contiguous(517);
        let transpose = CopyParams {
            dims: [1, 1, 1, 2, 67, 35],
            src: [0, 0, 0, 67 * 35, 1, 67],
            dst: contiguous([1, 1, 1, 2, 67, 35]),
            ..plain
        };
        // [B, T, H, d] to [B, H, T, d].
        let heads = CopyParams {
            dims: [1, 1, 2, 3, 5, 8],
            src: [0, 0, 120, 8, 24, 1],
            dst: contiguous([1, 1, 2, 3, 5, 8]),
            ..plain
        };
        let slice = CopyParams {
            dims: [1, 1, 1, 3, 4, 5],
            src: [0, 0, 0, 100, 20, 2],
            dst: [0, 0, 0, 50, 10, 1],
            src_offset: 7,
            dst_offset: 13,
            ..plain
        };
        let expand = CopyParams {
            dims: [2, 3, 2, 3, 2, 5],
            src: [3, 1, 0, 0, 0, 0],
            dst: contiguous([2, 3, 2, 3, 2, 5]),
            ..plain
        };
        for p in [plain, CopyParams::contiguous(1), transpose, heads, slice, expand] {
            for flags in [0, ACCUMULATE] {
                samples.push(Sample::random::<Self>(2, &CopyParams { flags, ..p }));
            }
        }
        samples
    }
}
