//! Which adapter kinds the exported file prepares for, and at which modules.

use std::collections::HashSet;

use inlay_format::kinds::{BOTTLENECK, IA3, PROMPT};
use inlay_format::points::{LORA, PointOp};
use serde::Serialize;

use crate::blocks::{SubLayer, sub_layer};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::insert::prompt;
use crate::points::{Candidate, matcher, select};

/// An adapter kind that the exported file can carry, in the order in which kinds are inserted at one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Factors of outputs or inputs.
    Ia3,
    /// Low-rank adaptation.
    Lora,
    /// Down, nonlinearity, up, residual.
    Bottleneck,
    /// Virtual tokens before the embedded ones.
    Prompt,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 4] = [Kind::Lora, Kind::Ia3, Kind::Bottleneck, Kind::Prompt];

    /// Its name in points and in `--kinds`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ia3 => IA3,
            Kind::Lora => LORA,
            Kind::Bottleneck => BOTTLENECK,
            Kind::Prompt => PROMPT,
        }
    }
}

/// The nonlinearity of a bottleneck.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`.
    #[default]
    Relu,
    /// Gelu with erf.
    Gelu,
}

impl Activation {
    /// As ONNX spells it.
    pub fn op_type(self) -> &'static str {
        match self {
            Activation::Relu => "Relu",
            Activation::Gelu => "Gelu",
        }
    }
}

/// After which sub-layers of a transformer a bottleneck goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Places {
    /// After attention and after the feed-forward network (Houlsby et al., 2019).
    Houlsby,
    /// After the feed-forward network only (Pfeiffer et al., 2020).
    #[default]
    Pfeiffer,
}

/// What the exported file prepares for.
#[derive(Clone, Debug)]
pub struct Kinds {
    /// The kinds, at least one.
    pub chosen: Vec<Kind>,
    /// Globs over the modules whose outputs (IA)3 scales; with no feed-forward globs either: keys and values by name.
    pub ia3_targets: Vec<String>,
    /// Globs over the modules whose inputs (IA)3 scales; with no target globs either: the last linear of each feed-forward
    /// network. A module that both choose is a feed-forward one.
    pub ia3_feedforward: Vec<String>,
    /// Globs over the modules that a bottleneck follows; empty: as `bottleneck_places` says.
    pub bottleneck_targets: Vec<String>,
    /// Where a bottleneck goes in a transformer.
    pub bottleneck_places: Places,
    /// The nonlinearity of bottlenecks.
    pub bottleneck_activation: Activation,
}

impl Default for Kinds {
    fn default() -> Self {
        Kinds {
            chosen: vec![Kind::Lora],
            ia3_targets: Vec::new(),
            ia3_feedforward: Vec::new(),
            bottleneck_targets: Vec::new(),
            bottleneck_places: Places::default(),
            bottleneck_activation: Activation::default(),
        }
    }
}

/// A module with the kinds that it offers.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The module.
    pub candidate: Candidate,
    /// Its kinds, in the order in which they are inserted.
    pub kinds: Vec<Kind>,
    /// Whether (IA)3 scales its inputs.
    pub feedforward: bool,
}

/// Names of modules that make keys and values, as the last part of a path.
const KEYS_AND_VALUES: [&str; 11] =
    ["key", "value", "k_proj", "v_proj", "key_proj", "value_proj", "k_lin", "v_lin", "k", "v", "query_key_value"];

/// The modules that get at least one kind, in the order of the graph. `targets` are LoRA's.
///
/// # Errors
/// If a pattern matches nothing or what cannot carry the kind; if a kind has no place in this graph.
pub fn choose(graph: &Graph, all: &[Candidate], targets: &[String], kinds: &Kinds) -> Result<Vec<Chosen>> {
    let has = |kind| kinds.chosen.contains(&kind);
    let lora = if has(Kind::Lora) { paths(&select(all, targets)?) } else { HashSet::new() };
    let (outputs, inputs) = if has(Kind::Ia3) { ia3(graph, all, kinds)? } else { Default::default() };
    let bottleneck = if has(Kind::Bottleneck) { bottleneck(graph, all, kinds)? } else { HashSet::new() };
    let of = |candidate: &Candidate| {
        let path = candidate.path.as_str();
        let feedforward = inputs.contains(path);
        let kinds: Vec<Kind> = [
            (Kind::Ia3, feedforward || outputs.contains(path)),
            (Kind::Lora, lora.contains(path)),
            (Kind::Bottleneck, bottleneck.contains(path)),
        ]
        .into_iter()
        .filter_map(|(kind, chosen)| chosen.then_some(kind))
        .collect();
        (!kinds.is_empty()).then(|| Chosen { candidate: candidate.clone(), kinds, feedforward })
    };
    let mut chosen: Vec<Chosen> = all.iter().filter_map(of).collect();
    if has(Kind::Prompt) {
        let candidate = prompt::candidate(graph)?;
        let known = chosen.iter().position(|chosen| chosen.candidate.node == candidate.node);
        let new = || Chosen { candidate, kinds: Vec::new(), feedforward: false };
        let mut first = known.map_or_else(new, |at| chosen.remove(at));
        // Its lookup is found before LoRA adds another.
        first.kinds.insert(0, Kind::Prompt);
        chosen.insert(0, first);
    }
    Ok(chosen)
}

type Paths = HashSet<String>;

fn paths(candidates: &[Candidate]) -> Paths {
    candidates.iter().map(|c| c.path.clone()).collect()
}

/// The modules whose outputs, and those whose inputs, (IA)3 scales.
fn ia3(graph: &Graph, all: &[Candidate], kinds: &Kinds) -> Result<(Paths, Paths)> {
    if kinds.ia3_targets.is_empty() && kinds.ia3_feedforward.is_empty() {
        let outputs = linears(all).filter(|c| {
            let name = c.path.rsplit('.').next().unwrap_or(&c.path);
            KEYS_AND_VALUES.contains(&name)
        });
        let outputs: Paths = outputs.map(|c| c.path.clone()).collect();
        let inputs = at_sub_layers(graph, all, |place| place == SubLayer::FeedForward);
        if outputs.is_empty() && inputs.is_empty() {
            let (kind, option) = (IA3, "--ia3-targets or --ia3-feedforward");
            return Err(Error::NoPlaces { kind, option });
        }
        return Ok((outputs, inputs));
    }
    let outputs = named(all, &kinds.ia3_targets, Kind::Ia3)?;
    Ok((outputs, named(all, &kinds.ia3_feedforward, Kind::Ia3)?))
}

fn bottleneck(graph: &Graph, all: &[Candidate], kinds: &Kinds) -> Result<Paths> {
    if !kinds.bottleneck_targets.is_empty() {
        return named(all, &kinds.bottleneck_targets, Kind::Bottleneck);
    }
    let found =
        at_sub_layers(graph, all, |place| place == SubLayer::FeedForward || kinds.bottleneck_places == Places::Houlsby);
    if found.is_empty() {
        return Err(Error::NoPlaces { kind: BOTTLENECK, option: "--bottleneck-targets" });
    }
    Ok(found)
}

fn linears(all: &[Candidate]) -> impl Iterator<Item = &Candidate> {
    all.iter().filter(|c| c.op == PointOp::Linear && c.obstacle.is_none())
}

fn at_sub_layers(graph: &Graph, all: &[Candidate], wanted: impl Fn(SubLayer) -> bool) -> Paths {
    let links = graph.links();
    let place = |c: &&Candidate| sub_layer(graph, &links, &c.node).is_some_and(&wanted);
    linears(all).filter(place).map(|c| c.path.clone()).collect()
}

/// The linears that `patterns` choose.
fn named(all: &[Candidate], patterns: &[String], kind: Kind) -> Result<Paths> {
    if patterns.is_empty() {
        return Ok(Paths::new());
    }
    let chosen = select(all, patterns)?;
    match chosen.iter().find(|c| c.op != PointOp::Linear) {
        None => Ok(paths(&chosen)),
        Some(c) => {
            let globs = patterns.iter().map(|p| matcher(p)).collect::<Result<Vec<_>>>()?;
            let pattern = globs.iter().find(|g| g.is_match(&c.path)).map_or_else(String::new, |g| g.glob().to_string());
            Err(Error::NotALinear { kind: kind.name(), path: c.path.clone(), pattern })
        }
    }
}
