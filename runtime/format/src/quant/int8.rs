use super::{EncodeError, Form, Layout, Parts, PartsMut, Scheme, Sizes, Spelling, check_finite};

/// Symmetric int8 with one f32 scale per output n.
///
/// `scale[n] = max_k |W[k, n]| / 127` (1 for an all-zero column), `q = clamp(round_half_even(W / scale), -127, 127)`.
#[derive(Clone, Copy, Debug)]
pub struct Int8;

impl Scheme for Int8 {
    fn name(&self) -> &'static str {
        "int8"
    }

    fn sizes(&self, _layout: Layout, [k, n]: [usize; 2], form: Form) -> Option<Sizes> {
        (form == Form::WHOLE).then_some(Sizes { data: k.saturating_mul(n), scales: n, zero_points: 0 })
    }

    fn data_align(&self) -> usize {
        1
    }

    fn get(&self, parts: Parts<'_>, layout: Layout, dims: [usize; 2], at: [usize; 2]) -> f32 {
        f32::from(parts.data[layout.index(dims, at)].cast_signed()) * parts.scales[at[1]]
    }

    fn encode(
        &self,
        values: &[f32],
        layout: Layout,
        dims: [usize; 2],
        PartsMut { data, scales, .. }: PartsMut<'_>,
    ) -> Result<(), EncodeError> {
        let [k, n] = dims;
        assert!(values.len() == k * n && data.len() == k * n && scales.len() == n, "lengths follow from the shape");
        scales.fill(0.0);
        check_finite(values)?;
        // Passes over memory in order, whatever the layout.
        let column = |i: usize| layout.output(dims, i);
        for (i, v) in values.iter().enumerate() {
            let scale = &mut scales[column(i)];
            *scale = scale.max(v.abs());
        }
        for scale in scales.iter_mut() {
            // The quotient of the smallest magnitudes underflows to 0 too.
            *scale = if *scale / 127.0 == 0.0 { 1.0 } else { *scale / 127.0 };
        }
        for (i, (v, q)) in values.iter().zip(data).enumerate() {
            *q = (libm::rintf(v / scales[column(i)]).clamp(-127.0, 127.0) as i8).cast_unsigned();
        }
        Ok(())
    }

    fn spellings(&self) -> &'static [Spelling] {
        &[Spelling { data_type: 3, op_type: Some("DequantizeLinear"), domain: "", is_product: false }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<'a>(data: &'a mut [u8], scales: &'a mut [f32]) -> PartsMut<'a> {
        PartsMut { data, scales, zero_points: &mut [] }
    }

    #[test]
    fn the_largest_of_a_column_is_127_in_both_layouts() {
        let kn = [1.0, -8.0, 0.5, 4.0, -2.0, 0.0];
        let nk = [1.0, 0.5, -2.0, -8.0, 4.0, 0.0];
        for (layout, values) in [(Layout::KN, kn), (Layout::NK, nk)] {
            let (mut data, mut scales) = ([0; 6], [0.0; 2]);
            Int8.encode(&values, layout, [3, 2], parts(&mut data, &mut scales)).unwrap();
            assert_eq!(scales, [2.0 / 127.0, 8.0 / 127.0]);
            let parts = Parts { data: &data, scales: &scales, zero_points: &[] };
            let get = |k, n| Int8.get(parts, layout, [3, 2], [k, n]);
            assert!((get(2, 0) - -2.0).abs() < 1e-6, "{}", get(2, 0));
            assert!((get(0, 1) - -8.0).abs() < 1e-6, "{}", get(0, 1));
            assert!((get(1, 1) - 4.0).abs() < 4.1 / 127.0, "{}", get(1, 1));
        }
    }

    #[test]
    fn halves_round_to_even_and_zero_columns_stay_zero() {
        let values = [127.0, 0.0, 2.5, 0.0, 3.5, 0.0];
        let (mut data, mut scales) = ([0; 6], [0.0; 2]);
        Int8.encode(&values, Layout::KN, [3, 2], parts(&mut data, &mut scales)).unwrap();
        assert_eq!(data, [127, 0, 2, 0, 4, 0]);
        assert_eq!(scales, [1.0, 1.0]);
    }
}
