//! Kernels that move or reduce elements: copies, gathers, reductions, patches and pools.

use inlay_format::quant::Layout;

use super::nest::{Nest, Pieces};
use super::pool::Disjoint;
use super::sync::SCRATCH_LEN;
use super::{CHUNK, Context, math};
use crate::kernels::{
    ACCUMULATE, Arg, Args, Col2im, Contract, CopyParams, GatherRows, GatherRowsParams, Im2col, Im2colParams, Pool,
    PoolGrad, PoolParams, ReduceOp, ReduceParams, ResampleParams, from_words, strided,
};

/// Side of the square blocks of a transposition: 16 cache lines each way.
const BLOCK: usize = 16;

/// Body of `copy`.
pub fn copy(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: CopyParams = from_words(params);
    if strided::count(&p.dims) == 0 {
        return;
    }
    let (src, dst) = (&args.input(0)[p.src_offset as usize..], &mut args.output(1)[p.dst_offset as usize..]);
    let (accumulate, nest) = (p.flags & ACCUMULATE != 0, Nest::new(&p.dims, [&p.src, &p.dst]));
    let put = |to: &mut f32, from: f32| *to = if accumulate { *to + from } else { from };
    let [from_step, to_step] = nest.inner_strides();
    let (dims, strides) = nest.outer();
    let turned = strides.iter().rposition(|&[from, _]| from == 1).filter(|&d| dims[d] >= BLOCK);
    if let (Some(turned), true) = (turned, from_step != 1 && nest.inner() >= BLOCK) {
        return transpose(&nest, turned, src, dst, put);
    }
    if to_step != 1 {
        nest.for_rows(0..nest.rows(), |_, [from, to]| {
            for i in 0..nest.inner() {
                put(&mut dst[to + i * to_step], src[from + i * from_step]);
            }
        });
        return;
    }
    let rows = (CHUNK / nest.inner()).max(1);
    let dst = Disjoint::new(dst);
    context.pool.run(nest.rows().div_ceil(rows), |task, _| {
        let range = task * rows..nest.rows().min((task + 1) * rows);
        nest.for_rows(range, |_, [from, to]| {
            // SAFETY: rows of dst are disjoint (validated: its elements are distinct, and a row's are contiguous), and
            // each belongs to one task.
            let to = unsafe { dst.range(to, nest.inner()) };
            match from_step {
                1 if !accumulate => to.copy_from_slice(&src[from..][..to.len()]),
                1 => {
                    for (to, from) in to.iter_mut().zip(&src[from..]) {
                        *to += from;
                    }
                }
                _ => {
                    for (i, to) in to.iter_mut().enumerate() {
                        put(to, src[from + i * from_step]);
                    }
                }
            }
        });
    });
}

/// A copy whose inner loop runs along dst while `turned` is the loop that runs along src: in square blocks.
fn transpose(nest: &Nest<2>, turned: usize, src: &[f32], dst: &mut [f32], put: impl Fn(&mut f32, f32)) {
    let (dims, strides) = nest.outer();
    let (height, [from_row, to_row]) = (dims[turned], strides[turned]);
    let (width, [from_column, to_column]) = (nest.inner(), nest.inner_strides());
    nest.for_rows(0..nest.rows(), |row, [from, to]| {
        // One visit for each index of the other loops.
        let inside: usize = dims[turned + 1..].iter().product();
        if !(row / inside).is_multiple_of(height) {
            return;
        }
        for top in (0..height).step_by(BLOCK) {
            for left in (0..width).step_by(BLOCK) {
                for r in top..height.min(top + BLOCK) {
                    for c in left..width.min(left + BLOCK) {
                        let value = src[from + r * from_row + c * from_column];
                        put(&mut dst[to + r * to_row + c * to_column], value);
                    }
                }
            }
        }
    });
}

/// Body of `reduce`.
pub fn reduce(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: ReduceParams = from_words(params);
    let (x, y) = (args.input(0), &mut args.output(1)[..strided::count(&p.kept)]);
    let op = ReduceOp::ALL[p.op as usize];
    let (kept, reduced) = (Nest::new(&p.kept, [&p.kept_strides]), Nest::new(&p.reduced, [&p.reduced_strides]));
    let (accumulate, [along]) = (p.flags & ACCUMULATE != 0, reduced.inner_strides());
    // Tasks by the elements read; whole vectors of y.
    let per_element = strided::count(&p.reduced).max(1);
    let pieces = Pieces::new(kept.inner(), (CHUNK / per_element).max(64));
    context.pool.split([(y, pieces.chunk())], |task, [y], scratch| {
        pieces.for_each(
            &kept,
            task,
            y.len(),
            #[inline(always)]
            |[at], range| {
                let y = &mut y[range];
                let [across] = kept.inner_strides();
                for (block, y) in y.chunks_mut(SCRATCH_LEN).enumerate() {
                    let (sums, at) = (&mut scratch[..y.len()], at + block * SCRATCH_LEN * across);
                    context.isa.run(
                        #[inline(always)]
                        || {
                            sums.fill(op.start());
                            reduced.for_rows(
                                0..reduced.rows(),
                                #[inline(always)]
                                |_, [offset]| {
                                    let from = &x[at + offset..];
                                    reduce_row(op, sums, from, across, along, reduced.inner());
                                },
                            );
                            for (y, sum) in y.iter_mut().zip(&*sums) {
                                let value = sum * p.scale;
                                *y = if accumulate { *y + value } else { value };
                            }
                        },
                    );
                }
            },
        );
    });
}

/// `sums[i] = op(sums[i], op over j < len of x[i across + j along])`.
#[inline(always)]
fn reduce_row(op: ReduceOp, sums: &mut [f32], x: &[f32], across: usize, along: usize, len: usize) {
    if along == 1 {
        for (i, sum) in sums.iter_mut().enumerate() {
            let x = &x[i * across..][..len];
            *sum = match op {
                ReduceOp::Sum => *sum + math::sum(x, |x| x),
                _ => x.iter().fold(*sum, |so_far, &x| op.add(so_far, x)),
            };
        }
        return;
    }
    for j in 0..len {
        let x = &x[j * along..];
        match (op, across) {
            (ReduceOp::Sum, 1) => {
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum += x;
                }
            }
            _ => {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = op.add(*sum, x[i * across]);
                }
            }
        }
    }
}

/// Body of `gather_rows`.
pub fn gather_rows(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: GatherRowsParams = from_words(params);
    let w = args.weight(0);
    let width = p.width as usize;
    if w.scheme.name() != "int8" || w.layout != Layout::NK || width == 0 {
        return GatherRows::plain(&p, args);
    }
    let (ids, y) = (args.ints(1), args.output(2));
    let (data, accumulate): (&[i8], bool) = (bytemuck::cast_slice(w.parts.data), p.flags & ACCUMULATE != 0);
    let rows = (CHUNK / width).max(1);
    context.pool.split([(&mut y[..p.count as usize * width], rows * width)], |task, [y], _| {
        context.isa.run(
            #[inline(always)]
            || {
                for (y, &id) in y.chunks_exact_mut(width).zip(&ids[task * rows..]) {
                    let Some(id) = usize::try_from(id).ok().filter(|&id| id < w.n) else {
                        y.fill(f32::NAN);
                        continue;
                    };
                    let (row, scale) = (&data[id * width..][..width], w.parts.scales[id]);
                    if accumulate {
                        for (y, &q) in y.iter_mut().zip(row) {
                            *y += f32::from(q) * scale;
                        }
                    } else {
                        for (y, &q) in y.iter_mut().zip(row) {
                            *y = f32::from(q) * scale;
                        }
                    }
                }
            },
        );
    });
}

/// Body of `im2col`.
pub fn im2col(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: Im2colParams = from_words(params);
    let of = |batch| Im2colParams { batch, ..p };
    by_part::<Im2col, 1>(context, p.batch, of, ([of(1).x_len()], of(1).cols_len()), args);
}

/// Body of `col2im`.
pub fn col2im(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: Im2colParams = from_words(params);
    let of = |batch| Im2colParams { batch, ..p };
    by_part::<Col2im, 1>(context, p.batch, of, ([of(1).cols_len()], of(1).x_len()), args);
}

/// Body of `pool`.
pub fn pool(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: PoolParams = from_words(params);
    let of = |planes| PoolParams { planes, ..p };
    by_part::<Pool, 1>(context, p.planes, of, ([of(1).x_len()], of(1).y_len()), args);
}

/// Body of `pool_grad`.
pub fn pool_grad(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: PoolParams = from_words(params);
    let of = |planes| PoolParams { planes, ..p };
    by_part::<PoolGrad, 2>(context, p.planes, of, ([of(1).x_len(), of(1).y_len()], of(1).x_len()), args);
}

/// Body of `resample`.
pub fn resample(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: ResampleParams = from_words(params);
    let (x, first, w, y) = (args.input(0), args.ints(1), args.input(2), args.output(3));
    let [x_len, inner, taps] = [p.x_len, p.inner, p.taps].map(|n| n as usize);
    let rows = p.outer as usize * p.y_len as usize;
    if rows * inner == 0 {
        return;
    }
    let (accumulate, rows_per_task) = (p.flags & ACCUMULATE != 0, (CHUNK / (inner * taps)).max(1));
    context.pool.split([(&mut y[..rows * inner], rows_per_task * inner)], |task, [y], _| {
        context.isa.run(
            #[inline(always)]
            || {
                for (row, y) in (task * rows_per_task..).zip(y.chunks_exact_mut(inner)) {
                    let (o, i) = (row / p.y_len as usize, row % p.y_len as usize);
                    let Some(first) = usize::try_from(first[i]).ok().filter(|&first| first + taps <= x_len) else {
                        y.fill(f32::NAN);
                        continue;
                    };
                    let (x, w) = (&x[(o * x_len + first) * inner..][..taps * inner], &w[i * taps..][..taps]);
                    if inner == 1 {
                        let sum: f32 = w.iter().zip(x).map(|(w, x)| w * x).sum();
                        y[0] = if accumulate { y[0] + sum } else { sum };
                        continue;
                    }
                    if !accumulate {
                        y.fill(0.0);
                    }
                    for (x, &w) in x.chunks_exact(inner).zip(w) {
                        for (y, x) in y.iter_mut().zip(x) {
                            *y += w * x;
                        }
                    }
                }
            },
        );
    });
}

/// Runs the plain body on some of `count` independent parts at a time: images, or planes. `of` gives the parameters of a
/// number of parts; `lens` are the elements of one part in the `N` inputs and in the output, which comes after them.
fn by_part<C: Contract, const N: usize>(
    context: &Context,
    count: u32,
    of: impl Fn(u32) -> C::Params + Sync,
    (input_lens, len): ([usize; N], usize),
    args: &mut Args<'_, f32>,
) {
    let inputs: [Option<&[f32]>; N] = std::array::from_fn(|i| args.optional_input(i));
    let y = args.output(N);
    if len == 0 {
        return;
    }
    let parts = (CHUNK / len).max(1);
    context.pool.split([(&mut y[..count as usize * len], parts * len)], |task, [y], _| {
        let here = y.len() / len;
        let inputs = inputs
            .iter()
            .zip(input_lens)
            .map(|(x, len)| x.map_or(Arg::Absent, |x| Arg::In(&x[task * parts * len..][..here * len])));
        C::plain(&of(here as u32), &mut Args::new(inputs.chain([Arg::Out(y)])));
    });
}
