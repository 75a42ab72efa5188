//! The terms in force, and accepting them with an order.

use axum::{Json, extract::State, http::StatusCode};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{api::error::Problem, app::App, auth::Customer, terms};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(show_terms))
}

/// The terms in force.
#[derive(Serialize, ToSchema)]
struct TermsView {
    /// Which they are: what an order accepts in `terms_version`. Another text has another version.
    version: String,
    /// Word for word: blank lines between paragraphs, `# ` before headings.
    text: String,
    /// The same as a page.
    url: String,
}

/// The terms in force, which an order accepts.
#[utoipa::path(get, path = "/api/terms", tag = "seedboxes", security(()), responses((status = 200, body = TermsView)))]
async fn show_terms(State(app): State<App>) -> Json<TermsView> {
    Json(TermsView {
        version: app.brand.terms_version(),
        text: app.brand.terms().to_owned(),
        url: format!("{}/terms", app.public_url),
    })
}

/// Sees that somebody accepts the terms in force with what they ask for, or did so before; what is accepted is written down.
///
/// # Errors
/// A problem that names the version in force and where to read it; nothing is written then.
pub(crate) async fn agree(app: &App, customer: &Customer, version: Option<&str>) -> Result<(), Problem> {
    let (user, in_force) = (customer.principal.user_id, app.brand.terms_version());
    let read_them = format!("Read them at GET /api/terms or {}/terms", app.public_url);
    match version {
        Some(version) if version == in_force => {
            let mut tx = app.pool.begin().await?;
            terms::accept_in(&mut tx, user, &app.brand, app.now(), &customer.cause()).await?;
            tx.commit().await?;
            Ok(())
        }
        Some(_) => Err(Problem::new(
            StatusCode::CONFLICT,
            "terms-changed",
            format!(
                "`terms_version` is not that of the terms in force, which is `{in_force}`; nothing was done. {read_them}, and \
                 send their version if you accept them"
            ),
        )),
        None if terms::accepted(&app.pool, user, &app.brand).await? => Ok(()),
        None => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "terms-not-accepted",
            format!(
                "you have not accepted the terms in force, version `{in_force}`; nothing was done. {read_them}, and send their \
                 version as `terms_version` if you accept them"
            ),
        )),
    }
}
