use std::path::Path;

use inlay_runtime::{Adapter, Base};

use super::flatbuffer::Builder;
use super::replace;
use crate::error::{Error, Result};

/// Version of the format that this writes, and that onnxruntime reads.
const FORMAT_VERSION: i32 = 1;
/// Number of f32 among the format's element types, which are those of ONNX.
const FLOAT: i32 = 1;
/// Largest file: its offsets are signed 32-bit numbers.
const MAX_BYTES: usize = i32::MAX as usize / 2;

/// Writes an adapter as the `.onnx_adapter` file that `onnxruntime.LoraAdapter` loads: what the base's optional inputs
/// are fed, LoRA's scaling folded in. Returns its size in bytes.
///
/// # Errors
/// If a parameter of the adapter is no input of the exported file, or the disk does not take it.
pub fn export_ort(base: &Base, adapter: &Adapter, out: &Path) -> Result<u64> {
    if 4 * adapter.parameter_count() > MAX_BYTES {
        return Err(Error::NotInFile { parameter: "all".into(), detail: "the adapter is larger than 1 GiB".into() });
    }
    let (mut builder, root) = Builder::new(*b"TORT");
    // format_version, adapter_version, model_version, parameters
    let [parameters] = builder.table(root, [Some(FORMAT_VERSION), Some(1), Some(1), None]);
    let tensors: Vec<_> = adapter.tensors().collect();
    let places = builder.offsets(parameters, tensors.len());
    for ((binding, values), place) in tensors.into_iter().zip(places) {
        if base.parameters().iter().all(|input| input.name != binding.name) {
            let detail = "onnxruntime can be fed inputs of the file only; merge the adapter instead".into();
            return Err(Error::NotInFile { parameter: binding.name.clone(), detail });
        }
        // name, dims, data_type, raw_data
        let [name, dims, raw_data] = builder.table(place, [None, None, Some(FLOAT), None]);
        builder.string(name, &binding.name);
        builder.vector(dims, binding.shape.len(), binding.shape.iter().flat_map(|&dim| (dim as i64).to_le_bytes()));
        let bytes = values.iter().flat_map(|value| (binding.scale * value).to_le_bytes());
        builder.vector(raw_data, 4 * values.len(), bytes);
    }
    replace(out, &builder.finish())
}
