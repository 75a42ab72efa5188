//! Starting Postgres as the right user, signalling it, and finding what an earlier process left running.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use super::Error;

/// How Postgres is told to end: what each signal means to a postmaster.
#[derive(Debug, Clone, Copy)]
pub(super) enum Signal {
    /// Roll back, write a checkpoint, end ("fast").
    Fast,
    /// End at once; the next start recovers ("immediate").
    Immediate,
    /// The last resort; sent to a single process.
    Kill,
}

/// Sends `signal`; a process that is gone already is no error.
#[allow(unsafe_code, reason = "kill(2) has no safe wrapper in std; it takes two integers")]
pub(super) fn send(pid: u32, signal: Signal) {
    let signal = match signal {
        Signal::Fast => libc::SIGINT,
        Signal::Immediate => libc::SIGQUIT,
        Signal::Kill => libc::SIGKILL,
    };
    if let Ok(pid) = libc::pid_t::try_from(pid) {
        unsafe { libc::kill(pid, signal) };
    }
}

/// The user id we act as.
#[allow(unsafe_code, reason = "geteuid(2) has no safe wrapper in std; it cannot fail")]
pub(super) fn effective_user() -> u32 {
    unsafe { libc::geteuid() }
}

/// Whom Postgres runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServiceUser {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// We are root and become this user.
    pub drop: bool,
}

impl ServiceUser {
    /// Ourselves; as root the owner of the cluster if there is one, else `postgres`, else `nobody`. It has to be in
    /// `/etc/passwd`: initdb looks its user id up.
    pub fn choose(cluster: &Path) -> Result<Self, Error> {
        let us = effective_user();
        let owner = fs::metadata(cluster).ok().map(|metadata| metadata.uid());
        if us != 0 {
            if let Some(owner) = owner.filter(|owner| *owner != us) {
                return Err(Error::WrongOwner { directory: cluster.to_owned(), owner, us });
            }
            let gid = fs::metadata("/proc/self").map_or(us, |metadata| metadata.gid());
            return Ok(Self { name: us.to_string(), uid: us, gid, drop: false });
        }
        let passwd = Path::new("/etc/passwd");
        let passwd = fs::read_to_string(passwd).map_err(Error::io("read", passwd))?;
        Self::choose_for_root(&passwd, owner).ok_or(Error::NoServiceUser)
    }

    fn choose_for_root(passwd: &str, owner: Option<u32>) -> Option<Self> {
        let users: Vec<Self> = passwd
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next()?.to_owned();
                let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
                (uid != 0).then_some(Self { name, uid, gid, drop: true })
            })
            .collect();
        let owner = users.iter().find(|user| Some(user.uid) == owner);
        let named = |name| users.iter().find(|user| user.name == name);
        owner.or_else(|| named("postgres")).or_else(|| named("nobody")).cloned()
    }

    /// A command that runs as this user, in a process group of its own (Ctrl-C in a terminal reaches us alone, and we
    /// stop Postgres last), with nothing of our environment (it holds secrets), and that is told to shut down by the
    /// kernel when the calling thread ends.
    #[allow(unsafe_code, reason = "the two system calls between fork and exec are async-signal-safe")]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().envs([("PATH", "/usr/local/bin:/usr/bin:/bin"), ("LC_ALL", "C.UTF-8"), ("TZ", "UTC")]);
        command.current_dir("/").process_group(0);
        if self.drop {
            command.uid(self.uid).gid(self.gid);
        }
        let parent = std::process::id();
        // std changes the user before this runs, so the change does not clear the death signal.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGINT) != 0 {
                    return Err(io::Error::last_os_error());
                }
                if u32::try_from(libc::getppid()) != Ok(parent) {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                Ok(())
            });
        }
        command
    }

    /// Whether this user can enter `directory`, found out by entering it: permissions are more than mode bits.
    pub fn can_enter(&self, directory: &Path) -> bool {
        !self.drop || self.command("/bin/true").current_dir(directory).status().is_ok()
    }
}

/// How long an old server may take for its fast shutdown, and then for its immediate one.
const PATIENCE: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(15)];

/// Makes sure that nothing of an earlier server runs on `cluster`: one that is shutting down is waited for, one that was
/// orphaned is shut down. Then removes a pid file that would keep Postgres from starting because its process id has
/// been given to an unrelated process since.
pub(super) fn clear_leftovers(cluster: &Path, abandoned: &dyn Fn() -> bool) -> Result<(), Error> {
    let pid_file = cluster.join("postmaster.pid");
    let Ok(cluster) = cluster.canonicalize() else { return Ok(()) };
    for (patience, signal) in PATIENCE.into_iter().zip([Signal::Fast, Signal::Immediate]) {
        let deadline = Instant::now() + patience;
        let mut signalled = false;
        loop {
            let Some(running) = postgres_processes_in(&cluster).first().copied() else {
                return remove_stale_pid_file(&pid_file);
            };
            if abandoned() {
                return Err(Error::Abandoned);
            }
            let postmaster = recorded_pid(&pid_file).filter(|pid| is_postgres_in(*pid, &cluster));
            if let Some(pid) = postmaster.filter(|_| !signalled) {
                tracing::warn!(pid, directory = %cluster.display(), "stopping a Postgres that an earlier process left");
                send(pid, signal);
                signalled = true;
            }
            if Instant::now() > deadline {
                if matches!(signal, Signal::Immediate) {
                    return Err(Error::StillRunning { pid: postmaster.unwrap_or(running), directory: cluster });
                }
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
    unreachable!("the second round returns")
}

/// Only called when no Postgres runs on the cluster. Postgres itself treats a pid file whose process does not exist as
/// stale; it cannot tell when the process is somebody else's, and would refuse to start.
fn remove_stale_pid_file(pid_file: &Path) -> Result<(), Error> {
    match recorded_pid(pid_file) {
        Some(pid) if Path::new("/proc").join(pid.to_string()).exists() => {
            tracing::warn!(pid, "removing a pid file of Postgres that names an unrelated process");
            fs::remove_file(pid_file).map_err(Error::io("remove", pid_file))
        }
        _ => Ok(()),
    }
}

/// The process id in the first line of a `postmaster.pid`.
pub(super) fn recorded_pid(pid_file: &Path) -> Option<u32> {
    fs::read_to_string(pid_file).ok()?.lines().next()?.trim().parse().ok()
}

/// All servers and backends whose working directory is `cluster`; zombies have none.
fn postgres_processes_in(cluster: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_postgres_in(*pid, cluster)).collect()
}

fn is_postgres_in(pid: u32, cluster: &Path) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == cluster)
        && fs::read_to_string(process.join("comm")).is_ok_and(|name| name.starts_with("postgres"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nalice:x:1000:1000::/home/alice:/bin/sh\n\
                          nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";

    #[test]
    fn root_runs_postgres_as_the_clusters_owner_then_postgres_then_nobody() {
        let name = |passwd: &str, owner| ServiceUser::choose_for_root(passwd, owner).map(|user| user.name);
        let with_postgres = format!("{PASSWD}postgres:x:101:104::/var/lib/postgresql:/bin/bash\n");
        assert_eq!(name(&with_postgres, None).as_deref(), Some("postgres"));
        assert_eq!(name(&with_postgres, Some(1000)).as_deref(), Some("alice"));
        assert_eq!(name(PASSWD, None).as_deref(), Some("nobody"));
        assert_eq!(name(PASSWD, Some(0)).as_deref(), Some("nobody"), "never root");
        assert_eq!(name("root:x:0:0:root:/root:/bin/bash\n", None), None);
    }
}
