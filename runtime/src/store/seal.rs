//! Files that nobody reads or forges without the key: XChaCha20-Poly1305, as `docs/adapter-format.md` states.

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

const MAGIC: [u8; 4] = *b"INLX";
const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 8;
const NONCE_BYTES: usize = 24;
const HEADER_BYTES: usize = MAGIC.len() + 1 + KEY_ID_BYTES + NONCE_BYTES;
const TAG_BYTES: usize = 16;
/// What sealing adds to a file.
pub(super) const SEAL_BYTES: usize = HEADER_BYTES + TAG_BYTES;
/// Separates the identity of a key from every other use of it.
const KEY_ID_CONTEXT: &str = "Inlay 2026 adapter store key id";

/// A key of 32 secret bytes, under which a store seals its files. The app keeps it: in the Android Keystore, a TPM, or
/// wherever a person's secrets are on its platform. Without it the files are noise; dropping it erases them for good.
///
/// Wiped from memory when it is dropped, and not shown by `Debug`.
#[derive(Clone)]
pub struct StoreKey(Zeroizing<[u8; StoreKey::BYTES]>);

impl StoreKey {
    /// Bytes of a key.
    pub const BYTES: usize = 32;

    /// The key of these bytes, which have to be random: a password is no key.
    pub fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key in the contents of a key file: 32 bytes, or 64 hexadecimal digits.
    pub fn parse(contents: &[u8]) -> Option<Self> {
        if let Ok(bytes) = contents.try_into() {
            return Some(Self::new(bytes));
        }
        let digits: Zeroizing<Vec<u8>> = Zeroizing::new(
            contents
                .trim_ascii()
                .iter()
                .map(|c| char::from(*c).to_digit(16).map(|d| d as u8))
                .collect::<Option<_>>()?,
        );
        let mut key = Self::new([0; Self::BYTES]);
        if digits.len() != 2 * Self::BYTES {
            return None;
        }
        for (byte, pair) in key.0.iter_mut().zip(digits.as_chunks::<2>().0) {
            *byte = pair[0] << 4 | pair[1];
        }
        Some(key)
    }

    /// What a sealed file says about its key: enough to tell another key from damage.
    fn id(&self) -> [u8; KEY_ID_BYTES] {
        let id = blake3::derive_key(KEY_ID_CONTEXT, &*self.0);
        *id.first_chunk().expect("a hash is longer")
    }

    /// `plain` as a sealed file called `file_name`.
    pub(super) fn seal(&self, file_name: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(SealError::Random)?;
        let mut sealed = Vec::with_capacity(plain.len() + SEAL_BYTES);
        sealed.extend(MAGIC);
        sealed.push(VERSION);
        sealed.extend(self.id());
        let aad = associated(&sealed, file_name);
        sealed.extend(nonce);
        let encrypted = self.cipher().encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: &aad });
        sealed.extend(encrypted.expect("a record is far below the cipher's limit"));
        Ok(sealed)
    }

    /// What [`StoreKey::seal`] was given.
    pub(super) fn open(&self, file_name: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        if !is_sealed(sealed) {
            return Err(SealError::NotSealed);
        }
        let (header, encrypted) = sealed.split_at_checked(HEADER_BYTES).ok_or(SealError::Altered)?;
        let (named, nonce) = header.split_at(HEADER_BYTES - NONCE_BYTES);
        if named[MAGIC.len()] != VERSION {
            return Err(SealError::NewerVersion { found: named[MAGIC.len()] });
        }
        if named[MAGIC.len() + 1..] != self.id() {
            return Err(SealError::WrongKey);
        }
        let nonce: [u8; NONCE_BYTES] = nonce.try_into().expect("the header was split there");
        let payload = Payload { msg: encrypted, aad: &associated(named, file_name) };
        self.cipher().decrypt(&XNonce::from(nonce), payload).map_err(|_| SealError::Altered)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&Key::from(*self.0))
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey(..)")
    }
}

/// Whether these are the bytes of a sealed file.
pub(super) fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// What is authenticated beside the contents: the file's own header and whose file it is.
fn associated(header: &[u8], file_name: &str) -> Vec<u8> {
    [header, file_name.as_bytes()].concat()
}

/// Why a file cannot be sealed or opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The file is sealed and the store was opened without a key.
    #[error("it is encrypted; open the store with its key")]
    KeyNeeded,
    /// The store was opened with a key and the file is not sealed.
    #[error(
        "it is not encrypted, but the store was opened with a key; export it without one, delete it, and import it with one"
    )]
    NotSealed,
    /// The file is sealed under another key.
    #[error("it is encrypted under another key; open the store with that key, or delete the adapter")]
    WrongKey,
    /// Altered, cut short, or the file of another user or adapter.
    #[error("it was altered, cut short or put in the place of another file; delete it, or roll back")]
    Altered,
    /// Sealed by a later version of this format.
    #[error("it is sealed in version {found}, this program reads version {VERSION}; update the program")]
    NewerVersion {
        /// Its version.
        found: u8,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes: {0}")]
    Random(getrandom::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "anna.adapter";

    fn key() -> StoreKey {
        StoreKey::new([7; 32])
    }

    #[test]
    fn sealed_files_open_again_and_look_like_noise() {
        let plain = [3; 1000];
        let (first, second) = (key().seal(FILE, &plain).unwrap(), key().seal(FILE, &plain).unwrap());
        assert_eq!(first.len(), plain.len() + SEAL_BYTES);
        assert_eq!(key().open(FILE, &first).unwrap(), plain);
        assert_eq!(key().open(FILE, &second).unwrap(), plain);
        assert_ne!(first[13..37], second[13..37], "a nonce was used twice");
        assert!(!first.windows(4).any(|bytes| bytes == [3; 4]));
        assert!(key().open(FILE, &key().seal(FILE, &[]).unwrap()).unwrap().is_empty());
    }

    /// A file that `make_golden.py` sealed, with another implementation of the cipher.
    #[test]
    fn files_of_version_1_are_read() {
        let golden = |name: &str| std::fs::read(format!("format/tests/golden/{name}")).unwrap();
        let key = StoreKey::new(std::array::from_fn(|i| i as u8));
        assert_eq!(key.open(FILE, &golden("v1.sealed")).unwrap(), golden("v2.int4.adapter"));
    }

    #[test]
    fn every_bit_flip_and_truncation_is_refused() {
        let sealed = key().seal(FILE, b"a person's adapter").unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut sealed = sealed.clone();
            sealed[bit / 8] ^= 1 << (bit % 8);
            let expected = match bit / 8 {
                0..4 => SealError::NotSealed,
                4 => SealError::NewerVersion { found: sealed[4] },
                5..13 => SealError::WrongKey,
                _ => SealError::Altered,
            };
            assert_eq!(key().open(FILE, &sealed), Err(expected), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert!(key().open(FILE, &sealed[..len]).is_err(), "{len}");
        }
        assert_eq!(key().open(FILE, &[&sealed[..], &[0]].concat()), Err(SealError::Altered));
    }

    #[test]
    fn another_key_or_file_is_refused_as_such() {
        let sealed = key().seal(FILE, b"a person's adapter").unwrap();
        assert_eq!(StoreKey::new([8; 32]).open(FILE, &sealed), Err(SealError::WrongKey));
        assert_eq!(key().open("ben.adapter", &sealed), Err(SealError::Altered));
        assert_eq!(key().open("anna.previous", &sealed), Err(SealError::Altered));
        assert_eq!(key().open(FILE, b"INLA"), Err(SealError::NotSealed));
    }

    #[test]
    fn keys_are_bytes_or_digits() {
        let digits = "07".repeat(32);
        for contents in [&[7; 32][..], digits.as_bytes(), format!("{digits}\n").as_bytes()] {
            assert_eq!(StoreKey::parse(contents).unwrap().id(), key().id());
        }
        for bad in [&b""[..], b"password", &[7; 31], &[7; 33], "g7".repeat(32).as_bytes(), "07".repeat(31).as_bytes()] {
            assert!(StoreKey::parse(bad).is_none());
        }
        assert_eq!(format!("{:?}", key()), "StoreKey(..)");
    }
}
