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
    trace::TraceLayer,
};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        ObjectBuilder, RefOr, Required, Type,
        path::{ParameterBuilder, ParameterIn},
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
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
    info(title = "Seedplane", description = "The control plane for seedboxes. Amounts of US dollars are whole cents, times are RFC 3339 in UTC, errors are application/problem+json. A POST that lists Idempotency-Key is carried out once for each key; answers are kept for 30 days, and what a key made is found again after that too. Of sign-in nothing is kept: it opens another session."),
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

/// Lists the header on every POST that takes it. The trial's clock, webhooks and nodes take none: a webhook has
/// its own ids, and a node its token.
struct Keyed;

impl Modify for Keyed {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        for operation in description.paths.paths.values_mut().filter_map(|path| path.post.as_mut()) {
            let tags = operation.tags.iter().flatten();
            let keyed = !tags.into_iter().any(|tag| tag == "trial" || tag == "webhooks" || tag == "nodes");
            let parameters = operation.parameters.get_or_insert_default();
            parameters
                .retain(|parameter| !matches!(parameter, RefOr::T(parameter) if parameter.name == "Idempotency-Key"));
            if keyed {
                let text = "1 to 255 printable characters. The same key with the same request is carried out once";
                parameters.push(
                    ParameterBuilder::new()
                        .name("Idempotency-Key")
                        .parameter_in(ParameterIn::Header)
                        .required(Required::False)
                        .description(Some(text))
                        .schema(Some(ObjectBuilder::new().schema_type(Type::String).build()))
                        .build()
                        .into(),
                );
            }
        }
    }
}

/// The whole server.
///
/// | routes | who |
/// |---|---|
/// | `/api/auth/sign-up`, `/api/auth/sign-in`, `/api/auth/password-reset*`, `/api/seedbox/plans`, `/api/terms`, `/healthz`, `/readyz`, `/openapi.json`, `/docs` | everybody |
/// | `/api/byos/manifest` | everybody |
/// | `/api/auth/*`, `/api/seedbox/*`, `/api/billing/*`, `/api/byos/*` | a signed-in person, for their own things; others' are 404 |
/// | `/api/operator/*` | operators; 404 for others |
/// | `/api/webhooks/*` | whoever can sign |
/// | `/api/nodes/{id}/ready` | the node that has the token, once |
/// | `/api/trial/*`, `/sandbox/*` | everybody, in the trial only |
/// | pages | see [`pages::routes`] |
pub fn router(app: App, sandbox: Option<Router>) -> Router {
    let mut described = OpenApiRouter::with_openapi(Description::openapi())
        .merge(api::auth::routes())
        .merge(api::seedbox::orders::routes())
        .merge(api::seedbox::resources::routes())
        .merge(api::terms::routes())
        .merge(api::billing::routes())
        .merge(api::byos::connections::routes())
        .merge(api::operator::routes());
    if app.trial {
        described = described.merge(api::trial::routes());
    }
    let described = described
        .layer(middleware::from_fn_with_state(app.clone(), idempotency::layer))
        .merge(api::webhooks::routes())
        .merge(api::nodes::routes());
    let (routes, mut description) = described.split_for_parts();
    Keyed.modify(&mut description);

    let mut router = routes
        .merge(SwaggerUi::new("/docs").url("/openapi.json", description))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .merge(pages::routes(&app))
        .fallback(|| async { Problem::not_found("page") })
        .layer(middleware::from_fn_with_state(app.clone(), pages::problems_as_pages))
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
                "something went wrong on our side; what was asked may or may not have been done. Ask again with the same Idempotency-Key: it is done once",
            )
            .into_response()
        }))
        .layer(middleware::from_fn(in_time_and_in_words))
        // The matched route and never the URL: a one-time link is in it.
        .layer(TraceLayer::new_for_http().make_span_with(|request: &Request| {
            let route = request.extensions().get::<MatchedPath>().map_or("-", MatchedPath::as_str);
            let id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or("-");
            tracing::info_span!("request", method = %request.method(), route, id)
        }))
        .layer(PropagateRequestIdLayer::new(request_id.clone()))
        .layer(SetRequestIdLayer::new(request_id, MakeRequestUuid))
        .layer(middleware::from_fn(only_safe_request_ids))
        .layer(SetSensitiveRequestHeadersLayer::new([header::AUTHORIZATION, header::COOKIE]))
        .layer(header("x-content-type-options", "nosniff"))
        .layer(header("referrer-policy", "no-referrer"))
        .layer(header("x-frame-options", "DENY"))
        .layer(middleware::from_fn(pages::content_security_policy))
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

/// A caller's request id goes into logs and the audit log, so it is one that can stand anywhere, or it is replaced.
async fn only_safe_request_ids(mut request: Request, next: middleware::Next) -> Response {
    let safe = |id: &HeaderValue| {
        let bytes = id.as_bytes();
        (1..=64).contains(&bytes.len())
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    let mut ids = request.headers().get_all("x-request-id").iter();
    let keep = ids.next().is_none_or(safe) && ids.next().is_none();
    if !keep {
        request.headers_mut().remove("x-request-id");
    }
    next.run(request).await
}

/// The longest a request may take.
const LONGEST_REQUEST: Duration = Duration::from_secs(30);

/// Answers what takes too long, and sees that every error is a problem, whichever layer made it. Pages, and the sandbox
/// gateway's JSON, are left as they are.
async fn in_time_and_in_words(request: Request, next: middleware::Next) -> Response {
    let Ok(response) = tokio::time::timeout(LONGEST_REQUEST, next.run(request)).await else {
        return Problem::of_status(StatusCode::GATEWAY_TIMEOUT).into_response();
    };
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("text/plain");
    if !(status.is_client_error() || status.is_server_error()) || !kind.starts_with("text/plain") {
        return response;
    }
    let mut problem = Problem::of_status(status).into_response();
    for name in [header::ALLOW, header::RETRY_AFTER] {
        if let Some(value) = response.headers().get(&name) {
            problem.headers_mut().insert(name, value.clone());
        }
    }
    problem
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
