//! Tokens of another issuer: which are taken, and whom they make.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::{
    encoding::AsDer,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair},
};
use axum::{
    Router,
    http::StatusCode,
    response::{AppendHeaders, IntoResponse},
    routing::get,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use reqwest::Method;
use seedplane::accounts::{
    Role,
    issuers::{Issuer, Settings},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Person, TestApp, World};

const ISSUER: &str = "https://id.test/auth/v1";
const AUDIENCE: &str = "authenticated";

/// A key of the issuer.
struct Key {
    id: &'static str,
    algorithm: Algorithm,
    signing: EncodingKey,
}

impl Key {
    fn new(id: &'static str, algorithm: Algorithm) -> Self {
        let random = aws_lc_rs::rand::SystemRandom::new();
        let signing = match algorithm {
            Algorithm::ES256 => {
                let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
                EncodingKey::from_ec_der(der.as_ref())
            }
            Algorithm::EdDSA => {
                // Of 48 bytes: the library knows no other form.
                let der = Ed25519KeyPair::generate_pkcs8v1(&random).unwrap();
                EncodingKey::from_ed_der(der.as_ref())
            }
            _ => {
                let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
                let der = AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
                let pair = aws_lc_rs::signature::RsaKeyPair::from_pkcs8(der.as_ref()).unwrap();
                assert!(pair.public_modulus_len() == 256);
                EncodingKey::from_rsa_der(&pkcs1(der.as_ref()))
            }
        };
        Self { id, algorithm, signing }
    }

    /// As the issuer shows it.
    fn shown(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.signing, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.id.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_as(self.algorithm, Some(self.id), claims)
    }

    fn sign_as(&self, algorithm: Algorithm, id: Option<&str>, claims: &Value) -> String {
        let header = Header { kid: id.map(str::to_owned), ..Header::new(algorithm) };
        jsonwebtoken::encode(&header, claims, &self.signing).unwrap()
    }
}

/// The RSA key inside of a PKCS#8 one: what follows the octet string's header.
fn pkcs1(pkcs8: &[u8]) -> Vec<u8> {
    let start = pkcs8.windows(4).skip(4).position(|bytes| bytes[..2] == [0x30, 0x82]).unwrap() + 4;
    pkcs8[start..].to_vec()
}

/// The issuer's key set on a server of its own: what it answers, and how often it was asked.
#[derive(Clone)]
struct KeyServer {
    answer: Arc<Mutex<(StatusCode, String)>>,
    asked: Arc<AtomicUsize>,
    url: String,
}

impl KeyServer {
    async fn start(keys: &[&Key]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
        let server = Self { answer: Arc::new(Mutex::new((StatusCode::OK, String::new()))), asked: Arc::default(), url };
        server.show(keys, &[]);
        let shown = server.clone();
        let answer = move || {
            shown.asked.fetch_add(1, Ordering::SeqCst);
            let (status, body) = shown.answer.lock().unwrap().clone();
            let elsewhere = status.is_redirection().then_some(AppendHeaders([("location", "/elsewhere.json")]));
            async move { (status, elsewhere, body).into_response() }
        };
        // Whoever followed the redirect would have what it answered.
        let followed = server.clone();
        let elsewhere = move || {
            let body = followed.answer.lock().unwrap().1.clone();
            async move { body }
        };
        let routes = Router::new().route("/jwks.json", get(answer)).route("/elsewhere.json", get(elsewhere));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        server
    }

    fn show(&self, keys: &[&Key], more: &[Value]) {
        let keys: Vec<Value> = more.iter().cloned().chain(keys.iter().map(|key| key.shown())).collect();
        *self.answer.lock().unwrap() = (StatusCode::OK, json!({ "keys": keys }).to_string());
    }

    fn fail(&self, status: StatusCode, body: String) {
        *self.answer.lock().unwrap() = (status, body);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// An application that takes the issuer's tokens.
    async fn application(&self, change: impl FnOnce(&mut Settings)) -> TestApp {
        let mut test = World::new().await.start(false).await;
        let mut settings = Settings::new(ISSUER.to_owned(), AUDIENCE.to_owned(), self.url.clone());
        change(&mut settings);
        test.app.issuer = Some(Arc::new(Issuer::new(settings).unwrap()));
        test.served_again().await
    }
}

fn claims(user: Uuid, change: Value) -> Value {
    let mut claims = json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": user, "exp": jiff::Timestamp::now().as_second() + 3600,
        "email": format!("{}@example.org", user.simple()), "email_verified": true, "role": "service_role",
        "user_metadata": { "email_verified": true },
    });
    for (name, value) in change.as_object().unwrap() {
        match value {
            Value::Null => _ = claims.as_object_mut().unwrap().remove(name),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

async fn account(test: &TestApp, token: &str) -> (u16, String, Value) {
    let person = Person { id: seedplane::ids::UserId::new(), token: token.to_owned() };
    let (status, body) = test.call(Some(&person), Method::GET, "/api/billing/account", None).await;
    (status.as_u16(), body["type"].as_str().unwrap_or_default().to_owned(), body)
}

async fn people(test: &TestApp) -> i64 {
    sqlx::query_scalar("select count(*) from users").fetch_one(&test.app.pool).await.unwrap()
}

#[tokio::test]
async fn a_token_of_the_issuer_is_a_customer_by_its_own_id() {
    let keys = [Key::new("ec", Algorithm::ES256), Key::new("rsa", Algorithm::RS256), Key::new("ed", Algorithm::EdDSA)];
    let server = KeyServer::start(&keys.iter().collect::<Vec<_>>()).await;
    let test = server.application(|_| {}).await;
    for key in &keys {
        let user = Uuid::new_v4();
        let token = key.sign(&claims(user, json!({ "aud": ["another", AUDIENCE] })));
        // Two first requests at once make one account.
        let (one, two) = tokio::join!(account(&test, &token), account(&test, &token));
        assert_eq!((one.0, two.0), (200, 200), "{:?}: {} {}", key.algorithm, one.2, two.2);
        let made: (String, Option<String>) = sqlx::query_as("select role, password_hash from users where id = $1")
            .bind(user)
            .fetch_one(&test.app.pool)
            .await
            .unwrap();
        assert_eq!(made, ("customer".to_owned(), None));
        // Known by the id from then on, whatever is said of the address.
        let token = key.sign(&claims(user, json!({ "email": null, "email_verified": null })));
        assert_eq!(account(&test, &token).await.0, 200);

        let person = Person { id: seedplane::ids::UserId(user), token };
        for (method, path, status, kind) in [
            (Method::GET, "/api/operator/alerts", 404, "not-found"),
            (Method::POST, "/api/auth/password", 403, "session-needed"),
            (Method::POST, "/api/auth/totp", 403, "session-needed"),
            (Method::POST, "/api/auth/sign-out", 409, "conflict"),
        ] {
            let body = (method == Method::POST).then(|| json!({ "current_password": "x", "new_password": "y" }));
            let (answered, problem) = test.call(Some(&person), method, path, body).await;
            assert_eq!((answered.as_u16(), problem["type"].as_str()), (status, Some(kind)), "{path}: {problem}");
        }
        // And repeated by its key, like anybody's.
        for _ in 0..2 {
            let request = test.http.post(format!("{}/api/auth/tokens", test.base)).bearer_auth(&person.token);
            let request = request.header("idempotency-key", "k").json(&json!({ "name": "x" }));
            request.send().await.unwrap();
        }
        assert_eq!(test.get(&person, "/api/auth/tokens").await.as_array().unwrap().len(), 1);
    }
    assert_eq!(server.asked(), 1, "the key set is kept");
    // An operator here is none by the issuer's word.
    let operator = test.person(Role::Operator).await;
    let token = keys[0].sign(&claims(operator.id.0, json!({})));
    let person = Person { id: operator.id, token };
    let (status, _) = test.call(Some(&person), Method::GET, "/api/operator/alerts", None).await;
    assert_eq!(status, 404);
    // Not configured, it is nobody's.
    let plain = World::new().await.start(false).await;
    let refused = account(&plain, &keys[0].sign(&claims(Uuid::new_v4(), json!({})))).await;
    assert_eq!((refused.0, refused.1.as_str()), (401, "unauthorized"));
}

#[tokio::test]
async fn whatever_is_wrong_with_a_token_it_is_not_taken() {
    let (ec, rsa, other) =
        (Key::new("ec", Algorithm::ES256), Key::new("rsa", Algorithm::RS256), Key::new("ec", Algorithm::ES256));
    let server = KeyServer::start(&[]).await;
    let secret = BASE64_URL_SAFE_NO_PAD.encode([7; 32]);
    let mut for_encryption = Key::new("enc", Algorithm::ES256).shown();
    for_encryption["use"] = json!("enc");
    let odd = [
        json!({ "kty": "oct", "kid": "shared", "k": secret, "alg": "HS256" }),
        json!({ "kty": "unheard of", "kid": "odd" }),
        json!("no key at all"),
        for_encryption,
    ];
    server.show(&[&ec, &rsa], &odd);
    let test = server.application(|_| {}).await;
    let user = Uuid::new_v4();
    let good = claims(user, json!({}));
    let now = jiff::Timestamp::now().as_second();
    let with = |change: Value| ec.sign(&claims(user, change));
    let by_secret = |secret: &[u8], id: &str| {
        let header = Header { kid: Some(id.to_owned()), ..Header::new(Algorithm::HS256) };
        jsonwebtoken::encode(&header, &good, &EncodingKey::from_secret(secret)).unwrap()
    };
    let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let whole = ec.sign(&good);
    let (signed, signature) = whole.rsplit_once('.').unwrap();
    let (header, _) = signed.split_once('.').unwrap();
    let shown = ec.shown();
    let point = [&[4][..], &decoded(&shown["x"]), &decoded(&shown["y"])].concat();
    let modulus = decoded(&rsa.shown()["n"]);
    let tokens = [
        ("another issuer", with(json!({ "iss": "https://evil.test" })), "another issuer"),
        ("no issuer", with(json!({ "iss": null })), "lacks one of the claims"),
        ("another audience", with(json!({ "aud": "somebody else" })), "another audience"),
        ("no audience", with(json!({ "aud": null })), "lacks one of the claims"),
        ("no audience at all", with(json!({ "aud": [] })), "another audience"),
        ("expired", with(json!({ "exp": now - 31 })), "has expired"),
        ("never expiring", with(json!({ "exp": null })), "lacks one of the claims"),
        ("an expiry that is no number", with(json!({ "exp": "never" })), "lacks one of the claims"),
        ("not good yet", with(json!({ "nbf": now + 300 })), "not good yet"),
        ("nobody", with(json!({ "sub": null })), "lacks one of the claims"),
        ("no UUID", with(json!({ "sub": "admin" })), "no UUID"),
        ("no address", with(json!({ "email": null })), "verified e-mail"),
        ("no address that is one", with(json!({ "email": "nobody" })), "verified e-mail"),
        ("not verified", with(json!({ "email_verified": false })), "verified e-mail"),
        ("verified by the user's own word", with(json!({ "email_verified": null })), "verified e-mail"),
        ("an unknown key", ec.sign_as(Algorithm::ES256, Some("new"), &good), "does not show"),
        ("no key", ec.sign_as(Algorithm::ES256, None, &good), "does not name its key"),
        ("somebody else's key", other.sign(&good), "not signed with"),
        ("another key's name", rsa.sign_as(Algorithm::RS256, Some("ec"), &good), "not signed with"),
        ("another algorithm of the key", rsa.sign_as(Algorithm::RS512, Some("rsa"), &good), "not signed with"),
        ("PSS", rsa.sign_as(Algorithm::PS256, Some("rsa"), &good), "not signed with"),
        ("HS256 by the EC key", by_secret(&point, "ec"), "not signed with"),
        ("HS256 by the RSA key", by_secret(&modulus, "rsa"), "not signed with"),
        ("HS256 by the key as shown", by_secret(shown.to_string().as_bytes(), "ec"), "not signed with"),
        ("a shared secret", by_secret(&[7; 32], "shared"), "does not show"),
        (
            "no signature",
            format!("{}.{}.", part(json!({ "alg": "none", "kid": "ec" })), part(good.clone())),
            "cannot be read",
        ),
        ("a cut signature", format!("{signed}."), "not signed with"),
        (
            "other claims",
            format!("{header}.{}.{signature}", part(claims(Uuid::new_v4(), json!({})))),
            "not signed with",
        ),
        (
            "what is not understood",
            format!(
                "{}.{}.{signature}",
                part(json!({ "alg": "ES256", "kid": "ec", "crit": ["b64"] })),
                part(good.clone())
            ),
            "more than is understood",
        ),
        ("rubbish", "a.b.c".to_owned(), "cannot be read"),
    ];
    for (what, token, said) in &tokens {
        let (status, kind, problem) = account(&test, token).await;
        assert_eq!((status, kind.as_str()), (401, "unauthorized"), "{what}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(said), "{what}: {problem}");
    }
    assert_eq!(people(&test).await, 0, "nobody was made");
    assert_eq!(server.asked(), 1, "asked once, whatever keys were named");
    let long = ec.sign(&claims(user, json!({ "x": "x".repeat(10_000) })));
    assert_eq!(account(&test, &long).await.0, 401);
    // Half a minute is forgiven, and the good one is good.
    assert_eq!(account(&test, &with(json!({ "exp": now - 15, "nbf": now + 15 }))).await.0, 200);
    assert_eq!(account(&test, &whole).await.0, 200);
    // The trial's clock is not the issuer's.
    test.advance(jiff::SignedDuration::from_hours(48)).await;
    assert_eq!(account(&test, &whole).await.0, 200);
}

fn decoded(text: &Value) -> Vec<u8> {
    BASE64_URL_SAFE_NO_PAD.decode(text.as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn an_address_that_is_somebody_elses_is_refused_and_nothing_is_merged() {
    let key = Key::new("ec", Algorithm::ES256);
    let server = KeyServer::start(&[&key]).await;
    let test = server.application(|_| {}).await;
    let email = format!("{}@example.org", Uuid::new_v4().simple());
    let body = json!({ "email": email, "password": "a long enough password" });
    let (status, _) = test.call(None, Method::POST, "/api/auth/sign-up", Some(body)).await;
    assert_eq!(status, 201);
    let before = people(&test).await;
    let token = key.sign(&claims(Uuid::new_v4(), json!({ "email": email.to_uppercase() })));
    let (status, kind, problem) = account(&test, &token).await;
    assert_eq!((status, kind.as_str()), (403, "email-of-another-account"), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("nothing was merged"), "{problem}");
    assert_eq!(people(&test).await, before);
    // What is for everybody is not refused because of a token.
    let request = test.http.post(format!("{}/api/auth/sign-in", test.base)).bearer_auth(&token);
    let body = json!({ "email": email, "password": "a long enough password" });
    assert_eq!(request.header("idempotency-key", "k").json(&body).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn keys_are_fetched_again_for_a_new_one_and_not_too_often() {
    let (old, new) = (Key::new("old", Algorithm::ES256), Key::new("new", Algorithm::ES256));
    let server = KeyServer::start(&[&old]).await;
    let often = server.application(|settings| settings.fetched_every = Duration::ZERO).await;
    let seldom = server.application(|_| {}).await;
    let token = |key: &Key| key.sign(&claims(Uuid::new_v4(), json!({})));
    for test in [&often, &seldom] {
        assert_eq!(account(test, &token(&old)).await.0, 200);
    }
    server.show(&[&new], &[]);
    assert_eq!(account(&often, &token(&new)).await.0, 200, "a new key is found");
    assert_eq!(account(&often, &token(&old)).await.0, 401, "one that was taken back is not");
    let asked = server.asked();
    for _ in 0..5 {
        assert_eq!(account(&seldom, &token(&new)).await.0, 401);
        assert_eq!(account(&seldom, &token(&old)).await.0, 200);
    }
    assert_eq!(server.asked(), asked, "not within the minute");
}

#[tokio::test]
async fn keys_that_cannot_be_fetched_are_used_for_a_while_and_then_nobody_comes_in() {
    let key = Key::new("ec", Algorithm::ES256);
    let server = KeyServer::start(&[&key]).await;
    let token = key.sign(&claims(Uuid::new_v4(), json!({})));
    let test = server
        .application(|settings| {
            settings.keys_are_fresh_for = Duration::ZERO;
            settings.keys_are_good_for = Duration::from_secs(5);
            settings.fetched_every = Duration::ZERO;
        })
        .await;
    let set = json!({ "keys": [key.shown()] }).to_string();
    for (status, body) in [
        (StatusCode::INTERNAL_SERVER_ERROR, set.clone()),
        (StatusCode::FOUND, set.clone()),
        (StatusCode::OK, "no JSON".to_owned()),
        (StatusCode::OK, format!("{set}{}", " ".repeat(300 * 1024))),
    ] {
        server.fail(status, body);
        let (answered, kind, problem) = account(&test, &token).await;
        assert_eq!((answered, kind.as_str()), (503, "issuer-unavailable"), "{status}: {problem}");
    }
    server.show(&[&key], &[]);
    assert_eq!(account(&test, &token).await.0, 200);
    server.fail(StatusCode::INTERNAL_SERVER_ERROR, set);
    assert_eq!(account(&test, &token).await.0, 200, "known keys are used for a while");
    let started = std::time::Instant::now();
    while account(&test, &token).await.0 == 200 {
        assert!(started.elapsed() < crate::support::PATIENCE, "for ever");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(account(&test, &token).await.0, 503);
}

/// What a token reaches over the API, its session on pages does, and no more.
#[tokio::test]
async fn a_token_opens_a_session_on_pages_that_reaches_what_it_does() {
    let key = Key::new("ec", Algorithm::ES256);
    let server = KeyServer::start(&[&key]).await;
    let test = server.application(|settings| settings.sign_in_url = Some("https://id.test/in".to_owned())).await;
    let pages = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let at = |path: &str| format!("{}{path}", test.base);
    let come = async |token: &str| {
        let form = [("access_token", token), ("next", "/seedbox/money")];
        pages.post(at("/sign-in/elsewhere")).form(&form).send().await.unwrap()
    };
    let page = pages.get(at("/sign-in")).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("href=\"https://id.test/in\"") && page.contains("Sign in at id.test"), "{page}");

    // What is not taken opens nothing, says why, and stands nowhere on the page.
    let stranger = Key::new("ec", Algorithm::ES256).sign(&claims(Uuid::new_v4(), json!({})));
    for bad in ["", "sps_nothing", stranger.as_str(), &"x".repeat(9_000)] {
        let refused = come(bad).await;
        let (status, cookie) = (refused.status(), refused.headers().contains_key("set-cookie"));
        assert!(status.is_client_error() && !cookie, "{bad}: {status}");
        let said = refused.text().await.unwrap();
        assert!(said.contains("nothing was") || said.contains("Nothing was"), "{bad}: {said}");
        assert!(bad.len() < 20 || !said.contains(bad), "it is not shown again");
    }
    assert_eq!(people(&test).await, 0);
    let cross = pages.post(at("/sign-in/elsewhere")).header("sec-fetch-site", "cross-site");
    let token = key.sign(&claims(Uuid::new_v4(), json!({})));
    let cross = cross.form(&[("access_token", token.as_str())]).send().await.unwrap();
    assert_eq!(cross.status(), StatusCode::FORBIDDEN, "no other site signs anybody in");

    // An operator's own account, too, comes in as a customer.
    let operator = test.person(Role::Operator).await;
    let token = key.sign(&claims(operator.id.0, json!({})));
    let opened = come(&token).await;
    assert_eq!(
        (opened.status(), opened.headers()["location"].to_str().unwrap()),
        (StatusCode::SEE_OTHER, "/seedbox/money")
    );
    let cookie = opened.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let get = async |path: &str| pages.get(at(path)).header("cookie", &cookie).send().await.unwrap();
    let post = async |path: &str, form: &[(&str, &str)]| {
        pages.post(at(path)).header("cookie", &cookie).form(form).send().await.unwrap()
    };
    assert_eq!(get("/seedbox/money").await.status(), StatusCode::OK);
    assert_eq!(get("/operator").await.status(), StatusCode::NOT_FOUND);
    let account_page = get("/seedbox/account").await.text().await.unwrap();
    assert!(account_page.contains("id.test") && !account_page.contains("/seedbox/account/password"), "{account_page}");
    let password = [("current", "a long enough password"), ("new", "another long password")];
    for (path, form) in [
        ("/seedbox/account/password", &password[..]),
        ("/seedbox/account/second-factor", &[("form_id", "0199f000-0000-7000-8000-000000000001")]),
        ("/seedbox/account/second-factor/confirm", &[("code", "123456")]),
        ("/seedbox/account/second-factor/remove", &[("password", "a long enough password"), ("code", "123456")]),
    ] {
        let refused = post(path, form).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{path}");
    }
    // As a bearer it is what it is on pages.
    let bearer = cookie.split_once('=').unwrap().1;
    let as_person = Person { id: operator.id, token: bearer.to_owned() };
    let (status, _) = test.call(Some(&as_person), Method::GET, "/api/operator/alerts", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let change = json!({ "current_password": "a long enough password", "new_password": "another long password" });
    let (status, _) = test.call(Some(&as_person), Method::POST, "/api/auth/password", Some(change)).await;
    assert!(status.is_client_error(), "{status}");
    let until: jiff::Timestamp = {
        let sessions = test.get(&as_person, "/api/auth/sessions").await;
        let own = sessions.as_array().unwrap().iter().find(|one| one["current"] == true).unwrap().clone();
        own["expires_at"].as_str().unwrap().parse().unwrap()
    };
    let lasts = until.duration_since(test.app.now().0).as_hours();
    assert!((11..=12).contains(&lasts), "{lasts} hours");
    assert_eq!(post("/sign-out", &[]).await.status(), StatusCode::SEE_OTHER);
    assert_eq!(get("/seedbox/money").await.status(), StatusCode::SEE_OTHER, "it ended");
}

/// What stands after the `#` of an address is put in by the page, and signs nobody in by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_browser_brings_a_token_after_the_hash() {
    let key = Key::new("ec", Algorithm::ES256);
    let server = KeyServer::start(&[&key]).await;
    let test = server.application(|_| {}).await;
    let token = key.sign(&claims(Uuid::new_v4(), json!({ "email": "somebody@example.org" })));
    let mut browser = crate::browser::Browser::open(&test.base, "elsewhere").await;
    browser.go("/sign-in").await;
    browser.press("Sign in at id.test").await;
    browser.until("With an account of").await;
    browser.looked_at("token").await;
    browser.go("/trial/inbox").await;
    browser.go(&format!("/sign-in/elsewhere?next=/seedbox/account#access_token={token}&token_type=bearer")).await;
    browser.until("You are signed in there as somebody@example.org").await;
    assert_eq!(browser.path().await, "/sign-in/elsewhere?next=/seedbox/account", "the token is in no address any more");
    assert_eq!(people(&test).await, 0, "a link makes nobody and signs nobody in");
    browser.looked_at("come").await;
    browser.find("main button").await.click().await.unwrap();
    browser.until("You come with a sign-in of id.test").await;
    browser.looked_at("account").await;
    browser.go("/seedbox").await;
    browser.until("You have no box yet").await;
    // Long enough for a stream that ends by itself to be seen.
    tokio::time::sleep(Duration::from_secs(2)).await;
    browser.looked_at("home").await;
    browser.close().await;
}
