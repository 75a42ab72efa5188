//! Webhooks of the payment gateway. What one says is a hint to look for ourselves: nothing is read from it but which
//! payment it is about.

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
};
use sha2::{Digest, Sha256};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::error::{Problem, Raw};
use crate::{app::App, jobs};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(coinpayportal))
}

/// For CoinPayPortal. The raw bytes are signed; a bad, missing, empty or stale signature is refused and nothing is stored.
#[utoipa::path(post, path = "/api/webhooks/coinpayportal", tag = "webhooks", security(()), request_body = String,
    responses((status = 200), (status = 401, body = Problem), (status = 503, body = Problem)))]
async fn coinpayportal(State(app): State<App>, headers: HeaderMap, Raw(raw): Raw) -> Result<StatusCode, Problem> {
    let signature = headers.get("x-coinpay-signature").and_then(|value| value.to_str().ok());
    // Signatures are stamped by the gateway's own clock, so they are held against the system's and not against the
    // trial's, unless the sandbox, which shares our clock, stamped them.
    let event = match app.gateway.verify_webhook(signature, &raw, app.clock.now()) {
        Ok(event) => event,
        Err(error) => {
            metrics::counter!("seedplane_webhooks_refused_total").increment(1);
            tracing::warn!(%error, "a webhook was refused");
            // Signed by the gateway and not for us: sending it again would not change that.
            return match error.is_authentic() {
                true => Ok(StatusCode::OK),
                false => Err(Problem::new(
                    StatusCode::UNAUTHORIZED,
                    "bad-signature",
                    "the signature does not fit; nothing was stored",
                )),
            };
        }
    };
    let Ok(text) = std::str::from_utf8(&raw) else {
        return Err(Problem::bad_input("the body is not UTF-8; nothing was stored"));
    };
    let hash: [u8; 32] = Sha256::digest(&raw).into();
    // One round trip: the event as it came, and a look at the payment if it is ours and not settled. The look waits in the
    // queue that `jobs` gives this payment: a gateway sends its webhook before it answers the look that made it confirm, and
    // only that answer tells how much came.
    let known = sqlx::query_scalar!(
        r#"with intent as (
               select id, status from topup_intents where payment_id = $3
           ), stored as (
               insert into gateway_events (id, gateway, payment_id, kind, raw, raw_hash, orphan, received_at)
               values ($1, $2, $3, $4, $5, $6, not exists (select from intent), $7)
               on conflict (raw_hash) do nothing
           )
           select (select count(*) from intent where status <> 'forwarded'
                   and enqueue_job('check_payment', json_build_object('topup_id', intent.id), 'check_payment:' || intent.id,
                       'gateway-check:' || get_byte(uuid_send(intent.id), 15) % $8::int)::text is not null)
               as "known!""#,
        Uuid::now_v7(),
        app.gateway.name(),
        event.payment_id.unwrap_or_default(),
        event.kind,
        text,
        &hash,
        app.now(),
        i32::from(jobs::CHECK_LANES),
    )
    .fetch_one(&app.pool)
    .await?;
    metrics::counter!("seedplane_webhooks_total", "known" => if known > 0 { "yes" } else { "no" }).increment(1);
    Ok(StatusCode::OK)
}
