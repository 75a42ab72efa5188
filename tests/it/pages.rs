//! The pages over plain HTTP, as a browser without scripts sees them, and as somebody who means no good does.

use std::sync::Arc;

use reqwest::{Method, Response, StatusCode, header, redirect::Policy};
use secrecy::{ExposeSecret, SecretString};
use seedplane::accounts::{self, Role, SignIn};
use serde_json::json;
use uuid::Uuid;

use crate::support::{Person, TestApp, World};

/// A browser with a session.
struct Visitor {
    http: reqwest::Client,
    base: String,
    cookie: Option<String>,
}

impl Visitor {
    fn new(test: &TestApp) -> Self {
        let http = reqwest::Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
        Self { http, base: test.base.clone(), cookie: None }
    }

    async fn of(test: &TestApp, person: &Person) -> Self {
        let email = accounts::email_of(&test.app.pool, person.id).await.unwrap().unwrap();
        let password = SecretString::from("a long enough password");
        let sign_in = SignIn { email: &email, password, code: None, from: "test", user_agent: None };
        let opened = accounts::sign_in(&test.app, sign_in).await.unwrap();
        let cookie = format!("seedplane-session={}", opened.token.expose_secret());
        Self { cookie: Some(cookie), ..Self::new(test) }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base)).header("accept", "text/html");
        match &self.cookie {
            Some(cookie) => request.header("cookie", cookie),
            None => request,
        }
    }

    async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    async fn post(&self, path: &str, form: serde_json::Value) -> Response {
        self.request(Method::POST, path).form(&form).send().await.unwrap()
    }
}

fn location(response: &Response) -> &str {
    response.headers()[header::LOCATION].to_str().unwrap()
}

/// The value of a hidden field.
fn field(page: &str, name: &str) -> String {
    let (_, rest) =
        page.split_once(&format!("name=\"{name}\" value=\"")).unwrap_or_else(|| panic!("no {name}: {page}"));
    rest.split('"').next().unwrap().to_owned()
}

/// A page as somebody sees it.
pub async fn page_of(test: &TestApp, person: &Person, path: &str) -> String {
    Visitor::of(test, person).await.get(path).await.text().await.unwrap()
}

/// Sends a form of a page; answers with the status, and the page that says why it was refused.
pub async fn sent(test: &TestApp, person: &Person, path: &str, form: serde_json::Value) -> (u16, String) {
    let answer = Visitor::of(test, person).await.post(path, form).await;
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn a_form_makes_one_thing_however_often_it_is_sent_and_asks_for_the_terms() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    test.top_up(&buyer, 4000).await;
    let plan = test.plan(1500).await;
    let visitor = Visitor::of(&test, &buyer).await;
    let page = visitor.get(&format!("/seedbox/order?plan={plan}")).await.text().await.unwrap();
    let form_id = field(&page, "form_id");

    let refused = visitor.post("/seedbox/orders", json!({ "form_id": form_id, "plan_id": plan })).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert!(refused.text().await.unwrap().contains("Tick that you accept the terms"));
    let other = json!({ "form_id": form_id, "plan_id": plan, "terms": "000000000000" });
    assert_eq!(visitor.post("/seedbox/orders", other).await.status(), StatusCode::UNPROCESSABLE_ENTITY);

    let form = json!({ "form_id": form_id, "plan_id": plan, "terms": test.app.brand.terms_version() });
    let (one, two) = tokio::join!(visitor.post("/seedbox/orders", form.clone()), visitor.post("/seedbox/orders", form));
    assert_eq!((one.status(), two.status()), (StatusCode::SEE_OTHER, StatusCode::SEE_OTHER));
    assert_eq!(location(&one), location(&two));
    let orders = test.get(&buyer, "/api/seedbox/orders").await;
    assert_eq!(orders.as_array().unwrap().len(), 1, "{orders}");
    // What was accepted is kept word for word, and it is asked for once.
    let body: String = sqlx::query_scalar(
        "select v.body from terms_acceptances a join terms_versions v using (version) where a.user_id = $1",
    )
    .bind(buyer.id.0)
    .fetch_one(&test.app.pool)
    .await
    .unwrap();
    assert_eq!(body, test.app.brand.terms());
    let page = visitor.get(&format!("/seedbox/order?plan={plan}")).await.text().await.unwrap();
    assert!(page.contains("You have accepted") && !page.contains("type=\"checkbox\""));
    test.assert_sound().await;
}

#[tokio::test]
async fn no_other_site_makes_a_browser_do_anything() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    let visitor = Visitor::of(&test, &buyer).await;
    let path = format!("/seedbox/boxes/{id}/suspend");
    let form = json!({ "form_id": Uuid::now_v7() });
    for (site, origin) in [("cross-site", "https://evil.example"), ("same-site", "https://evil.example.org")] {
        let request = visitor.request(Method::POST, &path).header("sec-fetch-site", site).header("origin", origin);
        let answer = request.form(&form).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{site}");
        assert!(answer.text().await.unwrap().contains("not sent from a page of ours"));
    }
    let older = visitor.request(Method::POST, &path).header("origin", "https://evil.example").form(&form);
    assert_eq!(older.send().await.unwrap().status(), StatusCode::FORBIDDEN, "a browser that says only where it is");
    let shown = test.get(&buyer, &format!("/api/seedbox/resources/{id}")).await;
    assert_eq!((shown["status"].as_str(), shown["operations"].as_array().unwrap().len()), (Some("active"), 0));
    let ours = visitor.request(Method::POST, &path).header("sec-fetch-site", "same-origin").form(&form);
    assert_eq!(ours.send().await.unwrap().status(), StatusCode::SEE_OTHER);

    // The API takes no cookies at all.
    let request = visitor.request(Method::GET, "/api/seedbox/resources");
    assert_eq!(request.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_session_is_kept_from_scripts_and_ends_where_it_is_ended() {
    let test = TestApp::new().await;
    let visitor = Visitor::new(&test);
    let form = json!({ "email": "new@example.org", "password": "a long enough password", "next": "//evil.example" });
    let made = visitor.post("/sign-up", form).await;
    assert_eq!((made.status(), location(&made)), (StatusCode::SEE_OTHER, "/seedbox"));
    let cookie = made.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    for part in ["seedplane-session=sps_", "HttpOnly", "SameSite=Lax", "Path=/", "Max-Age="] {
        assert!(cookie.contains(part), "{part}: {cookie}");
    }
    let visitor = Visitor { cookie: cookie.split(';').next().map(str::to_owned), ..visitor };
    assert_eq!(visitor.get("/seedbox").await.status(), StatusCode::OK);
    let out = visitor.post("/sign-out", json!({})).await;
    assert!(out.headers()[header::SET_COOKIE].to_str().unwrap().contains("Max-Age=0"));
    let after = visitor.get("/seedbox").await;
    assert_eq!((after.status(), location(&after)), (StatusCode::SEE_OTHER, "/sign-in?next=/seedbox"));

    // By https the cookie is bound to this host, and never sent in the clear.
    let mut test = test;
    test.app.public_url = "https://boxes.example.net".into();
    let secure = test.served_again().await;
    let form = json!({ "email": "new@example.org", "password": "a long enough password" });
    let made = Visitor::new(&secure).post("/sign-in", form).await;
    let cookie = made.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    assert!(cookie.starts_with("__Host-seedplane-session=") && cookie.contains("Secure"), "{cookie}");
}

#[tokio::test]
async fn a_page_that_is_open_is_kept_up_to_date_and_ends_with_its_session() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let visitor = Visitor::of(&test, &buyer).await;
    let mut stream = visitor.get("/seedbox/live").await;
    assert_eq!(stream.headers()[header::CONTENT_TYPE], "text/event-stream");
    let first = String::from_utf8(stream.chunk().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(first.starts_with("data:") && first.contains("$0.00"), "{first}");
    test.top_up(&buyer, 1234).await;
    let next = String::from_utf8(stream.chunk().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(next.contains("$12.34"), "{next}");
    visitor.post("/sign-out", json!({})).await;
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), async {
        while let Some(chunk) = stream.chunk().await.unwrap() {
            assert!(!String::from_utf8_lossy(&chunk).contains("$99"), "nothing new is shown");
        }
    });
    ended.await.expect("what is shown ends with the session");
}

#[tokio::test]
async fn a_forgotten_password_is_replaced_by_a_mail_and_a_link_signs_nobody_in() {
    let test = TestApp::new().await;
    let visitor = Visitor::new(&test);
    let form = json!({ "email": "forgot@example.org", "password": "a long enough password" });
    visitor.post("/sign-up", form).await;
    for email in ["forgot@example.org", "nobody@example.org"] {
        let asked = visitor.post("/forgot-password", json!({ "email": email })).await;
        assert!(asked.text().await.unwrap().contains("If there is an account with this address"), "{email}");
    }
    test.until_handed("password_reset", 1).await;
    let inbox = visitor.get("/trial/inbox").await.text().await.unwrap();
    let link = inbox.split("href=\"").find(|rest| rest.contains("/reset/")).unwrap().split('"').next().unwrap();
    let path = link.strip_prefix(&test.base).unwrap();
    // Whoever looks, a mail scanner too, changes nothing.
    for _ in 0..2 {
        assert_eq!(visitor.get(path).await.status(), StatusCode::OK);
    }
    let weak = visitor.post(path, json!({ "new": "short" })).await;
    assert_eq!(weak.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let set = visitor.post(path, json!({ "new": "another long enough one" })).await;
    assert!(set.headers().get(header::SET_COOKIE).is_none() && set.status() == StatusCode::OK);
    assert_eq!(visitor.post(path, json!({ "new": "yet another long one" })).await.status(), StatusCode::GONE);
    assert_eq!(visitor.get(path).await.status(), StatusCode::GONE);
    let sign_in = |password: &str| json!({ "email": "forgot@example.org", "password": password });
    assert_eq!(visitor.post("/sign-in", sign_in("a long enough password")).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(visitor.post("/sign-in", sign_in("another long enough one")).await.status(), StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn a_link_of_the_trial_signs_in_once_and_only_whoever_presses_the_button() {
    let test = TestApp::new().await;
    let person = test.customer().await;
    let token = test.call(Some(&person), Method::POST, "/api/trial/sign-in-links", Some(json!({}))).await;
    assert_eq!(token.0, StatusCode::FORBIDDEN, "an API token makes no session");
    let visitor = Visitor::of(&test, &person).await;
    let session = visitor.cookie.clone().unwrap().split_once('=').unwrap().1.to_owned();
    let session = Person { id: person.id, token: session };
    let link = test.post(&session, "/api/trial/sign-in-links", json!({})).await;
    let path = link["url"].as_str().unwrap().strip_prefix(&test.base).unwrap().to_owned();
    let stranger = Visitor::new(&test);
    assert!(stranger.get(&path).await.headers().get(header::SET_COOKIE).is_none());
    let entered = stranger.post(&path, json!({})).await;
    assert_eq!((entered.status(), location(&entered)), (StatusCode::SEE_OTHER, "/seedbox"));
    let cookie = entered.headers()[header::SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
    let home = Visitor { cookie: Some(cookie), ..stranger };
    let email = accounts::email_of(&test.app.pool, person.id).await.unwrap().unwrap();
    assert!(home.get("/seedbox").await.text().await.unwrap().contains(&email));
    assert_eq!(home.post(&path, json!({})).await.status(), StatusCode::GONE);
}

#[tokio::test]
async fn outside_the_trial_the_operators_pages_ask_for_a_second_factor() {
    let mut test = World::new().await.start(false).await;
    let operator = test.person(Role::Operator).await;
    let visitor = Visitor::of(&test, &operator).await;
    assert_eq!(visitor.get("/operator").await.status(), StatusCode::OK, "in the trial a password is enough");
    test.app.trial = false;
    let real = test.served_again().await;
    let visitor = Visitor { base: real.base.clone(), ..visitor };
    for path in ["/operator", "/operator/audit", "/operator/boxes"] {
        let answer = visitor.get(path).await;
        assert_eq!(
            (answer.status(), location(&answer)),
            (StatusCode::SEE_OTHER, "/seedbox/account?done=factor-needed")
        );
    }
    let page = visitor.get("/seedbox/account?done=factor-needed").await.text().await.unwrap();
    assert!(page.contains("need a second factor"), "{page}");
    for path in ["/trial/inbox", "/trial/enter/x"] {
        assert_eq!(visitor.get(path).await.status(), StatusCode::NOT_FOUND, "{path} is the trial's");
    }
    let answer = visitor.post("/operator/alerts/resolve", json!({ "kind": "x", "subject": "x", "reason": "x" })).await;
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn an_operators_brand_is_on_every_page_and_what_they_wrote_is_text() {
    let mut test = World::new().await.start(false).await;
    let brand = seedplane::brand::Brand {
        name: Some("Harbour <&>".to_owned()),
        colour: Some(("#112233".to_owned(), "#aabbcc".to_owned())),
        contact_email: Some("help@harbour.example".to_owned()),
        dmca_agent: Some("A. Agent <script>".to_owned()),
        terms: Some("# Use\nBe kind.\n\n<b>Nothing</b> else.".to_owned()),
        ..seedplane::brand::Brand::default()
    };
    test.app.brand = Arc::new(brand);
    let branded = test.served_again().await;
    let visitor = Visitor::new(&branded);
    let page = async |path: &str| visitor.get(path).await.text().await.unwrap();
    let terms = page("/terms").await;
    assert!(terms.contains("<h2>Use</h2>") && terms.contains("Be kind.") && !terms.contains("<b>Nothing"), "{terms}");
    assert!(terms.contains("Harbour") && !terms.contains("Harbour <&>") && terms.contains("help@harbour.example"));
    assert!(!page("/dmca").await.contains("<script>"));
    assert!(page("/brand.css").await.contains("--accent: #112233"));
}
