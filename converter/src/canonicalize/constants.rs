//! Constant nodes become constants of the graph.

use crate::error::Result;
use crate::graph::{Attribute, Graph};
use crate::tensor::Tensor;

pub(super) fn run(graph: &mut Graph) -> Result<()> {
    let mut rest = Vec::with_capacity(graph.nodes.len());
    for node in std::mem::take(&mut graph.nodes) {
        if !node.is("Constant") {
            rest.push(node);
            continue;
        }
        let value = node.attributes.values().find_map(|value| match value {
            Attribute::Tensor(t) => Some(t.clone()),
            Attribute::Float(f) => Some(Tensor::from_f32(&[], &[*f])),
            Attribute::Floats(f) => Some(Tensor::from_f32(&[f.len()], f)),
            Attribute::Int(i) => Some(Tensor::from_i64(&[], &[*i])),
            Attribute::Ints(i) => Some(Tensor::from_i64(&[i.len()], i)),
            _ => None,
        });
        let mut value = value.ok_or_else(|| node.unsupported("only dense numeric constants are supported"))?;
        value.origin = Some(node.output().to_owned());
        graph.constants.insert(node.output().to_owned(), value);
    }
    graph.nodes = rest;
    Ok(())
}
