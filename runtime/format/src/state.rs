//! The state file, version 1: what a trainer needs beyond the adapter record to continue exactly where it stopped.
//!
//! `docs/adapter-format.md` states every byte. It may be deleted at any time; only the optimizer's memory is lost.

use serde::{Deserialize, Serialize};

use crate::record::{CHECKSUM_BYTES, RecordChecksum};

/// First bytes of every state file.
pub const MAGIC: [u8; 4] = *b"INLS";
/// The version that this crate writes, and the newest that it reads.
pub const VERSION: u8 = 1;
/// Largest state file.
pub const MAX_STATE_BYTES: usize = 1 << 30;
/// Most arrays: the parameters and what the optimizer keeps for each of them.
pub const MAX_ARRAYS: usize = 4;
/// The optimizer id of SGD. Its arrays: parameters, momentum.
pub const SGD: u16 = 1;
/// The optimizer id of AdamW. Its arrays: parameters, `m`, `v`.
pub const ADAMW: u16 = 2;

/// What a state says about the run as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The record that this state continues.
    pub record: RecordChecksum,
    /// The optimizer, see [`SGD`] and [`ADAMW`].
    pub optimizer: u16,
    /// Optimizer steps taken.
    pub step: u64,
    /// The run's seed, from which the order of samples follows.
    pub seed: u64,
}

/// Everything between the version and the arrays, as postcard writes it.
#[derive(Serialize, Deserialize)]
struct HeaderBytes {
    header: Header,
    arrays: u8,
    elements: u32,
}

/// A state that was checked as a whole, borrowed from its bytes.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    header: Header,
    elements: usize,
    arrays: &'a [u8],
}

impl<'a> State<'a> {
    /// Reads and checks `bytes`, which must be one state file and nothing else.
    ///
    /// # Errors
    /// [`StateError`] with the reason.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, StateError> {
        if bytes.len() > MAX_STATE_BYTES {
            return Err(StateError::TooLarge { found: bytes.len() as u64 });
        }
        if !bytes.iter().zip(&MAGIC).all(|(a, b)| a == b) {
            return Err(StateError::NotAState);
        }
        let (body, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(StateError::Damaged)?;
        if RecordChecksum::of(body).0 != *checksum {
            return Err(StateError::Damaged);
        }
        let malformed = |reason| StateError::Malformed { reason };
        let (version, rest) = body.get(MAGIC.len()..).and_then(<[u8]>::split_first).ok_or(StateError::Damaged)?;
        match *version {
            VERSION => {}
            0 => return Err(malformed("its version is 0")),
            found => return Err(StateError::NewerVersion { found }),
        }
        let (HeaderBytes { header, arrays, elements }, rest) =
            postcard::take_from_bytes(rest).map_err(|_| malformed("its header cannot be decoded"))?;
        if arrays == 0 || usize::from(arrays) > MAX_ARRAYS || elements == 0 {
            return Err(malformed("it has no arrays, empty ones, or too many"));
        }
        if rest.len() as u64 != u64::from(arrays) * u64::from(elements) * 4 {
            return Err(malformed("its lengths do not add up"));
        }
        let state = Self { header, elements: elements as usize, arrays: rest };
        if state.arrays().flatten().any(|value| !value.is_finite()) {
            return Err(malformed("a value is not finite"));
        }
        Ok(state)
    }

    /// What the state says about the run as a whole.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Elements of each array.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The arrays: the parameters in the order of the record's payload, then the optimizer's, in the same order.
    pub fn arrays(&self) -> impl ExactSizeIterator<Item = impl Iterator<Item = f32> + use<'a>> + use<'a> {
        let values = |array: &'a [u8]| array.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        self.arrays.chunks_exact(self.elements * 4).map(values)
    }

    /// Checks that this state continues `record` and was written for `optimizer`.
    ///
    /// # Errors
    /// [`StateError::OtherRecord`] or [`StateError::OtherOptimizer`].
    pub fn expect(&self, record: RecordChecksum, optimizer: u16) -> Result<(), StateError> {
        if self.header.record != record {
            return Err(StateError::OtherRecord { expected: record, found: self.header.record });
        }
        if self.header.optimizer != optimizer {
            return Err(StateError::OtherOptimizer { expected: optimizer, found: self.header.optimizer });
        }
        Ok(())
    }
}

/// Bytes of the state that [`encode`] makes of `arrays`, each given in pieces.
///
/// # Errors
/// [`StateError`] when there are no arrays, too many, empty ones, or ones of different lengths.
pub fn encoded_len(header: &Header, arrays: &[&[&[f32]]]) -> Result<usize, StateError> {
    let header = header_bytes(header, arrays)?;
    let values = u64::from(header.elements) * arrays.len() as u64 * 4;
    let header_len = postcard::experimental::serialized_size(&header).expect("plain data has a size");
    let len = (MAGIC.len() + 1 + header_len + CHECKSUM_BYTES) as u64 + values;
    if len > MAX_STATE_BYTES as u64 { Err(StateError::TooLarge { found: len }) } else { Ok(len as usize) }
}

/// Writes the state into the front of `out`, which must have [`encoded_len`] bytes, and returns it.
///
/// # Errors
/// As [`encoded_len`], and for a value that is not finite. `out` then holds nothing of use.
pub fn encode<'o>(header: &Header, arrays: &[&[&[f32]]], out: &'o mut [u8]) -> Result<&'o mut [u8], StateError> {
    let needed = encoded_len(header, arrays)?;
    let found = out.len();
    let out = out.get_mut(..needed).ok_or(StateError::Buffer { needed, found })?;
    let (body, checksum) = out.split_at_mut(needed - CHECKSUM_BYTES);
    let (start, rest) = body.split_at_mut(MAGIC.len() + 1);
    start[..MAGIC.len()].copy_from_slice(&MAGIC);
    start[MAGIC.len()] = VERSION;
    let written = postcard::to_slice(&header_bytes(header, arrays)?, rest).expect("encoded_len counted these bytes");
    let written = written.len();
    let values = arrays.iter().flat_map(|array| array.iter().copied().flatten());
    for (bytes, value) in rest[written..].as_chunks_mut::<4>().0.iter_mut().zip(values) {
        if !value.is_finite() {
            return Err(StateError::NotFinite { value: *value });
        }
        *bytes = value.to_le_bytes();
    }
    checksum.copy_from_slice(&RecordChecksum::of(body).0);
    Ok(out)
}

fn header_bytes(header: &Header, arrays: &[&[&[f32]]]) -> Result<HeaderBytes, StateError> {
    let elements = |array: &[&[f32]]| array.iter().map(|piece| piece.len()).sum::<usize>();
    let first = arrays.first().map_or(0, |array| elements(array));
    if first == 0 || arrays.len() > MAX_ARRAYS || arrays.iter().any(|array| elements(array) != first) {
        return Err(StateError::Arrays { found: arrays.len() });
    }
    let elements = u32::try_from(first).map_err(|_| StateError::TooLarge { found: first as u64 * 4 })?;
    Ok(HeaderBytes { header: *header, arrays: arrays.len() as u8, elements })
}

/// Why a state cannot be read or written.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The bytes do not start as a state does.
    #[error("not a training state: it does not start with \"INLS\"")]
    NotAState,
    /// Cut short, altered, or with something behind its end.
    #[error(
        "the training state is cut short or was altered: its checksum does not match; delete it to go on without it"
    )]
    Damaged,
    /// Written by a later version of this format.
    #[error("the training state has format version {found}, this program reads up to {VERSION}; update the program")]
    NewerVersion {
        /// Its version.
        found: u8,
    },
    /// It continues another save of the adapter.
    #[error("the training state continues adapter record {found}, not {expected}; delete it to go on without it")]
    OtherRecord {
        /// The record at hand.
        expected: RecordChecksum,
        /// The record that the state continues.
        found: RecordChecksum,
    },
    /// It was written by another optimizer.
    #[error("the training state is of optimizer {found}, not {expected}; train with the same one, or delete the state")]
    OtherOptimizer {
        /// The optimizer at hand.
        expected: u16,
        /// The optimizer that wrote it.
        found: u16,
    },
    /// A checksummed state that breaks a rule of the format.
    #[error("the training state is malformed: {reason}; the program that wrote it is at fault")]
    Malformed {
        /// The rule.
        reason: &'static str,
    },
    /// More bytes than [`MAX_STATE_BYTES`].
    #[error("the training state has {found} bytes, more than the limit of {MAX_STATE_BYTES}")]
    TooLarge {
        /// Its size.
        found: u64,
    },
    /// A writer was given no arrays, too many, empty ones, or ones of different lengths.
    #[error("a training state holds 1 to {MAX_ARRAYS} arrays of one length above 0; {found} arrays were given")]
    Arrays {
        /// How many it was given.
        found: usize,
    },
    /// A writer was given NaN or infinity.
    #[error("the training state holds {value}; lower the learning rate")]
    NotFinite {
        /// The value.
        value: f32,
    },
    /// A writer's buffer is shorter than [`encoded_len`] says.
    #[error("the buffer has {found} bytes, the training state needs {needed}")]
    Buffer {
        /// Bytes that the state needs.
        needed: usize,
        /// Bytes of the buffer.
        found: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header =
        Header { record: RecordChecksum([7; CHECKSUM_BYTES]), optimizer: ADAMW, step: 1 << 40, seed: u64::MAX };

    fn state(arrays: &[&[&[f32]]]) -> Vec<u8> {
        let mut bytes = vec![0; encoded_len(&HEADER, arrays).unwrap()];
        encode(&HEADER, arrays, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn round_trip() {
        let (parameters, m, v) = ([1.0, -2.5, f32::MIN_POSITIVE], [0.0, -0.0, 3.0], [f32::MAX, 1e-40, 9.0]);
        let bytes = state(&[&[&parameters[..1], &parameters[1..]], &[&m], &[&v[..2], &[], &v[2..]]]);
        let state = State::decode(&bytes).unwrap();
        assert_eq!(*state.header(), HEADER);
        assert_eq!((state.elements(), state.arrays().len()), (3, 3));
        for (read, written) in state.arrays().zip([parameters, m, v]) {
            let read: Vec<u32> = read.map(f32::to_bits).collect();
            assert_eq!(read, written.map(f32::to_bits));
        }
        assert_eq!(state.expect(HEADER.record, ADAMW), Ok(()));
        assert!(matches!(state.expect(HEADER.record, SGD), Err(StateError::OtherOptimizer { .. })));
        let other = RecordChecksum([8; CHECKSUM_BYTES]);
        assert!(matches!(state.expect(other, ADAMW), Err(StateError::OtherRecord { .. })));
    }

    #[test]
    fn every_bit_flip_truncation_and_extension_is_refused() {
        let bytes = state(&[&[&[1.0, 2.0, 3.0]], &[&[4.0, 5.0, 6.0]]]);
        for len in 0..bytes.len() {
            assert!(State::decode(&bytes[..len]).is_err(), "first {len} bytes");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(State::decode(&bytes).is_err(), "bit {bit}");
        }
        assert!(State::decode(&[&bytes[..], &[0]].concat()).is_err());
    }

    /// The state's bytes with `change` applied and a matching checksum.
    fn forged(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = state(&[&[&[1.0, 2.0]]]);
        bytes.truncate(bytes.len() - CHECKSUM_BYTES);
        change(&mut bytes);
        let checksum = RecordChecksum::of(&bytes);
        bytes.extend(checksum.0);
        bytes
    }

    #[test]
    fn checksummed_nonsense_is_refused() {
        assert!(State::decode(&forged(|_| {})).is_ok());
        let newer = State::decode(&forged(|bytes| bytes[4] = 2)).unwrap_err();
        assert_eq!(newer, StateError::NewerVersion { found: 2 });
        let changes: [fn(&mut Vec<u8>); 6] = [
            |bytes| bytes[4] = 0,
            |bytes| bytes.truncate(20),
            |bytes| bytes.push(0),
            |bytes| bytes.truncate(bytes.len() - 4),
            |bytes| bytes.extend([0; 8]),
            |bytes| {
                let at = bytes.len() - 4;
                bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
            },
        ];
        for (i, change) in changes.into_iter().enumerate() {
            let refused = State::decode(&forged(change)).unwrap_err();
            assert!(matches!(refused, StateError::Malformed { .. }), "{i}: {refused}");
        }
    }

    #[test]
    fn bad_arrays_are_refused_on_write() {
        let no_arrays: [&[&[f32]]; 0] = [];
        assert!(encoded_len(&HEADER, &no_arrays).is_err());
        assert!(encoded_len(&HEADER, &[&[&[]]]).is_err());
        assert!(encoded_len(&HEADER, &[&[&[1.0]], &[&[1.0, 2.0]]]).is_err());
        assert!(encoded_len(&HEADER, &[&[&[1.0f32] as &[f32]] as &[&[f32]]; MAX_ARRAYS + 1]).is_err());
        let mut out = [0; 100];
        let refused = encode(&HEADER, &[&[&[1.0, f32::INFINITY]]], &mut out).unwrap_err();
        assert_eq!(refused, StateError::NotFinite { value: f32::INFINITY });
        let refused = encode(&HEADER, &[&[&[1.0]]], &mut out[..8]).unwrap_err();
        assert!(matches!(refused, StateError::Buffer { .. }));
    }
}
