//! The trial's own routes: a clock that can be moved forward, links that sign in. They exist in the trial only.

use axum::{
    Json,
    extract::State,
    http::{HeaderName, StatusCode, header},
};
use jiff::SignedDuration;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::error::{Body, Problem};
use crate::{
    accounts,
    app::App,
    auth::Customer,
    clock::{Clock, Time},
    workers,
};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(show_clock, advance_clock)).routes(routes!(make_sign_in_link))
}

/// The trial's clock.
#[derive(Serialize, ToSchema)]
struct ClockView {
    /// What time it is here.
    now: Time,
    /// How far that is ahead of the system's clock, in seconds.
    ahead_seconds: i64,
}

fn view(app: &App) -> Json<ClockView> {
    Json(ClockView { now: app.now(), ahead_seconds: app.clock.offset().as_secs() })
}

/// What time it is in the trial.
#[utoipa::path(get, path = "/api/trial/clock", tag = "trial", security(()), responses((status = 200, body = ClockView)))]
async fn show_clock(State(app): State<App>) -> Json<ClockView> {
    view(&app)
}

/// How far to move the clock.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Advance {
    /// Forward by so many seconds, at most 400 days.
    seconds: i64,
}

/// Move the trial's clock forward. Everything that falls due on the way is done by the workers, as they would.
#[utoipa::path(post, path = "/api/trial/clock", tag = "trial", security(()), request_body = Advance,
    responses((status = 200, body = ClockView), (status = 422, body = Problem)))]
async fn advance_clock(State(app): State<App>, Body(body): Body<Advance>) -> Result<Json<ClockView>, Problem> {
    if !(1..=400 * 86_400).contains(&body.seconds) {
        return Err(Problem::bad_input("`seconds` is 1 to 34560000: the clock moves forward only"));
    }
    let offset = sqlx::query_scalar!(
        "insert into trial_clock (offset_microseconds) values ($1::bigint * 1000000)
         on conflict (only_row) do update set offset_microseconds = trial_clock.offset_microseconds + $1::bigint * 1000000
         returning offset_microseconds",
        body.seconds
    )
    .fetch_one(&app.pool)
    .await?;
    app.clock.set_offset(SignedDuration::from_micros(offset));
    workers::tick(&app).await?;
    Ok(view(&app))
}

/// A link that signs its owner in, once.
#[derive(Serialize, ToSchema)]
struct SignInLink {
    /// Good for an hour, and for one browser.
    url: String,
}

/// Make a link that signs you in on the pages, once.
#[utoipa::path(post, path = "/api/trial/sign-in-links", tag = "trial",
    responses((status = 201, body = SignInLink), (status = 401, body = Problem), (status = 403, body = Problem)))]
async fn make_sign_in_link(
    State(app): State<App>,
    customer: Customer,
) -> Result<(StatusCode, [(HeaderName, &'static str); 1], Json<SignInLink>), Problem> {
    customer.session()?;
    let token = accounts::make_sign_in_link(&app.pool, customer.principal.user_id, app.now()).await?;
    let url = format!("{}/trial/enter/{}", app.public_url, token.expose_secret());
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(SignInLink { url })))
}

/// Reads how far the trial's clock was moved: at start, and now and then in case another copy moved it.
///
/// # Errors
/// Those of the database.
pub async fn load_clock(pool: &PgPool, clock: &Clock) -> sqlx::Result<()> {
    let offset = sqlx::query_scalar!("select offset_microseconds from trial_clock").fetch_optional(pool).await?;
    clock.set_offset(SignedDuration::from_micros(offset.unwrap_or(0)));
    Ok(())
}
