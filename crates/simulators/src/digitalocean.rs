//! A stand-in for DigitalOcean's API: droplets, their actions, tags, volumes, snapshots and a meter of what they cost, with the
//! real service's habits. What was made is seen late, and in one list before another; a tag comes after its droplet; an address
//! after both; a droplet accepted can vanish again; two of one name are two; what is off costs what it cost.
//!
//! Time comes from the clock given to [`Simulator::new`]; everything that is left to chance comes from a seed. What it leaves
//! out: networks, firewalls, projects, images other than a few, backups, reserved addresses, GPUs.
//!
//! Facts: <https://docs.digitalocean.com/reference/api/> and what users of the API have reported.

mod answer;
mod api;
mod boxes;
mod droplets;
mod faults;
mod node;
mod state;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::Router;
use jiff::{SignedDuration, Timestamp};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::net::TcpListener;

pub use boxes::Boxes;
pub use droplets::Droplet;
pub use faults::Faults;
pub use node::{Nodes, Session};

use droplets::{Action, Kept};

/// The requests that a token has in an hour, sliding.
const HOURLY: usize = 5_000;

/// The requests that a token has in a minute.
const BURST: usize = 250;

/// Where "now" comes from.
pub type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How late things are seen, at most; each time less, by chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// A new droplet, asked for by its id.
    pub visible: SignedDuration,
    /// A new droplet in the list of all and by its name.
    pub listed: SignedDuration,
    /// A new droplet's tags.
    pub tagged: SignedDuration,
    /// A new droplet's address.
    pub address: SignedDuration,
    /// From `new` to `active`.
    pub active: SignedDuration,
    /// From `active` to a node that is set up.
    pub boot: SignedDuration,
    /// An action, from its start to its end.
    pub action: SignedDuration,
    /// A droplet whose destruction was accepted, until it is not seen any more.
    pub gone: SignedDuration,
}

impl Lag {
    /// Everything at once.
    pub const NONE: Self = Self::all(SignedDuration::ZERO);

    /// What the real service is known to take on a slow day.
    pub const REAL: Self = Self {
        visible: SignedDuration::from_secs(5),
        listed: SignedDuration::from_secs(20),
        tagged: SignedDuration::from_secs(60),
        address: SignedDuration::from_secs(30),
        active: SignedDuration::from_secs(60),
        boot: SignedDuration::from_secs(240),
        action: SignedDuration::from_secs(20),
        gone: SignedDuration::from_secs(20),
    };

    /// The same for everything.
    pub const fn all(most: SignedDuration) -> Self {
        Self {
            visible: most,
            listed: most,
            tagged: most,
            address: most,
            active: most,
            boot: most,
            action: most,
            gone: most,
        }
    }
}

/// How the stand-in is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// The only token that is let in.
    pub token: String,
    /// What is left to chance comes from it.
    pub seed: u64,
    /// How late things are seen.
    pub lag: Lag,
    /// What goes wrong by chance.
    pub faults: Faults,
    /// Whether a token has a number of requests in a minute and in an hour, as in real life.
    pub limits: bool,
    /// The most droplets of the account.
    pub droplet_limit: usize,
    /// Whether nodes report to the address in their user-data by themselves, over HTTP.
    pub nodes_report: bool,
    /// The address of every droplet; one each if not said.
    pub address: Option<IpAddr>,
    /// Where the account is kept over restarts; nowhere if not said.
    pub state_file: Option<PathBuf>,
}

impl Config {
    /// Everything at once, and nothing goes wrong.
    pub fn new(token: &str) -> Self {
        Self {
            token: token.to_owned(),
            seed: 0,
            lag: Lag::NONE,
            faults: Faults::NONE,
            limits: true,
            droplet_limit: 100,
            nodes_report: false,
            address: None,
            state_file: None,
        }
    }
}

/// One request and its answer, as they were on the wire.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// `GET`, `POST`, ...
    pub method: String,
    /// With its query.
    pub path: String,
    /// The request's body, if it has one.
    pub request: Option<Value>,
    /// The answer's status.
    pub status: u16,
    /// The answer's body, if it is JSON.
    pub answer: Option<Value>,
    /// Whether the answer is one of the API's own, and not that of a proxy which gave up.
    pub by_api: bool,
}

type Observer = Box<dyn Fn(&Exchange) + Send + Sync>;

struct Inner {
    random: StdRng,
    droplets: BTreeMap<u64, Droplet>,
    actions: BTreeMap<u64, Action>,
    volumes: BTreeMap<String, Kept>,
    snapshots: BTreeMap<String, Kept>,
    tags: BTreeSet<String>,
    next_id: u64,
    next_address: u32,
    requests: VecDeque<Timestamp>,
    scripted: VecDeque<faults::Fault>,
    read_only: bool,
    locked: bool,
    unreachable: bool,
    posts: u64,
}

struct Shared {
    config: Config,
    now: Now,
    inner: Mutex<Inner>,
    observer: Mutex<Option<Observer>>,
    address: Mutex<Option<SocketAddr>>,
}

/// The service. Cheap to clone; clones are the same service.
#[derive(Clone)]
pub struct Simulator {
    shared: Arc<Shared>,
}

impl fmt::Debug for Simulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulator").field("seed", &self.shared.config.seed).finish_non_exhaustive()
    }
}

impl Simulator {
    /// An account without droplets.
    pub fn new(config: Config, now: Now) -> Self {
        let inner = Inner {
            random: StdRng::seed_from_u64(config.seed),
            droplets: BTreeMap::new(),
            actions: BTreeMap::new(),
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            tags: BTreeSet::new(),
            next_id: 412_000_000,
            next_address: 0,
            requests: VecDeque::new(),
            scripted: VecDeque::new(),
            read_only: false,
            locked: false,
            unreachable: false,
            posts: 0,
        };
        let shared =
            Shared { config, now, inner: Mutex::new(inner), observer: Mutex::default(), address: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Serves it on a free port of this machine; where.
    ///
    /// # Errors
    /// That no port can be listened on.
    pub async fn serve(&self) -> std::io::Result<String> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let router = self.router();
        tokio::spawn(async move { axum::serve(listener, router).await });
        *self.shared.address.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
        Ok(format!("http://{address}"))
    }

    /// The API, to be served.
    pub fn router(&self) -> Router {
        api::router(self.clone())
    }

    /// Shows every exchange to `observer` from now on, in the order of the answers.
    pub fn observe(&self, observer: impl Fn(&Exchange) + Send + Sync + 'static) {
        *self.shared.observer.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(observer));
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self) -> &Config {
        &self.shared.config
    }

    fn now(&self) -> Timestamp {
        (self.shared.now)()
    }

    /// Every droplet there ever was.
    pub fn droplets(&self) -> Vec<Droplet> {
        self.inner().droplets.values().cloned().collect()
    }

    /// The droplets that exist and cost, whether they are seen already or not.
    pub fn alive(&self) -> Vec<Droplet> {
        let now = self.now();
        self.inner().droplets.values().filter(|droplet| droplet.costs_at(now)).cloned().collect()
    }

    /// What all droplets have cost until now, in millionths of a US dollar: by the second from the order to the destruction,
    /// on or off.
    pub fn bill_micros(&self) -> i64 {
        let now = self.now();
        self.inner().droplets.values().map(|droplet| droplet.bill_micros(now)).sum()
    }

    /// How many requests to make a droplet were carried out.
    pub fn droplets_made(&self) -> u64 {
        self.inner().posts
    }

    /// Whether the token may only read from now on, as one without the scopes to write.
    pub fn set_read_only(&self, read_only: bool) {
        self.inner().read_only = read_only;
    }

    /// Whether the account is locked, as after a report of abuse.
    pub fn set_account_locked(&self, locked: bool) {
        self.inner().locked = locked;
    }

    /// Whether nodes answer what they are asked.
    pub fn set_nodes_reachable(&self, reachable: bool) {
        self.inner().unreachable = !reachable;
    }

    /// What happens to the next requests, in this order.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.inner().scripted.extend(faults);
    }

    /// Makes a volume that is attached to a droplet and outlives it unless it is named.
    pub fn attach_volume(&self, droplet: u64, tags: &[&str]) -> String {
        self.keep(droplet, tags, false)
    }

    /// Makes a snapshot of a droplet, which outlives it unless it is named.
    pub fn take_snapshot(&self, droplet: u64, tags: &[&str]) -> String {
        self.keep(droplet, tags, true)
    }

    fn keep(&self, droplet: u64, tags: &[&str], snapshot: bool) -> String {
        let now = self.now();
        let mut inner = self.inner();
        inner.next_id += 1;
        let id = match snapshot {
            true => inner.next_id.to_string(),
            false => format!("506f78a4-e098-11e5-ad9f-{:012x}", inner.next_id),
        };
        let kept = Kept {
            id: id.clone(),
            name: format!("kept-{}", inner.next_id),
            droplet,
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            created_at: now,
        };
        match snapshot {
            true => inner.snapshots.insert(id.clone(), kept),
            false => inner.volumes.insert(id.clone(), kept),
        };
        id
    }

    /// The volumes and snapshots that are left.
    pub fn kept(&self) -> Vec<String> {
        let inner = self.inner();
        inner.volumes.keys().chain(inner.snapshots.keys()).cloned().collect()
    }

    /// Destroys a droplet as its account's owner can in the control panel.
    pub fn destroy_behind_our_back(&self, droplet: u64) {
        let now = self.now();
        if let Some(droplet) = self.inner().droplets.get_mut(&droplet) {
            droplet.destroy(now, SignedDuration::ZERO);
        }
    }
}

pub use faults::Fault;

impl Inner {
    fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.random.random_range(0..1000) < per_mille
    }

    fn within(&mut self, most: SignedDuration) -> SignedDuration {
        let most = most.as_millis();
        SignedDuration::from_millis(if most <= 0 {
            0
        } else {
            self.random.random_range(0..=most).try_into().unwrap_or(0)
        })
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// An address of the range that is set aside for documents (RFC 5737) and then of the one for measurements (RFC 2544).
    fn new_address(&mut self) -> IpAddr {
        self.next_address += 1;
        let base = u32::from(Ipv4Addr::new(198, 18, 0, 0));
        IpAddr::V4(Ipv4Addr::from(base + self.next_address % 0x1_ffff))
    }
}
