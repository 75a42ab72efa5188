//! The trial as its users run it, `seedplane up`, with its sandbox gateway at work and commands given beside it.

use std::{
    io::BufRead,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use reqwest::Method;
use seedplane::brand::Brand;
use serde_json::{Value, json};

use crate::support::{PATIENCE, temporary, with_terms};

/// Runs a command of the binary on a data folder, with something on its standard input.
pub fn command(data: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_seedplane"))
        .args(arguments)
        .arg("--data-dir")
        .arg(data)
        .env_remove("DATABASE_URL")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// What a command said, on both of its outputs.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The trial, as a process.
pub struct Trial {
    process: Child,
    pub data: PathBuf,
    pub base: String,
    pub http: reqwest::Client,
}

impl Trial {
    pub fn start(listen: &str) -> Self {
        Self::start_in(temporary("trial").join("data"), listen)
    }

    pub fn start_in(data: PathBuf, listen: &str) -> Self {
        Self::start_with(data, &["--listen", listen])
    }

    pub fn start_with(data: PathBuf, arguments: &[&str]) -> Self {
        let log = std::fs::File::create(data.with_extension("log")).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_seedplane"))
            .arg("up")
            .args(arguments)
            .arg("--data-dir")
            .arg(&data)
            .env_remove("DATABASE_URL")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(process.stdout.take().unwrap()).lines();
        let base = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("ready: ").map(str::to_owned));
        let base = base.unwrap_or_else(|| {
            panic!("it did not start:\n{}", std::fs::read_to_string(data.with_extension("log")).unwrap())
        });
        Self { process, data, base, http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data.with_extension("log")).unwrap()
    }

    pub async fn call(&self, token: Option<&str>, method: Method, path: &str, body: Option<Value>) -> Value {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.base));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&with_terms(path, body, &Brand::default()));
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{method} {path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    }

    pub async fn sign_up(&self) -> String {
        let email = format!("{}@example.org", uuid::Uuid::new_v4().simple());
        let body = json!({ "email": email, "password": "a long enough password" });
        let session = self.call(None, Method::POST, "/api/auth/sign-up", Some(body)).await;
        session["token"].as_str().unwrap().to_owned()
    }

    /// Waits until what is at a path is so.
    pub async fn until(&self, token: &str, path: &str, so: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let value = self.call(Some(token), Method::GET, path, None).await;
            if so(&value) {
                return value;
            }
            assert!(started.elapsed() < PATIENCE, "{path} is still {value}");
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    }

    /// Presses a button of a top-up's pay page.
    pub async fn press(&self, topup: &Value, button: &str) {
        let page = topup["pay_page_url"].as_str().unwrap();
        assert!(page.starts_with(&self.base), "{page} is not on {}", self.base);
        let pressed = self.http.post(format!("{page}/{button}")).send().await.unwrap();
        assert!(pressed.status().is_success() || pressed.status().is_redirection(), "{}", pressed.status());
    }

    /// Opens a top-up and presses a button of its pay page; answers the top-up's path.
    pub async fn pay(&self, token: &str, cents: i64, button: &str) -> String {
        let body = json!({ "amount_cents": cents });
        let topup = self.call(Some(token), Method::POST, "/api/billing/topups", Some(body)).await;
        self.press(&topup, button).await;
        format!("/api/billing/topups/{}", topup["id"].as_str().unwrap())
    }

    pub async fn stop(&mut self) {
        if self.process.try_wait().unwrap().is_none() {
            let _ = Command::new("kill").args(["-INT", &self.process.id().to_string()]).status();
        }
        let started = Instant::now();
        while self.process.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < PATIENCE, "it does not stop");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn an_over_payment_is_credited_to_the_cent_while_the_gateway_confirms_by_itself() {
    let mut trial = Trial::start("127.0.0.1:0");
    let buyer = trial.sign_up().await;
    // Nobody looks at the top-up: the workers ask by themselves, sooner than the gateway's own monitor confirms.
    let path = trial.pay(&buyer, 1000, "over").await;
    let started = Instant::now();
    loop {
        let account = trial.call(Some(&buyer), Method::GET, "/api/billing/account", None).await;
        if account["paid_cents"].as_i64().unwrap() > 0 {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "not credited; {}", trial.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let topup = trial.call(Some(&buyer), Method::GET, &path, None).await;
    let decimal = |name: &str| {
        topup[name].as_str().unwrap_or_else(|| panic!("{name} of {topup}")).parse::<rust_decimal::Decimal>().unwrap()
    };
    // Half of the quote came on top of it, at the rate of the quote.
    assert_eq!(decimal("received"), (decimal("amount_to_pay") * rust_decimal::Decimal::new(15, 1)).normalize());
    let half = topup["quoted_total_cents"].as_i64().unwrap() / 2;
    let excess = topup["credited_cents"].as_i64().unwrap() - 1000;
    assert!((half - 1..=half + 1).contains(&excess), "{topup}");
    assert!(topup["unresolved_reason"].is_null() && topup["held_cents"] == 0, "{topup}");
    trial.stop().await;
}

#[tokio::test]
async fn a_trial_is_reached_from_elsewhere_and_pays_all_the_same() {
    let mut trial = Trial::start("0.0.0.0:0");
    assert!(trial.log().contains("can be reached from other machines"), "{}", trial.log());
    assert!(trial.base.starts_with("http://127.0.0.1:") && !trial.base.ends_with(":0"), "{}", trial.base);
    let buyer = trial.sign_up().await;
    let path = trial.pay(&buyer, 500, "exact").await;
    let started = Instant::now();
    while trial.call(Some(&buyer), Method::GET, &path, None).await["credited_cents"] != 500 {
        assert!(started.elapsed() < PATIENCE, "not credited; {}", trial.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    trial.stop().await;
}

#[tokio::test]
async fn commands_beside_a_service_make_nothing_and_say_where_nothing_is() {
    let folder = temporary("nothing");
    let data = folder.join("data");
    let box_id = uuid::Uuid::now_v7().to_string();
    for arguments in [
        vec!["audit", "verify"],
        vec!["operator", "create", "o@example.org"],
        vec!["operator", "hold", &box_id, "--reason", "x", "--operator", "o@example.org"],
        vec!["secrets", "rotate-key"],
    ] {
        let output = command(&data, &arguments, "a long enough password\n");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", said(&output));
        assert!(
            said(&output).contains(&format!("no Seedplane installation in {}", data.display())),
            "{}",
            said(&output)
        );
        assert!(!data.exists(), "{arguments:?} made {}", data.display());
    }
    // Nor in a database of one's own that holds none.
    let url = crate::support::empty_database().await;
    let output = Command::new(env!("CARGO_BIN_EXE_seedplane"))
        .args(["audit", "verify", "--data-dir"])
        .arg(&data)
        .env("DATABASE_URL", &url)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("holds no Seedplane installation"), "{}", said(&output));
    let tables: i64 = sqlx::query_scalar("select count(*) from pg_tables where schemaname = 'public'")
        .fetch_one(&sqlx::PgPool::connect(&url).await.unwrap())
        .await
        .unwrap();
    assert_eq!(tables, 0);
    assert!(!data.exists());
}

#[tokio::test]
async fn what_was_compared_with_no_copy_is_not_called_unaltered() {
    let mut trial = Trial::start("127.0.0.1:0");
    trial.sign_up().await;
    let (data, copy) = (trial.data.clone(), trial.data.join("audit-checkpoints.jsonl"));
    let started = Instant::now();
    while std::fs::read_to_string(&copy).unwrap_or_default().lines().count() < 2 {
        assert!(started.elapsed() < PATIENCE, "two checkpoints are not exported");
        trial.sign_up().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let verify = |more: &[&str]| command(&data, &[&["audit", "verify"], more].concat(), "");
    let whole = verify(&[]);
    assert_eq!(whole.status.code(), Some(0), "beside the running service: {}", said(&whole));
    trial.stop().await;
    let whole = verify(&[]);
    assert!(whole.status.success() && said(&whole).contains(": unaltered\n"), "{}", said(&whole));

    let text = std::fs::read_to_string(&copy).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let first = format!("{}\n", lines[0]);
    let torn = format!("{first}{}", &lines[1][..20]);
    let damaged = text.replacen(&lines[0][..5], "#####", 1);
    let gap = format!("{}\n", lines[1]);
    for (what, content, code, words, named_code) in [
        ("missing", None, 2, "NOT PROVED", 1),
        ("empty", Some(""), 2, "NOT PROVED", 2),
        ("damaged", Some(damaged.as_str()), 1, "line 1 is no checkpoint", 1),
        ("short", Some(first.as_str()), 0, "as far as the copy reaches; it ends at checkpoint 1 of", 0),
        ("torn at its end", Some(torn.as_str()), 0, "as far as the copy reaches; it ends at checkpoint 1 of", 0),
        ("with a gap", Some(gap.as_str()), 2, "checkpoint 1 is missing from the copy", 2),
    ] {
        match content {
            None => std::fs::remove_file(&copy).unwrap(),
            Some(content) => std::fs::write(&copy, content).unwrap(),
        }
        let own = verify(&[]);
        assert_eq!(own.status.code(), Some(code), "{what}: {}", said(&own));
        assert!(said(&own).contains(words) && !said(&own).contains(": unaltered\n"), "{what}: {}", said(&own));
        let named = verify(&["--checkpoints", copy.to_str().unwrap()]);
        assert_eq!(named.status.code(), Some(named_code), "{what}, named: {}", said(&named));
    }
    std::fs::write(&copy, &torn).unwrap();
    // A line that was cut short is written again, whole, by the next export.
    let mut trial = Trial::start_in(data.clone(), "127.0.0.1:0");
    trial.sign_up().await;
    let started = Instant::now();
    while std::fs::read_to_string(&copy).unwrap().lines().count() <= lines.len() {
        assert!(started.elapsed() < PATIENCE, "no checkpoint is exported");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    trial.stop().await;
    let whole = verify(&[]);
    assert!(whole.status.success() && said(&whole).contains(": unaltered\n"), "{}", said(&whole));
}

#[tokio::test]
async fn an_operator_holds_suspends_and_ends_a_box_from_the_command_line() {
    let mut trial = Trial::start("127.0.0.1:0");
    let buyer = trial.sign_up().await;
    let paid = trial.pay(&buyer, 1500, "exact").await;
    let until = async |path: &str, so: &dyn Fn(&Value) -> bool| {
        let started = Instant::now();
        loop {
            let seen = trial.call(Some(&buyer), Method::GET, path, None).await;
            if so(&seen) {
                return seen;
            }
            assert!(started.elapsed() < PATIENCE, "{path}: {seen}; {}", trial.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    until(&paid, &|topup| topup["credited_cents"] == 1500).await;
    let plans = trial.call(None, Method::GET, "/api/seedbox/plans", None).await;
    let body = json!({ "plan_id": plans[0]["id"] });
    let order = trial.call(Some(&buyer), Method::POST, "/api/seedbox/orders", Some(body)).await;
    let id = order["resource_id"].as_str().unwrap().to_owned();
    let path = format!("/api/seedbox/resources/{id}");
    until(&path, &|resource| resource["status"] == "active").await;

    let operator = "operator@example.org";
    let made = command(&trial.data, &["operator", "create", operator], "a long enough password\n");
    assert!(made.status.success(), "{}", said(&made));
    let operate = |action: &str, more: &[&str], reason: &str| {
        let all = [&["operator", action, &id, "--operator", operator, "--reason", reason], more].concat();
        command(&trial.data, &all, "")
    };
    for (days, code) in [("4294967295", 2), ("3651", 2), ("-1", 2), ("3650", 0)] {
        let held = operate("hold", &["--days", days], "looking into it");
        assert_eq!(held.status.code(), Some(code), "{days}: {}", said(&held));
        assert!(!said(&held).contains("panicked"), "{}", said(&held));
    }
    assert!(!until(&path, &|_| true).await["hold_until"].is_null());
    let long = operate("hold", &["--days", "1"], &"x".repeat(1001));
    assert!(long.status.code() == Some(1) && said(&long).contains("1 to 1000 characters"), "{}", said(&long));
    let ended = operate("terminate", &["--confirm", "Small"], "asked for");
    assert!(ended.status.code() == Some(1) && said(&ended).contains("release the hold first"), "{}", said(&ended));
    assert!(operate("hold", &["--days", "0"], "looked into it").status.success());

    let suspended = operate("suspend", &[], "asked for");
    assert!(suspended.status.success(), "{}", said(&suspended));
    until(&path, &|resource| resource["status"] == "suspended" && resource["suspend_reason"] == "operator").await;
    let wrong = operate("terminate", &["--confirm", "small"], "asked for");
    assert!(wrong.status.code() == Some(1) && said(&wrong).contains("nothing was ended"), "{}", said(&wrong));
    let ended = operate("terminate", &["--confirm", "Small"], "asked for");
    assert!(ended.status.success(), "{}", said(&ended));
    let gone = until(&path, &|resource| resource["status"] == "terminated").await;
    assert_eq!(gone["wipe_certificate"]["finished_at"], gone["terminated_at"]);
    trial.stop().await;
}

#[tokio::test]
async fn providers_and_drift_are_shown_on_the_command_line() {
    let mut trial = Trial::start("127.0.0.1:0");
    let run = |arguments: &[&str]| command(&trial.data, arguments, "");
    let listed = run(&["provider", "list"]);
    assert!(listed.status.success(), "{}", said(&listed));
    for words in ["local  answers", "0 active", "torrents: allowed", "50 GB"] {
        assert!(said(&listed).contains(words), "{words}: {}", said(&listed));
    }
    let clean = run(&["drift", "--now"]);
    assert_eq!(clean.status.code(), Some(0), "{}", said(&clean));
    assert!(
        said(&clean).contains("no drift was found") && said(&clean).contains("local: compared"),
        "{}",
        said(&clean)
    );

    // As an earlier look would have left it.
    let url = seedplane::postgres::running_url(&trial.data).unwrap();
    let owner = sqlx::PgPool::connect(&url).await.unwrap();
    sqlx::query(
        "insert into drift_findings (id, provider, kind, subject, resource_ref, monthly_cost_cents, detail, proposal, first_seen_at, last_seen_at)
         values (gen_random_uuid(), 'local', 'unknown_upstream', 'machine:x', 'x', 1234, E'a box of \x1b[2J nobody', 'delete it', now(), now())",
    )
    .execute(&owner)
    .await
    .unwrap();
    owner.close().await;
    let drift = run(&["drift"]);
    assert_eq!(drift.status.code(), Some(1), "{}", said(&drift));
    for words in ["unknown_upstream", "-> delete it", "1 found, together $12.34 a month"] {
        assert!(said(&drift).contains(words), "{words}: {}", said(&drift));
    }
    assert!(!drift.stdout.contains(&0x1b), "others' words do not move the cursor");
    let json = run(&["drift", "--json", "--provider", "local"]);
    let report: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((json.status.code(), &report["total_monthly_cost_cents"]), (Some(1), &json!(1234)));
    assert_eq!(run(&["drift", "--now"]).status.code(), Some(0), "looked at again, it is not there");

    let made = command(&trial.data, &["operator", "create", "o@example.org"], "a long enough password\n");
    assert!(made.status.success(), "{}", said(&made));
    let mark = |action: &str, reason: &str| {
        run(&["provider", action, "local", "--reason", reason, "--operator", "o@example.org"])
    };
    let short = mark("permit", "yes");
    assert!(short.status.code() == Some(1) && said(&short).contains("10 characters"), "{}", said(&short));
    let permitted = mark("permit", "it is our own machine");
    assert!(said(&permitted).contains("permitted everywhere: it is our own machine"), "{}", said(&permitted));
    let forbidden = mark("forbid", "it was somebody else's");
    assert!(forbidden.status.success() && !said(&forbidden).contains("permitted"), "{}", said(&forbidden));
    trial.stop().await;
    // Nobody works: what the last look found is shown, and a new one is not waited for in vain for ever.
    assert_eq!(command(&trial.data, &["drift"], "").status.code(), Some(0));
}

#[tokio::test]
async fn metrics_are_served_at_their_own_port_and_nowhere_else() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let metrics = format!("127.0.0.1:{port}");
    let data = temporary("metrics").join("data");
    let mut trial = Trial::start_with(data, &["--listen", "127.0.0.1:0", "--metrics-listen", &metrics]);
    trial.sign_up().await;
    let shown = trial.http.get(format!("http://{metrics}/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(shown.contains("seedplane_request_seconds") && shown.contains("/api/auth/sign-up"), "{shown}");
    assert!(!shown.contains("@example.org"), "metrics are about nobody");
    let outside = trial.http.get(format!("{}/metrics", trial.base)).send().await.unwrap();
    assert_eq!(outside.status(), reqwest::StatusCode::NOT_FOUND);
    trial.stop().await;
}
