//! Products with frozen weights, decoded panel by panel.

use std::ops::Range;

use inlay_format::quant::Layout;

use super::Context;
use super::gemm::{Floats, Left, Output, Product, Right, gemm};
use super::pool::Disjoint;
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
        match (w.scheme.name(), bytemuck::try_cast_slice::<u8, f32>(w.data)) {
            ("int8", _) => {
                let q = Int8 {
                    data: bytemuck::cast_slice(w.data),
                    stride,
                    across,
                    scales: w.scales,
                    scaled: if transposed { Axis::K } else { Axis::N },
                };
                gemm(context, 1, shape, |_| (product, q));
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
    fn pack<const W: usize>(&self, k: Range<usize>, n: Range<usize>, panel: &mut [f32]) {
        let columns = n.len();
        let mut column_scales = [1f32; W];
        if self.scaled == Axis::N {
            column_scales[..columns].copy_from_slice(&self.scales[n.clone()]);
        }
        if columns < W {
            panel.fill(0.0);
        }
        if self.across {
            self.pack_across(k, n, panel, &column_scales);
            return;
        }
        for (row, k) in panel.chunks_exact_mut(W).zip(k) {
            let from = &self.data[k * self.stride + n.start..][..columns];
            let scale = self.row_scale(k);
            if columns == W {
                decode::<W>(row, from, &column_scales, scale);
            } else {
                for ((x, &q), s) in row.iter_mut().zip(from).zip(column_scales) {
                    *x = f32::from(q) * (s * scale);
                }
            }
        }
    }
}

/// `row[j] = from[j] column_scales[j] scale`; one of the scales is 1.
#[inline(always)]
fn decode<const W: usize>(row: &mut [f32], from: &[i8], column_scales: &[f32; W], scale: f32) {
    let row: &mut [f32; W] = row.try_into().expect("rows of a panel have W floats");
    let from: &[i8; W] = from.try_into().expect("a whole row");
    for j in 0..W {
        row[j] = f32::from(from[j]) * (column_scales[j] * scale);
    }
}

impl Int8<'_> {
    #[inline(always)]
    fn row_scale(&self, k: usize) -> f32 {
        if self.scaled == Axis::K { self.scales[k] } else { 1.0 }
    }

    /// Packs blocks of 8 x 8 bytes, transposed.
    #[inline(always)]
    fn pack_across<const W: usize>(&self, k: Range<usize>, n: Range<usize>, panel: &mut [f32], scales: &[f32; W]) {
        let (whole, columns) = (k.len() / 8 * 8, n.len() / 8 * 8);
        for j in (0..columns).step_by(8) {
            let scales: [f32; 8] = scales[j..j + 8].try_into().expect("8 of W");
            for i in (0..whole).step_by(8) {
                let mut block = [0u64; 8];
                for (r, row) in block.iter_mut().enumerate() {
                    let at = (n.start + j + r) * self.stride + k.start + i;
                    let bytes: &[u8; 8] =
                        bytemuck::cast_ref::<[i8; 8], _>(self.data[at..at + 8].try_into().expect("8 bytes"));
                    *row = u64::from_le_bytes(*bytes);
                }
                transpose(&mut block);
                for (r, row) in block.iter().enumerate() {
                    let to: &mut [f32; 8] = (&mut panel[(i + r) * W + j..][..8]).try_into().expect("8 floats");
                    let scale = self.row_scale(k.start + i + r);
                    let bytes = row.to_le_bytes();
                    for c in 0..8 {
                        to[c] = f32::from(bytes[c].cast_signed()) * (scales[c] * scale);
                    }
                }
            }
        }
        for (j, n) in n.enumerate() {
            let done = if j < columns { whole } else { 0 };
            for i in done..k.len() {
                let q = self.data[n * self.stride + k.start + i];
                panel[i * W + j] = f32::from(q) * (scales[j] * self.row_scale(k.start + i));
            }
        }
    }
}

/// Transposes 8 x 8 bytes: byte c of row r becomes byte r of row c.
#[inline(always)]
fn transpose(rows: &mut [u64; 8]) {
    for (distance, mask) in [(4, 0x0000_0000_ffff_ffff), (2, 0x0000_ffff_0000_ffff), (1, 0x00ff_00ff_00ff_00ffu64)] {
        let bits = 8 * distance;
        for r in (0..8).filter(|r| r & distance == 0) {
            let swap = ((rows[r] >> bits) ^ rows[r + distance]) & mask;
            rows[r + distance] ^= swap;
            rows[r] ^= swap << bits;
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
    fn pack<const W: usize>(&self, k: Range<usize>, n: Range<usize>, panel: &mut [f32]) {
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
