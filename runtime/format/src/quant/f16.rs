use half::f16;

use super::{EncodeError, Form, Layout, Parts, PartsMut, Scheme, Sizes, Spelling, check_finite};

/// IEEE half precision, rounded to nearest even.
#[derive(Clone, Copy, Debug)]
pub struct F16;

impl Scheme for F16 {
    fn name(&self) -> &'static str {
        "f16"
    }

    fn sizes(&self, _layout: Layout, [k, n]: [usize; 2], form: Form) -> Option<Sizes> {
        let data = k.saturating_mul(n).saturating_mul(2);
        (form == Form::WHOLE).then_some(Sizes { data, scales: 0, zero_points: 0 })
    }

    fn data_align(&self) -> usize {
        1
    }

    fn get(&self, parts: Parts<'_>, layout: Layout, dims: [usize; 2], at: [usize; 2]) -> f32 {
        let at = 2 * layout.index(dims, at);
        f16::from_le_bytes([parts.data[at], parts.data[at + 1]]).to_f32()
    }

    fn encode(
        &self,
        values: &[f32],
        _layout: Layout,
        dims: [usize; 2],
        PartsMut { data, .. }: PartsMut<'_>,
    ) -> Result<(), EncodeError> {
        assert!(values.len() == dims[0] * dims[1] && data.len() == 2 * values.len(), "lengths follow from the shape");
        check_finite(values)?;
        for (index, (v, bytes)) in values.iter().zip(data.chunks_exact_mut(2)).enumerate() {
            let half = f16::from_f32(*v);
            if half.is_infinite() {
                return Err(EncodeError::TooLarge { index });
            }
            bytes.copy_from_slice(&half.to_le_bytes());
        }
        Ok(())
    }

    fn spellings(&self) -> &'static [Spelling] {
        &[Spelling { data_type: 10, op_type: Some("Cast"), domain: "", is_product: false }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_halves_cannot_hold_is_refused() {
        let mut data = [0; 4];
        let mut encode = |values: [f32; 2]| {
            let parts = PartsMut { data: &mut data, ..PartsMut::default() };
            F16.encode(&values, Layout::KN, [2, 1], parts)
        };
        assert_eq!(encode([65504.0, -65504.0]), Ok(()));
        assert_eq!(encode([1.0, 65520.0]), Err(EncodeError::TooLarge { index: 1 }));
    }
}
