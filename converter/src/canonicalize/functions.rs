//! Functions local to the model are put in place of their calls.

use std::collections::HashMap;

use crate::bounds::{MAX_NODES, check_size};
use crate::error::{Error, Result};
use crate::graph::{Attribute, Graph, Node};
use crate::read::{Function, Model};

/// Calls within calls.
const MAX_DEPTH: usize = 32;

/// The graph of `model` without calls of its functions.
pub(super) fn inline(model: &Model) -> Result<Graph> {
    let mut graph = model.graph.clone();
    if model.functions.is_empty() {
        return Ok(graph);
    }
    let mut out = Vec::with_capacity(graph.nodes.len());
    for node in std::mem::take(&mut graph.nodes) {
        expand(node, &model.functions, 0, &mut out)?;
    }
    graph.nodes = out;
    graph.sort()?;
    check_size(&graph)?;
    Ok(graph)
}

fn expand(
    node: Node,
    functions: &HashMap<(String, String), Function>,
    depth: usize,
    out: &mut Vec<Node>,
) -> Result<()> {
    let Some(function) = functions.get(&(node.domain.clone(), node.op_type.clone())) else {
        out.push(node);
        return if out.len() > MAX_NODES {
            Err(Error::Invalid(format!("more than {MAX_NODES} nodes")))
        } else {
            Ok(())
        };
    };
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
                Attribute::Reference(of) => node.attributes.get(&of).or_else(|| function.defaults.get(&of)).cloned(),
                value => Some(value),
            };
            inner.attributes.extend(value.map(|v| (name, v)));
        }
        expand(inner, functions, depth + 1, out)?;
    }
    Ok(())
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
        let g = inline(&model(vec![leaky, Node::new("Relu", "m", &["h"], "b")])).unwrap();
        assert_eq!(ops(&g), ["LeakyRelu", "Relu"]);
        assert_eq!(g.nodes[0].float("alpha"), Some(0.5));
        assert_eq!((g.nodes[0].inputs[0].as_str(), g.nodes[1].output()), ("x", "y"));
    }

    #[test]
    fn endless_recursion_is_refused() {
        let mut again = Node::new("Block", "n", &["a"], "b");
        again.domain = "own".into();
        assert!(inline(&model(vec![again])).unwrap_err().to_string().contains("deep"));
    }
}
