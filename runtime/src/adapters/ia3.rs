use inlay_format::kinds::IA3;

use super::{AdapterError, AdapterKind, Insertion, Settings, Site, Size};
use crate::base::Base;
use crate::merge::Merge;
use crate::random::Random;

/// (IA)3 (Liu et al., 2022): `y = l * base(x)`, bias included; at feed-forward points `y = base(l * x)`. Starts at ones.
pub struct Ia3;

/// The kind id of (IA)3. A point's tensor is `l`, `[d_out]`, or `[d_in]` at a feed-forward point.
const IA3_KIND: u16 = 7;

impl AdapterKind for Ia3 {
    fn name(&self) -> &'static str {
        IA3
    }

    fn id(&self) -> u16 {
        IA3_KIND
    }

    fn size(&self) -> Option<Size> {
        None
    }

    fn is_scaled(&self) -> bool {
        false
    }

    fn way_out(&self) -> &'static str {
        "export it with --kinds ia3"
    }

    fn sites(&self, base: &Base) -> Vec<Site> {
        Site::offered(base, IA3)
    }

    fn insertion(&self, _: &Base, site: &Site, settings: &Settings) -> Result<Insertion, AdapterError> {
        Ok(Insertion::in_file(IA3, site, settings))
    }

    fn init(&self, _: &Site, insertion: &Insertion, _: &Settings, _: &mut Random) -> Vec<Vec<f32>> {
        insertion.parameters.iter().map(|parameter| vec![1.0; parameter.elements()]).collect()
    }

    fn scale_axis(&self, _: usize, _: &[usize]) -> Option<usize> {
        None
    }

    fn changes_nothing(&self, tensors: &[Vec<f32>]) -> bool {
        tensors.iter().flatten().all(|l| *l == 1.0)
    }

    fn merge(&self, site: &Site, _: &Settings, tensors: &[Vec<f32>]) -> Option<Merge> {
        let [factors] = tensors else { return None };
        let merge = if site.point().feedforward { Merge::ScaleInputs } else { Merge::ScaleOutputs };
        Some(merge(factors.clone()))
    }
}
