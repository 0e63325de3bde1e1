use half::f16;
use inlay_devices::weight::{Packed, Weight, WeightError, Window};
use inlay_format::quant::{F16, F32, Int4, Int8, Layout, Scheme, Uint8};

use crate::base::Constant;
use crate::graph::{DType, HostTensor};
use crate::ops::{NodeView, OpError};

/// A frozen tensor of the file: floats, or quantized elements with what makes floats of them; possibly seen transposed.
#[derive(Clone, Debug)]
pub struct Frozen {
    name: String,
    dtype: DType,
    /// As stored.
    dims: Vec<usize>,
    window: Window,
    packing: Packing,
    /// Whether a matrix is meant transposed.
    transposed: bool,
}

/// What makes floats of stored elements.
#[derive(Clone, Debug)]
enum Packing {
    /// Nothing: they are f32, or not dequantized yet.
    None,
    /// f16, each a float.
    Half,
    /// int8 with a scale for each index of a stored axis.
    PerChannel { scales: Window, axis: usize },
    /// uint8 with a scale and a zero point for each index of the stored axis `n_axis`, or in blocks along the other one.
    Bytes { scales: Window, zero_points: Window, n_axis: usize },
    /// int4 in blocks along the second of two axes, as [`Int4`] has them.
    Blocked { scales: Window, zero_points: Option<Window> },
}

/// Largest tensor whose floats are copied when the file does not align them (elements).
const MAX_COPIED: usize = 1 << 20;

impl Frozen {
    pub(crate) fn new(constant: &Constant) -> Option<Self> {
        let stored = matches!(constant.dtype, DType::F32 | DType::F16 | DType::I8 | DType::U8 | DType::U4);
        stored.then(|| Frozen {
            name: constant.name.clone(),
            dtype: constant.dtype,
            dims: constant.dims.clone(),
            window: constant.window.clone(),
            packing: Packing::None,
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
            packing: Packing::None,
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

    /// Whether it can be used: floats, or what floats are made of.
    pub(crate) fn is_dequantized(&self) -> bool {
        self.dtype == DType::F32 || !matches!(self.packing, Packing::None)
    }

    /// Whether every stored element is zero.
    pub(crate) fn is_zero(&self) -> bool {
        self.window.bytes().iter().all(|&b| b == 0)
    }

    /// Whether the elements are floats as stored, each of them `x`.
    pub(crate) fn is_all(&self, x: f32) -> bool {
        let is_x = |bytes: &[u8; 4]| f32::from_le_bytes(*bytes) == x;
        self.dtype == DType::F32 && self.window.bytes().as_chunks().0.iter().all(is_x)
    }

    /// The matrix transposed.
    pub(crate) fn transpose(&self) -> Self {
        debug_assert_eq!(self.dims.len(), 2);
        Frozen { transposed: !self.transposed, ..self.clone() }
    }

    /// The same elements in another shape; `None` where scales or a transposition are in the way.
    pub(crate) fn reshape(&self, shape: &[usize]) -> Option<Self> {
        (matches!(self.packing, Packing::None | Packing::Half) && !self.transposed)
            .then(|| Frozen { dims: shape.to_vec(), ..self.clone() })
    }

    /// f16 as floats; `None` for other types.
    pub(crate) fn halves(&self) -> Option<Self> {
        (self.dtype == DType::F16).then(|| Frozen { packing: Packing::Half, ..self.clone() })
    }

    /// Integers with a scale, and where they are unsigned a zero point, for each index of `axis`.
    pub(crate) fn dequantize(
        &self,
        scales: &HostOrFrozen<'_>,
        zero_points: Option<&Frozen>,
        axis: usize,
    ) -> Result<Self, OpError> {
        if !matches!(self.packing, Packing::None) || self.transposed {
            return Err(unsupported("DequantizeLinear of computed values"));
        }
        let (scales, channels) = (scales.window()?, self.dims[axis]);
        if scales.bytes().len() != 4 * channels {
            return Err(unsupported("DequantizeLinear without one scale per channel"));
        }
        let packing = match (self.dtype, zero_points) {
            (DType::I8, zero_points) if zero_points.is_none_or(Frozen::is_zero) => Packing::PerChannel { scales, axis },
            (DType::U8, Some(z)) if z.dtype == DType::U8 && z.dims == [channels] => {
                Packing::Bytes { scales, zero_points: z.window.clone(), n_axis: axis }
            }
            (DType::I8, _) => return Err(unsupported("a zero point of int8 that is not zero")),
            _ => return Err(unsupported("DequantizeLinear of anything but int8, or uint8 with zero points")),
        };
        Ok(Frozen { packing, ..self.clone() })
    }

    /// Bytes of int4 as the matrix [N, K] = `dims`, as `com.microsoft.MatMulNBits` packs elements, scales [N, blocks] and
    /// zero points, packed [N, ceil(blocks / 2)] or f32 [N, blocks].
    pub(crate) fn blocked(
        &self,
        dims: [usize; 2],
        scales: &HostOrFrozen<'_>,
        zero_points: Option<&HostOrFrozen<'_>>,
    ) -> Result<Self, OpError> {
        if !matches!(self.dtype, DType::U8 | DType::U4) || !matches!(self.packing, Packing::None) || self.transposed {
            return Err(unsupported("int4 weights of another element type than uint8 or uint4"));
        }
        let zero_points = match zero_points {
            Some(HostOrFrozen::Frozen(z)) if matches!(z.dtype, DType::U8 | DType::U4) => {
                // The middle is what int4 has without zero points.
                let is_middle = z.window.bytes().iter().all(|&b| b == 0x88);
                (!is_middle).then(|| z.window.clone())
            }
            Some(z) => Some(z.window()?),
            None => None,
        };
        let packing = Packing::Blocked { scales: scales.window()?, zero_points };
        let blocked = Frozen { dims: dims.to_vec(), packing, ..self.clone() };
        blocked.weight(0)?;
        Ok(blocked)
    }

    /// uint4 or uint8 [N, K] in blocks along K, as `DequantizeLinear` packs elements, scales and zero points [N, blocks].
    pub(crate) fn dequantize_blocks(
        &self,
        scales: &HostOrFrozen<'_>,
        zero_points: Option<&Frozen>,
    ) -> Result<Self, OpError> {
        let &[n, k] = self.dims.as_slice() else {
            return Err(unsupported("DequantizeLinear in blocks of a tensor that is no matrix"));
        };
        let blocks = scales.window()?.bytes().len() / 4 / n.max(1);
        match zero_points {
            _ if !matches!(self.packing, Packing::None) || self.transposed => {
                return Err(unsupported("DequantizeLinear of computed values"));
            }
            Some(z) if self.dtype == DType::U8 && z.dtype == DType::U8 && z.dims == [n, blocks] => {
                let packing = Packing::Bytes { scales: scales.window()?, zero_points: z.window.clone(), n_axis: 0 };
                let bytes = Frozen { packing, ..self.clone() };
                bytes.weight(0)?;
                return Ok(bytes);
            }
            _ if self.dtype != DType::U4 => {
                return Err(unsupported("DequantizeLinear in blocks of anything but uint4, or uint8 with zero points"));
            }
            _ => {}
        }
        let rows = match zero_points {
            // ONNX: zero.
            None => Some(vec![0; n * blocks.div_ceil(2)]),
            Some(z) if z.dims != [n, blocks] || z.dtype != DType::U4 => {
                return Err(unsupported("DequantizeLinear in blocks without one uint4 zero point per block"));
            }
            // Rows of an odd number of blocks start in the middle of a byte; here each starts a byte.
            Some(z) if blocks % 2 == 1 => {
                let nibble = |i: usize| (z.window.bytes()[i / 2] >> (4 * (i % 2))) & 15;
                let row = |n: usize| {
                    let at = move |b: usize| if b < blocks { nibble(n * blocks + b) } else { 8 };
                    (0..blocks.div_ceil(2)).map(move |byte| at(2 * byte) | (at(2 * byte + 1) << 4))
                };
                Some((0..n).flat_map(row).collect())
            }
            Some(_) => None,
        };
        let repacked = rows.map(|bytes: Vec<u8>| {
            let len = bytes.len();
            let window = Window::new(std::sync::Arc::new(bytes), 0..len).expect("the range is the whole");
            Frozen {
                name: self.name.clone(),
                dtype: DType::U8,
                dims: vec![len],
                window,
                packing: Packing::None,
                transposed: false,
            }
        });
        self.blocked([n, k], scales, repacked.as_ref().or(zero_points).map(HostOrFrozen::Frozen).as_ref())
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
        let layout = if stored == 0 { Layout::NK } else { Layout::KN };
        let n = self.dims[stored];
        let k = self.dims.iter().product::<usize>() / n.max(1);
        let data = self.window.clone();
        let (scheme, packed): (&'static dyn Scheme, Packed) = match &self.packing {
            Packing::None => (&F32, Packed::elements(self.aligned()?)),
            Packing::Half => (&F16, Packed::elements(data)),
            Packing::PerChannel { scales, axis } if *axis == stored => {
                (&Int8, Packed { scales: Some(scales.clone()), ..Packed::elements(data) })
            }
            Packing::Bytes { scales, zero_points, n_axis } if *n_axis == stored => {
                (&Uint8, Packed { data, scales: Some(scales.clone()), zero_points: Some(zero_points.clone()) })
            }
            Packing::Blocked { scales, zero_points } if stored == 0 => {
                let (scales, zero_points) = (Some(scales.clone()), zero_points.clone());
                (&Int4, Packed { data, scales, zero_points })
            }
            Packing::PerChannel { .. } | Packing::Bytes { .. } | Packing::Blocked { .. } => {
                return Err(OpError::Unsupported {
                    what: "a weight whose scales do not belong to its outputs",
                    way_out: "re-export the model with this version's converter",
                });
            }
        };
        Weight::new(self.name.clone(), scheme, layout, [k, n], packed).map_err(|error| match error {
            WeightError::Misaligned { .. } => misaligned(),
            _ => OpError::Unsupported {
                what: "a weight whose elements, scales or zero points are not as many as its shape and blocks ask for",
                way_out: "re-export the model with this version's converter",
            },
        })
    }

    /// All elements as floats, in the order of [`Frozen::shape`].
    ///
    /// # Errors
    /// When the integers have no scale.
    pub(crate) fn floats(&self) -> Result<Vec<f32>, OpError> {
        let stored: Vec<f32> = match (&self.packing, self.dtype) {
            (Packing::None, DType::F32) => {
                self.window.bytes().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
            }
            (Packing::Half, _) => {
                self.window.bytes().as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect()
            }
            (Packing::PerChannel { scales, axis }, _) => {
                let scales = scales.floats().ok_or_else(misaligned)?;
                let inner: usize = self.dims[axis + 1..].iter().product();
                let scale = |i: usize| scales[i / inner.max(1) % self.dims[*axis]];
                self.window.bytes().iter().enumerate().map(|(i, &q)| f32::from(q.cast_signed()) * scale(i)).collect()
            }
            (Packing::Blocked { .. } | Packing::Bytes { .. }, _) => {
                let n_axis = if let Packing::Bytes { n_axis, .. } = self.packing { n_axis } else { 0 };
                let weight = Frozen { transposed: false, ..self.clone() }.weight(n_axis)?;
                let (view, mut values) = (weight.view(), vec![0.0; self.dims.iter().product()]);
                view.scheme.decode(view.parts, view.layout, [view.k, view.n], 0, &mut values);
                values
            }
            _ => {
                return Err(OpError::Unsupported {
                    what: "a quantized tensor that is not dequantized",
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

fn unsupported(what: &'static str) -> OpError {
    OpError::Unsupported { what, way_out: "re-export the model with this version's converter" }
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

impl<'a> HostOrFrozen<'a> {
    /// The constant that is input `input` of a node.
    pub fn of(node: &NodeView<'a>, input: usize) -> Result<Self, OpError> {
        let it = node.input(input)?;
        match (it.value, it.frozen) {
            (Some(value), _) => Ok(HostOrFrozen::Host(value)),
            (None, Some(frozen)) => Ok(HostOrFrozen::Frozen(frozen)),
            (None, None) => Err(OpError::NotConstant { input }),
        }
    }

    /// Its floats, at an address that kernels can read.
    fn window(&self) -> Result<Window, OpError> {
        match self {
            HostOrFrozen::Host(value) => Ok(Window::from_floats(
                value.floats().ok_or_else(|| unsupported("scales or zero points of another element type than f32"))?,
            )),
            HostOrFrozen::Frozen(scales) if scales.dtype == DType::F32 => scales.aligned(),
            HostOrFrozen::Frozen(_) => Err(unsupported("scales or zero points of another element type than f32")),
        }
    }
}
