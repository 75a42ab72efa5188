//! Orders: no box before a verified payment, and each request carried out once.

use reqwest::{Method, StatusCode};
use seedplane_simulators::coinpayportal::PayAmount;
use serde_json::json;

use crate::support::TestApp;

#[tokio::test]
async fn an_order_cannot_provision_before_a_verified_payment() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let plan = test.plan(1500).await;
    let order = test.post(&buyer, "/api/seedbox/orders", json!({ "plan_id": plan })).await;
    assert_eq!((order["status"].as_str(), order["missing_cents"].as_i64()), (Some("awaiting_payment"), Some(1500)));
    let path = format!("/api/seedbox/orders/{}", order["id"].as_str().unwrap());
    let topup =
        test.post(&buyer, "/api/billing/topups", json!({ "amount_cents": 1500, "order_id": order["id"] })).await;
    let payment = topup["payment_id"].as_str().unwrap();

    // A webhook that says it is paid, signed with the wrong secret and then with the right one: neither is a payment.
    let body = json!({ "id": "evt_1", "type": "payment.confirmed", "created_at": "2026-01-01T00:00:00Z",
        "data": { "payment_id": payment, "status": "confirmed", "received_amount": 1500 }, "business_id": test.world.business_id })
    .to_string();
    let now = test.app.clock.now().as_second();
    for (secret, expected) in
        [("whsecret_wrong", StatusCode::UNAUTHORIZED), (test.world.webhook_secret.as_str(), StatusCode::OK)]
    {
        let signature = seedplane_simulators::coinpayportal::sign(secret, now, body.as_bytes());
        let request = test
            .http
            .post(format!("{}/api/webhooks/coinpayportal", test.base))
            .header("x-coinpay-signature", signature);
        assert_eq!(request.body(body.clone()).send().await.unwrap().status(), expected);
    }
    test.idle().await;
    let order = test.get(&buyer, &path).await;
    assert_eq!(order["status"], "awaiting_payment");
    assert!(order["resource_id"].is_null());
    assert_eq!(test.get(&buyer, "/api/seedbox/resources").await, json!([]));

    test.world.sandbox.pay(payment.parse().unwrap(), PayAmount::Exact).await.unwrap();
    test.get(&buyer, &format!("/api/billing/topups/{}", topup["id"].as_str().unwrap())).await;
    test.advance(jiff::SignedDuration::from_mins(3)).await;
    let order = test.until(&buyer, &path, |order| order["status"] == "fulfilled").await;
    assert_eq!(order["missing_cents"], 0);
    test.assert_sound().await;
}

#[tokio::test]
async fn the_same_key_orders_once() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let plan = test.plan(1500).await;
    test.top_up(&buyer, 5000).await;
    let send = async |body: serde_json::Value| {
        let request = test
            .http
            .post(format!("{}/api/seedbox/orders", test.base))
            .bearer_auth(&buyer.token)
            .header("idempotency-key", "k1");
        let response = request.json(&body).send().await.unwrap();
        (response.status(), response.json::<serde_json::Value>().await.unwrap())
    };
    let (first, order) = send(json!({ "plan_id": plan })).await;
    assert_eq!(first, StatusCode::CREATED);
    let (again, replay) = send(json!({ "plan_id": plan })).await;
    assert_eq!((again, &replay["id"]), (StatusCode::CREATED, &order["id"]));
    let (other, problem) = send(json!({ "plan_id": plan, "x": 1 })).await;
    assert_eq!((other, problem["type"].as_str()), (StatusCode::UNPROCESSABLE_ENTITY, Some("idempotency-key-reused")));
    assert_eq!(test.get(&buyer, "/api/seedbox/orders").await.as_array().unwrap().len(), 1);
    let account = test.get(&buyer, "/api/billing/account").await;
    assert_eq!(account["available_cents"].as_i64().unwrap(), 3500, "charged once");
    // Placed and paid in one transaction: a crash leaves no order waiting for money that is there.
    let transactions: i64 = sqlx::query_scalar(
        "select count(distinct xmin::text) from seedbox_audit_events where subject_kind = 'order' and subject_id = $1::uuid",
    )
    .bind(order["id"].as_str())
    .fetch_one(&test.app.pool)
    .await
    .unwrap();
    assert_eq!(transactions, 1);
    // The answer was lost before it was kept: the same request finds what it made.
    sqlx::query("update idempotency_keys set response_status = null, created_at = created_at - interval '1 hour'")
        .execute(&test.world.owner().await)
        .await
        .unwrap();
    let (after, found) = send(json!({ "plan_id": plan })).await;
    assert_eq!((after, &found["id"]), (StatusCode::CREATED, &order["id"]));
    assert_eq!(test.get(&buyer, "/api/seedbox/orders").await.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn bad_input_is_answered_clearly() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    for (path, body, status, kind) in [
        ("/api/seedbox/orders", json!({ "plan_id": uuid::Uuid::nil() }), 422, "plan-not-on-sale"),
        ("/api/seedbox/orders", json!({ "plan": 1 }), 422, "bad-input"),
        ("/api/billing/topups", json!({ "amount_cents": 499 }), 422, "bad-input"),
        ("/api/billing/topups", json!({ "amount_cents": 100_001 }), 422, "bad-input"),
        ("/api/billing/topups", json!({ "amount_cents": 1500, "coin": "GOLD" }), 422, "bad-input"),
        ("/api/auth/sign-up", json!({ "email": "nobody", "password": "long enough password" }), 422, "bad-input"),
        ("/api/auth/sign-up", json!({ "email": "a@example.org", "password": "short" }), 422, "bad-input"),
        (
            "/api/auth/sign-in",
            json!({ "email": "a@example.org", "password": "long enough password" }),
            401,
            "bad-credentials",
        ),
    ] {
        let (answered, problem) = test.call(Some(&buyer), Method::POST, path, Some(body.clone())).await;
        assert_eq!((answered.as_u16(), problem["type"].as_str()), (status, Some(kind)), "{path} {body}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{problem}");
    }
    let large = json!({ "plan_id": "x".repeat(70_000) });
    let (status, _) = test.call(Some(&buyer), Method::POST, "/api/seedbox/orders", Some(large)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let (status, problem) = test.call(None, Method::GET, "/nowhere", None).await;
    assert_eq!((status, problem["status"].as_u64()), (StatusCode::NOT_FOUND, Some(404)));
}
