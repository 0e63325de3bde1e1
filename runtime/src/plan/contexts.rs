use std::ops::{Deref, DerefMut};

use super::analyze::{Role, Step};
use super::frozen::Frozen;
use super::lower::Lowering;
use super::view::View;
use crate::graph::Attributes;
use crate::ops::{NodeView, OpError, TensorType};

/// What an op has to emit its forward pass with.
#[derive(Debug)]
pub struct Forward<'c, 'a> {
    lowering: &'c mut Lowering<'a>,
    step: &'a Step,
    saved: Vec<View>,
}

impl<'c, 'a> Forward<'c, 'a> {
    pub(crate) fn new(lowering: &'c mut Lowering<'a>, step: &'a Step) -> Self {
        lowering.label.clone_from(&step.label);
        Forward { lowering, step, saved: Vec::new() }
    }

    pub(crate) fn into_saved(self) -> Vec<View> {
        self.saved
    }

    /// The node.
    pub fn node(&self) -> NodeView<'a> {
        self.lowering.analysis.view(self.step)
    }

    /// The node's attributes.
    pub fn attributes(&self) -> &'a Attributes {
        &self.step.attributes
    }

    /// Type of an output.
    pub fn output_type(&self, output: usize) -> &'a TensorType {
        let value = self.step.outputs[output].expect("asked only for outputs that are wanted");
        &self.lowering.analysis.values[value].ty
    }

    /// Whether anyone wants an output.
    pub fn has_output(&self, output: usize) -> bool {
        self.step.outputs.get(output).is_some_and(Option::is_some)
    }

    /// Where an input lies, with any strides.
    ///
    /// # Errors
    /// When it is missing, or no float.
    pub fn input(&mut self, input: usize) -> Result<View, OpError> {
        self.lowering.value(value(self.step, input)?)
    }

    /// An input, row-major.
    ///
    /// # Errors
    /// As for [`Forward::input`].
    pub fn contiguous_input(&mut self, input: usize) -> Result<View, OpError> {
        let view = self.input(input)?;
        Ok(self.lowering.contiguous(&view))
    }

    /// An input that is frozen.
    pub fn frozen(&self, input: usize) -> Option<Frozen> {
        frozen(self.lowering, self.step, input)
    }

    /// Integers `0..limit` of an input that the host knows.
    ///
    /// # Errors
    /// When the device would have to compute them.
    pub fn integers(&mut self, input: usize, limit: usize) -> Result<View, OpError> {
        self.lowering.integers(value(self.step, input)?, limit)
    }

    /// Makes room for an output, row-major.
    pub fn output(&mut self, output: usize) -> View {
        let view = self.lowering.scratch(&self.output_type(output).shape);
        self.set_output(output, view.clone());
        view
    }

    /// Says that an output lies where something else does; gradients are then shared too.
    pub fn set_output(&mut self, output: usize, view: View) {
        if let Some(value) = self.step.outputs[output] {
            self.lowering.set_value(value, view);
        }
    }

    /// Keeps a view for the backward pass.
    pub fn save(&mut self, view: View) {
        self.saved.push(view);
    }
}

/// What an op has to emit its backward pass with.
#[derive(Debug)]
pub struct Backward<'c, 'a> {
    lowering: &'c mut Lowering<'a>,
    step: &'a Step,
    saved: &'c [View],
}

impl<'c, 'a> Backward<'c, 'a> {
    pub(crate) fn new(lowering: &'c mut Lowering<'a>, step: &'a Step, saved: &'c [View]) -> Self {
        lowering.label.clone_from(&step.label);
        Backward { lowering, step, saved }
    }

    /// The node.
    pub fn node(&self) -> NodeView<'a> {
        self.lowering.analysis.view(self.step)
    }

    /// The node's attributes.
    pub fn attributes(&self) -> &'a Attributes {
        &self.step.attributes
    }

    /// Whether the gradient of an input is wanted.
    pub fn wants(&self, input: usize) -> bool {
        self.step.inputs.get(input).copied().flatten().is_some_and(|value| self.lowering.needs[value])
    }

    /// Where an input lies.
    ///
    /// # Errors
    /// When it is missing.
    pub fn input(&mut self, input: usize) -> Result<View, OpError> {
        self.lowering.value(value(self.step, input)?)
    }

    /// An input, row-major.
    ///
    /// # Errors
    /// When it is missing.
    pub fn contiguous_input(&mut self, input: usize) -> Result<View, OpError> {
        let view = self.input(input)?;
        Ok(self.lowering.contiguous(&view))
    }

    /// An input that is frozen.
    pub fn frozen(&self, input: usize) -> Option<Frozen> {
        frozen(self.lowering, self.step, input)
    }

    /// Integers of an input that the host knows.
    ///
    /// # Errors
    /// As for [`Forward::integers`].
    pub fn integers(&mut self, input: usize, limit: usize) -> Result<View, OpError> {
        self.lowering.integers(value(self.step, input)?, limit)
    }

    /// Where an output lies.
    ///
    /// # Errors
    /// When nobody wanted it.
    pub fn output(&mut self, output: usize) -> Result<View, OpError> {
        let value = self.step.outputs[output].ok_or(OpError::Missing { input: output })?;
        self.lowering.value(value)
    }

    /// What [`Forward::save`] kept, by its number.
    pub fn saved(&self, number: usize) -> View {
        self.saved[number].clone()
    }

    /// The gradient of an output, with any strides; `None` when it is zero.
    pub fn gradient(&mut self, output: usize) -> Option<View> {
        let value = self.step.outputs[output]?;
        let view = self.lowering.value(value).ok()?;
        self.lowering.gradient(&view)
    }

    /// The gradient of an output, row-major; `None` when it is zero.
    pub fn contiguous_gradient(&mut self, output: usize) -> Option<View> {
        let gradient = self.gradient(output)?;
        Some(self.lowering.contiguous_copy(&gradient))
    }

    /// Where to put the gradient of an input, with that input's strides, and whether to add.
    ///
    /// # Errors
    /// When the input is missing.
    pub fn target(&mut self, input: usize) -> Result<(View, bool), OpError> {
        let view = self.input(input)?;
        Ok(self.lowering.gradient_target(&view))
    }

    /// Has `emit` put the gradient of an input into a row-major place, if it is wanted.
    ///
    /// # Errors
    /// When the input is missing, or what `emit` says.
    pub fn add(
        &mut self,
        input: usize,
        emit: impl FnOnce(&mut Lowering<'a>, &View, bool) -> Result<(), OpError>,
    ) -> Result<(), OpError> {
        if !self.wants(input) {
            return Ok(());
        }
        let view = self.input(input)?;
        add_gradient(self.lowering, &view, emit)
    }

    /// Has `emit` put the gradient of an input, seen in another shape, where it is, if it is wanted. `emit` takes any
    /// strides.
    ///
    /// # Errors
    /// When the input is missing, or what `emit` says.
    pub fn add_strided(
        &mut self,
        input: usize,
        shape: &[usize],
        emit: impl FnOnce(&mut Lowering<'a>, &View, bool) -> Result<(), OpError>,
    ) -> Result<(), OpError> {
        if !self.wants(input) {
            return Ok(());
        }
        let view = self.input(input)?;
        let bindable = self.lowering.buffers.is_bindable(&view);
        if let Some(view) = view.reshaped(shape).filter(|_| bindable) {
            let (target, accumulate) = self.lowering.gradient_target(&view);
            return emit(self.lowering, &target, accumulate);
        }
        add_gradient(self.lowering, &view, |lowering, target, accumulate| {
            emit(lowering, &target.reshaped(shape).expect("it is row-major"), accumulate)
        })
    }

    /// Has `emit` put the gradient of an input, with its dimensions in the order `perm`, into a row-major place, which then
    /// goes where the input lies.
    ///
    /// # Errors
    /// When the input is missing, or what `emit` says.
    pub fn add_in_order(
        &mut self,
        input: usize,
        perm: &[usize],
        emit: impl FnOnce(&mut Lowering<'a>, &View, bool) -> Result<(), OpError>,
    ) -> Result<(), OpError> {
        if !self.wants(input) {
            return Ok(());
        }
        let (target, accumulate) = self.target(input)?;
        let target = target.permuted(perm);
        if target.is_contiguous() && self.lowering.buffers.is_bindable(&target) {
            return emit(self.lowering, &target, accumulate);
        }
        let own = self.lowering.scratch(target.shape());
        emit(self.lowering, &own, false)?;
        self.lowering.copy(&own, &target, accumulate);
        Ok(())
    }

    /// Hands the gradient of an output on as that of an input of the same size.
    ///
    /// # Errors
    /// When the input is missing.
    pub fn pass(&mut self, output: usize, input: usize) -> Result<(), OpError> {
        if !self.wants(input) {
            return Ok(());
        }
        let Some(gradient) = self.gradient(output) else { return Ok(()) };
        let to = self.input(input)?;
        let from = self.output(output)?;
        if from.shape() == to.shape() && self.lowering.donate_gradient(&from, &to) {
            return Ok(());
        }
        let (target, accumulate) = self.lowering.gradient_target(&to);
        if target.buffer == gradient.buffer {
            // Both inputs are one value, which has taken over this very gradient: it counts twice.
            let copy = self.lowering.scratch(gradient.shape());
            self.lowering.copy(&gradient, &copy, false);
            self.lowering.copy(&copy, &target, accumulate);
        } else {
            self.lowering.copy(&gradient, &target, accumulate);
        }
        Ok(())
    }
}

/// Has `emit` put the gradient of a view into a row-major place.
pub(crate) fn add_gradient<'a>(
    lowering: &mut Lowering<'a>,
    view: &View,
    emit: impl FnOnce(&mut Lowering<'a>, &View, bool) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let (target, accumulate) = lowering.gradient_target(view);
    if target.is_contiguous() && lowering.buffers.is_bindable(&target) {
        return emit(lowering, &target, accumulate);
    }
    let temporary = lowering.scratch(&view.shape);
    emit(lowering, &temporary, false)?;
    lowering.copy(&temporary, &target, accumulate);
    Ok(())
}

fn value(step: &Step, input: usize) -> Result<usize, OpError> {
    step.inputs.get(input).copied().flatten().ok_or(OpError::Missing { input })
}

fn frozen(lowering: &Lowering<'_>, step: &Step, input: usize) -> Option<Frozen> {
    let it = &lowering.analysis.values[value(step, input).ok()?];
    match &it.role {
        Role::Constant { frozen: Some(frozen), .. } => frozen.is_dequantized().then(|| frozen.clone()),
        Role::Constant { host: Some(host), .. } => Frozen::from_host(&it.name, host),
        _ => None,
    }
}

impl<'a> Deref for Forward<'_, 'a> {
    type Target = Lowering<'a>;
    fn deref(&self) -> &Lowering<'a> {
        self.lowering
    }
}

impl<'a> DerefMut for Forward<'_, 'a> {
    fn deref_mut(&mut self) -> &mut Lowering<'a> {
        self.lowering
    }
}

impl<'a> Deref for Backward<'_, 'a> {
    type Target = Lowering<'a>;
    fn deref(&self) -> &Lowering<'a> {
        self.lowering
    }
}

impl<'a> DerefMut for Backward<'_, 'a> {
    fn deref_mut(&mut self) -> &mut Lowering<'a> {
        self.lowering
    }
}
