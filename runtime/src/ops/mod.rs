//! Operators: one file an op or a tight family, `ALL` lists them.
//!
//! An op is lowering, not arithmetic: a shape rule, the kernels of its forward pass, the kernels of its backward
//! pass, and sample cases. Ops on shapes, masks and ids also have a host evaluation. Ops of the domain
//! `INLAY` are in no file: the plan makes them when it fuses others.

mod attention;
mod batch_norm;
mod binary;
mod case;
mod cast;
mod compare;
mod concat;
mod conv;
mod conv_transpose;
mod dequantize;
mod expand;
mod gather;
mod gemm;
pub(crate) mod host;
mod layer_norm;
mod linear;
mod matmul;
pub(crate) mod matmul_n_bits;
mod pad;
mod pool;
mod recurrent;
mod reduce;
mod reshape;
pub(crate) mod resize;
mod resize_bands;
mod scale;
mod select;
mod shape;
mod slice;
mod softmax;
mod transpose;
mod unary;
mod window;

pub use case::{Case, CaseInput};

use binary::BINARY;
use compare::{COMPARE, IS_NAN, NOT};
pub(crate) use layer_norm::{LAYER_NORM, RMS_NORM, RMS_NORM_TYPE};
use pool::POOL;
use recurrent::RECURRENT;
use reduce::REDUCE;
use reshape::RESHAPE;
use shape::HOST;
use softmax::{LOG_SOFTMAX, SOFTMAX};
use unary::UNARY;

use crate::graph::{Attributes, DType, HostTensor};
use crate::plan::{Backward, Forward, Frozen};

/// The domain of ops that only plans make.
pub const INLAY: &str = "inlay";

pub(crate) static LINEAR: linear::Linear = linear::Linear;
pub(crate) const LINEAR_TYPE: &str = "Linear";
pub(crate) static SCALE: scale::Scale = scale::Scale;
pub(crate) const SCALE_TYPE: &str = "Scale";
pub(crate) static ATTENTION: attention::Attention = attention::Attention;

/// Every op.
pub static ALL: &[&dyn Op] = &[
    &ATTENTION,
    &LINEAR,
    &SCALE,
    &batch_norm::BatchNormalization,
    &BINARY[0],
    &BINARY[1],
    &BINARY[2],
    &BINARY[3],
    &BINARY[4],
    &BINARY[5],
    &BINARY[6],
    &cast::Cast,
    &COMPARE[0],
    &COMPARE[1],
    &COMPARE[2],
    &COMPARE[3],
    &COMPARE[4],
    &COMPARE[5],
    &COMPARE[6],
    &IS_NAN,
    &NOT,
    &concat::Concat,
    &conv::Conv,
    &conv_transpose::ConvTranspose,
    &dequantize::DequantizeLinear,
    &expand::Expand,
    &gather::Gather,
    &gather::GatherNd,
    &gemm::Gemm,
    &HOST[0],
    &HOST[1],
    &HOST[2],
    &HOST[3],
    &HOST[4],
    &HOST[5],
    &LAYER_NORM,
    &RMS_NORM,
    &matmul::MatMul,
    &matmul_n_bits::MatMulNBits,
    &pad::Pad,
    &POOL[0],
    &POOL[1],
    &POOL[2],
    &POOL[3],
    &RECURRENT[0],
    &RECURRENT[1],
    &RECURRENT[2],
    &REDUCE[0],
    &REDUCE[1],
    &REDUCE[2],
    &RESHAPE[0],
    &RESHAPE[1],
    &RESHAPE[2],
    &RESHAPE[3],
    &RESHAPE[4],
    &RESHAPE[5],
    &resize::Resize,
    &select::Where,
    &slice::Slice,
    &slice::Split,
    &SOFTMAX,
    &LOG_SOFTMAX,
    &transpose::Transpose,
    &UNARY[0],
    &UNARY[1],
    &UNARY[2],
    &UNARY[3],
    &UNARY[4],
    &UNARY[5],
    &UNARY[6],
    &UNARY[7],
    &UNARY[8],
    &UNARY[9],
    &UNARY[10],
    &UNARY[11],
    &UNARY[12],
    &UNARY[13],
    &UNARY[14],
    &UNARY[15],
    &UNARY[16],
    &UNARY[17],
    &UNARY[18],
    &UNARY[19],
    &UNARY[20],
];

/// The op of that domain and type.
pub fn find(domain: &str, op_type: &str) -> Option<&'static dyn Op> {
    ALL.iter().copied().find(|op| op.op_type() == op_type && op.domain() == domain && domain != INLAY)
}

/// Element type and shape of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
}

impl TensorType {
    /// A type.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>) -> Self {
        TensorType { dtype, shape: shape.into() }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }
}

/// Why an op cannot be used as a node uses it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// An input is missing.
    #[error("input {input} is missing")]
    Missing {
        /// Position of the input.
        input: usize,
    },
    /// Shapes do not fit.
    #[error("input shapes {shapes:?} do not fit: {rule}")]
    Shape {
        /// Shapes of the inputs.
        shapes: Vec<Vec<usize>>,
        /// The rule that they break.
        rule: &'static str,
    },
    /// An element type that the op does not take.
    #[error("input {input} is {found}, expected {expected}")]
    DType {
        /// Position of the input.
        input: usize,
        /// Its type.
        found: DType,
        /// Types that fit.
        expected: &'static str,
    },
    /// A value that must be known when the plan is made depends on the data.
    #[error("input {input} depends on the data; it must follow from constants and shapes")]
    NotConstant {
        /// Position of the input.
        input: usize,
    },
    /// A value or attribute out of range.
    #[error("{what} is {found}, expected {expected}")]
    Value {
        /// What it is.
        what: &'static str,
        /// What it says.
        found: String,
        /// What would fit.
        expected: &'static str,
    },
    /// A form of the op that is not supported.
    #[error("{what} is not supported; {way_out}")]
    Unsupported {
        /// What is not supported.
        what: &'static str,
        /// What to do instead.
        way_out: &'static str,
    },
    /// A gradient was asked for through something that has none here.
    #[error(
        "the loss cannot be differentiated through {what}; choose targets after this node, or leave this point out"
    )]
    NotDifferentiable {
        /// What.
        what: &'static str,
    },
}

/// An input of a node, as far as it is known when the plan is made.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// Element type and shape.
    pub ty: &'a TensorType,
    /// The value, when it is known and small or integer.
    pub value: Option<&'a HostTensor>,
    /// The value, when it is a frozen tensor in the file.
    pub frozen: Option<&'a Frozen>,
    /// Whether it is known to be zero everywhere.
    pub zero: bool,
}

impl Input<'_> {
    /// Whether every element is known to be the float `x`.
    pub(crate) fn is_all(&self, x: f32) -> bool {
        (self.zero && x == 0.0)
            || self.value.and_then(HostTensor::floats).is_some_and(|floats| floats.iter().all(|&f| f == x))
            || self.frozen.is_some_and(|frozen| frozen.is_all(x))
    }
}

/// A node with what is known about its inputs.
#[derive(Clone, Debug)]
pub struct NodeView<'a> {
    /// Attributes.
    pub attributes: &'a Attributes,
    /// Inputs; `None` where an optional one is absent.
    pub inputs: Vec<Option<Input<'a>>>,
    /// Number of outputs.
    pub outputs: usize,
}

impl<'a> NodeView<'a> {
    /// An input that must be there.
    ///
    /// # Errors
    /// [`OpError::Missing`].
    pub fn input(&self, input: usize) -> Result<&Input<'a>, OpError> {
        self.optional(input).ok_or(OpError::Missing { input })
    }

    /// An input that may be absent.
    pub fn optional(&self, input: usize) -> Option<&Input<'a>> {
        self.inputs.get(input).and_then(Option::as_ref)
    }

    /// The shape of an input that must be there.
    ///
    /// # Errors
    /// [`OpError::Missing`].
    pub fn shape(&self, input: usize) -> Result<&'a [usize], OpError> {
        Ok(&self.input(input)?.ty.shape)
    }

    /// The type of an input that must be there.
    ///
    /// # Errors
    /// [`OpError::Missing`].
    pub fn ty(&self, input: usize) -> Result<&'a TensorType, OpError> {
        Ok(self.input(input)?.ty)
    }

    /// The value of an input that must be known.
    ///
    /// # Errors
    /// [`OpError::Missing`], [`OpError::NotConstant`].
    pub fn value(&self, input: usize) -> Result<&'a HostTensor, OpError> {
        self.input(input)?.value.ok_or(OpError::NotConstant { input })
    }

    /// The value of an optional input, as integers.
    ///
    /// # Errors
    /// [`OpError::NotConstant`], [`OpError::DType`].
    pub fn optional_ints(&self, input: usize) -> Result<Option<Vec<i64>>, OpError> {
        let Some(present) = self.optional(input) else { return Ok(None) };
        let value = present.value.ok_or(OpError::NotConstant { input })?;
        let ints = value.ints().ok_or(OpError::DType { input, found: value.dtype(), expected: "integers" })?;
        Ok(Some(ints))
    }

    /// The value of an input that must be there, as integers.
    ///
    /// # Errors
    /// [`OpError::Missing`], [`OpError::NotConstant`], [`OpError::DType`].
    pub fn ints(&self, input: usize) -> Result<Vec<i64>, OpError> {
        self.optional_ints(input)?.ok_or(OpError::Missing { input })
    }

    /// An error about the shapes of all inputs.
    pub fn shape_error(&self, rule: &'static str) -> OpError {
        let shapes = self.inputs.iter().flatten().map(|i| i.ty.shape.clone()).collect();
        OpError::Shape { shapes, rule }
    }

    /// An axis attribute or value, counted from the front.
    ///
    /// # Errors
    /// [`OpError::Value`] when it is out of range.
    pub fn axis(&self, axis: i64, rank: usize) -> Result<usize, OpError> {
        axis_of(axis, rank)
    }
}

/// `axis`, counted from the front of `rank` dimensions.
pub(crate) fn axis_of(axis: i64, rank: usize) -> Result<usize, OpError> {
    let from_front = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(from_front).ok().filter(|&a| a < rank).ok_or_else(|| OpError::Value {
        what: "an axis",
        found: format!("{axis} of {rank} dimensions"),
        expected: "one that exists",
    })
}

/// What a node turns out to be, when the plan is made.
#[derive(Clone, Debug)]
pub enum Simplified {
    /// Zero everywhere.
    Zero,
    /// The input at this position.
    Same(usize),
    /// A frozen tensor.
    Frozen(Frozen),
}

/// An operator.
pub trait Op: Sync {
    /// `op_type`, as ONNX spells it.
    fn op_type(&self) -> &'static str;

    /// Domain; empty for `ai.onnx`.
    fn domain(&self) -> &'static str {
        ""
    }

    /// What of the operator is not supported, in a few words for the documentation; empty when nothing is missing.
    fn limits(&self) -> &'static str {
        ""
    }

    /// Types of the outputs.
    ///
    /// # Errors
    /// When the inputs or attributes are not as ONNX, or this implementation, wants them.
    fn infer(&self, node: &NodeView<'_>) -> Result<Vec<TensorType>, OpError>;

    /// What the node is, where that is simpler than the op.
    ///
    /// # Errors
    /// When the inputs are not as this implementation wants them.
    fn simplify(&self, node: &NodeView<'_>) -> Result<Option<Simplified>, OpError> {
        let _ = node;
        Ok(None)
    }

    /// Whether [`Op::evaluate`] is there.
    fn on_host(&self) -> bool {
        false
    }

    /// Whether [`Op::evaluate`] reads values, not only shapes.
    fn needs_values(&self) -> bool {
        true
    }

    /// The outputs, from inputs whose values are all known.
    ///
    /// # Errors
    /// When a value is out of range.
    fn evaluate(&self, node: &NodeView<'_>) -> Result<Vec<HostTensor>, OpError> {
        let _ = node;
        Err(OpError::Unsupported { what: "this op on the host", way_out: "re-export the model" })
    }

    /// Whether a gradient flows to the input at this position.
    fn differentiable(&self, input: usize) -> bool;

    /// Emits the kernels of the forward pass.
    ///
    /// # Errors
    /// When a form is not supported on devices.
    fn forward(&self, cx: &mut Forward<'_, '_>) -> Result<(), OpError>;

    /// Emits the kernels that add to the gradients of the inputs what the gradients of the outputs ask for.
    ///
    /// # Errors
    /// When there is no gradient.
    fn backward(&self, cx: &mut Backward<'_, '_>) -> Result<(), OpError>;

    /// Small nodes that together touch every branch; gradients are compared with finite differences.
    fn samples(&self) -> Vec<Case>;
}

impl std::fmt::Debug for dyn Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.domain().is_empty() {
            write!(f, "{}.", self.domain())?;
        }
        f.write_str(self.op_type())
    }
}
