//! Machines and boxes that do not belong together: lost machines, machines of nobody.

use jiff::{SignedDuration, Timestamp};
use seedplane::{accounts::Role, workers::reconciler};
use seedplane_provisioning::{Credentials, MachineSpec, ProvisioningProvider, memory::Verb};
use serde_json::json;
use uuid::Uuid;

use crate::support::{Person, TestApp};

const DAY: SignedDuration = SignedDuration::from_hours(24);

async fn compare(test: &TestApp) {
    reconciler::compare_with(&test.app, "memory", &test.world.provider).await.unwrap();
}

async fn alerts(test: &TestApp, operator: &Person, kind: &str) -> usize {
    let alerts = test.get(operator, "/api/operator/alerts").await;
    alerts.as_array().unwrap().iter().filter(|alert| alert["kind"] == kind).count()
}

async fn to(test: &TestApp, at: &str) {
    let at: Timestamp = at.parse().unwrap();
    test.advance(at.duration_since(test.app.clock.now())).await;
}

#[tokio::test]
async fn a_box_whose_machine_is_gone_is_suspended_and_what_was_not_served_is_returned() {
    let test = TestApp::new().await;
    to(&test, "2027-04-01T10:00:00Z").await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    compare(&test).await;
    assert_eq!(alerts(&test, &operator, "machine_gone").await, 0);
    to(&test, "2027-04-11T10:00:00Z").await;
    test.world.provider.lose(id.parse().unwrap());
    compare(&test).await;
    let lost = test.until(&buyer, &path, |resource| resource["status"] == "suspended").await;
    assert_eq!(lost["suspend_reason"], "upstream");
    assert_eq!(alerts(&test, &operator, "machine_gone").await, 1);
    compare(&test).await;
    test.idle().await;
    to(&test, "2027-04-20T10:00:00Z").await;
    test.post(&buyer, &format!("{path}/terminate"), json!({ "confirm_label": "Small" })).await;
    test.until(&buyer, &path, |resource| resource["status"] == "terminated").await;
    // 19 of 30 days, from the day it was not served any more.
    assert_eq!(test.get(&buyer, "/api/billing/account").await["available_cents"], 950);
    test.assert_sound().await;
}

#[tokio::test]
async fn a_lost_box_is_not_charged_and_no_payment_tries_to_bring_it_back() {
    let test = TestApp::new().await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    let due: Timestamp = test.get(&buyer, &path).await["paid_until"].as_str().unwrap().parse().unwrap();
    test.advance(due.duration_since(test.app.clock.now()) + SignedDuration::from_mins(1)).await;
    test.until(&buyer, &path, |resource| !resource["past_due_since"].is_null()).await;
    test.advance(DAY * 2 + SignedDuration::from_mins(1)).await;
    test.until_handed("final_warning", 1).await;
    test.advance(DAY + SignedDuration::from_mins(5)).await;
    test.until(&buyer, &path, |resource| resource["suspend_reason"] == "billing").await;
    test.idle().await;
    test.world.provider.lose(id.parse().unwrap());
    test.top_up(&buyer, 5000).await;
    test.until(&buyer, &path, |resource| {
        resource["suspend_reason"] == "upstream" && resource["operations"] == json!([])
    })
    .await;
    for _ in 0..3 {
        test.advance(DAY).await;
        test.idle().await;
    }
    let account = test.get(&buyer, "/api/billing/account").await;
    assert_eq!((account["available_cents"].as_i64(), account["reserved_cents"].as_i64()), (Some(5000), Some(0)));
    let tried: i64 = sqlx::query_scalar("select count(*) from provision_attempts where operation = 'resume'")
        .fetch_one(&test.app.pool)
        .await
        .unwrap();
    assert_eq!((tried, test.world.provider.calls(Verb::Resume)), (1, 0), "once");
    assert_eq!(alerts(&test, &operator, "machine_gone").await, 1);
    test.assert_sound().await;
}

#[tokio::test]
async fn a_machine_of_nobody_is_reported() {
    let test = TestApp::new().await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    test.active_box(&buyer, 1500).await;
    let credentials = Credentials { username: "seed".to_owned(), password: "x".into() };
    let spec = MachineSpec {
        resource_id: Uuid::now_v7(),
        size: "small".to_owned(),
        region: None,
        credentials,
        maybe_made_at: None,
    };
    test.world.provider.create(&spec).await.unwrap();
    compare(&test).await;
    compare(&test).await;
    assert_eq!(alerts(&test, &operator, "orphan_machine").await, 1);
}

#[tokio::test]
async fn a_provider_that_forgets_its_fleet_is_not_believed() {
    let test = TestApp::new().await;
    let operator = test.person(Role::Operator).await;
    let mut boxes = Vec::new();
    for _ in 0..7 {
        let buyer = test.customer().await;
        boxes.push((test.active_box(&buyer, 1500).await, buyer));
    }
    for (id, _) in &boxes[..6] {
        test.world.provider.lose(id.parse().unwrap());
    }
    compare(&test).await;
    test.idle().await;
    assert_eq!(alerts(&test, &operator, "provider_lost_machines").await, 1);
    for (id, buyer) in &boxes {
        assert_eq!(test.get(buyer, &format!("/api/seedbox/resources/{id}")).await["status"], "active");
    }
}

#[tokio::test]
async fn what_is_not_there_counts_as_stopped() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    test.world.provider.lose(id.parse().unwrap());
    test.post(&buyer, &format!("{path}/suspend"), json!({})).await;
    test.until(&buyer, &path, |resource| resource["suspend_reason"] == "user").await;
    test.post(&buyer, &format!("{path}/resume"), json!({})).await;
    test.until(&buyer, &path, |resource| resource["suspend_reason"] == "upstream").await;
    test.idle().await;
    assert_eq!(test.world.provider.calls(Verb::Resume), 0);
    test.assert_sound().await;
}
