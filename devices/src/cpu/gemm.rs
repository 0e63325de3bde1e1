//! Products of floats with anything that can be decoded into panels of floats.
//!
//! `c[m, n] (=|+=) alpha sum_k a[m, k] b[k, n] + bias[n]`. A task takes a block of c. For each stretch of k it packs the
//! columns of b into panels in its scratch, [k, width] each, and goes over its rows of a, tile by tile; a tile of
//! c stays in registers. a is read where it is, with any strides.

use std::ops::Range;

use super::Context;
use super::pool::Disjoint;
#[cfg(test)]
use super::simd::Wide;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Isa, Portable, Vector};
use crate::kernels::strided::extent;

/// Longest stretch of k: a panel of it and a tile's rows of a fit into 32 KiB of first-level cache.
const K_STRETCH: usize = 384;

/// Stretches of k start at multiples of this, so that right operands may be packed by so many k.
pub const K_STEP: usize = 8;

/// Tiles of rows that share a panel before the next one is taken: their part of a stays in second-level cache.
const TILES: usize = 16;

/// Multiplications that are worth a task of their own.
const TASK_WORK: usize = 1 << 18;

/// The most tasks that one product is cut into.
const MAX_TASKS: usize = 16;

/// A left operand: element (m, k) is at `m row + k column`.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub column: usize,
}

/// A result: element (m, n) is at `start + m row + n column`.
#[derive(Clone, Copy)]
pub struct Output<'a> {
    pub data: &'a Disjoint,
    pub start: usize,
    pub row: usize,
    pub column: usize,
}

/// A product but for its right operand.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Left<'a>,
    pub c: Output<'a>,
    pub alpha: f32,
    pub accumulate: bool,
    pub bias: Option<&'a [f32]>,
}

/// A right operand [k, n].
pub trait Right: Sync {
    /// Writes rows `k` and columns `n` as [k.len(), W] into `panel`, with zeros right of the last column. W is N vectors;
    /// the first row is a multiple of [`K_STEP`], the first column one of a vector's lanes.
    ///
    /// # Safety
    /// - The CPU has the instructions of `V`.
    unsafe fn pack<V: Vector, const N: usize, const W: usize>(
        &self,
        k: Range<usize>,
        n: Range<usize>,
        panel: &mut [f32],
    );

    /// The floats and the distance of their rows, if the operand lies in memory as [k, n] with contiguous rows.
    fn in_place(&self) -> Option<(&[f32], usize)> {
        None
    }
}

/// How the work of a product is cut: rows and columns of a task. A function of the shape and the CPU type alone.
fn grid(isa: Isa, batches: usize, [m, n, k]: [usize; 3]) -> [usize; 2] {
    let [rows, lanes] = match isa {
        Isa::Portable => [Portable::ROWS, Portable::LANES],
        #[cfg(test)]
        Isa::Wide => [Wide::ROWS, Wide::LANES],
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => [Avx2::ROWS, Avx2::LANES],
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => [Avx512::ROWS, Avx512::LANES],
    };
    let width = 2 * lanes;
    let wanted = (batches * m * n * k / TASK_WORK).clamp(1, MAX_TASKS);
    let pieces = wanted.div_ceil(batches.max(1));
    // Columns first: rows in several tasks decode the same panels again.
    let panels = n.div_ceil(width).max(1);
    let columns = panels.div_ceil(pieces);
    let pieces = pieces.div_ceil(panels.div_ceil(columns));
    let tiles = m.div_ceil(rows).max(1).div_ceil(pieces);
    [tiles * rows, columns * width]
}

/// Runs `batches` products of one shape; `of` gives each with its right operand.
///
/// # Safety
/// - No two (batch, m, n) are the same element of c's data, which only this call uses.
pub unsafe fn gemm<'a, B: Right>(
    context: &Context,
    batches: usize,
    shape: [usize; 3],
    of: impl Fn(usize) -> (Product<'a>, B) + Sync,
) {
    let [m, n, _] = shape;
    let [rows, columns] = grid(context.isa, batches, shape);
    let (row_tasks, column_tasks) = (m.div_ceil(rows), n.div_ceil(columns));
    context.pool.run(batches * row_tasks * column_tasks, |task, scratch| {
        let (batch, task) = (task / (row_tasks * column_tasks), task % (row_tasks * column_tasks));
        let (row, column) = (task / column_tasks * rows, task % column_tasks * columns);
        let (product, b) = of(batch);
        // SAFETY: tasks have disjoint blocks of c, whose elements are distinct by contract.
        unsafe { block(context.isa, &product, &b, row..m.min(row + rows), column..n.min(column + columns), scratch) }
    });
}

/// Computes one block of c on this thread.
///
/// # Safety
/// - The elements of the block are distinct, and nothing else uses them meanwhile.
pub unsafe fn block<B: Right>(isa: Isa, p: &Product, b: &B, m: Range<usize>, n: Range<usize>, scratch: &mut [f32]) {
    let len = |rows: usize, columns: usize, [row, column]: [usize; 2]| {
        extent(&[rows as u32, columns as u32], &[row as u32, column as u32])
    };
    assert!(m.end <= p.m && n.end <= p.n, "block inside c");
    assert!(len(p.m, p.k, [p.a.row, p.a.column]) <= p.a.data.len(), "a holds [m, k]");
    let c = len(p.m, p.n, [p.c.row, p.c.column]);
    assert!(c == 0 || p.c.start + c <= p.c.data.len(), "c holds [m, n]");
    assert!(p.bias.is_none_or(|bias| p.n <= bias.len()), "bias holds [n]");
    // SAFETY: the asserts above, and the instruction set is one of this CPU.
    unsafe {
        match isa {
            Isa::Portable => sized::<Portable, B>(p, b, m, n, scratch),
            #[cfg(test)]
            Isa::Wide => sized::<Wide, B>(p, b, m, n, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2(p, b, m, n, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512(p, b, m, n, scratch),
        }
    }
}

/// # Safety
/// As `packed`, and the CPU has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<B: Right>(p: &Product, b: &B, m: Range<usize>, n: Range<usize>, scratch: &mut [f32]) {
    // SAFETY: by contract.
    unsafe { sized::<Avx2, B>(p, b, m, n, scratch) }
}

/// # Safety
/// As `packed`, and the CPU has the features named.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")]
unsafe fn avx512<B: Right>(p: &Product, b: &B, m: Range<usize>, n: Range<usize>, scratch: &mut [f32]) {
    // SAFETY: by contract.
    unsafe { sized::<Avx512, B>(p, b, m, n, scratch) }
}

/// Panels one vector wide for narrow blocks, else two.
///
/// # Safety
/// As `packed`.
#[inline(always)]
unsafe fn sized<V: Vector, B: Right>(p: &Product, b: &B, m: Range<usize>, n: Range<usize>, scratch: &mut [f32]) {
    // SAFETY: by contract.
    unsafe {
        match (V::LANES, n.len() <= V::LANES) {
            (4, true) => packed::<V, B, 1, 4>(p, b, m, n, scratch),
            (4, false) => packed::<V, B, 2, 8>(p, b, m, n, scratch),
            (8, true) => packed::<V, B, 1, 8>(p, b, m, n, scratch),
            (8, false) => packed::<V, B, 2, 16>(p, b, m, n, scratch),
            (16, true) => packed::<V, B, 1, 16>(p, b, m, n, scratch),
            (16, false) => packed::<V, B, 2, 32>(p, b, m, n, scratch),
            _ => unreachable!("vectors have 4, 8 or 16 lanes"),
        }
    }
}

/// Panels of `N` vectors, `W` floats.
///
/// # Safety
/// - The CPU has the instructions of `V`.
/// - a, bias and c hold what `p` says; the block is inside c, its elements are distinct and used by nothing else.
#[inline(always)]
unsafe fn packed<V: Vector, B: Right, const N: usize, const W: usize>(
    p: &Product,
    b: &B,
    ms: Range<usize>,
    ns: Range<usize>,
    scratch: &mut [f32],
) {
    let stretch = p.k.div_ceil(p.k.div_ceil(K_STRETCH).max(1)).max(1).next_multiple_of(K_STEP);
    let columns = scratch.len() / (stretch * W) * W;
    // Packing pays when several tiles use a panel.
    let in_place = if ms.len() <= 2 * V::ROWS { b.in_place() } else { None };
    for n0 in ns.clone().step_by(columns) {
        let n1 = ns.end.min(n0 + columns);
        let mut k0 = 0;
        // Once at least: c is written even when there is nothing to add up.
        loop {
            let k1 = p.k.min(k0 + stretch);
            let panel_of = |n: usize| (n - n0) * stretch;
            let stays = |n: usize| in_place.filter(|_| n + W <= ns.end);
            for n in (n0..n1).step_by(W).filter(|&n| stays(n).is_none()) {
                let panel = &mut scratch[panel_of(n)..][..W * (k1 - k0)];
                // SAFETY: the CPU has the instructions of `V` by contract.
                unsafe { b.pack::<V, N, W>(k0..k1, n..n1.min(n + W), panel) };
            }
            for m0 in ms.clone().step_by(TILES * V::ROWS) {
                let m1 = ms.end.min(m0 + TILES * V::ROWS);
                for n in (n0..n1).step_by(W) {
                    let panel = match stays(n) {
                        Some((data, stride)) => {
                            assert!(k0 == k1 || (k1 - 1) * stride + n + W <= data.len(), "rows inside b");
                            Panel { data: data.as_ptr().wrapping_add(k0 * stride + n), stride }
                        }
                        None => Panel { data: scratch[panel_of(n)..].as_ptr(), stride: W },
                    };
                    for m in (m0..m1).step_by(V::ROWS) {
                        let at = At { m, n, k: k0, depth: k1 - k0, width: W.min(n1 - n) };
                        // SAFETY: the panel holds `depth` rows of W floats; the rest by contract.
                        unsafe { tiles::<V, N, W>(V::ROWS.min(m1 - m), p, at, panel) };
                    }
                }
            }
            k0 = k1;
            if k0 == p.k {
                break;
            }
        }
    }
}

/// Rows of W floats of b.
#[derive(Clone, Copy)]
struct Panel {
    data: *const f32,
    stride: usize,
}

/// Where a tile is: its first row, column and k, how many k, and how many columns are part of c.
#[derive(Clone, Copy)]
struct At {
    m: usize,
    n: usize,
    k: usize,
    depth: usize,
    width: usize,
}

/// # Safety
/// As `tile`; `rows` is at most `V::ROWS`.
#[inline(always)]
unsafe fn tiles<V: Vector, const N: usize, const W: usize>(rows: usize, p: &Product, at: At, panel: Panel) {
    macro_rules! rows {
        ($($r:literal)*) => {
            match rows {
                // SAFETY: by contract. The guard is constant: no larger tile than that of V is compiled.
                $($r if $r <= V::ROWS => unsafe { tile::<V, $r, N, W>(p, at, panel) },)*
                _ => unreachable!("at most 12 rows"),
            }
        };
    }
    rows!(1 2 3 4 5 6 7 8 9 10 11 12)
}

/// `R` rows and `N` vectors of columns of c.
///
/// # Safety
/// - The CPU has the instructions of `V`.
/// - `panel` holds `at.depth` rows of W floats, a the rows and k of `at`, c its rows and `at.width` columns.
#[inline(always)]
unsafe fn tile<V: Vector, const R: usize, const N: usize, const W: usize>(p: &Product, at: At, panel: Panel) {
    // SAFETY: by contract, for every pointer in this function.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; R];
        let a = p.a.data.as_ptr().wrapping_add(at.m * p.a.row + at.k * p.a.column);
        for k in 0..at.depth {
            let mut b = [V::splat(0.0); N];
            for (v, b) in b.iter_mut().enumerate() {
                *b = V::load(panel.data.add(k * panel.stride + v * V::LANES));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = V::splat(*a.add(r * p.a.row + k * p.a.column));
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = sum.add_product(a, b);
                }
            }
        }
        let c = p.c.data.as_ptr().add(p.c.start + at.m * p.c.row + at.n * p.c.column);
        let (add, bias) = (p.accumulate || at.k > 0, if at.k == 0 { p.bias } else { None });
        if p.c.column == 1 && at.width == W {
            for (r, sums) in sums.iter().enumerate() {
                for (v, &sum) in sums.iter().enumerate() {
                    let c = c.add(r * p.c.row + v * V::LANES);
                    let mut value = if add { V::load(c) } else { V::splat(0.0) };
                    if let Some(bias) = bias {
                        value = value.add_product(V::load(bias.as_ptr().add(at.n + v * V::LANES)), V::splat(1.0));
                    }
                    value.add_product(sum, V::splat(p.alpha)).store(c);
                }
            }
        } else {
            let mut rows = [[0f32; W]; R];
            for (row, sums) in rows.iter_mut().zip(sums) {
                for (v, sum) in sums.into_iter().enumerate() {
                    sum.store(row.as_mut_ptr().add(v * V::LANES));
                }
            }
            for (r, row) in rows.iter().enumerate() {
                for (n, &sum) in row[..at.width].iter().enumerate() {
                    let c = c.add(r * p.c.row + n * p.c.column);
                    let start = if add { *c } else { 0.0 } + bias.map_or(0.0, |bias| bias[at.n + n]);
                    *c = start + p.alpha * sum;
                }
            }
        }
    }
}

/// Floats with any strides: element (k, n) is at `k row + n column`.
#[derive(Clone, Copy)]
pub struct Floats<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub column: usize,
}

impl Right for Floats<'_> {
    #[inline(always)]
    unsafe fn pack<V: Vector, const N: usize, const W: usize>(
        &self,
        k: Range<usize>,
        n: Range<usize>,
        panel: &mut [f32],
    ) {
        let columns = n.len();
        if self.column == 1 {
            for (row, k) in panel.chunks_exact_mut(W).zip(k) {
                let from = &self.data[k * self.row + n.start..][..columns];
                if columns == W {
                    row.copy_from_slice(&from[..W]);
                } else {
                    row[..columns].copy_from_slice(from);
                    row[columns..].fill(0.0);
                }
            }
            return;
        }
        if columns < W {
            panel.fill(0.0);
        }
        for (j, n) in n.enumerate() {
            if self.row == 1 {
                let from = &self.data[n * self.column + k.start..][..k.len()];
                for (row, &x) in panel.chunks_exact_mut(W).zip(from) {
                    row[j] = x;
                }
            } else {
                for (row, k) in panel.chunks_exact_mut(W).zip(k.clone()) {
                    row[j] = self.data[k * self.row + n * self.column];
                }
            }
        }
    }

    fn in_place(&self) -> Option<(&[f32], usize)> {
        (self.column == 1).then_some((self.data, self.row))
    }
}
