//! What boxes use: counted by their providers every quarter of an hour, and kept by the hour and by the day.

use jiff::{SignedDuration, Timestamp};
use seedplane_provisioning::{ResourceRef, Usage};
use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use utoipa::ToSchema;

use crate::{billing::rules, clock::Time, ids::ResourceId, seedbox::Status};

/// The pause between two looks at a box.
const LOOK_EVERY: SignedDuration = SignedDuration::from_mins(15);

/// How long hours are kept.
pub const HOURS_KEPT: SignedDuration = SignedDuration::from_hours(24 * 35);

/// How long days are kept.
pub const DAYS_KEPT: SignedDuration = SignedDuration::from_hours(24 * 400);

/// How many rows that are too old go at once.
const FORGET_AT_ONCE: i64 = 2_000;

/// Begins to count a box, in the transaction that makes it active.
///
/// # Errors
/// Those of the database.
pub async fn begin_in(connection: &mut PgConnection, resource: ResourceId, at: Time) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into seedbox_usage (resource_id, next_look_at) values ($1, $2)
         on conflict (resource_id) do update set next_look_at = excluded.next_look_at",
        resource.0,
        at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A box that is due for a look, claimed for whoever has this.
#[derive(Debug, Clone)]
pub struct Due {
    /// Which box.
    pub resource: ResourceId,
    /// The provider that has it.
    pub provider: String,
    /// The provider's name of it.
    pub resource_ref: ResourceRef,
    /// Where the months of the box begin.
    anchor_at: Timestamp,
    /// What [`record`] knows the claim by.
    claim: Time,
}

/// Claims boxes that are due, the longest overdue first. A claim that is lost with its copy costs one look.
///
/// # Errors
/// Those of the database.
pub async fn claim(pool: &PgPool, at: Time, limit: i64) -> sqlx::Result<Vec<Due>> {
    let claim = Time(at.0 + LOOK_EVERY);
    let claimed = sqlx::query!(
        r#"with due as (
             select resource_id from seedbox_usage where next_look_at <= $1 order by next_look_at limit $3
             for update skip locked
         )
         update seedbox_usage u set next_look_at = case when r.status in ('terminated', 'failed') then null else $2::timestamptz end
         from due join seedbox_resources r on r.id = due.resource_id
         where u.resource_id = due.resource_id
         returning r.id as "id: ResourceId", r.status as "status: Status", r.provider, r.resource_ref,
             r.anchor_at as "anchor_at: Time", u.next_look_at as "claim: Time""#,
        at,
        claim,
        limit,
    )
    .fetch_all(pool)
    .await?;
    Ok(claimed
        .into_iter()
        .filter(|row| row.status == Status::Active)
        .filter_map(|row| {
            Some(Due {
                resource: row.id,
                provider: row.provider?,
                resource_ref: ResourceRef(row.resource_ref?),
                anchor_at: row.anchor_at?.0,
                claim: row.claim?,
            })
        })
        .collect())
}

/// Bytes that came in and went out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Traffic {
    received: i64,
    sent: i64,
}

/// The counters of an earlier look.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Counters {
    name: String,
    at: Traffic,
}

fn bytes(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn counters(usage: &Usage) -> Traffic {
    Traffic { received: bytes(usage.received_bytes), sent: bytes(usage.sent_bytes) }
}

/// What came and went since an earlier look. The first look only says where counting begins; counters that began again count
/// from nothing, and one that went back without saying so, too.
fn since(earlier: Option<&Counters>, usage: &Usage) -> Traffic {
    let now = counters(usage);
    let Some(earlier) = earlier else { return Traffic::default() };
    let step = |before: i64, now: i64| if earlier.name == usage.count && now >= before { now - before } else { now };
    Traffic { received: step(earlier.at.received, now.received), sent: step(earlier.at.sent, now.sent) }
}

/// When the month of a box began in which `at` is.
fn month_of(anchor: Timestamp, at: Timestamp) -> rules::Period {
    let mut n = 0;
    while rules::due(anchor, n + 1) <= at {
        n += 1;
    }
    rules::Period::nth(anchor, n)
}

fn beginning_of(at: Timestamp, seconds: i64) -> Time {
    let began = at.as_second() - at.as_second().rem_euclid(seconds);
    Time(Timestamp::from_second(began).unwrap_or(at))
}

/// Writes down what a provider said. False if the claim is not good any more: somebody looked later.
///
/// # Errors
/// Those of the database.
pub async fn record(pool: &PgPool, due: &Due, usage: &Usage, at: Time) -> sqlx::Result<bool> {
    let mut tx = pool.begin().await?;
    let known = sqlx::query!(
        r#"select count_name, received_counter, sent_counter, month_began_at as "month_began_at: Time", received_bytes, sent_bytes
           from seedbox_usage where resource_id = $1 and next_look_at = $2 for update"#,
        due.resource.0,
        due.claim,
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(known) = known else { return Ok(false) };
    let earlier = match (known.count_name, known.received_counter, known.sent_counter) {
        (Some(name), Some(received), Some(sent)) => Some(Counters { name, at: Traffic { received, sent } }),
        _ => None,
    };
    let step = since(earlier.as_ref(), usage);
    let month = Time(month_of(due.anchor_at, at.0).start);
    let before = match known.month_began_at == Some(month) {
        true => Traffic { received: known.received_bytes, sent: known.sent_bytes },
        false => Traffic::default(),
    };
    let now = counters(usage);
    let used = bytes(usage.disk_used_bytes);
    sqlx::query!(
        "update seedbox_usage set counted_at = $2, count_name = $3, received_counter = $4, sent_counter = $5,
             disk_used_bytes = $6, disk_total_bytes = $7, month_began_at = $8, received_bytes = $9, sent_bytes = $10,
             last_error = null
         where resource_id = $1",
        due.resource.0,
        at,
        usage.count,
        now.received,
        now.sent,
        used,
        bytes(usage.disk_total_bytes).max(used),
        month,
        before.received.saturating_add(step.received),
        before.sent.saturating_add(step.sent),
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "with hour as (
             insert into seedbox_usage_hours as h (resource_id, began_at, received_bytes, sent_bytes, disk_used_bytes)
             values ($1, $2, $4, $5, $6)
             on conflict (resource_id, began_at) do update set received_bytes = h.received_bytes + excluded.received_bytes,
                 sent_bytes = h.sent_bytes + excluded.sent_bytes,
                 disk_used_bytes = greatest(h.disk_used_bytes, excluded.disk_used_bytes)
         )
         insert into seedbox_usage_days as d (resource_id, began_at, received_bytes, sent_bytes, disk_used_bytes)
         values ($1, $3, $4, $5, $6)
         on conflict (resource_id, began_at) do update set received_bytes = d.received_bytes + excluded.received_bytes,
             sent_bytes = d.sent_bytes + excluded.sent_bytes,
             disk_used_bytes = greatest(d.disk_used_bytes, excluded.disk_used_bytes)",
        due.resource.0,
        beginning_of(at.0, 3_600),
        beginning_of(at.0, 86_400),
        step.received,
        step.sent,
        used,
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(true)
}

/// Notes why a look was not answered; what is known stays as it was.
///
/// # Errors
/// Those of the database.
pub async fn note_failure(pool: &PgPool, due: &Due, why: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "update seedbox_usage set last_error = left($3, 500) where resource_id = $1 and next_look_at = $2",
        due.resource.0,
        due.claim,
        why,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Deletes hours and days that are older than they are kept, some at a time.
///
/// # Errors
/// Those of the database.
pub async fn forget(pool: &PgPool, at: Time) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from seedbox_usage_hours where ctid in (select ctid from seedbox_usage_hours where began_at < $1 limit $2)",
        Time(at.0 - HOURS_KEPT),
        FORGET_AT_ONCE,
    )
    .execute(pool)
    .await?;
    sqlx::query!(
        "delete from seedbox_usage_days where ctid in (select ctid from seedbox_usage_days where began_at < $1 limit $2)",
        Time(at.0 - DAYS_KEPT),
        FORGET_AT_ONCE,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// What a box uses, as its owner sees it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct UsageView {
    /// When it was counted last; what is said here is as of then.
    pub counted_at: Time,
    /// What its data takes of the disk, in bytes.
    pub disk_used_bytes: i64,
    /// How much its data could take in all, in bytes.
    pub disk_total_bytes: i64,
    /// When the month of the box began that is counted.
    pub month_began_at: Time,
    /// When the two sums begin at nothing again: with the next month of the box.
    pub resets_at: Time,
    /// Bytes that came in within that month.
    pub received_bytes: i64,
    /// Bytes that went out within that month.
    pub sent_bytes: i64,
    /// Whether the newest look was not answered; what is said here is older then, and the box is asked again.
    pub is_failing: bool,
    /// Why, for an operator.
    #[serde(skip)]
    pub last_error: Option<String>,
}

/// What a box uses; `None` as long as nobody has counted.
///
/// # Errors
/// Those of the database.
pub async fn of(pool: &PgPool, resource: ResourceId, at: Time) -> sqlx::Result<Option<UsageView>> {
    let known = sqlx::query!(
        r#"select u.counted_at as "counted_at: Time", u.disk_used_bytes, u.disk_total_bytes, u.received_bytes, u.sent_bytes,
               u.month_began_at as "month_began_at: Time", u.last_error, r.anchor_at as "anchor_at: Time"
           from seedbox_usage u join seedbox_resources r on r.id = u.resource_id where u.resource_id = $1"#,
        resource.0
    )
    .fetch_optional(pool)
    .await?;
    let Some(known) = known else { return Ok(None) };
    let (Some(counted_at), Some(disk_used_bytes), Some(disk_total_bytes), Some(anchor)) =
        (known.counted_at, known.disk_used_bytes, known.disk_total_bytes, known.anchor_at)
    else {
        return Ok(None);
    };
    let month = month_of(anchor.0, at.0);
    // A month that began after the newest look has nothing yet.
    let counted = known.month_began_at == Some(Time(month.start));
    Ok(Some(UsageView {
        counted_at,
        disk_used_bytes,
        disk_total_bytes,
        month_began_at: Time(month.start),
        resets_at: Time(month.end),
        received_bytes: if counted { known.received_bytes } else { 0 },
        sent_bytes: if counted { known.sent_bytes } else { 0 },
        is_failing: known.last_error.is_some(),
        last_error: known.last_error,
    }))
}

/// What came, went and lay there in an hour or a day.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct UsageSpan {
    /// When the hour or the day (in UTC) began.
    pub began_at: Time,
    /// Bytes that came in within it.
    pub received_bytes: i64,
    /// Bytes that went out within it.
    pub sent_bytes: i64,
    /// The most that lay on the disk, in bytes.
    pub disk_used_bytes: i64,
}

/// The hours of a box since then, oldest first. Hours in which nobody counted are left out.
///
/// # Errors
/// Those of the database.
pub async fn hours(pool: &PgPool, resource: ResourceId, since: Time) -> sqlx::Result<Vec<UsageSpan>> {
    sqlx::query_as!(
        UsageSpan,
        r#"select began_at as "began_at: Time", received_bytes, sent_bytes, disk_used_bytes from seedbox_usage_hours
           where resource_id = $1 and began_at >= $2 order by began_at limit 1000"#,
        resource.0,
        since,
    )
    .fetch_all(pool)
    .await
}

/// The days of a box since then, oldest first. Days on which nobody counted are left out.
///
/// # Errors
/// Those of the database.
pub async fn days(pool: &PgPool, resource: ResourceId, since: Time) -> sqlx::Result<Vec<UsageSpan>> {
    sqlx::query_as!(
        UsageSpan,
        r#"select began_at as "began_at: Time", received_bytes, sent_bytes, disk_used_bytes from seedbox_usage_days
           where resource_id = $1 and began_at >= $2 order by began_at limit 1000"#,
        resource.0,
        since,
    )
    .fetch_all(pool)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(count: &str, received_bytes: u64, sent_bytes: u64) -> Usage {
        Usage { disk_used_bytes: 0, disk_total_bytes: 0, received_bytes, sent_bytes, count: count.to_owned() }
    }

    #[test]
    fn traffic_is_what_the_counters_moved_since_the_look_before() {
        let earlier = Counters { name: "boot 1".to_owned(), at: Traffic { received: 100, sent: 1_000 } };
        for (what, earlier, now, expected) in [
            ("the first look says where counting begins", None, usage("boot 1", 500, 500), (0, 0)),
            ("what moved", Some(&earlier), usage("boot 1", 150, 1_000), (50, 0)),
            ("another count begins at nothing", Some(&earlier), usage("boot 2", 150, 2_000), (150, 2_000)),
            ("a counter that went back began again", Some(&earlier), usage("boot 1", 99, 1_001), (99, 1)),
            ("more than can be kept", Some(&earlier), usage("boot 2", u64::MAX, 0), (i64::MAX, 0)),
        ] {
            let step = since(earlier, &now);
            assert_eq!((step.received, step.sent), expected, "{what}");
        }
    }

    #[test]
    fn a_month_of_a_box_begins_on_its_own_day() {
        let anchor: Timestamp = "2027-01-31T12:00:00Z".parse().unwrap();
        for (at, start, end) in [
            ("2027-01-31T12:00:00Z", "2027-01-31T12:00:00Z", "2027-02-28T12:00:00Z"),
            ("2027-02-28T11:59:59Z", "2027-01-31T12:00:00Z", "2027-02-28T12:00:00Z"),
            ("2027-02-28T12:00:00Z", "2027-02-28T12:00:00Z", "2027-03-31T12:00:00Z"),
            ("2029-06-15T00:00:00Z", "2029-05-31T12:00:00Z", "2029-06-30T12:00:00Z"),
            ("2026-12-01T00:00:00Z", "2027-01-31T12:00:00Z", "2027-02-28T12:00:00Z"),
        ] {
            let month = month_of(anchor, at.parse().unwrap());
            assert_eq!((month.start.to_string().as_str(), month.end.to_string().as_str()), (start, end), "{at}");
        }
    }
}
