//! Notices of infringement and other complaints: what strangers send by the forms, what they are told, and what operators see
//! and do.

use jiff::SignedDuration;
use reqwest::{Method, StatusCode, redirect::Policy};
use seedplane::{accounts::Role, mailer};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{TestApp, World};

/// Whoever sends a form from a network address.
struct Stranger {
    http: reqwest::Client,
    base: String,
    from: String,
}

impl Stranger {
    fn new(test: &TestApp, from: &str) -> Self {
        let http = reqwest::Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
        Self { http, base: test.base.clone(), from: from.to_owned() }
    }

    async fn send(&self, path: &str, form: &Value) -> (StatusCode, String) {
        let request = self.http.post(format!("{}{path}", self.base)).header("x-forwarded-for", &self.from);
        let answer = request.header("accept", "text/html").form(form).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    /// Sends what is taken, and answers its reference.
    async fn sends(&self, path: &str, form: &Value) -> String {
        let (status, page) = self.send(path, form).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        let (_, rest) = page.split_once("id=\"reference\">").unwrap_or_else(|| panic!("{page}"));
        rest.split('<').next().unwrap().to_owned()
    }
}

/// A notice that says all that one has to.
fn notice(location: &str) -> Value {
    json!({
        "form_id": Uuid::now_v7(), "name": "Ada Lovelace", "email": "ada@rights.example", "address": "1 Engine Street\r\nLondon",
        "telephone": "", "rights_holder": "The Analytical Society", "work": "Notes on the Engine", "location": location,
        "details": "", "good_faith": "yes", "accurate": "yes", "signature": "ada lovelace",
    })
}

fn with(mut form: Value, field: &str, value: &str) -> Value {
    form[field] = json!(value);
    form
}

/// Gives a box an address of the real world.
async fn move_to(test: &TestApp, id: &str, url: &str) {
    let owner = test.world.owner().await;
    sqlx::query("update seedbox_resources set web_url = $2, version = version + 1 where id = $1")
        .bind(Uuid::parse_str(id).unwrap())
        .bind(url)
        .execute(&owner)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_notice_is_stored_answered_by_mail_and_closed_by_an_operator_with_a_reason() {
    let test = TestApp::new().await;
    let (operator, buyer, other) = (test.person(Role::Operator).await, test.customer().await, test.customer().await);
    let (named, beside) = (test.active_box(&buyer, 1500).await, test.active_box(&other, 1500).await);
    move_to(&test, &named, "https://203-0-113-7.boxes.example/").await;
    move_to(&test, &beside, "http://203.0.113.7:8443/").await;

    let stranger = Stranger::new(&test, "198.51.100.1");
    let form = notice("203.0.113.7:51413 at 14:05 UTC\nhttps://203-0-113-7.boxes.example/file");
    let reference = stranger.sends("/dmca", &form).await;
    assert_eq!(stranger.sends("/dmca", &form).await, reference, "sent twice it is one");
    let (status, page) = stranger.send("/dmca", &with(form.clone(), "work", "Another work")).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(page.contains(&reference) && page.contains("Another work"), "{page}");

    // A mail with the reference, and with nothing that was typed: nobody mails their words to others through us.
    test.idle().await;
    let inbox = test.call(None, Method::GET, "/trial/inbox", None).await.1;
    let inbox = inbox.as_str().unwrap();
    assert!(
        inbox.contains("ada@rights.example") && inbox.contains(&format!("Your notice of infringement {reference}")),
        "{inbox}"
    );
    assert!(!inbox.contains("Notes on the Engine") && !inbox.contains("Lovelace"), "{inbox}");

    // One alert for all of them, which says nothing that a stranger wrote.
    let second = stranger.sends("/abuse", &json!({
        "form_id": Uuid::now_v7(), "kind": "attack", "name": "B", "email": "b@example.org", "location": "192.0.2.1",
        "details": "scans", "accurate": "yes", "work": "not asked for here",
    }))
    .await;
    let alerts = test.get(&operator, "/api/operator/alerts").await;
    let of_reports: Vec<&Value> =
        alerts.as_array().unwrap().iter().filter(|alert| alert["kind"] == "abuse_reports").collect();
    assert_eq!(of_reports.len(), 1, "{alerts}");
    assert!(of_reports[0]["detail"].as_str().unwrap().starts_with(&reference), "{alerts}");

    let listed = test.get(&operator, "/api/operator/reports").await;
    let references: Vec<&str> =
        listed.as_array().unwrap().iter().map(|one| one["reference"].as_str().unwrap()).collect();
    assert_eq!(references, [second.as_str(), reference.as_str()], "newest first");
    let path = format!("/api/operator/reports/{}", listed[1]["id"].as_str().unwrap());
    let shown = test.get(&operator, &path).await;
    assert_eq!(
        (shown["address"].as_str(), shown["signature"].as_str(), shown["kind"].as_str()),
        (Some("1 Engine Street\nLondon"), Some("ada lovelace"), Some("copyright"))
    );
    // Both answer at that address; one is named by its own.
    let candidates: Vec<(&str, bool)> = shown["candidates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["resource_id"].as_str().unwrap(), one["named"].as_bool().unwrap()))
        .collect();
    assert_eq!(candidates, [(named.as_str(), true), (beside.as_str(), false)]);
    assert_eq!(test.get(&operator, &format!("/api/operator/resources/{named}")).await["status"], "active");

    // Closing says what came of it and why; a box with "acted on", and with nothing else.
    let close = async |path: &str, body: Value| {
        let (status, answer) = test.call(Some(&operator), Method::POST, &format!("{path}/close"), Some(body)).await;
        (status.as_u16(), answer)
    };
    for wrong in [
        json!({ "outcome": "acted_on", "reason": "x" }),
        json!({ "outcome": "acted_on", "resource_id": Uuid::now_v7(), "reason": "x" }),
        json!({ "outcome": "rejected", "resource_id": named, "reason": "x" }),
        json!({ "outcome": "not_ours", "reason": " " }),
        json!({ "outcome": "ignored", "reason": "x" }),
    ] {
        assert_eq!(close(&path, wrong.clone()).await.0, 422, "{wrong}");
    }
    let body = json!({ "outcome": "acted_on", "resource_id": named, "reason": "suspended for abuse, ticket 5" });
    let (status, closed) = close(&path, body.clone()).await;
    assert_eq!((status, closed["outcome"].as_str()), (200, Some("acted_on")), "{closed}");
    assert_eq!(close(&path, body).await.0, 409);
    assert_eq!(closed["candidates"][0]["acted_on_before"], 0, "it is none before itself");
    let again = stranger.sends("/dmca", &notice("http://203.0.113.7:8443/")).await;
    let newest = test.get(&operator, "/api/operator/reports?open=true").await[0].clone();
    assert_eq!(newest["reference"], again);
    let newest = format!("/api/operator/reports/{}", newest["id"].as_str().unwrap());
    let shown = test.get(&operator, &newest).await["candidates"].clone();
    let counted: Vec<(&str, i64)> = shown
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["resource_id"].as_str().unwrap(), one["acted_on_before"].as_i64().unwrap()))
        .collect();
    assert_eq!(
        counted,
        [(beside.as_str(), 0), (named.as_str(), 1)],
        "what was acted on before stands beside the customer"
    );
    assert_eq!(close(&newest, json!({ "outcome": "rejected", "reason": "the same once more" })).await.0, 200);
    let open = test.get(&operator, "/api/operator/reports?open=true").await;
    assert_eq!((open.as_array().unwrap().len(), open[0]["reference"].as_str()), (1, Some(second.as_str())));
    let alert = async || test.get(&operator, "/api/operator/alerts").await.to_string().contains("abuse_reports");
    assert!(alert().await, "one is open");
    let last = format!("/api/operator/reports/{}", open[0]["id"].as_str().unwrap());
    assert_eq!(test.get(&operator, &last).await["work"], "", "what the form does not ask for is not kept");
    let (status, _) = close(&last, json!({ "outcome": "not_ours", "reason": "an address of somebody else" })).await;
    assert_eq!((status, alert().await), (200, false), "none is open");

    let events: Vec<(String, String, String)> = sqlx::query_as(
        "select action, actor, coalesce(reason, '') || coalesce(after::text, '') from seedbox_audit_events
         where subject_kind = 'report' order by id",
    )
    .fetch_all(&test.app.pool)
    .await
    .unwrap();
    let actions: Vec<&str> = events.iter().map(|(action, ..)| action.as_str()).collect();
    assert_eq!(
        actions,
        ["report.filed", "report.filed", "report.closed", "report.filed", "report.closed", "report.closed"]
    );
    assert!(events.iter().all(|(.., text)| !text.contains("Ada") && !text.contains("rights.example")), "{events:?}");
    assert!(events[2].1.starts_with("operator:") && events[2].2.contains("ticket 5"), "{events:?}");
    test.assert_sound().await;
}

#[tokio::test]
async fn what_is_wrong_is_said_at_its_field_and_what_was_typed_stays() {
    let test = World::new().await.start(false).await;
    let stranger = Stranger::new(&test, "198.51.100.2");
    let (status, page) = stranger.send("/dmca", &json!({})).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    for field in
        ["name", "email", "address", "rights_holder", "work", "location", "good_faith", "accurate", "signature"]
    {
        assert!(page.contains(&format!("id=\"{field}-wrong\"")), "{field}: {page}");
    }
    assert!(!page.contains("id=\"telephone-wrong\"") && !page.contains("id=\"details-wrong\""), "{page}");

    let hostile = "</textarea><script>alert(1)</script> \"quoted\" & <b>";
    let long = "x".repeat(2001);
    for (field, value, says) in [
        ("signature", "Charles Babbage", "The signature is not the name above"),
        ("email", "ada", "An e-mail address has a name, an @ and a domain"),
        ("work", long.as_str(), "It has 2001 characters, and 2000 at most are kept"),
        ("good_faith", "", "A notice needs this statement"),
    ] {
        let form = with(with(notice("203.0.113.7"), "details", hostile), field, value);
        let (status, page) = stranger.send("/dmca", &form).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{field}");
        assert!(page.contains(says) && page.contains("nothing was sent yet"), "{says}: {page}");
        assert_eq!(page.matches("class=\"wrong\"").count(), 1, "{field}: {page}");
        for typed in [
            "value=\"The Analytical Society\"",
            "\nNotes on the Engine</textarea>",
            "\n1 Engine Street\nLondon</textarea>",
        ] {
            assert!(page.contains(typed) || field == "work", "{typed} stays: {page}");
        }
        assert!(!page.contains("<script>alert") && !page.contains("<b>"), "{page}");
    }
    let (status, _) = stranger.send("/dmca", &with(notice("x"), "work", &"x".repeat(70_000))).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let kept: i64 = sqlx::query_scalar("select count(*) from abuse_reports").fetch_one(&test.app.pool).await.unwrap();
    assert_eq!(kept, 0);
}

#[tokio::test]
async fn a_report_full_of_markup_is_text_to_whoever_reads_it() {
    let test = World::new().await.start(false).await;
    let stranger = Stranger::new(&test, "198.51.100.3");
    let bad = "<img src=x onerror=alert(1)>\"'&";
    let mut form = notice(bad);
    for field in ["name", "signature", "address", "telephone", "rights_holder", "work", "details"] {
        form = with(form, field, bad);
    }
    stranger.sends("/dmca", &form).await;
    let email = format!("{}@example.org", Uuid::new_v4().simple());
    let owner = test.world.owner().await;
    let session = test.call(
        None,
        Method::POST,
        "/api/auth/sign-up",
        Some(json!({ "email": email, "password": "a long enough password" })),
    );
    let session = session.await.1["token"].as_str().unwrap().to_owned();
    sqlx::query("update users set role = 'support' where email = $1").bind(&email).execute(&owner).await.unwrap();
    let read = async |path: &str| {
        let request =
            stranger.http.get(format!("{}{path}", test.base)).header("cookie", format!("seedplane-session={session}"));
        request.send().await.unwrap().text().await.unwrap()
    };
    let list = read("/operator/reports").await;
    let id = list.split("/operator/reports/").nth(1).unwrap().split('"').next().unwrap();
    let page = read(&format!("/operator/reports/{id}")).await;
    for page in [&list, &page] {
        assert!(page.contains("&#60;img src=x onerror=alert(1)&#62;") && !page.contains("<img"), "{page}");
    }
    assert!(!page.contains("Close the report"), "support reads");
}

#[tokio::test]
async fn one_sender_fills_nobodys_day() {
    let test = World::new().await.start(false).await;
    let operator = test.person(Role::Operator).await;
    let send = async |from: &str, email: &str| {
        let form = with(notice("203.0.113.7"), "email", email);
        Stranger::new(&test, from).send("/dmca", &form).await
    };
    for n in 0..5 {
        assert_eq!(send("198.51.100.4", &format!("{n}@example.org")).await.0, StatusCode::OK);
    }
    let (status, page) = send("198.51.100.4", "6@example.org").await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(page.contains("60 minutes") && page.contains("Notes on the Engine"), "what was typed stays: {page}");
    assert_eq!(send("198.51.100.5", "6@example.org").await.0, StatusCode::OK, "others are not kept from it");
    test.world.clock.set_offset(SignedDuration::from_mins(61));
    assert_eq!(send("198.51.100.4", "6@example.org").await.0, StatusCode::OK);

    // Many at once are counted, too; and so are those that wait, by the mailbox that would be filled.
    let mut at_once = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let stranger = Stranger::new(&test, "198.51.100.6");
        let form = with(notice("203.0.113.7"), "email", "many@example.org");
        at_once.spawn(async move { stranger.send("/dmca", &form).await.0 });
    }
    let taken = at_once.join_all().await.into_iter().filter(StatusCode::is_success).count();
    assert_eq!(taken, 5);
    for n in 5..20 {
        assert_eq!(send(&format!("198.51.100.{}", 100 + n), "many@example.org").await.0, StatusCode::OK, "{n}");
    }
    let (status, page) = send("198.51.100.200", "MANY@example.org").await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(page.contains("20 reports of yours wait"), "{page}");
    let open = test.get(&operator, "/api/operator/reports?open=true").await;
    assert_eq!(open.as_array().unwrap().len(), 27);
    let last = open[20]["id"].as_str().unwrap();
    let rest = test.get(&operator, &format!("/api/operator/reports?after={last}")).await;
    assert_eq!(rest.as_array().unwrap()[..], open.as_array().unwrap()[21..]);
    let id = open[26]["id"].as_str().unwrap();
    let body = json!({ "outcome": "rejected", "reason": "says too little" });
    test.post(&operator, &format!("/api/operator/reports/{id}/close"), body).await;
    let all = test.get(&operator, "/api/operator/reports").await;
    assert_eq!(all[26]["id"].as_str().unwrap(), id, "closed ones come last");
}

/// What anybody may type into a form says nothing of the mailer, by which suspensions wait.
#[tokio::test]
async fn a_strangers_mailbox_that_takes_nothing_stops_nothing_and_is_given_up() {
    let (test, smtp) = crate::mails::with_smtp().await;
    smtp.refuse("ada@rights.example");
    Stranger::new(&test, "198.51.100.7").sends("/dmca", &notice("203.0.113.7")).await;
    for tries in 1..=8 {
        smtp.until_offered(Some("ada@rights.example"), tries).await;
        test.idle().await;
        let failing = mailer::is_failing(&test.app.pool, test.app.now()).await.unwrap();
        assert!(!failing, "after {tries} tries");
        test.advance(SignedDuration::from_secs((60 << (tries - 1)) + 1)).await;
    }
    test.idle().await;
    let waiting: i64 = sqlx::query_scalar("select count(*) from mail_outbox").fetch_one(&test.app.pool).await.unwrap();
    assert_eq!((waiting, smtp.offered(Some("ada@rights.example"))), (0, 8));
}

#[tokio::test]
async fn a_mail_to_somebody_without_an_account_is_text_and_html() {
    let (test, smtp) = crate::mails::with_smtp().await;
    let reference = Stranger::new(&test, "198.51.100.8").sends("/dmca", &notice("203.0.113.7")).await;
    smtp.until_offered(Some("ada@rights.example"), 1).await;
    test.idle().await;
    let taken = smtp.taken();
    let [mail] = taken.as_slice() else { panic!("{taken:?}") };
    assert_eq!(mail.to, ["ada@rights.example"]);
    let mail = crate::support::smtp::Part::read(&mail.data);
    assert_eq!(mail.subject(), format!("Your notice of infringement {reference}"));
    let parts = mail.parts();
    assert!(parts.len() == 2 && parts.iter().all(|part| part.content().contains(&reference)), "{parts:?}");
}
