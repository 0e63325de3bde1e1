use std::ops::Range;

use super::gemm::Right;
use super::simd::Vector;

/// A right operand of little-endian f16.
#[derive(Clone, Copy)]
pub struct Halves<'a> {
    pub data: &'a [u8],
    /// Distance of rows: of n when `across`, else of k.
    pub stride: usize,
    /// k is the contiguous axis.
    pub across: bool,
}

/// The most lanes of a vector.
const MAX_LANES: usize = 16;

impl Halves<'_> {
    /// The vector of the elements from `at` on, of which `len` exist.
    ///
    /// # Safety
    /// - The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn load<V: Vector>(&self, at: usize, len: usize) -> V {
        let bytes = &self.data[2 * at..2 * (at + len.min(V::LANES))];
        let mut padded = [0u8; 2 * MAX_LANES];
        let from = if len < V::LANES {
            padded[..bytes.len()].copy_from_slice(bytes);
            padded.as_ptr()
        } else {
            bytes.as_ptr()
        };
        // SAFETY: the CPU has the instructions by contract, and a whole vector is readable on either way.
        unsafe { V::load_f16(from) }
    }
}

impl Right for Halves<'_> {
    #[inline(always)]
    unsafe fn pack<V: Vector, const N: usize, const W: usize>(
        &self,
        k: Range<usize>,
        n: Range<usize>,
        panel: &mut [f32],
    ) {
        if !self.across {
            for (row, k) in panel.chunks_exact_mut(W).zip(k) {
                for v in 0..N {
                    let first = n.start + v * V::LANES;
                    let len = n.end.saturating_sub(first);
                    // SAFETY: the CPU has the instructions by contract; a row of the panel has N vectors.
                    unsafe {
                        let vector: V = if len == 0 { V::splat(0.0) } else { self.load(k * self.stride + first, len) };
                        vector.store(row.as_mut_ptr().add(v * V::LANES));
                    }
                }
            }
            return;
        }
        if n.len() < W {
            panel.fill(0.0);
        }
        let mut turned = [0f32; MAX_LANES];
        for (j, n) in n.enumerate() {
            for first in k.clone().step_by(V::LANES) {
                let len = (k.end - first).min(V::LANES);
                // SAFETY: the CPU has the instructions by contract; no vector is longer than MAX_LANES.
                unsafe { self.load::<V>(n * self.stride + first, k.end - first).store(turned.as_mut_ptr()) };
                for (row, &x) in panel[(first - k.start) * W..].chunks_mut(W).zip(&turned[..len]) {
                    row[j] = x;
                }
            }
        }
    }
}
