//! Looks at customers' own servers, carries out what was asked of them, replaces keys and takes them back.
//!
//! No transaction is open while a server is talked to. What was seen is written fenced by the version that was read; where
//! somebody else wrote first, it is looked at again.

use std::time::Duration;

use jiff::SignedDuration;
use seedplane_provisioning::node::gate;
use serde_json::json;
use sqlx::PgConnection;
use tokio::task::JoinSet;

use super::{
    StepError,
    byos_log::{keep_log, note_log},
};
use crate::{
    alerts,
    app::App,
    audit::events::Cause,
    byos::{
        broker::{BrokerError, Hello, Line, Way, os_name},
        commands::{self, CommandStatus, Finished},
        connections::{self, Connection, ConnectionStatus, Revocation},
        hosts::Purpose,
        keys,
        ssh::{Seen, SshError},
    },
    clock::Time,
    ids::{CommandId, ConnectionId},
    jobs::{self, Job},
    mailer::{
        self,
        templates::byos::{self as words, Server},
    },
    seedbox::lifecycle::TransitionError,
};

/// For how long a round of looks keeps its worker; what is not done then goes on without one.
const ROUND: Duration = Duration::from_secs(10);

/// For how long a revocation is put off because others use all the sessions that the server gets.
const REVOKE_WAITS: SignedDuration = SignedDuration::from_mins(2);

/// A server that answers is looked at this often, give or take a fifth.
const PROBE_EVERY: SignedDuration = SignedDuration::from_mins(5);

/// A server that does not is looked at again this soon.
const PROBE_AGAIN: SignedDuration = SignedDuration::from_mins(1);

/// After so many looks in a row without success a connection counts as broken.
const FAILURES: i32 = 3;

/// A pinned server that refuses our key for so long, at [`FAILURES`] looks at least, was told to by its owner.
const REFUSED_FOR: SignedDuration = SignedDuration::from_mins(2);

/// How old what we have of a server's own log may become.
const LOG_EVERY: SignedDuration = SignedDuration::from_hours(1);

/// How often a revocation tries to reach a server before it goes on without.
const REVOKE_TRIES: u32 = 2;

pub(super) fn server(connection: &Connection) -> Server<'_> {
    Server { user_id: connection.user_id, id: connection.id, label: &connection.label, host: &connection.host }
}

/// A round of looks as a job: servers that hang do not keep its worker. What is cut off with this process is soon due again.
///
/// # Errors
/// Those of the database.
pub async fn round(app: &App) -> Result<(), StepError> {
    let app = app.clone();
    let looking = tokio::spawn(async move { probe_due(&app).await });
    match tokio::time::timeout(ROUND, looking).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

/// Looks at every connection that is due, and sees to what lost its job.
///
/// # Errors
/// Those of the database.
pub async fn probe_due(app: &App) -> Result<(), StepError> {
    let now = app.now();
    let mut connection = app.pool.acquire().await?;
    for id in connections::being_revoked(&mut *connection).await? {
        jobs::enqueue_in(&mut connection, Job::RevokeConnection(id)).await?;
    }
    for (command, of) in commands::waiting(&mut *connection, now).await? {
        jobs::enqueue_in(&mut connection, Job::RunCommand { command, connection: of }).await?;
    }
    drop(connection);
    commands::forget_old(&app.pool, now).await?;
    let due = connections::claim_due(&app.pool, now).await?;
    let mut looking = JoinSet::new();
    for id in due {
        let app = app.clone();
        looking.spawn(async move {
            match probe_for(&app, id, Purpose::Round).await {
                Ok(()) | Err(StepError::Transition(TransitionError::Stale)) => {}
                Err(error) => {
                    tracing::warn!(connection = %id, %error, "a customer's server could not be looked at; it is tried again");
                }
            }
        });
    }
    while looking.join_next().await.is_some() {}
    Ok(())
}

/// What came of a look.
struct Look {
    seen: Option<Seen>,
    result: Result<Alive, BrokerError>,
}

/// A server whose gate answers.
struct Alive {
    hello: Hello,
    latency: Duration,
    facts: Option<String>,
    log: Option<String>,
}

async fn look(app: &App, connection: &Connection, way: Result<Way, BrokerError>) -> Look {
    let opened = match way {
        Ok(way) => Line::open_on(way, app, connection, &connection.secret_ref).await,
        Err(error) => Err(error),
    };
    let line = match opened {
        Ok(line) => line,
        Err(error) => {
            let seen = if let BrokerError::Ssh(ssh) = &error { ssh.seen().cloned() } else { None };
            return Look { seen, result: Err(error) };
        }
    };
    let seen = Some(line.session.seen.clone());
    let latency = line.session.latency;
    let ask = async {
        let hello = line.hello().await?;
        let facts = if connection.os_name.is_none() { Some(line.facts().await?) } else { None };
        let log_is_old = connection.server_log_at.is_none_or(|at| app.now().duration_since(at.0) >= LOG_EVERY);
        let log = if log_is_old { Some(line.log().await?) } else { None };
        Ok(Alive { hello, latency, facts, log })
    };
    let result = ask.await;
    line.close().await;
    Look { seen, result }
}

/// Looks at one server now and writes what was seen.
///
/// # Errors
/// Those of the database, [`BrokerError::Busy`], and [`TransitionError::Stale`] if somebody else wrote first.
pub async fn probe(app: &App, id: ConnectionId) -> Result<(), StepError> {
    probe_for(app, id, Purpose::Look).await
}

/// A connection that can be looked at. A changed host key waits for its owner: not even a login is tried.
async fn to_look_at(app: &App, id: ConnectionId) -> sqlx::Result<Option<Connection>> {
    Ok(connections::find(&app.pool, id).await?.filter(|connection| {
        let over = connection.status == ConnectionStatus::Revoked || connection.revoke_requested_at.is_some();
        !over && connection.seen_host_key.is_none()
    }))
}

async fn probe_for(app: &App, id: ConnectionId, purpose: Purpose) -> Result<(), StepError> {
    let Some(connection) = to_look_at(app, id).await? else { return Ok(()) };
    let way = Way::find(app, &connection, purpose).await;
    // As it is after the wait for a place.
    let Some(mut connection) = to_look_at(app, id).await? else { return Ok(()) };
    let looked = look(app, &connection, way).await;
    if let Err(error) = &looked.result
        && error.is_ours()
    {
        return Err(looked.result.err().expect("matched just above").into());
    }
    let now = app.now();
    let sent = match &looked.result {
        Ok(Alive { log: Some(_), .. }) => commands::sent(&app.pool, id).await?,
        _ => Vec::new(),
    };
    let mut tx = app.pool.begin().await?;
    note_seen_in(&mut tx, &mut connection, looked.seen.as_ref(), now).await?;
    match looked.result {
        Ok(alive) => {
            if let Some(log) = &alive.log {
                note_log(&mut tx, &mut connection, log, &sent, now).await?;
            }
            answered_in(&mut tx, &mut connection, alive, now).await?;
        }
        Err(error) => failed_in(&mut tx, &mut connection, &error, now).await?,
    }
    if connection.next_secret_ref.is_some() {
        jobs::enqueue_in(&mut tx, Job::RotateConnection(id)).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Pins the host key at the first contact, before anybody has logged in.
async fn note_seen_in(
    tx: &mut PgConnection,
    connection: &mut Connection,
    seen: Option<&Seen>,
    now: Time,
) -> Result<(), StepError> {
    connection.last_probe_at = Some(now);
    let Some(seen) = seen else { return Ok(()) };
    if connection.host_key.is_none() {
        connection.host_key = Some(seen.host_key.clone());
        connection.host_key_fingerprint = Some(seen.host_key_fingerprint.clone());
        let after = json!({ "host_key_fingerprint": seen.host_key_fingerprint });
        connections::record_in(tx, connection, "connection.host_key_pinned", after, now, &Cause::system()).await?;
    }
    if connection.host_key.as_ref() == Some(&seen.host_key) {
        connection.server_version = Some(seen.server_version.clone());
    }
    Ok(())
}

async fn answered_in(
    tx: &mut PgConnection,
    connection: &mut Connection,
    alive: Alive,
    now: Time,
) -> Result<(), StepError> {
    let cause = Cause::system();
    connection.last_seen_at = Some(now);
    connection.latency_ms = i32::try_from(alive.latency.as_millis()).ok();
    connection.probe_failures = 0;
    connection.refused_since = None;
    connection.last_error_kind = None;
    connection.last_error = None;
    connection.next_probe_at = Some(Time(now.0 + with_jitter(PROBE_EVERY)));
    if let Some(name) = alive.facts.as_deref().and_then(os_name) {
        connection.os_name = Some(name);
    }
    connection.gate_sha256 = Some(alive.hello.gate_sha256);
    connection.manifest_sha256 = Some(alive.hello.manifest_sha256);
    let is_ours = connection.gate_sha256.as_deref() == Some(gate::gate_sha256())
        && connection.manifest_sha256.as_deref() == Some(gate::manifest_sha256());
    if connection.runs_what_was_agreed() == Some(false) && !is_ours {
        let why = "the gate or its manifest on the server is neither the one that was agreed to nor one of ours";
        return broken_in(tx, connection, "gate_altered", why, now).await;
    }
    connections::write_in(tx, connection).await?;
    if matches!(connection.status, ConnectionStatus::Pending | ConnectionStatus::Error) {
        let first = connection.status == ConnectionStatus::Pending;
        connections::transition_in(tx, connection, ConnectionStatus::Connected, None, now, &cause).await?;
        if first {
            connections::add_resource_in(tx, connection, now, &cause).await?;
            let fingerprint = connection.host_key_fingerprint.clone().unwrap_or_default();
            mailer::notify_in(tx, words::connected(server(connection), &fingerprint), now).await?;
        }
    }
    Ok(())
}

async fn failed_in(
    tx: &mut PgConnection,
    connection: &mut Connection,
    error: &BrokerError,
    now: Time,
) -> Result<(), StepError> {
    connection.probe_failures = connection.probe_failures.saturating_add(1);
    connection.next_probe_at = next_after_failure(connection, now);
    let (kind, why) = (error.kind(), error.to_string());
    match error {
        BrokerError::Ssh(SshError::HostKeyChanged { seen, .. }) => {
            connection.seen_host_key = Some(seen.host_key.clone());
            connection.seen_host_key_fingerprint = Some(seen.host_key_fingerprint.clone());
            connection.next_probe_at = None;
            broken_in(tx, connection, kind, &why, now).await
        }
        BrokerError::NotTheGate { .. } => broken_in(tx, connection, kind, &why, now).await,
        BrokerError::Ssh(SshError::Refused { .. }) if connection.status != ConnectionStatus::Pending => {
            let since = *connection.refused_since.get_or_insert(now);
            let long_enough = now.duration_since(since.0) >= REFUSED_FOR && connection.probe_failures >= FAILURES;
            // While a key is being replaced the old one may be gone already: that is looked at by the rotation.
            if long_enough && connection.next_secret_ref.is_none() {
                connection.last_error_kind = None;
                connection.last_error = None;
                connection.revocation = Some(Revocation::ByOwner);
                connection.locked_out_at = Some(now);
                connection.revoke_requested_at = Some(now);
                connection.next_probe_at = None;
                connections::write_in(tx, connection).await?;
                let after = json!({ "refused_since": since, "refused_at": now });
                let action = "connection.removed_by_owner";
                connections::record_in(tx, connection, action, after, now, &Cause::system()).await?;
                jobs::enqueue_in(tx, Job::RevokeConnection(connection.id)).await?;
                return Ok(());
            }
            noted_in(tx, connection, kind, &why).await
        }
        _ if connection.status == ConnectionStatus::Connected && connection.probe_failures >= FAILURES => {
            broken_in(tx, connection, kind, &why, now).await
        }
        _ => noted_in(tx, connection, kind, &why).await,
    }
}

async fn noted_in(tx: &mut PgConnection, connection: &mut Connection, kind: &str, why: &str) -> Result<(), StepError> {
    connection.last_error_kind = Some(kind.to_owned());
    connection.last_error = Some(why.chars().take(1000).collect());
    connections::write_in(tx, connection).await?;
    Ok(())
}

/// Writes what is wrong; where the connection was in use, it is not any more, and its owner and the operator are told.
async fn broken_in(
    tx: &mut PgConnection,
    connection: &mut Connection,
    kind: &str,
    why: &str,
    now: Time,
) -> Result<(), StepError> {
    let was = connection.status_reason.clone();
    if connection.status == ConnectionStatus::Error {
        connection.status_reason = Some(kind.to_owned());
    }
    noted_in(tx, connection, kind, why).await?;
    let told = match connection.status {
        ConnectionStatus::Connected => {
            let to = ConnectionStatus::Error;
            connections::transition_in(tx, connection, to, Some(kind), now, &Cause::system()).await?;
            true
        }
        ConnectionStatus::Error => was.as_deref() != Some(kind),
        _ => false,
    };
    if told {
        mailer::notify_in(tx, words::trouble(server(connection), kind, why, now), now).await?;
        // What may be an attack is the operator's business too; a server that is off is its owner's.
        if matches!(kind, "host_key_changed" | "not_restricted" | "gate_altered") {
            let detail = format!("{} ({}): {why}", connection.label, connection.host);
            alerts::raise(&mut *tx, &format!("byos_{kind}"), &connection.id.to_string(), &detail, now).await?;
        }
    }
    Ok(())
}

fn with_jitter(every: SignedDuration) -> SignedDuration {
    let fifth = every.as_millis() / 5;
    let by = i128::from(rand::random::<u32>()) % (2 * fifth + 1) - fifth;
    every + SignedDuration::from_millis(i64::try_from(by).unwrap_or(0))
}

/// Somebody who has just been shown a line to paste is waited for closely at first, and for a week at most.
fn next_after_failure(connection: &Connection, now: Time) -> Option<Time> {
    let wait = match connection.status {
        ConnectionStatus::Pending => {
            let age = now.duration_since(connection.created_at.0);
            match age.as_mins() {
                ..10 => SignedDuration::from_secs(5),
                10..60 => SignedDuration::from_secs(30),
                60..1_440 => SignedDuration::from_mins(10),
                1_440..10_080 => SignedDuration::from_hours(1),
                _ => return None,
            }
        }
        _ if connection.probe_failures <= FAILURES => PROBE_AGAIN,
        _ => with_jitter(PROBE_EVERY),
    };
    Some(Time(now.0 + wait))
}

/// Sends a command that its owner asked for, once.
///
/// # Errors
/// Those of the database.
pub async fn run_command(app: &App, id: CommandId) -> Result<(), StepError> {
    let Some(command) = commands::by_id(&app.pool, id).await? else { return Ok(()) };
    let give_up = async |why: &str| {
        let how = Finished { status: CommandStatus::Failed, exit_status: None, output: None, error: Some(why) };
        commands::finish(&app.pool, id, how, app.now()).await
    };
    match command.status {
        CommandStatus::Requested => {}
        CommandStatus::Sent => {
            give_up("it was sent and its answer was lost; the server's own log says whether it was done").await?;
            return Ok(());
        }
        _ => return Ok(()),
    }
    let Some(connection) = connections::find(&app.pool, command.connection_id).await? else { return Ok(()) };
    if connection.status != ConnectionStatus::Connected || connection.revoke_requested_at.is_some() {
        give_up(&format!("it was not sent: the connection is {}", connection.status)).await?;
        return Ok(());
    }
    if commands::an_older_one_waits(&app.pool, &command).await? {
        return Err(BrokerError::Busy.into());
    }
    let ready = async {
        let line = Line::open(app, &connection, &connection.secret_ref).await?;
        let hello = line.hello().await?;
        Ok::<_, BrokerError>((line, hello))
    };
    let (line, hello) = match ready.await {
        Ok(ready) => ready,
        Err(error) if error.is_ours() => return Err(error.into()),
        Err(error) => {
            give_up(&format!("it was not sent: {error}")).await?;
            let mut database = app.pool.acquire().await?;
            jobs::enqueue_in(&mut database, Job::ProbeConnection(connection.id)).await?;
            return Ok(());
        }
    };
    let agreed = hello.gate_sha256 == connection.consented_gate_sha256
        && hello.manifest_sha256 == connection.consented_manifest_sha256;
    if !agreed {
        give_up("it was not sent: the gate on the server is not the one that you agreed to").await?;
        let mut database = app.pool.acquire().await?;
        jobs::enqueue_in(&mut database, Job::ProbeConnection(connection.id)).await?;
    } else if commands::mark_sent(&app.pool, id, app.now()).await? {
        let answered = line.exchange(id, &command.action, command.argument.as_deref()).await;
        // Before the command counts as done: whoever waits for it reads the two logs next.
        if let (Ok(answer), "log") = (&answered, command.action.as_str())
            && answer.exit_status == Some(0)
        {
            keep_log(app, connection.id, &answer.output).await?;
        }
        line.finish(id, &answered).await?;
    }
    line.close().await;
    Ok(())
}

/// Replaces the key of a connection: the new one is added with the old one, proved, and only then is the old one removed.
/// Cut off at any point, it goes on from what the server accepts.
///
/// # Errors
/// Those of the database and of the secret store.
pub async fn rotate(app: &App, id: ConnectionId) -> Result<(), StepError> {
    let Some(mut connection) = connections::find(&app.pool, id).await? else { return Ok(()) };
    let (Some(public_key), Some(secret_ref)) = (connection.next_public_key.clone(), connection.next_secret_ref.clone())
    else {
        return Ok(());
    };
    if connection.status == ConnectionStatus::Revoked || connection.revoke_requested_at.is_some() {
        return Ok(());
    }
    match replace_key(app, &connection, &public_key, &secret_ref).await {
        Ok(()) => {}
        Err(error) if error.is_ours() => return Err(error.into()),
        Err(error) => {
            // The next look that succeeds asks for it again.
            connection.rotation_error = Some(error.to_string().chars().take(1000).collect());
            let mut tx = app.pool.begin().await?;
            connections::write_in(&mut tx, &mut connection).await?;
            tx.commit().await?;
            return Ok(());
        }
    }
    let now = app.now();
    let (old_key, old_secret) = (connection.public_key.clone(), connection.secret_ref.clone());
    connection.public_key = public_key;
    connection.secret_ref = secret_ref;
    connection.key_number += 1;
    connection.next_public_key = None;
    connection.next_secret_ref = None;
    connection.rotation_error = None;
    connection.refused_since = None;
    let fingerprint = keys::fingerprint(&connection.public_key);
    let mut tx = app.pool.begin().await?;
    connections::write_in(&mut tx, &mut connection).await?;
    let after = json!({
        "old_key_fingerprint": keys::fingerprint(&old_key), "key_fingerprint": fingerprint, "key_number": connection.key_number,
    });
    connections::record_in(&mut tx, &connection, "connection.key_rotated", after, now, &Cause::system()).await?;
    let notice = words::rotated(server(&connection), &fingerprint, connection.key_number);
    mailer::notify_in(&mut tx, notice, now).await?;
    tx.commit().await?;
    app.secrets.destroy_reference(&old_secret).await?;
    Ok(())
}

async fn replace_key(app: &App, connection: &Connection, new_key: &str, new_secret: &str) -> Result<(), BrokerError> {
    // Whatever was done before it was cut off, the server knows it: the new key first.
    let proved = match Line::open(app, connection, new_secret).await {
        Ok(line) => line,
        Err(BrokerError::Ssh(SshError::Refused { .. })) => {
            let old = Line::open(app, connection, &connection.secret_ref).await?;
            old.hello().await?;
            let added = old.add_key(new_key).await;
            old.close().await;
            added?;
            Line::open(app, connection, new_secret).await?
        }
        Err(error) => return Err(error),
    };
    proved.hello().await?;
    proved.remove_key(&connection.public_key).await?;
    proved.close().await;
    match Line::open(app, connection, &connection.secret_ref).await {
        Err(BrokerError::Ssh(SshError::Refused { .. })) => Ok(()),
        Ok(line) => {
            line.close().await;
            Err(BrokerError::Refused("the old key still opens the gate after it was removed".to_owned()))
        }
        Err(error) => Err(error),
    }
}

/// Ends a connection: our key is taken off the server where it can be reached, a login is tried and must be refused, and
/// our private key is destroyed, whatever the server does.
///
/// # Errors
/// Those of the database and of the secret store.
pub async fn revoke(app: &App, id: ConnectionId) -> Result<(), StepError> {
    let Some(mut connection) = connections::find(&app.pool, id).await? else { return Ok(()) };
    if connection.status == ConnectionStatus::Revoked || connection.revoke_requested_at.is_none() {
        return Ok(());
    }
    let cause = Cause::system();
    if connection.revocation.is_none() {
        let mut outcome = lock_out(app, &connection).await;
        for _ in 1..REVOKE_TRIES {
            if matches!(&outcome, Err(error) if !error.is_ours() && !matches!(error, BrokerError::Key(_))) {
                tokio::time::sleep(Duration::from_secs(1)).await;
                outcome = lock_out(app, &connection).await;
            }
        }
        let now = app.now();
        let after = match outcome {
            Ok(()) => {
                connection.revocation = Some(Revocation::LockedOut);
                connection.locked_out_at = Some(now);
                json!({ "locked_out_at": now })
            }
            Err(BrokerError::Busy)
                if connection.revoke_requested_at.is_some_and(|at| now.duration_since(at.0) < REVOKE_WAITS) =>
            {
                return Err(BrokerError::Busy.into());
            }
            Err(error) if error.is_ours() && !matches!(error, BrokerError::Busy) => return Err(error.into()),
            Err(error) => {
                connection.revocation = Some(Revocation::Unverified);
                connection.last_error_kind = Some(error.kind().to_owned());
                connection.last_error = Some(error.to_string().chars().take(1000).collect());
                json!({ "unverified": error.to_string() })
            }
        };
        let mut tx = app.pool.begin().await?;
        connections::write_in(&mut tx, &mut connection).await?;
        connections::record_in(&mut tx, &connection, "connection.lock_out_tried", after, now, &cause).await?;
        tx.commit().await?;
    }
    keys::destroy_all(app.secrets.as_ref(), id).await?;
    let now = app.now();
    let how = match (connection.revocation, connection.locked_out_at) {
        (Some(Revocation::LockedOut), Some(at)) => format!("Verified locked out at {}.", mailer::templates::date(at)),
        (Some(Revocation::ByOwner), Some(at)) => format!(
            "Our line was removed on the server: it has refused our key since, last at {}.",
            mailer::templates::date(at)
        ),
        _ => "The server could not be reached, so that this was not verified on it; without the key nobody can log in with \
              it. Remove the line on the server when you can."
            .to_owned(),
    };
    let mut tx = app.pool.begin().await?;
    connections::transition_in(&mut tx, &mut connection, ConnectionStatus::Revoked, None, now, &cause).await?;
    connections::end_resource_in(&mut tx, &connection, now, &cause).await?;
    mailer::notify_in(&mut tx, words::revoked(server(&connection), &how), now).await?;
    tx.commit().await?;
    Ok(())
}

/// Takes every key of the connection off the server and sees that none is accepted any more.
async fn lock_out(app: &App, connection: &Connection) -> Result<(), BrokerError> {
    let secrets: Vec<&str> =
        [Some(connection.secret_ref.as_str()), connection.next_secret_ref.as_deref()].into_iter().flatten().collect();
    for secret in &secrets {
        match Line::open(app, connection, secret).await {
            Ok(line) => {
                let revoked = line.revoke().await;
                line.close().await;
                revoked?;
                break;
            }
            Err(BrokerError::Ssh(SshError::Refused { .. })) => {}
            Err(error) => return Err(error),
        }
    }
    for secret in secrets {
        match Line::open(app, connection, secret).await {
            Err(BrokerError::Ssh(SshError::Refused { .. })) => {}
            Ok(line) => {
                line.close().await;
                return Err(BrokerError::Refused("our key is still accepted after it was removed".to_owned()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
