//! Quantization schemes: how the elements of a frozen weight are stored, and how a graph spells that.
//!
//! One file a scheme; [`SCHEMES`] lists them. `<scheme>.glsl` beside it decodes the same bytes on a GPU.

mod f32;
mod int8;

pub use f32::F32;
pub use int8::Int8;

/// Which axis of a logical [K, N] weight is contiguous in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Row-major [K, N]: ONNX `MatMul`, `Gemm` without transB.
    KN,
    /// Row-major [N, K]: `Gemm` with transB, `Conv` [C_out, C_in * k], embedding tables [rows, width].
    NK,
}

impl Layout {
    /// Position of element (`k`, `n`) of a [`dims`] = [K, N] weight.
    ///
    /// [`dims`]: Scheme::get
    pub const fn index(self, dims: [usize; 2], [k, n]: [usize; 2]) -> usize {
        match self {
            Layout::KN => k * dims[1] + n,
            Layout::NK => n * dims[0] + k,
        }
    }

    /// The output n that owns the element at `index` of memory.
    pub const fn output(self, dims: [usize; 2], index: usize) -> usize {
        match self {
            Layout::KN => index % dims[1],
            Layout::NK => index / dims[0],
        }
    }

    /// The ONNX axis of the outputs, on which per-channel scales lie.
    pub const fn axis(self) -> i64 {
        match self {
            Layout::KN => 1,
            Layout::NK => 0,
        }
    }
}

/// Weights of fewer elements stay f32: their scales and alignment would eat what packing saves.
pub const MIN_QUANTIZED_ELEMENTS: usize = 256;

/// How the elements of a [K, N] weight are stored.
///
/// Scales belong to n, the output of a forward product.
pub trait Scheme: Sync {
    /// Name on the command line and in reports, such as `int8`.
    fn name(&self) -> &'static str;

    /// Bytes of packed elements, saturated where it does not fit.
    fn data_len(&self, k: usize, n: usize) -> usize;

    /// Number of f32 scales, saturated where it does not fit.
    fn scales_len(&self, k: usize, n: usize) -> usize;

    /// Alignment in bytes that the packed elements need.
    fn data_align(&self) -> usize;

    /// The dequantized element at [k, n] = `at` of a weight of shape `dims` = [K, N].
    ///
    /// # Panics
    /// When `data` or `scales` are shorter than the shape asks for, or `at` is outside of it.
    fn get(&self, data: &[u8], scales: &[f32], layout: Layout, dims: [usize; 2], at: [usize; 2]) -> f32;

    /// Dequantizes the `out.len()` elements from `first` on, in the order of memory.
    ///
    /// # Panics
    /// When `data` or `scales` are shorter than the shape asks for, or the elements lie outside of it.
    fn decode(&self, data: &[u8], scales: &[f32], layout: Layout, dims: [usize; 2], first: usize, out: &mut [f32]) {
        for (index, value) in (first..).zip(out) {
            let at = match layout {
                Layout::KN => [index / dims[1], index % dims[1]],
                Layout::NK => [index % dims[0], index / dims[0]],
            };
            *value = self.get(data, scales, layout, dims, at);
        }
    }

    /// Quantizes `values` (in `layout`) into `data` and `scales`.
    ///
    /// # Errors
    /// [`NotFinite`] when a value is NaN or infinite; `data` and `scales` then hold nothing of use.
    ///
    /// # Panics
    /// When a slice has another length than the shape asks for.
    fn encode(
        &self,
        values: &[f32],
        layout: Layout,
        dims: [usize; 2],
        data: &mut [u8],
        scales: &mut [f32],
    ) -> Result<(), NotFinite>;

    /// How a graph spells the scheme.
    fn spelling(&self) -> Spelling;
}

impl core::fmt::Debug for dyn Scheme {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// How an ONNX graph spells a scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spelling {
    /// ONNX `TensorProto.DataType` of the stored elements.
    pub data_type: i32,
    /// The op that dequantizes them, or `None` when they are used as they are.
    pub dequantize: Option<&'static str>,
    /// The operator set of that op, empty for ONNX's own.
    pub domain: &'static str,
    /// The integer attribute of that op that holds [`Layout::axis`], if it has one.
    pub axis: Option<&'static str>,
}

/// A weight that cannot be quantized, because one of its elements is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("element {index} of the weight is not finite")]
pub struct NotFinite {
    /// The first such element, in the order of memory.
    pub index: usize,
}

fn check_finite(values: &[f32]) -> Result<(), NotFinite> {
    values.iter().position(|v| !v.is_finite()).map_or(Ok(()), |index| Err(NotFinite { index }))
}

/// Every scheme, the most compact first.
pub static SCHEMES: &[&dyn Scheme] = &[&Int8, &F32];

/// The scheme of that name.
pub fn scheme(name: &str) -> Option<&'static dyn Scheme> {
    SCHEMES.iter().copied().find(|s| s.name() == name)
}

/// The scheme whose packed elements have that ONNX `TensorProto.DataType`.
pub fn scheme_of(data_type: i32) -> Option<&'static dyn Scheme> {
    SCHEMES.iter().copied().find(|s| s.spelling().data_type == data_type)
}

#[cfg(test)]
mod tests;
