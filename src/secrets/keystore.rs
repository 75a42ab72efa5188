//! The default store: encrypted files in a directory of our own, outside the database.
//!
//! ```text
//! keystore.key                     the key-encryption key, 0600; made on first use
//! keystore/                        0700
//!   lock                           held for every operation: shared to read, alone to write
//!   resource/<id>/                 a tenant: the first two segments of a path
//!     @data-key                    its random data key, wrapped under the key-encryption key
//!     password@3                   version 3 of resource/<id>/password, under the data key
//! ```
//!
//! The key file lies beside the directory and not in it, so that a copy of the directory alone opens nothing; it can be
//! put elsewhere altogether ([`Keystore::with_key_file`]). File names are the paths, in clear: a path is a kind and an
//! id, which the database holds as well; hashing it would hide nothing from whoever has both and would hide the files
//! from the operator. File lengths tell the length of a value only to 256 bytes.
//!
//! Deleting overwrites and removes the files, and, with the last secret of a tenant, its data key. On a disk that copies
//! on write, overwriting does not reach old blocks: what they hold is still encrypted under a data key whose wrapped
//! copies [`Keystore::rotate_key`] makes worthless.
//!
//! Whoever can write to the directory can put an older copy of a file back under its own name: that is not noticed.

mod envelope;
mod files;
#[cfg(test)]
mod tests;

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use self::{
    envelope::{KeyRing, SealingKey},
    files::failed,
};
use super::{Error, KEPT_VERSIONS, LONGEST_VALUE, SecretPath, SecretStore, SecretVersion};

/// The name of a wrapped data key; no segment of a path holds an `@`.
const DATA_KEY: &str = "@data-key";

/// Encrypted files. Cheap to clone; any number of processes may use one directory.
#[derive(Debug, Clone)]
pub struct Keystore {
    files: Arc<Files>,
}

/// What [`Keystore::rotate_key`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// How many data keys it wrapped anew.
    pub rewrapped: usize,
    /// Whether it finished an earlier rotation that had been cut short, instead of beginning one.
    pub resumed: bool,
}

impl Keystore {
    /// Opens the keystore in `directory`, which is made if it is missing, with the key file `<directory>.key` beside it.
    ///
    /// # Errors
    /// [`Error::Exposed`] if others can use the directory or the key file, [`Error::KeyMissing`], [`Error::KeyDamaged`],
    /// [`Error::Io`].
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, Error> {
        let directory = directory.into();
        let mut key_file: OsString = directory.clone().into();
        key_file.push(".key");
        Self::with_key_file(directory, key_file)
    }

    /// As [`Self::open`], with the key file somewhere else.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_key_file(directory: impl Into<PathBuf>, key_file: impl Into<PathBuf>) -> Result<Self, Error> {
        let files = Files { directory: directory.into(), key_file: key_file.into() };
        files::make_directory(&files.directory)?;
        files::check_private(&files.directory)?;
        let _lock = files.lock(false)?;
        files.keys()?;
        Ok(Self { files: Arc::new(files) })
    }

    /// Makes a new key-encryption key, wraps every data key under it and forgets the old one. Secrets stay readable and
    /// writable throughout, here and in other processes; cut short at any point, it is finished by the next call.
    ///
    /// # Errors
    /// As reading and writing secrets. Everything stays readable.
    pub async fn rotate_key(&self) -> Result<Rotation, Error> {
        self.blocking(|files| files.rotate_key(&mut |_| Ok(()))).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let files = self.files.clone();
        tokio::task::spawn_blocking(move || work(&files))
            .await
            .map_err(|_| Error::Unavailable("the process is shutting down".to_owned()))?
    }
}

#[async_trait]
impl SecretStore for Keystore {
    fn name(&self) -> &'static str {
        "keystore"
    }

    async fn put(&self, path: &SecretPath, value: SecretString) -> Result<SecretVersion, Error> {
        let path = path.clone();
        self.blocking(move |files| {
            let _lock = files.lock(true)?;
            files.put(&path, value.expose_secret())
        })
        .await
    }

    async fn get_or_put(&self, path: &SecretPath, value: SecretString) -> Result<SecretString, Error> {
        let path = path.clone();
        self.blocking(move |files| {
            let _lock = files.lock(true)?;
            if let Some(known) = files.get(&path, None)? {
                return Ok(known);
            }
            files.put(&path, value.expose_secret())?;
            Ok(value)
        })
        .await
    }

    async fn get(&self, path: &SecretPath) -> Result<Option<SecretString>, Error> {
        let path = path.clone();
        self.blocking(move |files| {
            let _lock = files.lock(false)?;
            files.get(&path, None)
        })
        .await
    }

    async fn get_version(&self, path: &SecretPath, version: SecretVersion) -> Result<Option<SecretString>, Error> {
        let path = path.clone();
        self.blocking(move |files| {
            let _lock = files.lock(false)?;
            files.get(&path, Some(version.0))
        })
        .await
    }

    async fn delete(&self, path: &SecretPath) -> Result<(), Error> {
        let path = path.clone();
        self.blocking(move |files| {
            let _lock = files.lock(true)?;
            files.delete(&path)
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<SecretPath>, Error> {
        let prefix = prefix.to_owned();
        self.blocking(move |files| {
            let _lock = files.lock(false)?;
            files.list(&prefix)
        })
        .await
    }
}

/// How far a rotation has come; tests cut it short after each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The key file holds the new key and the old one.
    NewKeyStored,
    /// One more data key is wrapped under the new key.
    DataKeyRewrapped,
    /// All are, and the old key is about to go.
    AllRewrapped,
}

/// The files. Every method but `lock` and `rotate_key` is called with the lock held.
#[derive(Debug)]
struct Files {
    directory: PathBuf,
    key_file: PathBuf,
}

impl Files {
    /// Released when the file is dropped, or by the system when the process dies.
    fn lock(&self, alone: bool) -> Result<File, Error> {
        let path = self.directory.join("lock");
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(failed("open", &path))?;
        let locked = if alone { file.lock() } else { file.lock_shared() };
        locked.map_err(failed("lock", &path)).map(|()| file)
    }

    fn tenant_directory(&self, path: &SecretPath) -> PathBuf {
        self.directory.join(path.tenant())
    }

    /// The keys, read anew each time: another process may have rotated them. `None` if there is no key file, which is
    /// only right while there are no secrets.
    fn keys(&self) -> Result<Option<KeyRing>, Error> {
        match files::read(&self.key_file)?.map(Zeroizing::new) {
            Some(text) => {
                files::check_private(&self.key_file)?;
                let damaged = || Error::KeyDamaged { file: self.key_file.clone() };
                KeyRing::decode(&text).map(Some).ok_or_else(damaged)
            }
            None if self.tenants()?.is_empty() => Ok(None),
            None => Err(self.key_missing()),
        }
    }

    fn key_missing(&self) -> Error {
        Error::KeyMissing { file: self.key_file.clone(), directory: self.directory.clone() }
    }

    fn keys_or_first(&self) -> Result<KeyRing, Error> {
        if let Some(keys) = self.keys()? {
            return Ok(keys);
        }
        let first = KeyRing(vec![SealingKey::generate()?]);
        files::write(&self.key_file, first.encode(1).as_bytes())?;
        Ok(first)
    }

    /// All tenants that have a data key or secrets.
    fn tenants(&self) -> Result<Vec<String>, Error> {
        let mut tenants = Vec::new();
        for kind in files::names(&self.directory, false)? {
            let directory = self.directory.join(&kind);
            for id in files::names(&directory, false)? {
                if !files::names(&directory.join(&id), false)?.is_empty() {
                    tenants.push(format!("{kind}/{id}"));
                }
            }
        }
        Ok(tenants)
    }

    fn data_key(&self, tenant: &str, keys: &KeyRing) -> Result<Option<SealingKey>, Error> {
        let Some(wrapped) = files::read(&self.directory.join(tenant).join(DATA_KEY))? else { return Ok(None) };
        let damaged = || Error::Damaged { path: format!("the data key of {tenant}") };
        let id = envelope::wrapped_under(&wrapped).ok_or_else(damaged)?;
        let unknown = || Error::UnknownKey { tenant: tenant.to_owned(), file: self.key_file.clone() };
        let key = keys.with_id(id).ok_or_else(unknown)?;
        envelope::unwrap(&wrapped, tenant, key).ok_or_else(damaged).map(Some)
    }

    /// The versions that are kept, oldest first.
    fn versions(&self, path: &SecretPath) -> Result<Vec<u64>, Error> {
        let stem = file_stem(path);
        let mut versions: Vec<u64> = files::names(&self.tenant_directory(path), false)?
            .iter()
            .filter_map(|name| split_file_name(name))
            .filter_map(|(found, version)| (found == stem).then_some(version))
            .collect();
        versions.sort_unstable();
        Ok(versions)
    }

    fn file(&self, path: &SecretPath, version: u64) -> PathBuf {
        self.tenant_directory(path).join(format!("{}@{version}", file_stem(path)))
    }

    fn get(&self, path: &SecretPath, version: Option<u64>) -> Result<Option<SecretString>, Error> {
        let versions = self.versions(path)?;
        let Some(version) = version.or(versions.last().copied()).filter(|version| versions.contains(version)) else {
            return Ok(None);
        };
        let damaged = || Error::Damaged { path: format!("{path} (version {version})") };
        let keys = self.keys()?.ok_or_else(|| self.key_missing())?;
        let data_key = self.data_key(path.tenant(), &keys)?.ok_or_else(damaged)?;
        let sealed = files::read(&self.file(path, version))?.ok_or_else(damaged)?;
        let value = envelope::open_value(&data_key, path.as_str(), version, &sealed).ok_or_else(damaged)?;
        Ok(Some(SecretString::from(value.as_str())))
    }

    fn put(&self, path: &SecretPath, value: &str) -> Result<SecretVersion, Error> {
        if value.len() > LONGEST_VALUE {
            return Err(Error::TooLong { path: path.clone() });
        }
        let keys = self.keys_or_first()?;
        let directory = self.tenant_directory(path);
        files::make_directory(&directory)?;
        files::clear_unfinished(&directory)?;
        let data_key = match self.data_key(path.tenant(), &keys)? {
            Some(data_key) => data_key,
            None if !files::names(&directory, false)?.is_empty() => {
                return Err(Error::Damaged { path: format!("the data key of {}", path.tenant()) });
            }
            None => {
                let data_key = SealingKey::generate()?;
                let wrapped = envelope::wrap(&data_key, path.tenant(), keys.current())?;
                files::write(&directory.join(DATA_KEY), &wrapped)?;
                data_key
            }
        };
        let versions = self.versions(path)?;
        let version = versions.last().map_or(1, |newest| newest + 1);
        let sealed = envelope::seal_value(&data_key, path.as_str(), version, value)?;
        files::write(&self.file(path, version), &sealed)?;
        for old in versions.into_iter().filter(|old| old + KEPT_VERSIONS <= version) {
            files::destroy(&self.file(path, old))?;
        }
        Ok(SecretVersion(version))
    }

    /// Oldest first, so that a crash never brings an older value back into use.
    fn delete(&self, path: &SecretPath) -> Result<(), Error> {
        let directory = self.tenant_directory(path);
        files::clear_unfinished(&directory)?;
        for version in self.versions(path)? {
            files::destroy(&self.file(path, version))?;
        }
        // Also when there was nothing to delete: an earlier call may have been cut short here.
        let left = files::names(&directory, false)?;
        if left == [DATA_KEY] {
            files::destroy(&directory.join(DATA_KEY))?;
        }
        if left.iter().all(|name| name == DATA_KEY) {
            self.remove_if_empty(&directory)?;
        }
        Ok(())
    }

    fn remove_if_empty(&self, tenant: &Path) -> Result<(), Error> {
        for directory in tenant.ancestors().take_while(|directory| *directory != self.directory) {
            // Another tenant of the same kind is the usual reason to fail, and a fine one.
            if fs::remove_dir(directory).is_err() {
                break;
            }
        }
        files::sync_directory(&self.directory)
    }

    fn list(&self, prefix: &str) -> Result<Vec<SecretPath>, Error> {
        let mut paths = Vec::new();
        for tenant in self.tenants()? {
            for name in files::names(&self.directory.join(&tenant), false)? {
                let Some((stem, _)) = split_file_name(&name) else { continue };
                let separator = if stem.is_empty() { "" } else { "/" };
                paths.extend(SecretPath::new(format!("{tenant}{separator}{}", stem.replace(':', "/"))));
            }
        }
        paths.retain(|path| path.is_under(prefix));
        paths.sort_unstable();
        paths.dedup();
        Ok(paths)
    }

    /// Takes the lock for one step at a time. Between steps the key file holds both keys, so everybody goes on working,
    /// and new data keys are wrapped under the new one.
    fn rotate_key(&self, after: &mut dyn FnMut(Step) -> Result<(), Error>) -> Result<Rotation, Error> {
        let resumed = {
            let _lock = self.lock(true)?;
            let mut keys = self.keys_or_first()?;
            let resumed = keys.0.len() > 1;
            if !resumed {
                keys.0.insert(0, SealingKey::generate()?);
                self.replace_key_file(&keys, 2)?;
            }
            resumed
        };
        after(Step::NewKeyStored)?;
        let tenants = {
            let _lock = self.lock(false)?;
            self.tenants()?
        };
        let mut rewrapped = 0;
        for tenant in tenants {
            let _lock = self.lock(true)?;
            if self.rewrap(&tenant)? {
                rewrapped += 1;
                after(Step::DataKeyRewrapped)?;
            }
        }
        after(Step::AllRewrapped)?;
        let _lock = self.lock(true)?;
        let keys = self.keys()?.ok_or_else(|| self.key_missing())?;
        if keys.0.len() > 1 {
            // Whatever was missed above, say because it was copied back from a backup meanwhile, is not lost.
            for tenant in self.tenants()? {
                rewrapped += usize::from(self.rewrap(&tenant)?);
            }
            self.replace_key_file(&keys, 1)?;
        }
        Ok(Rotation { rewrapped, resumed })
    }

    /// Whether the tenant's data key was under an old key; now it is under the current one.
    fn rewrap(&self, tenant: &str) -> Result<bool, Error> {
        let keys = self.keys()?.ok_or_else(|| self.key_missing())?;
        let file = self.directory.join(tenant).join(DATA_KEY);
        let Some(wrapped) = files::read(&file)? else { return Ok(false) };
        if envelope::wrapped_under(&wrapped) == Some(keys.current().id) {
            return Ok(false);
        }
        let Some(data_key) = self.data_key(tenant, &keys)? else { return Ok(false) };
        files::write(&file, &envelope::wrap(&data_key, tenant, keys.current())?)?;
        Ok(true)
    }

    /// Replaces the key file by one with the first `count` keys, and overwrites the old one once that is on the disk.
    fn replace_key_file(&self, keys: &KeyRing, count: usize) -> Result<(), Error> {
        let old = match OpenOptions::new().write(true).open(&self.key_file) {
            Ok(old) => old,
            Err(error) => return Err(failed("open", &self.key_file)(error)),
        };
        files::write(&self.key_file, keys.encode(count).as_bytes())?;
        files::wipe(&old).map_err(failed("overwrite the old", &self.key_file))
    }
}

/// The segments after the tenant's, joined by what no segment holds; empty for a path of two segments.
fn file_stem(path: &SecretPath) -> String {
    path.split().1.replace('/', ":")
}

/// `password@3` to `password` and 3.
fn split_file_name(name: &str) -> Option<(&str, u64)> {
    let (stem, version) = name.rsplit_once('@')?;
    version.parse().ok().map(|version| (stem, version))
}
