//! Mails over SMTP: what arrives, and what becomes of one that is not taken.

use std::{sync::Arc, time::Instant};

use jiff::SignedDuration;
use reqwest::StatusCode;
use secrecy::SecretString;
use seedplane::{
    accounts::Role,
    brand::Brand,
    clock::Time,
    mailer::{self, SmtpMailer, templates},
    money::Usd,
};
use serde_json::json;

use crate::support::{
    Person, TestApp, World,
    smtp::{Part, Smtp},
};

/// An application that sends its mails to a server of the test's.
pub async fn with_smtp() -> (TestApp, Smtp) {
    let smtp = Smtp::start().await;
    let brand = Brand {
        name: Some("Harbour & Sons".to_owned()),
        contact_email: Some("help@harbour.example".to_owned()),
        ..Brand::default()
    };
    let url = SecretString::from(format!("smtp://{}", smtp.address));
    let mailer = SmtpMailer::new(&url, "Harbour <mail@harbour.example>", &brand).unwrap();
    let mut world = World::new().await;
    world.mailer = Some(Arc::new(mailer));
    (world.start(true).await, smtp)
}

/// The words that a page shows.
fn words_of(html: &str) -> String {
    let (_, body) = html.split_once("</head>").unwrap();
    let mut shown = String::new();
    for piece in body.split('<').skip(1) {
        let (_, text) = piece.split_once('>').unwrap();
        shown.push_str(text);
        shown.push(' ');
    }
    for (entity, letter) in [("&#60;", "<"), ("&#62;", ">"), ("&#34;", "\""), ("&#39;", "'"), ("&#38;", "&")] {
        shown = shown.replace(entity, letter);
    }
    words(&shown)
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn email(test: &TestApp, person: &Person) -> String {
    sqlx::query_scalar("select email from users where id = $1")
        .bind(person.id.0)
        .fetch_one(&test.app.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_mail_says_the_same_as_text_and_as_html_whatever_a_box_is_called() {
    let (test, smtp) = with_smtp().await;
    let buyer = test.customer().await;
    let label = "<script>alert('x')</script> & Ünï ☃ =41\r\nBcc: spy@example.org\r\n.\r\nQUIT";
    let plan = test.plan_of(label, "small", 1500).await;
    test.top_up(&buyer, 1500).await;
    let order = test.post(&buyer, "/api/seedbox/orders", json!({ "plan_id": plan })).await;
    let path = format!("/api/seedbox/resources/{}", order["resource_id"].as_str().unwrap());
    test.until(&buyer, &path, |resource| resource["status"] == "active").await;
    test.until_handed("box_ready", 1).await;

    let taken = smtp.taken();
    let to = email(&test, &buyer).await;
    assert!(taken.iter().all(|mail| mail.to == [to.as_str()]), "{taken:?}");
    let is_ready = |mail: &Part| mail.subject().ends_with("is ready");
    let mails: Vec<Part> = taken.iter().map(|mail| Part::read(&mail.data)).filter(is_ready).collect();
    let [mail] = mails.as_slice() else { panic!("{taken:?}") };
    let mut names: Vec<&str> = mail.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let expected = ["auto-submitted", "content-type", "date", "from", "message-id", "mime-version", "subject", "to"];
    assert_eq!(names, expected, "no header comes from a name");
    assert_eq!(mail.subject(), format!("{} is ready", words(label)));
    assert_eq!((mail.header("auto-submitted"), mail.header("to")), ("auto-generated", to.as_str()));
    let date = jiff::fmt::rfc2822::parse(mail.header("date")).unwrap().timestamp();
    assert!(jiff::Timestamp::now().duration_since(date).abs() < SignedDuration::from_mins(2), "{date}");
    assert!(mail.header("content-type").starts_with("multipart/alternative"), "{:?}", mail.headers);

    let parts = mail.parts();
    let kinds: Vec<&str> = parts.iter().map(|part| part.header("content-type")).collect();
    assert_eq!(kinds, ["text/plain; charset=utf-8", "text/html; charset=utf-8"]);
    let (text, html) = (parts[0].content(), parts[1].content());
    println!("{html}");
    assert!(words(&text).starts_with(&format!("Your seedbox \"{}\" is ready.", words(label))), "{text}");
    assert_eq!(words_of(&html), format!("Harbour & Sons {} help@harbour.example", words(&text)));
    assert!(html.contains("&#60;script&#62;") && !html.contains("<script"), "{html}");

    let link = text.lines().find(|line| line.contains("/link/spl_")).unwrap();
    assert!(html.contains(&format!("<a href=\"{link}\"")), "{html}");
    let open = async || {
        let answer = test.http.post(link).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    };
    let (status, page) = open().await;
    assert!(status == StatusCode::OK && page.contains("<dt>Password</dt>"), "{status} {page}");
    assert_eq!(open().await.0, StatusCode::GONE, "once");
}

#[tokio::test]
async fn a_mail_that_is_put_off_twice_is_taken_once() {
    let (test, smtp) = with_smtp().await;
    let buyer = test.customer().await;
    smtp.is_busy_for(2);
    let handed = async || -> (Time, Option<Time>, Option<Time>, Option<String>) {
        sqlx::query_as(
            "select m.created_at, m.handed_at, n.handed_at, m.last_error
             from mail_outbox m join notices n on n.id = m.notice_id",
        )
        .fetch_one(&test.app.pool)
        .await
        .unwrap()
    };
    test.top_up(&buyer, 1000).await;
    // Tried at once, a minute later, and two minutes after that.
    for (tries, pause) in [(1, 60), (2, 120)] {
        smtp.until_offered(None, tries).await;
        test.idle().await;
        test.advance(SignedDuration::from_secs(pause - 50)).await;
        test.idle().await;
        assert_eq!(smtp.offered(None), tries, "not before {pause} seconds have passed");
        let (_, of_mail, of_notice, error) = handed().await;
        assert_eq!((of_mail, of_notice), (None, None), "not taken is not handed over");
        assert!(error.as_ref().is_some_and(|error| error.contains("come back later")), "{error:?}");
        test.advance(SignedDuration::from_secs(51)).await;
    }
    test.until_handed("topup_credited", 1).await;
    let (written, of_mail, of_notice, error) = handed().await;
    let taken = of_mail.unwrap();
    let earliest = Time(written.0 + SignedDuration::from_mins(3));
    assert!(earliest <= taken && taken <= test.app.now(), "written {written}, handed over {taken}");
    assert_eq!((of_notice, error), (of_mail, None));
    test.advance(SignedDuration::from_hours(5)).await;
    test.idle().await;
    assert_eq!((smtp.offered(None), smtp.taken().len()), (3, 1));
}

#[tokio::test]
async fn a_mailbox_that_refuses_for_good_is_reported_and_keeps_nobody_elses_mail() {
    let (test, smtp) = with_smtp().await;
    let (buyer, other, operator) = (test.customer().await, test.customer().await, test.person(Role::Operator).await);
    let (refused, welcome) = (email(&test, &buyer).await, email(&test, &other).await);
    smtp.refuse(&refused);
    test.top_up(&buyer, 1000).await;
    for tries in 1..8 {
        smtp.until_offered(Some(&refused), tries).await;
        test.top_up(&other, 1000).await;
        smtp.until_offered(Some(&welcome), tries).await;
        test.idle().await;
        let alerts = test.get(&operator, "/api/operator/alerts").await;
        assert!(!alerts.to_string().contains("mail"), "after {tries} tries: {alerts}");
        test.advance(SignedDuration::from_secs((60 << (tries - 1)) + 1)).await;
    }
    let is = |alert: &serde_json::Value| alert["kind"] == "mail_undeliverable";
    let alerts = test.until(&operator, "/api/operator/alerts", |all| all.as_array().unwrap().iter().any(is)).await;
    let alert = alerts.as_array().unwrap().iter().find(|alert| is(alert)).unwrap().to_string();
    for part in [buyer.id.to_string().as_str(), "refused 8 times", "no such mailbox"] {
        assert!(alert.contains(part), "{part}: {alert}");
    }
    assert_eq!((smtp.offered(Some(&refused)), smtp.taken().len()), (8, 7));
    assert!(smtp.taken().iter().all(|mail| mail.to == [welcome.as_str()]), "{:?}", smtp.taken());
    assert!(!alerts.to_string().contains("mailer_failing"), "one mailbox is not the mailer: {alerts}");
}

#[tokio::test]
async fn a_mail_server_that_hangs_keeps_no_box_waiting() {
    let (test, smtp) = with_smtp().await;
    smtp.hang();
    let mut connection = test.app.pool.acquire().await.unwrap();
    for n in 0..20 {
        let customer = test.customer().await;
        let notice = templates::topup_credited(customer.id, None, format!("hangs:{n}"), Usd::from_cents(100));
        mailer::notify_in(&mut connection, notice, test.app.now()).await.unwrap();
    }
    drop(connection);
    smtp.until_offered(None, 1).await;
    let buyer = test.customer().await;
    let started = Instant::now();
    test.active_box(&buyer, 1500).await;
    println!("a box after {:?}", started.elapsed());
    // Less than what the mailer waits for an answer: the box waited for none.
    assert!(started.elapsed().as_secs() < 15, "{:?}", started.elapsed());
    assert_eq!(smtp.taken().len(), 0);
}
