//! What tests share: one Postgres server, and an application with its own database, a clock that is moved by hand, the
//! sandbox gateway and a provider in memory.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use jiff::SignedDuration;
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use seedplane::{
    accounts::{self, NewApiToken, Role, Scopes},
    app::App,
    audit::events::Cause,
    billing::rules::Policy,
    brand::Brand,
    byos::hosts::Hosts,
    clock::Clock,
    ids::{PlanId, UserId},
    jobs::{self, Job},
    mailer::{InboxMailer, Mailer},
    money::Usd,
    nodes::Nodes,
    payments::coinpayportal::{CoinPayPortal, Settings},
    postgres::{Embedded, EmbeddedOptions, create_database_from_template},
    router, runtime,
    secrets::{SecretStore, keystore::Keystore},
    seedbox::plans::{self, NewPlan},
    workers::{self, reconciler},
};
use seedplane_provisioning::{
    ProvisioningProvider,
    digitalocean::{self, DigitalOcean},
    memory::MemoryProvider,
};
use seedplane_simulators::{
    coinpayportal::{self as sandbox, CoinPayPortal as Sandbox},
    digitalocean::{self as droplets, Simulator},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::sync::watch;
use uuid::Uuid;

pub mod smtp;

/// How long anything in a test may take before it counts as not happening.
pub const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    embedded: Embedded,
    template: String,
}

/// The server, with a template that has this version's schema. It ends with this process.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        std::thread::spawn(|| {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let embedded =
                    Embedded::start(EmbeddedOptions { data_dir: temporary("postgres"), binaries: None }).await.unwrap();
                // Nobody's data: what must survive a crash is tested on servers of their own, with the product's settings.
                let owner = PgPool::connect(&embedded.url()).await.unwrap();
                for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
                    sqlx::query(sqlx::AssertSqlSafe(format!("alter system set {setting} = off")))
                        .execute(&owner)
                        .await
                        .unwrap();
                }
                sqlx::query("select pg_reload_conf()").execute(&owner).await.unwrap();
                owner.close().await;
                let template =
                    create_database_from_template(&embedded.url(), "seedplane_template", "template1").await.unwrap();
                runtime::migrate(&template).await.unwrap();
                // The role is the whole server's: given its login here, no two tests change it at the same time.
                runtime::allow_application_login(&template).await.unwrap();
                Server { embedded, template: "seedplane_template".to_owned() }
            })
        })
        .join()
        .unwrap()
    })
}

/// A fresh folder that others on the machine can pass through. Folders of test runs that ended are removed.
pub fn temporary(name: &str) -> PathBuf {
    static SWEPT: OnceLock<()> = OnceLock::new();
    let base = std::env::temp_dir();
    SWEPT.get_or_init(|| {
        for entry in std::fs::read_dir(&base).into_iter().flatten().flatten() {
            let file_name = entry.file_name();
            let pid = file_name
                .to_str()
                .and_then(|name| name.strip_prefix("seedplane-test-")?.split('-').next()?.parse::<u32>().ok());
            if pid.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    });
    let folder = base.join(format!(
        "seedplane-test-{}-{name}-{}",
        std::process::id(),
        &Uuid::new_v4().simple().to_string()[..8]
    ));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A database of its own, with this version's schema: the owner's URL.
pub async fn database() -> String {
    let server = server();
    let name = format!("t_{}", Uuid::new_v4().simple());
    create_database_from_template(&server.embedded.url(), &name, &server.template).await.unwrap()
}

/// A database with nothing in it.
pub async fn empty_database() -> String {
    let name = format!("t_{}", Uuid::new_v4().simple());
    create_database_from_template(&server().embedded.url(), &name, "template0").await.unwrap()
}

/// What the copies of an application under test share.
#[derive(Clone)]
pub struct World {
    pub url: String,
    pub clock: Clock,
    pub provider: MemoryProvider,
    pub folder: PathBuf,
    pub sandbox: Sandbox,
    pub webhook_secret: String,
    pub business_id: Uuid,
    /// Droplets to sell, too: where the stand-in is, and it.
    pub droplets: Option<(String, Simulator)>,
    /// Takes the mails; the trial's inbox if there is none.
    pub mailer: Option<Arc<dyn Mailer>>,
    /// Whether some things need a second operator.
    pub two_person_rule: bool,
    sandbox_address: SocketAddr,
}

/// The token that the stand-in for DigitalOcean lets in.
pub const DROPLETS_TOKEN: &str = "dop_v1_0123456789abcdef0123456789abcdef";

/// A running copy of the application.
pub struct TestApp {
    pub app: App,
    pub world: World,
    pub base: String,
    pub http: reqwest::Client,
    stop: watch::Sender<bool>,
}

impl World {
    pub async fn new() -> Self {
        let url = database().await;
        let clock = Clock::system();
        let folder = temporary("app");
        let business_id = Uuid::new_v4();
        let webhook_secret = format!("whsecret_{}", "5a".repeat(32));
        let now = clock.clone();
        let config = sandbox::Config::new(format!("cp_live_{}", "a".repeat(32)), business_id, webhook_secret.clone());
        let sandbox = Sandbox::new(config, Arc::new(move || now.now())).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sandbox_address = listener.local_addr().unwrap();
        let routes = sandbox.router();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self {
            url,
            clock,
            provider: MemoryProvider::new(),
            folder,
            sandbox,
            webhook_secret,
            business_id,
            droplets: None,
            mailer: None,
            two_person_rule: false,
            sandbox_address,
        }
    }

    /// Sells droplets of a stand-in, too.
    pub async fn with_droplets(mut self, config: droplets::Config) -> Self {
        let simulator = Simulator::new(config, Arc::new(jiff::Timestamp::now));
        self.droplets = Some((simulator.serve().await.unwrap(), simulator));
        self
    }

    /// The provider of droplets, as a copy has it: nodes report to `base`.
    fn digitalocean(
        &self,
        pool: &PgPool,
        secrets: &Arc<dyn SecretStore>,
        base: &str,
    ) -> Option<Arc<dyn ProvisioningProvider>> {
        let (url, simulator) = self.droplets.as_ref()?;
        let nodes = Nodes {
            pool: pool.clone(),
            secrets: Arc::clone(secrets),
            clock: self.clock.clone(),
            public_url: base.to_owned(),
            domain: None,
            channel: Arc::new(simulator.clone()),
        };
        let settings = digitalocean::Settings {
            api_url: url.clone(),
            settles_within: SignedDuration::from_secs(1),
            poll_every: Duration::from_millis(2),
            polls: 3,
            ..digitalocean::Settings::new(SecretString::from(DROPLETS_TOKEN), "tests")
        };
        Some(Arc::new(DigitalOcean::new(settings, Arc::new(nodes)).unwrap()))
    }

    /// Where the sandbox gateway's API is.
    pub fn gateway_url(&self) -> String {
        format!("http://{}/api", self.sandbox_address)
    }

    /// Starts a copy, with workers or without, after a look at the provider.
    pub async fn start(&self, work: bool) -> TestApp {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopping) = watch::channel(false);
        let app = App { stopping, ..self.app(&base).await };
        let routes = router::router(app.clone(), None);
        tokio::spawn(seedplane::listener::serve(listener, routes, std::future::pending()));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let test = TestApp { app, world: self.clone(), base, http, stop };
        reconciler::look_at_start(&test.app).await.unwrap();
        if work {
            let (app, stopping) = (test.app.clone(), test.stop.subscribe());
            tokio::spawn(async move { workers::run(app, stopping).await.unwrap() });
        }
        test
    }

    /// What a copy is made of; its people and nodes come to `base`.
    async fn app(&self, base: &str) -> App {
        let options = runtime::allow_application_login(&self.url).await.unwrap();
        let pool = runtime::application_pool(options, 12).await.unwrap();
        let gateway = CoinPayPortal::new(Settings::new(
            self.gateway_url(),
            SecretString::from(format!("cp_live_{}", "a".repeat(32))),
            self.business_id,
            SecretString::from(self.webhook_secret.clone()),
        ))
        .unwrap();
        let mut providers: BTreeMap<&'static str, Arc<dyn ProvisioningProvider>> = BTreeMap::new();
        providers.insert("memory", Arc::new(self.provider.clone()));
        let secrets: Arc<dyn SecretStore> = Arc::new(Keystore::open(self.folder.join("keystore")).unwrap());
        if let Some(provider) = self.digitalocean(&pool, &secrets, base) {
            providers.insert(digitalocean::DIGITALOCEAN, provider);
        }
        App {
            hosts: Arc::new(Hosts::new(pool.clone())),
            pool,
            clock: self.clock.clone(),
            providers: Arc::new(providers),
            gateway: Arc::new(gateway),
            secrets,
            mailer: match &self.mailer {
                Some(mailer) => Arc::clone(mailer),
                None => Arc::new(InboxMailer::new(self.folder.join("inbox")).unwrap()),
            },
            issuer: None,
            policy: Arc::new(Policy::default()),
            public_url: base.into(),
            trial: true,
            two_person_rule: self.two_person_rule,
            allow_private_servers: true,
            byos_source_address: None,
            checkpoint_file: self.folder.join("checkpoints.jsonl").into(),
            brand: Arc::default(),
            stopping: watch::channel(false).1,
        }
    }

    /// What comes after a copy that was killed: connections and a client of DigitalOcean of its own, and nothing in mind.
    pub async fn successor(&self, dead: &App) -> App {
        let pool = runtime::application_pool((*dead.pool.connect_options()).clone(), 4).await.unwrap();
        let mut providers = BTreeMap::clone(&dead.providers);
        if let Some(provider) = self.digitalocean(&pool, &dead.secrets, &dead.public_url) {
            providers.insert(digitalocean::DIGITALOCEAN, provider);
        }
        App { hosts: Arc::new(Hosts::new(pool.clone())), pool, providers: Arc::new(providers), ..dead.clone() }
    }

    /// A connection as the owner of the tables, who may do what the application may not.
    pub async fn owner(&self) -> PgPool {
        sqlx::postgres::PgPoolOptions::new().max_connections(2).connect(&self.url).await.unwrap()
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// What is sent to a path: an order accepts the terms, unless it says itself which it accepts, or that it accepts none (`null`).
pub fn with_terms(path: &str, mut body: Value, brand: &Brand) -> Value {
    if path == "/api/seedbox/orders"
        && let Some(fields) = body.as_object_mut()
    {
        fields.entry("terms_version").or_insert_with(|| json!(brand.terms_version()));
    }
    body
}

/// Somebody who is signed in.
#[derive(Clone)]
pub struct Person {
    pub id: UserId,
    pub token: String,
}

impl TestApp {
    /// An application with workers and one plan.
    pub async fn new() -> Self {
        World::new().await.start(true).await
    }

    /// The same application behind a door of its own, with what was changed of it.
    pub async fn served_again(self) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        // The one before stops with its own: pages of this one go on keeping themselves up to date.
        let (stop, stopping) = watch::channel(false);
        let app = App { stopping, ..self.app.clone() };
        let routes = router::router(app.clone(), None);
        tokio::spawn(async move { axum::serve(listener, routes).await });
        TestApp { app, world: self.world.clone(), base, http: self.http.clone(), stop }
    }

    pub async fn call(
        &self,
        person: Option<&Person>,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(person) = person {
            request = request.bearer_auth(&person.token);
        }
        if let Some(body) = body {
            request = request.json(&with_terms(path, body, &self.app.brand));
        }
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub async fn get(&self, person: &Person, path: &str) -> Value {
        let (status, value) = self.call(Some(person), Method::GET, path, None).await;
        assert!(status.is_success(), "GET {path}: {status} {value}");
        value
    }

    pub async fn post(&self, person: &Person, path: &str, body: Value) -> Value {
        let (status, value) = self.call(Some(person), Method::POST, path, Some(body)).await;
        assert!(status.is_success(), "POST {path}: {status} {value}");
        value
    }

    /// Asks again until it is so.
    pub async fn until(&self, person: &Person, path: &str, so: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let seen = self.get(person, path).await;
            if so(&seen) {
                return seen;
            }
            assert!(started.elapsed() < PATIENCE, "{path}: not so after {PATIENCE:?}; last seen {seen}");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    pub async fn person(&self, role: Role) -> Person {
        let email = format!("{}@example.org", Uuid::new_v4().simple());
        let password = SecretString::from("a long enough password");
        let now = self.app.now();
        let id = accounts::sign_up(&self.app.pool, UserId::new(), &email, password, role, now, |_| Cause::system())
            .await
            .unwrap();
        // A session would end when the clock is moved by weeks.
        let (id_of_token, scopes) = (Uuid::now_v7(), Scopes::of_role(role));
        // As if it were made in a session with a second factor, which operators need outside the trial.
        let second_factor = true;
        let new = NewApiToken { id: id_of_token, user: id, name: "test", expires_at: None, scopes, second_factor };
        let (_, token) = accounts::create_api_token(&self.app.pool, new, now, &Cause::system()).await.unwrap();
        Person { id, token: token.expose_secret().to_owned() }
    }

    pub async fn customer(&self) -> Person {
        self.person(Role::Customer).await
    }

    /// A plan of the provider in memory.
    pub async fn plan(&self, cents: i64) -> PlanId {
        self.plan_of("Small", "small", cents).await
    }

    /// A plan of the provider in memory, of another size.
    pub async fn plan_of(&self, name: &str, size: &str, cents: i64) -> PlanId {
        let code = format!("p{}", &Uuid::new_v4().simple().to_string()[..12]);
        let plan = NewPlan {
            code: &code,
            name,
            description: "",
            price: Usd::from_cents(cents),
            provider: "memory",
            size,
            region: None,
            disk_gb: 50,
        };
        let mut connection = self.app.pool.acquire().await.unwrap();
        plans::add_version_in(&mut connection, PlanId::new(), self.app.now(), &plan).await.unwrap()
    }

    /// Tops up through the gateway, as a customer would.
    pub async fn top_up(&self, person: &Person, cents: i64) {
        let topup = self.post(person, "/api/billing/topups", json!({ "amount_cents": cents })).await;
        let payment: Uuid = topup["payment_id"].as_str().unwrap().parse().unwrap();
        self.world.sandbox.pay(payment, sandbox::PayAmount::Exact).await.unwrap();
        self.world.sandbox.tick().await;
        // What a webhook makes happen, at once: looking at a top-up asks the gateway every few seconds only.
        let id = seedplane::ids::TopupId(topup["id"].as_str().unwrap().parse().unwrap());
        let mut connection = self.app.pool.acquire().await.unwrap();
        jobs::enqueue_in(&mut connection, Job::CheckPayment(id)).await.unwrap();
        drop(connection);
        let path = format!("/api/billing/topups/{}", topup["id"].as_str().unwrap());
        self.until(person, &path, |topup| topup["credited_cents"] == cents).await;
    }

    /// A box that is paid for and runs.
    pub async fn active_box(&self, person: &Person, cents: i64) -> String {
        let plan = self.plan(cents).await;
        self.top_up(person, cents).await;
        let order = self.post(person, "/api/seedbox/orders", json!({ "plan_id": plan })).await;
        let id = order["resource_id"].as_str().expect("the balance covers it").to_owned();
        self.until(person, &format!("/api/seedbox/resources/{id}"), |resource| resource["status"] == "active").await;
        id
    }

    /// Moves the clock and lets everything that falls due be done.
    pub async fn advance(&self, time: SignedDuration) {
        self.world.clock.set_offset(self.world.clock.offset() + time);
        workers::tick(&self.app).await.unwrap();
    }

    /// Waits until so many notices of a kind were handed to the mailer.
    pub async fn until_handed(&self, kind: &str, count: i64) {
        let started = Instant::now();
        loop {
            let handed: i64 =
                sqlx::query_scalar("select count(*) from notices where kind = $1 and handed_at is not null")
                    .bind(kind)
                    .fetch_one(&self.app.pool)
                    .await
                    .unwrap();
            if handed >= count {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{handed} of {count} notices '{kind}' were handed over");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Waits until no job waits or runs.
    pub async fn idle(&self) {
        let started = Instant::now();
        loop {
            let busy: i64 = sqlx::query_scalar(
                "select count(*) from graphile_worker._private_jobs where attempts < max_attempts and run_at <= now()",
            )
            .fetch_one(&self.app.pool)
            .await
            .unwrap();
            if busy == 0 {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{busy} jobs are still there");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The ledger agrees with itself, and so does the audit log.
    pub async fn assert_sound(&self) {
        let ledger = seedplane::billing::ledger::check(&self.app.pool).await.unwrap();
        assert!(ledger.is_sound(), "{ledger:?}");
        let audit = seedplane::audit::chain::verify(
            &self.app.pool,
            seedplane::audit::chain::Copy::Own(&self.app.checkpoint_file),
        )
        .await
        .unwrap();
        assert_eq!(audit.fault, None);
    }
}
