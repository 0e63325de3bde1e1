use std::collections::BTreeMap;

use inlay_format::points::{MAX_RANK, PointOp};
use inlay_format::record::BaseId;

use super::{Adapter, AdapterError, AdapterKind, Lora, Part, Settings, Site};
use crate::base::Base;

/// Why adapters cannot be summed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StackError {
    /// Nothing to sum.
    #[error("a stack of no adapters changes nothing; give at least one")]
    Empty,
    /// One adapter twice.
    #[error("adapter \"{name}\" is listed twice; give it once, with the sum of its weights")]
    Repeated {
        /// Its name.
        name: String,
    },
    /// A weight that adds nothing, or nonsense.
    #[error("the weight of adapter \"{name}\" is {found}, expected a finite number other than 0")]
    Weight {
        /// The adapter.
        name: String,
        /// The weight asked for.
        found: f32,
    },
    /// A kind whose sum is no adapter.
    #[error("adapter \"{name}\" is of kind \"{kind}\"; only adapters of kind \"lora\" can be summed")]
    Kind {
        /// The adapter.
        name: String,
        /// Its kind.
        kind: &'static str,
    },
    /// An adapter of another base.
    #[error("adapter \"{name}\" belongs to another base: it was trained on {found}.., the open base is {expected}..")]
    OtherBase {
        /// The adapter.
        name: String,
        /// The open base.
        expected: BaseId,
        /// The base of the adapter.
        found: BaseId,
    },
    /// More ranks than an adapter may have.
    #[error("the ranks of the stacked adapters sum to {found}, at most {MAX_RANK} are possible; stack fewer")]
    Rank {
        /// The sum.
        found: usize,
    },
}

impl Adapter {
    /// The weighted sum of adapters on one base, as an adapter: at each point their A lie side by side, and each B is
    /// multiplied by its scaling and weight, so that the ranks add up. Each part is a name, an adapter and its weight.
    ///
    /// Parts are summed in the order of their names, so that the order in which they are given changes no bit.
    ///
    /// # Errors
    /// [`StackError`] when there are no parts, a name comes twice, a weight is 0 or not finite, an adapter is of another
    /// base or no LoRA, or the ranks are too many.
    pub fn stack(base: &Base, parts: &[(&str, &Adapter, f32)]) -> Result<Adapter, AdapterError> {
        let mut parts = parts.to_vec();
        parts.sort_by_key(|(name, ..)| *name);
        check(base, &parts)?;
        let mut by_rank: BTreeMap<usize, Vec<Site>> = BTreeMap::new();
        for site in Lora.sites(base) {
            let rank = addends(&site.path, &parts).map(|addend| addend.rank).sum();
            by_rank.entry(rank).or_default().push(site);
        }
        by_rank.remove(&0);
        let part = |(rank, sites): (usize, Vec<Site>)| {
            let rank = u16::try_from(rank)
                .ok()
                .filter(|rank| u32::from(*rank) <= MAX_RANK)
                .ok_or(StackError::Rank { found: rank })?;
            // With alpha = r the scaling is 1.
            let settings = Settings { rank, alpha: f32::from(rank), rslora: false };
            Part::new(base, &Lora, settings, &sites, |site, insertion| {
                let [a, b] = [0, 1].map(|i| insertion.parameters[i].elements());
                Ok(sum(site, usize::from(rank), [a, b], addends(&site.path, &parts)))
            })
        };
        Self::from_parts(base, by_rank.into_iter().map(part).collect::<Result<_, _>>()?)
    }

    /// The kind of a part of this adapter that cannot differ between the samples of a batch.
    pub(crate) fn unmixable(&self) -> Option<&'static str> {
        self.parts.iter().map(|part| part.kind).find(|kind| !kind.mixes()).map(|kind| kind.name())
    }
}

fn check(base: &Base, parts: &[(&str, &Adapter, f32)]) -> Result<(), StackError> {
    if parts.is_empty() {
        return Err(StackError::Empty);
    }
    if let Some(pair) = parts.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(StackError::Repeated { name: pair[0].0.to_owned() });
    }
    let expected = BaseId::from(base.fingerprint());
    for (name, adapter, weight) in parts {
        let name = (*name).to_owned();
        if *weight == 0.0 || !weight.is_finite() {
            return Err(StackError::Weight { name, found: *weight });
        }
        if let Some(part) = adapter.parts.iter().find(|part| part.kind.id() != Lora.id()) {
            return Err(StackError::Kind { name, kind: part.kind.name() });
        }
        if adapter.base() != expected {
            return Err(StackError::OtherBase { name, expected, found: adapter.base() });
        }
    }
    Ok(())
}

/// What one adapter adds at a point.
struct Addend<'a> {
    rank: usize,
    /// Scaling and weight.
    factor: f32,
    tensors: &'a [Vec<f32>],
}

fn addends<'a>(path: &'a str, parts: &'a [(&str, &Adapter, f32)]) -> impl Iterator<Item = Addend<'a>> {
    let of_adapter = move |(_, adapter, weight): &'a (&str, &'a Adapter, f32)| {
        adapter.parts.iter().flat_map(move |part| {
            let points = part.points.iter().filter(move |point| point.path == path);
            let (rank, factor) = (usize::from(part.settings.rank), part.settings.scaling() * weight);
            points.map(move |point| Addend { rank, factor, tensors: &point.tensors })
        })
    };
    parts.iter().flat_map(of_adapter)
}

/// A and B of the sum at a point, of so many elements.
fn sum<'a>(site: &Site, rank: usize, [a, b]: [usize; 2], addends: impl Iterator<Item = Addend<'a>>) -> Vec<Vec<f32>> {
    let (mut a, mut b) = (vec![0.0; a], vec![0.0; b]);
    let mut first = 0;
    for Addend { rank: own, factor, tensors } in addends {
        let factors = [1.0, factor];
        // The ranks are the columns of a linear's A and of a convolution's B, the rows of the others.
        let ((columns, of_columns), (rows, of_rows)) = match site.point().op {
            PointOp::Conv => ((&mut b, 1), (&mut a, 0)),
            _ => ((&mut a, 0), (&mut b, 1)),
        };
        for (to, from) in columns.chunks_exact_mut(rank).zip(tensors[of_columns].chunks_exact(own)) {
            to[first..first + own].iter_mut().zip(from).for_each(|(to, from)| *to = factors[of_columns] * from);
        }
        let row = rows.len() / rank;
        let to = rows[first * row..(first + own) * row].iter_mut();
        to.zip(&tensors[of_rows]).for_each(|(to, from)| *to = factors[of_rows] * from);
        first += own;
    }
    vec![a, b]
}
