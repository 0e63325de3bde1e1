//! What the constants of a graph make of each other, followed with the shape rules of the runtime before tract computes it: a
//! few bytes of shape arithmetic can ask for any amount of memory.

use std::collections::{HashMap, HashSet};

use inlay_runtime::graph::Attributes;
use inlay_runtime::ops::{self, Input, NodeView, TensorType};
use inlay_runtime::{DType as HostDType, HostData, HostTensor};

use crate::bounds::MAX_ELEMENTS;
use crate::error::Result;
use crate::graph::{Attribute, Dim, Graph, Node, Port};
use crate::tensor::{DType, Tensor, element_count};

/// Float constants of at least this many elements are weights: tract sees only their shape, and they are never folded.
pub const WEIGHT_ELEMENTS: usize = 256;

/// Larger values are not followed: no shape has as many elements.
const FOLLOWED_ELEMENTS: usize = 1 << 12;

/// Operators whose outputs are as large as the values of these inputs say.
const SIZED: &[(&str, &[usize])] = &[("ConstantOfShape", &[0]), ("Expand", &[1]), ("Range", &[0, 1, 2])];

/// What is known of a value.
struct Known {
    ty: TensorType,
    value: Option<HostTensor>,
    /// Whether it follows from constants and known shapes alone, so that tract computes it.
    constant: bool,
}

impl Known {
    fn input(&self) -> Input<'_> {
        Input { ty: &self.ty, value: self.value.as_ref(), frozen: None, zero: false }
    }
}

/// # Errors
/// If more than 2^28 elements follow from constants and known shapes of the sorted `graph`, or if a size follows from them by
/// operators that cannot be followed.
pub fn check(graph: &Graph) -> Result<()> {
    let mut known: HashMap<&str, Known> =
        graph.inputs.iter().filter_map(|p| Some((p.name.as_str(), of_input(p)?))).collect();
    let small = graph.constants.iter().filter(|(_, t)| !(t.dtype.is_float() && t.len() >= WEIGHT_ELEMENTS));
    let mut derived: HashSet<&str> = small.clone().map(|(name, _)| name.as_str()).collect();
    known.extend(small.filter_map(|(name, t)| Some((name.as_str(), of_constant(t)?))));
    let mut made = 0usize;
    for node in &graph.nodes {
        let inputs = || node.inputs.iter().map(String::as_str).filter(|name| !name.is_empty());
        if inputs().count() > 0 && inputs().all(|name| derived.contains(name)) {
            derived.extend(node.outputs.iter().map(String::as_str));
        }
        let untold = |i: &usize| {
            node.input(*i).is_some_and(|v| derived.contains(v) && known.get(v).is_none_or(|k| k.value.is_none()))
        };
        if SIZED.iter().any(|(op, sizes)| node.is(op) && sizes.iter().any(untold)) {
            return Err(
                node.unsupported("its size follows from constants in a way that is not followed; fold them first")
            );
        }
        let outputs = follow(node, &known).unwrap_or_default();
        let computed = outputs.iter().filter(|output| output.constant);
        let elements = computed.map(|output| element_count(&output.ty.shape).unwrap_or(usize::MAX));
        // The runtime has no rule for sizes beyond its own limits.
        made = made.saturating_add(elements.fold(0, usize::saturating_add).max(asked(node, &known)));
        if made > MAX_ELEMENTS as usize {
            let detail =
                format!("constants and known shapes ask for more than {MAX_ELEMENTS} elements here and before");
            return Err(node.unsupported(detail));
        }
        known.extend(node.outputs.iter().map(String::as_str).zip(outputs));
    }
    Ok(())
}

/// How many elements the known inputs of a node ask for, if it is one of [`SIZED`].
fn asked(node: &Node, known: &HashMap<&str, Known>) -> usize {
    let ints = |index: usize| known.get(node.input(index)?)?.value.as_ref()?.ints();
    let size = |v: &i64| usize::try_from(*v).unwrap_or(0);
    let product = |sizes: Vec<i64>| sizes.iter().map(size).fold(1, usize::saturating_mul);
    match node.op_type.as_str() {
        "ConstantOfShape" => ints(0).map_or(0, product),
        "Expand" => ints(1).map_or(0, product),
        "Range" => match (ints(0).as_deref(), ints(1).as_deref(), ints(2).as_deref()) {
            (Some(&[start]), Some(&[limit]), Some(&[delta])) if delta != 0 => {
                size(&limit.saturating_sub(start).saturating_div(delta))
            }
            _ => 0,
        },
        _ => 0,
    }
}

/// The outputs of a node, if its inputs are known and the runtime has a rule for it.
fn follow(node: &Node, known: &HashMap<&str, Known>) -> Option<Vec<Known>> {
    let op = ops::find(&node.domain, &node.op_type)?;
    let inputs: Vec<Option<&Known>> = node
        .inputs
        .iter()
        .map(|name| if name.is_empty() { Some(None) } else { known.get(name.as_str()).map(Some) })
        .collect::<Option<_>>()?;
    let attributes: Attributes = node.attributes.iter().filter_map(|(name, value)| of_attribute(name, value)).collect();
    let view = NodeView {
        attributes: &attributes,
        inputs: inputs.iter().map(|known| known.map(Known::input)).collect(),
        outputs: node.outputs.len(),
    };
    let types = op.infer(&view).ok()?;
    let small = types.iter().all(|ty| element_count(&ty.shape).is_some_and(|n| n <= FOLLOWED_ELEMENTS));
    let told = !op.needs_values() || inputs.iter().flatten().all(|k| k.value.is_some());
    let values = if op.on_host() && small && told { op.evaluate(&view).ok() } else { None };
    let constant = values.is_some() || inputs.iter().flatten().all(|k| k.constant);
    let mut values = values.into_iter().flatten();
    Some(types.into_iter().map(|ty| Known { ty, value: values.next(), constant }).collect())
}

fn of_input(port: &Port) -> Option<Known> {
    let size = |dim: &Dim| if let Dim::Known(size) = dim { Some(*size) } else { None };
    let shape = port.ty.dims.as_ref()?.iter().map(size).collect::<Option<Vec<usize>>>()?;
    Some(Known { ty: TensorType::new(host_type(port.ty.dtype)?, shape), value: None, constant: false })
}

fn of_constant(tensor: &Tensor) -> Option<Known> {
    let ty = TensorType::new(host_type(tensor.dtype)?, tensor.dims());
    Some(Known { ty, value: host(tensor), constant: true })
}

fn host_type(dtype: DType) -> Option<HostDType> {
    Some(match dtype {
        DType::F32 => HostDType::F32,
        DType::I64 => HostDType::I64,
        DType::I32 => HostDType::I32,
        DType::Bool => HostDType::Bool,
        _ => return None,
    })
}

fn host(tensor: &Tensor) -> Option<HostTensor> {
    if tensor.len() > FOLLOWED_ELEMENTS {
        return None;
    }
    let ints = || tensor.to_i64();
    let data = match tensor.dtype {
        DType::F32 => HostData::F32(tensor.to_f32()),
        DType::I64 => HostData::I64(ints()?),
        DType::I32 => HostData::I32(ints()?.into_iter().map(|v| v as i32).collect()),
        DType::Bool => HostData::Bool(ints()?.into_iter().map(|v| v != 0).collect()),
        _ => return None,
    };
    HostTensor::new(tensor.dims(), data)
}

fn of_attribute(name: &str, value: &Attribute) -> Option<Attributes> {
    let none = Attributes::default();
    Some(match value {
        Attribute::Float(x) => none.with_float(name, *x),
        Attribute::Int(x) => none.with_int(name, *x),
        Attribute::Ints(x) => none.with_ints(name, x),
        Attribute::String(x) => none.with_string(name, x),
        Attribute::Tensor(t) => none.with_tensor(name, host(t)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ValueType;

    fn with(nodes: Vec<Node>) -> Result<()> {
        let mut graph = Graph { nodes, ..Graph::default() };
        for (name, value) in [("kilo", 1 << 10), ("mega", 1 << 20), ("two", 2)] {
            graph.constants.insert(name.into(), Tensor::from_i64(&[1], &[value]));
        }
        for (name, dims) in [("column", [1 << 15, 1]), ("row", [1, 1 << 15])] {
            graph.constants.insert(name.into(), Tensor::from_i64(&dims, &[1; 1 << 15]));
        }
        check(&graph)
    }

    fn refused(nodes: Vec<Node>) -> String {
        with(nodes).unwrap_err().to_string()
    }

    #[test]
    fn sizes_that_are_computed_are_followed() {
        let product = |with: &str| Node::new("Mul", "product", &["mega", with], "n");
        let filled = || Node::new("ConstantOfShape", "filled", &["n"], "y");
        assert!(with(vec![product("two"), filled()]).is_ok());
        let text = refused(vec![product("kilo"), filled()]);
        assert!(text.contains("\"filled\"") && text.contains("268435456 elements"), "{text}");
        let expanded = Node::new("Expand", "expanded", &["unknown", "n"], "y");
        assert!(refused(vec![product("kilo"), expanded]).contains("\"expanded\""));
        let shape = vec![Node::new("Concat", "c", &["mega", "kilo"], "n").with("axis", Attribute::Int(0)), filled()];
        assert!(refused(shape).contains("\"filled\""));
    }

    #[test]
    fn constants_that_make_large_ones_of_each_other_are_refused() {
        assert!(refused(vec![Node::new("Add", "outer", &["column", "row"], "y")]).contains("\"outer\""));
        let table = |i: &str| Node::new("ConstantOfShape", i, &["mega"], i);
        let many: Vec<String> = (0..300).map(|i| i.to_string()).collect();
        assert!(with(many[..200].iter().map(|i| table(i)).collect()).is_ok());
        assert!(refused(many.iter().map(|i| table(i)).collect()).contains("\"256\""));
    }

    #[test]
    fn a_size_that_cannot_be_followed_is_refused() {
        let hidden = Node::new("CastLike", "hidden", &["mega", "two"], "n");
        assert!(refused(vec![hidden, Node::new("ConstantOfShape", "filled", &["n"], "y")]).contains("not followed"));
    }

    #[test]
    fn known_shapes_of_inputs_are_followed() {
        let port = Port {
            name: "x".into(),
            ty: ValueType { dtype: DType::F32, dims: Some(vec![Dim::Known(1 << 14), Dim::Known(1 << 14)]) },
        };
        let nodes = vec![
            Node::new("Shape", "s", &["x"], "s"),
            Node::new("Concat", "c", &["s", "s"], "n").with("axis", Attribute::Int(0)),
            Node::new("ConstantOfShape", "filled", &["n"], "y"),
        ];
        let graph = Graph { nodes, inputs: vec![port], ..Graph::default() };
        assert!(check(&graph).unwrap_err().to_string().contains("\"filled\""));
    }
}
