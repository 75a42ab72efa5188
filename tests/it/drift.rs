//! Machines and boxes that do not belong together: lost machines, machines of nobody.

use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use seedplane::{accounts::Role, workers::reconciler};
use seedplane_provisioning::{
    Billed, BilledKind, Credentials, Error, MachineSpec, ProvisioningProvider, ResourceRef, memory::Verb,
};
use serde_json::{Value, json};
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
    let drift = test.get(&operator, "/api/operator/drift").await;
    assert_eq!((&drift["count"], &drift["total_monthly_cost_cents"]), (&json!(1), &json!(400)), "{drift}");
    let finding = &drift["findings"][0];
    assert_eq!((&finding["kind"], &finding["resource_id"]), (&json!("unknown_upstream"), &json!(spec.resource_id)));
    // Deleted at the provider, both are over, and the operator still sees what was.
    test.world.provider.lose(spec.resource_id);
    compare(&test).await;
    assert_eq!(alerts(&test, &operator, "orphan_machine").await, 0);
    assert_eq!(test.get(&operator, "/api/operator/drift").await["count"], 0);
    let over = test.get(&operator, "/api/operator/drift?resolved=true").await;
    assert!(over["findings"].as_array().unwrap().len() == 1 && !over["findings"][0]["resolved_at"].is_null(), "{over}");
}

#[tokio::test]
async fn a_machine_that_is_seen_again_after_its_box_was_wiped_is_reported() {
    let test = TestApp::new().await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    test.post(&buyer, &format!("{path}/terminate"), json!({ "confirm_label": "Small" })).await;
    test.until(&buyer, &path, |resource| resource["status"] == "terminated").await;
    let spec = MachineSpec {
        resource_id: id.parse().unwrap(),
        size: "small".to_owned(),
        region: None,
        credentials: Credentials { username: "seed".to_owned(), password: "x".into() },
        maybe_made_at: None,
    };
    test.world.provider.create(&spec).await.unwrap();
    let calls = test.world.provider.calls(Verb::Terminate);
    compare(&test).await;
    let drift = test.get(&operator, "/api/operator/drift?kind=alive_though_terminated").await;
    assert_eq!((&drift["count"], &drift["findings"][0]["resource_id"]), (&json!(1), &json!(id)), "{drift}");
    assert_eq!(alerts(&test, &operator, "orphan_machine").await, 1);
    assert_eq!(test.world.provider.calls(Verb::Terminate), calls, "nothing destructive by itself");
}

fn left(kind: BilledKind, name: &str, id: Option<Uuid>, cost: Option<i64>) -> Billed {
    Billed {
        resource_ref: ResourceRef(name.to_owned()),
        resource_id: id,
        kind,
        stopped: false,
        monthly_cost_cents: cost,
        created_at: None,
    }
}

#[tokio::test]
async fn what_costs_and_brings_nothing_is_listed_with_what_to_do_and_nothing_is_deleted() {
    let test = TestApp::new().await;
    let (support, buyer) = (test.person(Role::Support).await, test.customer().await);
    test.world.provider.set_stopped_costs(true);
    seedplane::workers::reconciler::look_at_start(&test.app).await.unwrap();
    let id = test.active_box(&buyer, 1500).await;
    let (lives, nobody) = (id.parse().unwrap(), Uuid::now_v7());
    for leftover in [
        left(BilledKind::Volume, "of-the-box", Some(lives), Some(100)),
        left(BilledKind::Volume, "of-nobody", Some(nobody), Some(700)),
        left(BilledKind::Snapshot, "unnamed", None, None),
        left(BilledKind::Machine, "second", Some(lives), Some(900)),
    ] {
        test.world.provider.leave_behind(leftover);
    }
    test.post(&buyer, &format!("/api/seedbox/resources/{id}/suspend"), json!({})).await;
    test.until(&buyer, &format!("/api/seedbox/resources/{id}"), |resource| resource["status"] == "suspended").await;
    test.idle().await;
    compare(&test).await;
    let drift = test.get(&support, "/api/operator/drift").await;
    // What a provider lists and does not know by itself is not believed: the machine "second" is nowhere to be asked.
    let found: Vec<(&str, &str, &Value)> = drift["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["kind"].as_str().unwrap(), one["resource_ref"].as_str().unwrap(), &one["monthly_cost_cents"]))
        .collect();
    let stopped = format!("memory-{id}");
    let free = "costing_while_free";
    assert_eq!(
        found,
        [(free, "unnamed", &Value::Null), (free, "of-nobody", &json!(700)), (free, stopped.as_str(), &json!(400))]
    );
    assert_eq!((&drift["total_monthly_cost_cents"], &drift["without_cost"]), (&json!(1100), &json!(1)));
    let proposal = drift["findings"][2]["proposal"].as_str().unwrap();
    assert!(proposal.contains(&format!("seedplane operator terminate {id} --confirm Small")), "{proposal}");
    for (query, count) in
        [("provider=memory", 3), ("provider=other", 0), ("kind=twin", 0), ("kind=costing_while_free", 3)]
    {
        let drift = test.get(&support, &format!("/api/operator/drift?{query}")).await;
        assert_eq!(
            (drift["count"].as_i64(), drift["findings"].as_array().unwrap().len()),
            (Some(count), count as usize)
        );
    }
    let (status, problem) = test.call(Some(&support), Method::GET, "/api/operator/drift?kind=odd", None).await;
    assert_eq!((status.as_u16(), &problem["type"]), (422, &json!("bad-input")), "{problem}");
    assert_eq!(alerts(&test, &support, "upstream_leftover").await, 0, "it may be going yet");
    compare(&test).await;
    assert_eq!(alerts(&test, &support, "upstream_leftover").await, 2);
    assert_eq!(test.world.provider.calls(Verb::Terminate), 0);
}

#[tokio::test]
async fn how_old_it_is_is_said_and_what_cannot_be_read_is_not_taken_for_gone() {
    let test = TestApp::new().await;
    let operator = test.person(Role::Operator).await;
    test.world.provider.leave_behind(left(BilledKind::Volume, "v", None, Some(100)));
    test.advance(SignedDuration::ZERO).await;
    test.idle().await;
    compare(&test).await;
    let look = async || test.get(&operator, "/api/operator/drift").await;
    let fresh = look().await;
    assert!(fresh["looks"][0]["error"].is_null() && fresh["count"] == 1, "{fresh}");

    test.world.clock.set_offset(test.world.clock.offset() + SignedDuration::from_mins(31));
    test.world.provider.fail_next(Verb::Billed, Error::Auth("no scope for volumes".to_owned()));
    compare(&test).await;
    let old = look().await;
    assert_eq!(
        (&old["looks"][0]["compared_at"], &old["count"]),
        (&fresh["looks"][0]["compared_at"], &json!(1)),
        "{old}"
    );
    assert!(old["looks"][0]["age_seconds"].as_i64().unwrap() >= 31 * 60, "{old}");
    assert!(old["looks"][0]["error"].as_str().unwrap().contains("no scope for volumes"), "{old}");
    assert_eq!(alerts(&test, &operator, "provider_billing_unread").await, 1);
    assert_eq!(alerts(&test, &operator, "provider_access").await, 0, "machines can be made all the same");

    test.world.provider.fail_next(Verb::ListOwned, Error::transient("502"));
    compare(&test).await;
    let failing = look().await;
    assert!(failing["looks"][0]["error"].as_str().unwrap().contains("502"), "{failing}");
    assert_eq!(failing["count"], 1);
    compare(&test).await;
    assert!(look().await["looks"][0]["error"].is_null());
    assert_eq!(alerts(&test, &operator, "provider_billing_unread").await, 0);
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
    assert_eq!(test.get(&operator, "/api/operator/drift?kind=missing_upstream").await["count"], 6);
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
