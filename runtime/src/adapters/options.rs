use std::collections::HashSet;

use super::{AdapterError, AdapterKind, Base, Head, KINDS, Lora, Settings, Site, TargetError, Targets, find};

/// What a new adapter should be: one part, or several joined by [`AdapterOptions::and`].
///
/// ```
/// use inlay_runtime::AdapterOptions;
///
/// let options = AdapterOptions::lora(4).alpha(8.0).targets(["encoder.*.query", "head"]).rank_at("head", 8).seed(7);
/// ```
#[derive(Clone, Debug)]
pub struct AdapterOptions {
    parts: Vec<PartOptions>,
    seed: u64,
}

#[derive(Clone, Debug)]
pub(super) struct PartOptions {
    kind: String,
    rank: u16,
    alpha: Option<f32>,
    rslora: bool,
    targets: Vec<String>,
    rank_at: Vec<(String, u16)>,
    alpha_at: Vec<(String, f32)>,
}

impl AdapterOptions {
    /// LoRA of rank `rank`, with alpha = 2 `rank`, at every point that offers it.
    pub fn lora(rank: u16) -> Self {
        Self::kind(Lora.name(), rank)
    }

    /// An adapter of the kind of that name in [`KINDS`]. `rank` is what the kind's [`Size`](super::Size) says: the rank, the
    /// number of classes and so on; 0 for kinds that have none.
    pub fn kind(name: impl Into<String>, rank: u16) -> Self {
        let part = PartOptions {
            kind: name.into(),
            rank,
            alpha: None,
            rslora: false,
            targets: Vec::new(),
            rank_at: Vec::new(),
            alpha_at: Vec::new(),
        };
        AdapterOptions { parts: vec![part], seed: 0 }
    }

    /// These parts and those of `other` in one adapter. The seed is this one's.
    #[must_use]
    pub fn and(mut self, other: AdapterOptions) -> Self {
        self.parts.extend(other.parts);
        self
    }

    /// Sets alpha of the last part, 2 x rank unless set. Only kinds with a `scaling` have one.
    #[must_use]
    pub fn alpha(self, alpha: f32) -> Self {
        self.last(|part| part.alpha = Some(alpha))
    }

    /// Whether `scaling` is alpha / sqrt(r) instead of alpha / r, in the last part.
    #[must_use]
    pub fn rslora(self, rslora: bool) -> Self {
        self.last(|part| part.rslora = rslora)
    }

    /// Takes, for the last part, only points whose path matches one of these globs. Each must match at least one.
    #[must_use]
    pub fn targets<P: Into<String>>(self, patterns: impl IntoIterator<Item = P>) -> Self {
        self.last(|part| part.targets = patterns.into_iter().map(Into::into).collect())
    }

    /// Sets another rank for those of the last part's points whose path matches this glob (PEFT's `rank_pattern`); of several
    /// that match, the first counts. Their alpha, unless set, is 2 x that rank.
    #[must_use]
    pub fn rank_at(self, pattern: impl Into<String>, rank: u16) -> Self {
        self.last(|part| part.rank_at.push((pattern.into(), rank)))
    }

    /// Sets another alpha for those of the last part's points whose path matches this glob (PEFT's `alpha_pattern`); of
    /// several that match, the first counts.
    #[must_use]
    pub fn alpha_at(self, pattern: impl Into<String>, alpha: f32) -> Self {
        self.last(|part| part.alpha_at.push((pattern.into(), alpha)))
    }

    /// Sets the seed of the initial values, 0 unless set.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        AdapterOptions { seed, ..self }
    }

    /// A head with this many classes, on the tensor `on` of the base, or on the one that the base's own classifier reads.
    pub fn head(on: Option<&str>, classes: u16) -> Self {
        let head = Self::kind(Head.name(), classes);
        match on {
            Some(tensor) => head.targets([globset::escape(tensor)]),
            None => head,
        }
    }

    /// The nodes that the heads depend on; `None` if there are none. Only there can other parts have an effect.
    pub(super) fn upstream(&self, base: &Base) -> Result<Option<HashSet<String>>, AdapterError> {
        let mut nodes: Option<HashSet<String>> = None;
        for part in self.parts.iter().filter(|part| part.kind == Head.name()) {
            for (_, site) in part.choose(base, None)? {
                nodes.get_or_insert_default().extend(base.graph().ancestors(&site.node));
            }
        }
        Ok(nodes)
    }

    fn last(mut self, change: impl FnOnce(&mut PartOptions)) -> Self {
        change(self.parts.last_mut().expect("there is a part from the start"));
        self
    }

    pub(super) fn parts(&self) -> &[PartOptions] {
        &self.parts
    }

    pub(super) fn seed_value(&self) -> u64 {
        self.seed
    }
}

impl PartOptions {
    /// The kind.
    pub fn find_kind(&self) -> Result<&'static dyn AdapterKind, AdapterError> {
        find(&self.kind).ok_or_else(|| AdapterError::Kind {
            found: self.kind.clone(),
            known: KINDS.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// The sites that are chosen, each with the settings that it gets. Without targets, only those at the nodes `upstream`.
    pub fn choose(
        &self,
        base: &Base,
        upstream: Option<&HashSet<String>>,
    ) -> Result<Vec<(Settings, Site)>, AdapterError> {
        let kind = self.find_kind()?;
        let sites = kind.sites(base);
        if sites.is_empty() {
            return Err(AdapterError::NoPoints { kind: kind.name(), way_out: kind.way_out() });
        }
        let paths = || sites.iter().map(|site| site.path.as_str());
        let chosen = match self.targets.as_slice() {
            [] => {
                let default = kind.default_sites(base);
                let has_effect = |site: &Site| upstream.is_none_or(|nodes| nodes.contains(&site.node));
                (0..sites.len()).filter(|&i| default.contains(&sites[i]) && has_effect(&sites[i])).collect()
            }
            targets => Targets::new(targets)?.select(paths())?,
        };
        let chosen_paths: Vec<&str> = chosen.iter().map(|&i| sites[i].path.as_str()).collect();
        let ranks = patterns(&self.rank_at, &chosen_paths)?;
        let alphas = patterns(&self.alpha_at, &chosen_paths)?;
        let settings = |at: usize| {
            let rank = ranks[at].unwrap_or(self.rank);
            let default = if kind.is_scaled() { 2.0 * f32::from(rank) } else { 1.0 };
            let alpha = alphas[at].or(self.alpha).unwrap_or(default);
            Settings { rank, alpha, rslora: self.rslora }
        };
        Ok(chosen.iter().enumerate().map(|(at, &i)| (settings(at), sites[i].clone())).collect())
    }
}

/// For each path the value of the first pattern that matches it. Every pattern must match one.
fn patterns<T: Copy>(patterns: &[(String, T)], paths: &[&str]) -> Result<Vec<Option<T>>, TargetError> {
    let mut values = vec![None; paths.len()];
    for (pattern, value) in patterns {
        for i in Targets::new([pattern])?.select(paths.iter().copied())? {
            values[i].get_or_insert(*value);
        }
    }
    Ok(values)
}
