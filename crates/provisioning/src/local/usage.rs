//! What a box on this machine uses. Its folder is its owner's, who can put anything there: nothing is followed out of it.

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use crate::node::qbittorrent::{self, Transferred};

/// More than the client ever writes into its statistics.
const MOST_STATISTICS_BYTES: u64 = 64 * 1024;

/// What a folder's files take of the disk, and what is free there; in bytes.
pub(super) fn of_disk(folder: &Path) -> io::Result<(u64, u64)> {
    let (mut used, mut several_names) = (0_u64, HashSet::new());
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next)?.flatten() {
            // Deleted in the meantime: it takes nothing.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if metadata.nlink() > 1 && !several_names.insert(metadata.ino()) {
                continue;
            }
            used = used.saturating_add(metadata.blocks() * 512);
        }
    }
    Ok((used, free(folder)?))
}

#[allow(unsafe_code, reason = "statvfs(3) has no safe wrapper in the standard library")]
fn free(folder: &Path) -> io::Result<u64> {
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: all zeros is a value of this structure, and it is only read after the call said that it was filled.
    let mut seen: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are good for the time of the call, and the path ends with a zero.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut seen) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(seen.f_bavail.saturating_mul(seen.f_frsize))
}

/// What the client says it has transferred; nothing as long as it has not written that down, or what is there is not its own.
pub(super) fn statistics(path: &Path) -> io::Result<Transferred> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match opened {
        Ok(file) if file.metadata()?.is_file() => file,
        Ok(_) => return Ok(Transferred::default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Transferred::default()),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Ok(Transferred::default()),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MOST_STATISTICS_BYTES).read_to_end(&mut bytes)?;
    Ok(qbittorrent::transferred(&String::from_utf8_lossy(&bytes)).unwrap_or_default())
}
