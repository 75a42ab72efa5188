//! Every box, and everything about one: what is done to it, what it cost, where it is, and what an operator can do.

use askama::Template;
use axum::{
    extract::{Query, State},
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use uuid::Uuid;

use super::{PAGE, Tabs, shell};
use crate::{
    accounts,
    api::{
        error::{Body, Id, Problem},
        idempotency::NewId,
        operator::{self as api, money as api_money},
    },
    app::App,
    audit::events::{self, RecordedEvent},
    billing::{ledger, refunds},
    clock::Time,
    ids::ResourceId,
    money::Usd,
    pages::{
        Fields, Said, Shell,
        boxes::LOOK_AHEAD,
        page, page_with,
        show::{self, Badge, When},
        status_of,
        usage::{self, Used},
        visitor::{Acting, Person, Reading, url_encoded},
    },
    seedbox::{Resource, Status, SuspendReason, fleet, operations, operations::Attempt, repository},
};

/// Which boxes.
#[derive(Deserialize, Default)]
pub(in crate::pages) struct Wanted {
    #[serde(default)]
    status: String,
    #[serde(default)]
    text: String,
    #[serde(default)]
    past_due: bool,
    before: Option<ResourceId>,
    /// To how many boxes something was just done.
    done: Option<usize>,
}

struct Row {
    one: fleet::Listed,
    badge: Badge,
    paid_until: Option<String>,
    stuck: bool,
}

#[derive(Template)]
#[template(path = "operator/boxes.html")]
pub(super) struct BoxesPage {
    shell: Shell,
    tabs: Tabs,
    said: Option<Said>,
    may_act: bool,
    choices: [(&'static str, &'static str); 7],
    wanted: Wanted,
    statuses: Vec<(&'static str, bool)>,
    rows: Vec<Row>,
    older: Option<String>,
}

/// `GET /operator/boxes`
pub(in crate::pages) async fn list(
    State(app): State<App>,
    Reading(person): Reading,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Problem> {
    let said = wanted.done.map(|count| match count {
        1 => Said::good("It is asked for 1 box. What comes of it stands on its page."),
        count => Said::good(format!("It is asked for {count} boxes. What comes of it stands on their pages.")),
    });
    page(&boxes_page(&app, &person, wanted, said).await?)
}

pub(super) async fn boxes_page(
    app: &App,
    person: &Person,
    wanted: Wanted,
    said: Option<Said>,
) -> Result<BoxesPage, Problem> {
    let now = app.now();
    let filter = fleet::Filter {
        status: Status::ALL.iter().copied().find(|status| status.as_str() == wanted.status),
        past_due: wanted.past_due,
        text: wanted.text.clone(),
        before: wanted.before,
        owner: None,
    };
    let found = fleet::find(&app.pool, &filter, PAGE).await?;
    let older = (found.len() as i64 == PAGE).then(|| found.last().map(|one| one.id)).flatten().map(|last| {
        let past_due = if wanted.past_due { "&past_due=true" } else { "" };
        format!(
            "/operator/boxes?status={}&text={}{past_due}&before={last}",
            url_encoded(&wanted.status),
            url_encoded(&wanted.text)
        )
    });
    Ok(BoxesPage {
        shell: shell(app, person, "Boxes"),
        tabs: Tabs { current: "/operator/boxes" },
        said,
        may_act: person.is_operator(),
        choices: super::mass_actions::CHOICES,
        statuses: Status::ALL.iter().map(|status| (status.as_str(), status.as_str() == wanted.status)).collect(),
        wanted,
        older,
        rows: found
            .into_iter()
            .map(|one| Row {
                badge: show::listed_badge(one.status, one.suspend_reason, one.past_due_since.is_some()),
                paid_until: one.paid_until.map(show::day),
                stuck: one.is_stuck(now),
                one,
            })
            .collect(),
    })
}

struct Line {
    at: When,
    what: String,
    cause: String,
    change: Usd,
}

#[derive(Template)]
#[template(path = "operator/box.html")]
struct BoxPage {
    shell: Shell,
    tabs: Tabs,
    said: Option<Said>,
    may_act: bool,
    resource: Resource,
    used: Option<Used>,
    email: String,
    badge: Badge,
    since: When,
    stuck: bool,
    paid_until: Option<When>,
    stops_at: Option<When>,
    past_due_since: Option<When>,
    hold_until: Option<When>,
    refund_on_end: Usd,
    attempts: Vec<(Attempt, When)>,
    lines: Vec<Line>,
    events: Vec<(RecordedEvent, When)>,
    can_suspend: bool,
    can_resume: bool,
    can_end: bool,
    can_refund: bool,
    form_id: Uuid,
}

async fn box_page(app: &App, person: &Person, id: Uuid, said: Option<Said>) -> Result<BoxPage, Problem> {
    let now = app.now();
    let id = ResourceId(id);
    let attempts = operations::newest_of(&app.pool, id, 20).await?;
    let resource = repository::resource(&app.pool, id).await?.ok_or_else(|| Problem::not_found("box"))?;
    let preview = crate::billing::sweep::preview(app, resource.user_id, now, Time(now.0 + LOOK_AHEAD)).await?;
    let ahead = preview.boxes.iter().find(|one| one.resource_id == id);
    let statement = ledger::statement(&app.pool, resource.user_id, None, None).await?;
    let recorded = events::of_resource(&app.pool, id, None, 100).await?;
    let managed = resource.connection_id.is_none();
    let over = matches!(resource.status, Status::Terminating | Status::Terminated);
    Ok(BoxPage {
        shell: shell(app, person, resource.label.clone()),
        tabs: Tabs { current: "/operator/boxes" },
        said,
        may_act: person.is_operator(),
        email: accounts::email_of(&app.pool, resource.user_id).await?.unwrap_or_default(),
        badge: show::box_badge(&resource),
        since: When(resource.status_since),
        stuck: resource.status.stuck_after().is_some_and(|limit| now.duration_since(resource.status_since.0) > limit),
        paid_until: resource.paid_until.map(When),
        stops_at: ahead.and_then(|one| one.stops_at).map(When),
        past_due_since: resource.past_due_since.map(When),
        hold_until: resource.hold_until.filter(|at| *at > now).map(When),
        refund_on_end: refunds::preview_of_end(&app.pool, &resource, now, &app.policy).await?,
        attempts: attempts.into_iter().map(|attempt| (attempt.clone(), When(attempt.requested_at))).collect(),
        lines: statement
            .iter()
            .rev()
            .filter(|line| line.resource_id == Some(id))
            .take(50)
            .map(|line| Line {
                at: When(line.at),
                what: show::transfer_words(line),
                cause: line.cause.clone(),
                change: line.change_cents,
            })
            .collect(),
        events: recorded.into_iter().map(|event| (event.clone(), When(event.at))).collect(),
        can_suspend: managed && matches!(resource.status, Status::Active | Status::Suspended),
        can_resume: managed && resource.status == Status::Suspended,
        can_end: managed && !over,
        can_refund: managed && resource.charged_total > 0,
        form_id: Uuid::now_v7(),
        used: usage::of(app, id).await?,
        resource,
    })
}

/// `GET /operator/boxes/{id}`
pub(in crate::pages) async fn show(
    State(app): State<App>,
    Reading(person): Reading,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    page(&box_page(&app, &person, id, None).await?)
}

async fn answer<T>(app: &App, person: &Person, id: Uuid, result: Result<T, Problem>) -> Result<Response, Problem> {
    match result {
        Ok(_) => Ok(Redirect::to(&format!("/operator/boxes/{id}")).into_response()),
        Err(problem) if problem.status == 404 => Err(problem),
        Err(problem) => {
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &box_page(app, person, id, said).await?)
        }
    }
}

/// A hold: for so many days, or 0 to release it.
#[derive(Deserialize)]
pub(in crate::pages) struct Hold {
    form_id: Uuid,
    days: i64,
    reason: String,
}

/// `POST /operator/boxes/{id}/hold`
pub(in crate::pages) async fn hold(
    State(app): State<App>,
    acting: Acting,
    Id(id): Id<Uuid>,
    Fields(form): Fields<Hold>,
) -> Result<Response, Problem> {
    let until = (form.days > 0).then(|| Time(app.now().0 + jiff::SignedDuration::from_hours(24 * form.days.min(366))));
    let body = Body(api::Hold { until: Some(until), reason: form.reason });
    let result = api::hold(State(app.clone()), acting.operator, NewId(form.form_id), Id(id), body).await;
    answer(&app, &acting.person, id, result).await
}

/// A suspension.
#[derive(Deserialize)]
pub(in crate::pages) struct Suspend {
    form_id: Uuid,
    suspend_reason: SuspendReason,
    reason: String,
}

/// `POST /operator/boxes/{id}/suspend`
pub(in crate::pages) async fn suspend(
    State(app): State<App>,
    acting: Acting,
    Id(id): Id<Uuid>,
    Fields(form): Fields<Suspend>,
) -> Result<Response, Problem> {
    let body = Body(api::Suspend { suspend_reason: form.suspend_reason, reason: form.reason });
    let result = api::suspend(State(app.clone()), acting.operator, NewId(form.form_id), Id(id), body).await;
    answer(&app, &acting.person, id, result).await
}

/// A reason.
#[derive(Deserialize)]
pub(in crate::pages) struct Why {
    form_id: Uuid,
    reason: String,
}

/// `POST /operator/boxes/{id}/resume`
pub(in crate::pages) async fn resume(
    State(app): State<App>,
    acting: Acting,
    Id(id): Id<Uuid>,
    Fields(form): Fields<Why>,
) -> Result<Response, Problem> {
    let body = Body(api::Why { reason: form.reason });
    let result = api::resume(State(app.clone()), acting.operator, NewId(form.form_id), Id(id), body).await;
    answer(&app, &acting.person, id, result).await
}

/// An end.
#[derive(Deserialize)]
pub(in crate::pages) struct Terminate {
    form_id: Uuid,
    end_reason: String,
    confirm_label: String,
    reason: String,
}

/// `POST /operator/boxes/{id}/terminate`
pub(in crate::pages) async fn terminate(
    State(app): State<App>,
    acting: Acting,
    Id(id): Id<Uuid>,
    Fields(form): Fields<Terminate>,
) -> Result<Response, Problem> {
    let body = Body(api::Terminate {
        confirm_label: form.confirm_label.trim().to_owned(),
        end_reason: form.end_reason,
        reason: form.reason,
    });
    let result = api::terminate(State(app.clone()), acting.operator, NewId(form.form_id), Id(id), body).await;
    answer(&app, &acting.person, id, result).await
}

/// What to give back of the last charge.
#[derive(Deserialize)]
pub(in crate::pages) struct Refund {
    form_id: Uuid,
    amount: String,
    reason: String,
}

/// `POST /operator/boxes/{id}/refund`
pub(in crate::pages) async fn refund(
    State(app): State<App>,
    acting: Acting,
    Id(id): Id<Uuid>,
    Fields(form): Fields<Refund>,
) -> Result<Response, Problem> {
    let result = match form.amount.trim().parse::<Usd>() {
        Ok(amount_cents) => {
            let body = Body(api_money::Refund { amount_cents, charge: None, reason: form.reason });
            api_money::refund(State(app.clone()), acting.operator, NewId(form.form_id), Id(id), body).await.map(drop)
        }
        Err(error) => Err(Problem::bad_input(error.to_string())),
    };
    answer(&app, &acting.person, id, result).await
}
