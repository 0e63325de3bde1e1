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
    /// 4 bits, one of 16 levels, even or denser around zero, times the f16 scale of its group.
    Int4,
}

/// Bytes of a group's scale.
const SCALE_BYTES: usize = 2;
/// Factors on the scale that just holds the largest value, which [`scale_of`] tries: a smaller scale clips what is largest
/// and is finer for the rest.
const SCALE_FACTORS: [f32; 13] = [1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76, 0.72, 0.68, 0.64, 0.6];

/// The levels of int4 where a scale is negative, from element -8 on: quantiles of a normal distribution (NF4 of Dettmers et
/// al., 2023, the other way round), since trained values lie densest around zero.
const DENSE_LEVELS: [i8; 16] = [-127, -92, -71, -56, -43, -31, -20, -10, 0, 12, 23, 36, 50, 67, 88, 127];

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
            let (scales, elements) = out.split_at_mut(groups * SCALE_BYTES);
            elements.fill(0);
            let len = values.len() / groups;
            for (group, values) in values.chunks_exact(len).enumerate() {
                let scale = scale_of(values, dtype);
                scales[group * SCALE_BYTES..][..SCALE_BYTES].copy_from_slice(&scale.to_le_bytes());
                for (at, value) in (group * len..).zip(values) {
                    let element = quantized(*value, scale.to_f32(), dtype) as u8;
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
    let scale = f16_at(bytes, index / size.len as usize).to_f32();
    level(element, scale) * scale
}

/// What breaks a rule of the format in a tensor in `bytes`, if anything does.
pub(super) fn fault(version: u8, dtype: Dtype, bytes: &[u8], size: Size) -> Option<&'static str> {
    if dtype.range().is_none() {
        let finite = (0..size.elements() as usize).all(|i| value_at(dtype, bytes, size, i).is_finite());
        return (!finite).then_some("a value is not finite");
    }
    // Version 2 has -7 to 7 at int4, and even levels only.
    let has_sixteen = dtype == Dtype::Int4 && version >= 3;
    let is_scale = |scale: f16| scale.is_finite() && (has_sixteen || scale.is_sign_positive());
    if !(0..size.groups as usize).all(|group| is_scale(f16_at(bytes, group))) {
        return Some("a scale is not finite, or negative");
    }
    let elements = elements(bytes, size);
    let out_of_range = match dtype {
        Dtype::Int4 => !has_sixteen && elements.iter().any(|pair| pair & 0xF == 8 || pair >> 4 == 8),
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
fn scale_of(values: &[f32], dtype: Dtype) -> f16 {
    let largest = values.iter().fold(0f32, |largest, x| if x.abs() > largest.abs() { *x } else { largest });
    if largest == 0.0 {
        return f16::ZERO;
    }
    let range = dtype.range().expect("it is quantized");
    let end = if largest > 0.0 { range.end() } else { range.start() };
    let even = away_from_zero(largest / f32::from(*end));
    let dense = away_from_zero(-largest.abs() / f32::from(DENSE_LEVELS[0].unsigned_abs()));
    let wholes = [even, dense];
    let wholes = if dtype == Dtype::Int4 { &wholes[..] } else { &wholes[..1] };
    let mut best = (f32::INFINITY, even);
    let mut consider = |scale: f16| {
        let (error, better) = squared_error(values, scale, dtype);
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
fn squared_error(values: &[f32], scale: f16, dtype: Dtype) -> (f32, f32) {
    let scale = scale.to_f32();
    let (mut error, mut dot, mut square) = (0f32, 0f32, 0f32);
    for x in values {
        let level = level(quantized(*x, scale, dtype), scale);
        let off = level * scale - x;
        error += off * off;
        dot += level * x;
        square += level * level;
    }
    (error, if square > 0.0 { dot / square } else { scale })
}

/// What an element stands for, in units of its scale.
fn level(element: i8, scale: f32) -> f32 {
    if scale.is_sign_positive() {
        return f32::from(element);
    }
    // Elements of 4 bits lie between -8 and 7. The minus is that of the scale.
    -f32::from(DENSE_LEVELS[usize::from((element + 8).unsigned_abs())])
}

/// The element whose level is nearest to `value`.
fn quantized(value: f32, scale: f32, dtype: Dtype) -> i8 {
    if scale == 0.0 {
        return 0;
    }
    if scale < 0.0 {
        let x = value / -scale;
        let is_above = |pair: &&[i8]| x > 0.5 * (f32::from(pair[0]) + f32::from(pair[1]));
        return DENSE_LEVELS.windows(2).filter(is_above).count() as i8 - 8;
    }
    let range = dtype.range().expect("it is quantized");
    // Within i8 by the clamp.
    libm::rintf(value / scale).clamp(f32::from(*range.start()), f32::from(*range.end())) as i8
}

/// The f16 nearest to `value` of those that are not nearer to zero, so that a largest value is not clipped before it is
/// meant to be. f16 can hold it.
fn away_from_zero(value: f32) -> f16 {
    let nearest = f16::from_f32(value);
    if nearest.to_f32().abs() >= value.abs() { nearest } else { f16::from_bits(nearest.to_bits() + 1) }
}
