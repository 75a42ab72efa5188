//! A buyer, from sign-up to the wipe, against a real trial: real boxes, the sandbox gateway.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use seedplane::demo::seeding;
use seedplane_provisioning::{Credentials, node::qbittorrent::Session};
use serde_json::json;

use super::Browser;
use crate::{
    support::{PATIENCE, temporary},
    trial::Trial,
};

/// Presses a button of the sandbox gateway for the payment whose page is open, as the payer does elsewhere.
pub async fn pay(trial: &Trial, browser: &Browser, button: &str) {
    let page = browser.find("a[href*='/sandbox/pay/']").await.attr("href").await.unwrap().unwrap();
    let answer = trial.http.post(format!("{page}/{button}")).send().await.unwrap();
    assert!(answer.status().is_success() || answer.status().is_redirection(), "{}", answer.status());
}

/// What the torrent client of a box says to a login.
async fn log_in(trial: &Trial, url: &str, name: &str, password: &str) -> StatusCode {
    let login = [("username", name), ("password", password)];
    let url = format!("{}/api/v2/auth/login", url.trim_end_matches('/'));
    let answer = trial.http.post(&url).header("referer", &url).form(&login).send().await.unwrap();
    let status = answer.status();
    if answer.text().await.unwrap().starts_with("Fails") { StatusCode::FORBIDDEN } else { status }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_signs_up_pays_uses_and_ends_a_box() {
    let mut trial = Trial::start_in(temporary("buyer").join("data"), "127.0.0.1:0");
    let mut buyer = Browser::open(&trial.base, "buyer").await;
    buyer.go("/").await;
    buyer.looked_at("start").await;
    for (path, name) in [("/terms", "terms"), ("/privacy", "privacy"), ("/abuse", "abuse"), ("/nowhere", "not-found")] {
        buyer.go(path).await;
        buyer.looked_at(name).await;
    }

    // Where somebody wanted to go is where they come after they have an account.
    buyer.go("/seedbox/money").await;
    assert!(buyer.path().await.starts_with("/sign-in?next="), "{}", buyer.path().await);
    buyer.looked_at("sign-in").await;
    buyer.fill("#email", "buyer@example.org").await;
    buyer.fill("#password", "no such password").await;
    buyer.find("main button").await.click().await.unwrap();
    buyer.until("The e-mail address or the password is wrong").await;
    buyer.find("main a[href^='/sign-up']").await.click().await.unwrap();
    buyer.find("h1").await;
    buyer.fill("#email", "buyer@example.org").await;
    buyer.fill("#password", "a long enough password").await;
    buyer.looked_at("sign-up").await;
    buyer.press("Make the account").await;
    buyer.until("Which box first").await;
    assert_eq!(buyer.path().await, "/seedbox/money");
    buyer.press("Boxes").await;
    buyer.until("You have no box yet").await;
    buyer.looked_at("home-empty").await;

    // The order: what it costs, the terms, then where to pay.
    buyer.press("See the plans").await;
    buyer.until("GB").await;
    buyer.looked_at("plans").await;
    buyer.press("Order Small").await;
    buyer.until("Still to pay in").await;
    buyer.looked_at("order-new").await;
    buyer.find("input[name=terms]").await.click().await.unwrap();
    buyer.press("Order, and go on to pay in").await;
    buyer.until("$15.00 are missing").await;
    buyer.looked_at("order").await;
    buyer.press("Go on to pay").await;
    buyer.until("The quote holds for another").await;
    buyer.looked_at("pay").await;

    // Too little: the page says so by itself, and how much more to send; then the rest; nobody loads the page again.
    pay(&trial, &buyer, "short").await;
    let said = buyer.until("more to the same address").await;
    assert!(said.contains("Received ") && said.contains("send "), "{said}");
    buyer.looked_at("pay-partly").await;
    pay(&trial, &buyer, "exact").await;
    buyer.until("Done: $15.00 were added to your balance").await;
    buyer.looked_at("pay-done").await;

    // The box: made in steps that are shown, then running; the page changes by itself.
    buyer.press("To your box").await;
    buyer.until("Who touched this box").await;
    buyer.looked_at("box-first").await;
    buyer.until("Running").await;
    buyer.find("#show-login").await;
    buyer.looked_at("box-running").await;
    let page = buyer.path().await;
    buyer.press("Show the login, once").await;
    buyer.until("it cannot be shown again").await;
    buyer.looked_at("login").await;
    let password = buyer.text_of("#password").await;
    let url = buyer.find(".note a").await.attr("href").await.unwrap().unwrap();
    assert_eq!(log_in(&trial, &url, "seed", &password).await, StatusCode::OK, "the login is good");
    buyer.go(&page).await;
    assert!(!buyer.text().await.contains("Show the login"), "shown once");

    // Another password ends the one before.
    buyer.press("New password").await;
    buyer.until("A new password is being made").await;
    buyer.press("Show the login, once").await;
    buyer.until("it cannot be shown again").await;
    let newer = buyer.text_of("#password").await;
    assert_ne!(newer, password);
    assert_eq!(log_in(&trial, &url, "seed", &password).await, StatusCode::FORBIDDEN, "the old password is dead");
    assert_eq!(log_in(&trial, &url, "seed", &newer).await, StatusCode::OK);

    // Paused, and brought back.
    buyer.go(&page).await;
    buyer.press("Pause the box").await;
    buyer.until("Paused by you").await;
    buyer.looked_at("box-paused").await;
    assert!(trial.http.get(&url).send().await.is_err(), "nothing answers while it is paused");
    buyer.press("Bring the box back").await;
    buyer.until("Running").await;

    // What the box uses, and another start of its client.
    let data = trial.data.join("boxes").join(page.rsplit('/').next().unwrap()).join("data");
    let credentials = Credentials { username: "seed".to_owned(), password: newer.into() };
    let session = Session::login(&url, &credentials).await.unwrap();
    let fetched = seeding::seed(&session, &data, &temporary("fetched")).await.unwrap();
    assert_eq!(fetched, Some(2_000_000), "aria2c is on this machine");
    buyer.press("Restart the torrent client").await;
    buyer.until("The torrent client was restarted").await;
    trial.call(None, Method::POST, "/api/trial/clock", Some(json!({ "seconds": 16 * 60 }))).await;
    buyer.until("2.0 MB of ").await;
    buyer.looked_at("box-used").await;
    buyer.press("Usage by the hour and by the day").await;
    let said = buyer.until("Day by day").await;
    assert!(said.contains("2.0 MB since") || said.contains("2.1 MB since"), "what was sent is counted: {said}");
    buyer.looked_at("box-usage").await;
    buyer.go(&page).await;

    // What another plan costs is said before it is had; it cannot be paid now.
    buyer.press("Change the plan").await;
    buyer.until("short").await;
    buyer.looked_at("box-plan").await;
    buyer.go(&page).await;

    // Its end can be set and taken back; now asks for its name, and does nothing for another one.
    buyer.press("End the box").await;
    buyer.until("all data on it is wiped for good").await;
    buyer.looked_at("box-end").await;
    buyer.press("End it then").await;
    buyer.until("The box ends with the month that is paid").await;
    buyer.press("Let it go on, or end it now").await;
    buyer.press("Let it go on").await;
    buyer.until("The box goes on").await;
    let label = buyer.text_of("h1").await;
    buyer.press("End the box").await;
    buyer.fill("#confirm", "another box").await;
    buyer.press("Wipe it and end it now").await;
    buyer.until("That is not the name of this box").await;
    buyer.fill("#confirm", &label).await;
    buyer.press("Wipe it and end it now").await;
    buyer.until("Wipe certificate").await;
    buyer.until("Ended and wiped").await;
    buyer.looked_at("box-ended").await;

    // Every cent is explained: in the first 7 days the rest of the month comes back.
    buyer.press("Money").await;
    let said = buyer.until("Refund to your balance").await;
    assert!(said.contains("Payment received") && said.contains("Delivered: what was set aside is spent"), "{said}");
    buyer.looked_at("money").await;
    buyer.go("/seedbox").await;
    buyer.until("Boxes that ended (1)").await;
    buyer.looked_at("home").await;
    buyer.go("/trial/inbox").await;
    buyer.until("is wiped: certificate").await;
    buyer.looked_at("inbox").await;

    // A session that ended shows nothing any more.
    buyer.press("Sign out").await;
    buyer.until("Sign in").await;
    buyer.go(&page).await;
    assert!(buyer.path().await.starts_with("/sign-in"), "{}", buyer.path().await);

    // Whoever stops the service does not wait for pages that are open.
    buyer.fill("#email", "buyer@example.org").await;
    buyer.fill("#password", "a long enough password").await;
    buyer.find("main button").await.click().await.unwrap();
    buyer.until("Ended and wiped").await;
    let stopped = Instant::now();
    trial.stop().await;
    assert!(stopped.elapsed() < Duration::from_secs(8).min(PATIENCE), "{:?}", stopped.elapsed());
    buyer.close().await;
}
