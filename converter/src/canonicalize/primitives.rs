//! Operators that stand for several: those of operator set 23 and of onnxruntime become primitives. [`ALL`] lists them.

use std::collections::{HashMap, HashSet};

use super::{attention, gelus, matmul, norms, replacement, rotary};
use crate::error::Result;
use crate::graph::{Attribute, Dim, Graph, Node};
use crate::tensor::{DType, Tensor};
use crate::types;

/// The domain of onnxruntime's own operators.
pub(super) const MICROSOFT: &str = "com.microsoft";

/// An operator, and how it is written in primitives.
pub struct Expansion {
    /// Its domain, empty for ai.onnx.
    pub domain: &'static str,
    /// Its name.
    pub op_type: &'static str,
    /// What has the type of its first output, where the reference does not know the operator.
    stand_in: StandIn,
    /// Writes it.
    expand: fn(&mut Primitives<'_>) -> Result<()>,
}

/// What stands in for a node while types are found.
#[derive(Clone, Copy, PartialEq)]
enum StandIn {
    /// Its first input.
    Input,
    /// Types of its inputs are not looked at, so it is written first.
    None,
    /// The part of packed queries, keys and values that holds the queries.
    Queries,
}

const fn expansion(
    domain: &'static str,
    op_type: &'static str,
    stand_in: StandIn,
    expand: fn(&mut Primitives<'_>) -> Result<()>,
) -> Expansion {
    Expansion { domain, op_type, stand_in, expand }
}

/// Every operator that becomes primitives.
pub const ALL: &[Expansion] = &[
    expansion("", "RMSNormalization", StandIn::None, norms::rms),
    // onnxruntime keeps it in both domains.
    expansion("", "SimplifiedLayerNormalization", StandIn::None, norms::rms),
    expansion(MICROSOFT, "SimplifiedLayerNormalization", StandIn::None, norms::rms),
    expansion(MICROSOFT, "SkipSimplifiedLayerNormalization", StandIn::None, norms::skip_rms),
    expansion(MICROSOFT, "SkipLayerNormalization", StandIn::None, norms::skip_layer_norm),
    expansion(MICROSOFT, "Gelu", StandIn::None, gelus::gelu),
    expansion(MICROSOFT, "BiasGelu", StandIn::None, gelus::gelu),
    expansion(MICROSOFT, "FastGelu", StandIn::None, gelus::fast_gelu),
    expansion(MICROSOFT, "QuickGelu", StandIn::None, gelus::quick_gelu),
    expansion(MICROSOFT, "FusedMatMul", StandIn::None, matmul::fused),
    expansion("", "RotaryEmbedding", StandIn::Input, rotary::standard),
    expansion(MICROSOFT, "RotaryEmbedding", StandIn::Input, rotary::microsoft),
    expansion("", "Attention", StandIn::Input, attention::standard),
    expansion(MICROSOFT, "MultiHeadAttention", StandIn::Input, attention::multi_head),
    expansion(MICROSOFT, "GroupQueryAttention", StandIn::Queries, attention::group_query),
];

/// How `node` becomes primitives, if it does.
pub fn find(node: &Node) -> Option<&'static Expansion> {
    ALL.iter().find(|e| e.domain == node.domain && e.op_type == node.op_type)
}

/// Writes every such operator of `graph`, whose nodes are of operator set `opset`, in primitives.
///
/// # Errors
/// If a use of one is not supported.
pub(super) fn run(graph: &mut Graph, opset: i64) -> Result<()> {
    let mut shared = Shared { values: HashMap::new(), names: graph.names() };
    expand(graph, opset, &Graph::default(), &mut shared, |e| e.stand_in == StandIn::None)?;
    if graph.nodes.iter().all(|n| find(n).is_none()) {
        return Ok(());
    }
    let typed = |itself: bool| {
        let mut typed = graph.clone();
        let nodes = std::mem::take(&mut typed.nodes);
        for node in nodes {
            // Whether more outputs than the first may be used is said when the node is written.
            let more = find(&node).map_or(Vec::new(), |_| node.outputs.iter().skip(1).cloned().collect());
            let input = node.inputs.first().cloned().unwrap_or_default();
            typed.nodes.extend(stand_in(node, itself));
            let more = more.iter().filter(|output| !output.is_empty());
            typed.nodes.extend(more.map(|output| Node::new("Identity", output, &[&input], output)));
        }
        types::infer(&mut typed, opset).map(|()| typed)
    };
    // Values of another width than keys do not have the type of queries; the reference may know better then.
    let typed = typed(false).or_else(|error| typed(true).map_err(|_| error))?;
    expand(graph, opset, &typed, &mut shared, |_| true)
}

fn expand(
    graph: &mut Graph,
    opset: i64,
    typed: &Graph,
    shared: &mut Shared,
    when: impl Fn(&Expansion) -> bool,
) -> Result<()> {
    let mut i = 0;
    while i < graph.nodes.len() {
        let Some(expansion) = find(&graph.nodes[i]).filter(|e| when(e)) else {
            i += 1;
            continue;
        };
        let old = graph.nodes[i].clone();
        let mut primitives = Primitives { graph, typed, shared, opset, old, nodes: Vec::new() };
        (expansion.expand)(&mut primitives)?;
        let nodes = primitives.nodes;
        let count = nodes.len();
        graph.nodes.splice(i..=i, nodes);
        i += count;
    }
    Ok(())
}

/// Nodes looked back through for a rank.
const MAX_DEPTH: usize = 8;

/// The rank that the nodes before a value give it.
fn made_rank(graph: &Graph, value: &str, depth: usize) -> Option<usize> {
    if let Some(tensor) = graph.constants.get(value) {
        return Some(tensor.dims().len());
    }
    if let Some(port) = graph.inputs.iter().find(|p| p.name == value) {
        return port.ty.dims.as_ref().map(Vec::len);
    }
    let node = graph.nodes.iter().find(|n| n.outputs.iter().any(|o| o == value))?;
    let depth = depth.checked_sub(1)?;
    let of_input = |index: usize| made_rank(graph, node.input(index)?, depth);
    match node.op_type.as_str() {
        "Transpose" => node.ints("perm").map(<[i64]>::len).or_else(|| of_input(0)),
        "Reshape" => graph.constant_ints(node, 1).map(|shape| shape.len()),
        "Unsqueeze" => Some(of_input(0)? + graph.constant_ints(node, 1)?.len()),
        "Add" | "Sub" | "Mul" | "Div" | "MatMul" => of_input(0).max(of_input(1)),
        "Softmax" | "Identity" | "Cast" | "Slice" | "Split" | "Concat" | "LayerNormalization" => of_input(0),
        _ => None,
    }
}

/// Nodes whose result has the type of the node's; operators of ai.onnx may stand for themselves.
fn stand_in(node: Node, itself: bool) -> Vec<Node> {
    let Some(input) = node.input(0).map(str::to_owned) else { return vec![node] };
    let identity = |input: &str| vec![Node::new("Identity", &node.name, &[input], node.output())];
    // The reference would take its own operator for that of onnxruntime.
    let itself = itself && node.domain.is_empty();
    match find(&node).map(|e| e.stand_in) {
        Some(StandIn::Input) if !itself || node.outputs.len() > 1 => identity(&input),
        Some(StandIn::Queries) if node.input(1).is_some() => identity(&input),
        Some(StandIn::Queries) => {
            let [heads, kv_heads] = ["num_heads", "kv_num_heads"].map(|name| node.int(name).unwrap_or(1).max(1));
            let name = |part: &str| format!("{}/{part}", node.name);
            let constant = |part: &str, values: &[i64]| {
                let value = Attribute::Tensor(Tensor::from_i64(&[values.len()], values));
                Node::new("Constant", &name(part), &[], &name(part)).with("value", value)
            };
            vec![
                constant("apart", &[0, 0, heads + 2 * kv_heads, -1]),
                constant("joined", &[0, 0, -1]),
                constant("start", &[0]),
                constant("end", &[heads]),
                constant("axis", &[2]),
                Node::new("Reshape", &name("split"), &[&input, &name("apart")], &name("split")),
                Node::new(
                    "Slice",
                    &name("queries"),
                    &[&name("split"), &name("start"), &name("end"), &name("axis")],
                    &name("queries"),
                ),
                Node::new("Reshape", &node.name, &[&name("queries"), &name("joined")], node.output()),
            ]
        }
        _ => vec![node],
    }
}

/// What the nodes of a graph have in common.
struct Shared {
    /// Values such as a causal mask, by what they are.
    values: HashMap<String, String>,
    /// Names that are taken.
    names: HashSet<String>,
}

impl Shared {
    /// A name that was free, starting with `stem`.
    fn fresh_name(&mut self, stem: &str) -> String {
        let mut names = std::iter::once(stem.to_owned()).chain((1..).map(|i| format!("{stem}_{i}")));
        let name = names.find(|name| !self.names.contains(name)).expect("the names are endless");
        self.names.insert(name.clone());
        name
    }
}

/// A node that is being written in primitives.
pub(super) struct Primitives<'a> {
    graph: &'a mut Graph,
    /// The graph with the types of its values.
    typed: &'a Graph,
    shared: &'a mut Shared,
    opset: i64,
    /// The node.
    pub old: Node,
    nodes: Vec<Node>,
}

impl Primitives<'_> {
    /// Adds a node; gives its output.
    pub fn push(&mut self, op_type: &str, name: &str, inputs: &[&str]) -> String {
        let name = self.shared.fresh_name(&format!("{}/{name}", self.old.name));
        let (scope, opset) = (self.old.scope.clone(), self.opset);
        self.nodes.push(Node { scope, opset, ..Node::new(op_type, &name, inputs, &name) });
        name
    }

    /// Adds a node with one attribute; gives its output.
    pub fn push_with(&mut self, op_type: &str, name: &str, inputs: &[&str], (key, value): (&str, Attribute)) -> String {
        let output = self.push(op_type, name, inputs);
        let node = self.nodes.last_mut().expect("a node was pushed");
        node.attributes.insert(key.to_owned(), value);
        output
    }

    /// Gives the node that was added last another name.
    pub fn rename(&mut self, name: &str) {
        let node = self.nodes.last_mut().expect("a node was pushed");
        node.name = name.to_owned();
    }

    /// Adds the node that makes the first output of the old one.
    pub fn finish(&mut self, op_type: &str, inputs: &[&str]) -> &mut Node {
        let node = Node { opset: self.opset, ..replacement(op_type, &self.old, inputs) };
        self.nodes.push(node);
        self.nodes.last_mut().expect("a node was pushed")
    }

    /// Lets the output `index` of the old node be `value`.
    pub fn set_output(&mut self, index: usize, value: &str) {
        let Some(output) = self.old.outputs.get(index).filter(|o| !o.is_empty()).cloned() else { return };
        let name = format!("{}/output_{index}", self.old.name);
        self.nodes.push(Node { opset: self.opset, ..Node::new("Identity", &name, &[value], &output) });
    }

    /// # Errors
    /// If anything uses the output `index`, which has this name in the operator's documentation.
    pub fn refuse_output(&self, index: usize, name: &str, way_out: &str) -> Result<()> {
        let Some(output) = self.old.outputs.get(index).filter(|o| !o.is_empty()) else { return Ok(()) };
        let links = self.graph.links();
        if links.consumers(output).is_empty() && !links.is_output(output) {
            return Ok(());
        }
        Err(self.unsupported(&format!("output {name} is not supported; {way_out}")))
    }

    /// The input at `index`.
    ///
    /// # Errors
    /// If it is absent.
    pub fn input(&self, index: usize) -> Result<String> {
        let input = self.old.input(index).map(str::to_owned);
        input.ok_or_else(|| self.unsupported(&format!("input {index} is missing")))
    }

    /// The input at `index`, if it is present.
    pub fn optional(&self, index: usize) -> Option<String> {
        self.old.input(index).map(str::to_owned)
    }

    /// An error about the old node.
    pub fn unsupported(&self, detail: &str) -> crate::error::Error {
        self.old.unsupported(detail)
    }

    /// The constant `tensor`.
    pub fn constant(&mut self, name: &str, tensor: Tensor) -> String {
        let name = format!("{}/{name}", self.old.name);
        if self.graph.constants.get(&name) == Some(&tensor) {
            return name;
        }
        let name = self.shared.fresh_name(&name);
        self.graph.constants.insert(name.clone(), tensor);
        name
    }

    /// A number.
    pub fn number(&mut self, name: &str, value: f32) -> String {
        self.constant(name, Tensor::from_f32(&[], &[value]))
    }

    /// A list of integers.
    pub fn ints(&mut self, name: &str, values: &[i64]) -> String {
        self.constant(name, Tensor::from_i64(&[values.len()], values))
    }

    /// An integer.
    pub fn int(&mut self, name: &str, value: i64) -> String {
        self.constant(name, Tensor::from_i64(&[], &[value]))
    }

    /// Puts `value` together once for all nodes for which `key` is the same; always, where there is none.
    pub fn shared(&mut self, key: Option<String>, make: impl FnOnce(&mut Self) -> String) -> String {
        if let Some(known) = key.as_ref().and_then(|key| self.shared.values.get(key)) {
            return known.clone();
        }
        let value = make(self);
        if let Some(key) = key {
            self.shared.values.insert(key, value.clone());
        }
        value
    }

    /// `x` with its dimensions permuted.
    pub fn transpose(&mut self, name: &str, x: &str, perm: &[i64]) -> String {
        self.push_with("Transpose", name, &[x], ("perm", Attribute::Ints(perm.to_vec())))
    }

    /// `x` with another shape, as Reshape takes it.
    pub fn reshape(&mut self, name: &str, x: &str, shape: &[i64]) -> String {
        let shape = self.ints(&format!("{name}_shape"), shape);
        self.push("Reshape", name, &[x, &shape])
    }

    /// Both halves of the last dimension of `x`.
    pub fn halves(&mut self, x: &str) -> [String; 2] {
        let first = self.push_with("Split", "first", &[x], ("axis", Attribute::Int(-1)));
        let second = self.shared.fresh_name(&format!("{first}/second"));
        let split = self.nodes.last_mut().expect("a node was pushed");
        split.outputs.push(second.clone());
        if self.opset >= 18 {
            split.attributes.insert("num_outputs".into(), Attribute::Int(2));
        }
        [first, second]
    }

    /// `x[.., start..end]` of the dimension `axis`.
    pub fn slice(&mut self, name: &str, x: &str, axis: i64, start: i64, end: i64) -> String {
        let bounds = [("start", start), ("end", end), ("axis", axis)];
        let [start, end, axis] = bounds.map(|(bound, value)| self.ints(&format!("{name}_{bound}"), &[value]));
        self.push("Slice", name, &[x, &start, &end, &axis])
    }

    /// `x` with dimensions of 1 at `axes`.
    pub fn unsqueeze(&mut self, name: &str, x: &str, axes: &[i64]) -> String {
        let axes = self.ints(&format!("{name}_axes"), axes);
        self.push("Unsqueeze", name, &[x, &axes])
    }

    /// The size of dimension `axis` of `x`, a number of the graph.
    pub fn size_of(&mut self, name: &str, x: &str, axis: i64) -> String {
        let shape = self.push("Shape", &format!("{name}_shape"), &[x]);
        let axis = self.int(&format!("{name}_axis"), axis);
        self.push("Gather", name, &[&shape, &axis])
    }

    /// `0..size`.
    pub fn range(&mut self, name: &str, size: &str) -> String {
        let (zero, one) = (self.int("zero", 0), self.int("one", 1));
        self.push("Range", name, &[&zero, size, &one])
    }

    /// The mean over `axes`, which stay.
    pub fn mean(&mut self, name: &str, x: &str, axes: &[i64]) -> String {
        if self.opset < 18 {
            return self.push_with("ReduceMean", name, &[x], ("axes", Attribute::Ints(axes.to_vec())));
        }
        let axes = self.ints(&format!("{name}_axes"), axes);
        self.push("ReduceMean", name, &[x, &axes])
    }

    /// The rank of a value, from its type or from what makes it.
    pub fn rank(&self, value: &str) -> Option<usize> {
        self.typed.rank(value).or_else(|| made_rank(self.graph, value, MAX_DEPTH))
    }

    /// The element type of a value.
    pub fn dtype(&self, value: &str) -> Option<DType> {
        self.typed.dtype(value).or_else(|| self.graph.dtype(value))
    }

    /// The dimension `axis` of a value; negative ones count from the end.
    pub fn dim(&self, value: &str, axis: i64) -> Option<Dim> {
        let constant = self.typed.constants.get(value).or_else(|| self.graph.constants.get(value));
        let dims = match constant {
            Some(tensor) => tensor.dims().iter().map(|&d| Dim::Known(d)).collect(),
            None => self.typed.types.get(value)?.dims.clone()?,
        };
        let axis = if axis < 0 { axis + dims.len() as i64 } else { axis };
        dims.get(usize::try_from(axis).ok()?).cloned()
    }

    /// The dimension `axis` of a value, where it is the same for every input.
    pub fn size(&self, value: &str, axis: i64) -> Option<usize> {
        match self.dim(value, axis)? {
            Dim::Known(n) => Some(n),
            _ => None,
        }
    }
}
