//! Tamper evidence: sealing the heads of all chains in signed checkpoints, and verifying the whole log.
//!
//! A chain shows a changed byte or a row missing from its middle. It cannot show that its newest rows were cut off, or
//! that a whole chain is gone: the checkpoints do, and a copy of them outside the database shows that the checkpoints
//! themselves were not rewritten. What was written after the last checkpoint is protected by its chain alone.

use std::{fmt, io::Write, path::Path};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use jiff::SignedDuration;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgExecutor, PgPool, Row, postgres::PgRow};
use tokio_stream::StreamExt;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{alerts, app::App, clock::Time, secrets::SecretPath, workers::StepError};

/// How many chains one checkpoint seals at most; the next takes the rest.
const MAX_HEADS: i64 = 5000;

/// The alert of a clock that shows less than what was sealed: nothing is charged until an operator has resolved it.
pub const CLOCK_WENT_BACK: &str = "clock_went_back";

/// Two machines' clocks may be so far apart without anything being wrong.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(1);

const EVENT_DOMAIN: &[u8] = b"seedplane audit event 1";
const CHAIN_DOMAIN: &[u8] = b"seedplane audit chain 1:";
const CHECKPOINT_DOMAIN: &[u8] = b"seedplane audit checkpoint 1";

/// A checkpoint as it is exported, one line of JSON each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ExportedCheckpoint {
    id: i64,
    at: Time,
    chains: i64,
    digest: String,
    signature: String,
    public_key: String,
}

struct Head {
    subject_id: Uuid,
    seq: i64,
    head: Vec<u8>,
}

fn checkpoint_digest(previous: &[u8], id: i64, at: Time, heads: &[Head]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(CHECKPOINT_DOMAIN);
    hasher.update(previous);
    hasher.update(id.to_be_bytes());
    hasher.update(at.0.as_microsecond().to_be_bytes());
    for head in heads {
        hasher.update(head.subject_id.as_bytes());
        hasher.update(head.seq.to_be_bytes());
        hasher.update(&head.head);
    }
    hasher.finalize().into()
}

async fn signing_key(app: &App) -> Result<Ed25519KeyPair, StepError> {
    let path = SecretPath::new("audit/signing-key").expect("a fixed path");
    let seed = SecretString::from(hex::encode(rand::random::<[u8; 32]>()));
    let stored = app.secrets.get_or_put(&path, seed).await?;
    hex::decode(stored.expose_secret())
        .ok()
        .and_then(|seed| Ed25519KeyPair::from_seed_unchecked(&seed).ok())
        .ok_or_else(|| {
            StepError::File(std::io::Error::other("the audit signing key in the secret store is not an Ed25519 seed"))
        })
}

/// Whether the clock shows less than the newest checkpoint, by more than clocks may be apart.
///
/// # Errors
/// Those of the database.
pub async fn clock_is_behind(executor: impl PgExecutor<'_>, now: Time) -> sqlx::Result<bool> {
    let newest = newest_time(executor).await?;
    Ok(newest.is_some_and(|newest| newest.0 > now.0 + CLOCK_TOLERANCE))
}

/// The newest time that was sealed since an operator last said that the clock is right.
async fn newest_time(executor: impl PgExecutor<'_>) -> sqlx::Result<Option<Time>> {
    sqlx::query_scalar!(
        r#"select max(at) as "at: Time" from audit_checkpoints
           where id > coalesce((select max(last_checkpoint) from clock_corrections), 0)"#
    )
    .fetch_one(executor)
    .await
}

/// Notes that an operator has looked at a clock that went back and found it right: what was sealed before no longer says what
/// the time is. Without it a clock that was once ahead would stop everything until that time has come.
///
/// # Errors
/// Those of the database.
pub async fn trust_clock_in(connection: &mut PgConnection, at: Time) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into clock_corrections (last_checkpoint, corrected_at)
         select coalesce(max(id), 0), $1 from audit_checkpoints on conflict do nothing",
        at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Seals every chain that grew since the last checkpoint. Answers how many. Nothing is sealed at a time before that of the
/// newest checkpoint: where the clock went back, an operator is told.
///
/// # Errors
/// Those of the database, the secret store and the checkpoint file.
pub async fn seal(app: &App) -> Result<usize, StepError> {
    let key = signing_key(app).await?;
    let mut tx = app.pool.begin().await?;
    // One sealer at a time; nobody else takes this lock.
    let mine = sqlx::query_scalar!(r#"select pg_try_advisory_xact_lock(hashtext('seedplane audit seal')) as "mine!""#)
        .fetch_one(&mut *tx)
        .await?;
    if !mine {
        return Ok(0);
    }
    let at = app.now();
    if let Some(newest) = newest_time(&mut *tx).await?.filter(|newest| *newest > at) {
        tx.rollback().await?;
        let behind = newest.duration_since(at.0);
        if behind > CLOCK_TOLERANCE {
            let detail = format!(
                "the clock is {} seconds behind the newest audit checkpoint: nothing is sealed until it has caught up, and \
                 nothing is charged, suspended or wiped until this alert is resolved",
                behind.as_secs()
            );
            alerts::raise(&app.pool, CLOCK_WENT_BACK, "clock", &detail, at).await?;
        }
        return Ok(0);
    }
    let mut heads: Vec<Head> = sqlx::query_as!(
        Head,
        "update audit_chains set sealed_seq = seq
         where subject_id in (
             select subject_id from audit_chains where seq > sealed_seq order by subject_id limit $1 for update skip locked)
         returning subject_id, seq, head",
        MAX_HEADS
    )
    .fetch_all(&mut *tx)
    .await?;
    let sealed = heads.len();
    if sealed > 0 {
        heads.sort_by_key(|head| head.subject_id);
        let last = sqlx::query!("select id, digest from audit_checkpoints order by id desc limit 1")
            .fetch_optional(&mut *tx)
            .await?;
        let (id, previous) = last.map_or((1, vec![0; 32]), |last| (last.id + 1, last.digest));
        let digest = checkpoint_digest(&previous, id, at, &heads);
        let signature = key.sign(&digest);
        sqlx::query!(
            "insert into audit_checkpoints (id, at, chains, digest, signature, public_key) values ($1, $2, $3, $4, $5, $6)",
            id,
            at,
            i64::try_from(sealed).unwrap_or(i64::MAX),
            &digest,
            signature.as_ref(),
            key.public_key().as_ref(),
        )
        .execute(&mut *tx)
        .await?;
        sqlx::query!(
            "insert into audit_checkpoint_heads (checkpoint_id, subject_id, seq, head)
             select $1, * from unnest($2::uuid[], $3::bigint[], $4::bytea[])",
            id,
            &heads.iter().map(|head| head.subject_id).collect::<Vec<_>>(),
            &heads.iter().map(|head| head.seq).collect::<Vec<_>>(),
            &heads.iter().map(|head| head.head.clone()).collect::<Vec<_>>(),
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        metrics::counter!("seedplane_audit_checkpoints_total").increment(1);
    } else {
        tx.rollback().await?;
    }
    export(app).await?;
    Ok(sealed)
}

/// What is wrong with a copy of the checkpoints: it is read by people who look for an alteration, so it says which line.
fn damaged(file: &Path, line: usize) -> StepError {
    StepError::Copy(format!(
        "{} is damaged: line {line} is no checkpoint. The database was not compared with it; compare with another copy, or \
         put this file back from a backup",
        file.display()
    ))
}

/// The checkpoints in a copy. A last line that a crash cut short is left out: the next export writes it again.
fn read_copy(file: &Path) -> Result<Vec<ExportedCheckpoint>, StepError> {
    let bytes = std::fs::read(file).map_err(|error| {
        StepError::Copy(format!("the copy of the checkpoints, {}, cannot be read: {error}", file.display()))
    })?;
    let text = String::from_utf8_lossy(&bytes);
    let complete = text.ends_with('\n');
    let lines: Vec<&str> = text.lines().collect();
    let mut checkpoints = Vec::new();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match serde_json::from_str(line) {
            Ok(checkpoint) => checkpoints.push(checkpoint),
            Err(_) if index + 1 == lines.len() && !complete => {}
            Err(_) => return Err(damaged(file, index + 1)),
        }
    }
    Ok(checkpoints)
}

/// The number of the last checkpoint in the copy, 0 if there is none. What is damaged before it is for [`verify`] to say:
/// it does not keep newer checkpoints from being exported.
fn last_exported(file: &Path) -> std::io::Result<i64> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&bytes);
    let last = text.lines().rev().find_map(|line| serde_json::from_str::<ExportedCheckpoint>(line).ok());
    Ok(last.map_or(0, |last| last.id))
}

/// Removes a last line that a crash cut short, so that what is appended begins a line of its own.
fn cut_torn_line(file: &std::fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut end = file.metadata()?.len();
    let mut byte = [0];
    while end > 0 {
        file.read_exact_at(&mut byte, end - 1)?;
        if byte[0] == b'\n' {
            break;
        }
        end -= 1;
    }
    if end < file.metadata()?.len() { file.set_len(end) } else { Ok(()) }
}

/// Appends to the file outside the database every checkpoint it does not hold yet.
async fn export(app: &App) -> Result<(), StepError> {
    let path = &*app.checkpoint_file;
    let last = last_exported(path)?;
    let rows = sqlx::query!(
        "select id, at, chains, digest, signature, public_key from audit_checkpoints where id > $1 order by id limit 10000",
        last
    )
    .fetch_all(&app.pool)
    .await?;
    if rows.is_empty() {
        return Ok(());
    }
    // A copy that was there and is gone is made anew from the database, and then proves nothing of what was before.
    if last == 0 && rows.len() > 1 {
        let detail = format!(
            "the copy of the audit checkpoints, {}, was missing or empty and is made anew from the database, {} checkpoints of \
             it. If this is not a new machine, compare with a copy from elsewhere: `seedplane audit verify --checkpoints FILE`",
            path.display(),
            rows.len()
        );
        alerts::raise(&app.pool, "audit_copy_remade", &path.display().to_string(), &detail, app.now()).await?;
    }
    let mut file = std::fs::OpenOptions::new().create(true).read(true).append(true).open(path)?;
    // Two workers on one folder write one after the other, and the second only what the first has not. Nothing is awaited
    // while the lock is held.
    file.lock()?;
    let last = last_exported(path)?;
    let mut lines = String::new();
    for row in rows.into_iter().filter(|row| row.id > last) {
        let exported = ExportedCheckpoint {
            id: row.id,
            at: row.at,
            chains: row.chains,
            digest: hex::encode(row.digest),
            signature: hex::encode(row.signature),
            public_key: hex::encode(row.public_key),
        };
        lines.push_str(&serde_json::to_string(&exported).expect("a checkpoint is plain JSON"));
        lines.push('\n');
    }
    cut_torn_line(&file)?;
    file.write_all(lines.as_bytes())?;
    file.sync_data()?;
    Ok(())
}

/// What verifying came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything is as it was written, up to the newest checkpoint in the copy outside the database.
    #[default]
    Unaltered,
    /// Nothing is wrong, but the copy outside the database does not reach as far as the database: `unproved` says what that
    /// leaves open.
    UnalteredInPart,
    /// It cannot be known: there is no copy outside the database to compare with.
    NotProved,
    /// Something was changed.
    Altered,
}

/// What verifying found.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Verification {
    /// What it came to.
    pub verdict: Verdict,
    /// Events read.
    pub events: u64,
    /// Chains they belong to.
    pub chains: u64,
    /// Checkpoints checked.
    pub checkpoints: u64,
    /// Checkpoints compared with the copy outside the database.
    pub exported: u64,
    /// The first thing that is wrong; `null` if nothing is.
    pub fault: Option<String>,
    /// What nothing outside the database vouches for; `null` if nothing is left open.
    pub unproved: Option<String>,
}

impl Verification {
    fn altered(mut self, fault: String) -> Self {
        (self.verdict, self.fault) = (Verdict::Altered, Some(fault));
        self
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} events in {} chains, {} signed checkpoints, {} of them compared with the copy outside the database: ",
            self.events, self.chains, self.checkpoints, self.exported
        )?;
        let fault = self.fault.as_deref().unwrap_or_default();
        let unproved = self.unproved.as_deref().unwrap_or_default();
        match self.verdict {
            Verdict::Unaltered => f.write_str("unaltered"),
            Verdict::UnalteredInPart => write!(f, "unaltered as far as the copy reaches; {unproved}"),
            Verdict::NotProved => write!(f, "NOT PROVED: {fault}"),
            Verdict::Altered => write!(f, "ALTERED: {fault}"),
        }
    }
}

/// The copy of the checkpoints to compare with.
#[derive(Debug, Clone, Copy)]
pub enum Copy<'a> {
    /// One that somebody named: if it cannot be read, that is an error.
    Named(&'a Path),
    /// The one that this installation exports: if it is missing although checkpoints were made, nothing is proved.
    Own(&'a Path),
}

impl Copy<'_> {
    fn read(self) -> Result<Vec<ExportedCheckpoint>, StepError> {
        match self {
            Self::Named(file) => read_copy(file),
            Self::Own(file) if !file.exists() => Ok(Vec::new()),
            Self::Own(file) => read_copy(file),
        }
    }

    fn path(self) -> String {
        let (Self::Named(file) | Self::Own(file)) = self;
        file.display().to_string()
    }
}

/// How long a verification waits for a checkpoint that was just made to be exported, in steps of 100 ms.
const EXPORT_PATIENCE: u32 = 30;

fn field(hasher: &mut Sha256, value: Option<&str>) {
    match value {
        None => hasher.update(b"-"),
        Some(value) => {
            hasher.update(value.len().to_string());
            hasher.update(b":");
            hasher.update(value);
        }
    }
}

fn event_hash(previous: &[u8], row: &PgRow) -> sqlx::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    hasher.update(EVENT_DOMAIN);
    hasher.update(previous);
    for column in [
        "subject_kind",
        "subject",
        "seq_text",
        "at_text",
        "actor",
        "action",
        "resource",
        "reason",
        "request_id",
        "before",
        "after",
    ] {
        field(&mut hasher, row.try_get::<Option<&str>, _>(column)?);
    }
    Ok(hasher.finalize().into())
}

/// Verifies every chain, every checkpoint, and the copy of the checkpoints outside the database, and names the first row
/// that is wrong. Reads one snapshot, row by row.
///
/// # Errors
/// Those of the database and of reading the file; an altered log is not an error but a finding, and so is the lack of a copy
/// that there should be.
pub async fn verify(pool: &PgPool, copy: Copy<'_>) -> Result<Verification, StepError> {
    // Before the database is looked at: what a running service exports meanwhile would seem to be missing there.
    let exported = copy.read()?;
    let mut found = verify_against(pool, &exported).await?;
    if found.fault.is_some() {
        return Ok(found);
    }
    // A checkpoint is exported a moment after it is made, and that moment may have been ours.
    let mut reaches = last_id(&exported);
    for _ in 0..EXPORT_PATIENCE {
        if reaches >= found.checkpoints {
            break;
        }
        if matches!(copy, Copy::Named(_)) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let later = copy.read()?;
        if last_id(&later) > reaches {
            found = verify_against(pool, &later).await?;
            reaches = last_id(&later);
        }
    }
    if found.fault.is_some() {
        return Ok(found);
    }
    if found.exported == 0 && found.checkpoints > 0 {
        found.verdict = Verdict::NotProved;
        found.fault = Some(format!(
            "{} checkpoints were made and the copy of them outside the database, {}, is missing or empty. The database agrees \
             with itself, but whoever could rewrite all of it could rewrite that too; compare with a copy: --checkpoints FILE",
            found.checkpoints,
            copy.path()
        ));
    } else if found.exported < found.checkpoints {
        found.verdict = Verdict::UnalteredInPart;
        found.unproved = Some(format!(
            "it ends at checkpoint {} of {}, and for the later ones there is the word of the database alone",
            found.exported, found.checkpoints
        ));
    } else if found.checkpoints == 0 && found.events > 0 {
        found.verdict = Verdict::UnalteredInPart;
        found.unproved = Some("no checkpoint was made yet, so that only the chains vouch for themselves".to_owned());
    }
    Ok(found)
}

fn last_id(exported: &[ExportedCheckpoint]) -> u64 {
    exported.last().and_then(|last| u64::try_from(last.id).ok()).unwrap_or(0)
}

async fn verify_against(pool: &PgPool, exported: &[ExportedCheckpoint]) -> Result<Verification, StepError> {
    let mut found = Verification::default();
    let mut tx = pool.begin().await?;
    sqlx::query!("set transaction isolation level repeatable read read only").execute(&mut *tx).await?;

    let mut chain: Option<(Uuid, i64, Vec<u8>)> = None;
    {
        let mut rows = sqlx::query(
            "select e.id, e.subject_id, e.seq, e.previous_hash, e.hash, e.subject_kind, e.subject_id::text as subject,
                 e.seq::text as seq_text, (extract(epoch from e.at) * 1000000)::bigint::text as at_text, e.actor, e.action,
                 e.resource_id::text as resource, e.reason, e.request_id, e.before::text as before, e.after::text as after
             from seedbox_audit_events e order by e.subject_id, e.seq",
        )
        .fetch(&mut *tx);
        while let Some(row) = rows.next().await {
            let row = row?;
            let (id, subject, seq): (i64, Uuid, i64) =
                (row.try_get("id")?, row.try_get("subject_id")?, row.try_get("seq")?);
            let (previous, hash): (&[u8], &[u8]) = (row.try_get("previous_hash")?, row.try_get("hash")?);
            let (expected_seq, expected_previous) = match &chain {
                Some((of, seq, hash)) if *of == subject => (seq + 1, hash.clone()),
                _ => {
                    found.chains += 1;
                    (1, Sha256::digest([CHAIN_DOMAIN, subject.to_string().as_bytes()].concat()).to_vec())
                }
            };
            found.events += 1;
            let name = format!(
                "event {id} ({} {subject}, number {seq} of its chain)",
                row.try_get::<&str, _>("subject_kind")?
            );
            let fault = if seq != expected_seq {
                Some(format!("{name} follows number {}: at least one row before it was removed", expected_seq - 1))
            } else if previous != expected_previous {
                Some(format!("{name} does not continue the row before it"))
            } else if event_hash(previous, &row)? != hash {
                Some(format!("{name} was changed: its content does not match its hash"))
            } else {
                None
            };
            if let Some(fault) = fault {
                return Ok(found.altered(fault));
            }
            chain = Some((subject, seq, hash.to_vec()));
        }
    }

    let cut = sqlx::query!(
        r#"select h.checkpoint_id, h.subject_id, h.seq, e.id as "event?" from audit_checkpoint_heads h
           left join seedbox_audit_events e on e.subject_id = h.subject_id and e.seq = h.seq
           where e.hash is distinct from h.head order by h.checkpoint_id, h.subject_id limit 1"#
    )
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(cut) = cut {
        return Ok(found.altered(match cut.event {
            Some(event) => format!("event {event} is not the one that checkpoint {} sealed", cut.checkpoint_id),
            None => format!(
                "event number {} of subject {} is missing: checkpoint {} sealed it, so the end of that chain was cut off",
                cut.seq, cut.subject_id, cut.checkpoint_id
            ),
        }));
    }
    let loose = sqlx::query!(
        r#"select c.subject_id, c.seq from audit_chains c
           left join seedbox_audit_events e on e.subject_id = c.subject_id and e.seq = c.seq
           where e.hash is distinct from c.head order by c.subject_id limit 1"#
    )
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(loose) = loose {
        return Ok(found.altered(format!(
            "event number {} of subject {} is missing: the end of that chain was cut off",
            loose.seq, loose.subject_id
        )));
    }

    let fault = verify_checkpoints(&mut tx, &mut found, exported).await?;
    Ok(match fault {
        Some(fault) => found.altered(fault),
        None => found,
    })
}

async fn verify_checkpoints(
    connection: &mut sqlx::PgConnection,
    found: &mut Verification,
    exported: &[ExportedCheckpoint],
) -> Result<Option<String>, StepError> {
    let checkpoints =
        sqlx::query!("select id, at, chains, digest, signature, public_key from audit_checkpoints order by id")
            .fetch_all(&mut *connection)
            .await?;
    let mut previous = vec![0; 32];
    for (position, checkpoint) in checkpoints.iter().enumerate() {
        found.checkpoints += 1;
        let id = checkpoint.id;
        if usize::try_from(id).ok() != Some(position + 1) {
            return Ok(Some(format!("checkpoint {} is missing", position + 1)));
        }
        let heads = sqlx::query_as!(
            Head,
            "select subject_id, seq, head from audit_checkpoint_heads where checkpoint_id = $1 order by subject_id",
            id
        )
        .fetch_all(&mut *connection)
        .await?;
        let digest = checkpoint_digest(&previous, id, checkpoint.at, &heads);
        if digest != checkpoint.digest.as_slice() {
            return Ok(Some(format!("checkpoint {id} was changed: its content does not match its digest")));
        }
        let key = UnparsedPublicKey::new(&ED25519, &checkpoint.public_key);
        if key.verify(&digest, &checkpoint.signature).is_err() {
            return Ok(Some(format!("checkpoint {id} is not signed by its key")));
        }
        previous = digest.to_vec();
    }
    for (position, outside) in exported.iter().enumerate() {
        found.exported += 1;
        // A copy begins with the first checkpoint and leaves none out: a gap is an alteration of the copy.
        if usize::try_from(outside.id).ok() != Some(position + 1) {
            return Ok(Some(format!("checkpoint {} is missing from the copy outside the database", position + 1)));
        }
        let inside = usize::try_from(outside.id - 1).ok().and_then(|position| checkpoints.get(position));
        let same = inside.is_some_and(|inside| {
            hex::encode(&inside.digest) == outside.digest && hex::encode(&inside.public_key) == outside.public_key
        });
        if !same {
            let what = if inside.is_some() { "differs from" } else { "is missing from the database but stands in" };
            return Ok(Some(format!("checkpoint {} {what} the copy outside the database", outside.id)));
        }
    }
    Ok(None)
}
