//! The typed graph of a base: nodes with their ops, values, constants as windows into the mapped file.

mod attributes;
#[cfg(test)]
pub(crate) mod build;
mod fragment;
mod tensor;

pub use attributes::Attributes;
pub use fragment::{Fragment, FragmentError, FragmentNode, Replacement};
pub(crate) use tensor::element_count;
pub use tensor::{DType, HostData, HostTensor};

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use inlay_devices::weight::{Mapping, Window};

use crate::base::{Constant, Port, TensorError, constant};
use crate::onnx;
use crate::ops::{self, Op};

/// The operator set that exported files use.
pub const OPSET: i64 = 21;

/// A value of a [`Graph`], by its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(u32);

impl ValueId {
    /// Position among the graph's values.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Why a graph cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// No such op here.
    #[error("node \"{node}\": op {op} is not supported; export a model without it, or up to the node before it")]
    UnsupportedOp {
        /// Node name.
        node: String,
        /// Op with its domain.
        op: String,
    },
    /// A value is used before it is made.
    #[error("node \"{node}\": input \"{value}\" is made by no earlier node")]
    Undefined {
        /// Node name.
        node: String,
        /// Value name.
        value: String,
    },
    /// A value is made twice.
    #[error("value \"{value}\" is made twice")]
    Repeated {
        /// Value name.
        value: String,
    },
    /// Another operator set than the converter writes.
    #[error("the model uses operator set {found}, expected {OPSET}; run `converter export` on it")]
    Opset {
        /// Version in the file.
        found: i64,
    },
    /// An input or output that cannot be fed or read.
    #[error("\"{name}\" has no shape or an unsupported element type; run `converter export` on the original model")]
    Port {
        /// Its name.
        name: String,
    },
    /// A constant inside a node cannot be used.
    #[error("node \"{node}\": attribute \"{attribute}\": {source}")]
    Attribute {
        /// Node name.
        node: String,
        /// Attribute name.
        attribute: String,
        /// The cause.
        source: TensorError,
    },
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    pub(crate) name: String,
    pub(crate) op: &'static dyn Op,
    pub(crate) attributes: Arc<Attributes>,
    pub(crate) inputs: Vec<Option<ValueId>>,
    pub(crate) outputs: Vec<Option<ValueId>>,
}

impl Node {
    /// Name; for an unnamed node that of its first output.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Op.
    pub fn op(&self) -> &'static dyn Op {
        self.op
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub name: String,
    pub constant: Option<Constant>,
}

/// A typed graph in topological order.
#[derive(Clone, Debug)]
pub struct Graph {
    pub(crate) nodes: Vec<Node>,
    pub(crate) values: Vec<Value>,
    /// Ids of `inputs`, `parameters` and `outputs`, in their order.
    pub(crate) input_ids: Vec<ValueId>,
    pub(crate) parameter_ids: Vec<ValueId>,
    pub(crate) output_ids: Vec<ValueId>,
    inputs: Vec<Port>,
    parameters: Vec<Port>,
    outputs: Vec<Port>,
}

impl Graph {
    /// Nodes in running order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Inputs without a default.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// Inputs with a default.
    pub fn parameters(&self) -> &[Port] {
        &self.parameters
    }

    /// Outputs.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// Element type and shape of a value of the file.
    pub(crate) fn constant(&self, value: ValueId) -> Option<(DType, &[usize])> {
        let constant = self.values[value.index()].constant.as_ref()?;
        Some((constant.dtype, &constant.dims))
    }

    /// The value of that name.
    pub(crate) fn value(&self, name: &str) -> Option<ValueId> {
        let at = self.values.iter().position(|value| value.name == name)?;
        Some(ValueId(u32::try_from(at).expect("counts are bounded by the reader")))
    }

    /// The node that makes a value.
    pub(crate) fn maker(&self, value: ValueId) -> Option<&Node> {
        self.nodes.iter().find(|node| node.outputs.contains(&Some(value)))
    }

    /// Name of what a node reads at an input.
    pub(crate) fn input_name(&self, node: &Node, input: usize) -> Option<&str> {
        let value = node.inputs.get(input).copied().flatten()?;
        Some(&self.values[value.index()].name)
    }

    /// Name of a node's first output.
    pub(crate) fn output_name(&self, node: &Node) -> Option<&str> {
        let value = node.outputs.first().copied().flatten()?;
        Some(&self.values[value.index()].name)
    }

    /// The names of a node and of all that it depends on.
    pub(crate) fn ancestors(&self, node: &str) -> HashSet<String> {
        let mut producer: Vec<Option<usize>> = vec![None; self.values.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            node.outputs.iter().flatten().for_each(|value| producer[value.index()] = Some(i));
        }
        let mut found = HashSet::new();
        let mut open: Vec<usize> = self.nodes.iter().position(|n| n.name == node).into_iter().collect();
        while let Some(i) = open.pop() {
            if found.insert(self.nodes[i].name.clone()) {
                open.extend(self.nodes[i].inputs.iter().flatten().filter_map(|value| producer[value.index()]));
            }
        }
        found
    }

    pub(crate) fn new(
        model: onnx::Model,
        constants: Vec<Constant>,
        file: &Arc<dyn Mapping>,
    ) -> Result<Self, GraphError> {
        let opset = model.opsets.iter().find(|(domain, _)| domain.is_empty()).map_or(0, |(_, v)| *v);
        if opset != OPSET && !cfg!(test) {
            return Err(GraphError::Opset { found: opset });
        }
        let mut values = Values::default();
        for constant in constants {
            let id = values.add(constant.name.clone())?;
            values.all[id.index()].constant = Some(constant);
        }
        let (mut inputs, mut input_ids) = (Vec::new(), Vec::new());
        let (mut parameters, mut parameter_ids) = (Vec::new(), Vec::new());
        for info in &model.graph.inputs {
            let port = port(info)?;
            if let Some(&id) = values.names.get(&info.name) {
                parameters.push(port);
                parameter_ids.push(id);
            } else {
                input_ids.push(values.add(info.name.clone())?);
                inputs.push(port);
            }
        }
        let nodes = nodes(model.graph.nodes, &mut values, file)?;
        let mut output_ids = Vec::new();
        for info in &model.graph.outputs {
            let undefined = || GraphError::Undefined { node: "the output".into(), value: info.name.clone() };
            output_ids.push(*values.names.get(&info.name).ok_or_else(undefined)?);
        }
        let outputs = model.graph.outputs.iter().map(port).collect::<Result<_, _>>()?;
        Ok(Graph { nodes, values: values.all, input_ids, parameter_ids, output_ids, inputs, parameters, outputs })
    }
}

#[derive(Default)]
struct Values {
    all: Vec<Value>,
    names: HashMap<String, ValueId>,
}

impl Values {
    fn add(&mut self, name: String) -> Result<ValueId, GraphError> {
        let id = ValueId(u32::try_from(self.all.len()).expect("counts are bounded by the reader"));
        if self.names.insert(name.clone(), id).is_some() {
            return Err(GraphError::Repeated { value: name });
        }
        self.all.push(Value { name, constant: None });
        Ok(id)
    }
}

fn port(info: &onnx::ValueInfo) -> Result<Port, GraphError> {
    let fail = || GraphError::Port { name: info.name.clone() };
    let dtype = DType::from_onnx(info.data_type)
        .filter(|d| matches!(d, DType::F32 | DType::I64 | DType::I32 | DType::Bool))
        .ok_or_else(fail)?;
    Ok(Port { name: info.name.clone(), dtype, shape: info.shape.clone().ok_or_else(fail)? })
}

fn nodes(list: Vec<onnx::Node>, values: &mut Values, file: &Arc<dyn Mapping>) -> Result<Vec<Node>, GraphError> {
    let mut nodes = Vec::with_capacity(list.len());
    for mut node in list {
        if node.name.is_empty() {
            node.name = node.outputs.iter().find(|o| !o.is_empty()).cloned().unwrap_or_default();
        }
        if node.op_type == "Constant" && node.domain.is_empty() {
            add_constant(node, values, file)?;
            continue;
        }
        let Some(op) = ops::find(&node.domain, &node.op_type) else {
            let op = if node.domain.is_empty() { node.op_type } else { format!("{}.{}", node.domain, node.op_type) };
            return Err(GraphError::UnsupportedOp { node: node.name, op });
        };
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for name in node.inputs {
            inputs.push(match name.is_empty() {
                true => None,
                false => match values.names.get(&name) {
                    Some(&id) => Some(id),
                    None => return Err(GraphError::Undefined { node: node.name, value: name }),
                },
            });
        }
        let outputs = node
            .outputs
            .into_iter()
            .map(|name| (!name.is_empty()).then(|| values.add(name)).transpose())
            .collect::<Result<_, _>>()?;
        let attributes = node
            .attributes
            .into_iter()
            .map(|attribute| attributes::resolve(attribute, &node.name, file))
            .collect::<Result<Attributes, _>>()?;
        nodes.push(Node { name: node.name, op, attributes: Arc::new(attributes), inputs, outputs });
    }
    Ok(nodes)
}

/// `Constant` nodes become constants, whatever their spelling.
fn add_constant(node: onnx::Node, values: &mut Values, file: &Arc<dyn Mapping>) -> Result<(), GraphError> {
    use onnx::AttributeValue as V;
    let unsupported = || GraphError::UnsupportedOp { node: node.name.clone(), op: "Constant of this kind".into() };
    let attribute = node.attributes.first().ok_or_else(unsupported)?;
    let name = node.outputs.first().ok_or_else(unsupported)?.clone();
    let number = |dtype, dims: Vec<usize>, bytes: Vec<u8>| {
        let len = bytes.len();
        let window = Window::new(Arc::new(bytes), 0..len).expect("the range is the whole");
        Constant { name: name.clone(), dtype, dims, window }
    };
    let value = match attribute.value.clone() {
        V::Tensor(tensor) => constant(tensor, file, None).map_err(|source| GraphError::Attribute {
            node: node.name.clone(),
            attribute: attribute.name.clone(),
            source,
        })?,
        V::Float(x) => number(DType::F32, vec![], x.to_le_bytes().into()),
        V::Int(x) => number(DType::I64, vec![], x.to_le_bytes().into()),
        V::Floats(x) => number(DType::F32, vec![x.len()], x.iter().flat_map(|x| x.to_le_bytes()).collect()),
        V::Ints(x) => number(DType::I64, vec![x.len()], x.iter().flat_map(|x| x.to_le_bytes()).collect()),
        V::String(_) => return Err(unsupported()),
    };
    let id = values.add(name.clone())?;
    values.all[id.index()].constant = Some(Constant { name, ..value });
    Ok(())
}
