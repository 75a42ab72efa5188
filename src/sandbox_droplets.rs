//! A second provider for the trial: the real provider's code for DigitalOcean, before a stand-in whose droplets are boxes on this
//! machine. Nothing of it is bought, and nothing of it leaves the machine.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use rand::RngExt;
use secrecy::SecretString;
use seedplane_provisioning::{
    Error as ProviderError, ProvisioningProvider, TorrentStance,
    digitalocean::{self, DigitalOcean},
    local::{LocalConfig, LocalProvider},
    node::access::NodeAnswer,
};
use seedplane_simulators::digitalocean::{Boxes, Config, Lag, Simulator};
use serde_json::json;
use sqlx::PgPool;

use crate::{
    app::App,
    audit::events::{self, Cause, Event, Subject},
    clock::Clock,
    ids::PlanId,
    money::Usd,
    nodes::{self, NodeChannel, NodeLogin, Nodes},
    secrets::SecretStore,
    seedbox::plans::{self, NewPlan},
};

/// The provider's name: never that of the real one, so that no row, permission or plan is ever taken for the other's.
pub const SANDBOX_DROPLETS: &str = "digitalocean-sandbox";

/// How late things are seen there, at most: late enough to be waited for.
const LAG: Lag = Lag::all(SignedDuration::from_secs(1));

/// Longer than anything takes to be seen there.
const SETTLES_WITHIN: SignedDuration = SignedDuration::from_secs(3);

/// The stand-in, its droplets' boxes and the provider before it.
#[derive(Debug, Clone)]
pub struct SandboxDroplets {
    provider: Arc<DigitalOcean>,
    local: LocalProvider,
    boxes: Boxes,
}

/// To the boxes, which are on this machine.
#[derive(Debug)]
struct Here(Boxes);

#[async_trait]
impl NodeChannel for Here {
    async fn run(&self, login: NodeLogin, action: &str, argument: Option<&str>) -> Result<NodeAnswer, ProviderError> {
        self.0.ask(login.resource_id, action, argument).await
    }
}

impl SandboxDroplets {
    /// Serves the stand-in on a free port of this machine. Its account and boxes are in `data_dir`; nodes report to `here`.
    ///
    /// # Errors
    /// That what is kept of it cannot be read, or no port be listened on.
    pub async fn start(
        data_dir: &Path,
        here: SocketAddr,
        pool: &PgPool,
        secrets: &Arc<dyn SecretStore>,
        clock: &Clock,
    ) -> anyhow::Result<Self> {
        let token = format!("dop_v1_{}", hex::encode(rand::rng().random::<[u8; 32]>()));
        let config = Config {
            lag: LAG,
            limits: false,
            address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            state_file: Some(data_dir.join("sandbox-droplets.json")),
            seed: rand::rng().random(),
            ..Config::new(&token)
        };
        let simulator = Simulator::open(config, Arc::new(Timestamp::now))
            .context("what is kept of the sandbox droplets cannot be read; nothing was changed")?;
        let api_url = simulator.serve().await.context("the stand-in for DigitalOcean cannot be served")?;
        let local = LocalProvider::new(LocalConfig::new(data_dir.join("sandbox-droplets")))?;
        let boxes = Boxes::new(simulator, local.clone());
        let nodes = Nodes {
            pool: pool.clone(),
            secrets: Arc::clone(secrets),
            clock: clock.clone(),
            public_url: format!("http://{here}"),
            domain: None,
            channel: Arc::new(Here(boxes.clone())),
        };
        let settings = digitalocean::Settings {
            name: SANDBOX_DROPLETS,
            torrent_stance: TorrentStance::Allowed,
            api_url,
            settles_within: SETTLES_WITHIN,
            poll_every: Duration::from_millis(200),
            ..digitalocean::Settings::new(SecretString::from(token), &nodes::fleet(pool).await?)
        };
        Ok(Self { provider: Arc::new(DigitalOcean::new(settings, Arc::new(nodes))?), local, boxes })
    }

    /// For the list of providers.
    pub fn entry(&self) -> (&'static str, Arc<dyn ProvisioningProvider>) {
        (SANDBOX_DROPLETS, Arc::clone(&self.provider) as _)
    }

    /// Starts every box that is meant to run, and keeps all of them as their droplets are, for as long as it is polled.
    ///
    /// # Errors
    /// That the folder of boxes cannot be read.
    pub async fn run(&self) -> anyhow::Result<()> {
        self.local.start_all().await.context("the boxes of the sandbox droplets could not be started")?;
        tokio::join!(self.local.supervise(), self.boxes.run());
        Ok(())
    }

    /// Stops every box; they come back with the next start.
    pub async fn stop(&self) {
        self.local.stop_all().await;
    }
}

/// Puts a plan on sale, the first time.
///
/// # Errors
/// Those of the database.
pub async fn add_plan(app: &App) -> anyhow::Result<()> {
    let code = "sandbox-droplet";
    let mut tx = app.pool.begin().await?;
    if plans::is_known(&mut *tx, code).await? {
        return Ok(());
    }
    let price = Usd::from_cents(2000);
    let plan = NewPlan {
        code,
        name: "Sandbox droplet",
        description: "As from a cloud, and a sandbox: DigitalOcean is a stand-in here, and its droplet is one torrent client on \
                      this machine.",
        price,
        provider: SANDBOX_DROPLETS,
        size: "s-1vcpu-1gb",
        region: Some("fra1"),
        disk_gb: 20,
    };
    let id = plans::add_version_in(&mut tx, PlanId::new(), app.now(), &plan).await?;
    let after = Some(json!({ "code": code, "price_cents": price }));
    let event = Event { subject: Subject::Other("plan", id.0), action: "plan.version_added", before: None, after };
    events::record_in(&mut tx, app.now(), &Cause::system(), event).await?;
    tx.commit().await?;
    Ok(())
}
