//! The operator's pages: what runs, what is stuck, what came in, and everything that needs a person. Whoever only reads
//! (support) sees the same pages without their forms; everything that is done has a reason.

use askama::Template;
use axum::{
    extract::{Query, State},
    http::header,
    response::{IntoResponse, Redirect, Response},
};
use jiff::SignedDuration;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{
    Fields, Said, Shell, page, page_with,
    show::{self, Badge, When},
    status_of,
    visitor::{Acting, Person, Reading},
};
use crate::{
    alerts,
    api::{
        error::{Body, Problem},
        idempotency::NewId,
        operator::{self as api, DriftReport, ProviderLook},
    },
    app::App,
    audit::{
        chain::{self, Copy, Verification},
        events::{self, Event, LogFilter, LoggedEvent, Subject},
    },
    billing::{
        adjustments,
        runway::{self, Runways},
        topups,
    },
    clock::Time,
    jobs::{self, FailedJob},
    mailer,
    money::Usd,
    reports as reports_of_abuse,
    seedbox::{
        Status, catalogues,
        drift::findings::{Filter, Kept},
        fleet::{self, Takings},
    },
};

pub(super) mod approvals;
pub(super) mod boxes;
pub(super) mod mass_actions;
pub(super) mod money;
pub(super) mod plans;
pub(super) mod providers;
pub(super) mod reports;

/// How many things a page of a list shows.
const PAGE: i64 = 50;

/// Which part of the operator's pages one is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tabs {
    current: &'static str,
}

impl Tabs {
    /// Path, name.
    const ALL: [(&'static str, &'static str); 11] = [
        ("/operator", "Overview"),
        ("/operator/approvals", "Approvals"),
        ("/operator/boxes", "Boxes"),
        ("/operator/customers", "Customers"),
        ("/operator/payments", "Payments"),
        ("/operator/plans", "Plans"),
        ("/operator/providers", "Providers"),
        ("/operator/reports", "Reports"),
        ("/operator/drift", "Drift"),
        ("/operator/jobs", "Jobs"),
        ("/operator/audit", "Audit log"),
    ];

    fn all(self) -> [(&'static str, &'static str, bool); 11] {
        Self::ALL.map(|(path, name)| (path, name, path == self.current))
    }
}

fn shell(app: &App, person: &Person, title: impl Into<String>) -> Shell {
    Shell::new(app, Some(person), title, "operator")
}

struct AlertView {
    kind: String,
    subject: String,
    detail: String,
    at: When,
    /// Whether resolving it takes a second person.
    asks: bool,
    form_id: Uuid,
}

struct ProviderView {
    name: String,
    badge: Badge,
    looked_at: When,
    error: Option<String>,
}

#[derive(Template)]
#[template(path = "operator/overview.html")]
struct Overview {
    shell: Shell,
    tabs: Tabs,
    said: Option<Said>,
    may_act: bool,
    fleet: Vec<(Badge, Status, i64, Usd)>,
    boxes: i64,
    monthly: Usd,
    stuck: usize,
    past_due: usize,
    month: Takings,
    week: Takings,
    gateway_fails: bool,
    mailer_fails: bool,
    approvals: i64,
    unresolved: usize,
    reports: i64,
    failed_jobs: usize,
    given_up: usize,
    drift: i64,
    drift_monthly: Usd,
    runways: Runways,
    alerts: Vec<AlertView>,
    providers: Vec<ProviderView>,
}

async fn overview_page(app: &App, person: &Person, said: Option<Said>) -> Result<Overview, Problem> {
    let now = app.now();
    let pool = &app.pool;
    let fleet = fleet::by_status(pool).await?;
    let mut stuck = 0;
    for status in Status::ALL.iter().filter(|status| status.stuck_after().is_some()) {
        let filter = fleet::Filter { status: Some(*status), ..fleet::Filter::default() };
        stuck += fleet::find(pool, &filter, 500).await?.iter().filter(|one| one.is_stuck(now)).count();
    }
    let past_due = fleet::Filter { past_due: true, ..fleet::Filter::default() };
    let days = |days: i64| Time(now.0 - SignedDuration::from_hours(24 * days));
    let failed = jobs::failed(pool).await?;
    let drift = api::drift_report(pool, now, Filter::default()).await?;
    Ok(Overview {
        shell: shell(app, person, "Overview"),
        tabs: Tabs { current: "/operator" },
        said,
        may_act: person.is_operator(),
        boxes: fleet.iter().map(|one| one.count).sum(),
        monthly: fleet
            .iter()
            .filter(|one| one.status == Status::Active)
            .fold(Usd::ZERO, |sum, one| sum + one.monthly_cents),
        fleet: fleet
            .into_iter()
            .map(|one| (show::status_badge(one.status), one.status, one.count, one.monthly_cents))
            .collect(),
        stuck,
        past_due: fleet::find(pool, &past_due, 500).await?.len(),
        month: fleet::takings(pool, days(30)).await?,
        week: fleet::takings(pool, days(7)).await?,
        gateway_fails: topups::gateway_is_failing(pool, now).await?,
        mailer_fails: mailer::is_failing(pool, now).await?,
        approvals: crate::approvals::count_waiting(pool, now).await?,
        unresolved: adjustments::unresolved(pool).await?.len(),
        reports: reports_of_abuse::count_open(pool).await?,
        given_up: failed.iter().filter(|job| job.is_given_up()).count(),
        failed_jobs: failed.len(),
        drift: drift.count,
        drift_monthly: drift.total_monthly_cost_cents,
        runways: runway::look(app).await?,
        alerts: alerts::open(pool)
            .await?
            .into_iter()
            .map(|alert| AlertView {
                asks: app.two_person_rule && alert.kind == api::BLAST_LIMIT,
                kind: alert.kind,
                subject: alert.subject,
                detail: alert.detail,
                at: When(alert.created_at),
                form_id: Uuid::now_v7(),
            })
            .collect(),
        providers: catalogues::all(pool)
            .await?
            .into_iter()
            .map(|known| ProviderView {
                badge: show::provider_badge(known.access_refused(), known.error.is_some()),
                looked_at: When(known.looked_at),
                error: known.error,
                name: known.provider,
            })
            .collect(),
    })
}

/// `GET /operator`
pub(super) async fn overview(State(app): State<App>, Reading(person): Reading) -> Result<Response, Problem> {
    page(&overview_page(&app, &person, None).await?)
}

/// An alert that was dealt with.
#[derive(Deserialize)]
pub(super) struct ResolveAlert {
    form_id: Uuid,
    kind: String,
    subject: String,
    reason: String,
}

/// `POST /operator/alerts/resolve`
pub(super) async fn resolve_alert(
    State(app): State<App>,
    acting: Acting,
    Fields(form): Fields<ResolveAlert>,
) -> Result<Response, Problem> {
    let body = Body(api::Resolve { kind: form.kind, subject: form.subject, reason: form.reason });
    match api::resolve_alert(State(app.clone()), acting.operator, NewId(form.form_id), body).await {
        Ok(answer) => Ok(Redirect::to(answer.waits_at().as_deref().unwrap_or("/operator")).into_response()),
        Err(problem) => {
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &overview_page(&app, &acting.person, said).await?)
        }
    }
}

#[derive(Template)]
#[template(path = "operator/drift.html")]
struct DriftPage {
    shell: Shell,
    tabs: Tabs,
    report: DriftReport,
    looks: Vec<(ProviderLook, Option<When>)>,
    findings: Vec<(Kept, Option<Usd>, When)>,
}

/// `GET /operator/drift`
pub(super) async fn drift(State(app): State<App>, Reading(person): Reading) -> Result<Response, Problem> {
    let mut report = api::drift_report(&app.pool, app.now(), Filter::default()).await?;
    let (looks, findings) = (std::mem::take(&mut report.looks), std::mem::take(&mut report.findings));
    page(&DriftPage {
        shell: shell(&app, &person, "Drift"),
        tabs: Tabs { current: "/operator/drift" },
        report,
        looks: looks
            .into_iter()
            .map(|look| {
                let compared = look.compared_at.map(When);
                (look, compared)
            })
            .collect(),
        findings: findings
            .into_iter()
            .map(|one| {
                let (cost, since) = (one.monthly_cost_cents.map(Usd::from_cents), When(one.since));
                (one, cost, since)
            })
            .collect(),
    })
}

#[derive(Template)]
#[template(path = "operator/jobs.html")]
struct JobsPage {
    shell: Shell,
    tabs: Tabs,
    said: Option<Said>,
    may_act: bool,
    jobs: Vec<(FailedJob, When)>,
}

async fn jobs_page(app: &App, person: &Person, said: Option<Said>) -> Result<JobsPage, Problem> {
    let jobs = jobs::failed(&app.pool).await?;
    Ok(JobsPage {
        shell: shell(app, person, "Jobs that failed"),
        tabs: Tabs { current: "/operator/jobs" },
        said,
        may_act: person.is_operator(),
        jobs: jobs.into_iter().map(|job| (job.clone(), When(job.run_at))).collect(),
    })
}

/// `GET /operator/jobs`
pub(super) async fn failed_jobs(State(app): State<App>, Reading(person): Reading) -> Result<Response, Problem> {
    page(&jobs_page(&app, &person, None).await?)
}

/// A job to run again.
#[derive(Deserialize)]
pub(super) struct Retry {
    id: i64,
    reason: String,
}

/// `POST /operator/jobs/retry`
pub(super) async fn retry_job(
    State(app): State<App>,
    acting: Acting,
    Fields(form): Fields<Retry>,
) -> Result<Response, Problem> {
    match retry(&app, &acting, &form).await {
        Ok(()) => Ok(Redirect::to("/operator/jobs").into_response()),
        Err(problem) => {
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &jobs_page(&app, &acting.person, said).await?)
        }
    }
}

async fn retry(app: &App, acting: &Acting, form: &Retry) -> Result<(), Problem> {
    let cause = acting.operator.cause(&form.reason)?;
    let mut tx = app.pool.begin().await?;
    if !jobs::retry_in(&mut tx, form.id).await? {
        return Err(Problem::conflict("this job is being run now, or is done; nothing was changed"));
    }
    let event = Event {
        subject: Subject::User(acting.operator.principal.user_id),
        action: "job.retried",
        before: None,
        after: Some(json!({ "job": form.id })),
    };
    events::record_in(&mut tx, app.now(), &cause, event).await?;
    tx.commit().await?;
    Ok(())
}

/// Which events.
#[derive(Deserialize, Default)]
pub(super) struct AuditFilter {
    #[serde(default)]
    about: String,
    #[serde(default)]
    actor: String,
    #[serde(default)]
    action: String,
    before: Option<i64>,
}

impl AuditFilter {
    fn filter(&self) -> Result<LogFilter, Problem> {
        let text = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        let about = match text(&self.about) {
            None => None,
            Some(id) => Some(id.parse::<Uuid>().map_err(|_| {
                Problem::bad_input("an event is about an id, as the addresses of boxes and customers hold them")
            })?),
        };
        Ok(LogFilter { about, actor: text(&self.actor), action: text(&self.action), before_id: self.before })
    }

    /// The same filter as the query of a link.
    fn query(&self) -> String {
        [("about", &self.about), ("actor", &self.actor), ("action", &self.action)]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name}={}", super::visitor::url_encoded(value)))
            .collect::<Vec<_>>()
            .join("&")
    }
}

#[derive(Template)]
#[template(path = "operator/audit.html")]
struct AuditPage {
    shell: Shell,
    tabs: Tabs,
    said: Option<Said>,
    filter: AuditFilter,
    query: String,
    events: Vec<(LoggedEvent, When, String)>,
    older: Option<i64>,
    verified: Option<(Verification, &'static str)>,
}

async fn audit_page(
    app: &App,
    person: &Person,
    filter: AuditFilter,
    said: Option<Said>,
    verified: Option<(Verification, &'static str)>,
) -> Result<AuditPage, Problem> {
    let (found, said) = match filter.filter() {
        Ok(wanted) => (events::search(&app.pool, &wanted, PAGE).await?, said),
        Err(problem) => (Vec::new(), Some(Said::refused(&problem))),
    };
    Ok(AuditPage {
        shell: shell(app, person, "Audit log"),
        tabs: Tabs { current: "/operator/audit" },
        said,
        query: filter.query(),
        older: (found.len() as i64 == PAGE).then(|| found.last().map(|event| event.id)).flatten(),
        filter,
        events: found
            .into_iter()
            .map(|event| {
                let change = [("before", &event.before), ("after", &event.after)]
                    .into_iter()
                    .filter_map(|(word, value)| Some(format!("{word} {}", value.as_ref()?)))
                    .collect::<Vec<_>>()
                    .join("\n");
                let at = When(event.at);
                (event, at, change)
            })
            .collect(),
        verified,
    })
}

/// `GET /operator/audit`
pub(super) async fn audit(
    State(app): State<App>,
    Reading(person): Reading,
    Query(filter): Query<AuditFilter>,
) -> Result<Response, Problem> {
    page(&audit_page(&app, &person, filter, None, None).await?)
}

/// `POST /operator/audit/verify`: reads the whole log and says what it came to.
pub(super) async fn verify_audit(State(app): State<App>, Reading(person): Reading) -> Result<Response, Problem> {
    let verified = chain::verify(&app.pool, Copy::Own(&app.checkpoint_file)).await.map_err(|error| {
        Problem::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, "audit-unreadable", error.to_string())
    })?;
    let tone = match (&verified.fault, &verified.unproved) {
        (Some(_), _) => "bad",
        (None, Some(_)) => "warn",
        (None, None) => "good",
    };
    page(&audit_page(&app, &person, AuditFilter::default(), None, Some((verified, tone))).await?)
}

/// The most events that one file holds.
const EXPORTED: i64 = 50_000;

/// `GET /operator/audit/export.jsonl`: the filtered log, newest first, one event a line.
pub(super) async fn export_audit(
    State(app): State<App>,
    Reading(_person): Reading,
    Query(filter): Query<AuditFilter>,
) -> Result<Response, Problem> {
    let mut lines = String::new();
    for event in events::search(&app.pool, &filter.filter()?, EXPORTED).await? {
        lines.push_str(&serde_json::to_string(&event).unwrap_or_default());
        lines.push('\n');
    }
    let headers = [
        (header::CONTENT_TYPE, "application/jsonl; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"audit.jsonl\""),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, lines).into_response())
}
