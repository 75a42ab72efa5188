//! The account, as it is kept over a restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{
    Config, Inner, Now, Simulator,
    droplets::{Action, Droplet, Kept},
};

/// What is on the disk.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    droplets: BTreeMap<u64, Droplet>,
    actions: BTreeMap<u64, Action>,
    volumes: BTreeMap<String, Kept>,
    snapshots: BTreeMap<String, Kept>,
    tags: BTreeSet<String>,
    next_id: u64,
    next_address: u32,
    posts: u64,
}

impl State {
    fn of(inner: &Inner) -> Self {
        Self {
            droplets: inner.droplets.clone(),
            actions: inner.actions.clone(),
            volumes: inner.volumes.clone(),
            snapshots: inner.snapshots.clone(),
            tags: inner.tags.clone(),
            next_id: inner.next_id,
            next_address: inner.next_address,
            posts: inner.posts,
        }
    }

    fn put_into(self, inner: &mut Inner) {
        let Self { droplets, actions, volumes, snapshots, tags, next_id, next_address, posts } = self;
        inner.droplets = droplets;
        inner.actions = actions;
        inner.volumes = volumes;
        inner.snapshots = snapshots;
        inner.tags = tags;
        inner.next_id = next_id;
        inner.next_address = next_address;
        inner.posts = posts;
    }
}

fn read(path: &Path) -> io::Result<Option<State>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whole or not at all: written beside, flushed, and moved over.
fn write(path: &Path, state: &State) -> io::Result<()> {
    let beside = path.with_extension("new");
    // User-data holds the tokens of nodes.
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(&serde_json::to_vec(state)?)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    path.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
}

fn at(path: &Path) -> impl Fn(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl Simulator {
    /// The account in [`Config::state_file`], or one without droplets.
    ///
    /// # Errors
    /// That the file is there and cannot be read. It is left as it is.
    pub fn open(config: Config, now: Now) -> io::Result<Self> {
        let kept = match &config.state_file {
            Some(path) => read(path).map_err(at(path))?,
            None => None,
        };
        let simulator = Self::new(config, now);
        if let Some(kept) = kept {
            kept.put_into(&mut simulator.inner());
        }
        Ok(simulator)
    }

    /// Writes the account down, where it is kept at all.
    pub(super) fn save(&self) -> io::Result<()> {
        let Some(path) = &self.config().state_file else { return Ok(()) };
        // Held until it is written: what is older never takes the place of what is newer.
        let inner = self.inner();
        write(path, &State::of(&inner)).map_err(at(path))
    }
}
