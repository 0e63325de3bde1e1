//! The reference: tract runs a graph on given inputs.

use prost::Message;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{bail, format_err};
use tract_onnx::tract_hir::infer::{InferenceFact, InferenceModelExt};

use crate::encode;
use crate::error::{Error, Result};
use crate::graph::Graph;
pub use crate::samples::{Feed, Output, Values};
use crate::tensor::DType;
use crate::types::guarded;

/// Runs `graph`, whose nodes are of operator set `opset`, on `feeds`, one for every input. `what` names it in errors.
///
/// # Errors
/// If tract cannot run it.
pub fn run(graph: &Graph, opset: i64, feeds: &[Feed], what: &'static str) -> Result<Vec<Output>> {
    let outputs = guarded(|| outputs(graph, opset, feeds)).map_err(|detail| Error::Oracle { what, detail })?;
    let named = graph.outputs.iter().zip(outputs);
    Ok(named.map(|(port, (dims, values))| Output { name: port.name.clone(), dims, values }).collect())
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
