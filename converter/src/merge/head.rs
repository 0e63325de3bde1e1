use inlay_runtime::Base;
use inlay_runtime::adapters::{AdapterPoint, Head};

use crate::error::{Error, Result};
use crate::graph::{Attribute, Dim, Graph, Node, Port, ValueType};
use crate::tensor::{DType, Tensor};

/// Adds a head to `graph`, which is that of `base` without insertion points, with its output beside the base's.
pub(super) fn add(base: &Base, graph: &mut Graph, head: &AdapterPoint) -> Result<()> {
    let of_tokens = Head::is_of_tokens(base, head.path())
        .map_err(|error| Error::Adapter { path: head.path().into(), source: Box::new(error) })?;
    for (parameter, values) in head.parameters().iter().zip(head.tensors()) {
        expect_free(graph, &parameter.name)?;
        graph.constants.insert(parameter.name.clone(), Tensor::from_f32(&parameter.shape, values));
    }
    let outputs = &head.fragment().outputs;
    for node in &head.fragment().nodes {
        let output = outputs.iter().find(|(_, value)| *value == node.output).map_or(&node.output, |(name, _)| name);
        expect_free(graph, output)?;
        let inputs: Vec<&str> = node.inputs.iter().map(String::as_str).collect();
        let mut added = Node::new(node.op_type, &node.output, &inputs, output);
        for attribute in node.attributes.names() {
            added = added.with(attribute, Attribute::Int(node.attributes.int(attribute, 0)));
        }
        graph.nodes.push(added);
    }
    let mut dims = vec![Dim::Unknown; 1 + usize::from(of_tokens)];
    dims.push(Dim::Known(head.tensors().last().map_or(0, Vec::len)));
    let ty = ValueType { dtype: DType::F32, dims: Some(dims) };
    graph.outputs.extend(outputs.iter().map(|(name, _)| Port { name: name.clone(), ty: ty.clone() }));
    Ok(())
}

fn expect_free(graph: &Graph, name: &str) -> Result<()> {
    let is_input = graph.inputs.iter().any(|port| port.name == name);
    if !is_input && !graph.constants.contains_key(name) && graph.links().producer(name).is_none() {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "the model has a value {name:?} already, which the head would add; rename it and export again"
    )))
}
