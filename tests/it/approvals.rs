//! The two-person rule: what one operator asks for is done once another one has approved it, and not otherwise.

use jiff::SignedDuration;
use reqwest::{Method, StatusCode};
use seedplane::{accounts::Role, alerts};
use serde_json::{Value, json};
use sqlx::Executor;

use crate::support::{Person, TestApp, World};

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// An application with the rule on.
async fn ruled() -> TestApp {
    let mut world = World::new().await;
    world.two_person_rule = true;
    world.start(true).await
}

async fn send(test: &TestApp, person: &Person, path: &str, body: Value) -> (u16, Value) {
    let (status, answer) = test.call(Some(person), Method::POST, path, Some(body)).await;
    (status.as_u16(), answer)
}

/// Sends what is refused; answers with its kind.
async fn refused(test: &TestApp, person: &Person, path: &str, body: Value) -> String {
    let (status, answer) = send(test, person, path, body).await;
    assert!((400..500).contains(&status), "{path}: {status} {answer}");
    assert!(answer["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{answer}");
    format!("{status} {}", answer["type"].as_str().unwrap())
}

/// Sends what has to wait; answers with where its approval is.
async fn waits(test: &TestApp, person: &Person, path: &str, body: Value) -> (String, Value) {
    let (status, approval) = send(test, person, path, body).await;
    assert_eq!((status, approval["status"].as_str()), (202, Some("waiting")), "{path}: {approval}");
    (format!("/api/operator/approvals/{}", approval["id"].as_str().unwrap()), approval)
}

fn why() -> Value {
    json!({ "reason": "looked at together" })
}

async fn money(test: &TestApp, buyer: &Person) -> (i64, i64) {
    let account = test.get(buyer, "/api/billing/account").await;
    (account["paid_cents"].as_i64().unwrap(), account["reserved_cents"].as_i64().unwrap())
}

#[tokio::test]
async fn a_payout_is_sent_once_somebody_else_has_approved_it() {
    let test = ruled().await;
    let (asker, second, third) =
        (test.person(Role::Operator).await, test.person(Role::Owner).await, test.person(Role::Operator).await);
    let (support, buyer, stranger) = (test.person(Role::Support).await, test.customer().await, test.customer().await);
    test.top_up(&buyer, 3000).await;
    let payouts = format!("/api/operator/customers/{}/payouts", buyer.id);
    let too_much = json!({ "amount_cents": 3001, "reason": "asked for" });
    assert_eq!(refused(&test, &asker, &payouts, too_much).await, "422 bad-input");
    assert_eq!(test.get(&asker, "/api/operator/approvals").await["waiting"], json!([]), "nothing waits for nothing");

    let body = json!({ "amount_cents": 1200, "reason": "ticket 7" });
    let (approval, asked) = waits(&test, &asker, &payouts, body).await;
    assert_eq!((asked["kind"].as_str(), asked["reason"].as_str()), (Some("payout"), Some("ticket 7")));
    assert_eq!(asked["effects"]["reaches"][0]["user_id"], json!(buyer.id));
    assert_eq!(asked["effects"]["reaches"][0]["amount_cents"], 1200);
    assert_eq!(money(&test, &buyer).await, (1800, 1200), "set aside at once");
    let payout = test.get(&support, "/api/operator/payouts").await[0].clone();
    assert_eq!(payout["approval_status"], "waiting");
    let path = format!("/api/operator/payouts/{}", payout["id"].as_str().unwrap());
    let sent = json!({ "transaction_id": "0xabc", "reason": "sent" });
    for person in [&asker, &second] {
        assert_eq!(refused(&test, person, &format!("{path}/sent"), sent.clone()).await, "409 approval-needed");
    }

    // Neither who asked, nor who only reads, nor a customer; nor the application behind its own back.
    assert_eq!(refused(&test, &asker, &format!("{approval}/approve"), why()).await, "403 second-person-needed");
    assert_eq!(refused(&test, &asker, &format!("{approval}/refuse"), why()).await, "403 second-person-needed");
    assert_eq!(refused(&test, &second, &format!("{approval}/withdraw"), why()).await, "403 not-yours-to-withdraw");
    assert_eq!(
        refused(&test, &second, &format!("{approval}/approve"), json!({ "reason": " " })).await,
        "422 bad-input"
    );
    for person in [&support, &buyer, &stranger] {
        for verb in ["approve", "refuse", "withdraw"] {
            assert_eq!(refused(&test, person, &format!("{approval}/{verb}"), why()).await, "404 not-found");
        }
    }
    assert_eq!(test.call(Some(&stranger), Method::GET, &approval, None).await.0, StatusCode::NOT_FOUND);
    let decided = "decision_reason = 'x', decided_at = asked_at + interval '1 hour'";
    for (what, statement) in [
        ("oneself", format!("update operator_approvals set status = 'approved', decided_by = asked_by, {decided}")),
        ("nobody", format!("update operator_approvals set status = 'approved', {decided}")),
        (
            "a customer",
            format!("update operator_approvals set status = 'approved', decided_by = '{}', {decided}", buyer.id),
        ),
        (
            "support",
            format!("update operator_approvals set status = 'approved', decided_by = '{}', {decided}", support.id),
        ),
        (
            "too late",
            format!(
                "update operator_approvals set status = 'approved', decided_by = '{}', decision_reason = 'x', decided_at = expires_at",
                second.id
            ),
        ),
        ("another asker", format!("update operator_approvals set asked_by = '{}'", second.id)),
        ("more time", "update operator_approvals set expires_at = expires_at + interval '1 day'".to_owned()),
        ("another request", "update operator_approvals set request = '{}'".to_owned()),
        ("no trace", "delete from operator_approvals".to_owned()),
        (
            "a payout that was not approved",
            "update payouts set status = 'sent', transaction_id = 'x', closed_at = created_at".to_owned(),
        ),
        ("a payout that needs none", "update payouts set approval_id = null".to_owned()),
    ] {
        let result = test.app.pool.execute(sqlx::AssertSqlSafe(statement)).await;
        assert!(result.is_err(), "the database took {what}");
    }

    // Twice at once: one of them.
    let approve = format!("{approval}/approve");
    let (one, other) = tokio::join!(send(&test, &second, &approve, why()), send(&test, &third, &approve, why()));
    let mut statuses = [one.0, other.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409], "{} {}", one.1, other.1);
    assert_eq!(refused(&test, &third, &format!("{approval}/refuse"), why()).await, "409 approval-decided");
    assert_eq!(money(&test, &buyer).await, (1800, 1200), "approved is not sent");
    let closed = test.post(&asker, &format!("{path}/sent"), sent).await;
    assert_eq!((closed["status"].as_str(), closed["approval_status"].as_str()), (Some("sent"), Some("approved")));
    assert_eq!(money(&test, &buyer).await, (1800, 0));

    let approvals = test.get(&support, "/api/operator/approvals").await;
    assert_eq!(
        (approvals["waiting"].as_array().unwrap().len(), approvals["decided"][0]["status"].as_str()),
        (0, Some("approved"))
    );
    let written: Vec<(String, String)> =
        sqlx::query_as("select action, reason from seedbox_audit_events where subject_kind = 'approval' order by seq")
            .fetch_all(&test.app.pool)
            .await
            .unwrap();
    let written: Vec<(&str, &str)> =
        written.iter().map(|(action, reason)| (action.as_str(), reason.as_str())).collect();
    assert_eq!(written, [("approval.asked_for", "ticket 7"), ("approval.approved", "looked at together")]);
    let again = test.app.pool.execute("update operator_approvals set status = 'refused'").await;
    assert!(again.is_err(), "a decision stands");
    test.assert_sound().await;
}

#[tokio::test]
async fn a_payout_that_is_not_approved_goes_back_to_the_cent() {
    let test = ruled().await;
    let (asker, second, buyer) =
        (test.person(Role::Operator).await, test.person(Role::Operator).await, test.customer().await);
    test.top_up(&buyer, 3000).await;
    let payouts = format!("/api/operator/customers/{}/payouts", buyer.id);
    let body = json!({ "amount_cents": 1207, "reason": "ticket 7" });
    let payout = async || {
        let open = test.get(&asker, "/api/operator/payouts").await;
        format!("/api/operator/payouts/{}", open[0]["id"].as_str().unwrap())
    };
    let (refusing, withdrawing) = ("refuse", "withdraw");
    for (person, verb, status) in [(&second, refusing, "refused"), (&asker, withdrawing, "withdrawn")] {
        let (approval, _) = waits(&test, &asker, &payouts, body.clone()).await;
        assert_eq!(money(&test, &buyer).await, (1793, 1207));
        let decided = test.post(person, &format!("{approval}/{verb}"), why()).await;
        assert_eq!(decided["status"], status);
        assert_eq!(money(&test, &buyer).await, (3000, 0), "{verb}");
    }
    // Called off on the list of payouts: its approval ends with it.
    for (person, status) in [(&second, "refused"), (&asker, "withdrawn")] {
        let (approval, _) = waits(&test, &asker, &payouts, body.clone()).await;
        test.post(person, &format!("{}/void", payout().await), why()).await;
        assert_eq!(test.get(&asker, &approval).await["status"], status);
        assert_eq!(money(&test, &buyer).await, (3000, 0));
        assert_eq!(refused(&test, &second, &format!("{approval}/approve"), why()).await, "409 approval-decided");
    }
    // Held since: nothing moves, and it goes on waiting.
    let (approval, _) = waits(&test, &asker, &payouts, body.clone()).await;
    let owner = test.world.owner().await;
    owner
        .execute("update seedbox_billing_accounts set payout_hold_reason = 'abuse' where payout_hold_reason is null")
        .await
        .unwrap();
    assert_eq!(refused(&test, &second, &format!("{approval}/approve"), why()).await, "409 conflict");
    assert_eq!(test.get(&asker, &approval).await["status"], "waiting");
    assert_eq!(money(&test, &buyer).await, (1793, 1207));
    // Not decided in time: it cannot be any more, and the money goes back by itself.
    test.world.clock.set_offset(test.world.clock.offset() + DAY * 3);
    let late = refused(&test, &second, &format!("{approval}/approve"), why()).await;
    assert!(["409 approval-expired", "409 approval-decided"].contains(&late.as_str()), "{late}");
    test.advance(SignedDuration::from_secs(1)).await;
    test.until(&asker, &approval, |approval| approval["status"] == "expired").await;
    assert_eq!(money(&test, &buyer).await, (3000, 0));
    assert_eq!(refused(&test, &second, &format!("{approval}/refuse"), why()).await, "409 approval-decided");
    test.assert_sound().await;
}

#[tokio::test]
async fn a_single_operator_is_told_what_to_do() {
    let test = ruled().await;
    let (alone, buyer) = (test.person(Role::Operator).await, test.customer().await);
    test.person(Role::Support).await;
    test.top_up(&buyer, 3000).await;
    let payouts = format!("/api/operator/customers/{}/payouts", buyer.id);
    let body = json!({ "amount_cents": 1200, "reason": "ticket 7" });
    let (status, problem) = send(&test, &alone, &payouts, body).await;
    assert_eq!((status, problem["type"].as_str()), (409, Some("second-person-missing")), "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("seedplane operator create") && detail.contains("SEEDPLANE_TWO_PERSON_RULE=false"),
        "{detail}"
    );
    assert_eq!(money(&test, &buyer).await, (3000, 0), "nothing was set aside");
}

#[tokio::test]
async fn many_boxes_at_once_wait_for_somebody_else_and_a_few_do_not() {
    let test = ruled().await;
    let (asker, second, buyer) =
        (test.person(Role::Operator).await, test.person(Role::Operator).await, test.customer().await);
    let mut boxes = Vec::new();
    for _ in 0..6 {
        boxes.push(test.active_box(&buyer, 1500).await);
    }
    let path = "/api/operator/mass-actions";
    let until = test.app.now().0 + DAY * 7;
    let hold = json!({ "action": "hold", "until": until });
    let body = |change: &Value, boxes: &[String]| json!({ "change": change, "resource_ids": boxes, "reason": "the data centre moves" });
    let held = async || {
        let mut count = 0;
        for id in &boxes {
            let resource = test.get(&asker, &format!("/api/operator/resources/{id}")).await;
            count += usize::from(!resource["hold_until"].is_null());
        }
        count
    };
    // Five are no mass action; something that cannot be done to one of them is done to none.
    test.post(&asker, path, body(&hold, &boxes[..5])).await;
    assert_eq!(held().await, 5);
    let release = json!({ "action": "release_hold" });
    assert_eq!(refused(&test, &asker, path, body(&release, &boxes)).await, "409 conflict", "the sixth is not held");
    assert_eq!(held().await, 5);
    assert_eq!(
        refused(&test, &asker, path, body(&json!({ "action": "terminate" }), &boxes[..1])).await,
        "422 bad-input"
    );
    assert_eq!(refused(&test, &asker, path, body(&hold, &[])).await, "422 bad-input");
    assert_eq!(refused(&test, &buyer, path, body(&hold, &boxes)).await, "404 not-found");
    test.post(&asker, path, body(&release, &boxes[..5])).await;
    assert_eq!(held().await, 0);

    // Six wait. Refused, nothing happens.
    let (approval, asked) = waits(&test, &asker, path, body(&hold, &boxes)).await;
    assert_eq!(asked["effects"]["reaches"].as_array().unwrap().len(), 6);
    test.post(&second, &format!("{approval}/refuse"), why()).await;
    assert_eq!(held().await, 0);
    let suspend = json!({ "action": "suspend", "suspend_reason": "operator" });
    let (approval, _) = waits(&test, &asker, path, body(&suspend, &boxes)).await;
    test.idle().await;
    let label = test.get(&buyer, &format!("/api/seedbox/resources/{}", boxes[0])).await["label"].clone();
    assert_eq!(label, "Small");
    test.post(&second, &format!("{approval}/approve"), why()).await;
    let suspended = |resource: &Value| resource["status"] == "suspended" && resource["suspend_reason"] == "operator";
    for id in &boxes {
        test.until(&buyer, &format!("/api/seedbox/resources/{id}"), suspended).await;
    }
    test.idle().await;
    // One came back in between: nothing is done to the others either, and it goes on waiting.
    let (approval, _) = waits(&test, &asker, path, body(&json!({ "action": "resume" }), &boxes)).await;
    test.post(&second, &format!("/api/operator/resources/{}/resume", boxes[0]), why()).await;
    test.until(&buyer, &format!("/api/seedbox/resources/{}", boxes[0]), |resource| resource["status"] == "active")
        .await;
    assert_eq!(refused(&test, &second, &format!("{approval}/approve"), why()).await, "409 conflict");
    test.idle().await;
    assert_eq!(test.get(&buyer, &format!("/api/seedbox/resources/{}", boxes[1])).await["status"], "suspended");
    assert_eq!(test.get(&asker, &approval).await["status"], "waiting");
    test.assert_sound().await;
}

#[tokio::test]
async fn a_price_for_those_who_bought_before_waits_and_reaches_whom_it_was_asked_for() {
    let test = ruled().await;
    let (asker, second) = (test.person(Role::Operator).await, test.person(Role::Operator).await);
    let (buyer, later) = (test.customer().await, test.customer().await);
    let id = test.active_box(&buyer, 1500).await;
    let plan = test.get(&buyer, "/api/seedbox/plans").await[0].clone();
    let price = |cents: i64, existing: bool| {
        json!({ "code": plan["code"], "name": "Small", "price_cents": cents, "provider": "memory", "size": "small", "disk_gb": 50,
            "applies_to_existing": existing, "reason": "electricity" })
    };
    let path = "/api/operator/plans";
    let (approval, asked) = waits(&test, &asker, path, price(2000, true)).await;
    let reaches = asked["effects"]["reaches"].as_array().unwrap();
    assert_eq!((reaches.len(), reaches[0]["resource_id"].as_str()), (1, Some(id.as_str())));
    assert!(asked["effects"]["costs"].as_str().unwrap().contains("$5.00 a month more"), "{asked}");
    assert_eq!(refused(&test, &second, path, price(2100, true)).await, "409 approval-waits", "one at a time");
    assert_eq!(test.get(&buyer, "/api/seedbox/plans").await[0]["price_cents"], 1500);
    // Bought since, at the old price.
    test.top_up(&later, 1500).await;
    let order = test.post(&later, "/api/seedbox/orders", json!({ "plan_id": plan["id"] })).await;
    let bought = order["resource_id"].as_str().unwrap().to_owned();
    test.until(&later, &format!("/api/seedbox/resources/{bought}"), |resource| resource["status"] == "active").await;
    test.post(&second, &format!("{approval}/approve"), why()).await;
    test.until_handed("price_change", 1).await;
    assert_eq!(test.get(&buyer, "/api/seedbox/plans").await[0]["price_cents"], 2000);
    let next: Vec<Option<i64>> =
        sqlx::query_scalar("select next_price_cents from seedbox_resources order by id = $1::uuid desc")
            .bind(id.parse::<uuid::Uuid>().unwrap())
            .fetch_all(&test.app.pool)
            .await
            .unwrap();
    assert_eq!(next, [Some(2000), None], "only whom it was asked for");

    // Another version came in between: not what was asked for any more.
    let (approval, _) = waits(&test, &asker, path, price(2500, true)).await;
    let (status, _) = send(&test, &asker, path, price(2200, false)).await;
    assert_eq!(status, 201, "nobody is reached by a price for new boxes");
    assert_eq!(refused(&test, &second, &format!("{approval}/approve"), why()).await, "409 approval-outdated");
    assert_eq!(test.get(&buyer, "/api/seedbox/plans").await[0]["price_cents"], 2200);
    test.idle().await;
    test.assert_sound().await;
}

#[tokio::test]
async fn the_blast_limit_is_lifted_for_the_boxes_that_somebody_else_has_seen() {
    let test = ruled().await;
    let (asker, second) = (test.person(Role::Operator).await, test.person(Role::Operator).await);
    let (first, other) = (test.customer().await, test.customer().await);
    let one = test.active_box(&first, 1500).await;
    // As if eight others had been cut off in the hour.
    alerts::raise(&test.app.pool, "blast_limit", "billing sweep", "8 boxes of 9", test.app.now()).await.unwrap();
    let seen = test.get(&first, &format!("/api/seedbox/resources/{one}")).await;
    let due: jiff::Timestamp = seen["paid_until"].as_str().unwrap().parse().unwrap();
    test.advance(due.duration_since(test.app.clock.now()) + SignedDuration::from_mins(1)).await;
    let two = test.active_box(&other, 1500).await;
    test.until(&first, &format!("/api/seedbox/resources/{one}"), |resource| !resource["past_due_since"].is_null())
        .await;
    test.advance(DAY * 2).await;
    test.until_handed("final_warning", 1).await;
    test.advance(DAY + SignedDuration::from_mins(5)).await;
    test.idle().await;
    assert_eq!(
        test.get(&first, &format!("/api/seedbox/resources/{one}")).await["status"],
        "active",
        "the limit stops it"
    );

    let path = "/api/operator/alerts/resolve";
    let body = |subject: &str| json!({ "kind": "blast_limit", "subject": subject, "reason": "they did not pay" });
    assert_eq!(refused(&test, &asker, path, body("nothing")).await, "404 not-found");
    let (approval, asked) = waits(&test, &asker, path, body("billing sweep")).await;
    let reaches = asked["effects"]["reaches"].as_array().unwrap();
    assert_eq!((reaches.len(), reaches[0]["resource_id"].as_str()), (1, Some(one.as_str())), "{asked}");
    assert_eq!(refused(&test, &asker, &format!("{approval}/approve"), why()).await, "403 second-person-needed");
    let open = test.get(&asker, "/api/operator/alerts").await;
    assert!(open.as_array().unwrap().iter().any(|alert| alert["kind"] == "blast_limit"), "{open}");
    // What the operators of this installation resolve by themselves goes on as before.
    alerts::raise(&test.app.pool, "mailer_failing", "mail", "x", test.app.now()).await.unwrap();
    let (status, _) =
        send(&test, &asker, path, json!({ "kind": "mailer_failing", "subject": "mail", "reason": "x" })).await;
    assert_eq!(status, 204);

    test.post(&second, &format!("{approval}/approve"), why()).await;
    test.advance(SignedDuration::from_mins(15)).await;
    test.until(&first, &format!("/api/seedbox/resources/{one}"), |resource| resource["status"] == "suspended").await;
    assert_eq!(test.get(&other, &format!("/api/seedbox/resources/{two}")).await["status"], "active");
    test.assert_sound().await;
}

#[tokio::test]
async fn more_boxes_than_were_shown_are_not_cut_off() {
    let test = ruled().await;
    let (asker, second, buyer) =
        (test.person(Role::Operator).await, test.person(Role::Operator).await, test.customer().await);
    let one = test.active_box(&buyer, 1500).await;
    alerts::raise(&test.app.pool, "blast_limit", "billing sweep", "8 boxes of 9", test.app.now()).await.unwrap();
    let body = json!({ "kind": "blast_limit", "subject": "billing sweep", "reason": "they did not pay" });
    let (approval, asked) = waits(&test, &asker, "/api/operator/alerts/resolve", body).await;
    assert_eq!(asked["effects"]["reaches"], json!([]), "nobody is due");
    // As if it lapsed at once, with its warning handed over.
    let lapse = "update seedbox_resources set past_due_since = $2::timestamptz - interval '9 days', version = version + 1,
        paid_until = $2::timestamptz - interval '9 days', anchor_at = $2::timestamptz - interval '9 days', periods_charged = 0 where id = $1";
    let owner = test.world.owner().await;
    let now = test.app.now();
    sqlx::query(lapse).bind(one.parse::<uuid::Uuid>().unwrap()).bind(now).execute(&owner).await.unwrap();
    sqlx::query(
        "insert into notices (id, user_id, resource_id, kind, idempotency_key, created_at, handed_at)
         select gen_random_uuid(), user_id, id, 'final_warning', 'final_warning:' || id || ':' || lapse_number,
             $1::timestamptz - interval '5 days', $1::timestamptz - interval '5 days' from seedbox_resources",
    )
    .bind(now)
    .execute(&owner)
    .await
    .unwrap();
    assert_eq!(refused(&test, &second, &format!("{approval}/approve"), why()).await, "409 approval-outdated");
    test.idle().await;
    assert_eq!(test.get(&buyer, &format!("/api/seedbox/resources/{one}")).await["status"], "active");
}

#[tokio::test]
async fn with_the_rule_off_nobody_else_is_asked() {
    let test = TestApp::new().await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let mut boxes = Vec::new();
    for _ in 0..6 {
        boxes.push(test.active_box(&buyer, 1500).await);
    }
    test.top_up(&buyer, 1000).await;
    let until = test.app.now().0 + DAY;
    let hold = json!({ "change": { "action": "hold", "until": until }, "resource_ids": boxes, "reason": "x" });
    let (status, done) = send(&test, &operator, "/api/operator/mass-actions", hold).await;
    assert_eq!((status, done["resource_ids"].as_array().map(Vec::len)), (200, Some(6)), "{done}");
    let payouts = format!("/api/operator/customers/{}/payouts", buyer.id);
    let (status, payout) = send(&test, &operator, &payouts, json!({ "amount_cents": 100, "reason": "x" })).await;
    assert_eq!((status, &payout["approval_id"]), (201, &Value::Null), "{payout}");
    let path = format!("/api/operator/payouts/{}/sent", payout["id"].as_str().unwrap());
    test.post(&operator, &path, json!({ "transaction_id": "0x1", "reason": "sent" })).await;
    alerts::raise(&test.app.pool, "blast_limit", "billing sweep", "x", test.app.now()).await.unwrap();
    let body = json!({ "kind": "blast_limit", "subject": "billing sweep", "reason": "x" });
    assert_eq!(send(&test, &operator, "/api/operator/alerts/resolve", body).await.0, 204);
    assert_eq!(test.get(&operator, "/api/operator/approvals").await, json!({ "waiting": [], "decided": [] }));
    test.idle().await;
    test.assert_sound().await;
}
