//! What waits for a second person: who asked, exactly what will happen, and what was decided.

use std::collections::{BTreeSet, HashMap};

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use uuid::Uuid;

use super::{Tabs, shell};
use crate::{
    accounts,
    api::{
        error::{Body, Id, Problem},
        operator::{self as api, approvals as api_approvals},
    },
    app::App,
    approvals::{self, Affected, Approval},
    ids::UserId,
    pages::{
        Fields, Said, Shell, page, page_with,
        show::{self, Badge, When},
        status_of,
        visitor::{Acting, Person, Reading},
    },
};

/// How many of those who are reached a page names; the API has them all.
pub(super) const NAMED: usize = 200;

struct Listed {
    approval: Approval,
    badge: Badge,
    at: When,
    decided_at: Option<When>,
    expires_at: When,
    mine: bool,
}

impl Listed {
    fn new(app: &App, person: &Person, approval: Approval) -> Self {
        let mine = approval.asked_by == person.customer.principal.user_id;
        Self {
            badge: show::approval_badge(&approval, mine, app.now()),
            at: When(approval.asked_at),
            decided_at: approval.decided_at.map(When),
            expires_at: When(approval.expires_at),
            mine,
            approval,
        }
    }
}

#[derive(Template)]
#[template(path = "operator/approvals.html")]
struct ApprovalsPage {
    shell: Shell,
    tabs: Tabs,
    rule: bool,
    /// Nobody but whoever looks could approve anything.
    alone: bool,
    waiting: Vec<Listed>,
    decided: Vec<Listed>,
}

/// `GET /operator/approvals`
pub(in crate::pages) async fn list(State(app): State<App>, Reading(person): Reading) -> Result<Response, Problem> {
    let me = person.customer.principal.user_id;
    let listed = |all: Vec<Approval>| all.into_iter().map(|one| Listed::new(&app, &person, one)).collect();
    page(&ApprovalsPage {
        shell: shell(&app, &person, "Approvals"),
        tabs: Tabs { current: "/operator/approvals" },
        rule: app.two_person_rule,
        alone: person.is_operator() && !approvals::has_second_person(&app.pool, me).await?,
        waiting: listed(approvals::waiting(&app.pool).await?),
        decided: listed(approvals::decided(&app.pool).await?),
    })
}

#[derive(Template)]
#[template(path = "operator/approval.html")]
struct ApprovalPage {
    shell: Shell,
    tabs: Tabs,
    said: Option<Said>,
    may_act: bool,
    open: bool,
    one: Listed,
    reaches: Vec<(Affected, String)>,
    more: usize,
}

/// Those who are reached, with the addresses of the first of them, and how many more there are.
pub(super) async fn named(app: &App, reaches: &[Affected]) -> Result<(Vec<(Affected, String)>, usize), Problem> {
    let first = &reaches[..reaches.len().min(NAMED)];
    let users: Vec<UserId> = first.iter().map(|one| one.user_id).collect::<BTreeSet<_>>().into_iter().collect();
    let emails: HashMap<UserId, String> = accounts::emails_of(&app.pool, &users).await?;
    let named = first.iter().map(|one| (one.clone(), emails.get(&one.user_id).cloned().unwrap_or_default()));
    Ok((named.collect(), reaches.len() - first.len()))
}

async fn approval_page(app: &App, person: &Person, id: Uuid, said: Option<Said>) -> Result<ApprovalPage, Problem> {
    let approval = api_approvals::one(app, id).await?;
    let (reaches, more) = named(app, &approval.effects.reaches).await?;
    Ok(ApprovalPage {
        shell: shell(app, person, approval.summary.clone()),
        tabs: Tabs { current: "/operator/approvals" },
        said,
        may_act: person.is_operator(),
        open: approval.is_open(app.now()),
        one: Listed::new(app, person, approval),
        reaches,
        more,
    })
}

/// `GET /operator/approvals/{id}`
pub(in crate::pages) async fn show(
    State(app): State<App>,
    Reading(person): Reading,
    Id(id): Id<Uuid>,
) -> Result<Response, Problem> {
    page(&approval_page(&app, &person, id, None).await?)
}

/// A decision: `approve`, `refuse` or `withdraw`.
#[derive(Deserialize)]
pub(in crate::pages) struct Decide {
    action: String,
    reason: String,
}

/// `POST /operator/approvals/{id}/decide`
pub(in crate::pages) async fn decide(
    State(app): State<App>,
    acting: Acting,
    Id(id): Id<Uuid>,
    Fields(form): Fields<Decide>,
) -> Result<Response, Problem> {
    let (state, operator, body) = (State(app.clone()), acting.operator, Body(api::Why { reason: form.reason }));
    let result = match form.action.as_str() {
        "approve" => api_approvals::approve(state, operator, Id(id), body).await,
        "refuse" => api_approvals::refuse(state, operator, Id(id), body).await,
        "withdraw" => api_approvals::withdraw(state, operator, Id(id), body).await,
        _ => {
            api_approvals::one(&app, id).await?;
            Err(Problem::bad_input("an approval is approved, refused or withdrawn; nothing was done"))
        }
    };
    match result {
        Ok(_) => Ok(Redirect::to(&format!("/operator/approvals/{id}")).into_response()),
        Err(problem) if problem.status == 404 => Err(problem),
        Err(problem) => {
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &approval_page(&app, &acting.person, id, said).await?)
        }
    }
}
