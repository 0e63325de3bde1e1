//! Static programs: what is computed, in which order, in which memory.

use crate::kernels::{Access, Element, Kernel, KernelError, Piece};
use crate::weight::Weight;

/// A flat memory region of 4-byte elements. All but [`Region::Ints`] hold floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Region {
    /// Float inputs, activations, gradients of activations and scratch, planned by liveness.
    Arena,
    /// Integer inputs of a batch: ids, labels. Written by the host, read by the device.
    Ints,
    /// Small frozen floats copied at plan time: biases, norms. Never written after compilation.
    Consts,
    /// Trainable parameters, concatenated.
    Params,
    /// Gradients of [`Region::Params`], element by element.
    Grads,
    /// First moment (AdamW) or momentum buffer (SGD) of each parameter.
    M,
    /// Second moment (AdamW) of each parameter.
    V,
    /// What changes per step; written by the host. See [`step`].
    Step,
    /// Scalars that a step produces; written by the device. See [`stats`].
    Stats,
}

impl Region {
    /// Every region, in a fixed order.
    pub const ALL: [Region; 9] = [
        Region::Arena,
        Region::Ints,
        Region::Consts,
        Region::Params,
        Region::Grads,
        Region::M,
        Region::V,
        Region::Step,
        Region::Stats,
    ];

    /// Position in [`Region::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

/// Element offsets inside [`Region::Step`].
pub mod step {
    /// Learning rate of this step.
    pub const LR: usize = 0;
    /// `1 - beta1^t` (AdamW).
    pub const BIAS_CORRECTION_1: usize = 1;
    /// `1 - beta2^t` (AdamW).
    pub const BIAS_CORRECTION_2: usize = 2;
    /// Rows of the batch that hold real examples; the rest is padding and adds nothing to the loss.
    pub const VALID_ROWS: usize = 3;
    /// The loss and its gradient are multiplied by this (1 / number of averaged terms).
    pub const LOSS_SCALE: usize = 4;
    /// Largest allowed global gradient norm; infinity when gradients are not clipped.
    pub const MAX_NORM: usize = 5;
    /// 0: this micro-batch starts new gradients. 1: it adds to those present.
    pub const ACCUMULATE: usize = 6;
    /// 1 on the first update, when SGD's momentum buffer takes the gradient itself; else 0.
    pub const FIRST: usize = 7;
    /// Number of elements in the region.
    pub const LEN: usize = 8;
}

/// Element offsets inside [`Region::Stats`].
pub mod stats {
    /// Loss of the last batch, already scaled.
    pub const LOSS: usize = 0;
    /// Global L2 norm of the gradients before clipping.
    pub const GRAD_NORM: usize = 1;
    /// Factor by which the update multiplies gradients (1 when nothing is clipped).
    pub const CLIP: usize = 2;
    /// Number of elements in the region.
    pub const LEN: usize = 4;
}

/// Every slot starts at a multiple of this many elements: 256 bytes, the most that a Vulkan device may ask of the offset
/// of a storage buffer. Round each parameter, activation and constant up to it with [`aligned`].
pub const SLOT_ALIGN: usize = 64;

/// `len` elements rounded up to whole [`SLOT_ALIGN`]s: where the next slot may start.
pub const fn aligned(len: usize) -> usize {
    len.next_multiple_of(SLOT_ALIGN)
}

/// A contiguous range of elements in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The region.
    pub region: Region,
    /// First element, a multiple of [`SLOT_ALIGN`].
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

impl Slot {
    /// A slot of `len` elements of `region` from `offset` on.
    pub fn new(region: Region, offset: usize, len: usize) -> Self {
        Slot { region, offset, len }
    }

    /// Whether two slots share an element.
    pub fn overlaps(&self, other: &Slot) -> bool {
        self.region == other.region && self.offset < other.offset + other.len && other.offset < self.offset + self.len
    }
}

/// What a kernel's binding is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// Elements of a region.
    Slot(Slot),
    /// A frozen weight: an index into [`Program::weights`].
    Weight(usize),
    /// Nothing; only where the binding is optional.
    Absent,
}

/// One kernel call.
#[derive(Clone, Debug)]
pub struct Call {
    /// The kernel.
    pub kernel: &'static dyn Kernel,
    /// The kernel's `Params`, as words; the push constants on a GPU.
    pub params: Vec<u32>,
    /// One operand per binding of the kernel, in its order.
    pub operands: Vec<Operand>,
    /// The node or step that the call was made for, for errors and profiles.
    pub label: String,
}

impl Call {
    fn piece(&self, piece: Piece) -> Call {
        let operand = |binding: Option<usize>| binding.map_or(Operand::Absent, |binding| self.operands[binding]);
        Call {
            kernel: piece.kernel,
            params: piece.params,
            operands: piece.operands.into_iter().map(operand).collect(),
            label: self.label.clone(),
        }
    }
}

/// A part of a program that is run as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Segment {
    /// Inputs to outputs.
    Forward,
    /// Loss, its gradient, and gradients down to the parameters. Needs [`Segment::Forward`] of the same batch.
    Backward,
    /// Optimizer: gradients to updated parameters.
    Update,
}

impl Segment {
    /// Every segment in running order.
    pub const ALL: [Segment; 3] = [Segment::Forward, Segment::Backward, Segment::Update];
}

/// A static program: regions, weights, constants and calls.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Elements of each region, by [`Region::index`].
    pub region_lens: [usize; Region::ALL.len()],
    /// Initial contents of [`Region::Consts`].
    pub consts: Vec<f32>,
    /// The frozen weights that calls refer to.
    pub weights: Vec<Weight>,
    /// Calls of [`Segment::Forward`].
    pub forward: Vec<Call>,
    /// Calls of [`Segment::Backward`].
    pub backward: Vec<Call>,
    /// Calls of [`Segment::Update`].
    pub update: Vec<Call>,
}

impl Program {
    /// The calls of a segment, in order.
    pub fn calls(&self, segment: Segment) -> &[Call] {
        match segment {
            Segment::Forward => &self.forward,
            Segment::Backward => &self.backward,
            Segment::Update => &self.update,
        }
    }

    /// Elements of `region`.
    pub fn region_len(&self, region: Region) -> usize {
        self.region_lens[region.index()]
    }

    /// Checks every call: operands match the kernel's bindings in number, kind and size, slots lie inside their
    /// region, and nothing that a call writes overlaps another of its operands.
    ///
    /// Backends call this before they compile and may then rely on it.
    ///
    /// # Errors
    /// Names the call and the binding that does not fit.
    pub fn validate(&self) -> Result<(), KernelError> {
        if self.consts.len() != self.region_len(Region::Consts) {
            return Err(KernelError::Region {
                region: Region::Consts,
                len: self.region_len(Region::Consts),
                found: self.consts.len(),
            });
        }
        for segment in Segment::ALL {
            for call in self.calls(segment) {
                self.validate_call(call)?;
            }
        }
        Ok(())
    }

    /// The same program, with the calls of kernels that are not `native` replaced by their decomposition where they
    /// have one.
    pub fn decomposed(&self, native: impl Fn(&dyn Kernel) -> bool) -> Program {
        let expand = |calls: &[Call]| {
            let mut expanded = Vec::with_capacity(calls.len());
            for call in calls {
                match call.kernel.decompose(&call.params) {
                    Some(pieces) if !native(call.kernel) => {
                        expanded.extend(pieces.into_iter().map(|piece| call.piece(piece)));
                    }
                    _ => expanded.push(call.clone()),
                }
            }
            expanded
        };
        Program {
            region_lens: self.region_lens,
            consts: self.consts.clone(),
            weights: self.weights.clone(),
            forward: expand(&self.forward),
            backward: expand(&self.backward),
            update: expand(&self.update),
        }
    }

    fn validate_call(&self, call: &Call) -> Result<(), KernelError> {
        let bindings = call.kernel.bindings();
        let fail = |binding: &'static str, why: String| KernelError::Binding {
            kernel: call.kernel.name(),
            label: call.label.clone(),
            binding,
            why,
        };
        if call.params.len() != call.kernel.params_words() || call.operands.len() != bindings.len() {
            return Err(fail("all", format!("{} words and {} operands", call.params.len(), call.operands.len())));
        }
        let weight = call.operands.iter().find_map(|operand| match operand {
            Operand::Weight(w) => self.weights.get(*w),
            _ => None,
        });
        call.kernel.check(&call.params, weight).map_err(|why| fail("params", why))?;
        let lens = call.kernel.lens(&call.params);
        for (i, (binding, operand)) in bindings.iter().zip(&call.operands).enumerate() {
            match (operand, binding.element) {
                (Operand::Absent, _) if binding.optional && lens[i] == 0 => {}
                (Operand::Absent, _) => return Err(fail(binding.name, "absent but required".into())),
                (Operand::Slot(_), _) if binding.optional && lens[i] == 0 => {
                    return Err(fail(binding.name, "present, but the parameters say that it is absent".into()));
                }
                (Operand::Weight(w), Element::Weight) => {
                    let weight = self.weights.get(*w).ok_or_else(|| fail(binding.name, format!("no weight {w}")))?;
                    if weight.k() * weight.n() < lens[i] {
                        return Err(fail(
                            binding.name,
                            format!("weight has {} elements, {} needed", weight.k() * weight.n(), lens[i]),
                        ));
                    }
                }
                (Operand::Slot(slot), Element::Float | Element::Int) => {
                    if (slot.region == Region::Ints) != (binding.element == Element::Int) {
                        return Err(fail(
                            binding.name,
                            format!("{:?} does not hold {:?}", slot.region, binding.element),
                        ));
                    }
                    if !slot.offset.is_multiple_of(SLOT_ALIGN) {
                        return Err(fail(
                            binding.name,
                            format!("{slot:?} does not start at a multiple of {SLOT_ALIGN}"),
                        ));
                    }
                    let end = slot.offset.checked_add(slot.len);
                    if end.is_none_or(|end| end > self.region_len(slot.region)) {
                        return Err(fail(
                            binding.name,
                            format!("{slot:?} is outside its region of {}", self.region_len(slot.region)),
                        ));
                    }
                    if slot.len < lens[i] {
                        return Err(fail(
                            binding.name,
                            format!("{slot:?} is shorter than the {} elements needed", lens[i]),
                        ));
                    }
                    if binding.access != Access::Read {
                        if matches!(slot.region, Region::Ints | Region::Consts | Region::Step) {
                            return Err(fail(binding.name, format!("{:?} is read-only", slot.region)));
                        }
                        let clash =
                            call.operands.iter().enumerate().any(|(j, other)| {
                                j != i && matches!(other, Operand::Slot(other) if other.overlaps(slot))
                            });
                        if clash {
                            return Err(fail(
                                binding.name,
                                format!("{slot:?} is written and overlaps another operand"),
                            ));
                        }
                    }
                }
                _ => return Err(fail(binding.name, format!("{operand:?} does not fit {:?}", binding.element))),
            }
        }
        Ok(())
    }
}
