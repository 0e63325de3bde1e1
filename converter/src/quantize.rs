//! Stage 3: how each constant is stored, and why not otherwise.

mod attention;
mod pack;
mod sites;
mod spell;
mod sums;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use globset::{Glob, GlobMatcher};
use half::f16;
use inlay_format::quant::{self, F16, F32, Form, Int4, Int8, Layout, MIN_QUANTIZED_ELEMENTS, Scheme, ZeroPoints};
use serde::Serialize;

pub(crate) use pack::Spelt;
pub use pack::{Packed, dequantized, pack, values};
pub use sites::{Site, Sites};

use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::integers::Integers;
use crate::tensor::{DType, Rewrite, Tensor};
use sites::{Use, uses};

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Quant {
    /// Symmetric int8 with one scale per output channel or table row.
    Int8,
    /// int4 in blocks along the inputs of linears; what else there is in int8.
    Int4,
    /// Half precision.
    F16,
    /// As they are: f32, or f16 where the source has halves.
    None,
}

impl Quant {
    /// Every choice, as the command line names it.
    pub const ALL: [Quant; 4] = [Quant::Int8, Quant::Int4, Quant::F16, Quant::None];

    /// Its name.
    pub fn name(self) -> &'static str {
        if self == Quant::None { "none" } else { self.scheme().name() }
    }

    fn scheme(self) -> &'static dyn Scheme {
        match self {
            Quant::Int8 => &Int8,
            Quant::Int4 => &Int4,
            Quant::F16 => &F16,
            Quant::None => &F32,
        }
    }
}

/// A scheme for the modules whose path matches a glob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// The glob.
    pub pattern: String,
    /// How the weights of those modules are stored.
    pub quant: Quant,
}

impl FromStr for Rule {
    type Err = String;

    /// `GLOB=SCHEME`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, name) = text.rsplit_once('=').ok_or("expected GLOB=SCHEME")?;
        let quant = Quant::ALL.into_iter().find(|q| q.name() == name);
        let known = || Quant::ALL.map(Quant::name).join(", ");
        let quant = quant.ok_or_else(|| format!("{name:?} is no scheme; there are {}", known()))?;
        Ok(Rule { pattern: pattern.to_owned(), quant })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.pattern, self.quant.name())
    }
}

/// Blocks of int4 without further words.
pub const INT4_BLOCK: usize = 32;

/// What is stored how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// What no rule names.
    pub default: Quant,
    /// Exceptions, by module path; the last one that matches counts.
    pub rules: Vec<Rule>,
    /// Elements of a block of int4: 16, 32, 64, 128 or 256.
    pub int4_block: usize,
    /// Whether int4 blocks have zero points, found by half-quadratic splitting: of any value, or integers where the
    /// spelling is DequantizeLinear, which has no others.
    pub hqq: bool,
    /// Whether int4 is spelled as DequantizeLinear in blocks, not as MatMulNBits.
    pub qdq: bool,
}

impl From<Quant> for Quantization {
    fn from(default: Quant) -> Self {
        Quantization { default, rules: Vec::new(), int4_block: INT4_BLOCK, hqq: false, qdq: false }
    }
}

impl Quantization {
    /// # Errors
    /// If int4, or a form of it, is asked for and no weight has it.
    fn took_effect(&self, packing: &Packing) -> Result<()> {
        let int4 = |kept| packing.weights.values().any(|s| s.scheme.name() == "int4" && s.kept == kept);
        let formed = self.int4_block != INT4_BLOCK || self.hqq;
        let asked = self.default == Quant::Int4 || self.qdq || formed;
        // Integers of the source have a spelling, but their own form.
        if !asked || int4(false) || (int4(true) && !formed) {
            return Ok(());
        }
        match packing.weights.values().filter(|s| s.kept).count() {
            0 => Err(Error::NoInt4),
            kept => Err(Error::KeptIntegers { kept }),
        }
    }
}

/// A float constant that is not quantized.
#[derive(Clone, Debug, Serialize)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Why.
    pub reason: String,
}

/// How a constant is packed.
#[derive(Clone, Debug)]
pub struct Storage {
    /// Its scheme.
    pub scheme: &'static dyn Scheme,
    /// Which elements share a scale.
    pub form: Form,
    /// Which axis is contiguous.
    pub layout: Layout,
    /// Whether blocks are spelled as DequantizeLinear.
    pub qdq: bool,
    /// Whether int8 elements are rounded so that the sum of each output's weights stays.
    pub keep_sums: bool,
    /// Whether the integers of the source are kept as they are.
    pub kept: bool,
    /// Why it is not stored as was asked for, if so.
    pub reason: Option<String>,
}

impl Storage {
    /// int8 with a scale for each output.
    pub fn int8(layout: Layout) -> Self {
        Storage { scheme: &Int8, form: Form::WHOLE, layout, qdq: false, keep_sums: false, kept: false, reason: None }
    }
}

/// What is packed and what is not.
#[derive(Clone, Debug, Default)]
pub struct Packing {
    /// Every constant that is packed, by name.
    pub weights: BTreeMap<String, Storage>,
    /// The float constants that are not.
    pub kept: Vec<Kept>,
}

/// The name of the scales of a packed constant.
pub fn scale_name(constant: &str) -> String {
    format!("{constant}.scale")
}

/// The name of the zero points of a packed constant.
pub fn zero_point_name(constant: &str) -> String {
    format!("{constant}.zero_point")
}

/// Decides how every constant is stored, and spells it in the graph; a constant that is turned for that stays one, with
/// one more rewrite.
///
/// # Errors
/// If a rule is no glob, matches nothing, or asks for what cannot be; if int4 is asked for, and no weight can be.
pub fn quantize(graph: &mut Graph, sites: &Sites, options: &Quantization) -> Result<Packing> {
    let rules = Rules::new(&options.rules, sites)?;
    let mut packing = Packing::default();
    let mut convolutions = Vec::new();
    let uses = uses(graph);
    let mut origins: HashMap<&str, usize> = HashMap::new();
    for origin in graph.constants.values().filter_map(|t| t.origin.as_deref()) {
        *origins.entry(origin).or_default() += 1;
    }
    for (name, tensor) in graph.constants.iter().filter(|(_, t)| t.dtype.is_float()) {
        let site = sites.get(name);
        let rule = site.and_then(|site| rules.of(site));
        let weight = Weight {
            tensor,
            uses: uses.get(name).map_or(&[], Vec::as_slice),
            shared: tensor.origin.as_deref().is_some_and(|o| origins[o] > 1),
            head: site.is_some_and(|site| site.head),
        };
        let asked = rule.map_or(options.default, |rule| rule.quant);
        match weight.storage(asked, options, rule.is_some()) {
            Ok(storage) if rule.is_some() && storage.reason.is_some() => {
                return Err(refused(rule.expect("checked"), name, storage.reason.as_deref().unwrap_or_default()));
            }
            Ok(storage) => {
                if storage.keep_sums && rule.is_none() && tensor.to_f32().iter().all(|x| x.abs() <= f16::MAX.to_f32()) {
                    convolutions.push(name.as_str());
                }
                packing.weights.insert(name.clone(), storage);
            }
            Err(reason) => match rule {
                Some(rule) if asked != Quant::None => return Err(refused(rule, name, &reason)),
                _ => packing.kept.push(Kept { name: name.clone(), shape: tensor.dims().to_vec(), reason }),
            },
        }
    }
    spare_smallest(convolutions, graph, &mut packing);
    let layout = |name: &str| uses[name].iter().find_map(Use::layout).expect("int4 is for weights");
    spare_attention(graph, layout, |name| sites.get(name).is_some_and(|site| rules.of(site).is_some()), &mut packing);
    options.took_effect(&packing)?;
    for (name, storage) in &packing.weights {
        spell::spell(graph, name, storage);
    }
    Ok(packing)
}

/// Of all packed elements, one in this many may be a half where int8 was asked for.
const SPARED: usize = 20;

/// Stores the smallest of these convolutions as halves, as long as they are few elements. The first layers of a mobile
/// network, a few hundred weights each, make most of the error of int8, and next to nothing of its bytes.
fn spare_smallest(mut convolutions: Vec<&str>, graph: &Graph, packing: &mut Packing) {
    let elements = |name: &str| graph.constants[name].len();
    let mut left = packing.weights.keys().map(|name| elements(name)).sum::<usize>() / SPARED;
    convolutions.sort_by_key(|name| (elements(name), *name));
    for name in convolutions {
        let Some(rest) = left.checked_sub(elements(name)) else { return };
        left = rest;
        let storage = packing.weights.get_mut(name).expect("it is packed");
        let reason = "f16: among the smallest convolutions, where int8 costs accuracy and saves nothing";
        *storage = Storage { scheme: &F16, keep_sums: false, reason: Some(reason.into()), ..storage.clone() };
    }
}

/// Of all elements that int4 was asked for, one in this many may be int8.
const SPARED_OF_INT4: usize = 4;

/// Stores weights as int8 whose errors int4 makes felt most, where that is few elements: the values of attention, then what
/// is behind the last attention.
fn spare_attention(
    graph: &Graph,
    layout: impl Fn(&str) -> Layout,
    named: impl Fn(&str) -> bool,
    packing: &mut Packing,
) {
    let groups: [(HashSet<String>, &str); 2] = [
        (attention::values(graph), "int8: values of attention, whose errors add up over all tokens"),
        (attention::behind_last(graph), "int8: behind the last attention, where an error is not averaged out"),
    ];
    let is_spared = |name: &String, storage: &Storage| storage.scheme.name() == "int4" && !storage.kept && !named(name);
    let elements = |name: &String| graph.constants[name].len();
    let asked = packing.weights.iter().filter(|(name, storage)| is_spared(name, storage));
    let mut left = asked.map(|(name, _)| elements(name)).sum::<usize>() / SPARED_OF_INT4;
    for (group, reason) in groups {
        let weights =
            || packing.weights.iter().filter(|(name, storage)| group.contains(*name) && is_spared(name, storage));
        let Some(rest) = left.checked_sub(weights().map(|(name, _)| elements(name)).sum()) else { continue };
        left = rest;
        let names: Vec<String> = weights().map(|(name, _)| name.clone()).collect();
        for name in names {
            let storage = packing.weights.get_mut(&name).expect("it is packed");
            *storage = Storage { reason: Some(reason.into()), ..Storage::int8(layout(&name)) };
        }
    }
}

fn refused(rule: &Rule, weight: &str, reason: &str) -> Error {
    Error::QuantRule {
        rule: rule.to_string(),
        detail: format!("weight {weight:?}: {reason}; name another scheme for it, or narrow the pattern"),
    }
}

/// The rules, each with its glob.
struct Rules<'a>(Vec<(&'a Rule, GlobMatcher)>);

impl<'a> Rules<'a> {
    fn new(rules: &'a [Rule], sites: &Sites) -> Result<Self> {
        let mut compiled = Vec::new();
        for rule in rules {
            let fail = |detail: String| Error::QuantRule { rule: rule.to_string(), detail };
            let glob = Glob::new(&rule.pattern).map_err(|e| fail(e.to_string()))?.compile_matcher();
            if !sites.values().any(|site| site.paths.iter().any(|path| glob.is_match(path))) {
                let known: Vec<&str> = sites.values().flat_map(|s| &s.paths).take(8).map(String::as_str).collect();
                return Err(fail(format!("matches no module with a weight; there are {}, ...", known.join(", "))));
            }
            compiled.push((rule, glob));
        }
        Ok(Rules(compiled))
    }

    fn of(&self, site: &Site) -> Option<&'a Rule> {
        let matches = |glob: &GlobMatcher| site.paths.iter().any(|path| glob.is_match(path));
        self.0.iter().rev().find(|(_, glob)| matches(glob)).map(|(rule, _)| *rule)
    }
}

/// A float constant, with what decides how it can be stored.
struct Weight<'a> {
    tensor: &'a Tensor,
    uses: &'a [Use],
    shared: bool,
    head: bool,
}

impl Weight<'_> {
    /// How it is stored when `asked` is asked for; the reason why it stays as it is, if it does.
    fn storage(&self, asked: Quant, options: &Quantization, explicit: bool) -> Result<Storage, String> {
        let obstacle = match self.tensor.integers().filter(|_| !explicit).map(|i| self.keep(i, options)) {
            Some(Ok(storage)) => return Ok(storage),
            Some(Err(obstacle)) => Some(obstacle),
            None => None,
        };
        let asked = match asked {
            Quant::None if self.tensor.is_of_halves() => Quant::F16,
            Quant::None => return Err(obstacle.unwrap_or_else(|| "--quant none".into())),
            asked => asked,
        };
        let layout = self.layout()?;
        let whole = |quant: Quant, reason| {
            let keep_sums = quant == Quant::Int8 && self.is_convolution();
            Storage { scheme: quant.scheme(), form: Form::WHOLE, layout, qdq: false, keep_sums, kept: false, reason }
        };
        if asked != Quant::Int4 {
            return Ok(whole(asked, obstacle.map(|why| format!("{}: {why}", asked.name()))));
        }
        let k = match layout {
            Layout::KN => self.tensor.dims()[0],
            Layout::NK => self.tensor.dims()[1..].iter().product(),
        };
        let obstacle = if let Some(role) = self.uses.iter().find_map(Use::not_int4) {
            Some(role.to_owned())
        } else if self.head && !explicit {
            Some("int8: the output head, where an error is not averaged out".into())
        } else if !k.is_multiple_of(options.int4_block) {
            Some(format!("int8: {k} inputs are no multiple of the block of {}", options.int4_block))
        } else {
            None
        };
        if obstacle.is_some() {
            return Ok(whole(Quant::Int8, obstacle));
        }
        let qdq = options.qdq || self.uses.iter().any(|one| !one.takes_n_bits());
        let zero_points = match options.hqq {
            false => ZeroPoints::None,
            true if qdq => ZeroPoints::Integer,
            true => ZeroPoints::Float,
        };
        let form = Form { block: options.int4_block, zero_points };
        Ok(Storage { scheme: &Int4, form, layout: Layout::NK, qdq, keep_sums: false, kept: false, reason: None })
    }

    /// How the integers of the source are stored; the reason why they cannot be, if so.
    fn keep(&self, integers: &Integers, options: &Quantization) -> Result<Storage, String> {
        if self.tensor.dims().len() < 2 {
            return Err("bias, norm or scalar".into());
        }
        let layout = self.used_layout()?;
        let linear = self.uses.iter().all(|one| one.not_int4().is_none());
        let (scheme, form) = integers.storage(self.tensor.rewrites(), layout, linear)?;
        let scheme = quant::scheme(scheme).expect("the format has every scheme that integers are kept in");
        let qdq = options.qdq || scheme.name() != "int4" || self.uses.iter().any(|one| !one.takes_n_bits());
        let layout = if form.block == 0 { layout } else { Layout::NK };
        Ok(Storage { scheme, form, layout, qdq, keep_sums: false, kept: true, reason: None })
    }

    fn is_convolution(&self) -> bool {
        self.uses.iter().all(Use::is_convolution)
    }

    /// The layout that all users agree on.
    fn layout(&self) -> Result<Layout, String> {
        let tensor = self.tensor;
        if tensor.dtype != DType::F32 {
            return Err(format!("stored as {:?}", tensor.dtype));
        }
        if tensor.dims().len() < 2 {
            return Err("bias, norm or scalar".into());
        }
        if tensor.len() < MIN_QUANTIZED_ELEMENTS {
            return Err("too small to matter".into());
        }
        if self.shared {
            return Err("another constant comes from the same initializer".into());
        }
        self.used_layout()
    }

    fn used_layout(&self) -> Result<Layout, String> {
        let mut layout = None;
        for one in self.uses {
            match one {
                Use::Other(reason) => return Err(reason.clone()),
                Use::Weight { layout: l, .. } if layout.is_none_or(|found| found == *l) => layout = Some(*l),
                Use::Weight { .. } => return Err("its users need scales on different axes".into()),
            }
        }
        layout.ok_or_else(|| "not used as a weight".into())
    }
}

/// The constant with its outputs first.
fn turned(tensor: &Tensor) -> Tensor {
    tensor.rewritten(Rewrite::Transpose)
}

#[cfg(test)]
mod tests;
