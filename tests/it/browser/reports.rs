//! A holder of rights sends a notice without an account, and an operator finds the box it is about.

use reqwest::Method;
use serde_json::json;

use super::Browser;
use crate::{
    support::temporary,
    trial::{Trial, command, said},
};

const PASSWORD: &str = "a long enough password";

#[tokio::test(flavor = "multi_thread")]
async fn a_notice_is_sent_without_an_account_and_closed_by_an_operator() {
    let mut trial = Trial::start_in(temporary("reports").join("data"), "127.0.0.1:0");
    let made = command(&trial.data, &["operator", "create", "op@example.org"], &format!("{PASSWORD}\n"));
    assert!(made.status.success(), "{}", said(&made));
    let buyer = trial.sign_up().await;
    trial.pay(&buyer, 2000, "exact").await;
    trial.until(&buyer, "/api/billing/account", |account| account["paid_cents"] == 2000).await;
    let plans = trial.call(Some(&buyer), Method::GET, "/api/seedbox/plans", None).await;
    let order = json!({ "plan_id": plans[0]["id"] });
    trial.call(Some(&buyer), Method::POST, "/api/seedbox/orders", Some(order)).await;
    let resource =
        trial.until(&buyer, "/api/seedbox/resources", |boxes| boxes[0]["status"] == "active").await[0].clone();
    let url = resource["web_url"].as_str().unwrap();

    let mut stranger = Browser::open(&trial.base, "reports").await;
    stranger.go("/").await;
    stranger.press("Notices of infringement").await;
    stranger.until("Send the notice").await;
    stranger.looked_at("notice").await;
    for (field, text) in [
        ("#name", "Ada Lovelace"),
        ("#email", "ada@rights.example"),
        ("#address", "1 Engine Street\nLondon"),
        ("#rights_holder", "The Analytical Society"),
        ("#work", "Notes on the Analytical Engine, by Ada Lovelace, 1843"),
        ("#location", &format!("{url}\n2aae6c35c94fcfb415dbe95f408b9ce91ee846ed, 3 February 2027, 14:05 UTC")),
        ("#signature", "Charles Babbage"),
    ] {
        stranger.fill(field, text).await;
    }
    for statement in ["#good_faith", "#accurate"] {
        stranger.find(statement).await.click().await.unwrap();
    }
    stranger.press("Send the notice").await;
    let refused = stranger.until("The signature is not the name above").await;
    assert!(refused.contains("nothing was sent yet"), "{refused}");
    stranger.looked_at("notice-refused").await;
    // Everything else is still there.
    stranger.fill("#signature", "Ada Lovelace").await;
    stranger.press("Send the notice").await;
    stranger.until("Its reference is").await;
    stranger.looked_at("notice-taken").await;
    let reference = stranger.text_of("#reference").await;
    stranger.go("/abuse").await;
    stranger.until("Send the report").await;
    stranger.looked_at("abuse").await;

    stranger.go("/operator").await;
    stranger.fill("#email", "op@example.org").await;
    stranger.fill("#password", PASSWORD).await;
    stranger.find("main button").await.click().await.unwrap();
    stranger.until("Reports of abuse").await;
    stranger.press("Reports").await;
    stranger.until(&reference).await;
    stranger.looked_at("list").await;
    stranger.press(&reference).await;
    stranger.until("It names this box").await;
    stranger.looked_at("report").await;
    let report = stranger.path().await;
    stranger.press("To what can be done to the box").await;
    stranger.until("Operations").await;
    stranger.press_summary("Suspend").await;
    stranger.find("option[value=abuse]").await.click().await.unwrap();
    stranger.fill("#suspend-reason", &format!("{reference}: the notice is being looked at")).await;
    stranger.press("Suspend the box").await;
    trial.until(&buyer, "/api/seedbox/resources", |boxes| boxes[0]["suspend_reason"] == "abuse").await;
    stranger.go(&report).await;
    stranger.find("input[value=acted_on]").await.click().await.unwrap();
    stranger.fill("#resource", "that one").await;
    stranger.fill("#reason", "suspended until the customer answers").await;
    stranger.press("Close the report").await;
    stranger.until("A box is named by its id").await;
    assert_eq!(
        stranger.find("#reason").await.prop("value").await.unwrap().unwrap(),
        "suspended until the customer answers"
    );
    stranger.fill("#resource", resource["id"].as_str().unwrap()).await;
    stranger.press("Close the report").await;
    stranger.until("by op@example.org").await;
    stranger.looked_at("report-closed").await;
    stranger.close().await;
    trial.stop().await;
}
