//! A [`Graph`] as ONNX messages.

use prost::bytes::Bytes;

use crate::graph::{Attribute, Dim, Graph, Node, Port, ValueType};
use crate::proto::{
    AttributeProto, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, attribute_type,
};
use crate::tensor::Tensor;

/// Version of the IR of every file written.
pub const IR_VERSION: i64 = 10;

/// The model of `graph` in operator set `opset`, without its constants.
pub fn model(graph: &Graph, opset: i64) -> ModelProto {
    let mut domains: Vec<&str> = graph.nodes.iter().map(|n| n.domain.as_str()).filter(|d| !d.is_empty()).collect();
    domains.sort_unstable();
    domains.dedup();
    let others = domains.into_iter().map(|d| OperatorSetIdProto { domain: d.to_owned(), version: 1 });
    ModelProto {
        ir_version: IR_VERSION,
        opset_import: [OperatorSetIdProto { domain: String::new(), version: opset }]
            .into_iter()
            .chain(others)
            .collect(),
        producer_name: "inlay".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(GraphProto {
            node: graph.nodes.iter().map(node).collect(),
            name: if graph.name.is_empty() { "main".into() } else { graph.name.clone() },
            input: graph.inputs.iter().map(port).collect(),
            output: graph.outputs.iter().map(port).collect(),
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

/// A tensor with its values inline.
pub fn tensor(name: &str, t: &Tensor) -> TensorProto {
    TensorProto { raw_data: t.bytes(), ..header(name, t) }
}

/// A tensor without its values.
pub fn header(name: &str, t: &Tensor) -> TensorProto {
    TensorProto {
        dims: t.dims().iter().map(|&d| d as i64).collect(),
        data_type: t.dtype.onnx(),
        name: name.to_owned(),
        ..TensorProto::default()
    }
}

/// A graph input or output.
pub fn port(port: &Port) -> ValueInfoProto {
    let ValueType { dtype, dims } = &port.ty;
    let dim = |d: &Dim| DimensionProto {
        value: match d {
            Dim::Known(n) => Some(DimensionValue::DimValue(*n as i64)),
            Dim::Symbol(s) => Some(DimensionValue::DimParam(s.clone())),
            Dim::Unknown => None,
        },
    };
    let shape = dims.as_ref().map(|dims| TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor_type = TensorTypeProto { elem_type: dtype.onnx(), shape };
    ValueInfoProto { name: port.name.clone(), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}

fn node(n: &Node) -> NodeProto {
    NodeProto {
        input: n.inputs.clone(),
        output: n.outputs.clone(),
        name: n.name.clone(),
        op_type: n.op_type.clone(),
        domain: n.domain.clone(),
        attribute: n.attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
        metadata_props: Vec::new(),
    }
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let text = |s: &String| Bytes::copy_from_slice(s.as_bytes());
    let empty = AttributeProto { name: name.to_owned(), ..AttributeProto::default() };
    match value {
        Attribute::Float(f) => AttributeProto { r#type: attribute_type::FLOAT, f: *f, ..empty },
        Attribute::Int(i) => AttributeProto { r#type: attribute_type::INT, i: *i, ..empty },
        Attribute::String(s) => AttributeProto { r#type: attribute_type::STRING, s: text(s), ..empty },
        Attribute::Tensor(t) => {
            AttributeProto { r#type: attribute_type::TENSOR, t: Some(Box::new(tensor("", t))), ..empty }
        }
        Attribute::Floats(f) => AttributeProto { r#type: attribute_type::FLOATS, floats: f.clone(), ..empty },
        Attribute::Ints(i) => AttributeProto { r#type: attribute_type::INTS, ints: i.clone(), ..empty },
        Attribute::Strings(s) => {
            AttributeProto { r#type: attribute_type::STRINGS, strings: s.iter().map(text).collect(), ..empty }
        }
        Attribute::Graph(_) => AttributeProto { r#type: attribute_type::GRAPH, ..empty },
        Attribute::Reference(r) => AttributeProto { ref_attr_name: r.clone(), ..empty },
    }
}
