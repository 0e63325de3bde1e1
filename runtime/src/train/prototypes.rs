//! Heads from the means of their classes: no gradient steps, a few samples a class.
//!
//! `logit_c = s (m_c . x - |m_c|^2 / 2)`, with m_c the mean of the features of class c: the largest is that of the nearest
//! mean. `s` is one over the mean squared distance of a sample to the mean of its class.

use std::collections::BTreeMap;

use super::error::TrainError;
use crate::adapters::{Adapter, AdapterError};
use crate::data::{DataError, Dataset};
use crate::graph::HostTensor;
use crate::session::Session;

/// Sets the columns of the adapter's head for every class that occurs in the labels of `data` to the mean of its samples;
/// the other classes stay as they are, and the head grows as far as the labels need. Other parts of the adapter stay as they are too.
///
/// A few samples a class suffice: this enrols a new class in an adapter in use. A head that was trained since keeps its scale, to
/// which the new columns are matched; a few steps of training on samples of all classes then even out the rest.
///
/// # Errors
/// When the adapter has no head, the labels are no class numbers, a class between the old ones and the new ones has no sample, or
/// a batch cannot be computed.
pub fn prototypes(
    session: &mut Session,
    adapter: &Adapter,
    data: &Dataset,
    batch_size: usize,
) -> Result<Adapter, TrainError> {
    let labels = data.labels().ok_or(DataError::NoLabels)?;
    let labels = labels.ints().ok_or(TrainError::Prototypes { why: "the labels are floats, not class numbers" })?;
    let features = features(session, adapter, data, batch_size)?;
    let width = *features.shape().last().expect("features have a last axis");
    let rows: Vec<&[f32]> = features.floats().expect("features are floats").chunks_exact(width.max(1)).collect();
    if rows.len() != labels.len() {
        return Err(TrainError::Prototypes { why: "there is not one label for each row of features" });
    }
    let mut classes: BTreeMap<usize, Vec<&[f32]>> = BTreeMap::new();
    for (row, &label) in rows.iter().zip(&labels) {
        let class = usize::try_from(label).map_err(|_| TrainError::Prototypes { why: "a label is negative" })?;
        classes.entry(class).or_default().push(row);
    }
    let last = classes.keys().next_back().ok_or(TrainError::Prototypes { why: "there are no samples" })?;
    let before =
        adapter.head_classes().ok_or(TrainError::Prototypes { why: "the adapter has no head; add the kind" })?;
    if (before..*last).any(|class| !classes.contains_key(&class)) {
        return Err(TrainError::Prototypes {
            why: "a class below the largest new one has no sample; number them without gaps",
        });
    }
    let adapter = adapter.with_classes(session.base(), before.max(last + 1))?;
    let means: BTreeMap<usize, Vec<f64>> = classes.iter().map(|(&class, rows)| (class, mean(rows))).collect();
    let scale = adapter.head_scale().unwrap_or_else(|| scale(&classes, &means));
    let mut adapter = adapter;
    for (class, mean) in means {
        adapter.set_class(class, &mean.iter().map(|m| scale * m).collect::<Vec<_>>(), -0.5 * scale * norm2(&mean));
    }
    Ok(adapter)
}

/// What the head of `adapter` reads, for every sample, computed with the other parts of the adapter.
fn features(
    session: &mut Session,
    adapter: &Adapter,
    data: &Dataset,
    batch_size: usize,
) -> Result<HostTensor, TrainError> {
    let reader = adapter.with_identity_head(session.base())?;
    let output = reader.outputs().next().ok_or(AdapterError::Empty)?.to_owned();
    let before = session.swap_adapter(Some(reader));
    let outputs = session.predict_all(data, batch_size, |_| ());
    session.swap_adapter(before);
    let found = outputs?.into_iter().find(|(name, _)| *name == output);
    Ok(found.expect("a head adds its output").1)
}

fn mean(rows: &[&[f32]]) -> Vec<f64> {
    let mut mean = vec![0.0; rows[0].len()];
    for row in rows {
        mean.iter_mut().zip(*row).for_each(|(m, &x)| *m += f64::from(x) / rows.len() as f64);
    }
    mean
}

fn norm2(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum()
}

/// One over the mean squared distance to the mean of the class; to the mean of all where every class has one sample.
fn scale(classes: &BTreeMap<usize, Vec<&[f32]>>, means: &BTreeMap<usize, Vec<f64>>) -> f64 {
    let distance =
        |row: &[f32], mean: &[f64]| -> f64 { row.iter().zip(mean).map(|(&x, m)| (f64::from(x) - m).powi(2)).sum() };
    let all: Vec<&[f32]> = classes.values().flatten().copied().collect();
    let within: f64 =
        classes.iter().map(|(class, rows)| rows.iter().map(|row| distance(row, &means[class])).sum::<f64>()).sum();
    let centre = mean(&all);
    let around: f64 = all.iter().map(|row| distance(row, &centre)).sum();
    [within, around].into_iter().find(|sum| *sum > 0.0).map_or(1.0, |sum| all.len() as f64 / sum)
}
