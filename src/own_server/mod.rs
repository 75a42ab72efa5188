//! `seedplane own-server`: what an owner does with their own servers, from any machine, over the public API and with their own
//! token. Operators have `seedplane byos`, on the service's own database.

mod client;
mod show;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use client::{Access, Client, Exit, Failure};
use show::{say, text};

/// How long the first contact with a server is waited for, so that its host key can be shown.
const FIRST_CONTACT: Duration = Duration::from_secs(15);

/// How often it is asked whether something is so.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// A look at a server is asked for again if nothing came of it for so long: asked for too soon after another it is none.
const LOOK_AGAIN: Duration = Duration::from_secs(4);

/// What `run` exits with where it is not the exit status of the action.
const NO_EXIT_STATUS: u8 = 255;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  Seedplane refused; what it said is shown
  2  the command line, the URL or the token cannot be used; nothing was sent
  3  Seedplane cannot be reached or did not answer
  4  it is not so after --wait-seconds, or it ended otherwise; what was asked for goes on
  5  done, and not proved: a revocation that could not be verified, or logs that differ
`run` and `command` exit with the action's own exit status on the server (0 done, 69 not available there, 124 took too long,
126 refused by the gate), and with 255 whenever there is none.

On a failure standard error says what happened, what was left untouched and what to do next; with --json as one object.";

/// Where to, as whom, and what.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Options {
    #[command(flatten)]
    access: Access,
    /// Answer in JSON, as the API does; one object a line
    #[arg(long, global = true, help_heading = "Where to and as whom")]
    json: bool,
    #[command(subcommand)]
    command: Asked,
}

#[derive(Debug, clap::Subcommand)]
enum Asked {
    /// Connect a server: prints the line to paste on it, what that line does, and the host key to compare
    Connect {
        /// The server's name or address, as it can be reached from the internet
        host: String,
        /// The port of its sshd
        #[arg(long, default_value_t = 22, value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        /// What to call it; the host if left out
        #[arg(long)]
        label: Option<String>,
        /// Let in certificates of five minutes, and no key
        #[arg(long)]
        certificate: bool,
        /// Wait until it is connected, and say what is in the way meanwhile
        #[arg(long)]
        wait: bool,
        /// For how long to wait
        #[arg(long, default_value_t = 900, value_name = "SECONDS")]
        wait_seconds: u64,
        /// The same key with the same command makes one connection, however often it is given
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// List your connections, newest first
    List {
        /// Those that are revoked, too
        #[arg(long)]
        all: bool,
    },
    /// Show a connection; with --onboarding how to connect it once more, and how to undo that
    Show {
        /// The connection's id, or its label or host if only one has it
        connection: String,
        /// The line to paste, its steps, and the line that undoes it
        #[arg(long)]
        onboarding: bool,
    },
    /// Look at the server now, and say what was found
    Verify(Waiting),
    /// Run an action of the manifest on the server and print its output
    Run {
        #[command(flatten)]
        waiting: Waiting,
        /// An action, as `own-server manifest` lists them
        action: String,
        /// What the action takes, if it takes anything
        argument: Option<String>,
        /// The same key with the same command runs it once, however often it is given
        #[arg(long, value_name = "KEY")]
        idempotency_key: Option<String>,
    },
    /// Show what came of an action once more
    Command {
        /// The connection's id, or its label or host if only one has it
        connection: String,
        /// The command's id, as `log --json` and the server's own log have it
        command: Uuid,
    },
    /// Replace our key: the new one is proved before the old one is removed
    Rotate(Waiting),
    /// Say that a changed host key is the server's own; until then nothing is sent to it
    ConfirmHostKey {
        #[command(flatten)]
        waiting: Waiting,
        /// The new key's fingerprint, as `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints it on the server
        fingerprint: String,
    },
    /// Show the newest gate and manifest; with their SHA-256, agree to them
    Consent {
        /// The connection's id, or its label or host if only one has it
        connection: String,
        /// Of the gate that you read
        #[arg(long, requires = "manifest_sha256", value_name = "SHA256")]
        gate_sha256: Option<String>,
        /// Of the manifest that you read
        #[arg(long, requires = "gate_sha256", value_name = "SHA256")]
        manifest_sha256: Option<String>,
    },
    /// Print the manifest, all that can be done on a connected server, byte for byte; needs no token
    Manifest,
    /// Show our record beside the server's own log, and where they differ
    Log {
        /// The connection's id, or its label or host if only one has it
        connection: String,
        /// Only what was asked for before this time, 2027-01-31T12:00:00Z
        #[arg(long, value_name = "TIME")]
        before: Option<String>,
        /// How many commands of our record
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=200))]
        limit: u16,
    },
    /// Take our key off the server, see that it is refused, and destroy it
    Revoke(Waiting),
}

#[derive(Debug, clap::Args)]
struct Waiting {
    /// The connection's id, or its label or host if only one has it
    connection: String,
    /// For how long to wait for what comes of it
    #[arg(long, default_value_t = 150, value_name = "SECONDS")]
    wait_seconds: u64,
}

impl Waiting {
    fn until(&self) -> Instant {
        Instant::now() + Duration::from_secs(self.wait_seconds)
    }
}

/// Carries out an owner's command and says what came of it.
pub async fn run(options: Options) -> ExitCode {
    let of_an_action = matches!(options.command, Asked::Run { .. } | Asked::Command { .. });
    match carry_out(&options).await {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            show::failure(&failure, options.json);
            ExitCode::from(if of_an_action { NO_EXIT_STATUS } else { failure.exit as u8 })
        }
    }
}

async fn carry_out(options: &Options) -> Result<u8, Failure> {
    let needs_token = !matches!(options.command, Asked::Manifest);
    let owner = Owner { client: Client::new(&options.access, needs_token)?, json: options.json };
    match &options.command {
        Asked::Connect { host, port, label, certificate, wait, wait_seconds, idempotency_key } => {
            let mut body = json!({ "host": host, "port": port, "label": label });
            body["access"] = json!(if *certificate { "certificate" } else { "key" });
            let until = wait.then(|| Instant::now() + Duration::from_secs(*wait_seconds));
            owner.connect(&body, until, idempotency_key.as_deref()).await
        }
        Asked::List { all } => owner.list(*all).await,
        Asked::Show { connection, onboarding } => {
            let found = owner.client.get(&owner.path(connection).await?).await?;
            let mut told = show::connection(&found);
            if *onboarding && !found["onboarding"].is_null() {
                told = format!("{told}\n\n{}", show::onboarding(&found));
            }
            owner.tell(&found, &told);
            Ok(0)
        }
        Asked::Verify(waiting) => owner.verify(waiting).await,
        Asked::Run { waiting, action, argument, idempotency_key } => {
            owner.run(waiting, action, argument.as_deref(), idempotency_key.as_deref()).await
        }
        Asked::Command { connection, command } => {
            let path = format!("{}/commands/{command}", owner.path(connection).await?);
            owner.answer(&owner.client.get(&path).await?)
        }
        Asked::Rotate(waiting) => owner.rotate(waiting).await,
        Asked::ConfirmHostKey { waiting, fingerprint } => owner.confirm_host_key(waiting, fingerprint).await,
        Asked::Consent { connection, gate_sha256, manifest_sha256 } => {
            owner.consent(connection, gate_sha256.as_deref().zip(manifest_sha256.as_deref())).await
        }
        Asked::Manifest => {
            let manifest = owner.client.text("/api/byos/manifest").await?;
            let told = if owner.json { json!({ "manifest": manifest }).to_string() } else { manifest };
            say(told.trim_end());
            Ok(0)
        }
        Asked::Log { connection, before, limit } => owner.log(connection, before.as_deref(), *limit).await,
        Asked::Revoke(waiting) => owner.revoke(waiting).await,
    }
}

/// An owner at their terminal.
struct Owner {
    client: Client,
    json: bool,
}

/// It is not so after the wait.
fn not_so(kind: &str, what: String, untouched: &str, next: String) -> Failure {
    Failure::new(Exit::NotSo, kind, what, untouched, next)
}

impl Owner {
    /// The whole of it for programs, the gist for people.
    fn tell(&self, whole: &Value, gist: &str) {
        say(&if self.json { whole.to_string() } else { gist.to_owned() });
    }

    /// What happens meanwhile, which programs are not told.
    fn remark(&self, remark: &str) {
        if !self.json {
            say(remark);
        }
    }

    /// The path of the connection that is meant.
    async fn path(&self, named: &str) -> Result<String, Failure> {
        if let Ok(id) = named.parse::<Uuid>() {
            return Ok(format!("/api/byos/connections/{id}"));
        }
        let all = self.client.get("/api/byos/connections").await?;
        let is_meant = |one: &&Value| one["status"] != "revoked" && (one["label"] == named || one["host"] == named);
        let meant: Vec<&Value> = all.as_array().into_iter().flatten().filter(is_meant).collect();
        match meant.as_slice() {
            [one] => Ok(format!("/api/byos/connections/{}", text(&one["id"]))),
            several => Err(Failure::new(
                Exit::Misused,
                if several.is_empty() { "not-found" } else { "ambiguous" },
                format!("{} of your connections that are not revoked have the label or host '{named}'", several.len()),
                "nothing was changed",
                "give the connection's id; `seedplane own-server list --all` lists them",
            )),
        }
    }

    /// Asks until it is so or the time has come, and answers with what was seen last.
    async fn until(&self, path: &str, until: Instant, mut so: impl FnMut(&Value) -> bool) -> Result<Value, Failure> {
        loop {
            let seen = self.client.get(path).await?;
            if so(&seen) || Instant::now() >= until {
                return Ok(seen);
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn connect(&self, body: &Value, until: Option<Instant>, key: Option<&str>) -> Result<u8, Failure> {
        let key = key.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned);
        let made = self.client.post("/api/byos/connections", body, Some(&key)).await?;
        let path = format!("/api/byos/connections/{}", text(&made["id"]));
        self.client.post(&format!("{path}/verify"), &json!({}), None).await?;
        let contact = Instant::now() + FIRST_CONTACT;
        let known = |seen: &Value| !seen["host_key_fingerprint"].is_null() || !seen["last_error"].is_null();
        let made = self.until(&path, contact, known).await?;
        self.tell(&made, &format!("{}\n\n{}", show::one_line(&made), show::onboarding(&made)));
        let Some(until) = until else { return Ok(0) };
        self.remark("\nWaiting until it is connected; Ctrl-C stops the waiting and nothing else.");
        let (mut told, mut fingerprint) = (made["last_error"]["detail"].clone(), made["host_key_fingerprint"].clone());
        let seen = self
            .until(&path, until, |seen| {
                if fingerprint.is_null() && !seen["host_key_fingerprint"].is_null() {
                    self.remark(&show::fingerprint(seen));
                    fingerprint = seen["host_key_fingerprint"].clone();
                }
                let error = &seen["last_error"]["detail"];
                if *error != told && !error.is_null() {
                    self.remark(&format!("not yet: {}", text(error)));
                }
                told = error.clone();
                seen["status"] != "pending" || !seen["changed_host_key_fingerprint"].is_null()
            })
            .await?;
        self.connected(&seen)
    }

    /// Shows a connection that was waited for.
    fn connected(&self, seen: &Value) -> Result<u8, Failure> {
        if seen["status"] == "connected" && seen["last_error"].is_null() {
            self.tell(seen, &show::connection(seen));
            return Ok(0);
        }
        let why = seen["last_error"]["detail"].as_str().unwrap_or("the server was not looked at yet");
        let id = text(&seen["id"]);
        let next = if seen["changed_host_key_fingerprint"].is_null() {
            format!("mend that, then `seedplane own-server verify {id}`")
        } else {
            format!("`seedplane own-server confirm-host-key {id} <fingerprint>`, with what the server itself prints")
        };
        Err(not_so(
            "not-connected",
            format!("the connection is {}: {why}", text(&seen["status"])),
            "nothing was run on the server",
            next,
        ))
    }

    async fn list(&self, all: bool) -> Result<u8, Failure> {
        let found = self.client.get("/api/byos/connections").await?;
        let shown: Vec<&Value> =
            found.as_array().into_iter().flatten().filter(|one| all || one["status"] != "revoked").collect();
        let lines: Vec<String> = shown.iter().map(|one| show::one_line(one)).collect();
        let gist = if lines.is_empty() {
            "no server of yours is connected; `seedplane own-server connect <host>` connects one".to_owned()
        } else {
            lines.join("\n")
        };
        self.tell(&json!(shown), &gist);
        Ok(0)
    }

    async fn verify(&self, waiting: &Waiting) -> Result<u8, Failure> {
        let path = self.path(&waiting.connection).await?;
        let before = self.client.get(&path).await?;
        let looked = |seen: &Value| seen["last_probe_at"] != before["last_probe_at"];
        let until = waiting.until();
        loop {
            let asked = self.client.post(&format!("{path}/verify"), &json!({}), None).await?;
            let next = (Instant::now() + LOOK_AGAIN).min(until);
            let seen = if looked(&asked) { asked } else { self.until(&path, next, looked).await? };
            if looked(&seen) {
                return self.connected(&seen);
            }
            if Instant::now() >= until {
                let what = "the server was not looked at in that time".to_owned();
                let next = "try again in a moment, or wait longer with --wait-seconds".to_owned();
                return Err(not_so("not-looked-at", what, "nothing was run on the server", next));
            }
        }
    }

    async fn run(
        &self,
        waiting: &Waiting,
        action: &str,
        argument: Option<&str>,
        key: Option<&str>,
    ) -> Result<u8, Failure> {
        let path = self.path(&waiting.connection).await?;
        let key = key.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned);
        let body = json!({ "action": action, "argument": argument });
        let asked = self.client.post(&format!("{path}/run"), &body, Some(&key)).await?;
        let of_it = format!("{path}/commands/{}", text(&asked["id"]));
        let answered = |command: &Value| !["requested", "sent"].map(Value::from).contains(&command["status"]);
        let command = self.until(&of_it, waiting.until(), answered).await?;
        if !answered(&command) {
            return Err(not_so(
                "not-answered",
                format!(
                    "the server has not answered within {} s; the command is {}",
                    waiting.wait_seconds,
                    text(&command["status"])
                ),
                "whether it was done is not known yet",
                format!(
                    "`seedplane own-server command {} {}` shows what came of it",
                    waiting.connection,
                    text(&command["id"])
                ),
            ));
        }
        self.answer(&command)
    }

    /// Prints what an action printed; answers with its exit status.
    fn answer(&self, command: &Value) -> Result<u8, Failure> {
        let status = command["exit_status"].as_u64().and_then(|status| u8::try_from(status).ok());
        let error = command["error"].as_str().unwrap_or_default();
        if self.json {
            say(&command.to_string());
            return Ok(status.unwrap_or(NO_EXIT_STATUS));
        }
        show::output(command["output"].as_str().unwrap_or_default());
        match (command["status"].as_str(), status) {
            (Some("done"), Some(status)) => {
                if !error.is_empty() {
                    show::complaint(error);
                }
                Ok(status)
            }
            (Some("refused"), Some(status)) => {
                let next = "`seedplane own-server manifest` says what the gate does".to_owned();
                show::failure(&not_so("refused", error.to_owned(), "nothing was run on the server", next), false);
                Ok(status)
            }
            (status, _) => {
                let untouched = match command["sent_at"].is_null() {
                    true => "nothing was sent to the server",
                    false => "whether the server did it is not known; its own log says so",
                };
                let what = if error.is_empty() {
                    format!("the command is {}", status.unwrap_or("?"))
                } else {
                    error.to_owned()
                };
                let next = "`seedplane own-server verify` looks at the server, `log` shows both records".to_owned();
                Err(not_so("command-failed", what, untouched, next))
            }
        }
    }

    async fn rotate(&self, waiting: &Waiting) -> Result<u8, Failure> {
        let path = self.path(&waiting.connection).await?;
        let before = self.client.get(&path).await?;
        self.client.post(&format!("{path}/rotate"), &json!({}), None).await?;
        let mut told = Value::Null;
        let done = |seen: &Value| seen["rotating"] == false;
        let seen = self
            .until(&path, waiting.until(), |seen| {
                if seen["rotation_error"] != told && !seen["rotation_error"].is_null() {
                    self.remark(&format!("not yet: {}", text(&seen["rotation_error"])));
                    told = seen["rotation_error"].clone();
                }
                done(seen)
            })
            .await?;
        if !done(&seen) || seen["key_fingerprint"] == before["key_fingerprint"] {
            return Err(not_so(
                "not-rotated",
                format!("our key is not replaced after {} s: {}", waiting.wait_seconds, text(&seen["rotation_error"])),
                "the old key works until the new one is proved, and the replacing goes on",
                "`seedplane own-server show` says how far it is".to_owned(),
            ));
        }
        let gist = format!(
            "our key is replaced: {} is proved, {} is removed from the server and destroyed",
            text(&seen["key_fingerprint"]),
            text(&before["key_fingerprint"])
        );
        self.tell(&seen, &gist);
        Ok(0)
    }

    async fn confirm_host_key(&self, waiting: &Waiting, fingerprint: &str) -> Result<u8, Failure> {
        let path = self.path(&waiting.connection).await?;
        let body = json!({ "fingerprint": fingerprint });
        let asked = self.client.post(&format!("{path}/confirm-host-key"), &body, None).await?;
        let settled = |seen: &Value| {
            seen["status"] == "connected"
                || !seen["last_error"].is_null()
                || seen["last_probe_at"] != asked["last_probe_at"]
        };
        let seen = self.until(&path, waiting.until(), settled).await?;
        self.connected(&seen)
    }

    async fn consent(&self, connection: &str, read: Option<(&str, &str)>) -> Result<u8, Failure> {
        let path = self.path(connection).await?;
        if let Some((gate, manifest)) = read {
            let body = json!({ "gate_sha256": gate, "manifest_sha256": manifest });
            let seen = self.client.post(&format!("{path}/consent"), &body, None).await?;
            let told = match seen["gate"]["is_agreed"].as_bool() {
                Some(true) => "agreed; the server runs this version".to_owned(),
                _ => {
                    "agreed. The server runs another version until you paste the line there again:\n\n".to_owned()
                        + &text(&seen["onboarding"]["line"])
                }
            };
            self.tell(&seen, &told);
            return Ok(0);
        }
        let found = self.client.get(&path).await?;
        // What is agreed to is what was read here, and not what somebody says its digest is.
        let (manifest, gate) = (self.client.text("/api/byos/manifest").await?, self.client.text("/byos/gate").await?);
        let digest = |text: &str| hex::encode(Sha256::digest(text.as_bytes()));
        let (manifest_sha256, gate_sha256) = (digest(&manifest), digest(&gate));
        let agreed = &found["gate"];
        let gist = format!(
            "{}\n\nThis is the newest manifest. Its SHA-256 is {manifest_sha256}, you agreed to {}.\nThe gate's ({}/byos/gate) is \
             {gate_sha256}, you agreed to {}.\nNothing was changed. To agree to both:\n  seedplane own-server consent {} \
             --gate-sha256 {gate_sha256} --manifest-sha256 {manifest_sha256}",
            show::plain(manifest.trim_end()),
            text(&agreed["agreed_manifest_sha256"]),
            self.client.base(),
            text(&agreed["agreed_gate_sha256"]),
            text(&found["id"]),
        );
        let whole = json!({
            "manifest": manifest, "manifest_sha256": manifest_sha256, "gate": gate, "gate_sha256": gate_sha256,
            "agreed_gate_sha256": agreed["agreed_gate_sha256"], "agreed_manifest_sha256": agreed["agreed_manifest_sha256"],
        });
        self.tell(&whole, &gist);
        Ok(0)
    }

    async fn log(&self, connection: &str, before: Option<&str>, limit: u16) -> Result<u8, Failure> {
        let path = self.path(connection).await?;
        let before = before.map(|before| {
            let letters: String = before.bytes().map(|byte| format!("%{byte:02x}")).collect();
            format!("&before={letters}")
        });
        let page = format!("{path}/commands?limit={limit}{}", before.unwrap_or_default());
        let (commands, logs) = (self.client.get(&page).await?, self.client.get(&format!("{path}/log")).await?);
        let whole = json!({
            "sent": commands, "server": logs["server"], "fetched_at": logs["fetched_at"], "differences": logs["differences"],
        });
        self.tell(&whole, &show::two_logs(&commands, &logs));
        let differ = logs["differences"].as_array().is_some_and(|differences| !differences.is_empty());
        Ok(if differ { Exit::Unproved as u8 } else { 0 })
    }

    async fn revoke(&self, waiting: &Waiting) -> Result<u8, Failure> {
        let path = self.path(&waiting.connection).await?;
        self.client.delete(&path).await?;
        let seen = self.until(&path, waiting.until(), |seen| seen["status"] == "revoked").await?;
        if seen["status"] != "revoked" {
            return Err(not_so(
                "not-revoked",
                format!("the connection is not revoked after {} s", waiting.wait_seconds),
                "nothing is sent to the server any more but what ends the connection, which goes on",
                "`seedplane own-server show` says how far it is; delete our line on the server to end it at once"
                    .to_owned(),
            ));
        }
        self.tell(&seen, &format!("revoked; {}", show::proof(&seen)));
        Ok(if seen["revocation"] == "unverified" { Exit::Unproved as u8 } else { 0 })
    }
}
