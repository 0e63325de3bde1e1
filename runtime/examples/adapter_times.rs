//! What adapters cost: swapping, mixing, merging, requantizing, and a store of 10,000 users. Writes Markdown.
//!
//! `adapter_times INT8_DIR INT4_DIR`: exports of one sentence encoder with inputs `input_ids`, `attention_mask` and
//! `token_type_ids` and modules `*query` and `*value`. `tests/bench/adapters.sh` runs it on MiniLM.

#![allow(clippy::print_stdout, reason = "prints a table")]

use std::error::Error;
use std::time::{Duration, Instant};

use inlay_runtime::merge::MergeOptions;
use inlay_runtime::random::Random;
use inlay_runtime::{
    Adapter, AdapterOptions, AdapterStore, Base, Device, DeviceOptions, Dtype, HostTensor, Session, SessionOptions,
    Verify,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USERS: usize = 16;
const ROUNDS: usize = 15;
const STORED: usize = 10_000;

fn main() -> Result<()> {
    let folders: Vec<String> = std::env::args().skip(1).collect();
    let [int8, int4] = folders.as_slice() else { return Err("usage: adapter_times INT8_DIR INT4_DIR".into()) };
    println!("| what | int8 base | int4 base |\n|---|---|---|");
    let columns = [measure(int8)?, measure(int4)?];
    for (i, (what, value)) in columns[0].iter().enumerate() {
        println!("| {what} | {value} | {} |", columns[1][i].1);
    }
    println!("\n| store of {STORED} users | |\n|---|---|");
    for (what, value) in stored(&Base::open(int8, Verify::Graph)?)? {
        println!("| {what} | {value} |");
    }
    Ok(())
}

/// What was measured, and the figure.
type Rows = Vec<(String, String)>;

fn measure(folder: &str) -> Result<Rows> {
    let base = Base::open(folder, Verify::Graph)?;
    let session = || {
        let device = DeviceOptions { device: Device::Cpu, threads: Some(1), ..DeviceOptions::default() };
        Session::new(base.clone(), SessionOptions { device, ..SessionOptions::default() })
    };
    let mut rows = Rows::new();
    let mut resident = session()?;
    let names: Vec<String> = (0..USERS).map(|i| format!("user {i}")).collect();
    for (i, name) in names.iter().enumerate() {
        resident.add_adapter(name, lora(&base, 8, i as u64)?)?;
    }
    for shape in [[1, 8], [1, 64]] {
        let inputs = tokens(shape);
        let inputs: Vec<(&str, &HostTensor)> = inputs.iter().map(|(name, x)| (*name, x)).collect();
        let shapes: Vec<(&str, &[usize])> = inputs.iter().map(|(name, x)| (*name, x.shape())).collect();
        for name in &names {
            resident.use_adapter(Some(name))?;
            resident.predict(&inputs)?;
        }
        let mut swaps = Vec::new();
        for round in 0..10 * USERS {
            let start = Instant::now();
            resident.use_adapter(Some(&names[round % USERS]))?;
            resident.prepare(&shapes)?;
            swaps.push(start.elapsed());
        }
        let [_, tokens] = shape;
        rows.push((format!("swap among {USERS} resident adapters, {tokens} tokens: median"), ms(median(&mut swaps))));
        rows.push((format!("... slowest of {}", 10 * USERS), ms(swaps[swaps.len() - 1])));

        let adapter = lora(&base, 8, 3)?;
        let mut sessions = [session()?, session()?, session()?];
        sessions[1].merge(&adapter, &MergeOptions::default())?;
        sessions[2].set_adapter(Some(adapter))?;
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            for (session, times) in sessions.iter_mut().zip(&mut times) {
                times.push(time(|| session.predict(&inputs))?);
            }
        }
        let [base, merged, adapted] = times.map(|mut times| median(&mut times));
        rows.push((format!("inference of 1 x {tokens}: base"), ms(base)));
        rows.push(("... merged".into(), against(merged, base)));
        rows.push(("... adapter of rank 8 at queries and values".into(), against(adapted, base)));
    }
    let inputs = tokens([USERS, 32]);
    let inputs: Vec<(&str, &HostTensor)> = inputs.iter().map(|(name, x)| (*name, x)).collect();
    let each: Vec<Option<&str>> = names.iter().map(|name| Some(name.as_str())).collect();
    resident.use_adapter(Some(&names[0]))?;
    let (mut one, mut mixed) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        one.push(time(|| resident.predict(&inputs))?);
        // Not every base keeps the samples of a batch apart.
        mixed.extend(time(|| resident.predict_rows(&each, &inputs)));
    }
    let one = median(&mut one);
    let mixed = if mixed.is_empty() { "refused".to_owned() } else { against(median(&mut mixed), one) };
    rows.push((format!("batch of {USERS} x 32, one adapter"), ms(one)));
    rows.push((format!("... {USERS} adapters, one a sample"), mixed));

    let mut session = session()?;
    let points = session.merge(&lora(&base, 8, 3)?, &MergeOptions::default())?;
    let lost: Vec<_> = points.iter().filter_map(|point| point.requantization).collect();
    let mean = |of: fn(&inlay_runtime::merge::Requantization) -> f64| {
        lost.iter().map(of).sum::<f64>() / lost.len().max(1) as f64
    };
    rows.push((
        "merging requantizes: error of the weight".into(),
        format!("{:.2} %", 100.0 * mean(|lost| lost.relative)),
    ));
    rows.push(("... error of what the adapter adds".into(), format!("{:.0} %", 100.0 * mean(|lost| lost.of_change))));
    Ok(rows)
}

fn stored(base: &Base) -> Result<Rows> {
    let folder = tempfile::tempdir()?;
    let record = lora(base, 1, 1)?.to_record(Dtype::Int4)?;
    let store = AdapterStore::open(folder.path())?;
    let start = Instant::now();
    for user in 0..STORED {
        store.save(format!("user-{user}").as_str(), &record)?;
    }
    let saved = start.elapsed();
    let mut rows = vec![
        ("record of rank 1 at queries and values, int4".to_owned(), format!("{} bytes", record.len())),
        ("saving one, all synced to disk: mean".to_owned(), ms(saved / STORED as u32)),
    ];
    let (mut opened, mut listed) = (Vec::new(), Vec::new());
    for round in 0..200 {
        let user = format!("user-{}", round * 7919 % STORED);
        let start = Instant::now();
        let record = AdapterStore::open_existing(folder.path())?.load(user.as_str())?;
        Adapter::from_record(base, &record)?;
        opened.push(start.elapsed());
    }
    for _ in 0..10 {
        let start = Instant::now();
        assert_eq!(store.list()?.len(), STORED, "every user is listed");
        listed.push(start.elapsed());
    }
    rows.push(("opening the store and one adapter: median".into(), ms(median(&mut opened))));
    rows.push(("... slowest of 200".into(), ms(opened[opened.len() - 1])));
    rows.push(("listing all users: median".into(), ms(median(&mut listed))));
    rows.push(("... slowest of 10".into(), ms(listed[listed.len() - 1])));
    Ok(rows)
}

/// LoRA with random values at queries and values.
fn lora(base: &Base, rank: u16, seed: u64) -> Result<Adapter> {
    let mut adapter = Adapter::new(base, &AdapterOptions::lora(rank).targets(["*query", "*value"]).seed(seed))?;
    let tensors: Vec<(String, usize)> = adapter.tensors().map(|(b, values)| (b.name.clone(), values.len())).collect();
    for (i, (name, len)) in tensors.into_iter().enumerate() {
        let mut random = Random::new(seed, i as u64);
        let bound = if name.ends_with("lora_A") { 0.09 } else { 0.02 };
        let values: Vec<f32> = (0..len).map(|_| random.uniform(bound)).collect();
        adapter.set_tensor(&name, &values)?;
    }
    Ok(adapter)
}

fn tokens([batch, tokens]: [usize; 2]) -> Vec<(&'static str, HostTensor)> {
    let ints = |f: &dyn Fn(usize) -> i64| {
        HostTensor::new([batch, tokens], (0..batch * tokens).map(f).collect::<Vec<i64>>())
            .expect("one value an element")
    };
    vec![
        ("input_ids", ints(&|i| 1000 + (i as i64 * 7919) % 20000)),
        ("attention_mask", ints(&|_| 1)),
        ("token_type_ids", ints(&|_| 0)),
    ]
}

fn time<T, E>(run: impl FnOnce() -> std::result::Result<T, E>) -> std::result::Result<Duration, E> {
    let start = Instant::now();
    run()?;
    Ok(start.elapsed())
}

/// The middle one; sorts them.
fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn ms(time: Duration) -> String {
    format!("{:.3} ms", 1e3 * time.as_secs_f64())
}

fn against(time: Duration, other: Duration) -> String {
    format!("{} ({:+.1} %)", ms(time), 100.0 * (time.as_secs_f64() / other.as_secs_f64() - 1.0))
}
