use inlay_devices::kernels::sample;
use inlay_format::quant::Form;

use crate::graph::{Attributes, DType, HostTensor};

/// A small node with its data.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it is a case of.
    pub label: String,
    /// Attributes.
    pub attributes: Attributes,
    /// Inputs.
    pub inputs: Vec<CaseInput>,
    /// Number of outputs.
    pub outputs: usize,
}

/// An input of a [`Case`].
#[derive(Clone, Debug)]
pub enum CaseInput {
    /// An absent optional input.
    Absent,
    /// A float value that is computed, and differentiated where the op can be.
    Step(HostTensor),
    /// A value that is known when the plan is made.
    Constant(HostTensor),
    /// A value that is fed with each batch: integers or truth values.
    Fed(HostTensor),
    /// A constant that is stored as int8 with one scale per element of this axis.
    Int8 {
        /// The values before quantization.
        values: HostTensor,
        /// The axis of the scales.
        axis: usize,
    },
    /// A constant that is stored as uint8 with scales and zero points.
    Uint8 {
        /// The values before quantization.
        values: HostTensor,
        /// The axis of the outputs, which have a scale each unless there are blocks.
        axis: usize,
        /// Which elements share a scale: those of an output, or of a block.
        form: Form,
    },
    /// A constant matrix [N, K] that is stored as int4 in blocks of K, and dequantized by an op of its own.
    Int4 {
        /// The values before quantization.
        values: HostTensor,
        /// Which elements share a scale.
        form: Form,
    },
    /// A constant of an element type that only weights have.
    Packed {
        /// Element type.
        dtype: DType,
        /// Shape.
        shape: Vec<usize>,
        /// As in a file.
        bytes: Vec<u8>,
    },
}

impl Case {
    /// A case with one output.
    pub fn new(label: impl Into<String>, attributes: Attributes, inputs: Vec<CaseInput>) -> Self {
        Case { label: label.into(), attributes, inputs, outputs: 1 }
    }

    /// The same with another number of outputs.
    #[must_use]
    pub fn outputs(self, outputs: usize) -> Self {
        Case { outputs, ..self }
    }
}

impl CaseInput {
    /// A computed value of random floats in [-1, 1).
    pub fn step(seed: u64, shape: &[usize]) -> Self {
        CaseInput::Step(random(seed, shape))
    }

    /// A constant of random floats in [-1, 1).
    pub fn constant(seed: u64, shape: &[usize]) -> Self {
        CaseInput::Constant(random(seed, shape))
    }

    /// An int8 constant of random floats in [-1, 1).
    pub fn int8(seed: u64, shape: &[usize], axis: usize) -> Self {
        CaseInput::Int8 { values: random(seed, shape), axis }
    }

    /// A uint8 constant of random floats in [-1, 1).
    pub fn uint8(seed: u64, shape: &[usize], axis: usize, form: Form) -> Self {
        CaseInput::Uint8 { values: random(seed, shape), axis, form }
    }

    /// An int4 constant [N, K] of random floats in [-1, 1).
    pub fn int4(seed: u64, shape: [usize; 2], form: Form) -> Self {
        CaseInput::Int4 { values: random(seed, &shape), form }
    }

    /// A constant list of integers.
    pub fn ints(values: &[i64]) -> Self {
        CaseInput::Constant(HostTensor::of([values.len()], values.to_vec()))
    }

    /// A constant integer.
    pub fn int(value: i64) -> Self {
        CaseInput::Constant(HostTensor::of([], vec![value]))
    }

    /// A constant float.
    pub fn float(value: f32) -> Self {
        CaseInput::Constant(HostTensor::of([], vec![value]))
    }
}

fn random(seed: u64, shape: &[usize]) -> HostTensor {
    HostTensor::of(shape, sample::floats(seed, shape.iter().product()))
}
