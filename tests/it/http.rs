//! How the HTTP door answers, whatever is sent: every error is a problem, nothing bad reaches the database, and there are limits.

use reqwest::{Method, StatusCode};
use seedplane::accounts::Role;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::TestApp;

#[tokio::test]
async fn every_error_is_a_problem() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let large = "x".repeat(70_000);
    for (method, path, body, status) in [
        (Method::GET, "/nowhere", None, 404),
        (Method::GET, "/docs/nothing-here", None, 404),
        (Method::DELETE, "/api/seedbox/orders", None, 405),
        (Method::PUT, "/", None, 405),
        (Method::POST, "/healthz", None, 405),
        (Method::GET, "/api/webhooks/coinpayportal", None, 405),
        (Method::POST, "/api/webhooks/coinpayportal", Some(large.as_str()), 413),
        (Method::POST, "/api/seedbox/orders", Some(large.as_str()), 413),
        (Method::POST, "/api/seedbox/orders", Some("{"), 422),
        (Method::POST, "/api/seedbox/orders", Some("[]"), 422),
        (Method::GET, "/api/seedbox/orders/%ff", None, 404),
        (Method::GET, "/link/%ff", None, 404),
        (Method::GET, "/api/billing/statement?from=%00", None, 422),
        (Method::GET, "/api/billing/statement?from=yesterday", None, 422),
        (Method::GET, "/api/billing/statement?nothing=1", None, 422),
        (Method::POST, "/api/auth/sign-in", Some("{}"), 422),
    ] {
        let mut request = test.http.request(method.clone(), format!("{}{path}", test.base)).bearer_auth(&buyer.token);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_owned());
        }
        let answer = request.send().await.unwrap();
        let (answered, kind) = (answer.status(), answer.headers()["content-type"].to_str().unwrap().to_owned());
        let allow = answer.headers().contains_key("allow");
        let text = answer.text().await.unwrap();
        assert_eq!((answered.as_u16(), kind.as_str()), (status, "application/problem+json"), "{method} {path}: {text}");
        assert_eq!(allow, status == 405, "{method} {path}");
        let problem: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(problem["status"], status);
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.len() > 10 && !detail.contains("target type"), "{method} {path}: {detail}");
    }
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused_at_the_door() {
    let test = TestApp::new().await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let id = test.active_box(&buyer, 1500).await;
    let plan = |price: i64, description: &str| {
        json!({ "code": "x", "name": "X", "description": description, "price_cents": price, "provider": "memory",
            "size": "small", "disk_gb": 5, "reason": "x" })
    };
    for (person, path, body) in [
        (&buyer, "/api/auth/tokens".to_owned(), json!({ "name": "a\0b" })),
        (&buyer, "/api/auth/tokens".to_owned(), json!({ "name": "a\\\0b" })),
        (&buyer, "/api/auth/tokens".to_owned(), json!({ "name": "a", "expires_at": "9999-06-01T00:00:00Z" })),
        (
            &buyer,
            "/api/auth/sign-up".to_owned(),
            json!({ "email": "a\0@example.org", "password": "long enough password" }),
        ),
        (
            &buyer,
            "/api/auth/sign-in".to_owned(),
            json!({ "email": "a\0@example.org", "password": "long enough password" }),
        ),
        (&operator, format!("/api/operator/resources/{id}/hold"), json!({ "until": null, "reason": "a\0" })),
        (&operator, format!("/api/operator/resources/{id}/hold"), json!({ "until": null, "reason": "x".repeat(1001) })),
        (
            &operator,
            format!("/api/operator/resources/{id}/hold"),
            json!({ "until": "-005000-01-01T00:00:00Z", "reason": "x" }),
        ),
        (&operator, "/api/operator/plans".to_owned(), plan(1_000_001, "")),
        (&operator, "/api/operator/plans".to_owned(), plan(i64::MAX, "")),
        (&operator, "/api/operator/plans".to_owned(), plan(1500, &"x".repeat(1001))),
        (&operator, "/api/operator/plans".to_owned(), plan(1500, "a\0")),
        (&operator, "/api/operator/alerts/resolve".to_owned(), json!({ "kind": "\0", "subject": "x", "reason": "x" })),
    ] {
        let (status, problem) = test.call(Some(person), Method::POST, &path, Some(body.clone())).await;
        assert_eq!((status.as_u16(), problem["type"].as_str()), (422, Some("bad-input")), "{path} {body}: {problem}");
    }
    // A backslash before `u0000` is a text about NUL, and not one.
    test.post(&buyer, "/api/auth/tokens", json!({ "name": "a\\u0000b" })).await;
    for path in ["/api/billing/statement?from=-009998-01-01T00:00:00Z", "/api/operator/customers?email=a%00b"] {
        let (status, problem) = test.call(Some(&operator), Method::GET, path, None).await;
        assert_eq!(status.as_u16(), 422, "{path}: {problem}");
    }
}

#[tokio::test]
async fn a_hold_is_released_by_saying_so_alone() {
    let test = TestApp::new().await;
    let (operator, buyer) = (test.person(Role::Operator).await, test.customer().await);
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/operator/resources/{id}/hold");
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    let held = test.post(&operator, &path, json!({ "until": until, "reason": "x" })).await;
    assert!(!held["hold_until"].is_null());
    let (status, problem) = test.call(Some(&operator), Method::POST, &path, Some(json!({ "reason": "x" }))).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
    assert!(!test.get(&buyer, &format!("/api/seedbox/resources/{id}")).await["hold_until"].is_null());
    let released = test.post(&operator, &path, json!({ "until": null, "reason": "x" })).await;
    assert!(released["hold_until"].is_null());
    assert!(released["status_reason"].is_null(), "an active box has no internal words");
}

#[tokio::test]
async fn a_sign_up_repeated_with_its_key_is_the_same_account_for_whoever_has_its_password() {
    let test = TestApp::new().await;
    let email = format!("{}@example.org", Uuid::new_v4().simple());
    let send = async |key: Option<&str>, password: &str| {
        let body = json!({ "email": email, "password": password });
        let mut request = test.http.post(format!("{}/api/auth/sign-up", test.base)).json(&body);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (status, first) = send(Some("k"), "a long enough password").await;
    assert_eq!(status, 201, "{first}");
    let (status, again) = send(Some("k"), "a long enough password").await;
    assert_eq!((status, &again["user_id"]), (201, &first["user_id"]), "{again}");
    assert_ne!(again["token"], first["token"], "no token is kept anywhere to be shown again");
    for (key, password) in
        [(Some("k"), "another long password"), (Some("j"), "a long enough password"), (None, "a long enough password")]
    {
        let (status, problem) = send(key, password).await;
        assert_eq!((status, problem["type"].as_str()), (409, Some("email-taken")), "{key:?}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains("sign in"), "{problem}");
    }
    let description = test.call(None, Method::GET, "/openapi.json", None).await.1;
    for (path, methods) in description["paths"].as_object().unwrap() {
        let Some(post) = methods.get("post") else { continue };
        let listed =
            post["parameters"].as_array().into_iter().flatten().filter(|of| of["name"] == "Idempotency-Key").count();
        let without = ["/api/trial/", "/api/webhooks/", "/api/nodes/"].iter().any(|start| path.starts_with(start));
        assert_eq!(listed, usize::from(!without), "POST {path}");
    }
}

#[tokio::test]
async fn guessing_passwords_is_slowed_down_and_the_owner_is_not_locked_out() {
    let test = TestApp::new().await;
    let email = format!("{}@example.org", Uuid::new_v4().simple());
    let right = json!({ "email": email, "password": "a long enough password" });
    let wrong = json!({ "email": email, "password": "not the right password" });
    let send = async |path: &str, from: &str, body: &Value| {
        let request = test.http.post(format!("{}{path}", test.base)).header("x-forwarded-for", from).json(body);
        let answer = request.send().await.unwrap();
        let wait = answer.headers().get("retry-after").map(|value| value.to_str().unwrap().parse::<i64>().unwrap());
        (answer.status().as_u16(), wait)
    };
    assert_eq!(send("/api/auth/sign-up", "198.51.100.1", &right).await.0, 201);
    for _ in 0..10 {
        assert_eq!(send("/api/auth/sign-in", "203.0.113.9", &wrong).await.0, 401);
    }
    let (status, wait) = send("/api/auth/sign-in", "203.0.113.9", &wrong).await;
    assert_eq!(status, 429);
    assert!((1..=900).contains(&wait.unwrap()), "{wait:?}");
    assert_eq!(
        send("/api/auth/sign-in", "203.0.113.10", &right).await.0,
        429,
        "from an address that is not known either"
    );
    assert_eq!(send("/api/auth/sign-in", "198.51.100.1", &right).await.0, 200, "the owner, from where they signed up");
    test.advance(jiff::SignedDuration::from_mins(16)).await;
    assert_eq!(send("/api/auth/sign-in", "203.0.113.10", &right).await.0, 200);
    // One address that tries many accounts.
    for _ in 0..30 {
        let body = json!({ "email": format!("{}@example.org", Uuid::new_v4()), "password": "not the right password" });
        assert_eq!(send("/api/auth/sign-in", "203.0.113.77", &body).await.0, 401);
    }
    let other = json!({ "email": "somebody@example.org", "password": "not the right password" });
    assert_eq!(send("/api/auth/sign-in", "203.0.113.77", &other).await.0, 429);
}

#[tokio::test]
async fn there_are_limits_and_what_is_old_is_forgotten() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    for n in 1..50 {
        test.post(&buyer, "/api/auth/tokens", json!({ "name": format!("token {n}") })).await;
    }
    let (status, problem) =
        test.call(Some(&buyer), Method::POST, "/api/auth/tokens", Some(json!({ "name": "one more" }))).await;
    assert_eq!((status.as_u16(), problem["type"].as_str()), (409, Some("too-many-tokens")), "{problem}");

    for (sent, kept) in [("abc-DEF_1.2", true), ("", false), ("a b", false), ("a\"b", false)] {
        let answer = test.http.get(format!("{}/healthz", test.base)).header("x-request-id", sent).send().await.unwrap();
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        assert_eq!(id == sent, kept, "{sent}");
        assert!(!id.is_empty());
    }
    let long =
        test.http.get(format!("{}/healthz", test.base)).header("x-request-id", "x".repeat(65)).send().await.unwrap();
    assert!(long.headers()["x-request-id"].len() < 65);

    let body =
        json!({ "email": format!("{}@example.org", Uuid::new_v4().simple()), "password": "a long enough password" });
    let (status, _) = test.call(None, Method::POST, "/api/auth/sign-up", Some(body)).await;
    assert_eq!(status, StatusCode::CREATED);
    let request = test.http.post(format!("{}/api/billing/topups", test.base)).bearer_auth(&buyer.token);
    let request = request.header("idempotency-key", "k").json(&json!({ "amount_cents": 1000 }));
    assert!(request.send().await.unwrap().status().is_success());
    let count = async |table: &str| -> i64 {
        let statement = sqlx::AssertSqlSafe(format!("select count(*) from {table}"));
        sqlx::query_scalar(statement).fetch_one(&test.app.pool).await.unwrap()
    };
    let body = json!({ "email": "nobody@example.org" });
    let (status, _) = test.call(None, Method::POST, "/api/auth/password-reset", Some(body)).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let kept = ["sessions", "idempotency_keys", "sign_in_attempts", "password_reset_requests"];
    for table in kept {
        assert!(count(table).await > 0, "{table}");
    }
    test.advance(jiff::SignedDuration::from_hours(24 * 50)).await;
    seedplane::accounts::forget(&test.app.pool, test.app.now()).await.unwrap();
    for table in kept {
        assert_eq!(count(table).await, 0, "{table}");
    }
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_let_go() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let test = TestApp::new().await;
    let mut slow = tokio::net::TcpStream::connect(test.base.trim_start_matches("http://")).await.unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap();
    let patience = seedplane::listener::HEAD_TIME + std::time::Duration::from_secs(15);
    let mut said = Vec::new();
    tokio::time::timeout(patience, slow.read_to_end(&mut said)).await.expect("it is closed").unwrap();
    assert!(!String::from_utf8_lossy(&said).contains("alive"));
}

#[tokio::test]
async fn support_reads_and_changes_nothing() {
    let test = TestApp::new().await;
    let (support, buyer) = (test.person(Role::Support).await, test.customer().await);
    let description = test.call(None, Method::GET, "/openapi.json", None).await.1;
    let mut tried = 0;
    for (path, methods) in
        description["paths"].as_object().unwrap().iter().filter(|(path, _)| path.contains("/operator/"))
    {
        for method in methods.as_object().unwrap().keys() {
            let url =
                if path.ends_with("/customers") { format!("{path}?email=nobody@example.org") } else { path.clone() };
            let url = url.replace("{id}", &buyer.id.to_string());
            let method: Method = method.to_uppercase().parse().unwrap();
            let body = (method != Method::GET).then(|| json!({}));
            let (status, answer) = test.call(Some(&support), method.clone(), &url, body).await;
            let hidden = answer["detail"].as_str().is_some_and(|detail| detail.contains("no such page"));
            assert_eq!(hidden, method != Method::GET, "{method} {path}: {status} {answer}");
            tried += 1;
        }
    }
    assert!(tried > 10, "{tried}");
}

#[tokio::test]
async fn the_documentation_reads_without_the_network() {
    let test = TestApp::new().await;
    let page = test.http.get(format!("{}/docs/", test.base)).send().await.unwrap().text().await.unwrap();
    let linked: Vec<&str> =
        page.split(['"', '\'']).filter(|part| part.ends_with(".js") || part.ends_with(".css")).collect();
    assert!(linked.len() >= 2, "{page}");
    for link in linked {
        assert!(!link.contains("//"), "{link} is somebody else's");
        let answer =
            test.http.get(format!("{}/docs/{}", test.base, link.trim_start_matches("./"))).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{link}");
    }
}
