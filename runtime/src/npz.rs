//! NumPy archives: `.npz` files of named arrays, read and written.
//!
//! The reader is written for files that nobody vouches for: a header is believed only as far as its array's bytes go.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, Cursor, Read, Write};
use std::path::{Path, PathBuf};

use half::f16;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::graph::{HostData, HostTensor, element_count};

/// Most arrays of one archive.
pub const MAX_ARRAYS: usize = 1024;
/// Most dimensions of one array.
pub const MAX_DIMS: usize = 16;
/// Most memory that the arrays of an archive take, in multiples of its size: what deflate can pack, so that only entries
/// that overlap, and archives of next to nothing, ask for more.
pub const MAX_EXPANSION: u64 = 1032;
/// Memory that the arrays of an archive may take whatever its size (bytes).
pub const EXPANSION_FLOOR: u64 = 64 << 20;
/// Longest header of one array (bytes).
const MAX_HEADER_BYTES: usize = 1 << 16;

/// Why an archive cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NpzError {
    /// The file cannot be opened, read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is no `.npz`.
    #[error("{path}: not a NumPy .npz archive: {why}; write it with numpy.savez")]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// An array in the archive cannot be used.
    #[error("{path}: array \"{name}\": {why}")]
    Array {
        /// The file.
        path: PathBuf,
        /// The array.
        name: String,
        /// What is wrong, and the way out.
        why: String,
    },
}

/// Reads every array of the archive at `path`, in its order.
///
/// Floats of 16, 32 and 64 bits become f32 (`float64` is rounded), integers of every size and `bool` become i64. No array
/// takes memory before its bytes are there.
///
/// # Errors
/// When the file is no `.npz`, is cut short or damaged, holds an array of another type, or unpacks to more
/// than [`MAX_EXPANSION`] times its size and [`EXPANSION_FLOOR`].
pub fn read(path: &Path) -> Result<Vec<(String, HostTensor)>, NpzError> {
    let io = |source| NpzError::Io { path: path.into(), source };
    let archive = |why: &dyn fmt::Display| NpzError::Archive { path: path.into(), why: why.to_string() };
    let file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    let mut memory = len.saturating_mul(MAX_EXPANSION).max(EXPANSION_FLOOR);
    let mut zip = match ZipArchive::new(BufReader::new(file)) {
        Ok(zip) => zip,
        Err(zip::result::ZipError::Io(source)) => return Err(io(source)),
        Err(error) => return Err(archive(&error)),
    };
    if zip.len() > MAX_ARRAYS {
        return Err(archive(&format_args!("{} arrays, at most {MAX_ARRAYS} are allowed", zip.len())));
    }
    let mut arrays: Vec<(String, HostTensor)> = Vec::with_capacity(zip.len());
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).map_err(|error| archive(&error))?;
        let name = entry.name().strip_suffix(".npy").unwrap_or(entry.name()).to_owned();
        if arrays.iter().any(|(other, _)| *other == name) {
            return Err(archive(&format_args!("array \"{name}\" is there twice")));
        }
        let bytes = entry.size();
        let array = read_npy(&mut entry, bytes, &mut memory).map_err(|why| NpzError::Array {
            path: path.into(),
            name: name.clone(),
            why: why.to_string(),
        })?;
        arrays.push((name, array));
    }
    Ok(arrays)
}

/// Writes `arrays` to an uncompressed archive at `path`, replacing the file that is there or that a link there leads to.
/// A device or a pipe is written to.
///
/// # Errors
/// When the file cannot be written; a file that was at `path` is then untouched.
pub fn write<'a>(path: &Path, arrays: impl IntoIterator<Item = (&'a str, &'a HostTensor)>) -> Result<(), NpzError> {
    // In memory first: a disk that fills up then meets one write, whose error is the whole story.
    let bytes = to_zip(arrays).expect("memory takes every write");
    replace(path, &bytes).map_err(|source| NpzError::Io { path: path.into(), source })
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let existing = match fs::canonicalize(path) {
        Ok(existing) => Some(existing),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let target = existing.as_deref().unwrap_or(path);
    let metadata = existing.as_deref().map(fs::metadata).transpose()?;
    if metadata.as_ref().is_some_and(|metadata| !metadata.is_file()) {
        return File::options().write(true).open(target)?.write_all(bytes);
    }
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".npz");
    match metadata {
        Some(metadata) => builder.permissions(metadata.permissions()),
        #[cfg(unix)]
        None => builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)),
        #[cfg(not(unix))]
        None => &mut builder,
    };
    let file = builder.tempfile_in(folder)?;
    // The plain file: errors of the other one name a path that means nothing to anybody.
    let mut plain = file.as_file();
    plain.write_all(bytes)?;
    plain.sync_all()?;
    file.persist(target).map_err(|error| error.error)?;
    Ok(())
}

fn to_zip<'a>(arrays: impl IntoIterator<Item = (&'a str, &'a HostTensor)>) -> io::Result<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, array) in arrays {
        let bytes = array.len() as u64 * 8;
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(bytes > u64::from(u32::MAX) / 2);
        zip.start_file(format!("{name}.npy"), options)?;
        write_npy(&mut zip, array)?;
    }
    Ok(zip.finish()?.into_inner())
}

fn write_npy(writer: &mut impl Write, array: &HostTensor) -> io::Result<()> {
    let dtype = match array.data() {
        HostData::F32(_) => "<f4",
        HostData::I64(_) => "<i8",
        HostData::I32(_) => "<i4",
        HostData::Bool(_) => "|b1",
    };
    let dims: String = array.shape().iter().map(|dim| format!("{dim}, ")).collect();
    let dims = if array.shape().len() > 1 { dims.trim_end_matches(", ") } else { dims.trim_end() };
    let mut header = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({dims}), }}");
    // Magic, version and length take 10 bytes; the whole header is a multiple of 64 and ends in a line feed.
    let padding = 63 - (10 + header.len()) % 64;
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let len = u16::try_from(header.len()).map_err(|_| io::Error::other("too many dimensions"))?;
    writer.write_all(b"\x93NUMPY\x01\x00")?;
    writer.write_all(&len.to_le_bytes())?;
    writer.write_all(header.as_bytes())?;
    match array.data() {
        HostData::F32(values) => values.iter().try_for_each(|value| writer.write_all(&value.to_le_bytes())),
        HostData::I64(values) => values.iter().try_for_each(|value| writer.write_all(&value.to_le_bytes())),
        HostData::I32(values) => values.iter().try_for_each(|value| writer.write_all(&value.to_le_bytes())),
        HostData::Bool(values) => values.iter().try_for_each(|value| writer.write_all(&[u8::from(*value)])),
    }
}

/// What is wrong with one array.
#[derive(Debug, thiserror::Error)]
enum NpyError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("not a .npy array")]
    Magic,
    #[error(".npy version {0}.{1} is not known; write it with numpy.savez")]
    Version(u8, u8),
    #[error("its header cannot be read: {0}")]
    Header(&'static str),
    #[error("type {0} is not supported; convert it with .astype(numpy.float32) or .astype(numpy.int64)")]
    Dtype(String),
    #[error("in Fortran order; convert it with numpy.ascontiguousarray")]
    FortranOrder,
    #[error("shape {shape:?} needs {needed} bytes, {found} are there")]
    Size { shape: Vec<usize>, needed: u64, found: u64 },
    #[error(
        "the archive unpacks to more than {MAX_EXPANSION} times its size; save it uncompressed, with numpy.savez, if it is yours"
    )]
    Expansion,
    #[error("element {0} does not fit into int64")]
    Overflow(usize),
}

/// Reads an array of `bytes` bytes, which may take what is left of `memory`.
fn read_npy(reader: &mut impl Read, bytes: u64, memory: &mut u64) -> Result<HostTensor, NpyError> {
    let mut start = [0; 8];
    read_all(reader, &mut start)?;
    if &start[..6] != b"\x93NUMPY" {
        return Err(NpyError::Magic);
    }
    let (header_len, start_len) = match (start[6], start[7]) {
        (1, 0) => {
            let mut len = [0; 2];
            read_all(reader, &mut len)?;
            (usize::from(u16::from_le_bytes(len)), 10)
        }
        (2 | 3, 0) => {
            let mut len = [0; 4];
            read_all(reader, &mut len)?;
            (u32::from_le_bytes(len) as usize, 12)
        }
        (major, minor) => return Err(NpyError::Version(major, minor)),
    };
    if header_len > MAX_HEADER_BYTES {
        return Err(NpyError::Header("it is too long"));
    }
    let mut header = vec![0; header_len];
    read_all(reader, &mut header)?;
    let header = Header::parse(std::str::from_utf8(&header).map_err(|_| NpyError::Header("it is no text"))?)?;
    if header.fortran_order && header.shape.len() > 1 {
        return Err(NpyError::FortranOrder);
    }
    let dtype = Dtype::parse(&header.descr).ok_or(NpyError::Dtype(header.descr))?;
    let found = bytes.saturating_sub((start_len + header_len) as u64);
    let needed = element_count(&header.shape)
        .and_then(|count| u64::try_from(count).ok()?.checked_mul(dtype.bytes() as u64))
        .ok_or(NpyError::Header("its shape is too large"))?;
    if needed != found {
        return Err(NpyError::Size { shape: header.shape, needed, found });
    }
    let elements = needed / dtype.bytes() as u64;
    *memory = elements.checked_mul(dtype.memory()).and_then(|n| memory.checked_sub(n)).ok_or(NpyError::Expansion)?;
    // `found` is what the archive's directory claims: memory grows with what is really there.
    let mut data = Vec::new();
    reader.take(needed.saturating_add(1)).read_to_end(&mut data)?;
    if data.len() as u64 != needed {
        return Err(NpyError::Size { shape: header.shape, needed, found: data.len() as u64 });
    }
    let values = dtype.decode(&data)?;
    Ok(HostTensor::of(header.shape, values))
}

fn read_all(reader: &mut impl Read, buffer: &mut [u8]) -> Result<(), NpyError> {
    reader.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => NpyError::Magic,
        _ => NpyError::Io(error),
    })
}

#[derive(Clone, Copy)]
enum Dtype {
    F16,
    F32,
    F64,
    Int { bytes: usize, signed: bool },
}

impl Dtype {
    fn parse(descr: &str) -> Option<Self> {
        let descr = descr.strip_prefix(['<', '|', '=']).unwrap_or(descr);
        Some(match descr {
            "f2" => Dtype::F16,
            "f4" => Dtype::F32,
            "f8" => Dtype::F64,
            "i1" => Dtype::Int { bytes: 1, signed: true },
            "i2" => Dtype::Int { bytes: 2, signed: true },
            "i4" => Dtype::Int { bytes: 4, signed: true },
            "i8" => Dtype::Int { bytes: 8, signed: true },
            "u1" | "b1" => Dtype::Int { bytes: 1, signed: false },
            "u2" => Dtype::Int { bytes: 2, signed: false },
            "u4" => Dtype::Int { bytes: 4, signed: false },
            "u8" => Dtype::Int { bytes: 8, signed: false },
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Dtype::F16 => 2,
            Dtype::F32 => 4,
            Dtype::F64 => 8,
            Dtype::Int { bytes, .. } => bytes,
        }
    }

    /// Bytes that an element takes when it is read.
    fn memory(self) -> u64 {
        match self {
            Dtype::F16 | Dtype::F32 | Dtype::F64 => 4,
            Dtype::Int { .. } => 8,
        }
    }

    fn decode(self, data: &[u8]) -> Result<HostData, NpyError> {
        Ok(match self {
            Dtype::F16 => HostData::F32(data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
            Dtype::F32 => HostData::F32(data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::F64 => HostData::F32(data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect()),
            Dtype::Int { bytes, signed } => HostData::I64(
                data.chunks_exact(bytes)
                    .enumerate()
                    .map(|(i, chunk)| {
                        let negative = signed && chunk[bytes - 1] & 0x80 != 0;
                        let mut wide = [if negative { 0xff } else { 0 }; 8];
                        wide[..bytes].copy_from_slice(chunk);
                        let value = i64::from_le_bytes(wide);
                        if value < 0 && !negative { Err(NpyError::Overflow(i)) } else { Ok(value) }
                    })
                    .collect::<Result<_, _>>()?,
            ),
        })
    }
}

/// The dictionary in front of an array's bytes.
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`: these three keys in any order.
    fn parse(text: &str) -> Result<Self, NpyError> {
        let bad = NpyError::Header;
        let mut rest = text.trim().strip_prefix('{').ok_or(bad("no dictionary"))?.trim_start();
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        while !rest.starts_with('}') {
            let (key, after) = quoted(rest).ok_or(bad("no key"))?;
            let after = after.trim_start().strip_prefix(':').ok_or(bad("no colon after a key"))?.trim_start();
            let after = match key {
                "descr" => {
                    let (value, after) = quoted(after).ok_or_else(|| NpyError::Dtype("with named fields".into()))?;
                    descr = Some(value.to_owned());
                    after
                }
                "fortran_order" => {
                    let (value, after) = match (after.strip_prefix("False"), after.strip_prefix("True")) {
                        (Some(after), _) => (false, after),
                        (_, Some(after)) => (true, after),
                        _ => return Err(bad("fortran_order is neither True nor False")),
                    };
                    fortran_order = Some(value);
                    after
                }
                "shape" => {
                    let (dims, after) = after
                        .strip_prefix('(')
                        .and_then(|after| after.split_once(')'))
                        .ok_or(bad("shape is no tuple"))?;
                    let dims = dims.split(',').map(str::trim).filter(|dim| !dim.is_empty());
                    let dims: Vec<usize> = dims
                        .map(str::parse)
                        .collect::<Result<_, _>>()
                        .map_err(|_| bad("shape is no tuple of sizes"))?;
                    if dims.len() > MAX_DIMS {
                        return Err(bad("too many dimensions"));
                    }
                    shape = Some(dims);
                    after
                }
                _ => return Err(bad("an unknown key")),
            };
            let after = after.trim_start();
            rest = after.strip_prefix(',').unwrap_or(after).trim_start();
        }
        match (descr, fortran_order, shape) {
            (Some(descr), Some(fortran_order), Some(shape)) => Ok(Header { descr, fortran_order, shape }),
            _ => Err(bad("a key is missing")),
        }
    }
}

/// A quoted string at the start of `text`, and what follows it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text[1..].split_once(quote)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn parse(header: &str, data: &[u8]) -> Result<HostTensor, NpyError> {
        let bytes = npy(header, data);
        read_npy(&mut bytes.as_slice(), bytes.len() as u64, &mut { u64::MAX })
    }

    #[test]
    fn archives_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let arrays = [
            ("x", HostTensor::of([2, 3], vec![1.0, -2.5, 3e-20, 4.0, f32::MAX, 0.0])),
            ("labels", HostTensor::of([3], vec![-1, 0, i64::MAX])),
            ("scalar", HostTensor::of([], vec![7.0])),
            ("none", HostTensor::of([0, 4], Vec::<i64>::new())),
        ];
        write(&path, arrays.iter().map(|(name, array)| (*name, array))).unwrap();
        let read = read(&path).unwrap();
        for ((name, array), (read_name, read)) in arrays.iter().zip(&read) {
            assert_eq!((*name, array), (read_name.as_str(), read));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn headers_as_numpy_writes_them() {
        let mut bytes = Vec::new();
        write_npy(&mut bytes, &HostTensor::of([3], vec![0.0; 3])).unwrap();
        assert_eq!(&bytes[10..68], b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), } ");
        assert_eq!((bytes.len() - 12) % 64, 0);
        let one = 1.5f64.to_le_bytes();
        let array = parse("{'shape': (1, 1), 'fortran_order': False, \"descr\": '<f8'}\n", &one).unwrap();
        assert_eq!(array, HostTensor::of([1, 1], vec![1.5]));
        let array = parse("{'descr': '<f2', 'fortran_order': False, 'shape': (2,), }", &[0, 0x3e, 0, 0xfc]).unwrap();
        assert_eq!(array, HostTensor::of([2], vec![1.5, f32::NEG_INFINITY]));
        let array = parse("{'descr': '|b1', 'fortran_order': False, 'shape': (2,), }", &[0, 1]).unwrap();
        assert_eq!(array, HostTensor::of([2], vec![0i64, 1]));
        let array = parse("{'descr': '<i2', 'fortran_order': True, 'shape': (1,), }", &[0xfe, 0xff]).unwrap();
        assert_eq!(array, HostTensor::of([1], vec![-2i64]));
    }

    #[test]
    fn hostile_headers_are_errors() {
        let errors = [
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846975, 1024), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 1099511627776, 1099511627776), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': 1, }",
            "{'descr': '<f4', 'fortran_order': False, }",
            "{'descr': '<f4', 'fortran_order': 0, 'shape': (1,), }",
            "{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }",
            "{'descr': '<c8', 'fortran_order': False, 'shape': (2,), }",
            "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
            "{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)",
            "{'descr",
            "",
        ];
        for header in errors {
            assert!(parse(header, &[0; 4]).is_err(), "{header}");
        }
        for cut in 0..60 {
            let bytes = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", &[0; 4]);
            assert!(read_npy(&mut &bytes[..cut], cut as u64, &mut { u64::MAX }).is_err(), "cut at {cut}");
        }
        let u64_max = parse("{'descr': '<u8', 'fortran_order': False, 'shape': (1,), }", &[0xff; 8]);
        assert!(matches!(u64_max, Err(NpyError::Overflow(0))));
    }

    #[test]
    fn what_is_no_archive_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        assert!(matches!(read(&path), Err(NpzError::Io { .. })));
        fs::write(&path, b"not a zip").unwrap();
        assert!(matches!(read(&path), Err(NpzError::Archive { .. })));
        let array = HostTensor::of([64], vec![1.0; 64]);
        write(&path, [("x", &array)]).unwrap();
        let bytes = fs::read(&path).unwrap();
        for cut in [0, 40, 200, bytes.len() - 1] {
            fs::write(&path, &bytes[..cut]).unwrap();
            assert!(read(&path).is_err(), "cut at {cut}");
        }
        let mut flipped = bytes.clone();
        flipped[200] ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert!(read(&path).is_err(), "the checksum of an entry is checked");
    }
}
