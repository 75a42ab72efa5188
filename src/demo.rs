//! `seedplane demo`: the whole story, told over the public API of a trial in a fresh folder, with the proof at each step.

use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use seedplane_provisioning::{
    Credentials,
    node::qbittorrent::{ApiError, Session},
};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::{config::Flags, money::Usd, runtime::stop_signal};

/// What can be set.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Stop at the end, on a terminal too
    #[arg(long)]
    exit: bool,
    /// Keep the data folder after the end
    #[arg(long)]
    keep: bool,
}

mod byos;
pub mod seeding;

const DAY: i64 = 86_400;

/// A text without its quotes.
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// Cents as dollars.
fn dollars(value: &Value) -> String {
    Usd::from_cents(value.as_i64().unwrap_or_default()).to_string()
}

/// A time to the minute.
fn minute(value: &Value) -> String {
    text(value).get(..16).unwrap_or("?").replace('T', " ")
}

/// Tells the story. Fails at the first step that does.
///
/// # Errors
/// Which step failed, and why.
pub async fn run(options: Options, flags: &Flags) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let folder = match &flags.data_dir {
        Some(folder) => PathBuf::from(folder),
        None => std::env::temp_dir().join(format!("seedplane-demo-{}", std::process::id())),
    };
    ensure!(!folder.exists(), "{} exists; the demo wants a fresh folder", folder.display());
    std::fs::create_dir_all(&folder)?;
    let secrets = match std::env::var_os("SEEDPLANE_DEMO_SECRETS") {
        Some(file) => Some(secrets_file(Path::new(&file), &folder)?),
        None => None,
    };
    let stay = std::io::stdout().is_terminal() && !options.exit;
    let mut story = Story::begin(&folder, secrets)?;
    // Ends what it started and removes its folder however it is told to stop.
    let told = tokio::select! {
        told = story.tell() => Some(told),
        () = stop_signal() => None,
    };
    match &told {
        Some(Ok(())) => {
            story.say(&format!("\nDone in {:.1} s. Every step above was checked.", started.elapsed().as_secs_f32()));
            if stay {
                let (buyer, operator) = story.links().await?;
                story.say(&format!(
                    "\nIt is still running. Open:\n  {buyer}\n    the buyer, with a box that runs and the history of one that ended\n  \
                     {operator}\n    the operator\n  {0}/trial/inbox\n    every mail it sent\n  {0}/docs\n    the API, to read and to try\n\
                     \nEach of the first two signs you in once. Ctrl-C stops it and removes {1}.",
                    story.base,
                    folder.display()
                ));
                stop_signal().await;
            }
        }
        Some(Err(error)) => {
            story.say(&format!("\nFAILED: {error:#}\nThe log is {}", folder.join("demo.log").display()));
        }
        None => story.say("\nStopping; what was started is ended."),
    }
    story.end().await;
    let failed = matches!(told, Some(Err(_)));
    if !failed && !options.keep {
        std::fs::remove_dir_all(&folder).with_context(|| format!("{} cannot be removed", folder.display()))?;
    }
    Ok(match told {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(_)) => ExitCode::FAILURE,
        None => ExitCode::from(130),
    })
}

/// Where a test has every secret of the story written down, to look for them in what the story leaves behind. For that
/// alone, and for the demo alone: outside its folder, new, and for nobody else to read.
fn secrets_file(file: &Path, folder: &Path) -> anyhow::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    ensure!(!file.starts_with(folder), "SEEDPLANE_DEMO_SECRETS names a file in the data folder; nothing was started");
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .with_context(|| format!("SEEDPLANE_DEMO_SECRETS: {} cannot be made", file.display()))
}

/// This program as a child, without the settings that this process was given: the story is that of an installation with none.
fn ourselves() -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("SEEDPLANE_")
            || name.starts_with("COINPAYPORTAL_")
            || name.starts_with("VAULT_")
            || matches!(&*name, "DATABASE_URL" | "SMTP_URL" | "MAIL_FROM")
        {
            command.env_remove(&*name);
        }
    }
    Ok(command)
}

/// Has the kernel interrupt this child when the thread that started it ends, whatever ended it. In a process group of its
/// own, so that a Ctrl-C at the terminal reaches it once, from us.
#[allow(unsafe_code, reason = "prctl(2) in the child is the only way to tie its life to ours")]
fn tie_to_us(command: &mut Command) {
    command.process_group(0);
    // SAFETY: prctl is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGINT) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
}

struct Story {
    http: reqwest::Client,
    base: String,
    folder: PathBuf,
    server: Child,
    spinner: ProgressBar,
    token: Option<String>,
    secrets: Option<std::fs::File>,
    step: Instant,
    steps: u32,
    /// E-mail address and password of everybody in the story, for the links at its end.
    people: Vec<(&'static str, String)>,
}

/// Long enough for a busy machine; nothing in the story takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(60);

impl Story {
    /// Starts the trial as its own process, as a user would.
    fn begin(folder: &Path, secrets: Option<std::fs::File>) -> anyhow::Result<Self> {
        let spinner = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        spinner.set_style(ProgressStyle::with_template("  {spinner} {msg} ({elapsed})").expect("a fixed template"));
        spinner.enable_steady_tick(Duration::from_millis(120));
        spinner.set_message("starting the trial: database, server, workers");
        let step = Instant::now();
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = std::fs::File::create(folder.join("demo.log"))?;
        let mut command = ourselves()?;
        tie_to_us(&mut command);
        let server = command
            .args(["up", "--listen", &format!("127.0.0.1:{port}"), "--data-dir"])
            .arg(folder.join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build()?;
        let base = format!("http://127.0.0.1:{port}");
        Ok(Self {
            http,
            base,
            folder: folder.to_owned(),
            server,
            spinner,
            token: None,
            secrets,
            step,
            steps: 0,
            people: Vec::new(),
        })
    }

    async fn started(&mut self) -> anyhow::Result<()> {
        loop {
            if let Ok(answer) = self.http.get(format!("{}/readyz", self.base)).send().await
                && answer.status().is_success()
            {
                break;
            }
            if let Some(status) = self.server.try_wait()? {
                let log = std::fs::read_to_string(self.folder.join("demo.log")).unwrap_or_default();
                bail!("the trial did not start ({status}):\n{log}");
            }
            ensure!(self.step.elapsed() < PATIENCE, "the trial did not start in {} s", PATIENCE.as_secs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.done("The trial is up", "its own Postgres, server and workers in one process; everything in one folder");
        Ok(())
    }

    /// Writes a secret down for the test that looks for it.
    fn note(&self, what: &str, secret: &str) -> anyhow::Result<()> {
        if let Some(mut file) = self.secrets.as_ref() {
            writeln!(file, "{what}\t{secret}")?;
        }
        Ok(())
    }

    async fn end(&mut self) {
        self.spinner.set_message("stopping");
        if let Some(pid) = self.server.id() {
            // The way a user stops it: a signal, and a clean end.
            let _ = Command::new("kill").args(["-INT", &pid.to_string()]).status().await;
            let _ = tokio::time::timeout(Duration::from_secs(20), self.server.wait()).await;
        }
        let _ = self.server.kill().await;
        self.spinner.finish_and_clear();
    }

    #[allow(clippy::print_stdout, reason = "the story is told on standard output")]
    fn say(&self, text: &str) {
        self.spinner.suspend(|| {
            println!("{text}");
            let _ = std::io::stdout().flush();
        });
    }

    /// Ends a step: what happened, how long it took, and the proof.
    fn done(&mut self, what: &str, proof: &str) {
        self.steps += 1;
        let took = self.step.elapsed().as_secs_f32();
        self.say(&format!("{:>2}. {what:<54} {took:>5.1} s\n      {proof}", self.steps));
        self.step = Instant::now();
        self.spinner.reset_elapsed();
        self.spinner.set_message("...");
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<(StatusCode, Value)> {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if method == Method::POST {
            request = request.header("idempotency-key", uuid::Uuid::new_v4().to_string());
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.with_context(|| format!("{method} {path}"))?;
        let status = response.status();
        let text = response.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    async fn ok(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let (status, answer) = self.call(method.clone(), path, body).await?;
        ensure!(status.is_success(), "{method} {path} was answered {status}: {answer}");
        Ok(answer)
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ok(Method::GET, path, None).await
    }

    async fn post(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        self.ok(Method::POST, path, Some(body)).await
    }

    /// Orders a box, and accepts the terms with it.
    async fn order(&self, plan: &Value) -> anyhow::Result<Value> {
        let terms = self.get("/api/terms").await?;
        self.post("/api/seedbox/orders", json!({ "plan_id": plan["id"], "terms_version": terms["version"] })).await
    }

    /// Asks again until it is so.
    async fn until(&self, what: &str, path: &str, so: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        self.spinner.set_message(what.to_owned());
        let started = Instant::now();
        loop {
            let seen = self.get(path).await?;
            if so(&seen) {
                return Ok(seen);
            }
            ensure!(started.elapsed() < PATIENCE, "{what}: not after {} s; last seen: {seen}", PATIENCE.as_secs());
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    }

    async fn advance(&self, seconds: i64) -> anyhow::Result<String> {
        let clock = self.post("/api/trial/clock", json!({ "seconds": seconds })).await?;
        Ok(clock["now"].as_str().unwrap_or_default()[..10].to_owned())
    }

    /// Presses a button of the sandbox gateway's pay page.
    async fn pay(&self, topup: &Value, button: &str) -> anyhow::Result<()> {
        let page = topup["pay_page_url"].as_str().context("the top-up has a page to pay at")?;
        let html = self.http.get(page).send().await?.error_for_status()?.text().await?;
        ensure!(html.contains("SANDBOX"), "the pay page does not say that it is a sandbox");
        let response = self.http.post(format!("{page}/{button}")).send().await?;
        ensure!(
            response.status().is_success() || response.status().is_redirection(),
            "the button '{button}' was answered {}",
            response.status()
        );
        Ok(())
    }

    /// Looks at a top-up, as a payer does, until it is credited.
    async fn credited(&self, topup: &Value) -> anyhow::Result<()> {
        let path = format!("/api/billing/topups/{}", text(&topup["id"]));
        self.until("the payment is credited", &path, |topup| topup["credited_cents"] != 0).await?;
        Ok(())
    }

    async fn mails(&self, subject: &str) -> anyhow::Result<usize> {
        let inbox = self.http.get(format!("{}/trial/inbox", self.base)).send().await?.text().await?;
        Ok(inbox.matches(subject).count())
    }

    async fn until_mail(&self, subject: &str) -> anyhow::Result<()> {
        self.spinner.set_message(format!("waiting for the mail '{subject}'"));
        let started = Instant::now();
        while self.mails(subject).await? == 0 {
            ensure!(started.elapsed() < PATIENCE, "no mail '{subject}' came");
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        Ok(())
    }

    async fn tell(&mut self) -> anyhow::Result<()> {
        self.started().await?;
        let (id, web_url) = self.buy().await?;
        let login = self.use_box(&id, &web_url).await?;
        let login = self.live_and_lapse(&id, &web_url, login).await?;
        self.connect_a_server().await?;
        self.finish(&id, &web_url, login).await
    }

    /// Sign up, order, pay short and then the rest.
    async fn buy(&mut self) -> anyhow::Result<(String, String)> {
        let email = "buyer@example.org";
        let password = hex::encode(rand::random::<[u8; 12]>());
        let session = self.post("/api/auth/sign-up", json!({ "email": email, "password": password })).await?;
        self.token = session["token"].as_str().map(str::to_owned);
        self.note("sign-in password", &password)?;
        self.people.push((email, password.clone()));
        self.note("session token", text(&session["token"]))?;
        // A session ends after two weeks, and the story goes on for months: an API token does not.
        let token = self.post("/api/auth/tokens", json!({ "name": "demo" })).await?;
        self.token = token["token"].as_str().map(str::to_owned);
        self.note("API token", text(&token["token"]))?;
        let plans = self.get("/api/seedbox/plans").await?;
        self.done("Signed up", &format!("{email}; {} plans on sale", plans.as_array().map_or(0, Vec::len)));

        let plan = &plans[0];
        let order = self.order(plan).await?;
        ensure!(
            order["status"] == "awaiting_payment" && order["resource_id"].is_null(),
            "an unpaid order has no box: {order}"
        );
        let order_id = order["id"].as_str().unwrap_or_default().to_owned();
        self.done(
            "Ordered a box",
            &format!(
                "{} for {} a month; awaiting payment, and no box exists",
                text(&plan["name"]),
                dollars(&plan["price_cents"])
            ),
        );

        let topup = self.post("/api/billing/topups", json!({ "amount_cents": 1500, "order_id": order_id })).await?;
        let topup_path = format!("/api/billing/topups/{}", topup["id"].as_str().unwrap_or_default());
        self.pay(&topup, "short").await?;
        let short = self.until("a short payment is seen", &topup_path, |topup| topup["status"] == "detected").await?;
        let account = self.get("/api/billing/account").await?;
        let order = self.get(&format!("/api/seedbox/orders/{order_id}")).await?;
        ensure!(
            account["available_cents"] == 0 && order["status"] == "awaiting_payment",
            "a short payment credits nothing"
        );
        self.done(
            "Paid too little: nothing credited",
            &format!(
                "received {} of {} {}, {} missing; balance 0; still awaiting payment",
                text(&short["received"]),
                text(&short["amount_to_pay"]),
                text(&short["coin"]),
                text(&short["missing"]),
            ),
        );

        let paid_at = Instant::now();
        self.pay(&topup, "exact").await?;
        self.credited(&topup).await?;
        let order = self
            .until("the order is fulfilled", &format!("/api/seedbox/orders/{order_id}"), |order| {
                order["status"] == "fulfilled"
            })
            .await?;
        let id = order["resource_id"].as_str().context("a paid order has a box")?.to_owned();
        let resource = self.get(&format!("/api/seedbox/resources/{id}")).await?;
        ensure!(resource["status"] == "active", "the box is {}", resource["status"]);
        let web_url = resource["web_url"].as_str().context("an active box has an address")?.to_owned();
        let seconds = paid_at.elapsed().as_secs_f32();
        ensure!(seconds < 30.0, "from payment to web interface took {seconds} s");
        self.done("Paid the rest: box active", &format!("{web_url} answers {seconds:.1} s after the payment"));
        Ok((id, web_url))
    }

    async fn login(&self, web_url: &str, login: &Credentials) -> Result<Session, ApiError> {
        Session::login(web_url, login).await
    }

    async fn credentials(&self, id: &str) -> anyhow::Result<Credentials> {
        let shown = self.post(&format!("/api/seedbox/resources/{id}/credentials"), json!({})).await?;
        self.note("box password", text(&shown["password"]))?;
        Ok(Credentials {
            username: shown["login_name"].as_str().unwrap_or_default().to_owned(),
            password: SecretString::from(shown["password"].as_str().unwrap_or_default().to_owned()),
        })
    }

    /// The delivered password works, once shown; a torrent is really seeded.
    async fn use_box(&mut self, id: &str, web_url: &str) -> anyhow::Result<Credentials> {
        let login = self.credentials(id).await?;
        let (again, _) =
            self.call(Method::POST, &format!("/api/seedbox/resources/{id}/credentials"), Some(json!({}))).await?;
        ensure!(again == StatusCode::CONFLICT, "a password is shown once; the second time was answered {again}");
        let session = self.login(web_url, &login).await?;
        let version = session.version().await?;
        let wrong = Credentials { password: SecretString::from("wrong"), ..login.clone() };
        ensure!(matches!(self.login(web_url, &wrong).await, Err(ApiError::BadLogin)), "a wrong password was let in");
        self.done(
            "Logged in with the delivered password",
            &format!("qBittorrent {version}; a wrong password is refused; the password is shown once"),
        );
        self.seed(id, &session).await?;
        Ok(login)
    }

    /// Has the box seed a torrent, and shows what that used.
    async fn seed(&mut self, id: &str, session: &Session) -> anyhow::Result<()> {
        self.spinner.set_message("seeding a torrent to another client");
        let data = self.folder.join("data/boxes").join(id).join("data");
        let Some(bytes) = seeding::seed(session, &data, &self.folder.join("fetched")).await? else {
            self.done(
                "A torrent is seeding",
                "aria2c is not on this machine, so that nobody fetched it: `apt-get install aria2`",
            );
            return Ok(());
        };
        self.done("A torrent really seeded", "2,000,000 bytes fetched by another client (aria2) and compared");
        self.spinner.set_message("counting what the box uses");
        // A client writes down what it has transferred when it ends.
        let path = format!("/api/seedbox/resources/{id}");
        self.post(&format!("{path}/restart"), json!({})).await?;
        self.until("the client is restarted", &path, |resource| resource["operations"] == json!([])).await?;
        self.advance(16 * 60).await?;
        let counted = self
            .until("what the box uses is counted", &format!("{path}/usage"), |usage| {
                usage["now"]["sent_bytes"].as_u64() >= Some(bytes)
            })
            .await?;
        self.done(
            "Its usage counted",
            &format!(
                "{} bytes sent since its month began, {} on its disk; the client was restarted by a button",
                counted["now"]["sent_bytes"], counted["now"]["disk_used_bytes"]
            ),
        );
        Ok(())
    }

    /// A month charged, then none left: warned, grace, suspended; paid, with arrears; active again; a new password.
    async fn live_and_lapse(&mut self, id: &str, web_url: &str, login: Credentials) -> anyhow::Result<Credentials> {
        let path = format!("/api/seedbox/resources/{id}");
        let topup = self.post("/api/billing/topups", json!({ "amount_cents": 1500 })).await?;
        self.pay(&topup, "exact").await?;
        self.credited(&topup).await?;
        self.until("the balance is topped up", "/api/billing/account", |account| account["available_cents"] == 1500)
            .await?;
        let first = self.get(&path).await?["paid_until"].clone();
        let today = self.advance(31 * DAY).await?;
        let charged = self.until("the month is charged", &path, |resource| resource["paid_until"] != first).await?;
        let account = self.get("/api/billing/account").await?;
        ensure!(account["available_cents"] == 0, "the month was charged once: {account}");
        self.done(
            "A month later: charged from the balance",
            &format!("it is {today}; paid until {}; balance 0", minute(&charged["paid_until"])),
        );

        let preview = self.get("/api/billing/preview").await?;
        let pay_in = preview["pay_in_cents"].clone();
        for days in [17, 7, 4, 2] {
            self.advance(days * DAY).await?;
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        self.until_mail("seedbox balance lasts").await?;
        let resource = self.until("it falls past due", &path, |resource| !resource["past_due_since"].is_null()).await?;
        ensure!(resource["status"] == "active", "a box past due runs on for its days of grace");
        self.until_mail("is past due").await?;
        let warnings = self.mails("seedbox balance lasts").await?;
        self.done(
            "Warned by mail, then past due and still running",
            &format!(
                "{warnings} warnings of a short balance; the preview had said to pay in {}; past due since {}",
                dollars(&pay_in),
                minute(&resource["past_due_since"]),
            ),
        );

        let mut today = String::new();
        for _ in 0..8 {
            today = self.advance(DAY / 2).await?;
            tokio::time::sleep(Duration::from_millis(700)).await;
            if self.get(&path).await?["status"] != "active" {
                break;
            }
        }
        let suspended = self.until("it is suspended", &path, |resource| resource["status"] == "suspended").await?;
        ensure!(suspended["suspend_reason"] == "billing", "suspended for {}", suspended["suspend_reason"]);
        ensure!(self.mails("Final warning").await? > 0, "no final warning was sent before the suspension");
        ensure!(
            matches!(self.login(web_url, &login).await, Err(ApiError::Unreachable(_))),
            "a suspended box can be reached"
        );
        let arrears = suspended["arrears_cents"].as_i64().unwrap_or_default();
        self.done(
            "Grace over: suspended after a final warning",
            &format!(
                "it is {today}; the login is refused; {} owed for the days it ran unpaid",
                Usd::from_cents(arrears)
            ),
        );

        let price = suspended["price_cents"].as_i64().unwrap_or_default();
        let needed = arrears + price;
        let topup = self.post("/api/billing/topups", json!({ "amount_cents": needed })).await?;
        self.pay(&topup, "exact").await?;
        self.credited(&topup).await?;
        let active = self.until("it comes back", &path, |resource| resource["status"] == "active").await?;
        self.login(web_url, &login).await.context("the same login works again")?;
        let account = self
            .until("the balance is spent", "/api/billing/account", |account| account["reserved_cents"] == 0)
            .await?;
        ensure!(account["available_cents"] == 0, "arrears and one month were taken, to the cent: {account}");
        self.done(
            "Paid arrears and a month: active again",
            &format!(
                "{} taken, balance 0; paid until {}; same login",
                Usd::from_cents(needed),
                minute(&active["paid_until"])
            ),
        );

        let session = self.login(web_url, &login).await?;
        self.post(&format!("{path}/rotate-credentials"), json!({})).await?;
        self.until("the password is replaced", &path, |resource| {
            resource["credentials_shown"] == false && resource["operations"].as_array().is_some_and(Vec::is_empty)
        })
        .await?;
        ensure!(matches!(self.login(web_url, &login).await, Err(ApiError::BadLogin)), "the old password still works");
        ensure!(matches!(session.version().await, Err(ApiError::NoSession)), "an old session still works");
        let login = self.credentials(id).await?;
        self.login(web_url, &login).await.context("the new password works")?;
        self.done("Password rotated", "the old password and the open session are dead; the new one works");
        Ok(login)
    }

    /// Ended and wiped; the audit log verified; the ledger recomputed.
    async fn finish(&mut self, id: &str, web_url: &str, login: Credentials) -> anyhow::Result<()> {
        let path = format!("/api/seedbox/resources/{id}");
        let label = self.get(&path).await?["label"].clone();
        let (refused, _) =
            self.call(Method::POST, &format!("{path}/terminate"), Some(json!({ "confirm_label": "?" }))).await?;
        ensure!(refused == StatusCode::UNPROCESSABLE_ENTITY, "an end without its confirmation was answered {refused}");
        self.post(&format!("{path}/terminate"), json!({ "confirm_label": label })).await?;
        let ended = self.until("it is wiped", &path, |resource| resource["status"] == "terminated").await?;
        ensure!(!self.folder.join("data/boxes").join(id).exists(), "the box's folder is still there");
        ensure!(matches!(self.login(web_url, &login).await, Err(ApiError::Unreachable(_))), "an ended box answers");
        let facts = ended["wipe_certificate"]["facts"].as_array().cloned().unwrap_or_default();
        let proof: Vec<&str> = facts.iter().filter_map(|fact| fact["fact"].as_str()).collect();
        self.done("Ended and wiped, with a certificate", &proof.join("\n      "));
        self.until_mail("certificate").await?;

        let events = self.get(&format!("{path}/events")).await?;
        let events = events.as_array().map_or(0, Vec::len);
        let statement = self.get("/api/billing/statement").await?;
        let lines = statement.as_array().cloned().unwrap_or_default();
        let sum: i64 = lines.iter().filter_map(|line| line["change_cents"].as_i64()).sum();
        let account = self.get("/api/billing/account").await?;
        ensure!(
            account["available_cents"].as_i64() == Some(sum),
            "the statement adds up to {sum}, the balance is {account}"
        );
        self.done(
            "The statement adds up",
            &format!(
                "{} lines make {}, which is the balance; {events} events of the box",
                lines.len(),
                Usd::from_cents(sum)
            ),
        );

        let inbox = self.http.get(format!("{}/trial/inbox", self.base)).send().await?.text().await?;
        for link in inbox.split("/link/").skip(1) {
            self.note("one-time link", link.split(['"', '<', '\n']).next().unwrap_or_default())?;
        }
        let operator = "operator@example.org";
        let password = hex::encode(rand::random::<[u8; 12]>());
        self.note("operator password", &password)?;
        self.people.push((operator, password.clone()));
        self.end().await;
        let data = self.folder.join("data");
        let mut create = ourselves()?
            .args(["operator", "create", operator, "--data-dir"])
            .arg(&data)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut stdin = create.stdin.take().context("the command reads a password")?;
        tokio::io::AsyncWriteExt::write_all(&mut stdin, format!("{password}\n").as_bytes()).await?;
        drop(stdin);
        ensure!(create.wait().await?.success(), "`operator create` failed");
        let verify =
            ourselves()?.args(["audit", "verify", "--data-dir"]).arg(&data).stderr(Stdio::null()).output().await?;
        let verdict = String::from_utf8_lossy(&verify.stdout).trim().to_owned();
        ensure!(verify.status.success(), "the audit log does not verify: {verdict}");
        self.done("Stopped; audit log verified by `audit verify`", &verdict);

        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = std::fs::OpenOptions::new().append(true).open(self.folder.join("demo.log"))?;
        let mut command = ourselves()?;
        tie_to_us(&mut command);
        self.server = command
            .args(["up", "--listen", &format!("127.0.0.1:{port}"), "--data-dir"])
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        self.base = format!("http://127.0.0.1:{port}");
        let started = Instant::now();
        while self.http.get(format!("{}/readyz", self.base)).send().await.is_err() {
            ensure!(started.elapsed() < PATIENCE, "the trial did not start again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let session = self.post("/api/auth/sign-in", json!({ "email": operator, "password": password })).await?;
        self.note("operator session token", text(&session["token"]))?;
        let customer = self.token.replace(session["token"].as_str().unwrap_or_default().to_owned());
        let check = self.get("/api/operator/ledger/check").await?;
        ensure!(check["sound"] == true, "the ledger is not sound: {check}");
        self.done(
            "Started again; ledger recomputed",
            &format!(
                "{} transfers add up to {}; {} balances agree with them",
                check["transfers"], check["sum_cents"], check["balances"]
            ),
        );
        self.token = customer;
        Ok(())
    }

    /// Gives the buyer a box that runs, and makes a link for the buyer and for the operator that signs them in once.
    async fn links(&mut self) -> anyhow::Result<(String, String)> {
        self.spinner.set_message("getting the pages ready to look at");
        let plans = self.get("/api/seedbox/plans").await?;
        let order = self.order(&plans[0]).await?;
        let missing = order["missing_cents"].as_i64().unwrap_or_default();
        if missing > 0 {
            let topup = self.post("/api/billing/topups", json!({ "amount_cents": missing + 1000 })).await?;
            self.pay(&topup, "exact").await?;
        }
        let path = format!("/api/seedbox/orders/{}", text(&order["id"]));
        self.until("the box of the pages runs", &path, |order| order["status"] == "fulfilled").await?;
        let mut links = Vec::new();
        for (email, password) in self.people.clone() {
            let session = self.post("/api/auth/sign-in", json!({ "email": email, "password": password })).await?;
            self.token = session["token"].as_str().map(str::to_owned);
            let link = self.post("/api/trial/sign-in-links", json!({})).await?;
            links.push(text(&link["url"]).to_owned());
        }
        let [buyer, .., operator] = links.as_slice() else { bail!("the story has a buyer and an operator") };
        Ok((buyer.clone(), operator.clone()))
    }
}
