use super::{EncodeError, Form, Layout, Parts, PartsMut, Scheme, Sizes, Spelling, check_finite};

/// int4 in blocks along k, each with an f32 scale and, where the form says so, a zero point.
///
/// `W[k, n] = (q - zero_point) scale` with q in 0..16; without zero points it is 8. Only [`Layout::NK`], and only where
/// K is a multiple of the block. Bytes as `com.microsoft.MatMulNBits` has them: elements [N, K / 2], two a byte, the first
/// in the low nibble; scales [N, K / block]; zero points [N, ceil(K / block / 2)], packed like the elements.
///
/// [`encode`](Scheme::encode) takes the scale with the least squared error among many that it tries; with zero points it
/// first solves for them by half-quadratic splitting (HQQ, Badri and Shaji 2023).
#[derive(Clone, Copy, Debug)]
pub struct Int4;

/// The zero point of forms that have none of their own.
pub const MIDDLE: u8 = 8;

/// The largest block.
const MAX_BLOCK: usize = 256;

const fn form(block: usize, zero_points: bool) -> Form {
    Form { block, zero_points }
}

/// Bytes of the zero points of one n.
const fn zero_point_bytes(blocks: usize) -> usize {
    blocks.div_ceil(2)
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
                form(32, false),
                form(32, true),
                form(16, false),
                form(16, true),
                form(64, false),
                form(64, true),
                form(128, false),
                form(128, true),
                form(MAX_BLOCK, false),
                form(MAX_BLOCK, true),
            ]
        }
    }

    fn sizes(&self, layout: Layout, [k, n]: [usize; 2], form: Form) -> Option<Sizes> {
        let fits = layout == Layout::NK && k > 0 && self.forms().contains(&form) && k.is_multiple_of(form.block);
        fits.then(|| {
            let blocks = k / form.block;
            let zero_points = if form.zero_points { n.saturating_mul(zero_point_bytes(blocks)) } else { 0 };
            Sizes { data: n.saturating_mul(k / 2), scales: n.saturating_mul(blocks), zero_points }
        })
    }

    fn data_align(&self) -> usize {
        1
    }

    fn get(&self, parts: Parts<'_>, _layout: Layout, [k, n]: [usize; 2], [at_k, at_n]: [usize; 2]) -> f32 {
        let blocks = parts.scales.len() / n;
        let block = at_k / (k / blocks);
        let q = nibble(&parts.data[at_n * (k / 2)..], at_k);
        let zero_point = match parts.zero_points {
            [] => MIDDLE,
            packed => nibble(&packed[at_n * zero_point_bytes(blocks)..], block),
        };
        (f32::from(q) - f32::from(zero_point)) * parts.scales[at_n * blocks + block]
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
            if form.zero_points {
                let (scale, zero_point) = half_quadratic(block, q);
                let (at_n, at_block) = (i / blocks, i % blocks);
                set_nibble(&mut zero_points[at_n * zero_point_bytes(blocks)..], at_block, zero_point);
                scales[i] = scale;
            } else {
                scales[i] = symmetric(block, q);
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

/// Scale and zero point: for each candidate of the range the zero point is solved for, with errors that a level cannot
/// reach (outliers) taken out by a shrinkage towards an l_1/2 norm; then the best scale for the levels found.
fn half_quadratic(block: &[f32], q: &mut [u8]) -> (f32, u8) {
    let (low, high) = block.iter().fold((0f32, 0f32), |(low, high), &w| (low.min(w), high.max(w)));
    let mut best = (0f32, 0f32, 0f32, 0f32); // gain, inverse, zero point, scale
    for range in RANGES {
        let inverse = 15.0 / ((high - low) * range);
        if !inverse.is_finite() {
            continue;
        }
        let mut zero = -low * range * inverse;
        let mut beta = BETA;
        for _ in 0..ROUNDS {
            let mut sum = 0f32;
            for &w in block {
                let x = w * inverse;
                let q = round((x + zero).clamp(-1.0, 16.0)).clamp(0.0, 15.0);
                sum += q - (x - shrink(x - (q - zero), beta));
            }
            zero = sum / block.len() as f32;
            beta *= KAPPA;
        }
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
        let (data, scales, _) = encode(&values, [32, 1], form(32, false));
        assert_eq!(scales, [0.25]);
        assert_eq!(data[..4], [0x50, 0xfa, 0x94, 0x3e]);
        let shifted: Vec<f32> = values.iter().map(|v| v + 1.25).collect();
        let (data, scales, zero_points) = encode(&shifted, [32, 1], form(32, true));
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
        let (best, hqq) = (error(&values, [320, 2], form(32, false)), error(&values, [320, 2], form(32, true)));
        assert!(best < 0.9 * plain, "{best} against {plain}");
        assert!(hqq < 0.8 * best, "{hqq} against {best}");
    }

    #[test]
    fn blocks_of_zeros_and_of_the_smallest_numbers() {
        for zero_points in [false, true] {
            let mut values = vec![0.0; 64];
            values[40] = f32::from_bits(3);
            let form = form(32, zero_points);
            let (data, scales, zeros) = encode(&values, [64, 1], form);
            assert_eq!((data, scales), (vec![0x88; 32], vec![1.0, 1.0]));
            assert_eq!(zeros, if zero_points { vec![0x88] } else { vec![] });
        }
    }
}
