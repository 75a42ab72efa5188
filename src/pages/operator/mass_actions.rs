//! The same done to the boxes that were chosen in the list: first what it comes to, then it is done.

use askama::Template;
use axum::{
    extract::{Query, State},
    response::{IntoResponse, Redirect, Response},
};
use jiff::SignedDuration;
use serde::Deserialize;
use uuid::Uuid;

use super::{
    Tabs,
    approvals::named,
    boxes::{Wanted, boxes_page},
    shell,
};
use crate::{
    api::{
        error::{Body, Problem},
        idempotency::NewId,
        operator::mass_actions::{self as api, Change, MassActionBody, Sorted},
    },
    app::App,
    approvals::{self, Affected, Effects},
    clock::Time,
    ids::ResourceId,
    pages::{
        Fields, Said, Shell, page, page_with, status_of,
        visitor::{Acting, Person},
    },
    seedbox::SuspendReason,
};

/// What can be done to boxes that are chosen in the list: the value of the form, and its words.
pub(super) const CHOICES: [(&str, &str); 7] = [
    ("hold-7", "Hold for 7 days"),
    ("hold-30", "Hold for 30 days"),
    ("release", "Release the hold"),
    ("suspend-operator", "Suspend: the service stops"),
    ("suspend-abuse", "Suspend for abuse: everything is cut"),
    ("suspend-upstream", "Suspend: the provider did it"),
    ("resume", "Bring back"),
];

fn change_of(word: &str, now: Time) -> Result<Change, Problem> {
    let until = |days: i64| Time(now.0 + SignedDuration::from_hours(24 * days));
    match word {
        "hold-7" => Ok(Change::Hold { until: until(7) }),
        "hold-30" => Ok(Change::Hold { until: until(30) }),
        "release" => Ok(Change::ReleaseHold {}),
        "suspend-operator" => Ok(Change::Suspend { suspend_reason: SuspendReason::Operator }),
        "suspend-abuse" => Ok(Change::Suspend { suspend_reason: SuspendReason::Abuse }),
        "suspend-upstream" => Ok(Change::Suspend { suspend_reason: SuspendReason::Upstream }),
        "resume" => Ok(Change::Resume {}),
        _ => Err(Problem::bad_input("choose what is to be done to the boxes; nothing was done")),
    }
}

#[derive(Template)]
#[template(path = "operator/mass_action.html")]
struct MassActionPage {
    shell: Shell,
    tabs: Tabs,
    said: Option<Said>,
    action: String,
    words: &'static str,
    /// The ids of those that it can be done to, with commas between.
    boxes: String,
    count: usize,
    effects: Effects,
    reaches: Vec<(Affected, String)>,
    more: usize,
    cannot: Vec<(ResourceId, String, String)>,
    needs_approval: bool,
    alone: bool,
    form_id: Uuid,
}

async fn mass_action_page(
    app: &App,
    person: &Person,
    action: &str,
    ids: &[ResourceId],
    form_id: Uuid,
    said: Option<Said>,
) -> Result<MassActionPage, Problem> {
    let change = change_of(action, app.now())?;
    let Sorted { can, cannot, effects, needs_approval } = api::sort(app, &change, ids).await?;
    let (reaches, more) = named(app, &effects.reaches).await?;
    let words = CHOICES.iter().find(|(word, _)| *word == action).map_or("", |(_, words)| words);
    Ok(MassActionPage {
        shell: shell(app, person, words),
        tabs: Tabs { current: "/operator/boxes" },
        said,
        action: action.to_owned(),
        words,
        boxes: can.iter().map(|one| one.id.to_string()).collect::<Vec<_>>().join(","),
        count: can.len(),
        effects,
        reaches,
        more,
        cannot,
        needs_approval,
        alone: !approvals::has_second_person(&app.pool, person.customer.principal.user_id).await?,
        form_id,
    })
}

/// The list of boxes again, with what was wrong.
async fn back_to_boxes(app: &App, person: &Person, problem: &Problem) -> Result<Response, Problem> {
    let said = Some(Said::refused(problem));
    page_with(status_of(problem), &boxes_page(app, person, Wanted::default(), said).await?)
}

/// `GET /operator/mass-action?box=...&box=...&action=...`: what it comes to. Changes nothing.
pub(in crate::pages) async fn ask(
    State(app): State<App>,
    acting: Acting,
    Query(fields): Query<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    let ids: Vec<ResourceId> = fields
        .iter()
        .filter(|(name, _)| name == "box")
        .filter_map(|(_, id)| Some(ResourceId(id.parse().ok()?)))
        .collect();
    let action = fields.iter().find(|(name, _)| name == "action").map_or("", |(_, action)| action);
    match mass_action_page(&app, &acting.person, action, &ids, Uuid::now_v7(), None).await {
        Ok(asked) => page(&asked),
        Err(problem) => back_to_boxes(&app, &acting.person, &problem).await,
    }
}

/// A mass action that somebody has looked at.
#[derive(Deserialize)]
pub(in crate::pages) struct MassActionForm {
    form_id: Uuid,
    action: String,
    #[serde(default)]
    boxes: String,
    reason: String,
}

/// `POST /operator/mass-action`
pub(in crate::pages) async fn begin(
    State(app): State<App>,
    acting: Acting,
    Fields(form): Fields<MassActionForm>,
) -> Result<Response, Problem> {
    let ids: Vec<ResourceId> = form.boxes.split(',').filter_map(|id| Some(ResourceId(id.parse().ok()?))).collect();
    let count = ids.len();
    let result = match change_of(&form.action, app.now()) {
        Ok(change) => {
            let body = Body(MassActionBody { change, resource_ids: ids.clone(), reason: form.reason });
            api::begin(State(app.clone()), acting.operator, NewId(form.form_id), body).await
        }
        Err(problem) => Err(problem),
    };
    match result {
        Ok(answer) => {
            let done = || format!("/operator/boxes?done={count}");
            Ok(Redirect::to(&answer.waits_at().unwrap_or_else(done)).into_response())
        }
        Err(problem) => {
            let said = Some(Said::refused(&problem));
            match mass_action_page(&app, &acting.person, &form.action, &ids, form.form_id, said).await {
                Ok(again) => page_with(status_of(&problem), &again),
                Err(_) => back_to_boxes(&app, &acting.person, &problem).await,
            }
        }
    }
}
