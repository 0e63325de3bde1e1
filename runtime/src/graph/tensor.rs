use inlay_devices::weight::Window;

use crate::onnx::data_type;

/// Element type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 64-bit integer.
    I64,
    /// 32-bit integer.
    I32,
    /// 8-bit integer: only quantized weights.
    I8,
    /// 8-bit unsigned integer: only quantized weights.
    U8,
    /// 4-bit unsigned integer, two a byte: only quantized weights.
    U4,
    /// 16-bit float: only frozen weights.
    F16,
    /// Truth value.
    Bool,
}

impl DType {
    /// From ONNX `TensorProto.DataType`.
    pub fn from_onnx(number: i32) -> Option<Self> {
        Some(match number {
            data_type::FLOAT => DType::F32,
            data_type::INT64 => DType::I64,
            data_type::INT32 => DType::I32,
            data_type::INT8 => DType::I8,
            data_type::UINT8 => DType::U8,
            data_type::UINT4 => DType::U4,
            data_type::FLOAT16 => DType::F16,
            data_type::BOOL => DType::Bool,
            _ => return None,
        })
    }

    /// Bytes of a tensor of this shape in a file; `None` where that overflows.
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        let elements = element_count(shape)?;
        match self {
            DType::I64 => elements.checked_mul(8),
            DType::F32 | DType::I32 => elements.checked_mul(4),
            DType::F16 => elements.checked_mul(2),
            DType::I8 | DType::U8 | DType::Bool => Some(elements),
            DType::U4 => Some(elements.div_ceil(2)),
        }
    }
}

/// The number of elements of `shape`, unless the product of any of its sizes overflows, even where there are none.
pub(crate) fn element_count(shape: &[usize]) -> Option<usize> {
    let most = shape.iter().filter(|d| **d > 0).try_fold(1usize, |n, &d| n.checked_mul(d))?;
    Some(if shape.contains(&0) { 0 } else { most })
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::I8 => "i8",
            DType::U8 => "u8",
            DType::U4 => "u4",
            DType::F16 => "f16",
            DType::Bool => "bool",
        })
    }
}

/// A small tensor on the host: a constant, a shape, a mask, ids; or data that is fed to a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    shape: Vec<usize>,
    data: HostData,
}

/// The row-major elements of a [`HostTensor`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum HostData {
    F32(Vec<f32>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    Bool(Vec<bool>),
}

impl HostData {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            HostData::F32(x) => x.len(),
            HostData::I64(x) => x.len(),
            HostData::I32(x) => x.len(),
            HostData::Bool(x) => x.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Vec<f32>> for HostData {
    fn from(x: Vec<f32>) -> Self {
        HostData::F32(x)
    }
}
impl From<Vec<i64>> for HostData {
    fn from(x: Vec<i64>) -> Self {
        HostData::I64(x)
    }
}
impl From<Vec<i32>> for HostData {
    fn from(x: Vec<i32>) -> Self {
        HostData::I32(x)
    }
}
impl From<Vec<bool>> for HostData {
    fn from(x: Vec<bool>) -> Self {
        HostData::Bool(x)
    }
}

impl HostTensor {
    /// A tensor of `shape`, or `None` when `data` has another number of elements.
    pub fn new(shape: impl Into<Vec<usize>>, data: impl Into<HostData>) -> Option<Self> {
        let (shape, data) = (shape.into(), data.into());
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        (count == Some(data.len())).then_some(HostTensor { shape, data })
    }

    /// A tensor whose shape and data were made together.
    pub(crate) fn of(shape: impl Into<Vec<usize>>, data: impl Into<HostData>) -> Self {
        Self::new(shape, data).expect("the shape and the elements were made together")
    }

    /// Shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Elements.
    pub fn data(&self) -> &HostData {
        &self.data
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self.data {
            HostData::F32(_) => DType::F32,
            HostData::I64(_) => DType::I64,
            HostData::I32(_) => DType::I32,
            HostData::Bool(_) => DType::Bool,
        }
    }

    /// The elements, if they are floats.
    pub fn floats(&self) -> Option<&[f32]> {
        match &self.data {
            HostData::F32(x) => Some(x),
            _ => None,
        }
    }

    /// The elements as integers, if they are integers or truth values.
    pub fn ints(&self) -> Option<Vec<i64>> {
        match &self.data {
            HostData::I64(x) => Some(x.clone()),
            HostData::I32(x) => Some(x.iter().map(|&x| i64::from(x)).collect()),
            HostData::Bool(x) => Some(x.iter().map(|&x| i64::from(x)).collect()),
            HostData::F32(_) => None,
        }
    }

    /// The elements as floats: integers rounded, truth values 0 or 1.
    pub fn to_floats(&self) -> Vec<f32> {
        match &self.data {
            HostData::F32(x) => x.clone(),
            HostData::I64(x) => x.iter().map(|&x| x as f32).collect(),
            HostData::I32(x) => x.iter().map(|&x| x as f32).collect(),
            HostData::Bool(x) => x.iter().map(|&x| f32::from(u8::from(x))).collect(),
        }
    }

    /// The only element, as a float.
    pub fn scalar(&self) -> Option<f32> {
        (self.len() == 1).then(|| self.to_floats()[0])
    }

    /// The same elements in another shape of as many elements.
    pub(crate) fn reshaped(self, shape: &[usize]) -> Self {
        Self::of(shape, self.data)
    }

    /// The elements at these positions, in a new shape.
    pub(crate) fn select(&self, shape: &[usize], positions: &[usize]) -> Self {
        fn pick<T: Copy>(x: &[T], positions: &[usize]) -> Vec<T> {
            positions.iter().map(|&p| x[p]).collect()
        }
        let data = match &self.data {
            HostData::F32(x) => HostData::F32(pick(x, positions)),
            HostData::I64(x) => HostData::I64(pick(x, positions)),
            HostData::I32(x) => HostData::I32(pick(x, positions)),
            HostData::Bool(x) => HostData::Bool(pick(x, positions)),
        };
        Self::of(shape, data)
    }

    /// Copies little-endian bytes of a file; `None` for element types that only weights have.
    pub(crate) fn from_window(dtype: DType, shape: &[usize], window: &Window) -> Option<Self> {
        let bytes = window.bytes();
        let data = match dtype {
            DType::F32 => HostData::F32(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()),
            DType::I64 => HostData::I64(bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect()),
            DType::I32 => HostData::I32(bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)).collect()),
            DType::Bool => HostData::Bool(bytes.iter().map(|&b| b != 0).collect()),
            DType::I8 | DType::U8 | DType::U4 | DType::F16 => return None,
        };
        Self::new(shape, data)
    }
}
