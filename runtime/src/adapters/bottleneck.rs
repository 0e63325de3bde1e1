use inlay_format::kinds::BOTTLENECK;
use inlay_format::points::MAX_RANK;

use super::{AdapterError, AdapterKind, Insertion, Settings, Site, Size};
use crate::base::Base;
use crate::random::Random;

/// Bottleneck adapters (Houlsby et al., 2019): `y = h + f(h down + down_bias) up + up_bias`, where h is what the base
/// computes at the point, bias included.
///
/// The export chose the places and f. `down` starts uniform as PyTorch's Linear does, everything else at zero.
pub struct Bottleneck;

/// The kind id of bottlenecks. A point's tensors are `down [d, w]`, `down_bias [w]`, `up [w, d]` and `up_bias [d]`.
const BOTTLENECK_KIND: u16 = 8;

impl AdapterKind for Bottleneck {
    fn name(&self) -> &'static str {
        BOTTLENECK
    }

    fn id(&self) -> u16 {
        BOTTLENECK_KIND
    }

    fn size(&self) -> Option<Size> {
        Some(Size { name: "width", default: 8, max: MAX_RANK as u16 })
    }

    fn is_scaled(&self) -> bool {
        false
    }

    fn way_out(&self) -> &'static str {
        "export it with --kinds bottleneck"
    }

    fn sites(&self, base: &Base) -> Vec<Site> {
        Site::offered(base, BOTTLENECK)
    }

    fn insertion(&self, _: &Base, site: &Site, settings: &Settings) -> Result<Insertion, AdapterError> {
        Ok(Insertion::in_file(BOTTLENECK, site, settings))
    }

    fn init(&self, site: &Site, insertion: &Insertion, _: &Settings, random: &mut Random) -> Vec<Vec<f32>> {
        let mut tensors = insertion.zeros();
        let bound = 1.0 / f64::from(site.point().d_out).sqrt() as f32;
        tensors[0].iter_mut().for_each(|down| *down = random.uniform(bound));
        tensors
    }

    fn scale_axis(&self, parameter: usize, _: &[usize]) -> Option<usize> {
        // A scale for each of the hidden units.
        match parameter {
            0 => Some(1),
            2 => Some(0),
            _ => None,
        }
    }

    fn changes_nothing(&self, tensors: &[Vec<f32>]) -> bool {
        // Without `up` and `up_bias` nothing comes back.
        tensors.iter().skip(2).flatten().all(|x| *x == 0.0)
    }
}
