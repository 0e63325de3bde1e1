//! Rounding that keeps sums.

use inlay_format::quant::Layout;

/// Changes int8 elements by one until each output's weights add up to what they did as floats, within half a step.
///
/// Rounding to nearest leaves a remainder of each output, which the mean of its inputs multiplies: after a ReLU, a shift
/// of every pixel, which the next layer cannot tell from a signal. The elements that change are those nearest to a
/// tie; the first of equals. Nagel et al. 2019 correct such a shift in the bias instead, for which the inputs' means are needed.
pub(super) fn keep(values: &[f32], layout: Layout, dims: [usize; 2], data: &mut [u8], scales: &[f32]) {
    for (output, scale) in scales.iter().enumerate() {
        let at = |i| layout.index(dims, [i, output]);
        // How far the float lies above the integer, in steps.
        let remainder = |data: &[u8], i: usize| values[at(i)] / scale - f32::from(data[at(i)].cast_signed());
        let sum: f64 = (0..dims[0]).map(|i| f64::from(remainder(data, i))).sum();
        let (steps, up) = (sum.abs().round_ties_even() as usize, sum > 0.0);
        let mut order: Vec<(f32, usize)> = (0..dims[0]).map(|i| (remainder(data, i), i)).collect();
        order.sort_by(|(a, _), (b, _)| if up { b.total_cmp(a) } else { a.total_cmp(b) });
        for (_, i) in order.into_iter().take(steps) {
            let q = data[at(i)].cast_signed();
            data[at(i)] = (if up { q.saturating_add(1) } else { (q - 1).max(-127) }).cast_unsigned();
        }
    }
}

#[cfg(test)]
mod tests {
    use inlay_format::quant::{Int8, Parts, PartsMut, Scheme};

    use super::*;

    fn packed(values: &[f32], layout: Layout, dims: [usize; 2]) -> (Vec<u8>, Vec<f32>) {
        let (mut data, mut scales) = (vec![0; values.len()], vec![0.0; dims[1]]);
        let parts = PartsMut { data: &mut data, scales: &mut scales, zero_points: &mut [] };
        Int8.encode(values, layout, dims, parts).unwrap();
        (data, scales)
    }

    #[test]
    fn sums_are_kept_and_no_element_moves_by_a_step_or_more() {
        let dims = [25, 7];
        for layout in [Layout::NK, Layout::KN] {
            let values: Vec<f32> = (0..175).map(|i| ((i * 37 % 101) as f32 * 0.13).sin() + 0.3).collect();
            let (mut data, scales) = packed(&values, layout, dims);
            let sums = |data: &[u8]| -> Vec<f32> {
                let parts = Parts { data, scales: &scales, zero_points: &[] };
                let lost = |n, k| values[layout.index(dims, [k, n])] - Int8.get(parts, layout, dims, [k, n]);
                (0..7).map(|n| (0..25).map(|k| lost(n, k)).sum::<f32>() / scales[n]).collect()
            };
            assert!(sums(&data).iter().any(|lost| lost.abs() > 1.0), "there is something to keep");
            keep(&values, layout, dims, &mut data, &scales);
            assert!(sums(&data).iter().all(|lost| lost.abs() < 0.51), "{:?}", sums(&data));
            for (i, v) in values.iter().enumerate() {
                let q = f32::from(data[i].cast_signed());
                assert!((v / scales[layout.output(dims, i)] - q).abs() < 1.0, "element {i}");
            }
        }
    }

    #[test]
    fn extremes_stay_in_range() {
        let values = [1.0, 1.0, 1.0, -1.0, 0.4 / 127.0, 0.4 / 127.0];
        let (mut data, scales) = packed(&values, Layout::NK, [6, 1]);
        keep(&values, Layout::NK, [6, 1], &mut data, &scales);
        let signed: Vec<i8> = data.into_iter().map(u8::cast_signed).collect();
        assert_eq!(signed, [127, 127, 127, -127, 1, 0]);
    }
}
