//! Every route on one screen, with who may call it.

use std::time::Duration;

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    compression::CompressionLayer,
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer},
    sensitive_headers::SetSensitiveRequestHeadersLayer,
    set_header::SetResponseHeaderLayer,
    timeout::TimeoutLayer,
    trace::TraceLayer,
};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use crate::{
    api::{self, error::Problem, idempotency},
    app::App,
    byos::keys,
    pages,
};

#[derive(OpenApi)]
#[openapi(
    info(title = "Seedplane", description = "The control plane for seedboxes. Amounts of US dollars are whole cents, times are RFC 3339 in UTC, errors are application/problem+json. Every POST takes an Idempotency-Key."),
    modifiers(&Bearer),
    security(("bearer" = []))
)]
struct Description;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        let bearer =
            HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("A session or API token")).build();
        description.components.get_or_insert_default().add_security_scheme("bearer", SecurityScheme::Http(bearer));
    }
}

/// The whole server.
///
/// | routes | who |
/// |---|---|
/// | `/api/auth/sign-up`, `/api/auth/sign-in`, `/api/seedbox/plans`, `/healthz`, `/readyz`, `/openapi.json`, `/docs`, `/` | everybody |
/// | `/api/byos/manifest`, `/byos/install.sh`, `/byos/gate` | everybody |
/// | `/api/auth/*`, `/api/seedbox/*`, `/api/billing/*`, `/api/byos/*` | a signed-in person, for their own things; others' are 404 |
/// | `/api/operator/*` | operators; 404 for others |
/// | `/api/webhooks/*` | whoever can sign |
/// | `/link/{token}` | whoever has the link, once |
/// | `/api/trial/*`, `/trial/inbox`, `/sandbox/*` | everybody, in the trial only |
pub fn router(app: App, sandbox: Option<Router>) -> Router {
    let mut described = OpenApiRouter::with_openapi(Description::openapi())
        .merge(api::auth::routes())
        .merge(api::seedbox::orders::routes())
        .merge(api::seedbox::resources::routes())
        .merge(api::billing::routes())
        .merge(api::byos::connections::routes())
        .merge(api::operator::routes());
    if app.trial {
        described = described.merge(api::trial::routes());
    }
    let described =
        described.layer(middleware::from_fn_with_state(app.clone(), idempotency::layer)).merge(api::webhooks::routes());
    let (routes, description) = described.split_for_parts();

    let mut router = routes
        .merge(SwaggerUi::new("/docs").url("/openapi.json", description))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .merge(pages::routes(app.trial))
        .fallback(|| async { Problem::not_found("page") })
        .with_state(app);
    if let Some(sandbox) = sandbox {
        router = router.nest("/sandbox", sandbox);
    }
    let request_id = HeaderName::from_static("x-request-id");
    let header = |name: &'static str, value: &'static str| {
        SetResponseHeaderLayer::if_not_present(HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    router
        .layer(DefaultBodyLimit::max(idempotency::MAX_BODY))
        .layer(middleware::from_fn(refuse_private_keys))
        .layer(middleware::from_fn(count))
        .layer(CompressionLayer::new())
        .layer(CatchPanicLayer::custom(|_| {
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal-error",
                "something went wrong on our side; what was not confirmed was not done. Try again, with the same Idempotency-Key",
            )
            .into_response()
        }))
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(30)))
        // The matched route and never the URL: a one-time link is in it.
        .layer(TraceLayer::new_for_http().make_span_with(|request: &Request| {
            let route = request.extensions().get::<MatchedPath>().map_or("-", MatchedPath::as_str);
            let id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or("-");
            tracing::info_span!("request", method = %request.method(), route, id)
        }))
        .layer(PropagateRequestIdLayer::new(request_id.clone()))
        .layer(SetRequestIdLayer::new(request_id, MakeRequestUuid))
        .layer(SetSensitiveRequestHeadersLayer::new([header::AUTHORIZATION]))
        .layer(header("x-content-type-options", "nosniff"))
        .layer(header("referrer-policy", "no-referrer"))
        .layer(header("x-frame-options", "DENY"))
        .layer(header(
            "content-security-policy",
            "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; script-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
        ))
}

/// Able to serve: the database answers.
async fn ready(State(app): State<App>) -> Result<&'static str, Problem> {
    sqlx::query_scalar!(r#"select 1 as "one!""#).fetch_one(&app.pool).await?;
    Ok("ready\n")
}

/// Nobody can give us a private key: a body that holds one is refused before anything reads it, and is not logged.
async fn refuse_private_keys(request: Request, next: middleware::Next) -> Result<Response, Problem> {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(next.run(request).await);
    }
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, idempotency::MAX_BODY)
        .await
        .map_err(|_| Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "a body has at most 64 KiB"))?;
    if keys::holds_private_key(&body) {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "private-key-refused",
            "the request holds a private key. We never take one: nothing was stored or logged. Whoever saw the request on its way \
             may have the key, so replace it wherever it is used. To connect a server only its name or address is needed",
        ));
    }
    Ok(next.run(Request::from_parts(parts, Body::from(body))).await)
}

async fn count(request: Request, next: middleware::Next) -> impl IntoResponse {
    let route =
        request.extensions().get::<MatchedPath>().map_or_else(|| "-".to_owned(), |path| path.as_str().to_owned());
    let started = std::time::Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    metrics::histogram!("seedplane_request_seconds", "route" => route, "status" => status)
        .record(started.elapsed().as_secs_f64());
    response
}
