//! Products with frozen weights, decoded panel by panel.

use std::ops::Range;

use inlay_format::quant::Layout;

use super::Context;
use super::gemm::{Floats, Left, Output, Product, Right, gemm};
use super::halves::Halves;
use super::int4::Int4;
use super::pool::Disjoint;
use super::simd::Vector;
use super::uint8::Uint8;
use crate::kernels::{ACCUMULATE, Args, LinearParams, from_words};
use crate::weight::WeightView;

/// Body of `linear`.
pub fn linear(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: LinearParams = from_words(params);
    let (x, w, bias, y) = (args.input(0), args.weight(1), args.optional_input(2), args.output(3));
    let (inner, outer) = p.inner_outer();
    let transposed = p.flags & LinearParams::TRANSPOSE != 0;
    let y = Disjoint::new(y);
    let product = Product {
        m: p.m as usize,
        n: outer,
        k: inner,
        a: Left { data: x, row: inner, column: 1 },
        c: Output { data: &y, start: 0, row: outer, column: 1 },
        alpha: 1.0,
        accumulate: p.flags & ACCUMULATE != 0,
        bias,
    };
    // Whether the contracted axis is the contiguous one in memory.
    let across = (w.layout == Layout::NK) != transposed;
    let stride = if across { inner } else { outer };
    let shape = [product.m, product.n, product.k];
    // SAFETY: y is row-major: its elements are distinct.
    unsafe {
        match (w.scheme.name(), bytemuck::try_cast_slice::<u8, f32>(w.parts.data)) {
            ("int8", _) => {
                let q = Int8 {
                    data: bytemuck::cast_slice(w.parts.data),
                    stride,
                    across,
                    scales: w.parts.scales,
                    scaled: if transposed { Axis::K } else { Axis::N },
                };
                gemm(context, 1, shape, |_| (product, q));
            }
            ("int4", _) => {
                let q = Int4::new(&w, transposed);
                gemm(context, 1, shape, |_| (product, q));
            }
            ("uint8", _) => gemm(context, 1, shape, |_| (product, Uint8 { w, transposed })),
            ("f16", _) => {
                let halves = Halves { data: w.parts.data, stride, across };
                gemm(context, 1, shape, |_| (product, halves));
            }
            ("f32", Ok(data)) if cfg!(target_endian = "little") => {
                let (row, column) = if across { (1, stride) } else { (stride, 1) };
                gemm(context, 1, shape, |_| (product, Floats { data, row, column }));
            }
            _ => gemm(context, 1, shape, |_| (product, Any { w, transposed })),
        }
    }
}

/// An axis of a right operand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Axis {
    K,
    N,
}

/// A right operand of int8 elements with a scale for each k or for each n.
#[derive(Clone, Copy)]
struct Int8<'a> {
    data: &'a [i8],
    /// Distance of rows: of n when `across`, else of k.
    stride: usize,
    /// k is the contiguous axis.
    across: bool,
    scales: &'a [f32],
    scaled: Axis,
}

impl Right for Int8<'_> {
    #[inline(always)]
    unsafe fn pack<V: Vector, const N: usize, const W: usize>(
        &self,
        k: Range<usize>,
        n: Range<usize>,
        panel: &mut [f32],
    ) {
        let mut column_scales = [1f32; W];
        if self.scaled == Axis::N {
            column_scales[..n.len()].copy_from_slice(&self.scales[n.clone()]);
        }
        // Rows of int8, as they are to be in the panel.
        let mut rows = [[0i8; W]; 8];
        for (i, panel) in panel.chunks_mut(8 * W).enumerate() {
            let k = k.start + 8 * i..k.end.min(k.start + 8 * (i + 1));
            if self.across {
                self.turn(k.clone(), n.clone(), &mut rows);
            } else {
                for (row, k) in rows.iter_mut().zip(k.clone()) {
                    let from = &self.data[k * self.stride + n.start..][..n.len()];
                    match <&[i8; W]>::try_from(from) {
                        Ok(whole) => *row = *whole,
                        Err(_) => row[..n.len()].copy_from_slice(from),
                    }
                }
            }
            for ((to, row), k) in panel.chunks_exact_mut(W).zip(&rows).zip(k) {
                let row_scale = if self.scaled == Axis::K { Some(self.scales[k]) } else { None };
                for v in 0..N {
                    // SAFETY: the CPU has the instructions of `V` by contract; rows, scales and panel rows have N vectors.
                    unsafe {
                        let scale = match row_scale {
                            Some(scale) => V::splat(scale),
                            None => V::load(column_scales.as_ptr().add(v * V::LANES)),
                        };
                        let q = V::load_i8(row.as_ptr().add(v * V::LANES));
                        V::splat(0.0).add_product(q, scale).store(to.as_mut_ptr().add(v * V::LANES));
                    }
                }
            }
        }
    }
}

impl Int8<'_> {
    /// Rows `k`, at most 8, and columns `n` of an operand whose columns are contiguous.
    #[inline(always)]
    fn turn<const W: usize>(&self, k: Range<usize>, n: Range<usize>, rows: &mut [[i8; W]; 8]) {
        let column = |n: usize| &self.data[n * self.stride + k.start..][..k.len()];
        let whole = if k.len() == 8 { n.len() / 8 * 8 } else { 0 };
        for j in (0..whole).step_by(8) {
            let mut block = [0u64; 8];
            for (c, block) in block.iter_mut().enumerate() {
                let bytes: &[u8] = bytemuck::cast_slice(column(n.start + j + c));
                *block = u64::from_le_bytes(bytes.try_into().expect("8 rows"));
            }
            transpose(&mut block);
            for (row, bytes) in rows.iter_mut().zip(block) {
                row[j..j + 8].copy_from_slice(&bytes.to_le_bytes().map(u8::cast_signed));
            }
        }
        for j in whole..n.len() {
            for (row, &q) in rows.iter_mut().zip(column(n.start + j)) {
                row[j] = q;
            }
        }
    }
}

/// Transposes 8 x 8 bytes: byte c of row r becomes byte r of row c.
#[inline(always)]
pub(super) fn transpose(rows: &mut [u64; 8]) {
    exchange::<4>(rows, 0x0000_0000_ffff_ffff);
    exchange::<2>(rows, 0x0000_ffff_0000_ffff);
    exchange::<1>(rows, 0x00ff_00ff_00ff_00ff);
}

/// Exchanges the upper half of each 2 D bytes of a row with the lower half of those of the row D further on.
#[inline(always)]
fn exchange<const D: usize>(rows: &mut [u64; 8], mask: u64) {
    for r in 0..8 {
        if r & D == 0 {
            let swap = ((rows[r] >> (8 * D)) ^ rows[r + D]) & mask;
            rows[r + D] ^= swap;
            rows[r] ^= swap << (8 * D);
        }
    }
}

/// A right operand of any scheme, element by element.
#[derive(Clone, Copy)]
struct Any<'a> {
    w: WeightView<'a>,
    transposed: bool,
}

impl Right for Any<'_> {
    unsafe fn pack<V: Vector, const N: usize, const W: usize>(
        &self,
        k: Range<usize>,
        n: Range<usize>,
        panel: &mut [f32],
    ) {
        panel.fill(0.0);
        for (row, k) in panel.chunks_exact_mut(W).zip(k) {
            for (x, n) in row.iter_mut().zip(n.clone()) {
                *x = if self.transposed { self.w.get(n, k) } else { self.w.get(k, n) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_transposed() {
        let mut rows: [u64; 8] =
            std::array::from_fn(|r| u64::from_le_bytes(std::array::from_fn(|c| (10 * r + c) as u8)));
        transpose(&mut rows);
        for (r, row) in rows.iter().enumerate() {
            assert_eq!(row.to_le_bytes(), std::array::from_fn(|c| (10 * c + r) as u8));
        }
    }
}
