//! Many adapters on one base: swapped, mixed in one batch, stacked, merged.

use std::path::Path;
use std::time::{Duration, Instant};

use conformance::adapters::{self, distance, export, fixture, fixture_as, floats, mix, random_lora, refs, row};
use conformance::{binary, setup_file};
use inlay_runtime::merge::MergeOptions;
use inlay_runtime::{Base, Device, HostTensor, Session, SessionError};

fn session(base: &Base) -> Session {
    adapters::session(base, Device::Cpu)
}

fn minilm(out: &Path) -> Base {
    export(&setup_file("minilm/encoder.onnx"), out, &[])
}

fn tokens([batch, tokens]: [usize; 2]) -> Vec<(String, HostTensor)> {
    let ints = |f: &dyn Fn(usize) -> i64| {
        HostTensor::new([batch, tokens], (0..batch * tokens).map(f).collect::<Vec<i64>>())
            .expect("one value an element")
    };
    vec![
        ("input_ids".into(), ints(&|i| 1000 + (i as i64 * 7919) % 20000)),
        ("attention_mask".into(), ints(&|i| i64::from(i % tokens < tokens - i / tokens % 3))),
        ("token_type_ids".into(), ints(&|_| 0)),
    ]
}

#[test]
fn samples_of_a_batch_have_adapters_of_their_own() {
    for (name, quant, first) in [
        ("mlp_dyn18", "none", "fc1"),
        ("mlp_ts20", "int8", "fc1"),
        ("seq_mlp_dyn21", "none", "up"),
        ("cnn_dyn23", "int8", "conv1"),
        ("cnn_ts17_bn", "none", "conv1"),
        ("global_cnn_dyn20", "none", "conv1"),
        ("unet_dyn20", "int8", "down1"),
        ("decoder_ts13", "none", "encode.0"),
        ("encoder_dyn18", "int8", "query"),
        ("encoder_dyn18", "int4", "query"),
        ("encoder_ts13", "none", "query"),
        ("encoder_ts17_sdpa", "none", "query"),
    ] {
        let folder = tempfile::tempdir().expect("the system has a temporary folder");
        let (base, inputs) = fixture(name, quant, folder.path());
        eprintln!("{name} {quant}");
        mix(&base, &inputs, &[first, ""], Device::Cpu, 1e-5);
    }
}

#[test]
fn minilm_serves_sixteen_adapters() {
    let folder = tempfile::tempdir().expect("the system has a temporary folder");
    let base = minilm(folder.path());
    let mut session = session(&base);
    let names: Vec<String> = (0..16).map(|i| format!("user {i}")).collect();
    for (i, name) in names.iter().enumerate() {
        let adapter = random_lora(&base, 8, 4.0 + i as f32, &["query", "value"], i as u64);
        session.add_adapter(name, adapter).expect("it is this base's");
    }
    let inputs = tokens([1, 8]);
    let inputs = refs(&inputs);
    let mut expected = Vec::new();
    for name in &names {
        session.use_adapter(Some(name)).expect("it is resident");
        expected.push(session.predict(&inputs).expect("it runs"));
    }
    for (i, outputs) in expected.iter().enumerate().skip(1) {
        assert!(distance(floats(outputs), floats(&expected[0])) > 1e-3, "{} differs from the first", names[i]);
    }
    let shapes: Vec<(&str, &[usize])> = inputs.iter().map(|(name, x)| (*name, x.shape())).collect();
    let mut swaps: Vec<Duration> = (0..160)
        .map(|round| {
            let start = Instant::now();
            session.use_adapter(Some(&names[round % 16])).expect("it is resident");
            session.prepare(&shapes).expect("the plan is there");
            start.elapsed()
        })
        .collect();
    swaps.sort_unstable();
    // The median: other tests that run meanwhile make some of them slow, and never half of them.
    let swap = swaps[swaps.len() / 2];
    eprintln!("a swap takes {swap:?}, the slowest {:?}", swaps[swaps.len() - 1]);
    assert!(swap < Duration::from_millis(1), "a swap takes {swap:?}");
    for (name, expected) in names.iter().zip(&expected) {
        session.use_adapter(Some(name)).expect("it is resident");
        assert_eq!(&session.predict(&inputs).expect("it runs"), expected, "{name}, bit for bit");
    }

    let inputs = tokens([16, 8]);
    let inputs = refs(&inputs);
    let rows: Vec<Option<&str>> = names.iter().map(|name| Some(name.as_str())).collect();
    let mixed = session.predict_rows(&rows, &inputs).expect("an encoder keeps samples apart");
    for (at, name) in names.iter().enumerate() {
        session.use_adapter(Some(name)).expect("it is resident");
        let alone = session.predict(&inputs).expect("it runs");
        let error = distance(&row(&mixed[0].1, 16, at), &row(&alone[0].1, 16, at));
        assert!(error < 1e-5, "{name}: {error:e}");
    }
    let mut times = [Duration::MAX; 2];
    for _ in 0..3 {
        let start = Instant::now();
        session.predict(&inputs).expect("it runs");
        times[0] = start.elapsed().min(times[0]);
        let start = Instant::now();
        session.predict_rows(&rows, &inputs).expect("it runs");
        times[1] = start.elapsed().min(times[1]);
    }
    eprintln!("16 samples with one adapter take {:?}, with 16 {:?}", times[0], times[1]);
}

#[test]
fn merged_is_what_the_adapter_computes_at_the_cost_of_the_base() {
    let folder = tempfile::tempdir().expect("the system has a temporary folder");
    for (name, quant) in [
        ("mlp_dyn18", "int8"),
        ("mlp_ts20", "none"),
        ("cnn_dyn23", "int8"),
        ("encoder_dyn18", "int8"),
        ("encoder_dyn18", "int4"),
    ] {
        let (base, inputs) = fixture(name, quant, &folder.path().join(format!("{name} {quant}")));
        let inputs = refs(&inputs);
        let mut session = session(&base);
        let adapter = random_lora(&base, 3, 2.0, &[""], 5);
        let plain = session.predict(&inputs).expect("the base runs");
        session.set_adapter(Some(adapter.clone())).expect("it is this base's");
        let adapted = session.predict(&inputs).expect("the adapter runs");
        assert!(distance(floats(&adapted), floats(&plain)) > 1e-2, "{name}: the adapter changes something");

        let keep = MergeOptions::keep_float("f32").expect("f32 is a float");
        let points = session.merge(&adapter, &keep).expect("LoRA merges");
        assert_eq!(points.len(), adapter.points().count());
        assert!(points.iter().all(|point| point.requantization.is_none()), "f32 is exact");
        let merged = session.predict(&inputs).expect("it runs");
        let error = distance(floats(&merged), floats(&adapted));
        assert!(error < 2e-5, "{name}: merged in f32 it differs by {error:e}");
        assert!(matches!(session.set_adapter(Some(adapter.clone())), Err(SessionError::IsMerged)));
        assert!(matches!(session.merge(&adapter, &keep), Err(SessionError::IsMerged)));
        assert!(session.unmerge());
        assert_eq!(session.predict(&inputs).expect("the base runs"), plain, "{name}: bit for bit");

        let points = session.merge(&adapter, &MergeOptions::default()).expect("LoRA merges");
        for point in points {
            let stored = point.weight.scheme().name();
            eprintln!("{name} {} {stored}: {:?}", point.path, point.requantization);
            assert_eq!(point.requantization.is_some(), stored != "f32");
            let limit = if stored == "int4" { 0.2 } else { 0.01 };
            assert!(point.requantization.is_none_or(|error| error.relative > 0.0 && error.relative < limit));
        }
        let merged = session.predict(&inputs).expect("it runs");
        let error = distance(floats(&merged), floats(&adapted));
        assert!(error < if quant == "int4" { 0.5 } else { 0.05 }, "{name}: merged in {quant} it differs by {error:e}");
        assert!(session.unmerge() && !session.unmerge());
        assert_eq!(session.predict(&inputs).expect("the base runs"), plain, "{name}: bit for bit");
    }
}

#[test]
fn merged_minilm_takes_the_time_of_the_base() {
    let folder = tempfile::tempdir().expect("the system has a temporary folder");
    let base = minilm(folder.path());
    let adapter = random_lora(&base, 8, 8.0, &["query", "value"], 3);
    let inputs = tokens([1, 8]);
    let inputs = refs(&inputs);
    let mut sessions = [session(&base), session(&base), session(&base)];
    sessions[1].merge(&adapter, &MergeOptions::default()).expect("LoRA merges");
    sessions[2].set_adapter(Some(adapter)).expect("it is this base's");
    let mut fastest = [Duration::MAX; 3];
    for _ in 0..8 {
        for (session, fastest) in sessions.iter_mut().zip(&mut fastest) {
            let start = Instant::now();
            session.predict(&inputs).expect("it runs");
            *fastest = start.elapsed().min(*fastest);
        }
    }
    let [plain, merged, adapted] = fastest;
    eprintln!("the base takes {plain:?}, merged {merged:?}, with the adapter {adapted:?}");
    // That the kernels are the same is tested where plans are made; this is for the figures, and for gross mistakes.
    assert!(merged < 2 * plain, "merged takes {merged:?}, the base {plain:?}");
}

#[test]
fn stacks_are_sums_in_the_order_of_names() {
    let folder = tempfile::tempdir().expect("the system has a temporary folder");
    let (base, inputs) = fixture("cnn_dyn23", "int8", folder.path());
    let inputs = refs(&inputs);
    let mut session = session(&base);
    let last = base.points().last().expect("a base has points").path.clone();
    // Adapters of the last layer only: what they add to its outputs adds up.
    for (name, rank, alpha) in [("anna", 2, 5.0), ("style", 3, 1.0), ("team", 1, 2.0)] {
        session.add_adapter(name, random_lora(&base, rank, alpha, &[&last], rank.into())).expect("it is this base's");
    }
    let mut run = |name: Option<&str>| {
        session.use_adapter(name).expect("it is resident");
        session.predict(&inputs).expect("it runs")
    };
    let plain = run(None);
    let change: Vec<Vec<f32>> = ["anna", "style", "team"]
        .map(|name| floats(&run(Some(name))).iter().zip(floats(&plain)).map(|(a, b)| a - b).collect())
        .into();
    let weights = [("anna", 0.5f32), ("style", -1.5), ("team", 2.0)];
    let expected: Vec<f32> = (0..change[0].len())
        .map(|i| floats(&plain)[i] + weights.iter().zip(&change).map(|((_, w), change)| w * change[i]).sum::<f32>())
        .collect();
    let mut stacks = Vec::new();
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
        let parts: Vec<(&str, f32)> = order.iter().map(|&i| weights[i]).collect();
        session.stack_adapters("stack", &parts).expect("LoRA stacks");
        session.use_adapter(Some("stack")).expect("it is resident");
        stacks.push(session.predict(&inputs).expect("it runs"));
        let error = distance(floats(&stacks[0]), &expected);
        assert!(error < 1e-5, "{error:e}");
        assert_eq!(stacks.last(), stacks.first(), "the order of the call changes no bit");
        assert_eq!(session.adapter().expect("in use").parts()[0].settings().rank, 6);
        session.remove_adapter("stack").expect("it is resident");
        assert!(session.adapter().is_none(), "what is removed is not in use");
    }
    for bad in [&[("anna", 0.0)][..], &[("anna", f32::NAN)], &[("anna", 1.0), ("anna", 2.0)], &[("nobody", 1.0)], &[]] {
        assert!(session.stack_adapters("bad", bad).is_err(), "{bad:?}");
    }
    // Whole networks do not add up, but one adapter stacked alone is that adapter.
    session.add_adapter("all", random_lora(&base, 4, 3.0, &[""], 9)).expect("it is this base's");
    session.stack_adapters("alone", &[("all", 1.0)]).expect("LoRA stacks");
    session.use_adapter(Some("all")).expect("it is resident");
    let all = session.predict(&inputs).expect("it runs");
    session.use_adapter(Some("alone")).expect("it is resident");
    assert!(distance(floats(&session.predict(&inputs).expect("it runs")), floats(&all)) < 1e-6);
}

#[test]
fn what_cannot_be_mixed_is_named() {
    let folder = tempfile::tempdir().expect("the system has a temporary folder");
    let (base, inputs) = fixture("mlp_dyn18", "none", folder.path());
    let mut session = session(&base);
    session.add_adapter("a", random_lora(&base, 2, 2.0, &[""], 1)).expect("it is this base's");
    let error = session.predict_rows(&[Some("a")], &refs(&inputs)).expect_err("one adapter for several samples");
    assert!(error.to_string().contains("one row for each of 1 adapters"), "{error}");
    let error = session.predict_rows(&[Some("b")], &refs(&inputs)).expect_err("nobody");
    assert!(error.to_string().contains("no adapter \"b\" is resident; there are: a"), "{error}");
    assert!(matches!(session.use_adapter(Some("b")), Err(SessionError::NotResident { .. })));
    assert!(matches!(session.remove_adapter("b"), Err(SessionError::NotResident { .. })));
}

#[test]
fn the_converter_merges_into_packed_weights() {
    let folder = tempfile::tempdir().expect("the system has a temporary folder");
    let record = folder.path().join("record");
    let quants =
        ["int4", "int4 --qdq", "int4 --int4-method=hqq", "int4 --int4-method=hqq --qdq", "int8", "f16", "none"];
    for quant in quants {
        let arguments: Vec<&str> = std::iter::once("--quant").chain(quant.split(' ')).collect();
        let (base, inputs) = fixture_as("encoder_dyn18", &arguments, &folder.path().join(quant));
        let inputs = refs(&inputs);
        let adapter = random_lora(&base, 3, 2.0, &["query", "dense", "classifier"], 5);
        std::fs::write(&record, adapter.to_record(inlay_runtime::Dtype::F32).expect("finite")).expect("writable");
        let mut session = session(&base);
        session.set_adapter(Some(adapter)).expect("it is this base's");
        let adapted = session.predict(&inputs).expect("the adapter runs");
        for keep in [false, true] {
            let out = folder.path().join(format!("{quant} {keep}"));
            let mut merge = std::process::Command::new(binary("converter"));
            merge.arg("merge").arg(&record).arg("--base").arg(folder.path().join(quant)).arg("--out").arg(&out);
            let output = merge.args(keep.then_some("--keep-float")).output().expect("the converter starts");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{quant} {keep}: {errors}");
            let merged = Base::open(&out, inlay_runtime::Verify::Full).expect("just written");
            let merged = adapters::session(&merged, Device::Cpu).predict(&inputs).expect("it runs");
            let error = distance(floats(&merged), floats(&adapted));
            let limit = match quant {
                _ if quant.starts_with("int") && !keep => 0.5,
                "f16" if !keep => 5e-3,
                _ => 2e-5,
            };
            eprintln!("{quant}, kept as float: {keep}: off by {error:e}");
            assert!(error < limit, "{quant} {keep}: {error:e}");
        }
    }
}
