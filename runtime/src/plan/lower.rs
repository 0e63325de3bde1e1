//! The state of lowering: buffers, views of values, gradients, and the calls so far.

use std::collections::HashMap;

use bytemuck::Pod;
use inlay_devices::kernels::{Contract, Fill, FillParams, Kernel, kernel, to_words};
use inlay_devices::program::{Region, aligned};
use inlay_devices::weight::Weight;

use super::analyze::{Analysis, Role};
use super::buffers::{BufferId, Buffers};
use super::frozen::Frozen;
use super::prologue::{Destination, Negative, Source, Write};
use super::view::View;
use crate::graph::{DType, HostTensor};
use crate::merge::Merged;
use crate::ops::OpError;

/// A call whose operands are not placed yet.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub kernel: &'static dyn Kernel,
    pub params: Vec<u32>,
    pub operands: Vec<Operand>,
    pub label: String,
}

/// An operand of a kernel call while a plan is made.
#[derive(Clone, Copy, Debug)]
pub struct Operand(pub(crate) Bound);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    Slot { buffer: BufferId, offset: usize, len: usize },
    Weight(usize),
    Absent,
}

impl Operand {
    /// Nothing, for an optional binding.
    pub const ABSENT: Operand = Operand(Bound::Absent);
}

impl From<&View> for Operand {
    fn from(view: &View) -> Self {
        Operand(Bound::Slot { buffer: view.buffer, offset: view.offset, len: view.extent() })
    }
}

impl From<View> for Operand {
    fn from(view: View) -> Self {
        Operand::from(&view)
    }
}

impl From<Option<&View>> for Operand {
    fn from(view: Option<&View>) -> Self {
        view.map_or(Operand::ABSENT, Operand::from)
    }
}

/// Everything that lowering has made so far. [`Forward`](super::Forward) and [`Backward`](super::Backward) deref to it.
#[derive(Debug)]
pub struct Lowering<'a> {
    pub(crate) analysis: &'a Analysis,
    pub(crate) buffers: Buffers,
    pub(crate) drafts: Vec<Draft>,
    pub(crate) weights: Vec<Weight>,
    pub(crate) consts: Vec<f32>,
    pub(crate) writes: Vec<Write>,
    pub(crate) label: String,
    /// Weights that take the place of the base's.
    pub(crate) merged: Option<&'a Merged>,
    /// Whether a gradient flows to each value.
    pub(crate) needs: Vec<bool>,
    /// The parameters, and where they start in their region.
    parameters: Vec<View>,
    views: Vec<Option<View>>,
    copies: HashMap<(usize, usize, Vec<usize>, Vec<usize>), View>,
    made: HashMap<(&'static str, Vec<u32>, BufferId, usize), View>,
    weight_ids: HashMap<WeightKey, usize>,
    const_ids: HashMap<Vec<u32>, BufferId>,
    ids: HashMap<(usize, usize), View>,
    /// The buffer that holds the gradient of a buffer, and may be added to.
    gradients: HashMap<BufferId, BufferId>,
    /// The buffer that held the complete gradient of a buffer, and has become that of another.
    donated: HashMap<BufferId, BufferId>,
}

/// What tells one weight of a program from another.
#[derive(Debug, PartialEq, Eq, Hash)]
enum WeightKey {
    /// Name, axis of the outputs, shape.
    Base(String, usize, Vec<usize>),
    /// The node.
    Merged(String),
}

/// A size as kernels take it.
pub(crate) fn u(size: usize) -> u32 {
    u32::try_from(size).expect("sizes are checked when values are classified")
}

impl<'a> Lowering<'a> {
    pub(crate) fn new(analysis: &'a Analysis, parameter_shapes: &[Vec<usize>]) -> Self {
        let mut lowering = Self::without_parameters(analysis);
        for shape in parameter_shapes {
            let len = shape.iter().product();
            let buffer = lowering.buffers.add(Region::Params, len);
            lowering.gradients.insert(buffer, lowering.buffers.add(Region::Grads, len));
            lowering.parameters.push(View::contiguous(buffer, shape));
        }
        lowering
    }

    /// The same for prediction with `rows` samples that have parameters of their own: each of the given offset and
    /// shape gets a first dimension for the sample, and what belongs to one sample lies together, in `row_len` elements.
    pub(crate) fn with_rows<'p>(
        analysis: &'a Analysis,
        parameters: impl Iterator<Item = (usize, &'p [usize])>,
        rows: usize,
        row_len: usize,
    ) -> Self {
        let mut lowering = Self::without_parameters(analysis);
        let buffer = lowering.buffers.add(Region::Params, rows * row_len);
        lowering.parameters = parameters
            .map(|(offset, shape)| {
                let one = View::contiguous(buffer, shape);
                View {
                    offset,
                    shape: [&[rows], shape].concat(),
                    strides: std::iter::once(row_len).chain(one.strides).collect(),
                    ..one
                }
            })
            .collect();
        lowering
    }

    fn without_parameters(analysis: &'a Analysis) -> Self {
        let count = analysis.values.len();
        Lowering {
            analysis,
            buffers: Buffers::default(),
            drafts: Vec::new(),
            weights: Vec::new(),
            consts: Vec::new(),
            writes: Vec::new(),
            label: String::new(),
            merged: None,
            needs: vec![false; count],
            parameters: Vec::new(),
            views: vec![None; count],
            copies: HashMap::new(),
            made: HashMap::new(),
            weight_ids: HashMap::new(),
            const_ids: HashMap::new(),
            ids: HashMap::new(),
            gradients: HashMap::new(),
            donated: HashMap::new(),
        }
    }

    /// Emits a call of a kernel.
    pub fn call<C: Contract>(&mut self, params: &C::Params, operands: &[Operand])
    where
        C::Params: Pod,
    {
        self.drafts.push(Draft {
            kernel: kernel::<C>(),
            params: to_words(params),
            operands: operands.to_vec(),
            label: self.label.clone(),
        });
    }

    /// The result of a kernel of one input, made once however often it is asked for.
    pub(crate) fn once<C: Contract>(&mut self, params: &C::Params, x: &View, shape: &[usize]) -> View {
        let key = (C::NAME, to_words(params), x.buffer, x.offset);
        if let Some(made) = self.made.get(&key) {
            return made.clone();
        }
        let y = self.scratch(shape);
        self.call::<C>(params, &[x.into(), (&y).into()]);
        self.made.insert(key, y.clone());
        y
    }

    /// A new piece of the arena, row-major, with undefined contents.
    pub fn scratch(&mut self, shape: &[usize]) -> View {
        let buffer = self.buffers.add(Region::Arena, shape.iter().product());
        View::contiguous(buffer, shape)
    }

    /// Floats that never change.
    pub fn constant(&mut self, shape: &[usize], values: &[f32]) -> View {
        let bits = values.iter().map(|x| x.to_bits()).collect();
        let (buffers, consts) = (&mut self.buffers, &mut self.consts);
        let buffer = *self.const_ids.entry(bits).or_insert_with(|| {
            consts.extend_from_slice(values);
            consts.resize(aligned(consts.len()), 0.0);
            buffers.add(Region::Consts, values.len())
        });
        View::contiguous(buffer, shape)
    }

    /// Where the floats of a value are.
    pub(crate) fn value(&mut self, value: usize) -> Result<View, OpError> {
        if let Some(view) = &self.views[value] {
            return Ok(view.clone());
        }
        let analysis = self.analysis;
        let it = &analysis.values[value];
        let shape = &it.ty.shape;
        let view = match &it.role {
            Role::Constant { host: Some(host), .. } => self.constant(shape, &host.to_floats()),
            Role::Constant { frozen: Some(frozen), .. } => self.constant(shape, &frozen.floats()?),
            Role::Constant { .. } => return Err(OpError::NotConstant { input: 0 }),
            Role::Zero => self.constant(shape, &vec![0.0; it.ty.len()]),
            Role::Parameter(index) => self.parameters[*index].clone(),
            Role::Prologue | Role::Step => {
                // Fed floats, or what the host computes: anything else was set when its step was lowered.
                let view = self.fed(shape);
                self.writes
                    .push(Write { source: Source::Value(value), destination: Destination::Floats(view.clone()) });
                view
            }
        };
        self.views[value] = Some(view.clone());
        Ok(view)
    }

    /// A piece of the arena that the host writes before the forward pass.
    pub(crate) fn fed(&mut self, shape: &[usize]) -> View {
        let view = self.scratch(shape);
        self.buffers.get_mut(view.buffer).fed = true;
        view
    }

    pub(crate) fn set_value(&mut self, value: usize, view: View) {
        self.views[value] = Some(view);
    }

    pub(crate) fn is_set(&self, value: usize) -> bool {
        self.views[value].is_some()
    }

    /// Integers `0..limit` of a value, for the device; negative ones count from the end.
    pub(crate) fn integers(&mut self, value: usize, limit: usize) -> Result<View, OpError> {
        if let Some(view) = self.ids.get(&(value, limit)) {
            return Ok(view.clone());
        }
        let it = &self.analysis.values[value];
        let source = match &it.role {
            Role::Constant { host: Some(host), .. } if host.dtype() != DType::F32 => {
                Source::Constant(HostTensor::clone(host))
            }
            Role::Prologue if it.ty.dtype != DType::F32 => Source::Value(value),
            _ => return Err(OpError::DType { input: 1, found: it.ty.dtype, expected: "integers that the host knows" }),
        };
        let buffer = self.buffers.add(Region::Ints, it.ty.len());
        let view = View::contiguous(buffer, &it.ty.shape);
        self.writes.push(Write {
            source,
            destination: Destination::Ints { view: view.clone(), limit, negative: Negative::FromEnd },
        });
        self.ids.insert((value, limit), view.clone());
        Ok(view)
    }

    /// Integers `0..limit` that are known now, for the device.
    pub(crate) fn known_integers(&mut self, values: Vec<i64>, limit: usize) -> View {
        let view = View::contiguous(self.buffers.add(Region::Ints, values.len()), &[values.len()]);
        let source = Source::Constant(HostTensor::of([values.len()], values));
        let destination = Destination::Ints { view: view.clone(), limit, negative: Negative::FromEnd };
        self.writes.push(Write { source, destination });
        view
    }

    /// A frozen weight as an operand, see [`Frozen::weight`], or what was merged into it at the node being lowered.
    pub(crate) fn weight(&mut self, frozen: &Frozen, n_axis: usize) -> Result<(Operand, Weight), OpError> {
        let merged = self.merged.and_then(|merged| merged.weight(&self.label));
        let key = match merged {
            Some(_) => WeightKey::Merged(self.label.clone()),
            None => WeightKey::Base(frozen.name().to_owned(), n_axis, frozen.shape()),
        };
        let id = match self.weight_ids.get(&key) {
            Some(&id) => id,
            None => {
                self.weights.push(match merged {
                    Some(weight) => weight.clone(),
                    None => frozen.weight(n_axis)?,
                });
                self.weight_ids.insert(key, self.weights.len() - 1);
                self.weights.len() - 1
            }
        };
        Ok((Operand(Bound::Weight(id)), self.weights[id].clone()))
    }

    /// The view, or a row-major copy when it is not one that every kernel can be bound to.
    ///
    /// Only for views of values, which are written once: copies are kept.
    pub fn contiguous(&mut self, view: &View) -> View {
        if view.is_contiguous() && self.buffers.is_bindable(view) {
            return view.clone();
        }
        let key = (view.buffer.index(), view.offset, view.shape.clone(), view.strides.clone());
        if let Some(copy) = self.copies.get(&key) {
            return copy.clone();
        }
        let copy = self.scratch(&view.shape);
        self.copy(view, &copy, false);
        self.copies.insert(key, copy.clone());
        copy
    }

    /// Whether a kernel can be bound to where a view starts.
    pub(crate) fn is_bindable(&self, view: &View) -> bool {
        self.buffers.is_bindable(view)
    }

    /// Whether a view fills its buffer, in whatever order.
    pub(crate) fn is_dense(&self, view: &View) -> bool {
        view.covers(self.buffers.get(view.buffer).len)
    }

    /// The view when it fills its buffer in whatever order, else a row-major copy.
    pub(crate) fn dense(&mut self, view: &View) -> View {
        if self.is_dense(view) { view.clone() } else { self.contiguous(view) }
    }

    /// A row-major copy of a gradient, or the gradient itself when it is one.
    pub(crate) fn contiguous_copy(&mut self, view: &View) -> View {
        if view.is_contiguous() && self.buffers.is_bindable(view) {
            return view.clone();
        }
        let copy = self.scratch(&view.shape);
        self.copy(view, &copy, false);
        copy
    }

    /// The gradient of a view, when anything has been added to it.
    pub(crate) fn gradient(&self, view: &View) -> Option<View> {
        let buffer = self.gradients.get(&view.buffer).or_else(|| self.donated.get(&view.buffer));
        buffer.map(|&buffer| View { buffer, ..view.clone() })
    }

    /// Where to put a gradient, and whether to add to what is there.
    pub(crate) fn gradient_target(&mut self, view: &View) -> (View, bool) {
        if let Some(gradient) = self.gradient(view) {
            return (gradient, true);
        }
        let len = self.buffers.get(view.buffer).len;
        let buffer = self.buffers.add(Region::Arena, len);
        self.gradients.insert(view.buffer, buffer);
        let covers = view.covers(len);
        if !covers {
            let all = View::contiguous(buffer, &[len]);
            self.call::<Fill>(&FillParams { len: u(len), value: 0.0 }, &[all.into()]);
        }
        (View { buffer, ..view.clone() }, !covers)
    }

    /// Lets the gradient of `from`, which is complete, become that of `to`, if nothing is there yet and both are whole
    /// buffers of one shape. A gradient goes to one other value only: what is added there must not show elsewhere.
    pub(crate) fn donate_gradient(&mut self, from: &View, to: &View) -> bool {
        let whole =
            |view: &View| view.offset == 0 && view.is_contiguous() && view.count() == self.buffers.get(view.buffer).len;
        if !whole(from) || !whole(to) || from.count() != to.count() || self.gradients.contains_key(&to.buffer) {
            return false;
        }
        match self.gradients.remove(&from.buffer) {
            Some(gradient) => {
                self.gradients.insert(to.buffer, gradient);
                self.donated.insert(from.buffer, gradient);
                true
            }
            None => false,
        }
    }
}
