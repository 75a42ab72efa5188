//! SSH certificates instead of a key on the server: the server trusts our authority for one name, and each login shows a
//! certificate of five minutes over a key that lives as long as the login. Nothing that is kept opens anything.
//!
//! The server's line is `restrict,cert-authority,principals="seedplane-<id>",command="<gate> <id>" <authority's key>`: sshd takes a
//! certificate only if it names that principal and no other command (sshd(8), AUTHORIZED_KEYS FILE FORMAT).

use jiff::{SignedDuration, Timestamp};
use russh::keys::{
    Algorithm, Certificate, PrivateKey,
    ssh_key::certificate::{Builder, CertType},
};

use super::keys::{self, KeyError, KeyReference};
use crate::{
    ids::ConnectionId,
    secrets::{SecretPath, SecretStore},
};

/// For how long a certificate is good. sshd looks at it when somebody logs in; we close our sessions when it ends.
pub const LIFETIME: SignedDuration = SignedDuration::from_mins(5);

/// How much the clocks of two machines may differ.
const SKEW: SignedDuration = SignedDuration::from_mins(1);

/// Our authority's key: made on first use, the same for every server, so that it is replaced by pasting a new line everywhere.
///
/// # Errors
/// [`KeyError`].
pub async fn authority(store: &dyn SecretStore) -> Result<KeyReference, KeyError> {
    let path = SecretPath::new("byos/certificate-authority").expect("words make a secret path");
    keys::make_at(store, &path).await
}

/// The name that a server lets in for a connection.
pub fn principal(connection: ConnectionId) -> String {
    format!("seedplane-{connection}")
}

/// A certificate with the key it is over.
#[derive(Debug)]
pub struct Issued {
    /// Made for this login, and never stored.
    pub key: PrivateKey,
    /// The certificate.
    pub certificate: Certificate,
    /// Its number, for the audit log and the server's own.
    pub serial: u64,
    /// When it ends.
    pub valid_until: Timestamp,
}

/// Issues a certificate for one login. `now` is the system's time: the server holds it against its own clock. `source` is the
/// address that the server sees us come from, where the operator has said it.
///
/// # Errors
/// [`KeyError::Unreadable`] if the authority's key cannot sign.
pub fn issue(
    authority: &PrivateKey,
    connection: ConnectionId,
    forced_command: &str,
    source: Option<&str>,
    now: Timestamp,
) -> Result<Issued, KeyError> {
    let mut random = rand::rng();
    let serial = rand::random::<u64>() >> 1;
    let (valid_after, valid_until) = (now - SKEW, now + LIFETIME);
    let seconds = |at: Timestamp| u64::try_from(at.as_second()).unwrap_or(0);
    let build = |random: &mut rand::rngs::ThreadRng| {
        let key = PrivateKey::random(random, Algorithm::Ed25519)?;
        let subject = key.public_key().key_data().clone();
        let mut builder = Builder::new_with_random_nonce(random, subject, seconds(valid_after), seconds(valid_until))?;
        builder
            .serial(serial)?
            .cert_type(CertType::User)?
            .key_id(format!("seedplane connection {connection} serial {serial}"))?
            .valid_principal(principal(connection))?
            .critical_option("force-command", forced_command)?;
        if let Some(source) = source {
            builder.critical_option("source-address", source)?;
        }
        Ok::<_, russh::keys::ssh_key::Error>((key, builder.sign(authority)?))
    };
    let (key, certificate) = build(&mut random).map_err(|_| KeyError::Unreadable)?;
    Ok(Issued { key, certificate, serial, valid_until })
}
