//! The two-person rule: what one operator asks for and another one approves. An approval holds what was asked for as it was
//! then; what it is carried out by is in [`crate::api::operator::approvals`].

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgExecutor, PgPool};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    api::error::Problem,
    audit::events::{self, Cause, Event, Subject},
    billing::adjustments,
    clock::Time,
    ids::{ResourceId, UserId},
    money::Usd,
    seedbox::words,
};

/// How long something waits for a second person before it is off.
pub const WAITS_FOR: SignedDuration = SignedDuration::from_hours(3 * 24);

words! {
    /// What needs a second person.
    Kind {
        /// Money goes out.
        Payout = "payout",
        /// The limit on suspensions and wipes in an hour is lifted.
        BlastLimit = "blast_limit",
        /// Boxes that were bought before get another price.
        PlanPrice = "plan_price",
        /// The same is done to many boxes at once.
        MassAction = "mass_action",
    }
}

words! {
    /// Where an approval stands.
    ApprovalStatus {
        /// For somebody else.
        Waiting = "waiting",
        /// By somebody else, and carried out with that.
        Approved = "approved",
        /// By somebody else.
        Refused = "refused",
        /// By who asked.
        Withdrawn = "withdrawn",
        /// Nobody decided in time.
        Expired = "expired",
    }
}

/// Who is reached by what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Affected {
    /// The customer.
    pub user_id: UserId,
    /// Their box, if it is about one.
    pub resource_id: Option<ResourceId>,
    /// What they call it.
    pub label: String,
    /// What changes for them.
    pub change: String,
    /// How much of their money a month it is about, in US cents; a payout's sum.
    pub amount_cents: Usd,
}

/// So many boxes, in words.
pub fn boxes(count: usize) -> String {
    match count {
        1 => "1 box".to_owned(),
        count => format!("{count} boxes"),
    }
}

/// What will happen, to whom and what it costs, as it was when it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Effects {
    /// A sentence each.
    pub will_happen: Vec<String>,
    /// What it costs, and whom.
    pub costs: String,
    /// Everybody who is reached, with each of their boxes.
    pub reaches: Vec<Affected>,
}

/// What is asked of a second person.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Approval {
    /// Its id.
    pub id: Uuid,
    /// What sort of thing.
    pub kind: Kind,
    /// What it is about: the id of the payout, the alert, the plan's code.
    pub subject: String,
    /// What is carried out, exactly.
    pub request: Value,
    /// That in a few words.
    pub summary: String,
    /// What will happen, to whom and what it costs.
    pub effects: Effects,
    /// Who asked.
    pub asked_by: UserId,
    /// Their address.
    pub asked_by_email: String,
    /// Why.
    pub reason: String,
    /// When.
    pub asked_at: Time,
    /// When it is off if nobody decides.
    pub expires_at: Time,
    /// Where it stands.
    pub status: ApprovalStatus,
    /// Who decided.
    pub decided_by: Option<UserId>,
    /// Their address.
    pub decided_by_email: Option<String>,
    /// Why.
    pub decision_reason: Option<String>,
    /// When.
    pub decided_at: Option<Time>,
}

impl Approval {
    /// Whether somebody can still decide.
    pub fn is_open(&self, now: Time) -> bool {
        self.status == ApprovalStatus::Waiting && now < self.expires_at
    }

    /// What its audit events are about.
    fn subject_of_events(&self) -> Subject {
        Subject::Other("approval", self.id)
    }
}

/// A row, whose effects are JSON still.
struct Row {
    id: Uuid,
    kind: Kind,
    subject: String,
    request: Value,
    summary: String,
    effects: Value,
    asked_by: UserId,
    asked_by_email: String,
    reason: String,
    asked_at: Time,
    expires_at: Time,
    status: ApprovalStatus,
    decided_by: Option<UserId>,
    decided_by_email: Option<String>,
    decision_reason: Option<String>,
    decided_at: Option<Time>,
}

impl TryFrom<Row> for Approval {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.id,
            kind: row.kind,
            subject: row.subject,
            request: row.request,
            summary: row.summary,
            effects: serde_json::from_value(row.effects).map_err(|error| sqlx::Error::Decode(error.into()))?,
            asked_by: row.asked_by,
            asked_by_email: row.asked_by_email,
            reason: row.reason,
            asked_at: row.asked_at,
            expires_at: row.expires_at,
            status: row.status,
            decided_by: row.decided_by,
            decided_by_email: row.decided_by_email,
            decision_reason: row.decision_reason,
            decided_at: row.decided_at,
        })
    }
}

/// The id of the approval that a request asks for, or of one of the things that it makes: always the same for the same two, so
/// that what is repeated because its answer was lost is found.
pub fn part_of(made: Uuid, part: &str) -> Uuid {
    let mut hasher = Sha256::new();
    hasher.update(made.as_bytes());
    hasher.update(part);
    let hash: [u8; 32] = hasher.finalize().into();
    Uuid::new_v8(hash[..16].try_into().expect("16 of 32 bytes"))
}

/// What is to be approved.
#[derive(Debug, Clone)]
pub struct NewApproval {
    /// Its id.
    pub id: Uuid,
    /// What sort of thing.
    pub kind: Kind,
    /// What it is about.
    pub subject: String,
    /// What is carried out.
    pub request: Value,
    /// That in a few words.
    pub summary: String,
    /// What will happen, to whom and what it costs.
    pub effects: Effects,
}

/// Asks for a second person, in the caller's transaction. Safe to repeat with its id.
///
/// # Errors
/// A problem if the same waits already, or nobody else could approve it; nothing was written then.
pub async fn ask_in(
    connection: &mut PgConnection,
    new: &NewApproval,
    by: UserId,
    at: Time,
    cause: &Cause,
) -> Result<(), Problem> {
    if !has_second_person(&mut *connection, by).await? {
        return Err(Problem::second_person_missing());
    }
    let made = sqlx::query_scalar!(
        "insert into operator_approvals (id, kind, subject, request, summary, effects, asked_by, reason, asked_at, expires_at)
         values ($1, $2, $3, $4, left($5, 500), $6, $7, $8, $9, $10)
         on conflict do nothing returning id",
        new.id,
        new.kind.as_str(),
        new.subject,
        new.request,
        new.summary,
        json!(new.effects),
        by.0,
        cause.reason,
        at,
        Time(at.0 + WAITS_FOR),
    )
    .fetch_optional(&mut *connection)
    .await?;
    if made.is_none() {
        if find(&mut *connection, new.id).await?.is_some() {
            return Ok(());
        }
        return Err(Problem::new(
            axum::http::StatusCode::CONFLICT,
            "approval-waits",
            "the same was asked for before and waits for a second person; nothing was done. Approve, refuse or withdraw that one \
             first: GET /api/operator/approvals",
        ));
    }
    let after = Some(json!({
        "kind": new.kind, "subject": new.subject, "summary": new.summary, "request": new.request,
        "reaches": new.effects.reaches.len(), "costs": new.effects.costs,
    }));
    let event =
        Event { subject: Subject::Other("approval", new.id), action: "approval.asked_for", before: None, after };
    events::record_in(connection, at, cause, event).await?;
    Ok(())
}

/// Whether anybody but this person could approve something.
///
/// # Errors
/// Those of the database.
pub async fn has_second_person(executor: impl PgExecutor<'_>, but: UserId) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (select from users where role in ('operator', 'owner') and id <> $1) as "there!""#,
        but.0
    )
    .fetch_one(executor)
    .await
}

/// An approval by its id.
///
/// # Errors
/// Those of the database.
pub async fn find(executor: impl PgExecutor<'_>, id: Uuid) -> sqlx::Result<Option<Approval>> {
    let row = sqlx::query_as!(
        Row,
        r#"select a.id, a.kind, a.subject, a.request, a.summary, a.effects, a.asked_by, asker.email as asked_by_email, a.reason,
               a.asked_at, a.expires_at, a.status, a.decided_by, decider.email as "decided_by_email?", a.decision_reason, a.decided_at
           from operator_approvals a join users asker on asker.id = a.asked_by left join users decider on decider.id = a.decided_by
           where a.id = $1"#,
        id
    )
    .fetch_optional(executor)
    .await?;
    row.map(Approval::try_from).transpose()
}

/// Takes an approval's row, so that it is decided once.
///
/// # Errors
/// Those of the database.
pub async fn lock_in(connection: &mut PgConnection, id: Uuid) -> sqlx::Result<Option<Approval>> {
    sqlx::query_scalar!("select id from operator_approvals where id = $1 for update", id)
        .fetch_optional(&mut *connection)
        .await?;
    find(connection, id).await
}

/// Those that wait, the next to expire first, at most 200.
///
/// # Errors
/// Those of the database.
pub async fn waiting(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<Approval>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select a.id, a.kind, a.subject, a.request, a.summary, a.effects, a.asked_by, asker.email as asked_by_email, a.reason,
               a.asked_at, a.expires_at, a.status, a.decided_by, null::text as decided_by_email, a.decision_reason, a.decided_at
           from operator_approvals a join users asker on asker.id = a.asked_by
           where a.status = 'waiting' order by a.expires_at, a.id limit 200"#
    )
    .fetch_all(executor)
    .await?;
    rows.into_iter().map(Approval::try_from).collect()
}

/// Those that were decided or are off, newest first, at most 100.
///
/// # Errors
/// Those of the database.
pub async fn decided(executor: impl PgExecutor<'_>) -> sqlx::Result<Vec<Approval>> {
    let rows = sqlx::query_as!(
        Row,
        r#"select a.id, a.kind, a.subject, a.request, a.summary, a.effects, a.asked_by, asker.email as asked_by_email, a.reason,
               a.asked_at, a.expires_at, a.status, a.decided_by, decider.email as "decided_by_email?", a.decision_reason, a.decided_at
           from operator_approvals a join users asker on asker.id = a.asked_by left join users decider on decider.id = a.decided_by
           where a.status <> 'waiting' order by a.decided_at desc, a.id limit 100"#
    )
    .fetch_all(executor)
    .await?;
    rows.into_iter().map(Approval::try_from).collect()
}

/// How many wait for a second person.
///
/// # Errors
/// Those of the database.
pub async fn count_waiting(executor: impl PgExecutor<'_>, now: Time) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"select count(*) as "count!" from operator_approvals where status = 'waiting' and expires_at > $1"#,
        now
    )
    .fetch_one(executor)
    .await
}

/// Writes how an approval was decided, and that in the audit log. Whoever calls it holds its row and has checked who they are.
///
/// # Errors
/// Those of the database, which refuses whoever may not.
pub async fn decide_in(
    connection: &mut PgConnection,
    approval: &Approval,
    status: ApprovalStatus,
    by: Option<UserId>,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<()> {
    let reason = by.is_some().then_some(cause.reason.as_str());
    sqlx::query!(
        "update operator_approvals set status = $2, decided_by = $3, decision_reason = $4, decided_at = $5 where id = $1",
        approval.id,
        status.as_str(),
        by.map(|by| by.0),
        reason,
        at,
    )
    .execute(&mut *connection)
    .await?;
    let event = Event {
        subject: approval.subject_of_events(),
        action: &format!("approval.{status}"),
        before: Some(json!({ "status": approval.status, "asked_by": approval.asked_by, "summary": approval.summary })),
        after: Some(json!({ "status": status })),
    };
    events::record_in(connection, at, cause, event).await?;
    Ok(())
}

/// Ends an approval without carrying it out, and gives back what it had set aside.
///
/// # Errors
/// Those of the database, and of the ledger.
pub async fn call_off_in(
    connection: &mut PgConnection,
    approval: &Approval,
    status: ApprovalStatus,
    by: Option<UserId>,
    at: Time,
    cause: &Cause,
) -> Result<(), Problem> {
    decide_in(connection, approval, status, by, at, cause).await?;
    if let (Kind::Payout, Ok(payout)) = (approval.kind, approval.subject.parse()) {
        adjustments::close_payout_in(connection, payout, None, at, cause).await?;
    }
    Ok(())
}

/// Ends what nobody decided in time.
///
/// # Errors
/// Those of the database; what came before is done.
pub async fn expire_due(pool: &PgPool, now: Time) -> sqlx::Result<()> {
    let due = sqlx::query_scalar!(
        "select id from operator_approvals where status = 'waiting' and expires_at <= $1 order by expires_at limit 100",
        now
    )
    .fetch_all(pool)
    .await?;
    for id in due {
        let mut tx = pool.begin().await?;
        let Some(approval) = lock_in(&mut tx, id).await? else { continue };
        if approval.status != ApprovalStatus::Waiting {
            continue;
        }
        let off = call_off_in(&mut tx, &approval, ApprovalStatus::Expired, None, now, &Cause::system()).await;
        match off {
            Ok(()) => tx.commit().await?,
            Err(problem) => tracing::error!(%id, detail = problem.detail, "an approval could not be ended"),
        }
    }
    Ok(())
}
