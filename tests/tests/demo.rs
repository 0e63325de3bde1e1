//! The demo's path for the first two people: export, calibrate, save, reopen in a new process, classify.

use conformance::binary;
use examples::watch::report::{Row, mean};
use examples::watch::run::{Options, Tools, run, total_steps};
use examples::watch::{chart, report};
use inlay_runtime::Device;

/// Largest size of a person's adapter (bytes).
const MAX_RECORD_BYTES: u64 = 1000;

#[test]
fn two_people_gain_from_their_own_adapters() {
    let out = tempfile::tempdir().expect("a folder");
    let options = Options {
        people: vec![1, 2],
        device: Device::Cpu,
        out: out.path().to_owned(),
        tools: Tools { converter: binary("converter"), personalize: binary("personalize") },
    };
    let mut steps = 0;
    let rows = run(&options, &mut |event| {
        if let examples::watch::run::Event::Trained { steps: taken, .. } = event {
            steps += taken;
        }
    })
    .expect("the demo runs");

    let table = report::table(&rows);
    assert_eq!(rows.iter().map(|row| row.person).collect::<Vec<_>>(), [1, 2], "{table}");
    assert_eq!(steps, total_steps(&options).expect("the data"), "progress bars are told the right total");
    assert!(mean(&rows, Row::lift) > 0.0, "nobody gained\n{table}");
    assert!(rows.iter().all(|row| row.own >= row.other), "another person's adapter does better\n{table}");
    assert!(rows.iter().all(|row| row.bytes <= MAX_RECORD_BYTES), "a record is too large\n{table}");
    assert!(rows.iter().any(|row| !row.refused()), "no adapter was accepted\n{table}");

    report::write_json(&rows, &out.path().join("watch.json")).expect("figures");
    chart::draw(&rows, out.path()).expect("a chart");
    let read: Vec<Row> =
        serde_json::from_slice(&std::fs::read(out.path().join("watch.json")).expect("figures")).expect("a list");
    let figures: Vec<Row> = rows.iter().map(|row| Row { if_accepted: None, ..row.clone() }).collect();
    assert_eq!(read, figures);
    for file in ["watch.svg", "watch.png"] {
        assert!(std::fs::metadata(out.path().join(file)).is_ok_and(|meta| meta.len() > 0), "{file} is empty");
    }
}
