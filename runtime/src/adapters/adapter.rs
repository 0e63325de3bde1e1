use std::collections::HashSet;

use inlay_format::record::{BaseId, PathHash};

use super::{AdapterError, AdapterOptions, AdapterPoint, Binding, Part, Settings, Site};
use crate::base::Base;
use crate::graph::Fragment;
use crate::merge::Merge;
use crate::random::Random;

/// The parameters of one adapter, bound to its base: f32 in memory, a few KB as a record.
///
/// A new one changes nothing until it is trained; a [`Trainer`](crate::Trainer) does that. Others come from a record or from a
/// PEFT folder.
///
/// ```
/// use std::ops::ControlFlow;
///
/// use inlay_runtime::{Adapter, AdapterOptions, Dataset, Dtype, Session, TrainOptions, Trainer};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut session = Session::open("tests/data/tiny")?;
/// let data = Dataset::read(session.base(), "tests/data/tiny.npz")?;
/// let new = Adapter::new(session.base(), &AdapterOptions::lora(1).targets(["head"]))?;
/// assert!(new.changes_nothing());
///
/// let mut trainer = Trainer::new(&mut session, new, &data, TrainOptions::new().steps(5))?;
/// let trained = trainer.run(|_| ControlFlow::Continue(()))?.adapter;
/// let record = trained.to_record(Dtype::F16)?;
/// assert!(record.len() < 100);
/// assert_eq!(Adapter::from_record(session.base(), &record)?.parameter_count(), 10);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    pub(super) base: BaseId,
    pub(super) parts: Vec<Part>,
}

impl Adapter {
    /// A new adapter for `base`, ready to train: it changes nothing yet.
    ///
    /// # Errors
    /// When `base` has no such points or `options` are out of range.
    pub fn new(base: &Base, options: &AdapterOptions) -> Result<Self, AdapterError> {
        let mut parts: Vec<Part> = Vec::new();
        let before = options.upstream(base)?;
        for wanted in options.parts() {
            let kind = wanted.find_kind()?;
            for (settings, sites) in by_settings(wanted.choose(base, before.as_ref())?) {
                parts.push(Part::new(base, kind, settings, &sites, |site, insertion| {
                    // A point's values depend on its path and the seed only, not on which other points there are.
                    let stream = u64::from_le_bytes(PathHash::of(&site.path).0);
                    Ok(kind.init(site, insertion, &settings, &mut Random::new(options.seed_value(), stream)))
                })?);
            }
        }
        Self::from_parts(base, parts)
    }

    /// An adapter of these parts, after every check that concerns them together.
    pub(super) fn from_parts(base: &Base, mut parts: Vec<Part>) -> Result<Self, AdapterError> {
        if parts.iter().all(|part| part.points.is_empty()) {
            return Err(AdapterError::Empty);
        }
        parts.sort_by_key(Part::order);
        let (mut points, mut places) = (HashSet::new(), HashSet::new());
        for part in &parts {
            for point in &part.points {
                if !points.insert((part.kind.id(), point.path.as_str())) {
                    return Err(AdapterError::RepeatedPoint { path: point.path.clone(), kind: part.kind.name() });
                }
                // What the file offers as an input has room for one parameter.
                let bound = point.parameters().iter().map(|parameter| parameter.name.as_str());
                let replaced = point.fragment().replaces.iter().map(|replacement| replacement.value.as_str());
                let inputs = replaced.filter(|value| base.parameters().iter().any(|port| port.name == *value));
                if let Some(name) = bound.chain(inputs).find(|name| !places.insert((*name).to_owned())) {
                    return Err(AdapterError::Conflict { name: name.to_owned() });
                }
            }
        }
        Ok(Adapter { base: base.fingerprint().into(), parts })
    }

    /// Its parts, in the order of the record.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The base that this adapter belongs to.
    pub fn base(&self) -> BaseId {
        self.base
    }

    /// Its points, part by part.
    pub fn points(&self) -> impl Iterator<Item = &AdapterPoint> {
        self.parts.iter().flat_map(|part| &part.points)
    }

    /// Its tensors, unscaled, each with its name and shape, in the order of the record.
    pub fn tensors(&self) -> impl Iterator<Item = (&Binding, &[f32])> {
        self.points().flat_map(|point| point.parameters().iter().zip(point.tensors.iter().map(Vec::as_slice)))
    }

    /// Its tensors, to change.
    pub(crate) fn tensors_mut(&mut self) -> impl Iterator<Item = (&Binding, &mut [f32])> {
        self.parts
            .iter_mut()
            .flat_map(|part| &mut part.points)
            .flat_map(|point| point.insertion.parameters.iter().zip(point.tensors.iter_mut().map(Vec::as_mut_slice)))
    }

    /// Sets the tensor of that name, one of [`Adapter::tensors`], unscaled and row-major.
    ///
    /// # Errors
    /// When there is none of that name, it has another number of elements, or a value is not finite.
    pub fn set_tensor(&mut self, name: &str, values: &[f32]) -> Result<(), AdapterError> {
        let fits = |tensor: &&mut [f32]| tensor.len() == values.len() && values.iter().all(|x| x.is_finite());
        let tensor = self.tensors_mut().find_map(|(binding, tensor)| (binding.name == name).then_some(tensor));
        let unknown = || AdapterError::Tensor { name: name.to_owned(), found: values.len() };
        tensor.filter(fits).ok_or_else(unknown)?.copy_from_slice(values);
        Ok(())
    }

    /// Its parameters as a plan has them, in the order of [`Adapter::tensors`].
    pub(crate) fn bindings(&self) -> Vec<Binding> {
        self.tensors().map(|(binding, _)| binding.clone()).collect()
    }

    /// What it adds to the graph.
    pub(crate) fn fragments(&self) -> Vec<Fragment> {
        let fragments = self.points().map(AdapterPoint::fragment);
        fragments.filter(|fragment| **fragment != Fragment::default()).cloned().collect()
    }

    /// Names of the outputs that it adds to those of the base.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        self.points().flat_map(|point| &point.fragment().outputs).map(|(name, _)| name.as_str())
    }

    /// What merging does at each point, with the node whose weight it changes; the kind where nothing can be merged.
    pub(crate) fn merges(&self, base: &Base) -> Result<Vec<(Site, Merge)>, &'static str> {
        let mut merges = Vec::new();
        for part in &self.parts {
            let sites = part.kind.sites(base);
            for point in &part.points {
                let site = sites.iter().find(|site| site.path == point.path).ok_or(part.kind.name())?;
                let merge = part.kind.merge(site, &part.settings, &point.tensors).ok_or(part.kind.name())?;
                merges.push((site.clone(), merge));
            }
        }
        Ok(merges)
    }

    /// Number of trainable parameters.
    pub fn parameter_count(&self) -> usize {
        self.tensors().map(|(_, values)| values.len()).sum()
    }

    /// Whether it computes what the base does.
    pub fn changes_nothing(&self) -> bool {
        self.parts.iter().all(Part::changes_nothing)
    }
}

/// The sites by their settings, in the order in which these first occur.
pub(super) fn by_settings(chosen: Vec<(Settings, Site)>) -> Vec<(Settings, Vec<Site>)> {
    let mut groups: Vec<(Settings, Vec<Site>)> = Vec::new();
    for (settings, site) in chosen {
        match groups.iter_mut().find(|(of_group, _)| *of_group == settings) {
            Some((_, sites)) => sites.push(site),
            None => groups.push((settings, vec![site])),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use inlay_format::record::{Dtype, Record, RecordError};

    use super::*;
    use crate::base::Verify;
    use crate::peft::Prefix;

    fn base() -> Base {
        Base::open("tests/data/tiny", Verify::Full).unwrap()
    }

    /// An adapter without zeros.
    fn trained(options: &AdapterOptions) -> Adapter {
        let mut adapter = Adapter::new(&base(), options).unwrap();
        for (i, (_, tensor)) in adapter.tensors_mut().enumerate() {
            tensor.iter_mut().enumerate().for_each(|(j, x)| *x = (i * 100 + j) as f32 / 64.0 + 0.5);
        }
        adapter
    }

    #[test]
    fn new_adapters_change_nothing_and_follow_their_seed() {
        let options = AdapterOptions::lora(2).seed(5);
        let adapter = Adapter::new(&base(), &options).unwrap();
        assert!(adapter.changes_nothing());
        assert!(matches!(adapter.to_record(Dtype::F32), Err(AdapterError::ChangesNothing)));
        assert_eq!(adapter, Adapter::new(&base(), &options).unwrap());
        assert_ne!(adapter, Adapter::new(&base(), &options.clone().seed(6)).unwrap());
        let find = |adapter: &Adapter| {
            adapter.tensors().find(|(binding, _)| binding.name == "head.lora_A").map(|(_, a)| a.to_vec()).unwrap()
        };
        let only_head = Adapter::new(&base(), &options.targets(["head"])).unwrap();
        assert_eq!(find(&adapter), find(&only_head), "a point's start does not depend on the other points");
        let bound = 1.0 / 8f32.sqrt();
        assert!(
            find(&adapter).iter().all(|a| a.abs() <= bound) && find(&adapter).iter().any(|a| a.abs() > bound / 2.0)
        );
    }

    #[test]
    fn scaling_is_of_b_when_fed() {
        let scale = |options: AdapterOptions| {
            let adapter = Adapter::new(&base(), &options).unwrap();
            adapter
                .bindings()
                .iter()
                .map(|binding| (binding.name.ends_with("lora_B"), binding.scale))
                .collect::<Vec<_>>()
        };
        let plain = scale(AdapterOptions::lora(4).alpha(6.0));
        assert!(plain.iter().all(|(b, scale)| *scale == if *b { 1.5 } else { 1.0 }));
        let rslora = scale(AdapterOptions::lora(4).alpha(6.0).rslora(true));
        assert!(rslora.iter().all(|(b, scale)| *scale == if *b { 3.0 } else { 1.0 }));
    }

    #[test]
    fn records_round_trip() {
        for options in [AdapterOptions::lora(2), AdapterOptions::lora(3).rslora(true).targets(["fc1"])] {
            let adapter = trained(&options);
            for dtype in Dtype::ALL {
                let record = adapter.to_record(dtype).unwrap();
                let read = Adapter::from_record(&base(), &record).unwrap();
                if matches!(dtype, Dtype::F32 | Dtype::F16) {
                    // The values are multiples of 1/64, which f16 holds.
                    assert_eq!(read, adapter);
                    continue;
                }
                // Each tensor in its place: the values lie far apart from one tensor to the next.
                for ((binding, read), (_, written)) in read.tensors().zip(adapter.tensors()) {
                    let largest = written.iter().fold(0f32, |most, x| most.max(x.abs()));
                    let limit = largest * if dtype == Dtype::Int8 { 0.005 } else { 0.1 };
                    let off = read.iter().zip(written).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                    assert!(off <= limit, "{dtype:?} {}: off by {off}", binding.name);
                }
            }
        }
    }

    #[test]
    fn what_a_dtype_rounds_to_nothing_is_refused() {
        let mut adapter = trained(&AdapterOptions::lora(2));
        adapter.tensors_mut().flat_map(|(_, tensor)| tensor).for_each(|x| *x = 1e-9);
        assert!(adapter.to_record(Dtype::F32).is_ok());
        for dtype in [Dtype::F16, Dtype::Int8, Dtype::Int4] {
            let refused = adapter.to_record(dtype).unwrap_err();
            assert!(matches!(refused, AdapterError::RoundsToNothing { .. }), "{refused}");
        }
    }

    /// The same adapter as versions 1 and 2 of the record have it.
    #[test]
    fn records_of_version_1_give_the_same_adapter() {
        let adapter = trained(&AdapterOptions::lora(2));
        let record = adapter.to_record(Dtype::F32).unwrap();
        let header = *Record::decode(&record).unwrap().parts().next().unwrap().header();
        let mut old = b"INLA\x01".to_vec();
        old.extend(adapter.base().0);
        old.extend([u8::try_from(header.kind).unwrap(), 0, 2]);
        old.extend(header.alpha.to_le_bytes());
        old.push(u8::try_from(adapter.points().count()).unwrap());
        for point in adapter.points() {
            old.extend(PathHash::of(&point.path).0);
            let sizes = point.tensors.iter().map(|tensor| u8::try_from(tensor.len()).unwrap());
            old.extend(std::iter::once(2).chain(sizes));
        }
        old.extend(adapter.tensors().flat_map(|(_, values)| values).flat_map(|x| x.to_le_bytes()));
        old.extend(&blake3::hash(&old).as_bytes()[..16].to_vec());
        assert_eq!(Adapter::from_record(&base(), &old).unwrap(), adapter);
    }

    #[test]
    fn peft_folders_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let adapter = trained(&AdapterOptions::lora(2).alpha(3.0));
        adapter.to_peft(&base(), folder.path()).unwrap();
        let (read, prefix) = Adapter::from_peft(&base(), folder.path()).unwrap();
        assert_eq!((read, prefix), (adapter, Prefix::None));
    }

    #[test]
    fn what_cannot_be_is_named() {
        let error = |options: AdapterOptions| Adapter::new(&base(), &options).unwrap_err();
        assert_eq!(
            error(AdapterOptions::kind("dora", 1)).to_string(),
            "there is no adapter kind \"dora\"; use one of: lora, bias, norm, dense, head, lora-xs, ia3, bottleneck, prompt"
        );
        assert!(matches!(error(AdapterOptions::lora(0)), AdapterError::Rank { found: 0, .. }));
        assert!(matches!(error(AdapterOptions::lora(2000)), AdapterError::Rank { .. }));
        assert!(matches!(error(AdapterOptions::lora(2).alpha(0.0)), AdapterError::Alpha { .. }));
        assert!(matches!(error(AdapterOptions::lora(2).alpha(f32::NAN)), AdapterError::Alpha { .. }));
        assert!(matches!(error(AdapterOptions::lora(2).targets(["nose"])), AdapterError::Targets(_)));
    }

    #[test]
    fn parts_are_split_by_their_numbers_and_hold_each_point_once() {
        let options = AdapterOptions::lora(2).rank_at("head", 3).alpha_at("fc1", 5.0);
        let adapter = Adapter::new(&base(), &options).unwrap();
        let settings: Vec<_> =
            adapter.parts().iter().map(|part| (part.settings().rank, part.settings().alpha)).collect();
        assert_eq!(settings, [(2, 5.0), (3, 6.0)]);
        assert_eq!(adapter.points().map(AdapterPoint::path).collect::<Vec<_>>(), ["fc1", "head"]);
        let twice = AdapterOptions::lora(2).and(AdapterOptions::lora(3).targets(["head"]));
        let error = Adapter::new(&base(), &twice).unwrap_err();
        assert!(matches!(&error, AdapterError::RepeatedPoint { path, .. } if path == "head"), "{error}");
        let nothing = AdapterOptions::lora(2).targets(["fc1"]).rank_at("head", 3);
        assert!(matches!(Adapter::new(&base(), &nothing), Err(AdapterError::Targets(_))));
    }

    #[test]
    fn records_that_do_not_fit_are_refused() {
        let adapter = trained(&AdapterOptions::lora(2));
        let refused =
            |adapter: &Adapter| Adapter::from_record(&base(), &adapter.to_record(Dtype::F32).unwrap()).unwrap_err();
        let mut other_base = adapter.clone();
        other_base.base.0[0] ^= 1;
        assert!(matches!(refused(&other_base), AdapterError::Record(RecordError::OtherBase { .. })));
        let mut other_point = adapter.clone();
        other_point.parts[0].points[0].path = "nose".into();
        assert!(matches!(refused(&other_point), AdapterError::UnknownPoint { .. }));
        let mut other_size = adapter.clone();
        other_size.parts[0].points[0].tensors[0].extend([1.0; 2]);
        assert!(matches!(refused(&other_size), AdapterError::Sizes { .. }));
        let mut other_rank = adapter;
        other_rank.parts[0].settings.rank = 3;
        assert!(matches!(refused(&other_rank), AdapterError::Sizes { .. }));
    }
}
