//! Starting, finding and stopping a box's process.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::TcpStream,
    ops::Range,
    os::unix::{
        fs::{OpenOptionsExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// How long a client may take to write its state before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// A process by its number and the time it was started, in the kernel's ticks: a number alone is given out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pid: i32,
    started: u64,
}

pub(super) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

/// Whether all of these user ids exist here: in a container the kernel may know but some.
pub(super) fn uids_exist(uids: &Range<u32>) -> bool {
    // Each line: the first id in here, the first outside, how many.
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().filter_map(|number| number.parse::<u64>().ok());
        match (numbers.next(), numbers.nth(1)) {
            (Some(first), Some(count)) => first <= u64::from(uids.start) && u64::from(uids.end) <= first + count,
            _ => false,
        }
    })
}

/// A program on this machine.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/bin")])
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// Whether boxes run in a sandbox here.
pub(super) fn sandboxed() -> bool {
    static FOUND: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *FOUND.get_or_init(|| {
        let found = find("bwrap").is_some();
        if !found {
            tracing::warn!(
                "bubblewrap is not on this machine: boxes run without a sandbox; `apt-get install bubblewrap`"
            );
        }
        found
    })
}

/// Writes a file so that a crash leaves the old one or the new one.
pub(super) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

pub(super) fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    match fs::set_permissions(path, fs::Permissions::from_mode(mode)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Gives a box's profile and data to its user, closed to all others. The box's own file stays ours.
pub(super) fn own(path: &Path, uid: Option<u32>) -> io::Result<()> {
    fn give(path: &Path, uid: Option<u32>) -> io::Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        if metadata.is_symlink() {
            return Ok(());
        }
        if uid.is_some() {
            chown(path, uid, uid)?;
        }
        if metadata.is_dir() {
            set_mode(path, 0o700)?;
            for entry in fs::read_dir(path)? {
                give(&entry?.path(), uid)?;
            }
        }
        Ok(())
    }
    if path.is_dir() {
        for part in ["profile", "data"] {
            give(&path.join(part), uid)?;
        }
        // Its user has to get through to them where there is no sandbox.
        return set_mode(path, 0o711);
    }
    give(path, uid)
}

/// The fields of `/proc/<pid>/stat` after the name, which may itself hold spaces and brackets.
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.split_whitespace().map(str::to_owned).collect())
}

fn identity(pid: i32) -> Option<Identity> {
    let fields = stat(pid)?;
    // A process that ended and is not reaped yet does not run.
    if fields.first().is_some_and(|state| state == "Z" || state == "X") {
        return None;
    }
    Some(Identity { pid, started: fields.get(19)?.parse().ok()? })
}

fn run_file(folder: &Path) -> PathBuf {
    folder.join("run.json")
}

/// The box's process, if it runs.
pub(super) fn running(folder: &Path) -> Option<Identity> {
    let known: Identity = serde_json::from_slice(&fs::read(run_file(folder)).ok()?).ok()?;
    (identity(known.pid) == Some(known)).then_some(known)
}

/// Every process below this one.
fn descendants(pid: i32) -> Vec<i32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if let Some(parent) = stat(child).and_then(|fields| fields.get(1)?.parse::<i32>().ok()) {
            parents.push((child, parent));
        }
    }
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let of = found[next];
        found.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(child, _)| *child));
        next += 1;
    }
    found.remove(0);
    found
}

/// Every process of a user.
pub(super) fn of_user(uid: u32) -> Vec<i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.metadata().is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == uid))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| identity(*pid).is_some())
        .collect()
}

/// Ends the sandboxes of boxes under `directory` that no control plane holds any more. A sandbox sets itself up in two
/// processes, and the inner one waits for ever if the outer one dies before it has tied their lives together.
pub(super) fn end_leftovers(directory: &Path) {
    let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let ours = name("self");
    let marker = directory.as_os_str().as_encoded_bytes();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if name(&pid.to_string()).trim() != "bwrap" {
            continue;
        }
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let about_us = arguments.split(|byte| *byte == 0).any(|argument| argument.starts_with(marker));
        let Some(parent) = stat(pid).and_then(|fields| fields.get(1).cloned()) else { continue };
        let parent = name(&parent);
        // Held by its outer half, or by a control plane: this one or another that shares the folder.
        if about_us && parent.trim() != "bwrap" && parent != ours {
            tracing::warn!(pid, "a sandbox that a killed control plane left behind is ended");
            signal(pid, libc::SIGKILL);
        }
    }
}

#[allow(unsafe_code, reason = "kill(2) has no safe wrapper in the standard library")]
fn signal(pid: i32, signal: i32) {
    // SAFETY: kill takes two numbers and touches no memory of ours.
    unsafe { libc::kill(pid, signal) };
}

/// Stops a box's process and waits until it is gone: asked first, so that it can write its state.
pub(super) fn stop(folder: &Path, uid: Option<u32>) {
    if let Some(process) = running(folder) {
        let inside = descendants(process.pid);
        for pid in inside.iter().copied().chain([process.pid]) {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.trim().starts_with("qbittorrent") {
                signal(pid, libc::SIGTERM);
            }
        }
        let asked = Instant::now();
        while running(folder).is_some() && asked.elapsed() < STOP_WITHIN {
            thread::sleep(Duration::from_millis(20));
        }
        if identity(process.pid) == Some(process) {
            for pid in inside.into_iter().chain([process.pid]) {
                signal(pid, libc::SIGKILL);
            }
            while identity(process.pid) == Some(process) {
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
    if let Some(uid) = uid {
        kill_user(uid);
    }
    let _ = fs::remove_file(run_file(folder));
}

/// Ends everything that runs as a box's user.
pub(super) fn kill_user(uid: u32) {
    for _ in 0..200 {
        let left = of_user(uid);
        if left.is_empty() {
            return;
        }
        left.into_iter().for_each(|pid| signal(pid, libc::SIGKILL));
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a web interface answers: asked without a login, it answers 403.
pub(super) fn answers(port: u16) -> bool {
    let ask = || -> io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&super::address(port), Duration::from_millis(300))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(
            format!("GET /api/v2/app/version HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(&head == b"HTTP/1.1 403")
    };
    ask().unwrap_or(false)
}

struct Request {
    folder: PathBuf,
    uid: Option<u32>,
    answer: mpsc::Sender<io::Result<()>>,
}

/// Starts processes from one thread that lives as long as this process does: the kernel ends a child when the thread that
/// started it ends.
#[derive(Debug)]
pub(super) struct Spawner {
    requests: mpsc::Sender<Request>,
}

impl Spawner {
    pub(super) fn start() -> Self {
        let (requests, incoming) = mpsc::channel::<Request>();
        let run = move || {
            let mut children: Vec<Child> = Vec::new();
            loop {
                match incoming.recv_timeout(Duration::from_millis(500)) {
                    Ok(request) => {
                        let started = spawn(&request.folder, request.uid).map(|child| children.push(child));
                        let _ = request.answer.send(started);
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                }
                children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
            }
        };
        thread::Builder::new().name("boxes".to_owned()).spawn(run).expect("a thread can be started");
        Self { requests }
    }

    pub(super) fn spawn(&self, folder: &Path, uid: Option<u32>) -> io::Result<()> {
        let (answer, answered) = mpsc::channel();
        let gone = || io::Error::other("the thread that starts boxes is gone");
        self.requests.send(Request { folder: folder.to_owned(), uid, answer }).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }
}

fn spawn(folder: &Path, uid: Option<u32>) -> io::Result<Child> {
    let client = find("qbittorrent-nox").ok_or_else(|| io::Error::other("qbittorrent-nox is not on this machine"))?;
    let (profile, data) = (folder.join("profile"), folder.join("data"));
    let mut command;
    if let (true, Some(bwrap)) = (sandboxed(), find("bwrap")) {
        command = Command::new(bwrap);
        // As root the sandbox is set up with our rights and the client dropped to the box's user inside, so that the
        // folders above the box need not be open to that user.
        if uid.is_none() {
            command.arg("--unshare-user");
        }
        command.args([
            "--unshare-pid",
            "--unshare-ipc",
            "--unshare-uts",
            "--die-with-parent",
            "--new-session",
            "--clearenv",
        ]);
        command.args(["--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"]);
        command.args(["--symlink", "usr/bin", "/bin", "--ro-bind-try", "/etc/ssl", "/etc/ssl"]);
        command.args([
            "--ro-bind-try",
            "/etc/resolv.conf",
            "/etc/resolv.conf",
            "--ro-bind-try",
            "/etc/ld.so.cache",
            "/etc/ld.so.cache",
        ]);
        command.arg("--bind").arg(&profile).arg("/profile").arg("--bind").arg(&data).arg("/data");
        command.args(["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--tmpfs", "/tmp", "--chdir", "/tmp"]);
        command.args(["--setenv", "HOME", "/profile", "--setenv", "PATH", "/usr/bin", "--setenv", "LANG", "C.UTF-8"]);
        if let Some(uid) = uid {
            command.args(["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--"]);
            command.args(["/usr/bin/setpriv", &format!("--reuid={uid}"), &format!("--regid={uid}")]);
            command.args(["--clear-groups", "--no-new-privs", "--inh-caps=-all"]);
        }
        command.arg(&client).arg("--profile=/profile");
    } else {
        command = Command::new(&client);
        let mut argument = std::ffi::OsString::from("--profile=");
        argument.push(&profile);
        command
            .arg(argument)
            .env_clear()
            .env("HOME", &profile)
            .env("PATH", "/usr/bin:/bin")
            .env("LANG", "C.UTF-8")
            .current_dir(&data);
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
    }
    end_with_parent(&mut command);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    let known = identity(pid).ok_or_else(|| io::Error::other("it ended at once"))?;
    write_atomically(&run_file(folder), &serde_json::to_vec(&known).expect("two numbers are plain JSON"), 0o600)?;
    Ok(child)
}

/// The kernel ends the child when we end, however we do.
#[allow(unsafe_code, reason = "prctl(2) in the child is the only way to tie its life to ours")]
fn end_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        });
    }
}
