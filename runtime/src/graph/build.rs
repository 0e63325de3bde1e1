//! Graphs made by hand, for tests.

use std::sync::Arc;

use inlay_devices::weight::Window;

use super::{Attributes, DType, Graph, HostData, HostTensor, Node, Value, ValueId};
use crate::base::{Constant, Port};
use crate::onnx::Dim;
use crate::ops::Op;

#[derive(Default)]
pub(crate) struct Build {
    nodes: Vec<Node>,
    values: Vec<Value>,
    inputs: Vec<(ValueId, Port)>,
    parameters: Vec<(ValueId, Port)>,
}

impl Build {
    fn value(&mut self, name: &str, constant: Option<Constant>) -> ValueId {
        self.values.push(Value { name: name.to_owned(), constant });
        ValueId(self.values.len() as u32 - 1)
    }

    pub fn input(&mut self, name: &str, dtype: DType, shape: &[usize]) -> ValueId {
        let id = self.value(name, None);
        self.inputs.push((id, port(name, dtype, shape)));
        id
    }

    pub fn parameter(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let id = self.value(name, None);
        self.parameters.push((id, port(name, DType::F32, shape)));
        id
    }

    pub fn constant(&mut self, name: &str, value: &HostTensor) -> ValueId {
        let bytes: Vec<u8> = match value.data() {
            HostData::F32(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            HostData::I64(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            HostData::I32(x) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            HostData::Bool(x) => x.iter().map(|&x| u8::from(x)).collect(),
        };
        self.bytes(name, value.dtype(), value.shape(), bytes)
    }

    pub fn bytes(&mut self, name: &str, dtype: DType, dims: &[usize], bytes: Vec<u8>) -> ValueId {
        let len = bytes.len();
        let window = Window::new(Arc::new(bytes), 0..len).unwrap();
        let constant = Constant { name: name.to_owned(), dtype, dims: dims.to_vec(), window };
        self.value(name, Some(constant))
    }

    pub fn node(
        &mut self,
        op: &'static dyn Op,
        attributes: Attributes,
        inputs: Vec<Option<ValueId>>,
        outputs: usize,
    ) -> Vec<ValueId> {
        let name = format!("{op:?}{}", self.nodes.len());
        let outputs: Vec<_> = (0..outputs).map(|i| self.value(&format!("{name}.{i}"), None)).collect();
        let node = Node {
            name,
            op,
            attributes: Arc::new(attributes),
            inputs,
            outputs: outputs.iter().copied().map(Some).collect(),
        };
        self.nodes.push(node);
        outputs
    }

    pub fn finish(self, outputs: &[(ValueId, DType)]) -> Graph {
        let (input_ids, inputs) = self.inputs.into_iter().unzip();
        let (parameter_ids, parameters) = self.parameters.into_iter().unzip();
        let out = outputs.iter().map(|(id, dtype)| port(&self.values[id.index()].name, *dtype, &[]));
        Graph {
            outputs: out.collect(),
            output_ids: outputs.iter().map(|(id, _)| *id).collect(),
            nodes: self.nodes,
            values: self.values,
            input_ids,
            parameter_ids,
            inputs,
            parameters,
        }
    }
}

fn port(name: &str, dtype: DType, shape: &[usize]) -> Port {
    Port { name: name.to_owned(), dtype, shape: shape.iter().map(|&d| Dim::Fixed(d)).collect() }
}
