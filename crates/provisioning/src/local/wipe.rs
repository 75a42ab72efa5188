//! Wiping a box: everything of it stopped, every file overwritten and removed, and seen to be gone, twice.

use std::{
    fs, io,
    net::TcpStream,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
    thread,
    time::Duration,
};

use jiff::Timestamp;

use super::process;
use crate::WipeFact;

/// How much is written at once.
const CHUNK: usize = 1 << 20;

/// After so much it is flushed, so that a wipe does not fill the memory of the machine with what is to be written.
const FLUSH_EVERY: u64 = 64 << 20;

fn fact(text: impl Into<String>) -> WipeFact {
    WipeFact { fact: text.into(), at: Timestamp::now() }
}

/// Can be cut off at any point and done again: the box's own file goes last.
pub(super) fn wipe(folder: &Path, known: Option<(Option<u32>, u16, u16)>) -> io::Result<Vec<WipeFact>> {
    let mut facts = Vec::new();
    if !folder.exists() {
        facts.push(fact("the box's folder does not exist"));
    } else {
        let uid = known.and_then(|(uid, _, _)| uid);
        process::stop(folder, uid);
        facts.push(fact("the torrent client and everything that ran as the box's user were stopped"));
        let (mut files, mut bytes) = (0_u64, 0_u64);
        for part in ["data", "profile"] {
            let part = folder.join(part);
            process::set_mode(&part, 0o700)?;
            overwrite(&part, &mut files, &mut bytes)?;
        }
        facts.push(fact(format!(
            "{files} files with {bytes} bytes were overwritten with zeroes, flushed to disk and removed"
        )));
        fs::remove_dir_all(folder)?;
        fs::File::open(folder.parent().unwrap_or(folder))?.sync_all()?;
        facts.push(fact("the box's folder was removed"));
    }
    for time in ["first", "second"] {
        if let Some(left) = what_is_left(folder, known) {
            return Err(io::Error::other(left));
        }
        facts.push(fact(format!(
            "{time} look: no folder, no process of the box's user, nothing listening on its ports"
        )));
        thread::sleep(Duration::from_millis(250));
    }
    Ok(facts)
}

fn what_is_left(folder: &Path, known: Option<(Option<u32>, u16, u16)>) -> Option<String> {
    if folder.exists() {
        return Some("the folder is still there".to_owned());
    }
    let (uid, web_port, torrent_port) = known?;
    if let Some(uid) = uid.filter(|uid| !process::of_user(*uid).is_empty()) {
        return Some(format!("a process of user {uid} still runs"));
    }
    [web_port, torrent_port]
        .into_iter()
        .find(|port| TcpStream::connect_timeout(&super::address(*port), Duration::from_millis(200)).is_ok())
        .map(|port| format!("something still listens on port {port}"))
}

/// Overwrites and removes everything below a path. Links are removed and never followed.
fn overwrite(path: &Path, files: &mut u64, bytes: &mut u64) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if metadata.is_dir() {
        process::set_mode(path, 0o700)?;
        for entry in fs::read_dir(path)? {
            overwrite(&entry?.path(), files, bytes)?;
        }
        return fs::remove_dir(path);
    }
    if metadata.is_file() {
        process::set_mode(path, 0o600)?;
        let file = fs::OpenOptions::new().write(true).open(path)?;
        *bytes += overwrite_data(&file, metadata.len())?;
        file.sync_all()?;
        *files += 1;
    }
    fs::remove_file(path)
}

/// Overwrites what a file holds and answers how many bytes that was. Its holes are left: nothing was ever written there, and
/// writing there would take the disk that a torrent client has only reserved.
fn overwrite_data(file: &fs::File, length: u64) -> io::Result<u64> {
    let zeroes = vec![0_u8; CHUNK];
    let (mut at, mut written, mut unflushed) = (0, 0, 0);
    while let Some((start, end)) = next_data(file, at, length)? {
        at = start;
        while at < end {
            let step = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            file.write_all_at(&zeroes[..step], at)?;
            at += step as u64;
            written += step as u64;
            unflushed += step as u64;
            if unflushed >= FLUSH_EVERY {
                file.sync_data()?;
                unflushed = 0;
            }
        }
    }
    Ok(written)
}

/// The next part of a file that holds data, from `at` on. Where the file system cannot tell, all that is left of it.
fn next_data(file: &fs::File, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= length {
        return Ok(None);
    }
    let start = match seek(file, at, libc::SEEK_DATA) {
        Ok(start) => start,
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS)) => {
            return Ok(Some((at, length)));
        }
        Err(error) => return Err(error),
    };
    let end = seek(file, start, libc::SEEK_HOLE).unwrap_or(length).min(length);
    Ok((start < end).then_some((start, end)))
}

#[allow(unsafe_code, reason = "the standard library cannot look for holes")]
fn seek(file: &fs::File, at: u64, whence: libc::c_int) -> io::Result<u64> {
    let at = libc::off_t::try_from(at).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for as long as the file is borrowed, and nobody relies on its position.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_sparse_file_is_overwritten_where_it_holds_data_and_takes_no_more_disk() {
        const LENGTH: u64 = 3_000_000_000;
        let folder = std::env::temp_dir().join(format!("seedplane-wipe-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (path, kept) = (folder.join("sparse"), folder.join("kept"));
        let file = fs::File::create(&path).unwrap();
        file.set_len(LENGTH).unwrap();
        let secret = vec![7_u8; 5_000_000];
        let places = [0, 1_234_567_890, LENGTH - secret.len() as u64];
        for at in places {
            file.write_all_at(&secret, at).unwrap();
        }
        file.sync_all().unwrap();
        // A second name, to look at what is left under the first one's.
        fs::hard_link(&path, &kept).unwrap();
        let before = fs::metadata(&kept).unwrap().blocks();
        let (mut files, mut bytes) = (0, 0);
        overwrite(&path, &mut files, &mut bytes).unwrap();
        let left = fs::File::open(&kept).unwrap();
        let after = left.metadata().unwrap();
        assert!(!path.exists() && files == 1);
        assert_eq!(after.len(), LENGTH);
        assert!(after.blocks() <= before + 64, "{before} blocks became {}", after.blocks());
        assert!(bytes >= 3 * secret.len() as u64 && bytes < 100_000_000, "{bytes} bytes");
        for at in places {
            let mut read = vec![1_u8; secret.len()];
            left.read_exact_at(&mut read, at).unwrap();
            assert!(read.iter().all(|byte| *byte == 0), "data is left at {at}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
