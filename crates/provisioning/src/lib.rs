//! What a provider of seedboxes promises, and the providers that keep it.
//!
//! This crate knows no database, no web server and no money. A provider turns a [`MachineSpec`] into a running seedbox
//! and back into nothing; when, and whether, is decided elsewhere. Every provider passes the same [`contract`].

use std::{fmt, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub mod chaos;
#[cfg(any(test, feature = "contract"))]
pub mod contract;
pub mod digitalocean;
pub mod local;
pub mod memory;
pub mod node;

/// A provider's own name for a machine: a droplet id, an instance name. Opaque to everybody but its provider.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResourceRef(pub String);

impl fmt::Display for ResourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The login of a box's web interface. `Debug` never shows the password.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The login name.
    pub username: String,
    /// The password, made by the control plane and stored by it before any provider hears of it.
    pub password: SecretString,
}

/// What to build.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// Our id: the idempotency key of [`ProvisioningProvider::create`], and the tag the machine carries upstream.
    pub resource_id: Uuid,
    /// The provider's name of the size, one of [`Capabilities::sizes`].
    pub size: String,
    /// The provider's name of the place, one of [`Size::regions`]; `None` where the provider has one place only.
    pub region: Option<String>,
    /// The login the finished box accepts.
    pub credentials: Credentials,
    /// When an earlier call of [`create`](ProvisioningProvider::create) for this box began of which nobody knows what came:
    /// its answer was lost, or whoever made it died. By the system's clock.
    pub maybe_made_at: Option<Timestamp>,
}

/// A machine that exists upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The provider's name for it.
    pub resource_ref: ResourceRef,
    /// Our id, read from its tag.
    pub resource_id: Uuid,
}

/// What is there now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineState {
    /// Being made, or started and not answering yet.
    Building,
    /// The service answers.
    Running,
    /// The service is stopped; the data is kept.
    Stopped,
    /// Made, and it did not come up and will not by itself; why.
    Failed(String),
    /// Nothing is there.
    Gone,
    /// The provider said something this version does not know; never an error.
    Unknown(String),
}

/// The answer of [`ProvisioningProvider::status`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineStatus {
    /// What is there now.
    pub state: MachineState,
    /// Where the web interface answers, as a URL, once that is known.
    pub web_url: Option<String>,
    /// Since when it has been so, where the provider can tell.
    pub since: Option<Timestamp>,
    /// The provider's name of its size, where the provider can tell.
    pub size: Option<String>,
}

/// What a box uses, counted where it is: the answer of [`ProvisioningProvider::usage`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// What the data of the client and its owner takes of the disk, in bytes.
    pub disk_used_bytes: u64,
    /// How much of the disk that data could take in all, in bytes.
    pub disk_total_bytes: u64,
    /// Bytes that came in since the counters began.
    pub received_bytes: u64,
    /// Bytes that went out since the counters began.
    pub sent_bytes: u64,
    /// A name for this count: another one when the counters have begun at nothing again, as after a reboot.
    pub count: String,
}

/// How much a suspension cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SuspendMode {
    /// The service stops; the data stays readable where the provider can do that (see [`Capabilities::readable_while_suspended`]).
    Service,
    /// Everything is cut: the service and every way to the data.
    Everything,
}

/// One stamped fact of a wipe certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WipeFact {
    /// What was done or seen, as a sentence: "4 files (1,048,576 bytes) overwritten".
    pub fact: String,
    /// When.
    pub at: Timestamp,
}

/// The answer of [`ProvisioningProvider::terminate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Termination {
    /// Accepted and not over; ask again after this time.
    InProgress {
        /// How long to wait before asking again.
        retry_after: Duration,
        /// What was done and seen in this call: it belongs into the certificate, before the facts of later calls.
        facts: Vec<WipeFact>,
    },
    /// Seen to be gone, twice; the facts that prove it, oldest first.
    Gone(Vec<WipeFact>),
}

/// One size of machine and what it costs upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// The provider's name of it.
    pub name: String,
    /// Disk for the customer's data, in GB (10^9 bytes).
    pub disk_gb: u32,
    /// Monthly cost upstream, in US cents.
    pub monthly_cost_cents: i64,
    /// Where it can be had now, by the provider's names; empty where the provider has one place only.
    pub regions: Vec<String>,
}

/// What a provider says about torrent traffic in its terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TorrentStance {
    /// Allowed in its terms, or the machine is ours.
    Allowed,
    /// Neither allowed nor forbidden; the operator has to decide.
    Unclear,
    /// Forbidden.
    Forbidden,
}

/// What a provider can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The sizes on offer.
    pub sizes: Vec<Size>,
    /// Largest user-data in bytes; `None` where the provider takes none.
    pub user_data_limit_bytes: Option<usize>,
    /// Whether [`SuspendMode::Service`] leaves the data readable to its owner.
    pub readable_while_suspended: bool,
    /// Whether a stopped box still costs its full price upstream.
    pub stopped_costs: bool,
    /// What its terms say about torrents.
    pub torrent_stance: TorrentStance,
    /// After how many seconds a new machine that does not answer counts as failed to be made.
    pub ready_within_seconds: u32,
    /// For how many seconds after a machine was asked for its absence proves nothing, because it may not be visible yet.
    pub settles_within_seconds: u32,
    /// How many seconds to leave between two looks at a machine that is being made.
    pub look_every_seconds: u32,
}

/// What something upstream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BilledKind {
    /// A machine.
    Machine,
    /// A disk beside a machine.
    Volume,
    /// A copy of a disk.
    Snapshot,
    /// An address that is kept.
    Address,
}

/// Something upstream that carries our tag and that we are billed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Billed {
    /// The provider's name for it.
    pub resource_ref: ResourceRef,
    /// Our id, read from its tag; `None` if the tag names no box.
    pub resource_id: Option<Uuid>,
    /// What it is.
    pub kind: BilledKind,
    /// Whether it is a machine whose service is stopped and that costs all the same, where the provider can tell by a list.
    pub stopped: bool,
    /// What it costs in a full month, in US cents; `None` if the provider does not say.
    pub monthly_cost_cents: Option<i64>,
    /// Since when it has been there, where the provider can tell.
    pub created_at: Option<Timestamp>,
}

/// What went wrong, by what the caller does next.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// It may work later: try again, after the time given if there is one.
    #[error("the provider is busy or unreachable: {message}")]
    Transient {
        /// What happened.
        message: String,
        /// How long the provider asked us to wait.
        retry_after: Option<Duration>,
    },
    /// The machine named is not there.
    #[error("no such machine: {0}")]
    NotFound(ResourceRef),
    /// It will never work as asked: change the request.
    #[error("the provider refused: {why}")]
    Refused {
        /// The provider's words.
        why: String,
    },
    /// No machine of this size can be had now.
    #[error("the provider has no capacity: {0}")]
    NoCapacity(String),
    /// Our access is wrong: an operator has to look.
    #[error("the provider does not accept our access: {0}")]
    Auth(String),
    /// The answer was lost: look at what is there before acting again.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

impl Error {
    /// A [`Error::Transient`] with no time given.
    pub fn transient(message: impl fmt::Display) -> Self {
        Self::Transient { message: message.to_string(), retry_after: None }
    }
}

/// The result of a provider call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A source of machines. Every method is safe to call again after any answer, a lost one included.
///
/// Only an explicit success is a success: after [`Error::Unknown`] or [`Error::Transient`] the caller looks again.
#[async_trait]
pub trait ProvisioningProvider: Send + Sync + fmt::Debug {
    /// Its name in plans and on rows: `local`, `digitalocean`.
    fn name(&self) -> &'static str;

    /// Sizes, prices and limits, read from the provider where it can say.
    async fn capabilities(&self) -> Result<Capabilities>;

    /// Makes a machine for `spec`, or adopts the one that already carries `spec.resource_id`: never a twin.
    ///
    /// The box is not ready yet when this returns; [`status`](Self::status) tells.
    async fn create(&self, spec: &MachineSpec) -> Result<Machine>;

    /// What is there now. A machine that is not there is [`MachineState::Gone`], an answer nobody knows is
    /// [`MachineState::Unknown`]; neither is an error.
    async fn status(&self, resource_ref: &ResourceRef) -> Result<MachineStatus>;

    /// Stops the service and keeps the data. Afterwards the owner can neither reach nor start it.
    async fn suspend(&self, resource_ref: &ResourceRef, mode: SuspendMode) -> Result<()>;

    /// Undoes [`suspend`](Self::suspend); `Ok` once asked for, [`status`](Self::status) tells when it answers.
    async fn resume(&self, resource_ref: &ResourceRef) -> Result<()>;

    /// Makes `credentials` the only login. When this returns the old password and every session opened with it are dead
    /// and the service answers again. [`Error::Refused`] while suspended.
    async fn rotate_credentials(&self, resource_ref: &ResourceRef, credentials: &Credentials) -> Result<()>;

    /// Stops the client and starts it again; when this returns it answers, with the login it had. Open sessions end.
    /// [`Error::Refused`] while suspended.
    async fn restart(&self, resource_ref: &ResourceRef) -> Result<()>;

    /// What the box uses now. Counts traffic by what the place itself knows: a whole machine's interface, or a client's word.
    async fn usage(&self, resource_ref: &ResourceRef) -> Result<Usage>;

    /// Gives the machine another size, one of [`Capabilities::sizes`], and keeps its data and its login. `Ok` once it has
    /// that size and was started again; [`status`](Self::status) tells when it answers. [`Error::Refused`] while suspended,
    /// and where the size cannot be had for this machine: it is left as it was then.
    async fn resize(&self, resource_ref: &ResourceRef, size: &str) -> Result<()>;

    /// Wipes and deletes the machine and everything beside it that would still cost.
    async fn terminate(&self, resource_ref: &ResourceRef) -> Result<Termination>;

    /// Every machine upstream that carries our tag.
    async fn list_owned(&self) -> Result<Vec<Machine>>;

    /// Everything upstream that carries our tag and that we are billed for, the machines of [`list_owned`](Self::list_owned)
    /// included, as the provider's own lists have it.
    async fn billed(&self) -> Result<Vec<Billed>> {
        let machines = self.list_owned().await?.into_iter();
        let billed = machines.map(|machine| Billed {
            resource_ref: machine.resource_ref,
            resource_id: Some(machine.resource_id),
            kind: BilledKind::Machine,
            stopped: false,
            monthly_cost_cents: Some(0),
            created_at: None,
        });
        Ok(billed.collect())
    }

    /// How [`terminate`](Self::terminate) destroys data, as a wipe certificate says it; nothing in it is more than is done.
    fn wipe_method(&self) -> &'static str;

    /// The machine that carries this id, if there is one: how a worker that lost an answer finds its way back.
    async fn find(&self, resource_id: Uuid) -> Result<Option<Machine>> {
        Ok(self.list_owned().await?.into_iter().find(|machine| machine.resource_id == resource_id))
    }
}
