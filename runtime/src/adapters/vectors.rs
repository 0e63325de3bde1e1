//! Biases and norm gains: small frozen vectors to which a trained difference is added.

use super::{
    AdapterError, AdapterKind, At, Binding, Fragment, FragmentNode, Insertion, Replacement, Settings, Site, Size,
};
use crate::base::Base;
use crate::graph::{Graph, Node, ValueId};
use crate::merge::Merge;
use crate::random::Random;

/// Trains the biases of linears, convolutions and normalizations (BitFit, Ben Zaken et al., 2022): `b + delta`.
///
/// A site is a bias, its path the name of its initializer.
pub struct Bias;

/// Trains the gains of LayerNormalization and of RMS normalization: `gamma + delta`. A BatchNormalization is folded into its convolution at export
/// and has no gain left; its shift is the convolution's bias.
pub struct Norm;

impl AdapterKind for Bias {
    fn name(&self) -> &'static str {
        "bias"
    }

    fn id(&self) -> u16 {
        BIAS_KIND
    }

    fn size(&self) -> Option<Size> {
        None
    }

    fn is_scaled(&self) -> bool {
        false
    }

    fn way_out(&self) -> &'static str {
        "it has no biases; use another kind"
    }

    fn sites(&self, base: &Base) -> Vec<Site> {
        sites(base.graph(), bias)
    }

    fn insertion(&self, _: &Base, site: &Site, _: &Settings) -> Result<Insertion, AdapterError> {
        Ok(plus_delta(site))
    }

    fn init(&self, _: &Site, insertion: &Insertion, _: &Settings, _: &mut Random) -> Vec<Vec<f32>> {
        insertion.zeros()
    }

    fn scale_axis(&self, _: usize, _: &[usize]) -> Option<usize> {
        None
    }

    fn changes_nothing(&self, tensors: &[Vec<f32>]) -> bool {
        all_zero(tensors)
    }

    fn merge(&self, _: &Site, _: &Settings, tensors: &[Vec<f32>]) -> Option<Merge> {
        tensors.first().map(|delta| Merge::AddToVector(delta.clone()))
    }
}

impl AdapterKind for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn id(&self) -> u16 {
        NORM_KIND
    }

    fn size(&self) -> Option<Size> {
        None
    }

    fn is_scaled(&self) -> bool {
        false
    }

    fn way_out(&self) -> &'static str {
        "it has no normalization with a gain; use another kind"
    }

    fn sites(&self, base: &Base) -> Vec<Site> {
        sites(base.graph(), |graph, node| match node.op.op_type() {
            "LayerNormalization" => Some(1),
            "Mul" => graph.rms_gain(node),
            _ => None,
        })
    }

    fn insertion(&self, _: &Base, site: &Site, _: &Settings) -> Result<Insertion, AdapterError> {
        Ok(plus_delta(site))
    }

    fn init(&self, _: &Site, insertion: &Insertion, _: &Settings, _: &mut Random) -> Vec<Vec<f32>> {
        insertion.zeros()
    }

    fn scale_axis(&self, _: usize, _: &[usize]) -> Option<usize> {
        None
    }

    fn changes_nothing(&self, tensors: &[Vec<f32>]) -> bool {
        all_zero(tensors)
    }

    fn merge(&self, _: &Site, _: &Settings, tensors: &[Vec<f32>]) -> Option<Merge> {
        tensors.first().map(|delta| Merge::AddToVector(delta.clone()))
    }
}

/// The kind id of biases. A point's tensor is the difference, in the shape of the bias.
const BIAS_KIND: u16 = 2;
/// The kind id of norm gains. A point's tensor is the difference, in the shape of the gain.
const NORM_KIND: u16 = 3;

impl Bias {
    /// The bias of the linear or convolution at a point, or that of the module of that path.
    pub(super) fn of(base: &Base, path: &str) -> Option<Site> {
        let node = base.points().iter().find(|point| point.path == path).map(|point| point.node.as_str());
        let name = format!("{path}.bias");
        Bias.sites(base).into_iter().find(|site| Some(site.node.as_str()) == node || site.path == name)
    }
}

impl Norm {
    /// The gain of the normalization of that path.
    pub(super) fn of(base: &Base, path: &str) -> Option<Site> {
        let name = format!("{path}.weight");
        Norm.sites(base).into_iter().find(|site| site.path == name)
    }
}

/// Whether every element of every tensor is zero.
pub(super) fn all_zero(tensors: &[Vec<f32>]) -> bool {
    tensors.iter().flatten().all(|x| *x == 0.0)
}

/// The float vectors of the file that nodes read at the input that `which` gives.
fn sites(graph: &Graph, which: impl Fn(&Graph, &Node) -> Option<usize>) -> Vec<Site> {
    let mut sites: Vec<Site> = Vec::new();
    for node in &graph.nodes {
        let Some((input, vector)) = which(graph, node).and_then(|i| Some((i, graph.vector(node, i)?))) else {
            continue;
        };
        // An initializer that several nodes read is a vector of its own at each of them.
        let taken = |path: &str| sites.iter().any(|site| site.path == path);
        let name = graph.values[vector.index()].name.clone();
        let path = std::iter::once(name.clone())
            .chain((1..).map(|i| format!("{name}_{i}")))
            .find(|path| !taken(path))
            .expect("the suffixes are endless");
        let shape = graph.constant(vector).map(|(_, dims)| dims.to_vec()).unwrap_or_default();
        // A product with a packed weight wants its bias frozen: the difference is added to the result.
        let added_to = if node.op.op_type() == "Gemm" {
            let output = node.outputs[0].expect("a Gemm has an output");
            Addend::Result(graph.values[output.index()].name.clone())
        } else {
            debug_assert!(node.inputs[input] == Some(vector));
            Addend::Vector(name)
        };
        sites.push(Site { path, node: node.name.clone(), at: At::Vector { shape, input, added_to } });
    }
    sites
}

/// What the difference of a vector is added to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addend {
    /// The vector itself, where this node reads it: the value.
    Vector(String),
    /// The result of the node: the value.
    Result(String),
}

fn plus_delta(site: &Site) -> Insertion {
    let At::Vector { shape, added_to, .. } = &site.at else { panic!("the kind made this site") };
    let [delta, sum] = ["delta", "tuned"].map(|suffix| format!("{}.{suffix}", site.path));
    let (value, node) = match added_to {
        Addend::Vector(value) => (value, Some(site.node.clone())),
        Addend::Result(value) => (value, None),
    };
    let fragment = Fragment {
        nodes: vec![FragmentNode::new("Add", &[value, &delta], sum.clone())],
        replaces: vec![Replacement { value: value.clone(), by: sum, node }],
        outputs: Vec::new(),
    };
    Insertion { parameters: vec![Binding { name: delta, shape: shape.clone(), scale: 1.0 }], fragment }
}

/// The input of a node that is a bias: of a linear, a convolution or a normalization.
fn bias(graph: &Graph, node: &Node) -> Option<usize> {
    match node.op.op_type() {
        "Gemm" | "Conv" | "ConvTranspose" | "LayerNormalization" => Some(2),
        "Add" => {
            let vector = (0..2).find(|&i| graph.vector(node, i).is_some())?;
            let other = node.inputs[1 - vector]?;
            graph.is_linear(other, 2).then_some(vector)
        }
        _ => None,
    }
}

impl Graph {
    /// The value at an input, if it is a float vector of the file.
    fn vector(&self, node: &Node, input: usize) -> Option<ValueId> {
        let value = node.inputs.get(input).copied().flatten()?;
        let (dtype, dims) = self.constant(value)?;
        let elements: usize = dims.iter().product();
        (dtype == crate::DType::F32 && dims.last() == Some(&elements) && elements > 1).then_some(value)
    }

    /// The input of a Mul that is the gain of an RMS normalization, which the file spells out: `x / sqrt(mean(x^2) + epsilon)`.
    fn rms_gain(&self, node: &Node) -> Option<usize> {
        let gain = (0..2).find(|&i| self.vector(node, i).is_some())?;
        let normalized = self.maker(node.inputs[1 - gain]?)?;
        let inputs = || normalized.inputs.iter().flatten();
        let root = match normalized.op.op_type() {
            "Div" => self.maker(*inputs().nth(1)?)?,
            "Mul" => inputs().filter_map(|input| self.maker(*input)).find_map(|maker| match maker.op.op_type() {
                "Reciprocal" => self.maker(maker.inputs[0]?),
                "Div" => self.maker(maker.inputs[1]?),
                _ => None,
            })?,
            _ => return None,
        };
        let sum = self.maker(root.inputs[0]?).filter(|_| root.op.op_type() == "Sqrt")?;
        let is_mean = |value: &ValueId| self.maker(*value).is_some_and(|maker| maker.op.op_type() == "ReduceMean");
        (sum.op.op_type() == "Add" && sum.inputs.iter().flatten().any(is_mean)).then_some(gain)
    }

    /// Whether a value is the product with a frozen weight, adapters at the product or not.
    fn is_linear(&self, value: ValueId, adds: usize) -> bool {
        let Some(node) = self.nodes.iter().find(|node| node.outputs.contains(&Some(value))) else { return false };
        match node.op.op_type() {
            "MatMul" => node.inputs.get(1).copied().flatten().is_some_and(|weight| self.is_frozen(weight)),
            "MatMulNBits" => true,
            "Add" if adds > 0 => node.inputs.iter().flatten().any(|&input| self.is_linear(input, adds - 1)),
            _ => false,
        }
    }

    /// Whether a value is in the file, or only spells differently what is.
    fn is_frozen(&self, value: ValueId) -> bool {
        self.constant(value).is_some_and(|_| !self.parameter_ids.contains(&value))
            || self.nodes.iter().any(|node| {
                node.outputs.contains(&Some(value))
                    && matches!(node.op.op_type(), "DequantizeLinear" | "Transpose" | "Reshape" | "Identity" | "Cast")
                    && node.inputs.first().copied().flatten().is_some_and(|input| self.is_frozen(input))
            })
    }
}
