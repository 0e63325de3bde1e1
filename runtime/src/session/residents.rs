use std::sync::{Arc, OnceLock};

use inlay_devices::program::Region;

use super::{Session, SessionError, expect_base};
use crate::adapters::{Adapter, AdapterError};
use crate::engine::{Ready, Version};
use crate::graph::Fragment;
use crate::plan::{Binding, FeedError, PlanError};

/// An adapter in memory, ready to be written to a plan.
pub(super) struct Resident {
    adapter: Adapter,
    version: Version,
    changes: Changes,
    /// The same with LoRA in the place of LoRA-XS, which batches that mix adapters need.
    as_lora: OnceLock<Arc<Resident>>,
}

/// What adapters change in a graph: those that change the same share a plan.
#[derive(Clone, Default)]
pub(super) struct Changes {
    /// Parameters, without scales: those are folded into the values when they are written, so that adapters that differ
    /// only in their scaling share a plan.
    pub bindings: Vec<Binding>,
    /// Nodes beside them.
    pub fragments: Vec<Fragment>,
}

impl Resident {
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    pub fn changes(&self) -> &Changes {
        &self.changes
    }
}

/// The adapter of a resident that was taken from its place; a copy where another place has it too.
pub(super) fn taken(resident: Arc<Resident>) -> Adapter {
    Arc::try_unwrap(resident).map_or_else(|shared| shared.adapter.clone(), |own| own.adapter)
}

/// Many adapters on one base.
///
/// They stay in memory, a few KB each, and a call of [`Session::use_adapter`] swaps between them: no file is read and
/// nothing is planned again. The next prediction copies the parameters of the one in use to the device, if they are not
/// there. Adapters of the same kind, points and ranks share one plan; with more sets of ranks than
/// [`SessionOptions::plan_cache`](super::SessionOptions::plan_cache), plans are made again and again.
impl Session {
    /// Keeps an adapter under a name; gives back the one that had the name. If that one was in use, the new one is. The adapter
    /// is checked as [`Session::set_adapter`] says.
    ///
    /// # Errors
    /// When the adapter belongs to another base or has no effect, or another is merged.
    pub fn add_adapter(&mut self, name: impl Into<String>, adapter: Adapter) -> Result<Option<Adapter>, SessionError> {
        let resident = self.resident(adapter)?;
        let before = self.residents.insert(name.into(), Arc::clone(&resident));
        if let (Some(before), Some(in_use)) = (&before, &mut self.in_use)
            && Arc::ptr_eq(before, in_use)
        {
            *in_use = resident;
        }
        Ok(before.map(taken))
    }

    /// Forgets the adapter of that name, and gives it back. If it was in use, the base alone is.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn remove_adapter(&mut self, name: &str) -> Result<Adapter, SessionError> {
        let resident = self.residents.remove(name).ok_or_else(|| self.not_resident(name))?;
        self.in_use.take_if(|in_use| Arc::ptr_eq(in_use, &resident));
        Ok(taken(resident))
    }

    /// The resident adapters, by name, in order.
    pub fn adapters(&self) -> impl Iterator<Item = (&str, &Adapter)> {
        self.residents.iter().map(|(name, resident)| (name.as_str(), &resident.adapter))
    }

    /// Puts the resident adapter of that name in use, or the base alone.
    ///
    /// # Errors
    /// When there is none of that name, or another is merged.
    pub fn use_adapter(&mut self, name: Option<&str>) -> Result<(), SessionError> {
        self.in_use = name.map(|name| self.find(name)).transpose()?;
        Ok(())
    }

    /// Keeps the weighted sum of resident adapters under a name, as an adapter of its own; see [`Adapter::stack`].
    /// Gives back the one that had the name.
    ///
    /// # Errors
    /// As for [`Adapter::stack`], and when one of `weights` is not resident.
    pub fn stack_adapters(
        &mut self,
        name: impl Into<String>,
        weights: &[(&str, f32)],
    ) -> Result<Option<Adapter>, SessionError> {
        let found = weights.iter().map(|(name, _)| self.find(name)).collect::<Result<Vec<_>, _>>()?;
        let parts: Vec<_> =
            weights.iter().zip(&found).map(|((name, weight), resident)| (*name, &resident.adapter, *weight)).collect();
        let stack = Adapter::stack(self.base(), &parts)?;
        self.add_adapter(name, stack)
    }

    pub(super) fn find(&self, name: &str) -> Result<Arc<Resident>, SessionError> {
        self.expect_unmerged()?;
        self.residents.get(name).cloned().ok_or_else(|| self.not_resident(name))
    }

    fn not_resident(&self, name: &str) -> SessionError {
        let known: Vec<&str> = self.residents.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        SessionError::NotResident { name: name.to_owned(), known }
    }

    pub(super) fn resident(&mut self, adapter: Adapter) -> Result<Arc<Resident>, SessionError> {
        self.expect_unmerged()?;
        expect_base(&adapter, self.base().fingerprint())?;
        if adapter.changes_nothing() {
            return Err(AdapterError::ChangesNothing.into());
        }
        let off_path = adapter.point_without_effect(self.base().graph()).map_err(PlanError::from);
        if let Some(point) = off_path.map_err(AdapterError::from)? {
            return Err(AdapterError::OffPath { path: point.path().to_owned() }.into());
        }
        Ok(self.unchecked(adapter))
    }

    /// A resident whose parameters can differ between the samples of a batch.
    pub(super) fn mixable(&mut self, name: &str) -> Result<Arc<Resident>, SessionError> {
        let resident = self.find(name)?;
        if resident.adapter.unmixable().is_none() {
            return Ok(resident);
        }
        if let Some(as_lora) = resident.as_lora.get() {
            return Ok(Arc::clone(as_lora));
        }
        let lora = resident.adapter.to_lora(self.base())?;
        if let Some(kind) = lora.unmixable() {
            return Err(SessionError::NotMixable { name: name.to_owned(), kind });
        }
        let as_lora = self.unchecked(lora);
        Ok(Arc::clone(resident.as_lora.get_or_init(|| as_lora)))
    }

    pub(super) fn unchecked(&mut self, adapter: Adapter) -> Arc<Resident> {
        let bindings = adapter.bindings().into_iter().map(|binding| Binding { scale: 1.0, ..binding }).collect();
        let changes = Changes { bindings, fragments: adapter.fragments() };
        Arc::new(Resident { adapter, version: self.engine.next_version(), changes, as_lora: OnceLock::new() })
    }
}

/// Writes parameters, of one adapter or of one a sample, unless they are there already. A sample without one gets zeros.
pub(super) fn write(
    ready: &mut Ready,
    bindings: &[Binding],
    adapters: &[Option<Arc<Resident>>],
) -> Result<(), FeedError> {
    let Ready { plan, executable, versions } = ready;
    if plan.row_len() == 0 {
        return Ok(());
    }
    let mut row = Vec::new();
    for (at, (adapter, held)) in adapters.iter().zip(versions).enumerate() {
        let version = adapter.as_ref().map_or(Version::ZEROS, |adapter| adapter.version);
        if *held == Some(version) {
            continue;
        }
        *held = None;
        row.clear();
        row.resize(plan.row_len(), 0.0);
        for (i, (own, values)) in adapter.iter().flat_map(|resident| resident.adapter.tensors()).enumerate() {
            let fits = |binding: &Binding| binding.name == own.name;
            let place = if bindings.get(i).is_some_and(fits) { Some(i) } else { bindings.iter().position(fits) };
            let place = place.expect("the plan has a parameter for each of the adapter's");
            let slot = &plan.parameters()[place];
            place_padded(values, own, &bindings[place].shape, &mut row[slot.offset..]);
        }
        executable.write(Region::Params, at * plan.row_len(), &row)?;
        *held = Some(version);
    }
    Ok(())
}

/// Copies a tensor, times its scale, into one of another shape that is nowhere smaller, row-major.
fn place_padded(values: &[f32], own: &Binding, shape: &[usize], to: &mut [f32]) {
    if own.shape == shape {
        to.iter_mut().zip(values).for_each(|(to, value)| *to = own.scale * value);
        return;
    }
    let Some((&run, outer)) = own.shape.split_last() else { return };
    for (i, from) in values.chunks_exact(run.max(1)).enumerate() {
        // The place of this run's first element: its index in every outer dimension, by the other shape's strides.
        let (mut rest, mut at, mut stride) = (i, 0, shape[outer.len()]);
        for axis in (0..outer.len()).rev() {
            at += rest % outer[axis] * stride;
            rest /= outer[axis];
            stride *= shape[axis];
        }
        to[at..at + run].iter_mut().zip(from).for_each(|(to, value)| *to = own.scale * value);
    }
}
