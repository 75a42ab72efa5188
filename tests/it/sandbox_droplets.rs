//! The trial's second provider: a stand-in for DigitalOcean whose droplets are real torrent clients on this machine.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use reqwest::Method;
use secrecy::SecretString;
use seedplane_provisioning::{
    Credentials,
    node::qbittorrent::{ApiError, Session},
};
use serde_json::{Value, json};

use crate::{
    support::{PATIENCE, empty_database, temporary},
    trial::{Trial, said},
};

const SETTINGS: [&str; 3] = ["--sandbox-droplets", "--listen", "127.0.0.1:0"];

fn idle(seen: &Value) -> bool {
    seen["operations"] == json!([])
}

/// What the owner is shown, once: where the box is, and the login.
async fn shown(trial: &Trial, buyer: &str, path: &str) -> (String, Credentials) {
    let shown = trial.call(Some(buyer), Method::POST, &format!("{path}/credentials"), Some(json!({}))).await;
    let credentials = Credentials {
        username: shown["login_name"].as_str().unwrap().to_owned(),
        password: SecretString::from(shown["password"].as_str().unwrap()),
    };
    (shown["web_url"].as_str().unwrap().to_owned(), credentials)
}

fn boxes(data: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(data.join("sandbox-droplets")).unwrap().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.'))
        .collect()
}

#[tokio::test]
async fn a_sandbox_droplet_is_a_real_box_from_its_order_to_its_end() {
    let data = temporary("sandbox").join("data");
    let mut trial = Trial::start_with(data.clone(), &SETTINGS);
    let buyer = trial.sign_up().await;
    let paid = trial.pay(&buyer, 2000, "exact").await;
    trial.until(&buyer, &paid, |topup| topup["credited_cents"] == 2000).await;
    let plans = trial.call(None, Method::GET, "/api/seedbox/plans", None).await;
    let plan = plans.as_array().unwrap().iter().find(|plan| plan["code"] == "sandbox-droplet").unwrap();
    assert!(plan["description"].as_str().unwrap().contains("a sandbox"), "{plan}");
    let body = json!({ "plan_id": plan["id"] });
    let order = trial.call(Some(&buyer), Method::POST, "/api/seedbox/orders", Some(body)).await;
    let path = format!("/api/seedbox/resources/{}", order["resource_id"].as_str().unwrap_or_else(|| panic!("{order}")));
    trial.until(&buyer, &path, |seen| seen["status"] == "active").await;
    let (url, login) = shown(&trial, &buyer, &path).await;
    let session = Session::login(&url, &login).await.expect("the delivered login works at the delivered address");
    assert_eq!(boxes(&data).len(), 1);

    let ask = async |trial: &Trial, verb: &str, body: Value| {
        trial.call(Some(&buyer), Method::POST, &format!("{path}/{verb}"), Some(body)).await
    };
    ask(&trial, "suspend", json!({})).await;
    trial.until(&buyer, &path, |seen| seen["status"] == "suspended").await;
    assert!(matches!(Session::login(&url, &login).await, Err(ApiError::Unreachable(_))), "its process is stopped");
    // Suspended, it does not come back with the control plane.
    trial.stop().await;
    trial = Trial::start_with(data.clone(), &SETTINGS);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(matches!(Session::login(&url, &login).await, Err(ApiError::Unreachable(_))), "nor after a restart");
    ask(&trial, "resume", json!({})).await;
    trial.until(&buyer, &path, |seen| seen["status"] == "active" && idle(seen)).await;
    Session::login(&url, &login).await.expect("the same login after a return");
    assert!(session.version().await.is_err(), "sessions do not outlive a suspension");

    ask(&trial, "rotate-credentials", json!({})).await;
    trial.until(&buyer, &path, |seen| seen["credentials_shown"] == false && idle(seen)).await;
    assert!(matches!(Session::login(&url, &login).await, Err(ApiError::BadLogin)), "the old password is dead");
    let (url, login) = shown(&trial, &buyer, &path).await;
    Session::login(&url, &login).await.expect("the new one works");

    // Its account and its boxes are kept; what ran ends with the control plane, killed as it is here, and comes back.
    drop(trial);
    let started = Instant::now();
    while Session::login(&url, &login).await.is_ok() {
        assert!(started.elapsed() < PATIENCE, "the box outlives the control plane");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    trial = Trial::start_with(data.clone(), &SETTINGS);
    let started = Instant::now();
    while Session::login(&url, &login).await.is_err() {
        assert!(started.elapsed() < PATIENCE, "the box does not come back: {}", trial.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    ask(&trial, "terminate", json!({ "confirm_label": "Sandbox droplet" })).await;
    let ended = trial.until(&buyer, &path, |seen| seen["status"] == "terminated").await;
    let certificate = ended["wipe_certificate"].to_string();
    for words in ["the node: ", "accepted to destroy droplet", "second look"] {
        assert!(certificate.contains(words), "no '{words}' in {certificate}");
    }
    assert!(matches!(Session::login(&url, &login).await, Err(ApiError::Unreachable(_))));
    assert_eq!(boxes(&data), [""; 0], "its files are gone");
    trial.stop().await;
}

#[tokio::test]
async fn sandbox_droplets_are_refused_where_they_cannot_be() {
    let data = temporary("sandbox").join("data");
    let database = empty_database().await;
    let run = |arguments: &[&str], environment: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seedplane"));
        command.args(arguments).args(SETTINGS).arg("--data-dir").arg(&data).env("DATABASE_URL", &database);
        command.envs(environment.iter().copied()).output().unwrap()
    };
    for (arguments, environment, words) in [
        (["up"], [("SEEDPLANE_PRODUCTION", "true")], "is for a trial"),
        (["work"], [("SEEDPLANE_LOG", "warn")], "is for `seedplane up`"),
    ] {
        let output = run(&arguments, &environment);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(words), "{}", said(&output));
    }
}
