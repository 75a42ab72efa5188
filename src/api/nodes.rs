//! What nodes report.

use axum::{
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::error::{Problem, Raw};
use crate::{
    app::App,
    byos::keys,
    ids::ResourceId,
    nodes::{self, Heard, Report},
};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(ready))
}

/// What a node says when it is set up, or could not be.
#[derive(Debug, Deserialize, ToSchema)]
struct NodeReady {
    /// `ready` or `failed`.
    state: String,
    /// What failed, in a word or two; empty if nothing did.
    #[serde(default)]
    detail: String,
    /// Its SSH host key, `ssh-ed25519 AAAA…`.
    #[serde(default)]
    host_key: String,
    /// Where its web interface answers: `https://…`.
    #[serde(default)]
    web_url: String,
    /// The SHA-256 fingerprint of the certificate it made itself, if it did.
    certificate_sha256: Option<String>,
}

impl NodeReady {
    /// The report, if everything in it is what it should be: it comes from a machine that somebody else may have got into.
    ///
    /// `trial`: the machine may be this one, which nobody gives a certificate.
    fn checked(self, trial: bool) -> Option<Report> {
        let short = |text: &str, most: usize, also: &[u8]| {
            text.len() <= most && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || also.contains(&byte))
        };
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        let certificate = self.certificate_sha256.and_then(given);
        let host_key = given(self.host_key);
        let web_url = given(self.web_url);
        let sound = short(&self.detail, 100, b"-_ ")
            && certificate.as_ref().is_none_or(|text| short(text, 100, b":"))
            && host_key
                .as_ref()
                .is_none_or(|key| key.starts_with("ssh-ed25519 ") && !keys::fingerprint(key).is_empty())
            && web_url.as_ref().is_none_or(|url| {
                let host = url.strip_prefix("https://");
                let here = url.strip_prefix("http://").filter(|host| trial && host.starts_with("127.0.0.1:"));
                host.or(here).is_some_and(|host| !host.is_empty() && short(host, 250, b".-:[]"))
            });
        let failure = match self.state.as_str() {
            "ready" if host_key.is_some() && web_url.is_some() => None,
            "failed" => Some(if self.detail.is_empty() { "it does not say why".to_owned() } else { self.detail }),
            _ => return None,
        };
        sound.then_some(Report { failure, host_key, web_url, certificate_sha256: certificate })
    }
}

/// For the node of a box, with the token of its user-data: good once, and for half an hour. The same report again is answered
/// like the first.
#[utoipa::path(post, path = "/api/nodes/{id}/ready", tag = "nodes", security(()), request_body = NodeReady,
    responses((status = 204), (status = 401, body = Problem), (status = 409, body = Problem), (status = 410, body = Problem),
        (status = 422, body = Problem)))]
async fn ready(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Raw(raw): Raw,
) -> Result<StatusCode, Problem> {
    let stranger = || {
        Problem::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "no node of this id has that token; nothing was written down",
        )
    };
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = authorization.and_then(|value| value.strip_prefix("Bearer ")).ok_or_else(stranger)?;
    let id = ResourceId(id.parse().map_err(|_| stranger())?);
    let report: Option<NodeReady> = serde_json::from_slice(&raw).ok();
    let Some(report) = report.and_then(|report| report.checked(app.trial)) else {
        return Err(Problem::bad_input(
            "the report cannot be read, or says what no node says; nothing was written down",
        ));
    };
    match nodes::hear(&app.pool, id, token, &raw, &report, app.now()).await? {
        Heard::Yes => Ok(StatusCode::NO_CONTENT),
        Heard::Stranger => Err(stranger()),
        Heard::Expired => Err(Problem::new(
            StatusCode::GONE,
            "token-expired",
            "the token was good for half an hour; nothing was written down, and the box is made anew or given up",
        )),
        Heard::Already => Err(Problem::conflict("the node has reported already; the first report stands")),
    }
}
