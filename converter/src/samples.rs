//! Inputs for the verification: generated with respect for vocabularies and masks, or read from a `.npz`.

use std::collections::HashSet;
use std::path::Path;

use inlay_runtime::{HostData, LABELS, npz};

use crate::error::{Error, Result};
use crate::graph::{Dim, Graph, Port};
use crate::tensor::DType;

/// Examples in a generated batch.
const BATCH: usize = 3;

/// Sizes tried for dimensions that the model leaves open, until one fits it.
pub const OPEN_SIZES: [usize; 7] = [7, 16, 32, 128, 224, 1_024, 16_000];

/// Larger ones are for signals only.
const LARGEST_OF_ALL: usize = 224;

/// The values fed to an input.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Floats.
    F32(Vec<f32>),
    /// Integers and booleans, converted to the input's type when fed.
    I64(Vec<i64>),
}

/// An input.
#[derive(Clone, Debug, PartialEq)]
pub struct Feed {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub dims: Vec<usize>,
    /// Its values.
    pub values: Values,
}

/// An output, as f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub dims: Vec<usize>,
    /// Its values.
    pub values: Vec<f32>,
}

/// Inputs that a model may take.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// The inputs.
    pub feeds: Vec<Feed>,
    /// The same with every boolean turned, for outputs that are not finite: a mask may say what counts, or what does not.
    pub turned: Option<Vec<Feed>>,
}

impl From<Vec<Feed>> for Attempt {
    /// Inputs that are what they should be.
    fn from(feeds: Vec<Feed>) -> Self {
        Attempt { feeds, turned: None }
    }
}

/// Generated inputs, one after another until `graph` takes them.
pub fn attempts(graph: &Graph) -> Vec<Attempt> {
    let one = |open| {
        let feeds = generate(graph, open);
        Attempt { turned: with_turned_masks(graph, &feeds), feeds }
    };
    let mut attempts: Vec<Attempt> = open_sizes(graph).map(one).collect();
    attempts.dedup();
    attempts
}

/// The sizes to try for the open dimensions of `graph`: long ones only where each input is a signal, one open dimension that
/// comes last, so that no image or sequence becomes larger than any memory.
fn open_sizes(graph: &Graph) -> impl Iterator<Item = usize> + use<> {
    let is_signal = |port: &Port| {
        let dims = port.ty.dims.as_deref().unwrap_or_default();
        let known = |dim: &Dim| matches!(dim, Dim::Known(_));
        port.ty.dtype.is_float() && dims.iter().rev().skip(1).rev().skip(1).all(known)
    };
    let signals = fed(graph).all(is_signal);
    OPEN_SIZES.into_iter().filter(move |&size| signals || size <= LARGEST_OF_ALL)
}

fn with_turned_masks(graph: &Graph, feeds: &[Feed]) -> Option<Vec<Feed>> {
    let is_bool = |feed: &Feed| fed(graph).any(|p| p.name == feed.name && p.ty.dtype == DType::Bool);
    let turned = |feed: &Feed| match &feed.values {
        Values::I64(v) if is_bool(feed) => {
            Feed { values: Values::I64(v.iter().map(|v| 1 - v).collect()), ..feed.clone() }
        }
        _ => feed.clone(),
    };
    feeds.iter().any(is_bool).then(|| feeds.iter().map(turned).collect())
}

/// The inputs that have no default.
fn fed(graph: &Graph) -> impl Iterator<Item = &Port> {
    graph.inputs.iter().filter(|port| !graph.constants.contains_key(&port.name))
}

/// Generated values for every input of `graph`, the same on every call; `open` is the size of open dimensions.
fn generate(graph: &Graph, open: usize) -> Vec<Feed> {
    let mut random = Random(0x1A1A_5EED);
    fed(graph)
        .map(|port| {
            let dims = dims(port, open);
            let values = if port.ty.dtype.is_float() {
                Values::F32((0..dims.iter().product()).map(|_| random.normal()).collect())
            } else {
                Values::I64(match vocabulary(graph, &port.name) {
                    Some(rows) => (0..dims.iter().product::<usize>()).map(|_| random.below(rows) as i64).collect(),
                    None => mask(&dims),
                })
            };
            Feed { name: port.name.clone(), dims, values }
        })
        .collect()
}

fn dims(port: &Port, open: usize) -> Vec<usize> {
    let Some(dims) = &port.ty.dims else { return vec![BATCH, open] };
    let size = |(i, d): (usize, &Dim)| match d {
        Dim::Known(n) => *n,
        _ if i == 0 => BATCH,
        _ => open,
    };
    dims.iter().enumerate().map(size).collect()
}

/// Rows of ones, each shorter than the one before, padded with zeros on the right as tokenizers do.
fn mask(dims: &[usize]) -> Vec<i64> {
    let width = dims.last().copied().unwrap_or(1).max(1);
    let rows = dims.iter().product::<usize>() / width;
    let ones = |row: usize| (width - row * width / (rows + 1)).max(1);
    (0..rows).flat_map(|row| (0..width).map(move |i| i64::from(i < ones(row)))).collect()
}

/// The number of rows of the smallest table that `input` picks rows of.
fn vocabulary(graph: &Graph, input: &str) -> Option<usize> {
    const PASSED: &[&str] = &["Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Expand"];
    let mut seen: HashSet<&str> = HashSet::from([input]);
    let mut rows = None;
    for node in &graph.nodes {
        if node.is("Gather") && node.input(1).is_some_and(|i| seen.contains(i)) {
            let axis = node.int("axis").unwrap_or(0).max(0) as usize;
            let size = graph.constant_input(node, 0).and_then(|t| t.dims().get(axis).copied());
            rows = size.map(|n| rows.map_or(n, |r: usize| r.min(n))).or(rows);
        } else if PASSED.contains(&node.op_type.as_str()) && node.input(0).is_some_and(|i| seen.contains(i)) {
            seen.extend(node.outputs.iter().map(String::as_str));
        }
    }
    rows
}

/// The inputs of `graph` from the archive at `path`, which may hold `labels` too.
///
/// # Errors
/// If the file cannot be read, or an array is missing, is no input, or is of another type or shape.
pub fn read(graph: &Graph, path: &Path) -> Result<Vec<Feed>> {
    let refuse = |detail: String| Error::Samples { path: path.to_owned(), detail };
    let arrays = npz::read(path).map_err(|e| refuse(e.to_string()))?;
    let is_input = |name: &str| graph.inputs.iter().any(|port| port.name == name) || name == LABELS;
    if let Some((name, _)) = arrays.iter().find(|(name, _)| !is_input(name)) {
        let known: Vec<&str> = graph.inputs.iter().map(|port| port.name.as_str()).collect();
        return Err(refuse(format!("array {name:?} is no input of the model; its inputs: {}", known.join(", "))));
    }
    let mut feeds = Vec::new();
    for port in fed(graph) {
        let array = arrays.iter().find(|(name, _)| *name == port.name).map(|(_, a)| a);
        let array = array.ok_or_else(|| {
            let found: Vec<&str> = arrays.iter().map(|(n, _)| n.as_str()).collect();
            refuse(format!("no array {:?}; the file has: {}", port.name, found.join(", ")))
        })?;
        let values = match array.data() {
            HostData::F32(v) if port.ty.dtype.is_float() => Values::F32(v.clone()),
            HostData::I64(v) if !port.ty.dtype.is_float() => Values::I64(v.clone()),
            _ => {
                let expected = port.ty.dtype;
                return Err(refuse(format!(
                    "array {:?} is {:?}, the model takes {expected:?}",
                    port.name,
                    array.dtype()
                )));
            }
        };
        let dims = array.shape().to_vec();
        let fits = port.ty.dims.as_ref().is_none_or(|expected| {
            let same = |(e, d): (&Dim, &usize)| !matches!(e, Dim::Known(n) if n != d);
            expected.len() == dims.len() && expected.iter().zip(&dims).all(same)
        });
        if !fits || dims.contains(&0) {
            return Err(refuse(format!(
                "array {:?} has shape {dims:?}, the model takes [{}]",
                port.name,
                port.ty.dims.iter().flatten().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            )));
        }
        if let (Values::I64(v), Some(rows)) = (&values, vocabulary(graph, &port.name))
            && let Some(bad) = v.iter().find(|&&v| v >= rows as i64 || v < -(rows as i64))
        {
            return Err(refuse(format!("array {:?} holds {bad}, the table it picks from has {rows} rows", port.name)));
        }
        if matches!(&values, Values::F32(v) if v.iter().any(|v| !v.is_finite())) {
            return Err(refuse(format!("array {:?} holds a value that is not finite", port.name)));
        }
        feeds.push(Feed { name: port.name.clone(), dims, values });
    }
    Ok(feeds)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// Uniform in (0, 1].
    fn unit(&mut self) -> f32 {
        ((self.next() >> 40) + 1) as f32 / (1u64 << 24) as f32
    }

    /// Standard normal, by Box and Muller.
    fn normal(&mut self) -> f32 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f32::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Node, ValueType};
    use crate::tensor::Tensor;

    #[test]
    fn ids_stay_in_the_vocabulary_and_masks_are_padded() {
        let symbol = |s: &str| Dim::Symbol(s.into());
        let port = |name: &str| Port {
            name: name.into(),
            ty: ValueType { dtype: DType::I64, dims: Some(vec![symbol("batch"), symbol("seq")]) },
        };
        let mut g = Graph {
            inputs: vec![port("ids"), port("mask")],
            nodes: vec![
                Node::new("Cast", "c", &["ids"], "c"),
                Node::new("Gather", "g", &["table", "c"], "e"),
                Node::new("Cast", "m", &["mask"], "m"),
            ],
            ..Graph::default()
        };
        g.constants.insert("table".into(), Tensor::from_f32(&[5, 2], &[0.0; 10]));
        let feeds = generate(&g, 7);
        let Values::I64(ids) = &feeds[0].values else { panic!("ids are integers") };
        assert!(ids.iter().all(|&i| (0..5).contains(&i)) && ids.iter().any(|&i| i > 1));
        let Values::I64(mask) = &feeds[1].values else { panic!("masks are integers") };
        assert_eq!(feeds[1].dims, [3, 7]);
        assert_eq!(mask[..7], [1; 7]);
        assert_eq!(mask[14..], [1, 1, 1, 1, 0, 0, 0]);
        assert_eq!(feeds, generate(&g, 7));
        assert_eq!(attempts(&g)[0], feeds.clone().into());
        g.inputs[1].ty.dtype = DType::Bool;
        let turned = attempts(&g)[0].turned.clone().unwrap();
        let Values::I64(mask) = &turned[1].values else { panic!("masks are integers") };
        assert_eq!((&mask[14..], &turned[0]), (&[0, 0, 0, 0, 1, 1, 1][..], &feeds[0]));
    }

    #[test]
    fn only_signals_become_long() {
        let open = || Dim::Symbol("n".into());
        let largest = |dtype, dims: Vec<Dim>| {
            let inputs = vec![Port { name: "x".into(), ty: ValueType { dtype, dims: Some(dims) } }];
            open_sizes(&Graph { inputs, ..Graph::default() }).max()
        };
        assert_eq!(largest(DType::F32, vec![open(), open()]), Some(16_000));
        assert_eq!(largest(DType::F32, vec![open(), Dim::Known(6), open()]), Some(16_000));
        assert_eq!(largest(DType::F32, vec![open(), Dim::Known(3), open(), open()]), Some(224));
        assert_eq!(largest(DType::F32, vec![open(), open(), Dim::Known(8)]), Some(224));
        assert_eq!(largest(DType::I64, vec![open(), open()]), Some(224));
    }
}
