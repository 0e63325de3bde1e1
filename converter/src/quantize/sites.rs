//! Where the weights are: module paths, output heads, and how each node uses a constant.

use std::collections::{BTreeMap, HashMap, HashSet};

use inlay_format::quant::Layout;

use crate::graph::{Graph, Node};
use crate::paths::module_path;
use crate::points::{candidates, frozen_weight};

/// Where a weight is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// Paths of the modules that use it.
    pub paths: Vec<String>,
    /// Whether an output of the graph follows from its product without another weight.
    pub head: bool,
}

/// The weights of linears, convolutions and tables, by name.
pub type Sites = BTreeMap<String, Site>;

impl Site {
    /// The sites of a canonical graph.
    pub fn all(graph: &Graph) -> Sites {
        let mut sites = Sites::new();
        for candidate in candidates(graph) {
            sites.entry(candidate.weight).or_default().paths.push(candidate.path);
        }
        let links = graph.links();
        for node in graph.nodes.iter().filter(|node| is_table(node)) {
            if let Some(table) = node.input(0).filter(|name| graph.constants.contains_key(*name)) {
                sites.entry(table.to_owned()).or_default().paths.push(module_path(graph, &links, node, table).0);
            }
        }
        for head in heads(graph) {
            if let Some(site) = sites.get_mut(&head) {
                site.head = true;
            }
        }
        sites
    }
}

/// Whether a Gather takes rows of its first input.
fn is_table(node: &Node) -> bool {
    node.is("Gather") && node.int("axis").unwrap_or(0) == 0
}

/// Weights of the linears from which outputs follow without another weight or norm.
fn heads(graph: &Graph) -> HashSet<String> {
    const PASSED: &[&str] = &[
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Cast",
        "Identity",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Transpose",
        "Softmax",
        "LogSoftmax",
        "Sigmoid",
        "Tanh",
    ];
    let links = graph.links();
    let mut heads = HashSet::new();
    let mut seen: HashSet<&str> = HashSet::new();
    let mut open: Vec<&str> = graph.outputs.iter().map(|o| o.name.as_str()).collect();
    while let Some(value) = open.pop() {
        let Some(node) = links.producer(value).map(|i| &graph.nodes[i]).filter(|_| seen.insert(value)) else {
            continue;
        };
        if let Some((weight, _)) = frozen_weight(graph, &links, node) {
            heads.insert(weight.to_owned());
        } else if PASSED.contains(&node.op_type.as_str()) {
            open.extend(node.inputs.iter().map(String::as_str));
        }
    }
    heads
}

/// How one node uses a constant: as a weight with its outputs on an axis, or otherwise.
pub(super) enum Use {
    Weight { layout: Layout, role: Role },
    Other(String),
}

/// What a weight is to a node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Of a product that MatMulNBits can replace.
    Linear,
    /// Of another product of matrices.
    Gemm,
    Conv,
    /// Of a transposed convolution, whose scales belong to its input channels.
    ConvTranspose,
    Table,
}

impl Use {
    /// Why a weight that is so used is stored as int8 where int4 is asked for.
    pub fn not_int4(&self) -> Option<&'static str> {
        match self {
            Use::Weight { role: Role::Conv | Role::ConvTranspose, .. } => Some("int8: ONNX has no int4 convolution"),
            Use::Weight { role: Role::Table, .. } => Some("int8: rows of a table are gathered one by one"),
            _ => None,
        }
    }

    /// The layout that it needs, if it is a weight.
    pub fn layout(&self) -> Option<Layout> {
        match self {
            Use::Weight { layout, .. } => Some(*layout),
            Use::Other(_) => None,
        }
    }

    /// Whether it is the weight of a convolution that has a scale for each output.
    pub fn is_convolution(&self) -> bool {
        matches!(self, Use::Weight { role: Role::Conv, .. })
    }

    /// Whether MatMulNBits can do what the node does.
    pub fn takes_n_bits(&self) -> bool {
        matches!(self, Use::Weight { role: Role::Linear, .. })
    }
}

/// The uses of every constant.
pub(super) fn uses(graph: &Graph) -> HashMap<String, Vec<Use>> {
    let links = graph.links();
    let mut uses: HashMap<String, Vec<Use>> = HashMap::new();
    for node in &graph.nodes {
        let weight = frozen_weight(graph, &links, node);
        if let Some((name, axis)) = weight {
            let layout = if axis == 0 { Layout::NK } else { Layout::KN };
            uses.entry(name.to_owned()).or_default().push(Use::Weight { layout, role: role(graph, node) });
        }
        for (i, input) in node.inputs.iter().enumerate().filter(|(_, v)| graph.constants.contains_key(*v)) {
            if i == 1 && weight.is_some_and(|(name, _)| name == input) {
                continue;
            }
            let of_linear = node.is("Transpose")
                && links.consumers(node.output()).iter().all(|&user| {
                    frozen_weight(graph, &links, &graph.nodes[user]).is_some_and(|(name, _)| name == input)
                });
            if of_linear {
                continue;
            }
            uses.entry(input.clone()).or_default().push(if is_table(node) && i == 0 {
                Use::Weight { layout: Layout::NK, role: Role::Table }
            } else {
                Use::Other(format!("used by {} {:?}", node.op_type, node.name))
            });
        }
    }
    uses
}

fn role(graph: &Graph, node: &Node) -> Role {
    let one = |name| node.float(name).unwrap_or(1.0) == 1.0;
    match node.op_type.as_str() {
        "Conv" => Role::Conv,
        "ConvTranspose" => Role::ConvTranspose,
        "MatMul" => Role::Linear,
        _ => {
            // The bias of MatMulNBits has one dimension.
            let bias = node.input(2).is_none_or(|c| graph.constants.get(c).is_some_and(|c| c.dims().len() == 1));
            let plain = node.int("transA").unwrap_or(0) == 0 && one("alpha") && one("beta");
            if plain && bias { Role::Linear } else { Role::Gemm }
        }
    }
}
