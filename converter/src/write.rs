//! Stage 5: `model.onnx` and `model.onnx.data`. Weights are read, packed and written one at a time.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use inlay_format::metadata::{
    CHECKSUM_KEY, FINGERPRINT_KEY, FORMAT_KEY, FORMAT_VERSION, Fingerprint, HEX_DIGITS, MAX_ONNX_BYTES,
    MIN_EXTERNAL_BYTES, PAGE_ALIGNED_BYTES, PAGE_BYTES, POINTS_KEY, REPORT_KEY, TENSOR_ALIGNMENT_BYTES,
};
use inlay_format::points::Point;
use prost::Message;
use prost::bytes::Bytes;

use crate::encode;
use crate::error::{Error, Result, io};
use crate::graph::{Graph, OPSET};
use crate::proto::{EXTERNAL, ModelProto, StringStringEntryProto, TensorProto};
use crate::quantize::{Packing, pack, scale_name, zero_point_name};
use crate::tensor::Tensor;

/// Name of the graph's file in an exported folder.
pub const MODEL_FILE: &str = "model.onnx";
/// Name of the weights' file beside it.
pub const DATA_FILE: &str = "model.onnx.data";

/// A model whose weights are on the disk, and whose `.onnx` is still to be written.
pub struct Written {
    proto: ModelProto,
    fingerprint: Fingerprint,
    /// Bytes of the `.data` file.
    pub data_bytes: u64,
    /// What became of each packed weight, by name.
    pub packed: BTreeMap<String, PackedBytes>,
}

/// What packing made of a weight.
#[derive(Clone, Copy, Debug)]
pub struct PackedBytes {
    /// Bytes of its elements, scales and zero points.
    pub bytes: u64,
    /// Norm of the difference from the floats, relative to their norm.
    pub error: f32,
}

/// Writes the weights of `graph` to `folder`.
///
/// # Errors
/// If a weight cannot be packed or the disk does not take it.
pub fn write_weights(graph: &Graph, packing: &Packing, folder: &Path, progress: &dyn Fn(u64)) -> Result<Written> {
    let path = folder.join(DATA_FILE);
    let mut data = DataFile::create(&path)?;
    let mut proto = encode::model(graph, OPSET);
    let (mut initializers, mut packed) = (Vec::new(), BTreeMap::new());
    for name in order(graph) {
        let tensor = &graph.constants[name];
        if let Some(storage) = packing.weights.get(name) {
            let parts = pack(name, tensor, storage)?;
            initializers.push(data.append(encode::header(name, &parts.data), &parts.data.bytes(), PAGE_BYTES)?);
            let mut bytes = parts.data.byte_len();
            let rest = [(scale_name(name), parts.scales), (zero_point_name(name), parts.zero_points)];
            for (name, tensor) in rest.into_iter().filter_map(|(name, tensor)| Some((name, tensor?))) {
                initializers.push(place(&mut data, &name, &tensor, false)?);
                bytes += tensor.byte_len();
            }
            packed.insert(name.to_owned(), PackedBytes { bytes: bytes as u64, error: parts.error });
        } else {
            let is_parameter = graph.inputs.iter().any(|p| p.name == name);
            initializers.push(place(&mut data, name, tensor, is_parameter)?);
        }
        progress(tensor.byte_len() as u64);
    }
    let (data_hash, data_bytes) = data.finish()?;
    let graph = proto.graph.as_mut().expect("encode::model makes a graph");
    graph.initializer = initializers;
    let fingerprint = Fingerprint::of(&graph.encode_to_vec(), &data_hash);
    Ok(Written { proto, fingerprint, data_bytes, packed })
}

/// Writes the `.onnx` part to `folder`, with what the file says about itself. Returns its size in bytes.
///
/// # Errors
/// If it is larger than devices accept, or the disk does not take it.
pub fn write_model(written: &Written, points: &[Point<String>], report: &str, folder: &Path) -> Result<u64> {
    let mut proto = written.proto.clone();
    let points = serde_json::to_string(points).expect("points have string keys and plain values");
    let values = [
        (FORMAT_KEY, FORMAT_VERSION.to_owned()),
        (POINTS_KEY, points),
        (REPORT_KEY, report.to_owned()),
        (FINGERPRINT_KEY, written.fingerprint.to_string()),
        (CHECKSUM_KEY, "0".repeat(HEX_DIGITS)),
    ];
    let entry = |(key, value): (&str, String)| StringStringEntryProto { key: key.to_owned(), value };
    proto.metadata_props = values.into_iter().map(entry).collect();
    let mut bytes = proto.encode_to_vec();
    if bytes.len() > MAX_ONNX_BYTES {
        return Err(Error::Invalid(format!(
            "the graph without its weights takes {} bytes, devices accept {MAX_ONNX_BYTES}",
            bytes.len()
        )));
    }
    // Metadata is the last field that is written, and the checksum its last entry.
    let value = bytes.len() - HEX_DIGITS..bytes.len();
    debug_assert!(bytes.ends_with("0".repeat(HEX_DIGITS).as_bytes()));
    let checksum = blake3::hash(&bytes).to_hex();
    bytes[value].copy_from_slice(checksum.as_bytes());
    let path = folder.join(MODEL_FILE);
    let mut file = File::create(&path).map_err(io(&path))?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(io(&path))?;
    Ok(bytes.len() as u64)
}

/// Constants in the order in which the graph first uses them; those that no node uses come last.
fn order(graph: &Graph) -> Vec<&str> {
    let mut rank: HashMap<&str, usize> = HashMap::new();
    for (i, input) in graph.nodes.iter().flat_map(|n| &n.inputs).enumerate() {
        rank.entry(input).or_insert(i);
    }
    let mut names: Vec<&str> = graph.constants.keys().map(String::as_str).collect();
    // DequantizeLinear nodes stand first, in reverse order of names; a weight's own user comes after them all.
    let first_use = |name: &&str| {
        let float = format!("{name}.dequantized");
        rank.get(float.as_str()).or_else(|| rank.get(name)).copied().unwrap_or(usize::MAX)
    };
    names.sort_by_cached_key(|name| (first_use(name), (*name).to_owned()));
    names
}

/// Puts a float tensor where it belongs; the default of an adapter's parameter is always inline.
fn place(data: &mut DataFile, name: &str, tensor: &Tensor, is_parameter: bool) -> Result<TensorProto> {
    let bytes = tensor.bytes();
    if bytes.len() < MIN_EXTERNAL_BYTES || is_parameter {
        // A copy: what is written must not keep the source mapped.
        return Ok(TensorProto { raw_data: Bytes::copy_from_slice(&bytes), ..encode::header(name, tensor) });
    }
    let align = if bytes.len() >= PAGE_ALIGNED_BYTES { PAGE_BYTES } else { TENSOR_ALIGNMENT_BYTES };
    data.append(encode::header(name, tensor), &bytes, align)
}

struct DataFile<'a> {
    path: &'a Path,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    len: u64,
}

impl<'a> DataFile<'a> {
    fn create(path: &'a Path) -> Result<Self> {
        let file = File::create(path).map_err(io(path))?;
        Ok(DataFile { path, file: BufWriter::with_capacity(1 << 20, file), hasher: blake3::Hasher::new(), len: 0 })
    }

    fn append(&mut self, header: TensorProto, bytes: &[u8], align: usize) -> Result<TensorProto> {
        const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
        let padding = self.len.next_multiple_of(align as u64) - self.len;
        self.write(&ZEROS[..padding as usize])?;
        let offset = self.len;
        self.write(bytes)?;
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
        Ok(TensorProto {
            external_data: vec![
                entry("location", DATA_FILE.to_owned()),
                entry("offset", offset.to_string()),
                entry("length", bytes.len().to_string()),
            ],
            data_location: EXTERNAL,
            ..header
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(io(self.path))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn finish(mut self) -> Result<([u8; 32], u64)> {
        self.file.flush().and_then(|()| self.file.get_ref().sync_all()).map_err(io(self.path))?;
        Ok((*self.hasher.finalize().as_bytes(), self.len))
    }
}
