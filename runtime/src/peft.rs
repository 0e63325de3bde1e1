//! LoRA and (IA)3 adapters of the Python library PEFT: a folder with `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Reading leaves nothing over in silence: a setting that changes what the adapter computes, a tensor that belongs to no
//! insertion point and a module that the base does not have are errors. PEFT stores A as `[r, d_in]` and B as `[d_out, r]`;
//! here they come in the exported file's layout, `[d_in, r]` and `[r, d_out]`. A convolution's have one layout in both. Lookups are
//! stored as linears are, under other names.

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
/// What follows the module path in the keys of A and B: of linears and convolutions, and of lookups.
const SUFFIXES: [[&str; 2]; 2] = [[".lora_A.weight", ".lora_B.weight"], [".lora_embedding_A", ".lora_embedding_B"]];

/// A LoRA adapter as PEFT saves it, in the layout of the exported file.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftLora {
    /// `use_rslora`: whether `scaling` is alpha / sqrt(r) instead of alpha / r.
    pub rslora: bool,
    /// The tensors, in alphabetical order of their paths.
    pub points: Vec<LoraTensors>,
    /// Parameters of whole modules that take the place of the base's (`modules_to_save`).
    pub saved: Vec<SavedTensor>,
}

/// A parameter of a module that PEFT saves whole, in PyTorch's layout.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedTensor {
    /// Its name in the base, such as `classifier.weight`.
    pub name: String,
    /// Its shape: a linear's weight is `[d_out, d_in]`.
    pub shape: Vec<usize>,
    /// Its values.
    pub values: Vec<f32>,
}

/// A and B of one insertion point, in the layout of the exported file, unscaled.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraTensors {
    /// Path of the insertion point.
    pub path: String,
    /// Rank `r` here: `r`, or what `rank_pattern` says.
    pub rank: u16,
    /// `lora_alpha`, or what `alpha_pattern` says.
    pub alpha: f32,
    /// `<path>.lora_A`: `[d_in, r]`, or `[r, C_in, k..]`.
    pub a: Vec<f32>,
    /// `<path>.lora_B`: `[r, d_out]`, or `[C_out, r, 1..]`.
    pub b: Vec<f32>,
}

/// Values of the initializer of that name, for [`Point::row_scale`] and [`Point::input_scale`].
pub type Factors<'a> = &'a dyn Fn(&str) -> Option<Vec<f32>>;

/// Reads the PEFT folder `folder` for a base with these insertion points.
///
/// PEFT's module paths must be the points' paths, exactly or under one common prefix, which is returned. Points without
/// tensors stay without an adapter. Where a normalization or calibration was folded into the base, A's inputs and B's outputs
/// are multiplied by its `factors`.
///
/// # Errors
/// [`PeftError`] when the folder cannot be read, or holds what cannot be applied to the points as it is meant.
pub fn read<S: AsRef<str>>(
    folder: &Path,
    points: &[Point<S>],
    factors: Factors<'_>,
) -> Result<(PeftLora, Prefix), PeftError> {
    let config = Config::parse(&read_file(folder, CONFIG_FILE, MAX_CONFIG_BYTES)?)?;
    let bytes = read_file(folder, TENSORS_FILE, MAX_TENSORS_BYTES)?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(PeftError::Tensors)?;
    let (modules, others) = modules(&tensors)?;
    if !others.is_empty() && config.saved.is_empty() {
        return Err(PeftError::OtherTensors { keys: others.into_iter().map(|(key, ..)| key.to_owned()).collect() });
    }

    let offered: BTreeMap<&str, &Point<S>> =
        points.iter().filter(|point| point.offers(LORA)).map(|point| (point.path.as_ref(), point)).collect();
    let paths: Vec<&str> = offered.keys().copied().collect();
    let names: Vec<&str> = modules.keys().copied().collect();
    let prefix = matching::common_prefix(&names, &paths)?;

    let mut read = Vec::with_capacity(modules.len());
    for (module, Pair { a: (key_a, a), b: (key_b, b), lookup }) in modules {
        let path = prefix.point_of(module).expect("the prefix matches every module");
        let point = offered[path.as_str()];
        if lookup != (point.op == PointOp::Embedding) {
            return Err(PeftError::OtherOp { path, op: point.op });
        }
        let (of_module, alpha) = config.at(module, a.shape().first().copied().unwrap_or_default())?;
        let rank = usize::from(of_module);
        let mut a = values(key_a, &a, &peft_a_shape(point, rank))?;
        let mut b = values(key_b, &b, &peft_b_shape(point, rank))?;
        scale_inputs(point, factors, &mut a, |a, factor| a * factor)?;
        scale_outputs(point, factors, &mut b, |b, factor| b * factor)?;
        if point.op != PointOp::Conv {
            a = transposed(&a, rank, point.d_in as usize);
            b = transposed(&b, point.d_out as usize, rank);
        }
        read.push(LoraTensors { path, rank: of_module, alpha, a, b });
    }
    read.sort_unstable_by(|x, y| x.path.cmp(&y.path));
    let saved = others.into_iter().map(|(key, name, view)| saved(key, name, &view, &config, &prefix));
    Ok((PeftLora { rslora: config.rslora, points: read, saved: saved.collect::<Result<_, _>>()? }, prefix))
}

/// A parameter of a module that PEFT saved whole.
fn saved(
    key: &str,
    name: &str,
    view: &TensorView<'_>,
    config: &Config,
    prefix: &Prefix,
) -> Result<SavedTensor, PeftError> {
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    // As PEFT matches: the ends of paths, of the module or of what it is in.
    let is_under = |listed: &String| format!("{module}.").contains(&format!("{listed}."));
    if !config.saved.iter().any(is_under) {
        return Err(PeftError::OtherTensors { keys: vec![key.to_owned()] });
    }
    let refused = |reason| PeftError::Saved { name: name.to_owned(), reason };
    if let (true, &[rows, columns]) = (config.fan_in_fan_out && rows_are_columns(view), view.shape()) {
        debug_assert_eq!(rows, columns);
        return Err(refused(
            "is square, and with fan_in_fan_out it may be transposed; save a module of the Linear kind",
        ));
    }
    let name = prefix.point_of(name).ok_or_else(|| refused("lacks the prefix of the other modules"))?;
    Ok(SavedTensor { name, shape: view.shape().to_vec(), values: values(key, view, view.shape())? })
}

fn rows_are_columns(view: &TensorView<'_>) -> bool {
    matches!(view.shape(), [rows, columns] if rows == columns)
}

/// Writes `adapter` as a PEFT folder that [`read`] and PEFT itself can load, creating `folder` if it is not there.
///
/// Module paths are the points' paths. Where a normalization or calibration was folded into the base, A's inputs and B's outputs
/// are divided by its `factors`.
///
/// # Errors
/// [`PeftError`] when a point of the adapter is not among `points` or has tensors of other sizes there, or a file cannot be
/// written. Existing files are replaced whole or left as they were.
pub fn write<S: AsRef<str>>(
    folder: &Path,
    adapter: &PeftLora,
    points: &[Point<S>],
    factors: Factors<'_>,
) -> Result<(), PeftError> {
    let by_path: HashMap<&str, &Point<S>> = points.iter().map(|point| (point.path.as_ref(), point)).collect();
    let mut tensors: Tensors = BTreeMap::new();
    for LoraTensors { path, rank, a, b, .. } in &adapter.points {
        let rank = usize::from(*rank);
        let point = *by_path.get(path.as_str()).ok_or_else(|| PeftError::UnknownPoint { path: path.clone() })?;
        let (a_shape, b_shape) = (peft_a_shape(point, rank), peft_b_shape(point, rank));
        for (values, shape) in [(a, &a_shape), (b, &b_shape)] {
            let expected = shape.iter().product::<usize>();
            if values.len() != expected {
                return Err(PeftError::Elements { path: path.clone(), found: values.len(), expected });
            }
        }
        let (mut a, mut b) = match point.op {
            PointOp::Linear | PointOp::Embedding => {
                (transposed(a, point.d_in as usize, rank), transposed(b, rank, point.d_out as usize))
            }
            PointOp::Conv => (a.clone(), b.clone()),
        };
        scale_inputs(point, factors, &mut a, |a, factor| a / factor)?;
        scale_outputs(point, factors, &mut b, |b, factor| b / factor)?;
        let suffixes = SUFFIXES[usize::from(point.op == PointOp::Embedding)];
        for (suffix, shape, values) in [(suffixes[0], a_shape, a), (suffixes[1], b_shape, b)] {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensors.insert(format!("{KEY_PREFIX}{path}{suffix}"), (shape.to_vec(), bytes));
        }
    }
    for SavedTensor { name, shape, values } in &adapter.saved {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.insert(format!("{KEY_PREFIX}{name}"), (shape.clone(), bytes));
    }
    save(folder, &tensors, &config::written(adapter))
}

/// Writes both files of a folder, each whole.
fn save(folder: &Path, tensors: &Tensors, config: &str) -> Result<(), PeftError> {
    let views = tensors.iter().map(|(key, (shape, bytes))| {
        (key.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("the bytes were made for the shape"))
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

/// Shape and bytes by key.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

/// A and B of a module, each with its key.
struct Pair<'a> {
    a: (&'a str, TensorView<'a>),
    b: (&'a str, TensorView<'a>),
    /// Whether the keys are those of a lookup.
    lookup: bool,
}

/// Key, name and tensor of what is not LoRA's.
type Other<'a> = (&'a str, &'a str, TensorView<'a>);

/// The tensors by module path, and those that are not LoRA's, in alphabetical order.
fn modules<'a>(tensors: &'a SafeTensors<'a>) -> Result<(BTreeMap<&'a str, Pair<'a>>, Vec<Other<'a>>), PeftError> {
    let (mut a, mut b, mut others) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for (key, view) in tensors.iter() {
        let name = key.strip_prefix(KEY_PREFIX).unwrap_or(key);
        let of = |half: usize| {
            let suffix = |lookup: usize| Some((name.strip_suffix(SUFFIXES[lookup][half])?, lookup == 1));
            suffix(0).or_else(|| suffix(1))
        };
        let replaced = if let Some((module, lookup)) = of(0) {
            a.insert(module, (key, view, lookup))
        } else if let Some((module, lookup)) = of(1) {
            b.insert(module, (key, view, lookup))
        } else {
            others.push((key, name, view));
            None
        };
        if let Some((first, ..)) = replaced {
            return Err(PeftError::SameModule { first: first.into(), second: key.into() });
        }
    }
    others.sort_unstable_by_key(|(key, ..)| *key);
    let alone = |module: &str, has: &'static str, lacks: &'static str| PeftError::HalfAModule {
        module: module.to_owned(),
        has,
        lacks,
    };
    let mut pairs = BTreeMap::new();
    for (module, (key_a, view_a, lookup)) in a {
        let of_b = b.remove(module).filter(|(.., of_b)| *of_b == lookup);
        let (key_b, view_b, _) = of_b.ok_or_else(|| alone(module, "lora_A", "lora_B"))?;
        pairs.insert(module, Pair { a: (key_a, view_a), b: (key_b, view_b), lookup });
    }
    match b.keys().next() {
        Some(module) => Err(alone(module, "lora_B", "lora_A")),
        None if pairs.is_empty() && others.is_empty() => Err(PeftError::Empty),
        None => Ok((pairs, others)),
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

/// Applies `scale` to A `[r, d_in]`, input by input, where the point has an `input_scale`.
fn scale_inputs<S: AsRef<str>>(
    point: &Point<S>,
    factors: Factors<'_>,
    a: &mut [f32],
    scale: impl Fn(f32, f32) -> f32,
) -> Result<(), PeftError> {
    let Some(folded) = Folded::find(point, &point.input_scale, factors, point.d_in)? else { return Ok(()) };
    for (i, a) in a.iter_mut().enumerate() {
        *a = folded.finite(scale(*a, folded.factors[i % folded.factors.len()]))?;
    }
    Ok(())
}

/// Applies `scale` to B `[d_out, ..]`, output by output, where the point has a `row_scale`.
fn scale_outputs<S: AsRef<str>>(
    point: &Point<S>,
    factors: Factors<'_>,
    b: &mut [f32],
    scale: impl Fn(f32, f32) -> f32,
) -> Result<(), PeftError> {
    let Some(folded) = Folded::find(point, &point.row_scale, factors, point.d_out)? else { return Ok(()) };
    let row = (b.len() / folded.factors.len()).max(1);
    for (i, b) in b.iter_mut().enumerate() {
        *b = folded.finite(scale(*b, folded.factors[i / row]))?;
    }
    Ok(())
}

/// Factors that were folded into the weight of a point.
struct Folded<'a> {
    path: &'a str,
    name: &'a str,
    factors: Vec<f32>,
}

impl<'a> Folded<'a> {
    /// Those that the point names `name`, if it does, one for each of `count` channels.
    fn find<S: AsRef<str>>(
        point: &'a Point<S>,
        name: &'a Option<S>,
        factors: Factors<'_>,
        count: u32,
    ) -> Result<Option<Self>, PeftError> {
        let Some(name) = name.as_ref().map(AsRef::as_ref) else { return Ok(None) };
        let mut folded = Folded { path: point.path.as_ref(), name, factors: Vec::new() };
        folded.factors = factors(name).ok_or_else(|| folded.refused("is not in the base"))?;
        if folded.factors.len() != count as usize {
            return Err(folded.refused("has another length than the point has channels"));
        }
        Ok(Some(folded))
    }

    fn finite(&self, value: f32) -> Result<f32, PeftError> {
        let refused = || self.refused("has a factor for which LoRA has no finite value");
        if value.is_finite() { Ok(value) } else { Err(refused()) }
    }

    fn refused(&self, reason: &'static str) -> PeftError {
        PeftError::Factor { path: self.path.into(), name: self.name.into(), reason }
    }
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
        let ranks = || self.points.iter().map(|point| point.rank);
        let (least, most) = (ranks().min().unwrap_or_default(), ranks().max().unwrap_or_default());
        let rank = if least == most { format!("rank {most}") } else { format!("ranks {least} to {most}") };
        write!(f, "LoRA, {rank}{rslora}, at {} points", self.points.len())?;
        if self.saved.is_empty() { Ok(()) } else { write!(f, ", and {} tensors of whole modules", self.saved.len()) }
    }
}

#[cfg(test)]
mod tests;
