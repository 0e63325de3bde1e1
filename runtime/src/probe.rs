//! Whether an adapter does anything.

use crate::adapters::AdapterError;
use crate::data::Dataset;
use crate::graph::{HostData, HostTensor};
use crate::session::{Session, SessionError, batch_rows};

impl Session {
    /// Checks that the adapter in use changes what the base computes for the first samples of `data`, at least one bit of
    /// one output. An adapter may be whole and of the right base and still be without effect: trained on too little, rounded
    /// too far, or in a place that the outputs do not depend on.
    ///
    /// # Errors
    /// [`AdapterError::NoEffect`] when nothing changes, and as [`Session::predict`]. The adapter stays in use.
    pub fn prove_effect(&mut self, data: &Dataset) -> Result<(), SessionError> {
        const SAMPLES: usize = 8;
        let Some(adapter) = self.adapter().cloned() else { return Ok(()) };
        let samples = batch_rows(self.base(), SAMPLES, data.len());
        let probe = data.select(&(0..samples).map(|row| row.min(data.len() - 1)).collect::<Vec<_>>());
        let inputs: Vec<(&str, &HostTensor)> = probe.inputs().iter().map(|(name, x)| (name.as_str(), x)).collect();
        let with = self.predict(&inputs)?;
        self.set_adapter(None)?;
        let without = self.predict(&inputs);
        self.set_adapter(Some(adapter))?;
        // What the adapter adds to the outputs is an effect too.
        let same = with.len() == without.as_ref().map_or(0, Vec::len);
        let same = same && with.iter().zip(&without?).all(|((_, a), (_, b))| same_bits(a, b));
        if same { Err(AdapterError::NoEffect { samples }.into()) } else { Ok(()) }
    }
}

fn same_bits(a: &HostTensor, b: &HostTensor) -> bool {
    match (a.data(), b.data()) {
        (HostData::F32(a), HostData::F32(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        (a, b) => a == b,
    }
}
