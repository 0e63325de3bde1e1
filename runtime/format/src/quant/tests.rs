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

/// A packed weight of its own.
struct Packed {
    data: Vec<u8>,
    scales: Vec<f32>,
    zero_points: Vec<u8>,
}

impl Packed {
    fn new(sizes: Sizes) -> Self {
        Packed { data: vec![0; sizes.data], scales: vec![0.0; sizes.scales], zero_points: vec![0; sizes.zero_points] }
    }

    fn parts(&self) -> Parts<'_> {
        Parts { data: &self.data, scales: &self.scales, zero_points: &self.zero_points }
    }

    fn parts_mut(&mut self) -> PartsMut<'_> {
        PartsMut { data: &mut self.data, scales: &mut self.scales, zero_points: &mut self.zero_points }
    }
}

fn encode(scheme: &dyn Scheme, form: Form, layout: Layout, dims: [usize; 2], values: &[f32]) -> Option<Packed> {
    let mut packed = Packed::new(scheme.sizes(layout, dims, form)?);
    scheme.encode(values, layout, dims, packed.parts_mut()).unwrap();
    Some(packed)
}

/// Every scheme in every form.
fn forms() -> impl Iterator<Item = (&'static dyn Scheme, Form)> {
    SCHEMES.iter().flat_map(|s| s.forms().iter().map(|f| (*s, *f)))
}

const LAYOUTS: [Layout; 2] = [Layout::KN, Layout::NK];
const SHAPES: [[usize; 2]; 8] = [[1, 1], [1, 7], [13, 1], [3, 5], [31, 17], [64, 33], [48, 5], [768, 3]];

#[test]
fn names_and_spellings_are_unique() {
    let key = |s: &Spelling| (s.data_type, s.op_type, s.domain);
    for (i, a) in SCHEMES.iter().enumerate() {
        assert_eq!(scheme(a.name()).unwrap().name(), a.name());
        for b in &SCHEMES[i + 1..] {
            assert_ne!(a.name(), b.name());
            assert!(a.spellings().iter().all(|a| b.spellings().iter().all(|b| key(a) != key(b))));
        }
    }
}

#[test]
fn every_scheme_decodes_any_range_as_element_by_element() {
    let mut seen = 0;
    for ((scheme, form), layout) in forms().flat_map(|s| LAYOUTS.map(|l| (s, l))) {
        for dims in SHAPES {
            let values = random(dims[0] * dims[1], 7);
            let Some(packed) = encode(scheme, form, layout, dims, &values) else { continue };
            seen += 1;
            let mut whole = vec![0.0; values.len()];
            scheme.decode(packed.parts(), layout, dims, 0, &mut whole);
            // Half a step; int4 may cut off the largest elements besides.
            let allowed = if scheme.name() == "int4" { 0.25 } else { 1.0 / 253.0 };
            for (k, n) in (0..dims[0]).flat_map(|k| (0..dims[1]).map(move |n| (k, n))) {
                let (index, got) = (layout.index(dims, [k, n]), scheme.get(packed.parts(), layout, dims, [k, n]));
                assert_eq!(layout.output(dims, index), n);
                assert_eq!(got, whole[index]);
                assert!(
                    (got - values[index]).abs() <= allowed,
                    "{scheme:?} {form:?} {layout:?} {dims:?} at {k}, {n}: {got} for {}",
                    values[index]
                );
            }
            for first in [0, values.len() / 2, values.len() - 1, values.len()] {
                let mut part = vec![0.0; (values.len() - first).min(11)];
                scheme.decode(packed.parts(), layout, dims, first, &mut part);
                assert_eq!(part, whole[first..first + part.len()], "{scheme:?} {layout:?} {dims:?} from {first}");
            }
        }
    }
    // Int8, uint8, f16 and f32 take every shape; blocks of 16 and 32 two or three of the row-major ones, of 256 one, once
    // in uint8 and in the three forms of int4.
    assert_eq!(seen, 4 * 2 * SHAPES.len() + 4 * (3 + 2 + 2 + 1 + 1));
}

#[test]
fn quantizing_what_was_dequantized_changes_little() {
    for (scheme, form) in forms() {
        let dims = [256, 9];
        let values = random(256 * 9, 3);
        let packed = encode(scheme, form, Layout::NK, dims, &values).unwrap();
        let mut decoded = vec![0.0; values.len()];
        scheme.decode(packed.parts(), Layout::NK, dims, 0, &mut decoded);
        let again = encode(scheme, form, Layout::NK, dims, &decoded).unwrap();
        if scheme.name() != "int4" {
            assert_eq!(again.data, packed.data, "{scheme:?}");
            continue;
        }
        // The search starts from the largest element, which may have been cut off.
        let squares = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        let mut twice = vec![0.0; values.len()];
        scheme.decode(again.parts(), Layout::NK, dims, 0, &mut twice);
        let (first, second) = (squares(&values, &decoded), squares(&decoded, &twice));
        assert!(second < 0.3 * first, "{form:?}: {second} after {first}");
    }
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    for (scheme, form) in forms() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [0.0; 256];
            values[1] = bad;
            let mut packed = Packed::new(scheme.sizes(Layout::NK, [256, 1], form).unwrap());
            let refused = scheme.encode(&values, Layout::NK, [256, 1], packed.parts_mut());
            assert_eq!(refused, Err(EncodeError::NotFinite { index: 1 }), "{scheme:?}");
        }
    }
}

#[test]
fn sizes_name_their_form_and_saturate() {
    for (scheme, form) in forms() {
        let sizes = scheme.sizes(Layout::NK, [512, 3], form).unwrap();
        assert_eq!(scheme.form_of(Layout::NK, [512, 3], sizes), Some(form));
        let other = Sizes { data: sizes.data + 1, ..sizes };
        assert_eq!(scheme.form_of(Layout::NK, [512, 3], other), None);
        assert_eq!(scheme.sizes(Layout::NK, [512, usize::MAX], form).unwrap().data, usize::MAX, "{scheme:?}");
    }
}

#[test]
fn int8_never_uses_minus_128_and_survives_the_smallest_weights() {
    let values = [-127.0, 1.0, f32::from_bits(1), 0.0];
    let packed = encode(&Int8, Form::WHOLE, Layout::NK, [2, 2], &values).unwrap();
    assert_eq!(packed.data.iter().map(|q| q.cast_signed()).collect::<Vec<_>>(), [-127, 1, 0, 0]);
    assert_eq!(packed.scales, [1.0, 1.0]);
}
