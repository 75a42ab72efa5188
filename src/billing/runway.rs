//! Who runs out of money next: candidates by what falls due and what is there, and then the same forecast that each customer
//! sees of their own boxes.

use std::collections::{BTreeSet, HashMap};

use jiff::SignedDuration;
use serde::Serialize;
use sqlx::PgPool;
use utoipa::ToSchema;

use super::{
    rules::{self, BoxStatus, DAY},
    sweep::{self, BATCH},
};
use crate::{accounts, app::App, clock::Time, ids::UserId, money::Usd};

/// How far it is looked ahead.
pub const LOOKS_AHEAD: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How many are named.
const NAMED: usize = 10;

/// How many boxes are looked at, those whose month begins next first.
const LOOKED_AT: usize = 2000;

/// A customer whose balance does not keep every box.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Runway {
    /// Who.
    pub user_id: UserId,
    /// Their address.
    pub email: String,
    /// What they can spend, in US cents.
    pub available_cents: Usd,
    /// What a month of their running boxes costs, in US cents.
    pub monthly_cents: Usd,
    /// When the first of those is suspended if nothing is paid in, as it stands on their own pages.
    pub stops_at: Time,
    /// How many of them stop within the 30 days.
    pub boxes: usize,
}

/// Who runs out of money next, and how much revenue with them.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Runways {
    /// The next ten.
    pub next: Vec<Runway>,
    /// How many there are within 30 days.
    pub customers: usize,
    /// What the boxes that stop within 7 days bring in a month, in US cents.
    pub within_week_cents: Usd,
    /// The same within 30 days.
    pub within_month_cents: Usd,
    /// Whether that is everybody: if not, there are more than were looked at, and the sums are at least so much.
    pub complete: bool,
}

/// Looks ahead for 30 days.
///
/// # Errors
/// Those of the database.
pub async fn look(app: &App) -> sqlx::Result<Runways> {
    let now = app.now();
    let until = Time(now.0 + LOOKS_AHEAD);
    // What begins later and is not paid runs on in its grace until then.
    let due = due_and_not_covered(&app.pool, Time(until.0 - app.policy.grace)).await?;
    let complete = due.len() < LOOKED_AT;
    let users: Vec<UserId> = due.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    let (mut found, mut within_week, mut within_month) = (Vec::new(), Usd::ZERO, Usd::ZERO);
    for batch in users.chunks(BATCH) {
        let mut connection = app.pool.acquire().await?;
        let loaded = sweep::load_in(&mut connection, batch, now, &app.policy).await?;
        drop(connection);
        for of in loaded {
            let running: HashMap<_, _> = of
                .account
                .boxes
                .iter()
                .filter(|one| one.status == BoxStatus::Active && !one.ends_at_period_end && !one.end_asked)
                .map(|one| (one.id, one.price))
                .collect();
            let forecast = rules::forecast(&of.account, now.0, until.0, &app.policy);
            let stopping: Vec<(Time, Usd)> =
                forecast.boxes.iter().filter_map(|one| Some((Time(one.stops_at?), *running.get(&one.id)?))).collect();
            let Some(stops_at) = stopping.iter().map(|(at, _)| *at).min() else { continue };
            within_month += stopping.iter().map(|(_, price)| *price).sum();
            within_week += stopping.iter().filter(|(at, _)| at.0 <= now.0 + DAY * 7).map(|(_, price)| *price).sum();
            found.push(Runway {
                user_id: of.user,
                email: String::new(),
                available_cents: of.account.available(),
                monthly_cents: running.values().copied().sum(),
                stops_at,
                boxes: stopping.len(),
            });
        }
    }
    found.sort_by_key(|one| (one.stops_at, one.user_id));
    let customers = found.len();
    found.truncate(NAMED);
    let named: Vec<UserId> = found.iter().map(|one| one.user_id).collect();
    let mut emails = accounts::emails_of(&app.pool, &named).await?;
    for one in &mut found {
        one.email = emails.remove(&one.user_id).unwrap_or_default();
    }
    Ok(Runways { next: found, customers, within_week_cents: within_week, within_month_cents: within_month, complete })
}

/// The owners of boxes whose month begins before a time, where all that begins before then may cost more than is there: never
/// fewer than the rules would find. Months have 28 days at least, so that two may begin.
async fn due_and_not_covered(pool: &PgPool, before: Time) -> sqlx::Result<Vec<UserId>> {
    // A literal limit: a parameter's would be planned for a tenth of the table.
    sqlx::query_scalar!(
        "select r.user_id from seedbox_resources r
         where r.status = 'active' and r.kind = 'managed' and not r.ends_at_period_end and r.paid_until < $1
           and (select coalesce(sum(l.balance_cents), 0) from ledger_accounts l
                where l.user_id = r.user_id and l.kind in ('paid', 'promotional') and l.resource_id is null)
             < (select sum(greatest(o.price_cents, o.next_price_cents, o.next_plan_price_cents)
                    * case when o.paid_until < $1::timestamptz - interval '28 days' then 2 else 1 end)
                from seedbox_resources o
                where o.user_id = r.user_id and o.status = 'active' and o.kind = 'managed' and not o.ends_at_period_end
                  and o.paid_until < $1)
         order by r.paid_until limit 2000",
        before
    )
    .fetch_all(pool)
    .await
}
