//! The second factor: codes of an authenticator app at sign-in, and what operators need it for.

use reqwest::Method;
use secrecy::SecretString;
use seedplane::accounts::{self, Role};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Person, TestApp, World};

const PASSWORD: &str = "a long enough password";

/// Somebody with a password, as they act over HTTP.
struct Member {
    email: String,
    person: Person,
}

async fn call(test: &TestApp, token: &str, method: Method, path: &str, body: Value) -> (u16, Value) {
    let mut request = test.http.request(method.clone(), format!("{}{path}", test.base));
    if !token.is_empty() {
        request = request.bearer_auth(token);
    }
    if method != Method::GET {
        request = request.json(&body);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let kept = answer.headers().get("cache-control").is_none_or(|value| value != "no-store");
    let text = answer.text().await.unwrap();
    let holds_secret = ["\"secret\"", "\"recovery_codes\"", "\"token\""].iter().any(|name| text.contains(name));
    assert!(!(kept && holds_secret), "{method} {path} may be stored on its way");
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

fn kind(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["type"].as_str().unwrap_or_default())
}

impl Member {
    async fn new(test: &TestApp, role: Role) -> Self {
        let email = format!("{}@example.org", Uuid::new_v4().simple());
        let (pool, now) = (&test.app.pool, test.app.now());
        let cause = |_| seedplane::audit::events::Cause::system();
        let password = SecretString::from(PASSWORD);
        let id =
            accounts::sign_up(pool, seedplane::ids::UserId::new(), &email, password, role, now, cause).await.unwrap();
        let mut member = Self { email, person: Person { id, token: String::new() } };
        let (status, opened) = member.sign_in(test, None).await;
        assert_eq!(status, 200, "the first sign-in has no second factor: {opened}");
        member.person.token = opened["token"].as_str().unwrap().to_owned();
        member
    }

    async fn sign_in(&self, test: &TestApp, code: Option<&str>) -> (u16, Value) {
        let mut body = json!({ "email": self.email, "password": PASSWORD });
        if let Some(code) = code {
            body["code"] = json!(code);
        }
        call(test, "", Method::POST, "/api/auth/sign-in", body).await
    }

    async fn call(&self, test: &TestApp, method: Method, path: &str, body: Value) -> (u16, Value) {
        call(test, &self.person.token, method, path, body).await
    }

    /// Sets up the second factor: the app with its secret, and the recovery codes.
    async fn set_up(&self, test: &TestApp) -> (Phone, Vec<String>) {
        let (status, begun) = self.call(test, Method::POST, "/api/auth/totp", json!({})).await;
        assert_eq!(status, 201, "{begun}");
        let phone = Phone::of(&begun);
        let body = json!({ "code": phone.code(0) });
        let (status, on) = self.call(test, Method::POST, "/api/auth/totp/confirm", body).await;
        assert_eq!(status, 200, "{on}");
        let codes = on["recovery_codes"].as_array().unwrap().iter().map(|code| code.as_str().unwrap().to_owned());
        (phone, codes.collect())
    }
}

/// An authenticator app. The steps are counted from the one it began in, so that a test that is slow uses the same codes.
struct Phone {
    totp: totp_rs::Totp,
    began: u64,
}

impl Phone {
    fn of(begun: &Value) -> Self {
        let totp = totp_rs::Totp::from_url(begun["otpauth_url"].as_str().unwrap()).unwrap();
        assert_eq!(totp.secret().to_base32(), begun["secret"].as_str().unwrap());
        Self { totp, began: u64::try_from(jiff::Timestamp::now().as_second()).unwrap() / 30 }
    }

    fn code(&self, step: u64) -> String {
        self.totp.generate((self.began + step) * 30).to_string()
    }
}

#[tokio::test]
async fn sign_in_asks_for_a_code_and_takes_each_once() {
    let test = TestApp::new().await;
    // The trial's clock is no phone's.
    test.advance(jiff::SignedDuration::from_hours(24)).await;
    let member = Member::new(&test, Role::Customer).await;
    let before = member.call(&test, Method::GET, "/api/auth/totp", Value::Null).await.1;
    assert_eq!(before, json!({ "on": false, "since": null, "recovery_codes_left": 0 }));
    let confirm =
        async |code: &str| member.call(&test, Method::POST, "/api/auth/totp/confirm", json!({ "code": code })).await;
    assert_eq!(kind(&confirm("123456").await), (409, "second-factor-off"));

    let replaced = Phone::of(&member.call(&test, Method::POST, "/api/auth/totp", json!({})).await.1);
    assert_eq!(member.sign_in(&test, None).await.0, 200, "begun is not on");
    let (phone, codes) = member.set_up(&test).await;
    assert_eq!(codes.len(), 10);
    assert_ne!(replaced.code(1), phone.code(1));
    assert_eq!(kind(&member.call(&test, Method::POST, "/api/auth/totp", json!({})).await), (409, "second-factor-on"));

    assert_eq!(kind(&member.sign_in(&test, None).await), (401, "second-factor-needed"));
    let body = json!({ "email": member.email, "password": "not the right password" });
    let wrong = call(&test, "", Method::POST, "/api/auth/sign-in", body).await;
    assert_eq!(kind(&wrong), (401, "bad-credentials"), "only who knows the password learns of the second factor");
    for (code, why) in [
        (phone.code(0), "used to turn it on"),
        (replaced.code(1), "of a replaced app"),
        ("aaaa-bbbb".to_owned(), "none"),
    ] {
        assert_eq!(kind(&member.sign_in(&test, Some(&code)).await), (401, "wrong-code"), "{why}");
    }
    // Two at once with the same code: one comes in.
    let code = phone.code(1);
    let (one, two) = tokio::join!(member.sign_in(&test, Some(&code)), member.sign_in(&test, Some(&code)));
    let mut statuses = [one.0, two.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 401], "{one:?} {two:?}");
    let typed = codes[0].to_uppercase().replace('-', " ");
    assert_eq!(member.sign_in(&test, Some(&typed)).await.0, 200, "a recovery code, however it is typed");
    assert_eq!(kind(&member.sign_in(&test, Some(&codes[0])).await), (401, "wrong-code"), "once");
    let now = member.call(&test, Method::GET, "/api/auth/totp", Value::Null).await.1;
    assert_eq!((&now["on"], &now["recovery_codes_left"]), (&json!(true), &json!(9)), "{now}");

    // A reset by mail does not open it; turning it off takes the password and a code.
    let remove = async |password: &str, code: &str| {
        member.call(&test, Method::DELETE, "/api/auth/totp", json!({ "password": password, "code": code })).await
    };
    assert_eq!(kind(&remove("not the right password", &codes[1]).await), (403, "wrong-password"));
    assert_eq!(kind(&remove(PASSWORD, "000000").await), (403, "wrong-code"));
    let token = test.post(&member.person, "/api/auth/tokens", json!({ "name": "x" })).await;
    let token = token["token"].as_str().unwrap();
    for (method, path) in
        [(Method::POST, "/api/auth/totp"), (Method::POST, "/api/auth/totp/confirm"), (Method::DELETE, "/api/auth/totp")]
    {
        let body = json!({ "password": PASSWORD, "code": codes[1] });
        assert_eq!(kind(&call(&test, token, method, path, body).await), (403, "session-needed"));
    }
    assert_eq!(test.app.secrets.list(&format!("user/{}", member.person.id)).await.unwrap().len(), 1);
    assert_eq!(remove(PASSWORD, &codes[1]).await.0, 204);
    assert_eq!(test.app.secrets.list(&format!("user/{}", member.person.id)).await.unwrap().len(), 0, "destroyed");
    assert_eq!(member.sign_in(&test, None).await.0, 200);
    assert_eq!(kind(&remove(PASSWORD, &codes[2]).await), (409, "second-factor-off"));
    for (notice, count) in [("second_factor_on", 1), ("recovery_code_used", 2), ("second_factor_off", 1)] {
        test.until_handed(notice, count).await;
    }
}

#[tokio::test]
async fn guessing_codes_has_the_limits_of_guessing_passwords() {
    let test = TestApp::new().await;
    let member = Member::new(&test, Role::Customer).await;
    let (_, codes) = member.set_up(&test).await;
    for n in 0..10 {
        let code = format!("{n}{n}{n}{n}-wrong");
        assert_eq!(kind(&member.sign_in(&test, Some(&code)).await), (401, "wrong-code"));
        // The right password alone is no guess, and does not wipe out those before it.
        if n < 9 {
            assert_eq!(kind(&member.sign_in(&test, None).await), (401, "second-factor-needed"));
        }
    }
    assert_eq!(kind(&member.sign_in(&test, Some(&codes[0])).await), (429, "too-many-tries"));
    test.advance(jiff::SignedDuration::from_mins(16)).await;
    assert_eq!(member.sign_in(&test, Some(&codes[0])).await.0, 200);
}

#[tokio::test]
async fn operators_and_support_need_it_outside_the_trial() {
    let mut test = World::new().await.start(false).await;
    test.app.trial = false;
    let test = test.served_again().await;
    for role in [Role::Operator, Role::Support, Role::Owner] {
        let member = Member::new(&test, role).await;
        let look = async |token: &str| call(&test, token, Method::GET, "/api/operator/alerts", Value::Null).await;
        let token_of = async |session: &str| {
            let made = call(&test, session, Method::POST, "/api/auth/tokens", json!({ "name": "x" })).await;
            made.1["token"].as_str().unwrap().to_owned()
        };
        let early = token_of(&member.person.token).await;
        for token in [&member.person.token, &early] {
            let refused = look(token).await;
            assert_eq!(kind(&refused), (403, "second-factor-required"), "{role}");
            assert!(refused.1["detail"].as_str().unwrap().contains("/api/auth/totp"), "{}", refused.1);
        }
        if role.is_operator() {
            let path = "/api/operator/alerts/resolve";
            let refused =
                call(&test, &early, Method::POST, path, json!({ "kind": "x", "subject": "x", "reason": "x" })).await;
            assert_eq!(kind(&refused), (403, "second-factor-required"), "{role}");
        }
        assert_eq!(call(&test, &early, Method::GET, "/api/auth/tokens", Value::Null).await.0, 200, "their own things");

        let (_, codes) = member.set_up(&test).await;
        assert_eq!(look(&member.person.token).await.0, 200, "the session in which it was proved");
        assert_eq!(kind(&look(&early).await), (403, "second-factor-required"), "a token from before");
        let (status, opened) = member.sign_in(&test, Some(&codes[0])).await;
        assert_eq!(status, 200);
        let session = opened["token"].as_str().unwrap();
        let token = token_of(session).await;
        let of_token = token_of(&token).await;
        for good in [session, &token, &of_token] {
            assert_eq!(look(good).await.0, 200, "{role}");
        }
        // Taken away by an operator's word: nothing that was made with it is enough any more.
        let (pool, now) = (&test.app.pool, test.app.now());
        let cause = seedplane::audit::events::Cause::system();
        let secrets = Some(test.app.secrets.as_ref());
        assert!(accounts::reset_second_factor(pool, secrets, member.person.id, now, &cause).await.unwrap());
        assert!(!accounts::reset_second_factor(pool, secrets, member.person.id, now, &cause).await.unwrap());
        assert_eq!(look(session).await.0, 401, "every session has ended");
        assert_eq!(kind(&look(&token).await), (403, "second-factor-required"));
        assert_eq!(member.sign_in(&test, None).await.0, 200, "to set up another");
    }
    // For everybody else the operators' routes are still not there.
    let buyer = Member::new(&test, Role::Customer).await;
    assert_eq!(kind(&buyer.call(&test, Method::GET, "/api/operator/alerts", Value::Null).await), (404, "not-found"));
}

#[tokio::test]
async fn the_secret_is_in_the_store_alone_and_moves_with_it() {
    let test = TestApp::new().await;
    let member = Member::new(&test, Role::Customer).await;
    let (phone, codes) = member.set_up(&test).await;
    test.idle().await;
    let secret = phone.totp.secret().to_base32();
    let tables: Vec<String> = sqlx::query_scalar(
        "select quote_ident(schemaname) || '.' || quote_ident(tablename) from pg_tables where schemaname in ('public', 'graphile_worker')",
    )
    .fetch_all(&test.app.pool)
    .await
    .unwrap();
    for table in tables {
        let owner = test.world.owner().await;
        for secret in [&secret, &codes[0], &codes[0].replace('-', "")] {
            let statement = format!("select count(*) from {table} t where t::text ilike '%' || $1 || '%'");
            let found: i64 =
                sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).bind(secret).fetch_one(&owner).await.unwrap();
            assert_eq!(found, 0, "{table}");
        }
        owner.close().await;
    }
    let other = seedplane_simulators::vault::Vault::new("role", "secret", "root");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let routes = other.router();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    let vault = seedplane::secrets::vault::Vault::open(seedplane::secrets::vault::Settings {
        address,
        login: seedplane::secrets::vault::Login::Token(SecretString::from("root")),
        mount: "secret".to_owned(),
        namespace: None,
    })
    .await
    .unwrap();
    seedplane::secrets::transfer::move_all(&test.app.pool, test.app.secrets.as_ref(), &vault).await.unwrap();
    let mut test = test;
    test.app.secrets = std::sync::Arc::new(vault);
    let test = test.served_again().await;
    assert_eq!(member.sign_in(&test, Some(&phone.code(1))).await.0, 200);
}

#[tokio::test]
async fn a_new_password_by_mail_does_not_open_what_has_a_second_factor() {
    let test = TestApp::new().await;
    let member = Member::new(&test, Role::Customer).await;
    let (_, codes) = member.set_up(&test).await;
    let now = test.app.now();
    let link = accounts::open_reset(&test.app.pool, member.person.id, now, now).await.unwrap();
    let link = secrecy::ExposeSecret::expose_secret(&link);
    accounts::complete_reset(&test.app, link, SecretString::from(PASSWORD), None).await.unwrap();
    assert_eq!(kind(&member.sign_in(&test, None).await), (401, "second-factor-needed"));
    assert_eq!(member.sign_in(&test, Some(&codes[0])).await.0, 200);
}

#[tokio::test]
async fn an_operator_who_lost_the_phone_gets_back_in_by_the_command_line() {
    let test = World::new().await.start(false).await;
    let (operator, buyer) = (Member::new(&test, Role::Operator).await, Member::new(&test, Role::Customer).await);
    for member in [&operator, &buyer] {
        member.set_up(&test).await;
    }
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_seedplane"))
            .args(["operator", "reset-second-factor"])
            .args(arguments)
            .arg("--data-dir")
            .arg(&test.world.folder)
            .env("DATABASE_URL", &test.world.url)
            .output()
            .unwrap();
        (output.status.code(), crate::trial::said(&output))
    };
    for (arguments, words) in [
        (vec![operator.email.as_str(), "--reason", " "], "says why"),
        (vec![&buyer.email, "--reason", "lost"], "is no operator"),
        (vec!["nobody@example.org", "--reason", "lost", "--operator", &operator.email], "no account with the address"),
    ] {
        let (code, said) = run(&arguments);
        assert!(code == Some(1) && said.contains(words), "{arguments:?}: {said}");
    }
    assert_eq!(kind(&operator.sign_in(&test, None).await), (401, "second-factor-needed"), "nothing was changed");

    for member in [&operator, &buyer] {
        let arguments = [member.email.as_str(), "--reason", "lost, seen in person", "--operator", &operator.email];
        let (code, said) = run(&arguments[..if member.email == operator.email { 3 } else { 5 }]);
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(member.call(&test, Method::GET, "/api/auth/totp", Value::Null).await.0, 401, "signed out");
        assert_eq!(member.sign_in(&test, None).await.0, 200);
        let event: (String, String) = sqlx::query_as(
            "select actor, reason from seedbox_audit_events where subject_id = $1 and action = 'user.second_factor_off'",
        )
        .bind(member.person.id.0)
        .fetch_one(&test.app.pool)
        .await
        .unwrap();
        assert_eq!(event, (format!("operator:{}", operator.person.id), "lost, seen in person".to_owned()));
        assert!(test.app.secrets.list(&format!("user/{}", member.person.id)).await.unwrap().is_empty());
    }
    let (code, said) = run(&[&operator.email, "--reason", "again"]);
    assert!(code == Some(1) && said.contains("has no second factor"), "{said}");
}
