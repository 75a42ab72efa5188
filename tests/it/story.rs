//! The whole product as its users run it: the binary itself.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use secrecy::ExposeSecret;
use seedplane::{
    postgres::{Embedded, EmbeddedOptions},
    secrets::{SecretStore, keystore::Keystore},
};

use crate::support::{PATIENCE, temporary};

fn every_file(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            every_file(&path, found);
        } else if path.is_file() {
            found.push(path);
        }
    }
}

/// `seedplane demo` succeeds, and what it leaves behind holds no secret outside the keystore: not the dump of its database,
/// not its logs, not a file of its data folder. The secrets are those that the story itself had in its hands: what is in the
/// keystore at its end is not what was there on the way.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_works_and_leaves_no_secret_behind() {
    let base = temporary("demo");
    let (folder, noted) = (base.join("run"), base.join("secrets"));
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_seedplane"))
        .args(["demo", "--exit", "--keep", "--data-dir"])
        .arg(&folder)
        .env("SEEDPLANE_DEMO_SECRETS", &noted)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{said}");
    let log = std::fs::read_to_string(folder.join("demo.log")).unwrap_or_default();
    assert!(output.status.success(), "{said}\n{}\n{log}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("fetched by another client"), "a torrent was seeded to another client");
    assert!(!log.contains('\u{1b}'), "a log that is no terminal has no colours");

    let data = folder.join("data");
    let mut secrets: Vec<(String, String)> = std::fs::read_to_string(&noted)
        .unwrap()
        .lines()
        .map(|line| line.split_once('\t').map(|(what, secret)| (what.to_owned(), secret.to_owned())).unwrap())
        .collect();
    for (what, least) in [
        ("box password", 2),
        ("sign-in password", 1),
        ("session token", 1),
        ("API token", 1),
        ("one-time link", 2),
        ("operator password", 1),
        ("operator session token", 1),
    ] {
        let found: std::collections::BTreeSet<&str> =
            secrets.iter().filter(|(of, _)| of == what).map(|(_, secret)| secret.as_str()).collect();
        assert!(found.len() >= least, "{} of {least} different secrets '{what}'", found.len());
        assert!(found.iter().all(|secret| secret.len() >= 20), "{what}: too short to be looked for");
    }
    let keystore = Keystore::open(data.join("keystore")).unwrap();
    for path in keystore.list("").await.unwrap() {
        let secret = keystore.get(&path).await.unwrap().unwrap();
        secrets.push((path.to_string(), secret.expose_secret().to_owned()));
    }
    for kept in ["webhook-secret", "api-key", "signing-key"] {
        assert!(secrets.iter().any(|(path, _)| path.contains(kept)), "{kept} is not in the keystore");
    }

    let embedded = Embedded::start(EmbeddedOptions { data_dir: data.clone(), binaries: None }).await.unwrap();
    let dump = Command::new("pg_dump").arg(embedded.url()).output().unwrap();
    embedded.stop().await;
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let text = String::from_utf8_lossy(&dump.stdout).into_owned();
    assert!(text.contains("seedbox_audit_events"), "the dump is one of our database");

    let mut places = vec![
        ("the database dump".to_owned(), text),
        ("what the demo printed".to_owned(), said),
        ("what the demo complained of".to_owned(), String::from_utf8_lossy(&output.stderr).into_owned()),
        ("the log".to_owned(), log),
    ];
    let mut files = Vec::new();
    every_file(&folder, &mut files);
    // The server that was connected is somebody else's computer: it has host keys of its own.
    files.retain(|file| !file.starts_with(folder.join("own-server")));
    // The database's own files too: what was overwritten or rolled back can still stand in them.
    for file in files.into_iter().filter(|file| !file.starts_with(data.join("keystore"))) {
        let bytes = std::fs::read(&file).unwrap();
        places.push((file.display().to_string(), String::from_utf8_lossy(&bytes).into_owned()));
    }
    assert!(places.iter().any(|(name, _)| name.contains("/postgres/base/")), "the database's files are looked at");
    for (name, text) in &places {
        // The sandbox gateway is somebody else's computer: it knows what it signs with.
        let gateway = name.ends_with("sandbox-gateway.json");
        for (what, secret) in &secrets {
            // A mail holds its one-time link: that is what it is for, and the inbox stands for somebody's mailbox.
            let mail = what == "one-time link" && name.contains("/inbox/");
            assert!(gateway || mail || !text.contains(secret.as_str()), "{name} holds the {what}");
        }
        for sign in ["PRIVATE KEY-----", "whsecret_", "cp_live_"] {
            assert!(gateway || !text.contains(sign), "{name} holds {sign}");
        }
    }
    let _ = std::fs::remove_dir_all(&base);
}

/// Stopped in the middle, by either signal, the demo ends what it started and removes its folder; killed, what it started
/// ends by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_demo_that_is_stopped_leaves_nothing_running() {
    for signal in ["-INT", "-TERM", "-KILL"] {
        let base = temporary("stopped");
        let folder = base.join("run");
        let mut demo = Command::new(env!("CARGO_BIN_EXE_seedplane"))
            .args(["demo", "--exit", "--data-dir"])
            .arg(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let log = folder.join("demo.log");
        let started = Instant::now();
        while !std::fs::read_to_string(&log).unwrap_or_default().contains("ready: ") {
            assert!(started.elapsed() < PATIENCE, "it does not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let sent = Command::new("kill").args([signal, &demo.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let status = demo.wait().unwrap();
        if signal != "-KILL" {
            assert_eq!(status.code(), Some(130), "{signal}");
            assert!(!folder.exists(), "{signal}: its folder is still there");
        }
        let left = || {
            std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains(base.to_str().unwrap())
            })
        };
        let started = Instant::now();
        while left() {
            assert!(started.elapsed() < PATIENCE, "{signal}: something is still running");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let _ = std::fs::remove_dir_all(&base);
    }
}
