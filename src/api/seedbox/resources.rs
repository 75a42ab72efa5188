//! A customer's boxes.

use axum::{
    Json,
    extract::State,
    http::{HeaderName, StatusCode, header},
};
use jiff::SignedDuration;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    api::{
        error::{Body, Id, Parameters, Problem},
        idempotency::NewId,
    },
    app::App,
    audit::events::{self, Cause, Event, RecordedEvent, Subject},
    auth::Customer,
    billing::{
        self,
        plan_changes::{self, PlanChange},
        reserves,
    },
    clock::Time,
    ids::{AttemptId, OrderId, PlanId, ResourceId},
    money::Usd,
    seedbox::{Operation, Resource, Status, SuspendReason, operations, repository},
    usage::{self, UsageSpan, UsageView},
};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(history))
        .routes(routes!(suspend))
        .routes(routes!(resume))
        .routes(routes!(restart))
        .routes(routes!(usage_of))
        .routes(routes!(rotate_credentials))
        .routes(routes!(quote_upgrade, upgrade))
        .routes(routes!(terminate))
        .routes(routes!(credentials))
        .routes(routes!(set_priority))
}

/// A box as its owner sees it.
#[derive(Serialize, ToSchema)]
pub struct ResourceView {
    id: ResourceId,
    /// `managed` or `byos`.
    kind: String,
    label: String,
    status: Status,
    status_since: Time,
    /// A word on why, where there is one.
    status_reason: Option<String>,
    suspend_reason: Option<SuspendReason>,
    /// Whether it has been in a passing status for longer than it should.
    stuck: bool,
    order_id: Option<OrderId>,
    plan_id: Option<PlanId>,
    /// Where the web interface answers.
    web_url: Option<String>,
    login_name: Option<String>,
    /// Whether the present password was shown already.
    credentials_shown: bool,
    /// Price of a month, in US cents.
    price_cents: Usd,
    /// Which box is kept alive longest; 1 before 2.
    priority: i32,
    /// Until when it is paid.
    paid_until: Option<Time>,
    /// Since when a month is unpaid.
    past_due_since: Option<Time>,
    /// What it owes for days of grace, in US cents.
    arrears_cents: Usd,
    /// Until when an operator stops suspension and wipe.
    hold_until: Option<Time>,
    /// Whether it ends when its paid period does.
    ends_at_period_end: bool,
    /// The cheaper plan it has from its next month on, if its owner chose one.
    next_plan_id: Option<PlanId>,
    /// What the next month costs, in US cents.
    next_month_cents: Usd,
    created_at: Time,
    activated_at: Option<Time>,
    suspended_at: Option<Time>,
    terminated_at: Option<Time>,
    /// The proof that its data is gone, once it is.
    wipe_certificate: Option<serde_json::Value>,
    /// Operations that are being carried out.
    operations: Vec<OperationView>,
}

/// An operation that is being carried out.
#[derive(Serialize, ToSchema)]
struct OperationView {
    operation: Operation,
    requested_at: Time,
    /// How often the provider was asked.
    tries: i32,
    /// What went wrong last, if anything.
    last_error: Option<String>,
}

impl ResourceView {
    /// What is shown of a resource at a time.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn load(app: &App, resource: Resource) -> Result<Self, Problem> {
        let attempts = operations::open_of(&app.pool, resource.id).await?;
        // Read after what is being done to it, so that nothing is shown as over whose outcome is not shown.
        let fresh = repository::resource(&app.pool, resource.id).await?;
        let resource = fresh.unwrap_or(resource);
        let now = app.now();
        let in_status = now.duration_since(resource.status_since.0);
        Ok(Self {
            next_month_cents: billing::price_at(&resource, resource.paid_until.unwrap_or(now), &app.policy),
            next_plan_id: resource.next_plan_id,
            stuck: resource.status.stuck_after().is_some_and(|limit| in_status > limit),
            credentials_shown: resource.credentials_shown_version >= resource.credentials_version,
            operations: attempts
                .into_iter()
                .map(|attempt| OperationView {
                    operation: attempt.operation,
                    requested_at: attempt.requested_at,
                    tries: attempt.tries,
                    last_error: attempt.last_error,
                })
                .collect(),
            id: resource.id,
            kind: resource.kind,
            label: resource.label,
            status: resource.status,
            status_since: resource.status_since,
            // What brought an active box here is the workers' own word for it.
            status_reason: resource.status_reason.filter(|_| resource.status != Status::Active),
            suspend_reason: resource.suspend_reason,
            order_id: resource.order_id,
            plan_id: resource.plan_id,
            web_url: resource.web_url,
            login_name: resource.login_name,
            price_cents: resource.price_cents,
            priority: resource.priority,
            paid_until: resource.paid_until,
            past_due_since: resource.past_due_since,
            arrears_cents: resource.arrears_cents,
            hold_until: resource.hold_until,
            ends_at_period_end: resource.ends_at_period_end,
            created_at: resource.created_at,
            activated_at: resource.activated_at,
            suspended_at: resource.suspended_at,
            terminated_at: resource.terminated_at,
            wipe_certificate: resource.wipe_certificate,
        })
    }
}

async fn own(app: &App, customer: &Customer, id: Uuid) -> Result<Resource, Problem> {
    repository::resource_of(&app.pool, customer.principal.user_id, ResourceId(id))
        .await?
        .ok_or_else(|| Problem::not_found("box"))
}

/// A box that we made. What can be done with somebody's own server is done over its connection.
async fn own_managed(app: &App, customer: &Customer, id: Uuid) -> Result<Resource, Problem> {
    let resource = own(app, customer, id).await?;
    refuse_byos(&resource)?;
    Ok(resource)
}

/// That cannot be done with a server which is its owner's.
///
/// # Errors
/// A problem that says where to go instead.
pub(crate) fn refuse_byos(resource: &Resource) -> Result<(), Problem> {
    match resource.connection_id {
        None => Ok(()),
        Some(connection) => Err(Problem::conflict(format!(
            "this is its owner's own server, which we do not run: see /api/byos/connections/{connection}; deleting the \
             connection takes our key off it. Nothing was done"
        ))),
    }
}

/// Boxes, newest first.
#[utoipa::path(get, path = "/api/seedbox/resources", tag = "seedboxes", responses((status = 200, body = Vec<ResourceView>)))]
async fn list(State(app): State<App>, customer: Customer) -> Result<Json<Vec<ResourceView>>, Problem> {
    let mut views = Vec::new();
    for resource in repository::resources_of(&app.pool, customer.principal.user_id).await? {
        views.push(ResourceView::load(&app, resource).await?);
    }
    Ok(Json(views))
}

/// A box.
#[utoipa::path(get, path = "/api/seedbox/resources/{id}", tag = "seedboxes", params(("id" = ResourceId, Path)),
    responses((status = 200, body = ResourceView), (status = 404, body = Problem)))]
async fn show(State(app): State<App>, customer: Customer, Id(id): Id<Uuid>) -> Result<Json<ResourceView>, Problem> {
    let resource = own(&app, &customer, id).await?;
    Ok(Json(ResourceView::load(&app, resource).await?))
}

/// Which part of a history.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct HistoryParameters {
    /// Only events older than this number of the chain.
    before_seq: Option<i64>,
    /// How many, 1 to 200; 100 if left out.
    limit: Option<i64>,
}

/// Everything that was done to a box, newest first: who, what, why, when.
#[utoipa::path(get, path = "/api/seedbox/resources/{id}/events", tag = "seedboxes",
    params(("id" = ResourceId, Path), HistoryParameters),
    responses((status = 200, body = Vec<RecordedEvent>), (status = 404, body = Problem)))]
async fn history(
    State(app): State<App>,
    customer: Customer,
    Id(id): Id<Uuid>,
    Parameters(page): Parameters<HistoryParameters>,
) -> Result<Json<Vec<RecordedEvent>>, Problem> {
    let resource = own(&app, &customer, id).await?;
    let limit = page.limit.unwrap_or(100);
    if !(1..=200).contains(&limit) {
        return Err(Problem::bad_input("`limit` is 1 to 200"));
    }
    Ok(Json(events::of_resource(&app.pool, resource.id, page.before_seq, limit).await?))
}

/// Writes what is asked and answers with the box as it is: the work itself is a worker's.
pub(crate) async fn request(
    app: &App,
    resource: &Resource,
    id: Uuid,
    operation: Operation,
    reason: &str,
    cause: &Cause,
) -> Result<(StatusCode, Json<ResourceView>), Problem> {
    let now = app.now();
    let mut tx = app.pool.begin().await?;
    reserves::request_in(&mut tx, AttemptId(id), resource, operation, reason, now, cause).await?;
    tx.commit().await?;
    let fresh = repository::resource(&app.pool, resource.id).await?.ok_or_else(|| Problem::not_found("box"))?;
    Ok((StatusCode::ACCEPTED, Json(ResourceView::load(app, fresh).await?)))
}

/// Suspend a box oneself. It stops; the data is kept; nothing is charged while it is.
#[utoipa::path(post, path = "/api/seedbox/resources/{id}/suspend", tag = "seedboxes", params(("id" = ResourceId, Path)),
    responses((status = 202, body = ResourceView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn suspend(
    State(app): State<App>,
    customer: Customer,
    NewId(attempt): NewId,
    Id(id): Id<Uuid>,
) -> Result<(StatusCode, Json<ResourceView>), Problem> {
    let resource = own_managed(&app, &customer, id).await?;
    if resource.status != Status::Active {
        return Err(Problem::conflict(format!("only an active box can be suspended; this one is {}", resource.status)));
    }
    if resource.past_due_since.is_some() {
        return Err(Problem::conflict("this box is past due; pay in first, or end it"));
    }
    request(&app, &resource, attempt, Operation::Suspend, SuspendReason::User.as_str(), &customer.cause()).await
}

/// Resume a box that its owner suspended.
#[utoipa::path(post, path = "/api/seedbox/resources/{id}/resume", tag = "seedboxes", params(("id" = ResourceId, Path)),
    responses((status = 202, body = ResourceView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn resume(
    State(app): State<App>,
    customer: Customer,
    NewId(attempt): NewId,
    Id(id): Id<Uuid>,
) -> Result<(StatusCode, Json<ResourceView>), Problem> {
    let resource = own_managed(&app, &customer, id).await?;
    match resource.suspend_reason {
        Some(SuspendReason::User) => {}
        Some(SuspendReason::Billing) => {
            return Err(Problem::conflict(format!(
                "this box is suspended because it is unpaid; it comes back by itself once the balance covers {}",
                resource.arrears_cents + billing::price_at(&resource, app.now(), &app.policy)
            )));
        }
        Some(reason) => {
            return Err(Problem::conflict(format!("this box is suspended for another reason ({reason}); write to us")));
        }
        None => {
            return Err(Problem::conflict(format!(
                "only a suspended box can be resumed; this one is {}",
                resource.status
            )));
        }
    }
    request(&app, &resource, attempt, Operation::Resume, SuspendReason::User.as_str(), &customer.cause()).await
}

/// Restart the torrent client. Its data and its login stay; every open session ends.
#[utoipa::path(post, path = "/api/seedbox/resources/{id}/restart", tag = "seedboxes", params(("id" = ResourceId, Path)),
    responses((status = 202, body = ResourceView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn restart(
    State(app): State<App>,
    customer: Customer,
    NewId(attempt): NewId,
    Id(id): Id<Uuid>,
) -> Result<(StatusCode, Json<ResourceView>), Problem> {
    let resource = own_managed(&app, &customer, id).await?;
    if resource.status != Status::Active {
        return Err(Problem::conflict(format!("only an active box is restarted; this one is {}", resource.status)));
    }
    request(&app, &resource, attempt, Operation::Restart, "", &customer.cause()).await
}

/// How far back, and by what.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct UsageParameters {
    /// How many days back, 1 to 400; 30 if left out. Of hours 35 days are kept.
    days: Option<i64>,
    /// Whether `spans` are hours instead of days.
    hours: Option<bool>,
}

/// What a box uses: now, and in each hour or day.
#[derive(Serialize, ToSchema)]
struct UsageAnswer {
    /// What is known now; `null` as long as nobody has counted, which begins when the box runs.
    now: Option<UsageView>,
    /// The hours or days, oldest first; those in which nobody counted are left out.
    spans: Vec<UsageSpan>,
}

/// What a box uses: disk, and what came in and went out. Counted every quarter of an hour while it runs.
#[utoipa::path(get, path = "/api/seedbox/resources/{id}/usage", tag = "seedboxes",
    params(("id" = ResourceId, Path), UsageParameters),
    responses((status = 200, body = UsageAnswer), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
async fn usage_of(
    State(app): State<App>,
    customer: Customer,
    Id(id): Id<Uuid>,
    Parameters(asked): Parameters<UsageParameters>,
) -> Result<Json<UsageAnswer>, Problem> {
    let resource = own_managed(&app, &customer, id).await?;
    let days = asked.days.unwrap_or(30);
    if !(1..=400).contains(&days) {
        return Err(Problem::bad_input("`days` is 1 to 400"));
    }
    let now = app.now();
    let since = Time(now.0 - SignedDuration::from_hours(24 * days));
    let spans = match asked.hours {
        Some(true) => usage::hours(&app.pool, resource.id, since).await?,
        _ => usage::days(&app.pool, resource.id, since).await?,
    };
    Ok(Json(UsageAnswer { now: usage::of(&app.pool, resource.id, now).await?, spans }))
}

/// Replace the password. The old one and every open session end.
#[utoipa::path(post, path = "/api/seedbox/resources/{id}/rotate-credentials", tag = "seedboxes", params(("id" = ResourceId, Path)),
    responses((status = 202, body = ResourceView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn rotate_credentials(
    State(app): State<App>,
    customer: Customer,
    NewId(attempt): NewId,
    Id(id): Id<Uuid>,
) -> Result<(StatusCode, Json<ResourceView>), Problem> {
    let resource = own_managed(&app, &customer, id).await?;
    if resource.status != Status::Active {
        return Err(Problem::conflict(format!(
            "only an active box gets a new password; this one is {}",
            resource.status
        )));
    }
    request(&app, &resource, attempt, Operation::RotateCredentials, "", &customer.cause()).await
}

/// Another plan for a box.
#[derive(Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct OtherPlan {
    /// A plan of the same provider from `GET /api/seedbox/plans`.
    pub(crate) plan_id: PlanId,
}

/// What another plan would cost this box, and from when. Changes nothing.
#[utoipa::path(get, path = "/api/seedbox/resources/{id}/upgrade", tag = "seedboxes", params(("id" = ResourceId, Path), OtherPlan),
    responses((status = 200, body = PlanChange), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
async fn quote_upgrade(
    State(app): State<App>,
    customer: Customer,
    Id(id): Id<Uuid>,
    Parameters(other): Parameters<OtherPlan>,
) -> Result<Json<PlanChange>, Problem> {
    let resource = own_managed(&app, &customer, id).await?;
    let mut connection = app.pool.acquire().await?;
    let (change, _) = plan_changes::quote(&mut connection, &resource, other.plan_id, app.now()).await?;
    Ok(Json(change))
}

/// Change the plan of a box. A dearer one is had at once, with the same data and login, and costs the difference for the
/// days that are left of the month; a cheaper one begins with the next month. The plan it has takes a cheaper one to come
/// back.
#[utoipa::path(post, path = "/api/seedbox/resources/{id}/upgrade", tag = "seedboxes", params(("id" = ResourceId, Path)),
    request_body = OtherPlan,
    responses((status = 202, body = ResourceView), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn upgrade(
    State(app): State<App>,
    customer: Customer,
    NewId(attempt): NewId,
    Id(id): Id<Uuid>,
    Body(other): Body<OtherPlan>,
) -> Result<(StatusCode, Json<ResourceView>), Problem> {
    let (owner, cause) = (customer.principal.user_id, customer.cause());
    own_managed(&app, &customer, id).await?;
    let mut tx = app.pool.begin().await?;
    plan_changes::request_in(&mut tx, AttemptId(attempt), owner, ResourceId(id), other.plan_id, app.now(), &cause)
        .await?;
    tx.commit().await?;
    let fresh = own(&app, &customer, id).await?;
    Ok((StatusCode::ACCEPTED, Json(ResourceView::load(&app, fresh).await?)))
}

/// How to end a box.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EndBox {
    /// The box's label, typed again: ending it wipes its data for good.
    pub(crate) confirm_label: String,
    /// `true` lets it run until the end of what is paid for; `false` takes that back. Ended now if left out.
    pub(crate) at_period_end: Option<bool>,
}

/// End a box: its data is wiped for good. Ended in its first 7 days, the rest of the month goes back to the balance.
#[utoipa::path(post, path = "/api/seedbox/resources/{id}/terminate", tag = "seedboxes", params(("id" = ResourceId, Path)),
    request_body = EndBox,
    responses((status = 202, body = ResourceView), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn terminate(
    State(app): State<App>,
    customer: Customer,
    NewId(attempt): NewId,
    Id(id): Id<Uuid>,
    Body(body): Body<EndBox>,
) -> Result<(StatusCode, Json<ResourceView>), Problem> {
    let resource = own_managed(&app, &customer, id).await?;
    if body.confirm_label != resource.label {
        return Err(Problem::bad_input(format!(
            "`confirm_label` is not this box's label, '{}'; nothing was ended",
            resource.label
        )));
    }
    if matches!(resource.status, Status::Terminating | Status::Terminated) {
        return Err(Problem::conflict(format!("this box is {} already", resource.status)));
    }
    if resource.suspend_reason == Some(SuspendReason::Abuse)
        || resource.hold_until.is_some_and(|until| until > app.now())
    {
        return Err(Problem::conflict("an operator holds this box; write to us"));
    }
    if let Some(ends) = body.at_period_end {
        let mut tx = app.pool.begin().await?;
        repository::set_ends_at_period_end_in(&mut tx, &resource, ends, app.now(), &customer.cause()).await?;
        tx.commit().await?;
        let fresh = own(&app, &customer, id).await?;
        return Ok((StatusCode::ACCEPTED, Json(ResourceView::load(&app, fresh).await?)));
    }
    request(&app, &resource, attempt, Operation::Terminate, "user", &customer.cause()).await
}

/// A login, shown once.
#[derive(Serialize, ToSchema)]
struct LoginView {
    web_url: Option<String>,
    login_name: String,
    password: String,
}

/// Show the present password: once. Rotate for another one.
#[utoipa::path(post, path = "/api/seedbox/resources/{id}/credentials", tag = "seedboxes", params(("id" = ResourceId, Path)),
    responses((status = 200, body = LoginView), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn credentials(
    State(app): State<App>,
    customer: Customer,
    Id(id): Id<Uuid>,
) -> Result<([(HeaderName, &'static str); 1], Json<LoginView>), Problem> {
    let resource = own_managed(&app, &customer, id).await?;
    let (login_name, password) = reveal(&app, &resource, &customer.cause()).await?;
    let view = LoginView { web_url: resource.web_url, login_name, password: password.expose_secret().to_owned() };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(view)))
}

/// Reads the password for its owner and marks it as shown, with an audit event. Used by the API and by the one-time link.
pub(crate) async fn reveal(
    app: &App,
    resource: &Resource,
    cause: &Cause,
) -> Result<(String, secrecy::SecretString), Problem> {
    if resource.status != Status::Active {
        return Err(Problem::conflict(format!(
            "a password is shown while the box is active; this one is {}",
            resource.status
        )));
    }
    let secret_ref = resource.secret_ref.as_deref().ok_or_else(|| Problem::conflict("this box has no password yet"))?;
    let password = app.secrets.get_reference(secret_ref).await?.ok_or_else(|| {
        Problem::conflict("the password of this box is not in the secret store; rotate it for a new one")
    })?;
    let mut tx = app.pool.begin().await?;
    if !repository::mark_credentials_shown_in(&mut tx, resource).await? {
        return Err(Problem::conflict("this password was shown already, and is shown once; rotate it for a new one"));
    }
    let after = Some(json!({ "credentials_version": resource.credentials_version }));
    let event =
        Event { subject: Subject::Resource(resource.id), action: "resource.credentials_shown", before: None, after };
    events::record_in(&mut tx, app.now(), cause, event).await?;
    tx.commit().await?;
    Ok((resource.login_name.clone().unwrap_or_else(|| "seed".to_owned()), password))
}

/// Which box is kept alive longest.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Priority {
    /// 1 to 1000; a box with 1 is charged before one with 2.
    priority: i32,
}

/// Set which box is charged first when the balance does not cover all.
#[utoipa::path(put, path = "/api/seedbox/resources/{id}/priority", tag = "seedboxes", params(("id" = ResourceId, Path)),
    request_body = Priority, responses((status = 200, body = ResourceView), (status = 404, body = Problem), (status = 422, body = Problem)))]
async fn set_priority(
    State(app): State<App>,
    customer: Customer,
    Id(id): Id<Uuid>,
    Body(body): Body<Priority>,
) -> Result<Json<ResourceView>, Problem> {
    let resource = own_managed(&app, &customer, id).await?;
    if !(1..=1000).contains(&body.priority) {
        return Err(Problem::bad_input("`priority` is 1 to 1000"));
    }
    let mut tx = app.pool.begin().await?;
    repository::set_priority_in(&mut tx, &resource, body.priority, app.now(), &customer.cause()).await?;
    tx.commit().await?;
    let fresh = own(&app, &customer, id).await?;
    Ok(Json(ResourceView::load(&app, fresh).await?))
}
