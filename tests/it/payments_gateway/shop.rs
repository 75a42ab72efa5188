//! A shop: our client, the stand-in behind a prefix, an inbox for webhooks, and a clock moved by hand.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, atomic::AtomicI64, atomic::Ordering},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, http::StatusCode, routing::post};
use jiff::{SignedDuration, Timestamp};
use rust_decimal::Decimal;
use seedplane::payments::{
    CreatePayment, PaymentGateway, PaymentStatus, Quote, WebhookError, WebhookEvent, coinpayportal,
};
use seedplane_simulators::coinpayportal::{self as sandbox, Config, PayAmount};
use uuid::Uuid;

pub const API_KEY: &str = "cp_live_00112233445566778899aabbccddeeff";
pub const SECRET: &str = "whsecret_aa";

#[derive(Clone, Default)]
pub struct Inbox {
    /// Signature header, body and time of arrival.
    pub letters: Arc<Mutex<Vec<(String, String, Timestamp)>>>,
    /// What to answer next; 200 once it is empty.
    pub answers: Arc<Mutex<VecDeque<u16>>>,
    pub seconds: Arc<AtomicI64>,
}

impl Inbox {
    pub fn now(&self) -> Timestamp {
        Timestamp::from_second(self.seconds.load(Ordering::SeqCst)).unwrap()
    }
}

async fn receive(State(inbox): State<Inbox>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let signature = headers.get("x-coinpay-signature").map_or("", |value| value.to_str().unwrap()).to_owned();
    let body = String::from_utf8(body.to_vec()).unwrap();
    inbox.letters.lock().unwrap().push((signature, body, inbox.now()));
    let answer = inbox.answers.lock().unwrap().pop_front().unwrap_or(200);
    StatusCode::from_u16(answer).unwrap()
}

/// A shop: our client, the stand-in behind a prefix, an inbox for webhooks, and a clock moved by hand.
pub struct Shop {
    pub gateway: coinpayportal::CoinPayPortal,
    pub sandbox: sandbox::CoinPayPortal,
    pub inbox: Inbox,
    pub base: String,
}

impl Shop {
    pub async fn open() -> Self {
        Self::open_with(|_| {}).await
    }

    pub async fn open_with(change: impl FnOnce(&mut Config)) -> Self {
        let inbox = Inbox::default();
        inbox.seconds.store(1_780_000_000, Ordering::SeqCst);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let business_id = Uuid::new_v4();
        let mut config = Config::new(API_KEY, business_id, SECRET);
        config.webhook_url = Some(format!("{base}/webhook"));
        config.retry_pause = Duration::from_millis(1);
        change(&mut config);
        let clock = inbox.clone();
        let sandbox = sandbox::CoinPayPortal::new(config, Arc::new(move || clock.now())).unwrap();
        let router =
            Router::new().route("/webhook", post(receive)).with_state(inbox.clone()).nest("/sandbox", sandbox.router());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let settings =
            coinpayportal::Settings::new(format!("{base}/sandbox/api"), API_KEY.into(), business_id, SECRET.into());
        let gateway = coinpayportal::CoinPayPortal::new(settings).unwrap();
        Self { gateway, sandbox, inbox, base }
    }

    pub fn wait(&self, duration: SignedDuration) {
        self.inbox.seconds.fetch_add(duration.as_secs(), Ordering::SeqCst);
    }

    pub async fn quote(&self) -> Quote {
        self.gateway.create(&request("USDC_POL", 2500)).await.unwrap()
    }

    pub async fn pay(&self, quote: &Quote, amount: PayAmount) {
        self.sandbox.pay(id(quote), amount).await.unwrap();
    }

    pub async fn status(&self, quote: &Quote) -> PaymentStatus {
        self.gateway.fetch(&quote.payment_id).await.unwrap().status
    }

    /// Everything that arrived since the last look, verified at its time of arrival.
    pub fn verified(&self) -> Vec<Result<WebhookEvent, WebhookError>> {
        let letters = std::mem::take(&mut *self.inbox.letters.lock().unwrap());
        let verify = |(signature, body, at): (String, String, Timestamp)| {
            self.gateway.verify_webhook(Some(&signature), body.as_bytes(), at)
        };
        letters.into_iter().map(verify).collect()
    }

    pub fn events(&self) -> Vec<WebhookEvent> {
        self.verified().into_iter().map(Result::unwrap).collect()
    }

    pub fn kinds(&self) -> Vec<String> {
        self.events().into_iter().map(|event| event.kind).collect()
    }
}

pub fn id(quote: &Quote) -> Uuid {
    quote.payment_id.parse().unwrap()
}

pub fn request(coin: &str, amount_cents: i64) -> CreatePayment {
    let reference = Uuid::now_v7();
    CreatePayment {
        idempotency_key: format!("topup:{reference}"),
        amount_cents,
        coin: coin.to_owned(),
        description: "Top-up <b>&amp;".to_owned(),
        reference,
        return_url: None,
    }
}

pub fn decimal(text: &str) -> Decimal {
    text.parse().unwrap()
}
