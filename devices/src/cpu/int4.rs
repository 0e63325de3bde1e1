use std::ops::Range;

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
    /// Blocks of an n of the weight.
    blocks: usize,
    /// Logarithm of the elements of a block.
    block_log: u32,
    transposed: bool,
}

/// A byte in each of eight.
const EACH: u64 = 0x0101_0101_0101_0101;

/// Eight nibbles as bytes, in their order.
#[inline(always)]
fn spread(nibbles: u32) -> u64 {
    let mut x = u64::from(nibbles);
    x = (x | (x << 16)) & 0x0000_ffff_0000_ffff;
    x = (x | (x << 8)) & 0x00ff_00ff_00ff_00ff;
    (x | (x << 4)) & 0x0f0f_0f0f_0f0f_0f0f
}

/// `q - zero_point` in each byte, as int8; q and zero points are below 16.
#[inline(always)]
fn minus(q: u64, zero_points: u64) -> u64 {
    ((q | (0x80 * EACH)) - zero_points) ^ (0x80 * EACH)
}

impl<'a> Int4<'a> {
    /// The weight, or its transpose.
    pub fn new(w: &WeightView<'a>, transposed: bool) -> Self {
        Int4 {
            data: w.parts.data,
            row: w.k / 2,
            scales: w.parts.scales,
            zero_points: w.parts.zero_points,
            blocks: w.k / w.form.block,
            block_log: w.form.block.ilog2(),
            transposed,
        }
    }

    /// Scale and zero point, the latter in each of eight bytes.
    #[inline(always)]
    fn block(&self, n: usize, block: usize) -> (f32, u64) {
        let zero_point = match self.zero_points {
            [] => 8,
            packed => (packed[n * self.blocks.div_ceil(2) + block / 2] >> (4 * (block % 2))) & 15,
        };
        (self.scales[n * self.blocks + block], u64::from(zero_point) * EACH)
    }

    /// Eight elements of n from k on, a multiple of 8, less the zero point.
    #[inline(always)]
    fn eight(&self, n: usize, k: usize, zero_points: u64) -> u64 {
        let bytes: [u8; 4] = self.data[n * self.row + k / 2..][..4].try_into().expect("4 bytes");
        minus(spread(u32::from_le_bytes(bytes)), zero_points)
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
        let (mut scales, mut zero_points) = ([0f32; W], [0u64; W]);
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
                    *bytes = self.eight(n.start + j + c, k, zero_points[j + c]);
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
                        let q = V::load_i8(row.as_ptr().add(v * V::LANES));
                        V::splat(0.0).add_product(q, scale).store(to.as_mut_ptr().add(v * V::LANES));
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
            let (mut row, mut scales) = ([0i8; W], [0f32; N]);
            for (v, scale) in scales.iter_mut().enumerate() {
                let first = k.start + v * V::LANES;
                if first >= k.end {
                    break;
                }
                // No vector is longer than a block, and each starts at a multiple of its lanes.
                let (block_scale, zero_points) = self.block(n, first >> self.block_log);
                *scale = block_scale;
                for j in (0..V::LANES).step_by(8) {
                    // Of four lanes, the eight elements around them.
                    let (at, shift) = ((first + j) / 8 * 8, (first + j) % 8);
                    let bytes = (self.eight(n, at, zero_points) >> (8 * shift)).to_le_bytes().map(u8::cast_signed);
                    let width = V::LANES.min(8);
                    row[v * V::LANES + j..][..width].copy_from_slice(&bytes[..width]);
                }
            }
            for (v, &scale) in scales.iter().enumerate() {
                // SAFETY: the CPU has the instructions of `V` by contract; rows and panel rows have N vectors.
                unsafe {
                    let q = V::load_i8(row.as_ptr().add(v * V::LANES));
                    V::splat(0.0).add_product(q, V::splat(scale)).store(to.as_mut_ptr().add(v * V::LANES));
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
    fn nibbles_become_signed_bytes() {
        let bytes = minus(spread(0x8765_43f0), 3 * EACH).to_le_bytes().map(u8::cast_signed);
        assert_eq!(bytes, [-3, 12, 0, 1, 2, 3, 4, 5]);
    }
}
