//! Somebody who brings a server of their own: from the wizard to the proof that we are locked out, with a real sshd.

use super::Browser;
use crate::{
    byos::stand_in,
    support::temporary,
    trial::{Trial, said},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_connected_used_watched_and_revoked() {
    let Some(server) = stand_in(1) else { return };
    let mut trial = Trial::start_in(temporary("self-hoster").join("data"), "127.0.0.1:0");
    let mut owner = Browser::open(&trial.base, "self-hoster").await;
    owner.go("/sign-up").await;
    owner.fill("#email", "owner@example.org").await;
    owner.fill("#password", "a long enough password").await;
    owner.press("Make the account").await;
    owner.press("Connect your own server").await;
    owner.until("We never get a key or a password of yours").await;
    owner.looked_at("new").await;

    // What cannot be a server is refused, and what was typed is still there.
    owner.fill("#host", "not a host").await;
    owner.fill("#label", "Attic").await;
    owner.press("Make the line to paste").await;
    owner.until("Host: ").await;
    assert_eq!(owner.find("#label").await.prop("value").await.unwrap().unwrap(), "Attic");
    owner.fill("#host", "127.0.0.1").await;
    owner.fill("#port", &server.port().to_string()).await;
    owner.press("Make the line to paste").await;
    owner.until("Paste this line on the server").await;
    owner.looked_at("line").await;
    let page = owner.path().await;

    // The page waits by itself for the key to work, and shows the fingerprint that the pasted line printed.
    let line = owner.find("#line").await.prop("textContent").await.unwrap().unwrap();
    let pasted = tokio::task::block_in_place(|| server.run_as_root(&line)).unwrap();
    assert!(pasted.status.success(), "{}", said(&pasted));
    let fingerprint = server.host_key_fingerprint().unwrap();
    assert!(said(&pasted).contains(&fingerprint), "{line}: {}", said(&pasted));
    owner.until("Connected").await;
    owner.until(&fingerprint).await;
    owner.looked_at("connected").await;

    // An action, and its answer in the same place; then both logs.
    owner.press("disk").await;
    owner.until("disk by you").await;
    owner.until("Filesystem").await;
    owner.press("log").await;
    owner.until("agree, ").await;
    owner.looked_at("used").await;

    // Another key, proved before the old one goes.
    let before = owner.text_of("aside dd.mono.small").await;
    owner.press("Replace our key").await;
    let started = std::time::Instant::now();
    loop {
        let text = owner.text().await;
        let now = text
            .lines()
            .find(|line| line.starts_with("SHA256:") && *line != fingerprint)
            .unwrap_or_default()
            .to_owned();
        if !now.is_empty() && !before.starts_with(&now) && !text.contains("being replaced") {
            break;
        }
        assert!(started.elapsed() < crate::support::PATIENCE, "{text}");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }

    // A changed host key stops everything until its owner has compared it.
    server.replace_host_keys().unwrap();
    owner.press("Look at it now").await;
    owner.until("The server shows another host key").await;
    owner.looked_at("host-key").await;
    owner.fill("#fingerprint", &fingerprint).await;
    owner.press("It is the server's").await;
    owner.until("not the fingerprint you gave").await;
    owner.fill("#fingerprint", &server.host_key_fingerprint().unwrap()).await;
    owner.press("It is the server's").await;
    owner.until("Connected").await;

    // Revoked: with the proof.
    owner.press("Revoke").await;
    owner.until("Your data and your programs on the server are not touched").await;
    owner.looked_at("revoke").await;
    owner.press("Revoke the connection").await;
    owner.until("Verified locked out at").await;
    owner.looked_at("revoked").await;

    // Nobody else has such a server.
    owner.press("Sign out").await;
    owner.until("Make an account").await;
    owner.go("/sign-up").await;
    owner.fill("#email", "stranger@example.org").await;
    owner.fill("#password", "a long enough password").await;
    owner.press("Make the account").await;
    owner.until("You have no box yet").await;
    owner.go(&page).await;
    owner.until("There is nothing here").await;
    owner.close().await;
    trial.stop().await;
}
