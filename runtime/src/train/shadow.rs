use inlay_devices::backend::{DeviceError, Executable};
use inlay_devices::program::Region;

use crate::adapters::Adapter;
use crate::plan::Plan;

/// The host's copy of all that a step changes: parameters first, then what the optimizer keeps for each of them.
///
/// Arrays are compact, in the order of the adapter's tensors, which is that of the record and of the state file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shadow {
    pub arrays: Vec<(Region, Vec<f32>)>,
}

impl Shadow {
    /// The parameters of `adapter`, and an optimizer that remembers nothing.
    pub fn new(adapter: &Adapter, state: &[Region]) -> Self {
        let params: Vec<f32> = adapter.tensors().flat_map(|(_, values)| values).copied().collect();
        let len = params.len();
        let mut arrays = vec![(Region::Params, params)];
        arrays.extend(state.iter().map(|region| (*region, vec![0.0; len])));
        Shadow { arrays }
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.arrays[0].1.len()
    }

    /// Copies the parameters into `adapter`.
    pub fn store(&self, adapter: &mut Adapter) {
        let mut rest = self.arrays[0].1.as_slice();
        for (_, tensor) in adapter.tensors_mut() {
            let (values, after) = rest.split_at(tensor.len());
            tensor.copy_from_slice(values);
            rest = after;
        }
    }

    /// Writes every array to the device.
    pub fn write(&self, plan: &Plan, executable: &mut dyn Executable) -> Result<(), DeviceError> {
        for (region, values) in &self.arrays {
            let mut padded = vec![0.0; plan.program().region_len(*region)];
            let mut rest = values.as_slice();
            for slot in plan.parameters() {
                let (values, after) = rest.split_at(slot.len());
                padded[slot.offset..][..slot.len()].copy_from_slice(values);
                rest = after;
            }
            executable.write(*region, 0, &padded)?;
        }
        Ok(())
    }

    /// What every array is on the device now.
    pub fn read(&self, plan: &Plan, executable: &mut dyn Executable) -> Result<Self, DeviceError> {
        let read = |(region, _): &(Region, _)| Ok((*region, read_region(*region, plan, executable)?));
        Ok(Shadow { arrays: self.arrays.iter().map(read).collect::<Result<_, DeviceError>>()? })
    }

    /// The first value that is NaN or infinite.
    pub fn not_finite(&self) -> Option<f32> {
        self.arrays.iter().flat_map(|(_, values)| values).copied().find(|value| !value.is_finite())
    }
}

/// A region that has one element a parameter, without the padding between tensors.
pub(super) fn read_region(
    region: Region,
    plan: &Plan,
    executable: &mut dyn Executable,
) -> Result<Vec<f32>, DeviceError> {
    let mut padded = vec![0.0; plan.program().region_len(region)];
    executable.read(region, 0, &mut padded)?;
    Ok(plan.parameters().iter().flat_map(|slot| &padded[slot.offset..][..slot.len()]).copied().collect())
}
