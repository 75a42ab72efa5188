//! The client on its own: signatures, answers, settings. How it gets on with the service is in `tests/it/payments_gateway.rs`.

use super::super::PaymentStatus;
use super::*;

const SECRET: &str = "whsecret_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const BUSINESS: &str = "b198c6dc-4c3b-4a54-994c-a750c1a580cd";
/// Made by the official SDK's signer.
const BODY: &str = r#"{"id":"evt_d084f959-c33c-4540-82b8-221181347639_1775551263","type":"payment.confirmed","data":{"payment_id":"d084f959-c33c-4540-82b8-221181347639","status":"confirmed","blockchain":"USDC_POL","amount_crypto":"25.01","payment_address":"0x2222222222222222222222222222222222222222","received_amount":25.01,"confirmed_at":"2026-04-07T08:41:03.000Z"},"created_at":"2026-04-07T08:41:03.001Z","business_id":"b198c6dc-4c3b-4a54-994c-a750c1a580cd"}"#;
const V1: &str = "c646cc399c47a1796f903010c8bdd6ca67a53e01b6366f277dca4e5b129adbf6";
const T: i64 = 1_775_551_263;

fn settings() -> Settings {
    Settings::new(API_URL, "cp_live_0123456789abcdef0123456789abcdef".into(), BUSINESS.parse().unwrap(), SECRET.into())
}

fn client() -> CoinPayPortal {
    CoinPayPortal::new(settings()).unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn signed(body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(format!("{T}.{body}").as_bytes());
    format!("t={T},v1={}", hex::encode(mac.finalize().into_bytes()))
}

#[test]
fn takes_what_the_official_sdk_signs() {
    let event = client().verify_webhook(Some(&format!("t={T},v1={V1}")), BODY.as_bytes(), at(T)).unwrap();
    assert_eq!(event.event_id, "evt_d084f959-c33c-4540-82b8-221181347639_1775551263");
    assert_eq!(event.payment_id.as_deref(), Some("d084f959-c33c-4540-82b8-221181347639"));
    assert_eq!(event.kind, "payment.confirmed");
    assert_eq!(event.status, Some(PaymentStatus::Confirmed));
    assert_eq!(event.business_id.to_string(), BUSINESS);
    assert_eq!(event.claimed_received, Some(Decimal::new(2501, 2)));
}

#[test]
fn takes_the_header_in_any_order_and_the_time_within_five_minutes() {
    let client = client();
    for header in [
        format!("t={T},v1={V1}"),
        format!("v1={V1},t={T}"),
        format!("t={T}, v1={V1}"),
        format!("t={T},v0=abc,v1={V1}"),
        format!(" t={T},v1={V1} "),
    ] {
        assert!(client.verify_webhook(Some(&header), BODY.as_bytes(), at(T)).is_ok(), "{header}");
    }
    let header = format!("t={T},v1={V1}");
    for (second, outcome) in [(T - 300, None), (T + 300, None), (T - 301, Some(())), (T + 301, Some(()))] {
        let refusal = client.verify_webhook(Some(&header), BODY.as_bytes(), at(second)).err();
        assert_eq!(refusal, outcome.map(|()| WebhookError::Stale), "{}", second - T);
    }
}

#[test]
fn refuses_every_other_signature() {
    let client = client();
    let refusal = |header: Option<&str>| client.verify_webhook(header, BODY.as_bytes(), at(T)).unwrap_err();
    assert_eq!(refusal(None), WebhookError::Missing);
    assert_eq!(refusal(Some("")), WebhookError::Missing);
    assert_eq!(refusal(Some("   ")), WebhookError::Missing);
    for header in [
        format!("sha256={V1}"),
        V1.to_owned(),
        format!("v1={V1}"),
        format!("t={T}"),
        format!("t={T},v1="),
        format!("t={T},v1={}", V1.to_uppercase()),
        format!("t={T},v1={}", &V1[..63]),
        format!("t={T},v1={V1}0"),
        format!("t={T},v1={V1}zz"),
        format!("t=,v1={V1}"),
        format!("t=-{T},v1={V1}"),
        format!("t=+{T},v1={V1}"),
        format!("t={T}.0,v1={V1}"),
        format!("t=0000{T},v1={V1}"),
        format!("t={T},t={T},v1={V1}"),
        format!("t={T},v1={V1},v1={V1}"),
        format!("t={T},v1={V1},"),
    ] {
        assert_eq!(refusal(Some(&header)), WebhookError::Malformed, "{header}");
    }
    let other = format!("t={T},v1={}", V1.replace('c', "d"));
    assert_eq!(refusal(Some(&other)), WebhookError::WrongSignature);
    let moved = format!("t={},v1={V1}", T + 1);
    assert_eq!(refusal(Some(&moved)), WebhookError::WrongSignature);
    let padded = format!("t=0{T},v1={V1}");
    assert_eq!(refusal(Some(&padded)), WebhookError::WrongSignature, "the digits are signed as they stand");
    let header = format!("t={T},v1={V1}");
    for body in [BODY.replace("25.01", "99.01"), BODY.replace(',', ", "), String::new()] {
        let refusal = client.verify_webhook(Some(&header), body.as_bytes(), at(T));
        assert_eq!(refusal.unwrap_err(), WebhookError::WrongSignature);
    }
}

#[test]
fn reads_events_of_all_shapes() {
    let verify = |body: &str| client().verify_webhook(Some(&signed(body)), body.as_bytes(), at(T));
    let event = |body: &str| verify(&body.replace("$B", BUSINESS)).unwrap();
    let rich = event(
        r#"{"id":"evt_1","type":"payment.confirmed","data":{"payment_id":"p","received_amount":"5e-7"},"business_id":"$B"}"#,
    );
    assert_eq!(rich.claimed_received, Some(Decimal::new(5, 7)));
    assert_eq!(rich.status, Some(PaymentStatus::Confirmed), "without a status the kind tells it");
    let zero = event(
        r#"{"id":"e","type":"payment.forwarded","data":{"payment_id":"p","status":"forwarded","received_amount":"0"},"business_id":"$B"}"#,
    );
    assert_eq!((zero.claimed_received, zero.status), (None, Some(PaymentStatus::Forwarded)));
    let test =
        event(r#"{"id":"e","type":"test.webhook","data":{"payment_id":"test_1","status":"test"},"business_id":"$B"}"#);
    assert_eq!((test.status, test.payment_id.as_deref()), (None, Some("test_1")));
    let escrow = event(r#"{"id":"evt_esc_1","type":"escrow.funded","data":{"escrow_id":"x"},"business_id":"$B"}"#);
    assert_eq!((escrow.status, escrow.payment_id), (None, None));
    let flat = event(
        r#"{"event":"business_collection.forwarded","payment_id":"p","business_id":"$B","type":"business_collection"}"#,
    );
    assert_eq!((flat.kind.as_str(), flat.payment_id.as_deref()), ("business_collection.forwarded", Some("p")));
    assert!(flat.event_id.starts_with("sha256:"));

    for body in ["", "null", "[]", "{", r#"{"type":"payment.confirmed"}"#, r#"{"business_id":"$B"}"#] {
        let refusal = verify(&body.replace("$B", BUSINESS)).unwrap_err();
        assert_eq!(refusal, WebhookError::Unreadable, "{body}");
        assert!(refusal.is_authentic());
    }
    let other =
        r#"{"id":"e","type":"payment.confirmed","data":{},"business_id":"00000000-0000-0000-0000-000000000000"}"#;
    assert_eq!(verify(other).unwrap_err(), WebhookError::OtherBusiness);
}

#[test]
fn says_what_to_do_next() {
    let outcome = |status: u16, body: &str, after: After| {
        let answer = Answer { status: StatusCode::from_u16(status).unwrap(), retry_after: None, body: body.into() };
        understood(&answer, after).err().map(|error| {
            let debug = format!("{error:?}");
            debug.split([' ', '{']).next().unwrap_or_default().to_owned()
        })
    };
    let write = |status, body| outcome(status, body, After::Write);
    assert_eq!(write(200, r#"{"success":true}"#), None);
    for (status, body, next) in [
        (200, r#"{"success":false,"error":"no address"}"#, "Refused"),
        (200, r#"{"payment":{}}"#, "Unknown"),
        (200, "", "Unknown"),
        (200, "<html>", "Unknown"),
        (201, "[]", "Unknown"),
        (302, "", "Refused"),
        (400, r#"{"success":false,"error":"Invalid or missing payment amount"}"#, "Refused"),
        (400, r#"{"success":false,"error":"x duplicate key value violates unique constraint y"}"#, "Transient"),
        (400, r#"{"success":false,"error":"Failed to fetch exchange rate for BTC"}"#, "Transient"),
        (401, r#"{"success":false,"error":"Invalid API key"}"#, "Auth"),
        (403, r#"{"success":false,"error":"no scope"}"#, "Auth"),
        (402, r#"{"error":"x","code":"SUBSCRIPTION_INACTIVE"}"#, "Refused"),
        (404, r#"{"error":"x","code":"SUBSCRIPTION_NOT_FOUND"}"#, "Refused"),
        (404, r#"{"success":false,"error":"Payment not found"}"#, "NotFoundYet"),
        (405, "", "Transient"),
        (429, r#"{"error":"x","code":"TRANSACTION_LIMIT_EXCEEDED"}"#, "RateLimited"),
        (429, r#"{"success":false,"error":"Too many requests"}"#, "RateLimited"),
        (500, r#"{"success":false,"error":"Internal server error"}"#, "Unknown"),
        (500, r#"{"success":true}"#, "Unknown"),
        (502, "<html>", "Unknown"),
    ] {
        assert_eq!(write(status, body).as_deref(), Some(next), "{status} {body}");
    }
    assert_eq!(outcome(502, "<html>", After::Read).as_deref(), Some("Transient"), "a read has changed nothing");
}

#[test]
fn checks_its_settings_and_keeps_its_secrets() {
    for url in [
        "http://coinpayportal.com/api",
        "ftp://x/api",
        "https://user@x/api",
        "https://:pw@x/api",
        "https://x/api?a=b",
        "coinpayportal.com/api",
        "http://127.0.0.1.evil.example/api",
        "",
    ] {
        let settings = Settings { api_url: url.into(), ..settings() };
        assert_eq!(CoinPayPortal::new(settings).unwrap_err(), SettingsError::ApiUrl, "{url}");
    }
    for (url, page) in [
        ("https://coinpayportal.com/api/", "https://coinpayportal.com"),
        ("http://127.0.0.1:8080/sandbox/api", "http://127.0.0.1:8080/sandbox"),
        ("http://[::1]:8080/api", "http://[::1]:8080"),
    ] {
        let client = CoinPayPortal::new(Settings { api_url: url.into(), ..settings() }).unwrap();
        assert_eq!(client.pay_page_base, page);
    }
    let refused = |change: fn(&mut Settings)| {
        let mut settings = settings();
        change(&mut settings);
        CoinPayPortal::new(settings).unwrap_err()
    };
    assert_eq!(refused(|settings| settings.api_key = "".into()), SettingsError::ApiKey);
    assert_eq!(refused(|settings| settings.api_key = "a\nb".into()), SettingsError::ApiKey);
    assert_eq!(refused(|settings| settings.webhook_secret = " ".into()), SettingsError::WebhookSecret);
    assert_eq!(refused(|settings| settings.coins = vec!["XMR".into()]), SettingsError::Coin("XMR".into()));

    let chosen = Settings { coins: vec!["BTC".into(), "USDC_SOL".into()], ..settings() };
    let codes: Vec<_> = CoinPayPortal::new(chosen).unwrap().coins().iter().map(|coin| coin.code).collect();
    assert_eq!(codes, ["USDC_SOL", "BTC"], "stablecoins first");

    let shown = format!("{:?} {:?}", client(), settings());
    assert!(!shown.contains("0123456789abcdef"), "{shown}");
}

#[test]
fn ids_cannot_lead_elsewhere() {
    for id in ["", "../x", "a/b", "a?b", "a#b", "a b", "a%2fb", "é"] {
        assert!(checked_id(id).is_err(), "{id}");
    }
    assert!(checked_id("d084f959-c33c-4540-82b8-221181347639").is_ok());
}
