//! The chapter on customers' own servers: a real sshd on a stand-in server, connected, used, its key replaced, and revoked.

use anyhow::{Context, ensure};
use reqwest::Method;
use seedplane_simulators::server::StandInServer;
use serde_json::{Value, json};

use super::{Story, minute, text};

impl Story {
    pub(super) async fn connect_a_server(&mut self) -> anyhow::Result<()> {
        if let Err(why) = StandInServer::supported() {
            self.done("SKIPPED: connecting a server of one's own", &why);
            return Ok(());
        }
        self.spinner.set_message("starting a server to connect: a real sshd in a sandbox");
        let folder = self.folder.join("own-server");
        let server = tokio::task::spawn_blocking(move || StandInServer::start(&folder)).await??;
        let fingerprint = server.host_key_fingerprint()?;

        let body = json!({ "host": "127.0.0.1", "port": server.port(), "label": "my own server" });
        let pending = self.post("/api/byos/connections", body).await?;
        let path = format!("/api/byos/connections/{}", text(&pending["id"]));
        let seen = self
            .until("its host key is seen", &path, |connection| connection["host_key_fingerprint"].is_string())
            .await?;
        ensure!(seen["status"] == "pending", "a connection that nobody agreed to is {}", seen["status"]);
        ensure!(text(&seen["host_key_fingerprint"]) == fingerprint, "another host key was seen: {seen}");
        let line = text(&pending["onboarding"]["line"]).to_owned();
        let pasted = server.run_as_root(&line)?;
        let printed = String::from_utf8_lossy(&pasted.stdout).into_owned();
        ensure!(pasted.status.success(), "the line ended with {}: {printed}", pasted.status);
        ensure!(printed.contains(&fingerprint), "the line did not print the host key's fingerprint");
        self.post(&format!("{path}/verify"), json!({})).await?;
        let connected =
            self.until("the key is proved", &path, |connection| connection["status"] == "connected").await?;
        self.done(
            "Connected a server of one's own, by one pasted line",
            &format!(
                "{}, {}; host key {fingerprint}, compared on both sides; no private key was asked for",
                text(&connected["os_name"]),
                text(&connected["server_version"]).trim_start_matches("SSH-2.0-"),
            ),
        );

        let disk = self.run_action(&path, "disk").await?;
        ensure!(disk["exit_status"] == 0, "the action 'disk' ended so: {disk}");
        let (status, problem) = self
            .call(Method::POST, &format!("{path}/run"), Some(json!({ "action": "disk", "argument": "; id" })))
            .await?;
        ensure!(status.is_client_error(), "an argument that is not in the manifest was answered {status}: {problem}");
        let manifest = self.http.get(format!("{}/api/byos/manifest", self.base)).send().await?.text().await?;
        let on_server = std::fs::read_to_string(server.path("/usr/local/lib/seedplane/manifest"))?;
        ensure!(manifest == on_server, "the manifest that is shown is not the one on the server");
        self.run_action(&path, "log").await?;
        let log = self.get(&format!("{path}/log")).await?;
        ensure!(log["differences"] == json!([]), "the two logs differ: {}", log["differences"]);
        self.done(
            "Used it through its gate",
            &format!(
                "the manifest shown is the file on the server, byte for byte; {} lines of its own log agree with ours",
                log["server"].as_array().map_or(0, Vec::len)
            ),
        );

        self.post(&format!("{path}/rotate"), json!({})).await?;
        let rotated = self
            .until("the key is replaced", &path, |connection| {
                connection["rotating"] == false && connection["public_key"] != connected["public_key"]
            })
            .await?;
        self.done(
            "Replaced our key to it",
            &format!("{}: added, proved, and only then was the old one removed", text(&rotated["key_fingerprint"])),
        );

        self.ok(Method::DELETE, &path, None).await?;
        let revoked = self.until("it is revoked", &path, |connection| connection["status"] == "revoked").await?;
        ensure!(revoked["revocation"] == "locked_out", "it was not verified: {revoked}");
        let left =
            std::fs::read_to_string(server.path("/var/lib/seedbox-mgr/.ssh/authorized_keys")).unwrap_or_default();
        ensure!(left.trim().is_empty(), "a line of ours is left on the server: {left}");
        let removed = server.run_as_root(text(&pending["onboarding"]["remove_line"]))?;
        ensure!(removed.status.success(), "the line that undoes it ended with {}", removed.status);
        ensure!(!server.path("/usr/local/lib/seedplane").exists(), "the gate is left after it was undone");
        self.done(
            "Revoked it",
            &format!(
                "verified locked out at {}; our private key is destroyed; one more line took the gate and its user away",
                minute(&revoked["locked_out_at"])
            ),
        );
        tokio::task::spawn_blocking(move || server.stop()).await?;
        Ok(())
    }

    /// Runs an action of the manifest and waits for its answer.
    async fn run_action(&self, path: &str, action: &str) -> anyhow::Result<Value> {
        let command = self.post(&format!("{path}/run"), json!({ "action": action })).await?;
        let id = command["id"].as_str().context("a command has an id")?.to_owned();
        self.until(&format!("'{action}' is answered"), &format!("{path}/commands/{id}"), |command| {
            !["requested", "sent"].contains(&text(&command["status"]))
        })
        .await
    }
}
