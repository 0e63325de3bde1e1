use std::ops::Range;

use inlay_format::quant;

use super::gemm::{K_STEP, Right};
use super::linear::transpose;
use super::simd::Vector;
use crate::weight::WeightView;

/// A right operand of int4 in blocks: [K, N] or, transposed, [N, K], stored as [N, K] either way.
#[derive(Clone, Copy)]
pub struct Int4<'a> {
    data: &'a [u8],
    /// Bytes of the elements of an n of the weight.
    row: usize,
    scales: &'a [f32],
    zero_points: &'a [u8],
    /// Outputs of the weight.
    n: usize,
    /// Blocks of an n of the weight.
    blocks: usize,
    /// Logarithm of the elements of a block.
    block_log: u32,
    transposed: bool,
}

/// Eight nibbles as bytes, in their order.
#[inline(always)]
fn spread(nibbles: u32) -> u64 {
    let mut x = u64::from(nibbles);
    x = (x | (x << 16)) & 0x0000_ffff_0000_ffff;
    x = (x | (x << 8)) & 0x00ff_00ff_00ff_00ff;
    (x | (x << 4)) & 0x0f0f_0f0f_0f0f_0f0f
}

impl<'a> Int4<'a> {
    /// The weight, or its transpose.
    pub fn new(w: &WeightView<'a>, transposed: bool) -> Self {
        Int4 {
            data: w.parts.data,
            row: w.k / 2,
            scales: w.parts.scales,
            zero_points: w.parts.zero_points,
            n: w.n,
            blocks: w.k / w.form.block,
            block_log: w.form.block.ilog2(),
            transposed,
        }
    }

    /// Scale and negated zero point.
    #[inline(always)]
    fn block(&self, n: usize, block: usize) -> (f32, f32) {
        let zero_point = quant::Int4::zero_point(self.zero_points, [self.n, self.blocks], [n, block]);
        (self.scales[n * self.blocks + block], -zero_point)
    }

    /// Eight elements of n from k on, a multiple of 8, each in a byte.
    #[inline(always)]
    fn eight(&self, n: usize, k: usize) -> u64 {
        let bytes: [u8; 4] = self.data[n * self.row + k / 2..][..4].try_into().expect("4 bytes");
        spread(u32::from_le_bytes(bytes))
    }

    /// `(q - zero_point) scale` of a vector of elements.
    ///
    /// # Safety
    /// The CPU has the instructions of `V`; `V::LANES` bytes are readable at `q`, and as many floats writable at `to`.
    #[inline(always)]
    unsafe fn decode<V: Vector>(q: *const i8, minus_zero_point: V, scale: V, to: *mut f32) {
        // SAFETY: by contract.
        unsafe {
            let level = minus_zero_point.add_product(V::load_i8(q), V::splat(1.0));
            V::splat(0.0).add_product(level, scale).store(to);
        }
    }

    /// Rows of the weight's k, columns of its n.
    ///
    /// # Safety
    /// As [`Right::pack`].
    #[inline(always)]
    unsafe fn pack_forward<V: Vector, const N: usize, const W: usize>(
        &self,
        k: Range<usize>,
        n: Range<usize>,
        panel: &mut [f32],
    ) {
        let (mut scales, mut zero_points) = ([0f32; W], [0f32; W]);
        let mut rows = [[0i8; W]; K_STEP];
        let mut current = usize::MAX;
        for (k, panel) in k.step_by(K_STEP).zip(panel.chunks_mut(K_STEP * W)) {
            let block = k >> self.block_log;
            if block != current {
                current = block;
                for (n, (scale, zero)) in n.clone().zip(scales.iter_mut().zip(&mut zero_points)) {
                    (*scale, *zero) = self.block(n, block);
                }
            }
            for j in (0..n.len()).step_by(8) {
                let mut bytes = [0u64; 8];
                for (c, bytes) in bytes.iter_mut().enumerate().take(n.len() - j) {
                    *bytes = self.eight(n.start + j + c, k);
                }
                transpose(&mut bytes);
                // Vectors of four lanes have panels that are narrower than eight.
                let width = (W - j).min(8);
                for (row, bytes) in rows.iter_mut().zip(bytes) {
                    row[j..j + width].copy_from_slice(&bytes.to_le_bytes().map(u8::cast_signed)[..width]);
                }
            }
            for (to, row) in panel.chunks_exact_mut(W).zip(&rows) {
                for v in 0..N {
                    // SAFETY: the CPU has the instructions of `V` by contract; rows, scales and panel rows have N vectors.
                    unsafe {
                        let scale = V::load(scales.as_ptr().add(v * V::LANES));
                        let zero_point = V::load(zero_points.as_ptr().add(v * V::LANES));
                        let q = row.as_ptr().add(v * V::LANES);
                        Self::decode(q, zero_point, scale, to.as_mut_ptr().add(v * V::LANES));
                    }
                }
            }
        }
    }

    /// Rows of the weight's n, columns of its k.
    ///
    /// # Safety
    /// As [`Right::pack`].
    #[inline(always)]
    unsafe fn pack_transposed<V: Vector, const N: usize, const W: usize>(
        &self,
        n: Range<usize>,
        k: Range<usize>,
        panel: &mut [f32],
    ) {
        for (to, n) in panel.chunks_exact_mut(W).zip(n) {
            let (mut row, mut shares) = ([0i8; W], [(0f32, 0f32); N]);
            for (v, share) in shares.iter_mut().enumerate() {
                let first = k.start + v * V::LANES;
                if first >= k.end {
                    break;
                }
                // No vector is longer than a block, and each starts at a multiple of its lanes.
                *share = self.block(n, first >> self.block_log);
                for j in (0..V::LANES).step_by(8) {
                    // Of four lanes, the eight elements around them.
                    let (at, shift) = ((first + j) / 8 * 8, (first + j) % 8);
                    let bytes = (self.eight(n, at) >> (8 * shift)).to_le_bytes().map(u8::cast_signed);
                    let width = V::LANES.min(8);
                    row[v * V::LANES + j..][..width].copy_from_slice(&bytes[..width]);
                }
            }
            for (v, &(scale, zero_point)) in shares.iter().enumerate() {
                // SAFETY: the CPU has the instructions of `V` by contract; rows and panel rows have N vectors.
                unsafe {
                    let (q, to) = (row.as_ptr().add(v * V::LANES), to.as_mut_ptr().add(v * V::LANES));
                    Self::decode(q, V::splat(zero_point), V::splat(scale), to);
                }
            }
        }
    }
}

impl Right for Int4<'_> {
    #[inline(always)]
    unsafe fn pack<V: Vector, const N: usize, const W: usize>(
        &self,
        k: Range<usize>,
        n: Range<usize>,
        panel: &mut [f32],
    ) {
        // SAFETY: by contract.
        unsafe {
            match self.transposed {
                true => self.pack_transposed::<V, N, W>(k, n, panel),
                false => self.pack_forward::<V, N, W>(k, n, panel),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_become_bytes() {
        assert_eq!(spread(0x8765_43f0).to_le_bytes(), [0, 15, 3, 4, 5, 6, 7, 8]);
    }
}
