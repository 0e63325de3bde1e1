//! An adapter merged into its base: plain ONNX without insertion points, at the cost of the base alone.

use std::path::Path;

use inlay_format::points::{Point, PointOp};
use inlay_format::quant::{F32, Layout, Scheme};
use inlay_format::record::{BaseId, RecordError};
use inlay_runtime::adapters::AdapterPoint;
use inlay_runtime::merge::{MergeError, MergeOptions, Merged, MergedPoint, MergedVector, Requantization};
use inlay_runtime::{Adapter, AdapterError, Base};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::export::{expect_replaceable, publish, resolve, temporary_folder};
use crate::graph::{Attribute, Graph, Node};
use crate::insert::remove::remove;
use crate::quantize::{Packing, Spelt, scale_name, zero_point_name};
use crate::read::read;
use crate::tensor::Tensor;
use crate::write::{MODEL_FILE, write_model, write_weights};

mod head;

/// What was merged.
#[derive(Clone, Debug, Serialize)]
pub struct MergeReport {
    /// Every changed weight, bias and gain, and the tensor of a head.
    pub points: Vec<MergedWeight>,
    /// The outputs that the model has beside those of the base.
    pub added_outputs: Vec<String>,
    /// Bytes of the `.onnx` file.
    pub model_bytes: u64,
    /// Bytes of the `.data` file.
    pub data_bytes: u64,
}

/// A changed weight, bias or gain, or a head.
#[derive(Clone, Debug, Serialize)]
pub struct MergedWeight {
    /// The insertion point that it belonged to, its initializer, or the tensor that a head reads.
    pub path: String,
    /// How it is stored.
    pub stored: &'static str,
    /// Norm of what storing it lost over that of the weight; `null` where it is exact to rounding.
    pub error: Option<f64>,
    /// The same over the norm of what the adapter adds.
    pub error_of_change: Option<f64>,
}

impl From<&MergedPoint> for MergedWeight {
    fn from(point: &MergedPoint) -> Self {
        let error = |f: fn(&Requantization) -> f64| point.requantization.as_ref().map(f);
        MergedWeight {
            path: point.path.clone(),
            stored: point.weight.scheme().name(),
            error: error(|e| e.relative),
            error_of_change: error(|e| e.of_change),
        }
    }
}

impl MergedWeight {
    /// Floats, which lose nothing.
    fn exact(path: &str) -> Self {
        MergedWeight { path: path.to_owned(), stored: F32.name(), error: None, error_of_change: None }
    }
}

impl MergeReport {
    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for MergedWeight { path, stored, error, error_of_change } in &self.points {
            text += &match error.zip(*error_of_change) {
                Some((error, of_change)) => format!(
                    "{path}: {stored}, off by {:.3} % of the weight, {:.1} % of what the adapter adds\n",
                    100.0 * error,
                    100.0 * of_change
                ),
                None => format!("{path}: {stored}, exact to rounding\n"),
            };
        }
        for output in &self.added_outputs {
            text += &format!("output {output:?} added: the logits of the head\n");
        }
        text
    }
}

/// Merges `adapter` into the exported folder `folder`, opened as `base`, and writes the result to the folder `out`: what the
/// session computes with the adapter, a head's output beside the base's own.
///
/// # Errors
/// If the adapter is of another base or of a kind that cannot be merged, or `out` holds what may not be replaced.
pub fn merge(base: &Base, folder: &Path, adapter: &Adapter, options: &MergeOptions, out: &Path) -> Result<MergeReport> {
    let out = resolve(out)?;
    expect_replaceable(&out)?;
    if out.canonicalize().is_ok_and(|out| folder.canonicalize().is_ok_and(|folder| folder.starts_with(out))) {
        return Err(Error::Place { path: out, detail: "is the base, which other adapters need; choose another --out" });
    }
    let (expected, found) = (BaseId::from(base.fingerprint()), adapter.base());
    if expected != found {
        return Err(MergeError::from(AdapterError::from(RecordError::OtherBase { expected, found })).into());
    }
    if adapter.changes_nothing() {
        return Err(MergeError::from(AdapterError::ChangesNothing).into());
    }
    let (rest, head) = adapter.split_head();
    let rest = rest.filter(|rest| !rest.changes_nothing());
    let merged = rest.as_ref().map(|rest| Merged::new(base, rest, options)).transpose()?;
    let (points, vectors) = merged.as_ref().map_or((&[][..], &[][..]), |merged| (merged.points(), merged.vectors()));
    let file = if folder.is_dir() { folder.join(MODEL_FILE) } else { folder.to_owned() };
    let mut graph = read(&file)?.graph;
    for point in base.points() {
        remove(&mut graph, point).ok_or_else(|| Error::NotExported {
            path: file.clone(),
            detail: format!(
                "what is inserted at point {:?} is not as the converter writes it; re-export the model",
                point.path
            ),
        })?;
    }
    // Vectors first: a node that takes a float weight may leave its bias to another one.
    let of_weights = points.iter().flat_map(|point| &point.biases);
    for vector in of_weights.chain(vectors) {
        replace_vector(&mut graph, vector);
    }
    for point in points {
        let place = base.points().iter().find(|place| place.path == point.path);
        replace_weight(&mut graph, place.expect("merged points are the base's"), point)?;
    }
    if let Some(head) = head {
        head::add(base, &mut graph, head)?;
    }
    graph.sweep();
    graph.sort()?;
    let temporary = temporary_folder(&out)?;
    let written = write_weights(&graph, &Packing::default(), temporary.folder.path(), &|_| ())?;
    let model_bytes = write_model(&written, &[], "{}", temporary.folder.path())?;
    Base::open(temporary.folder.path(), inlay_runtime::Verify::Full)?;
    publish(temporary, &out)?;
    let exact = vectors.iter().map(|vector| vector.path.as_str()).chain(head.map(AdapterPoint::path));
    Ok(MergeReport {
        points: points.iter().map(Into::into).chain(exact.map(MergedWeight::exact)).collect(),
        added_outputs: adapter.outputs().map(str::to_owned).collect(),
        model_bytes,
        data_bytes: written.data_bytes,
    })
}

/// ONNX's number of the type f32.
const FLOAT: i64 = 1;

/// Lets a node read a changed bias or gain.
fn replace_vector(graph: &mut Graph, MergedVector { path, node, input, values }: &MergedVector) {
    let name = graph.fresh_name(&format!("{path}.merged_vector"));
    let values = Tensor::from_f32(values.shape(), values.floats().expect("they are floats"));
    graph.constants.insert(name.clone(), values);
    let node = graph.nodes.iter_mut().find(|known| known.name == *node);
    node.expect("the base's nodes are those of its file").inputs[*input] = name;
}

/// Lets the node of a point use the merged weight.
fn replace_weight(graph: &mut Graph, place: &Point<String>, point: &MergedPoint) -> Result<()> {
    let weight = &point.weight;
    let at = graph.nodes.iter().position(|node| node.name == point.node);
    let at = at.expect("the base has a weight at each merged point");
    if graph.nodes[at].op_type == weight.scheme().spellings()[0].op_type.unwrap_or_default() {
        return replace_packed(graph, at, point);
    }
    let layout = weight.layout();
    let dims: Vec<usize> = match (place.op, layout) {
        (PointOp::Conv, _) => {
            [place.d_out, place.d_in].iter().chain(&place.kernel).map(|&size| size as usize).collect()
        }
        (PointOp::Linear | PointOp::Embedding, Layout::KN) => vec![weight.k(), weight.n()],
        (PointOp::Linear | PointOp::Embedding, Layout::NK) => vec![weight.n(), weight.k()],
    };
    let spelling = weight.scheme().spellings().iter().find(|spelling| !spelling.is_product);
    let spelling = spelling.expect("every scheme has one that any operator takes");
    let name = graph.fresh_name(&format!("{}.merged_weight", place.path));
    let (parts, matrix) = (weight.view().parts, [weight.k(), weight.n()]);
    let spelt = Spelt { scheme: weight.scheme().name(), form: weight.form(), qdq: true, stored: &dims, matrix };
    let (data, scales, zero_points) = spelt.tensors(parts.data.to_vec(), parts.scales, parts.zero_points.to_vec())?;
    let mut inputs = Vec::new();
    let tensors = [(name.clone(), Some(data)), (scale_name(&name), scales), (zero_point_name(&name), zero_points)];
    for (name, tensor) in tensors.into_iter().filter_map(|(name, tensor)| Some((name, tensor?))) {
        inputs.push(name.clone());
        graph.constants.insert(name, tensor);
    }
    let mut value = name.clone();
    let mut nodes = Vec::new();
    if let Some(op_type) = spelling.op_type {
        value = format!("{name}.dequantized");
        nodes.push(match op_type {
            "Cast" => Node::new(op_type, &value, &[&name], &value).with("to", Attribute::Int(FLOAT)),
            _ => dequantize(point, inputs, &value),
        });
    }
    if graph.nodes[at].op_type == "MatMulNBits" {
        // x W^T with a packed W [N, K] becomes the product with what takes its place.
        let node = graph.nodes[at].clone();
        let mut product = Node::new("MatMul", &node.name, &[&node.inputs[0], ""], node.output());
        if let Some(bias) = node.input(5) {
            let name = graph.fresh_name(&format!("{}.product", node.name));
            let add = graph.fresh_name(&format!("{}.bias", node.name));
            graph.nodes.insert(at + 1, Node::new("Add", &add, &[&name, bias], node.output()));
            product.outputs = vec![name];
        }
        graph.nodes[at] = product;
    }
    match graph.nodes[at].op_type.as_str() {
        "Gemm" => {
            let transposed = Attribute::Int(i64::from(layout == Layout::NK));
            graph.nodes[at].attributes.insert("transB".into(), transposed);
        }
        "MatMul" if layout == Layout::NK => {
            let transposed = format!("{name}.transposed");
            let perm = Attribute::Ints(vec![1, 0]);
            nodes.push(Node::new("Transpose", &transposed, &[&value], &transposed).with("perm", perm));
            value = transposed;
        }
        _ => {}
    }
    let input = usize::from(place.op != PointOp::Embedding);
    graph.nodes[at].inputs[input] = value;
    graph.nodes.splice(0..0, nodes);
    Ok(())
}

/// The DequantizeLinear that makes `value` of the elements, scales and zero points of a merged weight.
fn dequantize(point: &MergedPoint, inputs: Vec<String>, value: &str) -> Node {
    let node = Node { inputs, ..Node::new("DequantizeLinear", value, &[], value) };
    match point.weight.form().block {
        0 => node.with("axis", Attribute::Int(point.weight.layout().axis())),
        block => node.with("axis", Attribute::Int(1)).with("block_size", Attribute::Int(block as i64)),
    }
}

/// Lets a node that multiplies with packed elements itself have those of the merged weight, in the shapes that it has.
fn replace_packed(graph: &mut Graph, at: usize, point: &MergedPoint) -> Result<()> {
    let parts = point.weight.view().parts;
    let scales: Vec<u8> = parts.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
    for (input, bytes) in [(1, parts.data), (2, scales.as_slice()), (3, parts.zero_points)] {
        let Some(old) = graph.nodes[at].input(input).map(str::to_owned).filter(|_| !bytes.is_empty()) else { continue };
        let (dtype, dims) = match graph.constants.get(&old) {
            Some(tensor) => (tensor.dtype, tensor.dims().to_vec()),
            None => return Err(Error::Invalid(format!("{old:?} is no initializer; re-export the model"))),
        };
        let name = graph.fresh_name(&format!("{old}.merged"));
        graph.constants.insert(name.clone(), Tensor::new(dtype, dims, bytes.to_vec().into())?);
        graph.nodes[at].inputs[input] = name;
    }
    Ok(())
}
