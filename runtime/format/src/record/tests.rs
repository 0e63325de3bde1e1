use std::vec::Vec as StdVec;

use super::*;
use crate::record::encode::PointValues;

const HEADER: Header =
    Header { base: BaseId([9; 16]), kind: LORA_KIND, dtype: Dtype::F16, rslora: false, rank: 1, alpha: 2.0 };

/// A small seeded generator (xorshift).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn values(&mut self, len: usize) -> StdVec<f32> {
        (0..len).map(|_| (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }
}

fn encoded(header: &Header, points: &mut [PointValues<'_>]) -> StdVec<u8> {
    let mut bytes = vec![0; encoded_len(header, points).unwrap()];
    encode(header, points, &mut bytes).unwrap();
    bytes
}

/// The adapter of the watch demo: linears 256 -> 64 -> 7, 391 parameters at r = 1.
fn watch(dtype: Dtype) -> StdVec<u8> {
    let mut random = Random(1);
    let [a1, b1, a2, b2] = [256, 64, 64, 7].map(|len| random.values(len));
    let mut points =
        [PointValues { path: "fc1", tensors: &[&a1, &b1] }, PointValues { path: "fc2", tensors: &[&a2, &b2] }];
    encoded(&Header { dtype, ..HEADER }, &mut points)
}

#[test]
fn the_documented_bytes() {
    let mut points = [PointValues { path: "fc1", tensors: &[&[1.0, -2.0], &[0.5]] }];
    let bytes = encoded(&Header { rslora: true, rank: 300, ..HEADER }, &mut points);
    let mut expected = StdVec::new();
    expected.extend(b"INLA\x01");
    expected.extend([9; 16]);
    expected.extend([1, 0x11, 0xAC, 0x02]);
    expected.extend(2.0f32.to_le_bytes());
    expected.push(1);
    expected.extend(&blake3::hash(b"fc1").as_bytes()[..8]);
    expected.extend([2, 2, 1]);
    expected.extend([0x00, 0x3C, 0x00, 0xC0, 0x00, 0x38]);
    expected.extend(&blake3::hash(&expected).as_bytes()[..16].to_vec());
    assert_eq!(bytes, expected);
}

#[test]
fn sizes_keep_their_promise() {
    assert_eq!(watch(Dtype::F16).len(), 850);
    // MiniLM-L6: query, key, value, output, intermediate, output of six layers.
    for rank in [1, 4, 127, 128, 1024] {
        let (narrow, wide) = (vec![0.5; 384 * rank], vec![0.5; 1536 * rank]);
        let shapes: [(&str, [&[f32]; 2]); 6] = [
            ("attention.self.query", [&narrow, &narrow]),
            ("attention.self.key", [&narrow, &narrow]),
            ("attention.self.value", [&narrow, &narrow]),
            ("attention.output.dense", [&narrow, &narrow]),
            ("intermediate.dense", [&narrow, &wide]),
            ("output.dense", [&wide, &narrow]),
        ];
        let paths: StdVec<_> = (0..6)
            .flat_map(|layer| shapes.iter().map(move |(path, t)| (format!("encoder.layer.{layer}.{path}"), t)))
            .collect();
        let mut points: StdVec<_> =
            paths.iter().map(|(path, tensors)| PointValues { path, tensors: &tensors[..] }).collect();
        let header = Header { rank: rank as u16, ..HEADER };
        for count in [1, 2, 36] {
            let points = &mut points[..count];
            let raw: usize = points.iter().flat_map(|p| p.tensors).map(|t| t.len() * 2).sum();
            let overhead = encoded_len(&header, points).unwrap() - raw;
            assert!(overhead <= 64 * count, "{overhead} bytes for {count} points at rank {rank}");
            assert!(overhead <= 47 + 17 * count, "{overhead} bytes for {count} points at rank {rank}");
        }
    }
}

#[test]
fn random_adapters_round_trip() {
    let mut random = Random(42);
    for round in 0..200 {
        let dtype = Dtype::ALL[round % 2];
        let rank = 1 + (random.bits() % 1000) as u16;
        let points: StdVec<(String, StdVec<StdVec<f32>>)> = (0..1 + random.bits() % 20)
            .map(|i| {
                let tensors = 1 + random.bits() as usize % MAX_TENSORS;
                let tensors = (0..tensors).map(|_| {
                    let len = 1 + random.bits() as usize % 300;
                    random.values(len)
                });
                let tensors = tensors.collect();
                (format!("layer.{i}"), tensors)
            })
            .collect();
        let slices: StdVec<StdVec<&[f32]>> = points.iter().map(|(_, t)| t.iter().map(|t| &t[..]).collect()).collect();
        let mut values: StdVec<_> =
            points.iter().zip(&slices).map(|((path, _), tensors)| PointValues { path, tensors }).collect();
        let header =
            Header { dtype, rank, rslora: round % 3 == 0, alpha: random.values(1)[0], kind: round as u16, ..HEADER };
        let bytes = encoded(&header, &mut values);
        values.reverse();
        assert_eq!(encoded(&header, &mut values), bytes, "the order of points shows in the bytes");

        let record = Record::decode(&bytes).unwrap();
        assert_eq!(*record.header(), header);
        assert_eq!(record.points().len(), points.len());
        for (path, tensors) in &points {
            let read: StdVec<_> = record.point(path).unwrap().tensors().collect();
            assert_eq!(read.len(), tensors.len());
            for (read, written) in read.iter().zip(tensors) {
                assert_eq!(read.elements(), written.len());
                for (read, written) in read.values().zip(written) {
                    match dtype {
                        Dtype::F32 => assert_eq!(read.to_bits(), written.to_bits()),
                        Dtype::F16 => assert_eq!(read, half::f16::from_f32(*written).to_f32()),
                    }
                }
            }
        }
        assert!(record.point("layer.20").is_none());
    }
}

#[test]
fn f16_rounds_to_nearest_even() {
    // The spacing of f16 between 2048 and 4096 is 2; between 1 and 2 it is 2^-10.
    let values = [2049.0, 2051.0, 2050.9, 1.0 + 1.0 / 2048.0, 65504.0, 65519.0, -0.0, 1e-9];
    let bytes = encoded(&HEADER, &mut [PointValues { path: "a", tensors: &[&values] }]);
    let record = Record::decode(&bytes).unwrap();
    let [tensor] = record.point("a").unwrap().tensors_exactly().unwrap();
    let read: StdVec<f32> = tensor.values().collect();
    assert_eq!(read, [2048.0, 2052.0, 2050.0, 1.0, 65504.0, 65504.0, 0.0, 0.0]);
    assert!(read[6].is_sign_negative());
    assert!(record.point("a").unwrap().tensors_exactly::<2>().is_none());
}

#[test]
fn every_bit_flip_is_refused() {
    for dtype in Dtype::ALL {
        let bytes = watch(dtype);
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let refused = Record::decode(&bytes).unwrap_err();
            let named = match refused {
                RecordError::NotARecord => bit < MAGIC.len() * 8,
                RecordError::Altered | RecordError::Truncated { .. } => bit >= MAGIC.len() * 8,
                _ => false,
            };
            assert!(named, "bit {bit}: {refused}");
        }
    }
}

#[test]
fn every_truncation_is_refused_as_such() {
    let bytes = watch(Dtype::F16);
    for len in 0..bytes.len() {
        let refused = Record::decode(&bytes[..len]).unwrap_err();
        assert!(matches!(refused, RecordError::Truncated { found, .. } if found == len as u64), "{len}: {refused}");
    }
    let refused = Record::decode(&bytes[..400]).unwrap_err();
    assert_eq!(refused, RecordError::Truncated { needed: 850, found: 400 });
}

#[test]
fn trailing_bytes_are_refused_as_such() {
    for extra in [1, 16, 1000] {
        let mut bytes = watch(Dtype::F16);
        bytes.resize(bytes.len() + extra, 0);
        assert_eq!(Record::decode(&bytes).unwrap_err(), RecordError::TrailingBytes { extra: extra as u64 });
    }
}

/// A one-point record's bytes with `change` applied and a matching checksum.
fn forged(change: impl FnOnce(&mut StdVec<u8>)) -> StdVec<u8> {
    let mut bytes = encoded(&HEADER, &mut [PointValues { path: "a", tensors: &[&[1.0, 2.0], &[3.0]] }]);
    bytes.truncate(bytes.len() - CHECKSUM_BYTES);
    change(&mut bytes);
    let checksum = RecordChecksum::of(&bytes);
    bytes.extend(checksum.0);
    bytes
}

#[test]
fn checksummed_nonsense_is_refused_by_name() {
    // Offsets of the one-point record: 5 base, 21 kind, 22 encoding, 23 rank, 24 alpha, 28 points, 29 hash, 37 tensors, 38 counts.
    assert!(Record::decode(&forged(|_| {})).is_ok());
    let refused = |change: fn(&mut StdVec<u8>)| Record::decode(&forged(change)).unwrap_err();
    assert_eq!(refused(|b| b[4] = 2), RecordError::NewerVersion { found: 2 });
    assert_eq!(refused(|b| b[22] = 2), RecordError::UnknownDtype { code: 2 });
    assert_eq!(refused(|b| b[22] = 0x0F), RecordError::UnknownDtype { code: 15 });
    let malformed: [fn(&mut StdVec<u8>); 14] = [
        |b| b[4] = 0,
        |b| b[22] |= 0x20,
        |b| b[24..28].copy_from_slice(&f32::NAN.to_le_bytes()),
        |b| b[28] = 0,
        |b| b[28] = 2,
        |b| b[37] = 0,
        |b| b[37] = 9,
        |b| b[37] = 1,
        |b| b[38] = 0,
        |b| b[38] = 3,
        |b| b[38..40].copy_from_slice(&[0xFF, 0xFF]),
        |b| b[40..42].copy_from_slice(&[0x00, 0x7C]),
        |b| b.push(0),
        |b| b.truncate(b.len() - 1),
    ];
    for (i, change) in malformed.into_iter().enumerate() {
        let refused = refused(change);
        assert!(matches!(refused, RecordError::Malformed { .. }), "{i}: {refused}");
    }
    // A table that claims the most that it can.
    let refused = refused(|b| {
        b.truncate(28);
        b.extend([0x80, 0x20]);
        for i in 0..4096u64 {
            b.extend(i.to_be_bytes());
            b.push(8);
            b.extend([[0xFF, 0xFF, 0xFF, 0xFF, 0x0F]; 8].concat());
        }
    });
    assert!(matches!(refused, RecordError::Malformed { .. }), "{refused}");
}

#[test]
fn points_out_of_order_or_repeated_are_refused() {
    let mut points = [PointValues { path: "a", tensors: &[&[1.0]] }, PointValues { path: "b", tensors: &[&[2.0]] }];
    let bytes = encoded(&HEADER, &mut points);
    for swap in [true, false] {
        let mut bytes = bytes[..bytes.len() - CHECKSUM_BYTES].to_vec();
        let (first, second) = (bytes[29..39].to_vec(), bytes[39..49].to_vec());
        bytes[29..39].copy_from_slice(&second);
        if swap {
            bytes[39..49].copy_from_slice(&first);
        }
        let checksum = RecordChecksum::of(&bytes);
        bytes.extend(checksum.0);
        assert!(matches!(Record::decode(&bytes).unwrap_err(), RecordError::Malformed { .. }));
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut random = Random(3);
    for _ in 0..20_000 {
        let len = random.bits() as usize % 120;
        let noise: StdVec<u8> = (0..len).map(|_| random.bits() as u8).collect();
        assert!(Record::decode(&noise).is_err());
        let forged = forged(|b| {
            let at = 5 + random.bits() as usize % (b.len() - 5);
            b.truncate(at);
            b.extend(&noise);
        });
        if let Ok(record) = Record::decode(&forged) {
            assert!(record.points().all(|p| p.tensors().all(|t| t.values().all(f32::is_finite))));
        }
    }
}

#[test]
fn other_bases_are_refused_with_both_identities() {
    let (trained, open) = (Fingerprint([1; 32]), Fingerprint([2; 32]));
    let header = Header { base: trained.into(), ..HEADER };
    let bytes = encoded(&header, &mut [PointValues { path: "a", tensors: &[&[1.0]] }]);
    let record = Record::decode(&bytes).unwrap();
    assert_eq!(record.expect_base(&trained), Ok(()));
    let refused = record.expect_base(&open).unwrap_err();
    assert_eq!(refused, RecordError::OtherBase { expected: open.into(), found: trained.into() });
    let text = refused.to_string();
    assert!(text.contains(&"01".repeat(16)) && text.contains(&"02".repeat(16)), "{text}");
}

#[test]
fn bad_points_are_refused_on_write() {
    let len = |points: &[PointValues<'_>]| encoded_len(&HEADER, points).unwrap_err();
    assert_eq!(len(&[]), RecordError::Points { found: 0 });
    let point = PointValues { path: "a", tensors: &[&[1.0]] };
    assert_eq!(len(&[point; MAX_POINTS + 1]), RecordError::Points { found: MAX_POINTS + 1 });
    let tensors = |tensors| [point, PointValues { path: "b", tensors }];
    assert_eq!(len(&tensors(&[])), RecordError::Tensors { point: 1, found: 0 });
    assert_eq!(len(&tensors(&[&[1.0], &[]])), RecordError::Tensors { point: 1, found: 2 });
    assert_eq!(len(&tensors(&[&[1.0f32] as &[f32]; MAX_TENSORS + 1])), RecordError::Tensors { point: 1, found: 9 });

    let mut out = [0; 200];
    let refused = encode(&HEADER, &mut [point; 2], &mut out).unwrap_err();
    assert_eq!(refused, RecordError::RepeatedPath { path: PathHash::of("a") });
    let refused = encode(&Header { alpha: f32::NAN, ..HEADER }, &mut [point], &mut out).unwrap_err();
    assert!(matches!(refused, RecordError::Alpha { .. }));
    let refused = encode(&HEADER, &mut [point], &mut out[..20]).unwrap_err();
    assert!(matches!(refused, RecordError::Buffer { found: 20, .. }));
}

#[test]
fn values_that_the_dtype_cannot_hold_are_refused_on_write() {
    let cases = [
        (Dtype::F16, f32::NAN, true),
        (Dtype::F16, f32::NEG_INFINITY, true),
        (Dtype::F16, 65520.0, true),
        (Dtype::F16, -65519.9, false),
        (Dtype::F32, 65520.0, false),
        (Dtype::F32, f32::NAN, true),
        (Dtype::F32, f32::INFINITY, true),
        (Dtype::F32, f32::MAX, false),
    ];
    for (dtype, value, refused) in cases {
        let mut out = [0; 100];
        let mut points = [PointValues { path: "a", tensors: &[&[0.0], &[0.0, value]] }];
        match encode(&Header { dtype, ..HEADER }, &mut points, &mut out) {
            Ok(_) => assert!(!refused, "{value} was written as {dtype:?}"),
            Err(error) => {
                let at = matches!(error, RecordError::NotFinite { point: 0, tensor: 1, element: 1, .. });
                assert!(refused && at, "{value} as {dtype:?}: {error}");
            }
        }
    }
}
