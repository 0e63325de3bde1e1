//! Adapters: small trainable changes to a frozen base.
//!
//! One file a kind; `KINDS` lists them. A kind says where in a base it can sit, which parameters it has there, how they
//! start and how they enter the graph; the record stores them without knowing what they mean. An [`Adapter`] is a list of
//! parts, each of one kind.

mod adapter;
mod bottleneck;
mod budget;
mod dense;
mod effect;
mod error;
mod features;
mod groups;
mod head;
mod ia3;
mod lora;
mod lora_xs;
mod options;
mod part;
mod peft;
mod prompt;
mod record;
mod stack;
mod targets;
mod vectors;

pub use adapter::Adapter;
pub use bottleneck::Bottleneck;
pub use budget::Budget;
pub use dense::Dense;
pub use error::AdapterError;
pub(crate) use head::HEAD;
pub use head::Head;
pub use ia3::Ia3;
pub use lora::Lora;
pub use lora_xs::LoraXs;
pub use options::AdapterOptions;
pub use part::{AdapterPoint, Part};
pub use prompt::Prompt;
pub use stack::StackError;
pub use targets::{TargetError, Targets};
pub use vectors::{Addend, Bias, Norm};

pub use crate::graph::{Fragment, FragmentNode, Replacement};
pub use crate::plan::Binding;

use std::fmt;

use inlay_format::kinds;
use inlay_format::points::Point;

use crate::base::Base;
use crate::merge::Merge;
use crate::random::Random;

/// Every adapter kind.
pub static KINDS: &[&dyn AdapterKind] = &[&Lora, &Bias, &Norm, &Dense, &Head, &LoraXs, &Ia3, &Bottleneck, &Prompt];

/// A kind of adapter.
pub trait AdapterKind: Sync {
    /// Name, as in the points of a base and in `--kind`.
    fn name(&self) -> &'static str;

    /// Number in an adapter record.
    fn id(&self) -> u16;

    /// What [`Settings::rank`] is to this kind; `None` if it has no such number, which is then 0.
    fn size(&self) -> Option<Size>;

    /// Its size on `base` when nobody says.
    fn default_size(&self, base: &Base) -> u16 {
        let _ = base;
        self.size().map_or(0, |size| size.default)
    }

    /// Whether it has a `scaling`, and so alpha and rsLoRA.
    fn is_scaled(&self) -> bool;

    /// How to get a base that has a place for it.
    fn way_out(&self) -> &'static str;

    /// The places that `base` has for it.
    fn sites(&self, base: &Base) -> Vec<Site>;

    /// Those of them that a new adapter takes when no targets are named.
    fn default_sites(&self, base: &Base) -> Vec<Site> {
        self.sites(base)
    }

    /// Its parameters at one of its sites, in the order of the record, and how they enter the graph.
    ///
    /// # Errors
    /// When `base` is not as the kind needs it.
    fn insertion(&self, base: &Base, site: &Site, settings: &Settings) -> Result<Insertion, AdapterError>;

    /// Values of the parameters before training, in the same order. They change nothing yet.
    fn init(&self, site: &Site, insertion: &Insertion, settings: &Settings, random: &mut Random) -> Vec<Vec<f32>>;

    /// The axis of a parameter, by its place in the [`Insertion`] and its shape, along which an int8 or int4 record has scales of
    /// their own: a scale for each of its rows. `None`: one scale for all.
    fn scale_axis(&self, parameter: usize, shape: &[usize]) -> Option<usize>;

    /// Whether a site with these values computes what the base does.
    fn changes_nothing(&self, tensors: &[Vec<f32>]) -> bool;

    /// What merging these values does to the weight at a site; `None` where no weight computes the same.
    fn merge(&self, site: &Site, settings: &Settings, tensors: &[Vec<f32>]) -> Option<Merge> {
        let _ = (site, settings, tensors);
        None
    }

    /// Whether each sample of a batch may have parameters of its own, among which zeros mean none and fill up ranks.
    fn mixes(&self) -> bool {
        false
    }
}

/// What [`Settings::rank`] is to a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// What it is called: rank, classes, width, length.
    pub name: &'static str,
    /// What it is when nobody says.
    pub default: u16,
    /// The largest that it may be.
    pub max: u16,
}

/// The numbers that a part has as a whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Rank `r`, or what the kind's [`Size`] calls it; 0 for kinds that have none.
    pub rank: u16,
    /// LoRA's alpha.
    pub alpha: f32,
    /// Whether `scaling` is alpha / sqrt(r) instead of alpha / r.
    pub rslora: bool,
}

impl Settings {
    /// LoRA's `scaling`: alpha / r, or alpha / sqrt(r) with rsLoRA.
    pub fn scaling(&self) -> f32 {
        match (self.rslora, f32::from(self.rank)) {
            (false, r) => self.alpha / r,
            (true, r) => self.alpha / r.sqrt(),
        }
    }
}

/// A place in a base where a kind can sit.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// Path: what targets match and what the record names. One kind has one site of a path.
    pub path: String,
    /// Name of the node of the base that is changed.
    pub node: String,
    /// What is there.
    pub at: At,
}

/// What is at a [`Site`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum At {
    /// An insertion point of the exported file.
    Point(Box<Point<String>>),
    /// A small frozen vector to which a difference is added.
    Vector {
        /// Its shape.
        shape: Vec<usize>,
        /// Which of the node's inputs it is.
        input: usize,
        /// What the difference is added to.
        added_to: Addend,
    },
    /// A tensor of that name, which is read.
    Tensor,
}

impl Site {
    /// The sites of a kind that the exported file offers itself.
    pub(crate) fn offered(base: &Base, kind: &str) -> Vec<Site> {
        base.points().iter().filter(|point| point.offers(kind)).map(Site::at_point).collect()
    }

    /// The site at an insertion point.
    pub(crate) fn at_point(point: &Point<String>) -> Site {
        Site { path: point.path.clone(), node: point.node.clone(), at: At::Point(Box::new(point.clone())) }
    }

    /// The insertion point of a site that [`Site::at_point`] made.
    ///
    /// # Panics
    /// When it is another site.
    pub(crate) fn point(&self) -> &Point<String> {
        match &self.at {
            At::Point(point) => point.as_ref(),
            other => panic!("a kind is asked for its own sites only, not for {other:?}"),
        }
    }
}

/// A kind at a site: its parameters, and what they do to the graph beside taking the place of inputs with a default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Insertion {
    /// The parameters, in the order of the record.
    pub parameters: Vec<Binding>,
    /// What is added to the graph.
    pub fragment: Fragment,
}

impl Insertion {
    /// The parameters of a kind that the exported file has at a point, with the size that the settings say.
    pub(crate) fn in_file(kind: &str, site: &Site, settings: &Settings) -> Insertion {
        let point = site.point();
        let parameters = kinds::parameters(kind, point, usize::from(settings.rank)).into_iter().map(|parameter| {
            let name = format!("{}.{}", point.path, parameter.suffix);
            Binding { name, shape: parameter.shape.to_vec(), scale: 1.0 }
        });
        Insertion { parameters: parameters.collect(), ..Insertion::default() }
    }

    /// Zeros for every parameter.
    pub fn zeros(&self) -> Vec<Vec<f32>> {
        self.parameters.iter().map(|parameter| vec![0.0; parameter.elements()]).collect()
    }
}

impl fmt::Debug for dyn AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for dyn AdapterKind {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

/// The kind of that name.
pub fn find(name: &str) -> Option<&'static dyn AdapterKind> {
    KINDS.iter().copied().find(|kind| kind.name() == name)
}
