//! The gate on a customer's server: a real sshd on a stand-in server, installed with the line that the owner pastes, asked by
//! OpenSSH's own client.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::{
        ffi::OsStringExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use seedplane_provisioning::node::gate::{self, Argument};
use seedplane_simulators::server::StandInServer;
use uuid::Uuid;

use crate::support::{PATIENCE, temporary};

/// The shells that `/bin/sh` is on the systems that the gate is for: Debian and Ubuntu, Fedora, Alpine.
const SHELLS: [&str; 3] = ["dash", "bash", "busybox"];

/// What only appears if something was run that should not have been.
const CANARY: &str = "/tmp/canary";

/// Whether this machine can run these tests; says so and counts where it cannot.
fn supported() -> bool {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    match StandInServer::supported() {
        Ok(()) => true,
        Err(why) => {
            println!("skipped, {} so far: {why}", SKIPPED.fetch_add(1, Ordering::Relaxed) + 1);
            false
        }
    }
}

/// A server with the gate, one connection, and the client's side of it.
struct Site {
    server: StandInServer,
    folder: PathBuf,
    connection: String,
    key: Key,
}

struct Key {
    file: PathBuf,
    /// The base64 body of the public half.
    public: String,
}

/// What came back.
#[derive(Debug)]
struct Answer {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Answer {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    #[track_caller]
    fn refused(self) {
        assert!(self.code == Some(126) && self.err.contains("seedplane-gate: refused: "), "{self:?}");
    }
}

fn new_key(folder: &Path) -> Key {
    let file = folder.join(format!("key-{}", Uuid::new_v4()));
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&file).status().unwrap();
    assert!(made.success());
    let public = fs::read_to_string(file.with_extension("pub")).unwrap();
    Key { public: public.split(' ').nth(1).unwrap().to_owned(), file }
}

impl Site {
    /// A server without anything of ours.
    fn bare() -> Self {
        let folder = temporary("gate");
        let server = StandInServer::start(&folder.join("server")).unwrap();
        fs::write(server.path("/root/install.sh"), gate::install_script()).unwrap();
        let known = format!("[127.0.0.1]:{} {}\n", server.port(), server.host_key().unwrap());
        fs::write(folder.join("known_hosts"), known).unwrap();
        let key = new_key(&folder);
        Self { server, folder, connection: Uuid::new_v4().to_string(), key }
    }

    fn installed() -> Self {
        let site = Self::bare();
        site.add().ok();
        site
    }

    /// The same with services, and with another shell as `/bin/sh`.
    fn installed_with(shell: &str) -> Self {
        let site = Self::bare();
        site.server.pretend_services(&["caddy", "qbittorrent-nox"]).unwrap();
        site.use_shell(shell);
        site.add().ok();
        site
    }

    fn use_shell(&self, shell: &str) {
        self.root(&format!("mount --bind $(command -v {shell}) $(readlink -f /bin/sh)")).ok();
        let named = self.root("/bin/sh --help 2>&1; /bin/sh -c 'echo ${BASH_VERSION:+bash}'").out;
        let now = ["BusyBox", "bash"].into_iter().find(|name| named.contains(name)).unwrap_or("dash");
        assert_eq!(now.to_lowercase(), shell);
    }

    fn root(&self, script: &str) -> Answer {
        self.server.run_as_root(script).unwrap().into()
    }

    fn add(&self) -> Answer {
        self.add_connection(&self.connection, &self.key.public)
    }

    fn add_connection(&self, connection: &str, key: &str) -> Answer {
        self.root(&format!("sh /root/install.sh add --connection {connection} --key {key}"))
    }

    fn remove(&self, connection: &str) -> Answer {
        self.root(&format!("sh /root/install.sh remove --connection {connection}"))
    }

    /// A client that logs in with the key. What follows the server's address is the command, whatever it begins with.
    fn ssh(&self, key: &Key, options: &[&str]) -> Command {
        let mut command = Command::new("ssh");
        command.env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
        command.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=60"]);
        // Much cheaper than the default, and not what is tested here.
        command.args(["-o", "KexAlgorithms=curve25519-sha256"]);
        command.args(["-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR", "-o"]);
        command.arg(format!("UserKnownHostsFile={}", self.folder.join("known_hosts").display()));
        command.arg("-i").arg(&key.file).args(["-p", &self.server.port().to_string()]).args(options);
        command.args(["--", "seedbox-mgr@127.0.0.1"]);
        command
    }

    /// A request with a fresh id.
    fn ask(&self, request: &str) -> Answer {
        self.ask_with(&self.key, request)
    }

    fn ask_with(&self, key: &Key, request: &str) -> Answer {
        self.ssh(key, &[]).arg(format!("{} {request}", Uuid::new_v4())).output().unwrap().into()
    }

    fn log(&self) -> Vec<String> {
        let bytes = fs::read(self.server.path(gate::LOG_PATH)).unwrap();
        String::from_utf8(bytes).expect("the log is plain ASCII").lines().map(str::to_owned).collect()
    }

    fn authorized_keys(&self) -> PathBuf {
        self.server.path("/var/lib/seedbox-mgr/.ssh/authorized_keys")
    }

    /// What runs on the server.
    fn processes(&self) -> Vec<String> {
        let script = "for file in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$file; echo; done 2>/dev/null";
        self.root(script).out.lines().map(str::to_owned).collect()
    }

    /// Every file of the server's own, with what can be told of it. What is made at each start and what the system's own tools
    /// keep of the state before are left out.
    fn files(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let top = self.server.path("/");
        let mut folders = vec![top.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let inside = path.strip_prefix(&top).unwrap().to_owned();
                let name = inside.to_string_lossy();
                if name.starts_with("run") || name == "etc/.pwd.lock" || name.ends_with('-') {
                    continue;
                }
                let about = fs::symlink_metadata(&path).unwrap();
                let mut text = format!("{:o} {}:{}", about.mode(), about.uid(), about.gid());
                if about.is_file() {
                    text += &format!(" {:?}", String::from_utf8_lossy(&fs::read(&path).unwrap()));
                } else if about.is_dir() {
                    folders.push(path);
                }
                found.insert(inside, text);
            }
        }
        found
    }
}

/// What differs, in words.
fn difference(before: &BTreeMap<PathBuf, String>, after: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let gone = before.iter().filter(|(path, about)| after.get(*path) != Some(about));
    let new = after.iter().filter(|(path, about)| before.get(*path) != Some(about));
    gone.map(|(path, about)| format!("- {path:?} {about}"))
        .chain(new.map(|(path, about)| format!("+ {path:?} {about}")))
        .collect()
}

/// Runs the same for each shell, side by side.
fn with_each_shell(test: impl Fn(&str, &Site) + Sync) {
    thread::scope(|scope| {
        for shell in SHELLS {
            let test = &test;
            scope.spawn(move || test(shell, &Site::installed_with(shell)));
        }
    });
}

/// One connection for many sessions, as a client with ControlMaster has it.
struct Master {
    process: Child,
    socket: PathBuf,
}

impl Master {
    fn open(site: &Site, key: &Key) -> Self {
        let socket = site.folder.join(format!("master-{}", &Uuid::new_v4().to_string()[..8]));
        let mut process = site.ssh(key, &["-M", "-N", "-S", socket.to_str().unwrap()]);
        let mut process = process.stderr(Stdio::null()).spawn().unwrap();
        let until = Instant::now() + PATIENCE;
        while !socket.exists() {
            assert!(process.try_wait().unwrap().is_none() && Instant::now() < until, "no connection to share");
            thread::sleep(Duration::from_millis(10));
        }
        Self { process, socket }
    }

    fn send(&self, site: &Site, command: impl AsRef<OsStr>) -> Answer {
        site.ssh(&site.key, &["-S", self.socket.to_str().unwrap()]).arg(command).output().unwrap().into()
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn gate_does_every_action_of_its_manifest_in_every_shell() {
    if !supported() {
        return;
    }
    with_each_shell(|shell, site| {
        let second = new_key(&site.folder);
        let master = Master::open(site, &site.key);
        for action in gate::actions() {
            let argument = match &action.argument {
                Argument::None => String::new(),
                Argument::OneOf(words) => {
                    assert!(words.iter().any(|word| word == "caddy"));
                    " caddy".to_owned()
                }
                Argument::Ed25519Key => format!(" {}", second.public),
                Argument::PasswordHash => unreachable!("an action of nodes only"),
            };
            let answer = master.send(site, format!("{} {}{argument}", Uuid::new_v4(), action.name));
            // Nothing that has a torrent client's name runs on the stand-in.
            let expected = if action.name == "client-status" { 1 } else { 0 };
            assert_eq!(answer.code, Some(expected), "{shell}: {}: {answer:?}", action.name);
            let printed: Vec<_> = answer.out.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
            assert_eq!(printed.len(), action.commands.len(), "{shell}: {answer:?}");
            for (line, command) in printed.iter().zip(&action.commands) {
                let exact = command.alternatives.iter().any(|words| *line == words.replace("{}", argument.trim()));
                assert!(exact, "{shell}: {line} is not in the manifest");
            }
            match action.name.as_str() {
                "hello" => assert_eq!(
                    answer.out,
                    format!(
                        "seedplane-gate {}\ngate {}\nmanifest {}\n",
                        gate::GATE_VERSION,
                        gate::gate_sha256(),
                        gate::manifest_sha256()
                    )
                ),
                "facts" => assert!(answer.out.contains("MemTotal:") && answer.out.contains("PRETTY_NAME=")),
                "service-status" => assert!(answer.out.contains("ActiveState=active"), "{answer:?}"),
                "service-log" => assert!(answer.out.contains("Started caddy.service"), "{answer:?}"),
                _ => {}
            }
        }
        let log = site.log();
        assert_eq!(log.len(), 2 * gate::actions().len(), "{shell}: one line before and one after each: {log:#?}");
        assert_eq!(fs::read_to_string(site.server.path("/run/services/caddy")).unwrap(), "1\n", "restarted once");
        assert_eq!(fs::read(site.authorized_keys()).unwrap(), b"", "revoked");
        assert_eq!(site.ask("hello").code, Some(255), "nobody is let in any more");

        // Without sudo's rules, and without sudo: the rest goes on.
        let words = format!(
            "sh /root/install.sh add --without-restart --connection {} --key {}",
            site.connection, second.public
        );
        site.root(&words).ok();
        let answer = site.ask_with(&second, "service-restart caddy");
        assert!(answer.code == Some(1) && answer.err.contains("password"), "{answer:?}");
        site.server.put_program("/usr/bin/sudo", "").unwrap();
        site.root("chmod 644 /usr/bin/sudo").ok();
        let answer = site.ask_with(&second, "service-restart caddy");
        assert!(answer.code == Some(69) && answer.err.contains("lacks: sudo"), "{answer:?}");
        let own = site.ask_with(&second, "log").ok();
        assert!(own.lines().all(|line| line.contains(&site.connection)) && own.lines().count() > 20, "{own}");
    });
}

/// Lines that a thief of the key, or a control plane gone wrong, might send. `{id}` is a valid request id.
fn hostile_lines() -> Vec<OsString> {
    let touch = format!("touch {CANARY}");
    let mut lines: Vec<OsString> = Vec::new();
    let mut add = |line: String| lines.push(line.replace("{id}", &Uuid::new_v4().to_string()).into());

    // Shells and programs instead of a request.
    for line in [
        "sh",
        "sh -i",
        "sh -c id",
        "/bin/sh",
        "bash",
        "bash -i",
        "bash --noprofile --norc",
        "dash",
        "ash",
        "busybox sh",
        "zsh",
        "su",
        "su -",
        "su root",
        "sudo -s",
        "sudo -n systemctl --no-block restart caddy",
        "doas sh",
        "env",
        "env sh",
        "exec sh",
        "command sh",
        "builtin exec sh",
        "eval id",
        ". /etc/profile",
        "source /etc/profile",
        "id",
        "whoami",
        "cat /etc/passwd",
        "uname -srm",
        "df -Pk",
        "login",
        "python3",
        "python3 -c id",
        "perl -e 1",
        "awk 1",
        "vi",
        "ed",
        "less /etc/passwd",
        "man",
        "crontab -e",
        "at now",
        "nohup sh",
        "setsid sh",
        "script",
        "screen",
        "tmux",
        "ssh localhost",
        "nc -l 1234",
        "telnet",
        "hello",
        "facts",
        "log",
        "revoke",
        "true",
        "false",
        ":",
        "help",
        "--help",
        "-h",
        "--version",
        "-",
        "--",
        "-c",
        "-i",
        "exit",
        // Copying.
        "scp -t /tmp",
        "scp -f /etc/passwd",
        "scp -r -p -t .",
        "scp -t .ssh/authorized_keys",
        "sftp-server",
        "/usr/lib/openssh/sftp-server",
        "/usr/libexec/openssh/sftp-server",
        "internal-sftp",
        "sftp",
        "rsync --server -vlogDtpre.iLsfxC . /tmp/",
        "rsync --server --sender -vlogDtpre.iLsfxC . /etc/",
        "git-upload-pack 'x'",
        "git-receive-pack 'x'",
        "svnserve -t",
        "cvs server",
        "borg serve",
        "restic",
        "rclone serve sftp",
        "tar xf -",
        "cpio -i",
        "dd of=/tmp/canary",
        "tee /tmp/canary",
    ] {
        add(line.to_owned());
    }
    // Something behind a request that would be done, or hidden in it.
    for tail in [
        ";{}",
        "; {}",
        " ; {}",
        "&&{}",
        "&& {}",
        " && {}",
        "||{}",
        " || {}",
        "|{}",
        " | {}",
        "&{}",
        "& {}",
        " & {}",
        "\n{}",
        "\r{}",
        "\r\n{}",
        "\n\n{}\n",
        "`{}`",
        " `{}`",
        "$({})",
        " $({})",
        "${IFS}{}",
        " ${IFS}{}",
        "$IFS{}",
        "\t{}",
        "\u{b}{}",
        "\u{c}{}",
        "\u{85}{}",
        "\u{a0}{}",
        "\u{2028}{}",
        "\u{2029}{}",
        "\u{3000}{}",
        "\u{200b}{}",
        "\u{feff}{}",
        "\u{7f}{}",
        "\u{1b}[2J{}",
        "\u{8}\u{8}{}",
        " >/tmp/canary",
        " >>/tmp/canary",
        " </etc/passwd",
        " 2>/tmp/canary",
        " <(id)",
        " <<<x",
        " <<x\n{}\nx",
        " {}",
        " -- {}",
        " --help",
        " -h",
        " -x",
        " --",
        " -",
        " ..",
        " ../",
        " ../../etc/passwd",
        " /etc/passwd",
        " .",
        " /",
        " *",
        " ?",
        " [a-z]*",
        " {a,b}",
        " ~",
        " ~root",
        " !",
        " !!",
        " %s",
        " %n",
        " \\",
        " \\n",
        " \\x00",
        " '",
        " \"",
        " ''",
        " \"\"",
        " '{}'",
        " \"$({})\"",
        " #",
        " caddy",
        " =",
        " @",
        " +",
        " \u{202e}{}",
        "\\\n{}",
        " $HOME",
        " ${HOME}",
        " $0",
        " $@",
        " $SSH_ORIGINAL_COMMAND",
        " ;",
        ";",
        "&",
        "|",
        " ",
        "  ",
        "\n",
        "\r",
        "\t",
        " \n",
        "\u{0456}",
        "\u{ff1b}{}",
        "\u{ff06}\u{ff06}{}",
        "\u{37e}{}",
        "\u{2223}{}",
        "\u{ff5c}{}",
        "\u{ff04}({})",
    ] {
        add(format!("{{id}} hello{}", tail.replacen("{}", &touch, 1)));
    }
    // Instead of a listed argument.
    for argument in [
        "",
        " ",
        "--help",
        "-H root@localhost",
        "--host=localhost",
        "-x",
        "--",
        "../caddy",
        "./caddy",
        "/caddy",
        "caddy/",
        "caddy/..",
        "caddy.service",
        "caddy caddy",
        "caddy nginx",
        " caddy",
        "caddy ",
        "  caddy",
        "Caddy",
        "CADDY",
        "cadd",
        "addy",
        "caddyx",
        "xcaddy",
        "caddy@",
        "caddy@1",
        "@caddy",
        "caddy=",
        "+caddy",
        "{}",
        "sshd",
        "ssh",
        "cron",
        "*",
        "c*",
        "cadd?",
        "[c]addy",
        "caddy|nginx",
        "caddy,nginx",
        "caddy\nnginx",
        "nginx\n",
        "caddy\r",
        "caddy\t",
        "\tcaddy",
        "caddy;id",
        "caddy$(touch /tmp/canary)",
        "caddy`touch /tmp/canary`",
        "$caddy",
        "${caddy}",
        "'caddy'",
        "\"caddy\"",
        "\\caddy",
        "c\\addy",
        "c\u{430}ddy",
        "ca\u{501}dy",
        "caddy\u{200b}",
        "\u{feff}caddy",
        "c\u{f0}",
        "0",
        "none",
        "ed25519-key",
        "argument",
        "qbittorrent-nox transmission-daemon",
    ] {
        add(format!("{{id}} service-restart {argument}"));
    }
    for argument in [
        "",
        "-",
        "AAAA",
        "AAAAC3NzaC1lZDI1NTE5AAAAI",
        "ssh-ed25519",
        "AAAAB3NzaC1yc2EAAAADAQABAAABgQDaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "AAAAC3NzaC1lZDI1NTE5AAAAIaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "AAAAC3NzaC1lZDI1NTE5AAAAIaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "AAAAC3NzaC1lZDI1NTE5AAAAIaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa==",
        "AAAAC3NzaC1lZDI1NTE5AAAAIaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.a",
        "AAAAC3NzaC1lZDI1NTE5AAAAIaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\naa",
        "AAAAC3NzaC1lZDI1NTE5AAAAIaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa x",
        "aAAAC3NzaC1lZDI1NTE5AAAAIaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "AAAAC3NzaC1lZDI1NTE5AAAAIaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\nssh-ed25519 AAAA",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "AAAAC3NzaC1lZDI1NTE5AAAAIaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa|d;s/a",
    ] {
        add(format!("{{id}} key-add {argument}"));
        add(format!("{{id}} key-remove {argument}"));
    }
    // An action that is none.
    for action in [
        "Hello",
        "HELLO",
        "hell",
        "helloo",
        "xhello",
        "hello-",
        "-hello",
        "hello.",
        "./hello",
        "/hello",
        "hello/",
        "hello=1",
        "a=b",
        "hello@",
        "action",
        "run",
        "or",
        "built-in",
        "argument",
        "#",
        "sh",
        "id",
        "cat",
        "perform",
        "check",
        "service",
        "service-",
        "service-stop caddy",
        "service-start caddy",
        "SERVICE-RESTART caddy",
        "service-restart-all",
        "service_restart caddy",
        "service restart caddy",
        "key-list",
        "key",
        "shell",
        "exec id",
        "none",
        "nothing",
        "ed25519-key",
        "126",
        "0",
        "..",
        "../gate",
        "hello 10",
        "\u{43d}ello",
        "h\u{435}llo",
        "hello\u{301}",
        "hel lo",
        "facts -a",
        "disk /",
        "disk -a",
        "log 500",
        "log /etc/passwd",
        "revoke all",
        "revoke {id}",
    ] {
        add(format!("{{id}} {action}"));
    }
    // An id that is none.
    for id in [
        "",
        "-",
        "0",
        "id",
        "0193c1f2",
        "0193c1f2-7a5b-7c3d-8e9f",
        "0193c1f2-7a5b-7c3d-8e9f-0a1b2c3d4e5",
        "0193c1f2-7a5b-7c3d-8e9f-0a1b2c3d4e5f0",
        "0193C1F2-7A5B-7C3D-8E9F-0A1B2C3D4E5F",
        "0193c1f27a5b7c3d8e9f0a1b2c3d4e5f",
        "{0193c1f2-7a5b-7c3d-8e9f-0a1b2c3d4e5f}",
        "urn:uuid:0193c1f2-7a5b-7c3d-8e9f-0a1b2c3d4e5f",
        "0193c1f2_7a5b_7c3d_8e9f_0a1b2c3d4e5f",
        "g193c1f2-7a5b-7c3d-8e9f-0a1b2c3d4e5f",
        "0193c1f-27a5b-7c3d-8e9f-0a1b2c3d4e5f",
        "------------------------------------",
        "????????-????-????-????-????????????",
        "0193c1f2-7a5b-7c3d-8e9f-0a1b2c3d4e5f-",
        "-0193c1f2-7a5b-7c3d-8e9f-0a1b2c3d4e5f",
        "0193c1f2-7a5b-7c3d-8e9f-0a1b2c3d4e5f;",
        "0193c1f2-7a5b-7c3d-8e9f-0a1b2c3d4e5f\n",
        "\n0193c1f2-7a5b-7c3d-8e9f-0a1b2c3d4e5f",
        "0193c1f2\u{2010}7a5b-7c3d-8e9f-0a1b2c3d4e5f",
        "\u{ff10}193c1f2-7a5b-7c3d-8e9f-0a1b2c3d4e5f",
        "$(touch /tmp/canary)",
        "`touch /tmp/canary`",
        "x=1",
        "PATH=/tmp",
        "ENV=/tmp/canary sh",
    ] {
        add(format!("{id} hello"));
    }
    for line in [
        "{id}",
        "{id} ",
        " {id} hello",
        "{id}  hello",
        "{id}\thello",
        "{id}\nhello",
        "hello {id}",
        "{id} {id} hello",
        "{id} hello {id}",
        "{id}hello",
        "{id}/hello",
        "{id}=hello",
        "\u{feff}{id} hello",
        "command=\"sh\" {id} hello",
        "SSH_ORIGINAL_COMMAND={id} hello",
    ] {
        add(line.to_owned());
    }
    // Too long, by a little and by a lot.
    for length in [201, 202, 256, 1000, 4096, 10_000, 65_536, 100_000] {
        add(format!("{{id}} {}", "a".repeat(length - 37)));
    }
    add(format!("{{id}} hello{}", " x".repeat(80)));
    add(format!("{{id}} hello{}", " ".repeat(150)));
    // Bytes that are no text at all, and those that shells use for themselves.
    for byte in (1..=8).chain([0x0e, 0x1f]).chain(0x80..=0x8f).chain([0xa0, 0xad, 0xc0, 0xe2, 0xf5, 0xfe, 0xff]) {
        let mut line = format!("{} hello", Uuid::new_v4()).into_bytes();
        line.push(byte);
        lines.push(OsString::from_vec(line));
    }
    lines
}

#[test]
fn gate_refuses_everything_else_and_runs_nothing_of_it() {
    if !supported() {
        return;
    }
    let lines = hostile_lines();
    let different: std::collections::BTreeSet<_> = lines.iter().collect();
    assert!(different.len() == lines.len() && lines.len() >= 200, "{} of {}", different.len(), lines.len());
    with_each_shell(|shell, site| {
        // What is only words is the same to every shell, so each gets a third of that; the rest goes to all of them.
        let only_words = |line: &OsString| {
            line.as_encoded_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b" -./".contains(byte))
        };
        let turn = SHELLS.iter().position(|known| *known == shell).unwrap();
        let chosen = lines.iter().enumerate().filter(|(number, line)| number % 3 == turn || !only_words(line));
        let lines: Vec<_> = chosen.map(|(_, line)| line).collect();
        assert!(lines.len() >= 200, "{}", lines.len());
        let before = site.files();
        let masters = [(); 2].map(|()| Master::open(site, &site.key));
        thread::scope(|scope| {
            for (part, master) in lines.chunks(lines.len().div_ceil(masters.len())).zip(&masters) {
                scope.spawn(move || {
                    for line in part {
                        let answer = master.send(site, line);
                        let refused = answer.code == Some(126)
                            && answer.out.is_empty()
                            && answer.err.starts_with("seedplane-gate: refused: ")
                            && answer.err.lines().count() == 1;
                        assert!(refused, "{shell}: {line:?}: {answer:?}");
                    }
                });
            }
        });
        let log = site.log();
        assert_eq!(log.len(), lines.len(), "{shell}: one line each");
        for line in &log {
            let words: Vec<_> = line.splitn(6, ' ').collect();
            assert!(words.len() == 6 && words[1] == site.connection && words[5].starts_with("refused "), "{line}");
            assert!(words[5].len() <= "refused ".len() + 120, "{line}");
            let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"@._+/= -:?".contains(&byte);
            assert!(line.bytes().all(harmless), "{line:?}");
        }
        let mut after = site.files();
        after.insert("var/log/seedplane-gate.log".into(), before[Path::new("var/log/seedplane-gate.log")].clone());
        assert_eq!(difference(&before, &after), Vec::<String>::new(), "{shell}: something was run");
        println!("{shell}: refused {} lines", lines.len());
    });
}

#[test]
fn key_opens_nothing_but_the_gate() {
    if !supported() {
        return;
    }
    let site = &Site::installed();
    let evil = format!("#!/bin/sh\ntouch {CANARY}\n");
    for name in ["evil", "date", "sed", "sha256sum"] {
        let path = site.server.path(&format!("/tmp/{name}"));
        fs::write(&path, &evil).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let before = site.files();
    let request = || format!("{} hello", Uuid::new_v4());
    let run = |options: &[&str], command: &str| -> Answer {
        let mut ssh = site.ssh(&site.key, options);
        if !command.is_empty() {
            ssh.arg(command);
        }
        ssh.env("DISPLAY", "127.0.0.1:7").output().unwrap().into()
    };

    // What sshd makes of our line: a command, and none of the other things that a key can be for.
    let options = run(&["-v", "-o", "LogLevel=DEBUG1"], &request());
    let options: Vec<_> = options.err.lines().filter(|line| line.contains("key options:")).map(str::to_owned).collect();
    assert!(!options.is_empty() && options.iter().all(|line| line.ends_with("key options: command")), "{options:?}");

    // No shell, with a terminal or without, whatever comes on standard input.
    run(&[], "").refused();
    for command in ["", &request()] {
        let answer = run(&["-tt"], command);
        let refused = answer.code == Some(255) && answer.err.contains("PTY allocation request failed");
        assert!(refused && answer.out.is_empty(), "{answer:?}");
    }
    let mut fed =
        site.ssh(&site.key, &[]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _ = writeln!(fed.stdin.take().unwrap(), "touch {CANARY}\n{} hello", Uuid::new_v4());
    Answer::from(fed.wait_with_output().unwrap()).refused();

    // No files, by any of the ways.
    // (What a subsystem says on standard error is thrown away by sshd.)
    assert_eq!(run(&["-s"], "sftp").code, Some(126));
    assert_eq!(run(&["-s"], "netconf").code, Some(255));
    let port = site.server.port().to_string();
    let known = format!("UserKnownHostsFile={}", site.folder.join("known_hosts").display());
    for (program, option, from, to) in [
        ("scp", "-s", "/etc/hostname", "seedbox-mgr@127.0.0.1:/tmp/canary"),
        ("scp", "-O", "/etc/hostname", "seedbox-mgr@127.0.0.1:/tmp/canary"),
        ("scp", "-O", "seedbox-mgr@127.0.0.1:/etc/passwd", "stolen"),
        ("sftp", "-q", "seedbox-mgr@127.0.0.1:/etc/passwd", "stolen"),
    ] {
        let mut copy = Command::new(program);
        copy.args([option, "-F", "none", "-o", "BatchMode=yes", "-o", &known, "-P", &port, "-i"]).arg(&site.key.file);
        let status = copy.args([from, to]).current_dir(&site.folder).stdin(Stdio::null()).output().unwrap().status;
        assert!(!status.success() && !site.folder.join("stolen").exists(), "{program} {option} {from}");
    }

    // No forwarding. The local side of -L and -D always listens, so it is tried.
    let answer = run(&["-W", &format!("127.0.0.1:{port}")], "");
    assert!(
        answer.code == Some(255) && answer.out.is_empty() && answer.err.contains("forwarding failed"),
        "{answer:?}"
    );
    let answer = run(&["-N", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1"], "");
    assert!(answer.code == Some(255) && answer.err.contains("forwarding failed"), "{answer:?}");
    let answer = run(&["-N", "-o", "ExitOnForwardFailure=yes", "-R", "/tmp/canary:127.0.0.1:1"], "");
    assert!(answer.code == Some(255), "{answer:?}");
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (local, socks) = (free(), free());
    let forward = format!("127.0.0.1:{local}:127.0.0.1:{port}");
    let mut ssh = site.ssh(&site.key, &["-N", "-L", &forward, "-D", &format!("127.0.0.1:{socks}")]).spawn().unwrap();
    let until = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", socks)).is_err() {
        assert!(Instant::now() < until, "the client does not listen");
        thread::sleep(Duration::from_millis(20));
    }
    let mut through = TcpStream::connect(("127.0.0.1", local)).unwrap();
    let mut heard = Vec::new();
    let _ = through.read_to_end(&mut heard);
    assert!(heard.is_empty(), "-L reached sshd: {heard:?}");
    let mut through = TcpStream::connect(("127.0.0.1", socks)).unwrap();
    through.write_all(&[5, 1, 0]).unwrap();
    let mut greeting = [0; 2];
    through.read_exact(&mut greeting).unwrap();
    let [high, low] = site.server.port().to_be_bytes();
    through.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low]).unwrap();
    let mut heard = Vec::new();
    let _ = through.read_to_end(&mut heard);
    assert!(!heard.windows(4).any(|bytes| bytes == b"SSH-"), "-D reached sshd: {heard:?}");
    ssh.kill().unwrap();
    ssh.wait().unwrap();
    let answer = run(&["-X", "-o", "ForwardX11Timeout=0"], &request());
    assert!(answer.code == Some(0) && answer.err.contains("X11 forwarding request failed"), "{answer:?}");
    assert_ne!(run(&["-w", "any", "-N", "-o", "ExitOnForwardFailure=yes"], "").code, Some(0), "a tunnel");
    run(&["-A"], &request()).ok();

    // What the environment could carry, with the server's own setting and with one that lets everything through.
    let tricks = [
        "LC_ALL=tr_TR.UTF-8",
        "LC_CTYPE=en_US.UTF-8",
        "LC_X=() { :;}; touch /tmp/canary",
        "LANG=$(touch /tmp/canary)",
        "BASH_ENV=/tmp/evil",
        "ENV=/tmp/evil",
        "PATH=/tmp",
        "IFS=-",
        "CDPATH=/tmp",
        "HOME=/tmp",
        "SHELL=/tmp/evil",
        "SSH_ORIGINAL_COMMAND=sh",
        "BASH_FUNC_printf%%=() { touch /tmp/canary; }",
        "BASH_FUNC_date%%=() { touch /tmp/canary; }",
        "BASH_FUNC_is_uuid%%=() { touch /tmp/canary; }",
        "PS1=$(touch /tmp/canary)",
        "POSIXLY_CORRECT=1",
        "log=/tmp/canary",
        "keys=/tmp/canary",
        "manifest=/tmp/canary",
        "folder=/tmp",
        "text=x",
        "connection=x",
        "argument=x",
        "status=0",
    ];
    for everything in [false, true] {
        if everything {
            site.root("echo 'AcceptEnv *' >>/etc/ssh/sshd_config.0 && kill -HUP $(cat /run/sshd.0.pid)").ok();
            let until = Instant::now() + PATIENCE;
            while site.ask("hello").code != Some(0) {
                assert!(Instant::now() < until, "sshd is not back");
            }
        }
        let master = Master::open(site, &site.key);
        let tricks: Vec<_> = tricks.iter().map(|trick| format!("\"{trick}\"")).collect();
        let options = ["-S", master.socket.to_str().unwrap(), "-o", &format!("SetEnv={}", tricks.join(" "))];
        for shell in SHELLS {
            site.use_shell(shell);
            assert!(run(&options, &request()).ok().starts_with("seedplane-gate 1\n"), "{shell}");
            run(&options, "sh -c id").refused();
            run(&options, "").refused();
            site.root("umount -l $(readlink -f /bin/sh)").ok();
        }
    }
    let mut after = site.files();
    for changed in ["var/log/seedplane-gate.log", "etc/ssh/sshd_config.0"] {
        after.insert(changed.into(), before[Path::new(changed)].clone());
    }
    assert_eq!(difference(&before, &after), Vec::<String>::new());
}

#[test]
fn what_takes_too_long_is_ended_also_when_the_client_is_gone() {
    if !supported() {
        return;
    }
    with_each_shell(|shell, site| {
        // Its children do not listen to TERM, and are not waited for.
        site.server
            .put_program("/usr/bin/stubborn", "#!/bin/sh\ntrap '' TERM\nsleep 301 &\nwhile :; do sleep 302; done\n")
            .unwrap();
        site.server.put_program("/usr/bin/talkative", "#!/bin/sh\nsleep 1\nwhile :; do echo more; done\n").unwrap();
        let actions = "action slow 1\nrun sleep 300\nrun sleep 303\naction stubborn 1\nrun stubborn\naction talkative 5\nrun talkative\n";
        site.root(&format!("printf '{actions}' >>/usr/local/lib/seedplane/manifest")).ok();
        let remaining = || -> Vec<_> {
            let ours = |process: &String| {
                ["sleep", "stubborn", "talkative", "/gate "].iter().any(|name| process.contains(name))
            };
            site.processes().into_iter().filter(ours).collect()
        };

        let began = Instant::now();
        let answer = site.ask("slow");
        assert!(answer.code == Some(124) && answer.out == "$ sleep 300\n", "{shell}: {answer:?}");
        assert!(
            began.elapsed() > Duration::from_secs(1) && began.elapsed() < Duration::from_secs(30),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(remaining(), Vec::<String>::new(), "{shell}");
        let answer = site.ask("stubborn");
        assert!(answer.code == Some(124) && answer.err.contains("ended after 1 seconds"), "{shell}: {answer:?}");
        assert_eq!(remaining(), Vec::<String>::new(), "{shell}");
        site.ask("hello").ok();
        assert_eq!(remaining(), Vec::<String>::new(), "{shell}: the watch ends with what it watched");

        // The client goes while it runs; for the last one, while it prints.
        for (action, end) in [("slow", "timeout"), ("stubborn", "timeout"), ("talkative", "exit=")] {
            let lines = site.log().len();
            let request = format!("{} {action}", Uuid::new_v4());
            let mut client = site.ssh(&site.key, &[]).arg(request).stdout(Stdio::piped()).spawn().unwrap();
            let mut first = [0; 2];
            client.stdout.take().unwrap().read_exact(&mut first).unwrap();
            assert_eq!(&first, b"$ ");
            let until = Instant::now() + PATIENCE;
            client.kill().unwrap();
            client.wait().unwrap();
            while site.log().len() < lines + 2 {
                assert!(Instant::now() < until, "{shell}: {action} does not end");
                thread::sleep(Duration::from_millis(50));
            }
            assert!(site.log()[lines + 1].contains(&format!(" {action} - {end}")), "{shell}: {:?}", site.log());
            thread::sleep(Duration::from_millis(100));
            assert_eq!(remaining(), Vec::<String>::new(), "{shell}: {action}");
        }
    });
}

#[test]
fn keys_are_added_and_removed_and_lines_of_others_stay() {
    if !supported() {
        return;
    }
    with_each_shell(|shell, site| {
        let neighbour = (Uuid::new_v4().to_string(), new_key(&site.folder));
        site.add_connection(&neighbour.0, &neighbour.1.public).ok();
        let stranger = new_key(&site.folder);
        let ours = format!("command=\"/usr/local/lib/seedplane/gate {}\"", site.connection);
        // A comment that looks like ours, odd bytes, the ends of lines of other systems, and a last line without an end.
        let mut others = fs::read(site.authorized_keys()).unwrap();
        let line = others.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        let (theirs, mine) = others.split_at(line);
        assert!(
            String::from_utf8_lossy(theirs).contains(&neighbour.0) && String::from_utf8_lossy(mine).contains(&ours)
        );
        let (theirs, mine) = (theirs.to_vec(), mine.to_vec());
        others = theirs;
        others
            .extend(format!("# {ours} ssh-ed25519 AAAA\n\t #{ours}\r\n\n  \\ \"$(touch /tmp/canary)\" \n").as_bytes());
        others.extend(b"# \x80\xff\xc3\x28\n");
        others.extend(format!("restrict ssh-ed25519 {} no end", stranger.public).as_bytes());
        let keep = |expected: &[&[u8]]| {
            let now = fs::read(site.authorized_keys()).unwrap();
            let expected: Vec<u8> = expected.concat();
            assert!(
                now == expected,
                "{shell}:\n{}\n---\n{}",
                String::from_utf8_lossy(&now),
                String::from_utf8_lossy(&expected)
            );
            let about = fs::metadata(site.authorized_keys()).unwrap();
            assert_eq!(about.mode() & 0o7777, 0o600);
        };
        let owner = fs::metadata(site.authorized_keys()).unwrap().uid();
        fs::write(site.authorized_keys(), [mine.as_slice(), others.as_slice()].concat()).unwrap();
        assert_eq!(fs::metadata(site.authorized_keys()).unwrap().uid(), owner);

        let second = new_key(&site.folder);
        let third = new_key(&site.folder);
        site.ask(&format!("key-remove {}", site.key.public)).refused();
        site.ask(&format!("key-add {}", neighbour.1.public)).refused();
        site.ask(&format!("key-add {}", stranger.public)).refused();
        keep(&[&mine, &others]);
        site.ask(&format!("key-add {}", second.public)).ok();
        let added = format!("restrict,{ours} ssh-ed25519 {} seedplane-{}\n", second.public, site.connection);
        keep(&[added.as_bytes(), &mine, &others]);
        site.ask(&format!("key-add {}", second.public)).ok();
        site.ask(&format!("key-add {}", third.public)).refused();
        site.ask(&format!("key-remove {}", third.public)).ok();
        keep(&[added.as_bytes(), &mine, &others]);

        // The new key works, and the old one no longer, also in a session that it opened before.
        let master = Master::open(site, &site.key);
        master.send(site, format!("{} hello", Uuid::new_v4())).ok();
        site.ask_with(&second, &format!("key-remove {}", site.key.public)).ok();
        keep(&[added.as_bytes(), &others]);
        assert_eq!(site.ask("hello").code, Some(255), "{shell}: the old key still opens");
        assert_ne!(
            master.send(site, format!("{} hello", Uuid::new_v4())).code,
            Some(0),
            "{shell}: its session is open"
        );
        drop(master);
        site.ask_with(&second, "hello").ok();

        // Many at once: as if one after the other.
        let many: Vec<_> = (0..6).map(|_| new_key(&site.folder)).collect();
        thread::scope(|scope| {
            for key in &many {
                scope.spawn(|| site.ask_with(&second, &format!("key-add {}", key.public)));
            }
        });
        let text = String::from_utf8_lossy(&fs::read(site.authorized_keys()).unwrap()).into_owned();
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with(&format!("restrict,{ours}"))).collect();
        assert_eq!(lines.len(), 2, "{shell}: {lines:#?}");
        assert_eq!(many.iter().filter(|key| text.contains(&key.public)).count(), 1);
        assert!(fs::read(site.authorized_keys()).unwrap().ends_with(&others));

        // Also a line that its owner restricted further is taken away.
        let further = text.replacen("restrict,command", "from=\"127.0.0.1\",restrict,command", 1);
        let kept = fs::read(site.authorized_keys()).unwrap();
        fs::write(
            site.authorized_keys(),
            [further.lines().next().unwrap().as_bytes(), b"\n", &kept[text.find('\n').unwrap() + 1..]].concat(),
        )
        .unwrap();
        let master = Master::open(site, &second);
        master.send(site, format!("{} revoke", Uuid::new_v4())).ok();
        keep(&[&others]);
        master.send(site, format!("{} key-add {}", Uuid::new_v4(), second.public)).refused();
        keep(&[&others]);
        assert_eq!(site.ask_with(&second, "hello").code, Some(255));
        site.ask_with(&neighbour.1, "hello").ok();
    });
}

/// Turns the server into one that has nothing but busybox and OpenSSH, as Alpine does. Debian's busybox lacks the applets for
/// users and for locks: scripts that write the same lines, and util-linux's flock, stand in for those.
fn leave_only_busybox(site: &Site) {
    site.root(
        r#"set -e
        mkdir /run/programs
        cp /usr/bin/busybox /usr/bin/flock /usr/bin/ssh-keygen /usr/sbin/sshd /run/programs
        for applet in $(busybox --list); do ln -s busybox /run/programs/$applet; done
        cd /run/programs
        cat >addgroup <<'END'
#!/bin/sh
[ "$1" = -S ] && [ $# -eq 2 ] || exit 1
grep -q "^$2:" /etc/group && exit 1
echo "$2:x:101:" >>/etc/group
echo "$2:!::" >>/etc/gshadow
END
        cat >adduser <<'END'
#!/bin/sh
[ "$1 $2 $3 $4 $6 $8 ${10}" = "-S -D -H -h -s -G $9" ] || exit 1
echo "${10}:x:100:101:Linux User,,,:$5:$7" >>/etc/passwd
echo "${10}:!:19000:0:99999:7:::" >>/etc/shadow
END
        cat >deluser <<'END'
#!/bin/sh
sed -i "/^$1:/d" /etc/passwd /etc/shadow /etc/group /etc/gshadow
END
        cat >delgroup <<'END'
#!/bin/sh
exit 1
END
        cat >chpasswd <<'END'
#!/bin/sh
[ "$1" = -e ] || exit 1
IFS=: read -r user password
sed -i "s/^$user:[^:]*:/$user:$password:/" /etc/shadow
END
        chmod 755 addgroup adduser deluser delgroup chpasswd
        mount --bind /run/programs /usr/sbin
        mount --bind /run/programs /usr/bin"#,
    )
    .ok();
    assert!(site.root("command -v useradd || command -v userdel || command -v usermod").out.is_empty());
}

#[test]
fn installer_can_be_run_twice_and_leaves_nothing_behind() {
    if !supported() {
        return;
    }
    thread::scope(|scope| {
        for shell in ["dash", "bash", "busybox", "only busybox"] {
            scope.spawn(move || {
                let site = &Site::bare();
                if shell == "only busybox" {
                    leave_only_busybox(site);
                } else {
                    site.server.pretend_services(&["caddy"]).unwrap();
                    site.use_shell(shell);
                }
                let before = site.files();
                let said = site.add().ok();
                assert!(said.contains(&site.server.host_key_fingerprint().unwrap()), "{said}");
                let shadow = fs::read_to_string(site.server.path("/etc/shadow")).unwrap();
                assert!(shadow.lines().any(|line| line.starts_with("seedbox-mgr:*:")), "{shell}: {shadow}");
                site.ask("hello").ok();
                site.ask("facts").ok();
                let installed = site.files();
                let said = site.add().ok();
                assert!(
                    !said.contains("Wrote") && !said.contains("Made") && !said.contains("Added"),
                    "{shell}: {said}"
                );
                assert_eq!(
                    difference(&installed, &site.files()),
                    Vec::<String>::new(),
                    "{shell}: changed by the second run"
                );
                site.root("sh /root/install.sh show").ok();
                assert_eq!(difference(&installed, &site.files()), Vec::<String>::new(), "{shell}: changed by showing");
                let changed = difference(&before, &installed).len();
                println!("{shell}: {changed} differences while installed");

                // With a session open, which ends.
                let master = Master::open(site, &site.key);
                let said = site.remove(&site.connection).ok();
                assert!(said.contains("Removed the user seedbox-mgr"), "{said}");
                assert_eq!(difference(&before, &site.files()), Vec::<String>::new(), "{shell}: left behind");
                assert_ne!(master.send(site, format!("{} hello", Uuid::new_v4())).code, Some(0));
                assert_eq!(site.remove(&site.connection).ok(), "Nothing of Seedplane is installed here.\n");

                // One of two connections goes, then the other; lines of a stranger keep the user.
                site.add().ok();
                let (other, key) = (Uuid::new_v4().to_string(), new_key(&site.folder));
                site.add_connection(&other, &key.public).ok();
                let stranger = format!("# a note\nssh-ed25519 {} me, no end", new_key(&site.folder).public);
                let mut file = fs::File::options().append(true).open(site.authorized_keys()).unwrap();
                file.write_all(stranger.as_bytes()).unwrap();
                site.remove(&site.connection).ok();
                assert_eq!(site.ask("hello").code, Some(255));
                site.ask_with(&key, "hello").ok();
                let said = site.remove(&other).ok();
                assert!(said.contains("has lines that are not ours"), "{said}");
                assert_eq!(fs::read_to_string(site.authorized_keys()).unwrap(), stranger);
                assert!(!site.server.path("/usr/local/lib/seedplane").exists());
                site.add().ok();
                site.ask("hello").ok();
            });
        }
    });
}

#[test]
fn installer_warns_of_an_sshd_that_takes_what_acts_before_the_gate() {
    if !supported() {
        return;
    }
    let site = Site::bare();
    let settings = |lines: &str| fs::write(site.server.path("/etc/ssh/sshd_config"), lines).unwrap();
    for shell in SHELLS {
        site.use_shell(shell);
        for (lines, named) in [
            ("AcceptEnv *\n", &["LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "SHELLOPTS", "BASH_ENV", "ENV"][..]),
            ("AcceptEnv LANG LC_* LD_*\n", &["LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT"]),
            ("AcceptEnv LANG\nAcceptEnv ?ASH_ENV\n", &["BASH_ENV"]),
            ("acceptenv ENV SHELLOPTS\n", &["ENV", "SHELLOPTS"]),
            ("Match User seedbox-mgr\nAcceptEnv LD_PRELOAD\n", &["LD_PRELOAD"]),
            ("Match User somebody-else\nAcceptEnv *\n", &[]),
            ("AcceptEnv LANG LC_* COLORTERM NO_COLOR [A-Z]*\n", &[]),
            ("AcceptEnv L? E BASH_ENVIRONMENT\n", &[]),
            ("", &[]),
        ] {
            settings(lines);
            let said = site.add().ok();
            assert!(said.contains("\nDone. "), "it goes on all the same: {said}");
            let mut warned: Vec<&str> = said
                .lines()
                .skip_while(|line| !line.starts_with("WARNING: "))
                .filter_map(|line| line.strip_prefix("  "))
                .collect();
            let mut named = named.to_vec();
            named.sort_unstable();
            warned.sort_unstable();
            assert_eq!(warned, named, "{shell}, {lines:?}: {said}");
            assert_eq!(said.contains("AcceptEnv with "), !named.is_empty(), "{said}");
        }
    }
    // One that cannot be asked says nothing, and stops nothing.
    settings("NoSuchSetting yes\n");
    assert!(!site.add().ok().contains("WARNING"));
}

#[test]
fn installer_changes_nothing_when_it_is_called_wrongly() {
    if !supported() {
        return;
    }
    let site = &Site::bare();
    let before = site.files();
    let (id, key) = (&site.connection, &site.key.public);
    let other_key = "AAAAB3NzaC1yc2EAAAADAQABAAABgQDaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    for words in [
        String::new(),
        "install".to_owned(),
        "add".to_owned(),
        format!("add --connection {id}"),
        format!("add --key {key}"),
        format!("add --connection {id} --key"),
        format!("add --connection {id} --key {key}x"),
        format!("add --connection {id} --key {other_key}"),
        format!("add --connection {id} --key '{} {}'", &key[..33], &key[34..]),
        format!("add --connection {}X --key {key}", &id[..35]),
        format!("add --connection '{id}\" sh' --key {key}"),
        format!("add --connection '{id}\nx' --key {key}"),
        format!("add --connection {} --key {key}", id.to_uppercase()),
        format!("add --connection {id} --key {key} --with-restart"),
        format!("add --connection {id} --key {key} more"),
        "remove".to_owned(),
        format!("remove --connection {id} --key {key}"),
        "remove --connection .".to_owned(),
        "show --all".to_owned(),
    ] {
        let answer = site.root(&format!("sh /root/install.sh {words}"));
        assert!(answer.code == Some(2) && answer.err.contains("nothing was changed"), "{words}: {answer:?}");
    }
    let answer = site.root(&format!(
        "cp /root/install.sh /tmp && setpriv --reuid 65534 --clear-groups sh /tmp/install.sh add --connection {id} --key {key}; code=$?; rm /tmp/install.sh; exit $code"
    ));
    assert!(answer.code == Some(2) && answer.err.contains("root"), "{answer:?}");
    assert!(site.root("sh /root/install.sh --help").ok().contains("usage:"));
    assert_eq!(difference(&before, &site.files()), Vec::<String>::new());

    // A user of that name who is somebody.
    site.root("useradd --create-home seedbox-mgr").ok();
    let before = site.files();
    let answer = site.add();
    assert!(answer.code == Some(1) && answer.err.contains("is not ours; nothing was changed"), "{answer:?}");
    assert_eq!(difference(&before, &site.files()), Vec::<String>::new());
}

#[test]
fn installer_serves_what_then_lies_on_the_server() {
    if !supported() {
        return;
    }
    let site = Site::installed();
    let on_server = |path: &str| fs::read(site.server.path(path)).unwrap();
    assert_eq!(on_server(gate::GATE_PATH), gate::GATE.as_bytes());
    assert_eq!(on_server(gate::MANIFEST_PATH), gate::MANIFEST.as_bytes());
    for (path, digest) in [
        (gate::GATE_PATH, gate::gate_sha256()),
        (gate::MANIFEST_PATH, gate::manifest_sha256()),
        ("/root/install.sh", gate::install_sha256()),
    ] {
        assert_eq!(site.root(&format!("sha256sum <{path}")).ok(), format!("{digest}  -\n"));
    }
    for (path, mode) in [
        (gate::GATE_PATH, 0o755),
        (gate::MANIFEST_PATH, 0o644),
        ("/usr/local/lib/seedplane", 0o755),
        ("/var/lib/seedbox-mgr", 0o755),
    ] {
        let about = fs::metadata(site.server.path(path)).unwrap();
        assert_eq!((about.mode() & 0o7777, about.uid(), about.gid()), (mode, 0, 0), "{path}");
    }
}

#[test]
fn nothing_is_done_that_cannot_be_written_down() {
    if !supported() {
        return;
    }
    with_each_shell(|shell, site| {
        let key = new_key(&site.folder);
        let before = fs::read(site.authorized_keys()).unwrap();
        for (name, script, back) in [
            ("full", "mount --bind /dev/full /var/log/seedplane-gate.log", "umount /var/log/seedplane-gate.log"),
            (
                "somebody else's",
                "mount -t tmpfs -o mode=755 tmpfs /var/log && touch /var/log/seedplane-gate.log && chmod 600 /var/log/seedplane-gate.log",
                "true",
            ),
            ("missing", "rm /var/log/seedplane-gate.log", "umount /var/log"),
        ] {
            site.root(script).ok();
            for request in [format!("key-add {}", key.public), "facts".to_owned(), "revoke".to_owned()] {
                let answer = site.ask(&request);
                assert!(answer.code == Some(126) && answer.out.is_empty(), "{shell}: {name}: {answer:?}");
                assert!(
                    answer.err.ends_with("seedplane-gate: refused: the log cannot be written\n"),
                    "{shell}: {name}: {answer:?}"
                );
            }
            assert_eq!(fs::read(site.authorized_keys()).unwrap(), before, "{shell}: {name}");
            site.root(back).ok();
        }
        site.ask("facts").ok();
    });
}
