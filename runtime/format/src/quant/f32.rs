use super::{Layout, NotFinite, Scheme, Spelling, check_finite};

/// Plain f32: what is not quantized.
#[derive(Clone, Copy, Debug)]
pub struct F32;

impl Scheme for F32 {
    fn name(&self) -> &'static str {
        "f32"
    }

    fn data_len(&self, k: usize, n: usize) -> usize {
        k.saturating_mul(n).saturating_mul(4)
    }

    fn scales_len(&self, _k: usize, _n: usize) -> usize {
        0
    }

    fn data_align(&self) -> usize {
        4
    }

    fn get(&self, data: &[u8], _scales: &[f32], layout: Layout, dims: [usize; 2], at: [usize; 2]) -> f32 {
        let at = 4 * layout.index(dims, at);
        f32::from_le_bytes(data[at..at + 4].try_into().expect("4 bytes"))
    }

    fn encode(
        &self,
        values: &[f32],
        _layout: Layout,
        dims: [usize; 2],
        data: &mut [u8],
        _scales: &mut [f32],
    ) -> Result<(), NotFinite> {
        assert!(values.len() == dims[0] * dims[1] && data.len() == 4 * values.len(), "lengths follow from the shape");
        check_finite(values)?;
        for (v, bytes) in values.iter().zip(data.chunks_exact_mut(4)) {
            bytes.copy_from_slice(&v.to_le_bytes());
        }
        Ok(())
    }

    fn spelling(&self) -> Spelling {
        Spelling { data_type: 1, dequantize: None, domain: "", axis: None }
    }
}
