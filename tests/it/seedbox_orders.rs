//! Orders: no box before a verified payment, and each request carried out once.

use reqwest::{Method, StatusCode};
use seedplane::{accounts::Role, brand::Brand};
use seedplane_simulators::coinpayportal::PayAmount;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{TestApp, with_terms};

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
    let accepted = with_terms("/api/seedbox/orders", json!({ "plan_id": plan }), &test.app.brand);
    let (first, order) = send(accepted.clone()).await;
    assert_eq!(first, StatusCode::CREATED);
    let (again, replay) = send(accepted.clone()).await;
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
    let (after, found) = send(accepted).await;
    assert_eq!((after, &found["id"]), (StatusCode::CREATED, &order["id"]));
    assert_eq!(test.get(&buyer, "/api/seedbox/orders").await.as_array().unwrap().len(), 1);
}

/// Every POST that makes something is sent, its answer is lost before it was kept, and it is sent again: made once.
#[tokio::test]
async fn whatever_is_posted_is_made_once_when_its_answer_is_lost() {
    let test = TestApp::new().await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let id = test.active_box(&buyer, 1500).await;
    test.top_up(&buyer, 5000).await;
    let (plan, dearer) = (test.plan(1500).await, test.plan_of("Large", "large", 3000).await);
    let topup = test.post(&buyer, "/api/billing/topups", json!({ "amount_cents": 1000 })).await;
    let due: rust_decimal::Decimal = topup["amount_to_pay"].as_str().unwrap().parse().unwrap();
    let payment = topup["payment_id"].as_str().unwrap().parse().unwrap();
    test.world.sandbox.pay(payment, PayAmount::Decimal(due * rust_decimal::Decimal::from(3))).await.unwrap();
    let waiting = format!("/api/billing/topups/{}", topup["id"].as_str().unwrap());
    test.until(&buyer, &waiting, |topup| topup["unresolved_reason"] == "excess_held").await;

    let owned = format!("/api/seedbox/resources/{id}");
    let operated = format!("/api/operator/resources/{id}");
    let customer = format!("/api/operator/customers/{}", buyer.id);
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(72);
    let steps = [
        ("/api/auth/tokens", &buyer, "/api/auth/tokens".to_owned(), json!({ "name": "laptop" })),
        ("/api/billing/topups", &buyer, "/api/billing/topups".to_owned(), json!({ "amount_cents": 700 })),
        ("/api/seedbox/orders", &buyer, "/api/seedbox/orders".to_owned(), json!({ "plan_id": plan })),
        (
            "/api/operator/plans",
            &operator,
            "/api/operator/plans".to_owned(),
            json!({ "code": "twice", "name": "Twice", "price_cents": 900, "provider": "memory", "size": "small", "disk_gb": 5, "reason": "x" }),
        ),
        (
            "/api/operator/customers/{id}/promotion",
            &operator,
            format!("{customer}/promotion"),
            json!({ "amount_cents": 100, "reason": "x" }),
        ),
        (
            "/api/operator/customers/{id}/payouts",
            &operator,
            format!("{customer}/payouts"),
            json!({ "amount_cents": 100, "reason": "x" }),
        ),
        (
            "/api/operator/topups/{id}/resolve",
            &operator,
            format!("/api/operator/topups/{}/resolve", topup["id"].as_str().unwrap()),
            json!({ "resolution": { "action": "credit", "amount_cents": 50 }, "reason": "x" }),
        ),
        (
            "/api/operator/resources/{id}/refund",
            &operator,
            format!("{operated}/refund"),
            json!({ "amount_cents": 100, "reason": "x" }),
        ),
        (
            "/api/operator/resources/{id}/hold",
            &operator,
            format!("{operated}/hold"),
            json!({ "until": until, "reason": "x" }),
        ),
        ("/api/seedbox/resources/{id}/rotate-credentials", &buyer, format!("{owned}/rotate-credentials"), json!({})),
        ("/api/seedbox/resources/{id}/restart", &buyer, format!("{owned}/restart"), json!({})),
        ("/api/seedbox/resources/{id}/upgrade", &buyer, format!("{owned}/upgrade"), json!({ "plan_id": dearer })),
        ("/api/seedbox/resources/{id}/suspend", &buyer, format!("{owned}/suspend"), json!({})),
        ("/api/seedbox/resources/{id}/resume", &buyer, format!("{owned}/resume"), json!({})),
        (
            "/api/operator/resources/{id}/suspend",
            &operator,
            format!("{operated}/suspend"),
            json!({ "suspend_reason": "operator", "reason": "x" }),
        ),
        ("/api/operator/resources/{id}/resume", &operator, format!("{operated}/resume"), json!({ "reason": "x" })),
        (
            "/api/operator/mass-actions",
            &operator,
            "/api/operator/mass-actions".to_owned(),
            json!({ "change": { "action": "suspend", "suspend_reason": "operator" }, "resource_ids": [id], "reason": "x" }),
        ),
        (
            "/api/operator/mass-actions",
            &operator,
            "/api/operator/mass-actions".to_owned(),
            json!({ "change": { "action": "resume" }, "resource_ids": [id], "reason": "x" }),
        ),
        (
            "/api/operator/resources/{id}/hold",
            &operator,
            format!("{operated}/hold"),
            json!({ "until": null, "reason": "x" }),
        ),
        (
            "/api/seedbox/resources/{id}/terminate",
            &buyer,
            format!("{owned}/terminate"),
            json!({ "confirm_label": "Large" }),
        ),
    ];
    // What these do a second time is nothing, or is refused: nothing is made that could be made twice.
    let makes_nothing = [
        "/api/auth/sign-up",
        "/api/auth/sign-in",
        "/api/auth/sign-out",
        "/api/auth/password",
        "/api/auth/totp",
        "/api/auth/totp/confirm",
        "/api/auth/password-reset",
        "/api/auth/password-reset/complete",
        "/api/seedbox/orders/{id}/cancel",
        "/api/seedbox/resources/{id}/credentials",
        "/api/operator/alerts/resolve",
        "/api/operator/customers/{id}/release-balance",
        "/api/operator/payouts/{id}/sent",
        "/api/operator/payouts/{id}/void",
        "/api/operator/approvals/{id}/approve",
        "/api/operator/approvals/{id}/refuse",
        "/api/operator/approvals/{id}/withdraw",
        "/api/operator/reports/{id}/close",
        // What is asked of a connection is asked of the connection as it is; a command and a connection are in `byos`.
        "/api/byos/connections",
        "/api/byos/connections/{id}/verify",
        "/api/byos/connections/{id}/confirm-host-key",
        "/api/byos/connections/{id}/consent",
        "/api/byos/connections/{id}/run",
        "/api/byos/connections/{id}/rotate",
        "/api/operator/byos/connections/{id}/revoke",
        // As the owner's, by the same id.
        "/api/operator/resources/{id}/terminate",
        // Not theirs to be keyed: see the description.
        "/api/trial/clock",
        "/api/trial/sign-in-links",
        "/api/nodes/{id}/ready",
        "/api/webhooks/coinpayportal",
    ];
    let description = test.call(None, Method::GET, "/openapi.json", None).await.1;
    for (path, methods) in description["paths"].as_object().unwrap() {
        let covered = steps.iter().any(|(step, ..)| step == path) || makes_nothing.contains(&path.as_str());
        assert!(methods.get("post").is_none() || covered, "nothing says what a lost answer of POST {path} does");
    }

    let owner = test.world.owner().await;
    let made = async || {
        test.idle().await;
        let mut counts = Vec::new();
        for table in [
            "ledger_transfers",
            "seedbox_plans",
            "seedbox_orders",
            "api_tokens",
            "holds",
            "payouts",
            "topup_intents",
            "provision_attempts",
            "notices",
        ] {
            let rows: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select count(*) from {table}")))
                .fetch_one(&owner)
                .await
                .unwrap();
            counts.push((table, rows));
        }
        counts
    };
    for (number, (path, person, url, body)) in steps.iter().enumerate() {
        let send = async || {
            let request = test.http.post(format!("{}{url}", test.base)).bearer_auth(&person.token);
            let request = request.header("idempotency-key", format!("step {number}"));
            let request = request.json(&with_terms(url, body.clone(), &test.app.brand));
            let response = request.send().await.unwrap();
            (response.status(), response.text().await.unwrap())
        };
        let before = made().await;
        let (status, answer) = send().await;
        assert!(status.is_success(), "{path}: {status} {answer}");
        test.until(&buyer, &owned, |resource| resource["operations"] == json!([])).await;
        let first = made().await;
        let release = *path == "/api/operator/resources/{id}/hold" && body["until"].is_null();
        assert!(first != before || release, "{path} made nothing");
        sqlx::query(
            "update idempotency_keys set response_status = null, response_body = null, created_at = created_at - interval '1 hour'",
        )
        .execute(&owner)
        .await
        .unwrap();
        let (status, answer) = send().await;
        assert!(status.is_success() || status == StatusCode::CONFLICT, "{path}, again: {status} {answer}");
        assert_eq!(made().await, first, "{path} made something twice");
    }
    test.assert_sound().await;
}

/// The database fails between the booking and the answer: what is said is that nobody knows, and the repeat finds it.
#[tokio::test]
async fn an_outcome_that_nobody_knows_is_said_so_and_found_by_its_key() {
    let test = TestApp::new().await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let id = test.active_box(&buyer, 1500).await;
    let send = async || {
        let request = test.http.post(format!("{}/api/operator/resources/{id}/refund", test.base));
        let request = request.bearer_auth(&operator.token).header("idempotency-key", "k");
        let answer = request.json(&json!({ "amount_cents": 100, "reason": "x" })).send().await.unwrap();
        (answer.status(), answer.json::<serde_json::Value>().await.unwrap())
    };
    let owner = test.world.owner().await;
    // What is read for the answer, after the refund is booked.
    sqlx::query("revoke select on provision_attempts from seedplane_app").execute(&owner).await.unwrap();
    let (status, problem) = send().await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("may or may not have been done") && detail.contains("same Idempotency-Key"), "{detail}");
    assert_eq!(test.get(&buyer, "/api/billing/account").await["paid_cents"], 100, "it was done");
    sqlx::query("grant select on provision_attempts to seedplane_app").execute(&owner).await.unwrap();
    let (status, answer) = send().await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(test.get(&buyer, "/api/billing/account").await["paid_cents"], 100, "and done once");
}

#[tokio::test]
async fn an_order_accepts_the_terms_in_force_and_others_make_nothing() {
    let mut test = TestApp::new().await;
    let buyer = test.customer().await;
    let plan = test.plan(1500).await;
    let path = "/api/seedbox/orders";
    let order = |version: Value| json!({ "plan_id": plan, "terms_version": version });
    let (_, terms) = test.call(None, Method::GET, "/api/terms", None).await;
    let version = terms["version"].as_str().unwrap().to_owned();
    assert_eq!(
        (version.as_str(), terms["text"].as_str()),
        (&*test.app.brand.terms_version(), Some(test.app.brand.terms()))
    );
    let page = test.http.get(terms["url"].as_str().unwrap()).send().await.unwrap().text().await.unwrap();
    assert!(page.contains(&version), "{page}");

    let refused = async |test: &TestApp, said: Value, version: &str| {
        let (status, problem) = test.call(Some(&buyer), Method::POST, path, Some(order(said))).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(&format!("`{version}`")) && detail.contains("GET /api/terms"), "{detail}");
        (status.as_u16(), problem["type"].as_str().unwrap().to_owned())
    };
    assert_eq!(refused(&test, Value::Null, &version).await, (422, "terms-not-accepted".to_owned()));
    assert_eq!(refused(&test, json!("0123456789ab"), &version).await, (409, "terms-changed".to_owned()));
    let made = async |table: &str| -> i64 {
        let count = sqlx::AssertSqlSafe(format!("select count(*) from {table}"));
        sqlx::query_scalar(count).fetch_one(&test.app.pool).await.unwrap()
    };
    assert_eq!((made("seedbox_orders").await, made("terms_acceptances").await), (0, 0));

    // Accepted with an order, as a page does it: word for word, with an audit event, once.
    test.post(&buyer, path, order(json!(version))).await;
    test.post(&buyer, path, order(Value::Null)).await;
    let kept: Vec<(Uuid, String)> = sqlx::query_as(
        "select a.user_id, v.body from terms_acceptances a join terms_versions v using (version)
         join seedbox_audit_events e on e.subject_id = a.user_id and e.action = 'user.terms_accepted'",
    )
    .fetch_all(&test.app.pool)
    .await
    .unwrap();
    assert_eq!(kept, [(buyer.id.0, test.app.brand.terms().to_owned())]);

    // Other terms have to be accepted anew; what was ordered before by a key is found again all the same.
    let send = async |test: &TestApp, body: Value| {
        let request = test.http.post(format!("{}{path}", test.base)).bearer_auth(&buyer.token);
        request.header("idempotency-key", "before").json(&body).send().await.unwrap().json::<Value>().await.unwrap()
    };
    let before = send(&test, order(json!(version))).await;
    let forget = "update idempotency_keys set response_status = null, created_at = created_at - interval '1 hour'";
    sqlx::query(forget).execute(&test.world.owner().await).await.unwrap();
    test.app.brand = std::sync::Arc::new(Brand { terms: Some("Other terms.".to_owned()), ..Brand::default() });
    let test = test.served_again().await;
    let newer = test.app.brand.terms_version();
    assert_eq!(refused(&test, Value::Null, &newer).await, (422, "terms-not-accepted".to_owned()));
    assert_eq!(refused(&test, json!(version), &newer).await, (409, "terms-changed".to_owned()));
    assert_eq!(send(&test, order(json!(version))).await["id"], before["id"]);
    assert_eq!(test.get(&buyer, path).await.as_array().unwrap().len(), 3);
    test.post(&buyer, path, order(json!(newer))).await;
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
