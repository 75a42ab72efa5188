//! A buyer whose browser runs no scripts: everything is there but what keeps itself up to date. axe is a script, so this story
//! walks and reads, and the others look.

use std::time::{Duration, Instant};

use super::{Browser, buyer::pay};
use crate::{
    support::{PATIENCE, temporary},
    trial::Trial,
};

/// Loads a page again until something stands on it, as people do.
async fn loaded_until(browser: &Browser, path: &str, words: &str) -> String {
    let started = Instant::now();
    loop {
        browser.go(path).await;
        let text = browser.text().await;
        if text.contains(words) {
            return text;
        }
        assert!(started.elapsed() < PATIENCE, "'{words}' does not come to {path}:\n{text}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Whether a browser runs what is written into a page.
async fn runs_scripts(browser: &Browser) -> bool {
    let page = "data:text/html,<p>plain</p><script>document.body.append('scripted')</script>";
    browser.client.goto(page).await.unwrap();
    let text = browser.text().await;
    assert!(text.contains("plain"), "{text}");
    text.contains("scripted")
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_can_be_done_in_a_browser_that_runs_no_scripts() {
    let mut trial = Trial::start_in(temporary("without-scripts").join("data"), "127.0.0.1:0");
    let other = Browser::open(&trial.base, "with-scripts").await;
    assert!(runs_scripts(&other).await, "the page that tells the two apart tells something");
    other.close().await;
    let buyer = Browser::open_without_scripts(&trial.base, "without-scripts").await;
    assert!(!runs_scripts(&buyer).await);

    buyer.go("/sign-up?next=/seedbox/money").await;
    buyer.fill("#email", "plain@example.org").await;
    buyer.fill("#password", "a long enough password").await;
    buyer.press("Make the account").await;
    buyer.until("Which box first").await;

    // Pays in; the page says so when it is loaded again.
    buyer.fill("#amount", "15.00").await;
    buyer.press("Go on to pay").await;
    let topup = loaded_until(&buyer, "/seedbox/money", "Payments").await;
    assert!(topup.contains("$15.00"), "{topup}");
    buyer.find("a[href^='/seedbox/topups/']").await.click().await.unwrap();
    buyer.until("The quote holds").await;
    let page = buyer.path().await;
    pay(&trial, &buyer, "exact").await;
    loaded_until(&buyer, &page, "Done: $15.00 were added to your balance").await;

    // Orders, and waits for the box.
    buyer.go("/plans").await;
    buyer.press("Order Small").await;
    buyer.find("input[name=terms]").await.click().await.unwrap();
    buyer.press("Order, paid from the balance").await;
    buyer.until("Who touched this box").await;
    let page = buyer.path().await;
    loaded_until(&buyer, &page, "Running").await;
    buyer.press("Show the login, once").await;
    buyer.until("it cannot be shown again").await;
    let password = buyer.text_of("#password").await;
    buyer.go(&page).await;
    assert!(!buyer.text().await.contains("Show the login"), "shown once");

    // Another password.
    buyer.press("New password").await;
    buyer.until("Who touched this box").await;
    loaded_until(&buyer, &page, "Show the login, once").await;
    buyer.press("Show the login, once").await;
    buyer.until("it cannot be shown again").await;
    assert_ne!(buyer.text_of("#password").await, password);

    // Its end with the month, taken back.
    buyer.go(&page).await;
    buyer.press("End the box").await;
    buyer.until("all data on it is wiped for good").await;
    buyer.press("End it then").await;
    buyer.until("The box ends with the month that is paid").await;
    buyer.press("Let it go on, or end it now").await;
    buyer.press("Let it go on").await;
    buyer.until("The box goes on").await;

    buyer.press("Sign out").await;
    buyer.until("Sign in").await;
    buyer.go(&page).await;
    assert!(buyer.path().await.starts_with("/sign-in"), "{}", buyer.path().await);
    buyer.close().await;
    trial.stop().await;
}
