//! Months, lapses and returns, through the workers, on a clock that is moved.

use jiff::SignedDuration;
use reqwest::{Method, StatusCode};
use seedplane::{alerts, billing::sweep::CLOCK_JUMPED};
use seedplane_provisioning::memory::Verb;
use serde_json::json;

use crate::support::TestApp;

const DAY: SignedDuration = SignedDuration::from_hours(24);

#[tokio::test]
async fn a_month_is_charged_once_by_two_copies() {
    let test = TestApp::new().await;
    let _second = test.world.start(true).await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    test.top_up(&buyer, 4000).await;
    let path = format!("/api/seedbox/resources/{id}");
    let before = test.get(&buyer, &path).await["paid_until"].clone();
    for _ in 0..3 {
        test.advance(DAY * 11).await;
    }
    test.until(&buyer, &path, |resource| resource["paid_until"] != before).await;
    test.idle().await;
    let account = test.get(&buyer, "/api/billing/account").await;
    assert_eq!(account["available_cents"], 2500);
    // Shorter than two months of any length.
    let until = test.app.now().0 + DAY * 50;
    let preview = test.get(&buyer, &format!("/api/billing/preview?until={until}")).await;
    assert_eq!(preview["charges"].as_array().unwrap().len(), 1, "one month is covered: {preview}");
    assert_eq!(preview["boxes"][0]["stops_at"], json!(null));
    test.assert_sound().await;
}

#[tokio::test]
async fn a_lapse_is_warned_suspended_paid_and_back() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    // To a month of 30 days: the arrears of the vector are those of one.
    let first = test.get(&buyer, &path).await;
    let due: jiff::Timestamp = first["paid_until"].as_str().unwrap().parse().unwrap();
    test.advance(due.duration_since(test.app.clock.now()) + SignedDuration::from_mins(1)).await;
    let resource = test.until(&buyer, &path, |resource| !resource["past_due_since"].is_null()).await;
    assert_eq!(
        (resource["status"].as_str(), resource["past_due_since"].as_str()),
        (Some("active"), first["paid_until"].as_str())
    );

    test.advance(DAY * 2).await;
    test.until_handed("final_warning", 1).await;
    test.idle().await;
    assert_eq!(test.get(&buyer, &path).await["status"], "active", "grace");
    assert_eq!(test.world.provider.calls(Verb::Suspend), 0);
    let handed: i64 =
        sqlx::query_scalar("select count(*) from notices where kind = 'final_warning' and handed_at is not null")
            .fetch_one(&test.app.pool)
            .await
            .unwrap();
    assert_eq!(handed, 1, "a final warning was handed over a day before");
    test.advance(DAY + SignedDuration::from_mins(5)).await;
    let suspended = test.until(&buyer, &path, |resource| resource["status"] == "suspended").await;
    assert_eq!(suspended["suspend_reason"], "billing");
    let arrears = suspended["arrears_cents"].as_i64().unwrap();
    assert!((145..=161).contains(&arrears), "3 days of a month at 1500: {arrears}");
    test.advance(DAY * 2).await;
    test.idle().await;
    let account = test.get(&buyer, "/api/billing/account").await;
    assert_eq!(account["available_cents"], 0, "nothing is charged while suspended");

    test.top_up(&buyer, 1500 + arrears - 50).await;
    test.idle().await;
    assert_eq!(test.get(&buyer, &path).await["status"], "suspended", "50 cents short");
    test.top_up(&buyer, 500).await;
    let active = test.until(&buyer, &path, |resource| resource["status"] == "active").await;
    let account = test.get(&buyer, "/api/billing/account").await;
    assert_eq!((account["available_cents"].as_i64(), account["reserved_cents"].as_i64()), (Some(450), Some(0)));
    let until: jiff::Timestamp = active["paid_until"].as_str().unwrap().parse().unwrap();
    assert!(until.duration_since(test.app.clock.now()) > DAY * 27, "a full month from the day it is active again");
    test.assert_sound().await;
}

#[tokio::test]
async fn a_worker_that_was_off_warns_before_it_cuts_and_wipes() {
    let world = crate::support::World::new().await;
    let working = world.start(true).await;
    let buyer = working.customer().await;
    let id = working.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    working.idle().await;
    drop(working);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let test = world.start(true).await;
    test.advance(DAY * 41).await;
    test.until(&buyer, &path, |resource| !resource["past_due_since"].is_null()).await;
    test.until_handed("final_warning", 1).await;
    assert_eq!(test.get(&buyer, &path).await["status"], "active", "10 days late: warned first");
    test.advance(DAY + SignedDuration::from_mins(5)).await;
    test.until(&buyer, &path, |resource| resource["status"] == "suspended").await;
    for (notice, days) in [(1, 8), (2, 4), (3, 2)] {
        test.advance(DAY * days).await;
        test.until_handed("wipe_notice", notice).await;
        test.idle().await;
        assert_eq!(test.get(&buyer, &path).await["status"], "suspended");
    }
    test.advance(DAY + SignedDuration::from_mins(5)).await;
    let gone = test.until(&buyer, &path, |resource| resource["status"] == "terminated").await;
    assert!(gone["wipe_certificate"].is_object());
    let notices: Vec<String> = sqlx::query_scalar(
        "select facts ->> 'days' from notices where kind = 'wipe_notice' and handed_at is not null order by created_at",
    )
    .fetch_all(&test.app.pool)
    .await
    .unwrap();
    assert_eq!(notices, ["7", "3", "1"]);
    test.assert_sound().await;
}

#[tokio::test]
async fn boxes_are_charged_whole_by_priority_and_what_cannot_be_is_skipped() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let mut ids = Vec::new();
    for (cents, priority) in [(1500, 2), (1000, 1), (800, 3)] {
        let id = test.active_box(&buyer, cents).await;
        let (status, _) = test
            .call(
                Some(&buyer),
                reqwest::Method::PUT,
                &format!("/api/seedbox/resources/{id}/priority"),
                Some(json!({ "priority": priority })),
            )
            .await;
        assert!(status.is_success());
        ids.push(id);
    }
    test.top_up(&buyer, 2000).await;
    test.advance(DAY * 32).await;
    test.until(&buyer, "/api/billing/account", |account| account["available_cents"] == 200).await;
    test.idle().await;
    for (id, past_due) in ids.iter().zip([true, false, false]) {
        let resource = test.get(&buyer, &format!("/api/seedbox/resources/{id}")).await;
        assert_eq!(!resource["past_due_since"].is_null(), past_due, "{resource}");
    }
    let csv = test.get(&buyer, "/api/billing/statement?format=csv").await;
    assert!(csv.as_str().unwrap().starts_with("at,kind,cause,change_cents"), "{csv}");
    test.assert_sound().await;
}

/// Moves the clock to where a box of this buyer would be suspended: past due for longer than the grace, and warned.
async fn lapse(test: &TestApp, buyer: &crate::support::Person, id: &str) {
    let path = format!("/api/seedbox/resources/{id}");
    let first = test.get(buyer, &path).await;
    let due: jiff::Timestamp = first["paid_until"].as_str().unwrap().parse().unwrap();
    test.advance(due.duration_since(test.app.clock.now()) + SignedDuration::from_mins(1)).await;
    test.until(buyer, &path, |resource| !resource["past_due_since"].is_null()).await;
    test.advance(DAY * 2 + SignedDuration::from_mins(1)).await;
}

#[tokio::test]
async fn a_hold_and_a_clock_that_jumped_stop_a_suspension_until_an_operator_lets_go() {
    let test = TestApp::new().await;
    let (operator, buyer) = (test.person(seedplane::accounts::Role::Operator).await, test.customer().await);
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    lapse(&test, &buyer, &id).await;
    test.until_handed("final_warning", 1).await;
    let until = (test.app.clock.now() + DAY * 3).to_string();
    let hold = json!({ "until": until, "reason": "they are on holiday" });
    test.post(&operator, &format!("/api/operator/resources/{id}/hold"), hold).await;
    let now = test.app.now();
    alerts::raise(&test.app.pool, CLOCK_JUMPED, "clock", "the clock jumped", now).await.unwrap();
    for what in ["held", "the clock jumped"] {
        test.advance(DAY * 2).await;
        test.idle().await;
        assert_eq!(test.get(&buyer, &path).await["status"], "active", "{what}");
    }
    assert_eq!(test.world.provider.calls(Verb::Suspend), 0);
    let resolve = json!({ "kind": "clock_jumped", "subject": "clock", "reason": "the machine had slept; all is well" });
    test.post(&operator, "/api/operator/alerts/resolve", resolve).await;
    test.advance(SignedDuration::from_mins(15)).await;
    test.until(&buyer, &path, |resource| resource["status"] == "suspended").await;
    test.assert_sound().await;
}

#[tokio::test]
async fn a_run_that_would_hit_too_many_boxes_waits_for_an_operator() {
    let test = TestApp::new().await;
    let operator = test.person(seedplane::accounts::Role::Operator).await;
    let mut boxes = Vec::new();
    for _ in 0..8 {
        let buyer = test.customer().await;
        boxes.push((test.active_box(&buyer, 1500).await, buyer));
    }
    let (last, owner) = boxes.last().unwrap();
    lapse(&test, owner, last).await;
    test.until_handed("final_warning", 8).await;
    test.advance(DAY + SignedDuration::from_mins(5)).await;
    let suspended = async || {
        let mut count = 0;
        for (id, buyer) in &boxes {
            let resource = test.get(buyer, &format!("/api/seedbox/resources/{id}")).await;
            count += usize::from(resource["status"] == "suspended");
        }
        count
    };
    let alerts = test
        .until(&operator, "/api/operator/alerts", |alerts| {
            alerts.as_array().unwrap().iter().any(|alert| alert["kind"] == "blast_limit")
        })
        .await;
    test.idle().await;
    assert_eq!(suspended().await, 5, "5 boxes and 10 % of 8, whichever is more: {alerts}");
    let resolve = json!({ "kind": "blast_limit", "subject": "billing sweep", "reason": "eight people did not pay" });
    test.post(&operator, "/api/operator/alerts/resolve", resolve).await;
    test.advance(SignedDuration::from_mins(15)).await;
    for (id, buyer) in &boxes {
        test.until(buyer, &format!("/api/seedbox/resources/{id}"), |resource| resource["status"] == "suspended").await;
    }
    test.assert_sound().await;
}

#[tokio::test]
async fn a_new_price_reaches_a_box_after_thirty_days_of_notice() {
    let test = TestApp::new().await;
    let (operator, buyer) = (test.person(seedplane::accounts::Role::Operator).await, test.customer().await);
    let id = test.active_box(&buyer, 1500).await;
    let code = test.get(&buyer, "/api/seedbox/plans").await[0]["code"].clone();
    let plan = json!({ "code": code, "name": "Small", "price_cents": 2000, "provider": "memory", "size": "small", "disk_gb": 50,
        "applies_to_existing": true, "reason": "electricity" });
    let mut two_lines = plan.clone();
    two_lines["name"] = json!("Small\r\nBcc: somebody@example.org");
    let refused = test.call(Some(&operator), Method::POST, "/api/operator/plans", Some(two_lines)).await;
    assert_eq!(refused.0, StatusCode::UNPROCESSABLE_ENTITY, "a name stands in subjects of mails");
    test.post(&operator, "/api/operator/plans", plan).await;
    test.until_handed("price_change", 1).await;
    test.top_up(&buyer, 6000).await;
    let path = format!("/api/seedbox/resources/{id}");
    // The month after the notice begins less than 30 days after it, or exactly at the old price's last renewal.
    let mut prices = Vec::new();
    for _ in 0..3 {
        let before = test.get(&buyer, &path).await["paid_until"].clone();
        let due: jiff::Timestamp = before.as_str().unwrap().parse().unwrap();
        test.advance(due.duration_since(test.app.clock.now()) + SignedDuration::from_mins(1)).await;
        let renewed = test.until(&buyer, &path, |resource| resource["paid_until"] != before).await;
        let told: jiff::Timestamp = sqlx::query_scalar::<_, seedplane::clock::Time>(
            "select handed_at from notices where kind = 'price_change'",
        )
        .fetch_one(&test.app.pool)
        .await
        .unwrap()
        .0;
        let expected = if due >= told + DAY * 30 { 2000 } else { 1500 };
        assert_eq!(renewed["price_cents"], expected, "due {due}, told {told}");
        prices.push(expected);
    }
    assert_eq!(prices[1..], [2000, 2000]);
    let account = test.get(&buyer, "/api/billing/account").await;
    assert_eq!(account["available_cents"].as_i64(), Some(6000 - prices.iter().sum::<i64>()));
    test.assert_sound().await;
}
