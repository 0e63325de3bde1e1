use inlay_format::points::PointOp;
use inlay_format::record::PathHash;

use super::features::Features;
use super::vectors::all_zero;
use super::{
    Adapter, AdapterError, AdapterKind, AdapterPoint, At, Binding, Fragment, FragmentNode, Insertion, Part, Settings,
    Site, Size,
};
use crate::base::Base;
use crate::graph::ValueId;
use crate::random::Random;

/// A classifier of its own on a tensor of the base: `logits = features W + b`, as the further output [`Head::OUTPUT`].
///
/// Features are the tensor's last axis, [B, C] or [B, T, C] (a label for each of T); the map of a convolution or pooling, [B, C, L]
/// or [B, C, H, W], is averaged over its places. W and b start at zero, or at the means of the classes ([`prototypes`](crate::train::prototypes)).
pub struct Head;

/// The name of the kind.
pub(crate) const HEAD: &str = "head";
/// The kind id of heads. A point's tensors are `W [C, classes]` and `b [classes]`.
const HEAD_KIND: u16 = 5;

impl Head {
    /// Name of the output that a head adds.
    pub const OUTPUT: &'static str = "head";

    /// Whether a head on the tensor of that name gives logits for each token, [B, T, classes], instead of [B, classes].
    ///
    /// # Errors
    /// [`AdapterError::Features`] when no head can sit there.
    pub fn is_of_tokens(base: &Base, tensor: &str) -> Result<bool, AdapterError> {
        Features::of(base, tensor).map(|features| features.of_tokens)
    }

    /// The tensor that a head sits on when none is named: what the linear reads whose result is the first float output, or
    /// that output.
    pub(crate) fn default_tensor(base: &Base) -> Option<&str> {
        let graph = base.graph();
        let output = graph.outputs().iter().find(|port| port.dtype == crate::DType::F32)?;
        let mut at = *graph.output_ids.get(graph.outputs().iter().position(|port| port.name == output.name)?)?;
        // From the output back to the linear, past its bias and the adapter at it.
        for _ in 0..8 {
            let Some(node) = graph.nodes.iter().find(|node| node.outputs.contains(&Some(at))) else { break };
            if let Some(point) =
                base.points().iter().find(|point| point.node == node.name && point.op == PointOp::Linear)
            {
                let node = graph.nodes.iter().find(|node| node.name == point.node)?;
                let features = graph.input_name(node, 0)?;
                if !base.is_inserted(features) {
                    return Some(features);
                }
                // What scales the linear's input is not of the model; what it scales is.
                let scale = graph.maker(node.inputs[0]?)?;
                let is_scaled = |input: &&ValueId| !graph.parameter_ids.contains(input);
                let scaled = scale.inputs.iter().flatten().find(is_scaled)?;
                return Some(&graph.values[scaled.index()].name);
            }
            let first = node.inputs.iter().flatten().find(|input| graph.constant(**input).is_none());
            match (node.op.op_type(), first) {
                ("Add" | "Mul" | "Identity" | "Cast", Some(&input)) => at = input,
                _ => break,
            }
        }
        Some(&output.name)
    }
}

impl AdapterKind for Head {
    fn name(&self) -> &'static str {
        HEAD
    }

    fn id(&self) -> u16 {
        HEAD_KIND
    }

    fn size(&self) -> Option<Size> {
        Some(Size { name: "classes", default: 2, max: u16::MAX })
    }

    fn is_scaled(&self) -> bool {
        false
    }

    fn way_out(&self) -> &'static str {
        "it computes nothing that a head could read"
    }

    fn sites(&self, base: &Base) -> Vec<Site> {
        let graph = base.graph();
        let mut computed = vec![false; graph.values.len()];
        graph.input_ids.iter().for_each(|input| computed[input.index()] = true);
        let mut sites = Vec::new();
        for node in graph.nodes.iter().filter(|node| node.op.op_type() != "Shape") {
            if !node.inputs.iter().flatten().any(|input| computed[input.index()]) {
                continue;
            }
            node.outputs.iter().flatten().for_each(|output| computed[output.index()] = true);
            if let Some(path) = graph.output_name(node).filter(|name| !base.is_inserted(name)) {
                sites.push(Site { path: path.to_owned(), node: node.name.clone(), at: At::Tensor });
            }
        }
        sites
    }

    fn default_sites(&self, base: &Base) -> Vec<Site> {
        let mut sites = self.sites(base);
        let tensor = Head::default_tensor(base);
        sites.retain(|site| Some(site.path.as_str()) == tensor);
        sites
    }

    fn insertion(&self, base: &Base, site: &Site, settings: &Settings) -> Result<Insertion, AdapterError> {
        let Features { mut nodes, value: features, width, .. } = Features::of(base, &site.path)?;
        let [weight, bias, product, logits] =
            ["head_weight", "head_bias", "head_product", "head_logits"].map(|suffix| format!("{}.{suffix}", site.path));
        nodes.push(FragmentNode::new("MatMul", &[&features, &weight], product.clone()));
        nodes.push(FragmentNode::new("Add", &[&product, &bias], logits.clone()));
        let classes = usize::from(settings.rank);
        let parameters = vec![
            Binding { name: weight, shape: vec![width, classes], scale: 1.0 },
            Binding { name: bias, shape: vec![classes], scale: 1.0 },
        ];
        let outputs = vec![(Head::OUTPUT.to_owned(), logits)];
        Ok(Insertion { parameters, fragment: Fragment { nodes, replaces: Vec::new(), outputs } })
    }

    fn init(&self, _: &Site, insertion: &Insertion, _: &Settings, _: &mut Random) -> Vec<Vec<f32>> {
        insertion.zeros()
    }

    fn scale_axis(&self, parameter: usize, _: &[usize]) -> Option<usize> {
        // A scale for each class, for b too: its values lie far apart in a head of class means, where a common scale of
        // 4 bits would decide by itself which class is nearest.
        Some(if parameter == 0 { 1 } else { 0 })
    }

    fn changes_nothing(&self, tensors: &[Vec<f32>]) -> bool {
        all_zero(tensors)
    }
}

/// What only adapters with a head can do.
impl Adapter {
    /// The number of classes of its head, if it has one.
    pub fn head_classes(&self) -> Option<usize> {
        self.head().map(|part| usize::from(part.settings.rank))
    }

    /// The same adapter, its head with `classes` classes: new ones at zero, to be trained or enrolled.
    ///
    /// # Errors
    /// When it has no head, or one with more classes already.
    pub fn with_classes(&self, base: &Base, classes: usize) -> Result<Self, AdapterError> {
        let part = self.head().ok_or(AdapterError::NoHead)?;
        let found = usize::from(part.settings.rank);
        let rank = u16::try_from(classes).ok().filter(|_| classes >= found);
        let rank = rank.ok_or(AdapterError::Classes { found, asked: classes })?;
        self.with_head(base, Settings { rank, ..part.settings }, |tensors| {
            let [weight, bias] = tensors else { unreachable!("a head has two tensors") };
            let rows = weight.chunks_exact(found);
            let weight = rows.flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0.0, classes - found)));
            let bias = bias.iter().copied().chain(std::iter::repeat_n(0.0, classes - found));
            vec![weight.collect(), bias.collect()]
        })
    }

    /// The same adapter with a head that gives the features as they are.
    pub(crate) fn with_identity_head(&self, base: &Base) -> Result<Self, AdapterError> {
        let part = self.head().ok_or(AdapterError::NoHead)?;
        let classes = usize::from(part.settings.rank).max(1);
        let width = part.points[0].tensors[0].len() / classes;
        let rank = u16::try_from(width).map_err(|_| AdapterError::Classes { found: classes, asked: width })?;
        self.with_head(base, Settings { rank, ..part.settings }, |_| {
            let identity = (0..width * width).map(|i| if i / width == i % width { 1.0 } else { 0.0 });
            vec![identity.collect(), vec![0.0; width]]
        })
    }

    /// The scale `s` of a head whose columns are `s m` and biases `-s |m|^2 / 2`, over the classes that are not zero.
    pub(crate) fn head_scale(&self) -> Option<f64> {
        let part = self.head()?;
        let [weight, bias] = part.points[0].tensors.as_slice() else { unreachable!("a head has two tensors") };
        let norm2 =
            |class: usize| -> f64 { weight.chunks_exact(bias.len()).map(|row| f64::from(row[class]).powi(2)).sum() };
        let of_class = |class: usize| norm2(class) / (-2.0 * f64::from(bias[class]));
        let scales: Vec<f64> =
            (0..bias.len()).map(of_class).filter(|scale| scale.is_finite() && *scale > 0.0).collect();
        (!scales.is_empty()).then(|| scales.iter().sum::<f64>() / scales.len() as f64)
    }

    /// Sets the column and bias of one class of the head.
    pub(crate) fn set_class(&mut self, class: usize, column: &[f64], bias: f64) {
        let part = self.parts.iter_mut().find(|part| part.kind.id() == HEAD_KIND).expect("the caller found a head");
        let [weight, biases] = part.points[0].tensors.as_mut_slice() else { unreachable!("a head has two tensors") };
        let classes = biases.len();
        weight.chunks_exact_mut(classes).zip(column).for_each(|(row, &x)| row[class] = x as f32);
        biases[class] = bias as f32;
    }

    /// Its head, and the adapter without it, if there is more.
    pub fn split_head(&self) -> (Option<Adapter>, Option<&AdapterPoint>) {
        let rest: Vec<Part> = self.parts.iter().filter(|part| part.kind.id() != HEAD_KIND).cloned().collect();
        let rest = (!rest.is_empty()).then(|| Adapter { base: self.base(), parts: rest });
        (rest, self.head().and_then(|part| part.points.first()))
    }

    fn head(&self) -> Option<&Part> {
        self.parts.iter().find(|part| part.kind.id() == HEAD_KIND)
    }

    fn with_head(
        &self,
        base: &Base,
        settings: Settings,
        tensors: impl Fn(&[Vec<f32>]) -> Vec<Vec<f32>>,
    ) -> Result<Self, AdapterError> {
        let mut parts = self.parts.clone();
        for part in parts.iter_mut().filter(|part| part.kind.id() == HEAD_KIND) {
            let point = &part.points[0];
            let site = Head.sites(base).into_iter().find(|site| site.path == point.path);
            let site = site.ok_or_else(|| AdapterError::UnknownPoint { path: PathHash::of(&point.path) })?;
            let tensors = tensors(&point.tensors);
            *part = Part::new(base, &Head, settings, &[site], |_, _| Ok(tensors.clone()))?;
        }
        Adapter::from_parts(base, parts)
    }
}
