//! Data sets: a person's samples, checked as a whole against a base before anything is computed.

use std::path::Path;

use crate::base::{Base, Port};
use crate::graph::{DType, Graph, HostData, HostTensor, ValueId};
use crate::npz::{self, NpzError};
use crate::onnx::Dim;
pub use crate::plan::{IGNORED_LABEL, LABELS};
use crate::random::Random;

/// Samples for every input of a base, with or without labels.
///
/// Every array has one row a sample. Floats are finite, integers in the range that the model takes.
///
/// ```
/// use inlay_runtime::{Base, Dataset, HostTensor, Verify};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let base = Base::open("tests/data/tiny", Verify::Full)?;
/// let x = HostTensor::new([2, 3], vec![0.5, -1.0, 2.0, 1.0, 0.0, -0.5]).expect("2 x 3 values");
/// let labels = HostTensor::new([2], vec![0i64, 1]).expect("2 values");
/// let data = Dataset::new(&base, [("x".to_owned(), x), ("labels".to_owned(), labels)])?;
/// assert_eq!(data.len(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    samples: usize,
    inputs: Vec<(String, HostTensor)>,
    labels: Option<HostTensor>,
}

/// Why arrays are not a data set for a base.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file cannot be read.
    #[error(transparent)]
    Npz(#[from] NpzError),
    /// An array is missing.
    #[error("the data has no array \"{name}\"; it has: {found}")]
    Missing {
        /// The array.
        name: String,
        /// The arrays that there are.
        found: String,
    },
    /// An array that the model does not take.
    #[error("the data has an array \"{name}\" that the model does not take; it takes: {expected}")]
    Extra {
        /// The array.
        name: String,
        /// What the model takes.
        expected: String,
    },
    /// An array has another shape than the model takes.
    #[error("array \"{name}\" has shape {found:?}, expected {expected}")]
    Shape {
        /// The array.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that fits.
        expected: String,
    },
    /// An array has another number of samples than the first one.
    #[error("array \"{name}\" has {found} samples, \"{other}\" has {expected}")]
    Samples {
        /// The array.
        name: String,
        /// Its samples.
        found: usize,
        /// The first array.
        other: String,
        /// The first array's samples.
        expected: usize,
    },
    /// An array has another type than the model takes.
    #[error("array \"{name}\" holds {found}, expected {expected}; convert it with .astype")]
    Type {
        /// The array.
        name: String,
        /// Its type.
        found: DType,
        /// The type that fits.
        expected: DType,
    },
    /// A value is NaN or infinite.
    #[error("array \"{name}\", sample {sample}: a value is {value}; remove or repair the sample")]
    NotFinite {
        /// The array.
        name: String,
        /// The sample, from 0.
        sample: usize,
        /// The value.
        value: f32,
    },
    /// An integer is out of range.
    #[error("array \"{name}\", sample {sample}: {value} is out of range, expected 0 to {last}")]
    Range {
        /// The array.
        name: String,
        /// The sample, from 0.
        sample: usize,
        /// The value.
        value: i64,
        /// The largest value that is in range.
        last: i64,
    },
    /// There is not one sample.
    #[error("the data has no samples")]
    Empty,
    /// The model takes an input that is not one row a sample.
    #[error("input \"{name}\" of the model has no dimension for samples; export the model with a batch dimension")]
    NoBatch {
        /// The input.
        name: String,
    },
    /// Labels are needed and not there.
    #[error("the data has no array \"{LABELS}\"; add one row a sample of what the model should answer")]
    NoLabels,
    /// No label counts.
    #[error("every label is {IGNORED_LABEL}, which means that it does not count; label what the model should answer")]
    AllIgnored,
    /// There are too few samples to hold some back.
    #[error("{samples} samples cannot be split into some to train on and some to hold back; give more data")]
    TooFew {
        /// The samples.
        samples: usize,
    },
}

impl Dataset {
    /// Reads a `.npz` file of arrays named after the inputs of `base`, and maybe `labels`.
    ///
    /// # Errors
    /// When the file cannot be read, or its arrays do not fit `base`.
    pub fn read(base: &Base, path: impl AsRef<Path>) -> Result<Self, DataError> {
        Self::new(base, npz::read(path.as_ref())?)
    }

    /// A data set of arrays named after the inputs of `base`, and maybe `labels`.
    ///
    /// Inputs of 64-bit integers take any integers, inputs of truth values take 0 and 1.
    ///
    /// # Errors
    /// When an array is missing, left over, of another shape or type, or holds what the model cannot take.
    pub fn new(base: &Base, arrays: impl IntoIterator<Item = (String, HostTensor)>) -> Result<Self, DataError> {
        let mut arrays: Vec<(String, HostTensor)> = arrays.into_iter().collect();
        let mut inputs = Vec::with_capacity(base.inputs().len());
        for port in base.inputs() {
            let Some(at) = arrays.iter().position(|(name, _)| *name == port.name) else {
                let found = listed(arrays.iter().map(|(name, _)| name.as_str()));
                return Err(DataError::Missing { name: port.name.clone(), found });
            };
            let (name, array) = arrays.swap_remove(at);
            inputs.push((name, typed(port, array)?));
        }
        let labels = arrays.iter().position(|(name, _)| name == LABELS).map(|at| arrays.swap_remove(at).1);
        let labels = labels.map(widened);
        if let Some((name, _)) = arrays.into_iter().next() {
            let inputs = base.inputs().iter().map(|port| port.name.as_str());
            return Err(DataError::Extra { name, expected: listed(inputs.chain([LABELS])) });
        }
        let samples = check_samples(base.inputs(), &inputs, labels.as_ref())?;
        check_shapes(base.inputs(), &inputs)?;
        for (name, array) in &inputs {
            check_values(name, array, base.vocabulary(name))?;
        }
        if let Some(labels) = &labels {
            check_values(LABELS, labels, None)?;
        }
        Ok(Dataset { samples, inputs, labels })
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.samples
    }

    /// Never: a data set has at least one sample.
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// The arrays of the inputs, in the order of the base.
    pub fn inputs(&self) -> &[(String, HostTensor)] {
        &self.inputs
    }

    /// The labels.
    pub fn labels(&self) -> Option<&HostTensor> {
        self.labels.as_ref()
    }

    /// The samples at these positions.
    pub fn select(&self, rows: &[usize]) -> Dataset {
        let select = |array: &HostTensor| select_rows(array, rows);
        Dataset {
            samples: rows.len(),
            inputs: self.inputs.iter().map(|(name, array)| (name.clone(), select(array))).collect(),
            labels: self.labels.as_ref().map(select),
        }
    }

    /// The positions of two parts of the samples, chosen by `seed`, each in ascending order. The second part has `fraction`
    /// of them, at least one.
    ///
    /// # Errors
    /// When one of the parts would be empty.
    pub fn split(&self, fraction: f32, seed: u64) -> Result<(Vec<usize>, Vec<usize>), DataError> {
        let held_back = ((self.samples as f64 * f64::from(fraction)).round() as usize).max(1);
        if held_back >= self.samples {
            return Err(DataError::TooFew { samples: self.samples });
        }
        let mut first = Random::new(seed, HOLD_BACK_STREAM).permutation(self.samples);
        let mut second = first.split_off(self.samples - held_back);
        first.sort_unstable();
        second.sort_unstable();
        Ok((first, second))
    }

    /// Appends zeros to every open dimension but that of the samples, up to the next of the `buckets` (ascending).
    ///
    /// Fewer different shapes make fewer plans. It is for models that take a mask, where zeros mean nothing. What is
    /// longer than the last bucket stays as it is.
    pub fn pad_to_buckets(&mut self, base: &Base, buckets: &[usize]) {
        for ((_, array), port) in self.inputs.iter_mut().zip(base.inputs()) {
            for (axis, dim) in port.shape.iter().enumerate().skip(1) {
                if matches!(dim, Dim::Symbol(_)) {
                    let len = array.shape()[axis];
                    let bucket = buckets.iter().copied().find(|bucket| *bucket >= len).unwrap_or(len);
                    *array = pad(array, axis, bucket);
                }
            }
        }
    }
}

const HOLD_BACK_STREAM: u64 = 2;

/// The rows of `array` at these positions of its first dimension.
pub(crate) fn select_rows(array: &HostTensor, rows: &[usize]) -> HostTensor {
    fn pick<T: Copy>(values: &[T], row: usize, rows: &[usize]) -> Vec<T> {
        rows.iter().flat_map(|at| &values[at * row..][..row]).copied().collect()
    }
    let (samples, shape) = array.shape().split_first().expect("checked: one row a sample");
    debug_assert!(rows.iter().all(|row| row < samples));
    let row = shape.iter().product();
    let data = match array.data() {
        HostData::F32(values) => HostData::F32(pick(values, row, rows)),
        HostData::I64(values) => HostData::I64(pick(values, row, rows)),
        HostData::I32(values) => HostData::I32(pick(values, row, rows)),
        HostData::Bool(values) => HostData::Bool(pick(values, row, rows)),
    };
    HostTensor::of([&[rows.len()], shape].concat(), data)
}

/// Arrays of equal rows, joined along their first dimension.
pub(crate) fn concatenate(parts: &[HostTensor]) -> HostTensor {
    let shape = parts.first().map_or(&[][..], |part| &part.shape()[1..]);
    let rows = parts.iter().map(|part| part.shape()[0]).sum();
    let shape = [&[rows], shape].concat();
    match parts.first().map(HostTensor::data) {
        Some(HostData::F32(_)) => {
            let values: Vec<f32> = parts.iter().flat_map(|part| part.floats().unwrap_or_default()).copied().collect();
            HostTensor::of(shape, values)
        }
        _ => HostTensor::of(shape, parts.iter().flat_map(|part| part.ints().unwrap_or_default()).collect::<Vec<i64>>()),
    }
}

/// `array` with zeros behind its elements along `axis`, up to `len` of them.
fn pad(array: &HostTensor, axis: usize, len: usize) -> HostTensor {
    fn fill<T: Copy + Default>(values: &[T], old: usize, new: usize) -> Vec<T> {
        let mut padded = Vec::with_capacity(values.len() / old.max(1) * new);
        for chunk in values.chunks(old.max(1)) {
            padded.extend_from_slice(chunk);
            padded.resize(padded.len() + new - chunk.len(), T::default());
        }
        padded
    }
    let mut shape = array.shape().to_vec();
    let inner: usize = shape[axis + 1..].iter().product();
    let (old, new) = (shape[axis] * inner, len * inner);
    if len <= shape[axis] || old == 0 {
        return array.clone();
    }
    shape[axis] = len;
    let data = match array.data() {
        HostData::F32(values) => HostData::F32(fill(values, old, new)),
        HostData::I64(values) => HostData::I64(fill(values, old, new)),
        HostData::I32(values) => HostData::I32(fill(values, old, new)),
        HostData::Bool(values) => HostData::Bool(fill(values, old, new)),
    };
    HostTensor::of(shape, data)
}

/// The array in the element type of the port.
fn typed(port: &Port, array: HostTensor) -> Result<HostTensor, DataError> {
    let fail = || DataError::Type { name: port.name.clone(), found: array.dtype(), expected: port.dtype };
    let out_of_range = |at: usize, value: i64, last: i64| DataError::Range {
        name: port.name.clone(),
        sample: sample_of(&array, at),
        value,
        last,
    };
    let data = match (port.dtype, array.data()) {
        (DType::F32, HostData::F32(_)) => return Ok(array),
        (DType::I64, _) => HostData::I64(array.ints().ok_or_else(fail)?),
        (DType::I32, _) => {
            let narrow = |(at, value): (usize, i64)| {
                i32::try_from(value).map_err(|_| out_of_range(at, value, i64::from(i32::MAX)))
            };
            let values = array.ints().ok_or_else(fail)?;
            HostData::I32(values.into_iter().enumerate().map(narrow).collect::<Result<_, _>>()?)
        }
        (DType::Bool, _) => {
            let truth = |(at, value): (usize, i64)| match value {
                0 => Ok(false),
                1 => Ok(true),
                _ => Err(out_of_range(at, value, 1)),
            };
            let values = array.ints().ok_or_else(fail)?;
            HostData::Bool(values.into_iter().enumerate().map(truth).collect::<Result<_, _>>()?)
        }
        _ => return Err(fail()),
    };
    Ok(HostTensor::of(array.shape(), data))
}

/// Integers of any size as 64-bit ones; floats as they are.
fn widened(array: HostTensor) -> HostTensor {
    match array.ints() {
        Some(values) => HostTensor::of(array.shape(), values),
        None => array,
    }
}

/// The number of samples, which every array must have.
fn check_samples(
    ports: &[Port],
    inputs: &[(String, HostTensor)],
    labels: Option<&HostTensor>,
) -> Result<usize, DataError> {
    if let Some(port) = ports.iter().find(|port| port.shape.is_empty()) {
        return Err(DataError::NoBatch { name: port.name.clone() });
    }
    let mut first: Option<(&str, usize)> = None;
    for (name, array) in inputs.iter().map(|(name, array)| (name.as_str(), array)).chain(labels.map(|l| (LABELS, l))) {
        let samples = *array.shape().first().ok_or_else(|| DataError::Shape {
            name: name.to_owned(),
            found: Vec::new(),
            expected: "one row a sample".to_owned(),
        })?;
        match first {
            None => first = Some((name, samples)),
            Some((other, expected)) if expected != samples => {
                let (name, other) = (name.to_owned(), other.to_owned());
                return Err(DataError::Samples { name, found: samples, other, expected });
            }
            Some(_) => {}
        }
    }
    match first {
        Some((_, samples)) if samples > 0 => Ok(samples),
        _ => Err(DataError::Empty),
    }
}

/// Checks all but the first dimension: fixed ones, and that those of one name have one size.
fn check_shapes(ports: &[Port], inputs: &[(String, HostTensor)]) -> Result<(), DataError> {
    let mut symbols: Vec<(&str, usize)> = Vec::new();
    for (port, (name, array)) in ports.iter().zip(inputs) {
        let shape = array.shape();
        let mut fits = shape.len() == port.shape.len();
        for (dim, &size) in port.shape.iter().zip(shape).skip(1) {
            fits &= match dim {
                Dim::Fixed(expected) => *expected == size,
                Dim::Symbol(symbol) => match symbols.iter().find(|(known, _)| known == symbol) {
                    Some((symbol, expected)) if !symbol.is_empty() => *expected == size,
                    _ => {
                        symbols.push((symbol, size));
                        size > 0
                    }
                },
            };
        }
        if !fits {
            let dims = port.shape.iter().enumerate().map(|(axis, dim)| match dim {
                _ if axis == 0 => "samples".to_owned(),
                Dim::Fixed(size) => size.to_string(),
                Dim::Symbol(symbol) => match symbols.iter().find(|(known, _)| known == symbol) {
                    Some((symbol, size)) if !symbol.is_empty() && *size > 0 => format!("{symbol} = {size}"),
                    _ if symbol.is_empty() => "?".to_owned(),
                    _ => symbol.clone(),
                },
            });
            let expected = format!("[{}]", dims.collect::<Vec<_>>().join(", "));
            return Err(DataError::Shape { name: name.clone(), found: shape.to_vec(), expected });
        }
    }
    Ok(())
}

/// Checks that floats are finite, and integers within a vocabulary.
fn check_values(name: &str, array: &HostTensor, vocabulary: Option<usize>) -> Result<(), DataError> {
    let name = || name.to_owned();
    if let Some(values) = array.floats()
        && let Some(at) = values.iter().position(|value| !value.is_finite())
    {
        return Err(DataError::NotFinite { name: name(), sample: sample_of(array, at), value: values[at] });
    }
    let last = vocabulary.and_then(|size| i64::try_from(size).ok()).map(|size| size - 1);
    if let (Some(last), Some(values)) = (last, array.ints())
        && let Some(at) = values.iter().position(|value| !(0..=last).contains(value))
    {
        return Err(DataError::Range { name: name(), sample: sample_of(array, at), value: values[at], last });
    }
    Ok(())
}

/// The sample that element `at` belongs to.
fn sample_of(array: &HostTensor, at: usize) -> usize {
    at / array.shape()[1..].iter().product::<usize>().max(1)
}

impl Base {
    /// The size of the vocabulary that an input's ids come from: the rows of the smallest table that they index.
    pub fn vocabulary(&self, input: &str) -> Option<usize> {
        vocabulary(self.graph(), input)
    }
}

fn vocabulary(graph: &Graph, input: &str) -> Option<usize> {
    let port = graph.inputs().iter().position(|port| port.name == input)?;
    let mut same = vec![graph.input_ids[port]];
    let mut smallest: Option<usize> = None;
    for node in &graph.nodes {
        let takes = |at: usize, node: &crate::graph::Node| {
            node.inputs.get(at).copied().flatten().is_some_and(|id: ValueId| same.contains(&id))
        };
        match node.op.op_type() {
            "Cast" | "Identity" if takes(0, node) => same.extend(node.outputs.iter().flatten()),
            "Gather" if takes(1, node) && node.attributes.int("axis", 0) == 0 => {
                let rows = node.inputs[0].and_then(|table| table_rows(graph, table));
                smallest = smallest.into_iter().chain(rows).min();
            }
            _ => {}
        }
    }
    smallest
}

/// Rows of a constant, quantized or not.
fn table_rows(graph: &Graph, table: ValueId) -> Option<usize> {
    if let Some(constant) = &graph.values[table.index()].constant {
        return constant.dims.first().copied();
    }
    let maker = graph.nodes.iter().find(|node| node.outputs.contains(&Some(table)))?;
    match maker.op.op_type() {
        "DequantizeLinear" => graph.values[maker.inputs.first().copied().flatten()?.index()]
            .constant
            .as_ref()
            .and_then(|constant| constant.dims.first().copied()),
        _ => None,
    }
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Verify;

    fn base() -> Base {
        Base::open("tests/data/tiny", Verify::Full).unwrap()
    }

    fn floats(shape: &[usize]) -> HostTensor {
        HostTensor::of(shape, (0..shape.iter().product()).map(|i: usize| i as f32).collect::<Vec<_>>())
    }

    fn dataset<const N: usize>(arrays: [(&str, HostTensor); N]) -> Result<Dataset, DataError> {
        Dataset::new(&base(), arrays.map(|(name, array)| (name.to_owned(), array)))
    }

    #[test]
    fn what_fits_is_taken() {
        let data = dataset([("labels", HostTensor::of([2], vec![0i32, 1])), ("x", floats(&[2, 3]))]).unwrap();
        assert_eq!(data.len(), 2);
        assert_eq!(data.inputs()[0].0, "x");
        assert_eq!(data.labels(), Some(&HostTensor::of([2], vec![0i64, 1])), "integers are widened");
        assert_eq!(dataset([("x", floats(&[1, 3]))]).unwrap().labels(), None);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = |result: Result<Dataset, DataError>| result.unwrap_err().to_string();
        assert_eq!(error(dataset([])), "the data has no array \"x\"; it has: nothing");
        assert_eq!(error(dataset([("y", floats(&[2, 3]))])), "the data has no array \"x\"; it has: y");
        assert_eq!(
            error(dataset([("x", floats(&[2, 3])), ("y", floats(&[2]))])),
            "the data has an array \"y\" that the model does not take; it takes: x, labels"
        );
        let shape = "array \"x\" has shape [2, 4], expected [samples, 3]";
        assert_eq!(error(dataset([("x", floats(&[2, 4]))])), shape);
        assert!(matches!(dataset([("x", floats(&[6]))]), Err(DataError::Shape { .. })));
        assert!(matches!(dataset([("x", floats(&[]))]), Err(DataError::Shape { .. })));
        assert!(matches!(dataset([("x", floats(&[0, 3]))]), Err(DataError::Empty)));
        assert_eq!(
            error(dataset([("x", floats(&[2, 3])), ("labels", floats(&[3]))])),
            "array \"labels\" has 3 samples, \"x\" has 2"
        );
        assert_eq!(
            error(dataset([("x", HostTensor::of([1, 3], vec![1i64, 2, 3]))])),
            "array \"x\" holds i64, expected f32; convert it with .astype"
        );
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let x = HostTensor::of([2, 3], vec![0.0, 0.0, 0.0, 0.0, bad, 0.0]);
            assert!(matches!(dataset([("x", x)]), Err(DataError::NotFinite { sample: 1, .. })));
            let labels = HostTensor::of([2, 2], vec![0.0, 0.0, bad, 0.0]);
            let result = dataset([("x", floats(&[2, 3])), ("labels", labels)]);
            assert!(matches!(result, Err(DataError::NotFinite { sample: 1, .. })));
        }
    }

    #[test]
    fn ids_stay_in_their_vocabulary() {
        let onnx = std::fs::read("../tests/fixtures/encoder_ts17.onnx").unwrap();
        let base = Base::from_onnx(onnx).unwrap();
        let size = base.vocabulary("input_ids").expect("ids index the embedding");
        assert_eq!(base.vocabulary("attention_mask"), None);
        let arrays = |id: i64| {
            let array = |port: &Port| {
                let id = if port.name == "input_ids" { id } else { 1 };
                (port.name.clone(), HostTensor::of([1, 4], vec![1, 1, id, 1]))
            };
            base.inputs().iter().map(array).collect::<Vec<_>>()
        };
        Dataset::new(&base, arrays(size as i64 - 1)).unwrap();
        for id in [size as i64, -1, i64::MAX, i64::MIN] {
            assert!(matches!(Dataset::new(&base, arrays(id)), Err(DataError::Range { sample: 0, .. })), "{id}");
        }
        let mut uneven = arrays(1);
        uneven[1].1 = HostTensor::of([1, 5], vec![1i64; 5]);
        assert!(matches!(Dataset::new(&base, uneven), Err(DataError::Shape { .. })));

        let mut data = Dataset::new(&base, arrays(1)).unwrap();
        data.pad_to_buckets(&base, &[2, 8, 16]);
        assert!(data.inputs().iter().all(|(_, array)| array.shape() == [1, 8]));
        assert_eq!(data.inputs()[0].1.ints().unwrap(), [1, 1, 1, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn splits_hold_everything_once() {
        let data = dataset([("x", floats(&[10, 3]))]).unwrap();
        let (train, held_back) = data.split(0.25, 1).unwrap();
        assert_eq!((train.len(), held_back.len()), (7, 3));
        let mut all = [train, held_back].concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..10));
        assert_eq!(data.split(0.001, 1).unwrap().1.len(), 1);
        assert!(matches!(dataset([("x", floats(&[1, 3]))]).unwrap().split(0.5, 1), Err(DataError::TooFew { .. })));
        assert_eq!(data.select(&[9, 0]).inputs()[0].1.floats().unwrap(), [27.0, 28.0, 29.0, 0.0, 1.0, 2.0]);
    }

    #[test]
    fn arrays_are_padded_and_joined() {
        let x = floats(&[2, 2, 1]);
        assert_eq!(pad(&x, 1, 3), HostTensor::of([2, 3, 1], vec![0.0, 1.0, 0.0, 2.0, 3.0, 0.0]));
        assert_eq!(pad(&x, 2, 2), HostTensor::of([2, 2, 2], vec![0.0, 0.0, 1.0, 0.0, 2.0, 0.0, 3.0, 0.0]));
        assert_eq!(pad(&x, 1, 1), x);
        assert_eq!(concatenate(&[floats(&[1, 2]), floats(&[2, 2])]).shape(), [3, 2]);
    }
}
