//! Records of every adapter kind on real bases: what is damaged is refused, and what a record costs beside its numbers.

use std::collections::BTreeSet;
use std::path::Path;

use conformance::adapters::{export, fixture};
use conformance::root;
use conformance::slopes::Everywhere;
use inlay_format::record::Record;
use inlay_runtime::adapters::KINDS;
use inlay_runtime::random::Random;
use inlay_runtime::{Adapter, AdapterError, AdapterOptions, Base, Dtype};

/// Records up to this size are damaged in every way, larger ones in [`SAMPLES`].
const SMALL_BYTES: usize = 10 << 10;
const SAMPLES: usize = 500;
/// What a record may take for each point, beside elements and scales.
const MAX_OVERHEAD_BYTES: usize = 64;

/// Adapters of every kind, each at all of its points and at the first one alone: of linears, convolutions and lookups.
fn adapters(folder: &Path) -> Vec<(String, Base, Adapter)> {
    let everywhere = Everywhere::new(&folder.join("encoder"));
    assert_eq!(everywhere.adapters.len(), KINDS.len() + 1);
    let mut found = Vec::new();
    for (name, adapter) in everywhere.adapters {
        let first = adapter.points().next().expect("an adapter has points").path().to_owned();
        let part = &adapter.parts()[0];
        let options = AdapterOptions::kind(part.kind().name(), part.settings().rank).targets([&first]);
        let alone = filled(Adapter::new(&everywhere.base, &options).expect("the kind sits there"));
        found.push((format!("{name} at {first}"), everywhere.base.clone(), alone));
        found.push((name, everywhere.base.clone(), adapter));
    }
    let (cnn, _) = fixture("cnn_dyn23", "int8", &folder.join("cnn"));
    let convolution = AdapterOptions::lora(2).targets(["block1.conv1"]);
    let convolution = filled(Adapter::new(&cnn, &convolution).expect("a convolution has a point"));
    found.push(("lora at a convolution".into(), cnn, convolution));
    found
}

/// With values of which none is zero.
fn filled(mut adapter: Adapter) -> Adapter {
    let tensors: Vec<(String, usize)> = adapter.tensors().map(|(b, x)| (b.name.clone(), x.len())).collect();
    for (i, (name, len)) in tensors.into_iter().enumerate() {
        let mut random = Random::new(5, i as u64);
        let values: Vec<f32> = (0..len).map(|_| 0.01 + random.uniform(0.1)).collect();
        adapter.set_tensor(&name, &values).expect("it fits");
    }
    adapter
}

/// All of `0..end` if the record is small, else the ends and some between.
fn damages(end: usize, is_small: bool, random: &mut Random) -> Vec<usize> {
    if is_small {
        return (0..end).collect();
    }
    let between = (0..SAMPLES).map(|_| random.below(end as u64) as usize);
    [0, end - 1].into_iter().chain(between).collect()
}

/// Flips bits and cuts off ends; gives how many damages were refused.
fn damage(name: &str, base: &Base, record: &[u8]) -> usize {
    let refused = |bytes: &[u8], what: &dyn Fn() -> String| match Adapter::from_record(base, bytes) {
        Err(AdapterError::Record(_)) => {}
        Err(other) => panic!("{name}, {}: the record was believed: {other}", what()),
        Ok(_) => panic!("{name}, {}: the record was read", what()),
    };
    let mut random = Random::new(3, record.len() as u64);
    let is_small = record.len() <= SMALL_BYTES;
    let (bits, lens) = (record.len() * 8, record.len());
    let (bits, lens) = (damages(bits, is_small, &mut random), damages(lens, is_small, &mut random));
    let mut altered = record.to_vec();
    for bit in &bits {
        altered[bit / 8] ^= 1 << (bit % 8);
        refused(&altered, &|| format!("bit {bit} flipped"));
        altered[bit / 8] ^= 1 << (bit % 8);
    }
    for len in &lens {
        refused(&record[..*len], &|| format!("cut to {len} bytes"));
    }
    bits.len() + lens.len()
}

#[test]
fn every_damaged_bit_and_every_missing_end_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (mut whole, mut sampled) = (BTreeSet::new(), 0);
    for (name, base, adapter) in adapters(folder.path()) {
        for dtype in Dtype::ALL {
            let record = adapter.to_record(dtype).unwrap();
            assert!(Adapter::from_record(&base, &record).is_ok(), "{name} {dtype:?}");
            let refused = damage(&format!("{name} {dtype:?}"), &base, &record);
            if record.len() <= SMALL_BYTES {
                whole.insert((adapter.parts()[0].kind().name(), dtype.name()));
            } else {
                sampled += 1;
            }
            eprintln!("{name} {dtype:?}: {} bytes, {refused} damages refused", record.len());
        }
    }
    assert!(sampled > 0);
    assert_eq!(whole.len(), KINDS.len() * Dtype::ALL.len(), "damaged in every way: {whole:?}");
}

#[test]
fn damage_in_a_large_record_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let base = export(&root().join("tests/golden/encoder/model.onnx"), folder.path(), &["--targets", "*"]);
    let adapter = filled(Adapter::new(&base, &AdapterOptions::lora(64)).unwrap());
    let record = adapter.to_record(Dtype::F32).unwrap();
    assert!(record.len() > 100 << 10, "{} bytes", record.len());
    let refused = damage("a large record", &base, &record);
    eprintln!("{} bytes, {refused} damages refused", record.len());
}

#[test]
fn a_point_costs_at_most_64_bytes_beside_its_numbers() {
    let folder = tempfile::tempdir().unwrap();
    for (name, _, adapter) in adapters(folder.path()) {
        for dtype in Dtype::ALL {
            let record = adapter.to_record(dtype).unwrap();
            let overhead = record.len() - Record::decode(&record).unwrap().payload_bytes();
            let points = adapter.points().count();
            eprintln!("{name} {dtype:?}: {overhead} bytes beside the numbers, {points} points");
            assert!(overhead <= MAX_OVERHEAD_BYTES * points, "{name} {dtype:?}: {overhead} bytes, {points} points");
        }
    }
}
