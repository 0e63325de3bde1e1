//! Training through the public API, on the small base in `tests/data`.

use std::ops::ControlFlow;

use inlay_runtime::train::{Schedule, optimizers};
use inlay_runtime::{
    Adapter, AdapterError, AdapterOptions, Base, Dataset, Device, DeviceOptions, Dtype, HostTensor, Session,
    SessionError, SessionOptions, TrainError, TrainOptions, Trainer, Verify,
};

fn session(threads: usize) -> Session {
    let base = Base::open("tests/data/tiny", Verify::Full).unwrap();
    let device = DeviceOptions { device: Device::Cpu, threads: Some(threads), ..DeviceOptions::default() };
    Session::new(base, SessionOptions { device, ..SessionOptions::default() }).unwrap()
}

fn data(session: &Session) -> Dataset {
    Dataset::read(session.base(), "tests/data/tiny.npz").unwrap()
}

fn adapter(session: &Session) -> Adapter {
    Adapter::new(session.base(), &AdapterOptions::lora(2).seed(3)).unwrap()
}

fn options() -> TrainOptions {
    TrainOptions::new().steps(12).batch_size(8).lr(2e-2).seed(5)
}

/// Losses of all steps, and the adapter.
fn train(session: &mut Session, data: &Dataset, options: TrainOptions) -> (Vec<f32>, Adapter) {
    let start = adapter(session);
    let mut losses = Vec::new();
    let mut trainer = Trainer::new(session, start, data, options).unwrap();
    let trained = trainer.run(|step| {
        losses.push(step.loss);
        ControlFlow::Continue(())
    });
    (losses, trained.unwrap().adapter)
}

fn record(adapter: &Adapter) -> Vec<u8> {
    adapter.to_record(Dtype::F32).unwrap()
}

fn assert_close(what: &str, found: &Adapter, expected: &Adapter, limit: f32) {
    for ((binding, found), (_, expected)) in found.tensors().zip(expected.tensors()) {
        let error = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error <= limit, "{what}: {} differs by {error:e}", binding.name);
    }
}

#[test]
fn runs_are_the_same_bit_for_bit_on_any_number_of_threads() {
    for optimizer in optimizers::ALL {
        let run = |threads| {
            let mut session = session(threads);
            let data = data(&session);
            let options = options().optimizer(*optimizer).momentum(0.5).clip_norm(0.5).schedule(Schedule::Cosine, 3);
            let (losses, adapter) = train(&mut session, &data, options);
            session.set_adapter(Some(adapter.clone())).unwrap();
            let outputs = session.predict_all(&data, 7, |_| ()).unwrap();
            (losses.into_iter().map(f32::to_bits).collect::<Vec<_>>(), record(&adapter), outputs)
        };
        let one = run(1);
        for threads in [1, 2, 3] {
            assert_eq!(run(threads), one, "{} on {threads} threads", optimizer.name());
        }
    }
}

#[test]
fn accumulated_batches_are_one_large_batch() {
    let mut session = session(1);
    let data = data(&session);
    let (whole_losses, whole) = train(&mut session, &data, options().batch_size(24).shuffle(false));
    let (losses, parts) = train(&mut session, &data, options().batch_size(8).accumulate(3).shuffle(false));
    assert_close("accumulated", &parts, &whole, 1e-5);
    for (a, b) in losses.iter().zip(&whole_losses) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn a_short_last_batch_counts_its_samples_only() {
    let mut session = session(1);
    let all = data(&session);
    let ten = all.select(&(0..10).collect::<Vec<_>>());
    let two = all.select(&[8, 9]);
    let start = adapter(&session);
    let mut trainer = Trainer::new(&mut session, start, &ten, options().shuffle(false)).unwrap();
    trainer.step().unwrap();
    let before = trainer.adapter();
    let loss = trainer.step().unwrap().unwrap().loss;
    let after = trainer.adapter();

    session.set_adapter(Some(before.clone())).unwrap();
    let expected = session.evaluate(&two, None, None, 8, |_| ()).unwrap().loss;
    assert!((f64::from(loss) - expected).abs() < 1e-6, "{loss} {expected}");
    // The optimizer has no memory of its own here: the same step on a batch of just these two must agree.
    let step = |session: &mut Session, data: &Dataset, start: Adapter, steps: u64| {
        let sgd = optimizers::find("sgd").unwrap();
        let options = options().optimizer(sgd).shuffle(false).steps(steps);
        let mut trainer = Trainer::new(session, start, data, options).unwrap();
        let mut adapters = vec![trainer.adapter()];
        while trainer.step().unwrap().is_some() {
            adapters.push(trainer.adapter());
        }
        adapters
    };
    let padded = step(&mut session, &ten, before, 2);
    let alone = step(&mut session, &two, padded[1].clone(), 1);
    assert_close("padded", &padded[2], &alone[1], 1e-6);
    assert_ne!(after, padded[2]);
}

#[test]
fn a_run_continues_where_its_state_was_saved() {
    for optimizer in optimizers::ALL {
        let mut session = session(1);
        let data = data(&session);
        let options = || options().optimizer(*optimizer).momentum(0.9).schedule(Schedule::Linear, 2);
        let (losses, whole) = train(&mut session, &data, options());

        let start = adapter(&session);
        let mut first = Trainer::new(&mut session, start.clone(), &data, options()).unwrap();
        let half = first.run(|step| if step.step == 7 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
        let half = half.unwrap();
        assert!(half.stopped && half.steps == 7);
        let saved = half.adapter.to_record(Dtype::F16).unwrap();
        let state = first.state(&saved).unwrap();

        let mut second = Trainer::new(&mut session, start, &data, options()).unwrap();
        second.resume(&saved, &state).unwrap();
        let mut rest = Vec::new();
        let trained = second.run(|step| {
            rest.push(step.loss);
            ControlFlow::Continue(())
        });
        assert_eq!(rest, losses[7..], "{}", optimizer.name());
        assert_eq!(record(&trained.unwrap().adapter), record(&whole));
        let other = record(&whole);
        assert!(matches!(second.resume(&other, &state), Err(TrainError::State(_))));
        assert!(matches!(second.resume(&saved, &state[1..]), Err(TrainError::State(_))));
    }
}

#[test]
fn a_loss_that_turns_nan_keeps_the_last_good_adapter() {
    let mut session = session(1);
    let data = data(&session);
    let start = adapter(&session);
    let sgd = optimizers::find("sgd").unwrap();
    let mut trainer = Trainer::new(&mut session, start, &data, options().optimizer(sgd).lr(1e18).steps(50)).unwrap();
    let mut good = trainer.adapter();
    let error = loop {
        match trainer.step() {
            Ok(report) => assert!(report.is_some(), "such a rate must go astray"),
            Err(error) => break error,
        }
        good = trainer.adapter();
    };
    assert!(matches!(error, TrainError::NotFinite { .. }), "{error}");
    assert_eq!(trainer.adapter(), good);
    assert!(trainer.adapter().tensors().all(|(_, values)| values.iter().all(|x| x.is_finite())));
}

#[test]
fn what_does_not_beat_the_base_is_refused() {
    let mut session = session(1);
    let data = data(&session);
    let good = options().epochs(20).hold_back(0.25);
    let start = adapter(&session);
    let trained =
        Trainer::new(&mut session, start.clone(), &data, good).unwrap().run(|_| ControlFlow::Continue(())).unwrap();
    let verdict = trained.verdict.unwrap();
    assert_eq!(verdict.base.samples, 15);
    assert!(verdict.is_better(), "{verdict}");

    let sgd = optimizers::find("sgd").unwrap();
    let wild = options().optimizer(sgd).lr(300.0).steps(1).hold_back(0.25);
    let mut trainer = Trainer::new(&mut session, start, &data, wild).unwrap();
    let error = trainer.run(|_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, TrainError::NotBetter { .. }), "{error}");
    assert!(session.adapter().is_none(), "the session is as it was");
}

#[test]
fn adapters_are_swapped_on_one_session() {
    let mut session = session(1);
    let data = data(&session);
    let (_, first) = train(&mut session, &data, options());
    let (_, second) = train(&mut session, &data, options().seed(6).lr(5e-2));
    let mut predict = |adapter: Option<&Adapter>| {
        session.set_adapter(adapter.cloned()).unwrap();
        session.predict_all(&data, 16, |_| ()).unwrap().remove(0).1
    };
    let base = predict(None);
    let with_first = predict(Some(&first));
    let with_second = predict(Some(&second));
    assert_ne!(base, with_first);
    assert_ne!(with_first, with_second);
    assert_eq!(predict(Some(&first)), with_first);
    assert_eq!(predict(None), base);
    // A batch of another size is another plan with the same answers.
    session.set_adapter(Some(second)).unwrap();
    let by_five = session.predict_all(&data, 5, |_| ()).unwrap().remove(0).1;
    let close = |a: &HostTensor, b: &HostTensor| {
        a.floats().unwrap().iter().zip(b.floats().unwrap()).all(|(a, b)| (a - b).abs() < 1e-5)
    };
    assert!(close(&by_five, &with_second));
}

#[test]
fn gradients_are_those_of_the_last_step() {
    const LR: f32 = 16.0;
    let mut session = session(1);
    let data = data(&session);
    let start = adapter(&session);
    let sgd = optimizers::find("sgd").unwrap();
    let options = options().optimizer(sgd).lr(LR).clip_norm(1e9);
    let mut trainer = Trainer::new(&mut session, start.clone(), &data, options).unwrap();
    assert!(matches!(trainer.gradients(), Err(TrainError::NoGradients)));
    trainer.step().unwrap();
    let gradients = trainer.gradients().unwrap();
    let after = trainer.adapter();
    let mut norm = 0.0f32;
    for (((binding, before), (_, after)), (name, gradient)) in start.tensors().zip(after.tensors()).zip(&gradients) {
        assert_eq!(&binding.name, name);
        assert_eq!(binding.shape, gradient.shape());
        for ((before, after), gradient) in before.iter().zip(after).zip(gradient.floats().unwrap()) {
            assert!(((before - after) / LR - gradient).abs() < 1e-5, "{name}");
            norm += gradient * gradient;
        }
    }
    assert!(norm > 0.0);
}

#[test]
fn options_and_data_are_checked_before_the_first_step() {
    let mut session = session(1);
    let data = data(&session);
    let start = adapter(&session);
    let mut error = |data: &Dataset, options: TrainOptions| {
        Trainer::new(&mut session, start.clone(), data, options).err().expect("it is refused").to_string()
    };
    assert_eq!(error(&data, options().steps(0)), "length is 0, expected at least 1");
    assert_eq!(error(&data, options().lr(-1.0)), "learning rate is -1, expected a number above 0");
    assert_eq!(error(&data, options().batch_size(0)), "batch size is 0, expected at least 1");
    assert_eq!(error(&data, options().output("nose")), "the model has no float output \"nose\"; it has: logits");
    let mse = inlay_runtime::train::losses::find("mse").unwrap();
    assert_eq!(error(&data, options().loss(mse)), "array \"labels\" holds i64, expected f32; convert it with .astype");
    let x = data.inputs()[0].clone();
    let with_labels = |labels: HostTensor| {
        let base = Base::open("tests/data/tiny", Verify::Graph).unwrap();
        Dataset::new(&base, [x.clone(), ("labels".to_owned(), labels)]).unwrap()
    };
    let mut classes = vec![0i64; 60];
    classes[42] = 2;
    let labels = HostTensor::new([60], classes).unwrap();
    assert_eq!(
        error(&with_labels(labels), options()),
        "array \"labels\", sample 42: 2 is out of range, expected 0 to 1"
    );
    let labels = HostTensor::new([60, 1], vec![0i64; 60]).unwrap();
    assert_eq!(error(&with_labels(labels), options()), "array \"labels\" has shape [60, 1], expected [samples]");
    let base = Base::open("tests/data/tiny", Verify::Graph).unwrap();
    let unlabelled = Dataset::new(&base, [x.clone()]).unwrap();
    assert!(error(&unlabelled, options()).starts_with("the data has no array \"labels\""));
}

#[test]
fn an_adapter_that_changes_nothing_is_refused() {
    let mut session = session(1);
    let data = data(&session);
    let untrained = adapter(&session);
    let refused = session.set_adapter(Some(untrained.clone()));
    assert!(matches!(refused, Err(SessionError::Adapter(AdapterError::ChangesNothing))));
    // The first step of a warm-up has a rate of 0.
    let options = options().steps(1).schedule(Schedule::Constant, 1);
    let mut trainer = Trainer::new(&mut session, untrained, &data, options).unwrap();
    let error = trainer.run(|_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, TrainError::Adapter(AdapterError::ChangesNothing)), "{error}");
}
