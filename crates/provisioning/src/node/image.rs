//! The node: what we put on a machine of a provider elsewhere, as files, and the words by which it is asked to do something.
//!
//! The same gate as on customers' own servers ([`gate`]) stands before a manifest of the node's own, which
//! leads to one script that runs as root. What the files are for stands in each of them; [`user_data`](super::user_data) puts
//! them together.

use std::{fmt::Write as _, sync::LazyLock};

use secrecy::SecretString;

use super::{
    gate::{self, Action, Argument},
    qbittorrent,
};

/// What the gate on a node does.
pub const MANIFEST: &str = include_str!("image/manifest.txt");

/// The script behind it, which runs as root.
pub const NODE: &str = include_str!("image/node.sh");

/// The folder it lies in: one of those in which the gate looks for programs.
const NODE_FOLDER: &str = "/usr/sbin";

/// What sets the machine up.
pub(super) const INSTALL: &str = include_str!("image/install.sh");

/// What reports that it is set up.
pub(super) const READY: &str = include_str!("image/ready.sh");

/// The firewall, with a placeholder for the torrent port.
pub(super) const FIREWALL: &str = include_str!("image/nftables.conf");

/// The client's unit.
pub(super) const UNIT: &str = include_str!("image/seedbox.service");

/// The frame of the user-data, with placeholders.
pub(super) const USER_DATA: &str = include_str!("image/user-data.yaml");

/// Says how the box is, in lines `<name> <value>`: `suspended` (`no`, `service`, `everything`), `client`, `answers` (`yes`,
/// `no`), `disk_total_bytes`, `disk_free_bytes`, and `wiped yes` after a [`WIPE`].
pub const STATUS: &str = "status";

/// Says what the box uses: `rx_bytes_since_boot`, `tx_bytes_since_boot`, `uptime_seconds`, `load`, `boot_id`, `data_bytes`,
/// `disk_free_bytes`.
pub const USAGE: &str = "usage";

/// Stops the client, so that a restart of the machine does not start it: with [`SUSPEND_SERVICE`] or [`SUSPEND_EVERYTHING`].
pub const SUSPEND: &str = "suspend";

/// The proxy answers 503.
pub const SUSPEND_SERVICE: &str = "service";

/// The ports of the proxy and of the client are closed, too.
pub const SUSPEND_EVERYTHING: &str = "everything";

/// Undoes [`SUSPEND`]; answered once the client answers.
pub const RESUME: &str = "resume";

/// Stops the client and starts it; answered once it answers.
pub const RESTART: &str = "restart";

/// Gives the client the password of [`password_hash_argument`] and ends its sessions; answered once the client answers.
pub const ROTATE: &str = "rotate";

/// Deletes everything of the client and its owner, and says what; the client does not start again.
pub const WIPE: &str = "wipe";

/// What [`ROTATE`] and [`RESTART`] exit with on a box that is suspended; it stays as it is then.
pub const EXIT_SUSPENDED: u32 = 75;

/// What a node's gate does: the actions of [`MANIFEST`], in its order.
pub fn actions() -> &'static [Action] {
    static ACTIONS: LazyLock<Vec<Action>> =
        LazyLock::new(|| gate::parse_manifest(MANIFEST).expect("a test parses the manifest"));
    &ACTIONS
}

/// A new salted hash of a password, as [`ROTATE`] takes it: the node never hears the password.
pub fn password_hash_argument(password: &SecretString) -> String {
    let hash = qbittorrent::password_hash(password);
    hash.trim_start_matches("\"@ByteArray(").trim_end_matches(")\"").replace(':', ".")
}

/// The rules by which sudo lets the gate's user start exactly what the manifest lists.
pub fn sudo_rules() -> String {
    let mut rules = String::from("# All that the gate may start as root.\n");
    for action in actions() {
        for words in action.commands.iter().flat_map(|command| &command.alternatives) {
            let Some(command) = words.strip_prefix("sudo -n ") else { continue };
            let arguments = match &action.argument {
                Argument::OneOf(arguments) => arguments.clone(),
                // The script looks at it once more: sudo's patterns cannot say more than the gate has.
                Argument::PasswordHash => vec!["*".to_owned()],
                Argument::None | Argument::Ed25519Key => vec![String::new()],
            };
            for argument in arguments {
                let command = command.replace("{}", &argument);
                writeln!(rules, "{} ALL=(root) NOPASSWD: {NODE_FOLDER}/{command}", gate::USER)
                    .expect("a string takes everything");
            }
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
        path::PathBuf,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn the_manifest_and_the_names_agree() {
        let names: Vec<_> = actions().iter().map(|action| action.name.as_str()).collect();
        for name in [STATUS, USAGE, SUSPEND, RESUME, RESTART, ROTATE, WIPE] {
            assert!(names.contains(&name), "{name}");
        }
        let action = |name: &str| actions().iter().find(|action| action.name == name).unwrap();
        for word in [SUSPEND_SERVICE, SUSPEND_EVERYTHING] {
            assert!(gate::is_valid_argument(action(SUSPEND), Some(word)));
        }
        let hash = password_hash_argument(&SecretString::from("correct horse"));
        assert!(gate::is_valid_argument(action(ROTATE), Some(&hash)));
        for wrong in ["", ".", &hash[1..], &hash.replace('.', ":"), &hash.replace('.', " "), &format!("{hash}=")] {
            assert!(!gate::is_valid_argument(action(ROTATE), Some(wrong)), "{wrong}");
        }
        // A request is `<uuid> rotate <hash>`.
        assert!(36 + 1 + ROTATE.len() + 1 + hash.len() <= gate::MOST_REQUEST_BYTES);
    }

    #[test]
    fn sudo_lets_the_gate_start_what_the_manifest_lists() {
        let expected = "\
# All that the gate may start as root.
seedbox-mgr ALL=(root) NOPASSWD: /usr/sbin/seedplane-node status
seedbox-mgr ALL=(root) NOPASSWD: /usr/sbin/seedplane-node usage
seedbox-mgr ALL=(root) NOPASSWD: /usr/sbin/seedplane-node suspend service
seedbox-mgr ALL=(root) NOPASSWD: /usr/sbin/seedplane-node suspend everything
seedbox-mgr ALL=(root) NOPASSWD: /usr/sbin/seedplane-node resume
seedbox-mgr ALL=(root) NOPASSWD: /usr/sbin/seedplane-node restart
seedbox-mgr ALL=(root) NOPASSWD: /usr/sbin/seedplane-node rotate *
seedbox-mgr ALL=(root) NOPASSWD: /usr/sbin/seedplane-node wipe
";
        assert_eq!(sudo_rules(), expected);
    }

    const OLD: &str = "[Preferences]\nWebUI\\Username=seed\nWebUI\\Password_PBKDF2=\"@ByteArray(old)\"\n";

    /// Writes down each call with what it was given, `--` after it.
    const NFT: &str = "{ echo \"$*\"; cat; echo --; } >>\"${0%/*}/calls\"";

    /// The node's script, with its folders below one of the test's and a service manager that does nothing.
    struct Node {
        folder: tempfile::TempDir,
    }

    impl Node {
        fn new(configuration: &str) -> Self {
            let node = Self { folder: tempfile::tempdir().unwrap() };
            let programs = node.path("programs");
            fs::create_dir(&programs).unwrap();
            for (name, text) in [("systemctl", "exit 0"), ("curl", "printf 403"), ("chown", "exit 0"), ("nft", NFT)] {
                fs::write(programs.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
                fs::set_permissions(programs.join(name), fs::Permissions::from_mode(0o755)).unwrap();
            }
            let root = node.path("").display().to_string();
            let script = NODE
                .replace("PATH=/usr/sbin", &format!("PATH={root}programs:/usr/sbin"))
                .replace("/srv/seedbox", &format!("{root}home"))
                .replace("/var/lib/seedplane/state", &format!("{root}state"))
                .replace("/etc/seedplane", &root);
            fs::write(node.path("node.conf"), "TORRENT_PORT='51413'\n").unwrap();
            fs::write(node.path("node.sh"), script).unwrap();
            fs::create_dir_all(node.path("home/profile/qBittorrent/config")).unwrap();
            fs::write(node.configuration(), configuration).unwrap();
            node
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().canonicalize().unwrap().join(name)
        }

        fn configuration(&self) -> PathBuf {
            self.path("home/profile/qBittorrent/config/qBittorrent.conf")
        }

        /// The exit code of a rotation, and the configuration after it. `before` is said to the shell first.
        fn rotate(&self, before: &str) -> (Option<i32>, String) {
            let status = Command::new("sh")
                .args(["-c", &format!("{before}; exec sh \"$@\" 2>/dev/null"), "sh"])
                .arg(self.path("node.sh"))
                .args([ROTATE, &password_hash_argument(&SecretString::from("correct horse"))])
                .status()
                .unwrap();
            (status.code(), fs::read_to_string(self.configuration()).unwrap())
        }
    }

    fn has_password(configuration: &str, password: &str) -> bool {
        let hashes: Vec<_> =
            configuration.lines().filter_map(|line| line.strip_prefix("WebUI\\Password_PBKDF2=")).collect();
        matches!(hashes[..], [hash] if qbittorrent::password_matches(hash, &SecretString::from(password)))
    }

    #[test]
    fn a_rotation_changes_the_password_and_nothing_else() {
        let node = Node::new(&(OLD.to_owned() + "WebUI\\Locale=de\n\n[RSS]\nlast=without an end"));
        let (code, configuration) = node.rotate(":");
        assert_eq!(code, Some(0));
        assert!(has_password(&configuration, "correct horse") && !configuration.contains("old"));
        let others: Vec<_> = configuration.lines().filter(|line| !line.contains("Password_PBKDF2")).collect();
        let expected =
            ["[Preferences]", "WebUI\\Username=seed", "WebUI\\Locale=de", "", "[RSS]", "last=without an end"];
        assert_eq!(others, expected);
        let mode = fs::metadata(node.configuration()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_rotation_follows_no_link_of_the_clients_user() {
        let plant = |link: &str| {
            let node = Node::new(OLD);
            let victim = node.path("victim");
            fs::write(&victim, "root's").unwrap();
            let link = node.path(link);
            let _ = fs::remove_file(&link);
            symlink(&victim, link).unwrap();
            (node, victim)
        };
        let (node, victim) = plant("home/profile/qBittorrent/config/qBittorrent.conf.new");
        let (code, configuration) = node.rotate(":");
        assert!(code == Some(0) && has_password(&configuration, "correct horse"), "the link is in nobody's way");
        assert_eq!(fs::read_to_string(victim).unwrap(), "root's");

        let (node, victim) = plant("home/profile/qBittorrent/config/qBittorrent.conf");
        assert_eq!(node.rotate(":"), (Some(1), "root's".to_owned()), "no other file is read or taken for it");
        assert_eq!(fs::read_to_string(victim).unwrap(), "root's");

        let node = Node::new(OLD);
        let (home, elsewhere) = (node.path("home/profile/qBittorrent"), node.path("elsewhere"));
        fs::rename(&home, &elsewhere).unwrap();
        symlink(&elsewhere, &home).unwrap();
        assert_eq!(node.rotate(":"), (Some(1), OLD.to_owned()), "nor another folder");
        assert_eq!(fs::read_dir(elsewhere.join("config")).unwrap().count(), 1, "and nothing is left there");
    }

    /// Between two calls a box that is not suspended would be closed to its owner, and found without a firewall.
    #[test]
    fn what_is_open_changes_in_one_call() {
        for (suspended, open) in [(None, true), (Some("service"), true), (Some("everything"), false)] {
            let node = Node::new(OLD);
            if let Some(suspended) = suspended {
                fs::create_dir(node.path("state")).unwrap();
                fs::write(node.path("state/suspended"), format!("{suspended}\n")).unwrap();
            }
            let mut apply = Command::new("sh");
            apply.arg(node.path("node.sh")).arg("apply").stdin(Stdio::null());
            assert!(apply.status().unwrap().success());
            let calls = fs::read_to_string(node.path("programs/calls")).unwrap();
            let opened = if open { "add element inet seedbox open { 80, 443, 51413 }\n" } else { "" };
            assert_eq!(calls, format!("-f -\nflush set inet seedbox open\n{opened}--\n"), "{suspended:?}");
        }
    }

    #[test]
    fn a_rotation_that_cannot_be_written_down_fails_and_leaves_the_file() {
        // What a process may write ends within the file, as a full disk does.
        let long = format!("{OLD}x={}\n{OLD}", "y".repeat(2000));
        let node = Node::new(&long);
        assert_eq!(node.rotate("trap '' XFSZ; ulimit -f 1"), (Some(1), long));
        let node = Node::new("[LegalNotice]\nAccepted=true\n");
        assert_eq!(node.rotate(":").0, Some(1), "there is no place for the hash");
    }
}
