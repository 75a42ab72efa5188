//! Payments: short, over, late, repeated, out of order, for nobody.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use jiff::SignedDuration;
use reqwest::StatusCode;
use rust_decimal::Decimal;
use seedplane::{
    app::App,
    billing::sweep,
    clock::Time,
    ids::TopupId,
    payments::{
        Coin, CreatePayment, Error as GatewayError, Observation, PaymentGateway, Quote, WebhookError, WebhookEvent,
    },
    workers::{Next, payments, reconciler},
};
use seedplane_simulators::coinpayportal::{Fault, PayAmount, sign};
use serde_json::json;
use uuid::Uuid;

use crate::support::{TestApp, World};

/// `seedplane serve` on the database of a world, with its gateway.
struct Server {
    base: String,
    process: std::process::Child,
}

impl Server {
    async fn start(world: &World) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = crate::support::temporary("serve");
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let process = std::process::Command::new(env!("CARGO_BIN_EXE_seedplane"))
            .args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--data-dir"])
            .arg(folder.join("data"))
            .env("DATABASE_URL", &world.url)
            .env("COINPAYPORTAL_API_URL", world.gateway_url())
            .env("COINPAYPORTAL_API_KEY", format!("cp_live_{}", "a".repeat(32)))
            .env("COINPAYPORTAL_BUSINESS_ID", world.business_id.to_string())
            .env("COINPAYPORTAL_WEBHOOK_SECRET", &world.webhook_secret)
            .env("SMTP_URL", "smtp://localhost:25")
            .env("MAIL_FROM", "boxes@localhost")
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { base: format!("http://127.0.0.1:{port}"), process };
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let started = std::time::Instant::now();
        while !http.get(format!("{}/readyz", server.base)).send().await.is_ok_and(|answer| answer.status().is_success())
        {
            let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            assert!(started.elapsed() < crate::support::PATIENCE, "the server did not start:\n{}", log());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn ten_thousand_deliveries_to_two_servers_are_one_hundred_credits() {
    let world = World::new().await;
    // Two servers that are processes of their own, and two workers beside them.
    let servers = [Server::start(&world).await, Server::start(&world).await];
    let copies = [world.start(true).await, world.start(true).await];
    let mut payments = BTreeMap::new();
    for person in 0..10 {
        let buyer = copies[person % 2].customer().await;
        for _ in 0..10 {
            let topup = copies[0].post(&buyer, "/api/billing/topups", json!({ "amount_cents": 1500 })).await;
            payments.insert(topup["payment_id"].as_str().unwrap().to_owned(), (buyer.clone(), topup["id"].clone()));
        }
    }
    for payment in payments.keys() {
        world.sandbox.pay(payment.parse().unwrap(), PayAmount::Exact).await.unwrap();
    }
    world.sandbox.tick().await;
    let mut deliveries = Vec::new();
    let now = world.clock.now();
    for round in 0..100_i64 {
        for payment in payments.keys() {
            let kind = if round % 3 == 0 { "payment.forwarded" } else { "payment.confirmed" };
            let status = kind.trim_start_matches("payment.");
            let body = json!({ "id": format!("evt_{payment}_{}", round / 2), "type": kind, "data": { "payment_id": payment, "status": status,
                "received_amount": "15.0" }, "created_at": now.to_string(), "business_id": world.business_id })
            .to_string();
            deliveries.push((servers[usize::try_from(round).unwrap() % 2].base.clone(), body));
        }
    }
    // Shuffled by a stride that visits each once.
    let count = deliveries.len();
    assert_eq!(count, 10_000);
    let shuffled: Vec<_> = (0..count).map(|n| deliveries[(n * 7919) % count].clone()).collect();
    let http = copies[0].http.clone();
    let mut tasks = tokio::task::JoinSet::new();
    for chunk in shuffled.chunks(count.div_ceil(32)) {
        let (http, chunk) = (http.clone(), chunk.to_vec());
        let (secret, clock) = (world.webhook_secret.clone(), world.clock.clone());
        tasks.spawn(async move {
            for (base, body) in chunk {
                // Signed as it is sent, as the gateway does: a slow machine takes longer than a signature is good for.
                let signature = sign(&secret, clock.now().as_second(), body.as_bytes());
                let request =
                    http.post(format!("{base}/api/webhooks/coinpayportal")).header("x-coinpay-signature", signature);
                let status = request.body(body).send().await.unwrap().status();
                assert_eq!(status, StatusCode::OK);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    for (buyer, topup) in payments.values() {
        let path = format!("/api/billing/topups/{}", topup.as_str().unwrap());
        copies[0].until(buyer, &path, |topup| topup["credited_cents"] == 1500).await;
    }
    copies[0].idle().await;
    let credits: i64 = sqlx::query_scalar("select count(*) from ledger_transfers where kind = 'topup'")
        .fetch_one(&copies[0].app.pool)
        .await
        .unwrap();
    let sum: i64 = sqlx::query_scalar("select sum(amount_cents)::bigint from ledger_transfers")
        .fetch_one(&copies[0].app.pool)
        .await
        .unwrap();
    assert_eq!((credits, sum), (100, 150_000));
    copies[0].assert_sound().await;
}

async fn open(test: &TestApp, cents: i64) -> (crate::support::Person, String, Uuid) {
    let buyer = test.customer().await;
    let topup = test.post(&buyer, "/api/billing/topups", json!({ "amount_cents": cents })).await;
    let path = format!("/api/billing/topups/{}", topup["id"].as_str().unwrap());
    (buyer, path, topup["payment_id"].as_str().unwrap().parse().unwrap())
}

#[tokio::test]
async fn short_credits_nothing_and_says_what_is_missing() {
    let test = TestApp::new().await;
    let (buyer, path, payment) = open(&test, 1000).await;
    test.world.sandbox.pay(payment, PayAmount::Short).await.unwrap();
    let seen = test.until(&buyer, &path, |topup| topup["status"] == "detected").await;
    assert!(seen["missing"].as_str().unwrap().parse::<rust_decimal::Decimal>().unwrap() > rust_decimal::Decimal::ZERO);
    test.advance(SignedDuration::from_mins(20)).await;
    test.world.sandbox.tick().await;
    let expired = test.until(&buyer, &path, |topup| topup["status"] == "expired").await;
    assert_eq!(
        (expired["unresolved_reason"].as_str(), expired["credited_cents"].as_i64()),
        (Some("underpaid"), Some(0))
    );
    test.assert_sound().await;
}

#[tokio::test]
async fn over_credits_the_quote_and_the_excess_or_holds_it() {
    let test = TestApp::new().await;
    for (factor, excess) in [("1.5", true), ("3", false)] {
        let (buyer, path, payment) = open(&test, 1000).await;
        let topup = test.get(&buyer, &path).await;
        let due: rust_decimal::Decimal = topup["amount_to_pay"].as_str().unwrap().parse().unwrap();
        let factor: rust_decimal::Decimal = factor.parse().unwrap();
        test.world.sandbox.pay(payment, PayAmount::Decimal(due * factor)).await.unwrap();
        let seen =
            test.until(&buyer, &path, |topup| topup["status"] != "pending" && topup["credited_cents"] != 0).await;
        let (credited, held) = (seen["credited_cents"].as_i64().unwrap(), seen["held_cents"].as_i64().unwrap());
        if excess {
            assert!(credited > 1490 && held == 0, "{seen}");
        } else {
            assert!(credited == 1000 && held > 1990, "{seen}");
            assert_eq!(seen["unresolved_reason"], "excess_held");
        }
    }
    test.assert_sound().await;
}

/// The gateway confirmed before it was asked: it tells nobody how much came any more, and a webhook's word is a claim.
#[tokio::test]
async fn an_excess_that_only_a_webhook_claims_is_shown_and_not_booked() {
    let test = TestApp::new().await;
    let operator = test.person(seedplane::accounts::Role::Operator).await;
    let (buyer, path, payment) = open(&test, 1000).await;
    test.world.sandbox.pay(payment, PayAmount::Over).await.unwrap();
    test.world.sandbox.tick().await;
    let body = json!({ "id": "evt_1", "type": "payment.confirmed", "created_at": "2026-01-01T00:00:00Z",
        "data": { "payment_id": payment, "status": "confirmed", "received_amount": 15.25 }, "business_id": test.world.business_id })
    .to_string();
    let signature = sign(&test.world.webhook_secret, test.app.clock.now().as_second(), body.as_bytes());
    let request = test.http.post(format!("{}/api/webhooks/coinpayportal", test.base)).body(body);
    assert_eq!(request.header("x-coinpay-signature", signature).send().await.unwrap().status(), StatusCode::OK);
    let topup = test.until(&buyer, &path, |topup| topup["credited_cents"] == 1000).await;
    assert_eq!((topup["held_cents"].as_i64(), topup["received"].as_str()), (Some(0), None), "{topup}");
    let waiting = test.get(&operator, "/api/operator/topups/unresolved").await;
    assert_eq!(waiting[0]["reason"], "excess_claimed");
    assert_eq!((waiting[0]["claimed"].as_str(), waiting[0]["received"].as_str()), (Some("15.25"), None), "{waiting}");
    let alerts = test.until(&operator, "/api/operator/alerts", |alerts| alerts[0]["kind"] == "topup_unresolved").await;
    assert!(alerts[0]["detail"].as_str().unwrap().contains("a webhook claims 15.25"), "{alerts}");
    test.assert_sound().await;
}

#[tokio::test]
async fn late_is_not_lost_and_a_lost_webhook_is_found_by_asking() {
    let test = TestApp::new().await;
    let (buyer, path, payment) = open(&test, 1000).await;
    test.world.sandbox.expire(payment).await.unwrap();
    test.world.sandbox.tick().await;
    test.until(&buyer, &path, |topup| topup["status"] == "expired").await;
    test.world.sandbox.faults().next(Fault::LoseWebhook, 50);
    test.world.sandbox.pay(payment, PayAmount::Exact).await.unwrap();
    test.world.sandbox.tick().await;
    test.advance(SignedDuration::from_mins(61)).await;
    let seen = test.until(&buyer, &path, |topup| topup["credited_cents"] == 1000).await;
    assert!(["confirmed", "forwarded"].contains(&seen["status"].as_str().unwrap()));
    test.assert_sound().await;
}

#[tokio::test]
async fn what_is_signed_wrongly_is_refused_and_what_is_for_nobody_is_kept() {
    let test = TestApp::new().await;
    let now = test.app.clock.now().as_second();
    let body = json!({ "id": "evt_x", "type": "payment.confirmed", "data": { "payment_id": Uuid::new_v4(), "status": "confirmed" },
        "created_at": "2026-01-01T00:00:00Z", "business_id": test.world.business_id })
    .to_string();
    let good = sign(&test.world.webhook_secret, now, body.as_bytes());
    let stale = sign(&test.world.webhook_secret, now - 301, body.as_bytes());
    let wrong = sign("whsecret_other", now, body.as_bytes());
    for (signature, expected) in [
        (None, 401),
        (Some(String::new()), 401),
        (Some(wrong), 401),
        (Some(stale), 401),
        (Some(good.replace("v1=", "sha256=")), 401),
        (Some(good.clone()), 200),
        (Some(good), 200),
    ] {
        let mut request = test.http.post(format!("{}/api/webhooks/coinpayportal", test.base)).body(body.clone());
        if let Some(signature) = &signature {
            request = request.header("x-coinpay-signature", signature);
        }
        assert_eq!(request.send().await.unwrap().status().as_u16(), expected, "{signature:?}");
    }
    let kept: Vec<bool> =
        sqlx::query_scalar("select orphan from gateway_events").fetch_all(&test.app.pool).await.unwrap();
    assert_eq!(kept, [true], "the refused are not stored, the repeated are one, and it is an orphan");
    let transfers: i64 =
        sqlx::query_scalar("select count(*) from ledger_transfers").fetch_one(&test.app.pool).await.unwrap();
    assert_eq!(transfers, 0);
}

#[tokio::test]
async fn without_a_database_the_gateway_is_told_to_send_again() {
    let world = World::new().await;
    let test = world.start(false).await;
    let body = json!({ "id": "evt_1", "type": "payment.confirmed", "data": { "payment_id": Uuid::new_v4(), "status": "confirmed" },
        "created_at": "2026-01-01T00:00:00Z", "business_id": world.business_id })
    .to_string();
    let signature = sign(&world.webhook_secret, world.clock.now().as_second(), body.as_bytes());
    let deliver = async |signature: &str| {
        let request = test.http.post(format!("{}/api/webhooks/coinpayportal", test.base)).body(body.clone());
        request.header("x-coinpay-signature", signature).send().await.unwrap()
    };
    test.app.pool.close().await;
    let answer = deliver(&signature).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let problem: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(problem["type"], "database-unavailable");
    assert_eq!(
        deliver("t=1,v1=00").await.status(),
        StatusCode::UNAUTHORIZED,
        "what is not signed is refused all the same"
    );
    let ready = test.http.get(format!("{}/readyz", test.base)).send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
}

/// What a scripted gateway says of a payment.
type Answer = Result<(&'static str, Option<Decimal>), GatewayError>;

/// A gateway that says of each payment what the test wants.
#[derive(Debug, Clone)]
struct Scripted {
    real: Arc<dyn PaymentGateway>,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    calls: Arc<Mutex<u32>>,
}

impl Scripted {
    fn says(&self, payment: Uuid, answer: Answer) {
        self.answers.lock().unwrap().insert(payment.to_string(), answer);
    }

    fn calls(&self) -> u32 {
        *self.calls.lock().unwrap()
    }
}

#[async_trait::async_trait]
impl PaymentGateway for Scripted {
    fn name(&self) -> &'static str {
        self.real.name()
    }

    fn coins(&self) -> &[Coin] {
        self.real.coins()
    }

    async fn create(&self, _request: &CreatePayment) -> Result<Quote, GatewayError> {
        Err(GatewayError::Refused { why: "not in this test".to_owned() })
    }

    async fn fetch(&self, payment_id: &str) -> Result<Observation, GatewayError> {
        *self.calls.lock().unwrap() += 1;
        let answer = self.answers.lock().unwrap().get(payment_id).cloned().unwrap_or(Ok(("pending", None)));
        let (word, received) = answer?;
        Ok(Observation {
            payment_id: payment_id.to_owned(),
            status: word.into(),
            received,
            expected: None,
            coin: None,
            forward_transaction: None,
            amount_cents: None,
        })
    }

    async fn check(&self, payment_id: &str) -> Result<Observation, GatewayError> {
        self.fetch(payment_id).await
    }

    fn verify_webhook(
        &self,
        signature_header: Option<&str>,
        raw: &[u8],
        now: jiff::Timestamp,
    ) -> Result<WebhookEvent, WebhookError> {
        self.real.verify_webhook(signature_header, raw, now)
    }
}

/// The same application without workers, with a gateway that follows a script.
async fn scripted(test: TestApp) -> (TestApp, App, Scripted) {
    let world = test.world.clone();
    test.idle().await;
    drop(test);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let test = world.start(false).await;
    let gateway = Scripted { real: test.app.gateway.clone(), answers: Arc::default(), calls: Arc::default() };
    let app = App { gateway: Arc::new(gateway.clone()), ..test.app.clone() };
    (test, app, gateway)
}

fn id_in(path: &str) -> TopupId {
    TopupId(path.rsplit('/').next().unwrap().parse().unwrap())
}

async fn next_poll(test: &TestApp, path: &str) -> Option<Time> {
    sqlx::query_scalar("select next_poll_at from topup_intents where id = $1")
        .bind(id_in(path).0)
        .fetch_one(&test.app.pool)
        .await
        .unwrap()
}

fn pass(test: &TestApp, time: SignedDuration) {
    test.world.clock.set_offset(test.world.clock.offset() + time);
}

#[tokio::test]
async fn one_payment_that_always_fails_stops_no_suspension_and_a_gateway_that_fails_does() {
    const DAY: SignedDuration = SignedDuration::from_hours(24);
    let test = TestApp::new().await;
    let operator = test.person(seedplane::accounts::Role::Operator).await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    let due: jiff::Timestamp = test.get(&buyer, &path).await["paid_until"].as_str().unwrap().parse().unwrap();
    test.advance(due.duration_since(test.app.clock.now()) + SignedDuration::from_mins(1)).await;
    test.until(&buyer, &path, |resource| !resource["past_due_since"].is_null()).await;
    test.advance(DAY * 2 + SignedDuration::from_mins(1)).await;
    test.until_handed("final_warning", 1).await;
    let mut open_ones = Vec::new();
    for _ in 0..3 {
        open_ones.push(open(&test, 1000).await);
    }
    let (test, app, gateway) = scripted(test).await;
    pass(&test, DAY + SignedDuration::from_mins(5));

    // All of them fail: the gateway does, and nothing is cut off while it does.
    let down = || Err(GatewayError::Transient { retry_after: None, why: "down".to_owned() });
    for (_, _, payment) in &open_ones {
        gateway.says(*payment, down());
    }
    for (_, path, _) in &open_ones {
        payments::check(&app, id_in(path)).await.unwrap();
        assert!(next_poll(&test, path).await.unwrap() > app.now(), "a failure goes on in the plan of polls");
    }
    sweep::sweep_due(&app).await.unwrap();
    assert_eq!(test.get(&buyer, &path).await["operations"], json!([]), "the gateway fails");
    reconciler::reconcile(&app).await.unwrap();
    let alerts = test.get(&operator, "/api/operator/alerts").await;
    assert!(alerts.as_array().unwrap().iter().any(|alert| alert["kind"] == "gateway_failing"), "{alerts}");

    // One of them goes on failing, for ever: that is not the gateway.
    for (_, _, payment) in &open_ones[1..] {
        gateway.says(*payment, Ok(("pending", None)));
    }
    gateway.says(open_ones[0].2, Err(GatewayError::Refused { why: "never".to_owned() }));
    pass(&test, SignedDuration::from_mins(15));
    for (_, path, _) in &open_ones {
        payments::check(&app, id_in(path)).await.unwrap();
    }
    sweep::sweep_due(&app).await.unwrap();
    assert_eq!(test.get(&buyer, &path).await["operations"][0]["operation"], "suspend");
    test.assert_sound().await;
}

#[tokio::test]
async fn a_gateway_that_asks_to_be_left_alone_is() {
    let test = TestApp::new().await;
    let (_buyer, path, payment) = open(&test, 1000).await;
    let (test, app, gateway) = scripted(test).await;
    let wait = std::time::Duration::from_secs(120);
    gateway.says(payment, Err(GatewayError::RateLimited { retry_after: Some(wait), why: "slow down".to_owned() }));
    pass(&test, SignedDuration::from_mins(3));
    let next = payments::check(&app, id_in(&path)).await.unwrap();
    assert!(matches!(next, Next::Again(again) if again >= wait), "{next:?}");
    let asked = gateway.calls();
    // A tick, a look and a webhook all ask for the same job again.
    payments::poll(&app).await.unwrap();
    let next = payments::check(&app, id_in(&path)).await.unwrap();
    assert!(matches!(next, Next::Again(again) if again > wait / 2), "{next:?}");
    assert_eq!(gateway.calls(), asked, "not asked before its time");
    pass(&test, SignedDuration::from_mins(3));
    gateway.says(payment, Ok(("on-hold", None)));
    payments::check(&app, id_in(&path)).await.unwrap();
    assert!(gateway.calls() > asked);
    assert!(next_poll(&test, &path).await.unwrap() > app.now(), "an unknown word goes on in the plan, too");
}

#[tokio::test]
async fn a_payment_that_was_resolved_waits_again_for_a_new_reason_and_for_no_old_one() {
    let test = TestApp::new().await;
    let operator = test.person(seedplane::accounts::Role::Operator).await;
    let (buyer, path, payment) = open(&test, 1000).await;
    let (test, app, gateway) = scripted(test).await;
    let resolve = format!("/api/operator/topups/{}/resolve", id_in(&path));
    let waiting = async || test.get(&operator, "/api/operator/topups/unresolved").await.as_array().unwrap().len();
    let alerts = async || {
        let alerts = test.get(&operator, "/api/operator/alerts").await;
        alerts.as_array().unwrap().iter().filter(|alert| alert["kind"] == "topup_unresolved").count()
    };
    let four: Decimal = "4".parse().unwrap();
    gateway.says(payment, Ok(("expired", Some(four))));
    pass(&test, SignedDuration::from_mins(20));
    payments::check(&app, id_in(&path)).await.unwrap();
    assert_eq!((waiting().await, alerts().await), (1, 1));
    let credit =
        |cents: i64| json!({ "resolution": { "action": "credit", "amount_cents": cents }, "reason": "what came" });
    test.post(&operator, &resolve, credit(400)).await;
    for _ in 0..3 {
        pass(&test, SignedDuration::from_hours(2));
        payments::check(&app, id_in(&path)).await.unwrap();
        assert_eq!((waiting().await, alerts().await), (0, 0), "it was looked at");
    }

    // The gateway takes back what it said: nothing is taken back here, and it waits again.
    gateway.says(payment, Ok(("confirmed", None)));
    payments::check(&app, id_in(&path)).await.unwrap();
    gateway.says(payment, Ok(("failed", None)));
    pass(&test, SignedDuration::from_hours(2));
    payments::check(&app, id_in(&path)).await.unwrap();
    let topup = test.get(&buyer, &path).await;
    assert_eq!(
        (topup["unresolved_reason"].as_str(), topup["status"].as_str()),
        (Some("failed_after_confirmed"), Some("confirmed"))
    );
    assert_eq!((waiting().await, alerts().await), (1, 1));
    assert_eq!(test.get(&buyer, "/api/billing/account").await["paid_cents"], 400);
    test.post(&operator, &resolve, credit(600)).await;
    assert_eq!(test.get(&buyer, "/api/billing/account").await["paid_cents"], 1000, "a second time is a second booking");
    test.assert_sound().await;
}

#[tokio::test]
async fn top_ups_have_a_limit_an_hour() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    for _ in 0..20 {
        test.post(&buyer, "/api/billing/topups", json!({ "amount_cents": 1000 })).await;
    }
    let more = Some(json!({ "amount_cents": 1000 }));
    let (status, problem) = test.call(Some(&buyer), reqwest::Method::POST, "/api/billing/topups", more).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{problem}");
    assert_eq!(problem["type"], "too-many-topups");
}

#[tokio::test]
async fn money_that_is_credited_and_not_sent_on_is_reported_after_six_hours() {
    let test = TestApp::new().await;
    let operator = test.person(seedplane::accounts::Role::Operator).await;
    let (buyer, path, payment) = open(&test, 1000).await;
    test.world.sandbox.faults().next(Fault::StickForwarding, 1000);
    test.world.sandbox.pay(payment, PayAmount::Exact).await.unwrap();
    test.world.sandbox.tick().await;
    test.advance(SignedDuration::from_mins(3)).await;
    test.until(&buyer, &path, |topup| topup["status"] == "confirmed").await;
    let reported = async || {
        reconciler::reconcile(&test.app).await.unwrap();
        test.get(&operator, "/api/operator/alerts").await.to_string().contains("not_forwarded")
    };
    test.advance(SignedDuration::from_hours(5)).await;
    assert!(!reported().await);
    test.advance(SignedDuration::from_hours(1) + SignedDuration::from_mins(1)).await;
    assert!(reported().await);
}

#[tokio::test]
async fn late_money_revives_neither_a_box_that_ended_nor_an_order_that_was_called_off() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    let plan = test.plan(1000).await;
    let order = test.post(&buyer, "/api/seedbox/orders", json!({ "plan_id": plan })).await;
    let order = format!("/api/seedbox/orders/{}", order["id"].as_str().unwrap());
    let topup = test.post(&buyer, "/api/billing/topups", json!({ "amount_cents": 1000 })).await;
    test.post(&buyer, &format!("{order}/cancel"), json!({})).await;
    test.advance(SignedDuration::from_hours(24 * 8)).await;
    test.post(&buyer, &format!("{path}/terminate"), json!({ "confirm_label": "Small" })).await;
    test.until(&buyer, &path, |resource| resource["status"] == "terminated").await;
    let payment: Uuid = topup["payment_id"].as_str().unwrap().parse().unwrap();
    test.world.sandbox.pay(payment, PayAmount::Exact).await.unwrap();
    test.world.sandbox.tick().await;
    let topup = format!("/api/billing/topups/{}", topup["id"].as_str().unwrap());
    test.advance(SignedDuration::from_hours(24)).await;
    test.until(&buyer, &topup, |topup| topup["credited_cents"] == 1000).await;
    test.advance(SignedDuration::from_hours(1)).await;
    test.idle().await;
    assert_eq!(test.get(&buyer, &path).await["status"], "terminated");
    assert_eq!(test.get(&buyer, &order).await["status"], "cancelled");
    assert_eq!(test.get(&buyer, "/api/billing/account").await["available_cents"], 1000);
    test.assert_sound().await;
}
