//! Stage 3: which constants are packed, in which layout, and why the others stay float.

use std::collections::{BTreeMap, HashMap};

use inlay_format::quant::{Int8, Layout, MIN_QUANTIZED_ELEMENTS, Scheme};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::graph::{Attribute, Graph, Node};
use crate::points::frozen_weight;
use crate::tensor::{DType, Tensor};

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Quant {
    /// Symmetric int8 with one scale per output channel or table row.
    Int8,
    /// As they are, f32.
    None,
}

/// A float constant that is not quantized.
#[derive(Clone, Debug, Serialize)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Why.
    pub reason: String,
}

/// What is packed and what is not.
#[derive(Clone, Debug, Default)]
pub struct Packing {
    /// The layout of every constant that is packed, by name.
    pub layouts: BTreeMap<String, Layout>,
    /// The float constants that are not.
    pub kept: Vec<Kept>,
}

/// A packed weight.
#[derive(Clone, Debug)]
pub struct Packed {
    /// int8 values in the constant's own order.
    pub data: Vec<u8>,
    /// One scale per output channel or row.
    pub scales: Vec<f32>,
}

/// Decides what is packed, and puts a DequantizeLinear between each packed constant and its users.
pub fn quantize(graph: &mut Graph, quant: Quant) -> Packing {
    let mut packing = Packing::default();
    let uses = uses(graph);
    let mut origins: HashMap<&str, usize> = HashMap::new();
    for origin in graph.constants.values().filter_map(|t| t.origin.as_deref()) {
        *origins.entry(origin).or_default() += 1;
    }
    for (name, tensor) in graph.constants.iter().filter(|(_, t)| t.dtype.is_float()) {
        let shared = tensor.origin.as_deref().is_some_and(|o| origins[o] > 1);
        match layout(tensor, uses.get(name).map_or(&[], Vec::as_slice), quant, shared) {
            Ok(layout) => {
                packing.layouts.insert(name.clone(), layout);
            }
            Err(reason) => {
                packing.kept.push(Kept { name: name.clone(), shape: tensor.dims().to_vec(), reason });
            }
        }
    }
    for (name, layout) in &packing.layouts {
        let float = format!("{name}.dequantized");
        graph.replace_uses(name, &float);
        let node = Node::new("DequantizeLinear", &float, &[name, &scale_name(name)], &float)
            .with("axis", Attribute::Int(layout.axis()));
        graph.nodes.insert(0, node);
    }
    packing
}

/// The name of the scales of a packed constant.
pub fn scale_name(constant: &str) -> String {
    format!("{constant}.scale")
}

/// Packs the values of a constant.
///
/// # Errors
/// If a value is not finite.
pub fn pack(name: &str, tensor: &Tensor, layout: Layout) -> Result<Packed> {
    let values = tensor.to_f32();
    let shape = matrix(tensor, layout);
    let mut packed = Packed {
        data: vec![0; Int8.data_len(shape[0], shape[1])],
        scales: vec![0.0; Int8.scales_len(shape[0], shape[1])],
    };
    Int8.encode(&values, layout, shape, &mut packed.data, &mut packed.scales)
        .map_err(|e| Error::Quantize { tensor: name.to_owned(), detail: e.to_string() })?;
    Ok(packed)
}

/// The values of a constant as devices hold it: what packing makes of them, where it is packed.
///
/// # Errors
/// If a value is not finite.
pub fn values(name: &str, tensor: &Tensor, packing: &Packing) -> Result<Vec<f32>> {
    let Some(&layout) = packing.layouts.get(name) else { return Ok(tensor.to_f32()) };
    let packed = pack(name, tensor, layout)?;
    let mut values = vec![0.0; tensor.len()];
    Int8.decode(&packed.data, &packed.scales, layout, matrix(tensor, layout), 0, &mut values);
    Ok(values)
}

/// The constant as a matrix [K, N].
fn matrix(tensor: &Tensor, layout: Layout) -> [usize; 2] {
    let dims = tensor.dims();
    match layout {
        Layout::KN => [dims[0], dims[1]],
        Layout::NK => [dims[1..].iter().product(), dims[0]],
    }
}

/// How one node uses a constant: as a weight with its outputs on an axis, or otherwise.
enum Use {
    Weight(Layout),
    Other(String),
}

fn uses(graph: &Graph) -> HashMap<String, Vec<Use>> {
    let links = graph.links();
    let mut uses: HashMap<String, Vec<Use>> = HashMap::new();
    for node in &graph.nodes {
        let weight = frozen_weight(graph, &links, node);
        if let Some((name, axis)) = weight {
            let layout = if axis == 0 { Layout::NK } else { Layout::KN };
            uses.entry(name.to_owned()).or_default().push(Use::Weight(layout));
        }
        for (i, input) in node.inputs.iter().enumerate().filter(|(_, v)| graph.constants.contains_key(*v)) {
            if i == 1 && weight.is_some_and(|(name, _)| name == input) {
                continue;
            }
            let of_linear = node.is("Transpose")
                && links.consumers(node.output()).iter().all(|&user| {
                    frozen_weight(graph, &links, &graph.nodes[user]).is_some_and(|(name, _)| name == input)
                });
            if of_linear {
                continue;
            }
            let table = node.is("Gather") && i == 0 && node.int("axis").unwrap_or(0) == 0;
            uses.entry(input.clone()).or_default().push(if table {
                Use::Weight(Layout::NK)
            } else {
                Use::Other(format!("used by {} {:?}", node.op_type, node.name))
            });
        }
    }
    uses
}

fn layout(tensor: &Tensor, uses: &[Use], quant: Quant, shared: bool) -> Result<Layout, String> {
    if quant == Quant::None {
        return Err("--quant none".into());
    }
    if tensor.dtype != DType::F32 {
        return Err(format!("stored as {:?}", tensor.dtype));
    }
    if tensor.dims().len() < 2 {
        return Err("bias, norm or scalar".into());
    }
    if tensor.len() < MIN_QUANTIZED_ELEMENTS {
        return Err("too small to matter".into());
    }
    if shared {
        return Err("another constant comes from the same initializer".into());
    }
    let mut layout = None;
    for one in uses {
        match one {
            Use::Weight(l) if layout.is_none_or(|found| found == *l) => layout = Some(*l),
            Use::Weight(_) => return Err("its users need scales on different axes".into()),
            Use::Other(reason) => return Err(reason.clone()),
        }
    }
    layout.ok_or_else(|| "not used as a weight".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Port, ValueType};

    fn tied(transposed: bool) -> Graph {
        let port = |name: &str| Port { name: name.into(), ty: ValueType { dtype: DType::F32, dims: None } };
        let mut nodes = vec![Node::new("Gather", "embed", &["table", "ids"], "e")];
        if transposed {
            nodes.push(Node::new("Transpose", "t", &["table"], "head"));
        }
        nodes.push(Node::new("MatMul", "m", &["e", if transposed { "head" } else { "table" }], "y"));
        let mut g = Graph { inputs: vec![port("ids")], outputs: vec![port("y")], nodes, ..Graph::default() };
        g.constants.insert("table".into(), Tensor::from_f32(&[32, 32], &[0.5; 1024]));
        g
    }

    #[test]
    fn a_tied_head_shares_the_scales_of_its_table() {
        let mut g = tied(true);
        let packing = quantize(&mut g, Quant::Int8);
        assert_eq!(packing.layouts["table"], Layout::NK);
        assert_eq!(g.nodes[0].op_type, "DequantizeLinear");
        assert_eq!(g.nodes[0].int("axis"), Some(0));
        assert_eq!(g.nodes[1].inputs[0], "table.dequantized");
    }

    #[test]
    fn contradicting_axes_stay_float() {
        let packing = quantize(&mut tied(false), Quant::Int8);
        assert!(packing.layouts.is_empty());
        assert!(packing.kept[0].reason.contains("different axes"));
    }
}
