//! Records of every version, as `tests/golden/make_golden.py` wrote them.

use std::vec::Vec as StdVec;

use super::tests::{Drawn, encoded_drawn, resealed};
use super::*;
use crate::state::State;

const LORA: PartHeader = PartHeader { kind: LORA_KIND, dtype: Dtype::F32, rslora: true, rank: 2, alpha: 3.0 };
const OTHER: PartHeader = PartHeader { kind: 300, dtype: Dtype::F32, rslora: false, rank: 0, alpha: 1.0 };
/// The tensors of a point: the scales of its groups, and the elements of a group.
type Tensors = &'static [(&'static [f32], usize)];
const LORA_POINTS: [(&str, Tensors); 2] = [
    ("encoder.layer.0.query", &[(&[0.5, 0.0625], 11), (&[2.0, 0.25], 7)]),
    ("head", &[(&[1.0, 4.0], 150), (&[0.125, 0.03125], 3)]),
];
const OTHER_POINTS: [(&str, Tensors); 1] = [("pooled", &[(&[0.25, 0.5, 1.0], 5)])];
const SAME: PartHeader = PartHeader { kind: 8, dtype: Dtype::F32, rslora: false, rank: 2, alpha: 1.0 };
const SAME_POINTS: [(&str, Tensors); 1] = [("up", &[(&[0.5, 0.0625], 9), (&[1.0], 9), (&[0.25], 2)])];
const LAST_POINTS: [(&str, Tensors); 1] = [("pooled", &[(&[0.25, -0.5, 1.0], 5)])];

const V1: [(Dtype, &[u8]); 2] = [
    (Dtype::F32, include_bytes!("../../tests/golden/v1.f32.adapter")),
    (Dtype::F16, include_bytes!("../../tests/golden/v1.f16.adapter")),
];
const V2: [(Dtype, Dtype, &[u8]); 4] = [
    (Dtype::F32, Dtype::Int4, include_bytes!("../../tests/golden/v2.f32.adapter")),
    (Dtype::F16, Dtype::Int8, include_bytes!("../../tests/golden/v2.f16.adapter")),
    (Dtype::Int8, Dtype::F16, include_bytes!("../../tests/golden/v2.int8.adapter")),
    (Dtype::Int4, Dtype::Int8, include_bytes!("../../tests/golden/v2.int4.adapter")),
];
const V3: [(Dtype, Dtype, &[u8]); 4] = [
    (Dtype::F32, Dtype::Int4, include_bytes!("../../tests/golden/v3.f32.adapter")),
    (Dtype::F16, Dtype::Int8, include_bytes!("../../tests/golden/v3.f16.adapter")),
    (Dtype::Int8, Dtype::F16, include_bytes!("../../tests/golden/v3.int8.adapter")),
    (Dtype::Int4, Dtype::Int8, include_bytes!("../../tests/golden/v3.int4.adapter")),
];
const STATE_V1: &[u8] = include_bytes!("../../tests/golden/v1.state");

/// Of int4 where a scale is negative.
const DENSE_LEVELS: [i32; 16] = [-127, -92, -71, -56, -43, -31, -20, -10, 0, 12, 23, 36, 50, 67, 88, 127];

fn base() -> BaseId {
    BaseId(core::array::from_fn(|i| i as u8))
}

/// The parts of a golden of version 3.
fn parts_v3(dtype: Dtype, other: Dtype) -> [(PartHeader, &'static [(&'static str, Tensors)]); 3] {
    let last = if other == Dtype::Int4 { &LAST_POINTS } else { &OTHER_POINTS };
    let with = |dtype, header| PartHeader { dtype, ..header };
    [(with(dtype, LORA), &LORA_POINTS), (with(dtype, SAME), &SAME_POINTS), (with(other, OTHER), last)]
}

fn values(dtype: Dtype, (scales, len): (&[f32], usize), version: u8) -> StdVec<f32> {
    let (least, most) = match dtype {
        Dtype::Int4 if version < 3 => (-7, 7),
        Dtype::Int4 => (-8, 7),
        _ => (-127, 127),
    };
    let largest = if -least <= most { most } else { least };
    let element = |i: i32| if i == 0 { largest } else { i * 5 % (most - least + 1) + least };
    let value = |element: i32, scale: f32| {
        if scale > 0.0 { element as f32 * scale } else { DENSE_LEVELS[(element + 8) as usize] as f32 * -scale }
    };
    scales.iter().flat_map(|scale| (0..len as i32).map(move |i| value(element(i), *scale))).collect()
}

fn check(part: &Part<'_>, header: PartHeader, points: &[(&str, Tensors)], version: u8) {
    assert_eq!(*part.header(), header);
    assert_eq!(part.points().len(), points.len());
    for (path, tensors) in points {
        let found: StdVec<_> = part.point(path).expect("it has the point").tensors().collect();
        assert_eq!(found.len(), tensors.len());
        for (found, tensor) in found.iter().zip(*tensors) {
            assert_eq!(found.groups(), if version == 1 { 1 } else { tensor.0.len() });
            assert_eq!(found.values().collect::<StdVec<_>>(), values(header.dtype, *tensor, version), "{path}");
        }
    }
}

#[test]
fn records_of_version_1_are_read() {
    for (dtype, bytes) in V1 {
        let record = Record::decode(bytes).unwrap();
        assert_eq!((record.version(), record.base(), record.parts().len()), (1, base(), 1));
        check(&record.parts().next().unwrap(), PartHeader { dtype, ..LORA }, &LORA_POINTS, 1);
    }
}

#[test]
fn records_of_version_2_are_read() {
    for (dtype, other, bytes) in V2 {
        let record = Record::decode(bytes).unwrap();
        assert_eq!((record.version(), record.base(), record.parts().len()), (2, base(), 2));
        let parts: StdVec<_> = record.parts().collect();
        check(&parts[0], PartHeader { dtype, ..LORA }, &LORA_POINTS, 2);
        check(&parts[1], PartHeader { dtype: other, ..OTHER }, &OTHER_POINTS, 2);
    }
}

#[test]
fn version_2_has_fifteen_levels_at_int4() {
    let [.., (.., bytes)] = V2;
    // The payload starts with the scales of two groups, then their elements.
    let payload = bytes.len() - CHECKSUM_BYTES - Record::decode(bytes).unwrap().payload_bytes();
    for (at, byte) in [(payload + 1, 0xBC), (payload + 4, 0x08), (payload + 4, 0x80)] {
        let refused = Record::decode(&resealed(bytes, |bytes| bytes[at] = byte)).unwrap_err();
        assert!(matches!(refused, RecordError::Malformed { .. }), "{refused}");
    }
}

#[test]
fn records_of_version_3_are_read() {
    for (dtype, other, bytes) in V3 {
        let record = Record::decode(bytes).unwrap();
        assert_eq!((record.version(), record.base(), record.parts().len()), (3, base(), 3));
        for (part, (header, points)) in record.parts().zip(parts_v3(dtype, other)) {
            check(&part, header, points, 3);
        }
    }
}

#[test]
fn records_of_version_3_are_written_byte_for_byte() {
    for (dtype, other, expected) in V3 {
        let draw = |(header, points): (PartHeader, &[(&str, Tensors)])| -> Drawn {
            let tensors = |tensors: Tensors| tensors.iter().map(|t| (t.0.len(), values(header.dtype, *t, 3))).collect();
            (header, points.iter().map(|(path, of_point)| ((*path).to_owned(), tensors(of_point))).collect())
        };
        let mut parts = parts_v3(dtype, other).map(draw);
        parts.reverse();
        assert_eq!(encoded_drawn(base(), &parts), expected, "{dtype:?}");
    }
}

#[test]
fn states_of_version_1_are_read() {
    let state = State::decode(STATE_V1).unwrap();
    let record = Record::decode(V2[1].2).unwrap();
    assert_eq!(state.expect(record.checksum(), crate::state::SGD), Ok(()));
    assert_eq!((state.header().step, state.header().seed), (300, 7));
    let arrays: StdVec<StdVec<f32>> = state.arrays().map(Iterator::collect).collect();
    assert_eq!(arrays, [[0.5, -1.0, 2.0], [0.25, -0.125, 8.0]]);
}

#[test]
fn every_bit_flip_and_every_truncation_of_every_golden_record_is_refused() {
    let [second, third] = [V2, V3].map(|version| version.map(|(.., bytes)| bytes));
    for bytes in V1.map(|(_, bytes)| bytes).into_iter().chain(second).chain(third) {
        for len in 0..bytes.len() {
            assert!(Record::decode(&bytes[..len]).is_err(), "the first {len} bytes");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(&bytes).is_err(), "bit {bit}");
        }
    }
}
