//! Types and shapes of every value, and constant folding, by tract on the graph without its weights.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use prost::Message;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::tract_ndarray;
use tract_onnx::tract_hir::infer::{Factoid, GenericFactoid, InferenceFact, InferenceModelExt};

use crate::encode;
use crate::error::{Error, Result};
use crate::folding::WEIGHT_ELEMENTS;
use crate::graph::{Dim, Graph, Port, ValueType};
use crate::samples::OPEN_SIZES;
use crate::tensor::{DType, Tensor};

/// Larger results stay computed: folding must not make the file bigger.
const FOLD_MAX_BYTES: usize = 64 << 10;

/// Fills `graph.types`, and replaces what depends on constants and known shapes only by constants.
///
/// Symbolic shapes come first. Where tract's algebra gives up on symbols, two sets of sizes stand in for them: what is
/// the same for both is known.
///
/// # Errors
/// If types or shapes contradict each other.
pub fn infer(graph: &mut Graph, opset: i64) -> Result<()> {
    let (model, error) = guarded(|| analyse(graph, opset)).map_err(Error::Types)?;
    for (name, fact) in &model {
        if let Some(ty) = value_type(fact) {
            graph.types.insert(name.clone(), ty);
        }
    }
    if let Some(error) = error {
        let with_sizes = infer_with_sizes(graph, opset);
        for (name, ty) in with_sizes.ok_or(Error::Types(error))? {
            let known = graph.types.entry(name).or_insert_with(|| ty.clone());
            if known.dims.is_none() {
                known.dims = ty.dims;
            }
        }
    }
    for port in graph.inputs.iter().chain(&graph.outputs) {
        let ty = graph.types.entry(port.name.clone()).or_insert_with(|| port.ty.clone());
        ty.dtype = port.ty.dtype;
    }
    // ONNX lets a graph leave out the shapes of its outputs; devices want them.
    for port in graph.outputs.iter_mut().filter(|port| port.ty.dims.is_none()) {
        port.ty.dims = graph.types.get(&port.name).and_then(|ty| ty.dims.clone());
    }
    let links = graph.links();
    let mut folded = vec![false; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        let values: Option<Vec<(String, Tensor)>> =
            node.outputs.iter().map(|o| Some((o.clone(), constant(model.get(o)?)?))).collect();
        let Some(values) = values else { continue };
        if values.is_empty() || values.iter().any(|(o, t)| links.is_output(o) || t.byte_len() > FOLD_MAX_BYTES) {
            continue;
        }
        folded[i] = true;
        graph.constants.extend(values);
    }
    let mut folded = folded.into_iter();
    graph.nodes.retain(|_| !folded.next().expect("one flag a node"));
    graph.sweep();
    Ok(())
}

/// Runs a function of tract; its panics become errors.
pub(crate) fn guarded<T>(run: impl FnOnce() -> TractResult<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(chain(&e)),
        Err(panic) => Err(panic
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "the reference implementation failed".into())),
    }
}

type Facts = HashMap<String, InferenceFact>;

/// Types found with the first two open sizes that the graph takes; `None` if it takes none.
fn infer_with_sizes(graph: &Graph, opset: i64) -> Option<Vec<(String, ValueType)>> {
    let mut runs = OPEN_SIZES.iter().zip(3..).filter_map(|(&open, batch)| {
        let mut sized = graph.clone();
        for port in &mut sized.inputs {
            for (i, dim) in port.ty.dims.iter_mut().flatten().enumerate() {
                if !matches!(dim, Dim::Known(_)) {
                    *dim = Dim::Known(if i == 0 { batch } else { open });
                }
            }
        }
        guarded(|| analyse(&sized, opset)).ok().filter(|(_, error)| error.is_none()).map(|(facts, _)| facts)
    });
    let (first, second) = (runs.next()?, runs.next().unwrap_or_default());
    let mut types = Vec::new();
    for (name, fact) in first {
        let Some(mut ty) = value_type(&fact) else { continue };
        let other = second.get(&name).and_then(value_type).and_then(|t| t.dims).unwrap_or_default();
        for (i, dim) in ty.dims.iter_mut().flatten().enumerate() {
            if other.get(i) != Some(dim) {
                *dim = Dim::Unknown;
            }
        }
        types.push((name, ty));
    }
    Some(types)
}

/// What tract finds out, and its first complaint.
fn analyse(graph: &Graph, opset: i64) -> TractResult<(Facts, Option<String>)> {
    let mut proto = encode::model(graph, opset);
    let g = proto.graph.as_mut().expect("encode::model makes a graph");
    for (name, t) in &graph.constants {
        if t.dtype.is_float() && t.len() >= WEIGHT_ELEMENTS {
            let dims = t.dims().iter().map(|&d| Dim::Known(d)).collect();
            let ty = ValueType { dtype: t.dtype, dims: Some(dims) };
            g.input.push(encode::port(&Port { name: name.clone(), ty }));
        } else {
            g.initializer.push(encode::tensor(name, t));
        }
    }
    let proto = tract_onnx::pb::ModelProto::decode(proto.encode_to_vec().as_slice())?;
    let parsed = onnx().with_ignore_value_info(true).parse(&proto, None)?;
    let mut model = parsed.model;
    let error = model.analyse(true).err().map(|e| chain(&e));
    let facts = parsed.outlets_by_name.into_iter().map(|(name, o)| Ok((name, model.outlet_fact(o)?.clone())));
    Ok((facts.collect::<TractResult<_>>()?, error))
}

fn chain(error: &TractError) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn value_type(fact: &InferenceFact) -> Option<ValueType> {
    let dtype = dtype(fact.datum_type.concretize()?)?;
    let dims = (!fact.shape.is_open()).then(|| {
        fact.shape
            .dims()
            .map(|d| match d {
                GenericFactoid::Only(d) => match d.to_i64() {
                    Ok(n) => usize::try_from(n).map_or(Dim::Unknown, Dim::Known),
                    Err(_) => Dim::Symbol(d.to_string()),
                },
                GenericFactoid::Any => Dim::Unknown,
            })
            .collect()
    });
    Some(ValueType { dtype, dims })
}

fn dtype(t: DatumType) -> Option<DType> {
    Some(match t {
        DatumType::F32 => DType::F32,
        DatumType::F64 => DType::F64,
        DatumType::F16 => DType::F16,
        DatumType::I8 => DType::I8,
        DatumType::U8 => DType::U8,
        DatumType::I16 => DType::I16,
        DatumType::U16 => DType::U16,
        DatumType::I32 => DType::I32,
        DatumType::U32 => DType::U32,
        DatumType::I64 | DatumType::TDim => DType::I64,
        DatumType::U64 => DType::U64,
        DatumType::Bool => DType::Bool,
        _ => return None,
    })
}

/// The value of a fact, if it is a constant of a type that graphs compute with.
fn constant(fact: &InferenceFact) -> Option<Tensor> {
    let tensor = fact.value.concretize()?;
    let dims = tensor.shape();
    match tensor.datum_type() {
        DatumType::TDim => {
            let view: tract_ndarray::ArrayViewD<'_, TDim> = tensor.to_plain_array_view().ok()?;
            let values = view.iter().map(|d| d.to_i64().ok()).collect::<Option<Vec<i64>>>()?;
            Some(Tensor::from_i64(dims, &values))
        }
        DatumType::I64 => Some(Tensor::from_i64(dims, &values(&tensor)?)),
        DatumType::F32 => Some(Tensor::from_f32(dims, &values(&tensor)?)),
        DatumType::I32 => bytes(DType::I32, dims, values::<i32>(&tensor)?, i32::to_le_bytes),
        DatumType::Bool => bytes(DType::Bool, dims, values::<bool>(&tensor)?, |b| [b.into()]),
        _ => None,
    }
}

fn values<T: Datum + Copy>(tensor: &tract_onnx::prelude::Tensor) -> Option<Vec<T>> {
    Some(tensor.to_plain_array_view::<T>().ok()?.iter().copied().collect())
}

fn bytes<T, const N: usize>(dtype: DType, dims: &[usize], values: Vec<T>, f: impl Fn(T) -> [u8; N]) -> Option<Tensor> {
    let bytes: Vec<u8> = values.into_iter().flat_map(f).collect();
    Tensor::new(dtype, dims.to_vec(), bytes.into()).ok()
}
