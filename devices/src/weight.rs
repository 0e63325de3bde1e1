//! Frozen weights as typed windows into a mapping that somebody else owns.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use inlay_format::quant::{Layout, Scheme};

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
    /// Data or scales have the wrong size.
    #[error("weight \"{name}\": {what} has {found} bytes, {expected} expected")]
    Size {
        /// Weight name.
        name: String,
        /// `data` or `scales`.
        what: &'static str,
        /// Bytes found.
        found: usize,
        /// Bytes expected.
        expected: usize,
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

/// A frozen matrix of logical shape [K, N], stored by a quantization scheme.
#[derive(Clone)]
pub struct Weight {
    name: String,
    scheme: &'static dyn Scheme,
    layout: Layout,
    k: usize,
    n: usize,
    data: Window,
    scales: Option<Window>,
}

impl Weight {
    /// A weight of logical shape [`k`, `n`] whose bytes are `data` and, for schemes that have them, f32 `scales`.
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
        data: Window,
        scales: Option<Window>,
    ) -> Result<Self, WeightError> {
        let name = name.into();
        let check = |what, found: usize, expected: usize| {
            if found == expected {
                Ok(())
            } else {
                Err(WeightError::Size { name: name.clone(), what, found, expected })
            }
        };
        check("data", data.bytes().len(), scheme.data_len(k, n))?;
        let scale_bytes = 4 * scheme.scales_len(k, n);
        check("scales", scales.as_ref().map_or(0, |s| s.bytes().len()), scale_bytes)?;
        if scales.as_ref().is_some_and(|s| s.floats().is_none()) {
            return Err(WeightError::Misaligned { name, what: "scales" });
        }
        if !(data.bytes().as_ptr() as usize).is_multiple_of(scheme.data_align()) {
            return Err(WeightError::Misaligned { name, what: "data" });
        }
        Ok(Weight { name, scheme, layout, k, n, data, scales })
    }

    /// The initializer's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How the elements are stored.
    pub fn scheme(&self) -> &'static dyn Scheme {
        self.scheme
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

    /// The window of packed elements.
    pub fn data(&self) -> &Window {
        &self.data
    }

    /// The window of scales, if the scheme has any.
    pub fn scales(&self) -> Option<&Window> {
        self.scales.as_ref()
    }

    /// A borrowed view for kernels.
    pub fn view(&self) -> WeightView<'_> {
        WeightView {
            scheme: self.scheme,
            layout: self.layout,
            k: self.k,
            n: self.n,
            data: self.data.bytes(),
            scales: self
                .scales
                .as_ref()
                .map_or(&[], |s| s.floats().expect("alignment is checked when the weight is made")),
        }
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
    /// Which axis is contiguous.
    pub layout: Layout,
    /// Logical rows.
    pub k: usize,
    /// Logical columns.
    pub n: usize,
    /// Packed elements.
    pub data: &'a [u8],
    /// Scales, one or more per column; empty for float schemes.
    pub scales: &'a [f32],
}

impl WeightView<'_> {
    /// The dequantized element at row `k`, column `n`.
    pub fn get(&self, k: usize, n: usize) -> f32 {
        self.scheme.get(self.data, self.scales, self.layout, [self.k, self.n], [k, n])
    }
}
