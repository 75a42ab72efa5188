//! What pages load: styles, scripts, the operator's logo and colour. Everything is inside the binary; its address carries the
//! hash of all of it, so that browsers keep it for as long as it is the same.

use std::sync::LazyLock;

use axum::{
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

use crate::{api::error::Problem, app::App};

/// Name, kind, bytes.
const ASSETS: &[(&str, &str, &[u8])] = &[
    ("app.css", "text/css; charset=utf-8", include_bytes!("../../assets/app.css")),
    ("app.js", "text/javascript; charset=utf-8", include_bytes!("../../assets/app.js")),
    ("htmx.js", "text/javascript; charset=utf-8", include_bytes!("../../assets/vendor/htmx.min.js")),
    ("htmx-ext-sse.js", "text/javascript; charset=utf-8", include_bytes!("../../assets/vendor/htmx-ext-sse.min.js")),
];

/// The beginning of the hash of everything that is the same for all operators.
pub(super) static VERSION: LazyLock<String> = LazyLock::new(|| {
    let mut hasher = Sha256::new();
    for (_, _, bytes) in ASSETS {
        hasher.update(bytes);
    }
    hex::encode(&hasher.finalize()[..6])
});

/// `GET /assets/{version}/{name}`
pub(super) async fn asset(Path((_version, name)): Path<(String, String)>) -> Result<Response, Problem> {
    let (_, kind, bytes) =
        ASSETS.iter().find(|(known, ..)| *known == name).ok_or_else(|| Problem::not_found("page"))?;
    Ok(([(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, "public, max-age=31536000, immutable")], *bytes)
        .into_response())
}

/// `GET /brand.css`: the operator's colour.
pub(super) async fn brand_css(State(app): State<App>) -> Response {
    let css = match &app.brand.colour {
        None => String::new(),
        Some((light, dark)) => format!(
            ":root {{ --accent: {light}; }}\n@media (prefers-color-scheme: dark) {{ :root {{ --accent: {dark}; }} }}\n"
        ),
    };
    let headers = [(header::CONTENT_TYPE, "text/css; charset=utf-8"), (header::CACHE_CONTROL, "public, max-age=300")];
    (headers, css).into_response()
}

/// `GET /brand-logo`: the operator's logo, if there is one.
pub(super) async fn brand_logo(State(app): State<App>) -> Response {
    match &app.brand.logo {
        None => StatusCode::NOT_FOUND.into_response(),
        Some((kind, bytes)) => {
            ([(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, "public, max-age=300")], bytes.clone())
                .into_response()
        }
    }
}
