//! Droplets sold, used and ended through the whole control plane: the provider's client, nodes that report over HTTP, workers
//! that die, and a stand-in for DigitalOcean that is held to the official description.

use std::{net::IpAddr, path::Path};

use jiff::SignedDuration;
use reqwest::Method;
use secrecy::SecretString;
use seedplane::{accounts::Role, workers::reconciler};
use seedplane_provisioning::Credentials;
use seedplane_simulators::digitalocean::{Config, Faults, Lag};
use serde_json::{Value, json};

use crate::support::{DROPLETS_TOKEN, Person, TestApp, World};

#[path = "../../crates/simulators/tests/support/openapi.rs"]
mod openapi;

use openapi::Gate;

/// The official description, where it is laid beside the project.
fn gate() -> Option<Gate> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/reference/digitalocean-openapi-subset.json");
    let gate = Gate::load(Path::new(path));
    if gate.is_none() {
        println!("SKIPPED: the exchanges are not checked against DigitalOcean's description, which is not at {path}");
    }
    gate
}

pub fn config() -> Config {
    Config {
        lag: Lag::all(SignedDuration::from_millis(300)),
        limits: false,
        nodes_report: true,
        ..Config::new(DROPLETS_TOKEN)
    }
}

/// A plan on droplets that may be sold.
pub async fn plan(test: &TestApp, operator: &Person) -> Value {
    let permission = json!({ "reason": "written consent of 2026-11-02, ticket 123" });
    let path = "/api/operator/providers/digitalocean/permission";
    let (status, answer) = test.call(Some(operator), Method::PUT, path, Some(permission)).await;
    assert!(status.is_success(), "{status} {answer}");
    let plan = json!({ "code": "droplet", "name": "Droplet", "price_cents": 1500, "provider": "digitalocean",
        "size": "s-1vcpu-1gb", "region": "fra1", "disk_gb": 20, "reason": "to sell droplets" });
    let added = test.post(operator, "/api/operator/plans", plan).await;
    assert_eq!((&added["upstream_cost_cents"], &added["margin_cents"]), (&json!(600), &json!(900)), "{added}");
    added["id"].clone()
}

/// An order that its owner's balance covers; the box.
pub async fn order(test: &TestApp, buyer: &Person, plan: &Value) -> String {
    let order = test.post(buyer, "/api/seedbox/orders", json!({ "plan_id": plan })).await;
    format!("/api/seedbox/resources/{}", order["resource_id"].as_str().unwrap_or_else(|| panic!("{order}")))
}

/// What the owner of a box is shown, once: where it is, and the login.
pub async fn shown(test: &TestApp, buyer: &Person, path: &str) -> (IpAddr, Credentials) {
    let shown = test.post(buyer, &format!("{path}/credentials"), json!({})).await;
    let credentials = Credentials {
        username: shown["login_name"].as_str().unwrap().to_owned(),
        password: SecretString::from(shown["password"].as_str().unwrap()),
    };
    (shown["web_url"].as_str().unwrap().trim_start_matches("https://").parse().unwrap(), credentials)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_droplet_is_sold_used_and_ended() {
    let world = World::new().await.with_droplets(config()).await;
    let simulator = world.droplets.clone().unwrap().1;
    let gate = gate();
    if let Some(gate) = &gate {
        gate.watch(&simulator);
    }
    let test = world.start(true).await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let plan = plan(&test, &operator).await;
    test.top_up(&buyer, 3000).await;
    let path = order(&test, &buyer, &plan).await;
    test.until(&buyer, &path, |seen| seen["status"] == "active").await;
    let droplets = simulator.alive();
    assert_eq!((droplets.len(), droplets[0].region.as_str()), (1, "fra1"));
    let (address, login) = shown(&test, &buyer, &path).await;
    simulator.login(address, &login).unwrap();

    test.post(&buyer, &format!("{path}/suspend"), json!({})).await;
    let suspended = test.until(&buyer, &path, |seen| seen["status"] == "suspended").await;
    assert_eq!(suspended["suspend_reason"], "user");
    assert!(simulator.login(address, &login).is_err());
    assert!(!simulator.alive()[0].is_off(), "the node stops the client; the droplet is left running");
    test.post(&buyer, &format!("{path}/resume"), json!({})).await;
    test.until(&buyer, &path, |seen| seen["status"] == "active" && seen["operations"] == json!([])).await;
    simulator.login(address, &login).expect("the same login after a return");

    test.post(&buyer, &format!("{path}/rotate-credentials"), json!({})).await;
    test.until(&buyer, &path, |seen| seen["operations"] == json!([]) && seen["credentials_shown"] == false).await;
    assert!(simulator.login(address, &login).is_err(), "the old password is dead");
    let (_, login) = shown(&test, &buyer, &path).await;
    simulator.login(address, &login).expect("the new one works");

    let larger = json!({ "code": "larger", "name": "Larger", "price_cents": 3000, "provider": "digitalocean",
        "size": "s-2vcpu-2gb", "region": "fra1", "disk_gb": 50, "reason": "to sell larger ones" });
    let larger = test.post(&operator, "/api/operator/plans", larger).await["id"].clone();
    test.top_up(&buyer, 3000).await;
    test.post(&buyer, &format!("{path}/upgrade"), json!({ "plan_id": larger })).await;
    test.until(&buyer, &path, |seen| seen["operations"] == json!([]) && seen["price_cents"] == 3000).await;
    assert_eq!(simulator.alive()[0].size, "s-2vcpu-2gb");
    simulator.login(address, &login).expect("the same login on the larger droplet");

    let dump = test.get(&operator, "/api/operator/alerts").await;
    assert_eq!(dump, json!([]), "nothing for an operator to look at");
    test.post(&buyer, &format!("{path}/terminate"), json!({ "confirm_label": "Larger" })).await;
    let ended = test.until(&buyer, &path, |seen| seen["status"] == "terminated").await;
    let certificate = ended["wipe_certificate"].to_string();
    for said in [
        "What becomes of the disk's blocks is DigitalOcean's word",
        "the node: 3 files",
        "accepted to destroy droplet",
        "second look",
    ] {
        assert!(certificate.contains(said), "no '{said}' in {certificate}");
    }
    assert!(simulator.alive().is_empty());
    test.idle().await;
    test.assert_sound().await;
    let left: i64 = sqlx::query_scalar("select count(*) from seedbox_nodes where secret_ref is not null")
        .fetch_one(&test.app.pool)
        .await
        .unwrap();
    assert_eq!(left, 0, "the key to its node is destroyed");
    if let Some(gate) = gate {
        println!("{} exchanges checked against the official description", gate.checked());
        assert_eq!(gate.violations(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_heard_once_and_only_with_its_own_token() {
    let world = World::new().await.with_droplets(Config { nodes_report: false, ..config() }).await;
    let simulator = world.droplets.clone().unwrap().1;
    let test = world.start(true).await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let plan = plan(&test, &operator).await;
    test.top_up(&buyer, 3000).await;
    let path = order(&test, &buyer, &plan).await;
    let droplet = loop {
        match simulator.alive().pop() {
            Some(droplet) => break droplet,
            None => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    };
    let line = |start: &str| -> String {
        let lines = droplet.user_data.lines();
        lines.filter_map(|line| line.trim_start().strip_prefix(start)).next().unwrap().trim_matches('\'').to_owned()
    };
    let (url, token) = (line("SEEDPLANE_READY_URL="), line("SEEDPLANE_READY_TOKEN="));
    assert!(url.starts_with(&format!("{}/api/nodes/", test.base)));
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINQGrvfW8wFb4qI6JCCJKRiCesZcBoZRUzVCG7NMXBAS";
    let ready = json!({ "state": "ready", "detail": "", "host_key": key, "boot_id": "x",
        "web_url": format!("https://{}", droplet.address), "certificate_sha256": "AB:CD" });
    let report = async |url: &str, token: &str, body: &Value| {
        let sent = test.http.post(url).bearer_auth(token).json(body).send().await.unwrap();
        sent.status().as_u16()
    };
    let elsewhere = url.replace(path.rsplit('/').next().unwrap(), "0199f000-0000-7000-8000-000000000001");
    let mut wrong = ready.clone();
    wrong["web_url"] = json!("https://x/<script>");
    let mut failed = ready.clone();
    (failed["state"], failed["detail"]) = (json!("failed"), json!("no-firewall"));
    for (expected, url, token, body) in [
        (401, &url, "wrong", &ready),
        (401, &elsewhere, token.as_str(), &ready),
        (422, &url, token.as_str(), &wrong),
        (422, &url, token.as_str(), &json!({ "state": "dancing" })),
        (204, &url, token.as_str(), &ready),
        (204, &url, token.as_str(), &ready),
        (409, &url, token.as_str(), &failed),
        (401, &url, "wrong", &ready),
    ] {
        assert_eq!(report(url, token, body).await, expected, "{body}");
    }
    test.until(&buyer, &path, |seen| seen["status"] == "active").await;
    let dump: String = sqlx::query_scalar("select string_agg(n::text, ' ') from seedbox_nodes n")
        .fetch_one(&test.app.pool)
        .await
        .unwrap();
    assert!(!dump.contains(&token) && dump.contains(key), "the database has the token's hash only");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_fails_costs_its_buyer_nothing() {
    let faults = Faults { node: 1_000, ..Faults::NONE };
    let world = World::new().await.with_droplets(Config { faults, ..config() }).await;
    let simulator = world.droplets.clone().unwrap().1;
    let test = world.start(true).await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let plan = plan(&test, &operator).await;
    test.top_up(&buyer, 1500).await;
    let path = order(&test, &buyer, &plan).await;
    test.until(&buyer, &path, |seen| seen["status"] == "terminated").await;
    assert!(simulator.alive().is_empty() && simulator.droplets_made() == 1);
    assert_eq!(test.get(&buyer, "/api/billing/account").await["available_cents"], 1500);
    let alerts = test.get(&operator, "/api/operator/alerts").await.to_string();
    assert!(alerts.contains("the node could not be set up: no-firewall"), "{alerts}");
    test.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_not_make_droplets_is_known_before_the_next_order() {
    let world = World::new().await.with_droplets(config()).await;
    let simulator = world.droplets.clone().unwrap().1;
    let test = world.start(true).await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let plan = plan(&test, &operator).await;
    test.top_up(&buyer, 3000).await;
    simulator.set_account_locked(true);
    reconciler::look_at_start(&test.app).await.unwrap();
    let (status, problem) =
        test.call(Some(&buyer), Method::POST, "/api/seedbox/orders", Some(json!({ "plan_id": plan }))).await;
    assert!(status.is_client_error() || status.is_server_error(), "{status} {problem}");
    assert!(problem["detail"].as_str().unwrap().contains("nothing was charged"), "{problem}");
    let alerts = test.get(&operator, "/api/operator/alerts").await.to_string();
    assert!(alerts.contains("DigitalOcean has locked the account"), "{alerts}");
    simulator.set_account_locked(false);
    reconciler::look_at_start(&test.app).await.unwrap();
    let path = order(&test, &buyer, &plan).await;
    test.until(&buyer, &path, |seen| seen["status"] == "active").await;
}

/// Answers are lost, doubled and refused, nodes do not answer, placements and actions fail. Workers that die in the middle of
/// it are in `killed`.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_bad_day_every_box_has_one_droplet_or_none() {
    const BOXES: usize = 3;
    let faults = Faults { request: 30, placement: 30, action: 30, deaf: 30, node: 0, unreachable: 30 };
    let world = World::new().await.with_droplets(Config { faults, seed: 7, ..config() }).await;
    let simulator = world.droplets.clone().unwrap().1;
    // Workers only once the provider was looked at.
    let test = world.start(false).await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    while plan_is_missing(&test, &operator).await {
        reconciler::look_at_start(&test.app).await.unwrap();
    }
    let worker = world.start(true).await;
    let plan = plan(&test, &operator).await;
    worker.top_up(&buyer, 1500 * i64::try_from(BOXES).unwrap()).await;
    let mut paths = Vec::new();
    for _ in 0..BOXES {
        paths.push(order(&test, &buyer, &plan).await);
    }
    let settled = async |so: &dyn Fn(&str) -> bool| {
        let started = std::time::Instant::now();
        loop {
            let mut waiting = Vec::new();
            for path in &paths {
                let seen = test.get(&buyer, path).await;
                if !so(seen["status"].as_str().unwrap()) {
                    waiting.push(format!("{} {}", seen["status"], seen["operations"]));
                }
            }
            if waiting.is_empty() {
                return;
            }
            // What fails again and again is tried after a minute.
            assert!(started.elapsed() < crate::support::PATIENCE * 5, "not settled: {waiting:?}");
            tokio::time::sleep(std::time::Duration::from_millis(1_000)).await;
        }
    };
    settled(&|status| matches!(status, "active" | "terminated")).await;
    let mut active = 0;
    for path in &paths {
        active += usize::from(test.get(&buyer, path).await["status"] == "active");
    }
    println!("{active} of {BOXES} boxes were delivered, {} droplets made", simulator.droplets_made());
    assert_eq!(simulator.alive().len(), active, "one droplet a box");
    for path in &paths {
        if test.get(&buyer, path).await["status"] == "active" {
            test.post(&buyer, &format!("{path}/terminate"), json!({ "confirm_label": "Droplet" })).await;
        }
    }
    settled(&|status| status == "terminated").await;
    assert!(simulator.alive().is_empty(), "{:?}", simulator.alive());
    worker.assert_sound().await;
}

/// On a bad day the first look at the provider may fail, too.
pub async fn plan_is_missing(test: &TestApp, operator: &Person) -> bool {
    let providers = test.get(operator, "/api/operator/providers").await;
    let ocean = providers.as_array().unwrap().iter().find(|one| one["provider"] == "digitalocean");
    ocean.is_none_or(|one| one["sizes"] == json!([]) || !one["failure"].is_null())
}
