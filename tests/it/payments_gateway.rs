//! The CoinPayPortal client against the stand-in, over real HTTP, through every bad day the stand-in can have.

mod shop;

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::Router;
use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use seedplane::payments::{CreatePayment, Error, PaymentGateway, PaymentStatus, Quote, WebhookError, coinpayportal};
use seedplane_simulators::coinpayportal::{self as sandbox, Coin, Config, Fault, Outcome, PayAmount, Status};
use uuid::Uuid;

use shop::{API_KEY, SECRET, Shop, decimal, id, request};

#[tokio::test]
async fn a_quote_has_what_was_asked_for() {
    let shop = Shop::open().await;
    let asked = request("USDC_POL", 2500);
    let quote = shop.gateway.create(&asked).await.unwrap();
    assert_eq!((quote.amount_cents, quote.quoted_total_cents), (2500, 2501), "the network fee is in the total");
    assert_eq!(quote.expected, decimal("25.01250125"), "8 decimals, whatever the token has");
    assert_eq!(quote.amount_to_pay, decimal("25.012502"), "6 decimals, rounded up");
    assert_eq!(quote.created_at, shop.inbox.now());
    assert_eq!(quote.expires_at, shop.inbox.now() + SignedDuration::from_mins(15));
    assert_eq!(quote.pay_page_url, Some(format!("{}/sandbox/pay/{}", shop.base, quote.payment_id)));
    assert_eq!(quote.status, PaymentStatus::Pending);
    let kept = shop.sandbox.payment(id(&quote)).unwrap();
    assert_eq!(kept.address, Some(quote.address.clone()));
    assert_eq!(kept.metadata["reference"], asked.reference.to_string());
    assert_eq!(kept.amount_usd, decimal("25"));

    let seen = shop.gateway.fetch(&quote.payment_id).await.unwrap();
    assert_eq!((seen.amount_cents, seen.coin.as_deref()), (Some(2500), Some("USDC_POL")));
    assert_eq!((seen.expected, seen.received), (Some(quote.expected), None));
}

#[tokio::test]
async fn quotes_every_coin_in_common() {
    let shop = Shop::open().await;
    for coin in sandbox::default_coins() {
        let quote = shop.gateway.create(&request(&coin.code, 1999)).await.unwrap();
        assert!(quote.amount_to_pay >= quote.expected && quote.amount_to_pay.scale() <= coin.decimals, "{quote:?}");
        shop.pay(&quote, PayAmount::Exact).await;
        shop.sandbox.tick().await;
        assert_eq!(shop.status(&quote).await, PaymentStatus::Forwarded, "{}", coin.code);
    }
    let first_volatile = shop.gateway.coins().iter().position(|coin| !coin.stable).unwrap();
    assert!(shop.gateway.coins()[first_volatile..].iter().all(|coin| !coin.stable));
    let doge = shop.gateway.create(&request("DOGE", 1999)).await;
    assert!(matches!(doge, Err(Error::Refused { .. })), "the merchant has no wallet for it: {doge:?}");
    let unheard = shop.gateway.create(&request("XMR", 1999)).await;
    assert!(matches!(unheard, Err(Error::Refused { .. })), "{unheard:?}");
}

#[tokio::test]
async fn an_exact_payment_is_confirmed_and_forwarded_under_one_event_id() {
    let shop = Shop::open().await;
    let quote = shop.quote().await;
    shop.sandbox.tick().await;
    assert!(shop.kinds().is_empty());
    shop.pay(&quote, PayAmount::Decimal(quote.amount_to_pay)).await;
    assert_eq!(shop.status(&quote).await, PaymentStatus::Pending, "nobody has looked yet");
    shop.sandbox.tick().await;
    let body = shop.inbox.letters.lock().unwrap()[0].1.clone();
    let address = &quote.address;
    let at = "2026-05-28T20:26:40.000Z";
    let event_id = format!("evt_{}_1780000000", quote.payment_id);
    assert_eq!(
        body,
        format!(
            r#"{{"id":"{event_id}","type":"payment.confirmed","data":{{"payment_id":"{}","status":"confirmed","blockchain":"USDC_POL","amount_crypto":"25.01250125","payment_address":"{address}","received_amount":25.012502,"confirmed_at":"{at}"}},"created_at":"{at}","business_id":"{}"}}"#,
            quote.payment_id,
            shop.events()[0].business_id,
        )
    );
    let deliveries = shop.sandbox.deliveries();
    let kinds: Vec<_> =
        deliveries.iter().map(|delivery| (delivery.kind.as_str(), delivery.event_id.as_str())).collect();
    assert_eq!(kinds, [("payment.confirmed", event_id.as_str()), ("payment.forwarded", event_id.as_str())]);
    assert!(deliveries.iter().all(|delivery| delivery.outcome == Outcome::Answered(200)));
    let seen = shop.gateway.fetch(&quote.payment_id).await.unwrap();
    assert_eq!(seen.status, PaymentStatus::Forwarded);
    assert_eq!(seen.forward_transaction, shop.sandbox.payment(id(&quote)).unwrap().forward_transaction);
    shop.sandbox.tick().await;
    assert!(shop.kinds().is_empty(), "forwarded is the end");
}

#[tokio::test]
async fn a_short_payment_waits_for_the_rest_and_a_millionth_is_short() {
    let shop = Shop::open().await;
    let quote = shop.quote().await;
    shop.pay(&quote, PayAmount::Decimal(decimal("25.012501"))).await;
    shop.sandbox.tick().await;
    let seen = shop.gateway.check(&quote.payment_id).await.unwrap();
    assert_eq!(seen.status, PaymentStatus::Pending);
    assert_eq!((seen.received, seen.expected), (Some(decimal("25.012501")), Some(decimal("25.01250125"))));
    assert!(shop.kinds().is_empty(), "nobody is told of a short payment");
    shop.pay(&quote, PayAmount::Exact).await;
    shop.sandbox.tick().await;
    let events = shop.events();
    assert_eq!(events[0].claimed_received, Some(decimal("25.012502")), "transfers add up");
}

#[tokio::test]
async fn too_much_shows_only_in_what_was_received() {
    let fee = |config: &mut Config| {
        let one = Coin { rate_usd: Decimal::ONE, network_fee_usd: decimal("0.5"), ..config.coins[0].clone() };
        config.coins = vec![one];
    };
    let shop = Shop::open_with(fee).await;
    let quote = shop.gateway.create(&request("USDC_POL", 1000)).await.unwrap();
    assert_eq!((quote.expected, quote.quoted_total_cents), (decimal("10.5"), 1050));
    shop.pay(&quote, PayAmount::Over).await;
    shop.sandbox.tick().await;
    assert_eq!(shop.events()[0].claimed_received, Some(decimal("15.75")));
    assert_eq!(shop.gateway.fetch(&quote.payment_id).await.unwrap().expected, Some(decimal("10.5")));
}

#[tokio::test]
async fn tiny_amounts_come_with_an_exponent() {
    let cheap = |config: &mut Config| {
        let coin = config.coins.iter().find(|coin| coin.code == "BTC").unwrap().clone();
        config.coins = vec![Coin { network_fee_usd: Decimal::ZERO, ..coin }];
    };
    let shop = Shop::open_with(cheap).await;
    let quote = shop.gateway.create(&request("BTC", 5)).await.unwrap();
    assert_eq!(quote.amount_to_pay, decimal("0.0000005"));
    let url = format!("{}/sandbox/api/payments/{}", shop.base, quote.payment_id);
    assert!(reqwest::get(url).await.unwrap().text().await.unwrap().contains("\"crypto_amount\":5e-7"));
    assert_eq!(shop.gateway.fetch(&quote.payment_id).await.unwrap().expected, Some(decimal("0.0000005")));
    shop.pay(&quote, PayAmount::Exact).await;
    shop.sandbox.tick().await;
    assert_eq!(shop.events()[0].claimed_received, Some(decimal("0.0000005")));
}

#[tokio::test]
async fn a_check_confirms_richly_before_it_answers() {
    let shop = Shop::open().await;
    let quote = shop.quote().await;
    shop.pay(&quote, PayAmount::Exact).await;
    let seen = shop.gateway.check(&quote.payment_id).await.unwrap();
    assert_eq!((seen.status, seen.received), (PaymentStatus::Confirmed, Some(decimal("25.012502"))));
    let letters = shop.inbox.letters.lock().unwrap().clone();
    assert_eq!(letters.len(), 2, "the webhooks came while the check was open");
    let keys = |body: &str| {
        let names = ["payment_id", "status", "amount", "amount_crypto", "amount_usd", "currency", "payment_address"];
        let rest = ["received_amount", "confirmed_at", "metadata"];
        let at = |name: &&str| body.find(&format!("\"{name}\":")).unwrap_or_else(|| panic!("{name} in {body}"));
        names.iter().chain(&rest).map(at).collect::<Vec<_>>()
    };
    assert!(keys(&letters[0].1).is_sorted(), "{}", letters[0].1);
    assert!(
        letters[0].1.contains(r#""amount":"25","amount_crypto":"25.01250125","amount_usd":"25","currency":"USDC_POL""#)
    );
    assert!(letters[0].1.contains(r#""received_amount":"25.012502""#));
    let events = shop.events();
    assert_eq!(events[0].claimed_received, Some(decimal("25.012502")));
    assert_eq!(events[1].status, Some(PaymentStatus::Forwarded));
    let again = shop.gateway.check(&quote.payment_id).await.unwrap();
    assert_eq!((again.status, again.received), (PaymentStatus::Forwarded, None));
    assert!(shop.kinds().is_empty());
}

#[tokio::test]
async fn checks_are_limited_and_expire_silently() {
    let shop = Shop::open().await;
    let quote = shop.quote().await;
    for _ in 0..sandbox::CHECKS_PER_MINUTE {
        shop.gateway.check(&quote.payment_id).await.unwrap();
    }
    let refusal = shop.gateway.check(&quote.payment_id).await.unwrap_err();
    assert!(
        matches!(refusal, Error::RateLimited { retry_after: Some(wait), .. } if wait.as_secs() == 60),
        "{refusal:?}"
    );
    shop.wait(sandbox::QUOTE_LIFETIME);
    assert_eq!(shop.gateway.check(&quote.payment_id).await.unwrap().status, PaymentStatus::Expired);
    shop.sandbox.tick().await;
    assert!(shop.kinds().is_empty(), "a check that expires a payment tells nobody");
}

#[tokio::test]
async fn a_late_deposit_confirms_an_expired_payment() {
    let shop = Shop::open().await;
    let quote = shop.quote().await;
    shop.wait(sandbox::QUOTE_LIFETIME);
    shop.sandbox.tick().await;
    assert_eq!(shop.kinds(), ["payment.expired"]);
    assert_eq!(shop.status(&quote).await, PaymentStatus::Expired);
    shop.pay(&quote, PayAmount::Exact).await;
    shop.sandbox.tick().await;
    assert_eq!(shop.status(&quote).await, PaymentStatus::Expired, "looked for half an hour after the expiry");
    shop.wait(SignedDuration::from_mins(30));
    shop.sandbox.tick().await;
    assert_eq!(shop.kinds(), ["payment.confirmed", "payment.forwarded"]);

    let forgotten = shop.quote().await;
    shop.wait(SignedDuration::from_hours(24 * 31));
    shop.sandbox.tick().await;
    shop.pay(&forgotten, PayAmount::Exact).await;
    shop.sandbox.tick().await;
    assert_eq!(shop.status(&forgotten).await, PaymentStatus::Expired, "after 30 days nobody looks");
}

#[tokio::test]
async fn a_hidden_balance_expires_a_paid_payment() {
    let shop = Shop::open().await;
    let quote = shop.quote().await;
    shop.pay(&quote, PayAmount::Exact).await;
    shop.wait(sandbox::QUOTE_LIFETIME);
    shop.sandbox.faults().next(Fault::HideBalance, 1);
    shop.sandbox.tick().await;
    assert_eq!(shop.kinds(), ["payment.expired"]);
    shop.wait(SignedDuration::from_mins(30));
    shop.sandbox.tick().await;
    assert_eq!(shop.kinds(), ["payment.confirmed", "payment.forwarded"]);
}

#[tokio::test]
async fn a_repeated_create_finds_the_same_payment() {
    let shop = Shop::open().await;
    let asked = request("USDC_POL", 2500);
    let quote = shop.gateway.create(&asked).await.unwrap();
    assert_eq!(shop.gateway.create(&asked).await.unwrap(), quote);
    shop.pay(&quote, PayAmount::Exact).await;
    shop.sandbox.tick().await;
    let replayed = shop.gateway.create(&asked).await.unwrap();
    assert_eq!(replayed, Quote { status: PaymentStatus::Forwarded, ..quote });
    for other in
        [CreatePayment { amount_cents: 2600, ..asked.clone() }, CreatePayment { coin: "BTC".into(), ..asked.clone() }]
    {
        let refusal = shop.gateway.create(&other).await.unwrap_err();
        assert!(
            matches!(refusal, Error::BurnedKey { .. }),
            "the body is not compared there, so it is here: {refusal:?}"
        );
    }
    assert_eq!(shop.sandbox.payments().len(), 1);
}

#[tokio::test]
async fn a_create_survives_its_faults_under_one_key() {
    let shop = Shop::open().await;
    for (fault, transient) in [(Fault::LoseAnswer, false), (Fault::IdempotencyRace, true), (Fault::RatesDown, true)] {
        let asked = request("USDC_POL", 2500);
        shop.sandbox.faults().next(fault, 1);
        match shop.gateway.create(&asked).await.unwrap_err() {
            Error::Unknown { .. } => assert!(!transient, "{fault:?}"),
            Error::Transient { .. } => assert!(transient, "{fault:?}"),
            other => panic!("{fault:?}: {other:?}"),
        }
        let quote = shop.gateway.create(&asked).await.unwrap();
        assert_eq!(quote.status, PaymentStatus::Pending);
    }
    assert_eq!(shop.sandbox.payments().len(), 3, "none was made twice");

    let asked = request("USDC_POL", 2500);
    shop.sandbox.faults().next(Fault::BurnKey, 1);
    assert!(matches!(shop.gateway.create(&asked).await.unwrap_err(), Error::Transient { .. }));
    assert!(matches!(shop.gateway.create(&asked).await.unwrap_err(), Error::BurnedKey { .. }));
    let fresh = CreatePayment { idempotency_key: "another".into(), ..asked };
    assert!(shop.gateway.create(&fresh).await.is_ok());
}

#[tokio::test]
async fn errors_say_what_to_do_next() {
    let shop = Shop::open().await;
    let quote = shop.quote().await;
    let faults = shop.sandbox.faults();
    let payment = &quote.payment_id;
    faults.next(Fault::BadGateway, 3);
    assert!(matches!(shop.gateway.fetch(payment).await.unwrap_err(), Error::Transient { .. }));
    assert!(matches!(shop.gateway.check(payment).await.unwrap_err(), Error::Unknown { .. }));
    assert!(matches!(shop.gateway.create(&request("USDC_POL", 500)).await.unwrap_err(), Error::Unknown { .. }));
    faults.next(Fault::EmptyAnswer, 1);
    assert!(matches!(shop.gateway.fetch(payment).await.unwrap_err(), Error::Transient { .. }));
    faults.next(Fault::RefuseWith200, 1);
    assert!(matches!(shop.gateway.fetch(payment).await.unwrap_err(), Error::Refused { .. }));
    faults.next(Fault::NotFound, 1);
    assert_eq!(shop.gateway.fetch(payment).await.unwrap_err(), Error::NotFoundYet);
    assert_eq!(shop.status(&quote).await, PaymentStatus::Pending, "and it is there again");
    faults.next(Fault::LimitChecks, 1);
    let limited = shop.gateway.check(payment).await.unwrap_err();
    assert!(
        matches!(limited, Error::RateLimited { retry_after: Some(wait), .. } if wait.as_secs() == 20),
        "{limited:?}"
    );
    faults.next(Fault::QuotaExceeded, 1);
    let full = shop.gateway.create(&request("USDC_POL", 500)).await.unwrap_err();
    assert!(matches!(full, Error::RateLimited { retry_after: None, .. }), "{full:?}");
    for wrong in ["../payments", "", "a/b"] {
        assert!(matches!(shop.gateway.fetch(wrong).await.unwrap_err(), Error::Refused { .. }));
    }
    assert_eq!(shop.gateway.fetch("not-a-uuid").await.unwrap_err(), Error::NotFoundYet);
    assert_eq!(shop.gateway.check(&Uuid::new_v4().to_string()).await.unwrap_err(), Error::NotFoundYet);
}

#[tokio::test]
async fn a_wrong_key_is_for_the_operator_and_never_shown() {
    let shop = Shop::open().await;
    let wrong = "cp_live_ffffffffffffffffffffffffffffffff";
    let settings = |url: String| coinpayportal::Settings::new(url, wrong.into(), Uuid::new_v4(), SECRET.into());
    let stranger = coinpayportal::CoinPayPortal::new(settings(format!("{}/sandbox/api", shop.base))).unwrap();
    let refusal = stranger.create(&request("USDC_POL", 500)).await.unwrap_err();
    assert!(matches!(refusal, Error::Auth { .. }), "{refusal:?}");
    // A port that was free a moment ago: nobody listens.
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let nobody = coinpayportal::CoinPayPortal::new(settings(format!("http://{free}/api"))).unwrap();
    let unreachable = nobody.create(&request("USDC_POL", 500)).await.unwrap_err();
    assert!(matches!(unreachable, Error::Transient { .. }), "{unreachable:?}");
    for shown in [format!("{refusal:?} {refusal}"), format!("{unreachable:?} {unreachable} {nobody:?}")] {
        assert!(!shown.contains(wrong) && !shown.contains(SECRET), "{shown}");
    }
}

#[tokio::test]
async fn answers_are_bounded_and_redirects_not_followed() {
    let huge = || async { vec![b' '; (1 << 20) + 1] };
    let elsewhere = || async { axum::response::Redirect::temporary("/api/payments/huge") };
    let router = Router::new()
        .route("/api/payments/huge", axum::routing::get(huge))
        .route("/api/payments/elsewhere", axum::routing::get(elsewhere))
        .route("/api/payments/never", axum::routing::get(std::future::pending::<()>));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let mut settings = coinpayportal::Settings::new(url, API_KEY.into(), Uuid::new_v4(), SECRET.into());
    settings.timeout = Duration::from_millis(500);
    let gateway = coinpayportal::CoinPayPortal::new(settings).unwrap();
    assert!(matches!(gateway.fetch("elsewhere").await.unwrap_err(), Error::Refused { .. }));
    for (path, why) in [("huge", "1 MiB"), ("never", "no answer in time")] {
        let error = gateway.fetch(path).await.unwrap_err();
        assert!(matches!(&error, Error::Unknown { why: said } if said.contains(why)), "{error:?}");
    }
}

#[tokio::test]
async fn a_refused_webhook_comes_again_reordered_and_freshly_signed() {
    let shop = Shop::open().await;
    let quote = shop.quote().await;
    shop.pay(&quote, PayAmount::Exact).await;
    // The monitor's own event gets one try; the payout's gets three.
    *shop.inbox.answers.lock().unwrap() = [500, 500, 500, 500].into();
    shop.sandbox.tick().await;
    let first = shop.inbox.letters.lock().unwrap().clone();
    assert_eq!(first.len(), 4);
    assert!(first[0].1.contains("payment.confirmed"));
    assert!(first[1] == first[2] && first[2] == first[3], "the same bytes and signature each time");
    shop.kinds();
    shop.wait(SignedDuration::from_secs(59));
    shop.sandbox.tick().await;
    assert!(shop.kinds().is_empty(), "a minute is not over");
    shop.inbox.answers.lock().unwrap().push_back(503);
    shop.wait(SignedDuration::from_secs(1));
    shop.sandbox.tick().await;
    let again = shop.inbox.letters.lock().unwrap().clone();
    assert_eq!(again.len(), 1);
    assert!(again[0].1.starts_with("{\"id\":") && again[0].1 != first[1].1, "{}", again[0].1);
    assert!(again[0].1.starts_with(r#"{"id":"evt_"#) && again[0].1.find("\"data\":") < again[0].1.find("\"type\":"));
    assert_ne!(again[0].0, first[1].0);
    let events = shop.events();
    assert_eq!(events[0].event_id, format!("evt_{}_1780000000", quote.payment_id));
    shop.wait(SignedDuration::from_mins(5));
    shop.sandbox.tick().await;
    assert_eq!(shop.kinds(), ["payment.forwarded"], "five minutes later again, and taken");
    shop.wait(SignedDuration::from_hours(48));
    shop.sandbox.tick().await;
    assert!(shop.kinds().is_empty());
}

#[tokio::test]
async fn a_webhook_that_is_never_taken_dies_after_eight_tries() {
    let shop = Shop::open().await;
    let quote = shop.quote().await;
    shop.pay(&quote, PayAmount::Exact).await;
    *shop.inbox.answers.lock().unwrap() = vec![500; 100].into();
    shop.sandbox.tick().await;
    shop.kinds();
    for _ in 0..20 {
        shop.wait(SignedDuration::from_hours(12));
        shop.sandbox.tick().await;
    }
    assert_eq!(shop.kinds().len(), 8);
}

#[tokio::test]
async fn bad_signatures_are_told_apart() {
    let shop = Shop::open().await;
    for (fault, refusal) in [
        (Fault::EmptySignature, WebhookError::Missing),
        (Fault::WrongSignature, WebhookError::WrongSignature),
        (Fault::StaleSignature, WebhookError::Stale),
    ] {
        let quote = shop.quote().await;
        shop.pay(&quote, PayAmount::Exact).await;
        shop.sandbox.faults().next(fault, 1);
        shop.sandbox.tick().await;
        let verified = shop.verified();
        assert_eq!(verified[0], Err(refusal));
        assert!(!refusal.is_authentic());
        assert_eq!(verified[1].as_ref().unwrap().kind, "payment.forwarded");
    }
}

#[tokio::test]
async fn confirmed_can_repeat_be_lost_or_never_come() {
    let shop = Shop::open().await;
    let quote = shop.quote().await;
    shop.pay(&quote, PayAmount::Exact).await;
    shop.sandbox.faults().next(Fault::DuplicateConfirmed, 1);
    shop.sandbox.tick().await;
    shop.sandbox.tick().await;
    let events = shop.events();
    let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["payment.confirmed", "payment.forwarded", "payment.confirmed"]);
    assert_eq!(events[0].event_id, events[1].event_id, "two kinds, one id");
    assert_ne!(events[0].event_id, events[2].event_id, "one kind, two ids");

    let stuck = shop.quote().await;
    shop.pay(&stuck, PayAmount::Exact).await;
    shop.sandbox.faults().next(Fault::StickForwarding, 3);
    for _ in 0..4 {
        shop.sandbox.tick().await;
        shop.wait(SignedDuration::from_mins(1));
    }
    let events = shop.events();
    let confirmed: std::collections::BTreeSet<_> =
        events.iter().filter(|event| event.kind == "payment.confirmed").map(|event| &event.event_id).collect();
    assert_eq!(confirmed.len(), 4, "each pass under another id");
    assert_eq!(events.len(), 5);

    let silent = shop.quote().await;
    shop.pay(&silent, PayAmount::Exact).await;
    shop.sandbox.faults().next(Fault::ForwardedOnly, 1);
    shop.sandbox.tick().await;
    assert_eq!(shop.kinds(), ["payment.forwarded"]);

    let lost = shop.quote().await;
    shop.pay(&lost, PayAmount::Exact).await;
    shop.sandbox.faults().next(Fault::LoseWebhook, 2);
    shop.sandbox.tick().await;
    assert!(shop.kinds().is_empty());
    assert_eq!(shop.status(&lost).await, PaymentStatus::Forwarded, "who asks is told");
}

#[tokio::test]
async fn a_lost_answer_to_a_check_is_looked_up() {
    let shop = Shop::open_with(|config| config.forward_after = SignedDuration::from_mins(2)).await;
    let quote = shop.quote().await;
    shop.pay(&quote, PayAmount::Exact).await;
    shop.sandbox.faults().next(Fault::LoseAnswer, 1);
    assert!(matches!(shop.gateway.check(&quote.payment_id).await.unwrap_err(), Error::Unknown { .. }));
    assert_eq!(shop.status(&quote).await, PaymentStatus::Confirmed);
    shop.sandbox.tick().await;
    assert_eq!(shop.kinds(), ["payment.confirmed"]);
    shop.wait(SignedDuration::from_mins(2));
    shop.sandbox.tick().await;
    assert_eq!(shop.kinds(), ["payment.forwarded"]);
}

#[tokio::test]
async fn the_sandbox_loses_no_payment_at_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("coinpayportal.json");
    let keep = |config: &mut Config| config.state_file = Some(path.clone());
    let shop = Shop::open_with(keep).await;
    let asked = request("USDC_POL", 2500);
    let quote = shop.gateway.create(&asked).await.unwrap();
    shop.pay(&quote, PayAmount::Short).await;
    let before = shop.sandbox.payments();
    drop(shop);
    let config = |path: PathBuf| {
        let mut config = Config::new(API_KEY, Uuid::new_v4(), SECRET);
        config.state_file = Some(path);
        config
    };
    let clock: Arc<dyn Fn() -> Timestamp + Send + Sync> = Arc::new(|| Timestamp::from_second(1_780_000_060).unwrap());
    let back = sandbox::CoinPayPortal::new(config(path.clone()), clock.clone()).unwrap();
    assert_eq!(back.payments(), before);
    back.pay(id(&quote), PayAmount::Exact).await.unwrap();
    back.tick().await;
    assert_eq!(back.payment(id(&quote)).unwrap().status, Status::Forwarded);
    std::fs::write(&path, "{").unwrap();
    let error = sandbox::CoinPayPortal::new(config(path.clone()), clock).unwrap_err();
    assert!(error.to_string().contains("coinpayportal.json"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "{", "a file that cannot be read is left as it is");
}

#[tokio::test]
async fn refuses_what_the_real_service_refuses() {
    let shop = Shop::open().await;
    let http = reqwest::Client::new();
    let url = format!("{}/sandbox/api/payments/create", shop.base);
    let send = |body: &str| http.post(&url).bearer_auth(API_KEY).body(body.to_owned()).send();
    for (body, status, error) in [
        ("{", 500, "Internal server error"),
        (r#"{"amount_usd":"25","blockchain":"USDC_POL"}"#, 400, "Invalid or missing payment amount"),
        (r#"{"amount_usd":0,"blockchain":"USDC_POL"}"#, 400, "Invalid or missing payment amount"),
        (r#"{"amount_usd":1000001,"blockchain":"USDC_POL"}"#, 400, "AMOUNT_TOO_LARGE"),
        (r#"{"amount_usd":25}"#, 400, "Invalid or missing cryptocurrency type"),
        (r#"{"amount_usd":25,"currency":"doge"}"#, 400, "No DOGE wallet"),
        (r#"{"amount_usd":25,"business_id":"x","blockchain":"USDC_POL"}"#, 403, "business_id"),
    ] {
        let answer = send(body).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{body}");
        let said = answer.text().await.unwrap();
        assert!(said.contains(error), "{body}: {said}");
    }
    let taken = send(r#"{"amount":25.5,"currency":"usdc_pol","webhook_url":"https://ignored.example"}"#).await.unwrap();
    assert_eq!(taken.status().as_u16(), 201);
    let row: serde_json::Value = serde_json::from_str(&taken.text().await.unwrap()).unwrap();
    assert_eq!(row["payment"]["currency"], "usdc_pol");
    assert_eq!(row["payment"]["blockchain"], "USDC_POL");
    assert!(row["payment"]["amount"].is_number() && row["payment"]["crypto_amount"].is_number());
    assert_eq!(row["payment"]["created_at"], "2026-05-28T20:26:40.000000+00:00");
    let listing = http.get(format!("{}/sandbox/api/payments", shop.base)).bearer_auth(API_KEY).send().await.unwrap();
    assert_eq!(listing.status().as_u16(), 401);
}

#[tokio::test]
async fn the_pay_page_plays_the_payer() {
    let shop = Shop::open().await;
    let browser = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    for (action, received, status, kinds) in [
        ("exact", "25.012502", Status::Forwarded, vec!["payment.confirmed", "payment.forwarded"]),
        ("short", "10.005", Status::Pending, vec![]),
        ("over", "37.518753", Status::Forwarded, vec!["payment.confirmed", "payment.forwarded"]),
        ("twice", "50.025004", Status::Forwarded, vec!["payment.confirmed", "payment.forwarded"]),
        ("late", "25.012502", Status::Forwarded, vec!["payment.expired", "payment.confirmed", "payment.forwarded"]),
        ("never", "0", Status::Expired, vec!["payment.expired"]),
    ] {
        let quote = shop.quote().await;
        let url = quote.pay_page_url.clone().unwrap();
        let page = browser.get(&url).send().await.unwrap();
        assert!(page.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
        let page = page.text().await.unwrap();
        for text in ["SANDBOX: no real money", "25.012502 USDC", &quote.address, "<svg", "Top-up &lt;b&gt;&amp;amp;"] {
            assert!(page.contains(text), "{text} in {page}");
        }
        assert!(!page.contains("<script") && !page.contains("style=") && !page.contains("<?xml"));
        assert!(page.contains(&format!("formaction=\"{}/{action}\"", quote.payment_id)), "{action}");
        let done = browser.post(format!("{url}/{action}")).send().await.unwrap();
        assert_eq!(done.status().as_u16(), 303);
        let back = reqwest::Url::parse(&format!("{url}/{action}")).unwrap();
        let back = back.join(done.headers()["location"].to_str().unwrap()).unwrap();
        assert_eq!(back.as_str(), url);
        shop.sandbox.tick().await;
        let payment = shop.sandbox.payment(id(&quote)).unwrap();
        assert_eq!(payment.received(), decimal(received), "{action}");
        assert_eq!(payment.status, status, "{action}");
        assert_eq!(shop.kinds(), kinds, "{action}");
        assert!(browser.get(&url).send().await.unwrap().status().is_success());
    }
    let missing = browser.get(format!("{}/sandbox/pay/{}", shop.base, Uuid::new_v4())).send().await.unwrap();
    assert_eq!(missing.status().as_u16(), 404);
}
