use super::*;

/// A small seeded generator (xorshift): values in -1..1.
fn random(len: usize, mut state: u64) -> Vec<f32> {
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(step).collect()
}

fn encode(scheme: &dyn Scheme, layout: Layout, dims: [usize; 2], values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let [k, n] = dims;
    let (mut data, mut scales) = (vec![0; scheme.data_len(k, n)], vec![0.0; scheme.scales_len(k, n)]);
    scheme.encode(values, layout, dims, &mut data, &mut scales).unwrap();
    (data, scales)
}

const LAYOUTS: [Layout; 2] = [Layout::KN, Layout::NK];
const SHAPES: [[usize; 2]; 6] = [[1, 1], [1, 7], [13, 1], [3, 5], [31, 17], [64, 33]];

#[test]
fn names_and_data_types_are_unique() {
    for (i, a) in SCHEMES.iter().enumerate() {
        assert_eq!(scheme(a.name()).unwrap().name(), a.name());
        assert_eq!(scheme_of(a.spelling().data_type).unwrap().name(), a.name());
        for b in &SCHEMES[i + 1..] {
            assert_ne!(a.name(), b.name());
        }
    }
}

#[test]
fn every_scheme_decodes_any_range_as_element_by_element() {
    for (scheme, layout) in SCHEMES.iter().flat_map(|s| LAYOUTS.map(|l| (*s, l))) {
        for dims in SHAPES {
            let values = random(dims[0] * dims[1], 7);
            let (data, scales) = encode(scheme, layout, dims, &values);
            let mut whole = vec![0.0; values.len()];
            scheme.decode(&data, &scales, layout, dims, 0, &mut whole);
            for (k, n) in (0..dims[0]).flat_map(|k| (0..dims[1]).map(move |n| (k, n))) {
                let (index, got) = (layout.index(dims, [k, n]), scheme.get(&data, &scales, layout, dims, [k, n]));
                assert_eq!(layout.output(dims, index), n);
                assert_eq!(got, whole[index]);
                assert!(
                    (got - values[index]).abs() <= 1.0 / 253.0,
                    "{scheme:?} {layout:?} {dims:?} at {k}, {n}: {got}"
                );
            }
            for first in [0, values.len() / 2, values.len() - 1, values.len()] {
                let mut part = vec![0.0; (values.len() - first).min(11)];
                scheme.decode(&data, &scales, layout, dims, first, &mut part);
                assert_eq!(part, whole[first..first + part.len()], "{scheme:?} {layout:?} {dims:?} from {first}");
            }
        }
    }
}

#[test]
fn quantizing_what_was_dequantized_changes_nothing() {
    for scheme in SCHEMES {
        let dims = [40, 9];
        let (data, scales) = encode(*scheme, Layout::NK, dims, &random(360, 3));
        let mut decoded = vec![0.0; 360];
        scheme.decode(&data, &scales, Layout::NK, dims, 0, &mut decoded);
        assert_eq!(encode(*scheme, Layout::NK, dims, &decoded).0, data, "{scheme:?}");
    }
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    for scheme in SCHEMES {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut data, mut scales) = (vec![0; scheme.data_len(3, 1)], vec![0.0; scheme.scales_len(3, 1)]);
            let refused = scheme.encode(&[0.0, bad, 0.0], Layout::KN, [3, 1], &mut data, &mut scales);
            assert_eq!(refused, Err(NotFinite { index: 1 }), "{scheme:?}");
        }
    }
}

#[test]
fn sizes_that_do_not_fit_saturate() {
    for scheme in SCHEMES {
        assert_eq!(scheme.data_len(usize::MAX, 2), usize::MAX, "{scheme:?}");
    }
}

#[test]
fn int8_never_uses_minus_128_and_survives_the_smallest_weights() {
    let (data, scales) = encode(&Int8, Layout::NK, [2, 2], &[-127.0, 1.0, f32::from_bits(1), 0.0]);
    assert_eq!(data.iter().map(|q| q.cast_signed()).collect::<Vec<_>>(), [-127, 1, 0, 0]);
    assert_eq!(scales, [1.0, 1.0]);
}
