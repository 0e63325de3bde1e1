//! What linears read while the float model runs on the calibration inputs.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::graph::{Dim, Graph, Port};
use crate::samples::{Feed, Output, Values};
use crate::verify::Exported;

/// Most rows of a value that are kept.
const MAX_ROWS: usize = 512;
/// The input that says which tokens are padding.
const MASK: &str = "attention_mask";

/// A value of K channels, over all inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Activations {
    /// The mean magnitude of each channel.
    pub mean: Vec<f32>,
    /// Evenly spaced rows, [rows, K].
    pub rows: Vec<f32>,
}

/// The inputs one example at a time, where the model leaves the size of the first dimension open.
pub fn batches(graph: &Graph, feeds: Vec<Feed>) -> Vec<Vec<Feed>> {
    let open = |feed: &Feed| {
        let port: Option<&Port> = graph.inputs.iter().find(|port| port.name == feed.name);
        let dims = port.and_then(|port| port.ty.dims.as_deref());
        dims.is_none_or(|dims| !matches!(dims.first(), None | Some(Dim::Known(_))))
    };
    let examples = feeds.first().and_then(|feed| feed.dims.first().copied()).unwrap_or(1);
    if !feeds.iter().all(|feed| open(feed) && feed.dims.first() == Some(&examples)) {
        return vec![feeds];
    }
    let one = |feed: &Feed, at: usize| {
        let dims: Vec<usize> = std::iter::once(1).chain(feed.dims[1..].iter().copied()).collect();
        let len = dims.iter().product::<usize>();
        let range = at * len..(at + 1) * len;
        let values = match &feed.values {
            Values::F32(v) => Values::F32(v[range].to_vec()),
            Values::I64(v) => Values::I64(v[range].to_vec()),
        };
        Feed { name: feed.name.clone(), dims, values }
    };
    (0..examples).map(|at| feeds.iter().map(|feed| one(feed, at)).collect()).collect()
}

/// The activations of `values`, outputs of the model in `folder`, each with its number of channels. Padding does not count.
///
/// # Errors
/// If the model does not run, or a value is not finite.
pub fn capture(
    folder: &Path,
    values: &BTreeMap<String, usize>,
    batches: &[Vec<Feed>],
) -> Result<BTreeMap<String, Activations>> {
    let mut model = Exported::open(folder)?;
    let mut sums: BTreeMap<String, (Vec<f64>, usize, Vec<f32>)> =
        values.iter().map(|(name, &channels)| (name.clone(), (vec![0.0; channels], 0, Vec::new()))).collect();
    let most = MAX_ROWS.div_ceil(batches.len().max(1));
    for feeds in batches {
        for output in model.run(feeds)? {
            let Some((sum, count, rows)) = sums.get_mut(&output.name) else { continue };
            let channels = sum.len();
            if output.values.iter().any(|x| !x.is_finite()) {
                let detail = format!("value {:?} is not finite on the calibration inputs", output.name);
                return Err(Error::Oracle { what: "the model in float", detail });
            }
            let counted = counted(&output, channels, feeds);
            for &at in &counted {
                let row = &output.values[at * channels..][..channels];
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(x.abs()));
            }
            *count += counted.len();
            let taken = most.min(counted.len()).min((MAX_ROWS * channels - rows.len()) / channels);
            for i in 0..taken {
                rows.extend(&output.values[counted[i * counted.len() / taken] * channels..][..channels]);
            }
        }
    }
    let activations = |(sum, count, rows): (Vec<f64>, usize, Vec<f32>)| Activations {
        mean: sum.into_iter().map(|sum| (sum / count.max(1) as f64) as f32).collect(),
        rows,
    };
    Ok(sums.into_iter().map(|(name, sums)| (name, activations(sums))).collect())
}

/// The rows of `output` that are no padding: all of them, where no mask has its shape.
fn counted(output: &Output, channels: usize, feeds: &[Feed]) -> Vec<usize> {
    let all = output.values.len() / channels;
    let mask =
        feeds.iter().find(|feed| feed.name == MASK && output.dims.split_last().is_some_and(|(_, of)| of == feed.dims));
    let is_token = |row: &usize| match mask.map(|feed| &feed.values) {
        Some(Values::I64(v)) => v[*row] != 0,
        Some(Values::F32(v)) => v[*row] != 0.0,
        None => true,
    };
    (0..all).filter(is_token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ValueType;
    use crate::tensor::DType;

    #[test]
    fn examples_are_fed_one_by_one_where_the_model_lets_them() {
        let port = |first: Dim| Port {
            name: "x".into(),
            ty: ValueType { dtype: DType::F32, dims: Some(vec![first, Dim::Known(2)]) },
        };
        let feeds = vec![Feed { name: "x".into(), dims: vec![2, 2], values: Values::F32(vec![1., 2., 3., 4.]) }];
        let graph = |first| Graph { inputs: vec![port(first)], ..Graph::default() };
        let found = batches(&graph(Dim::Symbol("B".into())), feeds.clone());
        assert_eq!(found.len(), 2);
        assert_eq!(found[1], [Feed { name: "x".into(), dims: vec![1, 2], values: Values::F32(vec![3., 4.]) }]);
        assert_eq!(batches(&graph(Dim::Known(2)), feeds.clone()), [feeds]);
    }

    #[test]
    fn padding_does_not_count() {
        let output = Output { name: "v".into(), dims: vec![1, 3, 2], values: vec![1.0; 6] };
        let mask = Feed { name: MASK.into(), dims: vec![1, 3], values: Values::I64(vec![1, 0, 1]) };
        assert_eq!(counted(&output, 2, std::slice::from_ref(&mask)), [0, 2]);
        assert_eq!(counted(&Output { dims: vec![3, 2], ..output }, 2, &[mask]), [0, 1, 2]);
    }
}
