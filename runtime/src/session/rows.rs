use std::sync::Arc;

use super::residents::{Changes, Resident};
use super::{Session, SessionError};
use crate::graph::HostTensor;
use crate::plan::Binding;

impl Session {
    /// Every output for one batch of inputs in which each sample has a resident adapter of its own, or none.
    ///
    /// Each sample is computed with its own parameters in the same kernels, and gives what it would give in a batch of
    /// its own. The adapters may differ in rank and points; smaller ranks are filled up with zeros. They are of LoRA, or of
    /// LoRA-XS, which is then computed as LoRA.
    ///
    /// ```
    /// use inlay_runtime::{Adapter, HostTensor, Session};
    /// # use std::ops::ControlFlow;
    /// # use inlay_runtime::{AdapterOptions, Dataset, TrainOptions, Trainer};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut session = Session::open("tests/data/tiny")?;
    /// # let data = Dataset::read(session.base(), "tests/data/tiny.npz")?;
    /// # let mut train = |session: &mut Session, rank| -> Result<Adapter, Box<dyn std::error::Error>> {
    /// #     let new = Adapter::new(session.base(), &AdapterOptions::lora(rank))?;
    /// #     let options = TrainOptions::new().steps(3);
    /// #     Ok(Trainer::new(session, new, &data, options)?.run(|_| ControlFlow::Continue(()))?.adapter)
    /// # };
    /// # let (anna, bert) = (train(&mut session, 1)?, train(&mut session, 2)?);
    /// session.add_adapter("anna", anna)?;
    /// session.add_adapter("bert", bert)?;
    /// let x = HostTensor::new([3, 3], vec![0.5; 9]).expect("nine values");
    /// let outputs = session.predict_rows(&[Some("bert"), None, Some("anna")], &[("x", &x)])?;
    /// assert_eq!(outputs[0].1.shape(), [3, 2]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When a name is not resident, an adapter is of a kind that cannot differ between samples, an input does not have
    /// one row for each entry of `adapters`, the graph mixes the samples of a batch, or the device fails.
    pub fn predict_rows(
        &mut self,
        adapters: &[Option<&str>],
        inputs: &[(&str, &HostTensor)],
    ) -> Result<Vec<(String, HostTensor)>, SessionError> {
        let mut rows: Vec<Option<Arc<Resident>>> = Vec::with_capacity(adapters.len());
        let mut bindings: Vec<Binding> = Vec::new();
        for name in adapters {
            let Some(name) = name else {
                rows.push(None);
                continue;
            };
            rows.push(Some(self.mixable(name)?));
        }
        for resident in rows.iter().flatten() {
            widen(&mut bindings, &resident.changes().bindings);
        }
        // The same adapters in another order are the same plan.
        bindings.sort_by(|a, b| a.name.cmp(&b.name));
        let changes = Changes { bindings, fragments: Vec::new() };
        self.run(inputs, changes, Some(adapters.len()), &rows)
    }
}

/// Makes room for the parameters of one more adapter.
fn widen(bindings: &mut Vec<Binding>, more: &[Binding]) {
    for binding in more {
        match bindings.iter_mut().find(|known| known.name == binding.name) {
            Some(known) => {
                known.shape.iter_mut().zip(&binding.shape).for_each(|(known, size)| *known = *size.max(known))
            }
            None => bindings.push(binding.clone()),
        }
    }
}
