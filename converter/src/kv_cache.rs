//! A decoder's cache of keys and values is taken out: the model then sees whole sequences, as training does.

use std::collections::HashMap;

use crate::canonicalize;
use crate::error::{Error, Result};
use crate::graph::{Attribute, Dim, Graph, Links, Node, Port};
use crate::read::Model;
use crate::tensor::{DType, Tensor};

/// Removes the inputs that continue a cache, as if it were empty, and the outputs that hold the longer one.
///
/// Cache inputs are floats of three or more dimensions whose names contain `past`, as exporters name them.
///
/// # Errors
/// If there are none, or something else is done with one.
pub fn remove(model: &mut Model) -> Result<()> {
    let graph = &mut model.graph;
    let (past, inputs): (Vec<Port>, Vec<Port>) = std::mem::take(&mut graph.inputs).into_iter().partition(is_cache);
    graph.inputs = inputs;
    if past.is_empty() {
        return Err(Error::Invalid(
            "--no-kv-cache: the model has no float input whose name contains \"past\"; leave the option out".into(),
        ));
    }
    let links = graph.links();
    let mut present: Vec<String> = Vec::new();
    let mut changed: HashMap<usize, Vec<Node>> = HashMap::new();
    // Values that are the cache: its inputs, and what only passes them on.
    let mut caches: Vec<(String, &Port)> = past.iter().map(|port| (port.name.clone(), port)).collect();
    while let Some((cache, port)) = caches.pop() {
        for &user in links.consumers(&cache) {
            if changed.get(&user).is_some_and(Vec::is_empty) {
                continue;
            }
            let mut node = changed.remove(&user).map_or_else(|| graph.nodes[user].clone(), |mut nodes| nodes.remove(0));
            let nodes = if canonicalize::expansion(&node).is_some() {
                // Attention of every kind: without a cache there is none to return either.
                node.inputs.iter_mut().filter(|i| **i == cache).for_each(String::clear);
                present.extend(node.outputs.iter().skip(1).take(2).filter(|o| !o.is_empty()).cloned());
                node.outputs.truncate(1);
                vec![node]
            } else if node.is("Concat") {
                node.inputs.retain(|i| *i != cache && !is_empty(graph, &links, i));
                match node.inputs.as_slice() {
                    [] => {
                        caches.push((node.output().to_owned(), port));
                        Vec::new()
                    }
                    [rest] => {
                        present.push(node.output().to_owned());
                        let identity = Node::new("Identity", &node.name, &[rest], node.output());
                        vec![Node { scope: node.scope, opset: node.opset, ..identity }]
                    }
                    _ => vec![node],
                }
            } else if node.is("Identity") {
                caches.push((node.output().to_owned(), port));
                Vec::new()
            } else if node.is("Shape") {
                shape_of_empty(graph, port, &node)?
            } else {
                return Err(node.unsupported(format!(
                    "--no-kv-cache: it takes the cache {:?}, which only attention, Concat and Shape may; export the \
                     model without a cache (use_cache=False)",
                    port.name
                )));
            };
            changed.insert(user, nodes);
        }
    }
    let nodes = std::mem::take(&mut graph.nodes).into_iter().enumerate();
    graph.nodes = nodes.flat_map(|(i, node)| changed.remove(&i).unwrap_or_else(|| vec![node])).collect();
    graph.outputs.retain(|o| !o.name.contains("present") && !present.contains(&o.name));
    if graph.outputs.is_empty() {
        return Err(Error::Invalid("--no-kv-cache: the model has no output beside its cache".into()));
    }
    let lengths: Vec<&str> = past.iter().filter_map(cache_length).collect();
    for dim in graph.inputs.iter_mut().chain(&mut graph.outputs).flat_map(|p| p.ty.dims.iter_mut().flatten()) {
        without_length(dim, &lengths);
    }
    graph.sort()?;
    graph.sweep();
    Ok(())
}

fn is_cache(port: &Port) -> bool {
    let rank = port.ty.dims.as_ref().map_or(0, Vec::len);
    port.name.contains("past") && port.ty.dtype.is_float() && rank >= 3
}

/// Whether `value` is a constant without elements, with which some exports start a cache.
fn is_empty(graph: &Graph, links: &Links, value: &str) -> bool {
    let made = links.producer(value).map(|i| &graph.nodes[i]).filter(|n| n.is("Constant"));
    let of_node = made.and_then(|n| n.attributes.values().next());
    match of_node {
        Some(Attribute::Tensor(tensor)) => tensor.is_empty(),
        _ => graph.constants.get(value).is_some_and(Tensor::is_empty),
    }
}

/// The symbol of the dimension that grows: the last but one.
fn cache_length(port: &Port) -> Option<&str> {
    let dims = port.ty.dims.as_ref()?;
    match dims.get(dims.len().checked_sub(2)?)? {
        Dim::Symbol(name) => Some(name),
        _ => None,
    }
}

/// `past + sequence` becomes `sequence`.
fn without_length(dim: &mut Dim, lengths: &[&str]) {
    let Dim::Symbol(name) = dim else { return };
    let terms: Vec<&str> = name.split('+').map(str::trim).filter(|term| !lengths.contains(term)).collect();
    if terms.len() == 1 && name.contains('+') {
        *dim = terms[0].parse().map_or_else(|_| Dim::Symbol(terms[0].to_owned()), Dim::Known);
    }
}

/// What `Shape` of an empty cache gives, from constants and the other inputs.
fn shape_of_empty(graph: &Graph, port: &Port, node: &Node) -> Result<Vec<Node>> {
    let dims = port.ty.dims.as_deref().unwrap_or_default();
    let rank = dims.len() as i64;
    let bound = |name: &str, default: i64| {
        let at = node.int(name).unwrap_or(default);
        (if at < 0 { at + rank } else { at }).clamp(0, rank) as usize
    };
    let (start, end) = (bound("start", 0), bound("end", rank));
    let mut nodes = Vec::new();
    let mut parts = Vec::new();
    let constant = |nodes: &mut Vec<Node>, name: &str, value: Tensor| {
        let name = format!("{}/{name}", node.name);
        nodes.push(Node::new("Constant", &name, &[], &name).with("value", Attribute::Tensor(value)));
        name
    };
    for (axis, dim) in dims.iter().enumerate().take(end).skip(start) {
        let size = match dim {
            _ if axis + 2 == dims.len() => Some(0),
            Dim::Known(size) => Some(*size as i64),
            _ => None,
        };
        let part = format!("size_{axis}");
        if let Some(size) = size {
            parts.push(constant(&mut nodes, &part, Tensor::from_i64(&[1], &[size])));
            continue;
        }
        let place = |p: &Port| Some((p.name.clone(), p.ty.dims.as_ref()?.iter().position(|d| d == dim)?));
        // Where a size has no name, the first dimension is the batch for all inputs.
        let like = match dim {
            Dim::Symbol(_) => graph.inputs.iter().find_map(place),
            _ if axis == 0 => graph.inputs.iter().find(|p| p.ty.dtype == DType::I64).map(|p| (p.name.clone(), 0)),
            _ => None,
        };
        let Some((input, at)) = like else {
            return Err(node.unsupported(format!(
                "--no-kv-cache: no other input has the dimension {axis} of {:?}; export the model without a cache",
                port.name
            )));
        };
        let shape = format!("{}/{part}_shape", node.name);
        nodes.push(Node::new("Shape", &shape, &[&input], &shape));
        let index = constant(&mut nodes, &format!("{part}_index"), Tensor::from_i64(&[1], &[at as i64]));
        let value = format!("{}/{part}", node.name);
        nodes.push(Node::new("Gather", &value, &[&shape, &index], &value));
        parts.push(value);
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let joined = Node::new("Concat", &node.name, &parts, node.output()).with("axis", Attribute::Int(0));
    nodes.push(Node { opset: node.opset, ..joined });
    Ok(nodes)
}
