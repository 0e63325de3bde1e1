//! What rounding a record costs: the ten people of the smartwatch demo, each with the adapter that they would have, saved in
//! every dtype. `docs/benchmarks/payload.md` holds the figures that it prints.

use std::ops::ControlFlow;
use std::process::Command;

use conformance::binary;
use examples::watch::data::{Data, Fold, Windows, folder};
use inlay_runtime::{
    Adapter, AdapterOptions, Base, Dataset, Device, DeviceOptions, Dtype, Session, SessionOptions, TrainOptions,
    Trainer, Verify,
};

/// Most that accuracy may fall below that of f32, in the mean over people (points).
const MOST_LOST: [(Dtype, f64); 4] = [(Dtype::F32, 0.0), (Dtype::F16, 0.1), (Dtype::Int8, 0.3), (Dtype::Int4, 1.5)];

/// Bytes of a person's record, and accuracy with it (per cent).
type Figures = Vec<(usize, f64)>;

#[test]
fn narrow_records_are_as_good_as_wide_ones() {
    let out = tempfile::tempdir().expect("a folder");
    let data = Data::read(&folder()).expect("the recordings are committed");
    for rank in [1, 4] {
        let mut people: Vec<(u32, f64, Figures)> = Vec::new();
        for fold in &data.recipe.folds {
            let base = out.path().join(&fold.model);
            let mut export = Command::new(binary("converter"));
            export.arg("export").arg(folder().join(&fold.model)).arg("--out").arg(&base);
            assert!(export.args(["--quant", "int8", "--targets", "fc*"]).output().expect("it runs").status.success());
            let device = DeviceOptions { device: Device::Cpu, threads: Some(1), ..DeviceOptions::default() };
            let base = Base::open(&base, Verify::Full).expect("the base is whole");
            let mut session =
                Session::new(base, SessionOptions { device, ..SessionOptions::default() }).expect("a CPU");
            for person in &fold.people {
                let adapter = train(&mut session, &data, fold, rank, *person);
                let test = dataset(&session, data.test(*person));
                session.set_adapter(None).expect("none fits");
                let without = accuracy(&mut session, &test);
                let figures = MOST_LOST.map(|(dtype, _)| {
                    let record = adapter.to_record(dtype).expect("the values are of a usual size");
                    let read = Adapter::from_record(session.base(), &record).expect("its own base");
                    session.set_adapter(Some(read)).expect("it changes something");
                    (record.len(), accuracy(&mut session, &test))
                });
                people.push((*person, without, figures.to_vec()));
            }
        }
        report(rank, &people);
    }
}

fn report(rank: u16, people: &[(u32, f64, Figures)]) {
    eprintln!("rank {rank}: person, base, then accuracy (bytes) by dtype");
    for (person, without, figures) in people {
        let row: Vec<String> = figures.iter().map(|(bytes, accuracy)| format!("{accuracy:.2} ({bytes})")).collect();
        eprintln!("  {person:2} {without:6.2}  {}", row.join("  "));
    }
    let mean = |dtype: usize| people.iter().map(|(.., figures)| figures[dtype].1).sum::<f64>() / people.len() as f64;
    for (at, (dtype, most)) in MOST_LOST.into_iter().enumerate() {
        let lost = mean(0) - mean(at);
        eprintln!("  {}: mean {:.2}, {lost:.2} points below f32", dtype.name(), mean(at));
        assert!(lost <= most, "rank {rank}: {} loses {lost:.2} points, more than {most}", dtype.name());
    }
}

fn train(session: &mut Session, data: &Data, fold: &Fold, rank: u16, person: u32) -> Adapter {
    let samples = dataset(session, data.calibration(person));
    let alpha = fold.alpha * f32::from(rank);
    let new = Adapter::new(session.base(), &AdapterOptions::lora(rank).alpha(alpha).seed(1)).expect("two points");
    let options = TrainOptions::new().steps(fold.steps as u64).batch_size(data.recipe.batch_size).lr(fold.lr);
    let options = options.weight_decay(fold.weight_decay).seed(1);
    let mut trainer = Trainer::new(session, new, &samples, options).expect("the recipe fits");
    trainer.run(|_| ControlFlow::Continue(())).expect("it trains").adapter
}

fn dataset(session: &Session, windows: Windows) -> Dataset {
    Dataset::new(session.base(), windows.into_arrays().expect("windows of one size")).expect("they fit the base")
}

/// Of every window (per cent).
fn accuracy(session: &mut Session, test: &Dataset) -> f64 {
    let found = session.evaluate(test, None, None, 64, |_| ()).expect("it runs");
    100.0 * found.accuracy.expect("cross-entropy has an accuracy")
}
