//! Bases for LoRA-XS: the first singular directions of each linear's weight as devices hold it, as int8.
//!
//! Block power iteration in f64 from a fixed start: plain sums in a fixed order, so that one weight gives one basis, byte
//! for byte, on every machine.

use inlay_format::points::{Point, PointOp};
use inlay_format::quant::Layout;
use inlay_runtime::random::Random;

use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::quantize::{Packing, Storage, pack, scale_name, values};
use crate::tensor::Tensor;

/// The kind that needs a basis.
pub const LORA_XS: &str = "lora-xs";

/// Directions beyond the wanted ones that the iteration carries along.
const EXTRA: usize = 8;
/// Rounds of the iteration.
const ROUNDS: usize = 8;

/// Adds a basis of `rank` at every linear of `points`: `<path>.basis_A` `[d_in, r]` and `<path>.basis_B` `[r, d_out]`, int8 with a
/// scale for each column, `<path>.basis_A.scale` and `<path>.basis_B.scale`. No node reads them.
///
/// # Errors
/// If a weight is not finite, or no point is a linear.
pub fn add(graph: &mut Graph, points: &mut [Point<String>], packing: &Packing, rank: usize) -> Result<()> {
    let mut added = 0;
    for point in points.iter_mut().filter(|point| point.op == PointOp::Linear) {
        let [rows, columns] = [point.d_in as usize, point.d_out as usize];
        let tensor = &graph.constants[&point.weight];
        let mut weight: Vec<f64> = values(&point.weight, tensor, packing)?.into_iter().map(f64::from).collect();
        if tensor.dims() == [columns, rows] && is_transposed(graph, point) {
            weight = transposed(&weight, columns, rows);
        }
        let [a, b] = singular(&weight, rows, columns, rank.min(rows).min(columns));
        let rank = a.len() / rows;
        for (name, shape, values) in [("basis_A", [rows, rank], a), ("basis_B", [rank, columns], b)] {
            let name = format!("{}.{name}", point.path);
            let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
            let packed = pack(&name, &Tensor::from_f32(&shape, &values), &Storage::int8(Layout::KN))?;
            graph.constants.extend(packed.scales.map(|scales| (scale_name(&name), scales)));
            graph.constants.insert(name, packed.data);
        }
        let full = || Error::Invalid(format!("point {:?} offers too many kinds", point.path));
        point.kinds.push(LORA_XS.to_owned()).map_err(|_| full())?;
        added += 1;
    }
    if added == 0 {
        return Err(Error::Invalid("--basis: no point is a linear; leave it out".to_owned()));
    }
    Ok(())
}

/// Whether the weight of a point is `[d_out, d_in]`, where the shape alone does not tell.
fn is_transposed(graph: &Graph, point: &Point<String>) -> bool {
    let node = graph.nodes.iter().find(|node| node.name == point.node);
    node.is_some_and(|node| match node.op_type.as_str() {
        "Gemm" => node.int("transB").unwrap_or(0) != 0,
        "MatMulNBits" => true,
        // A tied head: a product with the transposed table.
        _ => node
            .input(1)
            .and_then(|name| graph.nodes.iter().find(|n| n.output() == name))
            .is_some_and(|n| n.is("Transpose")),
    })
}

/// The first `rank` singular directions of w `[m, n]`: U `[m, r]` with orthonormal columns, and S V^T `[r, n]`.
fn singular(w: &[f64], m: usize, n: usize, rank: usize) -> [Vec<f64>; 2] {
    let wide = (rank + EXTRA).min(m).min(n);
    let mut random = Random::new(0, wide as u64);
    // Rows are directions throughout: [wide, n] and [wide, m].
    let mut right: Vec<f64> = (0..wide * n).map(|_| f64::from(random.uniform(1.0))).collect();
    let transposed_w = transposed(w, m, n);
    let mut left = Vec::new();
    for _ in 0..ROUNDS {
        left = orthonormal(product_transposed(&right, w, wide, n, m), m);
        right = orthonormal(product_transposed(&left, &transposed_w, wide, m, n), n);
    }
    // W = left^T (left W): the small matrix (left W)(left W)^T has the singular values.
    let small = product_transposed(&left, &transposed_w, wide, m, n);
    let gram = product_transposed(&small, &small, wide, n, wide);
    let directions = eigenvectors(gram, wide);
    let combine = |vectors: &[f64], len: usize| -> Vec<f64> {
        let mut rows = vec![0.0; rank * len];
        for (row, direction) in rows.chunks_exact_mut(len).zip(&directions) {
            for (vector, weight) in vectors.chunks_exact(len).zip(direction) {
                row.iter_mut().zip(vector).for_each(|(sum, x)| *sum += weight * x);
            }
        }
        rows
    };
    let mut u = combine(&left, m);
    let mut sv = combine(&small, n);
    // A direction and its opposite are one: the largest element of U's is positive.
    for (u, sv) in u.chunks_exact_mut(m).zip(sv.chunks_exact_mut(n)) {
        let largest = u.iter().copied().fold(0.0, |most: f64, x| if x.abs() > most.abs() { x } else { most });
        if largest < 0.0 {
            u.iter_mut().chain(sv).for_each(|x| *x = -*x);
        }
    }
    [transposed(&u, rank, m), sv]
}

/// `a b^T` for a `[rows, k]` and b `[columns, k]`.
fn product_transposed(a: &[f64], b: &[f64], rows: usize, k: usize, columns: usize) -> Vec<f64> {
    let mut product = Vec::with_capacity(rows * columns);
    for x in a.chunks_exact(k) {
        for y in b.chunks_exact(k) {
            // Four sums, so that the processor need not wait for one.
            let mut sums = [0.0; 4];
            let (fours_x, rest_x) = x.as_chunks::<4>();
            let (fours_y, rest_y) = y.as_chunks::<4>();
            for (x, y) in fours_x.iter().zip(fours_y) {
                (0..4).for_each(|i| sums[i] += x[i] * y[i]);
            }
            let rest: f64 = rest_x.iter().zip(rest_y).map(|(x, y)| x * y).sum();
            product.push(sums[0] + sums[1] + (sums[2] + sums[3]) + rest);
        }
    }
    product
}

/// The rows made orthonormal (Gram-Schmidt, twice); a row that depends on those before it becomes zero.
fn orthonormal(mut rows: Vec<f64>, len: usize) -> Vec<f64> {
    let dot = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
    for i in 0..rows.len() / len.max(1) {
        let (before, from) = rows.split_at_mut(i * len);
        let row = &mut from[..len];
        let start = dot(row, row).sqrt();
        for _ in 0..2 {
            for other in before.chunks_exact(len) {
                let along = dot(row, other);
                row.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
            }
        }
        let norm = dot(row, row).sqrt();
        let factor = if norm > 1e-12 * start { 1.0 / norm } else { 0.0 };
        row.iter_mut().for_each(|x| *x *= factor);
    }
    rows
}

/// The eigenvectors of a symmetric matrix, those of the largest eigenvalues first (cyclic Jacobi).
fn eigenvectors(mut a: Vec<f64>, n: usize) -> Vec<Vec<f64>> {
    let mut v = vec![0.0; n * n];
    (0..n).for_each(|i| v[i * n + i] = 1.0);
    for _ in 0..30 {
        for p in 0..n {
            for q in p + 1..n {
                let off = a[p * n + q];
                if off.abs() <= f64::EPSILON * (a[p * n + p] * a[q * n + q]).abs().sqrt() {
                    continue;
                }
                let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * off);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for k in 0..n {
                    let (x, y) = (a[k * n + p], a[k * n + q]);
                    (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
                }
                for k in 0..n {
                    let (x, y) = (a[p * n + k], a[q * n + k]);
                    (a[p * n + k], a[q * n + k]) = (c * x - s * y, s * x + c * y);
                    let (x, y) = (v[k * n + p], v[k * n + q]);
                    (v[k * n + p], v[k * n + q]) = (c * x - s * y, s * x + c * y);
                }
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[j * n + j].total_cmp(&a[i * n + i]));
    order.into_iter().map(|column| (0..n).map(|row| v[row * n + column]).collect()).collect()
}

/// `[rows, columns]` -> `[columns, rows]`.
fn transposed(values: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix with known singular values: sums of outer products of orthonormal vectors.
    fn known(m: usize, n: usize, values: &[f64]) -> Vec<f64> {
        let mut random = Random::new(3, 1);
        let mut frame =
            |len: usize| orthonormal((0..values.len() * len).map(|_| f64::from(random.uniform(1.0))).collect(), len);
        let (u, v) = (frame(m), frame(n));
        let mut w = vec![0.0; m * n];
        for (k, s) in values.iter().enumerate() {
            for i in 0..m {
                for j in 0..n {
                    w[i * n + j] += s * u[k * m + i] * v[k * n + j];
                }
            }
        }
        w
    }

    fn error(w: &[f64], [a, b]: &[Vec<f64>; 2], m: usize, n: usize) -> f64 {
        let r = a.len() / m;
        let approx = |i: usize, j: usize| (0..r).map(|k| a[i * r + k] * b[k * n + j]).sum::<f64>();
        let squares = (0..m * n).map(|i| (w[i] - approx(i / n, i % n)).powi(2));
        squares.sum::<f64>().sqrt()
    }

    #[test]
    fn the_best_approximation_of_a_rank_is_found() {
        for (m, n) in [(24, 17), (17, 40), (5, 5), (1, 7)] {
            let values: Vec<f64> = [9.0, 6.0, 4.0, 1.0, 0.5].into_iter().take(m.min(n)).collect();
            let w = known(m, n, &values);
            for rank in 1..=values.len() {
                let basis = singular(&w, m, n, rank);
                let best = values[rank..].iter().map(|s| s * s).sum::<f64>().sqrt();
                let found = error(&w, &basis, m, n);
                assert!((found - best).abs() <= 1e-6, "{m} x {n}, rank {rank}: off by {found}, at best {best}");
                // The columns of A are orthonormal.
                let columns = transposed(&basis[0], m, rank);
                let gram = product_transposed(&columns, &columns, rank, m, rank);
                for (i, g) in gram.iter().enumerate() {
                    let expected = if i / rank == i % rank { 1.0 } else { 0.0 };
                    assert!((g - expected).abs() < 1e-9);
                }
            }
        }
    }

    #[test]
    fn one_weight_has_one_basis_and_a_poor_one_does_no_harm() {
        let w = known(12, 9, &[3.0, 2.0, 1.0]);
        assert_eq!(singular(&w, 12, 9, 4), singular(&w, 12, 9, 4));
        for basis in [singular(&vec![0.0; 108], 12, 9, 4), singular(&known(12, 9, &[2.0]), 12, 9, 4)] {
            assert!(basis.iter().flatten().all(|x| x.is_finite()));
        }
    }
}
