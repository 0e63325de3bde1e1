//! Frozen weights as typed windows into a mapping that somebody else owns.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use inlay_format::quant::{Form, Layout, Parts, Scheme, Sizes, ZeroPoints};

/// Bytes that stay where they are while anyone holds a [`Window`] into them, such as a memory map.
pub trait Mapping: Send + Sync {
    /// All bytes of the mapping.
    fn bytes(&self) -> &[u8];
}

impl Mapping for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// A checked range of bytes in a shared mapping. Cloning shares the mapping.
#[derive(Clone)]
pub struct Window {
    mapping: Arc<dyn Mapping>,
    range: Range<usize>,
}

impl Window {
    /// The bytes `range` of `mapping`, or `None` when they are not inside it.
    pub fn new(mapping: Arc<dyn Mapping>, range: Range<usize>) -> Option<Self> {
        mapping.bytes().get(range.clone())?;
        Some(Window { mapping, range })
    }

    /// A window over bytes of its own. Little-endian floats become readable by [`Window::floats`] on any host.
    pub fn from_floats(values: &[f32]) -> Self {
        struct Floats(Vec<f32>);
        impl Mapping for Floats {
            fn bytes(&self) -> &[u8] {
                bytemuck::cast_slice(&self.0)
            }
        }
        Window { mapping: Arc::new(Floats(values.to_vec())), range: 0..values.len() * 4 }
    }

    /// The first `len` bytes of this window; all of it when it is shorter.
    pub fn prefix(&self, len: usize) -> Self {
        let end = self.range.end.min(self.range.start + len);
        Window { mapping: Arc::clone(&self.mapping), range: self.range.start..end }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.mapping.bytes()[self.range.clone()]
    }

    /// The bytes as f32, or `None` when they are misaligned or not a whole number of floats.
    pub fn floats(&self) -> Option<&[f32]> {
        bytemuck::try_cast_slice(self.bytes()).ok()
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window({:?} at {:p})", self.range, self.bytes().as_ptr())
    }
}

/// Why bytes are not a usable weight.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// The parts have sizes that no form of the scheme has for this shape.
    #[error(
        "weight \"{name}\": no {scheme} weight of shape [{k}, {n}] has {found:?}; \
         re-export the model with this version's converter"
    )]
    Sizes {
        /// Weight name.
        name: String,
        /// Name of the scheme.
        scheme: &'static str,
        /// Logical rows.
        k: usize,
        /// Logical columns.
        n: usize,
        /// Sizes found.
        found: Sizes,
    },
    /// Floats do not start at a multiple of 4 bytes.
    #[error("weight \"{name}\": {what} is not aligned to 4 bytes; re-export the model with this version's converter")]
    Misaligned {
        /// Weight name.
        name: String,
        /// `data` or `scales`.
        what: &'static str,
    },
}

/// The windows of a weight's parts.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Packed elements.
    pub data: Window,
    /// Little-endian f32 scales, if the scheme has any.
    pub scales: Option<Window>,
    /// Zero points, if the form has any.
    pub zero_points: Option<Window>,
}

impl Packed {
    /// Elements alone.
    pub fn elements(data: Window) -> Self {
        Packed { data, scales: None, zero_points: None }
    }
}

/// A frozen matrix of logical shape [K, N], stored by a quantization scheme.
#[derive(Clone)]
pub struct Weight {
    name: String,
    scheme: &'static dyn Scheme,
    form: Form,
    layout: Layout,
    k: usize,
    n: usize,
    packed: Packed,
}

impl Weight {
    /// In the `flags` of a kernel call: the weight has zero points.
    pub const ZERO_POINTS: u32 = 0x100;
    /// In the `flags` of a kernel call: the zero points of each n fill half of their last byte.
    pub const PADDED: u32 = 0x200;
    /// In the `flags` of a kernel call: the weight has zero points, which are floats.
    pub const FLOAT_ZERO_POINTS: u32 = 0x400;
    /// In the `flags` of a kernel call: where the logarithm of the block begins, 4 bits.
    pub const BLOCK_SHIFT: u32 = 12;
    /// In the `flags` of a kernel call: all bits that [`Weight::form_flags`] may set.
    pub const FORM_MASK: u32 = Self::ZERO_POINTS | Self::PADDED | Self::FLOAT_ZERO_POINTS | 15 << Self::BLOCK_SHIFT;

    /// A weight of logical shape [`k`, `n`]; the sizes of its parts say which form of `scheme` it has.
    ///
    /// An embedding table of `v` rows of width `d` is the weight with `layout` [`Layout::NK`], `n = v`, `k = d`.
    ///
    /// # Errors
    /// When sizes or alignment do not fit the scheme.
    pub fn new(
        name: impl Into<String>,
        scheme: &'static dyn Scheme,
        layout: Layout,
        [k, n]: [usize; 2],
        packed: Packed,
    ) -> Result<Self, WeightError> {
        let name = name.into();
        let len = |window: &Option<Window>| window.as_ref().map_or(0, |w| w.bytes().len());
        if packed.scales.as_ref().is_some_and(|s| s.floats().is_none()) {
            return Err(WeightError::Misaligned { name, what: "scales" });
        }
        if !(packed.data.bytes().as_ptr() as usize).is_multiple_of(scheme.data_align()) {
            return Err(WeightError::Misaligned { name, what: "data" });
        }
        let found = Sizes {
            data: packed.data.bytes().len(),
            scales: len(&packed.scales) / 4,
            zero_points: len(&packed.zero_points),
        };
        match scheme.form_of(layout, [k, n], found) {
            Some(form) => Ok(Weight { name, scheme, form, layout, k, n, packed }),
            None => Err(WeightError::Sizes { name, scheme: scheme.name(), k, n, found }),
        }
    }

    /// The initializer's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How the elements are stored.
    pub fn scheme(&self) -> &'static dyn Scheme {
        self.scheme
    }

    /// Which elements share scales and zero points.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The form as the bodies of kernels on a GPU are told it, in the `flags` of their parameters.
    pub fn form_flags(&self) -> u32 {
        let Form { block, zero_points } = self.form;
        let Some(log) = block.checked_ilog2() else { return 0 };
        let zero_points = match (zero_points, (self.k / block).is_multiple_of(2)) {
            (ZeroPoints::None, _) => 0,
            (ZeroPoints::Integer, true) => Self::ZERO_POINTS,
            (ZeroPoints::Integer, false) => Self::ZERO_POINTS | Self::PADDED,
            (ZeroPoints::Float, _) => Self::FLOAT_ZERO_POINTS,
        };
        log << Self::BLOCK_SHIFT | zero_points
    }

    /// Which axis is contiguous.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Logical rows: the contracted axis of a forward product.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Logical columns: the output axis of a forward product, and the axis that scales belong to.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The windows of its parts.
    pub fn packed(&self) -> &Packed {
        &self.packed
    }

    /// A borrowed view for kernels.
    pub fn view(&self) -> WeightView<'_> {
        let Packed { data, scales, zero_points } = &self.packed;
        let parts = Parts {
            data: data.bytes(),
            scales: scales.as_ref().map_or(&[], |s| s.floats().expect("alignment is checked when the weight is made")),
            zero_points: zero_points.as_ref().map_or(&[], Window::bytes),
        };
        WeightView { scheme: self.scheme, form: self.form, layout: self.layout, k: self.k, n: self.n, parts }
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weight({} {} {:?} [{}, {}])", self.name, self.scheme.name(), self.layout, self.k, self.n)
    }
}

/// A weight as kernels see it.
#[derive(Clone, Copy)]
pub struct WeightView<'a> {
    /// How the elements are stored.
    pub scheme: &'static dyn Scheme,
    /// Which elements share scales and zero points.
    pub form: Form,
    /// Which axis is contiguous.
    pub layout: Layout,
    /// Logical rows.
    pub k: usize,
    /// Logical columns.
    pub n: usize,
    /// Packed elements, scales, zero points.
    pub parts: Parts<'a>,
}

impl WeightView<'_> {
    /// The dequantized element at row `k`, column `n`.
    pub fn get(&self, k: usize, n: usize) -> f32 {
        self.scheme.get(self.parts, self.layout, [self.k, self.n], [k, n])
    }
}
