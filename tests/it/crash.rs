//! `kill -9` at any moment, then a new start: nothing is lost, charged twice, or left running that should not be.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::{Method, StatusCode};
use seedplane::{audit::chain, billing::ledger, brand::Brand, postgres::running_url};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{temporary, with_terms};

/// How often it is killed.
const KILLS: u32 = 20;

/// How long any step may take, with everything that is killed meanwhile.
const STEP: Duration = Duration::from_secs(120);

/// A process as the kernel tells it from a later one with the same number.
type Process = (i32, u64);

fn stat(pid: i32) -> Option<(i32, u64, String)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = text.rsplit_once(") ")?;
    let name = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = tail.split_whitespace().collect();
    if ["Z", "X"].contains(&fields[0]) {
        return None;
    }
    Some((fields[1].parse().ok()?, fields[19].parse().ok()?, name))
}

/// Every process below this one, with its name.
fn descendants(of: i32) -> Vec<(Process, String)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if let Some((parent, started, name)) = stat(pid) {
            all.push((pid, parent, started, name));
        }
    }
    let mut found = Vec::new();
    let mut below = BTreeSet::from([of]);
    loop {
        let next: Vec<_> =
            all.iter().filter(|(pid, parent, ..)| below.contains(parent) && !below.contains(pid)).cloned().collect();
        if next.is_empty() {
            return found;
        }
        for (pid, _, started, name) in next {
            below.insert(pid);
            found.push(((pid, started), name));
        }
    }
}

fn lives((pid, started): Process) -> bool {
    stat(pid).is_some_and(|(_, since, _)| since == started)
}

struct Server {
    data: PathBuf,
    address: String,
    log: PathBuf,
}

impl Server {
    fn start(&self) -> Child {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        Command::new(env!("CARGO_BIN_EXE_seedplane"))
            .args(["up", "--listen", &self.address, "--data-dir"])
            .arg(&self.data)
            .env_remove("DATABASE_URL")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Kills it, and sees that no torrent client outlives it. What else it had started is for the next start to end.
    async fn kill(&self, mut child: Child) -> Vec<Process> {
        let below = descendants(i32::try_from(child.id()).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        // The database stops by itself, in its own time. A sandbox that dies while it sets itself up can leave a half of it.
        let aside = |name: &str| name.starts_with("postgres") || name.starts_with("bwrap");
        let boxes: Vec<_> = below.iter().filter(|(_, name)| !aside(name)).collect();
        let killed = Instant::now();
        while let Some((process, name)) = boxes.iter().find(|(process, _)| lives(*process)) {
            assert!(killed.elapsed() < Duration::from_secs(10), "{name} {process:?} outlives the control plane");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        below.into_iter().map(|(process, _)| process).collect()
    }
}

/// Waits until it serves; the ledger and the audit log are as they should be.
async fn check(server: &Server, child: &mut Child, kill: u32) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let started = Instant::now();
    loop {
        if http
            .get(format!("http://{}/readyz", server.address))
            .send()
            .await
            .is_ok_and(|answer| answer.status().is_success())
        {
            break;
        }
        let log = || std::fs::read_to_string(&server.log).unwrap_or_default();
        assert!(child.try_wait().unwrap().is_none(), "it did not start after kill {kill}:\n{}", log());
        assert!(started.elapsed() < STEP, "not ready {STEP:?} after kill {kill}:\n{}", log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let url = running_url(&server.data).unwrap();
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect(&url).await.unwrap();
    let ledger = ledger::check(&pool).await.unwrap();
    assert!(ledger.is_sound(), "after kill {kill}: {ledger:?}");
    let audit = chain::verify(&pool, chain::Copy::Own(&server.data.join("audit-checkpoints.jsonl"))).await.unwrap();
    assert_eq!(audit.fault, None, "after kill {kill}");
    // Every payment credited once, no period of a box charged twice, whatever was cut off.
    let twice: i64 = sqlx::query_scalar(
        "select count(*) from ledger_transfers a join ledger_transfers b on a.resource_id = b.resource_id and a.id < b.id
         where a.kind in ('charge', 'post') and b.kind in ('charge', 'post')
           and split_part(a.idempotency_key, ':', 3) <> split_part(b.idempotency_key, ':', 3)
           and a.period_start < b.period_end and b.period_start < a.period_end",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(twice, 0, "periods overlap after kill {kill}");
    pool.close().await;
}

/// A customer who asks again, with the same key, until there is an answer.
struct Buyer {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Buyer {
    async fn try_call(&self, method: Method, path: &str, key: &str, body: &Value) -> Option<(StatusCode, Value)> {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.base));
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        if method == Method::POST {
            request = request.header("idempotency-key", key).json(body);
        }
        let answer = request.send().await.ok()?;
        let status = answer.status();
        let text = answer.text().await.ok()?;
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        let unsettled =
            status.is_server_error() || value["type"].as_str().is_some_and(|kind| kind.contains("in-progress"));
        (!unsettled).then_some((status, value))
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let (started, key) = (Instant::now(), Uuid::new_v4().to_string());
        loop {
            if let Some(answer) = self.try_call(method.clone(), path, &key, &body).await {
                return answer;
            }
            assert!(started.elapsed() < STEP, "{method} {path} was never answered");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn get(&self, path: &str) -> Value {
        let (status, value) = self.call(Method::GET, path, Value::Null).await;
        assert!(status.is_success(), "GET {path}: {status} {value}");
        value
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let (status, value) = self.call(Method::POST, path, with_terms(path, body, &Brand::default())).await;
        assert!(status.is_success(), "POST {path}: {status} {value}");
        value
    }

    async fn until(&self, what: &str, path: &str, so: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let seen = self.get(path).await;
            if so(&seen) {
                return seen;
            }
            assert!(started.elapsed() < STEP, "{what}: {path} is {seen}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Signs up; where the answer was lost, signs in.
    async fn join(&mut self) {
        let login = json!({ "email": "buyer@example.org", "password": "a long enough password" });
        let (status, mut session) = self.call(Method::POST, "/api/auth/sign-up", login.clone()).await;
        if !status.is_success() {
            session = self.post("/api/auth/sign-in", login).await;
        }
        session["token"].as_str().unwrap().clone_into(&mut self.token);
        let token = self.post("/api/auth/tokens", json!({ "name": "story" })).await;
        token["token"].as_str().expect("a token is shown once, and was").clone_into(&mut self.token);
    }

    async fn pay_in(&self, cents: i64) {
        let before = self.get("/api/billing/account").await["available_cents"].as_i64().unwrap();
        let topup = self.post("/api/billing/topups", json!({ "amount_cents": cents })).await;
        let path = format!("/api/billing/topups/{}", topup["id"].as_str().unwrap());
        let quoted = self
            .until("a quote", &path, |topup| topup["pay_page_url"].is_string() || topup["status"] == "failed")
            .await;
        let page = quoted["pay_page_url"].as_str().unwrap_or_else(|| panic!("not quoted: {quoted}")).to_owned();
        let started = Instant::now();
        loop {
            // Its buttons are gone once the payer has paid.
            if let Ok(answer) = self.http.get(&page).send().await
                && answer.text().await.is_ok_and(|html| html.contains("/exact"))
            {
                let _pressed_again_if_it_was_lost = self.http.post(format!("{page}/exact")).send().await;
            }
            let topup = self.get(&path).await;
            if topup["credited_cents"].as_i64().is_some_and(|credited| credited > 0) {
                assert_eq!(topup["credited_cents"], cents, "{topup}");
                break;
            }
            assert!(started.elapsed() < STEP, "never credited: {topup}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let after = self.get("/api/billing/account").await;
        let (available, reserved) =
            (after["available_cents"].as_i64().unwrap(), after["reserved_cents"].as_i64().unwrap());
        assert!(available <= before + cents && reserved >= 0, "{after}");
    }

    async fn advance_to(&self, at: jiff::Timestamp) {
        let started = Instant::now();
        loop {
            let now: jiff::Timestamp = self.get("/api/trial/clock").await["now"].as_str().unwrap().parse().unwrap();
            if now >= at {
                return;
            }
            let seconds = at.duration_since(now).as_secs() + 1;
            // Where the answer is lost the clock may have moved: it is read again, not moved again.
            let key = Uuid::new_v4().to_string();
            self.try_call(Method::POST, "/api/trial/clock", &key, &json!({ "seconds": seconds })).await;
            assert!(started.elapsed() < STEP, "the clock does not move");
        }
    }

    /// One box from order to wipe, and the balance to the cent after each step.
    async fn story(&self) {
        let available = async |expected: i64| {
            let what = format!("the balance is {expected}");
            self.until(&what, "/api/billing/account", |account| {
                account["available_cents"] == expected && account["reserved_cents"] == 0
            })
            .await;
        };
        self.pay_in(1500).await;
        let plans = self.get("/api/seedbox/plans").await;
        let plan = plans.as_array().unwrap().iter().find(|plan| plan["code"] == "small").unwrap();
        let order = self.post("/api/seedbox/orders", json!({ "plan_id": plan["id"] })).await;
        let order = format!("/api/seedbox/orders/{}", order["id"].as_str().unwrap());
        let order = self.until("fulfilled", &order, |order| order["status"] == "fulfilled").await;
        let path = format!("/api/seedbox/resources/{}", order["resource_id"].as_str().unwrap());
        let resource = self.until("active", &path, |resource| resource["status"] == "active").await;
        available(0).await;

        let due: jiff::Timestamp = resource["paid_until"].as_str().unwrap().parse().unwrap();
        self.advance_to(due + Duration::from_secs(60)).await;
        self.until("past due", &path, |resource| !resource["past_due_since"].is_null()).await;
        // The final warning counts from when it was handed over, which a kill may delay.
        let mut at = due + Duration::from_secs(2 * 86_400);
        let started = Instant::now();
        while self.get(&path).await["status"] != "suspended" {
            at += Duration::from_secs(12 * 3600);
            self.advance_to(at).await;
            tokio::time::sleep(Duration::from_millis(1500)).await;
            assert!(started.elapsed() < STEP, "never suspended");
        }
        let suspended = self.get(&path).await;
        let arrears = suspended["arrears_cents"].as_i64().unwrap();
        assert!((96..=161).contains(&arrears), "2 or 3 days of 1500: {suspended}");
        self.pay_in(arrears + 1500).await;
        self.until("back", &path, |resource| resource["status"] == "active").await;
        available(0).await;

        self.post(&format!("{path}/rotate-credentials"), json!({})).await;
        self.until("rotated", &path, |resource| resource["operations"].as_array().unwrap().is_empty()).await;
        let label = resource["label"].clone();
        self.post(&format!("{path}/terminate"), json!({ "confirm_label": label })).await;
        let gone = self.until("wiped", &path, |resource| resource["status"] == "terminated").await;
        assert!(gone["wipe_certificate"].is_object());
        available(0).await;
    }
}

/// Numbers that follow from a seed, so that a run can be repeated as far as the machine allows.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn boxes_left(data: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(data.join("boxes")).unwrap().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.'))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_moments_nothing_is_lost_or_done_twice() {
    let seed = std::env::var("SEEDPLANE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        u64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()).unwrap()
    });
    println!("SEEDPLANE_TEST_SEED={seed}");
    let folder = temporary("crash");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server { data: folder.join("data"), address: format!("127.0.0.1:{port}"), log: folder.join("log") };
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap();
    let mut buyer = Buyer { http, base: format!("http://{}", server.address), token: String::new() };
    let mut child = server.start();
    check(&server, &mut child, 0).await;
    buyer.join().await;

    let (stop, told) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let telling = tokio::spawn({
        let (stop, told) = (Arc::clone(&stop), Arc::clone(&told));
        async move {
            while !stop.load(Ordering::Relaxed) || told.load(Ordering::Relaxed) == 0 {
                buyer.story().await;
                told.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let mut dice = Dice(seed | 1);
    let mut before = Vec::new();
    for kill in 1..=KILLS {
        // Some die while they start, most while they work.
        let wait = Duration::from_millis(300 + dice.below(4_500));
        tokio::time::sleep(wait).await;
        if telling.is_finished() {
            break;
        }
        before.extend(server.kill(child).await);
        child = server.start();
        // Every other time it is let come up, and looked at.
        if kill % 2 == 0 || kill == KILLS {
            check(&server, &mut child, kill).await;
            let left: Vec<Process> = before.drain(..).filter(|process| lives(*process)).collect();
            assert!(left.is_empty(), "{left:?} are left of an earlier start after kill {kill}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    telling.await.expect("the story goes on through every kill");
    check(&server, &mut child, KILLS).await;
    println!("{} stories told through {KILLS} kills", told.load(Ordering::Relaxed));
    assert_eq!(boxes_left(&server.data), [""; 0], "every box was wiped");
    let clients = descendants(i32::try_from(child.id()).unwrap());
    assert!(clients.iter().all(|(_, name)| !name.starts_with("qbittorrent")), "{clients:?}");
    // Stopped as a user would, it leaves no process.
    let below = descendants(i32::try_from(child.id()).unwrap());
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    child.wait().unwrap();
    for (process, name) in below {
        assert!(!lives(process), "{name} is left after a clean stop");
    }
    let _ = std::fs::remove_dir_all(&folder);
}
