use super::{EncodeError, Form, Layout, Parts, PartsMut, Scheme, Sizes, Spelling, ZeroPoints, check_finite};

/// int4 in blocks along k, each with an f32 scale and, where the form says so, a zero point.
///
/// `W[k, n] = (q - zero_point) scale` with q in 0..16; without zero points it is 8. Only [`Layout::NK`], and only where
/// K is a multiple of the block. Bytes as `com.microsoft.MatMulNBits` has them: elements [N, K / 2], two a byte, the first
/// in the low nibble; scales [N, K / block]; zero points, if integers [N, ceil(K / block / 2)], packed like the elements, if
/// floats [N, K / block].
///
/// [`encode`](Scheme::encode) takes the scale with the least squared error among many that it tries; with zero points it
/// first solves for them by half-quadratic splitting (HQQ, Badri and Shaji 2023). Floats follow any grid of 16 steps: what
/// was in four bits elsewhere, with a minimum for each block, is kept as it was.
#[derive(Clone, Copy, Debug)]
pub struct Int4;

/// The zero point of forms that have none of their own.
pub const MIDDLE: u8 = 8;

/// The largest block.
const MAX_BLOCK: usize = 256;

const fn form(block: usize, zero_points: ZeroPoints) -> Form {
    Form { block, zero_points }
}

/// Bytes of the packed integer zero points of one n.
const fn zero_point_bytes(blocks: usize) -> usize {
    blocks.div_ceil(2)
}

impl Int4 {
    /// The zero point of a block of n, [`Parts::zero_points`] being those of all [N, blocks] = `of`.
    #[inline]
    pub fn zero_point(zero_points: &[u8], of: [usize; 2], [n, block]: [usize; 2]) -> f32 {
        let blocks = of[1];
        match zero_points {
            [] => f32::from(MIDDLE),
            floats if floats.len() == 4 * of[0] * blocks => {
                let at = 4 * (n * blocks + block);
                f32::from_le_bytes(floats[at..at + 4].try_into().expect("4 bytes"))
            }
            packed => f32::from(nibble(&packed[n * zero_point_bytes(blocks)..], block)),
        }
    }
}

/// The nibble at `index` of a row that starts at a byte.
fn nibble(bytes: &[u8], index: usize) -> u8 {
    (bytes[index / 2] >> (4 * (index % 2))) & 15
}

fn set_nibble(bytes: &mut [u8], index: usize, value: u8) {
    let shift = 4 * (index % 2);
    let byte = &mut bytes[index / 2];
    *byte = (*byte & !(15 << shift)) | (value << shift);
}

impl Scheme for Int4 {
    fn name(&self) -> &'static str {
        "int4"
    }

    fn forms(&self) -> &'static [Form] {
        const {
            &[
                form(32, ZeroPoints::None),
                form(32, ZeroPoints::Integer),
                form(32, ZeroPoints::Float),
                form(16, ZeroPoints::None),
                form(16, ZeroPoints::Integer),
                form(16, ZeroPoints::Float),
                form(64, ZeroPoints::None),
                form(64, ZeroPoints::Integer),
                form(64, ZeroPoints::Float),
                form(128, ZeroPoints::None),
                form(128, ZeroPoints::Integer),
                form(128, ZeroPoints::Float),
                form(MAX_BLOCK, ZeroPoints::None),
                form(MAX_BLOCK, ZeroPoints::Integer),
                form(MAX_BLOCK, ZeroPoints::Float),
            ]
        }
    }

    fn sizes(&self, layout: Layout, [k, n]: [usize; 2], form: Form) -> Option<Sizes> {
        let fits = layout == Layout::NK && k > 0 && self.forms().contains(&form) && k.is_multiple_of(form.block);
        fits.then(|| {
            let blocks = k / form.block;
            let scales = n.saturating_mul(blocks);
            let zero_points = match form.zero_points {
                ZeroPoints::None => 0,
                ZeroPoints::Integer => n.saturating_mul(zero_point_bytes(blocks)),
                ZeroPoints::Float => scales.saturating_mul(size_of::<f32>()),
            };
            Sizes { data: n.saturating_mul(k / 2), scales, zero_points }
        })
    }

    fn data_align(&self) -> usize {
        1
    }

    fn get(&self, parts: Parts<'_>, _layout: Layout, [k, n]: [usize; 2], [at_k, at_n]: [usize; 2]) -> f32 {
        let blocks = parts.scales.len() / n;
        let block = at_k / (k / blocks);
        let q = nibble(&parts.data[at_n * (k / 2)..], at_k);
        let at = at_n * blocks + block;
        (f32::from(q) - Self::zero_point(parts.zero_points, [n, blocks], [at_n, block])) * parts.scales[at]
    }

    fn encode(
        &self,
        values: &[f32],
        layout: Layout,
        dims: [usize; 2],
        PartsMut { data, scales, zero_points }: PartsMut<'_>,
    ) -> Result<(), EncodeError> {
        let [k, n] = dims;
        assert_eq!(values.len(), k * n, "lengths follow from the shape");
        let sizes = Sizes { data: data.len(), scales: scales.len(), zero_points: zero_points.len() };
        let form = self.form_of(layout, dims, sizes).expect("lengths follow from the shape");
        check_finite(values)?;
        let blocks = k / form.block;
        zero_points.fill(0);
        let mut q = [0u8; MAX_BLOCK];
        for (i, (block, bytes)) in
            values.chunks_exact(form.block).zip(data.chunks_exact_mut(form.block / 2)).enumerate()
        {
            let q = &mut q[..form.block];
            match form.zero_points {
                ZeroPoints::None => scales[i] = symmetric(block, q),
                ZeroPoints::Integer => {
                    let (scale, zero_point) = half_quadratic(block, q);
                    let (at_n, at_block) = (i / blocks, i % blocks);
                    set_nibble(&mut zero_points[at_n * zero_point_bytes(blocks)..], at_block, zero_point);
                    scales[i] = scale;
                }
                ZeroPoints::Float => {
                    let (scale, zero_point) = affine(block, q);
                    zero_points[4 * i..][..4].copy_from_slice(&zero_point.to_le_bytes());
                    scales[i] = scale;
                }
            }
            for (byte, pair) in bytes.iter_mut().zip(q.chunks_exact(2)) {
                *byte = pair[0] | (pair[1] << 4);
            }
        }
        Ok(())
    }

    fn spellings(&self) -> &'static [Spelling] {
        &[
            Spelling { data_type: 2, op_type: Some("MatMulNBits"), domain: "com.microsoft", is_product: true },
            Spelling { data_type: 21, op_type: Some("DequantizeLinear"), domain: "", is_product: false },
        ]
    }
}

/// Rounds to nearest, halves to even; |x| below 2^22.
fn round(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 2^23: the sum has no bits behind the point
    (x + SHIFT) - SHIFT
}

/// The quantized value of `x` = w / scale, from -zero_point to 15 - zero_point.
fn level(x: f32, zero_point: f32) -> f32 {
    round(x.clamp(-16.0, 16.0)).clamp(-zero_point, 15.0 - zero_point)
}

/// What quantizing with `1 / inverse` and `zero_point` gives: the best scale for those levels, and by how much it
/// lowers the squared error from that of all zeros.
fn fit(block: &[f32], inverse: f32, zero_point: f32) -> (f32, f32) {
    let (mut wq, mut qq) = (0f32, 0f32);
    for &w in block {
        let q = level(w * inverse, zero_point);
        wq += w * q;
        qq += q * q;
    }
    if qq == 0.0 { (0.0, 0.0) } else { (wq / qq, wq * wq / qq) }
}

fn write_levels(block: &[f32], inverse: f32, zero_point: f32, q: &mut [u8]) {
    for (q, &w) in q.iter_mut().zip(block) {
        *q = (level(w * inverse, zero_point) + zero_point) as u8;
    }
}

/// Candidates for a scale: the steps between the largest magnitude and the level that it is rounded to.
const CANDIDATES: i32 = 9;

/// Levels around [`MIDDLE`]: the scale with the least squared error. It is negative where the largest magnitude is
/// positive and takes the lowest level, of which there is one more.
fn symmetric(block: &[f32], q: &mut [u8]) -> f32 {
    let largest = block.iter().fold(0f32, |m, w| if w.abs() > m.abs() { *w } else { m });
    let zero_point = f32::from(MIDDLE);
    let mut best = (0f32, 0f32, 0f32); // gain, inverse, scale
    for lowest in [true, false] {
        for step in -CANDIDATES..=CANDIDATES {
            let to = if lowest { -8.0 } else { 7.0 } * (1.0 + 0.0125 * step as f32);
            let inverse = to / largest;
            if !inverse.is_finite() {
                continue;
            }
            let (scale, gain) = fit(block, inverse, zero_point);
            if gain > best.0 {
                best = (gain, inverse, scale);
            }
        }
    }
    let (_, inverse, scale) = best;
    if !scale.is_normal() {
        q.fill(MIDDLE);
        return 1.0;
    }
    write_levels(block, inverse, zero_point, q);
    scale
}

/// How far the range of a block is narrowed, as candidates.
const RANGES: [f32; 6] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.7];

/// Rounds of the half-quadratic solver for each candidate.
const ROUNDS: usize = 6;

/// Strength of the coupling in the first round, and its growth, as published; errors are in units of a level.
const BETA: f32 = 10.0;
const KAPPA: f32 = 1.01;

/// The zero point for steps of `1 / inverse`, from a first guess on, with errors that a level cannot reach (outliers)
/// taken out by a shrinkage towards an l_1/2 norm.
fn solve(block: &[f32], inverse: f32, mut zero: f32) -> f32 {
    let mut beta = BETA;
    for _ in 0..ROUNDS {
        let mut sum = 0f32;
        for &w in block {
            let x = w * inverse;
            let q = unsigned_level(x + zero);
            sum += q - (x - shrink(x - (q - zero), beta));
        }
        zero = sum / block.len() as f32;
        beta *= KAPPA;
    }
    zero
}

/// Scale and integer zero point: for each candidate of the range the zero point is solved for; then the best scale for
/// the levels found.
fn half_quadratic(block: &[f32], q: &mut [u8]) -> (f32, u8) {
    let (low, high) = block.iter().fold((0f32, 0f32), |(low, high), &w| (low.min(w), high.max(w)));
    let mut best = (0f32, 0f32, 0f32, 0f32); // gain, inverse, zero point, scale
    for range in RANGES {
        let inverse = 15.0 / ((high - low) * range);
        if !inverse.is_finite() {
            continue;
        }
        let zero = solve(block, inverse, -low * range * inverse);
        for zero_point in [libm::floorf(zero), libm::ceilf(zero)].map(|z| z.clamp(0.0, 15.0)) {
            let (scale, gain) = fit(block, inverse, zero_point);
            if gain > best.0 {
                best = (gain, inverse, zero_point, scale);
            }
        }
    }
    let (_, inverse, zero_point, scale) = best;
    if !scale.is_normal() {
        q.fill(MIDDLE);
        return (1.0, MIDDLE);
    }
    write_levels(block, inverse, zero_point, q);
    (scale, zero_point as u8)
}

/// Scale and zero point of any value: for each candidate of the range the zero point is solved for; then both by least
/// squares for the levels found, and again for the levels that follow.
fn affine(block: &[f32], q: &mut [u8]) -> (f32, f32) {
    let (low, high) = block.iter().fold((f32::MAX, f32::MIN), |(low, high), &w| (low.min(w), high.max(w)));
    let step = high / 15.0 - low / 15.0;
    // Around the middle, where a block far from zero keeps its bits, and differences stay finite.
    let middle = high / 2.0 + low / 2.0;
    let mut shifted = [0f32; MAX_BLOCK];
    let shifted = &mut shifted[..block.len()];
    for (x, w) in shifted.iter_mut().zip(block) {
        *x = w - middle;
    }
    let mut best = (f64::INFINITY, 0f32, 0f32, 0f64, 0f64); // squared error; inverse and zero of the levels; scale, offset
    for range in RANGES {
        let mut inverse = (step * range).recip();
        if !inverse.is_normal() || !step.is_normal() {
            continue;
        }
        let mut zero = solve(shifted, inverse, 7.5);
        for _ in 0..LEAST_SQUARES {
            let (scale, offset, error) = least_squares(shifted, inverse, zero);
            if error < best.0 {
                best = (error, inverse, zero, scale, offset);
            }
            inverse = (1.0 / scale) as f32;
            zero = (-offset / scale) as f32;
            if !inverse.is_normal() {
                break;
            }
        }
    }
    let (error, inverse, zero, scale, offset) = best;
    let zero_point = (-(offset + f64::from(middle)) / scale) as f32;
    if error == f64::INFINITY || !(scale as f32).is_normal() || !zero_point.is_finite() {
        q.fill(0);
        return (1.0, -low);
    }
    for (q, &x) in q.iter_mut().zip(&*shifted) {
        *q = unsigned_level(x * inverse + zero) as u8;
    }
    (scale as f32, zero_point)
}

/// Rounds of levels and least squares for each candidate.
const LEAST_SQUARES: usize = 3;

/// Scale and offset with the least squared error for the levels that `inverse` and `zero` give, and that error.
fn least_squares(values: &[f32], inverse: f32, zero: f32) -> (f64, f64, f64) {
    let count = values.len() as f64;
    let pairs = || values.iter().map(|&x| (f64::from(unsigned_level(x * inverse + zero)), f64::from(x)));
    let (q_sum, x_sum) = pairs().fold((0f64, 0f64), |(q_sum, x_sum), (q, x)| (q_sum + q, x_sum + x));
    let (q_mean, x_mean) = (q_sum / count, x_sum / count);
    let (mut qq, mut qx) = (0f64, 0f64);
    for (q, x) in pairs() {
        qq += (q - q_mean) * (q - q_mean);
        qx += (q - q_mean) * (x - x_mean);
    }
    let scale = if qq > 0.0 { qx / qq } else { f64::from(inverse).recip() };
    let offset = x_mean - scale * q_mean;
    let error = pairs().map(|(q, x)| (x - scale * q - offset) * (x - scale * q - offset)).sum();
    (scale, offset, error)
}

/// The nearest of the sixteen levels.
fn unsigned_level(x: f32) -> f32 {
    round(x.clamp(-1.0, 16.0)).clamp(0.0, 15.0)
}

/// `sign(x) max(|x| - |x|^(p - 1) / beta, 0)` with p = 1/2.
fn shrink(x: f32, beta: f32) -> f32 {
    let magnitude = x.abs();
    // Where the shrinkage exceeds the magnitude: |x|^(3/2) <= 1 / beta.
    if magnitude * magnitude * magnitude * beta * beta <= 1.0 {
        return 0.0;
    }
    let rest = magnitude - 1.0 / (libm::sqrtf(magnitude) * beta);
    if x < 0.0 { -rest } else { rest }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(values: &[f32], dims: [usize; 2], form: Form) -> (Vec<u8>, Vec<f32>, Vec<u8>) {
        let sizes = Int4.sizes(Layout::NK, dims, form).unwrap();
        let (mut data, mut scales) = (vec![0; sizes.data], vec![0.0; sizes.scales]);
        let mut zero_points = vec![0; sizes.zero_points];
        let parts = PartsMut { data: &mut data, scales: &mut scales, zero_points: &mut zero_points };
        Int4.encode(values, Layout::NK, dims, parts).unwrap();
        (data, scales, zero_points)
    }

    fn error(values: &[f32], dims: [usize; 2], form: Form) -> f64 {
        let (data, scales, zero_points) = encode(values, dims, form);
        let mut decoded = vec![0.0; values.len()];
        let parts = Parts { data: &data, scales: &scales, zero_points: &zero_points };
        Int4.decode(parts, Layout::NK, dims, 0, &mut decoded);
        values.iter().zip(decoded).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    }

    #[test]
    fn sixteen_levels_are_exact() {
        let values: Vec<f32> = (0..32).map(|i| ((i * 5) % 16) as f32 * 0.25 - 2.0).collect();
        let (data, scales, _) = encode(&values, [32, 1], form(32, ZeroPoints::None));
        assert_eq!(scales, [0.25]);
        assert_eq!(data[..4], [0x50, 0xfa, 0x94, 0x3e]);
        let shifted: Vec<f32> = values.iter().map(|v| v + 1.25).collect();
        let (data, scales, zero_points) = encode(&shifted, [32, 1], form(32, ZeroPoints::Integer));
        assert_eq!((scales.as_slice(), zero_points.as_slice()), (&[0.25][..], &[3][..]));
        assert_eq!(data[..4], [0x50, 0xfa, 0x94, 0x3e]);
    }

    #[test]
    fn the_search_beats_the_plain_scale_and_zero_points_beat_none() {
        // Skewed, with an outlier a block.
        let values: Vec<f32> =
            (0..640).map(|i| (i as f32 * 0.7).sin().powi(3) + 0.3 + if i % 32 == 0 { 1.5 } else { 0.0 }).collect();
        let plain: f64 = values
            .chunks(32)
            .map(|block| {
                let scale = block.iter().fold(0f32, |m, w| m.max(w.abs())) / 7.0;
                block.iter().map(|w| f64::from(w - (w / scale).round().clamp(-8.0, 7.0) * scale).powi(2)).sum::<f64>()
            })
            .sum();
        let (best, hqq) = (
            error(&values, [320, 2], form(32, ZeroPoints::None)),
            error(&values, [320, 2], form(32, ZeroPoints::Integer)),
        );
        assert!(best < 0.9 * plain, "{best} against {plain}");
        assert!(hqq < 0.8 * best, "{hqq} against {best}");
        let free = error(&values, [320, 2], form(32, ZeroPoints::Float));
        assert!(free < 0.97 * hqq, "{free} against {hqq}");
    }

    #[test]
    fn what_was_in_four_bits_with_a_minimum_stays() {
        // Blocks of steps and minima that no integer zero point fits, one of them of one value, one of two.
        let grid = |block: usize, i: usize| match block {
            3 => -0.37,
            4 => [0.11, 0.35][i % 2],
            _ => [0.013, 0.7, 3.1e-4][block % 3] * ((i * 11) % 16) as f32 + [-0.1, 2.3, -9.0][block % 3],
        };
        let values: Vec<f32> = (0..8 * 32).map(|i| grid(i / 32, i % 32)).collect();
        let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        let exact = error(&values, [128, 2], form(32, ZeroPoints::Float));
        assert!(exact.sqrt() < 1e-5 * f64::from(largest), "{exact}");
        assert!(error(&values, [128, 2], form(32, ZeroPoints::Integer)) > 1e4 * exact);
    }

    #[test]
    fn floats_are_followed_to_the_ends_of_their_range() {
        for values in
            [[f32::MAX / 2.0, -f32::MAX / 2.0], [f32::MIN_POSITIVE, 0.0], [1e30, 1e30], [f32::from_bits(1), 0.0]]
        {
            let values: Vec<f32> = values.into_iter().cycle().take(16).collect();
            let form = form(16, ZeroPoints::Float);
            let (data, scales, zero_points) = encode(&values, [16, 1], form);
            let mut decoded = vec![0.0; 16];
            let parts = Parts { data: &data, scales: &scales, zero_points: &zero_points };
            Int4.decode(parts, Layout::NK, [16, 1], 0, &mut decoded);
            for (a, b) in values.iter().zip(&decoded) {
                assert!((a - b).abs() <= 1e-5 * a.abs() + f32::MIN_POSITIVE, "{values:?}: {decoded:?}");
            }
        }
    }

    #[test]
    fn blocks_of_zeros_and_of_the_smallest_numbers() {
        for zero_points in [ZeroPoints::None, ZeroPoints::Integer] {
            let mut values = vec![0.0; 64];
            values[40] = f32::from_bits(3);
            let form = form(32, zero_points);
            let (data, scales, zeros) = encode(&values, [64, 1], form);
            assert_eq!((data, scales), (vec![0x88; 32], vec![1.0, 1.0]));
            assert_eq!(zeros, if zero_points == ZeroPoints::Integer { vec![0x88] } else { vec![] });
        }
    }
}
