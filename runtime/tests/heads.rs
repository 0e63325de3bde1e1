//! Heads through the public API: from the means of classes, trained, with LoRA, with classes added later.

use std::ops::ControlFlow;

use inlay_runtime::random::Random;
use inlay_runtime::train::prototypes;
use inlay_runtime::{
    Adapter, AdapterError, AdapterOptions, Base, Dataset, Device, DeviceOptions, Dtype, HostTensor, Session,
    SessionOptions, TrainError, TrainOptions, Trainer, Verify,
};

fn session() -> Session {
    let base = Base::open("tests/data/tiny", Verify::Full).unwrap();
    let device = DeviceOptions { device: Device::Cpu, threads: Some(1), ..DeviceOptions::default() };
    Session::new(base, SessionOptions { device, ..SessionOptions::default() }).unwrap()
}

/// Samples around one centre a class, `each` of every class in `classes`.
fn clusters(base: &Base, classes: &[usize], each: usize, seed: u64) -> Dataset {
    const CENTRES: [[f32; 3]; 4] = [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0], [-2.0, -2.0, 1.0]];
    let mut random = Random::new(seed, 0);
    let (mut x, mut labels) = (Vec::new(), Vec::new());
    for &class in classes {
        for _ in 0..each {
            x.extend(CENTRES[class].map(|centre| centre + random.uniform(0.5)));
            labels.push(class as i64);
        }
    }
    let n = labels.len();
    let arrays = [("x", HostTensor::new([n, 3], x)), ("labels", HostTensor::new([n], labels))];
    Dataset::new(base, arrays.map(|(name, array)| (name.to_owned(), array.expect("the sizes agree")))).unwrap()
}

fn accuracy(session: &mut Session, adapter: &Adapter, data: &Dataset) -> f64 {
    session.set_adapter(Some(adapter.clone())).unwrap();
    let accuracy = session.evaluate(data, None, None, 16, |_| ()).unwrap().accuracy.unwrap();
    session.set_adapter(None).unwrap();
    accuracy
}

#[test]
fn a_head_of_class_means_answers_without_training() {
    let mut session = session();
    let data = clusters(session.base(), &[0, 1, 2], 5, 1);
    let new = Adapter::new(session.base(), &AdapterOptions::head(None, 3)).unwrap();
    assert!(new.changes_nothing());
    assert_eq!(new.points().next().unwrap().path(), "active", "what the classifier of the base reads");
    assert_eq!(new.outputs().collect::<Vec<_>>(), ["head"]);
    let head = prototypes(&mut session, &new, &data, 4).unwrap();
    let unseen = clusters(session.base(), &[0, 1, 2], 40, 2);
    assert!(accuracy(&mut session, &head, &unseen) > 0.95);
    // The base's own outputs are as they were, and the head's is one more.
    session.set_adapter(Some(head.clone())).unwrap();
    let with = session.predict_all(&unseen, 16, |_| ()).unwrap();
    session.set_adapter(None).unwrap();
    let without = session.predict_all(&unseen, 16, |_| ()).unwrap();
    assert_eq!(with[0], without[0]);
    assert_eq!((with.len(), with[1].0.as_str(), with[1].1.shape()), (2, "head", [120, 3].as_slice()));
    let record = head.to_record(Dtype::Int8).unwrap();
    let read = Adapter::from_record(session.base(), &record).unwrap();
    assert!(accuracy(&mut session, &read, &unseen) > 0.95);
}

#[test]
fn a_new_class_is_enrolled_from_three_samples() {
    let mut session = session();
    let new = Adapter::new(session.base(), &AdapterOptions::head(None, 3)).unwrap();
    let known = clusters(session.base(), &[0, 1, 2], 20, 1);
    let head = prototypes(&mut session, &new, &known, 16).unwrap();
    let three = clusters(session.base(), &[3], 3, 5);
    let enrolled = prototypes(&mut session, &head, &three, 16).unwrap();
    assert_eq!((head.head_classes(), enrolled.head_classes()), (Some(3), Some(4)));
    for classes in [&[3][..], &[0, 1, 2]] {
        let unseen = clusters(session.base(), classes, 40, 9);
        let accuracy = accuracy(&mut session, &enrolled, &unseen);
        assert!(accuracy > 0.95, "{classes:?}: {accuracy}");
    }
    // Old classes keep their columns.
    let columns = |adapter: &Adapter, class: usize| -> Vec<f32> {
        let point = adapter.points().next().unwrap();
        let classes = point.parameters()[0].shape[1];
        point.tensors()[0].chunks(classes).map(|row| row[class]).collect()
    };
    assert!((0..3).all(|class| columns(&head, class) == columns(&enrolled, class)));
}

#[test]
fn lora_and_head_are_trained_together_and_grow() {
    let mut session = session();
    let data = clusters(session.base(), &[0, 1, 2], 12, 1);
    let options = AdapterOptions::lora(2).and(AdapterOptions::head(None, 3)).seed(4);
    let new = Adapter::new(session.base(), &options).unwrap();
    // The base's classifier is no longer on the way to the output that is trained.
    let paths: Vec<&str> = new.points().map(|point| point.path()).collect();
    assert_eq!(paths, ["fc1", "active"]);
    let train = TrainOptions::new().steps(120).batch_size(12).lr(3e-2).hold_back(0.25).seed(2);
    let trained = Trainer::new(&mut session, new, &data, train).unwrap().run(|_| ControlFlow::Continue(())).unwrap();
    let verdict = trained.verdict.unwrap();
    assert!((verdict.base.loss - 3f64.ln()).abs() < 1e-5, "an untrained head knows nothing: {}", verdict.base.loss);
    assert!(verdict.adapter.loss < 0.2, "{verdict}");
    let record = trained.adapter.to_record(Dtype::F32).unwrap();
    let read = Adapter::from_record(session.base(), &record).unwrap();
    assert_eq!(read, trained.adapter);
    let grown = read.with_classes(session.base(), 4).unwrap();
    assert_eq!(grown.head_classes(), Some(4));
    let all = clusters(session.base(), &[0, 1, 2, 3], 12, 3);
    let train = TrainOptions::new().steps(150).batch_size(12).lr(3e-2).seed(2);
    let trained = Trainer::new(&mut session, grown, &all, train).unwrap().run(|_| ControlFlow::Continue(())).unwrap();
    let unseen = clusters(session.base(), &[3], 30, 7);
    assert!(accuracy(&mut session, &trained.adapter, &unseen) > 0.95);
}

#[test]
fn a_head_sits_on_what_points_compute() {
    let mut session = session();
    let data = clusters(session.base(), &[0, 1, 2], 12, 1);
    // Without an adapter there, the output of a point is another value under its name.
    for tensor in ["hidden", "logits"] {
        let new = Adapter::new(session.base(), &AdapterOptions::head(Some(tensor), 3)).unwrap();
        let train = TrainOptions::new().steps(60).batch_size(12).lr(3e-2).hold_back(0.25).seed(2);
        let trained = Trainer::new(&mut session, new, &data, train).unwrap();
        let trained = { trained }.run(|_| ControlFlow::Continue(())).unwrap();
        let verdict = trained.verdict.unwrap();
        assert!(verdict.adapter.loss < 0.8 * verdict.base.loss, "{tensor}: {verdict}");
        let read = Adapter::from_record(session.base(), &trained.adapter.to_record(Dtype::F32).unwrap()).unwrap();
        assert_eq!(read, trained.adapter);
    }
}

#[test]
fn what_a_head_cannot_be_is_named() {
    let mut session = session();
    let base = session.base().clone();
    let refused = Adapter::new(&base, &AdapterOptions::head(Some("nose"), 3)).unwrap_err();
    assert!(matches!(refused, AdapterError::Targets(_)), "{refused}");
    let listed = refused.to_string();
    assert!(listed.contains("hidden") && !listed.contains("lora_") && !listed.contains(".base"), "{listed}");
    assert!(matches!(Adapter::new(&base, &AdapterOptions::head(None, 0)), Err(AdapterError::Rank { .. })));
    assert!(matches!(
        Adapter::new(&base, &AdapterOptions::head(None, 3).alpha(2.0)),
        Err(AdapterError::Unscaled { .. })
    ));
    let lora = Adapter::new(&base, &AdapterOptions::lora(2)).unwrap();
    assert!(matches!(lora.with_classes(&base, 3), Err(AdapterError::NoHead)));
    let head = Adapter::new(&base, &AdapterOptions::head(None, 3)).unwrap();
    assert!(matches!(head.with_classes(&base, 2), Err(AdapterError::Classes { found: 3, asked: 2 })));
    // Class 3 has no sample, class 4 has.
    let mut labels = clusters(&base, &[0, 1], 2, 1);
    labels = Dataset::new(
        &base,
        [
            ("x".to_owned(), labels.inputs()[0].1.clone()),
            ("labels".to_owned(), HostTensor::new([4], vec![0i64, 1, 2, 4]).unwrap()),
        ],
    )
    .unwrap();
    assert!(matches!(prototypes(&mut session, &head, &labels, 4), Err(TrainError::Prototypes { .. })));
}
