//! Somebody's own account: a second factor, a token, another password, a forgotten one.

use super::Browser;
use crate::{support::temporary, trial::Trial};

const PASSWORD: &str = "a long enough password";

/// What an authenticator app shows at this moment.
fn code_now(secret: &str) -> String {
    let totp = totp_rs::Totp::from_url(format!("otpauth://totp/x:y?secret={secret}&issuer=x")).unwrap();
    totp.generate(u64::try_from(jiff::Timestamp::now().as_second()).unwrap()).to_string()
}

async fn sign_in(browser: &Browser, password: &str) {
    browser.go("/sign-in").await;
    browser.fill("#email", "member@example.org").await;
    browser.fill("#password", password).await;
    browser.find("main button").await.click().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_made_safe_and_a_forgotten_password_is_replaced() {
    let mut trial = Trial::start_in(temporary("account").join("data"), "127.0.0.1:0");
    let mut member = Browser::open(&trial.base, "account").await;
    member.go("/sign-up?next=/seedbox/account").await;
    member.fill("#email", "member@example.org").await;
    member.fill("#password", PASSWORD).await;
    member.press("Make the account").await;
    member.until("Where you are signed in").await;
    member.looked_at("account").await;

    // A token for a program, shown once, for what is ticked.
    member.press_summary("Make a token").await;
    member.fill("#token-name", "statistics").await;
    member.press("Make it").await;
    member.until("shown once").await;
    member.looked_at("token").await;
    let token = member.text_of("#token").await;
    let asked = trial.http.get(format!("{}/api/billing/account", trial.base)).bearer_auth(&token).send().await.unwrap();
    assert!(asked.status().is_success());
    let order = trial.http.post(format!("{}/api/seedbox/orders", trial.base)).bearer_auth(&token);
    assert_eq!(order.json(&serde_json::json!({})).send().await.unwrap().status(), 403, "it reads and does nothing");

    // The second factor: from then on the password alone opens nothing.
    member.press("Set it up").await;
    member.until("Add it to your authenticator app").await;
    member.looked_at("second-factor").await;
    let secret = member.text_of("#totp-secret").await;
    member.fill("#confirm-code", &code_now(&secret)).await;
    member.press("Turn it on").await;
    let shown = member.until("Keep these recovery codes").await;
    member.looked_at("recovery-codes").await;
    let (_, codes) = shown.split_once("They are shown this once.").unwrap();
    let recovery = codes.split_whitespace().next().unwrap().to_owned();
    member.press("Sign out").await;
    sign_in(&member, PASSWORD).await;
    member.until("Code of your authenticator app").await;
    member.looked_at("code").await;
    member.fill("#password", PASSWORD).await;
    member.fill("#code", &recovery).await;
    member.find("main button").await.click().await.unwrap();
    member.until("You have no box yet").await;

    // Forgotten: a mail, a link, another password; the second factor stays.
    member.press("Sign out").await;
    member.go("/sign-in").await;
    member.press("Forgot your password?").await;
    member.looked_at("forgot").await;
    member.fill("#email", "member@example.org").await;
    member.press("Send the link").await;
    member.until("a mail with a link is on its way").await;
    let started = std::time::Instant::now();
    let link = loop {
        member.go("/trial/inbox").await;
        let text = member.text().await;
        if let Some(link) = text.split_whitespace().find(|word| word.contains("/reset/")) {
            break link.to_owned();
        }
        assert!(started.elapsed() < crate::support::PATIENCE, "{text}");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    };
    member.go(link.strip_prefix(&trial.base).unwrap()).await;
    member.looked_at("reset").await;
    member.fill("#new", "another long enough one").await;
    member.press("Set it").await;
    member.until("every session has ended").await;
    sign_in(&member, PASSWORD).await;
    member.until("The e-mail address or the password is wrong").await;
    sign_in(&member, "another long enough one").await;
    member.until("Code of your authenticator app").await;
    member.close().await;
    trial.stop().await;
}
