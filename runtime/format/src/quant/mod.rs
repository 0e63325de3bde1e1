//! Quantization schemes: how the elements of a frozen weight are stored, and how a graph spells that.
//!
//! One file a scheme; [`SCHEMES`] lists them. `<scheme>.glsl` beside it decodes the same bytes on a GPU.

mod f16;
mod f32;
mod int4;
mod int8;
mod uint8;

pub use f16::F16;
pub use f32::F32;
pub use int4::{Int4, MIDDLE};
pub use int8::Int8;
pub use uint8::Uint8;

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

/// Which elements of a weight share a scale, and whether they share a zero point too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Form {
    /// Elements along k that share a scale; 0 for all of k.
    pub block: usize,
    /// Whether those that share a scale share a zero point too.
    pub zero_points: ZeroPoints,
}

/// How the zero points of a weight are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZeroPoints {
    /// Not at all: the scheme has one for all.
    None,
    /// Each as an integer of the width of an element.
    Integer,
    /// Each as a little-endian f32, between levels too.
    Float,
}

impl Form {
    /// One scale per output n, or none.
    pub const WHOLE: Form = Form { block: 0, zero_points: ZeroPoints::None };
}

/// How large the parts of a weight are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of packed elements.
    pub data: usize,
    /// Number of f32 scales.
    pub scales: usize,
    /// Bytes of zero points.
    pub zero_points: usize,
}

/// A packed weight.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts<'a> {
    /// Packed elements.
    pub data: &'a [u8],
    /// Scales: `[N]`, or `[N, blocks]`; none for float schemes.
    pub scales: &'a [f32],
    /// Zero points; none where they follow from the scheme.
    pub zero_points: &'a [u8],
}

/// A packed weight, to be written. The lengths say which [`Form`] it has.
#[derive(Debug, Default)]
pub struct PartsMut<'a> {
    /// Packed elements.
    pub data: &'a mut [u8],
    /// Scales.
    pub scales: &'a mut [f32],
    /// Zero points.
    pub zero_points: &'a mut [u8],
}

/// How the elements of a [K, N] weight are stored.
///
/// Scales belong to n, the output of a forward product, and to a block of k where the scheme has blocks.
pub trait Scheme: Sync {
    /// Name on the command line and in reports, such as `int8`.
    fn name(&self) -> &'static str;

    /// The forms that the scheme has, the usual one first.
    fn forms(&self) -> &'static [Form] {
        &[Form::WHOLE]
    }

    /// How large the parts of a weight of shape `dims` = [K, N] are, saturated where they do not fit; `None` when the
    /// scheme cannot store such a weight in this form.
    fn sizes(&self, layout: Layout, dims: [usize; 2], form: Form) -> Option<Sizes>;

    /// The form of a weight whose parts have these sizes, if there is one.
    fn form_of(&self, layout: Layout, dims: [usize; 2], sizes: Sizes) -> Option<Form> {
        self.forms().iter().copied().find(|&form| self.sizes(layout, dims, form) == Some(sizes))
    }

    /// Alignment in bytes that the packed elements need.
    fn data_align(&self) -> usize;

    /// The dequantized element at [k, n] = `at` of a weight of shape `dims` = [K, N].
    ///
    /// # Panics
    /// When a part is shorter than the shape asks for, or `at` is outside of it.
    fn get(&self, parts: Parts<'_>, layout: Layout, dims: [usize; 2], at: [usize; 2]) -> f32;

    /// Dequantizes the `out.len()` elements from `first` on, in the order of memory.
    ///
    /// # Panics
    /// When a part is shorter than the shape asks for, or the elements lie outside of it.
    fn decode(&self, parts: Parts<'_>, layout: Layout, dims: [usize; 2], first: usize, out: &mut [f32]) {
        for (index, value) in (first..).zip(out) {
            let at = match layout {
                Layout::KN => [index / dims[1], index % dims[1]],
                Layout::NK => [index % dims[0], index / dims[0]],
            };
            *value = self.get(parts, layout, dims, at);
        }
    }

    /// Quantizes `values` (in `layout`) into `parts`.
    ///
    /// # Errors
    /// When a value is NaN or infinite, or too large for the scheme; `parts` then hold nothing of use.
    ///
    /// # Panics
    /// When the lengths of `parts` are those of no form for this shape.
    fn encode(&self, values: &[f32], layout: Layout, dims: [usize; 2], parts: PartsMut<'_>) -> Result<(), EncodeError>;

    /// How a graph spells the scheme, the usual way first.
    fn spellings(&self) -> &'static [Spelling];
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
    /// The op that reads them, or `None` when they are used as they are.
    pub op_type: Option<&'static str>,
    /// The domain of that op, empty for ONNX's own.
    pub domain: &'static str,
    /// Whether that op is the product itself, and not a step before it.
    pub is_product: bool,
}

/// A weight that cannot be stored by a scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// An element is NaN or infinite.
    #[error("element {index} of the weight is not finite")]
    NotFinite {
        /// The first such element, in the order of memory.
        index: usize,
    },
    /// An element is beyond the largest number of the scheme.
    #[error("element {index} of the weight is larger than the scheme's largest number")]
    TooLarge {
        /// The first such element, in the order of memory.
        index: usize,
    },
}

fn check_finite(values: &[f32]) -> Result<(), EncodeError> {
    values.iter().position(|v| !v.is_finite()).map_or(Ok(()), |index| Err(EncodeError::NotFinite { index }))
}

/// Every scheme.
pub static SCHEMES: &[&dyn Scheme] = &[&Int8, &Uint8, &Int4, &F16, &F32];

/// The scheme of that name.
pub fn scheme(name: &str) -> Option<&'static dyn Scheme> {
    SCHEMES.iter().copied().find(|s| s.name() == name)
}

#[cfg(test)]
mod tests;
