use inlay_format::record::PathHash;

use super::{AdapterError, AdapterKind, Binding, Insertion, Settings, Site};
use crate::base::Base;
use crate::graph::Fragment;

/// One kind at its points, with one set of numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub(super) kind: &'static dyn AdapterKind,
    pub(super) settings: Settings,
    /// In the order of the hashes of their paths, which is that of the record.
    pub(super) points: Vec<AdapterPoint>,
}

/// The parameters at one point.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterPoint {
    pub(super) path: String,
    pub(super) insertion: Insertion,
    pub(super) tensors: Vec<Vec<f32>>,
}

impl Part {
    /// A part with given tensors at given sites, after every check that concerns one part.
    pub(super) fn new(
        base: &Base,
        kind: &'static dyn AdapterKind,
        settings: Settings,
        sites: &[Site],
        mut tensors: impl FnMut(&Site, &Insertion) -> Result<Vec<Vec<f32>>, AdapterError>,
    ) -> Result<Self, AdapterError> {
        check(kind, &settings)?;
        let mut points = Vec::with_capacity(sites.len());
        for site in sites {
            let insertion = kind.insertion(base, site, &settings)?;
            let tensors = tensors(site, &insertion)?;
            let expected: Vec<usize> = insertion.parameters.iter().map(Binding::elements).collect();
            let found: Vec<usize> = tensors.iter().map(Vec::len).collect();
            if expected != found {
                return Err(AdapterError::Sizes { path: site.path.clone(), found, expected });
            }
            points.push(AdapterPoint { path: site.path.clone(), insertion, tensors });
        }
        points.sort_by_key(|point| PathHash::of(&point.path));
        Ok(Part { kind, settings, points })
    }

    /// The kind.
    pub fn kind(&self) -> &'static dyn AdapterKind {
        self.kind
    }

    /// Rank, alpha and rsLoRA.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Its points, in the order of the record.
    pub fn points(&self) -> &[AdapterPoint] {
        &self.points
    }

    /// Whether it computes what the base does.
    pub fn changes_nothing(&self) -> bool {
        self.points.iter().all(|point| self.kind.changes_nothing(&point.tensors))
    }

    /// By which the parts of an adapter, and of its record, are ordered.
    pub(super) fn order(&self) -> (u16, u16, bool, u32) {
        let Settings { rank, alpha, rslora } = self.settings;
        (self.kind.id(), rank, rslora, alpha.to_bits())
    }
}

impl AdapterPoint {
    /// Path of the point.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Names and shapes of its tensors.
    pub fn parameters(&self) -> &[Binding] {
        &self.insertion.parameters
    }

    /// Its tensors, unscaled, row-major in the shapes of the parameters.
    pub fn tensors(&self) -> &[Vec<f32>] {
        &self.tensors
    }

    /// What it adds to the graph.
    pub fn fragment(&self) -> &Fragment {
        &self.insertion.fragment
    }
}

fn check(kind: &'static dyn AdapterKind, settings: &Settings) -> Result<(), AdapterError> {
    let found = settings.rank;
    match kind.size() {
        Some(size) if found == 0 || found > size.max => {
            return Err(AdapterError::Rank { kind: kind.name(), what: size.name, found, max: size.max });
        }
        None if found != 0 => return Err(AdapterError::Unsized { kind: kind.name(), found }),
        _ => {}
    }
    if !kind.is_scaled() && (settings.rslora || settings.alpha != 1.0) {
        return Err(AdapterError::Unscaled { kind: kind.name() });
    }
    match settings.alpha {
        alpha if alpha.is_finite() && alpha != 0.0 => Ok(()),
        found => Err(AdapterError::Alpha { found }),
    }
}
