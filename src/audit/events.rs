//! Writing and reading audit events. [`record_in`] is the only writer (SQL functions of the money movements call the
//! database's `audit_record` themselves, inside the same statement).

use serde::Serialize;
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    clock::Time,
    ids::{OrderId, ResourceId, TopupId, UserId},
};

/// Who acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// A worker, by the rules.
    System,
    /// An operator, who must say why.
    Operator(UserId),
    /// A customer.
    User(UserId),
}

impl std::fmt::Display for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::System => f.write_str("system"),
            Self::Operator(id) => write!(f, "operator:{id}"),
            Self::User(id) => write!(f, "user:{id}"),
        }
    }
}

/// What an event is about: its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A seedbox.
    Resource(ResourceId),
    /// An order.
    Order(OrderId),
    /// A top-up.
    Topup(TopupId),
    /// A person's account.
    User(UserId),
    /// A plan or another thing with an id of its own.
    Other(&'static str, Uuid),
}

impl Subject {
    fn parts(self) -> (&'static str, Uuid) {
        match self {
            Self::Resource(id) => ("resource", id.0),
            Self::Order(id) => ("order", id.0),
            Self::Topup(id) => ("topup", id.0),
            Self::User(id) => ("user", id.0),
            Self::Other(kind, id) => (kind, id),
        }
    }

    fn resource(self) -> Option<Uuid> {
        match self {
            Self::Resource(id) => Some(id.0),
            _ => None,
        }
    }
}

/// Where an action comes from: passed down from the edge so that every event can say it.
#[derive(Debug, Clone)]
pub struct Cause {
    /// Who.
    pub actor: Actor,
    /// Why; compulsory for an operator.
    pub reason: String,
    /// The request it came with.
    pub request_id: Option<String>,
}

impl Cause {
    /// The rules, carried out by a worker.
    pub fn system() -> Self {
        Self { actor: Actor::System, reason: String::new(), request_id: None }
    }
}

/// One event to write.
#[derive(Debug, Clone)]
pub struct Event<'a> {
    /// What it is about.
    pub subject: Subject,
    /// `resource.active`, `order.placed`: the noun and what happened to it.
    pub action: &'a str,
    /// The state before, without secrets or personal data.
    pub before: Option<Value>,
    /// The state after, likewise.
    pub after: Option<Value>,
}

/// Writes an event at the end of its subject's chain, in the caller's transaction.
///
/// # Errors
/// Those of the database; an operator without a reason is one of them.
pub async fn record_in(connection: &mut PgConnection, at: Time, cause: &Cause, event: Event<'_>) -> sqlx::Result<()> {
    let (kind, id) = event.subject.parts();
    sqlx::query!(
        "select audit_record($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        kind,
        id,
        at,
        cause.actor.to_string(),
        event.action,
        event.subject.resource(),
        cause.reason,
        cause.request_id,
        event.before,
        event.after,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// An event as its owner or an operator reads it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RecordedEvent {
    /// Its place in the subject's chain, from 1.
    pub seq: i64,
    /// When.
    pub at: Time,
    /// `system`, `operator:<id>` or `user:<id>`.
    pub actor: String,
    /// What happened.
    pub action: String,
    /// Why, where somebody had to say.
    pub reason: String,
    /// The state before.
    pub before: Option<Value>,
    /// The state after.
    pub after: Option<Value>,
    /// The hash that ties it to all before it, in hexadecimal.
    pub hash: String,
}

/// The newest events of a resource, at most `limit`, newest first.
///
/// # Errors
/// Those of the database.
pub async fn of_resource(
    pool: &PgPool,
    resource: ResourceId,
    before_seq: Option<i64>,
    limit: i64,
) -> sqlx::Result<Vec<RecordedEvent>> {
    sqlx::query_as!(
        RecordedEvent,
        r#"select seq, at, actor, action, reason, before, after, encode(hash, 'hex') as "hash!"
           from seedbox_audit_events
           where subject_id = $1 and seq < coalesce($2, 9223372036854775807)
           order by seq desc limit $3"#,
        resource.0,
        before_seq,
        limit,
    )
    .fetch_all(pool)
    .await
}

/// An event with what it is about, as an operator reads the log.
#[derive(Debug, Clone, Serialize)]
pub struct LoggedEvent {
    /// Its place in the log.
    pub id: i64,
    /// `resource`, `user`, `order`, `topup`, `connection`, ...
    pub subject_kind: String,
    /// Its id.
    pub subject_id: Uuid,
    /// Its place in the subject's chain, from 1.
    pub seq: i64,
    /// When.
    pub at: Time,
    /// `system`, `operator:<id>`, `user:<id>` or `node:<id>`.
    pub actor: String,
    /// What happened.
    pub action: String,
    /// Why, where somebody had to say.
    pub reason: String,
    /// The request it came with.
    pub request_id: Option<String>,
    /// The state before.
    pub before: Option<Value>,
    /// The state after.
    pub after: Option<Value>,
    /// The hash that ties it to all before it in its chain, in hexadecimal.
    pub hash: String,
}

/// Which events are asked for.
#[derive(Debug, Clone, Default)]
pub struct LogFilter {
    /// About this subject or resource.
    pub about: Option<Uuid>,
    /// By this actor: `system`, `operator`, or one with its id.
    pub actor: Option<String>,
    /// Whose action begins so: `resource.`, `order.placed`.
    pub action: Option<String>,
    /// Only older ones than this place in the log.
    pub before_id: Option<i64>,
}

/// Events of the whole log, newest first, at most `limit`.
///
/// # Errors
/// Those of the database.
pub async fn search(pool: &PgPool, filter: &LogFilter, limit: i64) -> sqlx::Result<Vec<LoggedEvent>> {
    sqlx::query_as!(
        LoggedEvent,
        r#"select id, subject_kind, subject_id, seq, at, actor, action, reason, request_id, before, after, encode(hash, 'hex') as "hash!"
           from seedbox_audit_events
           where id < coalesce($1, 9223372036854775807)
             and ($2::uuid is null or subject_id = $2 or resource_id = $2)
             and ($3::text is null or actor = $3 or starts_with(actor, $3 || ':'))
             and ($4::text is null or starts_with(action, $4))
           order by id desc limit $5"#,
        filter.before_id,
        filter.about,
        filter.actor,
        filter.action,
        limit,
    )
    .fetch_all(pool)
    .await
}
