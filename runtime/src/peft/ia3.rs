//! (IA)3 adapters of PEFT: one `ia3_l` a module, `[d_out, 1]`, or `[1, d_in]` in a feed-forward module.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use inlay_format::kinds::IA3;
use inlay_format::points::Point;
use safetensors::SafeTensors;

use super::{
    CONFIG_FILE, KEY_PREFIX, MAX_CONFIG_BYTES, MAX_TENSORS_BYTES, PeftError, Prefix, TENSORS_FILE, config, matching,
    read_file, save, values,
};

const SUFFIX: &str = ".ia3_l";

/// The factors of one insertion point.
#[derive(Clone, Debug, PartialEq)]
pub struct Ia3Factors {
    /// Path of the insertion point.
    pub path: String,
    /// `<path>.ia3_l`: `[d_out]`, or `[d_in]` at a feed-forward point.
    pub l: Vec<f32>,
}

/// Reads the (IA)3 adapter in the PEFT folder `folder` for a base with these insertion points.
///
/// # Errors
/// [`PeftError`] when the folder cannot be read, or holds what cannot be applied to the points as it is meant.
pub fn read_ia3<S: AsRef<str>>(folder: &Path, points: &[Point<S>]) -> Result<(Vec<Ia3Factors>, Prefix), PeftError> {
    config::expect_ia3(&read_file(folder, CONFIG_FILE, MAX_CONFIG_BYTES)?)?;
    let bytes = read_file(folder, TENSORS_FILE, MAX_TENSORS_BYTES)?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(PeftError::Tensors)?;
    let (mut modules, mut other) = (BTreeMap::new(), Vec::new());
    for (key, view) in tensors.iter() {
        match key.strip_prefix(KEY_PREFIX).unwrap_or(key).strip_suffix(SUFFIX) {
            None => other.push(key.to_owned()),
            Some(module) => {
                if let Some((first, _)) = modules.insert(module, (key, view)) {
                    return Err(PeftError::SameModule { first: first.to_owned(), second: key.to_owned() });
                }
            }
        }
    }
    if !other.is_empty() {
        other.sort_unstable();
        return Err(PeftError::OtherTensors { keys: other });
    }
    if modules.is_empty() {
        return Err(PeftError::Empty);
    }
    let offered: BTreeMap<&str, &Point<S>> =
        points.iter().filter(|point| point.offers(IA3)).map(|point| (point.path.as_ref(), point)).collect();
    let names: Vec<&str> = modules.keys().copied().collect();
    let prefix = matching::common_prefix(&names, &offered.keys().copied().collect::<Vec<_>>())?;
    let mut read = Vec::with_capacity(modules.len());
    for (module, (key, view)) in modules {
        let path = prefix.point_of(module).expect("the prefix matches every module");
        let point = offered[path.as_str()];
        let (shape, otherwise) = (shape(point, point.feedforward), shape(point, !point.feedforward));
        if view.shape() == otherwise && shape != otherwise {
            return Err(PeftError::Feedforward { path, expected: point.feedforward });
        }
        read.push(Ia3Factors { l: values(key, &view, &shape)?, path });
    }
    read.sort_unstable_by(|x, y| x.path.cmp(&y.path));
    Ok((read, prefix))
}

/// Writes `adapter` as a PEFT folder that [`read_ia3`] and PEFT itself can load, creating `folder` if it is not there.
///
/// # Errors
/// [`PeftError`] when a point of the adapter is not among `points` or has another size there, or a file cannot be written.
pub fn write_ia3<S: AsRef<str>>(folder: &Path, adapter: &[Ia3Factors], points: &[Point<S>]) -> Result<(), PeftError> {
    let by_path: HashMap<&str, &Point<S>> = points.iter().map(|point| (point.path.as_ref(), point)).collect();
    let mut tensors = BTreeMap::new();
    let mut feedforward = Vec::new();
    for Ia3Factors { path, l } in adapter {
        let point = *by_path.get(path.as_str()).ok_or_else(|| PeftError::UnknownPoint { path: path.clone() })?;
        let shape = shape(point, point.feedforward);
        let expected = shape.iter().product();
        if l.len() != expected {
            return Err(PeftError::Elements { path: path.clone(), found: l.len(), expected });
        }
        if point.feedforward {
            feedforward.push(path.as_str());
        }
        let bytes = l.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.insert(format!("{KEY_PREFIX}{path}{SUFFIX}"), (shape.to_vec(), bytes));
    }
    let targets: Vec<&str> = adapter.iter().map(|factors| factors.path.as_str()).collect();
    save(folder, &tensors, &config::written_ia3(&targets, &feedforward))
}

fn shape<S>(point: &Point<S>, feedforward: bool) -> [usize; 2] {
    if feedforward { [1, point.d_in as usize] } else { [point.d_out as usize, 1] }
}
