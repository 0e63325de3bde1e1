//! Kernels that work on rows: softmax, layer normalization, cross-entropy.

use super::sync::SCRATCH_LEN;
use super::{CHUNK, Context, math};
use crate::kernels::{ACCUMULATE, Args, Contract, LayerNormGrad, LayerNormParams, SoftmaxParams, from_words};

/// Rows of a task.
fn rows_per_task(cols: usize) -> usize {
    (CHUNK / cols.max(1)).max(1)
}

/// `row[s] += mask[s stride]`.
#[inline(always)]
pub fn add_mask(row: &mut [f32], mask: &[f32], stride: usize) {
    match stride {
        0 => {
            for x in row.iter_mut() {
                *x += mask[0];
            }
        }
        1 => {
            for (x, m) in row.iter_mut().zip(mask) {
                *x += m;
            }
        }
        _ => {
            for (x, m) in row.iter_mut().zip(mask.iter().step_by(stride)) {
                *x += m;
            }
        }
    }
}

/// Softmax of a row where it stands; zeros when it is -inf all over.
#[inline(always)]
pub fn softmax_row(row: &mut [f32]) {
    let max = math::max(row);
    if max == f32::NEG_INFINITY && !row.iter().any(|x| x.is_nan()) {
        return row.fill(0.0);
    }
    for x in row.iter_mut() {
        *x = math::exp(*x - max);
    }
    let factor = 1.0 / math::sum(row, |x| x);
    for x in row {
        *x *= factor;
    }
}

/// `dx = y (dx - sum dx y)`.
#[inline(always)]
pub fn softmax_grad_row(y: &[f32], dx: &mut [f32]) {
    let dot = math::sum2(y, dx, |y, dy| y * dy);
    for (dx, y) in dx.iter_mut().zip(y) {
        *dx = y * (*dx - dot);
    }
}

/// Body of `softmax`.
pub fn softmax(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: SoftmaxParams = from_words(params);
    let (x, y) = (args.optional_input(0), args.output(1));
    let cols = p.cols as usize;
    if cols == 0 {
        return;
    }
    let chunk = rows_per_task(cols) * cols;
    context.pool.split([(&mut y[..p.rows as usize * cols], chunk)], |task, [y], _| {
        if let Some(x) = x {
            y.copy_from_slice(&x[task * chunk..][..y.len()]);
        }
        context.isa.run(
            #[inline(always)]
            || {
                for row in y.chunks_exact_mut(cols) {
                    softmax_row(row);
                }
            },
        );
    });
}

/// Body of `softmax_grad`.
pub fn softmax_grad(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: SoftmaxParams = from_words(params);
    let (y, dy, dx) = (args.input(0), args.optional_input(1), args.output(2));
    let (cols, accumulate) = (p.cols as usize, p.flags & ACCUMULATE != 0);
    if cols == 0 {
        return;
    }
    let chunk = rows_per_task(cols) * cols;
    context.pool.split([(&mut dx[..p.rows as usize * cols], chunk)], |task, [dx], _| {
        let y = &y[task * chunk..][..dx.len()];
        context.isa.run(
            #[inline(always)]
            || match dy {
                None => {
                    for (y, dx) in y.chunks_exact(cols).zip(dx.chunks_exact_mut(cols)) {
                        softmax_grad_row(y, dx);
                    }
                }
                Some(dy) => {
                    let dy = &dy[task * chunk..][..dx.len()];
                    let rows = y.chunks_exact(cols).zip(dy.chunks_exact(cols)).zip(dx.chunks_exact_mut(cols));
                    for ((y, dy), dx) in rows {
                        let dot = math::sum2(y, dy, |y, dy| y * dy);
                        for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
                            let value = y * (dy - dot);
                            *dx = if accumulate { *dx + value } else { value };
                        }
                    }
                }
            },
        );
    });
}

/// Body of `layer_norm`.
pub fn layer_norm(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: LayerNormParams = from_words(params);
    let (x, gamma, beta) = (args.input(0), args.optional_input(1), args.optional_input(2));
    let (y, stats) = (args.output(3), args.output(4));
    let (rows, cols, centred) = (p.rows as usize, p.cols as usize, p.flags & LayerNormParams::UNCENTRED == 0);
    if cols == 0 {
        return;
    }
    let per_task = rows_per_task(cols);
    let outputs = [(&mut y[..rows * cols], per_task * cols), (&mut stats[..2 * rows], 2 * per_task)];
    context.pool.split(outputs, |task, [y, stats], _| {
        let x = &x[task * per_task * cols..][..y.len()];
        context.isa.run(
            #[inline(always)]
            || {
                for ((x, y), stats) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)).zip(stats.chunks_exact_mut(2))
                {
                    let mean = if centred { math::sum(x, |x| x) / cols as f32 } else { 0.0 };
                    let variance = math::sum(x, |x| (x - mean) * (x - mean)) / cols as f32;
                    let rstd = 1.0 / (variance + p.eps).sqrt();
                    stats.copy_from_slice(&[mean, rstd]);
                    for (y, x) in y.iter_mut().zip(x) {
                        *y = (x - mean) * rstd;
                    }
                    if let Some(gamma) = gamma {
                        for (y, gamma) in y.iter_mut().zip(gamma) {
                            *y *= gamma;
                        }
                    }
                    if let Some(beta) = beta {
                        for (y, beta) in y.iter_mut().zip(beta) {
                            *y += beta;
                        }
                    }
                }
            },
        );
    });
}

/// Body of `layer_norm_grad`.
pub fn layer_norm_grad(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: LayerNormParams = from_words(params);
    let (rows, cols, accumulate) = (p.rows as usize, p.cols as usize, p.flags & ACCUMULATE != 0);
    if cols == 0 {
        return;
    }
    if cols > SCRATCH_LEN {
        return LayerNormGrad::plain(&p, args);
    }
    let (x, gamma, stats, dy) = (args.input(0), args.optional_input(1), args.input(2), args.input(3));
    let dx = args.output(4);
    let centred = p.flags & LayerNormParams::UNCENTRED == 0;
    let per_task = rows_per_task(cols);
    context.pool.split([(&mut dx[..rows * cols], per_task * cols)], |task, [dx], scratch| {
        let (first, scratch) = (task * per_task, &mut scratch[..cols]);
        context.isa.run(
            #[inline(always)]
            || {
                for (r, dx) in dx.chunks_exact_mut(cols).enumerate() {
                    let at = (first + r) * cols;
                    let (x, dy) = (&x[at..][..cols], &dy[at..][..cols]);
                    let (mean, rstd) = (stats[2 * (first + r)], stats[2 * (first + r) + 1]);
                    let g = match gamma {
                        Some(gamma) => {
                            for ((g, dy), gamma) in scratch.iter_mut().zip(dy).zip(gamma) {
                                *g = dy * gamma;
                            }
                            &*scratch
                        }
                        None => dy,
                    };
                    let sum = if centred { math::sum(g, |g| g) / cols as f32 } else { 0.0 };
                    let dot = math::sum2(g, x, |g, x| g * ((x - mean) * rstd)) / cols as f32;
                    for ((dx, g), x) in dx.iter_mut().zip(g).zip(x) {
                        let value = rstd * (g - sum - (x - mean) * rstd * dot);
                        *dx = if accumulate { *dx + value } else { value };
                    }
                }
            },
        );
    });
}
