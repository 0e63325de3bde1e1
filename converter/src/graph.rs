//! The graph that the passes work on: nodes, constants by name, and what is known of every value's type.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// A dimension of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Always this size.
    Known(usize),
    /// A named size, fixed when the model is fed.
    Symbol(String),
    /// Not known before the model runs.
    Unknown,
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Known(size) => write!(f, "{size}"),
            Dim::Symbol(name) => f.write_str(name),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

/// Element type and, if the rank is known, shape of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueType {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub dims: Option<Vec<Dim>>,
}

impl ValueType {
    /// The last dimension, where it is known.
    pub fn last_dim(&self) -> Option<usize> {
        match self.dims.as_ref()?.last()? {
            Dim::Known(n) => Some(*n),
            _ => None,
        }
    }
}

/// A graph input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The value's name.
    pub name: String,
    /// Its type.
    pub ty: ValueType,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A float.
    Float(f32),
    /// An integer.
    Int(i64),
    /// A string.
    String(String),
    /// A tensor.
    Tensor(Tensor),
    /// Floats.
    Floats(Vec<f32>),
    /// Integers.
    Ints(Vec<i64>),
    /// Strings.
    Strings(Vec<String>),
    /// A subgraph. Only its nodes, constants and the names of its outputs are there.
    Graph(Arc<Graph>),
    /// In a function body: the value of the call's attribute of this name.
    Reference(String),
}

/// One application of an operator.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Unique name.
    pub name: String,
    /// Operator.
    pub op_type: String,
    /// Domain of the operator, empty for ai.onnx.
    pub domain: String,
    /// Version of the operator set that gives the node its meaning.
    pub opset: i64,
    /// Inputs; empty where an optional input is absent.
    pub inputs: Vec<String>,
    /// Outputs.
    pub outputs: Vec<String>,
    /// Attributes.
    pub attributes: BTreeMap<String, Attribute>,
    /// The module that the dynamo exporter recorded for this node.
    pub scope: Option<String>,
    /// Whether the exporter folded a BatchNormalization into this convolution.
    pub folded_norm: bool,
}

/// The operator set that canonical graphs are written in.
pub const OPSET: i64 = 21;

impl Node {
    /// A node of the canonical operator set, with one output.
    pub fn new(op_type: &str, name: &str, inputs: &[&str], output: &str) -> Node {
        Node {
            name: name.to_owned(),
            op_type: op_type.to_owned(),
            opset: OPSET,
            inputs: inputs.iter().map(|&s| s.to_owned()).collect(),
            outputs: vec![output.to_owned()],
            ..Node::default()
        }
    }

    /// This node with one more attribute.
    pub fn with(mut self, name: &str, value: Attribute) -> Node {
        self.attributes.insert(name.to_owned(), value);
        self
    }

    /// The input at `index`, if it is present.
    pub fn input(&self, index: usize) -> Option<&str> {
        self.inputs.get(index).map(String::as_str).filter(|s| !s.is_empty())
    }

    /// The first output.
    pub fn output(&self) -> &str {
        self.outputs.first().map_or("", String::as_str)
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attributes.get(name) {
            Some(Attribute::Int(i)) => Some(*i),
            _ => None,
        }
    }

    /// A float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        match self.attributes.get(name) {
            Some(Attribute::Float(f)) => Some(*f),
            _ => None,
        }
    }

    /// A list of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attributes.get(name) {
            Some(Attribute::Ints(i)) => Some(i),
            _ => None,
        }
    }

    /// A string attribute.
    pub fn string(&self, name: &str) -> Option<&str> {
        match self.attributes.get(name) {
            Some(Attribute::String(s)) => Some(s),
            _ => None,
        }
    }

    /// Whether this is the ai.onnx operator `op_type`.
    pub fn is(&self, op_type: &str) -> bool {
        self.domain.is_empty() && self.op_type == op_type
    }

    /// An error about this node's use of its operator.
    pub fn unsupported(&self, detail: impl Into<String>) -> Error {
        Error::UnsupportedUse { node: self.name.clone(), op_type: self.op_type.clone(), detail: detail.into() }
    }
}

/// A graph.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// The graph's name.
    pub name: String,
    /// Nodes, every one after those it depends on.
    pub nodes: Vec<Node>,
    /// Inputs.
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
    /// Constants by name.
    pub constants: BTreeMap<String, Tensor>,
    /// What is known of the values, by name.
    pub types: HashMap<String, ValueType>,
    /// By node: the factors of a BatchNormalization or of calibration that were folded into the outputs of its weight.
    pub row_scales: BTreeMap<String, Vec<f32>>,
    /// By linear node: the factors of calibration that its weight's inputs were multiplied by.
    pub input_scales: BTreeMap<String, Vec<f32>>,
    /// By initializer of the source: the constant whose transpose it was, and which stands for it now.
    pub tied: BTreeMap<String, String>,
}

/// Who makes and who uses each value.
pub struct Links {
    producers: HashMap<String, usize>,
    consumers: HashMap<String, Vec<usize>>,
    outputs: HashSet<String>,
}

impl Links {
    /// The node that makes `value`.
    pub fn producer(&self, value: &str) -> Option<usize> {
        self.producers.get(value).copied()
    }

    /// The nodes that use `value`, once per use.
    pub fn consumers(&self, value: &str) -> &[usize] {
        self.consumers.get(value).map_or(&[], Vec::as_slice)
    }

    /// Whether `value` is an output of the graph.
    pub fn is_output(&self, value: &str) -> bool {
        self.outputs.contains(value)
    }

    /// The node that is the only user of `value`, which is no output of the graph.
    pub fn only_consumer(&self, value: &str) -> Option<usize> {
        match self.consumers(value) {
            [node] if !self.is_output(value) => Some(*node),
            _ => None,
        }
    }
}

impl Graph {
    /// Who makes and who uses each value, as the graph is now.
    pub fn links(&self) -> Links {
        let mut links = Links {
            producers: HashMap::new(),
            consumers: HashMap::new(),
            outputs: self.outputs.iter().map(|o| o.name.clone()).collect(),
        };
        for (i, node) in self.nodes.iter().enumerate() {
            for output in node.outputs.iter().filter(|s| !s.is_empty()) {
                links.producers.insert(output.clone(), i);
            }
            for input in node.inputs.iter().filter(|s| !s.is_empty()) {
                links.consumers.entry(input.clone()).or_default().push(i);
            }
        }
        links
    }

    /// The constant that `node` has as its input `index`.
    pub fn constant_input(&self, node: &Node, index: usize) -> Option<&Tensor> {
        self.constants.get(node.input(index)?)
    }

    /// The integers of the constant input `index` of `node`.
    pub fn constant_ints(&self, node: &Node, index: usize) -> Option<Vec<i64>> {
        self.constant_input(node, index)?.to_i64()
    }

    /// The rank of a value, if it is known.
    pub fn rank(&self, value: &str) -> Option<usize> {
        match self.constants.get(value) {
            Some(t) => Some(t.dims().len()),
            None => self.types.get(value)?.dims.as_ref().map(Vec::len),
        }
    }

    /// The element type of a value, if it is known.
    pub fn dtype(&self, value: &str) -> Option<DType> {
        self.constants.get(value).map(|t| t.dtype).or_else(|| self.types.get(value).map(|t| t.dtype))
    }

    /// Lets every user of `from` use `to` instead; an output of the graph keeps its name.
    pub fn replace_uses(&mut self, from: &str, to: &str) {
        for node in &mut self.nodes {
            for input in node.inputs.iter_mut().filter(|i| *i == from) {
                *input = to.to_owned();
            }
        }
    }

    /// The names of all nodes and values.
    pub fn names(&self) -> HashSet<String> {
        let nodes = self.nodes.iter().flat_map(|n| std::iter::once(&n.name).chain(&n.outputs));
        nodes.chain(self.constants.keys()).chain(self.inputs.iter().map(|p| &p.name)).cloned().collect()
    }

    /// A value or node name that is not taken, starting with `stem`.
    pub fn fresh_name(&self, stem: &str) -> String {
        let taken = |name: &str| {
            self.constants.contains_key(name)
                || self.inputs.iter().any(|p| p.name == name)
                || self.nodes.iter().any(|n| n.name == name || n.outputs.iter().any(|o| o == name))
        };
        std::iter::once(stem.to_owned())
            .chain((1..).map(|i| format!("{stem}_{i}")))
            .find(|name| !taken(name))
            .expect("the names are endless")
    }

    /// Adds a constant under a free name starting with `stem`, or finds an equal one of that name.
    pub fn add_constant(&mut self, stem: &str, tensor: Tensor) -> String {
        if self.constants.get(stem) == Some(&tensor) {
            return stem.to_owned();
        }
        let name = self.fresh_name(stem);
        self.constants.insert(name.clone(), tensor);
        name
    }

    /// Removes nodes and constants that no output depends on.
    pub fn sweep(&mut self) {
        let mut live: HashSet<String> = self.outputs.iter().map(|o| o.name.clone()).collect();
        let mut keep = vec![false; self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate().rev() {
            keep[i] = node.outputs.iter().any(|o| live.contains(o));
            if keep[i] {
                live.extend(node.inputs.iter().filter(|s| !s.is_empty()).cloned());
            }
        }
        let mut keep = keep.into_iter();
        self.nodes.retain(|_| keep.next().expect("one flag a node"));
        self.constants.retain(|name, _| live.contains(name));
    }

    /// Puts the nodes in an order in which every one follows those it depends on; stable.
    ///
    /// # Errors
    /// On a cycle, on a value that nothing makes, and on two makers of one value.
    pub fn sort(&mut self) -> Result<()> {
        let mut known: HashSet<&str> = self.constants.keys().map(String::as_str).collect();
        known.extend(self.inputs.iter().map(|p| p.name.as_str()));
        let mut makers: HashMap<&str, usize> = HashMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            for output in node.outputs.iter().filter(|s| !s.is_empty()) {
                if known.contains(output.as_str()) || makers.insert(output, i).is_some() {
                    return Err(Error::Invalid(format!("node {:?}: value {output:?} is defined twice", node.name)));
                }
            }
        }
        let mut waiting = vec![0usize; self.nodes.len()];
        let mut users: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for input in node.inputs.iter().filter(|s| !s.is_empty()) {
                match makers.get(input.as_str()) {
                    Some(&maker) => {
                        users[maker].push(i);
                        waiting[i] += 1;
                    }
                    None if known.contains(input.as_str()) => {}
                    None => {
                        return Err(Error::Invalid(format!(
                            "node {:?}: input {input:?} is made by no node, input or initializer",
                            node.name
                        )));
                    }
                }
            }
        }
        for output in &self.outputs {
            if !known.contains(output.name.as_str()) && !makers.contains_key(output.name.as_str()) {
                return Err(Error::Invalid(format!("graph output {:?} is made by no node", output.name)));
            }
        }
        let mut ready: BTreeSet<usize> = (0..self.nodes.len()).filter(|&i| waiting[i] == 0).collect();
        let mut order = Vec::with_capacity(self.nodes.len());
        while let Some(i) = ready.pop_first() {
            order.push(i);
            for &user in &users[i] {
                waiting[user] -= 1;
                if waiting[user] == 0 {
                    ready.insert(user);
                }
            }
        }
        if order.len() < self.nodes.len() {
            let node = (0..self.nodes.len()).find(|&i| waiting[i] > 0).expect("a node is left on the cycle");
            return Err(Error::Invalid(format!(
                "node {:?}: its output leads back to its input",
                self.nodes[node].name
            )));
        }
        let mut nodes: Vec<Option<Node>> = std::mem::take(&mut self.nodes).into_iter().map(Some).collect();
        self.nodes = order.into_iter().map(|i| nodes[i].take().expect("each node is ordered once")).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str) -> Port {
        Port { name: name.into(), ty: ValueType { dtype: DType::F32, dims: None } }
    }

    fn graph(nodes: Vec<Node>) -> Graph {
        Graph { nodes, inputs: vec![port("x")], outputs: vec![port("y")], ..Graph::default() }
    }

    #[test]
    fn sorts_and_finds_cycles() {
        let mut g = graph(vec![Node::new("Relu", "b", &["h"], "y"), Node::new("Relu", "a", &["x"], "h")]);
        g.sort().unwrap();
        assert_eq!(g.nodes[0].name, "a");
        let mut g = graph(vec![Node::new("Relu", "b", &["h"], "y"), Node::new("Add", "a", &["x", "y"], "h")]);
        assert!(g.sort().unwrap_err().to_string().contains("leads back"));
        let mut g = graph(vec![Node::new("Relu", "b", &["nothing"], "y")]);
        assert!(g.sort().unwrap_err().to_string().contains("made by no node"));
        let mut g = graph(vec![Node::new("Relu", "b", &["x"], "y"), Node::new("Relu", "c", &["x"], "y")]);
        assert!(g.sort().unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn sweeps_what_no_output_needs() {
        let mut g = graph(vec![Node::new("Relu", "a", &["x"], "y"), Node::new("Add", "dead", &["x", "w"], "z")]);
        g.constants.insert("w".into(), Tensor::from_f32(&[1], &[1.0]));
        g.sweep();
        assert_eq!(g.nodes.len(), 1);
        assert!(g.constants.is_empty());
    }
}
