use inlay_format::points::{LORA, LoraName, Point, PointOp};
use inlay_format::record::LORA_KIND;

use super::{AdapterKind, Binding, Settings};
use crate::random::Random;

/// LoRA (Hu et al., 2021): `y += scaling * (x A) B`, with A and B the transposed of PEFT's.
///
/// `scaling` is alpha / r, or alpha / sqrt(r) with rsLoRA. A starts uniform as PyTorch's Linear does, B at zero.
pub struct Lora;

impl AdapterKind for Lora {
    fn name(&self) -> &'static str {
        LORA
    }

    fn id(&self) -> u16 {
        LORA_KIND
    }

    fn parameters(&self, point: &Point<String>, settings: &Settings) -> Vec<Binding> {
        let rank = usize::from(settings.rank);
        let scaling = match (settings.rslora, f32::from(settings.rank)) {
            (false, r) => settings.alpha / r,
            (true, r) => settings.alpha / r.sqrt(),
        };
        vec![
            Binding {
                name: LoraName::a(&point.path).to_string(),
                shape: point.lora_a_shape(rank).to_vec(),
                scale: 1.0,
            },
            Binding {
                name: LoraName::b(&point.path).to_string(),
                shape: point.lora_b_shape(rank).to_vec(),
                scale: scaling,
            },
        ]
    }

    fn init(&self, point: &Point<String>, settings: &Settings, random: &mut Random) -> Vec<Vec<f32>> {
        let rank = usize::from(settings.rank);
        let elements = |shape: &[usize]| shape.iter().product::<usize>();
        let (a, b) = (elements(&point.lora_a_shape(rank)), elements(&point.lora_b_shape(rank)));
        // Kaiming-uniform with a = sqrt(5) is uniform within 1 / sqrt(fan in).
        let kernel: u32 = match point.op {
            PointOp::Linear => 1,
            PointOp::Conv => point.kernel.iter().product(),
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
}
