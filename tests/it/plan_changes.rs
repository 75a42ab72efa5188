//! Another plan for a box: a dearer one at once, a cheaper one with the next month.

use jiff::Timestamp;
use reqwest::{Method, StatusCode};
use seedplane_provisioning::{Error, MachineState, ProvisioningProvider, ResourceRef, memory::Verb};
use serde_json::{Value, json};

use crate::support::{Person, TestApp};

/// An application whose clock shows `at`.
async fn at(at: &str) -> TestApp {
    let test = TestApp::new().await;
    to(&test, at).await;
    test
}

async fn to(test: &TestApp, at: &str) {
    let at: Timestamp = at.parse().unwrap();
    test.advance(at.duration_since(test.app.clock.now())).await;
}

async fn available(test: &TestApp, buyer: &Person) -> (i64, i64) {
    let account = test.get(buyer, "/api/billing/account").await;
    (account["available_cents"].as_i64().unwrap(), account["reserved_cents"].as_i64().unwrap())
}

async fn size(test: &TestApp, id: &str) -> String {
    let status = test.world.provider.status(&ResourceRef(format!("memory-{id}"))).await.unwrap();
    assert_eq!(status.state, MachineState::Running);
    status.size.unwrap()
}

#[tokio::test]
async fn an_upgrade_costs_the_days_that_are_left_and_not_a_cent_more() {
    let test = at("2027-01-31T08:00:00Z").await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    let large = test.plan_of("Large", "large", 3000).await;
    let path = format!("/api/seedbox/resources/{id}");
    let upgrade = format!("{path}/upgrade");
    to(&test, "2027-02-09T15:30:00Z").await;

    let quote = test.get(&buyer, &format!("{upgrade}?plan_id={large}")).await;
    let expected = [("pay_now_cents", json!(964)), ("short_by_cents", json!(964)), ("price_cents", json!(3000))];
    for (field, value) in expected.iter().chain(&[("immediate", json!(true))]) {
        assert_eq!(quote[field], *value, "{quote}");
    }
    let body = json!({ "plan_id": large });
    let (status, problem) = test.call(Some(&buyer), Method::POST, &upgrade, Some(body.clone())).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(problem["detail"].as_str().unwrap().contains("$9.64 short"), "{problem}");
    test.top_up(&buyer, 1000).await;
    test.idle().await;
    assert_eq!((available(&test, &buyer).await, test.world.provider.calls(Verb::Resize)), ((1000, 0), 0));

    // The provider fails it for good: every cent is back and the box is as it was.
    test.world.provider.fail_next(Verb::Resize, Error::Refused { why: "no".to_owned() });
    test.post(&buyer, &upgrade, body.clone()).await;
    test.until(&buyer, &path, |resource| resource["operations"] == json!([])).await;
    assert_eq!(available(&test, &buyer).await, (1000, 0));
    assert_eq!(size(&test, &id).await, "small");
    assert_eq!(test.get(&buyer, &path).await["price_cents"], 1500);

    // It is slow, and its answers get lost.
    test.world.provider.fail_next(Verb::Resize, Error::Unknown("lost".to_owned()));
    test.world.provider.set_build_polls(1);
    test.post(&buyer, &upgrade, body.clone()).await;
    let resource = test.until(&buyer, &path, |resource| resource["price_cents"] == 3000).await;
    assert_eq!((resource["label"].as_str(), resource["next_month_cents"].as_i64()), (Some("Large"), Some(3000)));
    assert_eq!(resource["paid_until"].as_str().unwrap()[..10], *"2027-02-28", "the anchor is kept");
    assert_eq!(available(&test, &buyer).await, (36, 0));
    assert_eq!(size(&test, &id).await, "large");
    let statement = test.get(&buyer, "/api/billing/statement").await;
    let lines: Vec<(i64, &str)> = statement
        .as_array()
        .unwrap()
        .iter()
        .map(|line| (line["change_cents"].as_i64().unwrap(), line["cause"].as_str().unwrap()))
        .collect();
    assert!(lines.contains(&(-964, "upgrade of Small to Large")), "{lines:?}");
    let (status, problem) = test.call(Some(&buyer), Method::POST, &upgrade, Some(body)).await;
    assert_eq!(status, StatusCode::CONFLICT, "it has it already: {problem}");

    test.top_up(&buyer, 3000).await;
    to(&test, "2027-02-28T09:00:00Z").await;
    test.until(&buyer, "/api/billing/account", |account| account["available_cents"] == 36).await;
    test.until_handed("plan_changed", 1).await;
    test.assert_sound().await;
}

#[tokio::test]
async fn a_box_that_ends_early_gives_back_the_upgrade_too() {
    let test = at("2027-04-01T10:00:00Z").await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    let large = test.plan_of("Large", "large", 3000).await;
    let path = format!("/api/seedbox/resources/{id}");
    test.top_up(&buyer, 2000).await;
    to(&test, "2027-04-02T10:00:00Z").await;
    test.post(&buyer, &format!("{path}/upgrade"), json!({ "plan_id": large })).await;
    test.until(&buyer, &path, |resource| resource["price_cents"] == 3000).await;
    // 28 of 30 days: 2800 - 1400.
    assert_eq!(available(&test, &buyer).await, (600, 0));
    to(&test, "2027-04-05T10:00:00Z").await;
    test.post(&buyer, &format!("{path}/terminate"), json!({ "confirm_label": "Large" })).await;
    test.until(&buyer, &path, |resource| resource["status"] == "terminated").await;
    // 25 of 30 days at 3000.
    assert_eq!(available(&test, &buyer).await, (600 + 2500, 0));
    test.assert_sound().await;
}

#[tokio::test]
async fn an_upgrade_of_a_box_that_is_ended_meanwhile_is_given_back() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    let large = test.plan_of("Large", "large", 3000).await;
    let path = format!("/api/seedbox/resources/{id}");
    test.top_up(&buyer, 2000).await;
    for _ in 0..5 {
        test.world.provider.fail_next(Verb::Resize, Error::transient("busy"));
    }
    test.post(&buyer, &format!("{path}/upgrade"), json!({ "plan_id": large })).await;
    assert!(available(&test, &buyer).await.1 > 0, "set aside");
    test.post(&buyer, &format!("{path}/terminate"), json!({ "confirm_label": "Small" })).await;
    test.until(&buyer, &path, |resource| resource["status"] == "terminated").await;
    let (left, reserved) = available(&test, &buyer).await;
    assert!(reserved == 0 && left > 2000, "what the upgrade cost and the unused days: {left}, {reserved}");
    assert_eq!(size_is_gone(&test, &id).await, MachineState::Gone);
    test.assert_sound().await;
}

async fn size_is_gone(test: &TestApp, id: &str) -> MachineState {
    test.world.provider.status(&ResourceRef(format!("memory-{id}"))).await.unwrap().state
}

#[tokio::test]
async fn a_cheaper_plan_begins_with_the_next_month_and_can_be_taken_back() {
    let test = at("2027-04-01T10:00:00Z").await;
    let buyer = test.customer().await;
    let large = test.plan_of("Large", "large", 3000).await;
    let small = test.plan_of("Small", "small", 1500).await;
    test.top_up(&buyer, 9000).await;
    let order = test.post(&buyer, "/api/seedbox/orders", json!({ "plan_id": large })).await;
    let id = order["resource_id"].as_str().unwrap().to_owned();
    let path = format!("/api/seedbox/resources/{id}");
    test.until(&buyer, &path, |resource| resource["status"] == "active").await;
    let upgrade = format!("{path}/upgrade");
    let quote = test.get(&buyer, &format!("{upgrade}?plan_id={small}")).await;
    assert_eq!((&quote["immediate"], &quote["pay_now_cents"]), (&json!(false), &json!(0)), "{quote}");
    assert_eq!(quote["takes_effect_at"], test.get(&buyer, &path).await["paid_until"]);

    let choose = async |plan: seedplane::ids::PlanId| -> Value {
        test.post(&buyer, &upgrade, json!({ "plan_id": plan })).await;
        test.get(&buyer, &path).await
    };
    let chosen = choose(small).await;
    assert_eq!((&chosen["next_plan_id"], &chosen["next_month_cents"]), (&json!(small), &json!(1500)));
    let back = choose(large).await;
    assert_eq!((&back["next_plan_id"], &back["next_month_cents"]), (&json!(null), &json!(3000)));
    let chosen = choose(small).await;
    assert_eq!((&chosen["price_cents"], &chosen["plan_id"]), (&json!(3000), &json!(large)), "nothing changes yet");
    let preview = test.get(&buyer, "/api/billing/preview?until=2027-05-15T00:00:00Z").await;
    assert_eq!(preview["charges"][0]["amount_cents"], 1500, "{preview}");

    to(&test, "2027-05-01T10:05:00Z").await;
    let resource = test.until(&buyer, &path, |resource| resource["plan_id"] == json!(small)).await;
    assert_eq!((resource["price_cents"].as_i64(), resource["label"].as_str()), (Some(1500), Some("Small")));
    test.until(&buyer, &path, |resource| resource["operations"] == json!([])).await;
    assert_eq!(size(&test, &id).await, "small");
    assert_eq!(available(&test, &buyer).await, (9000 - 3000 - 1500, 0), "no credit for the month that is over");
    to(&test, "2027-06-01T10:05:00Z").await;
    test.until(&buyer, "/api/billing/account", |account| account["available_cents"] == 3000).await;
    test.idle().await;
    assert_eq!(test.world.provider.calls(Verb::Resize), 1);
    test.assert_sound().await;
}

#[tokio::test]
async fn what_cannot_be_changed_is_said_and_left() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    let large = test.plan_of("Large", "large", 3000).await;
    let path = format!("/api/seedbox/resources/{id}");
    let upgrade = format!("{path}/upgrade");
    let plan = json!(test.get(&buyer, &path).await["plan_id"]);
    let refused = async |plan: Value, status: u16, words: &str| {
        let (answered, problem) =
            test.call(Some(&buyer), Method::POST, &upgrade, Some(json!({ "plan_id": plan }))).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(answered.as_u16() == status && detail.contains(words), "{plan}: {answered} {detail}");
    };
    refused(json!(uuid::Uuid::nil()), 422, "not on sale").await;
    refused(plan, 409, "has this plan already").await;
    sqlx::query("update seedbox_plans set provider = 'elsewhere' where id = $1")
        .bind(large.0)
        .execute(&test.world.owner().await)
        .await
        .unwrap();
    refused(json!(large), 409, "another provider").await;
    test.post(&buyer, &format!("{path}/suspend"), json!({})).await;
    test.until(&buyer, &path, |resource| resource["status"] == "suspended").await;
    refused(json!(large), 409, "suspended").await;
    assert_eq!(test.world.provider.calls(Verb::Resize), 0);
}
