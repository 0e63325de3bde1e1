use std::sync::Arc;

use inlay_devices::weight::Mapping;

use super::{GraphError, HostTensor};
use crate::base::{TensorError, constant};
use crate::onnx::{self, AttributeValue};

/// The attributes of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attributes(Vec<(String, Value)>);

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Float(f32),
    Int(i64),
    String(String),
    Tensor(HostTensor),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
}

impl Attributes {
    /// An integer, or `default` when the node has no such attribute.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        match self.get(name) {
            Some(Value::Int(x)) => *x,
            _ => default,
        }
    }

    /// A float, or `default` when the node has no such attribute.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        match self.get(name) {
            Some(Value::Float(x)) => *x,
            _ => default,
        }
    }

    /// A text, or `default` when the node has no such attribute.
    pub fn string<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        match self.get(name) {
            Some(Value::String(x)) => x,
            _ => default,
        }
    }

    /// A list of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.get(name) {
            Some(Value::Ints(x)) => Some(x),
            _ => None,
        }
    }

    /// A list of floats.
    pub fn floats(&self, name: &str) -> Option<&[f32]> {
        match self.get(name) {
            Some(Value::Floats(x)) => Some(x),
            _ => None,
        }
    }

    /// A tensor.
    pub fn tensor(&self, name: &str) -> Option<&HostTensor> {
        match self.get(name) {
            Some(Value::Tensor(x)) => Some(x),
            _ => None,
        }
    }

    /// Names of all attributes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// These attributes with one integer more.
    #[must_use]
    pub fn with_int(mut self, name: &str, value: i64) -> Self {
        self.0.push((name.to_owned(), Value::Int(value)));
        self
    }

    /// These attributes with one float more.
    #[must_use]
    pub fn with_float(mut self, name: &str, value: f32) -> Self {
        self.0.push((name.to_owned(), Value::Float(value)));
        self
    }

    /// These attributes with one list of integers more.
    #[must_use]
    pub fn with_ints(mut self, name: &str, value: &[i64]) -> Self {
        self.0.push((name.to_owned(), Value::Ints(value.to_vec())));
        self
    }

    /// These attributes with one text more.
    #[must_use]
    pub fn with_string(mut self, name: &str, value: &str) -> Self {
        self.0.push((name.to_owned(), Value::String(value.to_owned())));
        self
    }

    /// These attributes with one tensor more.
    #[must_use]
    pub fn with_tensor(mut self, name: &str, value: HostTensor) -> Self {
        self.0.push((name.to_owned(), Value::Tensor(value)));
        self
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }
}

impl FromIterator<Attributes> for Attributes {
    fn from_iter<I: IntoIterator<Item = Attributes>>(lists: I) -> Self {
        Attributes(lists.into_iter().flat_map(|list| list.0).collect())
    }
}

/// One attribute, a tensor's contents copied.
pub(super) fn resolve(
    attribute: onnx::Attribute,
    node: &str,
    file: &Arc<dyn Mapping>,
) -> Result<Attributes, GraphError> {
    let name = attribute.name;
    let value = match attribute.value {
        AttributeValue::Float(x) => Value::Float(x),
        AttributeValue::Int(x) => Value::Int(x),
        AttributeValue::String(x) => Value::String(x),
        AttributeValue::Floats(x) => Value::Floats(x),
        AttributeValue::Ints(x) => Value::Ints(x),
        AttributeValue::Tensor(tensor) => {
            let data_type = tensor.data_type;
            let value = constant(tensor, file, None).and_then(|c| {
                HostTensor::from_window(c.dtype, &c.dims, &c.window).ok_or(TensorError::DataType { data_type })
            });
            Value::Tensor(value.map_err(|source| GraphError::Attribute {
                node: node.to_owned(),
                attribute: name.clone(),
                source,
            })?)
        }
    };
    Ok(Attributes(vec![(name, value)]))
}
