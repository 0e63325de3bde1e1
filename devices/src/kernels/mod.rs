//! Kernel contracts.
//!
//! One file a kernel: formula, shapes, bindings, parameters, the plain body (generic over f32 and f64) and sample
//! cases. `<kernel>.comp` beside it is the GPU body; fast CPU bodies live in `cpu/`. [`kernels::ALL`] lists every kernel, and the
//! conformance tests run every body of every kernel in it against the plain one.

mod args;
mod attention;
mod attention_grad;
mod binary;
mod copy;
mod depthwise;
mod fill;
mod gather;
mod im2col;
mod layer_norm;
mod linear;
mod loss;
mod matmul;
mod optimizer;
mod pool;
mod real;
mod reduce;
mod resample;
mod select;
mod softmax;
pub mod spirv;
pub mod strided;
mod unary;

pub use args::{Arg, Args, MAX_BINDINGS};
pub use attention::{Attention, AttentionParams};
pub use attention_grad::{AttentionGrad, AttentionGradParams};
pub use binary::{Binary, BinaryOp, BinaryParams};
pub use copy::{Copy, CopyParams};
pub use depthwise::{Depthwise, DepthwiseGrad, DepthwiseParams};
pub use fill::{Fill, FillParams};
pub use gather::{Gather, GatherGrad, GatherParams, GatherRows, GatherRowsParams};
pub use im2col::{Col2im, Im2col, Im2colParams};
pub use layer_norm::{LayerNorm, LayerNormGrad, LayerNormParamGrad, LayerNormParams};
pub use linear::{Linear, LinearParams};
pub use loss::{Mse, MseParams, SoftmaxCrossEntropy, SoftmaxCrossEntropyParams};
pub use matmul::{Matmul, MatmulParams};
pub use optimizer::{AdamW, AdamWParams, GradNorm, GradsParams, Sgd, SgdParams, ZeroGrads};
pub use pool::{Pool, PoolGrad, PoolOp, PoolParams};
pub use real::Real;
pub use reduce::{Reduce, ReduceOp, ReduceParams};
pub use resample::{Resample, ResampleParams};
pub use select::{Select, SelectParams};
pub use softmax::{Softmax, SoftmaxGrad, SoftmaxParams};
pub use unary::{Unary, UnaryOp, UnaryParams};

use std::fmt;
use std::marker::PhantomData;

use bytemuck::Pod;

use crate::program::Region;
use crate::weight::Weight;

/// Every kernel.
pub static ALL: &[&dyn Kernel] = &[
    kernel::<Linear>(),
    kernel::<Matmul>(),
    kernel::<Attention>(),
    kernel::<AttentionGrad>(),
    kernel::<Softmax>(),
    kernel::<SoftmaxGrad>(),
    kernel::<LayerNorm>(),
    kernel::<LayerNormGrad>(),
    kernel::<LayerNormParamGrad>(),
    kernel::<Unary>(),
    kernel::<Binary>(),
    kernel::<Select>(),
    kernel::<Reduce>(),
    kernel::<Copy>(),
    kernel::<Fill>(),
    kernel::<GatherRows>(),
    kernel::<Gather>(),
    kernel::<GatherGrad>(),
    kernel::<Im2col>(),
    kernel::<Col2im>(),
    kernel::<Depthwise>(),
    kernel::<DepthwiseGrad>(),
    kernel::<Pool>(),
    kernel::<PoolGrad>(),
    kernel::<Resample>(),
    kernel::<SoftmaxCrossEntropy>(),
    kernel::<Mse>(),
    kernel::<GradNorm>(),
    kernel::<ZeroGrads>(),
    kernel::<AdamW>(),
    kernel::<Sgd>(),
];

/// Bit of a kernel's `flags`: outputs are added to (`+=`) instead of overwritten (`=`).
pub const ACCUMULATE: u32 = 1;

/// The most words of parameters, so that they fit the 128 bytes of push constants that every Vulkan device has.
pub const MAX_PARAMS_WORDS: usize = 32;

/// What a binding holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Floats (f32 on devices).
    Float,
    /// 32-bit integers, read-only.
    Int,
    /// A frozen weight: on a GPU two buffers, packed elements as u32 words and f32 scales.
    Weight,
}

/// What a kernel does with a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only reads.
    Read,
    /// Writes every element that its `lens` entry counts, reads none.
    Write,
    /// Reads what is there, and writes.
    ReadWrite,
    /// Working memory: undefined before the call and after it.
    Scratch,
}

/// One operand of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Binding {
    /// Name, as in the formula.
    pub name: &'static str,
    /// What it holds.
    pub element: Element,
    /// What is done with it.
    pub access: Access,
    /// Whether it may be absent.
    pub optional: bool,
}

impl Binding {
    /// A float operand that is read.
    pub const fn read(name: &'static str) -> Self {
        Binding { name, element: Element::Float, access: Access::Read, optional: false }
    }
    /// A float operand that is overwritten.
    pub const fn write(name: &'static str) -> Self {
        Binding { name, element: Element::Float, access: Access::Write, optional: false }
    }
    /// A float operand that is read and written, such as one that may be accumulated into.
    pub const fn read_write(name: &'static str) -> Self {
        Binding { name, element: Element::Float, access: Access::ReadWrite, optional: false }
    }
    /// Floats of working memory.
    pub const fn scratch(name: &'static str) -> Self {
        Binding { name, element: Element::Float, access: Access::Scratch, optional: false }
    }
    /// Integers that are read.
    pub const fn ints(name: &'static str) -> Self {
        Binding { name, element: Element::Int, access: Access::Read, optional: false }
    }
    /// A frozen weight.
    pub const fn weight(name: &'static str) -> Self {
        Binding { name, element: Element::Weight, access: Access::Read, optional: false }
    }
    /// The same binding, but it may be absent.
    pub const fn optional(self) -> Self {
        Binding { optional: true, ..self }
    }
}

/// Why a call breaks its kernel's contract.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// An operand does not fit its binding.
    #[error("kernel \"{kernel}\" called for \"{label}\": operand \"{binding}\": {why}")]
    Binding {
        /// Kernel name.
        kernel: &'static str,
        /// What the call was made for.
        label: String,
        /// Binding name.
        binding: &'static str,
        /// What does not fit.
        why: String,
    },
    /// A region's contents have another size than the region.
    #[error("{region:?} has {len} elements but {found} values")]
    Region {
        /// The region.
        region: Region,
        /// Its size.
        len: usize,
        /// Values given.
        found: usize,
    },
}

/// The contract of a kernel; implemented by a unit struct per kernel, and used through [`Kernel`].
pub trait Contract: Sync + 'static {
    /// Parameters that are fixed when the program is made: a `#[repr(C)]` struct of 4-byte words, which are the
    /// push constants of the GPU body.
    type Params: Pod;

    /// Snake-case name; also the name of the GPU body.
    const NAME: &'static str;

    /// Operands in order. On a GPU binding numbers count up in this order, a weight taking two (elements, scales).
    const BINDINGS: &'static [Binding];

    /// Elements of each binding that the kernel may touch.
    fn lens(params: &Self::Params) -> Vec<usize>;

    /// Refuses parameters that no body can run, and a bound weight of another shape or layout.
    ///
    /// # Errors
    /// Says what does not fit.
    fn check(params: &Self::Params, weight: Option<&Weight>) -> Result<(), String> {
        let _ = (params, weight);
        Ok(())
    }

    /// The same computation as calls of simpler kernels over the operands of this one, for backends without a body
    /// of their own. `None` for kernels that every backend must have.
    fn decompose(params: &Self::Params) -> Option<Vec<Piece>> {
        let _ = params;
        None
    }

    /// The plain body: the truth that every other body is tested against. Sums are taken in `T`.
    fn plain<T: Real>(params: &Self::Params, args: &mut Args<'_, T>);

    /// Number of workgroups of the GPU body in x, y, z. No dimension may exceed 65535.
    fn workgroups(params: &Self::Params) -> [u32; 3];

    /// Small calls that together touch every branch: odd sizes (1, primes, non-multiples of a tile), every flag,
    /// every quantization scheme where a weight is bound.
    fn samples() -> Vec<Sample>;
}

/// A [`Contract`] as an object. Not implemented by hand.
pub trait Kernel: Sync {
    /// Snake-case name.
    fn name(&self) -> &'static str;
    /// Operands in order.
    fn bindings(&self) -> &'static [Binding];
    /// Size of the parameters.
    fn params_words(&self) -> usize;
    /// Elements of each binding that a call with these parameters may touch.
    fn lens(&self, params: &[u32]) -> Vec<usize>;
    /// Refuses parameters that no body can run, and a bound weight of another shape or layout.
    ///
    /// # Errors
    /// Says what does not fit.
    fn check(&self, params: &[u32], weight: Option<&Weight>) -> Result<(), String>;
    /// The same computation as calls of simpler kernels; see [`Contract::decompose`].
    fn decompose(&self, params: &[u32]) -> Option<Vec<Piece>>;
    /// Workgroups of the GPU body.
    fn workgroups(&self, params: &[u32]) -> [u32; 3];
    /// The plain body in f32.
    fn plain_f32(&self, params: &[u32], args: &mut Args<'_, f32>);
    /// The plain body in f64.
    fn plain_f64(&self, params: &[u32], args: &mut Args<'_, f64>);
    /// Sample calls.
    fn samples(&self) -> Vec<Sample>;
}

impl fmt::Debug for dyn Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

struct Erased<C>(PhantomData<fn() -> C>);

/// The kernel object of a contract.
pub const fn kernel<C: Contract>() -> &'static dyn Kernel {
    const { assert!(size_of::<C::Params>() <= MAX_PARAMS_WORDS * 4 && C::BINDINGS.len() <= MAX_BINDINGS) };
    &Erased::<C>(PhantomData)
}

impl<C: Contract> Kernel for Erased<C> {
    fn name(&self) -> &'static str {
        C::NAME
    }
    fn bindings(&self) -> &'static [Binding] {
        C::BINDINGS
    }
    fn params_words(&self) -> usize {
        size_of::<C::Params>() / 4
    }
    fn lens(&self, params: &[u32]) -> Vec<usize> {
        C::lens(&from_words(params))
    }
    fn check(&self, params: &[u32], weight: Option<&Weight>) -> Result<(), String> {
        C::check(&from_words(params), weight)
    }
    fn decompose(&self, params: &[u32]) -> Option<Vec<Piece>> {
        C::decompose(&from_words(params))
    }
    fn workgroups(&self, params: &[u32]) -> [u32; 3] {
        C::workgroups(&from_words(params))
    }
    fn plain_f32(&self, params: &[u32], args: &mut Args<'_, f32>) {
        C::plain(&from_words(params), args);
    }
    fn plain_f64(&self, params: &[u32], args: &mut Args<'_, f64>) {
        C::plain(&from_words(params), args);
    }
    fn samples(&self) -> Vec<Sample> {
        C::samples()
    }
}

/// A call of a simpler kernel that does a part of a kernel's work.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The simpler kernel.
    pub kernel: &'static dyn Kernel,
    /// Its parameters, as words.
    pub params: Vec<u32>,
    /// For each of its bindings, the binding of the decomposed kernel that is connected to it; `None` is absent.
    pub operands: Vec<Option<usize>>,
}

impl Piece {
    /// A call of `C`.
    pub fn new<C: Contract>(params: &C::Params, operands: impl Into<Vec<Option<usize>>>) -> Self {
        Piece { kernel: kernel::<C>(), params: to_words(params), operands: operands.into() }
    }
}

/// Parameters as words.
pub fn to_words<P: Pod>(params: &P) -> Vec<u32> {
    bytemuck::bytes_of(params).chunks_exact(4).map(|w| u32::from_ne_bytes(w.try_into().expect("chunks of 4"))).collect()
}

/// Parameters from words of the right number.
pub fn from_words<P: Pod>(words: &[u32]) -> P {
    bytemuck::pod_read_unaligned(bytemuck::cast_slice(words))
}

/// Contents of one operand of a [`Sample`].
#[derive(Clone, Debug)]
pub enum SampleOperand {
    /// Floats: the input, or the state of an output before the call.
    Floats(Vec<f32>),
    /// Integers.
    Ints(Vec<i32>),
    /// A weight.
    Weight(Weight),
    /// Absent optional operand.
    Absent,
}

/// A small call of a kernel, complete with its data.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What it is a sample of, such as `m=1 n=3 k=5 int8 transposed`.
    pub label: String,
    /// Parameters as words.
    pub params: Vec<u32>,
    /// Operands, one per binding. Everything written starts with defined values, so that accumulation shows.
    pub operands: Vec<SampleOperand>,
}

impl Sample {
    /// A call of `C` with random floats in every float operand, optional ones of no elements absent. Integers and
    /// weights are left absent, to be given by [`Sample::with`].
    pub fn random<C: Contract>(seed: u64, params: &C::Params) -> Self
    where
        C::Params: fmt::Debug,
    {
        let operands = C::BINDINGS.iter().zip(C::lens(params)).enumerate().map(|(i, (binding, len))| {
            if binding.element != Element::Float || binding.optional && len == 0 {
                SampleOperand::Absent
            } else {
                SampleOperand::Floats(sample::floats(seed * MAX_BINDINGS as u64 + i as u64, len))
            }
        });
        Sample { label: format!("{params:?}"), params: to_words(params), operands: operands.collect() }
    }

    /// The same call with another operand at binding `at`.
    pub fn with(mut self, at: usize, operand: SampleOperand) -> Self {
        self.operands[at] = operand;
        self
    }
}

/// Workgroups that cover `items` with `per_group` each, as x and y, neither above 65535. The body's group
/// number is `x + y * gl_NumWorkGroups.x`; groups past the last item have nothing to do.
pub fn cover(items: usize, per_group: usize) -> [u32; 3] {
    const MAX: usize = 65535;
    let groups = items.div_ceil(per_group).max(1);
    let x = groups.min(MAX);
    let y = groups.div_ceil(x);
    [x as u32, y as u32, 1]
}

/// Deterministic test data.
pub mod sample {
    use inlay_format::quant::{Form, Layout, PartsMut, SCHEMES, Scheme};

    use crate::weight::{Packed, Weight, Window};

    /// `len` floats in [-1, 1), the same for the same seed.
    pub fn floats(seed: u64, len: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// `len` integers in `0..below`.
    pub fn ints(seed: u64, len: usize, below: i32) -> Vec<i32> {
        floats(seed, len).into_iter().map(|x| (((x + 1.0) * 0.5 * below as f32) as i32).min(below - 1)).collect()
    }

    /// Random weights of logical shape [k, n], one for each scheme, form and layout that can store it.
    pub fn weights(seed: u64, [k, n]: [usize; 2]) -> Vec<Weight> {
        let mut weights = Vec::new();
        for scheme in SCHEMES {
            for &form in scheme.forms() {
                for layout in [Layout::KN, Layout::NK] {
                    if scheme.sizes(layout, [k, n], form).is_some() {
                        weights.push(weight(seed, *scheme, form, layout, [k, n]));
                    }
                }
            }
        }
        weights
    }

    /// A random weight of logical shape [k, n], encoded by `scheme`.
    ///
    /// # Panics
    /// When the scheme cannot store such a weight in this form.
    pub fn weight(seed: u64, scheme: &'static dyn Scheme, form: Form, layout: Layout, [k, n]: [usize; 2]) -> Weight {
        let values = floats(seed, k * n);
        let sizes = scheme.sizes(layout, [k, n], form).expect("a form for this shape");
        let (mut data, mut scales) = (vec![0; sizes.data], vec![0.0; sizes.scales]);
        let mut zero_points = vec![0; sizes.zero_points];
        let parts = PartsMut { data: &mut data, scales: &mut scales, zero_points: &mut zero_points };
        scheme.encode(&values, layout, [k, n], parts).expect("finite weights");
        let packed = Packed {
            data: aligned(&data),
            scales: (!scales.is_empty()).then(|| Window::from_floats(&scales)),
            zero_points: (!zero_points.is_empty()).then(|| aligned(&zero_points)),
        };
        Weight::new(format!("sample{seed}"), scheme, layout, [k, n], packed).expect("sizes come from the scheme")
    }

    /// A window aligned as a memory map's is.
    fn aligned(bytes: &[u8]) -> Window {
        let mut words = vec![0f32; bytes.len().div_ceil(4)];
        bytemuck::cast_slice_mut::<f32, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Window::from_floats(&words).prefix(bytes.len())
    }
}
