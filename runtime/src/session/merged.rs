use std::sync::Arc;

use super::{Session, SessionError};
use crate::adapters::Adapter;
use crate::engine::InPlace;
use crate::merge::{MergeOptions, Merged, MergedPoint};

impl Session {
    /// Merges an adapter into the weights, biases and gains: from here on predictions compute it at the cost of the base alone.
    ///
    /// The changed weights lie in memory of their own; the mapped base stays as it is. No adapter is in use while one is
    /// merged. The result lists each changed weight, with what storing it in the base's scheme cost; biases and gains are floats,
    /// exact to rounding, and not among them.
    ///
    /// # Errors
    /// When the adapter is of another base or of a kind that cannot be merged, or another one is merged; the session then
    /// stays as it was.
    pub fn merge(&mut self, adapter: &Adapter, options: &MergeOptions) -> Result<&[MergedPoint], SessionError> {
        self.expect_unmerged()?;
        let merged = Merged::new(self.base(), adapter, options)?;
        let version = self.engine.next_version();
        self.in_use = None;
        let merged = self.merged.insert(Arc::new(InPlace { version, merged }));
        Ok(merged.merged.points())
    }

    /// Undoes [`Session::merge`]: the base computes what it did, bit for bit. Gives whether anything was merged.
    pub fn unmerge(&mut self) -> bool {
        self.engine.forget_merged();
        self.merged.take().is_some()
    }

    /// The weights that a merged adapter changed; none when nothing is merged.
    pub fn merged(&self) -> &[MergedPoint] {
        self.merged.as_ref().map_or(&[], |in_place| in_place.merged.points())
    }

    pub(crate) fn expect_unmerged(&self) -> Result<(), SessionError> {
        if self.merged.is_some() { Err(SessionError::IsMerged) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::adapters::AdapterOptions;
    use crate::data::Dataset;
    use crate::train::{TrainError, TrainOptions, Trainer};

    /// Kernel calls of a prediction, and elements of memory that it works in.
    fn cost(session: &mut Session) -> (usize, Vec<usize>) {
        let key = session.key(vec![("x".to_owned(), vec![4, 3])], session.changes(), None);
        let cost = |program: &inlay_devices::program::Program| (program.forward.len(), program.region_lens.to_vec());
        session.engine.run(&key, |ready| Ok(cost(ready.plan.program()))).unwrap()
    }

    #[test]
    fn merged_runs_the_kernels_of_the_base_and_no_others() {
        let mut session = Session::open("tests/data/tiny").unwrap();
        let data = Dataset::read(session.base(), "tests/data/tiny.npz").unwrap();
        let new = || {
            Adapter::new(&crate::Base::open("tests/data/tiny", crate::Verify::Graph).unwrap(), &AdapterOptions::lora(2))
        };
        let mut trainer =
            Trainer::new(&mut session, new().unwrap(), &data, TrainOptions::new().steps(5).lr(1e-2)).unwrap();
        let adapter = trainer.run(|_| ControlFlow::Continue(())).unwrap().adapter;
        let plain = cost(&mut session);
        session.merge(&adapter, &MergeOptions::default()).unwrap();
        assert_eq!(cost(&mut session), plain);
        let refused = Trainer::new(&mut session, new().unwrap(), &data, TrainOptions::new()).err();
        assert!(matches!(refused, Some(TrainError::Session(SessionError::IsMerged))), "{refused:?}");
        assert!(session.unmerge());
        session.set_adapter(Some(adapter)).unwrap();
        assert!(cost(&mut session).0 > plain.0, "an adapter costs kernels");
    }
    #[test]
    fn kinds_that_are_in_a_weight_merge_and_others_are_refused() {
        let mut session = Session::open("tests/data/tiny").unwrap();
        let data = Dataset::read(session.base(), "tests/data/tiny.npz").unwrap();
        let train = |session: &mut Session, options: &AdapterOptions| {
            let new = Adapter::new(session.base(), options).unwrap();
            let options = TrainOptions::new().steps(8).lr(3e-2);
            Trainer::new(session, new, &data, options).unwrap().run(|_| ControlFlow::Continue(())).unwrap().adapter
        };
        let bias = AdapterOptions::kind("bias", 0);
        let dense = AdapterOptions::kind("dense", 0);
        let both = AdapterOptions::lora(2).and(AdapterOptions::kind("dense", 0).targets(["head"]));
        for options in [bias, dense, both] {
            let adapter = train(&mut session, &options);
            let plain = session.predict_all(&data, 16, |_| ()).unwrap();
            session.set_adapter(Some(adapter.clone())).unwrap();
            let adapted = session.predict_all(&data, 16, |_| ()).unwrap();
            session.merge(&adapter, &MergeOptions::keep_float("f32").unwrap()).unwrap();
            let merged = session.predict_all(&data, 16, |_| ()).unwrap();
            let floats = |outputs: &[(String, crate::HostTensor)]| outputs[0].1.floats().unwrap().to_vec();
            let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(distance(&floats(&merged), &floats(&adapted)) < 1e-5);
            assert!(distance(&floats(&merged), &floats(&plain)) > 1e-3);
            assert!(session.unmerge());
        }
        let head = train(&mut session, &AdapterOptions::head(None, 2));
        let refused = session.merge(&head, &MergeOptions::default()).unwrap_err();
        assert!(refused.to_string().contains("use it as an adapter, or write it into a model"), "{refused}");
        let bias = train(&mut session, &AdapterOptions::kind("bias", 0));
        session.add_adapter("b", bias).unwrap();
        let x = crate::HostTensor::new([2, 3], vec![0.5; 6]).unwrap();
        let refused = session.predict_rows(&[Some("b"), None], &[("x", &x)]).unwrap_err();
        assert!(matches!(refused, SessionError::NotMixable { kind: "bias", .. }), "{refused}");
    }
}
