use inlay_format::points::{LORA, LoraName, MAX_RANK, PointOp};
use inlay_format::record::LORA_KIND;

use super::{AdapterError, AdapterKind, Binding, Insertion, Settings, Site, Size};
use crate::base::Base;
use crate::merge::Merge;
use crate::random::Random;

/// LoRA (Hu et al., 2021): `y += scaling * (x A) B`, with A and B the transposed of PEFT's.
///
/// `scaling` is alpha / r, or alpha / sqrt(r) with rsLoRA. A starts uniform as PyTorch's Linear does, B at zero. At a lookup,
/// `y += scaling * A[ids] B`, it is A that starts at zero, as in PEFT: words that training never meets stay as they are.
pub struct Lora;

impl AdapterKind for Lora {
    fn name(&self) -> &'static str {
        LORA
    }

    fn id(&self) -> u16 {
        LORA_KIND
    }

    fn size(&self) -> Option<Size> {
        Some(Size { name: "rank", default: 4, max: MAX_RANK as u16 })
    }

    fn is_scaled(&self) -> bool {
        true
    }

    fn way_out(&self) -> &'static str {
        "export it with --kinds lora"
    }

    fn sites(&self, base: &Base) -> Vec<Site> {
        Site::offered(base, LORA)
    }

    fn default_sites(&self, base: &Base) -> Vec<Site> {
        let sites = self.sites(base);
        let (lookups, others): (Vec<Site>, Vec<Site>) =
            sites.into_iter().partition(|site| site.point().op == PointOp::Embedding);
        if others.is_empty() { lookups } else { others }
    }

    fn insertion(&self, _: &Base, site: &Site, settings: &Settings) -> Result<Insertion, AdapterError> {
        let (point, rank) = (site.point(), usize::from(settings.rank));
        let a = Binding {
            name: LoraName::a(&point.path).to_string(),
            shape: point.lora_a_shape(rank).to_vec(),
            scale: 1.0,
        };
        let b = Binding {
            name: LoraName::b(&point.path).to_string(),
            shape: point.lora_b_shape(rank).to_vec(),
            scale: settings.scaling(),
        };
        Ok(Insertion { parameters: vec![a, b], ..Insertion::default() })
    }

    fn init(&self, site: &Site, insertion: &Insertion, _: &Settings, random: &mut Random) -> Vec<Vec<f32>> {
        let point = site.point();
        let [a, b] = [0, 1].map(|i| insertion.parameters[i].elements());
        // Kaiming-uniform with a = sqrt(5) is uniform within 1 / sqrt(fan in).
        let kernel: u32 = match point.op {
            PointOp::Linear => 1,
            PointOp::Conv => point.kernel.iter().product(),
            // As wide as the standard normal distribution.
            PointOp::Embedding => return vec![vec![0.0; a], (0..b).map(|_| random.uniform(3f32.sqrt())).collect()],
        };
        let bound = 1.0 / (f64::from(point.d_in) * f64::from(kernel)).sqrt() as f32;
        vec![(0..a).map(|_| random.uniform(bound)).collect(), vec![0.0; b]]
    }

    fn scale_axis(&self, parameter: usize, shape: &[usize]) -> Option<usize> {
        // The rank's.
        Some(match (parameter, shape.len()) {
            (0, 2) => 1,
            (0, _) => 0,
            (_, 2) => 0,
            (_, _) => 1,
        })
    }

    fn changes_nothing(&self, tensors: &[Vec<f32>]) -> bool {
        tensors.iter().any(|tensor| tensor.iter().all(|x| *x == 0.0))
    }

    fn merge(&self, site: &Site, settings: &Settings, tensors: &[Vec<f32>]) -> Option<Merge> {
        let (point, rank) = (site.point(), usize::from(settings.rank));
        let [a, b] = tensors else { return None };
        let (k, n) = (a.len() / rank, point.d_out as usize);
        // Strides of A over (k, r), of B over (r, n).
        let (a_strides, b_strides) = match point.op {
            PointOp::Linear | PointOp::Embedding => ([rank, 1], [n, 1]),
            PointOp::Conv => ([1, k], [1, rank]),
        };
        let mut delta = Vec::with_capacity(k * n);
        let mut row = vec![0f64; n];
        for i in 0..k {
            row.fill(0.0);
            for r in 0..rank {
                let a = f64::from(a[i * a_strides[0] + r * a_strides[1]]);
                let b = b[r * b_strides[0]..].iter().step_by(b_strides[1]);
                row.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * f64::from(*b));
            }
            delta.extend(row.iter().map(|sum| (f64::from(settings.scaling()) * sum) as f32));
        }
        // A table is the weight [width, rows].
        let is_table = point.op == PointOp::Embedding;
        Some(Merge::Add(if is_table {
            (0..n).flat_map(|k| delta[k..].iter().step_by(n).copied()).collect()
        } else {
            delta
        }))
    }

    fn mixes(&self) -> bool {
        true
    }
}
