use super::{EncodeError, Form, Layout, Parts, PartsMut, Scheme, Sizes, Spelling, ZeroPoints, check_finite};

/// uint8 with an f32 scale and a uint8 zero point per output n, or per block along k: what models that were quantized
/// elsewhere hold, whose integers are kept.
///
/// `W[k, n] = (q - zero_point) scale`. Blocks are those of [`Int4`](super::Int4), only in [`Layout::NK`], and only where K
/// is a multiple of them. Scales and zero points: `[N]`, or `[N, K / block]`, one byte a zero point.
///
/// [`encode`](Scheme::encode) spreads the range of the values, which includes 0, over the levels.
#[derive(Clone, Copy, Debug)]
pub struct Uint8;

const fn form(block: usize) -> Form {
    Form { block, zero_points: ZeroPoints::Integer }
}

impl Scheme for Uint8 {
    fn name(&self) -> &'static str {
        "uint8"
    }

    fn forms(&self) -> &'static [Form] {
        const { &[form(0), form(32), form(16), form(64), form(128), form(256)] }
    }

    fn sizes(&self, layout: Layout, [k, n]: [usize; 2], form: Form) -> Option<Sizes> {
        let blocked = layout == Layout::NK && k > 0 && form.block > 0 && k.is_multiple_of(form.block);
        let fits = self.forms().contains(&form) && (form.block == 0 || blocked);
        fits.then(|| {
            let scales = if blocked { n.saturating_mul(k / form.block) } else { n };
            Sizes { data: k.saturating_mul(n), scales, zero_points: scales }
        })
    }

    fn data_align(&self) -> usize {
        1
    }

    fn get(&self, parts: Parts<'_>, layout: Layout, dims: [usize; 2], [k, n]: [usize; 2]) -> f32 {
        let blocks = parts.scales.len() / dims[1];
        let at = n * blocks + k * blocks / dims[0];
        (f32::from(parts.data[layout.index(dims, [k, n])]) - f32::from(parts.zero_points[at])) * parts.scales[at]
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
        assert!(self.form_of(layout, dims, sizes).is_some(), "lengths follow from the shape");
        check_finite(values)?;
        let blocks = scales.len() / n.max(1);
        for (at, (scale, zero_point)) in scales.iter_mut().zip(zero_points).enumerate() {
            let (at_n, at_block) = (at / blocks, at % blocks);
            let rows = at_block * (k / blocks)..(at_block + 1) * (k / blocks);
            let elements = rows.map(|at_k| layout.index(dims, [at_k, at_n]));
            let (low, high) =
                elements.clone().fold((0f32, 0f32), |(low, high), i| (low.min(values[i]), high.max(values[i])));
            // The difference of two large numbers may overflow, the quotient of small ones underflow.
            let step = high / 255.0 - low / 255.0;
            *scale = if step == 0.0 { 1.0 } else { step };
            let zero = libm::rintf(-low / *scale).clamp(0.0, 255.0);
            *zero_point = zero as u8;
            for i in elements {
                data[i] = libm::rintf(values[i] / *scale + zero).clamp(0.0, 255.0) as u8;
            }
        }
        Ok(())
    }

    fn spellings(&self) -> &'static [Spelling] {
        &[Spelling { data_type: 2, op_type: Some("DequantizeLinear"), domain: "", is_product: false }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_of_a_block_is_spread_over_the_levels() {
        let values: Vec<f32> = (0..32).map(|i| if i < 16 { i as f32 - 5.0 } else { 2.0 * i as f32 }).collect();
        let (mut data, mut scales, mut zero_points) = (vec![0; 32], vec![0.0; 2], vec![0; 2]);
        let parts = PartsMut { data: &mut data, scales: &mut scales, zero_points: &mut zero_points };
        Uint8.encode(&values, Layout::NK, [32, 1], parts).unwrap();
        assert_eq!((scales[0], zero_points[0]), (10.0 / 255.0 + 5.0 / 255.0, 85));
        assert_eq!((scales[1], zero_points[1]), (62.0 / 255.0, 0));
        assert_eq!((data[0], data[15], data[31]), (0, 255, 255));
    }
}
