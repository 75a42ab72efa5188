//! Notices of infringement and other complaints about what a box does, from people without an account. What they write is a
//! stranger's word: it is kept as it came, shown to operators alone and escaped, and is in no log, alert, mail or audit event.
//! Nothing is done because of it but what an operator does.

mod places;

use std::net::IpAddr;

use jiff::SignedDuration;
use rand::RngExt;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgExecutor, PgPool};
use utoipa::ToSchema;
use uuid::Uuid;

use self::places::{place, places};
use crate::{
    accounts, alerts,
    audit::events::{self, Actor, Cause, Event, Subject},
    clock::Time,
    ids::{ResourceId, UserId},
    mailer::{self, templates},
    seedbox::{Status, words},
};

/// The alert while any report is open. One for all of them, so that many reports bury no other alert.
const ALERT: &str = "abuse_reports";
const ALERT_SUBJECT: &str = "reports";

/// How many reports are taken from one network address within [`TAKEN_WITHIN`].
const TAKEN_FROM_ADDRESS: i64 = 5;
/// The time that the limit is of.
const TAKEN_WITHIN: SignedDuration = SignedDuration::from_hours(1);
/// How many reports of one sender, by network address or by e-mail address, may be open at once.
pub const OPEN_OF_SENDER: i64 = 20;
/// How many may be open at once in all.
const OPEN_IN_ALL: i64 = 5000;

words! {
    /// What a report is about.
    ReportKind {
        /// A notice of infringement, as 17 U.S.C. § 512(c)(3) has it.
        Copyright = "copyright",
        /// Attacks on other machines.
        Attack = "attack",
        /// Unwanted mail or calls.
        Spam = "spam",
        /// Malware or phishing.
        Malware = "malware",
        /// Anything else.
        Other = "other",
    }
}

words! {
    /// What came of a report.
    Outcome {
        /// The box it was about was suspended, ended or warned.
        ActedOn = "acted_on",
        /// What it names was never here.
        NotOurs = "not_ours",
        /// It says too little, or is wrong.
        Rejected = "rejected",
    }
}

words! {
    /// A field of the form.
    FieldName {
        /// Who writes.
        Name = "name",
        /// Where the answer goes.
        Email = "email",
        /// Where they can be reached by post.
        Address = "address",
        /// By telephone.
        Telephone = "telephone",
        /// On whose behalf.
        RightsHolder = "rights_holder",
        /// Which work is infringed.
        Work = "work",
        /// Where it was seen: address, URL, info-hash.
        Location = "location",
        /// What happened.
        Details = "details",
        /// That the use is not allowed, in good faith.
        GoodFaith = "good_faith",
        /// That what is said is accurate.
        Accurate = "accurate",
        /// The name, typed again.
        Signature = "signature",
    }
}

impl FieldName {
    /// How many characters it may have.
    pub const fn limit(self) -> usize {
        match self {
            Self::Name | Self::RightsHolder | Self::Signature => 200,
            Self::Email => 254,
            Self::Address => 500,
            Self::Telephone => 50,
            Self::Work | Self::Location => 2000,
            Self::Details => 1000,
            Self::GoodFaith | Self::Accurate => 10,
        }
    }

    /// Whether a report of this kind says it.
    pub fn is_asked(self, kind: ReportKind) -> bool {
        match self {
            Self::Address | Self::Telephone | Self::RightsHolder | Self::Work | Self::GoodFaith | Self::Signature => {
                kind == ReportKind::Copyright
            }
            _ => true,
        }
    }

    /// Whether a report of this kind has to say it.
    pub fn is_needed(self, kind: ReportKind) -> bool {
        match self {
            Self::Telephone => false,
            Self::Details => kind != ReportKind::Copyright,
            _ => self.is_asked(kind),
        }
    }

    /// What is said where it is left out.
    fn missing(self) -> &'static str {
        match self {
            Self::Name => "say who you are",
            Self::Email => "say where the answer goes",
            Self::Address => "say where you can be reached by post",
            Self::RightsHolder => "say who holds the rights; write your own name if it is you",
            Self::Work => "say which work it is about",
            Self::Location => "say where it was seen, or it cannot be found",
            Self::Details => "say what happened",
            Self::GoodFaith => "a notice needs this statement",
            Self::Accurate => "a report needs this statement",
            Self::Signature => "sign by typing your name",
            Self::Telephone => "say by which number you can be reached",
        }
    }
}

/// A report as it was typed.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "each is described at its `FieldName`")]
pub struct Typed {
    pub name: String,
    pub email: String,
    pub address: String,
    pub telephone: String,
    pub rights_holder: String,
    pub work: String,
    pub location: String,
    pub details: String,
    pub good_faith: bool,
    pub accurate: bool,
    pub signature: String,
}

impl Typed {
    /// What stands in a field of text; nothing for a statement.
    pub fn text(&self, field: FieldName) -> &str {
        match field {
            FieldName::Name => &self.name,
            FieldName::Email => &self.email,
            FieldName::Address => &self.address,
            FieldName::Telephone => &self.telephone,
            FieldName::RightsHolder => &self.rights_holder,
            FieldName::Work => &self.work,
            FieldName::Location => &self.location,
            FieldName::Details => &self.details,
            FieldName::Signature => &self.signature,
            FieldName::GoodFaith | FieldName::Accurate => "",
        }
    }

    /// Without what the form of this kind does not ask for, without space around it, and with lines as they are counted: a
    /// browser sends two characters for the end of a line and counts one.
    pub fn tidied(self, kind: ReportKind) -> Self {
        let tidy = |field: FieldName| match field.is_asked(kind) {
            true => self.text(field).replace("\r\n", "\n").trim().to_owned(),
            false => String::new(),
        };
        Self {
            name: tidy(FieldName::Name),
            email: tidy(FieldName::Email),
            address: tidy(FieldName::Address),
            telephone: tidy(FieldName::Telephone),
            rights_holder: tidy(FieldName::RightsHolder),
            work: tidy(FieldName::Work),
            location: tidy(FieldName::Location),
            details: tidy(FieldName::Details),
            signature: tidy(FieldName::Signature),
            good_faith: self.good_faith,
            accurate: self.accurate,
        }
    }

    /// What is wrong with it, field by field, in the order of the form.
    pub fn wrong(&self, kind: ReportKind) -> Vec<Wrong> {
        let mut wrong = Vec::new();
        for field in FieldName::ALL.iter().copied().filter(|field| field.is_asked(kind)) {
            let text = self.text(field);
            let missing = match field {
                FieldName::GoodFaith => !self.good_faith,
                FieldName::Accurate => !self.accurate,
                _ => text.is_empty(),
            };
            let (length, limit) = (text.chars().count(), field.limit());
            let why = if missing && field.is_needed(kind) {
                field.missing().to_owned()
            } else if length > limit {
                format!("it has {length} characters, and {limit} at most are kept")
            } else if field == FieldName::Email && accounts::check_email(text).is_err() {
                "an e-mail address has a name, an @ and a domain".to_owned()
            } else if field == FieldName::Signature && !same_name(text, &self.name) {
                "the signature is not the name above".to_owned()
            } else {
                continue;
            };
            wrong.push(Wrong { field, why });
        }
        wrong
    }
}

/// Whether two people write the same name, whatever its letters' case and the space between.
fn same_name(one: &str, other: &str) -> bool {
    let plain = |name: &str| name.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    plain(one) == plain(other)
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Which.
    pub field: FieldName,
    /// Why, as the end of a sentence.
    pub why: String,
}

/// Why a report was not taken; nothing is stored then.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Fields are wrong.
    #[error("something is missing or cannot be taken as it is; nothing was sent yet. It is marked below")]
    Wrong(Vec<Wrong>),
    /// Too many from one network address.
    #[error(
        "{TAKEN_FROM_ADDRESS} reports came from your network within an hour; this one was not stored. Send it again in \
         {minutes} minutes, or put several places into one report"
    )]
    TooOften {
        /// Until one more is taken.
        minutes: i64,
    },
    /// Too many are open.
    #[error(
        "{OPEN_OF_SENDER} reports of yours wait to be looked at; this one was not stored. Wait until some are closed, or write to us"
    )]
    TooManyOpen,
    /// Nobody gets to look at them.
    #[error("too many reports wait to be looked at; this one was not stored. Write to us instead")]
    Full,
    /// The form made another report.
    #[error(
        "this form was sent before, as {reference}, with other words; what you changed was not stored. Send it once more to make \
         another report of it"
    )]
    Sent {
        /// That report's reference.
        reference: String,
    },
    /// The database failed.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// A report to take.
#[derive(Debug, Clone)]
pub struct NewReport<'a> {
    /// Of the form: one form makes one report, however often it is sent.
    pub form_id: Uuid,
    /// What it is about.
    pub kind: ReportKind,
    /// What was typed.
    pub typed: &'a Typed,
    /// The network address it comes from.
    pub from: &'a str,
    /// The request, for the audit log.
    pub request_id: Option<String>,
}

/// Letters and digits that are told apart when they are read out.
const REFERENCE_ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

fn new_reference() -> String {
    let mut random = rand::rng();
    let mut part = || -> String {
        (0..4).map(|_| char::from(REFERENCE_ALPHABET[random.random_range(0..REFERENCE_ALPHABET.len())])).collect()
    };
    format!("R-{}-{}", part(), part())
}

/// Takes a report: stores it, mails its reference to whoever sent it, and tells operators. Answers the reference.
///
/// # Errors
/// [`ReportError`]; nothing is stored then.
pub async fn file(pool: &PgPool, new: NewReport<'_>, at: Time) -> Result<String, ReportError> {
    let (typed, kind) = (new.typed, new.kind);
    let wrong = typed.wrong(kind);
    if !wrong.is_empty() {
        return Err(ReportError::Wrong(wrong));
    }
    let email = typed.email.to_lowercase();
    let sender_hash: [u8; 32] = Sha256::digest(format!("report:{}", new.from)).into();
    let mut tx = pool.begin().await?;
    // Many at once from one sender are counted one after the other.
    for sender in [email.as_str(), new.from] {
        sqlx::query!(
            r#"select 1 as "one!" from pg_advisory_xact_lock(hashtext('seedplane report'), hashtext($1))"#,
            sender
        )
        .fetch_one(&mut *tx)
        .await?;
    }
    let before = sqlx::query!(
        r#"select reference,
               (kind, name, email, address, telephone, rights_holder, work, location, details, signature)
                   = ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11) as "same!"
           from abuse_reports where form_id = $1"#,
        new.form_id,
        kind.as_str(),
        typed.name,
        email,
        typed.address,
        typed.telephone,
        typed.rights_holder,
        typed.work,
        typed.location,
        typed.details,
        typed.signature,
    )
    .fetch_optional(&mut *tx)
    .await?;
    match before {
        Some(before) if before.same => return Ok(before.reference),
        Some(before) => return Err(ReportError::Sent { reference: before.reference }),
        None => {}
    }
    let counted = sqlx::query!(
        r#"select count(*) filter (where sender_hash = $1 and created_at > $3) as "lately!",
               min(created_at) filter (where sender_hash = $1 and created_at > $3) as "oldest: Time",
               count(*) filter (where closed_at is null and sender_hash = $1) as "open_of_network!",
               (select count(*) from abuse_reports where closed_at is null and email = $2) as "open_of_email!",
               (select count(*) from (select from abuse_reports where closed_at is null limit $4) as opened) as "open_in_all!"
           from abuse_reports where sender_hash = $1"#,
        &sender_hash,
        email,
        Time(at.0 - TAKEN_WITHIN),
        OPEN_IN_ALL,
    )
    .fetch_one(&mut *tx)
    .await?;
    if counted.lately >= TAKEN_FROM_ADDRESS {
        let over = counted.oldest.unwrap_or(at).0 + TAKEN_WITHIN;
        return Err(ReportError::TooOften { minutes: over.duration_since(at.0).as_mins() + 1 });
    }
    if counted.open_of_network.max(counted.open_of_email) >= OPEN_OF_SENDER {
        return Err(ReportError::TooManyOpen);
    }
    if counted.open_in_all >= OPEN_IN_ALL {
        return Err(ReportError::Full);
    }
    let (id, reference) = (Uuid::now_v7(), new_reference());
    sqlx::query!(
        "insert into abuse_reports (id, form_id, reference, kind, name, email, address, telephone, rights_holder, work, location,
             details, signature, sender_hash, created_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        id,
        new.form_id,
        reference,
        kind.as_str(),
        typed.name,
        email,
        typed.address,
        typed.telephone,
        typed.rights_holder,
        typed.work,
        typed.location,
        typed.details,
        typed.signature,
        &sender_hash,
        at,
    )
    .execute(&mut *tx)
    .await?;
    let cause = Cause { actor: Actor::System, reason: String::new(), request_id: new.request_id };
    let after = Some(json!({ "kind": kind, "reference": reference }));
    let event = Event { subject: Subject::Other("report", id), action: "report.filed", before: None, after };
    events::record_in(&mut tx, at, &cause, event).await?;
    let (subject, body) = templates::reports::received(kind, &reference, at);
    mailer::write_in(&mut tx, &email, &subject, &body, at).await?;
    let detail =
        format!("{reference} came in; what is open stands at /operator/reports. Nothing was done because of it");
    alerts::raise(&mut *tx, ALERT, ALERT_SUBJECT, &detail, at).await?;
    tx.commit().await?;
    Ok(reference)
}

/// A report, with everything in it: for operators alone.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct Report {
    pub id: Uuid,
    /// As it was told to whoever sent it.
    pub reference: String,
    pub kind: ReportKind,
    pub name: String,
    pub email: String,
    pub address: String,
    pub telephone: String,
    pub rights_holder: String,
    pub work: String,
    pub location: String,
    pub details: String,
    /// The name, typed again; with it the two statements of a notice were made.
    pub signature: String,
    pub created_at: Time,
    /// `null` while it is open.
    pub closed_at: Option<Time>,
    /// Who closed it.
    pub closed_by: Option<UserId>,
    pub outcome: Option<Outcome>,
    pub close_reason: Option<String>,
    /// The box that was acted on.
    pub resource_id: Option<ResourceId>,
}

/// A report.
///
/// # Errors
/// Those of the database.
pub async fn find(executor: impl PgExecutor<'_>, id: Uuid) -> sqlx::Result<Option<Report>> {
    sqlx::query_as!(
        Report,
        r#"select id, reference, kind as "kind: ReportKind", name, email, address, telephone, rights_holder, work, location, details,
               signature, created_at, closed_at, closed_by as "closed_by: UserId", outcome as "outcome: Outcome", close_reason,
               resource_id as "resource_id: ResourceId"
           from abuse_reports where id = $1"#,
        id
    )
    .fetch_optional(executor)
    .await
}

/// A report in the list.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[allow(missing_docs, reason = "as of `Report`")]
pub struct Listed {
    pub id: Uuid,
    pub reference: String,
    pub kind: ReportKind,
    pub name: String,
    pub created_at: Time,
    pub closed_at: Option<Time>,
    pub outcome: Option<Outcome>,
    pub resource_id: Option<ResourceId>,
}

/// Reports, open ones first and each part newest first, at most `limit`; those after `after` in that order.
///
/// # Errors
/// Those of the database.
pub async fn list(pool: &PgPool, open: Option<bool>, after: Option<Uuid>, limit: i64) -> sqlx::Result<Vec<Listed>> {
    sqlx::query_as!(
        Listed,
        r#"select id, reference, kind as "kind: ReportKind", name, created_at, closed_at, outcome as "outcome: Outcome",
               resource_id as "resource_id: ResourceId"
           from abuse_reports
           where ($1::boolean is null or (closed_at is null) = $1)
             and ($2::uuid is null or (closed_at is null, id) < (select closed_at is null, id from abuse_reports where id = $2))
           order by closed_at is null desc, id desc limit $3"#,
        open,
        after,
        limit,
    )
    .fetch_all(pool)
    .await
}

/// How many reports are open.
///
/// # Errors
/// Those of the database.
pub async fn count_open(executor: impl PgExecutor<'_>) -> sqlx::Result<i64> {
    sqlx::query_scalar!(r#"select count(*) as "count!" from abuse_reports where closed_at is null"#)
        .fetch_one(executor)
        .await
}

/// Closes an open report with what came of it. False if there is no such open report.
///
/// # Errors
/// Those of the database.
pub async fn close_in(
    connection: &mut PgConnection,
    id: Uuid,
    outcome: Outcome,
    resource: Option<ResourceId>,
    by: UserId,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<bool> {
    let closed = sqlx::query!(
        "update abuse_reports set closed_at = $2, closed_by = $3, outcome = $4, close_reason = $5, resource_id = $6
         where id = $1 and closed_at is null",
        id,
        at,
        by.0,
        outcome.as_str(),
        cause.reason,
        resource.map(|id| id.0),
    )
    .execute(&mut *connection)
    .await?;
    if closed.rows_affected() == 0 {
        return Ok(false);
    }
    let event = Event {
        subject: Subject::Other("report", id),
        action: "report.closed",
        before: None,
        after: Some(json!({ "outcome": outcome, "resource_id": resource })),
    };
    events::record_in(connection, at, cause, event).await?;
    if count_open(&mut *connection).await? == 0 {
        alerts::resolve_in(connection, ALERT, ALERT_SUBJECT, at).await?;
    }
    Ok(true)
}

/// A box that a report may be about.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Candidate {
    /// The box.
    pub resource_id: ResourceId,
    /// What its owner calls it.
    pub label: String,
    /// Its owner.
    pub user_id: UserId,
    /// Their address.
    pub email: String,
    /// How it is now.
    pub status: Status,
    /// Since when.
    pub status_since: Time,
    /// Where it answers, or did.
    pub place: String,
    /// Whether it is a server of the customer's own, to which we have no more than a key.
    pub own_server: bool,
    /// Whether the report names this very box: its id, or the address of its web interface while it has it. Otherwise only the
    /// machine or the network address is the same, which several boxes may share or have had one after the other.
    pub named: bool,
    /// How many other reports about this customer's boxes were acted on.
    pub acted_on_before: i64,
}

/// The boxes that what a report says of the place may be about, those that it names first; at most 50.
///
/// # Errors
/// Those of the database.
pub async fn candidates(pool: &PgPool, report: &Report) -> sqlx::Result<Vec<Candidate>> {
    let places = places(&report.location);
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = places.iter().filter_map(|place| place.id).collect();
    let hosts: Vec<String> = places.iter().map(|place| place.host.clone()).filter(|host| !host.is_empty()).collect();
    // With a domain of the operator's, a node is called by its address: 203-0-113-7.boxes.example.
    let dashed: Vec<String> =
        hosts.iter().filter(|host| host.parse::<IpAddr>().is_ok()).map(|host| host.replace(['.', ':'], "-")).collect();
    let found = sqlx::query!(
        r#"select r.id as "id: ResourceId", r.label, r.user_id as "user_id: UserId", u.email, r.status as "status: Status",
               r.status_since as "status_since: Time", r.web_url, c.host as "host?",
               (select count(*) from abuse_reports p join seedbox_resources other on other.id = p.resource_id
                where other.user_id = r.user_id and p.id <> $4) as "acted_on_before!"
           from seedbox_resources r join users u on u.id = r.user_id left join byos_connections c on c.id = r.connection_id
           left join lateral (select lower(trim(both '[]' from substring(r.web_url from '^[a-z]+://(\[[^]]*\]|[^/:]+)'))) as name)
               web on true
           where r.id = any($1) or web.name = any($2) or lower(c.host) = any($2) or split_part(web.name, '.', 1) = any($3)
           order by r.status = 'terminated', r.id desc limit 50"#,
        &ids,
        &hosts,
        &dashed,
        report.id,
    )
    .fetch_all(pool)
    .await?;
    let mut candidates: Vec<Candidate> = found
        .into_iter()
        .map(|row| {
            let own = row.web_url.as_deref().and_then(place);
            let lives = row.status != Status::Terminated;
            let named = places.iter().any(|place| match place.id {
                Some(id) => id == row.id.0,
                // An address goes on to others once a box has ended.
                None => lives && place.port.is_some() && own.as_ref() == Some(place),
            });
            Candidate {
                resource_id: row.id,
                label: row.label,
                user_id: row.user_id,
                email: row.email,
                status: row.status,
                status_since: row.status_since,
                own_server: row.host.is_some(),
                place: row.web_url.or(row.host).unwrap_or_default(),
                named,
                acted_on_before: row.acted_on_before,
            }
        })
        .collect();
    candidates.sort_by_key(|one| !one.named);
    Ok(candidates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice() -> Typed {
        let text = |text: &str| text.to_owned();
        Typed {
            name: text("Ada  Lovelace"),
            email: text("ada@example.org"),
            address: text("1 Engine Street, London"),
            rights_holder: text("Ada Lovelace"),
            work: text("Notes"),
            location: text("203.0.113.7:51413"),
            good_faith: true,
            accurate: true,
            signature: text("ada lovelace"),
            ..Typed::default()
        }
    }

    #[test]
    fn a_notice_says_what_the_law_asks_and_a_complaint_less() {
        use FieldName::*;
        let wrong = |typed: &Typed, kind| -> Vec<FieldName> {
            typed.wrong(kind).into_iter().map(|wrong| wrong.field).collect()
        };
        assert_eq!(wrong(&notice(), ReportKind::Copyright), []);
        let nothing = Typed::default();
        let all = [Name, Email, Address, RightsHolder, Work, Location, GoodFaith, Accurate, Signature];
        assert_eq!(wrong(&nothing, ReportKind::Copyright), all);
        assert_eq!(wrong(&nothing, ReportKind::Attack), [Name, Email, Location, Details, Accurate]);
        for (typed, field) in [
            (Typed { signature: "Charles Babbage".to_owned(), ..notice() }, Signature),
            (Typed { email: "ada".to_owned(), ..notice() }, Email),
            (Typed { work: "x".repeat(2001), ..notice() }, Work),
            (Typed { telephone: "1".repeat(51), ..notice() }, Telephone),
        ] {
            assert_eq!(wrong(&typed, ReportKind::Copyright), [field]);
        }
        // Counted as people see it: characters, and one for the end of a line.
        let long = Typed { work: "é\r\n".repeat(1000), ..notice() }.tidied(ReportKind::Copyright);
        assert_eq!((wrong(&long, ReportKind::Copyright), long.work.chars().count()), (vec![], 1999));
        assert_eq!(notice().tidied(ReportKind::Spam).work, "", "what is not asked for is not kept");
    }
}
