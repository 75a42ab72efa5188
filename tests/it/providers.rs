//! What operators sell at which provider: plans checked against what it offers, access that is refused.

use jiff::SignedDuration;
use reqwest::{Method, StatusCode};
use seedplane::{accounts::Role, workers::reconciler};
use seedplane_provisioning::{Error, TorrentStance, memory::Verb};
use serde_json::{Value, json};

use crate::support::{Person, TestApp, World};

fn plan(more: Value) -> Value {
    let mut plan = json!({ "code": "fair", "name": "Fair", "price_cents": 1500, "provider": "memory", "size": "small",
        "disk_gb": 50, "reason": "x" });
    plan.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    plan
}

async fn add(test: &TestApp, operator: &Person, more: Value) -> (StatusCode, Value) {
    test.call(Some(operator), Method::POST, "/api/operator/plans", Some(plan(more))).await
}

/// Has the provider looked at, as workers do every few minutes.
async fn look(test: &TestApp) {
    reconciler::compare_with(&test.app, "memory", &test.world.provider).await.unwrap();
}

async fn alerts(test: &TestApp, operator: &Person, kind: &str) -> Vec<Value> {
    let alerts = test.get(operator, "/api/operator/alerts").await;
    alerts.as_array().unwrap().iter().filter(|alert| alert["kind"] == kind).cloned().collect()
}

fn in_two_places(world: &World) {
    world.provider.offer(|offered| {
        offered.sizes[0].regions = vec!["ams".to_owned(), "fra".to_owned()];
        offered.sizes[1].regions = vec!["fra".to_owned()];
    });
}

#[tokio::test]
async fn a_plan_names_a_size_and_a_region_that_can_be_had() {
    let world = World::new().await;
    in_two_places(&world);
    let test = world.start(false).await;
    let operator = test.person(Role::Operator).await;
    for (more, words) in [
        (json!({ "provider": "nobody" }), "there is memory"),
        (json!({ "size": "huge" }), "it has small, large"),
        (json!({}), "can be had in ams, fra"),
        (json!({ "region": "nyc" }), "can be had in ams, fra"),
        (json!({ "size": "large", "region": "ams", "price_cents": 3000 }), "can be had in fra"),
    ] {
        let (status, problem) = add(&test, &operator, more.clone()).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(status == StatusCode::UNPROCESSABLE_ENTITY && detail.contains(words), "{more}: {status} {detail}");
        assert!(detail.contains("Nothing was added"), "{detail}");
    }
    let (status, added) = add(&test, &operator, json!({ "region": "ams" })).await;
    assert_eq!((status, &added["region"]), (StatusCode::CREATED, &json!("ams")), "{added}");
    let listed = test.get(&operator, "/api/seedbox/plans").await;
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["region"]), (1, &json!("ams")));
}

#[tokio::test]
async fn a_price_is_shown_against_what_it_costs_and_one_under_it_is_said_on_purpose() {
    let test = World::new().await.start(false).await;
    let operator = test.person(Role::Operator).await;
    let (_, added) = add(&test, &operator, json!({})).await;
    assert_eq!((&added["upstream_cost_cents"], &added["margin_cents"]), (&json!(400), &json!(1100)), "{added}");
    let (status, problem) = add(&test, &operator, json!({ "price_cents": 399 })).await;
    assert_eq!((status.as_u16(), &problem["type"]), (422, &json!("below-cost")), "{problem}");
    assert_eq!(test.get(&operator, "/api/seedbox/plans").await[0]["price_cents"], 1500, "nothing was added");
    let (status, added) = add(&test, &operator, json!({ "price_cents": 399, "below_cost": true })).await;
    assert_eq!((status.as_u16(), &added["margin_cents"]), (201, &json!(-1)), "{added}");
}

#[tokio::test]
async fn a_box_is_made_in_the_region_of_its_plan_and_does_not_move_to_another() {
    let world = World::new().await;
    in_two_places(&world);
    let test = world.start(true).await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let (_, ams) = add(&test, &operator, json!({ "region": "ams" })).await;
    let (_, fra) = add(&test, &operator, json!({ "code": "far", "region": "fra", "price_cents": 2000 })).await;
    test.top_up(&buyer, 5000).await;
    let order = test.post(&buyer, "/api/seedbox/orders", json!({ "plan_id": ams["id"] })).await;
    let id = order["resource_id"].as_str().unwrap();
    let path = format!("/api/seedbox/resources/{id}");
    test.until(&buyer, &path, |resource| resource["status"] == "active").await;
    assert_eq!(test.world.provider.region(id.parse().unwrap()).as_deref(), Some("ams"));
    let body = json!({ "plan_id": fra["id"] });
    let (status, problem) = test.call(Some(&buyer), Method::POST, &format!("{path}/upgrade"), Some(body)).await;
    let detail = problem["detail"].as_str().unwrap();
    assert!(status == StatusCode::CONFLICT && detail.contains("in ams") && detail.contains("for fra"), "{detail}");
    test.assert_sound().await;
}

#[tokio::test]
async fn with_a_wrong_token_no_order_is_taken_and_with_a_right_one_the_waiting_are_served() {
    let world = World::new().await;
    world.provider.fail_next(Verb::Capabilities, Error::Auth("Unable to authenticate you.".to_owned()));
    let test = world.start(false).await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let told = alerts(&test, &operator, "provider_access").await;
    assert!(told[0]["detail"].as_str().unwrap().contains("Unable to authenticate you."), "{told:?}");
    let (status, problem) = add(&test, &operator, json!({})).await;
    assert_eq!((status.as_u16(), &problem["type"]), (409, &json!("provider-access")), "{problem}");

    let plan = test.plan(1500).await;
    assert_eq!(test.get(&buyer, "/api/seedbox/plans").await[0]["unavailable"], "access_refused");
    let order = json!({ "plan_id": plan });
    let place = async || test.call(Some(&buyer), Method::POST, "/api/seedbox/orders", Some(order.clone())).await;
    let (status, problem) = place().await;
    let detail = problem["detail"].as_str().unwrap();
    assert_eq!((status.as_u16(), &problem["type"]), (409, &json!("plan-unavailable")), "{problem}");
    assert!(detail.contains("right now") && detail.contains("nothing was charged"), "{detail}");
    assert_eq!(test.get(&buyer, "/api/seedbox/orders").await, json!([]));

    look(&test).await;
    assert_eq!(alerts(&test, &operator, "provider_access").await, Vec::<Value>::new());
    assert_eq!(place().await.0, StatusCode::CREATED);

    // Refused again before it was paid: it waits with the money on the balance, and is served once access is back.
    let working = test.world.start(true).await;
    // The round that every copy asks for at its start is over.
    working.advance(SignedDuration::ZERO).await;
    working.idle().await;
    test.world.provider.fail_next(Verb::ListOwned, Error::Auth("revoked".to_owned()));
    look(&test).await;
    working.top_up(&buyer, 1500).await;
    working.idle().await;
    let waiting = test.get(&buyer, "/api/seedbox/orders").await[0]["id"].as_str().unwrap().to_owned();
    let path = format!("/api/seedbox/orders/{waiting}");
    let order = test.get(&buyer, &path).await;
    assert_eq!((&order["status"], &order["unavailable"]), (&json!("awaiting_payment"), &json!("access_refused")));
    assert_eq!(test.get(&buyer, "/api/billing/account").await["available_cents"], 1500);
    look(&test).await;
    working.until(&buyer, &path, |order| order["status"] == "fulfilled").await;
    test.assert_sound().await;
}

#[tokio::test]
async fn a_token_that_may_look_and_not_make_machines_sells_one_box_at_most() {
    let test = TestApp::new().await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let plan = test.plan(1500).await;
    test.top_up(&buyer, 1500).await;
    test.world.provider.fail_next(Verb::Create, Error::Auth("You do not have access.".to_owned()));
    let order = test.post(&buyer, "/api/seedbox/orders", json!({ "plan_id": plan })).await;
    let path = format!("/api/seedbox/orders/{}", order["id"].as_str().unwrap());
    test.until(&buyer, &path, |order| order["status"] == "cancelled").await;
    assert_eq!(test.get(&buyer, "/api/billing/account").await["available_cents"], 1500, "to the cent");
    // That it can be looked at is no news: only a start with other settings tries again.
    look(&test).await;
    assert_eq!(alerts(&test, &operator, "provider_access").await.len(), 1);
    let again = json!({ "plan_id": plan });
    let (status, problem) = test.call(Some(&buyer), Method::POST, "/api/seedbox/orders", Some(again.clone())).await;
    assert_eq!((status.as_u16(), &problem["type"]), (409, &json!("plan-unavailable")), "{problem}");
    reconciler::look_at_start(&test.app).await.unwrap();
    assert_eq!(alerts(&test, &operator, "provider_access").await.len(), 0);
    let order = test.post(&buyer, "/api/seedbox/orders", again).await;
    let path = format!("/api/seedbox/orders/{}", order["id"].as_str().unwrap());
    test.until(&buyer, &path, |order| order["status"] == "fulfilled").await;
    test.assert_sound().await;
}

#[tokio::test]
async fn a_provider_that_does_not_answer_breaks_nothing_and_is_reported_after_a_while() {
    let test = World::new().await.start(false).await;
    let operator = test.person(Role::Operator).await;
    for minutes in [0, 29, 2] {
        test.world.clock.set_offset(test.world.clock.offset() + SignedDuration::from_mins(minutes));
        test.world.provider.fail_next(Verb::Capabilities, Error::transient("502"));
        test.world.provider.fail_next(Verb::ListOwned, Error::transient("502"));
        look(&test).await;
        let expected = usize::from(minutes == 2);
        assert_eq!(alerts(&test, &operator, "provider_unreachable").await.len(), expected, "after {minutes} more");
        assert_eq!(add(&test, &operator, json!({})).await.0, StatusCode::CREATED);
    }
    // One of each look's two answers was scripted to fail: what is left of them fails first.
    for _ in 0..4 {
        look(&test).await;
    }
    assert_eq!(alerts(&test, &operator, "provider_unreachable").await.len(), 0);
}

fn forbids_torrents(world: &World) {
    in_two_places(world);
    world.provider.offer(|offered| offered.torrent_stance = TorrentStance::Forbidden);
}

async fn mark(test: &TestApp, operator: &Person, method: Method, more: Value) -> (StatusCode, Value) {
    let mut body = json!({ "reason": "written consent of 2026-11-02, ticket 123" });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    test.call(Some(operator), method, "/api/operator/providers/memory/permission", Some(body)).await
}

#[tokio::test]
async fn torrents_are_sold_where_the_terms_or_the_operator_allow_them_and_nowhere_else() {
    let world = World::new().await;
    forbids_torrents(&world);
    let test = world.start(true).await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let (status, problem) = add(&test, &operator, json!({ "region": "ams" })).await;
    let detail = problem["detail"].as_str().unwrap();
    assert_eq!((status.as_u16(), &problem["type"]), (409, &json!("provider-not-permitted")), "{problem}");
    assert!(detail.contains("terms forbid torrents") && detail.contains("whole account"), "{detail}");
    assert!(detail.contains("seedplane provider permit memory --region ams"), "{detail}");

    for (more, status) in [
        (json!({ "reason": "yes" }), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({ "region": "nyc" }), StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        assert_eq!(mark(&test, &operator, Method::PUT, more.clone()).await.0, status, "{more}");
    }
    let (_, marked) = mark(&test, &operator, Method::PUT, json!({ "region": "fra" })).await;
    assert_eq!(marked["permissions"][0]["region"], "fra", "{marked}");
    assert_eq!(add(&test, &operator, json!({ "region": "ams" })).await.0, StatusCode::CONFLICT, "another region");
    let (status, plan) = add(&test, &operator, json!({ "region": "fra" })).await;
    assert_eq!(status, StatusCode::CREATED, "{plan}");
    test.top_up(&buyer, 3000).await;
    let body = json!({ "plan_id": plan["id"] });
    let order = test.post(&buyer, "/api/seedbox/orders", body.clone()).await;
    let path = format!("/api/seedbox/resources/{}", order["resource_id"].as_str().unwrap());
    test.until(&buyer, &path, |resource| resource["status"] == "active").await;

    // Revoked, nothing more is sold, and what was sold runs on.
    assert_eq!(mark(&test, &operator, Method::DELETE, json!({ "region": "fra" })).await.0, StatusCode::OK);
    assert_eq!(mark(&test, &operator, Method::DELETE, json!({ "region": "fra" })).await.0, StatusCode::CONFLICT);
    let (status, problem) = test.call(Some(&buyer), Method::POST, "/api/seedbox/orders", Some(body.clone())).await;
    let detail = problem["detail"].as_str().unwrap();
    assert_eq!((status.as_u16(), &problem["type"]), (409, &json!("plan-unavailable")), "{problem}");
    assert!(detail.contains("do not allow torrents") && detail.contains("nothing was charged"), "{detail}");
    assert_eq!(test.get(&buyer, "/api/seedbox/plans").await[0]["unavailable"], "not_permitted");
    look(&test).await;
    test.idle().await;
    assert_eq!(test.get(&buyer, &path).await["status"], "active");

    // A permission of the whole provider counts in every region.
    assert_eq!(mark(&test, &operator, Method::PUT, json!({})).await.0, StatusCode::OK);
    test.post(&buyer, "/api/seedbox/orders", body).await;
    let recorded: Vec<(String, String)> = sqlx::query_as(
        "select action, reason from seedbox_audit_events where subject_kind = 'provider_permission' order by id",
    )
    .fetch_all(&test.app.pool)
    .await
    .unwrap();
    let actions: Vec<&str> = recorded.iter().map(|(action, _)| action.as_str()).collect();
    assert_eq!(actions, ["provider.permitted", "provider.forbidden", "provider.permitted"]);
    assert!(recorded.iter().all(|(_, reason)| reason.contains("ticket 123")), "{recorded:?}");
    test.assert_sound().await;
}

#[tokio::test]
async fn a_permission_is_recorded_once_and_another_ground_takes_its_place() {
    let world = World::new().await;
    forbids_torrents(&world);
    let test = world.start(false).await;
    let operator = test.person(Role::Operator).await;
    let (_, first) = mark(&test, &operator, Method::PUT, json!({})).await;
    let (_, again) = mark(&test, &operator, Method::PUT, json!({})).await;
    assert_eq!(first["permissions"], again["permissions"]);
    let (_, other) = mark(&test, &operator, Method::PUT, json!({ "reason": "our lawyer's letter of May" })).await;
    assert_eq!(other["permissions"].as_array().unwrap().len(), 1, "{other}");
    assert_eq!(other["permissions"][0]["reason"], "our lawyer's letter of May");
}

#[tokio::test]
async fn an_operator_sees_what_each_provider_offers_and_how_it_fares() {
    let world = World::new().await;
    forbids_torrents(&world);
    world.provider.set_stopped_costs(true);
    let test = world.start(true).await;
    let (support, buyer) = (test.person(Role::Support).await, test.customer().await);
    let operator = test.person(Role::Operator).await;
    mark(&test, &operator, Method::PUT, json!({})).await;
    test.active_box(&buyer, 1500).await;
    let listed = test.get(&support, "/api/operator/providers").await;
    let memory = &listed[0];
    assert_eq!((&memory["provider"], &memory["failure"]), (&json!("memory"), &json!(null)), "{listed}");
    assert_eq!((&memory["torrent_stance"], &memory["stopped_costs"]), (&json!("forbidden"), &json!(true)));
    assert_eq!(
        memory["sizes"][0],
        json!({ "name": "small", "disk_gb": 50, "monthly_cost_cents": 400, "regions": ["ams", "fra"] })
    );
    assert_eq!(memory["boxes"], json!({ "active": 1, "suspended": 0, "others": 0 }));
    test.world.provider.fail_next(Verb::ListOwned, Error::Auth("revoked".to_owned()));
    look(&test).await;
    let memory = test.get(&support, "/api/operator/providers").await[0].clone();
    assert!(memory["failure"] == "access" && memory["error"].as_str().unwrap().contains("revoked"), "{memory}");
    assert_eq!(mark(&test, &support, Method::PUT, json!({})).await.0, StatusCode::NOT_FOUND, "support changes nothing");
}

#[tokio::test]
async fn a_box_has_as_long_to_come_up_as_its_provider_needs_and_is_shown_as_stuck_before_that() {
    let world = World::new().await;
    world.provider.set_build_polls(u32::MAX);
    world.provider.offer(|offered| offered.ready_within_seconds = 1200);
    let test = world.start(true).await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let plan = test.plan(1500).await;
    test.top_up(&buyer, 1500).await;
    let order = test.post(&buyer, "/api/seedbox/orders", json!({ "plan_id": plan })).await;
    let path = format!("/api/seedbox/resources/{}", order["resource_id"].as_str().unwrap());
    test.until(&buyer, &path, |resource| resource["status"] == "provisioning").await;
    test.advance(SignedDuration::from_mins(11)).await;
    let looks = test.world.provider.calls(Verb::Status);
    while alerts(&test, &operator, "stuck").await.is_empty() || test.world.provider.calls(Verb::Status) < looks + 2 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(test.get(&buyer, &path).await["status"], "provisioning", "11 minutes are within its time");
    test.advance(SignedDuration::from_mins(10)).await;
    test.until(&buyer, &path, |resource| resource["status"] == "terminated").await;
    let order = test.get(&buyer, &format!("/api/seedbox/orders/{}", order["id"].as_str().unwrap())).await;
    assert_eq!(order["status"], "cancelled");
    assert_eq!(test.get(&buyer, "/api/billing/account").await["available_cents"], 1500);
    test.assert_sound().await;
}

#[tokio::test]
async fn where_torrents_may_be_sold_is_said_on_a_page_with_what_taking_it_back_stops() {
    let world = World::new().await;
    in_two_places(&world);
    world.provider.offer(|offered| offered.torrent_stance = TorrentStance::Forbidden);
    let test = world.start(false).await;
    let (operator, support) = (test.person(Role::Operator).await, test.person(Role::Support).await);
    let page = async |person: &Person| crate::pages::page_of(&test, person, "/operator/providers").await;
    let send = async |person: &Person, form: Value| {
        crate::pages::sent(&test, person, "/operator/providers/memory/permission", form).await
    };
    let shown = page(&operator).await;
    assert!(shown.contains("not permitted, nothing is sold") && shown.contains("ams, fra"), "{shown}");
    assert!(!page(&support).await.contains("<form method=\"post\" action=\"/operator/providers"), "support reads");
    let permit = json!({ "action": "permit", "region": "ams", "reason": "written consent, ticket 5" });
    assert_eq!(send(&support, permit.clone()).await.0, 404);
    for (form, words) in [
        (json!({ "action": "permit", "region": "ams", "reason": "yes" }), "10 characters or more"),
        (json!({ "action": "permit", "region": "nyc", "reason": "written consent, ticket 5" }), "no region"),
        (json!({ "action": "sell", "reason": "written consent, ticket 5" }), "nothing was changed"),
    ] {
        let (status, said) = send(&operator, form.clone()).await;
        assert!(status == 422 && said.contains(words), "{form}: {status} {said}");
    }
    assert_eq!(send(&operator, permit).await.0, 303);
    let (_, added) = add(&test, &operator, json!({ "region": "ams" })).await;
    assert_eq!(added["name"], "Fair", "{added}");
    let shown = page(&operator).await;
    let email = seedplane::accounts::email_of(&test.app.pool, operator.id).await.unwrap().unwrap();
    for words in ["sold by your word", "In ams", "written consent, ticket 5", &email, "No longer sold: Fair (fair)."] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    // Covered by another one, too: nothing depends on the first alone.
    send(&operator, json!({ "action": "permit", "reason": "a contract, ticket 6" })).await;
    let shown = page(&operator).await;
    assert!(!shown.contains("No longer sold") && shown.contains("No plan on sale depends on it."), "{shown}");
    for region in ["", "ams"] {
        let forbid = json!({ "action": "forbid", "region": region, "reason": "they changed their mind" });
        assert_eq!(send(&operator, forbid.clone()).await.0, 303);
        assert_eq!(send(&operator, forbid).await.0, 409, "there is none any more");
    }
    assert!(page(&operator).await.contains("not permitted, nothing is sold"));
    assert_eq!(test.get(&operator, "/api/seedbox/plans").await[0]["unavailable"], "not_permitted");
}
