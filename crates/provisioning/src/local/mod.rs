//! Real seedboxes as processes on this machine: one qBittorrent a box, with its own folder, ports, user and sandbox.
//!
//! What a box is meant to be stands in a file in its folder, written before anything is done, so that every step can be
//! picked up after a crash. A lock on the box keeps two processes that share the folder from acting on it at once. Boxes die
//! with the control plane, so that none is ever left running that nobody knows of, and come back when it starts again.

use std::{
    collections::BTreeSet,
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Capabilities, Credentials, Error, Machine, MachineSpec, MachineState, MachineStatus, ProvisioningProvider,
    ResourceRef, Result, Size, SuspendMode, Termination, TorrentStance, Usage,
    node::qbittorrent::{self, Login},
};

mod process;
mod usage;
mod wipe;

/// How long a client may take to answer after it was started.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// User ids that by convention no account, service or container of a machine has (<https://systemd.io/UIDS-GIDS/>).
const UIDS: Range<u32> = 1_900_000_000..2_100_000_000;

/// Used instead where those do not exist, as in a container with 65,536 user ids.
const FEW_UIDS: Range<u32> = 40_000..59_000;

/// How the provider is set up.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// Where the boxes are.
    pub directory: PathBuf,
    /// The user ids given to boxes where we are root; they need no entry in the machine's list of users. So many that two
    /// control planes on one machine do not meet: everything that runs as a box's user is ended with the box.
    pub uids: Range<u32>,
    /// The first of the ports given to boxes, two each.
    pub first_port: u16,
}

impl LocalConfig {
    /// Boxes under `directory`.
    pub fn new(directory: PathBuf) -> Self {
        let uids = if process::uids_exist(&UIDS) { UIDS } else { FEW_UIDS };
        Self { directory, uids, first_port: 20_100 }
    }
}

/// What a box is meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Desired {
    Running,
    Stopped,
    /// Stopped, and its folder closed to everybody.
    Locked,
    Ending,
}

/// A box's file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct BoxFile {
    resource_id: Uuid,
    desired: Desired,
    uid: Option<u32>,
    web_port: u16,
    torrent_port: u16,
    size: String,
    changed_at: Timestamp,
}

/// A size on offer. What it changes of a box is how many connections to other peers it starts out with; disk space is
/// what the machine has.
struct LocalSize {
    name: &'static str,
    disk_gb: u32,
    max_connections: u32,
}

const SIZES: [LocalSize; 2] = [
    LocalSize { name: "small", disk_gb: 50, max_connections: 500 },
    LocalSize { name: "large", disk_gb: 500, max_connections: 2_000 },
];

fn size(name: &str) -> Result<&'static LocalSize> {
    let names = SIZES.map(|size| size.name).join(", ");
    let missing = || Error::Refused { why: format!("there is no size '{name}' on this machine, only {names}") };
    SIZES.iter().find(|size| size.name == name).ok_or_else(missing)
}

/// The provider.
#[derive(Debug, Clone)]
pub struct LocalProvider {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: LocalConfig,
    spawner: process::Spawner,
    root: bool,
}

fn io(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::transient(format!("{what} {}: {error}", path.display()))
}

impl LocalProvider {
    /// Makes the folder for boxes and looks for what they need. Starts nothing.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn new(config: LocalConfig) -> Result<Self> {
        let locks = config.directory.join(".locks");
        std::fs::create_dir_all(&locks).map_err(|error| io("cannot make the folder", &locks, &error))?;
        let directory =
            config.directory.canonicalize().map_err(|error| io("cannot find", &config.directory, &error))?;
        let root = process::is_root();
        let inner = Inner { config: LocalConfig { directory, ..config }, spawner: process::Spawner::start(), root };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether what boxes need is on this machine.
    ///
    /// # Errors
    /// [`Error::Refused`] with what to install.
    pub fn check() -> Result<()> {
        match process::find("qbittorrent-nox") {
            Some(_) => Ok(()),
            None => Err(Error::Refused {
                why: "qbittorrent-nox is not on this machine; install it with `apt-get install qbittorrent-nox`"
                    .to_owned(),
            }),
        }
    }

    /// Starts every box that is meant to run: after a start of the control plane.
    ///
    /// # Errors
    /// If the folder of boxes cannot be read. A box that does not start is left to [`Self::supervise`].
    pub async fn start_all(&self) -> Result<()> {
        self.blocking(|inner| {
            process::end_leftovers(&inner.config.directory);
            for id in inner.ids()? {
                if let Err(error) = inner.start_if_meant(id) {
                    tracing::warn!(resource = %id, %error, "a box was not started; it is tried again");
                }
            }
            Ok(())
        })
        .await
    }

    /// Stops every box and leaves what it is meant to be: they come back with [`Self::start_all`].
    pub async fn stop_all(&self) {
        let stopped = self
            .blocking(|inner| {
                let handles: Vec<_> = inner.ids()?.into_iter().map(|id| inner.folder(id)).collect();
                std::thread::scope(|scope| {
                    for folder in &handles {
                        scope.spawn(|| process::stop(folder, None));
                    }
                });
                Ok(())
            })
            .await;
        if let Err(error) = stopped {
            tracing::warn!(%error, "not every box was stopped; they end with this process");
        }
    }

    /// Starts boxes again that ended by themselves, for as long as it is polled.
    pub async fn supervise(&self) {
        let mut pause = Duration::from_millis(500);
        loop {
            tokio::time::sleep(pause).await;
            let ok = self
                .blocking(|inner| {
                    let mut all = true;
                    for id in inner.ids()? {
                        all &= inner.start_if_meant(id).is_ok();
                    }
                    Ok(all)
                })
                .await;
            // A box that cannot be started is not hammered.
            pause = if matches!(ok, Ok(true)) {
                Duration::from_millis(500)
            } else {
                (pause * 2).min(Duration::from_secs(30))
            };
        }
    }

    /// Makes a box as [`ProvisioningProvider::create`] does, of whose password the hash alone is known.
    ///
    /// # Errors
    /// As that.
    pub async fn install(&self, id: Uuid, size: &'static str, login: Login) -> Result<Machine> {
        self.blocking(move |inner| inner.create(id, size, &login)).await
    }

    /// Gives a box another login as [`ProvisioningProvider::rotate_credentials`] does, by the password's hash.
    ///
    /// # Errors
    /// As that.
    pub async fn set_login(&self, id: Uuid, login: Login) -> Result<()> {
        self.blocking(move |inner| inner.rotate(id, &login)).await
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> Result<T> + Send + 'static) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .unwrap_or_else(|error| Err(Error::Unknown(format!("the work on the box was cut off: {error}"))))
    }
}

fn id_of(resource_ref: &ResourceRef) -> Option<Uuid> {
    resource_ref.0.parse().ok()
}

impl Inner {
    fn folder(&self, id: Uuid) -> PathBuf {
        self.config.directory.join(id.to_string())
    }

    /// Holds the box for the caller until the lock is dropped.
    fn lock(&self, name: &str) -> Result<File> {
        let path = self.config.directory.join(".locks").join(name);
        let file = File::create(&path).map_err(|error| io("cannot open the lock", &path, &error))?;
        file.lock().map_err(|error| io("cannot take the lock", &path, &error))?;
        Ok(file)
    }

    fn read(&self, id: Uuid) -> Result<Option<BoxFile>> {
        let path = self.folder(id).join("box.json");
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| Error::transient(format!("{} cannot be read: {error}", path.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io("cannot read", &path, &error)),
        }
    }

    fn write(&self, file: &BoxFile) -> Result<()> {
        let path = self.folder(file.resource_id).join("box.json");
        let bytes = serde_json::to_vec_pretty(file).expect("a box's file is plain JSON");
        process::write_atomically(&path, &bytes, 0o600).map_err(|error| io("cannot write", &path, &error))
    }

    fn set(&self, file: &mut BoxFile, desired: Desired) -> Result<()> {
        if file.desired != desired {
            file.desired = desired;
            file.changed_at = Timestamp::now();
            self.write(file)?;
        }
        Ok(())
    }

    fn ids(&self) -> Result<Vec<Uuid>> {
        let directory = &self.config.directory;
        let entries = std::fs::read_dir(directory).map_err(|error| io("cannot read", directory, &error))?;
        Ok(entries
            .flatten()
            .filter(|entry| entry.path().join("box.json").exists())
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect())
    }

    /// A user id and two ports that no other box has and nobody listens on.
    fn allocate(&self, id: Uuid, size: &str) -> Result<BoxFile> {
        let (mut uids, mut ports) = (BTreeSet::new(), BTreeSet::new());
        for other in self.ids()? {
            if let Some(file) = self.read(other)? {
                uids.extend(file.uid);
                ports.extend([file.web_port, file.torrent_port]);
            }
        }
        // Several control planes may run on one machine, so where to begin is left to chance: the id's last bits are random.
        let chance = |of: u32| u32::try_from(id.as_u128() % u128::from(of)).unwrap_or(0);
        let Range { start, end } = self.config.uids;
        let free_uid = || {
            let first = start + chance(end - start);
            (first..end)
                .chain(start..first)
                .find(|uid| !uids.contains(uid) && process::of_user(*uid).is_empty())
                .ok_or_else(|| Error::NoCapacity("no user id is free on this machine".to_owned()))
        };
        let uid = self.root.then(free_uid).transpose()?;
        let spread = u16::try_from(chance(20_000)).unwrap_or(0);
        let mut free = (0..20_000_u16)
            .map(|step| self.config.first_port + (spread + step) % 20_000)
            .filter(|port| !ports.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
        let (Some(web_port), Some(torrent_port)) = (free.next(), free.next()) else {
            return Err(Error::NoCapacity("no port is free on this machine".to_owned()));
        };
        Ok(BoxFile {
            resource_id: id,
            desired: Desired::Running,
            uid,
            web_port,
            torrent_port,
            size: size.to_owned(),
            changed_at: Timestamp::now(),
        })
    }

    fn config_path(&self, id: Uuid) -> PathBuf {
        self.folder(id).join("profile/qBittorrent/config/qBittorrent.conf")
    }

    fn create(&self, id: Uuid, size_name: &str, login: &Login) -> Result<Machine> {
        LocalProvider::check()?;
        let size = size(size_name)?;
        let machine = Machine { resource_ref: ResourceRef(id.to_string()), resource_id: id };
        let _held = self.lock(&id.to_string())?;
        if let Some(file) = self.read(id)? {
            if file.desired == Desired::Running {
                self.start(&file)?;
            }
            return Ok(machine);
        }
        // From choosing ports to writing them down, one box at a time.
        let allocating = self.lock("allocate")?;
        let folder = self.folder(id);
        let file = self.allocate(id, size.name)?;
        let made = || -> std::io::Result<()> {
            for part in ["profile/qBittorrent/config", "data"] {
                std::fs::create_dir_all(folder.join(part))?;
            }
            let data =
                if process::sandboxed() { "/data".to_owned() } else { folder.join("data").display().to_string() };
            let configuration = qbittorrent::Configuration {
                data: &data,
                address: "127.0.0.1",
                web_port: file.web_port,
                torrent_port: file.torrent_port,
                max_connections: size.max_connections,
                discovery: false,
                proxied: false,
            };
            let text = qbittorrent::render(&configuration, login);
            process::write_atomically(&self.config_path(id), text.as_bytes(), 0o600)?;
            process::own(&folder, file.uid)
        };
        made().map_err(|error| io("cannot make the box in", &folder, &error))?;
        self.write(&file)?;
        drop(allocating);
        self.start(&file)?;
        Ok(machine)
    }

    fn start_if_meant(&self, id: Uuid) -> Result<()> {
        // Cheap first: most boxes run.
        let meant = |file: &Option<BoxFile>| file.as_ref().is_some_and(|file| file.desired == Desired::Running);
        if !meant(&self.read(id)?) || process::running(&self.folder(id)).is_some() {
            return Ok(());
        }
        let _held = self.lock(&id.to_string())?;
        match self.read(id)? {
            Some(file) if file.desired == Desired::Running => self.start(&file),
            _ => Ok(()),
        }
    }

    fn start(&self, file: &BoxFile) -> Result<()> {
        let folder = self.folder(file.resource_id);
        if process::running(&folder).is_some() {
            return Ok(());
        }
        self.spawner
            .spawn(&folder, file.uid)
            .map_err(|error| Error::transient(format!("the box {} could not be started: {error}", file.resource_id)))
    }

    /// Starts a box and waits until it answers.
    fn start_and_wait(&self, file: &BoxFile) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < READY_WITHIN {
            self.start(file)?;
            if process::answers(file.web_port) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(Error::transient(format!(
            "the box {} does not answer {} s after its start",
            file.resource_id,
            READY_WITHIN.as_secs()
        )))
    }

    fn status(&self, id: Uuid) -> Result<MachineStatus> {
        let Some(file) = self.read(id)? else {
            return Ok(MachineStatus { state: MachineState::Gone, web_url: None, since: None, size: None });
        };
        let alive = process::running(&self.folder(id)).is_some();
        let state = match (file.desired, alive) {
            (Desired::Running, true) if process::answers(file.web_port) => MachineState::Running,
            (Desired::Running, _) => MachineState::Building,
            (Desired::Stopped | Desired::Locked, false) => MachineState::Stopped,
            (Desired::Stopped | Desired::Locked, true) => MachineState::Unknown("stopping".to_owned()),
            (Desired::Ending, _) => MachineState::Unknown("ending".to_owned()),
        };
        let web_url = Some(format!("http://127.0.0.1:{}", file.web_port));
        Ok(MachineStatus { state, web_url, since: Some(file.changed_at), size: Some(file.size) })
    }

    fn present(&self, id: Uuid) -> Result<BoxFile> {
        match self.read(id)? {
            Some(file) if file.desired != Desired::Ending => Ok(file),
            _ => Err(Error::NotFound(ResourceRef(id.to_string()))),
        }
    }

    fn suspend(&self, id: Uuid, mode: SuspendMode) -> Result<()> {
        let _held = self.lock(&id.to_string())?;
        let mut file = self.present(id)?;
        let desired = if mode == SuspendMode::Everything { Desired::Locked } else { Desired::Stopped };
        self.set(&mut file, desired)?;
        let folder = self.folder(id);
        process::stop(&folder, file.uid);
        let mode = if desired == Desired::Locked { 0o000 } else { 0o700 };
        process::set_mode(&folder.join("data"), mode).map_err(|error| io("cannot close", &folder, &error))
    }

    fn resume(&self, id: Uuid) -> Result<()> {
        let _held = self.lock(&id.to_string())?;
        let mut file = self.present(id)?;
        let folder = self.folder(id);
        process::set_mode(&folder.join("data"), 0o700).map_err(|error| io("cannot open", &folder, &error))?;
        self.set(&mut file, Desired::Running)?;
        self.start(&file)
    }

    fn rotate(&self, id: Uuid, login: &Login) -> Result<()> {
        let _held = self.lock(&id.to_string())?;
        let file = self.present(id)?;
        if file.desired != Desired::Running {
            return Err(Error::Refused { why: "a suspended box gets no new password".to_owned() });
        }
        // A new password alone would not end open sessions.
        self.reconfigure(&file, |text| qbittorrent::with_login(text, login))?;
        self.start_and_wait(&file)
    }

    /// Changes a box's configuration while its client is stopped: a running one would write its old configuration back.
    fn reconfigure(&self, file: &BoxFile, change: impl Fn(&str) -> String) -> Result<()> {
        process::stop(&self.folder(file.resource_id), file.uid);
        let path = self.config_path(file.resource_id);
        let changed = || -> std::io::Result<()> {
            let text = change(&std::fs::read_to_string(&path)?);
            process::write_atomically(&path, text.as_bytes(), 0o600)?;
            process::own(&path, file.uid)
        };
        changed().map_err(|error| io("cannot change", &path, &error))
    }

    fn restart(&self, id: Uuid) -> Result<()> {
        let _held = self.lock(&id.to_string())?;
        let file = self.present(id)?;
        if file.desired != Desired::Running {
            return Err(Error::Refused { why: "a suspended box is not restarted".to_owned() });
        }
        process::stop(&self.folder(id), file.uid);
        self.start_and_wait(&file)
    }

    /// Traffic as the client counts it: boxes share the machine's interface.
    fn usage(&self, id: Uuid) -> Result<Usage> {
        let file = self.present(id)?;
        let data = self.folder(id).join("data");
        let (used, free) = usage::of_disk(&data).map_err(|error| io("cannot look at", &data, &error))?;
        let size = size(&file.size).map_or(u64::MAX, |size| u64::from(size.disk_gb) * 1_000_000_000);
        let statistics = self.config_path(id).with_file_name(qbittorrent::STATISTICS_FILE);
        let transferred = usage::statistics(&statistics).map_err(|error| io("cannot read", &statistics, &error))?;
        Ok(Usage {
            disk_used_bytes: used,
            // Nothing keeps a box to its size here; the machine's disk does.
            disk_total_bytes: size.min(used.saturating_add(free)).max(used),
            received_bytes: transferred.received_bytes,
            sent_bytes: transferred.sent_bytes,
            count: format!("client {id}"),
        })
    }

    fn resize(&self, id: Uuid, name: &str) -> Result<()> {
        let _held = self.lock(&id.to_string())?;
        let size = size(name)?;
        let mut file = self.present(id)?;
        if file.desired != Desired::Running {
            return Err(Error::Refused { why: "a suspended box is not resized".to_owned() });
        }
        if file.size != name {
            self.reconfigure(&file, |text| qbittorrent::with_max_connections(text, size.max_connections))?;
            file.size = name.to_owned();
            self.write(&file)?;
        }
        self.start_and_wait(&file)
    }

    fn terminate(&self, id: Uuid) -> Result<Termination> {
        let _held = self.lock(&id.to_string())?;
        let folder = self.folder(id);
        let mut file = self.read(id)?;
        if let Some(file) = &mut file {
            self.set(file, Desired::Ending)?;
        }
        wipe::wipe(&folder, file.as_ref().map(|file| (file.uid, file.web_port, file.torrent_port)))
            .map(Termination::Gone)
            .map_err(|error| io("cannot wipe", &folder, &error))
    }
}

#[async_trait]
impl ProvisioningProvider for LocalProvider {
    fn name(&self) -> &'static str {
        "local"
    }

    async fn capabilities(&self) -> Result<Capabilities> {
        Ok(Capabilities {
            sizes: SIZES
                .iter()
                .map(|size| Size {
                    name: size.name.to_owned(),
                    disk_gb: size.disk_gb,
                    monthly_cost_cents: 0,
                    regions: Vec::new(),
                })
                .collect(),
            user_data_limit_bytes: None,
            readable_while_suspended: true,
            stopped_costs: false,
            torrent_stance: TorrentStance::Allowed,
            ready_within_seconds: 600,
            settles_within_seconds: 0,
            look_every_seconds: 2,
        })
    }

    async fn create(&self, spec: &MachineSpec) -> Result<Machine> {
        let spec = spec.clone();
        self.blocking(move |inner| inner.create(spec.resource_id, &spec.size, &(&spec.credentials).into())).await
    }

    async fn status(&self, resource_ref: &ResourceRef) -> Result<MachineStatus> {
        match id_of(resource_ref) {
            Some(id) => self.blocking(move |inner| inner.status(id)).await,
            None => Ok(MachineStatus { state: MachineState::Gone, web_url: None, since: None, size: None }),
        }
    }

    async fn suspend(&self, resource_ref: &ResourceRef, mode: SuspendMode) -> Result<()> {
        let id = id_of(resource_ref).ok_or_else(|| Error::NotFound(resource_ref.clone()))?;
        self.blocking(move |inner| inner.suspend(id, mode)).await
    }

    async fn resume(&self, resource_ref: &ResourceRef) -> Result<()> {
        let id = id_of(resource_ref).ok_or_else(|| Error::NotFound(resource_ref.clone()))?;
        self.blocking(move |inner| inner.resume(id)).await
    }

    async fn rotate_credentials(&self, resource_ref: &ResourceRef, credentials: &Credentials) -> Result<()> {
        let id = id_of(resource_ref).ok_or_else(|| Error::NotFound(resource_ref.clone()))?;
        let credentials = credentials.clone();
        self.blocking(move |inner| inner.rotate(id, &(&credentials).into())).await
    }

    async fn restart(&self, resource_ref: &ResourceRef) -> Result<()> {
        let id = id_of(resource_ref).ok_or_else(|| Error::NotFound(resource_ref.clone()))?;
        self.blocking(move |inner| inner.restart(id)).await
    }

    async fn usage(&self, resource_ref: &ResourceRef) -> Result<Usage> {
        let id = id_of(resource_ref).ok_or_else(|| Error::NotFound(resource_ref.clone()))?;
        self.blocking(move |inner| inner.usage(id)).await
    }

    async fn resize(&self, resource_ref: &ResourceRef, size: &str) -> Result<()> {
        let id = id_of(resource_ref).ok_or_else(|| Error::NotFound(resource_ref.clone()))?;
        let size = size.to_owned();
        self.blocking(move |inner| inner.resize(id, &size)).await
    }

    async fn terminate(&self, resource_ref: &ResourceRef) -> Result<Termination> {
        match id_of(resource_ref) {
            Some(id) => self.blocking(move |inner| inner.terminate(id)).await,
            None => Ok(Termination::Gone(Vec::new())),
        }
    }

    async fn list_owned(&self) -> Result<Vec<Machine>> {
        self.blocking(|inner| {
            let machine = |id: Uuid| Machine { resource_ref: ResourceRef(id.to_string()), resource_id: id };
            Ok(inner.ids()?.into_iter().map(machine).collect())
        })
        .await
    }

    fn wipe_method(&self) -> &'static str {
        "every file overwritten, then removed; seen to be gone twice"
    }
}

/// Where a box's web interface listens.
pub(crate) fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
