//! Reports of infringement and other abuse: what strangers sent, which boxes it may be about, and what came of it.

use askama::Template;
use axum::{
    extract::{Query, State},
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use uuid::Uuid;

use super::{Tabs, shell};
use crate::{
    accounts,
    api::{
        error::{Body, Id, Problem},
        operator::reports::{self as api, CloseReport, PAGE, ReportView},
    },
    app::App,
    ids::ResourceId,
    pages::{
        Fields, Said, Shell, page, page_with,
        show::{self, Badge, When},
        status_of,
        visitor::{Acting, Person, Reading},
    },
    reports::{self, Candidate, Listed, Outcome, Report},
};

/// Which reports.
#[derive(Deserialize)]
pub(in crate::pages) struct Wanted {
    after: Option<Uuid>,
}

#[derive(Template)]
#[template(path = "operator/reports.html")]
struct ReportsPage {
    shell: Shell,
    tabs: Tabs,
    open: i64,
    reports: Vec<(Listed, Badge, &'static str, When)>,
    more: Option<Uuid>,
}

/// `GET /operator/reports`
pub(in crate::pages) async fn list(
    State(app): State<App>,
    Reading(person): Reading,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Problem> {
    let found = reports::list(&app.pool, None, wanted.after, PAGE).await?;
    page(&ReportsPage {
        shell: shell(&app, &person, "Reports"),
        tabs: Tabs { current: "/operator/reports" },
        open: reports::count_open(&app.pool).await?,
        more: (found.len() as i64 == PAGE).then(|| found.last().map(|one| one.id)).flatten(),
        reports: found
            .into_iter()
            .map(|one| {
                let (badge, what, at) =
                    (show::report_badge(one.outcome), show::report_words(one.kind), When(one.created_at));
                (one, badge, what, at)
            })
            .collect(),
    })
}

#[derive(Template)]
#[template(path = "operator/report.html")]
struct ReportShown {
    shell: Shell,
    tabs: Tabs,
    said: Option<Said>,
    may_act: bool,
    report: Report,
    what: &'static str,
    badge: Badge,
    at: When,
    closed: Option<(When, String)>,
    candidates: Vec<(Candidate, Badge, When)>,
    /// The box it names, if it is one alone.
    named: String,
    typed: Close,
}

async fn report_page(
    app: &App,
    person: &Person,
    id: Uuid,
    said: Option<Said>,
    typed: Close,
) -> Result<ReportShown, Problem> {
    let ReportView { report, candidates } = ReportView::load(app, id).await?;
    let mut named = candidates.iter().filter(|one| one.named);
    let named = match (named.next(), named.next()) {
        (Some(one), None) => one.resource_id.to_string(),
        _ => String::new(),
    };
    let closed = match (report.closed_at, report.closed_by) {
        (Some(at), Some(by)) => Some((When(at), accounts::email_of(&app.pool, by).await?.unwrap_or_default())),
        _ => None,
    };
    Ok(ReportShown {
        shell: shell(app, person, report.reference.clone()),
        tabs: Tabs { current: "/operator/reports" },
        said,
        may_act: person.is_operator(),
        what: show::report_words(report.kind),
        badge: show::report_badge(report.outcome),
        at: When(report.created_at),
        closed,
        candidates: candidates
            .into_iter()
            .map(|one| {
                let (badge, since) = (show::status_badge(one.status), When(one.status_since));
                (one, badge, since)
            })
            .collect(),
        named,
        typed,
        report,
    })
}

/// `GET /operator/reports/{id}`
pub(in crate::pages) async fn show(
    State(app): State<App>,
    Reading(person): Reading,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    page(&report_page(&app, &person, id, None, Close::default()).await?)
}

/// What came of a report.
#[derive(Deserialize, Default, Clone)]
#[serde(default)]
pub(in crate::pages) struct Close {
    outcome: String,
    resource_id: String,
    reason: String,
}

impl Close {
    fn body(&self) -> Result<CloseReport, Problem> {
        let outcome = Outcome::ALL.iter().copied().find(|outcome| outcome.as_str() == self.outcome);
        let outcome = outcome.ok_or_else(|| Problem::bad_input("say what came of it; the report is still open"))?;
        let id = self.resource_id.trim();
        // The field is filled in beforehand where the report names a box; it counts where that box was acted on.
        let resource_id = match (outcome, id) {
            (Outcome::ActedOn, "") => {
                return Err(Problem::bad_input("say which box was acted on; the report is still open"));
            }
            (Outcome::ActedOn, id) => Some(ResourceId(id.parse().map_err(|_| {
                Problem::bad_input("a box is named by its id, as its address here holds it; the report is still open")
            })?)),
            _ => None,
        };
        Ok(CloseReport { outcome, resource_id, reason: self.reason.clone() })
    }
}

/// `POST /operator/reports/{id}/close`
pub(in crate::pages) async fn close(
    State(app): State<App>,
    acting: Acting,
    Id(id): Id<Uuid>,
    Fields(form): Fields<Close>,
) -> Result<Response, Problem> {
    let result = match form.body() {
        Ok(body) => api::close_report(State(app.clone()), acting.operator, Id(id), Body(body)).await,
        Err(problem) => Err(problem),
    };
    match result {
        Ok(_) => Ok(Redirect::to(&format!("/operator/reports/{id}")).into_response()),
        Err(problem) if problem.status == 404 => Err(problem),
        Err(problem) => {
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &report_page(&app, &acting.person, id, said, form).await?)
        }
    }
}
