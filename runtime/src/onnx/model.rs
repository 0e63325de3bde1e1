use std::ops::Range;

use super::tensor::{Tensor, enumeration, tensor};
use super::wire::{Field, Message, WireError, push};
use super::{MAX_ENTRIES, MAX_INITIALIZERS, MAX_LIST, MAX_NODES, MAX_RANK, MAX_VALUES};

/// A `ModelProto`.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Version of the format.
    pub ir_version: i64,
    /// Domain and version of each operator set.
    pub opsets: Vec<(String, i64)>,
    /// Free-form entries.
    pub metadata: Vec<Metadata>,
    /// The graph.
    pub graph: Graph,
    /// The bytes of the graph in the file.
    pub graph_range: Range<usize>,
}

impl Model {
    /// The metadata entry of that key.
    pub fn metadata(&self, key: &str) -> Option<&Metadata> {
        self.metadata.iter().find(|m| m.key == key)
    }
}

/// An entry of `metadata_props`.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
    /// The bytes of the value in the file.
    pub range: Range<usize>,
}

/// A `GraphProto`.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Nodes in the order of the file, which is a topological one.
    pub nodes: Vec<Node>,
    /// Constants, and defaults of inputs of the same name.
    pub initializers: Vec<Tensor>,
    /// Inputs.
    pub inputs: Vec<ValueInfo>,
    /// Outputs.
    pub outputs: Vec<ValueInfo>,
}

/// A `NodeProto`.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Name, possibly empty.
    pub name: String,
    /// Operator.
    pub op_type: String,
    /// Operator set; empty for `ai.onnx`.
    pub domain: String,
    /// Names of the inputs; an empty name is an absent optional input.
    pub inputs: Vec<String>,
    /// Names of the outputs; an empty name is an output that nobody wants.
    pub outputs: Vec<String>,
    /// Attributes.
    pub attributes: Vec<Attribute>,
}

/// An `AttributeProto`.
#[derive(Clone, Debug)]
pub struct Attribute {
    /// Name.
    pub name: String,
    /// Value.
    pub value: AttributeValue,
}

/// The value of an [`Attribute`].
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum AttributeValue {
    Float(f32),
    Int(i64),
    String(String),
    Tensor(Tensor),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
}

/// A `ValueInfoProto` of tensor type.
#[derive(Clone, Debug, Default)]
pub struct ValueInfo {
    /// Name.
    pub name: String,
    /// Element type, one of [`data_type`](super::data_type).
    pub data_type: i32,
    /// Shape, or `None` when the file does not say.
    pub shape: Option<Vec<Dim>>,
}

/// A dimension that may be symbolic.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A number.
    Fixed(usize),
    /// A name, the same wherever the size is the same; empty when the file gives none.
    Symbol(String),
}

/// Reads a whole `.onnx` file.
///
/// # Errors
/// When the bytes are not a model, or hold what the converter never writes.
pub fn read(file: &[u8]) -> Result<Model, WireError> {
    let message = Message { what: "the model", bytes: file, start: 0 };
    let mut model = Model::default();
    let mut seen_graph = false;
    message.fields(|number, field| {
        match number {
            1 => model.ir_version = field.int(&message)?,
            7 if seen_graph => return Err(message.malformed("two graphs")),
            7 => {
                seen_graph = true;
                let inner = field.message(&message)?;
                model.graph_range = inner.range();
                model.graph = graph(inner.named("the graph"))?;
            }
            8 => {
                let opset = opset(field.message(&message)?.named("an opset import"))?;
                push(&mut model.opsets, opset, MAX_ENTRIES, "the model", "opset imports")?;
            }
            14 => {
                let entry = metadata(field.message(&message)?.named("metadata"))?;
                push(&mut model.metadata, entry, MAX_ENTRIES, "the model", "metadata entries")?;
            }
            25 => {
                return Err(WireError::Unsupported { what: "the model".into(), feature: "functions" });
            }
            _ => {}
        }
        Ok(())
    })?;
    if !seen_graph {
        return Err(message.malformed("there is no graph; this is not an ONNX model"));
    }
    Ok(model)
}

fn opset(message: Message<'_>) -> Result<(String, i64), WireError> {
    let (mut domain, mut version) = (String::new(), 0);
    message.fields(|number, field| {
        match number {
            1 => domain = normalized(field.message(&message)?.name()?),
            2 => version = field.int(&message)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok((domain, version))
}

/// `ai.onnx` is spelled as the empty domain.
fn normalized(domain: String) -> String {
    if domain == "ai.onnx" { String::new() } else { domain }
}

fn metadata(message: Message<'_>) -> Result<Metadata, WireError> {
    let mut entry = Metadata::default();
    message.fields(|number, field| {
        match number {
            1 => entry.key = field.message(&message)?.name()?,
            2 => {
                let value = field.message(&message)?;
                entry.value = value.text()?;
                entry.range = value.range();
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(entry)
}

fn graph(message: Message<'_>) -> Result<Graph, WireError> {
    let mut graph = Graph::default();
    message.fields(|number, field| {
        match number {
            1 => push(&mut graph.nodes, node(field.message(&message)?)?, MAX_NODES, "the graph", "nodes")?,
            5 => {
                let tensor = tensor(field.message(&message)?)?;
                push(&mut graph.initializers, tensor, MAX_INITIALIZERS, "the graph", "initializers")?;
            }
            11 => {
                let info = value_info(field.message(&message)?)?;
                push(&mut graph.inputs, info, MAX_VALUES, "the graph", "inputs")?;
            }
            12 => {
                let info = value_info(field.message(&message)?)?;
                push(&mut graph.outputs, info, MAX_VALUES, "the graph", "outputs")?;
            }
            15 => {
                return Err(WireError::Unsupported { what: "the graph".into(), feature: "sparse initializers" });
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(graph)
}

fn node(message: Message<'_>) -> Result<Node, WireError> {
    let message = message.named("a node");
    let mut node = Node::default();
    message.fields(|number, field| {
        let what = "a node";
        match number {
            1 => push(&mut node.inputs, field.message(&message)?.name()?, MAX_VALUES, what, "inputs")?,
            2 => push(&mut node.outputs, field.message(&message)?.name()?, MAX_VALUES, what, "outputs")?,
            3 => node.name = field.message(&message)?.name()?,
            4 => node.op_type = field.message(&message)?.name()?,
            5 => push(&mut node.attributes, attribute(field.message(&message)?)?, MAX_ENTRIES, what, "attributes")?,
            7 => node.domain = normalized(field.message(&message)?.name()?),
            _ => {}
        }
        Ok(())
    })?;
    // Also so that a node takes more bytes of the file than none.
    if node.op_type.is_empty() {
        return Err(message.malformed("a node has no operator"));
    }
    Ok(node)
}

fn attribute(message: Message<'_>) -> Result<Attribute, WireError> {
    let message = message.named("an attribute");
    let (mut name, mut kind) = (String::new(), 0);
    let (mut float, mut int, mut text, mut value) = (0.0, 0, None, None);
    let (mut floats, mut ints) = (Vec::new(), Vec::new());
    message.fields(|number, field| {
        match (number, field) {
            (1, field) => name = field.message(&message)?.name()?,
            (20, field) => kind = enumeration(field, &message)?,
            (2, field) => float = field.float(&message)?,
            (3, field) => int = field.int(&message)?,
            (4, field) => text = Some(field.message(&message)?),
            (5, field) => value = Some(tensor(field.message(&message)?)?),
            (7, Field::Bytes(list)) => {
                for bytes in list.packed_fixed::<4>()? {
                    push(&mut floats, f32::from_le_bytes(*bytes), MAX_LIST, "an attribute", "numbers")?;
                }
            }
            (7, field) => push(&mut floats, field.float(&message)?, MAX_LIST, "an attribute", "numbers")?,
            (8, Field::Bytes(list)) => list.packed_varints(MAX_LIST, &mut ints)?,
            (8, field) => push(&mut ints, field.int(&message)?, MAX_LIST, "an attribute", "numbers")?,
            _ => {}
        }
        Ok(())
    })?;
    let value = match kind {
        1 => AttributeValue::Float(float),
        2 => AttributeValue::Int(int),
        3 => AttributeValue::String(text.map_or(Ok(String::new()), |t| t.name())?),
        4 => AttributeValue::Tensor(value.unwrap_or_default()),
        6 => AttributeValue::Floats(floats),
        7 => AttributeValue::Ints(ints),
        _ => {
            return Err(WireError::Unsupported {
                what: format!("attribute \"{name}\""),
                feature: "a value that is no number, text or tensor",
            });
        }
    };
    Ok(Attribute { name, value })
}

fn value_info(message: Message<'_>) -> Result<ValueInfo, WireError> {
    let message = message.named("a graph input or output");
    let mut info = ValueInfo::default();
    message.fields(|number, field| {
        match number {
            1 => info.name = field.message(&message)?.name()?,
            // TypeProto, of which only tensor_type is supported.
            2 => field.message(&message)?.fields(|number, field| {
                match number {
                    1 => tensor_type(field.message(&message)?, &mut info)?,
                    4 | 5 | 8 | 9 => {
                        return Err(WireError::Unsupported {
                            what: format!("\"{}\"", info.name),
                            feature: "a type that is no tensor",
                        });
                    }
                    _ => {}
                }
                Ok(())
            })?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(info)
}

fn tensor_type(message: Message<'_>, info: &mut ValueInfo) -> Result<(), WireError> {
    message.fields(|number, field| {
        match number {
            1 => info.data_type = enumeration(field, &message)?,
            2 => {
                let mut shape = Vec::new();
                field.message(&message)?.fields(|number, field| {
                    if number == 1 {
                        let dim = dim(field.message(&message)?)?;
                        push(&mut shape, dim, MAX_RANK, "a shape", "dimensions")?;
                    }
                    Ok(())
                })?;
                info.shape = Some(shape);
            }
            _ => {}
        }
        Ok(())
    })
}

fn dim(message: Message<'_>) -> Result<Dim, WireError> {
    let mut dim = Dim::Symbol(String::new());
    message.fields(|number, field| {
        match number {
            1 => {
                let size = field.int(&message)?;
                let size = usize::try_from(size).map_err(|_| message.malformed("a dimension is negative"))?;
                dim = Dim::Fixed(size);
            }
            2 => dim = Dim::Symbol(field.message(&message)?.name()?),
            _ => {}
        }
        Ok(())
    })?;
    Ok(dim)
}
