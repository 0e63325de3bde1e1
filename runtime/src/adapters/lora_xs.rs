use inlay_format::points::{LoraName, MAX_RANK, PointOp};

use super::vectors::all_zero;
use super::{
    Adapter, AdapterError, AdapterKind, Binding, Fragment, FragmentNode, Insertion, Lora, Part, Replacement, Settings,
    Site, Size,
};
use crate::base::Base;
use crate::graph::{Attributes, HostTensor};
use crate::random::Random;

/// LoRA-XS (Bałazy et al., 2024): LoRA whose A and B are frozen, with a trained core between: `y += scaling * ((x A) R) B`.
///
/// A `[d_in, r]` and B `[r, d_out]` are the first r singular directions of the weight, B with the singular values; the exported
/// file holds them as int8 (`converter export --basis r`). They take the place of LoRA's inputs: `lora_A = A`, `lora_B = R B`.
pub struct LoraXs;

/// The kind id of LoRA-XS. A point's tensor is the core `R [r, r]`.
const LORA_XS_KIND: u16 = 6;
/// The kind's name, in points too.
const LORA_XS: &str = "lora-xs";

/// The names of a basis in the exported file: A, its scales [r], B, its scales [d_out].
fn names(path: &str) -> [String; 4] {
    ["basis_A", "basis_A.scale", "basis_B", "basis_B.scale"].map(|suffix| format!("{path}.{suffix}"))
}

/// The rank of the basis at a point: that of the export, or less where the weight is smaller.
fn rank_at(base: &Base, path: &str) -> Result<usize, AdapterError> {
    let [a, ..] = names(path);
    match base.constant(&a).map(|(_, dims)| dims) {
        Some(&[_, rank]) => Ok(rank),
        _ => Err(AdapterError::NoBasis { path: path.to_owned() }),
    }
}

impl AdapterKind for LoraXs {
    fn name(&self) -> &'static str {
        LORA_XS
    }

    fn id(&self) -> u16 {
        LORA_XS_KIND
    }

    fn size(&self) -> Option<Size> {
        Some(Size { name: "rank", default: 16, max: MAX_RANK as u16 })
    }

    fn default_size(&self, base: &Base) -> u16 {
        let ranks = self.sites(base).into_iter().filter_map(|site| rank_at(base, &site.path).ok());
        ranks.max().and_then(|rank| u16::try_from(rank).ok()).unwrap_or(16)
    }

    fn is_scaled(&self) -> bool {
        true
    }

    fn way_out(&self) -> &'static str {
        "export it with --basis 16"
    }

    fn sites(&self, base: &Base) -> Vec<Site> {
        let mut sites = Site::offered(base, LORA_XS);
        sites.retain(|site| site.point().op == PointOp::Linear);
        sites
    }

    fn insertion(&self, base: &Base, site: &Site, settings: &Settings) -> Result<Insertion, AdapterError> {
        let (path, rank) = (&site.path, rank_at(base, &site.path)?);
        let expected = self.default_size(base);
        if settings.rank != expected {
            return Err(AdapterError::BasisRank { found: settings.rank, expected });
        }
        let [a, a_scale, b, b_scale] = names(path);
        let [core, a_float, b_float, product] =
            ["core", "basis_A.float", "basis_B.float", "core_B"].map(|suffix| format!("{path}.{suffix}"));
        let dequantize = |q: &str, scale: &str, output: &str| FragmentNode {
            attributes: Attributes::default().with_int("axis", 1),
            ..FragmentNode::new("DequantizeLinear", &[q, scale], output)
        };
        let nodes = vec![
            dequantize(&a, &a_scale, &a_float),
            dequantize(&b, &b_scale, &b_float),
            FragmentNode::new("MatMul", &[&core, &b_float], product.clone()),
        ];
        let replaces = [(LoraName::a(path), a_float), (LoraName::b(path), product)].map(|(input, by)| Replacement {
            value: input.to_string(),
            by,
            node: None,
        });
        let parameters = vec![Binding { name: core, shape: vec![rank, rank], scale: settings.scaling() }];
        Ok(Insertion { parameters, fragment: Fragment { nodes, replaces: replaces.into(), outputs: Vec::new() } })
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
}

impl Adapter {
    /// The same adapter with every LoRA-XS part written as plain LoRA, `A` and `R B`, which PEFT and onnxruntime know. Other
    /// parts stay as they are.
    ///
    /// # Errors
    /// When the base has no basis for it.
    pub fn to_lora(&self, base: &Base) -> Result<Self, AdapterError> {
        let mut parts: Vec<Part> = Vec::new();
        for part in &self.parts {
            if part.kind.id() != LORA_XS_KIND {
                parts.push(part.clone());
                continue;
            }
            let mut ranks: Vec<usize> = part.points.iter().map(|point| point.parameters()[0].shape[0]).collect();
            ranks.sort_unstable();
            ranks.dedup();
            for rank in ranks {
                let of_rank = |site: &Site| {
                    part.points.iter().find(|point| point.path == site.path && point.parameters()[0].shape[0] == rank)
                };
                let sites: Vec<Site> = Lora.sites(base).into_iter().filter(|site| of_rank(site).is_some()).collect();
                // The scaling stays what it is, whatever the rank.
                let settings = Settings {
                    rank: u16::try_from(rank).expect("a basis has at most the largest rank"),
                    alpha: part.settings.scaling() * rank as f32,
                    rslora: false,
                };
                parts.push(Part::new(base, &Lora, settings, &sites, |site, _| {
                    let point = of_rank(site).expect("the sites were chosen by it");
                    let [a, a_scale, b, b_scale] = names(&site.path);
                    let (a, b) = (floats(base, &a, &a_scale), floats(base, &b, &b_scale));
                    let no_basis = || AdapterError::NoBasis { path: site.path.clone() };
                    let (a, b) = (a.ok_or_else(no_basis)?, b.ok_or_else(no_basis)?);
                    Ok(vec![a, product(&point.tensors[0], &b, rank)])
                })?);
            }
        }
        Adapter::from_parts(base, parts)
    }
}

/// An int8 matrix of the file with a scale for each column, as floats.
fn floats(base: &Base, name: &str, scale: &str) -> Option<Vec<f32>> {
    let scales = base.constant(scale)?.0;
    let scales = HostTensor::from_window(scales.dtype, &scales.dims, &scales.window)?.floats()?.to_vec();
    let bytes = base.constant(name)?.0.window.bytes();
    Some(bytes.iter().enumerate().map(|(i, &q)| f32::from(q.cast_signed()) * scales[i % scales.len()]).collect())
}

/// `core [r, r] x b [r, n]`.
fn product(core: &[f32], b: &[f32], rank: usize) -> Vec<f32> {
    let n = b.len() / rank.max(1);
    let element = |i: usize| -> f32 {
        let (row, column) = (i / n, i % n);
        (0..rank).map(|k| f64::from(core[row * rank + k]) * f64::from(b[k * n + column])).sum::<f64>() as f32
    };
    (0..rank * n).map(element).collect()
}
