//! Bring your own server, against a real sshd on a stand-in server: connect, use, rotate, revoke, and everything that can be
//! in the way.

use std::{
    process::Output,
    time::{Duration, Instant},
};

use jiff::SignedDuration;
use reqwest::{Method, StatusCode};
use secrecy::ExposeSecret;
use seedplane::{
    audit::events::Cause,
    byos::{
        broker::{self, Line},
        certificates, commands, connections,
        connections::{Connection, ConnectionStatus, MOVES},
        keys,
        ssh::{Login, Session, SshError, Target},
    },
    ids::{CommandId, ConnectionId},
    seedbox::lifecycle::TransitionError,
    workers::{self, byos_connector},
};
use seedplane_provisioning::node::gate;
use seedplane_simulators::server::StandInServer;
use serde_json::{Value, json};

use crate::support::{Person, TestApp, World, temporary};

/// A server to connect, or nothing where this machine cannot run one, which is said.
pub fn stand_in(ports: usize) -> Option<StandInServer> {
    if let Err(why) = StandInServer::supported() {
        println!("SKIPPED: {why}");
        return None;
    }
    Some(StandInServer::start_with_ports(&temporary("server"), ports).unwrap())
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn path(connection: &Value) -> String {
    format!("/api/byos/connections/{}", connection["id"].as_str().unwrap())
}

/// Connects the server as its owner does: asks for the line, pastes it, looks again.
pub async fn connect(test: &TestApp, owner: &Person, server: &StandInServer) -> Value {
    let body = json!({ "host": "127.0.0.1", "port": server.port(), "label": "my box" });
    let pending = test.post(owner, "/api/byos/connections", body).await;
    let line = pending["onboarding"]["line"].as_str().unwrap().to_owned();
    let pasted = server.run_as_root(&line).unwrap();
    assert!(pasted.status.success(), "{line}\n{}", said(&pasted));
    assert!(said(&pasted).contains(&server.host_key_fingerprint().unwrap()), "{}", said(&pasted));
    test.post(owner, &format!("{}/verify", path(&pending)), json!({})).await;
    until(test, owner, &pending, |connection| connection["status"] == "connected").await
}

async fn until(test: &TestApp, owner: &Person, connection: &Value, so: impl Fn(&Value) -> bool) -> Value {
    test.until(owner, &path(connection), so).await
}

async fn row(test: &TestApp, connection: &Value) -> Connection {
    let id = ConnectionId(connection["id"].as_str().unwrap().parse().unwrap());
    connections::find(&test.app.pool, id).await.unwrap().unwrap()
}

/// Runs an action and waits for its answer.
async fn run(test: &TestApp, owner: &Person, connection: &Value, action: &str, argument: Option<&str>) -> Value {
    let body = argument
        .map_or_else(|| json!({ "action": action }), |argument| json!({ "action": action, "argument": argument }));
    let command = test.post(owner, &format!("{}/run", path(connection)), body).await;
    let at = format!("{}/commands/{}", path(connection), command["id"].as_str().unwrap());
    test.until(owner, &at, |command| !["requested", "sent"].contains(&command["status"].as_str().unwrap())).await
}

/// The key as a thief of the secret store would have it, logged in.
async fn thief(test: &TestApp, connection: &Value) -> Session {
    let known = row(test, connection).await;
    let key = keys::private(test.app.secrets.as_ref(), &known.secret_ref).await.unwrap();
    let target =
        Target { host: known.host.clone(), port: known.ssh_port(), pinned: known.host_key, allow_private: true };
    Session::open(&target, Login::Key(key)).await.unwrap()
}

fn authorized_keys(server: &StandInServer) -> String {
    std::fs::read_to_string(server.path("/var/lib/seedbox-mgr/.ssh/authorized_keys")).unwrap_or_default()
}

async fn resource_of(test: &TestApp, owner: &Person, connection: &Value) -> Value {
    test.get(owner, &format!("/api/seedbox/resources/{}", connection["resource_id"].as_str().unwrap())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_connected_used_rotated_and_revoked() {
    let Some(server) = stand_in(1) else { return };
    let test = TestApp::new().await;
    let owner = test.customer().await;
    let body = json!({ "host": "127.0.0.1", "port": server.port(), "label": "my box" });
    let pending = test.post(&owner, "/api/byos/connections", body).await;
    assert_eq!(pending["status"], "pending");
    assert!(pending["resource_id"].is_null(), "there is no box before the key is proved");

    // The host key is pinned and shown before anything is pasted, so that it can be compared.
    let seen = until(&test, &owner, &pending, |connection| connection["last_error"]["kind"] == "key_refused").await;
    assert_eq!(seen["host_key_fingerprint"].as_str().unwrap(), server.host_key_fingerprint().unwrap());
    assert_eq!(seen["status"], "pending", "a line that is not pasted yet is no error");

    let connected = connect(&test, &owner, &server).await;
    // The first of the two is still there and can be connected with a line of its own on the same server.
    assert_ne!(connected["id"], pending["id"]);
    assert_eq!(connected["host_key_fingerprint"].as_str().unwrap(), server.host_key_fingerprint().unwrap());
    assert!(connected["server_version"].as_str().unwrap().starts_with("SSH-2.0-OpenSSH"), "{connected}");
    assert!(connected["os_name"].as_str().unwrap().contains("Debian"), "{connected}");
    assert!(connected["latency_ms"].as_i64().unwrap() >= 0);
    assert_eq!((&connected["gate"]["is_agreed"], &connected["gate"]["is_current"]), (&json!(true), &json!(true)));
    let resource = resource_of(&test, &owner, &connected).await;
    assert_eq!((&resource["status"], &resource["kind"]), (&json!("active"), &json!("byos")));
    assert_eq!(authorized_keys(&server).trim(), connected["onboarding"]["authorized_keys_line"].as_str().unwrap());

    // What the page shows is what the gate reads, byte for byte.
    let (_, shown) = test.call(None, Method::GET, "/api/byos/manifest", None).await;
    let on_server = std::fs::read_to_string(server.path(gate::MANIFEST_PATH)).unwrap();
    assert_eq!(shown.as_str().unwrap(), on_server);
    let (_, shown) = test.call(None, Method::GET, "/byos/gate", None).await;
    assert_eq!(shown.as_str().unwrap(), std::fs::read_to_string(server.path(gate::GATE_PATH)).unwrap());

    let disk = run(&test, &owner, &connected, "disk", None).await;
    assert_eq!((&disk["status"], &disk["exit_status"]), (&json!("done"), &json!(0)), "{disk}");
    assert!(disk["output"].as_str().unwrap().contains("$ df -Pk"), "{disk}");
    // What is not in the manifest is not even sent.
    for (body, status) in [
        (json!({ "action": "shell" }), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({ "action": "disk", "argument": "; id" }), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({ "action": "service-status" }), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({ "action": "service-status", "argument": "sshd" }), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({ "action": "revoke" }), StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        let (answered, problem) =
            test.call(Some(&owner), Method::POST, &format!("{}/run", path(&connected)), Some(body.clone())).await;
        assert_eq!(answered, status, "{body}: {problem}");
    }
    // Our record has every line that the server's own log has, and the other way round.
    let log = run(&test, &owner, &connected, "log", None).await;
    assert!(log["output"].as_str().unwrap().contains(disk["id"].as_str().unwrap()), "{log}");
    let two = test.get(&owner, &format!("{}/log", path(&connected))).await;
    assert_eq!(two["differences"], json!([]));
    let server_has = |id: &Value| two["server"].as_array().unwrap().iter().any(|line| line["request_id"] == *id);
    assert!(server_has(&disk["id"]) && server_has(&log["id"]), "running `log` fetches it: {two}");
    let sent = test.get(&owner, &format!("{}/commands", path(&connected))).await;
    assert!(sent.as_array().unwrap().iter().any(|command| command["id"] == disk["id"]));

    // Managed operations do not apply to somebody's own server.
    let resource_path = format!("/api/seedbox/resources/{}", connected["resource_id"].as_str().unwrap());
    for operation in ["suspend", "resume", "rotate-credentials", "credentials"] {
        let (status, problem) =
            test.call(Some(&owner), Method::POST, &format!("{resource_path}/{operation}"), Some(json!({}))).await;
        assert_eq!(status, StatusCode::CONFLICT, "{operation}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains("own server"), "{problem}");
    }

    let before = authorized_keys(&server);
    test.post(&owner, &format!("{}/rotate", path(&connected)), json!({})).await;
    let rotated = until(&test, &owner, &connected, |connection| connection["rotating"] == false).await;
    assert_ne!(rotated["public_key"], connected["public_key"]);
    let after = authorized_keys(&server);
    assert!(!after.contains(keys::body(connected["public_key"].as_str().unwrap())), "the old key is gone: {after}");
    assert!(after.contains(keys::body(rotated["public_key"].as_str().unwrap())) && after.len() == before.len());
    assert_eq!(run(&test, &owner, &rotated, "facts", None).await["exit_status"], 0);

    let (status, _) = test.call(Some(&owner), Method::DELETE, &path(&rotated), None).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let revoked = until(&test, &owner, &rotated, |connection| connection["status"] == "revoked").await;
    assert_eq!(revoked["revocation"], "locked_out");
    assert!(revoked["locked_out_at"].is_string(), "{revoked}");
    assert_eq!(authorized_keys(&server), "");
    assert_eq!(resource_of(&test, &owner, &rotated).await["status"], "terminated");
    let known = row(&test, &rotated).await;
    assert!(matches!(
        keys::private(test.app.secrets.as_ref(), &known.secret_ref).await,
        Err(keys::KeyError::Destroyed)
    ));
    let (status, _) = test
        .call(Some(&owner), Method::POST, &format!("{}/run", path(&rotated)), Some(json!({ "action": "disk" })))
        .await;
    assert_eq!(status, StatusCode::CONFLICT);
    test.idle().await;
    for kind in ["connection_connected", "connection_rotated", "connection_revoked"] {
        test.until_handed(kind, 1).await;
    }
    test.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_host_key_freezes_the_connection_until_its_owner_says_so() {
    let Some(server) = stand_in(1) else { return };
    let test = TestApp::new().await;
    let owner = test.customer().await;
    let connected = connect(&test, &owner, &server).await;
    let old = server.host_key_fingerprint().unwrap();
    let log_before = std::fs::read_to_string(server.path(gate::LOG_PATH)).unwrap();
    server.replace_host_keys().unwrap();
    let new = server.host_key_fingerprint().unwrap();
    // Whatever is asked, nothing is sent to a server that may be somebody else's.
    let command = run(&test, &owner, &connected, "disk", None).await;
    assert_eq!(command["status"], "failed");
    assert!(
        command["error"].as_str().unwrap().starts_with("it was not sent: the server's host key changed"),
        "{command}"
    );
    let frozen = until(&test, &owner, &connected, |connection| connection["status"] == "error").await;
    assert_eq!(frozen["status_reason"], "host_key_changed");
    assert_eq!(frozen["host_key_fingerprint"].as_str().unwrap(), old);
    assert_eq!(frozen["changed_host_key_fingerprint"].as_str().unwrap(), new);
    test.advance(SignedDuration::from_hours(2)).await;
    test.idle().await;
    assert_eq!(std::fs::read_to_string(server.path(gate::LOG_PATH)).unwrap(), log_before, "and nothing was sent later");
    test.until_handed("connection_trouble", 1).await;
    let alerts: i64 = sqlx::query_scalar("select count(*) from operator_alerts where kind = 'byos_host_key_changed'")
        .fetch_one(&test.app.pool)
        .await
        .unwrap();
    assert_eq!(alerts, 1);

    let confirm = format!("{}/confirm-host-key", path(&connected));
    let (status, problem) = test.call(Some(&owner), Method::POST, &confirm, Some(json!({ "fingerprint": old }))).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
    test.post(&owner, &confirm, json!({ "fingerprint": new })).await;
    let back = until(&test, &owner, &connected, |connection| connection["status"] == "connected").await;
    assert_eq!(back["host_key_fingerprint"].as_str().unwrap(), new);
    assert_eq!(run(&test, &owner, &connected, "disk", None).await["exit_status"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_who_removes_the_line_has_revoked_the_connection() {
    let Some(server) = stand_in(1) else { return };
    let test = TestApp::new().await;
    let owner = test.customer().await;
    let connected = connect(&test, &owner, &server).await;
    let removed = server.run_as_root(connected["onboarding"]["remove_line"].as_str().unwrap()).unwrap();
    assert!(removed.status.success(), "{}", said(&removed));
    for _ in 0..4 {
        test.advance(SignedDuration::from_mins(6)).await;
        test.idle().await;
    }
    let revoked = until(&test, &owner, &connected, |connection| connection["status"] == "revoked").await;
    assert_eq!(revoked["revocation"], "by_owner");
    assert!(revoked["last_error"].is_null(), "it is no error: {revoked}");
    test.until_handed("connection_revoked", 1).await;
    let troubles: i64 = sqlx::query_scalar("select count(*) from notices where kind = 'connection_trouble'")
        .fetch_one(&test.app.pool)
        .await
        .unwrap();
    assert_eq!(troubles, 0);
    assert_eq!(resource_of(&test, &owner, &connected).await["status"], "terminated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_off_is_noticed_comes_back_and_never_blocks_a_revocation() {
    let Some(server) = stand_in(1) else { return };
    let test = TestApp::new().await;
    let owner = test.customer().await;
    let connected = connect(&test, &owner, &server).await;
    server.stop();
    for _ in 0..3 {
        test.advance(SignedDuration::from_mins(7)).await;
        test.idle().await;
    }
    let down = until(&test, &owner, &connected, |connection| connection["status"] == "error").await;
    assert_eq!(down["status_reason"], "port_closed");
    let detail = down["last_error"]["detail"].as_str().unwrap();
    assert!(detail.contains("refused the connection: is sshd running there"), "{detail}");
    server.start_again().unwrap();
    test.advance(SignedDuration::from_mins(7)).await;
    until(&test, &owner, &connected, |connection| connection["status"] == "connected").await;

    server.stop();
    test.call(Some(&owner), Method::DELETE, &path(&connected), None).await;
    let revoked = until(&test, &owner, &connected, |connection| connection["status"] == "revoked").await;
    assert_eq!(revoked["revocation"], "unverified");
    assert!(revoked["locked_out_at"].is_null());
    let known = row(&test, &connected).await;
    assert!(keys::private(test.app.secrets.as_ref(), &known.secret_ref).await.is_err(), "the key is destroyed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_cut_off_between_any_two_steps_goes_on_and_never_loses_the_way_in() {
    let Some(server) = stand_in(1) else { return };
    let world = World::new().await;
    let test = world.start(true).await;
    let owner = test.customer().await;
    let connected = connect(&test, &owner, &server).await;
    for cut_after in ["made", "added", "proved", "removed"] {
        let mut known = row(&test, &connected).await;
        let old = known.clone();
        let next = keys::make(test.app.secrets.as_ref(), known.id, known.key_number + 1).await.unwrap();
        known.next_public_key = Some(next.public_key.clone());
        known.next_secret_ref = Some(next.secret_ref.clone());
        let mut tx = test.app.pool.begin().await.unwrap();
        connections::write_in(&mut tx, &mut known).await.unwrap();
        tx.commit().await.unwrap();
        if cut_after != "made" {
            let line = Line::open(&test.app, &known, &old.secret_ref).await.unwrap();
            line.add_key(&next.public_key).await.unwrap();
            line.close().await;
        }
        if cut_after == "proved" || cut_after == "removed" {
            let line = Line::open(&test.app, &known, &next.secret_ref).await.unwrap();
            line.hello().await.unwrap();
            if cut_after == "removed" {
                line.remove_key(&old.public_key).await.unwrap();
            }
            line.close().await;
        }
        // A look in between is no reason to give the connection up, though the old key may be refused.
        test.advance(SignedDuration::from_mins(7)).await;
        test.idle().await;
        // A worker may be at it already: whoever comes second finds it done.
        match byos_connector::rotate(&test.app, known.id).await {
            Ok(()) | Err(workers::StepError::Transition(TransitionError::Stale)) => {}
            Err(error) => panic!("cut off after {cut_after}: {error}"),
        }
        let now = until(&test, &owner, &connected, |connection| connection["rotating"] == false).await;
        assert_eq!(now["public_key"].as_str().unwrap(), next.public_key, "cut off after {cut_after}");
        let lines = authorized_keys(&server);
        assert_eq!(lines.lines().count(), 1, "cut off after {cut_after}: {lines}");
        assert!(keys::private(test.app.secrets.as_ref(), &old.secret_ref).await.is_err(), "the old key is destroyed");
        assert_eq!(run(&test, &owner, &connected, "disk", None).await["exit_status"], 0);
    }

    // A server that is off when a rotation begins: the old key goes on working, and the rotation is made up for.
    server.stop();
    test.post(&owner, &format!("{}/rotate", path(&connected)), json!({})).await;
    let waiting = until(&test, &owner, &connected, |connection| connection["rotation_error"].is_string()).await;
    assert_eq!(waiting["rotating"], true);
    server.start_again().unwrap();
    assert_eq!(run(&test, &owner, &connected, "disk", None).await["exit_status"], 0, "the old key works");
    test.advance(SignedDuration::from_mins(7)).await;
    until(&test, &owner, &connected, |connection| connection["rotating"] == false).await;
    test.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_leads_to_a_shell_is_not_used() {
    let Some(server) = stand_in(1) else { return };
    let test = TestApp::new().await;
    let owner = test.customer().await;
    let connected = connect(&test, &owner, &server).await;
    let file = server.path("/var/lib/seedbox-mgr/.ssh/authorized_keys");
    let restricted = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{}\n", connected["public_key"].as_str().unwrap())).unwrap();
    let command = run(&test, &owner, &connected, "disk", None).await;
    assert_eq!(command["status"], "failed", "{command}");
    assert!(command["error"].as_str().unwrap().contains("is not the gate"), "{command}");
    let broken = until(&test, &owner, &connected, |connection| connection["status"] == "error").await;
    assert_eq!(broken["status_reason"], "not_restricted");
    std::fs::write(&file, restricted).unwrap();
    test.advance(SignedDuration::from_mins(7)).await;
    until(&test, &owner, &connected, |connection| connection["status"] == "connected").await;

    // A gate that was changed is not the one that was agreed to.
    let manifest = server.path(gate::MANIFEST_PATH);
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, format!("{text}\naction shell 5\nrun id\n")).unwrap();
    let command = run(&test, &owner, &connected, "disk", None).await;
    assert!(command["error"].as_str().unwrap().contains("not the one that you agreed to"), "{command}");
    let altered = until(&test, &owner, &connected, |connection| connection["status"] == "error").await;
    assert_eq!(altered["status_reason"], "gate_altered");
    assert_eq!(altered["gate"]["is_agreed"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_of_the_gate_waits_for_its_owners_consent() {
    let Some(server) = stand_in(1) else { return };
    let test = TestApp::new().await;
    let owner = test.customer().await;
    let connected = connect(&test, &owner, &server).await;
    // As if the owner had agreed to an earlier version and pasted this one's line since.
    let mut known = row(&test, &connected).await;
    known.consented_manifest_sha256 = "0".repeat(64);
    let mut tx = test.app.pool.begin().await.unwrap();
    connections::write_in(&mut tx, &mut known).await.unwrap();
    tx.commit().await.unwrap();
    let (status, problem) = test
        .call(Some(&owner), Method::POST, &format!("{}/run", path(&connected)), Some(json!({ "action": "disk" })))
        .await;
    assert_eq!(status, StatusCode::CONFLICT, "{problem}");
    let consent = format!("{}/consent", path(&connected));
    let other = json!({ "gate_sha256": gate::gate_sha256(), "manifest_sha256": "0".repeat(64) });
    assert_eq!(test.call(Some(&owner), Method::POST, &consent, Some(other)).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    let this = json!({ "gate_sha256": gate::gate_sha256(), "manifest_sha256": gate::manifest_sha256() });
    let agreed = test.post(&owner, &consent, this).await;
    assert_eq!(agreed["gate"]["is_agreed"], true);
    assert_eq!(run(&test, &owner, &connected, "disk", None).await["exit_status"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_uses_our_key_behind_our_back_is_found_by_the_two_logs() {
    let Some(server) = stand_in(1) else { return };
    let test = TestApp::new().await;
    let owner = test.customer().await;
    let connected = connect(&test, &owner, &server).await;
    let session = thief(&test, &connected).await;
    let patience = Duration::from_secs(20);
    session.run(&format!("{} facts", CommandId::new()), patience).await.unwrap();
    let refused = session.run("cat /etc/shadow", patience).await.unwrap();
    assert_eq!(refused.exit_status, Some(126), "{refused:?}");
    session.close().await;

    test.advance(SignedDuration::from_hours(2)).await;
    until(&test, &owner, &connected, |connection| connection["log_differences"] == 2).await;
    test.until_handed("connection_log_differs", 1).await;
    let alerts: Vec<String> = sqlx::query_scalar("select detail from operator_alerts where kind = 'byos_log_differs'")
        .fetch_all(&test.app.pool)
        .await
        .unwrap();
    assert!(alerts.len() == 1 && alerts[0].contains("cat /etc/shadow"), "{alerts:?}");
    let two = test.get(&owner, &format!("{}/log", path(&connected))).await;
    let kinds: Vec<&str> =
        two["differences"].as_array().unwrap().iter().filter_map(|one| one["kind"].as_str()).collect();
    assert_eq!(kinds, ["not_ours", "not_ours"]);

    // And a server whose log lost a line of ours is found as well.
    let file = server.path(gate::LOG_PATH);
    let disk = run(&test, &owner, &connected, "disk", None).await;
    run(&test, &owner, &connected, "facts", None).await;
    let text = std::fs::read_to_string(&file).unwrap();
    let kept: String = text
        .lines()
        .filter(|line| !line.contains(disk["id"].as_str().unwrap()))
        .map(|line| format!("{line}\n"))
        .collect();
    // Where the file system keeps it from being changed, root can take that off.
    server.run_as_root(&format!("chattr -a {} 2>/dev/null || true", gate::LOG_PATH)).unwrap();
    std::fs::write(&file, kept).unwrap();
    test.advance(SignedDuration::from_hours(2)).await;
    until(&test, &owner, &connected, |connection| connection["log_differences"] == 3).await;
    let two = test.get(&owner, &format!("{}/log", path(&connected))).await;
    let missing = two["differences"].as_array().unwrap().iter().find(|one| one["kind"] == "missing").unwrap();
    assert_eq!(missing["command_id"], disk["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_connections_are_looked_at_within_a_minute() {
    const CONNECTIONS: usize = 200;
    let Some(server) = stand_in(CONNECTIONS) else { return };
    let world = World::new().await;
    let test = world.start(false).await;
    let now = test.app.now();
    let mut people = Vec::new();
    for _ in 0..4 {
        people.push(test.customer().await);
    }
    // The first is connected with the line; the others' lines are added as the line would.
    let body = json!({ "host": "127.0.0.1", "port": server.port(), "label": "0" });
    let first = test.post(&people[0], "/api/byos/connections", body).await;
    let pasted = server.run_as_root(first["onboarding"]["line"].as_str().unwrap()).unwrap();
    assert!(pasted.status.success(), "{}", said(&pasted));
    let mut lines = authorized_keys(&server);
    for (n, port) in server.ports().iter().enumerate().skip(1) {
        let body = json!({ "host": "127.0.0.1", "port": port, "label": n.to_string() });
        let connection = test.post(&people[n % 4], "/api/byos/connections", body).await;
        lines += &format!("{}\n", connection["onboarding"]["authorized_keys_line"].as_str().unwrap());
    }
    std::fs::write(server.path("/var/lib/seedbox-mgr/.ssh/authorized_keys"), lines).unwrap();
    let started = Instant::now();
    byos_connector::probe_due(&test.app).await.unwrap();
    let took = started.elapsed();
    let connected: i64 = sqlx::query_scalar("select count(*) from byos_connections where status = 'connected'")
        .fetch_one(&test.app.pool)
        .await
        .unwrap();
    println!("{CONNECTIONS} servers were looked at for the first time in {:.1} s", took.as_secs_f32());
    let errors: Vec<(String, String)> =
        sqlx::query_as("select last_error_kind, last_error from byos_connections where status <> 'connected' limit 3")
            .fetch_all(&test.app.pool)
            .await
            .unwrap();
    assert_eq!(connected, i64::try_from(CONNECTIONS).unwrap(), "{errors:?}");
    // The second look, which is what happens every few minutes.
    world.clock.set_offset(world.clock.offset() + SignedDuration::from_mins(7));
    let started = Instant::now();
    byos_connector::probe_due(&test.app).await.unwrap();
    let took = started.elapsed();
    println!("{CONNECTIONS} servers were looked at again in {:.1} s", took.as_secs_f32());
    let seen: i64 = sqlx::query_scalar("select count(*) from byos_connections where last_seen_at > $1")
        .bind(seedplane::clock::Time(now.0 + SignedDuration::from_mins(6)))
        .fetch_one(&test.app.pool)
        .await
        .unwrap();
    assert_eq!(seen, i64::try_from(CONNECTIONS).unwrap(), "none was missed");
    assert!(took.as_secs() < 60, "a missed deadline: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_private_key_is_taken_kept_in_the_database_or_shown() {
    let test = TestApp::new().await;
    let owner = test.customer().await;
    let body =
        json!({ "host": "127.0.0.1", "port": 1, "label": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk" });
    let (status, problem) = test.call(Some(&owner), Method::POST, "/api/byos/connections", Some(body)).await;
    assert_eq!((status, &problem["type"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("private-key-refused")));
    assert_eq!(test.get(&owner, "/api/byos/connections").await, json!([]));
    let (status, _) = test
        .call(
            Some(&owner),
            Method::POST,
            "/api/byos/connections",
            Some(json!({ "host": "h.example", "private_key": "x" })),
        )
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "no field takes one");
    let description = test.call(None, Method::GET, "/openapi.json", None).await.1.to_string();
    assert!(!description.contains("private_key"), "no field of the API is for a private key");

    let connection = test.post(&owner, "/api/byos/connections", json!({ "host": "127.0.0.1", "port": 1 })).await;
    let known = row(&test, &connection).await;
    let private = test.app.secrets.get_reference(&known.secret_ref).await.unwrap().unwrap();
    let needles: Vec<&str> =
        private.expose_secret().lines().filter(|line| line.len() > 30 && !line.starts_with("-----")).skip(1).collect();
    assert!(!needles.is_empty());
    let dump = std::process::Command::new("pg_dump").arg(&test.world.url).output().unwrap();
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    assert!(dump.contains(known.public_key.split(' ').next_back().unwrap()), "the dump is one of our database");
    let mut places = vec![("the dump".to_owned(), dump), ("the API".to_owned(), connection.to_string())];
    let mut folders = vec![test.world.folder.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                let text = String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()).into_owned();
                places.push((entry.path().display().to_string(), text));
            }
        }
    }
    for (place, text) in places {
        assert!(!text.contains("PRIVATE KEY-----"), "{place}");
        for needle in &needles {
            assert!(!text.contains(needle), "{place} holds a private key");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_makes_us_connect_to_our_own_network() {
    let world = World::new().await;
    let mut test = world.start(false).await;
    test.app.allow_private_servers = false;
    let owner = test.customer().await;
    let test = test.served_again().await;
    for host in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "::ffff:127.0.0.1", "2130706433", "user@host", ""]
    {
        let (status, problem) =
            test.call(Some(&owner), Method::POST, "/api/byos/connections", Some(json!({ "host": host }))).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{host}: {problem}");
    }
    // A name is looked up when it is connected to, and what it leads to then counts.
    let connection = test.post(&owner, "/api/byos/connections", json!({ "host": "localhost" })).await;
    let id = ConnectionId(connection["id"].as_str().unwrap().parse().unwrap());
    byos_connector::probe(&test.app, id).await.unwrap();
    let looked = test.get(&owner, &path(&connection)).await;
    assert_eq!(looked["last_error"]["kind"], "address_not_allowed", "{looked}");
    let sent = commands::list(&test.app.pool, id, None, 10).await.unwrap();
    assert!(sent.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_belongs_to_its_owner_and_has_limits() {
    let test = TestApp::new().await;
    let owner = test.customer().await;
    let mut seen = Vec::new();
    for n in 0..50 {
        let body = json!({ "host": format!("box-{n}.example"), "label": format!("box {n}") });
        seen.push(test.post(&owner, "/api/byos/connections", body).await);
    }
    let (status, problem) = test
        .call(Some(&owner), Method::POST, "/api/byos/connections", Some(json!({ "host": "one-more.example" })))
        .await;
    assert_eq!(status, StatusCode::CONFLICT, "{problem}");
    let keys: std::collections::BTreeSet<&str> =
        seen.iter().map(|connection| connection["public_key"].as_str().unwrap()).collect();
    assert_eq!(keys.len(), 50, "one pair a connection");
    let stranger = test.customer().await;
    assert_eq!(test.get(&stranger, "/api/byos/connections").await, json!([]));
    let one = path(&seen[0]);
    for (method, path, body) in [
        (Method::GET, one.clone(), None),
        (Method::DELETE, one.clone(), None),
        (Method::POST, format!("{one}/verify"), Some(json!({}))),
        (Method::POST, format!("{one}/rotate"), Some(json!({}))),
        (Method::POST, format!("{one}/run"), Some(json!({ "action": "disk" }))),
        (Method::POST, format!("{one}/confirm-host-key"), Some(json!({ "fingerprint": "x" }))),
        (Method::POST, format!("{one}/consent"), Some(json!({ "gate_sha256": "x", "manifest_sha256": "x" }))),
        (Method::GET, format!("{one}/commands"), None),
        (Method::GET, format!("{one}/commands/{}", CommandId::new()), None),
        (Method::GET, format!("{one}/log"), None),
    ] {
        let (status, _) = test.call(Some(&stranger), method.clone(), &path, body).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{method} {path}");
    }
    // The same request with the same key makes one connection.
    let ask = async || {
        let request = test.http.post(format!("{}/api/byos/connections", test.base)).bearer_auth(&stranger.token);
        let request = request.header("idempotency-key", "k1").json(&json!({ "host": "twice.example" }));
        request.send().await.unwrap().json::<Value>().await.unwrap()["id"].clone()
    };
    assert_eq!(ask().await, ask().await);
    assert_eq!(test.get(&stranger, "/api/byos/connections").await.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_moves_of_a_connection_are_the_same_in_sql_and_in_rust() {
    let test = World::new().await.start(false).await;
    for from in ConnectionStatus::ALL {
        for to in ConnectionStatus::ALL {
            let allowed: bool = sqlx::query_scalar("select byos_connection_allows($1, $2)")
                .bind(from.as_str())
                .bind(to.as_str())
                .fetch_one(&test.app.pool)
                .await
                .unwrap();
            assert_eq!(allowed, MOVES.contains(&(*from, *to)), "{from} -> {to}");
        }
    }
    // And the database refuses what is not in the list, whoever asks.
    let owner = test.customer().await;
    let connection = test.post(&owner, "/api/byos/connections", json!({ "host": "box.example" })).await;
    let mut known = row(&test, &connection).await;
    let mut tx = test.app.pool.begin().await.unwrap();
    let now = test.app.now();
    let refused =
        connections::transition_in(&mut tx, &mut known, ConnectionStatus::Error, Some("x"), now, &Cause::system())
            .await;
    assert!(refused.is_err());
    drop(tx);
    workers::tick(&test.app).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_what_is_wrong_and_can_only_take_our_key_back() {
    let test = TestApp::new().await;
    let (owner, operator) = (test.customer().await, test.person(seedplane::accounts::Role::Operator).await);
    let connection = test.post(&owner, "/api/byos/connections", json!({ "host": "127.0.0.1", "port": 1 })).await;
    until(&test, &owner, &connection, |connection| connection["last_error"]["kind"] == "port_closed").await;
    let listed = test.get(&operator, "/api/operator/byos/connections").await;
    assert_eq!(listed[0]["id"], connection["id"]);
    assert!(listed[0]["last_error"].as_str().unwrap().contains("is sshd running there"), "{listed}");
    let at = format!("/api/operator/byos/connections/{}", connection["id"].as_str().unwrap());
    let revoke = format!("{at}/revoke");
    let (status, _) = test.call(Some(&owner), Method::POST, &revoke, Some(json!({ "reason": "x" }))).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "an owner is no operator");
    let (status, _) = test.call(Some(&operator), Method::POST, &revoke, Some(json!({ "reason": " " }))).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "an operator says why");
    // Nothing but that: an operator is a stranger to what an owner can do.
    let run = format!("{}/run", path(&connection));
    let (status, _) = test.call(Some(&operator), Method::POST, &run, Some(json!({ "action": "disk" }))).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    test.post(&operator, &revoke, json!({ "reason": "abuse report 17" })).await;
    let revoked = until(&test, &owner, &connection, |connection| connection["status"] == "revoked").await;
    assert_eq!(revoked["revocation"], "unverified");
    let reason: String =
        sqlx::query_scalar("select reason from seedbox_audit_events where action = 'connection.revocation_requested'")
            .fetch_one(&test.app.pool)
            .await
            .unwrap();
    assert_eq!(reason, "abuse report 17");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_certificates_nothing_that_is_kept_opens_the_server() {
    let Some(server) = stand_in(1) else { return };
    let test = TestApp::new().await;
    let owner = test.customer().await;
    let body = json!({ "host": "127.0.0.1", "port": server.port(), "label": "certified", "access": "certificate" });
    let pending = test.post(&owner, "/api/byos/connections", body.clone()).await;
    let line = pending["onboarding"]["line"].as_str().unwrap();
    for _ in 0..2 {
        let pasted = server.run_as_root(line).unwrap();
        assert!(pasted.status.success(), "{line}\n{}", said(&pasted));
    }
    assert_eq!(authorized_keys(&server).trim(), pending["onboarding"]["authorized_keys_line"].as_str().unwrap());
    test.post(&owner, &format!("{}/verify", path(&pending)), json!({})).await;
    let connected = until(&test, &owner, &pending, |connection| connection["status"] == "connected").await;
    let disk = run(&test, &owner, &connected, "disk", None).await;
    assert_eq!(disk["exit_status"], 0, "{disk}");
    // Every certificate is in the audit log by its number before it is used, and the server's sshd logged the same one.
    let serials: Vec<String> = sqlx::query_scalar(
        "select after ->> 'serial' from seedbox_audit_events where action = 'connection.certificate_issued' order by seq desc",
    )
    .fetch_all(&test.app.pool)
    .await
    .unwrap();
    assert!(serials.len() >= 2, "one for each login: {serials:?}");
    let sshd = server.sshd_log().unwrap();
    assert!(sshd.contains(&format!("serial {}", serials[0])), "{sshd}");
    let (status, _) =
        test.call(Some(&owner), Method::POST, &format!("{}/rotate", path(&connected)), Some(json!({}))).await;
    assert_eq!(status, StatusCode::CONFLICT, "there is no key to replace");

    // What a thief of the authority, of a certificate or of the secret store can make of it, against the real sshd.
    let known = row(&test, &connected).await;
    let authority = keys::private(test.app.secrets.as_ref(), &known.secret_ref).await.unwrap();
    let target =
        Target { host: known.host.clone(), port: known.ssh_port(), pinned: known.host_key, allow_private: true };
    let command = broker::gate_command(known.id);
    let now = jiff::Timestamp::now();
    let login = |connection: ConnectionId, command: &str, source: Option<&str>, at: jiff::Timestamp| {
        let issued = certificates::issue(&authority, connection, command, source, at).unwrap();
        Login::Certificate {
            key: issued.key,
            certificate: Box::new(issued.certificate),
            lasts: Duration::from_secs(300),
        }
    };
    let refused = async |what: &str, login: Login| {
        let answer = Session::open(&target, login).await;
        assert!(matches!(answer, Err(SshError::Refused { .. })), "{what}: {answer:?}");
    };
    refused("ended", login(known.id, &command, None, now - SignedDuration::from_mins(6))).await;
    refused("not yet good", login(known.id, &command, None, now + SignedDuration::from_mins(6))).await;
    refused("another connection's name", login(ConnectionId::new(), &command, None, now)).await;
    refused("another command", login(known.id, "/bin/sh", None, now)).await;
    refused("from elsewhere", login(known.id, &command, Some("203.0.113.0/24"), now)).await;
    refused("the authority's own key", Login::Key(authority.clone())).await;
    let stranger = keys::make(test.app.secrets.as_ref(), ConnectionId::new(), 1).await.unwrap();
    let stranger = keys::private(test.app.secrets.as_ref(), &stranger.secret_ref).await.unwrap();
    let issued = certificates::issue(&stranger, known.id, &command, None, now).unwrap();
    let forged = Login::Certificate {
        key: issued.key,
        certificate: Box::new(issued.certificate),
        lasts: Duration::from_secs(300),
    };
    refused("another authority", forged).await;
    let session = Session::open(&target, login(known.id, &command, Some("127.0.0.1/32"), now)).await.unwrap();
    let key = keys::make(test.app.secrets.as_ref(), ConnectionId::new(), 1).await.unwrap();
    let add = format!("{} key-add {}", CommandId::new(), keys::body(&key.public_key));
    let answer = session.run(&add, Duration::from_secs(20)).await.unwrap();
    assert_eq!(answer.exit_status, Some(126), "no certificate leaves a key behind that outlives it: {answer:?}");
    session.close().await;
    // A session ends with its certificate.
    let issued = certificates::issue(&authority, known.id, &command, None, now).unwrap();
    let short = Login::Certificate {
        key: issued.key,
        certificate: Box::new(issued.certificate),
        lasts: Duration::from_millis(700),
    };
    let session = Session::open(&target, short).await.unwrap();
    tokio::time::sleep(Duration::from_millis(800)).await;
    let late = session.run(&format!("{} hello", CommandId::new()), Duration::from_secs(20)).await.unwrap_err();
    assert!(late.to_string().contains("certificate of this session has ended"), "{late}");

    test.call(Some(&owner), Method::DELETE, &path(&connected), None).await;
    let revoked = until(&test, &owner, &connected, |connection| connection["status"] == "revoked").await;
    assert_eq!(revoked["revocation"], "locked_out");
    assert_eq!(authorized_keys(&server), "");
    refused("revoked", login(known.id, &command, None, jiff::Timestamp::now())).await;
    // The authority is not this connection's: others go on.
    keys::private(test.app.secrets.as_ref(), &known.secret_ref).await.unwrap();
}
