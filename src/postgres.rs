//! The embedded Postgres: finds the binaries, makes the cluster, supervises the server, shuts it down cleanly.
//!
//! For the trial and small single-machine installations; anything larger sets `DATABASE_URL`. What it promises:
//!
//! - **One owner.** A lock on `<data_dir>/seedplane.lock` is taken before anything else is touched.
//! - **Nothing half-made.** The cluster is initialised beside its place and renamed into it.
//! - **Nothing left behind.** When this process dies, even by `kill -9`, Postgres shuts down by itself; what an earlier
//!   process left is waited for or stopped before the next start.
//! - **Durable.** `fsync`, full page writes and data checksums are on.
//! - **Private.** No TCP. The only way in is a socket in a directory that only its owner (and root) can enter. Local
//!   connections are `trust`ed: whoever can enter that directory can read the data files too, so a password would guard
//!   nothing, and `peer` would need a user map whenever we run as root and Postgres does not.
//! - **Quiet.** Its log never holds a statement, a parameter or the values in an error's detail.
//!
//! Tests start one `Embedded` for the whole binary and give each test a database of its own with
//! [`create_database_from_template`].

mod binaries;
mod cluster;
mod process;
mod supervisor;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::mpsc,
    thread,
};

use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};
use tokio::sync::{oneshot, watch};

/// The oldest major version of Postgres that Seedplane runs on.
pub const OLDEST_MAJOR: u32 = 15;

/// The environment variable that names a directory with `postgres` and `initdb` in it.
pub const BINARIES_VARIABLE: &str = "SEEDPLANE_POSTGRES_BIN";

/// Where to connect to the embedded Postgres that another process of ours runs in `data_dir`; `None` if none does. For
/// commands that are given while the service is up.
pub fn running_url(data_dir: &Path) -> Option<String> {
    let pid_file = std::fs::read_to_string(data_dir.join("postgres/postmaster.pid")).ok()?;
    // Its lines are the process, the folder, the start, the port and the directory of the socket.
    let mut lines = pid_file.lines().skip(3);
    let (port, directory) = (lines.next()?.trim(), lines.next()?.trim());
    let host = percent_encode(directory);
    Some(format!("postgres://seedplane@localhost/seedplane?host={host}&port={port}"))
}

/// Where the embedded Postgres lives and what it is run from.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// Seedplane's own folder; created if it is missing. Postgres uses `postgres/`, `run/`, `postgres.log` and
    /// `seedplane.lock` in it.
    pub data_dir: PathBuf,
    /// The directory with `postgres` and `initdb`; if `None`, `SEEDPLANE_POSTGRES_BIN`, and if that is not set either,
    /// the usual places are searched.
    pub binaries: Option<PathBuf>,
}

/// What the supervised server is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Accepting connections.
    Serving,
    /// It died; another start is under way or waited for.
    Restarting,
    /// Stopped because it was asked to.
    Stopped,
    /// It could not be kept running and nobody tries any more; the reason.
    Failed(String),
}

/// Why the embedded Postgres did not start, or not stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process owns the folder.
    #[error(
        "{} is in use by another Seedplane ({}). Nothing was changed. Stop that one first, or choose another folder \
         with --data-dir.", .data_dir.display(), holder(*.pid)
    )]
    InUse {
        /// The folder.
        data_dir: PathBuf,
        /// The process that holds the lock, if it could be read.
        pid: Option<u32>,
    },
    /// No binaries anywhere.
    #[error(
        "No Postgres {OLDEST_MAJOR} or newer was found on this machine (looked in: {searched}). Install one with \
         `apt-get install postgresql`, name the directory of its binaries in {BINARIES_VARIABLE}, or set DATABASE_URL \
         to a server that is already running."
    )]
    NoBinaries {
        /// The places that were searched.
        searched: String,
    },
    /// The directory that was asked for holds no usable Postgres.
    #[error(
        "{} was named as the directory of the Postgres binaries, but {why}. Correct it, or leave it unset to have the \
         usual places searched.", .directory.display()
    )]
    BadBinaries {
        /// The directory.
        directory: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The cluster belongs to a major version that is not here.
    #[error(
        "The database in {} was made by Postgres {cluster}, and only Postgres {found} is here. The data was not \
         touched. Install postgresql-{cluster}, or move the data with pg_upgrade or pg_dump.", .directory.display()
    )]
    MajorVersion {
        /// The cluster.
        directory: PathBuf,
        /// What made the cluster.
        cluster: u32,
        /// What was found, separated by commas.
        found: String,
    },
    /// We are root and there is nobody to run Postgres as.
    #[error(
        "Postgres refuses to run as root, and neither the user postgres nor the user nobody exists on this machine. \
         Create one, run Seedplane as an ordinary user, or set DATABASE_URL."
    )]
    NoServiceUser,
    /// The cluster is somebody else's.
    #[error(
        "The database in {} belongs to user id {owner}, but Seedplane runs as user id {us}. Nothing was changed. Run \
         it as that user or as root, or choose another folder with --data-dir.", .directory.display()
    )]
    WrongOwner {
        /// The directory.
        directory: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        us: u32,
    },
    /// The service user cannot reach the folder.
    #[error(
        "Postgres runs as the user {user} (it refuses to run as root), and that user cannot enter {}, which leads to \
         {}. Choose a folder it can reach, such as --data-dir /var/lib/seedplane, or allow it with \
         `chmod o+x {}`.", .blocked.display(), .data_dir.display(), .blocked.display()
    )]
    NotReachable {
        /// The user.
        user: String,
        /// The first directory on the way that the user may not enter.
        blocked: PathBuf,
        /// Where it should have got.
        data_dir: PathBuf,
    },
    /// A directory that we need is not safe to use.
    #[error(
        "{} cannot be used for the database's socket: {why}. Remove it, or choose a shorter --data-dir.", .directory.display()
    )]
    UnsafeSocketDirectory {
        /// The directory.
        directory: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A path that cannot be written into a URL.
    #[error("{} is not valid UTF-8, which a database URL needs. Choose another --data-dir.", .0.display())]
    NotUtf8(PathBuf),
    /// `initdb` failed.
    #[error(
        "A new database could not be made in {}: {output}. Nothing was left there that counts as a database; the next \
         start tries again.", .directory.display()
    )]
    Initdb {
        /// Where.
        directory: PathBuf,
        /// What initdb said.
        output: String,
    },
    /// An earlier server would not go away.
    #[error(
        "An earlier Postgres (process {pid}) still runs on {} and did not stop when asked to. The data was not \
         touched. Stop it by hand, then start again.", .directory.display()
    )]
    StillRunning {
        /// The process.
        pid: u32,
        /// The cluster.
        directory: PathBuf,
    },
    /// The server did not get as far as accepting connections.
    #[error("Postgres did not start: {reason}. Its log is {}.", .log.display())]
    NotStarted {
        /// The last thing it said, or how it ended.
        reason: String,
        /// The log.
        log: PathBuf,
    },
    /// The start was abandoned by whoever asked for it.
    #[error("Postgres was stopped before it had started.")]
    Abandoned,
    /// A file operation failed.
    #[error("Could not {action} {}: {source}.", .path.display())]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server started but a statement of ours failed.
    #[error("Could not {action}: {source}.")]
    Sql {
        /// What was attempted.
        action: String,
        /// What the server said.
        source: sqlx::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "its process could not be read".to_owned(), |pid| format!("process {pid}"))
}

impl Error {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// A running embedded Postgres. Dropping it stops the server too, without waiting for the end.
#[derive(Debug)]
pub struct Embedded {
    url: String,
    stop: mpsc::Sender<()>,
    state: watch::Receiver<State>,
}

impl Embedded {
    /// Takes the folder, makes the cluster if there is none, starts the server and waits until it answers and the
    /// database `seedplane` exists. Recovery after a crash is waited for as long as it takes.
    ///
    /// Dropping the future abandons the start and leaves nothing running.
    ///
    /// # Errors
    /// See [`Error`]; nothing runs afterwards.
    pub async fn start(options: EmbeddedOptions) -> Result<Self, Error> {
        let (stop, stopped) = mpsc::channel();
        let (ready, answer) = oneshot::channel();
        let (state_sender, state) = watch::channel(State::Restarting);
        // A thread of its own, never one from a pool: the kernel signals Postgres when the thread that spawned it ends.
        thread::Builder::new()
            .name("postgres".to_owned())
            .spawn(move || supervisor::run(&options, ready, &stopped, &state_sender))
            .map_err(Error::io("start a thread for", Path::new("postgres")))?;
        let url = answer.await.map_err(|_| Error::Abandoned)??;
        let embedded = Self { url, stop, state };
        embedded.ensure_database().await?;
        Ok(embedded)
    }

    /// Where to connect, as the owner of the database `seedplane`. Holds no secret. It stays the same when the server is
    /// restarted.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// What the server is doing, and every change of it.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Waits until the server is gone for good: [`State::Stopped`], or [`State::Failed`], after which the process has
    /// nothing better to do than end with the reason. Restarts after a crash do not count.
    pub async fn exited(&self) -> State {
        let mut state = self.state.clone();
        let ended = state.wait_for(|state| matches!(state, State::Stopped | State::Failed(_))).await;
        ended.map_or(State::Stopped, |state| state.clone())
    }

    /// Ends all sessions, rolls their transactions back, writes a checkpoint and waits until the server is gone and the
    /// folder is free. Can be called more than once.
    pub async fn stop(&self) -> State {
        let _already_gone = self.stop.send(());
        self.exited().await
    }

    async fn ensure_database(&self) -> Result<(), Error> {
        let sql = |source| Error::Sql { action: "make the database seedplane".to_owned(), source };
        let options = PgConnectOptions::from_str(&self.url).map_err(sql)?.database("postgres");
        let mut connection = options.connect().await.map_err(sql)?;
        let (exists,): (bool,) = sqlx::query_as("select exists (select from pg_database where datname = 'seedplane')")
            .fetch_one(&mut connection)
            .await
            .map_err(sql)?;
        if !exists {
            sqlx::query("create database seedplane").execute(&mut connection).await.map_err(sql)?;
        }
        connection.close().await.map_err(sql)
    }
}

/// Makes the database `name` as a copy of `template`, on the server that `url` leads to, and returns its URL: a few dozen
/// milliseconds for a migrated database. Nobody may be connected to the template meanwhile. `url` needs a role that may
/// create databases, as the embedded owner may. Both names are quoted, so any name is safe.
///
/// # Errors
/// [`Error::Sql`] with what the server said: the name is taken, the template is missing or in use.
pub async fn create_database_from_template(url: &str, name: &str, template: &str) -> Result<String, Error> {
    let sql = |source| Error::Sql { action: format!("make the database {name} from {template}"), source };
    let options = PgConnectOptions::from_str(url).map_err(sql)?;
    let mut connection: PgConnection = options.clone().database("postgres").connect().await.map_err(sql)?;
    let quote = |identifier: &str| format!("\"{}\"", identifier.replace('"', "\"\""));
    // file_copy clones files instead of writing every page to the log: right for databases that live as long as a test.
    let statement = format!("create database {} template {} strategy file_copy", quote(name), quote(template));
    sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.map_err(sql)?;
    connection.close().await.map_err(sql)?;
    Ok(with_database(url, name))
}

/// `url` with another database in its path.
fn with_database(url: &str, name: &str) -> String {
    let (base, query) = url.split_once('?').map_or((url, None), |(base, query)| (base, Some(query)));
    let authority_end = base.find("://").map_or(0, |at| at + 3);
    let path = base[authority_end..].find('/').map_or(base.len(), |at| authority_end + at);
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    format!("{}/{}{query}", &base[..path], percent_encode(name))
}

/// Everything but unreserved characters and the slash as `%XX`.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
