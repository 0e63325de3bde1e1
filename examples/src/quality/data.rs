//! A folder of a case: `folds.json`, and people's samples.
//!
//! These are arrays named after the model's inputs, `labels`, and for each sample `person` and `split`: 0 to rehearse, 1 held back, 2
//! test, 3 standard test. A sample of person -1 is everybody's.

use std::collections::HashMap;
use std::path::Path;

use inlay_runtime::{DType, HostTensor, LABELS, npz};
use serde::Deserialize;

use super::case::{Fold, Person, Samples, select};
use crate::Result;

/// A sample of everybody.
const EVERYBODY: i64 = -1;

/// An entry of `folds.json`.
#[derive(Deserialize)]
struct Entry {
    /// File name of the float model, beside `folds.json`.
    model: String,
    /// The people whom it never saw.
    people: Vec<i64>,
}

/// The folds of `folder`, with the samples of an `.npz` file.
///
/// # Errors
/// When a file is missing, or is not what the script writes.
pub fn read(folder: &Path, people: &Path) -> Result<Vec<Fold>> {
    folds(folder, npz::read(people)?).map_err(|error| format!("{}: {error}", people.display()).into())
}

/// The folds of `folder`, with the samples of these arrays.
///
/// # Errors
/// When `folds.json` is missing, or an array; when arrays differ in length; when someone has no samples.
pub fn folds(folder: &Path, mut arrays: Samples) -> Result<Vec<Fold>> {
    let file = folder.join("folds.json");
    let text = std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let entries: Vec<Entry> = serde_json::from_slice(&text)?;
    let mut take = |name: &str| -> Result<Vec<i64>> {
        let at = arrays.iter().position(|(found, _)| found == name);
        let array = at.map(|at| arrays.swap_remove(at).1).ok_or_else(|| format!("no array \"{name}\""))?;
        array.ints().ok_or_else(|| format!("\"{name}\" holds no integers").into())
    };
    let (labels, person, split) = (take(LABELS)?, take("person")?, take("split")?);
    let lengths =
        arrays.iter().map(|(_, array)| array.shape().first().copied()).chain([Some(labels.len()), Some(split.len())]);
    if lengths.into_iter().any(|length| length != Some(person.len())) {
        return Err("the arrays differ in their number of samples".into());
    }
    arrays.push((LABELS.to_owned(), HostTensor::new([labels.len()], labels).expect("as many as there are")));

    let of = |who: i64, splits: &[i64]| {
        let wanted = |row: &usize| (person[*row] == who || person[*row] == EVERYBODY) && splits.contains(&split[*row]);
        let rows: Vec<usize> = (0..person.len()).filter(wanted).collect();
        if rows.is_empty() { None } else { Some(select(&arrays, &rows)) }
    };
    let needed = |who: i64, splits: &[i64]| {
        of(who, splits).ok_or_else(|| format!("nothing of person {who} in split {splits:?}"))
    };
    let someone = |who: &i64| {
        Ok(Person {
            calibration: needed(*who, &[0, 1])?,
            rehearsal: needed(*who, &[0])?,
            held_back: needed(*who, &[1])?,
            test: needed(*who, &[2])?,
            standard: of(*who, &[3]),
        })
    };
    let fold = |entry: &Entry| {
        let people = entry.people.iter().map(someone).collect::<Result<_>>()?;
        Ok(Fold { model: folder.join(&entry.model), people })
    };
    entries.iter().map(fold).collect()
}

/// The arrays of a data set for a model whose inputs are floats: what is stored in few bits, such as pixels, as floats.
pub fn to_floats(samples: Samples, inputs: &HashMap<String, DType>) -> Samples {
    let convert = |(name, array): (String, HostTensor)| {
        let wanted = inputs.get(&name) == Some(&DType::F32) && array.floats().is_none();
        let floats = wanted.then(|| HostTensor::new(array.shape(), array.to_floats())).flatten();
        (name, floats.unwrap_or(array))
    };
    samples.into_iter().map(convert).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrays(person: Vec<i64>, split: Vec<i64>) -> Samples {
        let n = person.len();
        let ints = |values: Vec<i64>| HostTensor::new([values.len()], values).expect("as many as there are");
        let x = HostTensor::new([n, 1], (0..n).map(|x| x as f32).collect::<Vec<_>>()).expect("one each");
        let labels = ints(vec![0; n]);
        [("x", x), (LABELS, labels), ("person", ints(person)), ("split", ints(split))]
            .map(|(k, v)| (k.into(), v))
            .into()
    }

    #[test]
    fn everybody_gets_their_own_samples_and_those_of_all() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("folds.json"), r#"[{"model": "m.onnx", "people": [3, 4]}]"#)
            .expect("written");
        let read =
            folds(folder.path(), arrays(vec![3, 3, 3, 4, 4, 4, -1, -1], vec![0, 1, 2, 0, 1, 2, 0, 3])).expect("folds");
        let x = |samples: &Samples| samples[0].1.to_floats();
        let [_, four] = read[0].people.as_slice() else { panic!("two people") };
        assert_eq!((x(&four.rehearsal), x(&four.held_back), x(&four.test)), (vec![3.0, 6.0], vec![4.0], vec![5.0]));
        assert_eq!((x(&four.calibration), four.standard.as_ref().map(x)), (vec![3.0, 4.0, 6.0], Some(vec![7.0])));

        let error = folds(folder.path(), arrays(vec![3, 3, 3, 4], vec![0, 1, 2, 0])).expect_err("nothing to test 4 on");
        assert_eq!(error.to_string(), "nothing of person 4 in split [1]");
    }
}
