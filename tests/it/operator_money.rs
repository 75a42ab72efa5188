//! What an operator does with money: every cent in the ledger, every change with a reason, nobody else may.

use reqwest::{Method, StatusCode};
use seedplane::accounts::Role;
use seedplane_simulators::coinpayportal::PayAmount;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Person, TestApp};

async fn refused(test: &TestApp, person: &Person, path: &str, body: Value) -> StatusCode {
    let (status, answer) = test.call(Some(person), Method::POST, path, Some(body)).await;
    assert!(status.is_client_error(), "{path}: {status} {answer}");
    status
}

#[tokio::test]
async fn promotional_credit_is_spent_and_never_paid_out() {
    let test = TestApp::new().await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let customer = format!("/api/operator/customers/{}", buyer.id);
    let gift = json!({ "amount_cents": 1000, "reason": "a slow week" });
    assert_eq!(refused(&test, &buyer, &format!("{customer}/promotion"), gift.clone()).await, 404);
    let nameless = json!({ "amount_cents": 1000, "reason": " " });
    assert_eq!(refused(&test, &operator, &format!("{customer}/promotion"), nameless).await, 422);
    let nobody = format!("/api/operator/customers/{}/promotion", Uuid::now_v7());
    assert_eq!(refused(&test, &operator, &nobody, gift.clone()).await, 404);
    let balances = test.post(&operator, &format!("{customer}/promotion"), gift).await;
    assert_eq!((balances["promotional_cents"].as_i64(), balances["paid_cents"].as_i64()), (Some(1000), Some(0)));

    test.top_up(&buyer, 500).await;
    let too_much = json!({ "amount_cents": 501, "reason": "asked for" });
    assert_eq!(refused(&test, &operator, &format!("{customer}/payouts"), too_much).await, 422);
    let plan = test.plan(1200).await;
    test.post(&buyer, "/api/seedbox/orders", json!({ "plan_id": plan })).await;
    let left = test.until(&buyer, "/api/billing/account", |account| account["reserved_cents"] == 0).await;
    assert_eq!((left["promotional_cents"].as_i64(), left["paid_cents"].as_i64()), (Some(0), Some(300)));
    test.idle().await;
    test.assert_sound().await;
}

#[tokio::test]
async fn a_refund_never_passes_its_charge() {
    let test = TestApp::new().await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/operator/resources/{id}/refund");
    let body = |cents: i64| json!({ "amount_cents": cents, "reason": "the disk was slow" });
    assert_eq!(refused(&test, &buyer, &path, body(500)).await, 404);
    assert_eq!(refused(&test, &operator, &path, body(1501)).await, 422);
    test.post(&operator, &path, body(500)).await;
    test.post(&operator, &path, body(900)).await;
    assert_eq!(refused(&test, &operator, &path, body(101)).await, 422);
    assert_eq!(
        refused(&test, &operator, &path, json!({ "amount_cents": 1, "charge": 1, "reason": "?" })).await,
        422,
        "there is no second charge"
    );
    test.post(&operator, &path, body(100)).await;
    let account = test.get(&buyer, "/api/billing/account").await;
    assert_eq!(account["paid_cents"], 1500);
    // Ended at once: nothing of the charge is left to give back.
    let label = test.get(&buyer, &format!("/api/seedbox/resources/{id}")).await["label"].clone();
    let end = json!({ "confirm_label": label });
    test.post(&buyer, &format!("/api/seedbox/resources/{id}/terminate"), end).await;
    test.until(&buyer, &format!("/api/seedbox/resources/{id}"), |resource| resource["status"] == "terminated").await;
    assert_eq!(test.get(&buyer, "/api/billing/account").await["paid_cents"], 1500);
    test.idle().await;
    test.assert_sound().await;
}

#[tokio::test]
async fn a_payout_is_set_aside_then_sent_or_called_off() {
    let test = TestApp::new().await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    test.top_up(&buyer, 1000).await;
    test.top_up(&buyer, 2000).await;
    let payouts = format!("/api/operator/customers/{}/payouts", buyer.id);
    let body = json!({ "amount_cents": 1200, "reason": "asked for by ticket 7" });
    assert_eq!(refused(&test, &buyer, &payouts, body.clone()).await, 404);
    let payout = test.post(&operator, &payouts, body).await;
    let lots: Vec<i64> =
        payout["lots"].as_array().unwrap().iter().map(|lot| lot["amount_cents"].as_i64().unwrap()).collect();
    assert_eq!(lots, [1000, 200], "oldest first: {payout}");
    let account = test.get(&buyer, "/api/billing/account").await;
    assert_eq!((account["paid_cents"].as_i64(), account["reserved_cents"].as_i64()), (Some(1800), Some(1200)));

    let path = format!("/api/operator/payouts/{}", payout["id"].as_str().unwrap());
    test.post(&operator, &format!("{path}/void"), json!({ "reason": "wrong address" })).await;
    let sent = json!({ "transaction_id": "0xabc", "reason": "sent" });
    assert_eq!(refused(&test, &operator, &format!("{path}/sent"), sent.clone()).await, 409, "closed already");
    let account = test.get(&buyer, "/api/billing/account").await;
    assert_eq!((account["paid_cents"].as_i64(), account["reserved_cents"].as_i64()), (Some(3000), Some(0)));

    let payout = test.post(&operator, &payouts, json!({ "amount_cents": 3000, "reason": "again" })).await;
    assert_eq!(test.get(&operator, "/api/operator/payouts").await.as_array().unwrap().len(), 1);
    let path = format!("/api/operator/payouts/{}", payout["id"].as_str().unwrap());
    let closed = test.post(&operator, &format!("{path}/sent"), sent).await;
    assert_eq!((closed["status"].as_str(), closed["transaction_id"].as_str()), (Some("sent"), Some("0xabc")));
    assert_eq!(refused(&test, &operator, &format!("{path}/void"), json!({ "reason": "?" })).await, 409);
    let account = test.get(&buyer, "/api/billing/account").await;
    assert_eq!((account["paid_cents"].as_i64(), account["reserved_cents"].as_i64()), (Some(0), Some(0)));
    test.assert_sound().await;
}

#[tokio::test]
async fn a_payment_that_waits_is_resolved_once() {
    let test = TestApp::new().await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let topup = test.post(&buyer, "/api/billing/topups", json!({ "amount_cents": 1000 })).await;
    let id = topup["id"].as_str().unwrap();
    let payment = topup["payment_id"].as_str().unwrap().parse().unwrap();
    let due: rust_decimal::Decimal = topup["amount_to_pay"].as_str().unwrap().parse().unwrap();
    test.world.sandbox.pay(payment, PayAmount::Decimal(due * rust_decimal::Decimal::from(3))).await.unwrap();
    test.until(&buyer, &format!("/api/billing/topups/{id}"), |topup| topup["unresolved_reason"] == "excess_held").await;
    let waiting = test.get(&operator, "/api/operator/topups/unresolved").await;
    let held = waiting[0]["held_cents"].as_i64().unwrap();
    assert!(held > 1990, "{waiting}");

    let path = format!("/api/operator/topups/{id}/resolve");
    let release = json!({ "resolution": { "action": "release_held" }, "reason": "the payer confirmed it" });
    assert_eq!(refused(&test, &buyer, &path, release.clone()).await, 404);
    let dismiss = json!({ "resolution": { "action": "dismiss" }, "reason": "?" });
    assert_eq!(refused(&test, &operator, &path, dismiss).await, 409, "held money is not forgotten");
    let mistyped = json!({ "resolution": { "action": "release_held", "amount_cents": 5 }, "reason": "?" });
    assert_eq!(refused(&test, &operator, &path, mistyped).await, 422, "what an action does not take is refused");
    // A sum credited by hand settles nothing of what is held: that goes on waiting.
    let credit = json!({ "resolution": { "action": "credit", "amount_cents": 5 }, "reason": "rounding" });
    test.post(&operator, &path, credit.clone()).await;
    assert_eq!(refused(&test, &operator, &path, credit).await, 409, "credited once");
    assert_eq!(test.get(&operator, "/api/operator/topups/unresolved").await[0]["held_cents"].as_i64(), Some(held));
    test.post(&operator, &path, release.clone()).await;
    assert_eq!(refused(&test, &operator, &path, release).await, 409, "once");
    let account = test.get(&buyer, "/api/billing/account").await;
    assert_eq!(account["paid_cents"].as_i64(), Some(1005 + held));
    assert_eq!(test.get(&operator, "/api/operator/topups/unresolved").await, json!([]));
    let alerts = test.get(&operator, "/api/operator/alerts").await;
    assert!(alerts.as_array().unwrap().iter().all(|alert| alert["kind"] != "topup_unresolved"), "{alerts}");
    test.idle().await;
    test.assert_sound().await;
}

#[tokio::test]
async fn who_runs_out_of_money_next_is_shown_with_the_date_on_their_own_pages() {
    let test = TestApp::new().await;
    let operator = test.person(Role::Operator).await;
    assert_eq!(test.get(&operator, "/api/operator/runway").await["next"], json!([]));
    let (rich, poor, poorer, leaving) =
        (test.customer().await, test.customer().await, test.customer().await, test.customer().await);
    for (person, cents) in [(&poor, 1500), (&rich, 1500), (&leaving, 700)] {
        test.active_box(person, cents).await;
    }
    test.top_up(&rich, 4000).await;
    // Whoever ends a box does not run out of money with it.
    let theirs = test.get(&leaving, "/api/seedbox/resources").await[0].clone();
    let end = json!({ "confirm_label": theirs["label"], "at_period_end": true });
    test.post(&leaving, &format!("/api/seedbox/resources/{}/terminate", theirs["id"].as_str().unwrap()), end).await;
    // A week later somebody else buys one, and a second, and has some left.
    test.advance(jiff::SignedDuration::from_hours(24 * 7)).await;
    test.active_box(&poorer, 900).await;
    test.active_box(&poorer, 800).await;
    test.top_up(&poorer, 600).await;
    test.idle().await;

    let seen = test.get(&operator, "/api/operator/runway").await;
    let next = seen["next"].as_array().unwrap();
    let first = |preview: &Value| {
        let boxes = preview["boxes"].as_array().unwrap();
        boxes.iter().filter_map(|one| one["stops_at"].as_str().map(str::to_owned)).min().unwrap()
    };
    let own = async |person: &Person| first(&test.get(person, "/api/billing/preview").await);
    assert_eq!(next[0]["user_id"], json!(poor.id), "{seen}");
    assert_eq!(next[0]["stops_at"].as_str().unwrap(), own(&poor).await);
    assert_eq!((next[0]["available_cents"].as_i64(), next[0]["monthly_cents"].as_i64()), (Some(0), Some(1500)));
    assert_eq!((seen["customers"].as_i64(), seen["complete"].as_bool()), (Some(1), Some(true)), "{seen}");
    assert_eq!((seen["within_week_cents"].as_i64(), seen["within_month_cents"].as_i64()), (Some(0), Some(1500)));

    test.advance(jiff::SignedDuration::from_hours(24 * 20)).await;
    test.idle().await;
    let seen = test.get(&operator, "/api/operator/runway").await;
    let next = seen["next"].as_array().unwrap();
    let whose: Vec<&Value> = next.iter().map(|one| &one["user_id"]).collect();
    assert_eq!(whose, [&json!(poor.id), &json!(poorer.id)], "{seen}");
    assert_eq!(next[1]["stops_at"].as_str().unwrap(), own(&poorer).await);
    assert_eq!((next[1]["boxes"].as_i64(), next[1]["monthly_cents"].as_i64()), (Some(2), Some(1700)), "{seen}");
    assert_eq!((seen["within_week_cents"].as_i64(), seen["within_month_cents"].as_i64()), (Some(1500), Some(3200)));
    // On the page, too.
    let page = crate::pages::page_of(&test, &operator, "/operator").await;
    assert!(page.contains("Who runs out of money next") && page.contains("$32.00"), "{page}");
}
