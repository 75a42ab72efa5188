//! The thread that starts Postgres, keeps it running, and stops it.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
    process::{Child, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};

use super::{
    EmbeddedOptions, Error, State,
    binaries::{self, Binaries},
    cluster::{Folder, LONGEST_LOG, PORT, SocketDirectory},
    percent_encode,
    process::{self, ServiceUser, Signal},
};

/// How often the server is looked at while it starts, runs and ends.
const TICK: Duration = Duration::from_millis(50);

/// How long a fast shutdown may take, and then an immediate one.
const STOP_PATIENCE: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(10)];

/// The waits between starts after a crash double from the first to the last.
const BACKOFF: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(10)];

/// So many starts in a row that fail, or are followed by a crash within [`HEALTHY`], and no more is tried.
const MOST_STARTS: u32 = 12;

/// A server that has run this long starts a new count of crashes.
const HEALTHY: Duration = Duration::from_secs(60);

/// How often the length of the log is looked at.
const LOG_CHECK: Duration = Duration::from_secs(10);

/// Everything that one start of the server needs.
struct Server {
    binaries: Binaries,
    user: ServiceUser,
    sockets: SocketDirectory,
    folder: Folder,
}

/// The thread's body: answers once through `ready`, then supervises until told to stop (or until nobody can tell it
/// any more) or until it gives up. The folder is free before the last state is published.
pub(super) fn run(
    options: &EmbeddedOptions,
    ready: oneshot::Sender<Result<String, Error>>,
    stop: &Receiver<()>,
    state: &watch::Sender<State>,
) {
    let abandoned = || ready.is_closed();
    let started = Server::prepare(options, &abandoned).and_then(|server| {
        let url = server.url()?;
        let child = server.start(true, &abandoned)?;
        Ok((server, url, child))
    });
    let last = match started {
        Err(error) => {
            let reason = error.to_string();
            let _nobody_waits = ready.send(Err(error));
            State::Failed(reason)
        }
        Ok((server, url, mut child)) => {
            state.send_replace(State::Serving);
            if ready.send(Ok(url)).is_ok() {
                server.supervise(child, stop, state)
            } else {
                end(&mut child);
                State::Stopped
            }
        }
    };
    state.send_replace(last);
}

impl Server {
    fn prepare(options: &EmbeddedOptions, abandoned: &dyn Fn() -> bool) -> Result<Self, Error> {
        let folder = Folder::take(&options.data_dir)?;
        let cluster = folder.cluster();
        let binaries = binaries::find(options.binaries.as_deref(), &cluster)?;
        let user = ServiceUser::choose(&cluster)?;
        folder.let_in(&user)?;
        if user.drop && !user.can_enter(&binaries.directory) {
            let why = format!("the user {}, as whom it has to run, cannot enter it", user.name);
            return Err(Error::BadBinaries { directory: binaries.directory, why });
        }
        process::clear_leftovers(&cluster, abandoned)?;
        if !cluster.join("PG_VERSION").exists() {
            folder.initialise(&binaries, &user)?;
        }
        let sockets = folder.socket_directory(&user)?;
        Ok(Self { binaries, user, sockets, folder })
    }

    fn url(&self) -> Result<String, Error> {
        let path = &self.sockets.path;
        let host = percent_encode(path.to_str().ok_or_else(|| Error::NotUtf8(path.clone()))?);
        Ok(format!("postgres://seedplane@localhost/seedplane?host={host}&port={PORT}"))
    }

    /// Starts the server and waits until it accepts connections: without a limit while it recovers, until it ends, or
    /// until `abandoned`.
    fn start(&self, fresh_log: bool, abandoned: &dyn Fn() -> bool) -> Result<Child, Error> {
        let log = self.folder.open_log(fresh_log)?;
        let said_before = log.metadata().map_or(0, |metadata| metadata.len());
        let mut child = self.spawn(log)?;
        let pid_file = self.folder.cluster().join("postmaster.pid");
        let mut next_notice = Instant::now() + Duration::from_secs(10);
        loop {
            match child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => {
                    let said = last_complaint(&self.folder.log(), said_before);
                    let reason = said.unwrap_or_else(|| format!("it ended with {status}"));
                    return Err(Error::NotStarted { reason, log: self.folder.log() });
                }
                Err(error) => return Err(Error::io("wait for", Path::new("postgres"))(error)),
            }
            if accepts_connections(&pid_file, child.id()) {
                return Ok(child);
            }
            if abandoned() {
                end(&mut child);
                return Err(Error::Abandoned);
            }
            if Instant::now() > next_notice {
                tracing::info!(log = %self.folder.log().display(), "still waiting for Postgres: it may be recovering");
                next_notice += Duration::from_secs(10);
            }
            thread::sleep(TICK);
        }
    }

    fn spawn(&self, log: File) -> Result<Child, Error> {
        // In the list of directories a name is quoted like an identifier.
        let sockets = self.sockets.path.display().to_string().replace('"', "\"\"");
        let settings = [
            "listen_addresses=".to_owned(),
            format!("unix_socket_directories=\"{sockets}\""),
            "unix_socket_permissions=0700".to_owned(),
            format!("port={PORT}"),
            "cluster_name=seedplane".to_owned(),
            "max_connections=100".to_owned(),
            "shared_buffers=128MB".to_owned(),
            "random_page_cost=1.1".to_owned(),
            "jit=off".to_owned(),
            "timezone=UTC".to_owned(),
            // Durability is said here, so that nothing in the cluster's own files can take it back.
            "fsync=on".to_owned(),
            "full_page_writes=on".to_owned(),
            "synchronous_commit=on".to_owned(),
            // No statement, no parameter, and no error of a statement: its message or detail can quote a row. The
            // application gets them and logs what is fit to be logged.
            "log_destination=stderr".to_owned(),
            "logging_collector=off".to_owned(),
            "log_timezone=UTC".to_owned(),
            "log_line_prefix=%m [%p] ".to_owned(),
            "log_statement=none".to_owned(),
            "log_min_duration_statement=-1".to_owned(),
            "log_min_duration_sample=-1".to_owned(),
            "log_min_messages=log".to_owned(),
            "log_min_error_statement=panic".to_owned(),
            "log_error_verbosity=terse".to_owned(),
            "log_parameter_max_length=0".to_owned(),
            "log_parameter_max_length_on_error=0".to_owned(),
            "log_checkpoints=off".to_owned(),
            "log_autovacuum_min_duration=-1".to_owned(),
        ];
        let program = self.binaries.directory.join("postgres");
        let mut command = self.user.command(&program);
        command.arg("-D").arg(self.folder.cluster());
        for setting in settings {
            command.arg("-c").arg(setting);
        }
        let errors = log.try_clone().map_err(Error::io("share", &self.folder.log()))?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().map_err(Error::io("run", &program))
    }

    /// Keeps the server running until told to stop or until it cannot be kept running.
    fn supervise(self, mut child: Child, stop: &Receiver<()>, state: &watch::Sender<State>) -> State {
        let mut serving_since = Instant::now();
        let mut failures = 0;
        let mut next_log_check = Instant::now() + LOG_CHECK;
        loop {
            if asked_to_stop(stop, TICK * 2) {
                end(&mut child);
                self.sockets.clean_up();
                return State::Stopped;
            }
            if Instant::now() > next_log_check {
                cap_log(&self.folder.log());
                next_log_check = Instant::now() + LOG_CHECK;
            }
            let Ok(Some(status)) = child.try_wait() else { continue };
            tracing::error!(%status, "Postgres has died and is started again");
            state.send_replace(State::Restarting);
            if serving_since.elapsed() > HEALTHY {
                failures = 0;
            }
            match self.restart(&mut failures, stop) {
                Ok(Some(restarted)) => child = restarted,
                Ok(None) => return State::Stopped,
                Err(error) => return State::Failed(error.to_string()),
            }
            serving_since = Instant::now();
            state.send_replace(State::Serving);
            tracing::info!("Postgres serves again");
        }
    }

    /// The server, started again; `None` if asked to stop meanwhile.
    fn restart(&self, failures: &mut u32, stop: &Receiver<()>) -> Result<Option<Child>, Error> {
        let [first, longest] = BACKOFF;
        loop {
            let wait = first.saturating_mul(1 << (*failures).min(16)).min(longest);
            *failures += 1;
            if asked_to_stop(stop, wait) {
                return Ok(None);
            }
            let stop_asked = std::cell::Cell::new(false);
            let abandoned = || {
                stop_asked.set(stop_asked.get() || asked_to_stop(stop, Duration::ZERO));
                stop_asked.get()
            };
            let started = process::clear_leftovers(&self.folder.cluster(), &abandoned)
                .and_then(|()| self.start(false, &abandoned));
            match started {
                Ok(child) => return Ok(Some(child)),
                Err(_) if stop_asked.get() => return Ok(None),
                Err(error) if *failures >= MOST_STARTS => return Err(error),
                Err(error) => tracing::error!(%error, failures, "Postgres could not be started again yet"),
            }
        }
    }
}

/// Waits for `wait`; true at once if the stop was asked for, or if nobody is left who could ask.
fn asked_to_stop(stop: &Receiver<()>, wait: Duration) -> bool {
    !matches!(stop.recv_timeout(wait), Err(RecvTimeoutError::Timeout))
}

/// Postgres writes its state into its pid file; there is nothing to connect with or to install for this.
fn accepts_connections(pid_file: &Path, pid: u32) -> bool {
    let Ok(text) = fs::read_to_string(pid_file) else { return false };
    let mut lines = text.lines();
    lines.next().is_some_and(|line| line.trim() == pid.to_string())
        && lines.nth(6).is_some_and(|line| line.trim() == "ready")
}

/// Stops the server as gently as it lets us and waits for its end.
fn end(child: &mut Child) {
    for (patience, signal) in STOP_PATIENCE.into_iter().zip([Signal::Fast, Signal::Immediate]) {
        process::send(child.id(), signal);
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            match child.try_wait() {
                Ok(None) => thread::sleep(TICK / 5),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        tracing::warn!(pid = child.id(), ?signal, "Postgres has not stopped yet");
    }
    process::send(child.id(), Signal::Kill);
    let _its_status = child.wait();
}

/// Empties a log that has grown too long; Postgres appends, so it goes on at the start.
fn cap_log(path: &Path) {
    let too_long = fs::metadata(path).is_ok_and(|metadata| metadata.len() > LONGEST_LOG);
    if too_long && let Err(error) = OpenOptions::new().write(true).open(path).and_then(|log| log.set_len(0)) {
        tracing::warn!(%error, log = %path.display(), "the log of Postgres could not be shortened");
    }
}

/// The last line with FATAL or PANIC that the server wrote after `from`, without its prefix.
fn last_complaint(log: &Path, from: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut text = Vec::new();
    file.take(64 * 1024).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let severe = text.lines().rev().find(|line| line.contains("FATAL:") || line.contains("PANIC:"));
    let line = severe.or_else(|| text.lines().rev().find(|line| !line.trim().is_empty()))?;
    Some(
        ["FATAL:", "PANIC:"]
            .iter()
            .find_map(|word| line.split_once(word))
            .map_or(line, |(_, said)| said)
            .trim()
            .to_owned(),
    )
}
