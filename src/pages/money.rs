//! Money: the balance, what keeps each box until when, which box first, paying in, and every cent explained.

use askama::Template;
use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    Fields, Said, Shell,
    boxes::LOOK_AHEAD,
    page, page_with,
    show::{self, Badge, When},
    status_of,
    topups::{self as pay, Coin},
    visitor::{Person, SignedIn},
};
use crate::{
    api::{billing::statement_csv, error::Problem},
    app::App,
    billing::{
        ledger::{self, Balances},
        sweep,
        topups::{self, TopupView},
    },
    clock::Time,
    ids::ResourceId,
    money::Usd,
    seedbox::{Resource, Status, repository},
};

/// How many lines of the statement the page shows; the file has them all.
const LINES: usize = 60;

/// A box in the order of charges.
struct Ranked {
    id: ResourceId,
    label: String,
    price: Usd,
    paid_until: Option<When>,
    stops_at: Option<When>,
    needs: Usd,
    first: bool,
    last: bool,
}

struct Line {
    at: When,
    what: String,
    about: Option<(ResourceId, String)>,
    change: Usd,
    after: Usd,
}

struct Charge {
    at: When,
    label: String,
    period: String,
    amount: Usd,
}

#[derive(Template)]
#[template(path = "money.html")]
pub(super) struct MoneyPage {
    shell: Shell,
    said: Option<Said>,
    balances: Balances,
    available: Usd,
    pay_in: Usd,
    until: String,
    boxes: Vec<Ranked>,
    charges: Vec<Charge>,
    topups: Vec<(TopupView, Badge, When)>,
    lines: Vec<Line>,
    more_lines: usize,
    coins: Vec<Coin>,
    minimum: Usd,
    maximum: Usd,
    suggested: Usd,
    form_id: Uuid,
}

/// Boxes that months are charged for, in the order in which they are: the owner's priority, then the earliest due, then the
/// oldest, as the rules have it.
async fn ranked(app: &App, person: &Person) -> Result<Vec<Resource>, Problem> {
    let resources = repository::resources_of(&app.pool, person.customer.principal.user_id).await?;
    let mut boxes: Vec<Resource> = resources
        .into_iter()
        .filter(|one| one.connection_id.is_none() && matches!(one.status, Status::Active | Status::Suspended))
        .collect();
    boxes.sort_by_key(|one| (one.priority, one.paid_until, one.activated_at, one.id));
    Ok(boxes)
}

pub(super) async fn money_page(app: &App, person: &Person, said: Option<Said>) -> Result<MoneyPage, Problem> {
    let user = person.customer.principal.user_id;
    let now = app.now();
    let balances = ledger::balances(&app.pool, user).await?;
    let preview = sweep::preview(app, user, now, Time(now.0 + LOOK_AHEAD)).await?;
    let boxes = ranked(app, person).await?;
    let everything = repository::resources_of(&app.pool, user).await?;
    let label = |id: ResourceId| everything.iter().find(|one| one.id == id).map(|one| one.label.clone());
    let count = boxes.len();
    let topups = topups::list_of_user(app, user).await?;
    let statement = ledger::statement(&app.pool, user, None, None).await?;
    let more_lines = statement.len().saturating_sub(LINES);
    Ok(MoneyPage {
        shell: Shell::new(app, Some(person), "Money", "money"),
        said,
        available: balances.available(),
        balances,
        pay_in: preview.pay_in_cents,
        until: show::day(preview.until),
        boxes: boxes
            .iter()
            .enumerate()
            .map(|(index, one)| {
                let ahead = preview.boxes.iter().find(|ahead| ahead.resource_id == one.id);
                Ranked {
                    id: one.id,
                    label: one.label.clone(),
                    price: one.price_cents,
                    paid_until: one.paid_until.map(When),
                    stops_at: ahead.and_then(|ahead| ahead.stops_at).map(When),
                    needs: ahead.map_or(Usd::ZERO, |ahead| ahead.needs_cents),
                    first: index == 0,
                    last: index + 1 == count,
                }
            })
            .collect(),
        charges: preview
            .charges
            .iter()
            .map(|charge| Charge {
                at: When(charge.at),
                label: label(charge.resource_id).unwrap_or_default(),
                period: format!("{} to {}", show::day(charge.period_start), show::day(charge.period_end)),
                amount: charge.amount_cents,
            })
            .collect(),
        form_id: Uuid::now_v7(),
        topups: topups
            .into_iter()
            .take(20)
            .map(|topup| {
                let badge = show::topup_badge(&topup);
                let at = When(topup.created_at);
                (topup, badge, at)
            })
            .collect(),
        lines: statement
            .iter()
            .rev()
            .take(LINES)
            .map(|line| Line {
                at: When(line.at),
                what: show::transfer_words(line),
                about: line.resource_id.and_then(|id| Some((id, label(id)?))),
                change: line.change_cents,
                after: line.available_cents,
            })
            .collect(),
        more_lines,
        coins: pay::coins(app),
        minimum: app.policy.topup_min,
        maximum: app.policy.topup_max,
        suggested: preview.pay_in_cents.max(app.policy.topup_min).min(app.policy.topup_max),
    })
}

/// `GET /seedbox/money`
pub(super) async fn show(State(app): State<App>, SignedIn(person): SignedIn) -> Result<Response, Problem> {
    page(&money_page(&app, &person, None).await?)
}

/// `GET /seedbox/money/statement.csv`
pub(super) async fn csv(State(app): State<App>, SignedIn(person): SignedIn) -> Result<Response, Problem> {
    Ok(statement_csv(ledger::statement(&app.pool, person.customer.principal.user_id, None, None).await?))
}

/// Which box is charged first: all of them in their new order, or one of them moved.
#[derive(Deserialize)]
pub(super) struct NewOrder {
    /// `<id>:up` or `<id>:down`, from the buttons.
    #[serde(rename = "move")]
    moved: Option<String>,
    /// The ids with commas between, from dragging.
    order: Option<String>,
}

/// `POST /seedbox/money/order`
pub(super) async fn set_order(
    State(app): State<App>,
    SignedIn(person): SignedIn,
    Fields(form): Fields<NewOrder>,
) -> Result<Response, Problem> {
    let boxes = ranked(&app, &person).await?;
    let ids: Vec<ResourceId> = boxes.iter().map(|one| one.id).collect();
    let Some(order) = reordered(&ids, &form) else {
        let problem =
            Problem::conflict("your boxes are not those that the page showed; nothing was changed. Try again");
        let said = Some(Said::refused(&problem));
        return page_with(status_of(&problem), &money_page(&app, &person, said).await?);
    };
    let (now, cause) = (app.now(), person.customer.cause());
    let mut tx = app.pool.begin().await?;
    for (place, id) in (1..=1000).zip(&order) {
        let Some(resource) = boxes.iter().find(|one| one.id == *id) else { continue };
        if resource.priority != place {
            repository::set_priority_in(&mut tx, resource, place, now, &cause).await?;
        }
    }
    tx.commit().await?;
    Ok(Redirect::to("/seedbox/money#order").into_response())
}

/// The new order, if the form is about these boxes.
fn reordered(ids: &[ResourceId], form: &NewOrder) -> Option<Vec<ResourceId>> {
    let mut order = ids.to_vec();
    if let Some(moved) = form.moved.as_deref().filter(|moved| !moved.is_empty()) {
        let (id, direction) = moved.split_once(':')?;
        let at = ids.iter().position(|known| known.to_string() == id)?;
        match direction {
            "up" if at > 0 => order.swap(at, at - 1),
            "down" if at + 1 < ids.len() => order.swap(at, at + 1),
            _ => {}
        }
        return Some(order);
    }
    let wanted = form.order.as_deref()?.split(',');
    let wanted: Option<Vec<ResourceId>> =
        wanted.map(|id| ids.iter().find(|known| known.to_string() == id.trim()).copied()).collect();
    let wanted = wanted?;
    let mut sorted = wanted.clone();
    sorted.sort();
    order.sort();
    (sorted == order).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_moved_and_none_is_lost() {
        let ids: Vec<ResourceId> = (0..3).map(|_| ResourceId::new()).collect();
        let form = |moved: Option<String>, order: Option<String>| NewOrder { moved, order };
        let [a, b, c] = [ids[0], ids[1], ids[2]];
        assert_eq!(reordered(&ids, &form(Some(format!("{b}:up")), None)), Some(vec![b, a, c]));
        assert_eq!(reordered(&ids, &form(Some(format!("{b}:down")), None)), Some(vec![a, c, b]));
        assert_eq!(reordered(&ids, &form(Some(format!("{a}:up")), None)), Some(vec![a, b, c]));
        assert_eq!(reordered(&ids, &form(None, Some(format!("{c},{a},{b}")))), Some(vec![c, a, b]));
        for wrong in
            [format!("{a},{b}"), format!("{a},{b},{b}"), format!("{a},{b},{}", ResourceId::new()), String::new()]
        {
            assert_eq!(reordered(&ids, &form(None, Some(wrong))), None);
        }
        assert_eq!(reordered(&ids, &form(Some(format!("{}:up", ResourceId::new())), None)), None);
        assert_eq!(reordered(&ids, &form(None, None)), None);
    }
}
