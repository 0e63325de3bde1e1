//! Depthwise convolutions: a block of channels at a time, whose kernels are decoded once per task.

use super::sync::SCRATCH_LEN;
use super::{CHUNK, Context};
use crate::kernels::{ACCUMULATE, Args, Contract, Depthwise, DepthwiseGrad, DepthwiseParams, from_words};
use crate::weight::WeightView;

/// Channels whose sums are in registers at a time.
const LANES: usize = 32;

/// Body of `depthwise`.
pub fn depthwise(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: DepthwiseParams = from_words(params);
    if p.taps() > SCRATCH_LEN {
        return Depthwise::plain(&p, args);
    }
    let (x, w, bias, y) = (args.input(0), args.weight(1), args.optional_input(2), args.output(3));
    let (n, c, m, wide) = (p.out_channels(), p.channels as usize, p.multiplier as usize, p.out_w as usize);
    if p.y_len() == 0 {
        return;
    }
    let rows = rows_per_task(wide * n);
    let image = (p.h * p.w) as usize;
    context.pool.split([(&mut y[..p.y_len()], rows * wide * n)], |task, [y], scratch| {
        for block in blocks(n, p.taps()) {
            let kernels = decode(&w, block.clone(), scratch);
            for (i, y) in y.chunks_exact_mut(n).enumerate() {
                let pixel = task * rows * wide + i;
                let (wo, ho, b) = (pixel % wide, pixel / wide % p.out_h as usize, pixel / wide / p.out_h as usize);
                context.isa.run(
                    #[inline(always)]
                    || {
                        for first in block.clone().step_by(LANES) {
                            let lanes = LANES.min(block.end - first);
                            let mut sums = [0f32; LANES];
                            if let Some(bias) = bias {
                                sums[..lanes].copy_from_slice(&bias[first..first + lanes]);
                            }
                            for (tap, under) in p.under(ho, wo) {
                                let w = &kernels[tap * block.len() + first - block.start..][..lanes];
                                let x = &x[(b * image + under) * c..][..c];
                                if m == 1 {
                                    add_products(&mut sums, &x[first..first + lanes], w);
                                } else {
                                    for (l, (sum, w)) in sums.iter_mut().zip(w).enumerate() {
                                        *sum += x[(first + l) / m] * w;
                                    }
                                }
                            }
                            y[first..first + lanes].copy_from_slice(&sums[..lanes]);
                        }
                    },
                );
            }
        }
    });
}

/// Body of `depthwise_grad`.
pub fn depthwise_grad(context: &Context, params: &[u32], args: &mut Args<'_, f32>) {
    let p: DepthwiseParams = from_words(params);
    if p.taps().saturating_mul(p.multiplier as usize) > SCRATCH_LEN {
        return DepthwiseGrad::plain(&p, args);
    }
    let (dy, w, dx) = (args.input(0), args.weight(1), args.output(2));
    let (n, c, m, wide) = (p.out_channels(), p.channels as usize, p.multiplier as usize, p.w as usize);
    if p.x_len() == 0 {
        return;
    }
    let (rows, accumulate) = (rows_per_task(wide * n), p.flags & ACCUMULATE != 0);
    let image = (p.out_h * p.out_w) as usize;
    context.pool.split([(&mut dx[..p.x_len()], rows * wide * c)], |task, [dx], scratch| {
        for block in blocks(c, p.taps() * m) {
            let outputs = block.start * m..block.end * m;
            let kernels = decode(&w, outputs.clone(), scratch);
            for (i, dx) in dx.chunks_exact_mut(c).enumerate() {
                let pixel = task * rows * wide + i;
                let (col, row, b) = (pixel % wide, pixel / wide % p.h as usize, pixel / wide / p.h as usize);
                context.isa.run(
                    #[inline(always)]
                    || {
                        for first in block.clone().step_by(LANES) {
                            let lanes = LANES.min(block.end - first);
                            let mut sums = [0f32; LANES];
                            if accumulate {
                                sums[..lanes].copy_from_slice(&dx[first..first + lanes]);
                            }
                            for (tap, over) in p.over(row, col) {
                                let w = &kernels[tap * outputs.len() + first * m - outputs.start..][..lanes * m];
                                let dy = &dy[(b * image + over) * n + first * m..][..lanes * m];
                                if m == 1 {
                                    add_products(&mut sums, dy, w);
                                } else {
                                    for (sum, (dy, w)) in sums.iter_mut().zip(dy.chunks(m).zip(w.chunks(m))) {
                                        for (dy, w) in dy.iter().zip(w) {
                                            *sum += dy * w;
                                        }
                                    }
                                }
                            }
                            dx[first..first + lanes].copy_from_slice(&sums[..lanes]);
                        }
                    },
                );
            }
        }
    });
}

/// `sums += a b`.
#[inline(always)]
fn add_products(sums: &mut [f32; LANES], a: &[f32], b: &[f32]) {
    match (<&[f32; LANES]>::try_from(a), <&[f32; LANES]>::try_from(b)) {
        (Ok(a), Ok(b)) => {
            for l in 0..LANES {
                sums[l] += a[l] * b[l];
            }
        }
        _ => {
            for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
                *sum += a * b;
            }
        }
    }
}

/// Rows of pixels of a task, by the elements of one.
fn rows_per_task(row: usize) -> usize {
    // Kernels are decoded in every task: more elements than elsewhere.
    (4 * CHUNK / row.max(1)).max(1)
}

/// Ranges of channels, each with `weights` elements, that fit into scratch together.
fn blocks(channels: usize, weights: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let block = (SCRATCH_LEN / weights.max(1) / LANES * LANES).max(1).min(channels.max(1));
    (0..channels).step_by(block).map(move |first| first..channels.min(first + block))
}

/// The kernels of `channels` as floats [taps, channels].
fn decode<'s>(w: &WeightView<'_>, channels: std::ops::Range<usize>, scratch: &'s mut [f32]) -> &'s [f32] {
    let kernels = &mut scratch[..w.k * channels.len()];
    for (tap, row) in kernels.chunks_exact_mut(channels.len()).enumerate() {
        for (value, channel) in row.iter_mut().zip(channels.clone()) {
            *value = w.get(tap, channel);
        }
    }
    kernels
}
