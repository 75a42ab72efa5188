//! What was sent to customers' servers: written down before it is sent, so that our record and the server's own log can be
//! compared line by line.

use std::{collections::HashMap, time::Duration};

use serde::Serialize;
use serde_json::json;
use sqlx::{PgConnection, PgExecutor, PgPool};
use utoipa::ToSchema;

use super::connections::{self, Connection};
use crate::{
    audit::events::Cause,
    clock::Time,
    ids::{CommandId, ConnectionId},
    seedbox::words,
};

/// How many commands of one connection can wait at once.
pub const MAX_WAITING: i64 = 20;

/// For how long what was sent, and what was answered, is kept.
pub const KEPT_FOR: Duration = Duration::from_secs(90 * 86_400);

words! {
    /// Where a command stands.
    CommandStatus {
        /// Asked for; not sent yet.
        Requested = "requested",
        /// Sent; no answer yet.
        Sent = "sent",
        /// The server did it; `exit_status` says how it ended.
        Done = "done",
        /// The gate refused it.
        Refused = "refused",
        /// It was not sent, or whether it was done is not known; `error` says which.
        Failed = "failed",
    }
}

/// One command.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Command {
    /// Its id: the request id in the server's own log.
    pub id: CommandId,
    #[serde(skip)]
    #[schema(ignore)]
    /// Where it is sent.
    pub connection_id: ConnectionId,
    /// The action of the manifest.
    pub action: String,
    /// What is given with it.
    pub argument: Option<String>,
    /// Who asked: `user:<id>`, or `system` for looks, rotations and revocations.
    pub actor: String,
    /// Where it stands.
    pub status: CommandStatus,
    /// When it was asked for.
    pub requested_at: Time,
    /// When it was sent; from then on it may be in the server's log.
    pub sent_at: Option<Time>,
    /// When it was answered or given up.
    pub finished_at: Option<Time>,
    /// 0 if all went well; 69: not available on this server; 124: it took too long; 126: refused.
    pub exit_status: Option<i32>,
    /// What it printed.
    pub output: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
}

/// Writes a command that is to be sent, in the caller's transaction, with its audit event where a person asked for it.
/// False if too many of this connection wait.
///
/// # Errors
/// Those of the database.
pub async fn request_in(
    connection: &mut PgConnection,
    id: CommandId,
    to: &Connection,
    action: &str,
    argument: Option<&str>,
    at: Time,
    cause: &Cause,
) -> sqlx::Result<bool> {
    let inserted = sqlx::query!(
        "insert into byos_commands (id, connection_id, action, argument, actor, requested_at)
         select $1, $2, $3, $4, $5, $6
         where (select count(*) from byos_commands where connection_id = $2 and status in ('requested', 'sent')) < $7
         on conflict (id) do nothing",
        id.0,
        to.id.0,
        action,
        argument,
        cause.actor.to_string(),
        at,
        MAX_WAITING,
    )
    .execute(&mut *connection)
    .await?;
    if inserted.rows_affected() == 0 {
        return Ok(find(&mut *connection, to.id, id).await?.is_some());
    }
    let after = json!({ "command_id": id, "action": action, "argument": argument });
    connections::record_in(connection, to, "connection.command_requested", after, at, cause).await?;
    Ok(true)
}

/// Writes a command of our own that is sent at once.
///
/// # Errors
/// Those of the database.
pub async fn sending(
    executor: impl PgExecutor<'_>,
    id: CommandId,
    to: ConnectionId,
    action: &str,
    argument: Option<&str>,
    at: Time,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into byos_commands (id, connection_id, action, argument, actor, status, requested_at, sent_at)
         values ($1, $2, $3, $4, 'system', 'sent', $5, $5)",
        id.0,
        to.0,
        action,
        argument,
        at,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// Marks a command that was asked for as sent, before it is. False if it was sent before: it is never sent twice.
///
/// # Errors
/// Those of the database.
pub async fn mark_sent(executor: impl PgExecutor<'_>, id: CommandId, at: Time) -> sqlx::Result<bool> {
    let marked = sqlx::query!(
        "update byos_commands set status = 'sent', sent_at = $2 where id = $1 and status = 'requested'",
        id.0,
        at
    )
    .execute(executor)
    .await?;
    Ok(marked.rows_affected() == 1)
}

/// What came of a command.
#[derive(Debug, Clone)]
pub struct Finished<'a> {
    /// `done`, `refused` or `failed`.
    pub status: CommandStatus,
    /// See [`Command::exit_status`].
    pub exit_status: Option<i32>,
    /// See [`Command::output`].
    pub output: Option<&'a str>,
    /// See [`Command::error`].
    pub error: Option<&'a str>,
}

/// Writes what came of a command.
///
/// # Errors
/// Those of the database.
pub async fn finish(executor: impl PgExecutor<'_>, id: CommandId, how: Finished<'_>, at: Time) -> sqlx::Result<()> {
    sqlx::query!(
        "update byos_commands set status = $2, exit_status = $3, output = left($4, 200000), error = left($5, 2000), finished_at = $6
         where id = $1 and status in ('requested', 'sent')",
        id.0,
        how.status.as_str(),
        how.exit_status,
        how.output,
        how.error,
        at,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// A command by its id, whatever connection it is of.
///
/// # Errors
/// Those of the database.
pub async fn by_id(executor: impl PgExecutor<'_>, id: CommandId) -> sqlx::Result<Option<Command>> {
    sqlx::query_as!(Command, "select * from byos_commands where id = $1", id.0).fetch_optional(executor).await
}

/// A command of this connection.
///
/// # Errors
/// Those of the database.
pub async fn find(executor: impl PgExecutor<'_>, of: ConnectionId, id: CommandId) -> sqlx::Result<Option<Command>> {
    sqlx::query_as!(Command, "select * from byos_commands where id = $1 and connection_id = $2", id.0, of.0)
        .fetch_optional(executor)
        .await
}

/// The newest commands of a connection, at most `limit`, newest first, without what they printed.
///
/// # Errors
/// Those of the database.
pub async fn list(
    executor: impl PgExecutor<'_>,
    of: ConnectionId,
    before: Option<Time>,
    limit: i64,
) -> sqlx::Result<Vec<Command>> {
    sqlx::query_as!(
        Command,
        r#"select id, connection_id, action, argument, actor, status as "status: CommandStatus", requested_at, sent_at,
               finished_at, exit_status, null as output, error
           from byos_commands where connection_id = $1 and requested_at < coalesce($2, 'infinity'::timestamptz)
           order by requested_at desc, id desc limit $3"#,
        of.0,
        before as _,
        limit,
    )
    .fetch_all(executor)
    .await
}

/// Whether a command that was asked for earlier over the same connection waits to be sent: what is put off is not overtaken.
///
/// # Errors
/// Those of the database.
pub async fn an_older_one_waits(executor: impl PgExecutor<'_>, than: &Command) -> sqlx::Result<bool> {
    let older = list(executor, than.connection_id, Some(than.requested_at), 100).await?;
    Ok(older.iter().any(|command| command.status == CommandStatus::Requested))
}

/// What a server was sent of a connection, oldest first, at least as far back as its log of 500 lines goes.
///
/// # Errors
/// Those of the database.
pub async fn sent(executor: impl PgExecutor<'_>, of: ConnectionId) -> sqlx::Result<Vec<Command>> {
    let mut sent = sqlx::query_as!(
        Command,
        r#"select id, connection_id, action, argument, actor, status as "status: CommandStatus", requested_at, sent_at,
               finished_at, exit_status, null as output, error
           from byos_commands where connection_id = $1 and sent_at is not null
           order by requested_at desc, id desc limit 2000"#,
        of.0,
    )
    .fetch_all(executor)
    .await?;
    sent.sort_by_key(|command| (command.sent_at, command.id));
    Ok(sent)
}

/// Commands that were asked for a minute ago and have no answer: their job may have been lost. At most 200.
///
/// # Errors
/// Those of the database.
pub async fn waiting(executor: impl PgExecutor<'_>, at: Time) -> sqlx::Result<Vec<(CommandId, ConnectionId)>> {
    let waiting = sqlx::query!(
        "select id, connection_id from byos_commands where status in ('requested', 'sent') and requested_at < $1
         order by requested_at limit 200",
        Time(at.0 - Duration::from_secs(60)),
    )
    .fetch_all(executor)
    .await?;
    Ok(waiting.into_iter().map(|row| (row.id, row.connection_id)).collect())
}

/// Whether our record of what was sent goes back to the beginning of a connection.
pub fn goes_back_to(connection: &Connection, at: Time) -> bool {
    connection.created_at.0 > at.0 - KEPT_FOR
}

/// Throws away what is older than [`KEPT_FOR`], at most 5,000 a call.
///
/// # Errors
/// Those of the database.
pub async fn forget_old(pool: &PgPool, at: Time) -> sqlx::Result<()> {
    sqlx::query!(
        "delete from byos_commands where id in (select id from byos_commands where requested_at < $1 order by requested_at limit 5000)",
        Time(at.0 - KEPT_FOR)
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// One line of a server's own log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct LogLine {
    /// The server's time, as it wrote it.
    pub at: String,
    /// The request id; `-` where there was none that could be read.
    pub request_id: String,
    /// The action; `-` likewise.
    pub action: String,
    /// What was given with it; `-` for nothing.
    pub argument: String,
    /// `begin`, `exit=<n>`, `timeout`, or `refused` and what was refused.
    pub outcome: String,
}

/// Reads a server's own log. What is no line of a log is left out: the server may say anything.
pub fn read_log(text: &str, of: ConnectionId) -> Vec<LogLine> {
    let of = of.to_string();
    text.lines()
        .filter_map(|line| {
            let mut words = line.splitn(6, ' ');
            let (at, connection) = (words.next()?, words.next()?);
            let (request_id, action, argument) = (words.next()?, words.next()?, words.next()?);
            let outcome = words.next()?;
            (connection == of).then(|| LogLine {
                at: at.to_owned(),
                request_id: request_id.to_owned(),
                action: action.to_owned(),
                argument: argument.to_owned(),
                outcome: outcome.to_owned(),
            })
        })
        .collect()
}

/// Where the server's log and our record do not agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Difference {
    /// The server was asked for something that we have no record of: somebody else may hold our key.
    NotOurs {
        /// The server's line.
        line: LogLine,
    },
    /// The server did something else than what we asked for under this id.
    Other {
        /// The server's line.
        line: LogLine,
        /// What we asked for.
        asked: String,
    },
    /// We have an answer to something that the server has no line of: its log was altered.
    Missing {
        /// The command.
        command_id: CommandId,
        /// What we asked for.
        asked: String,
    },
}

impl Difference {
    /// In a sentence, for people.
    pub fn sentence(&self) -> String {
        match self {
            Self::NotOurs { line } => format!(
                "{}: the server's log has a request that we did not send ({} {} {}, {})",
                line.at, line.request_id, line.action, line.argument, line.outcome
            ),
            Self::Other { line, asked } => format!(
                "{}: under {} we asked for '{asked}', and the server's log has '{} {}'",
                line.at, line.request_id, line.action, line.argument
            ),
            Self::Missing { command_id, asked } => {
                format!(
                    "we asked for '{asked}' ({command_id}) and got an answer, and the server's log has no line of it"
                )
            }
        }
    }
}

fn words(command: &Command) -> String {
    command
        .argument
        .as_ref()
        .map_or_else(|| command.action.clone(), |argument| format!("{} {argument}", command.action))
}

/// Compares a server's log with our record: `ours` are the commands sent, oldest first, at least as far back as the log.
///
/// The two clocks are not compared: a command of ours counts as missing only if one sent before it and one sent after it was
/// answered both have their line. Where our record does not go back to the `beginning` of the connection, what the server has from
/// before our first line there cannot be told from what we have forgotten, and does not count.
pub fn compare(log: &[LogLine], ours: &[Command], beginning: bool) -> Vec<Difference> {
    let known: HashMap<String, &Command> = ours.iter().map(|command| (command.id.to_string(), command)).collect();
    let mut differences = Vec::new();
    let is_known = |line: &LogLine| known.contains_key(line.request_id.as_str());
    let from = if beginning { 0 } else { log.iter().position(is_known).unwrap_or(0) };
    for line in log[from..].iter().filter(|line| line.outcome == "begin" || line.outcome.starts_with("refused")) {
        match known.get(line.request_id.as_str()) {
            None => differences.push(Difference::NotOurs { line: line.clone() }),
            Some(command) => {
                let argument = command.argument.as_deref().unwrap_or("-");
                let same = command.action == line.action && argument == line.argument;
                if !same && line.outcome == "begin" {
                    differences.push(Difference::Other { line: line.clone(), asked: words(command) });
                }
            }
        }
    }
    let has_line = |command: &Command| {
        let id = command.id.to_string();
        log.iter().any(|line| line.request_id == id)
    };
    let lined: Vec<bool> = ours.iter().map(has_line).collect();
    if let (Some(first), Some(last)) = (lined.iter().position(|has| *has), lined.iter().rposition(|has| *has)) {
        // Two may be under way at once, and the server may get to the later one first.
        let newest_sent = ours[last].sent_at;
        for (command, has) in ours[first..=last].iter().zip(&lined[first..=last]) {
            let over_before = command.finished_at.is_some() && command.finished_at <= newest_sent;
            if !has && command.status == CommandStatus::Done && over_before {
                differences.push(Difference::Missing { command_id: command.id, asked: words(command) });
            }
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(action: &str, argument: Option<&str>, status: CommandStatus) -> Command {
        let at = Time("2027-01-01T00:00:00Z".parse().unwrap());
        Command {
            id: CommandId::new(),
            connection_id: ConnectionId(uuid::Uuid::nil()),
            action: action.to_owned(),
            argument: argument.map(str::to_owned),
            actor: "system".to_owned(),
            status,
            requested_at: at,
            sent_at: Some(at),
            finished_at: Some(at),
            exit_status: Some(0),
            output: None,
            error: None,
        }
    }

    fn log_of(commands: &[&Command]) -> String {
        let connection = uuid::Uuid::nil();
        let mut text = String::new();
        for command in commands {
            let argument = command.argument.as_deref().unwrap_or("-");
            for outcome in ["begin", "exit=0"] {
                text += &format!(
                    "2027-01-01T00:00:00Z {connection} {} {} {argument} {outcome}\n",
                    command.id, command.action
                );
            }
        }
        text
    }

    #[test]
    fn a_log_that_agrees_has_no_differences_and_another_connections_lines_do_not_count() {
        let ours = [
            command("hello", None, CommandStatus::Done),
            command("service-status", Some("caddy"), CommandStatus::Done),
            command("log", None, CommandStatus::Sent),
        ];
        let other = uuid::Uuid::from_u128(7);
        let text = log_of(&ours.iter().collect::<Vec<_>>())
            + &format!("2027-01-01T00:00:00Z {other} {other} hello - begin\nnot a line\n\n");
        let log = read_log(&text, ConnectionId(uuid::Uuid::nil()));
        assert_eq!(log.len(), 6);
        assert_eq!(compare(&log, &ours, true), []);
        assert_eq!(compare(&[], &ours, true), [], "an empty log says nothing");
    }

    #[test]
    fn what_was_under_way_beside_the_fetching_of_a_log_is_not_missing() {
        let mut beside = command("hello", None, CommandStatus::Done);
        beside.finished_at = Some(Time("2027-01-01T00:00:01Z".parse().unwrap()));
        let ours = [command("disk", None, CommandStatus::Done), beside, command("log", None, CommandStatus::Done)];
        let log = read_log(&log_of(&[&ours[0], &ours[2]]), ConnectionId(uuid::Uuid::nil()));
        assert_eq!(compare(&log, &ours, true), []);
    }

    #[test]
    fn what_we_have_forgotten_is_no_difference_and_what_came_after_is() {
        let (forgotten, known, stranger) = (
            command("hello", None, CommandStatus::Done),
            command("disk", None, CommandStatus::Done),
            command("facts", None, CommandStatus::Done),
        );
        let log = read_log(&log_of(&[&forgotten, &known, &stranger]), ConnectionId(uuid::Uuid::nil()));
        let ours = [known];
        assert_eq!(compare(&log, &ours, true).len(), 2);
        let found = compare(&log, &ours, false);
        let [Difference::NotOurs { line }] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(line.request_id, stranger.id.to_string());
        assert_eq!(compare(&log, &[], false).len(), 3, "a log without a line of ours is nobody's we know");
    }

    #[test]
    fn what_we_did_not_send_what_was_changed_and_what_is_missing_is_found() {
        let ours = [
            command("hello", None, CommandStatus::Done),
            command("disk", None, CommandStatus::Done),
            command("facts", None, CommandStatus::Failed),
            command("service-restart", Some("caddy"), CommandStatus::Done),
        ];
        let stranger = command("facts", None, CommandStatus::Done);
        let mut restarted = ours[3].clone();
        restarted.argument = Some("nginx".to_owned());
        let refused = format!("2027-01-01T00:00:00Z {} - - - refused id; whoami\n", uuid::Uuid::nil());
        let text = log_of(&[&ours[0], &stranger, &restarted]) + &refused;
        let log = read_log(&text, ConnectionId(uuid::Uuid::nil()));
        let found = compare(&log, &ours, true);
        let kinds: Vec<&str> = found
            .iter()
            .map(|difference| match difference {
                Difference::NotOurs { line } if line.outcome == "begin" => "stranger",
                Difference::NotOurs { .. } => "refused",
                Difference::Other { .. } => "other",
                Difference::Missing { command_id, .. } => {
                    assert_eq!(*command_id, ours[1].id, "what failed may not have arrived");
                    "missing"
                }
            })
            .collect();
        assert_eq!(kinds, ["stranger", "other", "refused", "missing"]);
        assert!(found[1].sentence().contains("we asked for 'service-restart caddy'"), "{}", found[1].sentence());
    }
}
