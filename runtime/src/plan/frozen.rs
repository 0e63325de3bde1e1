use inlay_devices::weight::{Weight, WeightError, Window};
use inlay_format::quant::{F32, Int8, Layout, Scheme};

use crate::base::Constant;
use crate::graph::{DType, HostTensor};
use crate::ops::OpError;

/// A frozen tensor of the file: floats, or int8 with scales; possibly seen transposed.
#[derive(Clone, Debug)]
pub struct Frozen {
    name: String,
    dtype: DType,
    /// As stored.
    dims: Vec<usize>,
    window: Window,
    /// Scales, and the stored axis that they belong to.
    scales: Option<(Window, usize)>,
    /// Whether a matrix is meant transposed.
    transposed: bool,
}

/// Largest tensor whose floats are copied when the file does not align them (elements).
const MAX_COPIED: usize = 1 << 20;

impl Frozen {
    pub(crate) fn new(constant: &Constant) -> Option<Self> {
        matches!(constant.dtype, DType::F32 | DType::I8 | DType::U8).then(|| Frozen {
            name: constant.name.clone(),
            dtype: constant.dtype,
            dims: constant.dims.clone(),
            window: constant.window.clone(),
            scales: None,
            transposed: false,
        })
    }

    /// A tensor that was computed when the plan was made; `None` unless it holds floats.
    pub(crate) fn from_host(name: &str, value: &HostTensor) -> Option<Self> {
        Some(Frozen {
            name: name.to_owned(),
            dtype: DType::F32,
            dims: value.shape().to_vec(),
            window: Window::from_floats(value.floats()?),
            scales: None,
            transposed: false,
        })
    }

    /// Shape as it is meant.
    pub fn shape(&self) -> Vec<usize> {
        let mut dims = self.dims.clone();
        if self.transposed {
            dims.reverse();
        }
        dims
    }

    /// Name of the initializer.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Element type as stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether it can be used: floats, or integers with scales.
    pub(crate) fn is_dequantized(&self) -> bool {
        self.dtype == DType::F32 || self.scales.is_some()
    }

    /// Whether every stored element is zero.
    pub(crate) fn is_zero(&self) -> bool {
        self.window.bytes().iter().all(|&b| b == 0)
    }

    /// The matrix transposed.
    pub(crate) fn transpose(&self) -> Self {
        debug_assert_eq!(self.dims.len(), 2);
        Frozen { transposed: !self.transposed, ..self.clone() }
    }

    /// The same elements in another shape; `None` where scales or a transposition are in the way.
    pub(crate) fn reshape(&self, shape: &[usize]) -> Option<Self> {
        (self.scales.is_none() && !self.transposed).then(|| Frozen { dims: shape.to_vec(), ..self.clone() })
    }

    /// Integers with a scale for each index of `axis`.
    pub(crate) fn dequantize(&self, scales: &HostOrFrozen<'_>, axis: usize) -> Result<Self, OpError> {
        let unsupported = |what| OpError::Unsupported { what, way_out: "re-export the model" };
        if self.dtype != DType::I8 || self.scales.is_some() || self.transposed {
            return Err(unsupported("DequantizeLinear of anything but an int8 initializer"));
        }
        let window = match scales {
            HostOrFrozen::Host(value) => {
                Window::from_floats(value.floats().ok_or_else(|| unsupported("a scale that is no float"))?)
            }
            HostOrFrozen::Frozen(scales) => scales.aligned()?,
        };
        if window.bytes().len() != 4 * self.dims[axis] {
            return Err(unsupported("DequantizeLinear without one scale per channel"));
        }
        Ok(Frozen { scales: Some((window, axis)), ..self.clone() })
    }

    /// The weight whose outputs n are the indices of `n_axis` (0 or the last); all other axes together are k.
    ///
    /// # Errors
    /// When scales belong to another axis, or floats are not aligned.
    pub(crate) fn weight(&self, n_axis: usize) -> Result<Weight, OpError> {
        let rank = self.dims.len();
        debug_assert!(rank >= 2 && (n_axis == 0 || n_axis == rank - 1));
        // A transposed matrix has its n on the other stored axis.
        let stored = if self.transposed { rank - 1 - n_axis } else { n_axis };
        if self.scales.as_ref().is_some_and(|(_, axis)| *axis != stored) {
            return Err(OpError::Unsupported {
                what: "a weight whose scales do not belong to its outputs",
                way_out: "re-export the model with this version's converter",
            });
        }
        let layout = if stored == 0 { Layout::NK } else { Layout::KN };
        let n = self.dims[stored];
        let k = self.dims.iter().product::<usize>() / n.max(1);
        let scheme: &'static dyn Scheme = if self.scales.is_some() { &Int8 } else { &F32 };
        let data = if self.scales.is_some() { self.window.clone() } else { self.aligned()? };
        let scales = self.scales.as_ref().map(|(window, _)| window.clone());
        Weight::new(self.name.clone(), scheme, layout, [k, n], data, scales).map_err(|error| match error {
            WeightError::Misaligned { .. } => misaligned(),
            _ => OpError::Unsupported { what: "a weight of this size", way_out: "re-export the model" },
        })
    }

    /// All elements as floats, in the order of [`Frozen::shape`].
    ///
    /// # Errors
    /// When the integers have no scale.
    pub(crate) fn floats(&self) -> Result<Vec<f32>, OpError> {
        let stored: Vec<f32> = match (&self.scales, self.dtype) {
            (None, DType::F32) => self.window.bytes().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            (Some((scales, axis)), DType::I8) => {
                let scales = scales.floats().ok_or_else(misaligned)?;
                let inner: usize = self.dims[axis + 1..].iter().product();
                let scale = |i: usize| scales[i / inner.max(1) % self.dims[*axis]];
                self.window.bytes().iter().enumerate().map(|(i, &q)| f32::from(q.cast_signed()) * scale(i)).collect()
            }
            _ => {
                return Err(OpError::Unsupported {
                    what: "a quantized tensor without DequantizeLinear",
                    way_out: "re-export the model",
                });
            }
        };
        if !self.transposed {
            return Ok(stored);
        }
        let (rows, columns) = (self.dims[0], self.dims[1]);
        Ok((0..columns).flat_map(|c| (0..rows).map(move |r| (r, c))).map(|(r, c)| stored[r * columns + c]).collect())
    }

    /// The stored floats at an address that kernels can read.
    fn aligned(&self) -> Result<Window, OpError> {
        if self.window.floats().is_some() {
            return Ok(self.window.clone());
        }
        if self.dims.iter().product::<usize>() > MAX_COPIED {
            return Err(misaligned());
        }
        let floats: Vec<f32> = self.window.bytes().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        Ok(Window::from_floats(&floats))
    }
}

fn misaligned() -> OpError {
    OpError::Unsupported {
        what: "a large float tensor that is not aligned to 4 bytes",
        way_out: "re-export the model with this version's converter",
    }
}

/// A constant in one of its two forms.
pub(crate) enum HostOrFrozen<'a> {
    Host(&'a HostTensor),
    Frozen(&'a Frozen),
}
