//! One Ed25519 pair a connection. The private half is written to the secret store and wiped from memory; the database holds
//! the public half and where the private one is.

use russh::keys::{
    Algorithm, PrivateKey,
    ssh_key::{LineEnding, PublicKey},
};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    ids::ConnectionId,
    secrets::{self, SecretPath, SecretStore},
};

/// What every private key that somebody could send us by mistake contains, whatever made it.
const PRIVATE_KEY_MARK: &str = "PRIVATE KEY-----";

/// Putty's own format of a private key.
const PUTTY_MARK: &str = "PuTTY-User-Key-File-";

/// Whether a text holds a private key. Nobody can give us one.
pub fn holds_private_key(text: &[u8]) -> bool {
    [PRIVATE_KEY_MARK, PUTTY_MARK].iter().any(|mark| text.windows(mark.len()).any(|window| window == mark.as_bytes()))
}

/// Why a pair could not be made or had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The secret store failed.
    #[error(transparent)]
    Secrets(#[from] secrets::Error),
    /// What the store holds is no key.
    #[error("the private key of this connection cannot be read; revoke it and connect the server anew")]
    Unreadable,
    /// The key is gone: destroyed by a revocation.
    #[error("the private key of this connection was destroyed")]
    Destroyed,
}

/// The public half and where the private one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyReference {
    /// `ssh-ed25519 AAAA...`, without a comment.
    pub public_key: String,
    /// For [`SecretStore::get_reference`].
    pub secret_ref: String,
}

/// Where the `number`th private key of a connection is.
fn path(connection: ConnectionId, number: i32) -> SecretPath {
    SecretPath::new(format!("connection/{connection}/private-key-{number}")).expect("ids and words make a secret path")
}

/// Makes the `number`th pair of a connection, or finds the one that was made for it before: safe to repeat.
///
/// # Errors
/// [`KeyError`]; no half of a pair is kept without the other.
pub async fn make(store: &dyn SecretStore, connection: ConnectionId, number: i32) -> Result<KeyReference, KeyError> {
    make_at(store, &path(connection, number)).await
}

/// Makes the pair whose private half is at `path`, or finds it.
pub(crate) async fn make_at(store: &dyn SecretStore, path: &SecretPath) -> Result<KeyReference, KeyError> {
    let fresh = {
        let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).map_err(|_| KeyError::Unreadable)?;
        let text = key.to_openssh(LineEnding::LF).map_err(|_| KeyError::Unreadable)?;
        SecretString::from(text.as_str())
    };
    let kept = store.get_or_put(path, fresh).await?;
    Ok(KeyReference { public_key: public_half(&kept)?, secret_ref: store.reference(path) })
}

fn public_half(private: &SecretString) -> Result<String, KeyError> {
    let key = PrivateKey::from_openssh(private.expose_secret()).map_err(|_| KeyError::Unreadable)?;
    let mut public = key.public_key().clone();
    public.set_comment("");
    Ok(public.to_openssh().map_err(|_| KeyError::Unreadable)?.trim().to_owned())
}

/// The private key behind a reference, for one login.
///
/// # Errors
/// [`KeyError`].
pub async fn private(store: &dyn SecretStore, secret_ref: &str) -> Result<PrivateKey, KeyError> {
    let text = store.get_reference(secret_ref).await?.ok_or(KeyError::Destroyed)?;
    PrivateKey::from_openssh(text.expose_secret()).map_err(|_| KeyError::Unreadable)
}

/// Destroys every private key of a connection. Safe to repeat.
///
/// # Errors
/// Those of the secret store.
pub async fn destroy_all(store: &dyn SecretStore, connection: ConnectionId) -> Result<(), secrets::Error> {
    store.delete_all(&format!("connection/{connection}")).await
}

/// The base64 body of a public key: what the gate takes as an argument.
pub fn body(public_key: &str) -> &str {
    public_key.split_whitespace().nth(1).unwrap_or_default()
}

/// The fingerprint of a public key as `ssh-keygen -l` prints it: `SHA256:...`. Empty for what is no key.
pub fn fingerprint(public_key: &str) -> String {
    PublicKey::from_openssh(public_key)
        .map(|key| key.fingerprint(russh::keys::HashAlg::Sha256).to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::keystore::Keystore;

    #[tokio::test]
    async fn a_pair_is_made_once_and_its_private_half_is_only_in_the_store() {
        let folder = tempfile::TempDir::new().unwrap();
        let store = Keystore::open(folder.path().join("keystore")).unwrap();
        let connection = ConnectionId::new();
        let first = make(&store, connection, 1).await.unwrap();
        assert_eq!(first, make(&store, connection, 1).await.unwrap(), "the same pair is found again");
        let second = make(&store, connection, 2).await.unwrap();
        assert_ne!(first.public_key, second.public_key);
        assert!(first.public_key.starts_with("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI"), "{}", first.public_key);
        assert_eq!(body(&first.public_key).len(), 68);
        assert!(fingerprint(&first.public_key).starts_with("SHA256:"));
        let private = private(&store, &first.secret_ref).await.unwrap();
        assert_eq!(fingerprint(&first.public_key), private.fingerprint(russh::keys::HashAlg::Sha256).to_string());
        destroy_all(&store, connection).await.unwrap();
        for reference in [&first, &second] {
            let gone = super::private(&store, &reference.secret_ref).await.unwrap_err();
            assert!(matches!(gone, KeyError::Destroyed), "{gone}");
        }
    }

    #[test]
    fn private_keys_are_recognised_however_they_are_wrapped() {
        for (text, is) in [
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl", true),
            (r#"{"label":"-----BEGIN RSA PRIVATE KEY-----\nMII"}"#, true),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----", true),
            ("-----BEGIN PRIVATE KEY-----", true),
            ("PuTTY-User-Key-File-3: ssh-ed25519", true),
            ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI", false),
            ("my private key is at home", false),
            ("", false),
        ] {
            assert_eq!(holds_private_key(text.as_bytes()), is, "{text}");
        }
    }
}
