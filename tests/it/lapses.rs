//! Runs of the sweep in which much happens at once, second lapses, and ends that are overtaken by something.

use std::sync::{Arc, Mutex};

use jiff::SignedDuration;
use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use seedplane::{
    accounts::Role,
    alerts,
    audit::chain,
    billing::sweep::{self, CLOCK_JUMPED},
    clock::{Clock, Time},
    mailer::{self, Mailer, templates},
    workers::reconciler,
};
use seedplane_provisioning::memory::Verb;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Person, TestApp, World};

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// A world with a buyer whose box runs, and no workers.
async fn without_workers(world: &World) -> (TestApp, Person, String) {
    let working = world.start(true).await;
    let buyer = working.customer().await;
    let id = working.active_box(&buyer, 1500).await;
    working.idle().await;
    drop(working);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    (world.start(false).await, buyer, format!("/api/seedbox/resources/{id}"))
}

async fn has_alert(test: &TestApp, operator: &Person, kind: &str) -> Value {
    let is = |alert: &Value| alert["kind"] == kind;
    let alerts = test.until(operator, "/api/operator/alerts", |alerts| alerts.as_array().unwrap().iter().any(is)).await;
    alerts.as_array().unwrap().iter().find(|alert| is(alert)).unwrap().clone()
}

/// Moves the clock to a minute after the end of what is paid for.
async fn to_due(test: &TestApp, buyer: &Person, path: &str) {
    let due: jiff::Timestamp = test.get(buyer, path).await["paid_until"].as_str().unwrap().parse().unwrap();
    test.advance(due.duration_since(test.app.clock.now()) + SignedDuration::from_mins(1)).await;
}

/// From past due to suspended, with its warning.
async fn lapse(test: &TestApp, buyer: &Person, path: &str, warnings: i64) -> Value {
    test.until(buyer, path, |resource| !resource["past_due_since"].is_null()).await;
    test.advance(DAY * 2 + SignedDuration::from_mins(1)).await;
    test.until_handed("final_warning", warnings).await;
    test.idle().await;
    assert_eq!(test.get(buyer, path).await["status"], "active", "not before its warning is a day old");
    test.advance(DAY + SignedDuration::from_mins(5)).await;
    test.until(buyer, path, |resource| resource["status"] == "suspended").await
}

#[tokio::test]
async fn a_month_that_is_paid_and_one_that_is_not_fall_due_in_one_run() {
    let world = World::new().await;
    let test = world.start(true).await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    test.top_up(&buyer, 1500).await;
    test.idle().await;
    let path = format!("/api/seedbox/resources/{id}");
    let first = test.get(&buyer, &path).await["paid_until"].clone();
    drop(test);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let test = world.start(true).await;
    test.advance(DAY * 62).await;
    let resource = test.until(&buyer, &path, |resource| !resource["past_due_since"].is_null()).await;
    assert_ne!(resource["paid_until"], first, "one month was charged");
    assert_eq!(resource["past_due_since"], resource["paid_until"], "and the next is past due");
    assert_eq!(test.get(&buyer, "/api/billing/account").await["available_cents"], 0);
    test.until_handed("past_due", 1).await;
    test.idle().await;
    test.assert_sound().await;
}

#[tokio::test]
async fn an_account_that_cannot_be_settled_stops_nobody_else() {
    let test = TestApp::new().await;
    let operator = test.person(Role::Operator).await;
    let mut boxes = Vec::new();
    for _ in 0..3 {
        let buyer = test.customer().await;
        let id = test.active_box(&buyer, 1500).await;
        test.top_up(&buyer, 1500).await;
        boxes.push((format!("/api/seedbox/resources/{id}"), buyer));
    }
    test.idle().await;
    // The second charge of the first box stands in the ledger already, as after a restore that went wrong.
    let (path, poisoned) = &boxes[0];
    sqlx::query(
        "insert into ledger_transfers (id, debit_account_id, credit_account_id, amount_cents, kind, idempotency_key, cause, created_at)
         values (gen_random_uuid(), ledger_house_account('gateway'), ledger_house_account('revenue'), 1, 'charge', $1, 'x', now())",
    )
    .bind(format!("charge:{}:1:paid", path.rsplit('/').next().unwrap()))
    .execute(&test.world.owner().await)
    .await
    .unwrap();
    test.advance(DAY * 32).await;
    for (path, buyer) in &boxes[1..] {
        test.until(buyer, "/api/billing/account", |account| account["available_cents"] == 0).await;
        assert!(test.get(buyer, path).await["past_due_since"].is_null());
    }
    // A round that finds the account held by somebody else leaves it for the next one, so that some count for nothing.
    for _ in 0..20 {
        test.advance(SignedDuration::from_hours(2)).await;
        test.idle().await;
        let failures: i32 =
            sqlx::query_scalar("select sweep_failures from seedbox_billing_accounts where user_id = $1")
                .bind(poisoned.id.0)
                .fetch_one(&test.app.pool)
                .await
                .unwrap();
        if failures >= 3 {
            break;
        }
    }
    let alert = has_alert(&test, &operator, "account_not_settled").await;
    assert_eq!(alert["subject"], poisoned.id.to_string(), "{alert}");
    assert_eq!(test.get(poisoned, "/api/billing/account").await["available_cents"], 1500, "nothing was taken");
    test.assert_sound().await;
}

#[tokio::test]
async fn a_hold_beats_an_end_that_was_asked_for_before_it() {
    let world = World::new().await;
    let (test, buyer, path) = without_workers(&world).await;
    let operator = test.person(Role::Operator).await;
    test.post(&buyer, &format!("{path}/terminate"), json!({ "confirm_label": "Small" })).await;
    let until = (test.app.now().0 + DAY * 2).to_string();
    let hold = json!({ "until": until, "reason": "evidence" });
    test.post(&operator, &format!("{}/hold", path.replace("seedbox", "operator")), hold).await;
    let test = world.start(true).await;
    let resource = test.until(&buyer, &path, |resource| resource["operations"] == json!([])).await;
    assert_eq!(resource["status"], "active", "{resource}");
    assert_eq!(world.provider.calls(Verb::Terminate), 0);
    test.assert_sound().await;
}

#[tokio::test]
async fn an_end_for_non_payment_asks_the_rules_again_before_it_wipes() {
    let test = TestApp::new().await;
    let operator = test.person(Role::Operator).await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    to_due(&test, &buyer, &path).await;
    lapse(&test, &buyer, &path, 1).await;
    for (notice, days) in [(1, 8), (2, 4), (3, 2)] {
        test.advance(DAY * days).await;
        test.until_handed("wipe_notice", notice).await;
        test.idle().await;
    }
    let world = test.world.clone();
    drop(test);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let test = world.start(false).await;
    test.world.clock.set_offset(test.world.clock.offset() + DAY + SignedDuration::from_mins(5));
    sweep::sweep_due(&test.app).await.unwrap();
    let asked = test.get(&buyer, &path).await;
    assert_eq!(asked["operations"][0]["operation"], "terminate", "{asked}");
    // Between the asking and the doing the clock is found to have jumped.
    alerts::raise(&test.app.pool, CLOCK_JUMPED, "clock", "the clock jumped", test.app.now()).await.unwrap();
    let test = world.start(true).await;
    let resource = test.until(&buyer, &path, |resource| resource["operations"] == json!([])).await;
    assert_eq!((resource["status"].as_str(), world.provider.calls(Verb::Terminate)), (Some("suspended"), 0));
    drop(test);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let test = world.start(false).await;
    let resolve = json!({ "kind": "clock_jumped", "subject": "clock", "reason": "the machine had slept" });
    test.post(&operator, "/api/operator/alerts/resolve", resolve).await;
    test.world.clock.set_offset(test.world.clock.offset() + SignedDuration::from_mins(15));
    sweep::sweep_due(&test.app).await.unwrap();
    assert_eq!(test.get(&buyer, &path).await["operations"][0]["operation"], "terminate");
    // And now money comes in between.
    let credit = json!({ "amount_cents": 3000, "reason": "we are sorry" });
    test.post(&operator, &format!("/api/operator/customers/{}/promotion", buyer.id), credit).await;
    let test = world.start(true).await;
    test.until(&buyer, &path, |resource| resource["status"] == "active").await;
    assert_eq!(world.provider.calls(Verb::Terminate), 0);
    test.idle().await;
    test.assert_sound().await;
}

#[tokio::test]
async fn a_second_lapse_is_told_like_the_first() {
    let test = TestApp::new().await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    to_due(&test, &buyer, &path).await;
    let first = lapse(&test, &buyer, &path, 1).await;
    assert!(first["arrears_cents"].as_i64().unwrap() > 140, "{first}");
    test.advance(DAY * 8).await;
    test.until_handed("wipe_notice", 1).await;
    test.assert_sound().await;

    let resume = json!({ "reason": "they promised to pay" });
    test.post(&operator, &format!("/api/operator/resources/{id}/resume"), resume).await;
    let back = test.until(&buyer, &path, |resource| resource["status"] == "active").await;
    assert_eq!(back["arrears_cents"], 0, "written off with the operator's decision");
    test.assert_sound().await;
    let second = lapse(&test, &buyer, &path, 2).await;
    test.until_handed("past_due", 2).await;
    let arrears = second["arrears_cents"].as_i64().unwrap();
    assert!(arrears > 140, "{second}");
    test.assert_sound().await;
    for (notice, days) in [(2, 8), (3, 4), (4, 2)] {
        test.advance(DAY * days).await;
        test.until_handed("wipe_notice", notice).await;
        test.idle().await;
        assert_eq!(test.get(&buyer, &path).await["status"], "suspended");
    }
    test.top_up(&buyer, 1500 + arrears).await;
    test.until(&buyer, &path, |resource| resource["status"] == "active").await;
    test.idle().await;
    let account = test.get(&buyer, "/api/billing/account").await;
    assert_eq!((account["available_cents"].as_i64(), account["reserved_cents"].as_i64()), (Some(0), Some(0)));
    test.assert_sound().await;
}

#[tokio::test]
async fn an_operation_that_is_asked_for_already_is_refused_in_words() {
    let world = World::new().await;
    let (test, buyer, path) = without_workers(&world).await;
    test.post(&buyer, &format!("{path}/suspend"), json!({})).await;
    let (status, problem) = test.call(Some(&buyer), Method::POST, &format!("{path}/suspend"), Some(json!({}))).await;
    assert_eq!(status, StatusCode::CONFLICT, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("suspend"), "{problem}");
}

#[tokio::test]
async fn an_operators_request_replaces_the_owners() {
    let world = World::new().await;
    let (test, buyer, path) = without_workers(&world).await;
    let operator = test.person(Role::Operator).await;
    test.post(&buyer, &format!("{path}/suspend"), json!({})).await;
    let abuse = json!({ "suspend_reason": "abuse", "reason": "notice 17" });
    test.post(&operator, &format!("{}/suspend", path.replace("seedbox", "operator")), abuse).await;
    let working = world.start(true).await;
    let suspended = working.until(&buyer, &path, |resource| resource["status"] == "suspended").await;
    assert_eq!(suspended["suspend_reason"], "abuse");
    working.idle().await;
    working.assert_sound().await;
}

#[tokio::test]
async fn an_operators_command_replaces_the_owners_request() {
    let world = World::new().await;
    let (test, buyer, path) = without_workers(&world).await;
    let operator = test.person(Role::Operator).await;
    let email: String = sqlx::query_scalar("select email from users where id = $1")
        .bind(operator.id.0)
        .fetch_one(&test.app.pool)
        .await
        .unwrap();
    test.post(&buyer, &format!("{path}/suspend"), json!({})).await;
    let command = |words: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_seedplane"))
            .args([
                "operator",
                words[0],
                path.rsplit('/').next().unwrap(),
                "--operator",
                &email,
                "--reason",
                "notice 17",
            ])
            .args(&words[1..])
            .arg("--data-dir")
            .arg(crate::support::temporary("command"))
            .env("DATABASE_URL", &world.url)
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (done, words) = command(&["suspend", "--abuse"]);
    assert!(done && words.contains("is asked for"), "{words}");
    let working = world.start(true).await;
    working.until(&buyer, &path, |resource| resource["suspend_reason"] == "abuse").await;
    let (done, words) = command(&["suspend", "--abuse"]);
    assert!(!done && words.contains("cannot be suspended"), "{words}");
    working.idle().await;
    working.assert_sound().await;
}

#[tokio::test]
async fn an_owners_return_does_not_lift_what_an_operator_suspended_in_between() {
    let world = World::new().await;
    let (test, buyer, path) = without_workers(&world).await;
    let operator = test.person(Role::Operator).await;
    let working = world.start(true).await;
    test.post(&buyer, &format!("{path}/suspend"), json!({})).await;
    working.until(&buyer, &path, |resource| resource["suspend_reason"] == "user").await;
    working.idle().await;
    drop(working);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let abuse = json!({ "suspend_reason": "abuse", "reason": "notice 17" });
    test.post(&operator, &format!("{}/suspend", path.replace("seedbox", "operator")), abuse).await;
    test.post(&buyer, &format!("{path}/resume"), json!({})).await;
    let working = world.start(true).await;
    let resource = working.until(&buyer, &path, |resource| resource["operations"] == json!([])).await;
    assert_eq!((&resource["status"], &resource["suspend_reason"]), (&json!("suspended"), &json!("abuse")));
    assert_eq!(world.provider.calls(Verb::Resume), 0);
    working.assert_sound().await;
}

#[tokio::test]
async fn every_dip_of_a_balance_is_told() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    let due: jiff::Timestamp = test.get(&buyer, &path).await["paid_until"].as_str().unwrap().parse().unwrap();
    test.advance(due.duration_since(test.app.clock.now()) - DAY * 13).await;
    test.until_handed("runway", 1).await;
    test.top_up(&buyer, 1500).await;
    test.idle().await;
    let operator = test.person(Role::Operator).await;
    // The money leaves again: the same month is uncovered for a second time.
    let payout = json!({ "amount_cents": 1500, "reason": "asked for by ticket 7" });
    test.post(&operator, &format!("/api/operator/customers/{}/payouts", buyer.id), payout).await;
    test.advance(DAY + SignedDuration::from_mins(5)).await;
    test.until_handed("runway", 2).await;
}

#[tokio::test]
async fn releasing_a_hold_looks_at_the_box_at_once() {
    let test = TestApp::new().await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    to_due(&test, &buyer, &path).await;
    test.until(&buyer, &path, |resource| !resource["past_due_since"].is_null()).await;
    test.advance(DAY * 2 + SignedDuration::from_mins(1)).await;
    test.until_handed("final_warning", 1).await;
    let hold = format!("/api/operator/resources/{id}/hold");
    let until = (test.app.now().0 + DAY * 30).to_string();
    test.post(&operator, &hold, json!({ "until": until, "reason": "they are on holiday" })).await;
    test.advance(DAY * 2).await;
    test.idle().await;
    assert_eq!(test.get(&buyer, &path).await["status"], "active");
    test.post(&operator, &hold, json!({ "until": null, "reason": "they are back" })).await;
    test.until(&buyer, &path, |resource| resource["status"] == "suspended").await;
    test.assert_sound().await;
}

#[tokio::test]
async fn settling_many_at_once_keeps_to_the_blast_limit_which_only_unpaid_boxes_use_up() {
    let test = TestApp::new().await;
    let mut buyers = Vec::new();
    for _ in 0..8 {
        let buyer = test.customer().await;
        let id = test.active_box(&buyer, 1500).await;
        buyers.push((buyer, format!("/api/seedbox/resources/{id}")));
    }
    let (last, path) = buyers.last().unwrap();
    to_due(&test, last, path).await;
    test.until(last, path, |resource| !resource["past_due_since"].is_null()).await;
    test.advance(DAY * 2 + SignedDuration::from_mins(1)).await;
    test.until_handed("final_warning", 8).await;
    test.idle().await;
    let world = test.world.clone();
    drop(test);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let test = world.start(false).await;
    world.clock.set_offset(world.clock.offset() + DAY + SignedDuration::from_mins(5));
    // Boxes that could not be made, and ends that their owners chose, cut nobody off.
    sqlx::query(
        "insert into provision_attempts (id, resource_id, operation, reason, actor, status, requested_at, finished_at)
         select gen_random_uuid(), id, 'terminate', case when row_number() over () % 2 = 0 then 'failed' else 'user' end, 'system',
             'superseded', $1, $1 from seedbox_resources",
    )
    .bind(test.app.now())
    .execute(&test.app.pool)
    .await
    .unwrap();
    let settling: Vec<_> = buyers
        .iter()
        .map(|(buyer, _)| {
            let (app, id) = (test.app.clone(), buyer.id);
            tokio::spawn(async move { sweep::settle(&app, id).await.unwrap() })
        })
        .collect();
    for one in settling {
        one.await.unwrap();
    }
    let asked: i64 = sqlx::query_scalar("select count(*) from provision_attempts where operation = 'suspend'")
        .fetch_one(&test.app.pool)
        .await
        .unwrap();
    assert_eq!(asked, 5, "5 boxes and 10 % of 8, whichever is more");
}

#[tokio::test]
async fn a_clock_that_goes_back_seals_nothing_and_charges_nothing_until_an_operator_has_looked() {
    let world = World::new().await;
    let (test, buyer, path) = without_workers(&world).await;
    let operator = test.person(Role::Operator).await;
    let checkpoints = async || -> i64 {
        sqlx::query_scalar("select count(*) from audit_checkpoints").fetch_one(&test.app.pool).await.unwrap()
    };
    world.clock.set_offset(DAY * 20);
    chain::seal(&test.app).await.unwrap();
    let sealed = checkpoints().await;
    world.clock.set_offset(DAY * 10);
    test.customer().await;
    assert_eq!(chain::seal(&test.app).await.unwrap(), 0);
    assert_eq!(checkpoints().await, sealed);
    // It shows the right time again, and a month is due: whether it is right is for a person to say.
    world.clock.set_offset(DAY * 32);
    sweep::settle(&test.app, buyer.id).await.unwrap();
    assert!(test.get(&buyer, &path).await["past_due_since"].is_null());
    let resolve = json!({ "kind": "clock_went_back", "subject": "clock", "reason": "set right" });
    test.post(&operator, "/api/operator/alerts/resolve", resolve.clone()).await;
    sweep::settle(&test.app, buyer.id).await.unwrap();
    assert!(!test.get(&buyer, &path).await["past_due_since"].is_null());
    assert!(chain::seal(&test.app).await.unwrap() > 0);
    // It was ahead all the time: set right, it is behind what was sealed, and does not stay so once somebody has looked.
    world.clock.set_offset(DAY);
    test.customer().await;
    assert_eq!(chain::seal(&test.app).await.unwrap(), 0);
    assert!(chain::clock_is_behind(&test.app.pool, test.app.now()).await.unwrap());
    test.post(&operator, "/api/operator/alerts/resolve", resolve).await;
    assert!(!chain::clock_is_behind(&test.app.pool, test.app.now()).await.unwrap());
    assert!(chain::seal(&test.app).await.unwrap() > 0);
    test.assert_sound().await;
}

/// A mailer that takes half a minute for each mail, on the clock of the test.
#[derive(Debug, Clone)]
struct Slow {
    clock: Clock,
    taken: Arc<Mutex<Vec<Uuid>>>,
}

#[async_trait::async_trait]
impl Mailer for Slow {
    async fn send(&self, id: Uuid, _to: &str, _subject: &str, _body: SecretString) -> Result<(), String> {
        self.taken.lock().unwrap().push(id);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        self.clock.set_offset(self.clock.offset() + SignedDuration::from_secs(30));
        Ok(())
    }
}

#[tokio::test]
async fn a_slow_mailer_gets_each_mail_once_and_its_time_is_when_it_was_taken() {
    let world = World::new().await;
    let (test, buyer, _) = without_workers(&world).await;
    let mut connection = test.app.pool.acquire().await.unwrap();
    let start = test.app.now();
    for n in 0..12 {
        let amount = seedplane::money::Usd::from_cents(100);
        let notice = templates::topup_credited(buyer.id, None, format!("slow:{n}"), amount);
        mailer::notify_in(&mut connection, notice, start).await.unwrap();
    }
    let slow = Slow { clock: world.clock.clone(), taken: Arc::default() };
    let workers = (0..2).map(|_| {
        let (pool, slow) = (test.app.pool.clone(), slow.clone());
        tokio::spawn(async move { while mailer::send_waiting(&pool, &slow, "http://x", &slow.clock).await.unwrap() {} })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    let mut taken = slow.taken.lock().unwrap().clone();
    let count = taken.len();
    taken.sort();
    taken.dedup();
    assert_eq!((count, taken.len()), (12, 12), "each once");
    let handed: Vec<Time> =
        sqlx::query_scalar("select distinct handed_at from notices where idempotency_key like 'slow:%' order by 1")
            .fetch_all(&test.app.pool)
            .await
            .unwrap();
    assert!(handed.len() > 5 && handed[0] > start, "{handed:?}");
}

#[tokio::test]
async fn an_address_that_no_mail_can_have_is_refused() {
    let test = TestApp::new().await;
    for (email, good) in [("a..b@example.org", false), ("a@-x.org", false), ("a.b+c@example.org", true)] {
        let body = json!({ "email": email, "password": "a long enough password" });
        let (status, problem) = test.call(None, Method::POST, "/api/auth/sign-up", Some(body)).await;
        assert_eq!(status.is_success(), good, "{email}: {status} {problem}");
    }
}

#[tokio::test]
async fn an_owner_whom_no_warning_reaches_is_reported() {
    let world = World::new().await;
    let (test, buyer, path) = without_workers(&world).await;
    let operator = test.person(Role::Operator).await;
    let due: jiff::Timestamp = test.get(&buyer, &path).await["paid_until"].as_str().unwrap().parse().unwrap();
    world.clock.set_offset(due.duration_since(test.app.clock.now()) + SignedDuration::from_mins(1));
    sweep::settle(&test.app, buyer.id).await.unwrap();
    reconciler::reconcile(&test.app).await.unwrap();
    let kinds = async || test.get(&operator, "/api/operator/alerts").await.to_string();
    assert!(!kinds().await.contains("warning_not_handed"));
    world.clock.set_offset(world.clock.offset() + DAY * 2 + SignedDuration::from_mins(1));
    reconciler::reconcile(&test.app).await.unwrap();
    assert!(kinds().await.contains("warning_not_handed"), "{}", kinds().await);
}

#[tokio::test]
async fn late_money_lifts_a_suspension() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    to_due(&test, &buyer, &path).await;
    lapse(&test, &buyer, &path, 1).await;
    let topup = test.post(&buyer, "/api/billing/topups", json!({ "amount_cents": 2000 })).await;
    let payment: Uuid = topup["payment_id"].as_str().unwrap().parse().unwrap();
    test.world.sandbox.expire(payment).await.unwrap();
    test.world.sandbox.tick().await;
    let topup = format!("/api/billing/topups/{}", topup["id"].as_str().unwrap());
    test.until(&buyer, &topup, |topup| topup["status"] == "expired").await;
    test.world.sandbox.pay(payment, seedplane_simulators::coinpayportal::PayAmount::Exact).await.unwrap();
    test.world.sandbox.tick().await;
    test.advance(SignedDuration::from_hours(2)).await;
    test.until(&buyer, &path, |resource| resource["status"] == "active").await;
    test.idle().await;
    test.assert_sound().await;
}

#[tokio::test]
async fn a_box_ends_with_its_paid_month_when_its_owner_says_so() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let (ends, stays) = (test.active_box(&buyer, 1500).await, test.active_box(&buyer, 1500).await);
    test.top_up(&buyer, 3000).await;
    let path = |id: &str| format!("/api/seedbox/resources/{id}");
    for (id, at_period_end) in [(&ends, true), (&stays, true), (&stays, false)] {
        let body = json!({ "confirm_label": "Small", "at_period_end": at_period_end });
        test.post(&buyer, &format!("{}/terminate", path(id)), body).await;
    }
    let due: jiff::Timestamp = test.get(&buyer, &path(&ends)).await["paid_until"].as_str().unwrap().parse().unwrap();
    test.advance(due.duration_since(test.app.clock.now()) - SignedDuration::from_hours(1)).await;
    test.idle().await;
    assert_eq!(test.get(&buyer, &path(&ends)).await["status"], "active", "to the last hour of what is paid");
    test.advance(SignedDuration::from_hours(2)).await;
    test.until(&buyer, &path(&ends), |resource| resource["status"] == "terminated").await;
    test.until(&buyer, "/api/billing/account", |account| account["available_cents"] == 1500).await;
    assert_eq!(test.get(&buyer, &path(&stays)).await["status"], "active");
    test.assert_sound().await;
}

#[tokio::test]
async fn an_end_with_the_month_that_its_owner_takes_back_is_not_carried_out() {
    let world = World::new().await;
    let (test, buyer, path) = without_workers(&world).await;
    let end = |at_period_end: bool| json!({ "confirm_label": "Small", "at_period_end": at_period_end });
    test.post(&buyer, &format!("{path}/terminate"), end(true)).await;
    let due: jiff::Timestamp = test.get(&buyer, &path).await["paid_until"].as_str().unwrap().parse().unwrap();
    world.clock.set_offset(due.duration_since(test.app.clock.now()) + SignedDuration::from_mins(1));
    sweep::sweep_due(&test.app).await.unwrap();
    assert_eq!(test.get(&buyer, &path).await["operations"][0]["operation"], "terminate");
    test.post(&buyer, &format!("{path}/terminate"), end(false)).await;
    let working = world.start(true).await;
    let resource = working.until(&buyer, &path, |resource| resource["operations"] == json!([])).await;
    assert_eq!((resource["status"].as_str(), world.provider.calls(Verb::Terminate)), (Some("active"), 0));
    working.idle().await;
    working.assert_sound().await;
}

/// A mailer that takes nothing.
#[derive(Debug)]
struct Down;

#[async_trait::async_trait]
impl Mailer for Down {
    async fn send(&self, _id: Uuid, _to: &str, _subject: &str, _body: SecretString) -> Result<(), String> {
        Err("connection refused".to_owned())
    }
}

#[tokio::test]
async fn a_mailer_that_fails_stops_a_suspension_and_is_reported() {
    let world = World::new().await;
    let (test, buyer, path) = without_workers(&world).await;
    let operator = test.person(Role::Operator).await;
    let pass = |time: SignedDuration| world.clock.set_offset(world.clock.offset() + time);
    let hand_over = async |mailer: &dyn Mailer| {
        mailer::send_waiting(&test.app.pool, mailer, "http://x", &test.app.clock).await.unwrap();
    };
    let operations = async || test.get(&buyer, &path).await["operations"].clone();
    let due: jiff::Timestamp = test.get(&buyer, &path).await["paid_until"].as_str().unwrap().parse().unwrap();
    pass(due.duration_since(test.app.clock.now()) + SignedDuration::from_mins(1));
    sweep::settle(&test.app, buyer.id).await.unwrap();
    pass(DAY * 2 + SignedDuration::from_mins(1));
    sweep::settle(&test.app, buyer.id).await.unwrap();
    hand_over(test.app.mailer.as_ref()).await;
    test.until_handed("final_warning", 1).await;
    pass(DAY);
    let other = test.customer().await;
    let amount = seedplane::money::Usd::from_cents(100);
    let notice = templates::topup_credited(other.id, None, "waits".to_owned(), amount);
    mailer::notify_in(&mut test.app.pool.acquire().await.unwrap(), notice, test.app.now()).await.unwrap();
    for _ in 0..2 {
        hand_over(&Down).await;
        pass(SignedDuration::from_mins(10));
    }
    sweep::settle(&test.app, buyer.id).await.unwrap();
    assert_eq!(operations().await, json!([]), "warnings may not have arrived");
    reconciler::reconcile(&test.app).await.unwrap();
    has_alert(&test, &operator, "mailer_failing").await;
    hand_over(test.app.mailer.as_ref()).await;
    sweep::settle(&test.app, buyer.id).await.unwrap();
    assert_eq!(operations().await[0]["operation"], "suspend");
}

#[tokio::test]
async fn what_a_suspended_box_goes_on_costing_is_booked_and_is_nobodys_but_ours() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let start: jiff::Timestamp = "2027-04-01T10:00:00Z".parse().unwrap();
    test.advance(start.duration_since(test.app.clock.now())).await;
    let booked = async || -> Vec<i64> {
        sqlx::query_scalar("select amount_cents from ledger_transfers where kind = 'upstream_cost' order by created_at")
            .fetch_all(&test.app.pool)
            .await
            .unwrap()
    };
    for (costs, expected) in [(false, &[][..]), (true, &[133]), (true, &[133, 133])] {
        test.world.provider.set_stopped_costs(costs);
        let id = test.active_box(&buyer, 1500).await;
        let path = format!("/api/seedbox/resources/{id}");
        test.post(&buyer, &format!("{path}/suspend"), json!({})).await;
        test.until(&buyer, &path, |resource| resource["status"] == "suspended").await;
        test.advance(SignedDuration::from_hours(10 * 24)).await;
        // Once by coming back, once by ending: both ends of a suspension book it.
        if expected.len() == 1 {
            test.post(&buyer, &format!("{path}/resume"), json!({})).await;
            test.until(&buyer, &path, |resource| resource["status"] == "active").await;
        }
        test.post(&buyer, &format!("{path}/terminate"), json!({ "confirm_label": "Small" })).await;
        test.until(&buyer, &path, |resource| resource["status"] == "terminated").await;
        assert_eq!(booked().await, expected, "10 days of a month of 400");
    }
    let statement = test.get(&buyer, "/api/billing/statement").await;
    assert!(statement.as_array().unwrap().iter().all(|line| line["kind"] != "upstream_cost"), "{statement}");
    test.idle().await;
    test.assert_sound().await;
}
