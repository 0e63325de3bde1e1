//! Adapters in the formats of others: PEFT folders, onnxruntime's `.onnx_adapter`, GGUF.

mod flatbuffer;
mod gguf;
mod ort;

use std::fs;
use std::path::Path;

use inlay_runtime::peft::Prefix;
use inlay_runtime::{Adapter, AdapterError, Base, Dtype, Verify};

pub use gguf::{ARCHITECTURES, Architecture, Heads, export_gguf};
pub use ort::export_ort;

use crate::error::{Error, Result, io};

/// Opens an exported folder, with its weights hashed.
///
/// # Errors
/// If it is damaged or the converter did not export it.
pub fn open_base(path: &Path) -> Result<Base> {
    Ok(Base::open(path, Verify::Full)?)
}

/// Reads an adapter: a record, or a PEFT folder. The prefix tells how a folder's module paths differ from those of the
/// base.
///
/// # Errors
/// If it is damaged, or of another base.
pub fn open_adapter(base: &Base, path: &Path) -> Result<(Adapter, Option<Prefix>)> {
    let about = in_file(path);
    if path.is_dir() {
        let (adapter, prefix) = Adapter::from_peft(base, path).map_err(&about)?;
        return Ok((adapter, Some(prefix)));
    }
    let record = fs::read(path).map_err(io(path))?;
    Ok((Adapter::from_record(base, &record).map_err(about)?, None))
}

/// The adapter with LoRA in the place of LoRA-XS, as other programs know it.
///
/// # Errors
/// If it is not of this base. `path` is where it came from.
pub fn expanded(base: &Base, adapter: &Adapter, path: &Path) -> Result<Adapter> {
    adapter.to_lora(base).map_err(in_file(path))
}

/// Writes an adapter as a record.
///
/// # Errors
/// If a value does not fit `dtype`, or the disk does not take it; an existing file then stays as it was.
pub fn write_record(adapter: &Adapter, dtype: Dtype, out: &Path) -> Result<u64> {
    let record = adapter.to_record(dtype).map_err(in_file(out))?;
    replace(out, &record)
}

/// Writes an adapter as a PEFT folder.
///
/// # Errors
/// If it is not of this base, or the disk does not take it.
pub fn export_peft(base: &Base, adapter: &Adapter, out: &Path) -> Result<()> {
    adapter.to_peft(base, out).map_err(in_file(out))
}

/// The error about the adapter in a file.
fn in_file(path: &Path) -> impl Fn(AdapterError) -> Error {
    move |source| Error::Adapter { path: path.to_owned(), source: Box::new(source) }
}

/// Writes a file beside `path` and renames it, so that there is the old one or the new one, whole. Returns its size.
fn replace(path: &Path, bytes: &[u8]) -> Result<u64> {
    use std::io::Write;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(io(path))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(io(path))?;
    file.persist(path).map_err(|e| Error::Io { path: path.to_owned(), source: e.error })?;
    Ok(bytes.len() as u64)
}
