//! How a payload stores the values of a tensor.

use core::ops::RangeInclusive;

use half::f16;

use super::{RecordError, Size};

/// How a payload stores an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// 8 bits, -127 to 127, times the f16 scale of its group.
    Int8,
    /// 4 bits, -8 to 7, times the f16 scale of its group, which may be negative.
    Int4,
}

/// Bytes of a group's scale.
const SCALE_BYTES: usize = 2;
/// Factors on the scale that just holds the largest value, which [`scale_of`] tries: a smaller scale clips what is largest
/// and is finer for the rest.
const SCALE_FACTORS: [f32; 13] = [1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76, 0.72, 0.68, 0.64, 0.6];

impl Dtype {
    /// Every dtype.
    pub const ALL: [Dtype; 4] = [Dtype::F32, Dtype::F16, Dtype::Int8, Dtype::Int4];

    /// What `--dtype` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Int8 => "int8",
            Dtype::Int4 => "int4",
        }
    }

    /// Bytes of a tensor of `groups` x `len` elements, its scales included.
    pub fn tensor_bytes(self, groups: u32, len: u32) -> u64 {
        let size = Size { groups, len };
        let elements = size.elements();
        let scales = u64::from(groups) * SCALE_BYTES as u64;
        match self {
            Dtype::F32 => elements.saturating_mul(4),
            Dtype::F16 => elements.saturating_mul(2),
            Dtype::Int8 => scales.saturating_add(elements),
            Dtype::Int4 => scales.saturating_add(elements.div_ceil(2)),
        }
    }

    /// The elements of a quantized dtype, `None` for floats.
    pub(super) fn range(self) -> Option<RangeInclusive<i8>> {
        match self {
            Dtype::F32 | Dtype::F16 => None,
            Dtype::Int8 => Some(-127..=127),
            Dtype::Int4 => Some(-8..=7),
        }
    }

    pub(super) fn code(self) -> u8 {
        match self {
            Dtype::F32 => 0,
            Dtype::F16 => 1,
            Dtype::Int8 => 2,
            Dtype::Int4 => 3,
        }
    }

    /// The dtype of a code in a record of `version`.
    pub(super) fn from_code(code: u8, version: u8) -> Result<Self, RecordError> {
        let known = if version == 1 { &Self::ALL[..2] } else { &Self::ALL[..] };
        known.iter().copied().find(|dtype| dtype.code() == code).ok_or(RecordError::UnknownDtype { code })
    }

    /// Whether the payload can hold `value`: it is finite, and stays so.
    pub(super) fn holds(self, value: f32) -> bool {
        match self {
            Dtype::F32 => value.is_finite(),
            Dtype::F16 => f16::from_f32(value).is_finite(),
            Dtype::Int8 | Dtype::Int4 => {
                let most = f32::from(*self.range().expect("it is quantized").end());
                value.is_finite() && value.abs() <= most * f16::MAX.to_f32()
            }
        }
    }
}

/// Writes a tensor of `groups` equal groups into `out`, which has [`Dtype::tensor_bytes`]. Every value is one that
/// [`Dtype::holds`].
pub(super) fn pack(dtype: Dtype, values: &[f32], groups: usize, out: &mut [u8]) {
    match dtype {
        Dtype::F32 => out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(b, x)| *b = x.to_le_bytes()),
        Dtype::F16 => {
            out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(b, x)| *b = f16::from_f32(*x).to_le_bytes());
        }
        Dtype::Int8 | Dtype::Int4 => {
            let range = dtype.range().expect("it is quantized");
            let (scales, elements) = out.split_at_mut(groups * SCALE_BYTES);
            elements.fill(0);
            let len = values.len() / groups;
            for (group, values) in values.chunks_exact(len).enumerate() {
                let scale = scale_of(values, &range);
                scales[group * SCALE_BYTES..][..SCALE_BYTES].copy_from_slice(&scale.to_le_bytes());
                for (at, value) in (group * len..).zip(values) {
                    let element = quantized(*value, scale.to_f32(), &range) as u8;
                    match dtype {
                        Dtype::Int8 => elements[at] = element,
                        _ => elements[at / 2] |= (element & 0xF) << (at % 2 * 4),
                    }
                }
            }
        }
    }
}

/// The value at `index` of a tensor in `bytes`.
pub(super) fn value_at(dtype: Dtype, bytes: &[u8], size: Size, index: usize) -> f32 {
    let element = match dtype {
        Dtype::F32 => return f32::from_le_bytes(*bytes[index * 4..].first_chunk().expect("the length was checked")),
        Dtype::F16 => return f16_at(bytes, index).to_f32(),
        Dtype::Int8 => elements(bytes, size)[index] as i8,
        // Up, and back with the sign.
        Dtype::Int4 => ((elements(bytes, size)[index / 2] << (4 - index % 2 * 4)) as i8) >> 4,
    };
    f32::from(element) * f16_at(bytes, index / size.len as usize).to_f32()
}

/// What breaks a rule of the format in a tensor in `bytes`, if anything does.
pub(super) fn fault(version: u8, dtype: Dtype, bytes: &[u8], size: Size) -> Option<&'static str> {
    if dtype.range().is_none() {
        let finite = (0..size.elements() as usize).all(|i| value_at(dtype, bytes, size, i).is_finite());
        return (!finite).then_some("a value is not finite");
    }
    // Version 2 has -7 to 7 at int4.
    let is_lopsided = dtype == Dtype::Int4 && version >= 3;
    let is_scale = |scale: f16| scale.is_finite() && (is_lopsided || scale.is_sign_positive());
    if !(0..size.groups as usize).all(|group| is_scale(f16_at(bytes, group))) {
        return Some("a scale is not finite, or negative");
    }
    let elements = elements(bytes, size);
    let out_of_range = match dtype {
        Dtype::Int4 => !is_lopsided && elements.iter().any(|pair| pair & 0xF == 8 || pair >> 4 == 8),
        _ => elements.contains(&0x80),
    };
    if out_of_range {
        return Some("an element is out of range");
    }
    let padded = dtype == Dtype::Int4 && size.elements() % 2 == 1;
    (padded && elements.last().is_some_and(|pair| pair >> 4 != 0)).then_some("bits behind the last element are set")
}

fn elements(bytes: &[u8], size: Size) -> &[u8] {
    &bytes[size.groups as usize * SCALE_BYTES..]
}

fn f16_at(bytes: &[u8], index: usize) -> f16 {
    f16::from_le_bytes(*bytes[index * 2..].first_chunk().expect("the length was checked"))
}

/// The scale of a group: of those tried, the one with the least sum of squared errors.
fn scale_of(values: &[f32], range: &RangeInclusive<i8>) -> f16 {
    let largest = values.iter().fold(0f32, |largest, x| if x.abs() > largest.abs() { *x } else { largest });
    if largest == 0.0 {
        return f16::ZERO;
    }
    let (least, most) = (f32::from(*range.start()), f32::from(*range.end()));
    let ends = if largest > 0.0 { [most, least] } else { [least, most] };
    let wholes = ends.map(|end| away_from_zero(largest / end));
    // A negative scale turns the range round: of use where one side has a level more.
    let wholes = if least == -most { &wholes[..1] } else { &wholes[..] };
    let mut best = (f32::INFINITY, wholes[0]);
    let mut consider = |scale: f16| {
        let (error, better) = squared_error(values, scale, range);
        if error < best.0 {
            best = (error, scale);
        }
        better
    };
    for (whole, factor) in wholes.iter().flat_map(|whole| SCALE_FACTORS.map(|factor| (whole, factor))) {
        let better = consider(f16::from_f32(whole.to_f32() * factor));
        // For elements as they now are, the scale of least squares may be another.
        consider(f16::from_f32(better));
    }
    best.1
}

/// The squared error of `values` with that scale, and the scale that would fit the same elements best.
fn squared_error(values: &[f32], scale: f16, range: &RangeInclusive<i8>) -> (f32, f32) {
    let scale = scale.to_f32();
    let (mut error, mut dot, mut square) = (0f32, 0f32, 0f32);
    for x in values {
        let element = f32::from(quantized(*x, scale, range));
        let off = element * scale - x;
        error += off * off;
        dot += element * x;
        square += element * element;
    }
    (error, if square > 0.0 { dot / square } else { scale })
}

/// The element nearest to `value`.
fn quantized(value: f32, scale: f32, range: &RangeInclusive<i8>) -> i8 {
    if scale == 0.0 {
        return 0;
    }
    // Within i8 by the clamp.
    libm::rintf(value / scale).clamp(f32::from(*range.start()), f32::from(*range.end())) as i8
}

/// The f16 nearest to `value` of those that are not nearer to zero, so that a largest value is not clipped before it is
/// meant to be. f16 can hold it.
fn away_from_zero(value: f32) -> f16 {
    let nearest = f16::from_f32(value);
    if nearest.to_f32().abs() >= value.abs() { nearest } else { f16::from_bits(nearest.to_bits() + 1) }
}
