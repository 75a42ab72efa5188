//! Boxes sold, used and ended while the worker is killed wherever it waits: for the database, the gateway, the provider, a node.
//! Each successor knows what stands in the database and nothing else. And one of several copies killed, with others to follow.

use std::{
    pin::{Pin, pin},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use jiff::SignedDuration;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use secrecy::SecretString;
use seedplane::{
    accounts::Role,
    app::App,
    ids::TopupId,
    jobs::{self, Job},
    secrets::{self, SecretPath, SecretStore, SecretVersion},
    workers::{self, reconciler},
};
use seedplane_provisioning::ProvisioningProvider;
use seedplane_simulators::{
    coinpayportal::PayAmount,
    digitalocean::{Config, Faults, Lag, Simulator},
};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    digitalocean::{config, order, plan, plan_is_missing, shown},
    support::{DROPLETS_TOKEN, PATIENCE, Person, TestApp, World},
};

/// How long any step may take, with every worker that dies over it.
const LONG: Duration = Duration::from_secs(240);

/// Lets a future wait so often; where it would wait once more, it is dropped.
struct Cut<'a, F> {
    inner: Pin<&'a mut F>,
    waits_left: u32,
}

impl<F: Future> Future for Cut<'_, F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.inner.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if self.waits_left == 0 => Poll::Ready(None),
            Poll::Pending => {
                self.waits_left -= 1;
                Poll::Pending
            }
        }
    }
}

/// When workers are killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kills {
    /// In every job from its beginning to its end, at most so many waits apart. What is only done by the clock is left out.
    EverySoFar { apart: u32 },
    /// Three of four, anywhere.
    ByChance,
}

/// The workers of a world, one at a time, with a moment between them and none of the waiting.
struct Workers {
    world: World,
    /// What people and nodes talk to, and is not killed.
    front_door: App,
    kills: Kills,
    random: StdRng,
    stop: Arc<AtomicBool>,
    killed: Arc<AtomicU32>,
}

impl Workers {
    async fn run(mut self) {
        let watch = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect(&self.world.url).await.unwrap();
        let mut app = self.world.successor(&self.front_door).await;
        let (mut so_far, mut ticked, mut at) = (0, Instant::now(), None);
        while !self.stop.load(Ordering::Relaxed) {
            if self.kills == Kills::ByChance && ticked.elapsed() > Duration::from_millis(700) {
                workers::tick(&app).await.unwrap();
                ticked = Instant::now();
            }
            let Some(job) = self.bring_forward(&watch).await else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            // The next job is begun at its beginning; it may have been done, and its worker killed over a later one.
            if at != Some(job) {
                (so_far, at) = (0, Some(job));
            }
            let waits_left = match self.kills {
                Kills::EverySoFar { .. } => so_far,
                Kills::ByChance if self.random.random_range(0..4) > 0 => self.random.random_range(0..80),
                Kills::ByChance => u32::MAX,
            };
            let worker = workers::single(&app).await.unwrap();
            let done = {
                let mut steps = pin!(worker.run_once());
                let done = Cut { inner: steps.as_mut(), waits_left }.await;
                if done.is_none() && self.random.random_range(0..2) == 0 {
                    // What was asked for last is carried out, and nobody is there for the answer.
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
                done
            };
            if let Some(result) = done {
                result.unwrap();
                continue;
            }
            if let Kills::EverySoFar { apart } = self.kills {
                so_far += self.random.random_range(1..=apart);
            }
            self.killed.fetch_add(1, Ordering::Relaxed);
            drop(worker);
            app = self.next(app, &watch).await;
        }
    }

    /// Another process: its connections, its clients of the provider and the gateway, and what it has in mind are its own.
    async fn next(&self, dead: App, watch: &PgPool) -> App {
        dead.pool.close().await;
        // The last statement of a process that is gone may still be under way, and claim a job for it.
        let busy =
            "select exists (select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
                        and state <> 'idle')";
        while sqlx::query_scalar(busy).fetch_one(watch).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let app = self.world.successor(&dead).await;
        // As at the start of a server that is the only one.
        workers::release_all_claims(&app).await.unwrap();
        app
    }

    /// Brings what was put off to now, since a job may be run at any time: all of it, or the oldest alone where each is to be
    /// killed from its beginning to its end. The oldest.
    async fn bring_forward(&self, watch: &PgPool) -> Option<i64> {
        let oldest: Option<i64> =
            sqlx::query_scalar("select min(id) from graphile_worker._private_jobs where attempts < max_attempts")
                .fetch_one(watch)
                .await
                .unwrap();
        sqlx::query(
            "update graphile_worker._private_jobs set run_at = case when $2 and id <> $1 then now() + interval '1 hour' else now() end
             where attempts < max_attempts",
        )
        .bind(oldest)
        .bind(self.kills != Kills::ByChance)
        .execute(watch)
        .await
        .unwrap();
        oldest
    }
}

/// The workers at work, beside a test.
struct Working {
    stop: Arc<AtomicBool>,
    killed: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<()>,
}

impl Working {
    fn begin(test: &TestApp, kills: Kills, seed: u64) -> Self {
        let (stop, killed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let workers = Workers {
            world: test.world.clone(),
            front_door: test.app.clone(),
            kills,
            random: StdRng::seed_from_u64(seed),
            stop: Arc::clone(&stop),
            killed: Arc::clone(&killed),
        };
        Self { stop, killed, task: tokio::spawn(workers.run()) }
    }

    /// How many of them died.
    async fn end(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the workers go on");
        self.killed.load(Ordering::Relaxed)
    }
}

/// A box, its owner and everything that it takes.
struct Story {
    test: TestApp,
    simulator: Simulator,
    buyer: Person,
    path: String,
}

/// Pays in through the gateway, whose quote takes as long as workers need for it.
async fn pay_in(test: &TestApp, buyer: &Person, cents: i64) {
    let topup = test.post(buyer, "/api/billing/topups", json!({ "amount_cents": cents })).await;
    let path = format!("/api/billing/topups/{}", topup["id"].as_str().unwrap());
    let quoted = until(test, buyer, &path, |topup| topup["payment_id"].is_string()).await;
    test.world.sandbox.pay(quoted["payment_id"].as_str().unwrap().parse().unwrap(), PayAmount::Exact).await.unwrap();
    test.world.sandbox.tick().await;
    let mut connection = test.app.pool.acquire().await.unwrap();
    let id = TopupId(topup["id"].as_str().unwrap().parse().unwrap());
    jobs::enqueue_in(&mut connection, Job::CheckPayment(id)).await.unwrap();
    drop(connection);
    until(test, buyer, &path, |topup| topup["credited_cents"] == cents).await;
}

/// Asks again until it is so; with every job killed all along that takes as long as it takes.
async fn until(test: &TestApp, buyer: &Person, path: &str, so: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let seen = test.get(buyer, path).await;
        if so(&seen) {
            return seen;
        }
        assert!(started.elapsed() < LONG, "not so after {LONG:?}: {seen}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// What the ledger holds of an account whose box ended: nothing is set aside, and what is not charged is there.
async fn assert_settled(test: &TestApp, buyer: &Person, paid_in: i64) {
    test.assert_sound().await;
    let pool = &test.app.pool;
    let unsettled: Vec<String> = sqlx::query_scalar(
        "select key from (select regexp_replace(idempotency_key, ':[^:]*$', '') as key, sum(amount_cents) as cents
                          from ledger_transfers where kind = 'reserve' group by 1) set_aside
         left join (select cause as key, sum(amount_cents) as cents, count(distinct kind) as ways
                    from ledger_transfers where kind in ('post', 'void') group by 1) settled using (key)
         where settled.cents is distinct from set_aside.cents or settled.ways <> 1",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    assert_eq!(unsettled, [""; 0], "what is set aside is earned or given back, once");
    let charged: i64 = sqlx::query_scalar(
        "select coalesce(sum(case kind when 'post' then amount_cents else -amount_cents end), 0)::bigint
         from ledger_transfers where kind in ('post', 'refund')",
    )
    .fetch_one(pool)
    .await
    .unwrap();
    let account = test.get(buyer, "/api/billing/account").await;
    assert_eq!(account["reserved_cents"], 0, "{account}");
    assert_eq!(account["available_cents"].as_i64().unwrap(), paid_in - charged, "{account}");
}

/// The secrets of a box that are kept.
async fn kept_secrets(test: &TestApp, path: &str) -> Vec<String> {
    let id = path.rsplit('/').next().unwrap();
    let paths = test.app.secrets.list(&format!("resource/{id}")).await.unwrap();
    paths.iter().map(ToString::to_string).collect()
}

impl Story {
    async fn seen(&self) -> Value {
        self.test.get(&self.buyer, &self.path).await
    }

    /// Asks for something until it has come about: what was given up is asked for again, as its owner would.
    async fn insist(&self, verb: &str, body: Value, so: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let seen = self.seen().await;
            if so(&seen) {
                return seen;
            }
            if seen["operations"] == json!([]) {
                self.test.post(&self.buyer, &format!("{}/{verb}", self.path), body.clone()).await;
            }
            assert!(started.elapsed() < LONG, "{verb}: {seen}");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    fn alive(&self) -> usize {
        self.simulator.alive().len()
    }

    /// From active to terminated, with everything an owner may ask for between.
    async fn live(&self) {
        assert_eq!(self.alive(), 1, "a box that is delivered has one droplet");
        let (address, login) = shown(&self.test, &self.buyer, &self.path).await;
        self.simulator.login(address, &login).unwrap();
        let id = self.path.rsplit('/').next().unwrap();
        self.simulator.attach_volume(self.simulator.alive()[0].id, &[&format!("seedbox:{id}")]);

        self.insist("suspend", json!({}), |seen| seen["status"] == "suspended").await;
        assert!(self.simulator.login(address, &login).is_err(), "a suspended box lets nobody in");
        let idle = |seen: &Value| seen["operations"] == json!([]);
        self.insist("resume", json!({}), |seen| seen["status"] == "active" && idle(seen)).await;
        self.simulator.login(address, &login).expect("the same login after a return");
        self.insist("rotate-credentials", json!({}), |seen| seen["credentials_shown"] == false && idle(seen)).await;
        assert!(self.simulator.login(address, &login).is_err(), "the old password is dead");
        let (_, login) = shown(&self.test, &self.buyer, &self.path).await;
        self.simulator.login(address, &login).expect("the new one works");
        assert_eq!(self.alive(), 1, "and it is still the one droplet");
        let end = json!({ "confirm_label": "Droplet" });
        let ended = |seen: &Value| matches!(seen["status"].as_str().unwrap(), "terminating" | "terminated");
        self.insist("terminate", end, ended).await;
    }

    /// Nothing is left that costs or holds a secret, and every cent is where it belongs.
    async fn ended(&self, paid_in: i64) {
        self.test.idle().await;
        // Whatever was under way comes to light.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(self.simulator.alive().is_empty(), "ended, and still costs: {:?}", self.simulator.alive());
        assert_eq!(self.simulator.kept(), [""; 0], "volumes and snapshots of the box go with it");
        assert_settled(&self.test, &self.buyer, paid_in).await;
        assert_eq!(kept_secrets(&self.test, &self.path).await, [""; 0], "no secret outlives its box");
    }
}

/// One box from order to end. What became of it, and how many workers died over it.
async fn story(kills: Kills, config: Config) -> (&'static str, u32) {
    let (seed, faults) = (config.seed, config.faults);
    let world = World::new().await.with_droplets(config).await;
    let simulator = world.droplets.clone().unwrap().1;
    let test = world.start(false).await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    while plan_is_missing(&test, &operator).await {
        reconciler::look_at_start(&test.app).await.unwrap();
    }
    let plan = plan(&test, &operator).await;
    let working = Working::begin(&test, kills, seed);
    pay_in(&test, &buyer, 3000).await;
    let path = order(&test, &buyer, &plan).await;
    let story = Story { test, simulator, buyer, path };
    let made = |seen: &Value| seen["status"] != "pending" && seen["status"] != "provisioning";
    let seen = until(&story.test, &story.buyer, &story.path, made).await;
    let mut became = "failed";
    if seen["status"] == "active" {
        became = "delivered";
        story.live().await;
    }
    until(&story.test, &story.buyer, &story.path, |seen| seen["status"] == "terminated").await;
    story.ended(3000).await;
    if faults == Faults::NONE {
        assert_eq!(story.simulator.droplets_made(), 1, "asked for once, whoever died over it");
    }
    (became, working.end().await)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Where exactly follows from the seed; `SEED=n` runs one again, and `APART=1` kills at every single wait, which takes minutes.
#[tokio::test(flavor = "multi_thread")]
async fn killed_all_along_every_job_a_box_has_one_droplet_and_then_none() {
    let seed = number("SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let apart = number("APART").map_or(30, |apart| apart.try_into().unwrap());
    println!("SEED={seed} APART={apart}");
    // What was made comes to light later than the next worker looks, and sooner than it may be asked for again: by enough that a
    // busy machine, which hears an order late, does not change that.
    let late = SignedDuration::from_millis(600);
    let lag = Lag { visible: late, listed: late, tagged: late, ..Lag::all(SignedDuration::from_millis(50)) };
    let config = Config { lag, seed, ..config() };
    let (became, killed) = story(Kills::EverySoFar { apart }, config).await;
    println!("{became}, {killed} workers killed");
    assert_eq!(became, "delivered", "nothing goes wrong but that workers die");
    assert!(killed > 40, "only {killed} workers died");
}

/// Answers are lost, doubled, late and refused, placements, actions and nodes fail, and three of four workers are killed.
/// `SEED=n` runs one seed again.
#[tokio::test(flavor = "multi_thread")]
async fn on_bad_days_with_workers_that_die_nothing_is_leaked_and_every_cent_is_there() {
    let faults = Faults { request: 100, placement: 60, action: 60, deaf: 60, node: 60, unreachable: 80 };
    let seeds = number("SEED").map_or((0..6).collect(), |seed| vec![seed]);
    let days: Vec<_> = seeds
        .into_iter()
        .map(|seed: u64| {
            let config = Config { lag: Lag::all(SignedDuration::from_millis(100)), faults, seed, ..config() };
            (seed, tokio::spawn(story(Kills::ByChance, config)))
        })
        .collect();
    for (seed, day) in days {
        let (became, killed) = day.await.unwrap_or_else(|_| panic!("seed {seed} failed; SEED={seed} runs it again"));
        println!("seed {seed}: {became}, {killed} workers killed");
    }
}

/// The same with machines that are quickly had, and no wait left out.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_single_wait_nothing_is_lost_or_done_twice() {
    let world = World::new().await;
    let test = world.start(false).await;
    let (buyer, plan) = (test.customer().await, test.plan(1500).await);
    let working = Working::begin(&test, Kills::EverySoFar { apart: 1 }, 1);
    pay_in(&test, &buyer, 3000).await;
    let path = order(&test, &buyer, &json!(plan)).await;
    until(&test, &buyer, &path, |seen| seen["status"] == "active").await;
    assert_eq!(world.provider.list_owned().await.unwrap().len(), 1);
    assert_eq!(kept_secrets(&test, &path).await.len(), 1, "its password");
    test.post(&buyer, &format!("{path}/rotate-credentials"), json!({})).await;
    until(&test, &buyer, &path, |seen| seen["operations"] == json!([])).await;
    test.post(&buyer, &format!("{path}/terminate"), json!({ "confirm_label": "Small" })).await;
    until(&test, &buyer, &path, |seen| seen["status"] == "terminated").await;
    test.idle().await;
    assert_eq!(world.provider.list_owned().await.unwrap().len(), 0);
    assert_settled(&test, &buyer, 3000).await;
    assert_eq!(kept_secrets(&test, &path).await, [""; 0], "no secret outlives its box");
    println!("{} workers killed", working.end().await);
}

/// A store that destroys nothing.
#[derive(Debug)]
struct Closed(Arc<dyn SecretStore>);

#[async_trait]
impl SecretStore for Closed {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    async fn put(&self, path: &SecretPath, value: SecretString) -> Result<SecretVersion, secrets::Error> {
        self.0.put(path, value).await
    }

    async fn get_or_put(&self, path: &SecretPath, value: SecretString) -> Result<SecretString, secrets::Error> {
        self.0.get_or_put(path, value).await
    }

    async fn get(&self, path: &SecretPath) -> Result<Option<SecretString>, secrets::Error> {
        self.0.get(path).await
    }

    async fn get_version(
        &self,
        path: &SecretPath,
        version: SecretVersion,
    ) -> Result<Option<SecretString>, secrets::Error> {
        self.0.get_version(path, version).await
    }

    async fn delete(&self, _path: &SecretPath) -> Result<(), secrets::Error> {
        std::future::pending().await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<SecretPath>, secrets::Error> {
        self.0.list(prefix).await
    }
}

/// An active box, its buyer and its path, in a copy without workers.
async fn box_without_workers() -> (TestApp, Person, String) {
    let world = World::new().await;
    let worker = world.start(true).await;
    let buyer = worker.customer().await;
    let path = format!("/api/seedbox/resources/{}", worker.active_box(&buyer, 1500).await);
    drop(worker);
    (world.start(false).await, buyer, path)
}

/// Runs the jobs that are due in a worker that dies where a secret would be destroyed.
async fn die_before_anything_is_destroyed(test: &TestApp) {
    let closed = App { secrets: Arc::new(Closed(Arc::clone(&test.app.secrets))), ..test.app.clone() };
    let worker = workers::single(&closed).await.unwrap();
    let killed = tokio::time::timeout(Duration::from_secs(2), worker.run_once()).await;
    assert!(killed.is_err(), "it waits for the store");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_the_secrets_of_an_ended_box_are_destroyed_they_are_destroyed_later() {
    let (test, buyer, path) = box_without_workers().await;
    test.post(&buyer, &format!("{path}/terminate"), json!({ "confirm_label": "Small" })).await;
    die_before_anything_is_destroyed(&test).await;
    assert_eq!(kept_secrets(&test, &path).await.len(), 1);
    workers::release_all_claims(&test.app).await.unwrap();
    workers::single(&test.app).await.unwrap().run_once().await.unwrap();
    test.until(&buyer, &path, |seen| seen["status"] == "terminated").await;
    assert_eq!(kept_secrets(&test, &path).await, [""; 0], "no secret outlives its box");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_an_old_password_is_destroyed_it_is_destroyed_later() {
    let (test, buyer, path) = box_without_workers().await;
    let before = kept_secrets(&test, &path).await;
    test.post(&buyer, &format!("{path}/rotate-credentials"), json!({})).await;
    die_before_anything_is_destroyed(&test).await;
    assert_eq!(kept_secrets(&test, &path).await.len(), 2, "the old one and the new one");
    workers::release_all_claims(&test.app).await.unwrap();
    workers::single(&test.app).await.unwrap().run_once().await.unwrap();
    test.until(&buyer, &path, |seen| seen["operations"] == json!([])).await;
    let after = kept_secrets(&test, &path).await;
    assert!(after.len() == 1 && after != before, "the new one alone: {after:?}");
    assert!(test.post(&buyer, &format!("{path}/credentials"), json!({})).await["password"].is_string());
}

/// A copy with workers, as a process of its own.
struct Copy(Child);

impl Copy {
    fn start(world: &World, droplets_url: &str) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_seedplane"))
            .args(["work", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&world.folder)
            .env("DATABASE_URL", &world.url)
            .env("DIGITALOCEAN_TOKEN", DROPLETS_TOKEN)
            .env("DIGITALOCEAN_API_URL", droplets_url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Which process holds the job of an operation and, that being the same, its queue.
async fn holder(pool: &PgPool) -> Option<u32> {
    let pid: Option<i64> = sqlx::query_scalar(
        "select (w.metadata ->> 'pid')::bigint from graphile_worker._private_jobs j
         join graphile_worker._private_tasks t on t.id = j.task_id and t.identifier = 'operate'
         join graphile_worker._private_job_queues q on q.id = j.job_queue_id and q.locked_by = j.locked_by
         join graphile_worker._private_workers w on w.id = j.locked_by",
    )
    .fetch_optional(pool)
    .await
    .unwrap();
    pid.map(|pid| u32::try_from(pid).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_copy_held_is_taken_over_by_another_within_a_minute() {
    // DigitalOcean, which answers nothing as long as it is told so.
    let (silent, hears) = tokio::sync::watch::channel(false);
    let simulator = Simulator::new(config(), Arc::new(jiff::Timestamp::now));
    let routes = simulator.router().layer(axum::middleware::from_fn(
        move |request: axum::extract::Request, next: axum::middleware::Next| {
            let mut hears = hears.clone();
            async move {
                let _ = hears.wait_for(|silent| !*silent).await;
                next.run(request).await
            }
        },
    ));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    let mut world = World::new().await;
    world.droplets = Some((url.clone(), simulator.clone()));
    let test = world.start(false).await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let plan = plan(&test, &operator).await;
    let paying = world.start(true).await;
    paying.top_up(&buyer, 1500).await;
    drop(paying);
    until_workers(&test.app.pool, 0).await;
    let copies = [Copy::start(&world, &url), Copy::start(&world, &url)];
    until_workers(&test.app.pool, 2).await;

    silent.send_replace(true);
    order(&test, &buyer, &plan).await;
    let first = until_held(&test.app.pool, |_| true).await;
    let (dead, other): (Vec<_>, Vec<_>) = copies.into_iter().partition(|copy| copy.0.id() == first);
    drop(dead);
    let killed = Instant::now();
    let second = until_held(&test.app.pool, |holder| holder != first).await;
    println!("taken over after {:?}", killed.elapsed());
    assert_eq!(second, other[0].0.id());
    assert_eq!(simulator.droplets_made(), 0);
    silent.send_replace(false);
    let started = Instant::now();
    while simulator.droplets_made() == 0 {
        assert!(started.elapsed() < PATIENCE, "the other copy does not carry it out");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(simulator.droplets_made(), 1);
}

/// Waits until so many copies have workers.
async fn until_workers(pool: &PgPool, copies: i64) {
    let started = Instant::now();
    loop {
        let workers: i64 =
            sqlx::query_scalar("select count(*) from graphile_worker._private_workers").fetch_one(pool).await.unwrap();
        if workers == copies {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{workers} copies work, not {copies}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the operation is held by a process of which it is so.
async fn until_held(pool: &PgPool, so: impl Fn(u32) -> bool) -> u32 {
    let started = Instant::now();
    loop {
        if let Some(holder) = holder(pool).await.filter(|holder| so(*holder)) {
            return holder;
        }
        assert!(started.elapsed() < PATIENCE, "nobody takes it within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
