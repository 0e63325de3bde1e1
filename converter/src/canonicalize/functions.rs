//! Functions local to the model are put in place of their calls.

use std::collections::HashMap;

use crate::bounds::{MAX_INLINED_BYTES, MAX_NODES, check_size};
use crate::error::{Error, Result};
use crate::graph::{Attribute, Graph, Node};
use crate::read::{Function, Model};

/// Calls within calls.
const MAX_DEPTH: usize = 32;

/// Replaces the calls of functions of `model` in `graph`.
pub(super) fn inline(graph: &mut Graph, model: &Model) -> Result<()> {
    if model.functions.is_empty() {
        return Ok(());
    }
    let mut inlined = Inlined { functions: &model.functions, nodes: Vec::new(), calls: 0, bytes: 0 };
    for node in std::mem::take(&mut graph.nodes) {
        inlined.add(node, 0)?;
    }
    graph.nodes = inlined.nodes;
    graph.sort()?;
    check_size(graph)
}

/// The nodes so far, and what they took.
struct Inlined<'a> {
    functions: &'a HashMap<(String, String), Function>,
    nodes: Vec<Node>,
    calls: usize,
    bytes: usize,
}

impl Inlined<'_> {
    fn add(&mut self, node: Node, depth: usize) -> Result<()> {
        let Some(function) = self.functions.get(&(node.domain.clone(), node.op_type.clone())) else {
            self.bytes = self.bytes.saturating_add(heap_bytes(&node));
            self.nodes.push(node);
            return if self.nodes.len() > MAX_NODES {
                Err(Error::Invalid(format!(
                    "functions inlined make more than the {MAX_NODES} nodes that are supported"
                )))
            } else if self.bytes > MAX_INLINED_BYTES {
                Err(Error::Invalid(format!("functions inlined take more than {MAX_INLINED_BYTES} bytes")))
            } else {
                Ok(())
            };
        };
        self.calls += 1;
        if self.calls > MAX_NODES {
            return Err(Error::Invalid(format!(
                "functions are called more than the {MAX_NODES} times that are supported"
            )));
        }
        if depth == MAX_DEPTH {
            return Err(node.unsupported(format!("functions call each other more than {MAX_DEPTH} deep")));
        }
        if node.inputs.len() > function.inputs.len() || node.outputs.len() > function.outputs.len() {
            return Err(node.unsupported("the call has more inputs or outputs than the function"));
        }
        let mut names: HashMap<&str, String> = HashMap::new();
        for (i, formal) in function.inputs.iter().enumerate() {
            names.insert(formal, node.inputs.get(i).cloned().unwrap_or_default());
        }
        for (formal, actual) in function.outputs.iter().zip(&node.outputs) {
            names.insert(formal, actual.clone());
        }
        let rename = |name: &String| match names.get(name.as_str()) {
            Some(actual) => actual.clone(),
            None if name.is_empty() => String::new(),
            None => format!("{}/{name}", node.name),
        };
        for inner in &function.nodes {
            let mut inner = inner.clone();
            inner.name = format!("{}/{}", node.name, inner.name);
            inner.inputs = inner.inputs.iter().map(rename).collect();
            inner.outputs = inner.outputs.iter().map(rename).collect();
            inner.scope = inner.scope.or_else(|| node.scope.clone());
            let attributes = std::mem::take(&mut inner.attributes);
            for (name, value) in attributes {
                let value = match value {
                    Attribute::Reference(of) => {
                        node.attributes.get(&of).or_else(|| function.defaults.get(&of)).cloned()
                    }
                    value => Some(value),
                };
                inner.attributes.extend(value.map(|v| (name, v)));
            }
            self.add(inner, depth + 1)?;
        }
        Ok(())
    }
}

/// Bytes that a node takes: its names, and the numbers of its attributes. Tensors are shared.
pub(super) fn heap_bytes(node: &Node) -> usize {
    let names = node.inputs.iter().chain(&node.outputs).chain([&node.name, &node.op_type, &node.domain]);
    let attributes = node.attributes.iter().map(|(name, value)| {
        let value = match value {
            Attribute::Ints(list) => size_of_val(list.as_slice()),
            Attribute::Floats(list) => size_of_val(list.as_slice()),
            Attribute::Strings(list) => list.iter().map(|text| size_of_val(text) + text.len()).sum(),
            Attribute::String(text) | Attribute::Reference(text) => text.len(),
            _ => 0,
        };
        size_of_val(name) + size_of::<Attribute>() + name.len() + value
    });
    size_of_val(node) + names.map(|name| size_of_val(name) + name.len()).sum::<usize>() + attributes.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::testing::{graph, ops};
    use super::*;

    fn model(body: Vec<Node>) -> Model {
        let mut call = Node::new("Block", "call", &["x"], "y").with("slope", Attribute::Float(0.5));
        call.domain = "own".into();
        let function = Function {
            inputs: vec!["a".into(), "absent".into()],
            outputs: vec!["b".into()],
            defaults: BTreeMap::new(),
            nodes: body,
        };
        Model {
            graph: graph(&[4], &[], vec![call]),
            functions: HashMap::from([(("own".to_owned(), "Block".to_owned()), function)]),
            opset: 21,
            metadata: BTreeMap::new(),
            producer: String::new(),
            bytes: 0,
        }
    }

    #[test]
    fn a_call_becomes_its_body() {
        let leaky = Node::new("LeakyRelu", "n", &["a"], "h").with("alpha", Attribute::Reference("slope".into()));
        let model = model(vec![leaky, Node::new("Relu", "m", &["h"], "b")]);
        let mut g = model.graph.clone();
        inline(&mut g, &model).unwrap();
        assert_eq!(ops(&g), ["LeakyRelu", "Relu"]);
        assert_eq!(g.nodes[0].float("alpha"), Some(0.5));
        assert_eq!((g.nodes[0].inputs[0].as_str(), g.nodes[1].output()), ("x", "y"));
    }

    #[test]
    fn calls_that_multiply_are_refused() {
        let call =
            |name: &str, of: usize| Node { domain: "own".into(), ..Node::new(&format!("F{of}"), name, &["a"], name) };
        let function = |nodes| Function { inputs: vec!["a".into()], outputs: vec![], defaults: BTreeMap::new(), nodes };
        let grown = |last: Vec<Node>| {
            let mut model = model(vec![]);
            let functions = (0..20).map(|i| match i {
                19 => function(last.clone()),
                i => function((0..10).map(|n| Node { outputs: vec![], ..call(&n.to_string(), i + 1) }).collect()),
            });
            model.functions = functions.enumerate().map(|(i, f)| (("own".to_owned(), format!("F{i}")), f)).collect();
            model.graph = graph(&[4], &[], vec![Node { outputs: vec![], ..call("c", 0) }]);
            inline(&mut model.graph.clone(), &model).unwrap_err().to_string()
        };
        // Ten to the power of nineteen calls of a function that does nothing.
        assert!(grown(vec![]).contains("called more than"));
        let mut model =
            model(vec![Node::new("Relu", "n", &["a"], "b").with("long", Attribute::Ints(vec![0; 1 << 16]))]);
        let calls =
            (0..1000).map(|i| Node { domain: "own".into(), ..Node::new("Block", "c", &["x"], &format!("y{i}")) });
        model.graph.nodes = calls.collect();
        assert!(inline(&mut model.graph.clone(), &model).unwrap_err().to_string().contains("268435456 bytes"));
    }

    #[test]
    fn endless_recursion_is_refused() {
        let mut again = Node::new("Block", "n", &["a"], "b");
        again.domain = "own".into();
        let model = model(vec![again]);
        assert!(inline(&mut model.graph.clone(), &model).unwrap_err().to_string().contains("deep"));
    }
}
