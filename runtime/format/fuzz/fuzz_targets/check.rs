//! What holds for any bytes. Shared by the fuzz targets and by the test that replays their corpus.
#![allow(dead_code, reason = "each target checks one of them")]

use inlay_format::record::{self, Dtype, PartHeader, Record};
use inlay_format::state::State;

/// Records: whatever the bytes, decoding ends without a panic; what is accepted has finite values, as many as it says,
/// and nothing that follows it is part of it.
pub fn record(bytes: &[u8]) {
    if let Ok(record) = Record::decode(bytes) {
        inside(&record, bytes.len());
    }
    // No mutation finds a checksum: it is given one, so that what lies behind it is reached.
    let sealed = sealed(&record::MAGIC, bytes);
    if let Ok(record) = Record::decode(&sealed) {
        inside(&record, sealed.len());
        for cut in [1, sealed.len() / 2] {
            assert!(Record::decode(&sealed[..sealed.len() - cut]).is_err());
        }
        let mut flipped = sealed.clone();
        flipped[bytes.first().map_or(0, |at| usize::from(*at) * 31) % sealed.len()] ^= 1;
        assert!(Record::decode(&flipped).is_err());
    }
}

fn inside(record: &Record<'_>, len: usize) {
    let mut payload = 0;
    for part in record.parts() {
        let PartHeader { dtype, alpha, .. } = *part.header();
        assert!(alpha.is_finite() && part.points().len() > 0);
        for tensor in part.points().flat_map(|point| point.tensors()) {
            let (groups, elements) = (tensor.groups(), tensor.elements());
            assert!(groups > 0 && elements > 0 && elements % groups == 0);
            assert_eq!(tensor.values().len(), elements);
            assert!(tensor.values().all(f32::is_finite));
            payload += dtype.tensor_bytes(groups as u32, (elements / groups) as u32) as usize;
            let floats = matches!(dtype, Dtype::F32 | Dtype::F16);
            assert!(payload <= len && (!floats || elements <= len));
        }
    }
    assert_eq!(payload, record.payload_bytes());
}

/// States: as records.
pub fn state(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), sealed(&inlay_format::state::MAGIC, bytes)] {
        let Ok(state) = State::decode(&bytes) else { continue };
        assert!(state.arrays().flatten().all(f32::is_finite));
        assert!(state.elements() * state.arrays().len() * 4 < bytes.len());
        assert!(State::decode(&bytes[1..]).is_err() && State::decode(&bytes[..bytes.len() - 1]).is_err());
    }
}

fn sealed(magic: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut sealed = [magic, bytes].concat();
    let checksum = *blake3::hash(&sealed).as_bytes();
    sealed.extend_from_slice(&checksum[..record::CHECKSUM_BYTES]);
    sealed
}
