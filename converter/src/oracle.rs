//! The reference: tract runs a graph on given inputs.

use std::borrow::Cow;

use prost::Message;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{bail, format_err};
use tract_onnx::tract_hir::infer::{InferenceFact, InferenceModelExt};

use crate::encode;
use crate::error::{Error, Result};
use crate::graph::{Attribute, Graph, Node};
pub use crate::samples::{Feed, Output, Values};
use crate::tensor::DType;
use crate::types::guarded;

/// Runs `graph`, whose nodes are of operator set `opset`, on `feeds`, one for every input. `what` names it in errors.
///
/// # Errors
/// If tract cannot run it.
pub fn run(graph: &Graph, opset: i64, feeds: &[Feed], what: &'static str) -> Result<Vec<Output>> {
    let graph = &both_ways(graph, opset);
    let outputs = guarded(|| outputs(graph, opset, feeds)).map_err(|detail| Error::Oracle { what, detail })?;
    let named = graph.outputs.iter().zip(outputs);
    Ok(named.map(|(port, (dims, values))| Output { name: port.name.clone(), dims, values }).collect())
}

/// The graph with recurrent cells that run backwards as the second half of ones that run both ways: tract runs those that
/// only run backwards forward.
fn both_ways(graph: &Graph, opset: i64) -> Cow<'_, Graph> {
    let runs_backwards =
        |n: &Node| ["LSTM", "GRU", "RNN"].iter().any(|op| n.is(op)) && n.string("direction") == Some("reverse");
    if !graph.nodes.iter().any(runs_backwards) {
        return Cow::Borrowed(graph);
    }
    let mut out = graph.clone();
    for node in std::mem::take(&mut out.nodes) {
        if !runs_backwards(&node) {
            out.nodes.push(node);
            continue;
        }
        let mut both = node.clone().with("direction", Attribute::String("bidirectional".into()));
        let made = |op: &str, name: &str, inputs: &[&str]| Node { opset, ..Node::new(op, name, inputs, name) };
        for index in [1, 2, 3, 5, 6] {
            let Some(input) = node.input(index) else { continue };
            let twice = format!("{}/twice.{index}", node.name);
            out.nodes.push(made("Concat", &twice, &[input, input]).with("axis", Attribute::Int(0)));
            both.inputs[index] = twice;
        }
        let mut halves = Vec::new();
        let outputs = both.outputs.iter_mut().enumerate().filter(|(_, output)| !output.is_empty());
        for (i, output) in outputs {
            // The directions of all steps lie on the second axis, those of the last states on the first.
            let axis = i64::from(i == 0);
            let whole = format!("{}/both.{i}", node.name);
            let name = std::mem::replace(output, whole.clone());
            let bounds = [("start", 1), ("end", 2), ("axis", axis)].map(|(what, value)| {
                let constant = format!("{whole}.{what}");
                out.constants.insert(constant.clone(), crate::tensor::Tensor::from_i64(&[1], &[value]));
                constant
            });
            halves.push(Node {
                outputs: vec![name],
                ..made("Slice", &whole, &[&whole, &bounds[0], &bounds[1], &bounds[2]])
            });
        }
        out.nodes.push(both);
        out.nodes.extend(halves);
    }
    Cow::Owned(out)
}

fn outputs(graph: &Graph, opset: i64, feeds: &[Feed]) -> TractResult<Vec<(Vec<usize>, Vec<f32>)>> {
    let mut proto = encode::model(graph, opset);
    let g = proto.graph.as_mut().expect("encode::model makes a graph");
    g.initializer = graph.constants.iter().map(|(name, t)| encode::tensor(name, t)).collect();
    let proto = tract_onnx::pb::ModelProto::decode(proto.encode_to_vec().as_slice())?;
    let mut model = onnx().with_ignore_value_info(true).parse(&proto, None)?.model;
    let mut inputs = tvec!();
    for (i, outlet) in model.input_outlets()?.to_vec().into_iter().enumerate() {
        let name = model.node(outlet.node).name.clone();
        let feed = feeds.iter().find(|f| f.name == name);
        let feed = feed.ok_or_else(|| format_err!("input {name:?} is not fed"))?;
        let dtype = graph.inputs.iter().find(|p| p.name == name).map_or(DType::F32, |p| p.ty.dtype);
        let tensor = tensor(feed, dtype)?;
        model.set_input_fact(i, InferenceFact::dt_shape(tensor.datum_type(), tensor.shape()))?;
        inputs.push(tensor.into_tvalue());
    }
    let results = model.into_optimized()?.into_runnable()?.run(inputs)?;
    results
        .into_iter()
        .map(|t| {
            let t = t.cast_to::<f32>()?.into_owned();
            Ok((t.shape().to_vec(), t.to_plain_array_view::<f32>()?.iter().copied().collect()))
        })
        .collect()
}

fn tensor(feed: &Feed, dtype: DType) -> TractResult<Tensor> {
    let to = match dtype {
        DType::F32 => DatumType::F32,
        DType::F64 => DatumType::F64,
        DType::F16 => DatumType::F16,
        DType::I64 => DatumType::I64,
        DType::I32 => DatumType::I32,
        DType::Bool => DatumType::Bool,
        DType::U8 => DatumType::U8,
        DType::I8 => DatumType::I8,
        other => bail!("inputs of type {other:?} are not supported"),
    };
    let tensor = match &feed.values {
        Values::F32(v) => Tensor::from_shape(&feed.dims, v)?,
        Values::I64(v) => Tensor::from_shape(&feed.dims, v)?,
    };
    Ok(tensor.cast_to_dt(to)?.into_owned())
}
