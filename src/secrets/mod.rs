//! Secrets live outside the database. Postgres holds references such as `keystore:resource/<id>/password`; the values
//! are in a [`SecretStore`]. The default is [`keystore::Keystore`], encrypted files in Seedplane's folder;
//! [`vault::Vault`] keeps them in Vault or OpenBao; [`transfer`] moves them from one to the other. Every store
//! keeps the promises in [`contract`].

pub mod contract;
pub mod keystore;
pub mod transfer;
pub mod vault;

use std::{fmt, io, path::PathBuf, str::FromStr};

use async_trait::async_trait;
use secrecy::SecretString;

/// How many versions of a secret a store keeps; writing one more destroys the oldest. More than one, because a value may
/// be replaced here before, or although, the machine that it opens has taken the new one.
pub const KEPT_VERSIONS: u64 = 10;

/// The longest value, in bytes.
pub const LONGEST_VALUE: usize = 64 * 1024;

/// Keeps secrets. Values are text; they are wiped from memory when dropped and never appear in `Debug` or errors.
#[async_trait]
pub trait SecretStore: Send + Sync + fmt::Debug {
    /// The word before the colon in a reference to a secret of this store.
    fn name(&self) -> &'static str;

    /// Writes a new version and returns its number: one more than the newest that is kept, from 1. When it returns, the
    /// value is on the disk; a crash before leaves the earlier version.
    async fn put(&self, path: &SecretPath, value: SecretString) -> Result<SecretVersion, Error>;

    /// The newest value, or, if there is none yet, `value`, which is then written. Whoever calls this at the same time,
    /// in this process or another, gets the same value.
    async fn get_or_put(&self, path: &SecretPath, value: SecretString) -> Result<SecretString, Error>;

    /// The newest value, `None` if there is none.
    async fn get(&self, path: &SecretPath) -> Result<Option<SecretString>, Error>;

    /// The value of one version, `None` if there is none or it is one of those no longer kept.
    async fn get_version(&self, path: &SecretPath, version: SecretVersion) -> Result<Option<SecretString>, Error>;

    /// Destroys all versions beyond recovery through this store. A path without a secret is no error.
    async fn delete(&self, path: &SecretPath) -> Result<(), Error>;

    /// The paths that hold a secret and equal `prefix` or begin with it and a slash, in order. All of them for an empty one.
    async fn list(&self, prefix: &str) -> Result<Vec<SecretPath>, Error>;

    /// What the database stores for `path`.
    fn reference(&self, path: &SecretPath) -> String {
        format!("{}:{path}", self.name())
    }

    /// The newest value of what `reference` names.
    ///
    /// # Errors
    /// As [`Self::get`], and [`Error::ForeignReference`] if it is of another store or malformed.
    async fn get_reference(&self, reference: &str) -> Result<Option<SecretString>, Error> {
        self.get(&self.resolve(reference)?).await
    }

    /// Destroys what `reference` names, as [`Self::delete`] does.
    ///
    /// # Errors
    /// As [`Self::delete`], and [`Error::ForeignReference`].
    async fn destroy_reference(&self, reference: &str) -> Result<(), Error> {
        self.delete(&self.resolve(reference)?).await
    }

    /// Destroys everything that [`Self::list`] finds under `prefix`, which must not be empty.
    ///
    /// # Errors
    /// As [`Self::delete`]; what had been destroyed by then stays destroyed.
    async fn delete_all(&self, prefix: &str) -> Result<(), Error> {
        if prefix.is_empty() {
            return Err(Error::InvalidPath { path: String::new(), why: "everything is not deleted at once" });
        }
        for path in self.list(prefix).await? {
            self.delete(&path).await?;
        }
        Ok(())
    }

    /// The path in a reference of this store.
    ///
    /// # Errors
    /// [`Error::ForeignReference`] if it is of another store or malformed.
    fn resolve(&self, reference: &str) -> Result<SecretPath, Error> {
        let parsed = reference.parse::<SecretRef>().ok().filter(|parsed| parsed.store == self.name());
        let foreign = || Error::ForeignReference { reference: reference.to_owned(), store: self.name() };
        parsed.map(|parsed| parsed.path).ok_or_else(foreign)
    }
}

/// The number of a version of a secret, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretVersion(pub u64);

impl fmt::Display for SecretVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a secret, such as `resource/<id>/password` or `audit/signing-key`: two to eight segments of letters,
/// digits, `.`, `_` and `-`, none beginning with a dot. It is not secret itself: it appears in file names, logs and errors.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretPath(String);

impl SecretPath {
    /// Checks and wraps a path.
    ///
    /// # Errors
    /// [`Error::InvalidPath`].
    pub fn new(path: impl Into<String>) -> Result<Self, Error> {
        let path = path.into();
        let invalid = |why| Err(Error::InvalidPath { path: path.clone(), why });
        if path.len() > 200 {
            return invalid("it is longer than 200 characters");
        }
        if !(2..=8).contains(&path.split('/').count()) {
            return invalid("it needs two to eight segments");
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if path
            .split('/')
            .any(|segment| segment.is_empty() || segment.starts_with('.') || !segment.bytes().all(allowed))
        {
            return invalid(
                "a segment is letters, digits, dots, underscores and hyphens, and does not begin with a dot",
            );
        }
        Ok(Self(path))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first two segments: what shares one data key, a resource or a connection as a rule.
    pub fn tenant(&self) -> &str {
        self.split().0
    }

    /// The first two segments and, without the slash between, the rest.
    fn split(&self) -> (&str, &str) {
        let second = self.0.find('/').map_or(self.0.len(), |at| at + 1);
        let end = self.0[second..].find('/').map_or(self.0.len(), |at| second + at);
        (&self.0[..end], self.0[end..].trim_start_matches('/'))
    }

    fn is_under(&self, prefix: &str) -> bool {
        prefix.is_empty() || self.0.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl fmt::Display for SecretPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the database stores: which store, and where in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRef {
    /// The name of the store.
    pub store: String,
    /// The path in it.
    pub path: SecretPath,
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.store, self.path)
    }
}

impl FromStr for SecretRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let missing = Error::InvalidPath { path: text.to_owned(), why: "a reference begins with a store and a colon" };
        let (store, path) = text.split_once(':').ok_or(missing)?;
        Ok(Self { store: store.to_owned(), path: SecretPath::new(path)? })
    }
}

/// Why a secret could not be kept or had. Names paths and files, never contents.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not a path for a secret.
    #[error("\"{path}\" is no path for a secret: {why}.")]
    InvalidPath {
        /// What was given.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A reference that this store did not give.
    #[error(
        "\"{reference}\" is no reference to a secret in the store {store}, which is the one in use. If it was moved from another \
         one, finish with `seedplane secrets move --to {store}`."
    )]
    ForeignReference {
        /// What was given.
        reference: String,
        /// The store that was asked.
        store: &'static str,
    },
    /// The value is longer than [`LONGEST_VALUE`].
    #[error("The secret for {path} is longer than {LONGEST_VALUE} bytes and was not stored.")]
    TooLong {
        /// Where it should have gone.
        path: SecretPath,
    },
    /// Others could read what only we may.
    #[error(
        "{} can be used by others than its owner (mode {mode:03o}), so it is not trusted and nothing was read or written. \
         Find out who had access, then `chmod go-rwx {}`.", .file.display(), .file.display()
    )]
    Exposed {
        /// The key file or the keystore's directory.
        file: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The key is gone and the secrets are not.
    #[error(
        "The key file {} is missing, and {} holds secrets that only that key opens. Nothing was changed. Put the \
         key file back from its backup.", .file.display(), .directory.display()
    )]
    KeyMissing {
        /// Where it should be.
        file: PathBuf,
        /// The keystore.
        directory: PathBuf,
    },
    /// The key file makes no sense.
    #[error("The key file {} is damaged. Nothing was changed. Put it back from its backup.", .file.display())]
    KeyDamaged {
        /// The key file.
        file: PathBuf,
    },
    /// The key file is another keystore's or an old one.
    #[error(
        "The secrets of {tenant} were encrypted under a key that is not in {}. Nothing was changed. Put the right key \
         file back.", .file.display()
    )]
    UnknownKey {
        /// What the data key is for.
        tenant: String,
        /// The key file.
        file: PathBuf,
    },
    /// What is stored is not what was stored.
    #[error(
        "What is stored for {path} is damaged or was tampered with. It was left as it is; restore it from a backup."
    )]
    Damaged {
        /// The secret, with its version where there is one, or the data key.
        path: String,
    },
    /// A file operation failed.
    #[error("Could not {action} {}: {source}.", .file.display())]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// On what.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system has no randomness to give.
    #[error("The system gave no random numbers, so nothing was encrypted.")]
    NoRandomness,
    /// A store elsewhere does not answer, or this one was cut short.
    #[error("The secret store is not available: {0}.")]
    Unavailable(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_cannot_leave_the_store_or_collide_with_its_own_files() {
        let wrong =
            ["", "one", "/a/b", "a//b", "a/b/", "../b", "a/..", "a/.b", "a/b@1", "a/b:c", "a/b c", "a/b\n", "a/\u{e9}"];
        for path in
            wrong.into_iter().map(str::to_owned).chain(["a/".repeat(9) + "b", "a/".to_owned() + &"b".repeat(200)])
        {
            assert!(SecretPath::new(path.clone()).is_err(), "{path:?}");
        }
        let path = SecretPath::new("resource/0192-ab/ssh/host_key.1").unwrap();
        assert_eq!((path.tenant(), path.split().1), ("resource/0192-ab", "ssh/host_key.1"));
        assert_eq!(SecretPath::new("audit/signing-key").unwrap().split(), ("audit/signing-key", ""));
    }

    #[test]
    fn a_reference_reads_back_as_written() {
        let reference: SecretRef = "keystore:connection/7/private-key".parse().unwrap();
        assert_eq!(reference.store, "keystore");
        assert_eq!(reference.to_string(), "keystore:connection/7/private-key");
        assert!("connection/7/private-key".parse::<SecretRef>().is_err());
    }
}
