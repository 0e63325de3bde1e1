//! A base: an exported model, mapped, checked, and shared by everything that is personalized from it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use inlay_devices::weight::{Mapping, Window};
use inlay_format::kinds::IN_FILE;
use inlay_format::metadata::{self, Checksum, Fingerprint};
use inlay_format::points::{self, Point};
use memmap2::{Mmap, MmapOptions};

use crate::graph::{DType, Graph, GraphError, HostTensor};
use crate::onnx::{self, Dim, Model, TensorData, WireError};

/// File name of the graph in an exported folder.
pub const MODEL_FILE: &str = "model.onnx";

/// How much of a base is checked when it is opened. The `.onnx` part always is, in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// The weights are not read.
    Graph,
    /// The weights are hashed too, and compared with the fingerprint.
    Full,
}

/// Why a base could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is no ONNX model, or a damaged one.
    #[error("{} is not a readable ONNX model", .path.display())]
    NotOnnx {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: WireError,
    },
    /// The model does not come from the converter.
    #[error("{} was not exported by the converter; run `converter export {} --out DIR` and open DIR", .path.display(), .path.display())]
    NotExported {
        /// The file.
        path: PathBuf,
    },
    /// The model comes from another version of the converter.
    #[error("{} has format version \"{found}\", this runtime reads \"{expected}\"; re-export it with this version's converter", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: String,
        /// Version that this runtime reads.
        expected: &'static str,
    },
    /// The `.onnx` file was altered after the export.
    #[error("{} is damaged: its checksum does not match; copy it again or re-export it", .path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
    },
    /// The weights are not those that were exported.
    #[error("the weights of {} are damaged: they do not match its fingerprint; copy both files again or re-export", .path.display())]
    Fingerprint {
        /// The file.
        path: PathBuf,
    },
    /// A metadata entry is missing or unreadable.
    #[error("{}: metadata \"{key}\" is missing or malformed: {why}; re-export it with this version's converter", .path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// Key of the entry.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A tensor's data is not where the file says.
    #[error("tensor \"{tensor}\": {source}")]
    Tensor {
        /// The initializer.
        tensor: String,
        /// The cause.
        source: TensorError,
    },
    /// The graph cannot be run.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// Why the data of an initializer cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The external data leads out of the folder.
    #[error("external data \"{location}\" is not a plain file in the model's folder; copy both files into one folder")]
    Location {
        /// The location in the file.
        location: String,
    },
    /// More than one external file.
    #[error("external data \"{location}\" is a second file; the converter writes one")]
    SecondFile {
        /// The location in the file.
        location: String,
    },
    /// The external data file was not given.
    #[error("its data is in the file \"{location}\", which was not given; open the folder, or give both ranges")]
    NoData {
        /// The location in the file.
        location: String,
    },
    /// The data lies beyond the end of its file.
    #[error("bytes {offset} to {offset} + {len} are beyond the end of a file of {file_len} bytes")]
    Range {
        /// First byte.
        offset: usize,
        /// Number of bytes.
        len: usize,
        /// Size of the file.
        file_len: usize,
    },
    /// The data has another size than the shape asks for.
    #[error("shape {dims:?} needs {expected} bytes, there are {found}")]
    Size {
        /// Shape.
        dims: Vec<usize>,
        /// Bytes that the shape needs.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// The shape is absurd.
    #[error("shape {dims:?} is too large")]
    TooLarge {
        /// Shape.
        dims: Vec<usize>,
    },
    /// An element type that is not supported.
    #[error("ONNX element type {data_type} is not supported; re-export it with this version's converter")]
    DataType {
        /// Number of the type in ONNX.
        data_type: i32,
    },
}

/// An input or output of a base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape; symbolic dimensions of one name have one size.
    pub shape: Vec<Dim>,
}

/// An exported model, mapped into memory. Cloning shares the mapping.
///
/// The files must not be changed while a base is open.
#[derive(Clone, Debug)]
pub struct Base(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    graph: Graph,
    points: Vec<Point<String>>,
    fingerprint: Fingerprint,
    report: Option<String>,
}

#[cfg(test)]
impl Base {
    /// This base with another graph.
    pub(crate) fn with_graph(&self, graph: Graph) -> Self {
        let (points, fingerprint) = (self.0.points.clone(), self.0.fingerprint);
        Base(Arc::new(Opened { graph, points, fingerprint, report: None }))
    }
}

impl Base {
    /// Opens an exported folder, or the `.onnx` file in it.
    ///
    /// # Errors
    /// When the files cannot be read, were not exported by the converter, or are damaged.
    pub fn open(path: impl AsRef<Path>, verify: Verify) -> Result<Self, LoadError> {
        let path = path.as_ref();
        let path = if path.is_dir() { path.join(MODEL_FILE) } else { path.to_path_buf() };
        let onnx = map_path(&path)?;
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        assemble(&path, onnx, verify, Checks::Exported, |location| map_beside(&folder, location).map(Some))
    }

    /// Opens a base that is one file with everything inline, inside another file such as an APK: `len` bytes from
    /// byte `offset` on.
    ///
    /// # Errors
    /// As for [`Base::open`].
    pub fn from_file_range(file: &File, offset: u64, len: u64, verify: Verify) -> Result<Self, LoadError> {
        let onnx = map_range(file, offset, len)?;
        assemble(Path::new(MODEL_FILE), onnx, verify, Checks::Exported, |_| Ok(None))
    }

    /// Opens a base whose two files lie inside other files, each given as a file, its first byte and its length.
    ///
    /// `data` must start at a multiple of 4 bytes; of 4096 for speed.
    ///
    /// # Errors
    /// As for [`Base::open`].
    pub fn from_file_ranges(
        onnx: (&File, u64, u64),
        data: (&File, u64, u64),
        verify: Verify,
    ) -> Result<Self, LoadError> {
        let onnx = map_range(onnx.0, onnx.1, onnx.2)?;
        let data = map_range(data.0, data.1, data.2)?;
        assemble(Path::new(MODEL_FILE), onnx, verify, Checks::Exported, |_| Ok(Some(data)))
    }

    /// A base from the bytes of a file as exporters write it, without the checks that ours pass.
    #[cfg(test)]
    pub(crate) fn from_onnx(onnx: Vec<u8>) -> Result<Self, LoadError> {
        assemble(Path::new("test.onnx"), Arc::new(onnx), Verify::Graph, Checks::None, |_| Ok(None))
    }

    /// A base from a file as PyTorch's exporters write it, without the checks that ours pass.
    #[cfg(test)]
    pub(crate) fn open_foreign(path: &Path) -> Result<Self, LoadError> {
        let folder = path.parent().expect("a file has a folder").to_path_buf();
        assemble(path, map_path(path)?, Verify::Graph, Checks::None, |location| {
            map_path(&folder.join(location)).map(Some)
        })
    }

    /// The same, with initializers of these names as parameters.
    #[cfg(test)]
    pub(crate) fn open_trainable(path: &Path, names: impl Fn(&str) -> bool) -> Result<Self, LoadError> {
        let onnx = map_path(path)?;
        let mut model = onnx::read(onnx.bytes()).expect("the fixture is a model");
        let parameters = model.graph.initializers.iter().filter(|t| names(&t.name) && t.dims.len() == 1);
        let inputs: Vec<_> = parameters
            .map(|t| onnx::ValueInfo {
                name: t.name.clone(),
                data_type: t.data_type,
                shape: Some(t.dims.iter().map(|&d| Dim::Fixed(d)).collect()),
            })
            .collect();
        model.graph.inputs.extend(inputs);
        let constants = std::mem::take(&mut model.graph.initializers)
            .into_iter()
            .map(|t| constant(t, &onnx, None).expect("the fixture has no external data"))
            .collect();
        let graph = Graph::new(model, constants, &onnx)?;
        Ok(Base(Arc::new(Opened { graph, points: Vec::new(), fingerprint: Fingerprint([0; 32]), report: None })))
    }

    /// This base with other insertion points.
    #[cfg(test)]
    pub(crate) fn with_points(self, points: Vec<Point<String>>) -> Self {
        let Opened { graph, fingerprint, report, .. } = Arc::into_inner(self.0).expect("it was just opened");
        Base(Arc::new(Opened { graph, points, fingerprint, report }))
    }

    /// An initializer of that name, and its shape.
    pub(crate) fn constant(&self, name: &str) -> Option<(&Constant, &[usize])> {
        let value = self.0.graph.values.iter().find(|value| value.name == name)?;
        value.constant.as_ref().map(|constant| (constant, constant.dims.as_slice()))
    }

    /// The values of a float initializer, in the order of memory.
    pub fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let (constant, dims) = self.constant(name)?;
        HostTensor::from_window(constant.dtype, dims, &constant.window)?.floats().map(<[f32]>::to_vec)
    }

    /// Inputs that data is fed to, adapters' parameters not among them.
    pub fn inputs(&self) -> &[Port] {
        self.0.graph.inputs()
    }

    /// Outputs.
    pub fn outputs(&self) -> &[Port] {
        self.0.graph.outputs()
    }

    /// Inputs that have a default: the parameters of adapters, fed or left alone.
    pub fn parameters(&self) -> &[Port] {
        self.0.graph.parameters()
    }

    /// Where an adapter may be inserted.
    pub fn points(&self) -> &[Point<String>] {
        &self.0.points
    }

    /// Whether a value is of the insertion points, and not of the model that was exported.
    pub(crate) fn is_inserted(&self, value: &str) -> bool {
        let is_of_kind = |suffix: &str| {
            let kinds = IN_FILE.iter().map(|(kind, _)| suffix.strip_prefix(kind));
            suffix.starts_with("base") || kinds.flatten().any(|rest| rest.starts_with('_'))
        };
        value
            .match_indices('.')
            .any(|(at, _)| is_of_kind(&value[at + 1..]) && self.points().iter().any(|point| point.path == value[..at]))
    }

    /// The identity of this base, which adapters are bound to.
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.fingerprint
    }

    /// The quantization report of the export, as JSON.
    pub fn report(&self) -> Option<&str> {
        self.0.report.as_deref()
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.0.graph
    }
}

struct Map(Mmap);

impl Mapping for Map {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Maps the file `location` of `folder`, which a link must not lead out of.
fn map_beside(folder: &Path, location: &str) -> Result<Arc<dyn Mapping>, LoadError> {
    let path = folder.join(location);
    let real = |path: &Path| path.canonicalize().map_err(|source| LoadError::Io { path: path.to_path_buf(), source });
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if !real(&path)?.starts_with(real(folder)?) {
        let source = TensorError::Location { location: location.to_owned() };
        return Err(LoadError::Tensor { tensor: location.to_owned(), source });
    }
    map_path(&path)
}

fn map_path(path: &Path) -> Result<Arc<dyn Mapping>, LoadError> {
    let io = |source| LoadError::Io { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
    }
    map(&MmapOptions::new(), &file).map_err(io)
}

fn map_range(file: &File, offset: u64, len: u64) -> Result<Arc<dyn Mapping>, LoadError> {
    let io = |source| LoadError::Io { path: PathBuf::from(MODEL_FILE), source };
    let too_long = || io(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the range is beyond the file's end"));
    let end = offset.checked_add(len).ok_or_else(too_long)?;
    if end > file.metadata().map_err(io)?.len() {
        return Err(too_long());
    }
    let len = usize::try_from(len).map_err(|_| too_long())?;
    map(MmapOptions::new().offset(offset).len(len), file).map_err(io)
}

fn map(options: &MmapOptions, file: &File) -> std::io::Result<Arc<dyn Mapping>> {
    // SAFETY: The map is read-only and private to this process. That nobody truncates or rewrites the file while it
    // is open is a documented condition of opening a base (see `Base` and docs/security.md).
    #[allow(unsafe_code)]
    let map = unsafe { options.map(file)? };
    Ok(Arc::new(Map(map)))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Checks {
    Exported,
    #[cfg(test)]
    None,
}

fn assemble(
    path: &Path,
    onnx: Arc<dyn Mapping>,
    verify: Verify,
    checks: Checks,
    open_data: impl FnOnce(&str) -> Result<Option<Arc<dyn Mapping>>, LoadError>,
) -> Result<Base, LoadError> {
    let not_onnx = |source| LoadError::NotOnnx { path: path.to_path_buf(), source };
    if onnx.bytes().len() > metadata::MAX_ONNX_BYTES {
        let limit = metadata::MAX_ONNX_BYTES;
        return Err(not_onnx(WireError::TooMany { what: "the model", of: "bytes", limit }));
    }
    let mut model = onnx::read(onnx.bytes()).map_err(not_onnx)?;
    let exported = match checks {
        Checks::Exported => Some(check_exported(path, &model, onnx.bytes())?),
        #[cfg(test)]
        Checks::None => None,
    };
    let data = data_file(&model, open_data)?;
    if verify == Verify::Full
        && let Some((_, fingerprint)) = &exported
    {
        let hash = blake3::hash(data.as_ref().map_or(&[], |d| d.bytes()));
        let graph = &onnx.bytes()[model.graph_range.clone()];
        if Fingerprint::of(graph, hash.as_bytes()) != *fingerprint {
            return Err(LoadError::Fingerprint { path: path.to_path_buf() });
        }
    }
    let windows = std::mem::take(&mut model.graph.initializers)
        .into_iter()
        .map(|tensor| {
            let name = tensor.name.clone();
            constant(tensor, &onnx, data.as_ref()).map_err(|source| LoadError::Tensor { tensor: name, source })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let report = model.metadata(metadata::REPORT_KEY).map(|m| m.value.clone());
    let graph = Graph::new(model, windows, &onnx)?;
    let (points, fingerprint) = exported.unwrap_or((Vec::new(), Fingerprint([0; 32])));
    Ok(Base(Arc::new(Opened { graph, points, fingerprint, report })))
}

/// An initializer's type, shape and bytes.
#[derive(Clone, Debug)]
pub(crate) struct Constant {
    pub name: String,
    pub dtype: DType,
    pub dims: Vec<usize>,
    pub window: Window,
}

pub(crate) fn constant(
    tensor: onnx::Tensor,
    onnx: &Arc<dyn Mapping>,
    data: Option<&Arc<dyn Mapping>>,
) -> Result<Constant, TensorError> {
    let dtype = DType::from_onnx(tensor.data_type).ok_or(TensorError::DataType { data_type: tensor.data_type })?;
    let dims = tensor.dims;
    let expected = dtype
        .bytes(&dims)
        .filter(|&n| isize::try_from(n).is_ok())
        .ok_or_else(|| TensorError::TooLarge { dims: dims.clone() })?;
    let (mapping, offset, found) = match tensor.data {
        TensorData::Raw(range) => (Arc::clone(onnx), range.start, range.len()),
        TensorData::Typed(bytes) => {
            let len = bytes.len();
            (Arc::new(bytes) as Arc<dyn Mapping>, 0, len)
        }
        TensorData::External { location, offset, length } => {
            let data = data.ok_or(TensorError::NoData { location })?;
            let length = length.unwrap_or(data.bytes().len().saturating_sub(offset));
            (Arc::clone(data), offset, length)
        }
    };
    if found != expected {
        return Err(TensorError::Size { dims, expected, found });
    }
    let file_len = mapping.bytes().len();
    let window = offset
        .checked_add(found)
        .and_then(|end| Window::new(mapping, offset..end))
        .ok_or(TensorError::Range { offset, len: found, file_len })?;
    Ok(Constant { name: tensor.name, dtype, dims, window })
}

/// Opens the one file that external data is in.
fn data_file(
    model: &Model,
    open: impl FnOnce(&str) -> Result<Option<Arc<dyn Mapping>>, LoadError>,
) -> Result<Option<Arc<dyn Mapping>>, LoadError> {
    let mut file: Option<(&str, &str)> = None;
    for tensor in &model.graph.initializers {
        let TensorData::External { location, .. } = &tensor.data else { continue };
        let fail = |source| LoadError::Tensor { tensor: tensor.name.clone(), source };
        let plain = !location.is_empty()
            && !location.contains(['/', '\\', ':', '\0'])
            && !matches!(location.as_str(), "." | "..");
        if !plain {
            return Err(fail(TensorError::Location { location: location.clone() }));
        }
        match file {
            Some((first, _)) if first != location => {
                return Err(fail(TensorError::SecondFile { location: location.clone() }));
            }
            _ => file = Some((location, &tensor.name)),
        }
    }
    let Some((location, tensor)) = file else { return Ok(None) };
    let no_data = TensorError::NoData { location: location.to_owned() };
    let data = open(location)?.ok_or_else(|| LoadError::Tensor { tensor: tensor.to_owned(), source: no_data })?;
    Ok(Some(data))
}

/// Checks everything that the metadata says about the `.onnx` file itself.
fn check_exported(path: &Path, model: &Model, bytes: &[u8]) -> Result<(Vec<Point<String>>, Fingerprint), LoadError> {
    let path = path.to_path_buf();
    let Some(format) = model.metadata(metadata::FORMAT_KEY) else {
        return Err(LoadError::NotExported { path });
    };
    if format.value != metadata::FORMAT_VERSION {
        return Err(LoadError::Version { path, found: format.value.clone(), expected: metadata::FORMAT_VERSION });
    }
    let bad = |key, why: String| LoadError::Metadata { path: path.clone(), key, why };
    let get = |key| model.metadata(key).ok_or_else(|| bad(key, "there is none".to_owned()));

    let entry = get(metadata::CHECKSUM_KEY)?;
    let stated: Checksum =
        entry.value.parse().map_err(|e: metadata::NotHex| bad(metadata::CHECKSUM_KEY, e.to_string()))?;
    if metadata::checksum(bytes, entry.range.clone()) != Some(stated) {
        return Err(LoadError::Checksum { path });
    }
    let fingerprint = get(metadata::FINGERPRINT_KEY)?.value.parse();
    let fingerprint = fingerprint.map_err(|e: metadata::NotHex| bad(metadata::FINGERPRINT_KEY, e.to_string()))?;
    let json = &get(metadata::POINTS_KEY)?.value;
    let list: Vec<Point<String>> = serde_json::from_str(json).map_err(|e| bad(metadata::POINTS_KEY, e.to_string()))?;
    points::check_all(&list).map_err(|(i, error)| {
        bad(metadata::POINTS_KEY, format!("point {i} (\"{}\"): {error}", list[i.min(list.len() - 1)].path))
    })?;
    Ok((list, fingerprint))
}

#[cfg(test)]
mod tests;
