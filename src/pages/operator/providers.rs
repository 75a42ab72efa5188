//! The providers: whether they answer, what they have, and where torrents may be sold, by whose word.

use std::collections::{BTreeSet, HashMap};

use askama::Template;
use axum::{
    extract::{Path, State},
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;

use super::{Tabs, shell};
use crate::{
    accounts,
    api::{
        error::Problem,
        operator::{self as api, ProviderView},
    },
    app::App,
    ids::UserId,
    pages::{
        Fields, Said, Shell, page, page_with,
        show::{self, Badge, When},
        status_of,
        visitor::{Acting, Person, Reading},
    },
    seedbox::{
        Plan,
        catalogues::FailureKind,
        permissions::{self, Permission},
        plans,
    },
};

/// A permission that stands, and what taking it back does.
struct Standing {
    permission: Permission,
    by: String,
    at: When,
    /// The plans that are not sold any more without it.
    stops: Vec<String>,
}

struct Shown {
    badge: Badge,
    looked_at: When,
    failing_since: Option<When>,
    regions: Vec<String>,
    standing: Vec<Standing>,
    /// Whether anything may be sold there at all.
    allowed: bool,
    view: ProviderView,
}

#[derive(Template)]
#[template(path = "operator/providers.html")]
struct ProvidersPage {
    shell: Shell,
    tabs: Tabs,
    said: Option<Said>,
    may_act: bool,
    providers: Vec<Shown>,
}

/// The plans on sale that only this permission covers.
fn stopped_by(revoked: &Permission, all: &[Permission], on_sale: &[Plan]) -> Vec<String> {
    let left: Vec<Permission> = all.iter().filter(|one| one.id != revoked.id).cloned().collect();
    let covered =
        |standing: &[Permission], plan: &Plan| permissions::covers(standing, &plan.provider, plan.region.as_deref());
    on_sale
        .iter()
        .filter(|plan| plan.provider == revoked.provider && covered(all, plan) && !covered(&left, plan))
        .map(|plan| format!("{} ({})", plan.name, plan.code))
        .collect()
}

async fn providers_page(app: &App, person: &Person, said: Option<Said>) -> Result<ProvidersPage, Problem> {
    let views = api::providers(&app.pool).await?;
    let on_sale = plans::on_sale(&app.pool).await?;
    let who = |permission: &Permission| permission.permitted_by.strip_prefix("operator:")?.parse().ok().map(UserId);
    let people: BTreeSet<UserId> = views.iter().flat_map(|view| &view.permissions).filter_map(who).collect();
    let people: Vec<UserId> = people.into_iter().collect();
    let emails: HashMap<UserId, String> = accounts::emails_of(&app.pool, &people).await?;
    let shown = views.into_iter().map(|view| {
        let standing = view.permissions.iter().map(|permission| Standing {
            by: who(permission).and_then(|id| emails.get(&id).cloned()).unwrap_or(permission.permitted_by.clone()),
            at: When(permission.permitted_at),
            // What its terms allow is sold without a permission.
            stops: match view.warning {
                Some(_) => stopped_by(permission, &view.permissions, &on_sale),
                None => Vec::new(),
            },
            permission: permission.clone(),
        });
        let regions: BTreeSet<&String> = view.sizes.iter().flat_map(|size| &size.regions).collect();
        let refused = matches!(view.failure, Some(FailureKind::Access | FailureKind::CreateAccess));
        Shown {
            badge: show::provider_badge(refused, view.failure.is_some()),
            looked_at: When(view.looked_at),
            failing_since: view.failing_since.map(When),
            regions: regions.into_iter().cloned().collect(),
            standing: standing.collect(),
            allowed: view.torrent_stance.is_some() && view.warning.is_none(),
            view,
        }
    });
    Ok(ProvidersPage {
        shell: shell(app, person, "Providers"),
        tabs: Tabs { current: "/operator/providers" },
        said,
        may_act: person.is_operator(),
        providers: shown.collect(),
    })
}

/// `GET /operator/providers`
pub(in crate::pages) async fn show(State(app): State<App>, Reading(person): Reading) -> Result<Response, Problem> {
    page(&providers_page(&app, &person, None).await?)
}

/// Where torrents may be sold, or no longer: `permit` or `forbid`.
#[derive(Deserialize)]
pub(in crate::pages) struct Permit {
    action: String,
    /// Everywhere at the provider if empty.
    #[serde(default)]
    region: String,
    reason: String,
}

/// `POST /operator/providers/{provider}/permission`
pub(in crate::pages) async fn permit(
    State(app): State<App>,
    acting: Acting,
    Path(provider): Path<String>,
    Fields(form): Fields<Permit>,
) -> Result<Response, Problem> {
    let region = Some(form.region.as_str()).filter(|region| !region.is_empty());
    let (pool, now) = (&app.pool, app.now());
    let result = match (acting.operator.cause(&form.reason), form.action.as_str()) {
        (Err(problem), _) => Err(problem),
        (Ok(cause), "permit") => api::permit_torrents(pool, now, &provider, region, &cause).await,
        (Ok(cause), "forbid") => api::forbid_torrents(pool, now, &provider, region, &cause).await,
        _ => Err(Problem::bad_input("torrents are permitted at a provider, or no longer; nothing was changed")),
    };
    match result {
        Ok(_) => Ok(Redirect::to("/operator/providers").into_response()),
        Err(problem) if problem.status == 404 => Err(problem),
        Err(problem) => {
            let said = Some(Said::refused(&problem));
            page_with(status_of(&problem), &providers_page(&app, &acting.person, said).await?)
        }
    }
}
