use std::vec::Vec as StdVec;

use half::f16;

use super::*;
use crate::record::encode::PointValues;

const BASE: BaseId = BaseId([9; 16]);
const HEADER: PartHeader = PartHeader { kind: LORA_KIND, dtype: Dtype::F16, rslora: false, rank: 1, alpha: 2.0 };

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

/// A record of one part.
fn encoded(header: &PartHeader, points: &mut [PointValues<'_>]) -> StdVec<u8> {
    encoded_parts(&mut [PartValues { header: *header, points }])
}

fn encoded_parts(parts: &mut [PartValues<'_, '_>]) -> StdVec<u8> {
    let mut bytes = vec![0; encoded_len(parts).unwrap()];
    encode(BASE, parts, &mut bytes).unwrap();
    bytes
}

/// A part that owns its tensors, each with its groups, by path.
pub(super) type Drawn = (PartHeader, StdVec<(String, StdVec<(usize, StdVec<f32>)>)>);

pub(super) fn encoded_drawn(base: BaseId, drawn: &[Drawn]) -> StdVec<u8> {
    let tensors: StdVec<StdVec<StdVec<TensorValues<'_>>>> = drawn
        .iter()
        .map(|(_, points)| {
            points
                .iter()
                .map(|(_, tensors)| {
                    tensors.iter().map(|(groups, values)| TensorValues { values, groups: *groups }).collect()
                })
                .collect()
        })
        .collect();
    let mut points: StdVec<StdVec<PointValues<'_>>> = drawn
        .iter()
        .zip(&tensors)
        .map(|((_, points), tensors)| {
            points.iter().zip(tensors).map(|((path, _), tensors)| PointValues { path, tensors }).collect()
        })
        .collect();
    let mut parts: StdVec<_> =
        points.iter_mut().zip(drawn).map(|(points, (header, _))| PartValues { header: *header, points }).collect();
    let mut bytes = vec![0; encoded_len(&parts).unwrap()];
    encode(base, &mut parts, &mut bytes).unwrap();
    bytes
}

/// A tensor of one group.
const fn whole(values: &[f32]) -> TensorValues<'_> {
    TensorValues { values, groups: 1 }
}

/// The only part of a record.
fn only(record: Record<'_>) -> Part<'_> {
    assert_eq!(record.parts().len(), 1);
    record.parts().next().unwrap()
}

/// The adapter of the watch demo: linears 256 -> 64 -> 7, 391 parameters at r = 1.
fn watch(dtype: Dtype) -> StdVec<u8> {
    let mut random = Random(1);
    let [a1, b1, a2, b2] = [256, 64, 64, 7].map(|len| random.values(len));
    let (first, second) = ([whole(&a1), whole(&b1)], [whole(&a2), whole(&b2)]);
    let mut points = [PointValues { path: "fc1", tensors: &first }, PointValues { path: "fc2", tensors: &second }];
    encoded(&PartHeader { dtype, ..HEADER }, &mut points)
}

#[test]
fn the_documented_bytes() {
    let tensors = [TensorValues { values: &[1.0, -2.0], groups: 2 }, whole(&[0.5])];
    let mut lora = [PointValues { path: "fc1", tensors: &tensors }];
    let mut head = [PointValues { path: "pooled", tensors: &[TensorValues { values: &[0.5, -4.0, 3.5], groups: 1 }] }];
    let bytes = encoded_parts(&mut [
        PartValues {
            header: PartHeader { kind: 200, dtype: Dtype::Int4, rslora: false, rank: 3, alpha: 1.0 },
            points: &mut head,
        },
        PartValues { header: PartHeader { rslora: true, rank: 300, ..HEADER }, points: &mut lora },
    ]);
    let mut expected = StdVec::new();
    expected.extend(b"INLA\x03");
    expected.extend([9; 16]);
    expected.push(2);
    expected.extend([1, 0x31, 0xAC, 0x02]);
    expected.extend(2.0f32.to_le_bytes());
    expected.push(1);
    expected.extend(&blake3::hash(b"fc1").as_bytes()[..8]);
    expected.extend([2, 2, 1, 1, 0]);
    // No alpha, for it is 1.
    expected.extend([0xC8, 0x01, 0x03, 3, 1]);
    expected.extend(&blake3::hash(b"pooled").as_bytes()[..8]);
    expected.extend([1, 1, 3]);
    expected.extend([0x00, 0x3C, 0x00, 0xC0, 0x00, 0x38]);
    // The scale 0.5, then 1, -8, 7.
    expected.extend([0x00, 0x38, 0x81, 0x07]);
    expected.extend(&blake3::hash(&expected).as_bytes()[..16].to_vec());
    assert_eq!(bytes, expected);
}

#[test]
fn sizes_keep_their_promise() {
    assert_eq!(Dtype::ALL.map(|dtype| watch(dtype).len()), [1637, 855, 472, 277]);
    // MiniLM-L6: query, key, value, output, intermediate, output of six layers.
    for rank in [1, 4, 127, 128, 1024] {
        let groups = rank;
        let [narrow, wide] = [384, 1536].map(|features| vec![0.5; features * rank]);
        let [narrow, wide] = [&narrow, &wide].map(|values| TensorValues { values, groups });
        let shapes = [
            ("attention.self.query", [narrow, narrow]),
            ("attention.self.key", [narrow, narrow]),
            ("attention.self.value", [narrow, narrow]),
            ("attention.output.dense", [narrow, narrow]),
            ("intermediate.dense", [narrow, wide]),
            ("output.dense", [wide, narrow]),
        ];
        let paths: StdVec<_> = (0..6)
            .flat_map(|layer| shapes.iter().map(move |(path, t)| (format!("encoder.layer.{layer}.{path}"), t)))
            .collect();
        let mut points: StdVec<_> =
            paths.iter().map(|(path, tensors)| PointValues { path, tensors: &tensors[..] }).collect();
        for dtype in Dtype::ALL {
            let header = PartHeader { rank: rank as u16, dtype, ..HEADER };
            for count in [1, 2, 36] {
                let points = &mut points[..count];
                let tensors = points.iter().flat_map(|p| p.tensors);
                let raw: u64 = tensors.map(|t| dtype.tensor_bytes(rank as u32, (t.values.len() / rank) as u32)).sum();
                let overhead = encoded_len(&[PartValues { header, points }]).unwrap() - raw as usize;
                assert!(overhead <= 64 * count, "{overhead} bytes for {count} points at rank {rank}");
                assert!(overhead <= 47 + 15 * count, "{overhead} bytes for {count} points at rank {rank}");
            }
        }
        if rank == 1 {
            let mut some: StdVec<_> =
                points.iter().filter(|p| p.path.ends_with("query") || p.path.ends_with("value")).copied().collect();
            let header = PartHeader { dtype: Dtype::Int4, ..HEADER };
            assert_eq!(encoded_len(&[PartValues { header, points: &mut some }]).unwrap(), 4870);
        }
    }
}

#[test]
fn a_scale_a_core_makes_the_size_of_lora_xs() {
    let paths: StdVec<String> = (0..36).map(|i| format!("layer.{i}")).collect();
    let core = [whole(&[0.25; 256])];
    for (dtype, payload) in [(Dtype::Int4, 4680), (Dtype::Int8, 9288)] {
        let mut points: StdVec<_> = paths.iter().map(|path| PointValues { path, tensors: &core }).collect();
        let bytes = encoded(&PartHeader { dtype, rank: 16, ..HEADER }, &mut points);
        assert_eq!(Record::decode(&bytes).unwrap().payload_bytes(), payload);
    }
}

#[test]
fn random_adapters_round_trip() {
    let mut random = Random(42);
    for round in 0..200u16 {
        let kinds = 1 + random.bits() % 4;
        let drawn: StdVec<_> = (0..kinds).map(|kind| random_part(&mut random, kind as u16, round)).collect();
        let bytes = encoded_drawn(BASE, &drawn);
        let mut turned = drawn.clone();
        turned.reverse();
        turned.iter_mut().for_each(|(_, points)| points.reverse());
        assert_eq!(encoded_drawn(BASE, &turned), bytes, "the order of points shows in the bytes");

        let record = Record::decode(&bytes).unwrap();
        assert_eq!((record.version(), record.base()), (VERSION, BASE));
        assert_eq!(record.parts().len(), drawn.len());
        for (part, (header, points)) in record.parts().zip(&drawn) {
            assert_eq!(part.header(), header);
            assert_eq!(part.points().len(), points.len());
            assert!(part.point("layer.20").is_none());
            for (path, tensors) in points {
                let read: StdVec<_> = part.point(path).unwrap().tensors().collect();
                assert_eq!(read.len(), tensors.len());
                for (read, written) in read.iter().zip(tensors) {
                    assert_eq!((read.elements(), read.groups()), (written.1.len(), written.0));
                    check_rounding(header.dtype, read, &written.1);
                }
            }
        }
    }
}

fn random_part(random: &mut Random, kind: u16, round: u16) -> Drawn {
    let dtype = Dtype::ALL[random.bits() as usize % 4];
    let rank = 1 + (random.bits() % 1000) as u16;
    let header = PartHeader { dtype, rank, rslora: round.is_multiple_of(3), alpha: random.values(1)[0], kind };
    let points = (0..1 + random.bits() % 20).map(|i| {
        let tensors = (0..1 + random.bits() as usize % MAX_TENSORS).map(|_| {
            let groups = 1 + random.bits() as usize % 5;
            let len = 1 + random.bits() as usize % 60;
            (groups, random.values(groups * len))
        });
        (format!("layer.{i}"), tensors.collect())
    });
    (header, points.collect())
}

/// What was read is what was written, as near as the dtype allows.
fn check_rounding(dtype: Dtype, read: &Tensor<'_>, written: &[f32]) {
    let len = written.len() / read.groups();
    let found: StdVec<f32> = read.values().collect();
    for (found, written) in found.chunks(len).zip(written.chunks(len)) {
        let largest = written.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (found, written) in found.iter().zip(written) {
            match dtype {
                Dtype::F32 => assert_eq!(found.to_bits(), written.to_bits()),
                Dtype::F16 => assert_eq!(*found, f16::from_f32(*written).to_f32()),
                // At most clipped at the least scale that is tried.
                Dtype::Int8 | Dtype::Int4 => assert!((found - written).abs() <= 0.41 * largest, "{found} {written}"),
            }
        }
    }
}

#[test]
fn f16_rounds_to_nearest_even() {
    // The spacing of f16 between 2048 and 4096 is 2; between 1 and 2 it is 2^-10.
    let values = [2049.0, 2051.0, 2050.9, 1.0 + 1.0 / 2048.0, 65504.0, 65519.0, -0.0, 1e-9];
    let tensors = [whole(&values)];
    let bytes = encoded(&HEADER, &mut [PointValues { path: "a", tensors: &tensors }]);
    let part = only(Record::decode(&bytes).unwrap());
    let [tensor] = part.point("a").unwrap().tensors_exactly().unwrap();
    let read: StdVec<f32> = tensor.values().collect();
    assert_eq!(read, [2048.0, 2052.0, 2050.0, 1.0, 65504.0, 65504.0, 0.0, 0.0]);
    assert!(read[6].is_sign_negative());
    assert!(part.point("a").unwrap().tensors_exactly::<2>().is_none());
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
    for dtype in Dtype::ALL {
        let bytes = watch(dtype);
        for len in 0..bytes.len() {
            let refused = Record::decode(&bytes[..len]).unwrap_err();
            assert!(matches!(refused, RecordError::Truncated { found, .. } if found == len as u64), "{len}: {refused}");
        }
        let refused = Record::decode(&bytes[..200]).unwrap_err();
        assert_eq!(refused, RecordError::Truncated { needed: bytes.len() as u64, found: 200 });
    }
}

#[test]
fn trailing_bytes_are_refused_as_such() {
    for extra in [1, 16, 1000] {
        let mut bytes = watch(Dtype::F16);
        bytes.resize(bytes.len() + extra, 0);
        assert_eq!(Record::decode(&bytes).unwrap_err(), RecordError::TrailingBytes { extra: extra as u64 });
    }
}

type Change = fn(&mut StdVec<u8>);

/// A one-point record's bytes with `change` applied and a matching checksum.
fn forged(dtype: Dtype, change: impl FnOnce(&mut StdVec<u8>)) -> StdVec<u8> {
    let header = PartHeader { dtype, ..HEADER };
    let tensors = [whole(&[1.0, 2.0]), whole(&[3.0])];
    let mut points = [PointValues { path: "a", tensors: &tensors }];
    resealed(&encoded(&header, &mut points), change)
}

/// A record with `change` applied and a matching checksum.
pub(super) fn resealed(bytes: &[u8], change: impl FnOnce(&mut StdVec<u8>)) -> StdVec<u8> {
    let mut bytes = bytes[..bytes.len() - CHECKSUM_BYTES].to_vec();
    change(&mut bytes);
    let checksum = RecordChecksum::of(&bytes);
    bytes.extend(checksum.0);
    bytes
}

#[test]
fn checksummed_nonsense_is_refused_by_name() {
    // Offsets of the one-point record: 5 base, 21 parts, 22 kind, 23 encoding, 24 rank, 25 alpha, 29 points, 30 hash,
    // 38 tensors, 39 groups and elements, 43 payload.
    assert!(Record::decode(&forged(Dtype::F16, |_| {})).is_ok());
    let refused = |change: Change| Record::decode(&forged(Dtype::F16, change)).unwrap_err();
    assert_eq!(refused(|b| b[4] = 4), RecordError::NewerVersion { found: 4 });
    assert_eq!(refused(|b| b[23] = 4), RecordError::UnknownDtype { code: 4 });
    assert_eq!(refused(|b| b[23] = 0x0F), RecordError::UnknownDtype { code: 15 });
    let malformed: [Change; 19] = [
        |b| b[4] = 0,
        |b| b[21] = 0,
        |b| b[21] = 65,
        |b| b[23] |= 0x40,
        |b| b[25..29].copy_from_slice(&f32::NAN.to_le_bytes()),
        |b| b[25..29].copy_from_slice(&1f32.to_le_bytes()),
        |b| b[24] = 0,
        |b| b[29] = 0,
        |b| b[29] = 2,
        |b| b[38] = 0,
        |b| b[38] = 9,
        |b| b[38] = 1,
        |b| b[39] = 1,
        |b| b[40] = 0,
        |b| b[39] = 3,
        |b| b[39..41].copy_from_slice(&[0xFF, 0xFF]),
        |b| b[43..45].copy_from_slice(&[0x00, 0x7C]),
        |b| b.push(0),
        |b| b.truncate(b.len() - 1),
    ];
    for (i, change) in malformed.into_iter().enumerate() {
        let refused = refused(change);
        assert!(matches!(refused, RecordError::Malformed { .. }), "{i}: {refused}");
    }
    // Tables that claim the most that they can.
    for (points, len) in
        [([0x80, 0x20], [0x80, 0x80, 0x80, 0x80, 0x04]), ([0xFF, 0x1F], [0xFF, 0xFF, 0xFF, 0xFF, 0x0F])]
    {
        let bytes = forged(Dtype::F16, |b| {
            b.truncate(29);
            b.extend(points);
            for i in 0..4096u64 {
                b.extend(i.to_be_bytes());
                b.push(8);
                b.extend([&[1][..], &len].concat().repeat(8));
            }
        });
        let refused = Record::decode(&bytes);
        assert!(matches!(refused, Err(RecordError::Malformed { .. })), "{refused:?}");
    }
}

#[test]
fn quantized_nonsense_is_refused() {
    // From 43: the scale of two elements, the elements, the scale of one, its element.
    let malformed: [(Dtype, Change); 5] = [
        (Dtype::Int8, |b| b[43..45].copy_from_slice(&[0x00, 0x7C])),
        (Dtype::Int8, |b| b[43..45].copy_from_slice(&[0x00, 0xBC])),
        (Dtype::Int8, |b| b[46] = 0x80),
        (Dtype::Int4, |b| b[43..45].copy_from_slice(&[0x00, 0xFC])),
        (Dtype::Int4, |b| b[48] |= 0x10),
    ];
    for (i, (dtype, change)) in malformed.into_iter().enumerate() {
        let bytes = forged(dtype, change);
        let refused = Record::decode(&bytes);
        assert!(matches!(refused, Err(RecordError::Malformed { .. })), "{i}: {refused:?}");
    }
    for (dtype, change) in [(Dtype::Int8, 0x7F), (Dtype::Int4, 0x78), (Dtype::Int4, 0x87)] {
        assert!(Record::decode(&forged(dtype, |b| b[45] = change)).is_ok());
    }
    assert!(Record::decode(&forged(Dtype::Int4, |b| b[43..45].copy_from_slice(&[0x00, 0xBC]))).is_ok());
}

#[test]
fn points_out_of_order_or_repeated_are_refused() {
    let point = |path, tensors| PointValues { path, tensors };
    let (one, two) = ([whole(&[1.0])], [whole(&[2.0])]);
    let bytes = encoded(&HEADER, &mut [point("a", &one), point("b", &two)]);
    for swap in [true, false] {
        let bytes = resealed(&bytes, |bytes| {
            let (first, second) = (bytes[30..41].to_vec(), bytes[41..52].to_vec());
            bytes[30..41].copy_from_slice(&second);
            if swap {
                bytes[41..52].copy_from_slice(&first);
            }
        });
        assert!(matches!(Record::decode(&bytes).unwrap_err(), RecordError::Malformed { .. }));
    }
}

#[test]
fn parts_out_of_order_or_with_one_point_are_refused() {
    let tensors = [whole(&[1.0])];
    let parts = |second: PartHeader, path| {
        let (mut a, mut b) =
            ([PointValues { path: "a", tensors: &tensors }], [PointValues { path, tensors: &tensors }]);
        encoded_parts(&mut [
            PartValues { header: HEADER, points: &mut a },
            PartValues { header: second, points: &mut b },
        ])
    };
    // A part is 22..41 and 41..60: header 8, hash 8, sizes 3.
    let ranks = parts(PartHeader { rank: 2, ..HEADER }, "b");
    let kinds = parts(PartHeader { kind: 2, ..HEADER }, "a");
    assert!(Record::decode(&ranks).is_ok() && Record::decode(&kinds).is_ok());
    let changes: [(&[u8], Change); 4] = [
        (&ranks, |b| b[24] = 3),
        (&ranks, |b| b[24] = 2),
        (&ranks, |b| b.copy_within(30..38, 49)),
        (&kinds, |b| b[41] = 1),
    ];
    for (i, (bytes, change)) in changes.into_iter().enumerate() {
        let bytes = resealed(bytes, change);
        let refused = Record::decode(&bytes);
        assert!(matches!(refused, Err(RecordError::Malformed { .. })), "{i}: {refused:?}");
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut random = Random(3);
    for _ in 0..20_000 {
        let len = random.bits() as usize % 120;
        let noise: StdVec<u8> = (0..len).map(|_| random.bits() as u8).collect();
        assert!(Record::decode(&noise).is_err());
        let forged = forged(Dtype::ALL[random.bits() as usize % 4], |b| {
            let at = 5 + random.bits() as usize % (b.len() - 5);
            b.truncate(at);
            b.extend(&noise);
        });
        if let Ok(record) = Record::decode(&forged) {
            let mut points = record.parts().flat_map(|part| part.points());
            assert!(points.all(|p| p.tensors().all(|t| t.values().all(f32::is_finite))));
        }
    }
}

#[test]
fn other_bases_are_refused_with_both_identities() {
    let (trained, open) = (Fingerprint([1; 32]), Fingerprint([2; 32]));
    let tensors = [whole(&[1.0])];
    let mut points = [PointValues { path: "a", tensors: &tensors }];
    let mut bytes = [0; 100];
    let bytes = encode(trained.into(), &mut [PartValues { header: HEADER, points: &mut points }], &mut bytes).unwrap();
    let record = Record::decode(bytes).unwrap();
    assert_eq!(record.expect_base(&trained), Ok(()));
    let refused = record.expect_base(&open).unwrap_err();
    assert_eq!(refused, RecordError::OtherBase { expected: open.into(), found: trained.into() });
    let text = refused.to_string();
    assert!(text.contains(&"01".repeat(16)) && text.contains(&"02".repeat(16)), "{text}");
}

#[test]
fn bad_points_are_refused_on_write() {
    fn len(points: &mut [PointValues<'_>]) -> RecordError {
        encoded_len(&[PartValues { header: HEADER, points }]).unwrap_err()
    }
    assert_eq!(encoded_len(&[]), Err(RecordError::Parts { found: 0 }));
    assert_eq!(len(&mut []), RecordError::Points { found: 0 });
    let one = [whole(&[1.0])];
    let point = PointValues { path: "a", tensors: &one };
    assert_eq!(len(&mut [point; MAX_POINTS + 1]), RecordError::Points { found: MAX_POINTS + 1 });
    let path = PathHash::of("b");
    let tensors = |tensors: &[TensorValues<'_>]| len(&mut [point, PointValues { path: "b", tensors }]);
    assert_eq!(tensors(&[]), RecordError::Tensors { path, found: 0 });
    assert_eq!(tensors(&[whole(&[1.0]); MAX_TENSORS + 1]), RecordError::Tensors { path, found: 9 });
    let groups = |values: &[f32], groups| tensors(&[whole(&[1.0]), TensorValues { values, groups }]);
    for (values, count) in [(&[][..], 1), (&[1.0, 2.0, 3.0], 0), (&[1.0, 2.0, 3.0], 2), (&[1.0], 3)] {
        let expected = RecordError::Groups { path, elements: values.len(), groups: count };
        assert_eq!(groups(values, count), expected);
    }

    let mut out = [0; 200];
    let mut write = |header, points: &mut [PointValues<'_>], len| {
        encode(BASE, &mut [PartValues { header, points }], &mut out[..len]).map(|_| ()).unwrap_err()
    };
    assert_eq!(write(HEADER, &mut [point; 2], 200), RecordError::RepeatedPath { path: PathHash::of("a") });
    assert!(matches!(write(PartHeader { alpha: f32::NAN, ..HEADER }, &mut [point], 200), RecordError::Alpha { .. }));
    assert!(matches!(write(HEADER, &mut [point], 20), RecordError::Buffer { found: 20, .. }));
}

#[test]
fn bad_parts_are_refused_on_write() {
    let tensors = [whole(&[1.0])];
    let write = |second: PartHeader, path| {
        let (mut a, mut b) =
            ([PointValues { path: "a", tensors: &tensors }], [PointValues { path, tensors: &tensors }]);
        let parts = &mut [PartValues { header: HEADER, points: &mut a }, PartValues { header: second, points: &mut b }];
        encode(BASE, parts, &mut [0; 200]).map(|_| ())
    };
    assert_eq!(write(HEADER, "b"), Err(RecordError::RepeatedPart { kind: LORA_KIND }));
    let other_rank = PartHeader { rank: 2, ..HEADER };
    assert_eq!(write(other_rank, "a"), Err(RecordError::RepeatedPath { path: PathHash::of("a") }));
    assert_eq!(write(other_rank, "b"), Ok(()));
    assert_eq!(write(PartHeader { kind: 2, ..HEADER }, "a"), Ok(()));
    let mut points: StdVec<_> = (0..=MAX_PARTS).map(|_| [PointValues { path: "a", tensors: &tensors }]).collect();
    let parts: StdVec<_> = points.iter_mut().map(|points| PartValues { header: HEADER, points }).collect();
    assert_eq!(encoded_len(&parts), Err(RecordError::Parts { found: MAX_PARTS + 1 }));
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
        (Dtype::Int8, f32::NAN, true),
        (Dtype::Int8, -f32::MAX, true),
        (Dtype::Int8, 127.0 * 65504.0, false),
        (Dtype::Int4, 7.0 * 65505.0, true),
        (Dtype::Int4, -7.0 * 65504.0, false),
        (Dtype::Int4, 1e-30, false),
    ];
    for (dtype, value, refused) in cases {
        let mut out = [0; 100];
        let values = [0.0, value];
        let tensors = [whole(&[0.0]), whole(&values)];
        let points = &mut [PointValues { path: "a", tensors: &tensors }];
        match encode(BASE, &mut [PartValues { header: PartHeader { dtype, ..HEADER }, points }], &mut out) {
            Ok(bytes) => assert!(!refused && Record::decode(bytes).is_ok(), "{value} was written as {dtype:?}"),
            Err(error) => {
                let at = matches!(error, RecordError::NotFinite { tensor: 1, element: 1, .. });
                assert!(refused && at, "{value} as {dtype:?}: {error}");
            }
        }
    }
}

/// What a record of `dtype` makes of `values`, in groups.
fn rounded(dtype: Dtype, values: &[f32], groups: usize) -> StdVec<f32> {
    let mut points = [PointValues { path: "a", tensors: &[TensorValues { values, groups }] }];
    let bytes = encoded(&PartHeader { dtype, ..HEADER }, &mut points);
    let part = only(Record::decode(&bytes).unwrap());
    part.point("a").unwrap().tensors().next().unwrap().values().collect()
}

#[test]
fn what_a_scale_can_hold_is_held_exactly() {
    for (dtype, least, most) in [(Dtype::Int8, -127, 127), (Dtype::Int4, -8, 7)] {
        let all: StdVec<f32> = (least..=most).map(|q| q as f32 * 0.03125).collect();
        assert_eq!(rounded(dtype, &all, 1), all);
        // Groups keep scales of their own, and the elements of an odd length their places.
        let groups: StdVec<f32> = [1.0, 1024.0, 0.0].iter().flat_map(|s| all.iter().map(move |x| x * s)).collect();
        assert_eq!(rounded(dtype, &groups, 3), groups);
    }
}

#[test]
fn levels_that_are_dense_around_zero_are_held_exactly() {
    let levels = [-127, -92, -71, -56, -43, -31, -20, -10, 0, 12, 23, 36, 50, 67, 88, 127];
    let all: StdVec<f32> = levels.iter().map(|level| *level as f32 * 0.03125).collect();
    assert_eq!(rounded(Dtype::Int4, &all, 1), all);
    let most = f32::from(f16::MAX) * 7.0;
    assert!(rounded(Dtype::Int4, &[most, -most, 1.0], 1).iter().all(|x| x.is_finite()));
}

#[test]
fn scales_are_better_than_those_of_the_largest_value() {
    let mut random = Random(7);
    for (dtype, most, gain) in [(Dtype::Int8, 127.0, 1.0), (Dtype::Int4, 7.0, 0.7)] {
        let (mut found, mut plain) = (0.0, 0.0);
        for _ in 0..50 {
            // About normal: the sum of three uniform values.
            let values: StdVec<f32> = (0..384).map(|_| random.values(3).iter().sum()).collect();
            let scale = f16::from_f32(values.iter().fold(0f32, |m, x| m.max(x.abs())) / most).to_f32();
            let error = |rounded: &mut dyn Iterator<Item = f32>| {
                rounded.zip(&values).map(|(a, b)| f64::from((a - b).powi(2))).sum::<f64>()
            };
            found += error(&mut rounded(dtype, &values, 1).into_iter());
            plain += error(&mut values.iter().map(|x| (x / scale).round().clamp(-most, most) * scale));
        }
        assert!(found <= gain * plain, "{dtype:?}: {found} is not below {gain} x {plain}");
    }
}
