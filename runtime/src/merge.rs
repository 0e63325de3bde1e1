//! Adapters merged into weights, biases and gains: the same outputs at the cost of the base alone.
//!
//! What is merged lies in memory of its own; the mapped base stays as it is, so that unmerging gives it back bit for bit.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use inlay_devices::weight::{Mapping, Packed, Weight, WeightError, Window};
use inlay_format::quant::{self, EncodeError, F32, Form, Layout, PartsMut, Scheme, Sizes, ZeroPoints};
use inlay_format::record::{BaseId, RecordError};

use crate::adapters::{Adapter, AdapterError, HEAD, Site};
use crate::base::Base;
use crate::graph::HostTensor;
use crate::plan::node_weight;

mod vectors;

pub use vectors::MergedVector;

/// What merging does at a site: to the weight W [K, N] of a point, where K are its inputs (of a convolution, C_in times the
/// kernel) and N its outputs, or to a vector. Differences come before factors.
#[derive(Clone, Debug, PartialEq)]
pub enum Merge {
    /// `W += delta`, delta [K, N], row-major.
    Add(Vec<f32>),
    /// Every output times its factor `[N]`, the bias included: a factor of a scale where the weight has scales.
    ScaleOutputs(Vec<f32>),
    /// Every input times its factor `[K]`; only in weights without scales, which inputs share.
    ScaleInputs(Vec<f32>),
    /// `v += delta`, for the bias or gain v that the site is, delta in its shape.
    AddToVector(Vec<f32>),
}

/// How merged weights are stored.
#[derive(Clone, Copy, Debug, Default)]
pub struct MergeOptions {
    /// The float scheme that merged weights are stored in; `None` stores each as the base does, and quantizes it anew.
    pub keep_float: Option<&'static dyn Scheme>,
}

impl MergeOptions {
    /// Merged weights are stored in the scheme of that name, `f32` for instance, whatever the base stores.
    ///
    /// # Errors
    /// When it is no float scheme.
    pub fn keep_float(name: &str) -> Result<Self, MergeError> {
        let floats = || quant::SCHEMES.iter().copied().filter(|scheme| is_float(*scheme));
        let scheme = floats().find(|scheme| scheme.name() == name).ok_or_else(|| MergeError::NotFloat {
            found: name.to_owned(),
            known: floats().map(Scheme::name).collect::<Vec<_>>().join(", "),
        })?;
        Ok(MergeOptions { keep_float: Some(scheme) })
    }
}

/// Why an adapter cannot be merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// Kinds that compute what no weight can.
    #[error("an adapter of kind \"{kind}\" cannot be merged into weights; use it as an adapter")]
    Kind {
        /// The kind.
        kind: &'static str,
    },
    /// Heads compute an output of their own, beside those that the base's weights compute.
    #[error(
        "a head adds an output, which no weight computes; use it as an adapter, or write it into a model with `converter merge`"
    )]
    Head,
    /// A bias or gain that is not where the base has it.
    #[error("\"{path}\": node \"{node}\" has no such vector that can be changed; re-export the base")]
    NoVector {
        /// The vector.
        path: String,
        /// The node that reads it.
        node: String,
    },
    /// The adapter is of another base, or changes nothing.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The base has no weight at a point.
    #[error("point \"{path}\": node \"{node}\" has no frozen weight that can be changed; re-export the base")]
    NoWeight {
        /// The point.
        path: String,
        /// Its node.
        node: String,
    },
    /// Factors of inputs, and a weight whose scales belong to outputs.
    #[error(
        "point \"{path}\": factors of inputs cannot be merged into {scheme}, whose scales belong to outputs; keep merged weights as floats (--keep-float), or use the adapter as it is"
    )]
    ScaledInputs {
        /// The point.
        path: String,
        /// Name of the scheme.
        scheme: &'static str,
    },
    /// The adapter is larger than floats are.
    #[error("point \"{path}\": the merged weight is not finite; train the adapter again with a lower learning rate")]
    NotFinite {
        /// The point.
        path: String,
    },
    /// The merged weight cannot be used.
    #[error("point \"{path}\"")]
    Weight {
        /// The point.
        path: String,
        /// The cause.
        source: WeightError,
    },
    /// No scheme that stores floats.
    #[error("weights cannot be kept as \"{found}\"; use one of: {known}")]
    NotFloat {
        /// The name asked for.
        found: String,
        /// The names that there are.
        known: String,
    },
}

/// How far storing a merged weight moved it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Requantization {
    /// Norm of the error over that of the merged weight.
    pub relative: f64,
    /// Norm of the error over that of what the adapter adds: at 1 as much is lost as was learned.
    pub of_change: f64,
    /// Largest error of an element.
    pub largest: f32,
}

impl fmt::Display for Requantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Requantization { relative, of_change, .. } = self;
        write!(f, "{:.3} % of the weight, {:.1} % of the change", 100.0 * relative, 100.0 * of_change)
    }
}

/// A weight with an adapter merged into it.
#[derive(Clone, Debug)]
pub struct MergedPoint {
    /// The insertion point.
    pub path: String,
    /// The node that uses the weight.
    pub node: String,
    /// The weight. Its name is that of the base's.
    pub weight: Weight,
    /// What storing it cost; `None` where it is f32, or only its scales changed: exact to rounding.
    pub requantization: Option<Requantization>,
    /// The biases that change with it.
    pub biases: Vec<MergedVector>,
}

/// The weights, biases and gains of a base that an adapter changes, changed.
#[derive(Clone, Debug)]
pub struct Merged {
    points: Vec<MergedPoint>,
    vectors: Vec<MergedVector>,
    /// Positions in `points`.
    weights: HashMap<String, usize>,
    /// Inputs of a node, and what it reads there.
    inputs: HashMap<String, Vec<(usize, Arc<HostTensor>)>>,
}

impl Merged {
    /// Merges `adapter` into the weights of `base`, which stays as it is.
    ///
    /// # Errors
    /// When the adapter is of another base, of a kind that cannot be merged, or changes nothing.
    pub fn new(base: &Base, adapter: &Adapter, options: &MergeOptions) -> Result<Self, MergeError> {
        let (expected, found) = (BaseId::from(base.fingerprint()), adapter.base());
        if expected != found {
            return Err(AdapterError::from(RecordError::OtherBase { expected, found }).into());
        }
        if adapter.changes_nothing() {
            return Err(AdapterError::ChangesNothing.into());
        }
        let merges = adapter.to_lora(base)?.merges(base).map_err(|kind| match kind {
            HEAD => MergeError::Head,
            kind => MergeError::Kind { kind },
        })?;
        let mut changes: Vec<Change> = Vec::new();
        let mut vectors = Vec::new();
        for (site, merge) in merges {
            if let Merge::AddToVector(delta) = merge {
                vectors.push(MergedVector::plus(base.graph(), &site, &delta)?);
                continue;
            }
            // Several parts of an adapter may change one weight.
            let known = changes.iter().position(|known| known.site.node == site.node);
            let at = known.unwrap_or_else(|| {
                changes.push(Change { site, add: None, outputs: None, inputs: None });
                changes.len() - 1
            });
            changes[at].include(merge);
        }
        let points = changes.into_iter().map(|change| change.apply(base, options, &mut vectors));
        let points = points.collect::<Result<Vec<_>, _>>()?;
        let weights = points.iter().enumerate().map(|(i, point)| (point.node.clone(), i)).collect();
        let mut inputs: HashMap<String, Vec<_>> = HashMap::new();
        for vector in points.iter().flat_map(|point| &point.biases).chain(&vectors) {
            inputs.entry(vector.node.clone()).or_default().push((vector.input, Arc::clone(&vector.values)));
        }
        Ok(Merged { points, vectors, weights, inputs })
    }

    /// The changed weights.
    pub fn points(&self) -> &[MergedPoint] {
        &self.points
    }

    /// The changed biases and gains, but for those that change with a weight. They are floats, and exact to rounding.
    pub fn vectors(&self) -> &[MergedVector] {
        &self.vectors
    }

    /// The changed weight of a node.
    pub(crate) fn weight(&self, node: &str) -> Option<&Weight> {
        self.weights.get(node).map(|&i| &self.points[i].weight)
    }

    /// The inputs of a node at which it reads changed vectors, and these.
    pub(crate) fn vectors_at(&self, node: &str) -> &[(usize, Arc<HostTensor>)] {
        self.inputs.get(node).map_or(&[], Vec::as_slice)
    }
}

fn is_float(scheme: &dyn Scheme) -> bool {
    matches!(scheme.sizes(Layout::NK, [2, 2], Form::WHOLE), Some(Sizes { scales: 0, .. }))
}

/// All that happens to one weight.
struct Change {
    site: Site,
    add: Option<Vec<f32>>,
    outputs: Option<Vec<f32>>,
    inputs: Option<Vec<f32>>,
}

impl Change {
    fn include(&mut self, merge: Merge) {
        let (all, more, join): (_, _, fn(&mut f32, f32)) = match merge {
            Merge::Add(delta) => (&mut self.add, delta, |sum, delta| *sum += delta),
            Merge::ScaleOutputs(factors) => (&mut self.outputs, factors, |product, factor| *product *= factor),
            Merge::ScaleInputs(factors) => (&mut self.inputs, factors, |product, factor| *product *= factor),
            Merge::AddToVector(_) => unreachable!("vectors are no weights"),
        };
        match all {
            Some(all) => all.iter_mut().zip(more).for_each(|(all, more)| join(all, more)),
            None => *all = Some(more),
        }
    }

    /// Takes what it changes out of `vectors`.
    fn apply(
        self,
        base: &Base,
        options: &MergeOptions,
        vectors: &mut Vec<MergedVector>,
    ) -> Result<MergedPoint, MergeError> {
        let Change { site: Site { path, node, .. }, add, outputs, inputs } = self;
        let no_weight = || MergeError::NoWeight { path: path.clone(), node: node.clone() };
        let weight = node_weight(base.graph(), &node).ok_or_else(no_weight)?;
        let scheme = options.keep_float.unwrap_or(weight.scheme());
        let has_scales = !is_float(scheme);
        if inputs.is_some() && has_scales {
            return Err(MergeError::ScaledInputs { path, scheme: scheme.name() });
        }
        let biases = match &outputs {
            Some(factors) => vectors::scaled(base.graph(), &path, &node, factors, vectors).ok_or_else(no_weight)?,
            None => Vec::new(),
        };
        let (of_scales, of_elements) = if has_scales { (outputs, None) } else { (None, outputs) };
        let (mut stored, mut requantization) = (weight.clone(), None);
        if !has_scales || add.is_some() {
            let (dims, layout) = ([weight.k(), weight.n()], weight.layout());
            let mut values = floats(&weight);
            let mut square = 0.0;
            for k in 0..dims[0] {
                let input = inputs.as_ref().map_or(1.0, |factors| factors[k]);
                for n in 0..dims[1] {
                    let value = &mut values[layout.index(dims, [k, n])];
                    let was = f64::from(*value);
                    *value += add.as_ref().map_or(0.0, |delta| delta[k * dims[1] + n]);
                    *value *= of_elements.as_ref().map_or(1.0, |factors| factors[n]) * input;
                    square += (f64::from(*value) - was).powi(2);
                }
            }
            let fail = |source| MergeError::Weight { path: path.clone(), source };
            let form = if options.keep_float.is_some() { Form::WHOLE } else { weight.form() };
            stored = store(weight.name(), (scheme, form), layout, dims, &values, fail)?
                .map_err(|_| MergeError::NotFinite { path: path.clone() })?;
            requantization = (scheme.name() != F32.name()).then(|| lost(&stored, &values, square.sqrt()));
        }
        if let Some(factors) = of_scales {
            stored = times(&stored, &factors, &path)?;
        }
        Ok(MergedPoint { path, node, weight: stored, requantization, biases })
    }
}

/// How far a stored weight is from the values that it stores, which were changed by `change`.
fn lost(stored: &Weight, values: &[f32], change: f64) -> Requantization {
    let errors = || floats(stored).into_iter().zip(values).map(|(stored, value)| stored - value);
    let error = norm(errors());
    Requantization {
        relative: error / norm(values.iter().copied()).max(f64::MIN_POSITIVE),
        of_change: error / change.max(f64::MIN_POSITIVE),
        largest: errors().fold(0.0, |largest, error| error.abs().max(largest)),
    }
}

/// A weight with each output's scales times its factor. The elements are those of `weight`, and are not copied.
fn times(weight: &Weight, factors: &[f32], path: &str) -> Result<Weight, MergeError> {
    let view = weight.view();
    let of_one = view.parts.scales.len() / factors.len().max(1);
    let scales: Vec<f32> =
        view.parts.scales.iter().enumerate().map(|(i, scale)| scale * factors[i / of_one.max(1)]).collect();
    if !scales.iter().all(|scale| scale.is_finite()) {
        return Err(MergeError::NotFinite { path: path.to_owned() });
    }
    let packed = Packed { scales: Some(Window::from_floats(&scales)), ..weight.packed().clone() };
    Weight::new(weight.name(), weight.scheme(), weight.layout(), [weight.k(), weight.n()], packed)
        .map_err(|source| MergeError::Weight { path: path.to_owned(), source })
}

/// All elements, in the order of memory.
fn floats(weight: &Weight) -> Vec<f32> {
    let view = weight.view();
    let mut values = vec![0.0; view.k * view.n];
    view.scheme.decode(view.parts, view.layout, [view.k, view.n], 0, &mut values);
    values
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// A weight in memory of its own.
fn store(
    name: &str,
    (scheme, form): (&'static dyn Scheme, Form),
    layout: Layout,
    [k, n]: [usize; 2],
    values: &[f32],
    fail: impl Fn(WeightError) -> MergeError,
) -> Result<Result<Weight, EncodeError>, MergeError> {
    let sizes = scheme.sizes(layout, [k, n], form).expect("float schemes store any shape, others have stored this one");
    let (mut data, mut zero_points) = (Aligned::zeros(sizes.data), Aligned::zeros(sizes.zero_points));
    let mut scales = vec![0.0; sizes.scales];
    let parts = PartsMut { data: data.bytes_mut(), scales: &mut scales, zero_points: zero_points.bytes_mut() };
    if let Err(refused) = scheme.encode(values, layout, [k, n], parts) {
        return Ok(Err(refused));
    }
    let packed = Packed {
        data: data.window(),
        scales: (!scales.is_empty()).then(|| Window::from_floats(&scales)),
        zero_points: (form.zero_points != ZeroPoints::None).then(|| zero_points.window()),
    };
    Weight::new(name, scheme, layout, [k, n], packed).map(Ok).map_err(fail)
}

/// Bytes that start where any element may.
struct Aligned {
    words: Vec<u64>,
    len: usize,
}

impl Aligned {
    fn zeros(len: usize) -> Self {
        Aligned { words: vec![0; len.div_ceil(8)], len }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }

    fn window(self) -> Window {
        let len = self.len;
        Window::new(Arc::new(self), 0..len).expect("it is all of its bytes")
    }
}

impl Mapping for Aligned {
    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}
