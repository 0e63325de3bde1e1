//! Adapters: small trainable changes to a frozen base.
//!
//! One file a kind; `KINDS` lists them. A kind says which parameters it has at an insertion point, how they start
//! and how they are fed; the record stores them without knowing what they mean.

mod groups;
mod lora;
mod targets;

pub use lora::Lora;
pub use targets::{TargetError, Targets};

pub use crate::plan::Binding;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use inlay_format::points::{MAX_RANK, Point};
use inlay_format::record::{
    BaseId, Dtype, PartHeader, PartValues, PathHash, PointValues, Record, RecordError, TensorValues, encode,
    encoded_len,
};

use crate::base::Base;
use crate::graph::HostTensor;
use crate::peft::{self, LoraTensors, PeftError, PeftLora, Prefix};
use crate::random::Random;

/// Every adapter kind.
pub static KINDS: &[&dyn AdapterKind] = &[&Lora];

/// A kind of adapter.
pub trait AdapterKind: Sync {
    /// Name, as in the points of a base and in `--kind`.
    fn name(&self) -> &'static str;

    /// Number in an adapter record.
    fn id(&self) -> u16;

    /// The parameters at `point`, in the order of the record.
    fn parameters(&self, point: &Point<String>, settings: &Settings) -> Vec<Binding>;

    /// Values of the parameters at `point` before training, in the same order. They change nothing yet.
    fn init(&self, point: &Point<String>, settings: &Settings, random: &mut Random) -> Vec<Vec<f32>>;

    /// The axis of a parameter, by its place in [`AdapterKind::parameters`] and its shape, along which an int8 or int4 record
    /// has scales of their own: a scale for each of its rows. `None`: one scale for all.
    fn scale_axis(&self, parameter: usize, shape: &[usize]) -> Option<usize>;

    /// Whether a point with these values computes what the base does.
    fn changes_nothing(&self, tensors: &[Vec<f32>]) -> bool;
}

impl fmt::Debug for dyn AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The kind of that name.
pub fn find(name: &str) -> Option<&'static dyn AdapterKind> {
    KINDS.iter().copied().find(|kind| kind.name() == name)
}

/// The numbers that an adapter has as a whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Rank `r`; 0 for kinds that have none.
    pub rank: u16,
    /// LoRA's alpha.
    pub alpha: f32,
    /// Whether `scaling` is alpha / sqrt(r) instead of alpha / r.
    pub rslora: bool,
}

/// Why an adapter cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// No such kind.
    #[error("there is no adapter kind \"{found}\"; use one of: {known}")]
    Kind {
        /// The name asked for.
        found: String,
        /// The names that there are.
        known: String,
    },
    /// A rank out of range.
    #[error("rank is {found}, expected 1 to {MAX_RANK}")]
    Rank {
        /// The rank asked for.
        found: u16,
    },
    /// An alpha that scales the adapter to nothing or to nonsense.
    #[error("alpha is {found}, expected a finite number other than 0")]
    Alpha {
        /// The alpha asked for.
        found: f32,
    },
    /// Target patterns that do not select.
    #[error(transparent)]
    Targets(#[from] TargetError),
    /// The base has no point for this kind.
    #[error("the base has no insertion point for adapters of kind \"{kind}\"; export it with --kinds {kind}")]
    NoPoints {
        /// The kind.
        kind: &'static str,
    },
    /// The adapter computes what the base does.
    #[error("the adapter changes nothing: a factor is zero at every point; train it with a learning rate above 0")]
    ChangesNothing,
    /// Rounded to the record's dtype, it computes what the base does.
    #[error("the adapter is so small that {} rounds it to nothing; train longer, or save as f32", dtype.name())]
    RoundsToNothing {
        /// The dtype.
        dtype: Dtype,
    },
    /// The record has parts that this program cannot combine.
    #[error("the adapter has {found} parts, this program uses adapters of one; update the program")]
    Parts {
        /// How many it has.
        found: usize,
    },
    /// The record cannot be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The PEFT folder cannot be read or written.
    #[error(transparent)]
    Peft(#[from] PeftError),
    /// The record names a point that the base does not have.
    #[error(
        "the adapter has a point (path hash {path}) that the base does not list; open the base that it was trained on"
    )]
    UnknownPoint {
        /// Hash of the point's path.
        path: PathHash,
    },
    /// The record's tensors are not those of its kind at a point.
    #[error(
        "point \"{path}\": the adapter has tensors of {found:?} elements, expected {expected:?}; train anew on this base"
    )]
    Sizes {
        /// The point.
        path: String,
        /// Elements of each tensor found.
        found: Vec<usize>,
        /// Elements of each tensor expected.
        expected: Vec<usize>,
    },
}

/// What a new adapter should be.
///
/// ```
/// use inlay_runtime::AdapterOptions;
///
/// let options = AdapterOptions::lora(4).alpha(8.0).targets(["encoder.*.query", "head"]).seed(7);
/// ```
#[derive(Clone, Debug)]
pub struct AdapterOptions {
    kind: String,
    rank: u16,
    alpha: Option<f32>,
    rslora: bool,
    targets: Vec<String>,
    seed: u64,
}

impl AdapterOptions {
    /// LoRA of rank `rank`, with alpha = 2 `rank`, at every point that offers it.
    pub fn lora(rank: u16) -> Self {
        Self::kind(Lora.name(), rank)
    }

    /// An adapter of the kind of that name in [`KINDS`].
    pub fn kind(name: impl Into<String>, rank: u16) -> Self {
        AdapterOptions { kind: name.into(), rank, alpha: None, rslora: false, targets: Vec::new(), seed: 0 }
    }

    /// Sets alpha, 2 x rank unless set.
    #[must_use]
    pub fn alpha(self, alpha: f32) -> Self {
        AdapterOptions { alpha: Some(alpha), ..self }
    }

    /// Whether `scaling` is alpha / sqrt(r) instead of alpha / r.
    #[must_use]
    pub fn rslora(self, rslora: bool) -> Self {
        AdapterOptions { rslora, ..self }
    }

    /// Takes only points whose path matches one of these globs. Each must match at least one.
    #[must_use]
    pub fn targets<P: Into<String>>(self, patterns: impl IntoIterator<Item = P>) -> Self {
        AdapterOptions { targets: patterns.into_iter().map(Into::into).collect(), ..self }
    }

    /// Sets the seed of the initial values, 0 unless set.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        AdapterOptions { seed, ..self }
    }
}

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
    kind: &'static dyn AdapterKind,
    base: BaseId,
    settings: Settings,
    points: Vec<AdapterPoint>,
}

impl PartialEq for dyn AdapterKind {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

#[derive(Clone, Debug, PartialEq)]
struct AdapterPoint {
    path: String,
    bindings: Vec<Binding>,
    tensors: Vec<Vec<f32>>,
}

impl Adapter {
    /// A new adapter for `base`, ready to train: it changes nothing yet.
    ///
    /// # Errors
    /// When `base` has no such points or `options` are out of range.
    pub fn new(base: &Base, options: &AdapterOptions) -> Result<Self, AdapterError> {
        let kind = find(&options.kind).ok_or_else(|| AdapterError::Kind {
            found: options.kind.clone(),
            known: KINDS.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", "),
        })?;
        let alpha = options.alpha.unwrap_or(2.0 * f32::from(options.rank));
        let settings = Settings { rank: options.rank, alpha, rslora: options.rslora };
        let offering: Vec<&Point<String>> = base.points().iter().filter(|point| point.offers(kind.name())).collect();
        if offering.is_empty() {
            return Err(AdapterError::NoPoints { kind: kind.name() });
        }
        let chosen: Vec<&Point<String>> = if options.targets.is_empty() {
            offering
        } else {
            let selected = Targets::new(&options.targets)?.select(offering.iter().map(|point| point.path.as_str()))?;
            selected.into_iter().map(|index| offering[index]).collect()
        };
        Self::from_points(base, kind, settings, chosen, |point| {
            // A point's values depend on its path and the seed only, not on which other points there are.
            let stream = u64::from_le_bytes(PathHash::of(&point.path).0);
            Ok(kind.init(point, &settings, &mut Random::new(options.seed, stream)))
        })
    }

    /// An adapter from the bytes of a record.
    ///
    /// # Errors
    /// When the record is damaged, of another base, of an unknown kind, or does not fit its points.
    pub fn from_record(base: &Base, bytes: &[u8]) -> Result<Self, AdapterError> {
        let record = Record::decode(bytes)?;
        record.expect_base(&base.fingerprint())?;
        let mut parts = record.parts();
        let (Some(part), None) = (parts.next(), parts.next()) else {
            return Err(AdapterError::Parts { found: record.parts().len() });
        };
        let header = *part.header();
        let kind = KINDS.iter().copied().find(|kind| kind.id() == header.kind);
        let kind = kind.ok_or(RecordError::UnknownKind { kind: header.kind })?;
        let settings = Settings { rank: header.rank, alpha: header.alpha, rslora: header.rslora };
        let find = |path: PathHash| base.points().iter().find(|point| PathHash::of(&point.path) == path);
        let points = part
            .points()
            .map(|point| find(point.path).ok_or(AdapterError::UnknownPoint { path: point.path }))
            .collect::<Result<Vec<_>, _>>()?;
        let mut adapter = Self::from_points(base, kind, settings, points, |point| {
            let found = part.point(&point.path).expect("it was found by this path");
            Ok(found.tensors().map(|tensor| tensor.values().collect()).collect())
        })?;
        // Version 1 has them in the shapes of the exported file.
        if record.version() > 1 {
            for point in &mut adapter.points {
                for (i, (binding, values)) in point.bindings.iter().zip(&mut point.tensors).enumerate() {
                    *values = groups::from_groups(values, &binding.shape, kind.scale_axis(i, &binding.shape));
                }
            }
        }
        Ok(adapter)
    }

    /// An adapter from a PEFT LoRA folder, and the prefix by which its module paths differ from those of `base`.
    ///
    /// # Errors
    /// When the folder cannot be read, or holds what cannot be applied to `base` as it is meant.
    pub fn from_peft(base: &Base, folder: impl AsRef<Path>) -> Result<(Self, Prefix), AdapterError> {
        let floats = |name: &str| initializer(base, name);
        let (lora, prefix) = peft::read(folder.as_ref(), base.points(), &floats)?;
        let settings = Settings { rank: lora.rank, alpha: lora.alpha, rslora: lora.rslora };
        let tensors: HashMap<&str, &LoraTensors> =
            lora.points.iter().map(|point| (point.path.as_str(), point)).collect();
        let points = base.points().iter().filter(|point| tensors.contains_key(point.path.as_str()));
        let adapter = Self::from_points(base, &Lora, settings, points, |point| {
            let LoraTensors { a, b, .. } = tensors[point.path.as_str()];
            Ok(vec![a.clone(), b.clone()])
        })?;
        Ok((adapter, prefix))
    }

    /// The adapter as a PEFT folder, which is created if it is not there.
    ///
    /// # Errors
    /// When the adapter is of another kind than LoRA or of another base, or a file cannot be written.
    pub fn to_peft(&self, base: &Base, folder: impl AsRef<Path>) -> Result<(), AdapterError> {
        if self.kind.id() != Lora.id() {
            return Err(AdapterError::Kind { found: self.kind.name().to_owned(), known: Lora.name().to_owned() });
        }
        let (expected, found) = (BaseId::from(base.fingerprint()), self.base);
        if expected != found {
            return Err(RecordError::OtherBase { expected, found }.into());
        }
        let points = self.points.iter().map(|point| LoraTensors {
            path: point.path.clone(),
            a: point.tensors[0].clone(),
            b: point.tensors[1].clone(),
        });
        let Settings { rank, alpha, rslora } = self.settings;
        let lora = PeftLora { rank, alpha, rslora, points: points.collect() };
        Ok(peft::write(folder.as_ref(), &lora, base.points(), &|name| initializer(base, name))?)
    }

    /// An adapter with given tensors at given points, in the order of `kind`, after every check.
    pub(crate) fn from_points<'a>(
        base: &Base,
        kind: &'static dyn AdapterKind,
        settings: Settings,
        points: impl IntoIterator<Item = &'a Point<String>>,
        mut tensors: impl FnMut(&'a Point<String>) -> Result<Vec<Vec<f32>>, AdapterError>,
    ) -> Result<Self, AdapterError> {
        if settings.rank == 0 || u32::from(settings.rank) > MAX_RANK {
            return Err(AdapterError::Rank { found: settings.rank });
        }
        if !settings.alpha.is_finite() || settings.alpha == 0.0 {
            return Err(AdapterError::Alpha { found: settings.alpha });
        }
        let point = |point: &'a Point<String>| {
            let bindings = kind.parameters(point, &settings);
            let tensors = tensors(point)?;
            let expected: Vec<usize> = bindings.iter().map(elements).collect();
            let found: Vec<usize> = tensors.iter().map(Vec::len).collect();
            if expected != found {
                return Err(AdapterError::Sizes { path: point.path.clone(), found, expected });
            }
            Ok(AdapterPoint { path: point.path.clone(), bindings, tensors })
        };
        let mut points = points.into_iter().map(point).collect::<Result<Vec<_>, _>>()?;
        // The order of the record, and of the state file.
        points.sort_by_key(|point| PathHash::of(&point.path));
        Ok(Adapter { kind, base: base.fingerprint().into(), settings, points })
    }

    /// The adapter as a record with values of `dtype`.
    ///
    /// # Errors
    /// When the adapter changes nothing, is rounded to nothing, or a value does not fit `dtype`.
    pub fn to_record(&self, dtype: Dtype) -> Result<Vec<u8>, AdapterError> {
        if self.changes_nothing() {
            return Err(AdapterError::ChangesNothing);
        }
        let header = PartHeader {
            kind: self.kind.id(),
            dtype,
            rslora: self.settings.rslora,
            rank: self.settings.rank,
            alpha: self.settings.alpha,
        };
        let axes = |point: &AdapterPoint| -> Vec<Option<usize>> {
            point.bindings.iter().enumerate().map(|(i, b)| self.kind.scale_axis(i, &b.shape)).collect()
        };
        let grouped: Vec<Vec<(usize, Vec<f32>)>> = self
            .points
            .iter()
            .map(|point| {
                let tensors = point.bindings.iter().zip(&point.tensors).zip(axes(point));
                let grouped = tensors.map(|((binding, values), axis)| {
                    (groups::groups(&binding.shape, axis), groups::to_groups(values, &binding.shape, axis))
                });
                grouped.collect()
            })
            .collect();
        let tensors: Vec<Vec<TensorValues<'_>>> = grouped
            .iter()
            .map(|point| point.iter().map(|(groups, values)| TensorValues { values, groups: *groups }).collect())
            .collect();
        let mut points: Vec<PointValues<'_>> = self
            .points
            .iter()
            .zip(&tensors)
            .map(|(point, tensors)| PointValues { path: &point.path, tensors })
            .collect();
        let mut parts = [PartValues { header, points: &mut points }];
        let mut record = vec![0; encoded_len(&parts)?];
        encode(self.base, &mut parts, &mut record)?;
        let part = Record::decode(&record)?.parts().next().expect("it was given one part");
        let nothing = |point: inlay_format::record::Point<'_>| {
            self.kind.changes_nothing(&point.tensors().map(|tensor| tensor.values().collect()).collect::<Vec<_>>())
        };
        if part.points().all(nothing) { Err(AdapterError::RoundsToNothing { dtype }) } else { Ok(record) }
    }

    /// The kind.
    pub fn kind(&self) -> &'static dyn AdapterKind {
        self.kind
    }

    /// The base that this adapter belongs to.
    pub fn base(&self) -> BaseId {
        self.base
    }

    /// Rank, alpha and rsLoRA.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Paths of its points.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &str> {
        self.points.iter().map(|point| point.path.as_str())
    }

    /// Its tensors, unscaled, each with its name and shape.
    pub fn tensors(&self) -> impl Iterator<Item = (&Binding, &[f32])> {
        self.points.iter().flat_map(|point| point.bindings.iter().zip(point.tensors.iter().map(Vec::as_slice)))
    }

    /// Its tensors, to change.
    pub(crate) fn tensors_mut(&mut self) -> impl Iterator<Item = (&Binding, &mut [f32])> {
        self.points
            .iter_mut()
            .flat_map(|point| point.bindings.iter().zip(point.tensors.iter_mut().map(Vec::as_mut_slice)))
    }

    /// The graph inputs that its tensors are fed to, in the order of [`Adapter::tensors`].
    pub(crate) fn bindings(&self) -> Vec<Binding> {
        self.tensors().map(|(binding, _)| binding.clone()).collect()
    }

    /// Number of trainable parameters.
    pub fn parameter_count(&self) -> usize {
        self.tensors().map(|(_, values)| values.len()).sum()
    }

    /// Whether it computes what the base does.
    pub fn changes_nothing(&self) -> bool {
        self.points.iter().all(|point| self.kind.changes_nothing(&point.tensors))
    }
}

fn elements(binding: &Binding) -> usize {
    binding.shape.iter().product()
}

/// The floats of an initializer.
fn initializer(base: &Base, name: &str) -> Option<Vec<f32>> {
    let value = base.graph().values.iter().find(|value| value.name == name)?;
    let constant = value.constant.as_ref()?;
    HostTensor::from_window(constant.dtype, &constant.dims, &constant.window)?.floats().map(<[f32]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Verify;

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
        old.extend(adapter.base.0);
        old.extend([u8::try_from(header.kind).unwrap(), 0, 2]);
        old.extend(header.alpha.to_le_bytes());
        old.push(u8::try_from(adapter.points.len()).unwrap());
        for point in &adapter.points {
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
            "there is no adapter kind \"dora\"; use one of: lora"
        );
        assert!(matches!(error(AdapterOptions::lora(0)), AdapterError::Rank { found: 0 }));
        assert!(matches!(error(AdapterOptions::lora(2000)), AdapterError::Rank { .. }));
        assert!(matches!(error(AdapterOptions::lora(2).alpha(0.0)), AdapterError::Alpha { .. }));
        assert!(matches!(error(AdapterOptions::lora(2).alpha(f32::NAN)), AdapterError::Alpha { .. }));
        assert!(matches!(error(AdapterOptions::lora(2).targets(["nose"])), AdapterError::Targets(_)));
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
        other_point.points[0].path = "nose".into();
        assert!(matches!(refused(&other_point), AdapterError::UnknownPoint { .. }));
        let mut other_size = adapter.clone();
        other_size.points[0].tensors[0].push(1.0);
        assert!(matches!(refused(&other_size), AdapterError::Sizes { .. }));
        let mut other_rank = adapter;
        other_rank.settings.rank = 3;
        assert!(matches!(refused(&other_rank), AdapterError::Sizes { .. }));
    }
}
