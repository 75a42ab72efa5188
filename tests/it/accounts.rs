//! How people prove who they are: sessions, passwords, tokens and their scopes, the second factor.

use jiff::SignedDuration;
use reqwest::Method;
use seedplane::ids::UserId;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::support::{Person, TestApp};

const PASSWORD: &str = "a long enough password";
const ANOTHER: &str = "another long password";

/// What was answered: the status, the problem's type, the body.
struct Answer {
    status: u16,
    kind: String,
    body: Value,
}

/// Asks for something as somebody with an address and a program of their own.
async fn ask(test: &TestApp, token: Option<&str>, method: Method, path: &str, from: &str, body: Value) -> Answer {
    let mut request = test.http.request(method.clone(), format!("{}{path}", test.base)).header("x-forwarded-for", from);
    request = request.header("user-agent", format!("browser of {from}"));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if method != Method::GET {
        request = request.json(&body);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    let body: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Answer { status, kind: body["type"].as_str().unwrap_or_default().to_owned(), body }
}

/// Somebody with an address and a password who has signed up.
struct Member {
    email: String,
    id: UserId,
    session: String,
}

impl Member {
    async fn sign_up(test: &TestApp) -> Self {
        let email = format!("{}@example.org", Uuid::new_v4().simple());
        let body = json!({ "email": email, "password": PASSWORD });
        let answer = ask(test, None, Method::POST, "/api/auth/sign-up", "198.51.100.1", body).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        let id = answer.body["user_id"].as_str().unwrap().parse().unwrap();
        Self { email, id: UserId(id), session: answer.body["token"].as_str().unwrap().to_owned() }
    }

    async fn try_sign_in(&self, test: &TestApp, from: &str, password: &str) -> Answer {
        let body = json!({ "email": self.email, "password": password });
        ask(test, None, Method::POST, "/api/auth/sign-in", from, body).await
    }

    async fn sign_in(&self, test: &TestApp, from: &str, password: &str) -> String {
        let answer = self.try_sign_in(test, from, password).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body["token"].as_str().unwrap().to_owned()
    }

    fn person(&self) -> Person {
        Person { id: self.id, token: self.session.clone() }
    }

    async fn events(&self, test: &TestApp) -> Vec<String> {
        sqlx::query_scalar("select action from seedbox_audit_events where subject_id = $1 order by seq")
            .bind(self.id.0)
            .fetch_all(&test.app.pool)
            .await
            .unwrap()
    }
}

async fn is_good(test: &TestApp, token: &str) -> bool {
    match ask(test, Some(token), Method::GET, "/api/billing/account", "198.51.100.1", Value::Null).await.status {
        200 => true,
        401 => false,
        status => panic!("{status}"),
    }
}

#[tokio::test]
async fn sessions_are_listed_with_what_opened_them_and_ended_one_by_one_or_all() {
    let test = TestApp::new().await;
    let (member, stranger) = (Member::sign_up(&test).await, Member::sign_up(&test).await);
    let phone = member.sign_in(&test, "203.0.113.5", PASSWORD).await;
    let tablet = member.sign_in(&test, "203.0.113.6", PASSWORD).await;
    let api = test.post(&member.person(), "/api/auth/tokens", json!({ "name": "laptop" })).await;
    let listed = async |token: &str| {
        ask(&test, Some(token), Method::GET, "/api/auth/sessions", "198.51.100.1", Value::Null).await.body
    };
    let seen = listed(&phone).await;
    let shown: Vec<_> = seen
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            (one["address"].as_str().unwrap(), one["user_agent"].as_str().unwrap(), one["current"].as_bool().unwrap())
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("203.0.113.6", "browser of 203.0.113.6", false),
            ("203.0.113.5", "browser of 203.0.113.5", true),
            ("198.51.100.1", "browser of 198.51.100.1", false),
        ],
    );
    assert!(!seen.to_string().contains("sps_"), "{seen}");

    // Used again after a while: noted, to five minutes, by the application's clock.
    let opened = seen[0]["last_used_at"].clone();
    test.advance(SignedDuration::from_mins(3)).await;
    assert!(is_good(&test, &tablet).await);
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(listed(&phone).await[0]["last_used_at"], opened);
    test.advance(SignedDuration::from_mins(3)).await;
    assert!(is_good(&test, &tablet).await);
    let later = test.until(&member.person(), "/api/auth/sessions", |seen| seen[0]["last_used_at"] != opened).await;
    assert!(later[0]["last_used_at"].as_str() > opened.as_str(), "{later}");

    let path = format!("/api/auth/sessions/{}", seen[0]["id"].as_str().unwrap());
    let end =
        async |token: &str, path: &str| ask(&test, Some(token), Method::DELETE, path, "198.51.100.1", json!({})).await;
    let refused = end(&stranger.session, &path).await;
    assert_eq!((refused.status, refused.kind.as_str()), (404, "not-found"));
    assert!(is_good(&test, &tablet).await);
    assert_eq!(end(&phone, &path).await.status, 204);
    assert!(!is_good(&test, &tablet).await);
    assert_eq!(end(&phone, &path).await.status, 404, "it has ended already");

    assert_eq!(end(&phone, "/api/auth/sessions").await.status, 204);
    assert!(is_good(&test, &phone).await && !is_good(&test, &member.session).await);
    assert!(is_good(&test, api["token"].as_str().unwrap()).await, "API tokens stay");
    assert_eq!(listed(&phone).await.as_array().unwrap().len(), 1);
    assert!(is_good(&test, &stranger.session).await);
    let events = member.events(&test).await;
    assert_eq!(events.iter().filter(|event| *event == "user.sessions_ended").count(), 1, "{events:?}");
}

#[tokio::test]
async fn a_person_has_a_hundred_sessions_at_most_and_a_user_agent_is_one_line() {
    let test = TestApp::new().await;
    let member = Member::sign_up(&test).await;
    for n in 0..seedplane::accounts::MAX_SESSIONS {
        sqlx::query("insert into sessions (id, user_id, token_hash, created_at, expires_at) values ($1, $2, sha256($3), $4, $4 + interval '1 day')")
            .bind(Uuid::now_v7())
            .bind(member.id.0)
            .bind(n.to_be_bytes().to_vec())
            .bind(test.app.now())
            .execute(&test.app.pool)
            .await
            .unwrap();
    }
    let body = json!({ "email": member.email, "password": PASSWORD });
    let request = test.http.post(format!("{}/api/auth/sign-in", test.base)).header("user-agent", "x\t".repeat(300));
    assert_eq!(request.json(&body).send().await.unwrap().status(), 200);
    assert!(!is_good(&test, &member.session).await, "the oldest has ended");
    let agent: String = sqlx::query_scalar(
        "select user_agent from sessions where user_id = $1 order by created_at desc, id desc limit 1",
    )
    .bind(member.id.0)
    .fetch_one(&test.app.pool)
    .await
    .unwrap();
    assert_eq!(agent, "x".repeat(200));
}

#[tokio::test]
async fn a_changed_password_ends_the_other_sessions_and_is_told() {
    let test = TestApp::new().await;
    let member = Member::sign_up(&test).await;
    let other = member.sign_in(&test, "198.51.100.1", PASSWORD).await;
    let api = test.post(&member.person(), "/api/auth/tokens", json!({ "name": "laptop" })).await;
    let api = api["token"].as_str().unwrap();
    let change = async |token: &str, current: &str, new: &str| {
        let body = json!({ "current_password": current, "new_password": new });
        ask(&test, Some(token), Method::POST, "/api/auth/password", "198.51.100.1", body).await
    };
    for (token, current, new, status, kind) in [
        (member.session.as_str(), "not the right password", ANOTHER, 403, "wrong-password"),
        (&member.session, PASSWORD, "short", 422, "bad-input"),
        (api, PASSWORD, ANOTHER, 403, "session-needed"),
        ("sps_nobody", PASSWORD, ANOTHER, 401, "unauthorized"),
    ] {
        let answer = change(token, current, new).await;
        assert_eq!((answer.status, answer.kind.as_str()), (status, kind), "{}", answer.body);
    }
    assert!(is_good(&test, &other).await, "nothing was changed");
    assert_eq!(change(&member.session, PASSWORD, ANOTHER).await.status, 204);
    assert!(is_good(&test, &member.session).await && is_good(&test, api).await && !is_good(&test, &other).await);
    assert_eq!(member.try_sign_in(&test, "198.51.100.1", PASSWORD).await.status, 401);
    member.sign_in(&test, "198.51.100.1", ANOTHER).await;
    test.until_handed("password_changed", 1).await;
    assert!(member.events(&test).await.contains(&"user.password_changed".to_owned()));

    // Guesses at it have the budget of sign-in.
    for _ in 0..10 {
        assert_eq!(change(&member.session, "not the right password", PASSWORD).await.status, 403);
    }
    let answer = change(&member.session, ANOTHER, PASSWORD).await;
    assert_eq!((answer.status, answer.kind.as_str()), (429, "too-many-tries"));
    assert_eq!(member.try_sign_in(&test, "198.51.100.1", ANOTHER).await.status, 429);
}

#[tokio::test]
async fn a_lost_answer_to_a_changed_password_is_had_again_and_its_key_keeps_nothing_to_guess_by() {
    let test = TestApp::new().await;
    let member = Member::sign_up(&test).await;
    let body = json!({ "current_password": PASSWORD, "new_password": ANOTHER }).to_string();
    for _ in 0..2 {
        let request = test.http.post(format!("{}/api/auth/password", test.base)).bearer_auth(&member.session);
        let request = request.header("idempotency-key", "k").header("content-type", "application/json");
        assert_eq!(request.body(body.clone()).send().await.unwrap().status(), 204);
    }
    let kept: Vec<u8> = sqlx::query_scalar("select request_hash from idempotency_keys where user_id = $1")
        .bind(member.id.0)
        .fetch_one(&test.app.pool)
        .await
        .unwrap();
    let mut guessed = Sha256::new();
    for part in ["POST", "/api/auth/password", &body] {
        guessed.update(u64::try_from(part.len()).unwrap().to_be_bytes());
        guessed.update(part);
    }
    assert_ne!(kept, guessed.finalize().to_vec(), "whoever has the database could try passwords");
}

/// The newest mail to somebody that holds a link to set a new password, once there are so many: the token in it.
async fn reset_token(test: &TestApp, email: &str, mails: usize) -> String {
    let inbox = test.world.folder.join("inbox");
    let started = std::time::Instant::now();
    loop {
        let mut found: Vec<_> = std::fs::read_dir(&inbox)
            .unwrap()
            .flatten()
            .filter(|file| file.path().extension().is_some_and(|extension| extension == "txt"))
            .map(|file| (file.file_name(), std::fs::read_to_string(file.path()).unwrap()))
            .filter(|(_, text)| text.starts_with(&format!("To: {email}\n")) && text.contains("/reset/"))
            .collect();
        found.sort();
        if found.len() >= mails {
            let text = &found.last().unwrap().1;
            return text.lines().find_map(|line| line.split_once("/reset/")).unwrap().1.to_owned();
        }
        assert!(started.elapsed() < crate::support::PATIENCE, "{} of {mails} mails", found.len());
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
}

#[tokio::test]
async fn a_forgotten_password_is_replaced_by_a_link_that_works_once() {
    let test = TestApp::new().await;
    let member = Member::sign_up(&test).await;
    let post = async |path: &str, from: &str, body: Value| ask(&test, None, Method::POST, path, from, body).await;
    let request = async |email: &str| post("/api/auth/password-reset", "198.51.100.1", json!({ "email": email })).await;
    let complete = async |token: &str, password: &str| {
        let body = json!({ "token": token, "new_password": password });
        post("/api/auth/password-reset/complete", "198.51.100.1", body).await
    };
    // Capitals are the same address.
    assert_eq!(request(&member.email.to_uppercase()).await.status, 202);
    let first = reset_token(&test, &member.email, 1).await;
    let open =
        async |token: &str| seedplane::accounts::reset_is_open(&test.app.pool, token, test.app.now()).await.unwrap();
    assert!(open(&first).await);
    assert_eq!(request(&member.email).await.status, 202);
    let second = reset_token(&test, &member.email, 2).await;
    assert!(!open(&first).await && open(&second).await, "a newer one ends the older one");
    for (token, password, status, kind) in [
        (first.as_str(), ANOTHER, 410, "link-closed"),
        ("spl_nothing", ANOTHER, 410, "link-closed"),
        (&second, "short", 422, "bad-input"),
    ] {
        let answer = complete(token, password).await;
        assert_eq!((answer.status, answer.kind.as_str()), (status, kind), "{}", answer.body);
    }
    assert!(is_good(&test, &member.session).await, "nothing was changed");
    member.sign_in(&test, "198.51.100.1", PASSWORD).await;

    let (one, two) = tokio::join!(complete(&second, ANOTHER), complete(&second, ANOTHER));
    let mut statuses = [one.status, two.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [204, 410], "once");
    assert!(!is_good(&test, &member.session).await, "every session has ended");
    assert_eq!(member.try_sign_in(&test, "198.51.100.1", PASSWORD).await.status, 401);
    member.sign_in(&test, "198.51.100.1", ANOTHER).await;
    test.until_handed("password_changed", 1).await;
    let events = member.events(&test).await;
    assert_eq!(events.iter().filter(|event| *event == "user.password_changed").count(), 1, "{events:?}");
    assert_eq!(events.iter().filter(|event| *event == "user.password_reset_asked").count(), 2, "{events:?}");

    // The third within the hour; the hour after it, its link is too old.
    assert_eq!(request(&member.email).await.status, 202);
    let third = reset_token(&test, &member.email, 3).await;
    let answer = request(&member.email).await;
    assert_eq!((answer.status, answer.kind.as_str()), (429, "too-many-resets"), "{}", answer.body);
    assert!(open(&third).await, "what was sent stays good");
    test.advance(SignedDuration::from_mins(61)).await;
    assert!(!open(&third).await);
    assert_eq!(complete(&third, PASSWORD).await.status, 410);
    // A password that was changed meanwhile ends it, too.
    assert_eq!(request(&member.email).await.status, 202);
    let fourth = reset_token(&test, &member.email, 4).await;
    let session = member.sign_in(&test, "198.51.100.1", ANOTHER).await;
    let body = json!({ "current_password": ANOTHER, "new_password": PASSWORD });
    assert_eq!(ask(&test, Some(&session), Method::POST, "/api/auth/password", "198.51.100.1", body).await.status, 204);
    assert!(!open(&fourth).await);
    let stored: Vec<String> =
        sqlx::query_scalar("select body from mail_outbox").fetch_all(&test.app.pool).await.unwrap();
    assert!(stored.iter().all(|body| !body.contains("spl_")), "no link is in the database");
}

#[tokio::test]
async fn whether_there_is_an_account_is_not_told_and_a_late_mail_opens_nothing_after_a_change() {
    let test = crate::support::World::new().await.start(false).await;
    let member = Member::sign_up(&test).await;
    let request = async |email: &str, from: &str| {
        let body = json!({ "email": email });
        ask(&test, None, Method::POST, "/api/auth/password-reset", from, body).await
    };
    let (known, unknown) =
        (request(&member.email, "203.0.113.1").await, request("nobody@example.org", "203.0.113.1").await);
    assert_eq!((known.status, &known.body), (202, &unknown.body));
    assert_eq!(unknown.status, 202);
    let waiting: Vec<i64> = sqlx::query_scalar(
        "select count(*) from graphile_worker._private_jobs j join graphile_worker._private_tasks t on t.id = j.task_id
         where t.identifier in ('answer_reset', 'send_mail') group by t.identifier",
    )
    .fetch_all(&test.app.pool)
    .await
    .unwrap();
    assert_eq!(waiting, [2], "the same work for both, and none of it in the request");
    assert_eq!(request("no address", "203.0.113.1").await.status, 422);
    for n in 0..8 {
        assert_eq!(request(&format!("{n}@example.org"), "203.0.113.1").await.status, 202);
    }
    assert_eq!(request("9@example.org", "203.0.113.1").await.status, 429, "from one network address");
    assert_eq!(request("9@example.org", "203.0.113.2").await.status, 202);

    // The mail waits; the password is changed meanwhile; then the mail goes out.
    let ids: Vec<Uuid> =
        sqlx::query_scalar("select id from password_reset_requests").fetch_all(&test.app.pool).await.unwrap();
    for id in ids.iter().chain(&ids) {
        seedplane::accounts::answer_reset(&test.app, *id).await.unwrap();
    }
    let body = json!({ "current_password": PASSWORD, "new_password": ANOTHER });
    let changed = ask(&test, Some(&member.session), Method::POST, "/api/auth/password", "198.51.100.1", body).await;
    assert_eq!(changed.status, 204, "{}", changed.body);
    let app = &test.app;
    seedplane::mailer::send_waiting(&app.pool, app.mailer.as_ref(), &app.public_url, &app.clock).await.unwrap();
    let token = reset_token(&test, &member.email, 1).await;
    assert!(!seedplane::accounts::reset_is_open(&app.pool, &token, app.now()).await.unwrap());
    let kept: i64 = sqlx::query_scalar("select count(*) from password_reset_requests where email is not null")
        .fetch_one(&app.pool)
        .await
        .unwrap();
    assert_eq!(kept, 0, "addresses are not kept");
}
