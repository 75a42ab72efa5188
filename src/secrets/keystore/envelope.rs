//! The cryptography and the formats: XChaCha20-Poly1305 throughout, with random nonces, which its 24 bytes make safe.
//!
//! - A **sealed** file is a magic word, the id of the key, a nonce and the ciphertext.
//! - What is authenticated beside the ciphertext says what it is, for whom, and under which key, so that a file that was
//!   moved to another name, or an old one put in a new one's place under another version, does not open.
//! - Values are padded to a multiple of [`PADDING`], so that the length of a file does not tell that of a password.

use std::fmt::Write as _;

use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD};
use chacha20poly1305::{
    Key, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, KeyInit as _, Payload},
};
use rand::{TryRng as _, rngs::SysRng};
use zeroize::Zeroizing;

use super::super::Error;

const NONCE: usize = 24;
const KEY: usize = 32;
const PADDING: usize = 256;

/// Names a key without saying anything about it: random.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyId([u8; 8]);

/// A key and its id: a key-encryption key, or the data key of a tenant.
pub(super) struct SealingKey {
    pub id: KeyId,
    key: Zeroizing<[u8; KEY]>,
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes).map_err(|_| Error::NoRandomness)?;
    Ok(bytes)
}

impl SealingKey {
    pub fn generate() -> Result<Self, Error> {
        Ok(Self { id: KeyId(random()?), key: Zeroizing::new(random()?) })
    }

    /// Encrypts `plaintext` and binds it to `context`.
    pub fn seal(&self, magic: &[u8; 4], context: &str, plaintext: &[u8]) -> Result<Vec<u8>, Error> {
        let nonce: [u8; NONCE] = random()?;
        let authenticated = self.authenticated(magic, context);
        let payload = Payload { msg: plaintext, aad: &authenticated };
        let sealed =
            self.cipher().encrypt(&XNonce::from(nonce), payload).expect("a secret is far below the cipher's limit");
        Ok([magic.as_slice(), &self.id.0, &nonce, &sealed].concat())
    }

    /// The plaintext, if `file` was sealed by this key for `context` and has not changed since.
    pub fn open(&self, magic: &[u8; 4], context: &str, file: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let rest = file.strip_prefix(magic)?.strip_prefix(&self.id.0)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        let authenticated = self.authenticated(magic, context);
        let payload = Payload { msg: sealed, aad: &authenticated };
        self.cipher().decrypt(&XNonce::from(*nonce), payload).ok().map(Zeroizing::new)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&Key::from(*self.key))
    }

    fn authenticated(&self, magic: &[u8; 4], context: &str) -> Vec<u8> {
        [magic.as_slice(), &self.id.0, context.as_bytes()].concat()
    }
}

/// The key that a sealed file names.
pub(super) fn key_id(magic: &[u8; 4], file: &[u8]) -> Option<KeyId> {
    file.strip_prefix(magic)?.first_chunk().copied().map(KeyId)
}

const DATA_KEY: &[u8; 4] = b"SPK1";
const VALUE: &[u8; 4] = b"SPV1";

/// Which key-encryption key a wrapped data key needs.
pub(super) fn wrapped_under(file: &[u8]) -> Option<KeyId> {
    key_id(DATA_KEY, file)
}

/// A tenant's data key, as it is stored.
pub(super) fn wrap(data_key: &SealingKey, tenant: &str, under: &SealingKey) -> Result<Vec<u8>, Error> {
    let plaintext = Zeroizing::new([data_key.id.0.as_slice(), data_key.key.as_slice()].concat());
    under.seal(DATA_KEY, tenant, &plaintext)
}

/// The tenant's data key back.
pub(super) fn unwrap(file: &[u8], tenant: &str, under: &SealingKey) -> Option<SealingKey> {
    let plaintext = under.open(DATA_KEY, tenant, file)?;
    let (id, key) = plaintext.split_first_chunk()?;
    Some(SealingKey { id: KeyId(*id), key: Zeroizing::new(key.try_into().ok()?) })
}

/// A value, as it is stored.
pub(super) fn seal_value(data_key: &SealingKey, path: &str, version: u64, value: &str) -> Result<Vec<u8>, Error> {
    let length = u32::try_from(value.len()).expect("the limit on values is far below").to_be_bytes();
    let padded = (length.len() + value.len()).next_multiple_of(PADDING);
    // At its full length from the start, so that growing leaves no copy behind.
    let mut plaintext = Zeroizing::new(Vec::with_capacity(padded));
    plaintext.extend_from_slice(&length);
    plaintext.extend_from_slice(value.as_bytes());
    plaintext.resize(padded, 0);
    data_key.seal(VALUE, &value_context(path, version), &plaintext)
}

/// The value back.
pub(super) fn open_value(data_key: &SealingKey, path: &str, version: u64, file: &[u8]) -> Option<Zeroizing<String>> {
    let plaintext = data_key.open(VALUE, &value_context(path, version), file)?;
    let (length, value) = plaintext.split_first_chunk()?;
    let value = value.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    std::str::from_utf8(value).ok().map(|value| Zeroizing::new(value.to_owned()))
}

/// No path holds an `@`.
fn value_context(path: &str, version: u64) -> String {
    format!("{path}@{version}")
}

/// The keys in a key file, the one in use first: one, or two while a rotation is under way.
pub(super) struct KeyRing(pub Vec<SealingKey>);

const KEY_LINE: &str = "seedplane-key-v1";

impl KeyRing {
    pub fn current(&self) -> &SealingKey {
        &self.0[0]
    }

    pub fn with_id(&self, id: KeyId) -> Option<&SealingKey> {
        self.0.iter().find(|key| key.id == id)
    }

    /// The content of a key file with the first `count` keys.
    pub fn encode(&self, count: usize) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(512));
        text.push_str("# Opens every secret of this Seedplane. Keep a copy apart from the copies of the keystore.\n");
        for key in &self.0[..count] {
            let encoded = Zeroizing::new(BASE64_STANDARD_NO_PAD.encode(key.key.as_slice()));
            let id = hex::encode(key.id.0);
            writeln!(text, "{KEY_LINE} {id} {}", *encoded).expect("writing to a string does not fail");
        }
        text
    }

    /// `None` unless every line makes sense and there is a key.
    pub fn decode(text: &[u8]) -> Option<Self> {
        let mut keys = Vec::new();
        for line in std::str::from_utf8(text).ok()?.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split(' ');
            let (KEY_LINE, Some(id), Some(key), None) = (words.next()?, words.next(), words.next(), words.next())
            else {
                return None;
            };
            let mut id_bytes = [0; 8];
            hex::decode_to_slice(id, &mut id_bytes).ok()?;
            let decoded = Zeroizing::new(BASE64_STANDARD_NO_PAD.decode(key).ok()?);
            keys.push(SealingKey { id: KeyId(id_bytes), key: Zeroizing::new(decoded.as_slice().try_into().ok()?) });
        }
        (!keys.is_empty()).then_some(Self(keys))
    }
}
