use super::{EncodeError, Form, Layout, Parts, PartsMut, Scheme, Sizes, Spelling, check_finite};

/// Plain f32: what is not quantized.
#[derive(Clone, Copy, Debug)]
pub struct F32;

impl Scheme for F32 {
    fn name(&self) -> &'static str {
        "f32"
    }

    fn sizes(&self, _layout: Layout, [k, n]: [usize; 2], form: Form) -> Option<Sizes> {
        let data = k.saturating_mul(n).saturating_mul(4);
        (form == Form::WHOLE).then_some(Sizes { data, scales: 0, zero_points: 0 })
    }

    fn data_align(&self) -> usize {
        4
    }

    fn get(&self, parts: Parts<'_>, layout: Layout, dims: [usize; 2], at: [usize; 2]) -> f32 {
        let at = 4 * layout.index(dims, at);
        f32::from_le_bytes(parts.data[at..at + 4].try_into().expect("4 bytes"))
    }

    fn encode(
        &self,
        values: &[f32],
        _layout: Layout,
        dims: [usize; 2],
        PartsMut { data, .. }: PartsMut<'_>,
    ) -> Result<(), EncodeError> {
        assert!(values.len() == dims[0] * dims[1] && data.len() == 4 * values.len(), "lengths follow from the shape");
        check_finite(values)?;
        for (v, bytes) in values.iter().zip(data.chunks_exact_mut(4)) {
            bytes.copy_from_slice(&v.to_le_bytes());
        }
        Ok(())
    }

    fn spellings(&self) -> &'static [Spelling] {
        &[Spelling { data_type: 1, op_type: None, domain: "", is_product: false }]
    }
}
