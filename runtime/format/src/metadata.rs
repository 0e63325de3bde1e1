//! What an exported file says about itself: the keys of its `metadata_props`, its fingerprint and its checksum.

use core::fmt;
use core::ops::Range;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// Version of the exported file, the value of [`FORMAT_KEY`].
pub const FORMAT_VERSION: &str = "1";
/// Key of the format version.
pub const FORMAT_KEY: &str = "inlay.format";
/// Key of the insertion points: a JSON array of [`Point`](crate::points::Point).
pub const POINTS_KEY: &str = "inlay.points";
/// Key of the quantization report: JSON.
pub const REPORT_KEY: &str = "inlay.report";
/// Key of the [`Fingerprint`].
pub const FINGERPRINT_KEY: &str = "inlay.fingerprint";
/// Key of the checksum of the `.onnx` file, see [`checksum`].
pub const CHECKSUM_KEY: &str = "inlay.checksum";

/// Length of a fingerprint or checksum as a metadata value: lower-case hexadecimal digits.
pub const HEX_DIGITS: usize = 64;
/// Largest `.onnx` part that a device reads; weights lie outside of it, in `.data`.
pub const MAX_ONNX_BYTES: usize = 256 << 20;
/// Alignment in `.data` of tensors of at least [`PAGE_ALIGNED_BYTES`] bytes, and of every packed weight.
pub const PAGE_BYTES: usize = 4096;
/// Tensors of at least this size are aligned to [`PAGE_BYTES`] in `.data`.
pub const PAGE_ALIGNED_BYTES: usize = 4096;
/// Alignment in `.data` of every other tensor.
pub const TENSOR_ALIGNMENT_BYTES: usize = 64;
/// f32 tensors of at least this size go to `.data`; smaller ones stay inline.
pub const MIN_EXTERNAL_BYTES: usize = 1024;

/// The identity of a base: BLAKE3 of its GraphProto bytes followed by the 32-byte BLAKE3 of its `.data` file.
///
/// It covers what the model computes and nothing that only describes it. A base without a `.data` file counts as one
/// with an empty one. Shown and parsed as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a base with these GraphProto bytes and this BLAKE3 of its `.data`.
    pub fn of(graph: &[u8], data: &[u8; 32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(graph).update(data);
        Self(*hasher.finalize().as_bytes())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = NotHex;

    fn from_str(text: &str) -> Result<Self, NotHex> {
        parse_hex(text).map(Self)
    }
}

/// A metadata value that should be 64 lower-case hexadecimal digits and is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {HEX_DIGITS} lower-case hexadecimal digits")]
pub struct NotHex;

/// BLAKE3 of a whole `.onnx` file with the 64 digits of its own [`CHECKSUM_KEY`] value, at `value`, read as '0'.
///
/// Returns `None` when `value` is not 64 bytes inside the file.
pub fn checksum(onnx: &[u8], value: Range<usize>) -> Option<Checksum> {
    if value.len() != HEX_DIGITS {
        return None;
    }
    let (before, after) = (onnx.get(..value.start)?, onnx.get(value.end..)?);
    let mut hasher = blake3::Hasher::new();
    hasher.update(before).update(&[b'0'; HEX_DIGITS]).update(after);
    Some(Checksum(*hasher.finalize().as_bytes()))
}

/// The value of [`CHECKSUM_KEY`]. Shown and parsed as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Checksum(pub [u8; 32]);

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl FromStr for Checksum {
    type Err = NotHex;

    fn from_str(text: &str) -> Result<Self, NotHex> {
        parse_hex(text).map(Self)
    }
}

pub(crate) fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn parse_hex(text: &str) -> Result<[u8; 32], NotHex> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Ok(c - b'0'),
        b'a'..=b'f' => Ok(c - b'a' + 10),
        _ => Err(NotHex),
    };
    let digits: &[u8; HEX_DIGITS] = text.as_bytes().try_into().map_err(|_| NotHex)?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_round_trips_and_is_strict() {
        let fingerprint = Fingerprint::of(b"graph", blake3::hash(b"data").as_bytes());
        let text = fingerprint.to_string();
        assert_eq!(text.len(), HEX_DIGITS);
        assert_eq!(text.parse(), Ok(fingerprint));
        for bad in ["", &text[1..], &format!("{text}0"), &text.to_uppercase(), &"g".repeat(64)] {
            assert_eq!(bad.parse::<Fingerprint>(), Err(NotHex), "{bad}");
        }
    }

    #[test]
    fn fingerprint_covers_graph_and_data() {
        let of = |graph: &[u8], data: &[u8]| Fingerprint::of(graph, blake3::hash(data).as_bytes());
        assert_eq!(of(b"graph", b"data"), of(b"graph", b"data"));
        assert_ne!(of(b"graph", b"data"), of(b"grapi", b"data"));
        assert_ne!(of(b"graph", b"data"), of(b"graph", b"date"));
    }

    #[test]
    fn checksum_ignores_its_own_value_only() {
        let mut file = [b"head".as_slice(), &[b'0'; HEX_DIGITS], b"tail"].concat();
        let value = 4..4 + HEX_DIGITS;
        let sum = checksum(&file, value.clone()).unwrap();
        assert_eq!(sum, Checksum(*blake3::hash(&file).as_bytes()));
        file[value.clone()].copy_from_slice(sum.to_string().as_bytes());
        assert_eq!(checksum(&file, value.clone()), Some(sum));
        for at in [0, 3, 4 + HEX_DIGITS, file.len() - 1] {
            file[at] ^= 1;
            assert_ne!(checksum(&file, value.clone()), Some(sum), "byte {at}");
            file[at] ^= 1;
        }
        assert_eq!(checksum(&file, 4..4 + HEX_DIGITS + 1), None);
        assert_eq!(checksum(&file, file.len() - 1..file.len() - 1 + HEX_DIGITS), None);
    }
}
