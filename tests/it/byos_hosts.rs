//! How many SSH sessions one host gets from us at once, whoever's connections lead there and however many copies run.

use std::{
    collections::HashSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use jiff::SignedDuration;
use reqwest::Method;
use seedplane::byos::hosts::{HostError, Place, Purpose};
use seedplane_provisioning::node::gate;
use serde_json::{Value, json};

use crate::{
    byos::{connect, stand_in},
    support::{PATIENCE, TestApp, World},
};

/// The most sessions that were open at once, in what an sshd logged of itself: a connection to its end.
fn most_at_once(log: &str) -> usize {
    let (mut open, mut most) = (HashSet::new(), 0);
    for line in log.lines() {
        let Some(port) = line.split(" port ").nth(1).and_then(|rest| rest.split([' ', ':']).next()) else { continue };
        if line.contains("Connection from ") {
            open.insert(port.to_owned());
        } else if ["isconnect", "onnection closed", "onnection reset"].iter().any(|ended| line.contains(ended)) {
            open.remove(port);
        }
        most = most.max(open.len());
    }
    most
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_gets_two_sessions_at_once_and_keeps_no_other_host_waiting() {
    const CONNECTIONS: usize = 10;
    let Some(server) = stand_in(2) else { return };
    let world = World::new().await;
    let (test, other_copy) = (world.start(true).await, world.start(true).await);
    let people = [test.customer().await, test.customer().await, test.customer().await];
    let mut lines = String::new();
    let mut connections = Vec::new();
    for n in 0..=CONNECTIONS {
        let owner = &people[n % people.len()];
        // All at one host but the last, and by two names.
        let host = if n % 2 == 0 { "127.0.0.1" } else { "localhost" };
        let port = server.ports()[usize::from(n == CONNECTIONS)];
        let body = json!({ "host": host, "port": port, "label": n.to_string() });
        let connection = test.post(owner, "/api/byos/connections", body).await;
        if n == 0 {
            let line = connection["onboarding"]["line"].as_str().unwrap().to_owned();
            assert!(server.run_as_root(&line).unwrap().status.success());
        }
        lines += &format!("{}\n", connection["onboarding"]["authorized_keys_line"].as_str().unwrap());
        connections.push((owner.clone(), format!("/api/byos/connections/{}", connection["id"].as_str().unwrap())));
    }
    std::fs::write(server.path("/var/lib/seedbox-mgr/.ssh/authorized_keys"), lines).unwrap();
    for (owner, path) in &connections {
        test.post(owner, &format!("{path}/verify"), json!({})).await;
    }
    for (owner, path) in &connections {
        test.until(owner, path, |connection| connection["status"] == "connected").await;
    }
    server.put_program("/usr/bin/df", "#!/bin/sh\nexec sleep 1\n").unwrap();

    // Everybody asks for everything at once, of both copies.
    let started = Instant::now();
    let mut commands: Vec<(usize, String)> = Vec::new();
    for (n, (owner, path)) in connections.iter().enumerate() {
        let copy = if n % 2 == 0 { &test } else { &other_copy };
        for action in ["disk", "facts"] {
            let command = copy.post(owner, &format!("{path}/run"), json!({ "action": action })).await;
            commands.push((n, format!("{path}/commands/{}", command["id"].as_str().unwrap())));
        }
        copy.post(owner, &format!("{path}/verify"), json!({})).await;
    }
    let waits = |command: &Value| command["status"] == "requested";
    let answered = |command: &Value| !waits(command) && command["status"] != "sent";
    // The other host's is done while most still wait for the first.
    test.until(&connections[CONNECTIONS].0, &commands[2 * CONNECTIONS].1, answered).await;
    let took = started.elapsed();
    let mut waiting = 0;
    for (n, command) in &commands {
        waiting += usize::from(waits(&test.get(&connections[*n].0, command).await));
    }
    println!("the other host answered after {:.1} s; {waiting} commands waited for the first then", took.as_secs_f32());
    assert!(waiting > 0, "it waited for all that was asked of the first");

    let mut finished: Vec<Value> = Vec::new();
    for (n, command) in &commands {
        let command = test.until(&connections[*n].0, command, answered).await;
        assert_eq!((&command["status"], &command["exit_status"]), (&json!("done"), &json!(0)), "{command}");
        finished.push(command);
    }
    // What is put off is not overtaken by what was asked for later over the same connection.
    for pair in finished.chunks(2) {
        assert!(pair[0]["sent_at"].as_str() <= pair[1]["sent_at"].as_str(), "{pair:?}");
    }
    assert!(started.elapsed() < PATIENCE);

    // Each port has lines of its own: the sessions at the first are those that say so.
    let log = server.sshd_log().unwrap();
    let first = format!("on 127.0.0.1 port {}", server.port());
    let others: HashSet<&str> = log
        .lines()
        .filter(|line| line.contains("Connection from ") && !line.contains(&first))
        .filter_map(|line| line.split(" port ").nth(1)?.split(' ').next())
        .collect();
    let at_first: Vec<&str> =
        log.lines().filter(|line| !others.iter().any(|port| line.contains(&format!(" port {port}")))).collect();
    let most = most_at_once(&at_first.join("\n"));
    let gate_log = std::fs::read_to_string(server.path(gate::LOG_PATH)).unwrap();
    println!(
        "{} requests in {:.1} s, {most} sessions at once at most",
        gate_log.lines().filter(|line| line.ends_with(" begin")).count(),
        started.elapsed().as_secs_f32()
    );
    assert_eq!(most, 2, "{}", at_first.join("\n"));
    drop(other_copy);
}

/// A place at a host, as soon as there is one.
async fn place(test: &TestApp, host: SocketAddr) -> Place {
    let started = Instant::now();
    loop {
        match test.app.hosts.enter(&[host], Purpose::Asked).await {
            Ok(place) => return place,
            Err(HostError::Busy) => assert!(started.elapsed() < PATIENCE, "no place becomes free"),
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_place_is_put_off_and_a_revocation_not_for_long() {
    let Some(server) = stand_in(1) else { return };
    let world = World::new().await;
    let (test, other_copy) = (world.start(true).await, world.start(false).await);
    let owner = test.customer().await;
    let connected = connect(&test, &owner, &server).await;
    let path = format!("/api/byos/connections/{}", connected["id"].as_str().unwrap());
    test.idle().await;
    let host = SocketAddr::from(([127, 0, 0, 1], server.port()));
    let taken = [place(&other_copy, host).await, place(&other_copy, host).await];
    for copy in [&test, &other_copy] {
        let more = copy.app.hosts.enter(&[host], Purpose::Asked).await;
        assert!(matches!(more, Err(HostError::Busy)), "{more:?}");
    }
    let asked = test.post(&owner, &format!("{path}/run"), json!({ "action": "disk" })).await;
    let command = format!("{path}/commands/{}", asked["id"].as_str().unwrap());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let waits = test.get(&owner, &command).await;
    assert_eq!((&waits["status"], &waits["sent_at"]), (&json!("requested"), &Value::Null), "it is no failure: {waits}");
    // With the connection that holds them, the places of a copy are free: nothing has to be waited for after a crash.
    let ended: Vec<bool> = sqlx::query_scalar(
        "select pg_terminate_backend(pid) from (
             select distinct pid from pg_locks join pg_database on oid = database
             where locktype = 'advisory' and datname = current_database()) holders",
    )
    .fetch_all(&world.owner().await)
    .await
    .unwrap();
    assert!(ended.contains(&true), "{ended:?}");
    let done = test.until(&owner, &command, |command| command["status"] == "done").await;
    assert_eq!(done["exit_status"], 0);
    drop(taken);

    let _taken = [place(&other_copy, host).await, place(&other_copy, host).await];
    test.call(Some(&owner), Method::DELETE, &path, None).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let waits = test.get(&owner, &path).await;
    assert_eq!((&waits["status"], &waits["revoking"]), (&json!("connected"), &json!(true)));
    test.advance(SignedDuration::from_mins(3)).await;
    let revoked = test.until(&owner, &path, |connection| connection["status"] == "revoked").await;
    assert_eq!((&revoked["revocation"], &revoked["last_error"]["kind"]), (&json!("unverified"), &json!("busy")));
}
