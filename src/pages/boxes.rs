//! Your boxes: the list, one box, and everything that can be asked of it.

use askama::Template;
use axum::{
    extract::{Query, State},
    response::{IntoResponse, Redirect, Response},
};
use jiff::SignedDuration;
use secrecy::ExposeSecret;
use serde::Deserialize;
use uuid::Uuid;

use super::{
    Fields, FormId, Said, Shell, live, page, page_with, rendered, servers,
    show::{self, Badge, EventView, Since, When},
    status_of,
    topups::id_of,
    usage::{self, Used},
    visitor::{Person, SignedIn},
};
use crate::{
    api::{
        error::{Body, Id, Problem},
        idempotency::NewId,
        seedbox::resources::{self, EndBox, OtherPlan},
    },
    app::App,
    audit::events,
    billing::{
        self,
        ledger::{self, Balances},
        plan_changes::{self, PlanChange},
        sweep::{self, Preview},
    },
    clock::Time,
    ids::{PlanId, ResourceId},
    mailer::templates::date,
    money::Usd,
    orders::{self, Order, OrderStatus},
    seedbox::{Plan, Resource, Status, SuspendReason, operations, operations::Attempt, plans, repository},
};

/// How far the pages look ahead.
pub(super) const LOOK_AHEAD: SignedDuration = SignedDuration::from_hours(24 * 60);

/// A box in the list.
struct Listed {
    id: ResourceId,
    label: String,
    badge: Badge,
    web_url: Option<String>,
    /// What comes next and what to do: a sentence.
    outlook: String,
    price: Usd,
}

#[derive(Template)]
#[template(path = "home.html")]
struct Home {
    shell: Shell,
    part: String,
}

#[derive(Template)]
#[template(path = "home_part.html")]
struct HomePart {
    boxes: Vec<Listed>,
    ended: Vec<Listed>,
    servers: Vec<servers::Listed>,
    orders: Vec<(Order, String, Badge)>,
    available: Usd,
    reserved: Usd,
    pay_in: Usd,
    pay_in_until: String,
}

/// What comes next for a box, by the same rules that will do it.
pub(super) fn outlook(resource: &Resource, preview: &Preview) -> String {
    let ahead = preview.boxes.iter().find(|one| one.resource_id == resource.id);
    let stops_at = ahead.and_then(|one| one.stops_at);
    let paid = resource.paid_until.map(show::day);
    match resource.status {
        Status::Pending | Status::Provisioning => "It is being made: usually a minute or two.".to_owned(),
        Status::Active if resource.ends_at_period_end => {
            format!("Ends and is wiped on {}, as you asked.", paid.unwrap_or_default())
        }
        Status::Active => match (stops_at, paid) {
            (Some(stops), _) if resource.past_due_since.is_some() => {
                format!("Unpaid. It stops on {} unless you pay in.", date(stops))
            }
            (Some(stops), Some(paid)) => format!("Paid until {paid}. It stops on {} unless you pay in.", date(stops)),
            (None, Some(paid)) => format!("Paid until {paid}; your balance covers what comes next."),
            (_, None) => String::new(),
        },
        Status::Suspended => match resource.suspend_reason {
            Some(SuspendReason::Billing) => {
                let wiped = ahead.and_then(|one| one.wiped_at);
                let by = wiped.map_or_else(String::new, |at| format!(" Wiped on {} otherwise.", date(at)));
                format!("Pay in, and it comes back by itself with all its data.{by}")
            }
            Some(SuspendReason::User) => "Nothing is charged while it is paused; its data is kept.".to_owned(),
            _ => "Write to us: a payment does not lift this.".to_owned(),
        },
        Status::Failed => "The price is back in your balance, to the cent.".to_owned(),
        Status::Terminating => "Its data is being wiped; a certificate follows.".to_owned(),
        Status::Terminated => {
            format!("Wiped on {}.", resource.terminated_at.map(show::day).unwrap_or_default())
        }
    }
}

async fn home_part(app: &App, person: &Person) -> Result<String, Problem> {
    let user = person.customer.principal.user_id;
    let now = app.now();
    let preview = sweep::preview(app, user, now, Time(now.0 + LOOK_AHEAD)).await?;
    let balances: Balances = ledger::balances(&app.pool, user).await?;
    let listed = |resource: &Resource| Listed {
        id: resource.id,
        label: resource.label.clone(),
        badge: show::box_badge(resource),
        web_url: resource.web_url.clone().filter(|_| resource.status == Status::Active),
        outlook: outlook(resource, &preview),
        price: resource.price_cents,
    };
    let mut resources = repository::resources_of(&app.pool, user).await?;
    // Own servers are listed by their connections, which are there before and after their box.
    resources.retain(|resource| resource.connection_id.is_none());
    let over = |resource: &&Resource| resource.status == Status::Terminated;
    let mut waiting = Vec::new();
    for order in orders::orders_of(&app.pool, user).await? {
        if order.status == OrderStatus::AwaitingPayment {
            let plan = plans::find(&app.pool, order.plan_id).await?;
            let badge = show::order_badge(order.status);
            waiting.push((order, plan.map(|plan| plan.name).unwrap_or_default(), badge));
        }
    }
    rendered(&HomePart {
        boxes: resources.iter().filter(|one| !over(one)).map(listed).collect(),
        ended: resources.iter().filter(over).take(10).map(listed).collect(),
        servers: servers::listed(app, person).await?,
        orders: waiting,
        available: balances.available(),
        reserved: balances.reserved_cents,
        pay_in: preview.pay_in_cents,
        pay_in_until: show::day(preview.until),
    })
}

/// `GET /seedbox`
pub(super) async fn home(State(app): State<App>, SignedIn(person): SignedIn) -> Result<Response, Problem> {
    let part = home_part(&app, &person).await?;
    page(&Home { shell: Shell::new(&app, Some(&person), "Your boxes", "boxes"), part })
}

/// `GET /seedbox/live`
pub(super) async fn home_live(State(app): State<App>, SignedIn(person): SignedIn) -> Result<Response, Problem> {
    live::stream(&app.clone(), &person.clone(), move || {
        let (app, person) = (app.clone(), person.clone());
        async move { home_part(&app, &person).await }
    })
}

/// A step of making a box.
struct Step {
    class: &'static str,
    what: &'static str,
    when: Option<When>,
}

/// Something that is being done.
struct Doing {
    what: &'static str,
    since: Since,
    tries: i32,
    last_error: Option<String>,
}

/// A fact of a wipe certificate.
struct Fact {
    at: String,
    what: String,
}

/// A login, shown once.
struct Login {
    web_url: String,
    name: String,
    password: String,
}

#[derive(Template)]
#[template(path = "box.html")]
struct BoxPage {
    shell: Shell,
    id: ResourceId,
    said: Option<Said>,
    login: Option<Login>,
    part: String,
}

#[derive(Template)]
#[template(path = "box_part.html")]
struct BoxPart {
    resource: Resource,
    badge: Badge,
    since: When,
    outlook: String,
    plan: Option<Plan>,
    next_plan: Option<Plan>,
    steps: Vec<Step>,
    elapsed: Option<Since>,
    stuck: bool,
    doing: Vec<Doing>,
    paid_until: Option<When>,
    next_month: Usd,
    /// Suspended because a month could not be paid.
    unpaid: bool,
    back_costs: Usd,
    short_by: Usd,
    hold_until: Option<When>,
    /// What it uses, of a box that has data.
    used: Option<Used>,
    certificate: Vec<Fact>,
    events: Vec<EventView>,
    can_show_login: bool,
    can_rotate: bool,
    can_suspend: bool,
    can_resume: bool,
    can_change_plan: bool,
    can_end: bool,
    /// To rotate, to pause, to resume, to restart: the same as long as nothing happened to the box, so that a part that is rendered again
    /// is the same form.
    form_ids: [Uuid; 4],
}

fn steps(resource: &Resource, attempts: &[Attempt], now: Time) -> (Vec<Step>, Option<Since>) {
    let making = matches!(resource.status, Status::Pending | Status::Provisioning);
    if !making && resource.status != Status::Failed {
        return (Vec::new(), None);
    }
    let failed = resource.status == Status::Failed;
    let asked = attempts.iter().find(|attempt| attempt.operation == crate::seedbox::Operation::Create);
    let made = resource.resource_ref.is_some();
    let asked_at = asked.and_then(|attempt| attempt.asked_at.or(attempt.started_at));
    let reached = [true, asked_at.is_some() || made || failed, made, false];
    let names = ["Paid", "Asked the provider for a machine", "The machine is there", "The torrent client answers"];
    let now_at = reached.iter().position(|reached| !reached).unwrap_or(reached.len());
    let steps = names
        .into_iter()
        .enumerate()
        .map(|(index, what)| Step {
            class: match index {
                _ if reached[index] => "done",
                _ if index == now_at && failed => "failed",
                _ if index == now_at => "now",
                _ => "",
            },
            what,
            when: match index {
                0 => Some(When(resource.created_at)),
                1 => asked_at.map(When),
                _ => None,
            },
        })
        .collect();
    (steps, making.then_some(Since { start: resource.created_at, now }))
}

async fn box_part(app: &App, person: &Person, id: ResourceId) -> Result<String, Problem> {
    let user = person.customer.principal.user_id;
    let now = app.now();
    let attempts = operations::open_of(&app.pool, id).await?;
    // Read after what is being done to it, so that nothing is shown as over whose outcome is not shown.
    let resource = repository::resource_of(&app.pool, user, id).await?.ok_or_else(|| Problem::not_found("box"))?;
    let preview = sweep::preview(app, user, now, Time(now.0 + LOOK_AHEAD)).await?;
    let plan_of = async |id: Option<PlanId>| match id {
        Some(id) => plans::find(&app.pool, id).await,
        None => Ok(None),
    };
    let recorded = events::of_resource(&app.pool, id, None, 50).await?;
    let (steps, elapsed) = steps(&resource, &attempts, now);
    let status = resource.status;
    let back_costs = resource.arrears_cents + billing::price_at(&resource, now, &app.policy);
    let available = preview.available_cents;
    let idle = attempts.is_empty();
    let held = resource.suspend_reason == Some(SuspendReason::Abuse) || resource.hold_until.is_some_and(|at| at > now);
    let certificate = resource.wipe_certificate.as_ref().and_then(|certificate| certificate["facts"].as_array());
    let in_status = now.duration_since(resource.status_since.0);
    rendered(&BoxPart {
        badge: show::box_badge(&resource),
        since: When(resource.status_since),
        outlook: outlook(&resource, &preview),
        plan: plan_of(resource.plan_id).await?,
        next_plan: plan_of(resource.next_plan_id).await?,
        steps,
        elapsed,
        stuck: status.stuck_after().is_some_and(|limit| in_status > limit),
        doing: attempts
            .iter()
            .filter(|attempt| attempt.operation != crate::seedbox::Operation::Create)
            .map(|attempt| Doing {
                what: show::operation_words(attempt.operation),
                since: Since { start: attempt.requested_at, now },
                tries: attempt.tries,
                last_error: attempt.last_error.clone(),
            })
            .collect(),
        paid_until: resource.paid_until.map(When),
        next_month: billing::price_at(&resource, resource.paid_until.unwrap_or(now), &app.policy),
        short_by: if back_costs > available { back_costs - available } else { Usd::ZERO },
        back_costs,
        unpaid: status == Status::Suspended && resource.suspend_reason == Some(SuspendReason::Billing),
        hold_until: resource.hold_until.filter(|at| *at > now).map(When),
        used: match status {
            Status::Active | Status::Suspended => usage::of(app, id).await?,
            _ => None,
        },
        certificate: certificate
            .into_iter()
            .flatten()
            .map(|fact| Fact {
                at: fact["at"].as_str().unwrap_or_default().to_owned(),
                what: fact["fact"].as_str().unwrap_or_default().to_owned(),
            })
            .collect(),
        events: recorded.iter().map(|event| show::event_view(event, user)).collect(),
        can_show_login: status == Status::Active && resource.credentials_shown_version < resource.credentials_version,
        can_rotate: status == Status::Active && idle,
        can_suspend: status == Status::Active && idle && resource.past_due_since.is_none(),
        can_resume: status == Status::Suspended && resource.suspend_reason == Some(SuspendReason::User) && idle,
        can_change_plan: status == Status::Active && idle && resource.past_due_since.is_none(),
        can_end: !matches!(status, Status::Terminating | Status::Terminated) && !held,
        form_ids: ["rotate", "suspend", "resume", "restart"]
            .map(|what| id_of(&format!("{what}:{id}:{}", recorded.first().map_or(0, |event| event.seq)))),
        resource,
    })
}

async fn box_page(
    app: &App,
    person: &Person,
    id: Uuid,
    said: Option<Said>,
    login: Option<Login>,
) -> Result<BoxPage, Problem> {
    let user = person.customer.principal.user_id;
    let resource =
        repository::resource_of(&app.pool, user, ResourceId(id)).await?.ok_or_else(|| Problem::not_found("box"))?;
    let part = box_part(app, person, resource.id).await?;
    Ok(BoxPage { shell: Shell::new(app, Some(person), resource.label, "boxes"), id: resource.id, said, login, part })
}

/// Which good news a page begins with, by a closed list: a link cannot make our page say something else.
#[derive(Deserialize)]
pub(super) struct Done {
    done: Option<String>,
}

impl Done {
    fn said(&self) -> Option<Said> {
        Some(Said::good(match self.done.as_deref()? {
            "rotate" => "A new password is being made. The old one, and every open session, end with it.",
            "restart" => "The torrent client is being restarted. Its data and its login stay.",
            "suspend" => "The box is being paused. Its data is kept, and nothing is charged while it is.",
            "resume" => "The box is being brought back.",
            "plan" => "The change of plan is on its way.",
            "end" => "The end of the box is on its way.",
            "end-later" => "The box ends with the month that is paid. You can take that back until then.",
            "end-not" => "The box goes on: its end was taken back.",
            _ => return None,
        }))
    }
}

/// `GET /seedbox/boxes/{id}`
pub(super) async fn show(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
    Query(done): Query<Done>,
) -> Result<Response, Problem> {
    // What can be done with somebody's own server is done over its connection.
    if let Some(connection) = own(&app, &person, id).await?.connection_id {
        return Ok(Redirect::to(&format!("/seedbox/servers/{connection}")).into_response());
    }
    page(&box_page(&app, &person, id, done.said(), None).await?)
}

pub(super) async fn own(app: &App, person: &Person, id: Uuid) -> Result<Resource, Problem> {
    repository::resource_of(&app.pool, person.customer.principal.user_id, ResourceId(id))
        .await?
        .ok_or_else(|| Problem::not_found("box"))
}

/// `GET /seedbox/boxes/{id}/live`
pub(super) async fn show_live(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    own(&app, &person, id).await?;
    live::stream(&app.clone(), &person.clone(), move || {
        let (app, person) = (app.clone(), person.clone());
        async move { box_part(&app, &person, ResourceId(id)).await }
    })
}

/// `POST /seedbox/boxes/{id}/login`: the password, once.
pub(super) async fn show_login(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    let resource = own(&app, &person, id).await?;
    resources::refuse_byos(&resource)?;
    match resources::reveal(&app, &resource, &person.customer.cause()).await {
        Ok((name, password)) => {
            let login = Login {
                web_url: resource.web_url.unwrap_or_default(),
                name,
                password: password.expose_secret().to_owned(),
            };
            page(&box_page(&app, &person, id, None, Some(login)).await?)
        }
        Err(problem) => refused(&app, &person, id, &problem).await,
    }
}

/// The box's page again, with why something was not done.
async fn refused(app: &App, person: &Person, id: Uuid, problem: &Problem) -> Result<Response, Problem> {
    let said = Some(Said::refused(problem));
    page_with(status_of(problem), &box_page(app, person, id, said, None).await?)
}

/// Back to the box's page, with what was asked for, or with why it was not.
async fn answer<T>(
    app: &App,
    person: &Person,
    id: Uuid,
    done: &str,
    result: Result<T, Problem>,
) -> Result<Response, Problem> {
    match result {
        Ok(_) => Ok(Redirect::to(&format!("/seedbox/boxes/{id}?done={done}")).into_response()),
        Err(problem) if problem.status == 404 => Err(problem),
        Err(problem) => refused(app, person, id, &problem).await,
    }
}

/// `POST /seedbox/boxes/{id}/rotate`
pub(super) async fn rotate(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
    Fields(form): Fields<FormId>,
) -> Result<Response, Problem> {
    let customer = person.customer.clone();
    let result = resources::rotate_credentials(State(app.clone()), customer, NewId(form.form_id), Id(id)).await;
    answer(&app, &person, id, "rotate", result).await
}

/// `POST /seedbox/boxes/{id}/restart`
pub(super) async fn restart(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
    Fields(form): Fields<FormId>,
) -> Result<Response, Problem> {
    let result = resources::restart(State(app.clone()), person.customer.clone(), NewId(form.form_id), Id(id)).await;
    answer(&app, &person, id, "restart", result).await
}

/// `POST /seedbox/boxes/{id}/suspend`
pub(super) async fn suspend(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
    Fields(form): Fields<FormId>,
) -> Result<Response, Problem> {
    let customer = person.customer.clone();
    let result = resources::suspend(State(app.clone()), customer, NewId(form.form_id), Id(id)).await;
    answer(&app, &person, id, "suspend", result).await
}

/// `POST /seedbox/boxes/{id}/resume`
pub(super) async fn resume(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
    Fields(form): Fields<FormId>,
) -> Result<Response, Problem> {
    let customer = person.customer.clone();
    let result = resources::resume(State(app.clone()), customer, NewId(form.form_id), Id(id)).await;
    answer(&app, &person, id, "resume", result).await
}

/// A plan that a box could have.
struct Choice {
    plan: Plan,
    /// What it would cost, or why it cannot be had.
    quote: Result<PlanChange, String>,
}

impl Choice {
    fn offer(&self) -> Option<&PlanChange> {
        self.quote.as_ref().ok()
    }

    fn refusal(&self) -> &str {
        self.quote.as_ref().err().map(String::as_str).unwrap_or_default()
    }

    fn from(&self) -> String {
        self.offer().map(|change| show::day(change.takes_effect_at)).unwrap_or_default()
    }
}

#[derive(Template)]
#[template(path = "box_plan.html")]
struct PlanPage {
    shell: Shell,
    id: ResourceId,
    label: String,
    now: Option<Plan>,
    price: Usd,
    available: Usd,
    choices: Vec<Choice>,
    said: Option<Said>,
    form_id: Uuid,
}

async fn plan_page(app: &App, person: &Person, id: Uuid, said: Option<Said>) -> Result<PlanPage, Problem> {
    let resource = own(app, person, id).await?;
    resources::refuse_byos(&resource)?;
    let now = app.now();
    let mut choices = Vec::new();
    let mut present = None;
    let mut connection = app.pool.acquire().await?;
    if let Some(id) = resource.plan_id {
        present = plans::find(&mut *connection, id).await?;
    }
    for plan in plans::on_sale(&mut *connection).await? {
        if Some(plan.id) == resource.plan_id || Some(&plan.provider) != resource.provider.as_ref() {
            continue;
        }
        let quote = match plan_changes::quote(&mut connection, &resource, plan.id, now).await {
            Ok((change, _)) => Ok(change),
            Err(problem) if problem.status < 500 => Err(super::sentence(&problem.detail)),
            Err(problem) => return Err(problem),
        };
        choices.push(Choice { plan, quote });
    }
    drop(connection);
    let available = ledger::balances(&app.pool, resource.user_id).await?.available();
    Ok(PlanPage {
        shell: Shell::new(app, Some(person), format!("Change the plan of {}", resource.label), "boxes"),
        id: resource.id,
        price: resource.price_cents,
        form_id: Uuid::now_v7(),
        label: resource.label,
        now: present,
        available,
        choices,
        said,
    })
}

/// `GET /seedbox/boxes/{id}/plan`
pub(super) async fn ask_plan(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    page(&plan_page(&app, &person, id, None).await?)
}

/// Which plan.
#[derive(Deserialize)]
pub(super) struct ChangePlan {
    form_id: Uuid,
    plan_id: PlanId,
}

/// `POST /seedbox/boxes/{id}/plan`
pub(super) async fn change_plan(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
    Fields(form): Fields<ChangePlan>,
) -> Result<Response, Problem> {
    let body = Body(OtherPlan { plan_id: form.plan_id });
    let customer = person.customer.clone();
    match resources::upgrade(State(app.clone()), customer, NewId(form.form_id), Id(id), body).await {
        Err(problem) if problem.status != 404 => {
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &plan_page(&app, &person, id, said).await?)
        }
        result => answer(&app, &person, id, "plan", result).await,
    }
}

#[derive(Template)]
#[template(path = "box_end.html")]
struct EndPage {
    shell: Shell,
    id: ResourceId,
    label: String,
    ends_at_period_end: bool,
    paid_until: Option<When>,
    /// What goes back to the balance if it ends now.
    refund: Usd,
    can_end_later: bool,
    said: Option<Said>,
    form_id: Uuid,
}

async fn end_page(app: &App, person: &Person, id: Uuid, said: Option<Said>) -> Result<EndPage, Problem> {
    let resource = own(app, person, id).await?;
    resources::refuse_byos(&resource)?;
    let refund = billing::refunds::preview_of_end(&app.pool, &resource, app.now(), &app.policy).await?;
    Ok(EndPage {
        shell: Shell::new(app, Some(person), format!("End {}", resource.label), "boxes"),
        id: resource.id,
        ends_at_period_end: resource.ends_at_period_end,
        paid_until: resource.paid_until.map(When),
        refund,
        can_end_later: resource.status == Status::Active && resource.past_due_since.is_none(),
        said,
        form_id: Uuid::now_v7(),
        label: resource.label,
    })
}

/// `GET /seedbox/boxes/{id}/end`
pub(super) async fn ask_end(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    page(&end_page(&app, &person, id, None).await?)
}

/// How a box ends: `now`, `later` or `not`.
#[derive(Deserialize)]
pub(super) struct End {
    form_id: Uuid,
    when: String,
    #[serde(default)]
    confirm_label: String,
}

/// `POST /seedbox/boxes/{id}/end`
pub(super) async fn end(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Id(id): Id<Uuid>,
    Fields(form): Fields<End>,
) -> Result<Response, Problem> {
    let (at_period_end, done) = match form.when.as_str() {
        "later" => (Some(true), "end-later"),
        "not" => (Some(false), "end-not"),
        "now" => (None, "end"),
        _ => return Err(Problem::bad_input("a box ends now, later or not; nothing was done")),
    };
    let label = own(&app, &person, id).await?.label;
    // Only what cannot be taken back asks for the name of the box.
    if at_period_end.is_none() && form.confirm_label.trim() != label {
        let problem =
            Problem::bad_input(format!("that is not the name of this box, which is '{label}'; nothing was ended"));
        let said = Some(Said::refused(&problem));
        return page_with(status_of(&problem), &end_page(&app, &person, id, said).await?);
    }
    let body = Body(EndBox { confirm_label: label, at_period_end });
    let customer = person.customer.clone();
    let result = resources::terminate(State(app.clone()), customer, NewId(form.form_id), Id(id), body).await;
    answer(&app, &person, id, done, result).await
}
