//! Payments: short, over, late, repeated, out of order, for nobody.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use reqwest::StatusCode;
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
