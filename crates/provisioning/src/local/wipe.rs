//! Wiping a box: everything of it stopped, every file overwritten and removed, and seen to be gone, twice.

use std::{
    fs,
    io::{self, Write},
    net::TcpStream,
    path::Path,
    thread,
    time::Duration,
};

use jiff::Timestamp;

use super::process;
use crate::WipeFact;

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
        let mut file = fs::OpenOptions::new().write(true).open(path)?;
        let zeroes = vec![0_u8; 1 << 20];
        let mut left = metadata.len();
        while left > 0 {
            let step = left.min(zeroes.len() as u64);
            file.write_all(&zeroes[..usize::try_from(step).unwrap_or(zeroes.len())])?;
            left -= step;
        }
        file.sync_all()?;
        *files += 1;
        *bytes += metadata.len();
    }
    fs::remove_file(path)
}
