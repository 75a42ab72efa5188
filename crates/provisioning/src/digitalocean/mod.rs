//! Droplets at DigitalOcean, one a box.
//!
//! The API has no idempotency key, forgets nothing it was asked and shows what it did only after a while. So a box's droplet has
//! a name and a tag made from the box's id; nothing is made before both were looked for; and after an answer that was lost
//! nothing is made for as long as a droplet may still come to light ([`Settings::settles_within`]). What the owner of a box
//! notices (stop, start, password, wipe) is done by the node on the droplet, through [`NodeAccess`]; power and existence by the API.
//!
//! Facts: <https://docs.digitalocean.com/reference/api/>, and what clients in use have learned of its habits.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    Billed, BilledKind, Capabilities, Credentials, Error, Machine, MachineSpec, MachineState, MachineStatus,
    ProvisioningProvider, ResourceRef, Result, Size, SuspendMode, Termination, TorrentStance, Usage, WipeFact,
    node::{
        access::{NodeAccess, NodeAnswer},
        image,
        user_data::{self, UserData},
    },
};

mod client;
mod destroy;
mod power;
mod wire;

pub use client::Now;
use client::{Client, Failure, Urgency};
use wire::{BOX_TAG, Droplet, NAME, OneDroplet};

/// The provider's name in plans and on rows.
pub const DIGITALOCEAN: &str = "digitalocean";

/// Where the API is.
pub const API_URL: &str = "https://api.digitalocean.com";

/// Before the installation's name in the tag that everything of ours carries.
const FLEET_TAG: &str = "seedplane:";

/// The tag of a droplet that was powered off because its box is suspended and its node could not be reached to do it.
const SUSPENDED_TAG: &str = "seedplane-suspended";

/// The most bytes of user-data that a droplet takes.
const USER_DATA_LIMIT: usize = 64 * 1024;

/// How much of a droplet's disk the system takes, in GB.
const SYSTEM_GB: u64 = 4;

/// How long sizes and prices are taken to be what they were.
const PRICES_KEPT: SignedDuration = SignedDuration::from_mins(10);

/// The port for other peers.
const TORRENT_PORT: u16 = 51_413;

/// How many connections to other peers a node keeps at most.
const MAX_CONNECTIONS: u32 = 500;

/// How the provider is set up. [`Settings::new`] gives what the real API needs.
#[derive(Clone)]
pub struct Settings {
    /// The provider's name: [`DIGITALOCEAN`], or another where it is not the real one.
    pub name: &'static str,
    /// What is said of torrents there.
    pub torrent_stance: TorrentStance,
    /// Where the API is, without a path: [`API_URL`].
    pub api_url: String,
    /// The token, with the scopes that `docs/providers.md` lists.
    pub token: SecretString,
    /// The name of this installation: letters, digits, hyphens. Only what carries it is ours.
    pub fleet: String,
    /// The image of new droplets: Debian 12 or 13.
    pub image: String,
    /// For how long after a droplet was asked for it may not be visible yet.
    pub settles_within: SignedDuration,
    /// The pause between two looks at an action or at what should be gone.
    pub poll_every: Duration,
    /// How often an action is looked at in one call before the caller is asked to come again.
    pub polls: u32,
    /// Where "now" comes from.
    pub now: Now,
    /// What makes a node's user-data: [`user_data::render`]. Tests that make thousands of boxes leave out the slow hash.
    pub render: fn(&UserData<'_>) -> Result<String>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("api_url", &self.api_url).field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

impl Settings {
    /// What the real API needs.
    pub fn new(token: SecretString, fleet: &str) -> Self {
        Self {
            name: DIGITALOCEAN,
            // "prohibited traffic like torrents": https://docs.digitalocean.com/products/droplets/details/policies/
            torrent_stance: TorrentStance::Forbidden,
            api_url: API_URL.to_owned(),
            token,
            fleet: fleet.to_owned(),
            image: "debian-12-x64".to_owned(),
            settles_within: SignedDuration::from_secs(120),
            poll_every: Duration::from_secs(2),
            polls: 8,
            now: Arc::new(Timestamp::now),
            render: user_data::render,
        }
    }
}

/// What this process knows that the API does not show yet. Losing it costs time, never a machine.
#[derive(Debug, Default)]
struct Memory {
    /// By box: when a droplet was last asked for, and its id if that was answered.
    asked: HashMap<Uuid, (Timestamp, Option<u64>)>,
    /// By droplet: since when its node has not answered a suspension.
    unreachable: HashMap<u64, Timestamp>,
    /// By droplet: when it was asked to shut down.
    shutting_down: HashMap<u64, Timestamp>,
    /// By droplet: when its destruction was accepted.
    destroying: HashMap<u64, Timestamp>,
    /// The sizes, and when they were read.
    sizes: Option<(Timestamp, Vec<wire::Size>)>,
    /// By box: held by whoever makes or ends its droplet.
    turns: HashMap<Uuid, Arc<tokio::sync::Mutex<()>>>,
}

/// The provider.
#[derive(Debug)]
pub struct DigitalOcean {
    client: Client,
    nodes: Arc<dyn NodeAccess>,
    settings: Settings,
    memory: Mutex<Memory>,
}

/// What a [`ResourceRef`] of ours says: `<droplet id>/<resource id>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    droplet: u64,
    resource_id: Uuid,
}

impl Target {
    fn parse(resource_ref: &ResourceRef) -> Option<Self> {
        let (droplet, resource_id) = resource_ref.0.split_once('/')?;
        Some(Self { droplet: droplet.parse().ok()?, resource_id: resource_id.parse().ok()? })
    }

    fn machine(self) -> Machine {
        let Self { droplet, resource_id } = self;
        Machine { resource_ref: ResourceRef(format!("{droplet}/{resource_id}")), resource_id }
    }
}

fn path_of(droplet: u64) -> String {
    format!("/v2/droplets/{droplet}")
}

fn name_of(resource_id: Uuid) -> String {
    format!("{NAME}{resource_id}")
}

fn tag_of(resource_id: Uuid) -> String {
    format!("{BOX_TAG}{resource_id}")
}

impl DigitalOcean {
    /// A provider that asks nothing of the API yet.
    ///
    /// # Errors
    /// [`Error::Refused`] if a setting cannot be used.
    pub fn new(settings: Settings, nodes: Arc<dyn NodeAccess>) -> Result<Self> {
        let refused = |why: &str| Err(Error::Refused { why: why.to_owned() });
        let named = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if settings.fleet.is_empty() || settings.fleet.len() > 100 || !settings.fleet.bytes().all(named) {
            return refused("the installation's name at DigitalOcean is up to 100 letters, digits and hyphens");
        }
        let client = Client::new(&settings.api_url, settings.token.clone(), Arc::clone(&settings.now))?;
        Ok(Self { client, nodes, settings, memory: Mutex::default() })
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Timestamp {
        (self.settings.now)()
    }

    fn fleet_tag(&self) -> String {
        format!("{FLEET_TAG}{}", self.settings.fleet)
    }

    fn fact(&self, fact: String) -> WipeFact {
        WipeFact { fact, at: self.now() }
    }

    /// The caller's turn with a box, until it is dropped: two at once would both find no droplet.
    async fn turn(&self, resource_id: Uuid) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut memory = self.memory();
            memory.turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(memory.turns.entry(resource_id).or_default())
        };
        turn.lock_owned().await
    }

    async fn droplet(&self, id: u64) -> Result<Option<Droplet>> {
        match self.client.get::<OneDroplet>(&path_of(id), &[]).await {
            Ok(found) => Ok(Some(found.droplet)),
            Err(Failure::NotFound) => Ok(None),
            Err(failure) => Err(failure.into_error()),
        }
    }

    /// Every droplet of a box that can be seen, oldest first: by its name, which is there from the beginning, and by its tag,
    /// which outlives a change of the name.
    async fn look_up(&self, resource_id: Uuid) -> Result<Vec<Droplet>> {
        let (name, tag) = (name_of(resource_id), tag_of(resource_id));
        let mut found: Vec<Droplet> = Vec::new();
        for query in [("name", name.as_str()), ("tag_name", tag.as_str())] {
            let seen = self.client.list::<Droplet>(Urgency::Needed, "/v2/droplets", "droplets", &[query]).await;
            for droplet in seen.map_err(Failure::into_error)? {
                // Whatever a filter let through: ours is what says so itself.
                let ours = droplet.resource_id() == Some(resource_id);
                if ours && found.iter().all(|one| one.id != droplet.id) {
                    found.push(droplet);
                }
            }
        }
        found.sort_by_key(|droplet| (droplet.created_at, droplet.id));
        Ok(found)
    }

    /// Destroys every droplet of a list but one. They are twins that nobody was ever given.
    async fn remove_twins(&self, found: &[Droplet], kept: u64) -> Result<()> {
        for twin in found.iter().filter(|droplet| droplet.id != kept) {
            tracing::warn!(droplet = twin.id, kept, "a second droplet was made for one box; it is destroyed");
            match self.client.change::<Value>(Method::DELETE, &path_of(twin.id), None).await {
                Ok(_) | Err(Failure::NotFound) => {}
                Err(failure) => return Err(failure.into_error()),
            }
        }
        Ok(())
    }

    /// A droplet of ours that is there, for a verb that needs one.
    async fn present(&self, resource_ref: &ResourceRef) -> Result<(Target, Droplet)> {
        let missing = || Error::NotFound(resource_ref.clone());
        let target = Target::parse(resource_ref).ok_or_else(missing)?;
        let droplet = self.droplet(target.droplet).await?.ok_or_else(missing)?;
        if droplet.resource_id() != Some(target.resource_id) {
            let why = format!("droplet {} does not carry this box's tag; it was left as it is", droplet.id);
            return Err(Error::Refused { why });
        }
        Ok((target, droplet))
    }

    /// Has the node of a droplet do something.
    async fn ask_node(
        &self,
        target: Target,
        droplet: &Droplet,
        action: &str,
        argument: Option<&str>,
    ) -> Result<NodeAnswer> {
        let address = droplet.address().ok_or_else(|| Error::transient("the droplet has no address yet"))?;
        self.nodes.run(target.resource_id, address, action, argument).await
    }

    /// As [`Self::ask_node`], where only success will do.
    async fn have_node(&self, target: Target, droplet: &Droplet, action: &str, argument: Option<&str>) -> Result<()> {
        let answer = self.ask_node(target, droplet, action, argument).await?;
        match answer.exit_code {
            0 => Ok(()),
            image::EXIT_SUSPENDED => Err(Error::Refused { why: "the box is suspended".to_owned() }),
            code => {
                let said = answer.output.lines().next_back().unwrap_or_default();
                Err(Error::transient(format!("the node could not {action} (exit code {code}): {said}")))
            }
        }
    }

    async fn sizes(&self) -> Result<Vec<wire::Size>> {
        let now = self.now();
        if let Some((read, sizes)) = &self.memory().sizes
            && now.duration_since(*read) < PRICES_KEPT
        {
            return Ok(sizes.clone());
        }
        let sizes: Vec<wire::Size> =
            self.client.list(Urgency::Needed, "/v2/sizes", "sizes", &[]).await.map_err(Failure::into_error)?;
        self.memory().sizes = Some((now, sizes.clone()));
        Ok(sizes)
    }

    /// What the node of an active droplet says of the box.
    async fn state_of_node(&self, target: Target, droplet: &Droplet, address: IpAddr) -> Result<MachineState> {
        let Some(report) = self.nodes.report(target.resource_id).await? else { return Ok(MachineState::Building) };
        if let Some(failure) = report.failure {
            return Ok(MachineState::Failed(format!("the node could not be set up: {failure}")));
        }
        if let Some(url) = &report.web_url
            && ![address.to_string(), dashed(address)].iter().any(|name| url.contains(name.as_str()))
        {
            // A twin that came up first: its report is not about the droplet that we know.
            let why = format!("a machine that is not this droplet ({address}) reported to be ready at {url}");
            return Ok(MachineState::Failed(why));
        }
        let answer = match self.ask_node(target, droplet, image::STATUS, None).await {
            Ok(answer) => answer,
            Err(error) => return Ok(MachineState::Unknown(format!("the node does not say how it is: {error}"))),
        };
        Ok(match (answer.value("suspended"), answer.value("answers")) {
            (Some("service" | "everything"), _) => MachineState::Stopped,
            (Some("no"), Some("yes")) => MachineState::Running,
            (Some("no"), Some("no")) => MachineState::Building,
            _ => MachineState::Unknown(format!("the node said: {}", first_words(&answer.output))),
        })
    }
}

fn first_words(output: &str) -> String {
    output.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// An address as it stands in a node's host name.
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The address in what a node reports as its own: `https://203.0.113.7` or `https://203-0-113-7.<domain>`.
fn reported_address(web_url: &str) -> Option<IpAddr> {
    let url = reqwest::Url::parse(web_url).ok()?;
    let host = url.host_str()?;
    let dashes = || host.split_once('.').and_then(|(name, _)| name.replace('-', ".").parse().ok());
    host.parse().ok().or_else(dashes)
}

/// What a node says that it uses.
fn usage_of(answer: &NodeAnswer) -> Option<Usage> {
    let number = |name: &str| answer.value(name)?.parse::<u64>().ok();
    let used = number("data_bytes")?;
    Some(Usage {
        disk_used_bytes: used,
        disk_total_bytes: used.checked_add(number("disk_free_bytes")?)?,
        received_bytes: number("rx_bytes_since_boot")?,
        sent_bytes: number("tx_bytes_since_boot")?,
        count: answer.value("boot_id").filter(|id| id.len() <= 64)?.to_owned(),
    })
    .filter(|_| answer.exit_code == 0)
}

#[async_trait]
impl ProvisioningProvider for DigitalOcean {
    fn name(&self) -> &'static str {
        self.settings.name
    }

    async fn capabilities(&self) -> Result<Capabilities> {
        let account: wire::OneAccount = self.client.get("/v2/account", &[]).await.map_err(Failure::into_error)?;
        if account.account.status == "locked" {
            let why = format!("DigitalOcean has locked the account: {}", account.account.status_message);
            return Err(Error::Auth(why));
        }
        let on_offer = |size: &wire::Size| size.available && !size.regions.is_empty() && size.gpu_info.is_none();
        let sizes = self.sizes().await?.into_iter().filter(on_offer).filter_map(|size| {
            Some(Size {
                monthly_cost_cents: size.monthly_cents()?,
                disk_gb: size.disk.saturating_sub(SYSTEM_GB).try_into().ok()?,
                name: size.slug,
                regions: size.regions,
            })
        });
        Ok(Capabilities {
            sizes: sizes.collect(),
            user_data_limit_bytes: Some(USER_DATA_LIMIT),
            readable_while_suspended: false,
            // https://docs.digitalocean.com/products/droplets/details/pricing/
            stopped_costs: true,
            torrent_stance: self.settings.torrent_stance,
            ready_within_seconds: 1_200,
            settles_within_seconds: self.settings.settles_within.as_secs().try_into().unwrap_or(0),
            look_every_seconds: (self.settings.poll_every * 5).as_secs().max(1).try_into().unwrap_or(10),
        })
    }

    async fn create(&self, spec: &MachineSpec) -> Result<Machine> {
        let id = spec.resource_id;
        let _turn = self.turn(id).await;
        let found = self.look_up(id).await?;
        if let Some(oldest) = found.first() {
            self.remove_twins(&found, oldest.id).await?;
            self.memory().asked.insert(id, (self.now(), Some(oldest.id)));
            return Ok(Target { droplet: oldest.id, resource_id: id }.machine());
        }

        let remembered = self.memory().asked.get(&id).copied();
        let asked_at = remembered.map(|(at, _)| at).max(spec.maybe_made_at);
        if let Some(asked_at) = asked_at {
            let left = self.settings.settles_within - self.now().duration_since(asked_at);
            if left.is_positive() {
                if let Some((_, Some(droplet))) = remembered {
                    return Ok(Target { droplet, resource_id: id }.machine());
                }
                return Err(Error::Transient {
                    message:
                        "a droplet was asked for and it is not known whether it was made; it is looked for until that \
                              is certain"
                            .to_owned(),
                    retry_after: Some(left.unsigned_abs().min(Duration::from_secs(15))),
                });
            }
        }

        let enrolment = self.nodes.enrol(id).await?;
        let user_data = (self.settings.render)(&UserData {
            resource_id: id,
            enrolment: &enrolment,
            credentials: &spec.credentials,
            max_connections: MAX_CONNECTIONS,
            torrent_port: TORRENT_PORT,
        })?;
        let mut body = json!({
            "name": name_of(id),
            "size": spec.size,
            "image": self.settings.image,
            "user_data": user_data,
            "tags": [self.fleet_tag(), tag_of(id)],
            // Its agents would be programs on a customer's box that nobody there asked for.
            "monitoring": false,
            "with_droplet_agent": false,
            "backups": false,
            "ipv6": false,
        });
        if let Some(region) = &spec.region {
            body["region"] = json!(region);
        }
        let now = self.now();
        self.memory().asked.insert(id, (now, None));
        match self.client.change::<OneDroplet>(Method::POST, "/v2/droplets", Some(&body)).await {
            Ok(made) => {
                self.memory().asked.insert(id, (now, Some(made.droplet.id)));
                Ok(Target { droplet: made.droplet.id, resource_id: id }.machine())
            }
            Err(failure) => {
                if matches!(failure, Failure::NotDone(_)) {
                    let mut memory = self.memory();
                    match remembered {
                        Some(before) => memory.asked.insert(id, before),
                        None => memory.asked.remove(&id),
                    };
                }
                Err(failure.into_error())
            }
        }
    }

    async fn status(&self, resource_ref: &ResourceRef) -> Result<MachineStatus> {
        let gone = MachineStatus { state: MachineState::Gone, web_url: None, since: None, size: None };
        let Some(target) = Target::parse(resource_ref) else { return Ok(gone) };
        let Some(droplet) = self.droplet(target.droplet).await? else {
            let asked = self.memory().asked.get(&target.resource_id).copied();
            let may_come = |(at, _)| self.now().duration_since(at) < self.settings.settles_within;
            let state = if asked.is_some_and(may_come) { MachineState::Building } else { MachineState::Gone };
            return Ok(MachineStatus { state, ..gone });
        };
        if droplet.resource_id() != Some(target.resource_id) {
            return Ok(gone);
        }
        let mut state = match (droplet.status.as_str(), droplet.address()) {
            ("new", _) | ("active", None) => MachineState::Building,
            ("active", Some(address)) => self.state_of_node(target, &droplet, address).await?,
            ("off" | "archive", _) => MachineState::Stopped,
            (other, _) => MachineState::Unknown(other.to_owned()),
        };
        // In whole seconds, rounded down.
        let age = droplet.created_at.map(|at| self.now().duration_since(at) - SignedDuration::from_secs(1));
        let settled = age.is_none_or(|age| age >= self.settings.settles_within);
        if state == MachineState::Building || age.is_some_and(|age| age < self.settings.settles_within * 3) {
            // While a box is set up is the time to find that two were made of it: nobody has been given either.
            let found = self.look_up(target.resource_id).await?;
            self.remove_twins(&found, target.droplet).await?;
            if state == MachineState::Running && !settled {
                state = MachineState::Building;
            }
        }
        let report = self.nodes.report(target.resource_id).await?;
        let web_url = report.and_then(|report| report.web_url);
        Ok(MachineStatus { state, web_url, since: None, size: Some(droplet.size_slug) })
    }

    async fn suspend(&self, resource_ref: &ResourceRef, mode: SuspendMode) -> Result<()> {
        let (target, droplet) = self.present(resource_ref).await?;
        self.suspend_droplet(target, &droplet, mode).await
    }

    async fn resume(&self, resource_ref: &ResourceRef) -> Result<()> {
        let (target, droplet) = self.present(resource_ref).await?;
        self.resume_droplet(target, &droplet).await
    }

    async fn rotate_credentials(&self, resource_ref: &ResourceRef, credentials: &Credentials) -> Result<()> {
        let (target, droplet) = self.present(resource_ref).await?;
        if droplet.status != "active" || droplet.has_tag(SUSPENDED_TAG) {
            return Err(Error::Refused { why: "a suspended box gets no new password".to_owned() });
        }
        // The node is sent a hash: it never hears the password, and nobody on the way does.
        let argument = image::password_hash_argument(&credentials.password);
        self.have_node(target, &droplet, image::ROTATE, Some(&argument)).await
    }

    async fn restart(&self, resource_ref: &ResourceRef) -> Result<()> {
        let (target, droplet) = self.present(resource_ref).await?;
        if droplet.status != "active" || droplet.has_tag(SUSPENDED_TAG) {
            return Err(Error::Refused { why: "a suspended box is not restarted".to_owned() });
        }
        self.have_node(target, &droplet, image::RESTART, None).await
    }

    /// Asks the node alone, at the address that it reported: a fleet that is counted each hour must not use up the calls that
    /// the API allows. A machine that is not this node has another host key and is not asked.
    async fn usage(&self, resource_ref: &ResourceRef) -> Result<Usage> {
        let target = Target::parse(resource_ref).ok_or_else(|| Error::NotFound(resource_ref.clone()))?;
        let report = self.nodes.report(target.resource_id).await?;
        let address = report.and_then(|report| reported_address(&report.web_url?));
        let address = address.ok_or_else(|| Error::transient("the node has not reported its address"))?;
        let answer = self.nodes.run(target.resource_id, address, image::USAGE, None).await?;
        usage_of(&answer).ok_or_else(|| {
            Error::transient(format!("the node does not say what it uses: {}", first_words(&answer.output)))
        })
    }

    async fn resize(&self, resource_ref: &ResourceRef, size: &str) -> Result<()> {
        let (target, droplet) = self.present(resource_ref).await?;
        self.resize_droplet(target, &droplet, size).await
    }

    async fn terminate(&self, resource_ref: &ResourceRef) -> Result<Termination> {
        let Some(target) = Target::parse(resource_ref) else { return Ok(Termination::Gone(Vec::new())) };
        let _turn = self.turn(target.resource_id).await;
        self.destroy_everything(target).await
    }

    async fn list_owned(&self) -> Result<Vec<Machine>> {
        let tag = self.fleet_tag();
        let droplets = self
            .client
            .list::<Droplet>(Urgency::Deferrable, "/v2/droplets", "droplets", &[("tag_name", &tag)])
            .await
            .map_err(Failure::into_error)?;
        let ours = droplets.into_iter().filter_map(|droplet| {
            let resource_id = droplet.resource_id()?;
            Some(Target { droplet: droplet.id, resource_id }.machine())
        });
        Ok(ours.collect())
    }

    async fn billed(&self) -> Result<Vec<Billed>> {
        let tag = self.fleet_tag();
        let sizes = self.sizes().await?;
        let list = |path, key, query| self.client.list::<Value>(Urgency::Deferrable, path, key, query);
        let read = |value: Value| serde_json::from_value(value).map_err(Error::transient);
        let mut billed = Vec::new();
        let query = [("tag_name", tag.as_str())];
        for droplet in list("/v2/droplets", "droplets", &query).await.map_err(Failure::into_error)? {
            let droplet: Droplet = serde_json::from_value(droplet).map_err(Error::transient)?;
            let resource_id = droplet.resource_id();
            let reference = resource_id.map_or_else(
                || ResourceRef(droplet.id.to_string()),
                |resource_id| Target { droplet: droplet.id, resource_id }.machine().resource_ref,
            );
            let price = sizes.iter().find(|size| size.slug == droplet.size_slug).and_then(wire::Size::monthly_cents);
            billed.push(Billed {
                resource_ref: reference,
                resource_id,
                kind: BilledKind::Machine,
                stopped: droplet.status == "off",
                monthly_cost_cents: price,
                created_at: droplet.created_at,
            });
        }
        for (path, key, kind) in
            [("/v2/volumes", "volumes", BilledKind::Volume), ("/v2/snapshots", "snapshots", BilledKind::Snapshot)]
        {
            for value in list(path, key, &[]).await.map_err(Failure::into_error)? {
                let kept: wire::Kept = read(value)?;
                let resource_id = kept.resource_id();
                if resource_id.is_some() || wire::has_tag(kept.tags.as_deref(), &tag) {
                    billed.push(Billed {
                        resource_ref: ResourceRef(format!("{key}/{}", kept.id())),
                        resource_id,
                        kind,
                        stopped: false,
                        monthly_cost_cents: None,
                        created_at: kept.created_at,
                    });
                }
            }
        }
        Ok(billed)
    }

    async fn find(&self, resource_id: Uuid) -> Result<Option<Machine>> {
        let found = self.look_up(resource_id).await?;
        Ok(found.first().map(|droplet| Target { droplet: droplet.id, resource_id }.machine()))
    }

    fn wipe_method(&self) -> &'static str {
        "the node deletes the client's files, then DigitalOcean is asked to destroy the droplet and what belongs to it; seen to be \
         gone twice. What becomes of the disk's blocks is DigitalOcean's word"
    }
}
