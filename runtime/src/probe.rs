//! Whether an adapter does anything.

use crate::adapters::AdapterError;
use crate::data::Dataset;
use crate::graph::{HostData, HostTensor};
use crate::session::{Session, SessionError, batch_rows};

impl Session {
    /// Checks that the adapter in use changes what the base computes for the first samples of `data`, at least one bit of
    /// one output. An adapter may be whole and of the right base and still be without effect: trained on too little, rounded
    /// too far, or swallowed by a node on the way. What can be said without inputs, [`Session::set_adapter`] has said before.
    ///
    /// The samples are the app's, since no made-up input will do: an adapter of word embeddings shows on the words that it
    /// was trained on only. It costs two predictions.
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

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::adapters::{Adapter, AdapterOptions};
    use crate::base::{Base, Verify};
    use crate::session::SessionOptions;
    use crate::train::{TrainOptions, Trainer};

    const BASE: &str = "tests/data/tiny";

    fn random(base: &Base, options: &AdapterOptions) -> Adapter {
        let mut adapter = Adapter::new(base, options).unwrap();
        adapter.tensors_mut().flat_map(|(_, tensor)| tensor).for_each(|x| *x = 0.5);
        adapter
    }

    /// The tiny base, whose only output is what its classifier reads.
    fn without_classifier() -> Base {
        let base = Base::open(BASE, Verify::Full).unwrap();
        let mut graph = base.graph().clone();
        graph.output_ids = vec![graph.value("active").unwrap()];
        base.with_graph(graph)
    }

    #[test]
    fn a_point_off_the_path_is_refused_when_it_is_opened() {
        let mut session = Session::new(without_classifier(), SessionOptions::default()).unwrap();
        let refused = |error: SessionError, path: &str| {
            let at = |error: &SessionError| match error {
                SessionError::Adapter(AdapterError::OffPath { path }) => Some(path.clone()),
                _ => None,
            };
            assert_eq!(at(&error).as_deref(), Some(path), "{error}");
        };
        for kind in ["lora", "dense", "bias"] {
            let size = u16::from(kind == "lora");
            let adapter = random(session.base(), &AdapterOptions::kind(kind, size));
            let off = adapter.points().map(|point| point.path()).find(|path| path.starts_with("head")).unwrap();
            refused(session.set_adapter(Some(adapter.clone())).unwrap_err(), off);
            refused(session.add_adapter("a", adapter.clone()).unwrap_err(), off);
            let on = AdapterOptions::kind(kind, size).targets(["fc1*"]);
            session.set_adapter(Some(random(session.base(), &on))).unwrap();
        }
        // A head of its own makes an output of what it reads.
        let head = random(session.base(), &AdapterOptions::head(Some("logits"), 3).and(AdapterOptions::lora(1)));
        session.set_adapter(Some(head)).unwrap();
    }

    #[test]
    fn factors_of_zero_are_refused_when_they_are_opened() {
        let mut session = Session::open(BASE).unwrap();
        let untrained = Adapter::new(session.base(), &AdapterOptions::lora(2)).unwrap();
        let error = session.set_adapter(Some(untrained.clone())).unwrap_err();
        assert!(matches!(error, SessionError::Adapter(AdapterError::ChangesNothing)), "{error}");
        let error = session.add_adapter("a", untrained).unwrap_err();
        assert!(matches!(error, SessionError::Adapter(AdapterError::ChangesNothing)), "{error}");
    }

    #[test]
    fn what_numbers_swallow_only_inputs_prove() {
        let mut session = Session::open(BASE).unwrap();
        let data = Dataset::read(session.base(), "tests/data/tiny.npz").unwrap();
        let mut tiny = Adapter::new(session.base(), &AdapterOptions::lora(2)).unwrap();
        tiny.tensors_mut().flat_map(|(_, tensor)| tensor).for_each(|x| *x = 1e-12);
        session.set_adapter(Some(tiny.clone())).unwrap();
        let error = session.prove_effect(&data).unwrap_err();
        assert!(matches!(error, SessionError::Adapter(AdapterError::NoEffect { samples: 8 })), "{error}");
        assert_eq!(session.adapter(), Some(&tiny), "it stays in use");
        session.set_adapter(None).unwrap();
        let new = Adapter::new(session.base(), &AdapterOptions::lora(2)).unwrap();
        let options = TrainOptions::new().steps(5).lr(1e-2);
        let trained = Trainer::new(&mut session, new, &data, options).unwrap().run(|_| ControlFlow::Continue(()));
        session.set_adapter(Some(trained.unwrap().adapter)).unwrap();
        session.prove_effect(&data).unwrap();
    }
}
