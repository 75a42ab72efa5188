//! The whole product as its users run it: the binary itself.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use secrecy::ExposeSecret;
use seedplane::{
    postgres::{Embedded, EmbeddedOptions},
    secrets::{SecretStore, keystore::Keystore},
};

use crate::support::temporary;

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
/// not its logs, not a file of its data folder.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_works_and_leaves_no_secret_behind() {
    let folder = temporary("demo").join("run");
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_seedplane"))
        .args(["demo", "--exit", "--keep", "--data-dir"])
        .arg(&folder)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{said}");
    let log = std::fs::read_to_string(folder.join("demo.log")).unwrap_or_default();
    assert!(output.status.success(), "{said}\n{}\n{log}", String::from_utf8_lossy(&output.stderr));

    assert!(said.contains("fetched by another client"), "a torrent was seeded to another client");

    let data = folder.join("data");
    let keystore = Keystore::open(data.join("keystore")).unwrap();
    let mut secrets = Vec::new();
    for path in keystore.list("").await.unwrap() {
        let secret = keystore.get(&path).await.unwrap().unwrap();
        secrets.push((path.to_string(), secret.expose_secret().to_owned()));
    }
    assert!(
        secrets.iter().any(|(path, _)| path.contains("webhook-secret")),
        "{:?}",
        secrets.iter().map(|(path, _)| path).collect::<Vec<_>>()
    );
    assert!(secrets.iter().any(|(path, _)| path.contains("signing-key")));

    let embedded = Embedded::start(EmbeddedOptions { data_dir: data.clone(), binaries: None }).await.unwrap();
    let dump = Command::new("pg_dump").arg(embedded.url()).output().unwrap();
    embedded.stop().await;
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    assert!(dump.contains("seedbox_audit_events"), "the dump is one of our database");

    let mut places = vec![
        ("the database dump".to_owned(), dump),
        ("what the demo printed".to_owned(), said),
        ("the log".to_owned(), log),
    ];
    let mut files = Vec::new();
    every_file(&data, &mut files);
    for file in files {
        if !file.starts_with(data.join("keystore")) && !file.starts_with(data.join("postgres")) {
            places.push((
                file.display().to_string(),
                String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned(),
            ));
        }
    }
    for (name, text) in &places {
        for (path, secret) in &secrets {
            // The sandbox gateway is somebody else's computer: it knows what it signs with.
            if name.ends_with("sandbox-gateway.json") {
                continue;
            }
            assert!(!text.contains(secret.as_str()), "{name} holds the secret {path}");
        }
        for sign in ["PRIVATE KEY-----", "whsecret_", "cp_live_"] {
            assert!(!text.contains(sign) || name.ends_with("sandbox-gateway.json"), "{name} holds {sign}");
        }
    }
    let _ = std::fs::remove_dir_all(&folder);
}
