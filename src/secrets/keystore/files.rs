//! Files that are replaced whole or not at all, and files that are destroyed.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use super::super::Error;

pub(super) fn failed(action: &'static str, file: &Path) -> impl FnOnce(io::Error) -> Error {
    let file = file.to_owned();
    move |source| Error::Io { action, file, source }
}

/// Names of files that do not count: half-written ones and those about to be destroyed.
pub(super) const UNFINISHED: &str = ".";

/// The names in a directory, without the unfinished ones unless asked for; none if it does not exist.
pub(super) fn names(directory: &Path, unfinished: bool) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(directory) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(vec![]);
        }
        entries => entries.map_err(failed("list", directory))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed("list", directory))?.file_name();
        names.extend(name.into_string().ok().filter(|name| name.starts_with(UNFINISHED) == unfinished));
    }
    names.sort_unstable();
    Ok(names)
}

/// A file's content, `None` if it does not exist.
pub(super) fn read(file: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(file) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", file)(error)),
    }
}

/// A directory of ours alone, made with its parents inside `within` if it is missing.
pub(super) fn make_directory(directory: &Path) -> Result<(), Error> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed("create", directory))?;
    for parent in directory.ancestors().skip(1).take(2) {
        sync_directory(parent)?;
    }
    Ok(())
}

pub(super) fn sync_directory(directory: &Path) -> Result<(), Error> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("sync", directory))
}

/// Refuses what others than the owner can use.
pub(super) fn check_private(file: &Path) -> Result<(), Error> {
    let mode = fs::metadata(file).map_err(failed("look at", file))?.mode() & 0o777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(Error::Exposed { file: file.to_owned(), mode }) }
}

/// Replaces `file` by one with `content`, readable by us alone. When it returns, that is on the disk; a crash leaves the
/// old or the new one, and perhaps an unfinished file beside it.
pub(super) fn write(file: &Path, content: &[u8]) -> Result<(), Error> {
    let directory = file.parent().expect("files of the keystore are in a directory");
    let name = file.file_name().expect("files of the keystore have names").to_string_lossy();
    let unfinished = directory.join(format!("{UNFINISHED}{name}.new"));
    let mut options = OpenOptions::new();
    let written = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished).and_then(|mut new| {
        new.write_all(content)?;
        new.sync_all()
    });
    written.map_err(failed("write", &unfinished))?;
    fs::rename(&unfinished, file).map_err(failed("rename", &unfinished))?;
    sync_directory(directory)
}

/// Overwrites what an open file holds.
pub(super) fn wipe(mut file: &File) -> io::Result<()> {
    let mut left = file.metadata()?.len();
    io::Seek::rewind(&mut file)?;
    let zeros = [0; 4096];
    while left > 0 {
        let part = left.min(zeros.len() as u64);
        file.write_all(&zeros[..usize::try_from(part).expect("at most 4096")])?;
        left -= part;
    }
    file.sync_all()
}

/// Takes a file out of sight at once, then overwrites and removes it. A crash leaves an unfinished file, for
/// [`clear_unfinished`] to go on with.
pub(super) fn destroy(file: &Path) -> Result<(), Error> {
    let directory = file.parent().expect("files of the keystore are in a directory");
    let name = file.file_name().expect("files of the keystore have names").to_string_lossy();
    let hidden = directory.join(format!("{UNFINISHED}{name}.destroyed"));
    fs::rename(file, &hidden).map_err(failed("rename", file))?;
    sync_directory(directory)?;
    finish(&hidden)?;
    sync_directory(directory)
}

/// Destroys what crashes left in a directory. The caller holds the lock, so that nobody is at work on them.
pub(super) fn clear_unfinished(directory: &Path) -> Result<(), Error> {
    for name in names(directory, true)? {
        finish(&directory.join(name))?;
    }
    Ok(())
}

fn finish(hidden: &Path) -> Result<(), Error> {
    let overwritten = OpenOptions::new().write(true).open(hidden).and_then(|file| wipe(&file));
    overwritten.map_err(failed("overwrite", hidden))?;
    fs::remove_file(hidden).map_err(failed("remove", hidden))
}
