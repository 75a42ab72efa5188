//! What runs on a box, the same for every provider: the torrent client's configuration, a client for its web API, and what
//! is needed to prove that it really seeds.

use rand::RngExt;
use secrecy::SecretString;

pub mod access;
pub mod gate;
pub mod image;
pub mod qbittorrent;
pub mod torrent;
pub mod user_data;

/// Letters and digits that cannot be taken for one another when read aloud or copied by hand.
const ALPHABET: &[u8] = b"ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789";

/// A password of 28 characters, over 160 bits.
pub fn random_password() -> SecretString {
    let mut rng = rand::rng();
    let password: String = (0..28).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect();
    SecretString::from(password)
}
