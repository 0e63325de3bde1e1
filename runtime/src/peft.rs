//! LoRA and (IA)3 adapters of the Python library PEFT: a folder with `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Reading leaves nothing over in silence: a setting that changes what the adapter computes, a tensor that belongs to no
//! insertion point and a module that the base does not have are errors. PEFT stores A as `[r, d_in]` and B as `[d_out, r]`;
//! here they come in the exported file's layout, `[d_in, r]` and `[r, d_out]`. A convolution's have one layout in both.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use half::{bf16, f16};
use inlay_format::points::{LORA, Point, PointOp, Shape};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

mod config;
mod error;
mod ia3;
mod matching;

pub use error::PeftError;
pub use ia3::{Ia3Factors, read_ia3, write_ia3};
pub use matching::Prefix;

use config::Config;

/// Name of the settings in a PEFT folder.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the tensors in a PEFT folder.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";

const MAX_CONFIG_BYTES: u64 = 16 << 20;
const MAX_TENSORS_BYTES: u64 = 1 << 30;
/// What PEFT puts before the module path in every key.
const KEY_PREFIX: &str = "base_model.model.";
const A_SUFFIX: &str = ".lora_A.weight";
const B_SUFFIX: &str = ".lora_B.weight";

/// A LoRA adapter as PEFT saves it, in the layout of the exported file.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftLora {
    /// Rank `r`, the same at every point.
    pub rank: u16,
    /// `lora_alpha`.
    pub alpha: f32,
    /// `use_rslora`: whether `scaling` is alpha / sqrt(r) instead of alpha / r.
    pub rslora: bool,
    /// The tensors, in alphabetical order of their paths.
    pub points: Vec<LoraTensors>,
}

/// A and B of one insertion point, in the layout of the exported file, unscaled.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraTensors {
    /// Path of the insertion point.
    pub path: String,
    /// `<path>.lora_A`: `[d_in, r]`, or `[r, C_in, k..]`.
    pub a: Vec<f32>,
    /// `<path>.lora_B`: `[r, d_out]`, or `[C_out, r, 1..]`.
    pub b: Vec<f32>,
}

/// Values of the initializer of that name, for [`Point::row_scale`].
pub type RowScale<'a> = &'a dyn Fn(&str) -> Option<Vec<f32>>;

/// Reads the PEFT folder `folder` for a base with these insertion points.
///
/// PEFT's module paths must be the points' paths, exactly or under one common prefix, which is returned. Points without
/// tensors stay without an adapter. Where a normalization was folded into the base (`row_scale`), B's outputs are
/// multiplied by its factor.
///
/// # Errors
/// [`PeftError`] when the folder cannot be read, or holds what cannot be applied to the points as it is meant.
pub fn read<S: AsRef<str>>(
    folder: &Path,
    points: &[Point<S>],
    row_scale: RowScale<'_>,
) -> Result<(PeftLora, Prefix), PeftError> {
    let config = Config::parse(&read_file(folder, CONFIG_FILE, MAX_CONFIG_BYTES)?)?;
    let bytes = read_file(folder, TENSORS_FILE, MAX_TENSORS_BYTES)?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(PeftError::Tensors)?;
    let modules = modules(&tensors)?;

    let offered: BTreeMap<&str, &Point<S>> =
        points.iter().filter(|point| point.offers(LORA)).map(|point| (point.path.as_ref(), point)).collect();
    let paths: Vec<&str> = offered.keys().copied().collect();
    let names: Vec<&str> = modules.keys().copied().collect();
    let prefix = matching::common_prefix(&names, &paths)?;

    let rank = usize::from(config.rank);
    let mut read = Vec::with_capacity(modules.len());
    for (module, (key_a, a, key_b, b)) in modules {
        let path = prefix.point_of(module).expect("the prefix matches every module");
        let point = offered[path.as_str()];
        let mut a = values(key_a, &a, &peft_a_shape(point, rank))?;
        let mut b = values(key_b, &b, &peft_b_shape(point, rank))?;
        scale_outputs(point, row_scale, &mut b, |b, factor| b * factor)?;
        if point.op != PointOp::Conv {
            a = transposed(&a, rank, point.d_in as usize);
            b = transposed(&b, point.d_out as usize, rank);
        }
        read.push(LoraTensors { path, a, b });
    }
    read.sort_unstable_by(|x, y| x.path.cmp(&y.path));
    Ok((PeftLora { rank: config.rank, alpha: config.alpha, rslora: config.rslora, points: read }, prefix))
}

/// Writes `adapter` as a PEFT folder that [`read`] and PEFT itself can load, creating `folder` if it is not there.
///
/// Module paths are the points' paths. Where a normalization was folded into the base, B's outputs are divided by its
/// factor.
///
/// # Errors
/// [`PeftError`] when a point of the adapter is not among `points` or has tensors of other sizes there, or a file cannot be
/// written. Existing files are replaced whole or left as they were.
pub fn write<S: AsRef<str>>(
    folder: &Path,
    adapter: &PeftLora,
    points: &[Point<S>],
    row_scale: RowScale<'_>,
) -> Result<(), PeftError> {
    let by_path: HashMap<&str, &Point<S>> = points.iter().map(|point| (point.path.as_ref(), point)).collect();
    let rank = usize::from(adapter.rank);
    let mut tensors: BTreeMap<String, (Shape, Vec<u8>)> = BTreeMap::new();
    for LoraTensors { path, a, b } in &adapter.points {
        let point = *by_path.get(path.as_str()).ok_or_else(|| PeftError::UnknownPoint { path: path.clone() })?;
        let (a_shape, b_shape) = (peft_a_shape(point, rank), peft_b_shape(point, rank));
        for (values, shape) in [(a, &a_shape), (b, &b_shape)] {
            let expected = shape.iter().product::<usize>();
            if values.len() != expected {
                return Err(PeftError::Elements { path: path.clone(), found: values.len(), expected });
            }
        }
        let (a, mut b) = match point.op {
            PointOp::Linear | PointOp::Embedding => {
                (transposed(a, point.d_in as usize, rank), transposed(b, rank, point.d_out as usize))
            }
            PointOp::Conv => (a.clone(), b.clone()),
        };
        scale_outputs(point, row_scale, &mut b, |b, factor| b / factor)?;
        for (suffix, shape, values) in [(A_SUFFIX, a_shape, a), (B_SUFFIX, b_shape, b)] {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensors.insert(format!("{KEY_PREFIX}{path}{suffix}"), (shape, bytes));
        }
    }
    save(folder, &tensors, &config::written(adapter))
}

/// Writes both files of a folder, each whole.
fn save(folder: &Path, tensors: &BTreeMap<String, (Shape, Vec<u8>)>, config: &str) -> Result<(), PeftError> {
    let views = tensors.iter().map(|(key, (shape, bytes))| {
        (key.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("the bytes were made for the shape"))
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let tensors = safetensors::serialize(views, Some(format)).map_err(PeftError::Tensors)?;
    fs::create_dir_all(folder).map_err(PeftError::io("create", folder))?;
    write_file(folder, TENSORS_FILE, &tensors)?;
    write_file(folder, CONFIG_FILE, config.as_bytes())
}

/// `peft_type` of the PEFT folder `folder`, such as `LORA` or `IA3`.
///
/// # Errors
/// [`PeftError`] when the folder cannot be read, or does not say.
pub fn peft_type(folder: &Path) -> Result<String, PeftError> {
    config::peft_type(&read_file(folder, CONFIG_FILE, MAX_CONFIG_BYTES)?)
}

/// A key and its tensor, for A and for B.
type Pair<'a> = (&'a str, TensorView<'a>, &'a str, TensorView<'a>);

/// The tensors by module path.
fn modules<'a>(tensors: &'a SafeTensors<'a>) -> Result<BTreeMap<&'a str, Pair<'a>>, PeftError> {
    let (mut a, mut b, mut other) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for (key, view) in tensors.iter() {
        let module = key.strip_prefix(KEY_PREFIX).unwrap_or(key);
        let replaced = if let Some(module) = module.strip_suffix(A_SUFFIX) {
            a.insert(module, (key, view))
        } else if let Some(module) = module.strip_suffix(B_SUFFIX) {
            b.insert(module, (key, view))
        } else {
            other.push(key.to_owned());
            None
        };
        if let Some((first, _)) = replaced {
            return Err(PeftError::SameModule { first: first.into(), second: key.into() });
        }
    }
    if !other.is_empty() {
        other.sort_unstable();
        return Err(PeftError::OtherTensors { keys: other });
    }
    let alone = |module: &str, has: &'static str, lacks: &'static str| PeftError::HalfAModule {
        module: module.to_owned(),
        has,
        lacks,
    };
    let mut pairs = BTreeMap::new();
    for (module, (key_a, view_a)) in a {
        let (key_b, view_b) = b.remove(module).ok_or_else(|| alone(module, "lora_A", "lora_B"))?;
        pairs.insert(module, (key_a, view_a, key_b, view_b));
    }
    match b.keys().next() {
        Some(module) => Err(alone(module, "lora_B", "lora_A")),
        None if pairs.is_empty() => Err(PeftError::Empty),
        None => Ok(pairs),
    }
}

fn values(key: &str, view: &TensorView<'_>, expected: &[usize]) -> Result<Vec<f32>, PeftError> {
    if view.shape() != expected {
        let (found, expected) = (view.shape().to_vec(), expected.to_vec());
        return Err(PeftError::Shape { key: key.into(), found, expected });
    }
    let data = view.data();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Dtype::F16 => data.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::BF16 => data.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        dtype => return Err(PeftError::Dtype { key: key.into(), found: format!("{dtype:?}") }),
    };
    if values.iter().all(|value| value.is_finite()) {
        Ok(values)
    } else {
        Err(PeftError::NotFinite { key: key.into() })
    }
}

/// Applies `scale` to B `[d_out, ..]`, output by output, where the point has a `row_scale`.
fn scale_outputs<S: AsRef<str>>(
    point: &Point<S>,
    row_scale: RowScale<'_>,
    b: &mut [f32],
    scale: impl Fn(f32, f32) -> f32,
) -> Result<(), PeftError> {
    let Some(name) = point.row_scale.as_ref().map(AsRef::as_ref) else { return Ok(()) };
    let refused = |reason| PeftError::RowScale { path: point.path.as_ref().into(), name: name.into(), reason };
    let factors = row_scale(name).ok_or_else(|| refused("is not in the base"))?;
    if factors.len() != point.d_out as usize {
        return Err(refused("has another length than the point has outputs"));
    }
    for (row, factor) in b.chunks_exact_mut((b.len() / factors.len().max(1)).max(1)).zip(factors) {
        for b in row {
            *b = scale(*b, factor);
            if !b.is_finite() {
                return Err(refused("has a factor for which B has no finite value"));
            }
        }
    }
    Ok(())
}

/// PEFT's shape of A: `[r, d_in]` or `[r, C_in, k..]`.
fn peft_a_shape<S: AsRef<str>>(point: &Point<S>, rank: usize) -> Shape {
    reversed_if_linear(point, point.lora_a_shape(rank))
}

/// PEFT's shape of B: `[d_out, r]` or `[C_out, r, 1..]`.
fn peft_b_shape<S: AsRef<str>>(point: &Point<S>, rank: usize) -> Shape {
    reversed_if_linear(point, point.lora_b_shape(rank))
}

fn reversed_if_linear<S>(point: &Point<S>, mut shape: Shape) -> Shape {
    if point.op != PointOp::Conv {
        shape.reverse();
    }
    shape
}

/// `[rows, columns]` as `[columns, rows]`.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

fn read_file(folder: &Path, name: &'static str, limit: u64) -> Result<Vec<u8>, PeftError> {
    let path = folder.join(name);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(PeftError::NotAFolder { folder: folder.into(), missing: name });
        }
        file => file.map_err(PeftError::io("open", &path))?,
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(PeftError::io("read", &path))?;
    if bytes.len() as u64 > limit { Err(PeftError::TooLarge { path, limit }) } else { Ok(bytes) }
}

fn write_file(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), PeftError> {
    let path = folder.join(name);
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(io::Error::from)
    });
    written.map(drop).map_err(PeftError::io("write", &path))
}

impl fmt::Display for PeftLora {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rslora = if self.rslora { ", rsLoRA" } else { "" };
        write!(f, "LoRA, rank {}, alpha {}{rslora}, at {} points", self.rank, self.alpha, self.points.len())
    }
}

#[cfg(test)]
mod tests;
