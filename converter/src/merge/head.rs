use inlay_runtime::Base;
use inlay_runtime::adapters::{AdapterPoint, Head};

use crate::error::{Error, Result};
use crate::graph::{Attribute, Dim, Graph, Node, Port, ValueType};
use crate::tensor::{DType, Tensor};

/// Adds a head to `graph`, which is that of `base` without insertion points, with its output beside the base's.
pub(super) fn add(base: &Base, graph: &mut Graph, head: &AdapterPoint) -> Result<()> {
    for (parameter, values) in head.parameters().iter().zip(head.tensors()) {
        if graph.constants.contains_key(&parameter.name) {
            return Err(taken(&parameter.name));
        }
        graph.constants.insert(parameter.name.clone(), Tensor::from_f32(&parameter.shape, values));
    }
    for node in &head.fragment().nodes {
        let inputs: Vec<&str> = node.inputs.iter().map(String::as_str).collect();
        let mut added = Node::new(node.op_type, &node.output, &inputs, &node.output);
        for attribute in node.attributes.names() {
            added = added.with(attribute, Attribute::Int(node.attributes.int(attribute, 0)));
        }
        graph.nodes.push(added);
    }
    let of_tokens = Head::is_of_tokens(base, head.path())
        .map_err(|error| Error::Adapter { path: head.path().into(), source: Box::new(error) })?;
    let classes = head.tensors().last().map_or(0, Vec::len);
    let mut dims = vec![Dim::Unknown; 1 + usize::from(of_tokens)];
    dims.push(Dim::Known(classes));
    for (output, value) in &head.fragment().outputs {
        if graph.outputs.iter().any(|port| port.name == *output) || graph.links().producer(output).is_some() {
            return Err(taken(output));
        }
        graph.nodes.push(Node::new("Identity", output, &[value], output));
        let ty = ValueType { dtype: DType::F32, dims: Some(dims.clone()) };
        graph.outputs.push(Port { name: output.clone(), ty });
    }
    Ok(())
}

fn taken(name: &str) -> Error {
    Error::Invalid(format!("the model has a value {name:?} already, which the head adds; rename it and export again"))
}
