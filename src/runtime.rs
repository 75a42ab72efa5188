//! Puts the application together from its settings, and runs it until it is told to stop.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context;
use secrecy::{ExposeSecret, SecretString};
use seedplane_provisioning::{
    ProvisioningProvider,
    digitalocean::{self, DigitalOcean},
    local::{LocalConfig, LocalProvider},
};
use seedplane_simulators::coinpayportal::{self as sandbox, CoinPayPortal as Sandbox};
use sqlx::{
    ConnectOptions, Connection, Executor, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    accounts::{self, issuers::Issuer},
    api,
    app::App,
    audit::events::{self, Cause, Event, Subject},
    billing::rules::Policy,
    byos::hosts::Hosts,
    clock::{Clock, Time},
    config::Settings,
    ids::PlanId,
    listener,
    mailer::{InboxMailer, Mailer, SmtpMailer},
    nodes::{self, Nodes, SshChannel},
    payments::{
        PaymentGateway,
        coinpayportal::{self as gateway, CoinPayPortal},
    },
    postgres::{self, Embedded, EmbeddedOptions, running_url},
    router,
    sandbox_droplets::{self, SandboxDroplets},
    secrets::{SecretPath, SecretStore, keystore::Keystore, vault::Vault},
    seedbox::plans::{self, NewPlan},
    workers::{self, reconciler},
};

/// The migrations of this version.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// Everything that runs, until [`Runtime::stop`].
pub struct Runtime {
    /// The application.
    pub app: App,
    embedded: Option<Embedded>,
    local: Option<Arc<LocalProvider>>,
    sandbox: Option<Sandbox>,
    sandbox_droplets: Option<SandboxDroplets>,
    owns_boxes: bool,
    settings: Settings,
    listeners: Vec<TcpListener>,
    stop: watch::Sender<bool>,
}

/// Which parts of the work this process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Answers requests.
    pub serve: bool,
    /// Carries out jobs.
    pub work: bool,
}

/// The copy of the audit checkpoints outside the database, in the data folder.
const CHECKPOINT_FILE: &str = "audit-checkpoints.jsonl";

/// The role of the running application. `set role` makes an owner's session it, and the embedded database lets it log in.
const APPLICATION_ROLE: &str = "seedplane_app";

/// Lets the application log in as itself where logging in needs no password (the embedded database), so that nothing said
/// on its connections can make them the owner's again. Where to connect then.
///
/// # Errors
/// That the database cannot be reached.
pub async fn allow_application_login(owner_url: &str) -> anyhow::Result<PgConnectOptions> {
    let options = PgConnectOptions::from_str(owner_url).context("the database's URL cannot be read")?;
    let mut owner = options.connect().await.context("the database cannot be reached")?;
    sqlx::raw_sql(
        "do $$ begin
             if not (select rolcanlogin from pg_roles where rolname = 'seedplane_app') then
                 alter role seedplane_app login;
             end if;
         exception
             -- 'tuple concurrently updated': another copy gives it its login at this moment.
             when internal_error then perform pg_sleep(0.5);
         end $$",
    )
    .execute(&mut owner)
    .await?;
    owner.close().await?;
    Ok(options.username(APPLICATION_ROLE))
}

/// How this process is called among the database's sessions.
fn own_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| format!("seedplane/{}-{:08x}", std::process::id(), rand::random::<u32>()))
}

/// Whether another copy of the service uses this database now.
///
/// # Errors
/// Those of the database.
pub async fn others_run(pool: &PgPool) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select from pg_stat_activity where datname = current_database()
             and application_name like 'seedplane/%' and application_name <> $1)",
    )
    .bind(own_name())
    .fetch_one(pool)
    .await
}

/// Connections on which this process is the application, not the owner of the tables. Where `options` log in as the owner,
/// as with one `DATABASE_URL` for everything, they become the application's by `set role`.
///
/// # Errors
/// That the database cannot be reached.
pub async fn application_pool(options: PgConnectOptions, connections: u32) -> anyhow::Result<PgPool> {
    let options = options.application_name(own_name());
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(10))
        .after_connect(|connection, _| {
            Box::pin(async move {
                connection.execute("set role seedplane_app").await?;
                connection.execute("set timezone to 'UTC'").await?;
                Ok(())
            })
        })
        .connect_with(options)
        .await
        .context("the database cannot be reached; nothing was started")
}

/// Applies the migrations of this version, as the owner of the tables.
///
/// # Errors
/// What went wrong; a migration that failed left nothing behind.
pub async fn migrate(url: &str) -> anyhow::Result<()> {
    let owner = PgPoolOptions::new()
        .max_connections(2)
        .acquire_timeout(Duration::from_secs(15))
        .connect(url)
        .await
        .context("the database cannot be reached; nothing was changed")?;
    MIGRATOR.run(&owner).await.context("a migration failed and was rolled back")?;
    workers::migrate(&owner).await.context("the job tables could not be made")?;
    owner.close().await;
    Ok(())
}

/// Brings the database to this version's schema where this login owns its tables, and sees that it has it where it does not.
///
/// # Errors
/// What went wrong, or that the owner has to migrate first.
pub async fn prepare(url: &str) -> anyhow::Result<()> {
    let mut connection = connect_for_look(url).await?;
    let owns: bool = sqlx::query_scalar(
        "select coalesce((select pg_has_role(c.relowner, 'usage') from pg_class c where c.oid = to_regclass('public.users')), true)",
    )
    .fetch_one(&mut connection)
    .await?;
    if owns {
        connection.close().await?;
        return migrate(url).await;
    }
    check_version(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

async fn connect_for_look(url: &str) -> anyhow::Result<PgConnection> {
    PgConnectOptions::from_str(url)
        .context("the database's URL cannot be read")?
        .connect()
        .await
        .context("the database cannot be reached; nothing was started")
}

/// Sees that the database has this version's schema, as the application.
async fn check_version(connection: &mut PgConnection) -> anyhow::Result<()> {
    let made: bool = sqlx::query_scalar(
        "select to_regclass('public._sqlx_migrations') is not null and to_regclass('public.users') is not null",
    )
    .fetch_one(&mut *connection)
    .await?;
    anyhow::ensure!(
        made,
        "the database holds no Seedplane installation; nothing was made in it. `seedplane migrate` makes one"
    );
    connection.execute("set role seedplane_app").await.context(
        "the login in DATABASE_URL neither owns the tables nor is a member of seedplane_app; `grant seedplane_app to` it",
    )?;
    let version: Option<i64> = sqlx::query_scalar("select max(version) from public._sqlx_migrations where success")
        .fetch_one(&mut *connection)
        .await?;
    let needed = MIGRATOR.iter().map(|migration| migration.version).max();
    anyhow::ensure!(
        version == needed,
        "the database has schema {}, this version needs {}; run `seedplane migrate` as the owner of the tables first",
        version.unwrap_or(0),
        needed.unwrap_or(0)
    );
    Ok(())
}

/// The store of passwords and keys that the settings name.
///
/// # Errors
/// That it cannot be opened, and what to do.
pub async fn open_secrets(settings: &Settings) -> anyhow::Result<Arc<dyn SecretStore>> {
    Ok(match &settings.vault {
        Some(vault) => Arc::new(Vault::open(vault.clone()).await?),
        None => Arc::new(Keystore::open(settings.data_dir.join("keystore"))?),
    })
}

impl Runtime {
    /// Starts the parts underneath: database, secrets, providers, gateway, mailer.
    ///
    /// # Errors
    /// What is wrong and what to do about it; what was started is stopped again.
    pub async fn start(mut settings: Settings, parts: Parts) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&settings.data_dir)
            .with_context(|| format!("the data folder {} cannot be made", settings.data_dir.display()))?;
        let (embedded, url) = match &settings.database_url {
            Some(url) => (None, url.expose_secret().to_owned()),
            None => {
                let options =
                    EmbeddedOptions { data_dir: settings.data_dir.clone(), binaries: settings.postgres_bin.clone() };
                let embedded = Embedded::start(options).await?;
                let url = embedded.url();
                (Some(embedded), url)
            }
        };
        prepare(&url).await?;
        let options = match &settings.database_url {
            Some(_) => PgConnectOptions::from_str(&url).context("DATABASE_URL cannot be read")?,
            None => allow_application_login(&url).await?,
        };
        let pool = application_pool(options, 30).await?;
        let secrets = open_secrets(&settings).await?;
        let clock = Clock::system();
        let trial = settings.coinpayportal.is_none() && !settings.production;

        let mailer: Arc<dyn Mailer> = match &settings.smtp {
            Some(smtp) => {
                Arc::new(SmtpMailer::new(&smtp.url, &smtp.from, &settings.brand).map_err(anyhow::Error::msg)?)
            }
            None => {
                Arc::new(InboxMailer::new(settings.data_dir.join("inbox")).context("the inbox folder cannot be made")?)
            }
        };
        let (listeners, here) = listen(&settings, parts, trial).await?;
        // A port that the system chose, or an address that stands for all, is where nobody can go.
        if settings.public_url == format!("http://{}", settings.listen) {
            settings.public_url = format!("http://{}", reachable(here.unwrap_or(settings.listen)));
        }
        let (gateway, sandbox): (Arc<dyn PaymentGateway>, _) = match &settings.coinpayportal {
            Some(real) => {
                let settings = gateway::Settings::new(
                    &real.api_url,
                    real.api_key.clone(),
                    real.business_id,
                    real.webhook_secret.clone(),
                );
                (Arc::new(CoinPayPortal::new(settings)?), None)
            }
            None => {
                let (gateway, sandbox) =
                    start_sandbox(&settings, loopback(here.unwrap_or(settings.listen)), secrets.as_ref(), &clock)
                        .await?;
                (Arc::new(gateway) as _, Some(sandbox))
            }
        };
        let mut providers: BTreeMap<&'static str, Arc<dyn ProvisioningProvider>> = BTreeMap::new();
        let mut local = None;
        if !settings.production {
            let provider = Arc::new(LocalProvider::new(LocalConfig::new(settings.data_dir.join("boxes")))?);
            providers.insert("local", Arc::clone(&provider) as _);
            local = Some(provider);
        }
        if let Some(ocean) = &settings.digitalocean {
            let nodes = Nodes {
                pool: pool.clone(),
                secrets: Arc::clone(&secrets),
                clock: clock.clone(),
                public_url: settings.public_url.clone(),
                domain: settings.node_domain.clone(),
                channel: Arc::new(SshChannel { port: 22, allow_private: false }),
            };
            let provider = DigitalOcean::new(
                digitalocean::Settings {
                    api_url: ocean.api_url.clone(),
                    image: ocean.image.clone(),
                    ..digitalocean::Settings::new(ocean.token.clone(), &nodes::fleet(&pool).await?)
                },
                Arc::new(nodes),
            )?;
            providers.insert(digitalocean::DIGITALOCEAN, Arc::new(provider));
        }
        let issuer = settings.issuer.clone().map(Issuer::new).transpose().context("no HTTP client can be made")?;
        let (stop, stopping) = watch::channel(false);
        let mut sandbox_droplets = None;
        if settings.sandbox_droplets {
            anyhow::ensure!(
                parts.serve && parts.work,
                "SEEDPLANE_SANDBOX_DROPLETS is for `seedplane up`: the stand-in and its boxes are in one process; nothing was started"
            );
            let here = loopback(here.unwrap_or(settings.listen));
            let droplets = SandboxDroplets::start(&settings.data_dir, here, &pool, &secrets, &clock).await?;
            providers.extend([droplets.entry()]);
            sandbox_droplets = Some(droplets);
        }
        let app = App {
            hosts: Arc::new(Hosts::new(pool.clone())),
            pool,
            clock,
            providers: Arc::new(providers),
            gateway,
            secrets,
            mailer,
            issuer: issuer.map(Arc::new),
            policy: Arc::new(Policy::default()),
            public_url: settings.public_url.as_str().into(),
            trial,
            two_person_rule: settings.two_person_rule.unwrap_or(!trial),
            allow_private_servers: settings.byos_allow_private.unwrap_or(trial),
            byos_source_address: settings.byos_source_address.as_deref().map(Into::into),
            checkpoint_file: settings.data_dir.join(CHECKPOINT_FILE).into(),
            brand: Arc::new(settings.brand.clone()),
            stopping,
        };
        if trial {
            api::trial::load_clock(&app.pool, &app.clock).await?;
            add_trial_plans(&app).await?;
        }
        if sandbox_droplets.is_some() {
            sandbox_droplets::add_plan(&app).await?;
        }
        if parts.serve || parts.work {
            reconciler::look_at_start(&app).await?;
        }
        if embedded.is_some() {
            workers::release_all_claims(&app).await?;
        }
        Ok(Self { app, embedded, local, sandbox, sandbox_droplets, owns_boxes: false, settings, listeners, stop })
    }

    /// A receiver that becomes true when everything is to stop.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Tells everything to stop, from elsewhere: send `true`.
    pub fn stop_handle(&self) -> watch::Sender<bool> {
        self.stop.clone()
    }

    /// Tells everything to stop.
    pub fn request_stop(&self) {
        self.stop.send_replace(true);
    }

    /// Runs the parts until told to stop, by [`Self::request_stop`] or because one of them failed; then stops the rest.
    /// `ready` is called with the public URL once requests are answered.
    ///
    /// # Errors
    /// What failed.
    pub async fn run(mut self, parts: Parts, ready: impl FnOnce(&str) + Send) -> anyhow::Result<()> {
        let mut tasks = tokio::task::JoinSet::new();
        self.owns_boxes = parts.work;
        if let (Some(local), true) = (&self.local, parts.work) {
            local.start_all().await.context("the boxes of this machine could not be started")?;
            let local = Arc::clone(local);
            tasks.spawn(async move {
                local.supervise().await;
                anyhow::Ok(())
            });
        }
        if let Some(droplets) = self.sandbox_droplets.clone() {
            tasks.spawn(async move { droplets.run().await });
        }
        if let (Some(sandbox), true) = (self.sandbox.clone(), parts.serve) {
            tasks.spawn(async move {
                sandbox.run(Duration::from_millis(500)).await;
                anyhow::Ok(())
            });
        }
        if parts.work {
            let (app, stopping) = (self.app.clone(), self.stopping());
            tasks.spawn(async move { workers::run(app, stopping).await });
        }
        if self.app.trial {
            let app = self.app.clone();
            tasks.spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    // Another copy may have moved the clock; a failure is the database's, and said elsewhere.
                    let _ = api::trial::load_clock(&app.pool, &app.clock).await;
                }
            });
        }
        if let Some(address) = self.settings.metrics_listen {
            let handle = metrics_exporter_prometheus::PrometheusBuilder::new()
                .install_recorder()
                .context("metrics cannot be collected")?;
            let listener =
                TcpListener::bind(address).await.with_context(|| format!("metrics cannot listen on {address}"))?;
            let routes =
                axum::Router::new().route("/metrics", axum::routing::get(move || async move { handle.render() }));
            let mut stopping = self.stopping();
            tasks.spawn(async move {
                axum::serve(listener, routes)
                    .with_graceful_shutdown(async move { _ = stopping.wait_for(|stop| *stop).await })
                    .await?;
                Ok(())
            });
        }
        if parts.serve {
            let routes = router::router(self.app.clone(), self.sandbox.as_ref().map(Sandbox::router));
            for listener in std::mem::take(&mut self.listeners) {
                let routes = routes.clone();
                let mut stopping = self.stopping();
                tasks.spawn(async move {
                    listener::serve(listener, routes, async move { _ = stopping.wait_for(|stop| *stop).await }).await;
                    Ok(())
                });
            }
            ready(&self.app.public_url);
        }

        let mut stopping = self.stopping();
        let failure = tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => None,
            Some(ended) = tasks.join_next() => Some(ended),
        };
        self.request_stop();
        // Jobs and requests in flight get a moment; what only ever runs is cut.
        let grace = tokio::time::sleep(Duration::from_secs(10));
        tokio::pin!(grace);
        let only_ever_run = if self.app.trial { 3 } else { 1 } + usize::from(self.sandbox_droplets.is_some());
        let mut left = tasks.len().saturating_sub(only_ever_run);
        while left > 0 {
            tokio::select! {
                ended = tasks.join_next() => if ended.is_none() { break } else { left -= 1 },
                () = &mut grace => break,
            }
        }
        tasks.shutdown().await;
        self.stop().await;
        match failure {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(error),
            Some(Err(panic)) => Err(anyhow::anyhow!("a part of the program failed: {panic}")),
        }
    }

    /// Stops what is underneath, cleanly: boxes, connections, database. Boxes come back at the next start.
    pub async fn stop(self) {
        if let (Some(local), true) = (&self.local, self.owns_boxes) {
            local.stop_all().await;
        }
        if let (Some(droplets), true) = (&self.sandbox_droplets, self.owns_boxes) {
            droplets.stop().await;
        }
        self.app.pool.close().await;
        if let Some(embedded) = self.embedded {
            embedded.stop().await;
        }
    }
}

/// Returns when this process is told to stop: by Ctrl-C or by SIGTERM.
///
/// # Panics
/// If signals cannot be listened for, which is said of no system this runs on.
pub async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be listened for");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// What a command needs that is given beside a service or while it is stopped. It makes nothing: no folder, no database, no
/// schema, no key.
pub struct Beside {
    /// Connections on which this process is the application.
    pub pool: PgPool,
    /// The source of "now": the trial's, in a trial.
    pub clock: Clock,
    /// Where the checkpoints of the audit log are exported.
    pub checkpoint_file: std::path::PathBuf,
    embedded: Option<Embedded>,
}

impl Beside {
    /// Finds the installation that the settings name: its running database, or the stopped one, which is started for the
    /// time being.
    ///
    /// # Errors
    /// That there is none, or that it cannot be used, and what to do about it.
    pub async fn find(settings: &Settings) -> anyhow::Result<Self> {
        let (embedded, url) = match &settings.database_url {
            Some(url) => (None, url.expose_secret().to_owned()),
            None => {
                must_be_installed(settings, "postgres/PG_VERSION")?;
                let options =
                    EmbeddedOptions { data_dir: settings.data_dir.clone(), binaries: settings.postgres_bin.clone() };
                match (Embedded::start(options).await, running_url(&settings.data_dir)) {
                    (Ok(embedded), _) => {
                        let url = embedded.url();
                        (Some(embedded), url)
                    }
                    // A service is running on the folder: its database is used.
                    (Err(postgres::Error::InUse { .. }), Some(url)) => (None, url),
                    (Err(error), _) => return Err(error.into()),
                }
            }
        };
        let found = async {
            let mut connection = connect_for_look(&url).await?;
            check_version(&mut connection).await?;
            connection.close().await?;
            let options = match &settings.database_url {
                Some(_) => PgConnectOptions::from_str(&url).context("DATABASE_URL cannot be read")?,
                None => allow_application_login(&url).await?,
            };
            let pool = application_pool(options, 4).await?;
            let clock = Clock::system();
            api::trial::load_clock(&pool, &clock).await?;
            anyhow::Ok((pool, clock))
        };
        match found.await {
            Ok((pool, clock)) => {
                let checkpoint_file = settings.data_dir.join(CHECKPOINT_FILE);
                Ok(Self { pool, clock, checkpoint_file, embedded })
            }
            Err(error) => {
                if let Some(embedded) = embedded {
                    embedded.stop().await;
                }
                Err(error)
            }
        }
    }

    /// The time now, as the service sees it.
    pub fn now(&self) -> Time {
        Time(self.clock.now())
    }

    /// Lets go of the database, and stops it if this command started it.
    pub async fn stop(self) {
        self.pool.close().await;
        if let Some(embedded) = self.embedded {
            embedded.stop().await;
        }
    }
}

/// Refuses a folder that holds no installation, so that a command given with the wrong one does not make a new one there.
///
/// # Errors
/// Which folder has none, and what to do.
pub fn must_be_installed(settings: &Settings, part: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        settings.data_dir.join(part).exists(),
        "there is no Seedplane installation in {} (no {part}); nothing was made. Name the service's folder with --data-dir \
         or SEEDPLANE_DATA_DIR, or its database with DATABASE_URL; `seedplane up` makes a new installation",
        settings.data_dir.display()
    );
    Ok(())
}

/// The same port on this machine's loopback: where the trial's parts call each other, whatever the outside is.
fn loopback(bound: SocketAddr) -> SocketAddr {
    match bound {
        _ if bound.ip().is_loopback() => bound,
        SocketAddr::V6(_) if bound.ip().is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, bound.port())),
        _ => SocketAddr::from((Ipv4Addr::LOCALHOST, bound.port())),
    }
}

/// Where a browser on this machine finds what listens there.
fn reachable(bound: SocketAddr) -> SocketAddr {
    if bound.ip().is_unspecified() { loopback(bound) } else { bound }
}

/// Binds what requests come in by, and says at which address and port that is. A trial that listens on an address of the
/// network only is reached by its own sandbox gateway on loopback, too.
async fn listen(
    settings: &Settings,
    parts: Parts,
    trial: bool,
) -> anyhow::Result<(Vec<TcpListener>, Option<SocketAddr>)> {
    if !parts.serve {
        return Ok((Vec::new(), None));
    }
    let bind = async |address: SocketAddr| {
        TcpListener::bind(address).await.with_context(|| {
            format!("{address} cannot be listened on; is another copy running? --listen takes another address")
        })
    };
    let listener = bind(settings.listen).await?;
    let bound = listener.local_addr()?;
    let mut listeners = vec![listener];
    if trial && !bound.ip().is_loopback() {
        tracing::warn!(
            %bound,
            "this is a trial and it can be reached from other machines: whoever reaches it can read its inbox, with \
             everybody's one-time links, and move its clock. Listen on 127.0.0.1 unless you trust that network"
        );
        if !bound.ip().is_unspecified() {
            listeners.push(bind(loopback(bound)).await?);
        }
    }
    Ok((listeners, Some(bound)))
}

/// The sandbox gateway of the trial: its keys are made once and kept like any other secret.
async fn start_sandbox(
    settings: &Settings,
    here: SocketAddr,
    secrets: &dyn SecretStore,
    clock: &Clock,
) -> anyhow::Result<(CoinPayPortal, Sandbox)> {
    let secret = async |name: &str, prefix: &str| -> anyhow::Result<SecretString> {
        let path = SecretPath::new(format!("sandbox-gateway/{name}"))?;
        let made = SecretString::from(format!("{prefix}{}", hex::encode(rand::random::<[u8; 16]>())));
        Ok(secrets.get_or_put(&path, made).await?)
    };
    let api_key = secret("api-key", "cp_live_").await?;
    let webhook_secret = secret("webhook-secret", "whsecret_").await?;
    let business_id = uuid::Uuid::from_u128(0x5eed_91a9_e000_7000_8000_0000_0000_0001);
    let here = format!("http://{here}");
    let now = clock.clone();
    let sandbox = Sandbox::new(
        sandbox::Config {
            webhook_url: Some(format!("{here}/api/webhooks/coinpayportal")),
            state_file: Some(settings.data_dir.join("sandbox-gateway.json")),
            // The real service looks about once a minute; on average a deposit is half as old by then.
            seen_after: jiff::SignedDuration::from_secs(30),
            ..sandbox::Config::new(api_key.expose_secret(), business_id, webhook_secret.expose_secret())
        },
        Arc::new(move || now.now()),
    )?;
    let gateway = CoinPayPortal::new(gateway::Settings {
        pay_page_base: Some(format!("{}/sandbox", settings.public_url)),
        coins: sandbox::default_coins().into_iter().map(|coin| coin.code.to_string()).collect(),
        ..gateway::Settings::new(format!("{here}/sandbox/api"), api_key, business_id, webhook_secret)
    })?;
    Ok((gateway, sandbox))
}

/// The plans a trial starts with.
async fn add_trial_plans(app: &App) -> anyhow::Result<()> {
    if !plans::on_sale(&app.pool).await?.is_empty() {
        return Ok(());
    }
    let now = app.now();
    let mut tx = app.pool.begin().await?;
    for (code, name, description, cents, size, disk_gb) in [
        ("small", "Small", "One torrent client on 50 GB: to try, and for a few things at a time.", 1500, "small", 50),
        ("large", "Large", "One torrent client on 500 GB: for a library.", 3000, "large", 500),
    ] {
        let price = crate::money::Usd::from_cents(cents);
        let plan = NewPlan { code, name, description, price, provider: "local", size, region: None, disk_gb };
        let id = plans::add_version_in(&mut tx, PlanId::new(), now, &plan).await?;
        let after = Some(serde_json::json!({ "code": code, "price_cents": cents }));
        let event = Event { subject: Subject::Other("plan", id.0), action: "plan.version_added", before: None, after };
        events::record_in(&mut tx, now, &Cause::system(), event).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Makes an operator, for the command line.
///
/// # Errors
/// That the address is taken or the password too weak.
pub async fn create_operator(
    pool: &PgPool,
    now: Time,
    email: &str,
    password: SecretString,
    role: accounts::Role,
) -> anyhow::Result<crate::ids::UserId> {
    let id = crate::ids::UserId::new();
    Ok(accounts::sign_up(pool, id, email, password, role, now, |_| Cause::system()).await?)
}
