//! The exponent of a group's factors: the one whose quantized weights compute most nearly what the floats do.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use inlay_format::quant::{EncodeError, Layout, Parts, PartsMut};

use super::capture::Activations;
use crate::error::{Error, Result};
use crate::quantize::Storage;

/// Exponents that are tried: 0, 1 / 20, .. 1.
const STEPS: usize = 20;
/// Outputs of a weight that are quantized at a time; each has scales of its own.
const OUTPUTS: usize = 64;
/// Rows of values in a tile, which stay in registers.
const TILE: usize = 8;
/// Outputs whose products are summed side by side.
const LANES: usize = 4;
/// Channels that are smaller on average than this part of the largest one count as that: another input may wake them.
const LEAST: f32 = 1e-3;

/// A weight to quantize: its values as [N, K], and how it is stored.
pub struct Quantized<'a> {
    /// Its name.
    pub name: &'a str,
    /// [N, K].
    pub values: Vec<f32>,
    /// Its storage.
    pub storage: &'a Storage,
}

/// What the search found for one group.
#[derive(Clone, Debug)]
pub struct Found {
    /// The exponent.
    pub alpha: f32,
    /// The factor of each input, by which weights are multiplied.
    pub factors: Vec<f32>,
    /// Norm of the error of the outputs without factors, relative to the norm of the outputs.
    pub before: f32,
    /// The same with them.
    pub after: f32,
}

/// The factors `mean |x| ^ alpha`, normalized so that the largest and the least are each other's inverse.
pub fn factors(mean: &[f32], alpha: f32) -> Vec<f32> {
    let largest = mean.iter().copied().fold(0.0, f32::max);
    if largest == 0.0 {
        return vec![1.0; mean.len()];
    }
    let mut factors: Vec<f32> = mean.iter().map(|m| (m / largest).max(LEAST).powf(alpha)).collect();
    let largest = factors.iter().copied().fold(0.0, f32::max);
    let least = factors.iter().copied().fold(f32::INFINITY, f32::min);
    let middle = (largest * least).sqrt();
    factors.iter_mut().for_each(|f| *f /= middle);
    factors
}

/// Tries every exponent for weights that read the same values. `weights` gives them one at a time.
///
/// # Errors
/// If a weight cannot be quantized.
pub fn search<'a>(activations: &Activations, weights: impl Iterator<Item = Quantized<'a>>) -> Result<Found> {
    let alphas: Vec<f32> = (0..=STEPS).map(|i| i as f32 / STEPS as f32).collect();
    let candidates: Vec<Vec<f32>> = alphas.iter().map(|&alpha| factors(&activations.mean, alpha)).collect();
    let tiles = tiles(activations);
    // Squares of the outputs, then of each candidate's error.
    let mut sums = vec![0f64; candidates.len() + 1];
    for weight in weights {
        for (sum, square) in sums.iter_mut().zip(errors(&weight, &candidates, &tiles)?) {
            *sum += square;
        }
    }
    let (norm, errors) = (sums[0].max(f64::MIN_POSITIVE), &sums[1..]);
    // The first of equals: no factors where they do not help.
    let best = (1..errors.len()).fold(0, |best, i| if errors[i] < errors[best] { i } else { best });
    let relative = |i: usize| (errors[i] / norm).sqrt() as f32;
    Ok(Found { alpha: alphas[best], factors: candidates[best].clone(), before: relative(0), after: relative(best) })
}

/// The sampled rows as tiles [K, TILE]; the last one is filled with zeros.
fn tiles(activations: &Activations) -> Vec<f32> {
    let k = activations.mean.len();
    let mut tiles = Vec::with_capacity(activations.rows.len().next_multiple_of(k * TILE));
    for rows in activations.rows.chunks(k * TILE) {
        let start = tiles.len();
        tiles.resize(start + k * TILE, 0.0);
        for (lane, row) in rows.chunks_exact(k).enumerate() {
            for (at, x) in row.iter().enumerate() {
                tiles[start + at * TILE + lane] = *x;
            }
        }
    }
    tiles
}

/// Squared norms over the tiles: of the outputs of `weight`, and of the error that each candidate leaves. The outputs are
/// parted among threads, the sums taken in their order.
fn errors(weight: &Quantized<'_>, candidates: &[Vec<f32>], tiles: &[f32]) -> Result<Vec<f64>> {
    let k = candidates[0].len();
    let parts: Vec<&[f32]> = weight.values.chunks(OUTPUTS * k).collect();
    let results = Mutex::new(vec![None; parts.len()]);
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(values) = parts.get(at) else { break };
            let sums = part(values, weight.storage, candidates, tiles);
            results.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(sums);
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(parts.len());
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    let mut sums = vec![0f64; candidates.len() + 1];
    for part in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let part = part.expect("every part was done").map_err(|e: EncodeError| Error::Quantize {
            tensor: weight.name.to_owned(),
            detail: format!("{e}; keep it float with --quant-rule 'PATH=none'"),
        })?;
        sums.iter_mut().zip(part).for_each(|(sum, square)| *sum += square);
    }
    Ok(sums)
}

/// [`errors`] of a few outputs: `values` is [n, K].
fn part(values: &[f32], storage: &Storage, candidates: &[Vec<f32>], tiles: &[f32]) -> Result<Vec<f64>, EncodeError> {
    let k = candidates[0].len();
    let dims = [k, values.len() / k];
    let Storage { scheme, form, .. } = *storage;
    let sizes = scheme.sizes(Layout::NK, dims, form).expect("storage is chosen by shape");
    let (mut data, mut scales) = (vec![0; sizes.data], vec![0.0; sizes.scales]);
    let mut zero_points = vec![0; sizes.zero_points];
    let mut scaled = vec![0.0; values.len()];
    let mut sums = vec![squares(values, k, tiles)];
    for factors in candidates {
        for (row, values) in scaled.chunks_exact_mut(k).zip(values.chunks_exact(k)) {
            row.iter_mut().zip(values).zip(factors).for_each(|((scaled, x), f)| *scaled = x * f);
        }
        let parts = PartsMut { data: &mut data, scales: &mut scales, zero_points: &mut zero_points };
        scheme.encode(&scaled, Layout::NK, dims, parts)?;
        let parts = Parts { data: &data, scales: &scales, zero_points: &zero_points };
        scheme.decode(parts, Layout::NK, dims, 0, &mut scaled);
        for (row, values) in scaled.chunks_exact_mut(k).zip(values.chunks_exact(k)) {
            row.iter_mut().zip(values).zip(factors).for_each(|((scaled, x), f)| *scaled = *scaled / f - x);
        }
        sums.push(squares(&scaled, k, tiles));
    }
    Ok(sums)
}

/// The sum of squares of `tiles^T w^T` for w [n, K].
fn squares(w: &[f32], k: usize, tiles: &[f32]) -> f64 {
    let mut sum = 0f64;
    let zeros = vec![0.0; k];
    for outputs in w.chunks(LANES * k) {
        let mut lanes = [zeros.as_slice(); LANES];
        lanes.iter_mut().zip(outputs.chunks_exact(k)).for_each(|(lane, output)| *lane = output);
        for tile in tiles.chunks_exact(k * TILE) {
            let mut sums = [[0f32; TILE]; LANES];
            for (i, x) in tile.as_chunks::<TILE>().0.iter().enumerate() {
                for (sums, lane) in sums.iter_mut().zip(lanes) {
                    let w = lane[i];
                    sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += w * x);
                }
            }
            sum += sums.iter().flatten().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use inlay_format::quant::{Form, Int4};

    use super::*;

    #[test]
    fn factors_are_normalized_and_bounded() {
        let found = factors(&[4.0, 1.0, 0.0], 0.5);
        assert!((found[0] * found[2] - 1.0).abs() < 1e-5 && (found[0] / found[1] - 2.0).abs() < 1e-5, "{found:?}");
        assert_eq!(factors(&[3.0, 1.0], 0.0), [1.0; 2]);
        assert_eq!(factors(&[0.0, 0.0], 0.5), [1.0; 2]);
    }

    #[test]
    fn squares_are_those_of_the_products() {
        // Sizes that fill neither tiles nor lanes.
        let (k, rows, n) = (5, 11, 7);
        let value = |i: usize| ((i * 37) % 19) as f32 - 9.0;
        let x: Vec<f32> = (0..rows * k).map(value).collect();
        let w: Vec<f32> = (0..n * k).map(|i| value(i + 3)).collect();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let products = x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| f64::from(dot(x, w)).powi(2)));
        let expected: f64 = products.sum();
        let found = squares(&w, k, &tiles(&Activations { mean: vec![1.0; k], rows: x }));
        assert!((found - expected).abs() < 1e-6 * expected, "{found}, {expected}");
    }

    #[test]
    fn a_channel_of_large_values_gets_a_larger_factor() {
        let (k, n, rows) = (32, 70, 24);
        let noise = |i: usize| (((i * 7919) % 1009) as f32 / 504.5) - 1.0;
        let large = |at: usize| if at == 3 { 50.0 } else { 1.0 };
        let x: Vec<f32> = (0..rows * k).map(|i| noise(i) * large(i % k)).collect();
        let mean = (0..k).map(|c| x.iter().skip(c).step_by(k).map(|x| x.abs()).sum::<f32>() / rows as f32).collect();
        let storage = Storage {
            scheme: &Int4,
            form: Form { block: 32, ..Form::WHOLE },
            layout: Layout::NK,
            qdq: false,
            keep_sums: false,
            kept: false,
            reason: None,
        };
        let weight = || {
            let values = (0..n * k).map(|i| noise(i + 11)).collect();
            std::iter::once(Quantized { name: "w", values, storage: &storage })
        };
        let activations = Activations { mean, rows: x };
        let found = search(&activations, weight()).unwrap();
        assert!(found.alpha > 0.0 && found.after < 0.7 * found.before, "{found:?}");
        assert!(found.factors[3] > 1.4 * found.factors[4], "{:?}", found.factors);
        // The same bits again, whatever the threads did.
        assert_eq!(search(&activations, weight()).unwrap().after.to_bits(), found.after.to_bits());
    }
}
