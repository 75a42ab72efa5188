//! The billing sweep: loads a batch of accounts, decides each with the rules, and writes what follows in one transaction.
//! Charges, which are nearly all of it, are written set by set; the rare rest one by one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ledger::{self, Account as LedgerAccount, Reserve, Transfer, TransferKind},
    plan_changes,
    rules::{self, Account, Action, BoxState, BoxStatus, Interlocks, NoticeState, PaymentInFlight, Policy},
    topups,
};
use crate::{
    alerts,
    app::App,
    audit::{chain, events::Cause},
    clock::Time,
    ids::{AttemptId, ResourceId, UserId},
    mailer::{self, templates},
    money::Usd,
    seedbox::{Operation, Resource, Status, SuspendReason, lifecycle::TransitionError, operations, repository},
    workers::StepError,
};

/// The alert that stops suspensions and wipes until an operator has resolved it.
pub const CLOCK_JUMPED: &str = "clock_jumped";

/// How many accounts one transaction takes at most.
pub const BATCH: usize = 500;

/// A notice of this lapse: said once, and asked for by the same key whether it was handed over.
fn final_warning_key(id: ResourceId, lapse: i32) -> String {
    format!("final_warning:{id}:{lapse}")
}

fn wipe_notice_key(id: ResourceId, lapse: i32, index: usize) -> String {
    format!("wipe_notice:{id}:{lapse}:{index}")
}

/// An account as it was loaded: the rules' view of it, and the rows it came from.
pub(super) struct Loaded {
    pub(super) user: UserId,
    /// How often the balance lasted again.
    runway_dip: i32,
    pub(super) account: Account,
    resources: HashMap<ResourceId, Resource>,
}

/// Loads accounts in a handful of statements, whatever their number.
pub(super) async fn load_in(
    connection: &mut PgConnection,
    users: &[UserId],
    now: Time,
    policy: &Policy,
) -> sqlx::Result<Vec<Loaded>> {
    let ids: Vec<Uuid> = users.iter().map(|user| user.0).collect();
    let accounts = sqlx::query!(
        r#"select a.user_id, a.runway_notice_days, a.runway_dip,
               (select balance_cents from ledger_accounts l where l.user_id = a.user_id and l.kind = 'paid' and l.resource_id is null) as "paid!: Usd",
               (select balance_cents from ledger_accounts l where l.user_id = a.user_id and l.kind = 'promotional' and l.resource_id is null) as "promotional!: Usd",
               (select sum(t.amount_cents)::bigint from topup_intents t where t.user_id = a.user_id and t.status = 'detected'
                   and t.received_crypto >= t.expected_crypto and t.detected_at > $2) as "in_flight: Usd",
               (select max(t.detected_at) from topup_intents t where t.user_id = a.user_id and t.status = 'detected'
                   and t.received_crypto >= t.expected_crypto and t.detected_at > $2) as "in_flight_since: Time"
           from seedbox_billing_accounts a where a.user_id = any($1)"#,
        &ids,
        // One that hangs for longer than it may hold anything back does not stand for one that was seen just now.
        Time(now.0 - policy.payment_in_flight_hold),
    )
    .fetch_all(&mut *connection)
    .await?;
    let resources = sqlx::query_as!(
        Resource,
        "select * from seedbox_resources where user_id = any($1) and kind = 'managed' and status <> 'terminated'",
        &ids
    )
    .fetch_all(&mut *connection)
    .await?;
    let open = sqlx::query!(
        "select resource_id, operation from provision_attempts
         where status in ('requested', 'running') and resource_id = any($1)",
        &resources.iter().map(|resource| resource.id.0).collect::<Vec<_>>()
    )
    .fetch_all(&mut *connection)
    .await?;
    let keys: Vec<String> = resources
        .iter()
        .filter(|resource| resource.past_due_since.is_some() || resource.status == Status::Suspended)
        .flat_map(|resource| {
            let (id, lapse) = (resource.id, resource.lapse_number);
            (0..3).map(move |index| wipe_notice_key(id, lapse, index)).chain([final_warning_key(id, lapse)])
        })
        .collect();
    let said: HashMap<String, Option<Time>> =
        sqlx::query!("select idempotency_key, handed_at from notices where idempotency_key = any($1)", &keys)
            .fetch_all(&mut *connection)
            .await?
            .into_iter()
            .map(|notice| (notice.idempotency_key, notice.handed_at))
            .collect();
    let state = |key: String| match said.get(&key) {
        None => NoticeState::NotSaid,
        Some(None) => NoticeState::Said,
        Some(Some(at)) => NoticeState::Handed(at.0),
    };
    let asked = |id: ResourceId, operation: Operation| {
        open.iter().any(|row| row.resource_id == id && row.operation == operation)
    };

    let mut loaded: BTreeMap<UserId, Loaded> = accounts
        .into_iter()
        .map(|row| {
            let account = Account {
                paid: row.paid,
                promotional: row.promotional,
                boxes: Vec::new(),
                payment_in_flight: row
                    .in_flight
                    .zip(row.in_flight_since)
                    .map(|(amount, since)| PaymentInFlight { amount, detected_at: since.0 }),
                runway_said: row.runway_notice_days.map(i64::from),
            };
            (row.user_id, Loaded { user: row.user_id, runway_dip: row.runway_dip, account, resources: HashMap::new() })
        })
        .collect();
    for resource in resources {
        let Some(of) = loaded.get_mut(&resource.user_id) else { continue };
        let (id, lapse) = (resource.id, resource.lapse_number);
        let status = match (resource.status, resource.suspend_reason, resource.suspended_at) {
            (Status::Active, ..) => BoxStatus::Active,
            (Status::Suspended, Some(SuspendReason::Billing), Some(since)) => {
                BoxStatus::SuspendedForBilling { since: since.0 }
            }
            _ => BoxStatus::Apart,
        };
        of.account.boxes.push(BoxState {
            id,
            status,
            suspend_asked: asked(id, Operation::Suspend),
            resume_asked: asked(id, Operation::Resume),
            end_asked: asked(id, Operation::Terminate),
            price: resource.price_cents,
            price_change: super::price_change(&resource),
            next_plan_price: resource.next_plan_price_cents,
            anchor: resource.anchor_at.unwrap_or(resource.created_at).0,
            periods_charged: u32::try_from(resource.periods_charged).unwrap_or(0),
            priority: resource.priority,
            activated_at: resource.activated_at.unwrap_or(resource.created_at).0,
            past_due_since: resource.past_due_since.map(|since| since.0),
            final_warning: state(final_warning_key(id, lapse)),
            arrears: resource.arrears_cents,
            wipe_notices: [0, 1, 2].map(|index| state(wipe_notice_key(id, lapse, index))),
            hold_until: resource.hold_until.map(|until| until.0),
            ends_at_period_end: resource.ends_at_period_end,
        });
        of.resources.insert(id, resource);
    }
    Ok(loaded.into_values().collect())
}

/// What stops suspensions and wipes now.
async fn interlocks_in(connection: &mut PgConnection, now: Time) -> sqlx::Result<Interlocks> {
    let went_back = sqlx::query_scalar!(
        r#"select exists (select from operator_alerts where kind = $1 and resolved_at is null) as "went_back!""#,
        chain::CLOCK_WENT_BACK
    )
    .fetch_one(&mut *connection)
    .await?;
    let jumped = sqlx::query_scalar!(
        r#"select exists (select from operator_alerts where kind = $1 and resolved_at is null) as "jumped!""#,
        CLOCK_JUMPED
    )
    .fetch_one(&mut *connection)
    .await?;
    Ok(Interlocks {
        gateway_failing: topups::gateway_is_failing(&mut *connection, now).await?,
        mailer_failing: mailer::is_failing(&mut *connection, now).await?,
        clock_jumped: jumped,
        clock_went_back: went_back || chain::clock_is_behind(&mut *connection, now).await?,
    })
}

/// How many suspensions and wipes this run may still ask for.
struct Blast {
    already: u32,
    fleet: u32,
    approved: bool,
    stopped: bool,
}

impl Blast {
    async fn load(connection: &mut PgConnection, now: Time) -> sqlx::Result<Self> {
        // Whoever is about to cut something off counts alone, or two at once would each see what is left for one. What another
        // asked for while this one waited is later than `now`, and counts.
        sqlx::query!(r#"select 1 as "one!" from pg_advisory_xact_lock(hashtext('seedplane blast limit'))"#)
            .fetch_one(&mut *connection)
            .await?;
        let row = sqlx::query!(
            r#"select
                   (select count(*) from provision_attempts where actor = 'system' and operation in ('suspend', 'terminate')
                       and reason = 'billing' and requested_at > $1::timestamptz - interval '1 hour') as "already!",
                   (select count(*) from seedbox_resources where status in ('active', 'suspended')) as "fleet!",
                   exists (select from operator_alerts where kind = 'blast_limit' and resolved_at > $1::timestamptz - interval '1 hour') as "approved!",
                   exists (select from operator_alerts where kind = 'blast_limit' and resolved_at is null) as "stopped!""#,
            now
        )
        .fetch_one(connection)
        .await?;
        let count = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Self { already: count(row.already), fleet: count(row.fleet), approved: row.approved, stopped: row.stopped })
    }

    /// Whether one more box may be hit.
    fn allows(&mut self, policy: &Policy) -> bool {
        if self.stopped || !(self.approved || rules::within_blast_limit(self.already, self.fleet, policy)) {
            self.stopped = true;
            return false;
        }
        self.already += 1;
        true
    }
}

/// After so many failures in a row to settle an account an operator is told.
const FAILURES_TOLD: i32 = 3;

/// Applies the rules to every account that is due, batch by batch. Where a batch cannot be written, each of its accounts is
/// settled alone, so that one that cannot be is put off and stops nobody else.
///
/// # Errors
/// Those of the database; batches before it are done.
pub async fn sweep_due(app: &App) -> Result<usize, StepError> {
    let mut swept = 0;
    loop {
        let now = app.now();
        let mut tx = app.pool.begin().await?;
        let interlocks = interlocks_in(&mut tx, now).await?;
        // A literal limit: a parameter's would be planned for a tenth of the table.
        let users = sqlx::query_scalar!(
            "select user_id from seedbox_billing_accounts where next_sweep_at <= $1
             order by next_sweep_at, user_id limit 500 for update skip locked",
            now
        )
        .fetch_all(&mut *tx)
        .await?;
        if users.is_empty() {
            return Ok(swept);
        }
        match settle_in(&mut tx, app, &users, now, &interlocks).await {
            Ok(()) => tx.commit().await?,
            Err(error) => {
                tx.rollback().await?;
                tracing::warn!(accounts = users.len(), %error, "a batch could not be settled; each account is settled alone");
                for user in &users {
                    settle_alone(app, *user).await?;
                }
            }
        }
        swept += users.len();
        if users.len() < BATCH {
            return Ok(swept);
        }
    }
}

/// Settles one account of a batch that could not be written. One that cannot be settled by itself either is put off, longer
/// each time, and an operator is told.
async fn settle_alone(app: &App, user: UserId) -> Result<(), StepError> {
    let mut result = settle_due(app, user).await;
    // Somebody else wrote in between, as may happen to anybody: with fresh eyes it may go.
    if matches!(result, Err(StepError::Transition(TransitionError::Stale))) {
        result = settle_due(app, user).await;
    }
    let Err(error) = result else { return Ok(()) };
    let now = app.now();
    let failures = sqlx::query_scalar!(
        "update seedbox_billing_accounts set
             sweep_failures = sweep_failures + 1,
             next_sweep_at = $2::timestamptz + interval '10 seconds' * power(2, least(sweep_failures, 9))
         where user_id = $1 returning sweep_failures",
        user.0,
        now
    )
    .fetch_one(&app.pool)
    .await?;
    tracing::error!(%user, failures, %error, "an account could not be settled and is put off");
    if failures >= FAILURES_TOLD {
        let detail = format!(
            "the rules could not be carried out for this account {failures} times in a row: {error}. Nothing of it was \
             written, and nobody else waits for it; it is tried again, seldom. Look at its boxes and its ledger"
        );
        alerts::raise(&app.pool, "account_not_settled", &user.to_string(), &detail, now).await?;
    }
    Ok(())
}

/// Settles an account if it is still due and nobody else is at it.
async fn settle_due(app: &App, user: UserId) -> Result<(), StepError> {
    let now = app.now();
    let mut tx = app.pool.begin().await?;
    let due = sqlx::query_scalar!(
        "select user_id from seedbox_billing_accounts where user_id = $1 and next_sweep_at <= $2 for update skip locked",
        user.0,
        now
    )
    .fetch_optional(&mut *tx)
    .await?;
    if due.is_some() {
        let interlocks = interlocks_in(&mut tx, now).await?;
        settle_in(&mut tx, app, &[user], now, &interlocks).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Applies the rules to one account now.
///
/// # Errors
/// Those of the database.
pub async fn settle(app: &App, user: UserId) -> Result<(), StepError> {
    let now = app.now();
    let mut tx = app.pool.begin().await?;
    let interlocks = interlocks_in(&mut tx, now).await?;
    repository::lock_account_in(&mut tx, user).await?;
    settle_in(&mut tx, app, &[user], now, &interlocks).await?;
    tx.commit().await?;
    Ok(())
}

/// Whether the rules, asked again with what is known now, still want an operation on a box that was asked for on their
/// behalf: the balance, payments on their way, holds and every interlock may have changed since. The caller holds the
/// account's row.
///
/// # Errors
/// Those of the database.
pub async fn still_wanted_in(
    connection: &mut PgConnection,
    app: &App,
    resource: &Resource,
    operation: Operation,
) -> sqlx::Result<bool> {
    let now = app.now();
    let interlocks = interlocks_in(connection, now).await?;
    let Some(mut of) = load_in(connection, &[resource.user_id], now, &app.policy).await?.pop() else {
        return Ok(false);
    };
    for one in &mut of.account.boxes {
        if one.id == resource.id {
            match operation {
                Operation::Suspend => one.suspend_asked = false,
                Operation::Terminate => one.end_asked = false,
                _ => return Ok(true),
            }
        }
    }
    let decision = rules::decide(&of.account, now.0, &app.policy, &interlocks);
    Ok(decision.actions.iter().any(|action| match action {
        Action::Suspend { id } => operation == Operation::Suspend && *id == resource.id,
        Action::End { id, .. } => operation == Operation::Terminate && *id == resource.id,
        _ => false,
    }))
}

/// The unpaid boxes that the rules would suspend or end by a time, with no interlock to stop them: of the first thousand
/// accounts that are past due.
///
/// # Errors
/// Those of the database.
pub async fn cut_off_by(app: &App, until: Time) -> sqlx::Result<Vec<(Resource, Operation)>> {
    let mut connection = app.pool.acquire().await?;
    let users = sqlx::query_scalar!(
        "select distinct user_id from seedbox_resources where past_due_since is not null order by user_id limit 1000"
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut found = Vec::new();
    for mut of in load_in(&mut connection, &users, until, &app.policy).await? {
        for action in rules::decide(&of.account, until.0, &app.policy, &Interlocks::default()).actions {
            let (id, operation) = match action {
                Action::Suspend { id } => (id, Operation::Suspend),
                Action::End { id, unpaid: true } => (id, Operation::Terminate),
                _ => continue,
            };
            found.extend(of.resources.remove(&id).map(|resource| (resource, operation)));
        }
    }
    Ok(found)
}

async fn settle_in(
    connection: &mut PgConnection,
    app: &App,
    users: &[UserId],
    now: Time,
    interlocks: &Interlocks,
) -> Result<(), StepError> {
    let policy = app.policy.as_ref();
    let mut loaded = load_in(connection, users, now, policy).await?;
    let decisions: Vec<_> = loaded.iter().map(|of| rules::decide(&of.account, now.0, policy, interlocks)).collect();

    // Charges first, set by set; what else is decided is written on the boxes as the charges leave them.
    let mut charges = Charges::default();
    let mut plans_due = BTreeSet::new();
    for (of, decision) in loaded.iter().zip(&decisions) {
        // A period charged in this run is the n-th of the box's charges even when several are.
        let mut charged: HashMap<ResourceId, i32> = HashMap::new();
        for action in &decision.actions {
            let Action::Charge { id, period, price, from_promotional, from_paid, n } = action else { continue };
            let nth = charged.entry(*id).or_default();
            charges.add(
                of,
                *id,
                *nth,
                *n,
                (Time(period.start), Time(period.end)),
                *price,
                (*from_promotional, *from_paid),
            );
            *nth += 1;
            if of.resources[id].next_plan_id.is_some() {
                plans_due.insert(*id);
            }
        }
    }
    charges.write_in(connection, now).await?;
    for id in plans_due {
        plan_changes::take_next_in(connection, id, now).await?;
    }
    let rest =
        |decision: &rules::Decision| decision.actions.iter().any(|action| !matches!(action, Action::Charge { .. }));
    if decisions.iter().any(rest) {
        reload_in(connection, &mut loaded, &charges.ids).await?;
    }

    let mut blast = None;
    let (mut swept, mut next_at) = (Vec::new(), Vec::new());
    for (of, decision) in loaded.iter_mut().zip(&decisions) {
        let mut again = decision.next_at;
        for action in &decision.actions {
            match action {
                Action::Charge { .. } => {}
                Action::Suspend { .. } | Action::End { unpaid: true, .. } => {
                    if blast.is_none() {
                        blast = Some(Blast::load(connection, now).await?);
                    }
                    let blast = blast.as_mut().expect("loaded just above");
                    if blast.allows(policy) {
                        act_in(connection, of, action, now).await?;
                    } else {
                        let detail = format!(
                            "{} boxes of {} were suspended or ended in the last hour; the rest waits. Resolve this alert to let it go on for an hour.",
                            blast.already, blast.fleet
                        );
                        alerts::raise(&mut *connection, "blast_limit", "billing sweep", &detail, now).await?;
                        let retry = now.0 + policy.interlock_retry;
                        again = Some(again.map_or(retry, |at| at.min(retry)));
                    }
                }
                other => act_in(connection, of, other, now).await?,
            }
        }
        swept.push(of.user.0);
        // An account where nothing will come by itself is looked at once a month all the same.
        next_at.push(Time(again.unwrap_or(now.0 + rules::DAY * 30)));
    }
    sqlx::query!(
        "update seedbox_billing_accounts a set next_sweep_at = t.at, sweep_failures = 0
         from unnest($1::uuid[], $2::timestamptz[]) as t (user_id, at) where a.user_id = t.user_id",
        &swept,
        &next_at as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Reads the boxes that were charged again: their versions and their lapses are others now.
async fn reload_in(connection: &mut PgConnection, loaded: &mut [Loaded], ids: &[Uuid]) -> sqlx::Result<()> {
    let fresh = sqlx::query_as!(Resource, "select * from seedbox_resources where id = any($1)", ids)
        .fetch_all(connection)
        .await?;
    let mut fresh: HashMap<ResourceId, Resource> = fresh.into_iter().map(|resource| (resource.id, resource)).collect();
    for resource in loaded.iter_mut().flat_map(|of| of.resources.values_mut()) {
        if let Some(charged) = fresh.remove(&resource.id) {
            *resource = charged;
        }
    }
    Ok(())
}

/// The renewals of a batch, as columns.
#[derive(Default)]
struct Charges {
    transfers: Vec<Transfer>,
    ids: Vec<Uuid>,
    versions: Vec<i64>,
    periods: Vec<i32>,
    totals: Vec<i32>,
    prices: Vec<i64>,
    paid_until: Vec<Time>,
}

impl Charges {
    #[allow(clippy::too_many_arguments, reason = "the columns of a renewal")]
    fn add(
        &mut self,
        of: &Loaded,
        id: ResourceId,
        nth: i32,
        n: u32,
        period: (Time, Time),
        price: Usd,
        parts: (Usd, Usd),
    ) {
        let resource = &of.resources[&id];
        let total = resource.charged_total + nth;
        for (debit, amount, part) in [
            (LedgerAccount::Promotional(of.user), parts.0, "promotional"),
            (LedgerAccount::Paid(of.user), parts.1, "paid"),
        ] {
            if amount.is_positive() {
                self.transfers.push(Transfer {
                    debit,
                    credit: LedgerAccount::Revenue,
                    amount,
                    kind: TransferKind::Charge,
                    idempotency_key: format!("charge:{id}:{total}:{part}"),
                    cause: format!("renewal of {}", resource.label),
                    user_id: of.user,
                    resource_id: Some(id),
                    order_id: None,
                    period: Some(period),
                });
            }
        }
        // Several periods in one run end in one row: the last.
        if let (true, Some(index)) = (nth > 0, self.ids.iter().position(|known| *known == id.0)) {
            self.ids.remove(index);
            self.versions.remove(index);
            self.periods.remove(index);
            self.totals.remove(index);
            self.prices.remove(index);
            self.paid_until.remove(index);
        }
        self.ids.push(id.0);
        self.versions.push(resource.version);
        self.periods.push(i32::try_from(n + 1).unwrap_or(i32::MAX));
        self.totals.push(total + 1);
        self.prices.push(price.cents());
        self.paid_until.push(period.1);
    }

    async fn write_in(&self, connection: &mut PgConnection, now: Time) -> Result<(), StepError> {
        if self.ids.is_empty() {
            return Ok(());
        }
        // One statement: rows and audit. Whoever changed a box in the meantime makes the whole batch start over.
        let written = sqlx::query_scalar!(
            r#"with renewed as (
                   update seedbox_resources r set
                       periods_charged = t.periods, charged_total = t.total, price_cents = t.price, paid_until = t.paid_until,
                       next_price_cents = case when r.next_price_cents = t.price then null else r.next_price_cents end,
                       next_price_notified_at = case when r.next_price_cents = t.price then null else r.next_price_notified_at end,
                       lapse_number = r.lapse_number + (r.past_due_since is not null)::int, past_due_since = null,
                       version = r.version + 1
                   from unnest($1::uuid[], $2::bigint[], $3::int[], $4::int[], $5::bigint[], $6::timestamptz[])
                       as t (id, version, periods, total, price, paid_until)
                   where r.id = t.id and r.version = t.version
                   returning r.id, t.total, t.price, t.paid_until
               )
               select count(audit_record('resource', id, $7, 'system', 'resource.charged', id, '', null, null,
                   jsonb_build_object('charge', total - 1, 'price_cents', price, 'paid_until', paid_until))) as "written!"
               from renewed"#,
            &self.ids,
            &self.versions,
            &self.periods,
            &self.totals,
            &self.prices,
            &self.paid_until as _,
            now,
        )
        .fetch_one(&mut *connection)
        .await?;
        if usize::try_from(written).ok() != Some(self.ids.len()) {
            return Err(TransitionError::Stale.into());
        }
        let booked = ledger::book_in(connection, &self.transfers, now).await?;
        if booked.len() != self.transfers.len() {
            // A charge that stands in the ledger and not on its box: nothing of this batch is kept.
            tracing::error!(
                booked = booked.len(),
                wanted = self.transfers.len(),
                "a period would have been charged twice"
            );
            return Err(TransitionError::Stale.into());
        }
        metrics::counter!("seedplane_charges_total").increment(self.ids.len() as u64);
        Ok(())
    }
}

/// Carries out one of the rare actions.
async fn act_in(connection: &mut PgConnection, of: &mut Loaded, action: &Action, now: Time) -> Result<(), StepError> {
    let cause = Cause::system();
    match action {
        Action::Charge { .. } => unreachable!("charges are collected"),
        Action::PastDue { id, since, short_by, suspends_at } => {
            let resource = of.resources.get_mut(id).expect("a box that was decided on is loaded");
            repository::set_past_due_in(connection, resource, Time(*since), now, &cause).await?;
            let key = format!("past_due:{id}:{}", resource.lapse_number);
            mailer::notify_in(connection, templates::past_due(resource, key, *short_by, Time(*suspends_at)), now)
                .await?;
        }
        Action::FinalWarning { id, short_by, suspends_at } => {
            let resource = &of.resources[id];
            let key = final_warning_key(*id, resource.lapse_number);
            mailer::notify_in(connection, templates::final_warning(resource, key, *short_by, Time(*suspends_at)), now)
                .await?;
        }
        Action::Suspend { id } => {
            let reason = SuspendReason::Billing.as_str();
            operations::request_in(connection, AttemptId::new(), *id, Operation::Suspend, reason, now, &cause).await?;
        }
        Action::Resume { id, arrears, price, from_promotional, from_paid } => {
            let attempt = AttemptId::new();
            let resource = of.resources.get_mut(id).expect("a box that was decided on is loaded");
            let reason = SuspendReason::Billing.as_str();
            if !operations::request_in(connection, attempt, *id, Operation::Resume, reason, now, &cause).await? {
                return Ok(());
            }
            repository::set_resume_terms_in(connection, attempt, resource, *arrears, *price).await?;
            let reserve =
                Reserve { key: format!("resume:{attempt}"), user_id: of.user, resource_id: *id, order_id: None };
            let cause = format!("return of {}", resource.label);
            ledger::reserve_in(connection, &reserve, &cause, (*from_promotional, *from_paid), now).await?;
        }
        Action::WipeNotice { id, index, days, not_before, pay } => {
            let resource = &of.resources[id];
            let key = wipe_notice_key(*id, resource.lapse_number, *index);
            mailer::notify_in(connection, templates::wipe_notice(resource, key, *days, Time(*not_before), *pay), now)
                .await?;
        }
        Action::End { id, unpaid } => {
            let reason = if *unpaid { SuspendReason::Billing.as_str() } else { "user" };
            operations::request_in(connection, AttemptId::new(), *id, Operation::Terminate, reason, now, &cause)
                .await?;
        }
        Action::Runway { days, stops_at, short_by } => {
            set_runway_in(connection, of.user, Some(*days)).await?;
            let key = format!("runway:{}:{}:{days}", of.user, of.runway_dip);
            mailer::notify_in(connection, templates::runway(of.user, key, *days, Time(*stops_at), *short_by), now)
                .await?;
        }
        Action::RunwayRestored => set_runway_in(connection, of.user, None).await?,
        // Not again where only an operator has not looked yet, who may be resolving it just now.
        Action::ClockAlarm if !chain::clock_is_behind(&mut *connection, now).await? => {}
        Action::ClockAlarm => {
            let detail = "the clock is behind the newest audit checkpoint: nothing is charged, suspended or wiped until it is \
                          right and this alert is resolved";
            alerts::raise(&mut *connection, chain::CLOCK_WENT_BACK, "clock", detail, now).await?;
        }
    }
    Ok(())
}

async fn set_runway_in(connection: &mut PgConnection, user: UserId, days: Option<i64>) -> sqlx::Result<()> {
    sqlx::query!(
        "update seedbox_billing_accounts
         set runway_notice_days = $2, runway_dip = runway_dip + ($2::int is null)::int where user_id = $1",
        user.0,
        days.and_then(|days| i32::try_from(days).ok()),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A charge to come.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PreviewCharge {
    /// When it is taken.
    pub at: Time,
    /// For which box.
    pub resource_id: ResourceId,
    /// The period it pays for.
    pub period_start: Time,
    /// The end of that period, not included.
    pub period_end: Time,
    /// How much, in US cents.
    pub amount_cents: Usd,
}

/// What lies ahead of one box.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PreviewBox {
    /// Which.
    pub resource_id: ResourceId,
    /// What its owner calls it.
    pub label: String,
    /// When it is suspended if nothing is paid in; `null` if it lasts.
    pub stops_at: Option<Time>,
    /// When it is wiped if nothing is paid in.
    pub wiped_at: Option<Time>,
    /// What keeping it until then costs in all, in US cents.
    pub needs_cents: Usd,
}

/// What will be charged when, until when each box lasts, and what keeps it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Preview {
    /// Looked at from here.
    pub now: Time,
    /// To here.
    pub until: Time,
    /// What can be spent now, in US cents.
    pub available_cents: Usd,
    /// Charges that the balance covers.
    pub charges: Vec<PreviewCharge>,
    /// Each box.
    pub boxes: Vec<PreviewBox>,
    /// The exact sum to pay in now that keeps every box until then, in US cents.
    pub pay_in_cents: Usd,
}

/// What lies ahead of an account, by the same rules as the real thing.
///
/// # Errors
/// Those of the database.
pub async fn preview(app: &App, user: UserId, now: Time, until: Time) -> sqlx::Result<Preview> {
    let mut connection = app.pool.acquire().await?;
    let Some(of) = load_in(&mut connection, &[user], now, &app.policy).await?.pop() else {
        return Ok(Preview {
            now,
            until,
            available_cents: Usd::ZERO,
            charges: Vec::new(),
            boxes: Vec::new(),
            pay_in_cents: Usd::ZERO,
        });
    };
    let forecast = rules::forecast(&of.account, now.0, until.0, &app.policy);
    Ok(Preview {
        now,
        until,
        available_cents: of.account.available(),
        charges: forecast
            .charges
            .into_iter()
            .map(|(at, resource_id, period, amount_cents)| PreviewCharge {
                at: Time(at),
                resource_id,
                period_start: Time(period.start),
                period_end: Time(period.end),
                amount_cents,
            })
            .collect(),
        boxes: forecast
            .boxes
            .into_iter()
            .map(|one| PreviewBox {
                resource_id: one.id,
                label: of.resources.get(&one.id).map(|resource| resource.label.clone()).unwrap_or_default(),
                stops_at: one.stops_at.map(Time),
                wiped_at: one.wiped_at.map(Time),
                needs_cents: one.needs,
            })
            .collect(),
        pay_in_cents: forecast.pay_in,
    })
}
