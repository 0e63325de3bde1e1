//! Stage 1: an ONNX file becomes a [`Graph`]. Weights stay in the mapped file; every length and path is checked.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use prost::bytes::Bytes;

use crate::bounds::{MAX_FILES, MAX_NESTED, MAX_OVERLAP, check_size};
use crate::error::{Error, Result, io};
use crate::footprint::Footprint;
use crate::graph::{Attribute, Dim, Graph, Node, Port, ValueType};
use crate::proto::{
    self, DimensionValue, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, attribute_type,
};
use crate::tensor::{DType, Tensor};

/// The operator sets that the converter reads.
pub const OPSETS: std::ops::RangeInclusive<i64> = 13..=23;

/// A model as it was read.
#[derive(Clone, Debug)]
pub struct Model {
    /// The graph.
    pub graph: Graph,
    /// Functions local to the model, by domain and name.
    pub functions: HashMap<(String, String), Function>,
    /// Version of the ai.onnx operator set.
    pub opset: i64,
    /// Metadata of the file.
    pub metadata: BTreeMap<String, String>,
    /// The tool that wrote the file, with its version.
    pub producer: String,
    /// Bytes of the file and of its external data.
    pub bytes: u64,
}

/// A function local to the model.
#[derive(Clone, Debug)]
pub struct Function {
    /// Formal inputs.
    pub inputs: Vec<String>,
    /// Formal outputs.
    pub outputs: Vec<String>,
    /// Defaults of attributes.
    pub defaults: BTreeMap<String, Attribute>,
    /// The body.
    pub nodes: Vec<Node>,
}

/// Reads the ONNX file at `path`.
///
/// # Errors
/// If the file is no ONNX model, is damaged, or refers to data that is not there.
pub fn read(path: &Path) -> Result<Model> {
    let bytes = map(path)?;
    let not_onnx = |detail: String| Error::NotOnnx { path: path.to_owned(), detail };
    if bytes.is_empty() {
        return Err(not_onnx("the file is empty".into()));
    }
    let len = bytes.len() as u64;
    Footprint::of(&bytes).map_err(|why| not_onnx(why.to_owned()))?.check(bytes.len())?;
    let proto = ModelProto::decode(bytes).map_err(|e| not_onnx(e.to_string()))?;
    if proto.graph.is_none() {
        return Err(not_onnx("it holds no graph".into()));
    }
    let mut files = Files::new(path.parent().unwrap_or(Path::new(".")))?;
    let mut model = model(proto, &mut files)?;
    model.bytes = len + files.open.values().map(|b| b.len() as u64).sum::<u64>();
    let claimed: u64 = model.graph.constants.values().map(|t| t.byte_len() as u64).sum();
    if claimed > MAX_OVERLAP * model.bytes {
        return Err(Error::Invalid(format!(
            "the initializers claim {claimed} bytes, more than {MAX_OVERLAP} times the {} that the files have: they overlap",
            model.bytes
        )));
    }
    Ok(model)
}

/// Maps a whole file for reading.
pub(crate) fn map(path: &Path) -> Result<Bytes> {
    let file = File::open(path).map_err(io(path))?;
    let metadata = file.metadata().map_err(io(path))?;
    if !metadata.is_file() {
        return Err(Error::NotOnnx { path: path.to_owned(), detail: "it is not a file".into() });
    }
    if metadata.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is read-only and private to this process. A file that is changed while it is converted gives
    // wrong values, or a signal if it is cut short, as docs/security.md says; values are checked after they are read.
    #[allow(unsafe_code)]
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io(path))?;
    Ok(Bytes::from_owner(map))
}

/// The files of external data, each mapped once; only files inside the model's folder are opened.
struct Files {
    folder: PathBuf,
    open: HashMap<PathBuf, Bytes>,
    /// Subgraphs around what is being read.
    nested: usize,
}

impl Files {
    fn new(folder: &Path) -> Result<Files> {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        Ok(Files { folder: folder.canonicalize().map_err(io(folder))?, open: HashMap::new(), nested: 0 })
    }

    fn slice(&mut self, tensor: &TensorProto, expected: Option<usize>) -> Result<Bytes> {
        let entry = |key: &str| tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let location = entry("location").unwrap_or_default();
        let refuse =
            |detail: String| Error::ExternalData { tensor: tensor.name.clone(), location: location.to_owned(), detail };
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(v) => {
                v.parse::<usize>().map(Some).map_err(|_| refuse(format!("{key} {v:?} is not a number of bytes")))
            }
        };
        let relative = Path::new(location);
        if location.is_empty() || !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
        {
            return Err(refuse("the path must be relative and stay inside the model's folder".into()));
        }
        let path = self.folder.join(relative);
        let path = path.canonicalize().map_err(|e| refuse(e.to_string()))?;
        if !path.starts_with(&self.folder) {
            return Err(refuse("the path leads out of the model's folder".into()));
        }
        if !self.open.contains_key(&path) {
            if self.open.len() == MAX_FILES {
                return Err(refuse(format!("the model has more than {MAX_FILES} files of external data")));
            }
            self.open.insert(path.clone(), map(&path)?);
        }
        let file = &self.open[&path];
        let offset = number("offset")?.unwrap_or(0);
        let available = file.len().checked_sub(offset);
        let length = match (number("length")?, expected) {
            (Some(n), _) => n,
            (None, Some(n)) => n,
            (None, None) => return Err(refuse("its shape overflows".into())),
        };
        if available.is_none_or(|n| length > n) {
            return Err(refuse(format!(
                "bytes {offset}..{} are past the end of the file ({} bytes)",
                offset.saturating_add(length),
                file.len()
            )));
        }
        Ok(file.slice(offset..offset + length))
    }
}

fn model(proto: ModelProto, files: &mut Files) -> Result<Model> {
    let versions = opsets(&proto.opset_import);
    let opset = *versions.get("").ok_or_else(|| Error::Invalid("no ai.onnx operator set is imported".into()))?;
    if !OPSETS.contains(&opset) {
        return Err(Error::Invalid(format!(
            "operator set {opset} is not supported ({} to {} are); re-export with opset_version=21",
            OPSETS.start(),
            OPSETS.end()
        )));
    }
    let g = proto.graph.expect("the caller checked that there is a graph");
    if !g.sparse_initializer.is_empty() {
        return Err(Error::Invalid("sparse initializers are not supported; store them dense".into()));
    }
    let mut constants = BTreeMap::new();
    for t in g.initializer {
        let name = t.name.clone();
        if constants.insert(name.clone(), tensor(t, files, true)?).is_some() {
            return Err(Error::Invalid(format!("initializer {name:?} is defined twice")));
        }
    }
    let mut inputs = Vec::new();
    let mut names = HashSet::new();
    for input in &g.input {
        if !names.insert(input.name.as_str()) {
            return Err(Error::Invalid(format!("graph input {:?} is defined twice", input.name)));
        }
        if !constants.contains_key(&input.name) {
            inputs.push(port(input)?);
        }
    }
    let nodes = nodes(g.node, &versions, files)?;
    let mut outputs = Vec::new();
    for output in &g.output {
        outputs.push(port(output)?);
    }
    if outputs.is_empty() {
        return Err(Error::Invalid("the graph has no output".into()));
    }
    let mut functions = HashMap::new();
    for f in proto.functions {
        let mut defaults = BTreeMap::new();
        let versions = opsets(&f.opset_import);
        for a in f.attribute_proto {
            defaults.insert(a.name.clone(), attribute(a, &versions, files)?);
        }
        let function =
            Function { inputs: f.input, outputs: f.output, defaults, nodes: self::nodes(f.node, &versions, files)? };
        functions.insert((domain(&f.domain), f.name), function);
    }
    let mut graph = Graph { name: g.name, nodes, inputs, outputs, constants, ..Graph::default() };
    graph.sort()?;
    check_size(&graph)?;
    Ok(Model {
        graph,
        functions,
        opset,
        metadata: proto.metadata_props.into_iter().map(|e| (e.key, e.value)).collect(),
        producer: format!("{} {}", proto.producer_name, proto.producer_version).trim().to_owned(),
        bytes: 0,
    })
}

fn opsets(imports: &[proto::OperatorSetIdProto]) -> HashMap<String, i64> {
    imports.iter().map(|o| (domain(&o.domain), o.version)).collect()
}

fn domain(name: &str) -> String {
    if name == "ai.onnx" { String::new() } else { name.to_owned() }
}

fn nodes(protos: Vec<NodeProto>, versions: &HashMap<String, i64>, files: &mut Files) -> Result<Vec<Node>> {
    let mut names = HashSet::new();
    // How often a name was there: counting on from it keeps a file of one name from taking quadratic time.
    let mut repeated: HashMap<String, usize> = HashMap::new();
    let mut nodes = Vec::with_capacity(protos.len());
    for (i, n) in protos.into_iter().enumerate() {
        let domain = domain(&n.domain);
        let (scope, folded_norm) = scope(&n);
        // The TorchScript exporter gives such names to the weights that it computes.
        let from_torchscript = n.op_type == "Conv" && n.input.iter().any(|i| i.starts_with("onnx::Conv_"));
        let mut name = if n.name.is_empty() { format!("{}_{i}", n.op_type) } else { n.name };
        // The format allows nodes to share a name; points refer to nodes by name, so ours do not.
        if !names.insert(name.clone()) {
            let count = repeated.entry(name.clone()).or_default();
            name = loop {
                *count += 1;
                let numbered = format!("{name}_{count}");
                if names.insert(numbered.clone()) {
                    break numbered;
                }
            };
        }
        let mut attributes = BTreeMap::new();
        for a in n.attribute {
            attributes.insert(a.name.clone(), attribute(a, versions, files)?);
        }
        nodes.push(Node {
            name,
            op_type: n.op_type,
            opset: versions.get(&domain).copied().unwrap_or(1),
            domain,
            inputs: n.input,
            outputs: n.output,
            attributes,
            scope,
            folded_norm: folded_norm || from_torchscript,
        });
    }
    Ok(nodes)
}

/// The module that the dynamo exporter recorded for a node, and whether it folded a BatchNormalization into it. It then
/// recorded the normalization, which is not the module that holds the weight.
fn scope(node: &NodeProto) -> (Option<String>, bool) {
    let innermost = |key: &str| node.metadata_props.iter().find(|e| e.key == key).and_then(|e| module(&e.value));
    let is_norm = innermost("pkg.torch.onnx.class_hierarchy").is_some_and(|c| c.contains("BatchNorm"));
    let holds_weight = matches!(node.op_type.as_str(), "Conv" | "ConvTranspose" | "Gemm" | "MatMul");
    if is_norm && holds_weight { (None, true) } else { (innermost("pkg.torch.onnx.name_scopes"), false) }
}

/// The innermost module of a list of scopes like `['', 'encoder', 'encoder.query', 'linear']`, whose last entry is the
/// operation itself.
fn module(scopes: &str) -> Option<String> {
    let inner = scopes.trim().strip_prefix('[')?.strip_suffix(']')?;
    let scopes: Vec<&str> = inner.split(',').map(|s| s.trim().trim_matches(['\'', '"'])).collect();
    let module = scopes.get(scopes.len().checked_sub(2)?)?;
    (!module.is_empty()).then(|| (*module).to_owned())
}

fn attribute(a: proto::AttributeProto, versions: &HashMap<String, i64>, files: &mut Files) -> Result<Attribute> {
    let text = |b: &Bytes| String::from_utf8_lossy(b).into_owned();
    if !a.ref_attr_name.is_empty() {
        return Ok(Attribute::Reference(a.ref_attr_name));
    }
    Ok(match a.r#type {
        attribute_type::FLOAT => Attribute::Float(a.f),
        attribute_type::INT => Attribute::Int(a.i),
        attribute_type::STRING => Attribute::String(text(&a.s)),
        attribute_type::TENSOR => {
            let t = a.t.ok_or_else(|| Error::Invalid(format!("attribute {:?} holds no tensor", a.name)))?;
            Attribute::Tensor(tensor(*t, files, false)?)
        }
        attribute_type::FLOATS => Attribute::Floats(a.floats),
        attribute_type::INTS => Attribute::Ints(a.ints),
        attribute_type::STRINGS => Attribute::Strings(a.strings.iter().map(text).collect()),
        attribute_type::GRAPH => Attribute::Graph(Arc::new(subgraph(&a, versions, files)?)),
        other => return Err(Error::Invalid(format!("attribute {:?} has the unsupported type {other}", a.name))),
    })
}

fn subgraph(a: &proto::AttributeProto, versions: &HashMap<String, i64>, files: &mut Files) -> Result<Graph> {
    let about = |detail: &str| Error::Invalid(format!("attribute {:?}: {detail}", a.name));
    let bytes = a.g.clone().ok_or_else(|| about("it holds no graph"))?;
    if files.nested == MAX_NESTED {
        return Err(about(&format!("more than {MAX_NESTED} graphs are inside each other")));
    }
    let g = GraphProto::decode(bytes).map_err(|e| about(&e.to_string()))?;
    files.nested += 1;
    let mut constants = BTreeMap::new();
    for t in g.initializer {
        constants.insert(t.name.clone(), tensor(t, files, true)?);
    }
    let nodes = nodes(g.node, versions, files)?;
    files.nested -= 1;
    // Branches may leave out the types of their outputs.
    let ty = ValueType { dtype: DType::F32, dims: None };
    let outputs = g.output.into_iter().map(|o| Port { name: o.name, ty: ty.clone() }).collect();
    Ok(Graph { name: g.name, nodes, outputs, constants, ..Graph::default() })
}

fn tensor(t: TensorProto, files: &mut Files, is_initializer: bool) -> Result<Tensor> {
    let about = |detail: String| Error::Invalid(format!("tensor {:?}: {detail}", t.name));
    let dtype =
        DType::from_onnx(t.data_type).ok_or_else(|| about(format!("element type {} is not supported", t.data_type)))?;
    let dims = t
        .dims
        .iter()
        .map(|&d| usize::try_from(d).ok())
        .collect::<Option<Vec<usize>>>()
        .ok_or_else(|| about(format!("shape {:?} is negative", t.dims)))?;
    let expected = dtype.bytes(&dims);
    let bytes = if t.data_location == proto::EXTERNAL {
        files.slice(&t, expected)?
    } else if !t.raw_data.is_empty() {
        t.raw_data.clone()
    } else {
        typed_data(&t, dtype)
    };
    let mut tensor = Tensor::new(dtype, dims, bytes).map_err(|e| about(e.to_string()))?;
    tensor.origin = is_initializer.then(|| t.name.clone());
    Ok(tensor)
}

/// The little-endian bytes of a tensor whose values are in the typed fields.
fn typed_data(t: &TensorProto, dtype: DType) -> Bytes {
    fn bytes<T: Copy, const N: usize>(values: &[T], f: impl Fn(T) -> [u8; N]) -> Bytes {
        values.iter().flat_map(|&v| f(v)).collect::<Vec<u8>>().into()
    }
    match dtype {
        DType::F32 => bytes(&t.float_data, f32::to_le_bytes),
        DType::F64 => bytes(&t.double_data, f64::to_le_bytes),
        DType::I64 => bytes(&t.int64_data, i64::to_le_bytes),
        DType::I32 => bytes(&t.int32_data, i32::to_le_bytes),
        DType::U64 => bytes(&t.uint64_data, u64::to_le_bytes),
        DType::U32 => bytes(&t.uint64_data, |v| (v as u32).to_le_bytes()),
        DType::I8 | DType::U8 | DType::U4 | DType::I4 | DType::U2 | DType::Bool => bytes(&t.int32_data, |v| [v as u8]),
        DType::I16 | DType::U16 | DType::F16 | DType::BF16 => bytes(&t.int32_data, |v| (v as u16).to_le_bytes()),
    }
}

fn port(info: &ValueInfoProto) -> Result<Port> {
    let ty = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
    let ty = ty.ok_or_else(|| {
        Error::Invalid(format!("{:?} is not a tensor; sequences and maps are not supported", info.name))
    })?;
    let dtype = DType::from_onnx(ty.elem_type)
        .ok_or_else(|| Error::Invalid(format!("{:?} has the unsupported element type {}", info.name, ty.elem_type)))?;
    let dims = ty.shape.as_ref().map(|s| {
        s.dim
            .iter()
            .map(|d| match &d.value {
                Some(DimensionValue::DimValue(n)) => usize::try_from(*n).map_or(Dim::Unknown, Dim::Known),
                Some(DimensionValue::DimParam(s)) if !s.is_empty() => Dim::Symbol(s.clone()),
                _ => Dim::Unknown,
            })
            .collect()
    });
    Ok(Port { name: info.name.clone(), ty: ValueType { dtype, dims } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_weight_is_not_copied() {
        let t = TensorProto { dims: vec![64], data_type: 1, raw_data: vec![1u8; 256].into(), ..Default::default() };
        let encoded = Bytes::from(t.encode_to_vec());
        let range = encoded.as_ptr_range();
        let decoded = TensorProto::decode(encoded.clone()).unwrap();
        assert!(range.contains(&decoded.raw_data.as_ptr()));
    }

    #[test]
    fn the_module_is_the_scope_before_the_last() {
        assert_eq!(module("['', 'layer.0', 'layer.0.query', 'linear']").as_deref(), Some("layer.0.query"));
        assert_eq!(module("['', 'relu']"), None);
        assert_eq!(module("nonsense"), None);
    }
}
