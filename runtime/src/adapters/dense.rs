use inlay_format::points::PointOp;

use super::vectors::all_zero;
use super::{AdapterError, AdapterKind, Binding, Fragment, FragmentNode, Insertion, Replacement, Settings, Site, Size};
use crate::base::Base;
use crate::graph::Attributes;
use crate::merge::Merge;
use crate::random::Random;

/// A full-rank difference on the weight of a point: `y += x delta`, or a convolution with delta. Full fine-tuning of that
/// layer, as an adapter; the base's weight stays as it is, packed or not.
pub struct Dense;

/// The kind id of dense. A point's tensor is the difference, `[d_in, d_out]` or `[C_out, C_in, k..]`.
const DENSE_KIND: u16 = 4;

impl AdapterKind for Dense {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn id(&self) -> u16 {
        DENSE_KIND
    }

    fn size(&self) -> Option<Size> {
        None
    }

    fn is_scaled(&self) -> bool {
        false
    }

    fn way_out(&self) -> &'static str {
        "it lists no insertion points; export it with --kinds lora"
    }

    fn sites(&self, base: &Base) -> Vec<Site> {
        let weights = base.points().iter().filter(|point| matches!(point.op, PointOp::Linear | PointOp::Conv));
        weights.map(Site::at_point).collect()
    }

    fn insertion(&self, base: &Base, site: &Site, _: &Settings) -> Result<Insertion, AdapterError> {
        let point = site.point();
        let node = base.graph().nodes().iter().find(|node| node.name() == point.node);
        let values =
            node.and_then(|node| Some((node, base.graph().input_name(node, 0)?, base.graph().output_name(node)?)));
        let Some((node, x, y)) = values else {
            return Err(AdapterError::NoNode { path: site.path.clone(), node: point.node.clone() });
        };
        let [delta, product, sum] = ["delta", "dense", "dense_sum"].map(|suffix| format!("{}.{suffix}", site.path));
        let (d_in, d_out) = (point.d_in as usize, point.d_out as usize);
        let (op_type, shape, attributes) = match point.op {
            PointOp::Conv => {
                let kernel = point.kernel.iter().map(|&k| k as usize);
                ("Conv", [d_out, d_in].into_iter().chain(kernel).collect(), Attributes::clone(&node.attributes))
            }
            _ => ("MatMul", vec![d_in, d_out], Attributes::default()),
        };
        let fragment = Fragment {
            nodes: vec![
                FragmentNode { attributes, ..FragmentNode::new(op_type, &[x, &delta], product.clone()) },
                FragmentNode::new("Add", &[y, &product], sum.clone()),
            ],
            replaces: vec![Replacement { value: y.to_owned(), by: sum, node: None }],
            outputs: Vec::new(),
        };
        Ok(Insertion { parameters: vec![Binding { name: delta, shape, scale: 1.0 }], fragment })
    }

    fn init(&self, _: &Site, insertion: &Insertion, _: &Settings, _: &mut Random) -> Vec<Vec<f32>> {
        insertion.zeros()
    }

    fn scale_axis(&self, _: usize, shape: &[usize]) -> Option<usize> {
        // The outputs'.
        Some(if shape.len() == 2 { 1 } else { 0 })
    }

    fn changes_nothing(&self, tensors: &[Vec<f32>]) -> bool {
        all_zero(tensors)
    }

    fn merge(&self, site: &Site, _: &Settings, tensors: &[Vec<f32>]) -> Option<Merge> {
        let [delta] = tensors else { return None };
        let n = site.point().d_out as usize;
        Some(Merge::Add(match site.point().op {
            PointOp::Conv => {
                let k = delta.len() / n;
                (0..k).flat_map(|k_at| (0..n).map(move |n_at| delta[n_at * k + k_at])).collect()
            }
            _ => delta.clone(),
        }))
    }
}
