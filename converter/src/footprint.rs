//! What the messages of an ONNX file will take in memory, counted on their bytes before any of it is taken: a message of
//! two bytes decodes to hundreds.

use crate::bounds::{MAX_CONSTANTS, MAX_NESTED, MAX_NODES};
use crate::error::{Error, Result};
use crate::graph;
use crate::proto;
use crate::tensor::Tensor;

/// Most memory that reading a file takes, in multiples of its size. Weights are views of the file and take none.
pub const MEMORY_PER_BYTE: u64 = 128;
/// Memory that reading a file may take whatever its size (bytes).
pub const MEMORY_FLOOR: u64 = 16 << 20;

/// The messages of `onnx.proto` that are decoded.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Message {
    Model,
    Opset,
    Entry,
    Graph,
    Function,
    Node,
    Attribute,
    Tensor,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    Dim,
}

/// What a field holds.
enum Content {
    Message(Message),
    Text,
    /// Numbers, which take 8 bytes each when they are decoded.
    Numbers,
    /// Bytes that stay where they are.
    View,
    /// Nothing that is decoded.
    Unread,
}

impl Message {
    fn content(self, field: u64) -> Content {
        use Content::{Message as Inner, Numbers, Text, Unread, View};
        use Message::*;
        match (self, field) {
            (Model, 7) => Inner(Graph),
            (Model, 8) | (Function, 9) => Inner(Opset),
            (Model, 14) | (Node, 9) | (Tensor, 13) => Inner(Entry),
            (Model, 25) => Inner(Function),
            (Graph, 1) | (Function, 7) => Inner(Node),
            (Graph, 5) | (Attribute, 5) => Inner(Tensor),
            (Graph, 11 | 12) => Inner(ValueInfo),
            (Node, 5) | (Function, 11) => Inner(Attribute),
            (Attribute, 6) => Inner(Graph),
            (ValueInfo, 2) => Inner(Type),
            (Type, 1) => Inner(TensorType),
            (TensorType, 2) => Inner(Shape),
            (Shape, 1) => Inner(Dim),
            (Model, 2 | 3) | (Graph, 2) | (Opset, 1) | (Entry, 1 | 2) | (ValueInfo, 1) | (Dim, 2) => Text,
            (Node, 1..=4 | 7) | (Function, 1 | 4..=6 | 10) | (Attribute, 1 | 4 | 9 | 21) | (Tensor, 8) => Text,
            (Attribute, 7 | 8) | (Tensor, 1 | 4 | 5 | 7 | 10 | 11) => Numbers,
            (Graph, 15) | (Tensor, 6) => View,
            _ => Unread,
        }
    }

    /// Bytes that one takes, as it is decoded and in the graph.
    fn memory(self) -> u64 {
        let size = match self {
            Message::Node => size_of::<proto::NodeProto>() + size_of::<graph::Node>() + 128,
            Message::Attribute => size_of::<proto::AttributeProto>() + size_of::<graph::Attribute>() + 64,
            Message::Tensor => size_of::<proto::TensorProto>() + size_of::<Tensor>() + 64,
            Message::ValueInfo => size_of::<proto::ValueInfoProto>() + size_of::<graph::Port>() + 64,
            Message::Function => size_of::<proto::FunctionProto>() + 256,
            Message::Dim => size_of::<proto::DimensionProto>() + size_of::<graph::Dim>(),
            Message::Opset | Message::Entry => 2 * size_of::<proto::StringStringEntryProto>(),
            Message::Model | Message::Graph | Message::Type | Message::TensorType | Message::Shape => 64,
        };
        GROWTH * size as u64
    }
}

/// A list that grows has room for twice its items, and the smaller one beside it while it is moved.
const GROWTH: u64 = 3;
/// A name and the room for it in lists and sets (bytes).
const TEXT: u64 = 96;
/// Copies of a name's bytes.
const TEXT_COPIES: u64 = 4;

/// What was counted in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Nodes, those of functions among them.
    pub nodes: usize,
    /// Initializers.
    pub constants: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// Graphs around the message that is counted.
    nested: usize,
}

impl Footprint {
    /// Counts what is in the bytes of a `ModelProto`.
    ///
    /// # Errors
    /// What is wrong with the bytes, if they are no protobuf message.
    pub fn of(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut found = Footprint::default();
        found.add(Message::Model, bytes)?;
        Ok(found)
    }

    /// # Errors
    /// If it is more than a file of `len` bytes may take.
    pub fn check(&self, len: usize) -> Result<()> {
        let most = (len as u64).saturating_mul(MEMORY_PER_BYTE).saturating_add(MEMORY_FLOOR);
        for (what, found, most) in [
            ("nodes", self.nodes as u64, MAX_NODES as u64),
            ("constants", self.constants as u64, MAX_CONSTANTS as u64),
            ("bytes of memory that its messages take", self.memory, most),
        ] {
            if found > most {
                return Err(Error::Invalid(format!(
                    "the model has {found} {what}, more than the {most} that are supported for a file of {len} bytes"
                )));
            }
        }
        Ok(())
    }

    fn add(&mut self, message: Message, mut bytes: &[u8]) -> Result<(), &'static str> {
        self.memory = self.memory.saturating_add(message.memory());
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            let content = message.content(key >> 3);
            let len = match key & 7 {
                0 => varint(&mut bytes).map(|_| 0)?,
                1 => 8,
                2 => usize::try_from(varint(&mut bytes)?).map_err(|_| TRUNCATED)?,
                5 => 4,
                _ => return Err("a field has a type that ONNX does not use"),
            };
            let (value, rest) = bytes.split_at_checked(len).ok_or(TRUNCATED)?;
            bytes = rest;
            let memory = match content {
                // Decoding says what is wrong with a message that is a number.
                Content::Message(inner) if key & 7 == 2 => {
                    self.nodes += usize::from(inner == Message::Node);
                    self.constants += usize::from((message, inner) == (Message::Graph, Message::Tensor));
                    let nested = usize::from(inner == Message::Graph);
                    self.nested += nested;
                    if self.nested > MAX_NESTED {
                        return Err("too many graphs are inside each other");
                    }
                    self.add(inner, value)?;
                    self.nested -= nested;
                    0
                }
                Content::Text => TEXT + TEXT_COPIES * len as u64,
                Content::Numbers => GROWTH * 8 * (len as u64).max(1),
                Content::View => GROWTH * 32,
                Content::Message(_) | Content::Unread => 0,
            };
            self.memory = self.memory.saturating_add(memory);
        }
        Ok(())
    }
}

const TRUNCATED: &str = "it ends inside a field";

fn varint(bytes: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(TRUNCATED)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number is longer than 64 bits")
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

    fn file(graph: GraphProto) -> Vec<u8> {
        ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
    }

    #[test]
    fn empty_messages_are_refused_before_they_are_decoded() {
        let refused = |graph| {
            let bytes = file(graph);
            Footprint::of(&bytes).unwrap().check(bytes.len()).unwrap_err().to_string()
        };
        let empty = NodeProto::default();
        assert!(refused(GraphProto { node: vec![empty; MAX_NODES], ..GraphProto::default() }).contains("of memory"));
        let named = NodeProto { op_type: "Relu".repeat(20), ..NodeProto::default() };
        let many = refused(GraphProto { node: vec![named; MAX_NODES + 1], ..GraphProto::default() });
        assert!(many.contains("200001 nodes"), "{many}");
        let tensors = vec![TensorProto::default(); MAX_CONSTANTS + 1];
        assert!(refused(GraphProto { initializer: tensors, ..GraphProto::default() }).contains("constants"));
        let crowded = NodeProto { attribute: vec![AttributeProto::default(); 200_000], ..NodeProto::default() };
        assert!(refused(GraphProto { node: vec![crowded], ..GraphProto::default() }).contains("of memory"));
    }

    #[test]
    fn weights_take_nothing_and_lists_take_their_numbers() {
        let weight = |raw: usize| TensorProto { raw_data: vec![0; raw].into(), ..TensorProto::default() };
        let memory = |tensor| {
            let bytes = file(GraphProto { initializer: vec![tensor], ..GraphProto::default() });
            Footprint::of(&bytes).unwrap().memory
        };
        assert_eq!(memory(weight(1)), memory(weight(1 << 20)));
        let typed = TensorProto { int64_data: vec![1; 1000], ..TensorProto::default() };
        assert_eq!(memory(typed) - memory(TensorProto::default()), 24_000);
    }

    #[test]
    fn broken_bytes_are_told_apart_from_large_ones() {
        assert_eq!(Footprint::of(&[0x3a, 0x05, 0x0a]), Err(TRUNCATED));
        assert_eq!(Footprint::of(&[0x80]), Err(TRUNCATED));
        assert_eq!(Footprint::of(&[0xff; 11]), Err("a number is longer than 64 bits"));
        assert!(Footprint::of(&[0x0b]).is_err());
        assert_eq!(Footprint::of(&[]).map(|f| (f.nodes, f.constants)), Ok((0, 0)));
    }
}
