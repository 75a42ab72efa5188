//! The folder: its lock, its layout, the cluster in it, the directory of the socket.

use std::{
    env,
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt, OpenOptionsExt as _, PermissionsExt as _, chown},
    },
    path::{Path, PathBuf},
    process::Stdio,
};

use sha2::{Digest as _, Sha256};

use super::{Error, binaries::Binaries, process, process::ServiceUser};

/// The port in the name of the socket; there is no TCP.
pub(super) const PORT: u16 = 5432;

/// What a socket address can hold, less the terminating zero, on Linux.
const LONGEST_SOCKET_PATH: usize = 107;

/// How long the log may grow while the server runs before it is emptied: bytes.
pub(super) const LONGEST_LOG: u64 = 8 * 1024 * 1024;

/// Seedplane's folder, held by us until this is dropped.
#[derive(Debug)]
pub(super) struct Folder {
    /// Absolute, without symbolic links.
    pub data_dir: PathBuf,
    lock: File,
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread has forked, and that has not become its program yet, has the
        // same open file, and would hold the lock for that moment longer.
        let _closing_unlocks_it_too = self.lock.unlock();
    }
}

impl Folder {
    /// Creates the folder if it is missing and locks it. Touches nothing else in it.
    pub fn take(data_dir: &Path) -> Result<Self, Error> {
        DirBuilder::new().recursive(true).mode(0o711).create(data_dir).map_err(Error::io("create", data_dir))?;
        let data_dir = data_dir.canonicalize().map_err(Error::io("find", data_dir))?;
        let path = data_dir.join("seedplane.lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _unreadable = lock.read_to_string(&mut text);
                return Err(Error::InUse { data_dir, pid: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
        }
        let write_pid = |lock: &mut File| {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        write_pid(&mut lock).map_err(Error::io("write", &path))?;
        Ok(Self { data_dir, lock })
    }

    pub fn cluster(&self) -> PathBuf {
        self.data_dir.join("postgres")
    }

    pub fn log(&self) -> PathBuf {
        self.data_dir.join("postgres.log")
    }

    /// The log, opened to append; if `fresh`, that of the earlier run becomes `postgres.log.1` first.
    pub fn open_log(&self, fresh: bool) -> Result<File, Error> {
        let path = self.log();
        if fresh && path.exists() {
            let old = self.data_dir.join("postgres.log.1");
            fs::rename(&path, &old).map_err(Error::io("rename", &path))?;
        }
        OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(Error::io("open", &path))
    }

    /// Sees to it that `user` can enter the folder. The folder itself is ours, so that user's group may be let through
    /// (without seeing what is in it); its parents are not, and are only named.
    pub fn let_in(&self, user: &ServiceUser) -> Result<(), Error> {
        if user.can_enter(&self.data_dir) {
            return Ok(());
        }
        for parent in self.data_dir.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
            if !user.can_enter(parent) {
                return Err(self.not_reachable(user, parent));
            }
        }
        let metadata = fs::metadata(&self.data_dir).map_err(Error::io("look at", &self.data_dir))?;
        let mode = metadata.mode() & 0o707 | 0o010;
        chown(&self.data_dir, None, Some(user.gid)).map_err(Error::io("change the group of", &self.data_dir))?;
        fs::set_permissions(&self.data_dir, Permissions::from_mode(mode))
            .map_err(Error::io("change the mode of", &self.data_dir))?;
        if user.can_enter(&self.data_dir) { Ok(()) } else { Err(self.not_reachable(user, &self.data_dir)) }
    }

    fn not_reachable(&self, user: &ServiceUser, blocked: &Path) -> Error {
        let (user, data_dir) = (user.name.clone(), self.data_dir.clone());
        Error::NotReachable { user, blocked: blocked.to_owned(), data_dir }
    }

    /// Makes the cluster beside its place and renames it there: a half-made one never counts.
    pub fn initialise(&self, binaries: &Binaries, user: &ServiceUser) -> Result<(), Error> {
        let (cluster, making) = (self.cluster(), self.data_dir.join("postgres.initdb"));
        if making.exists() {
            fs::remove_dir_all(&making).map_err(Error::io("remove the half-made", &making))?;
        }
        own_directory(&making, user).map_err(Error::io("create", &making))?;
        tracing::info!(directory = %cluster.display(), major = binaries.major, "making a new database");
        let output = user
            .command(binaries.directory.join("initdb"))
            .args(["--username=seedplane", "--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums"])
            .args(["--auth-local=trust", "--auth-host=reject", "--pgdata"])
            .arg(&making)
            .stdin(Stdio::null())
            .output()
            .map_err(Error::io("run", &binaries.directory.join("initdb")))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let output = format!("initdb ended with {} and said: {}", output.status, text.trim().replace('\n', " / "));
            return Err(Error::Initdb { directory: cluster, output });
        }
        // initdb has synced the files; the rename is synced here.
        fs::rename(&making, &cluster).map_err(Error::io("rename", &making))?;
        File::open(&self.data_dir).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", &self.data_dir))
    }

    /// A directory for the socket that only `user` (and root) can enter: `run` in the folder, or, if that is too long for
    /// a socket's address, one with a short name that is derived from the folder's.
    pub fn socket_directory(&self, user: &ServiceUser) -> Result<SocketDirectory, Error> {
        let name = format!(".s.PGSQL.{PORT}");
        let usual = self.data_dir.join("run");
        let fits = |directory: &Path| directory.join(&name).as_os_str().len() <= LONGEST_SOCKET_PATH;
        let (path, temporary) = if fits(&usual) { (usual, false) } else { (self.short_directory(user), true) };
        let unsafe_because = |why| Error::UnsafeSocketDirectory { directory: path.clone(), why };
        if !fits(&path) {
            return Err(unsafe_because("its name is too long for a socket"));
        }
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("look at", &path)(error)),
            Ok(metadata) if !metadata.is_dir() => return Err(unsafe_because("it is not a directory")),
            Ok(metadata) if ![user.uid, process::effective_user()].contains(&metadata.uid()) => {
                return Err(unsafe_because("it belongs to somebody else"));
            }
            Ok(_) => {}
        }
        own_directory(&path, user).map_err(Error::io("create", &path))?;
        Ok(SocketDirectory { path, temporary })
    }

    fn short_directory(&self, user: &ServiceUser) -> PathBuf {
        let digest = Sha256::digest(self.data_dir.as_os_str().as_bytes());
        let name = format!("seedplane-{}-{}", user.uid, hex::encode(&digest[..8]));
        let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|directory| {
            // Ours alone, so useless when Postgres runs as somebody else.
            !user.drop
                && directory.as_os_str().len() < 40
                && fs::metadata(directory).is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == user.uid)
        });
        runtime.unwrap_or_else(|| PathBuf::from("/tmp")).join(name)
    }
}

/// Where the socket is.
#[derive(Debug)]
pub(super) struct SocketDirectory {
    pub path: PathBuf,
    temporary: bool,
}

impl SocketDirectory {
    /// Removes the directory if it lies outside the folder.
    pub fn clean_up(&self) {
        if self.temporary
            && let Err(error) = fs::remove_dir(&self.path)
        {
            tracing::debug!(%error, directory = %self.path.display(), "the socket's directory was left behind");
        }
    }
}

/// A directory of `user`'s alone, made or put right.
fn own_directory(path: &Path, user: &ServiceUser) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Opened without following a link, so that nobody can have us change something else's owner.
    let directory = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)?;
    directory.set_permissions(Permissions::from_mode(0o700))?;
    if user.drop { std::os::unix::fs::fchown(&directory, Some(user.uid), Some(user.gid)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_given_back_is_free_although_a_forked_child_still_has_the_lock_open() {
        let directory = tempfile::TempDir::new().unwrap();
        let folder = Folder::take(directory.path()).unwrap();
        let the_childs = folder.lock.try_clone().unwrap();
        assert!(matches!(Folder::take(directory.path()), Err(Error::InUse { .. })));
        drop(folder);
        Folder::take(directory.path()).expect("the folder is free");
        drop(the_childs);
    }
}
