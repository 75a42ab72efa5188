//! The node on a droplet: what the user-data makes of it, as far as a control plane can tell the difference.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rand::RngExt;
use secrecy::{ExposeSecret, SecretString};
use seedplane_provisioning::{
    Credentials, Error, Result,
    node::{
        access::{Enrolment, NodeAccess, NodeAnswer, NodeReport},
        image, qbittorrent,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::Simulator;

/// How often a node tries to report before it gives up, as the real one does for a while.
const REPORT_TRIES: u32 = 200;

/// How its box is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Suspended {
    No,
    Service,
    Everything,
}

/// What is on a droplet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Node {
    /// The name of what runs for it on this machine, if anything does.
    pub(super) id: Uuid,
    ready_url: String,
    ready_token: String,
    pub(super) username: String,
    pub(super) password_hash: String,
    fails: bool,
    pub(super) suspended: Suspended,
    pub(super) wiped: bool,
    /// Whether what it reported was heard.
    pub(super) reported: bool,
    /// Whether nothing of it is left on this machine.
    pub(super) cleared: bool,
    /// Sessions with a lower number have ended.
    sessions_from: u64,
    sessions: u64,
}

/// A session with a box's web interface.
#[derive(Debug, Clone, Copy)]
pub struct Session {
    address: IpAddr,
    number: u64,
}

/// The rest of the line that begins so, wherever it is indented.
fn line_of<'a>(text: &'a str, start: &str) -> &'a str {
    text.lines().find_map(|line| line.trim_start().strip_prefix(start)).unwrap_or_default()
}

impl Node {
    pub(super) fn new(user_data: &str, fails: bool) -> Self {
        Self {
            id: Uuid::new_v4(),
            ready_url: line_of(user_data, "SEEDPLANE_READY_URL=").trim_matches('\'').to_owned(),
            ready_token: line_of(user_data, "SEEDPLANE_READY_TOKEN=").trim_matches('\'').to_owned(),
            username: line_of(user_data, "WebUI\\Username=").to_owned(),
            password_hash: line_of(user_data, "WebUI\\Password_PBKDF2=").to_owned(),
            fails,
            suspended: Suspended::No,
            wiped: false,
            reported: false,
            cleared: false,
            sessions_from: 0,
            sessions: 0,
        }
    }

    pub(super) fn answers(&self) -> bool {
        self.suspended == Suspended::No && !self.wiped
    }

    pub(super) fn act(&mut self, action: &str, argument: Option<&str>) -> NodeAnswer {
        let answer = |exit_code: u32, output: &str| NodeAnswer { exit_code, output: output.to_owned() };
        match (action, argument) {
            (image::STATUS, None) => {
                let suspended = match self.suspended {
                    Suspended::No => "no",
                    Suspended::Service => "service",
                    Suspended::Everything => "everything",
                };
                let answers = if self.answers() { "yes" } else { "no" };
                answer(0, &format!("seedbox-node 1\nsuspended {suspended}\nclient active\nanswers {answers}\n"))
            }
            (image::USAGE, None) => {
                let boot_id = self.id;
                answer(
                    0,
                    &format!(
                        "rx_bytes_since_boot 0\ntx_bytes_since_boot 0\nuptime_seconds 60\nload 0.00 0.00 0.00\n\
                         boot_id {boot_id}\ndata_bytes 0\ndisk_free_bytes 20000000000\n"
                    ),
                )
            }
            (image::SUSPEND, Some(word)) => {
                self.suspended = match word {
                    image::SUSPEND_EVERYTHING => Suspended::Everything,
                    _ => Suspended::Service,
                };
                self.sessions_from = self.sessions;
                answer(0, "")
            }
            (image::RESUME, None) => {
                self.suspended = Suspended::No;
                answer(0, "")
            }
            (image::RESTART, None) if self.suspended != Suspended::No => answer(image::EXIT_SUSPENDED, "suspended\n"),
            (image::RESTART, None) => {
                self.sessions_from = self.sessions;
                answer(0, "")
            }
            (image::ROTATE, Some(_)) if self.suspended != Suspended::No => answer(image::EXIT_SUSPENDED, "suspended\n"),
            (image::ROTATE, Some(hash)) => {
                self.password_hash = format!("\"@ByteArray({})\"", hash.replace('.', ":"));
                self.sessions_from = self.sessions;
                answer(0, "")
            }
            (image::WIPE, None) => {
                self.wiped = true;
                answer(0, "3 files (1,048,576 bytes) deleted\n")
            }
            _ => answer(126, "seedplane-gate: refused: the manifest has no such action\n"),
        }
    }
}

impl Simulator {
    /// Lets a droplet's node come up, and report where its user-data tells it to.
    pub(super) fn boot(&self, id: u64) {
        if !self.config().nodes_report {
            return;
        }
        let simulator = self.clone();
        tokio::spawn(async move {
            for _ in 0..REPORT_TRIES {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let due = {
                    let inner = simulator.inner();
                    let Some(droplet) = inner.droplets.get(&id) else { return };
                    if !droplet.costs_at(simulator.now()) {
                        return;
                    }
                    droplet.is_up(simulator.now()).then(|| (droplet.node.clone(), droplet.address))
                };
                let Some((node, address)) = due else { continue };
                let web_url = format!("https://{address}");
                if simulator.report_over_http(&node, address, &web_url).await {
                    return;
                }
            }
        });
    }

    /// Whether what it says is heard, or refused for good.
    pub(super) async fn report_over_http(&self, node: &Node, address: IpAddr, web_url: &str) -> bool {
        let failure = if node.fails { "no-firewall" } else { "" };
        let body = json!({
            "state": if node.fails { "failed" } else { "ready" },
            "detail": failure,
            "host_key": host_key(address),
            "boot_id": Uuid::new_v4(),
            "web_url": web_url,
            "certificate_sha256": null,
        });
        let client = reqwest::Client::new();
        let sent = client.post(&node.ready_url).bearer_auth(&node.ready_token).json(&body).send().await;
        // A refusal is final, as for the real one.
        sent.is_ok_and(|response| response.status().as_u16() < 500)
    }

    /// Logs in to the box at an address, as its owner would.
    ///
    /// # Errors
    /// Why not.
    pub fn login(&self, address: IpAddr, credentials: &Credentials) -> std::result::Result<Session, String> {
        let now = self.now();
        let (username, hash) = {
            let mut inner = self.inner();
            let droplet = inner.droplets.values_mut().find(|one| one.address == address && one.is_up(now));
            let Some(droplet) = droplet else { return Err("nothing answers".to_owned()) };
            if !droplet.node.answers() {
                return Err("503: suspended".to_owned());
            }
            (droplet.node.username.clone(), droplet.node.password_hash.clone())
        };
        if username != credentials.username || !qbittorrent::password_matches(&hash, &credentials.password) {
            return Err("Fails.".to_owned());
        }
        let mut inner = self.inner();
        let droplet = inner.droplets.values_mut().find(|one| one.address == address && one.is_up(now));
        let node = &mut droplet.ok_or("nothing answers")?.node;
        node.sessions += 1;
        Ok(Session { address, number: node.sessions })
    }

    /// Whether a session still works.
    pub fn session_is_good(&self, session: &Session) -> bool {
        let now = self.now();
        let inner = self.inner();
        let droplet = inner.droplets.values().find(|one| one.address == session.address && one.is_up(now));
        droplet.is_some_and(|one| one.node.answers() && session.number > one.node.sessions_from)
    }

    /// Has the node at an address do something by name, as over an SSH session to its gate.
    ///
    /// # Errors
    /// That nothing answers there.
    pub fn ask_node(&self, address: IpAddr, action: &str, argument: Option<&str>) -> Result<NodeAnswer> {
        let now = self.now();
        let mut inner = self.inner();
        if inner.unreachable {
            return Err(Error::transient(format!("{address} does not answer")));
        }
        if inner.chance(self.config().faults.unreachable) {
            return Err(match inner.random.random_range(0..2) {
                0 => Error::transient("no route to host"),
                _ => {
                    // Done, and nobody hears of it.
                    if let Some(droplet) =
                        inner.droplets.values_mut().find(|one| one.address == address && one.is_up(now))
                    {
                        droplet.node.act(action, argument);
                    }
                    Error::Unknown("the session broke off".to_owned())
                }
            });
        }
        let droplet = inner.droplets.values_mut().find(|one| one.address == address && one.is_up(now));
        match droplet {
            Some(droplet) => Ok(droplet.node.act(action, argument)),
            None => Err(Error::transient(format!("{address} does not answer"))),
        }
    }

    /// What the node of a box would have reported by now, by the token it was given.
    fn report_by_token(&self, token: &str) -> Option<NodeReport> {
        let now = self.now();
        let inner = self.inner();
        let mut up: Vec<_> =
            inner.droplets.values().filter(|one| one.node.ready_token == token && one.is_up(now)).collect();
        up.sort_by_key(|one| one.booted_at);
        up.first().map(|droplet| NodeReport {
            failure: droplet.node.fails.then(|| "no-firewall".to_owned()),
            host_key: Some(host_key(droplet.address)),
            web_url: Some(format!("https://{}", droplet.address)),
            at: now,
        })
    }
}

fn host_key(address: IpAddr) -> String {
    format!("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{:A>43}", address.to_string().replace('.', ""))
}

/// By box: what its node was told, and what it reported.
type Told = HashMap<Uuid, (Enrolment, Option<NodeReport>)>;

/// A control plane's way to nodes, for tests of a provider without one.
#[derive(Debug, Clone)]
pub struct Nodes {
    simulator: Simulator,
    told: Arc<Mutex<Told>>,
}

impl Nodes {
    /// Nodes of the droplets of `simulator`.
    pub fn new(simulator: Simulator) -> Self {
        Self { simulator, told: Arc::default() }
    }

    /// Whether anything is still known of a box: a key or a token.
    pub fn knows(&self, resource_id: Uuid) -> bool {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&resource_id)
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl NodeAccess for Nodes {
    async fn enrol(&self, resource_id: Uuid) -> Result<Enrolment> {
        let new = || {
            let token: String =
                (0..64).map(|_| char::from(b"0123456789abcdef"[rand::rng().random_range(0..16)])).collect();
            let enrolment = Enrolment {
                ready_url: format!("http://127.0.0.1:1/api/nodes/{resource_id}/ready"),
                ready_token: SecretString::from(token),
                management_key: "AAAAC3NzaC1lZDI1NTE5AAAAINQGrvfW8wFb4qI6JCCJKRiCesZcBoZRUzVCG7NMXBAS".to_owned(),
                domain: None,
            };
            (enrolment, None)
        };
        Ok(self.told().entry(resource_id).or_insert_with(new).0.clone())
    }

    async fn report(&self, resource_id: Uuid) -> Result<Option<NodeReport>> {
        let Some((enrolment, report)) = self.told().get(&resource_id).cloned() else { return Ok(None) };
        if report.is_some() {
            return Ok(report);
        }
        let report = self.simulator.report_by_token(enrolment.ready_token.expose_secret());
        if let Some(told) = self.told().get_mut(&resource_id) {
            // The token is good once: what was reported first stays.
            told.1.clone_from(&report);
        }
        Ok(report)
    }

    async fn run(
        &self,
        _resource_id: Uuid,
        address: IpAddr,
        action: &str,
        argument: Option<&str>,
    ) -> Result<NodeAnswer> {
        self.simulator.ask_node(address, action, argument)
    }

    async fn forget(&self, resource_id: Uuid) -> Result<()> {
        self.told().remove(&resource_id);
        Ok(())
    }
}
