//! The gate on a customer's own server: the script that is all our key can start there, the manifest it reads, and the script
//! that installs both.
//!
//! The three are texts, the same for every server, so that anybody can compare what the control plane shows with what lies on
//! a disk: the digests here are those of the files that [`install_script`] writes.

use std::{fmt::Write as _, sync::LazyLock};

use sha2::{Digest, Sha256};

/// The gate, as it lies on the server.
pub const GATE: &str = include_str!("gate/gate.sh");

/// The list of what the gate does, as it lies on the server and is shown to the owner.
pub const MANIFEST: &str = include_str!("gate/manifest.txt");

/// The version that `hello` names. It changes when a request or an answer takes another form.
pub const GATE_VERSION: u32 = 1;

/// Where the gate lies on a server.
pub const GATE_PATH: &str = "/usr/local/lib/seedplane/gate";

/// Where the manifest lies on a server.
pub const MANIFEST_PATH: &str = "/usr/local/lib/seedplane/manifest";

/// The gate's own record of requests on the server.
pub const LOG_PATH: &str = "/var/log/seedplane-gate.log";

/// The user that the gate runs as.
pub const USER: &str = "seedbox-mgr";

/// The most bytes that a request may have: `<request-id> <action>[ <argument>]`.
pub const MOST_REQUEST_BYTES: usize = 200;

/// What the gate exits with when it refused; nothing was run.
pub const EXIT_REFUSED: u32 = 126;

/// What the gate exits with when an action ran into its limit.
pub const EXIT_TIMED_OUT: u32 = 124;

/// What the gate exits with when the server has none of the programs that the action could use.
pub const EXIT_NOT_AVAILABLE: u32 = 69;

/// The installer with placeholders for the other two.
const TEMPLATE: &str = include_str!("gate/install.sh");

/// How the base64 form of every Ed25519 public key begins.
const ED25519_START: &str = "AAAAC3NzaC1lZDI1NTE5AAAAI";

/// The characters of an Ed25519 public key in base64.
const ED25519_LENGTH: usize = 68;

/// What an action takes after its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// Nothing.
    None,
    /// Exactly one of these words.
    OneOf(Vec<String>),
    /// The base64 body of an Ed25519 public key.
    Ed25519Key,
    /// The salt and the key of a password's hash, both in base64, with a dot between them.
    PasswordHash,
}

/// One line that an action runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The words, `{}` standing for the argument; the first whose programs the server has is run.
    pub alternatives: Vec<String>,
}

/// Something that the gate does when it is asked for it by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// Its name in a request.
    pub name: String,
    /// After how many seconds the gate ends it.
    pub seconds: u32,
    /// What it takes.
    pub argument: Argument,
    /// What it runs, in order; all are run, whether one before failed or not.
    pub commands: Vec<Command>,
    /// What the gate does itself, in words, where it runs no command.
    pub built_in: Option<String>,
}

/// Why a text is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the manifest: {what}")]
pub struct ManifestError {
    /// The line, from 1; after the last one if something is missing at the end.
    pub line: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

/// What is allowed: the actions of [`MANIFEST`], in its order.
pub fn actions() -> &'static [Action] {
    static ACTIONS: LazyLock<Vec<Action>> =
        LazyLock::new(|| parse_manifest(MANIFEST).expect("a test parses the manifest"));
    &ACTIONS
}

/// The action of that name.
pub fn action(name: &str) -> Option<&'static Action> {
    actions().iter().find(|action| action.name == name)
}

/// Whether the gate takes this argument, or none, with this action.
pub fn is_valid_argument(action: &Action, argument: Option<&str>) -> bool {
    match (&action.argument, argument) {
        (Argument::None, None) => true,
        (Argument::OneOf(words), Some(argument)) => words.iter().any(|word| word == argument),
        (Argument::Ed25519Key, Some(argument)) => is_ed25519_key(argument),
        (Argument::PasswordHash, Some(argument)) => is_password_hash(argument),
        _ => false,
    }
}

/// Whether this is the base64 body of an Ed25519 public key, as it stands in `authorized_keys` after `ssh-ed25519`.
pub fn is_ed25519_key(text: &str) -> bool {
    text.len() == ED25519_LENGTH
        && text.starts_with(ED25519_START)
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
}

/// Whether this is a password's hash as [`Argument::PasswordHash`] has it.
fn is_password_hash(text: &str) -> bool {
    let base64 = |part: &str, length: usize| {
        let body = part.strip_suffix("==").unwrap_or_default();
        body.len() + 2 == length && body.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
    };
    text.split_once('.').is_some_and(|(salt, key)| base64(salt, 24) && base64(key, 88))
}

/// Reads a manifest as the gate does.
///
/// # Errors
///
/// Names the first line that the gate could not use.
pub fn parse_manifest(text: &str) -> Result<Vec<Action>, ManifestError> {
    let mut actions: Vec<Action> = Vec::new();
    let complete =
        |action: Option<&Action>| action.is_none_or(|action| action.commands.is_empty() == action.built_in.is_some());
    let mut number = 0;
    for line in text.lines() {
        number += 1;
        let wrong = |what| ManifestError { line: number, what };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (keyword, rest) = line.split_once(' ').ok_or_else(|| wrong("a keyword without words after it"))?;
        if rest.split(' ').any(str::is_empty) {
            return Err(wrong("words are separated by one space"));
        }
        if keyword == "action" {
            if !complete(actions.last()) {
                return Err(wrong("the action before has neither commands nor something built in, or both"));
            }
            let (name, seconds) = rest.split_once(' ').ok_or_else(|| wrong("an action has a name and seconds"))?;
            if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-') {
                return Err(wrong("the name of an action is lower-case letters and hyphens"));
            }
            if actions.iter().any(|action| action.name == name) {
                return Err(wrong("a second action of this name"));
            }
            let seconds = seconds.parse().ok().filter(|seconds| (1..=3600).contains(seconds));
            actions.push(Action {
                name: name.to_owned(),
                seconds: seconds.ok_or_else(|| wrong("the seconds are a number from 1 to 3600"))?,
                argument: Argument::None,
                commands: Vec::new(),
                built_in: None,
            });
            continue;
        }
        let action = actions.last_mut().ok_or_else(|| wrong("the first line is an action"))?;
        match keyword {
            "argument" if action.argument != Argument::None || !action.commands.is_empty() => {
                return Err(wrong("an action has one line of arguments, before what it does"));
            }
            "argument" if rest == "ed25519-key" => action.argument = Argument::Ed25519Key,
            "argument" if rest == "password-hash" => action.argument = Argument::PasswordHash,
            "argument" => action.argument = Argument::OneOf(rest.split(' ').map(str::to_owned).collect()),
            "run" => action.commands.push(Command { alternatives: vec![rest.to_owned()] }),
            "or" => match action.commands.last_mut() {
                Some(command) => command.alternatives.push(rest.to_owned()),
                None => return Err(wrong("an alternative to nothing")),
            },
            "built-in" if action.built_in.is_none() => action.built_in = Some(rest.to_owned()),
            _ => return Err(wrong("an unknown keyword")),
        }
    }
    match actions.last() {
        Some(action) if complete(Some(action)) => Ok(actions),
        _ => {
            Err(ManifestError { line: number + 1, what: "the last action is missing or says nothing of what it does" })
        }
    }
}

/// The script that installs the gate and removes it: one text for every server, the connection and its key are its arguments.
pub fn install_script() -> &'static str {
    static SCRIPT: LazyLock<String> =
        LazyLock::new(|| TEMPLATE.replacen("@GATE@\n", GATE, 1).replacen("@MANIFEST@\n", MANIFEST, 1));
    &SCRIPT
}

/// The SHA-256 of a text, in lower-case hex, as `sha256sum` prints it for a file with this content.
pub fn sha256_hex(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().fold(String::with_capacity(64), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes everything");
        hex
    })
}

/// The SHA-256 of the gate, in hex.
pub fn gate_sha256() -> &'static str {
    static DIGEST: LazyLock<String> = LazyLock::new(|| sha256_hex(GATE));
    &DIGEST
}

/// The SHA-256 of the manifest, in hex.
pub fn manifest_sha256() -> &'static str {
    static DIGEST: LazyLock<String> = LazyLock::new(|| sha256_hex(MANIFEST));
    &DIGEST
}

/// The SHA-256 of [`install_script`], in hex.
pub fn install_sha256() -> &'static str {
    static DIGEST: LazyLock<String> = LazyLock::new(|| sha256_hex(install_script()));
    &DIGEST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifest_says_what_the_gate_can_do() {
        let names: Vec<_> = actions().iter().map(|action| action.name.as_str()).collect();
        let expected = [
            "hello",
            "facts",
            "disk",
            "service-status",
            "service-restart",
            "service-log",
            "client-status",
            "client-usage",
            "log",
            "key-add",
            "key-remove",
            "revoke",
        ];
        assert_eq!(names, expected);
        for action in actions() {
            let takes = action.argument != Argument::None;
            for words in action.commands.iter().flat_map(|command| &command.alternatives) {
                // The words go to a program as they are, into sudo's rules, where these mean something else, and into a log.
                let first = words.split(' ').next().unwrap();
                let privileged = ["sudo", "doas"].contains(&first);
                assert!(!privileged || !words.contains([',', ':', '=', '\\', '*', '?', '[']), "{words}");
                assert!(!words.contains(['$', '`', ';', '&', '<', '>', '\'', '"', '~']), "{words}");
                assert!(takes || !words.contains("{}"), "{words}");
            }
            assert!(action.seconds <= 60, "{}", action.name);
        }
    }

    #[test]
    fn arguments_are_those_that_are_listed() {
        let key = "AAAAC3NzaC1lZDI1NTE5AAAAINQGrvfW8wFb4qI6JCCJKRiCesZcBoZRUzVCG7NMXBAS";
        let cases = [
            ("hello", None, true),
            ("hello", Some(""), false),
            ("hello", Some("caddy"), false),
            ("service-log", Some("caddy"), true),
            ("service-log", Some("deluge-web"), true),
            ("service-log", Some("deluge"), false),
            ("service-log", Some("caddy nginx"), false),
            ("service-log", Some("caddy "), false),
            ("service-log", Some("Caddy"), false),
            ("service-log", Some("sshd"), false),
            ("service-log", Some(""), false),
            ("service-log", None, false),
            ("key-add", Some(key), true),
            ("key-add", Some(&key[1..]), false),
            ("key-add", Some("AAAAC3NzaC1lZDI1NTE5AAAAINQGrvfW8wFb4qI6JCCJKRiCesZcBoZRUzVCG7NMXBA="), false),
            ("key-add", Some("AAAAC3NzaC1lZDI1NTE5AAAAINQGrvfW8wFb4qI6JCCJKRiCesZcBoZRUzVCG7NMXBA\n"), false),
            ("key-add", Some("ed25519-key"), false),
            ("key-add", None, false),
        ];
        for (name, argument, valid) in cases {
            assert_eq!(is_valid_argument(action(name).unwrap(), argument), valid, "{name} {argument:?}");
        }
    }

    #[test]
    fn what_is_no_manifest_is_named() {
        let cases = [
            ("", 1, "missing"),
            ("# nothing\n", 2, "missing"),
            ("run id\n", 1, "the first line is an action"),
            ("action a 1\n", 2, "says nothing"),
            ("action a 1\naction b 1\nrun id\n", 2, "neither"),
            ("action a\nrun id\n", 1, "a name and seconds"),
            ("action a 0\nrun id\n", 1, "from 1 to 3600"),
            ("action a 3601\nrun id\n", 1, "from 1 to 3600"),
            ("action a x\nrun id\n", 1, "from 1 to 3600"),
            ("action A 1\nrun id\n", 1, "lower-case"),
            ("action a 1\nrun id\naction a 1\nrun id\n", 3, "second action"),
            ("action a 1\nor id\n", 2, "alternative to nothing"),
            ("action a 1\nrun id\nargument b\n", 3, "before what it does"),
            ("action a 1\nargument b\nargument c\nrun id\n", 3, "one line of arguments"),
            ("action a 1\nrun id\nbuilt-in nothing\n", 4, "says nothing"),
            ("action a 1\nrun  id\n", 2, "one space"),
            ("action a 1\nrun id \n", 2, "one space"),
            ("action a 1\nrun\n", 2, "without words"),
            ("action a 1\nexec id\n", 2, "unknown keyword"),
        ];
        for (text, line, what) in cases {
            let error = parse_manifest(text).expect_err(text);
            assert!(error.line == line && error.what.contains(what), "{text:?}: {error}");
        }
    }

    #[test]
    fn installer_carries_both_texts_unchanged() {
        let script = install_script();
        for (text, end) in [(GATE, "SEEDPLANE_GATE_ENDS_HERE"), (MANIFEST, "SEEDPLANE_MANIFEST_ENDS_HERE")] {
            assert!(text.ends_with('\n') && !text.contains(end) && !text.contains('\r') && text.is_ascii());
            assert!(script.contains(&format!("<<'{end}'\n{text}{end}\n")));
        }
        assert!(!script.contains("@GATE@") && !script.contains("@MANIFEST@") && script.is_ascii());
        assert_eq!(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn a_password_hash_is_the_same_here_and_in_the_gate() {
        let salt = "OIunKGmCD/ooh3oEhSBWuQ==";
        let key =
            format!("{}==", "ra75hpdNHKOwYDXIZXP8FwTuVrTgVgQ2Wl824l+0oM4VyvkrEPhkv5QpYfQfPF5s6eUchuCDA4qbzepw+QnwPA");
        let good = format!("{salt}.{key}");
        let cases = [
            (good.clone(), true),
            (format!("{salt}:{key}"), false),
            (format!("{salt}{key}"), false),
            (format!("{key}.{salt}"), false),
            (format!("{good}="), false),
            (format!("A{good}"), false),
            (good[1..].to_owned(), false),
            (good.replace("==.", "=A."), false),
            (good.replacen("OIun", "OI=n", 1), false),
            (good.replacen("ra75", "r=75", 1), false),
            (good.replacen("ra75", "r.75", 1), false),
            (good.replacen("ra75", "r;75", 1), false),
            (good.replacen("ra75", "r 75", 1), false),
            (good.replacen("ra75", "r*75", 1), false),
            (good.replacen("ra75", "r\n75", 1), false),
            (String::new(), false),
        ];
        let action = Action {
            name: "rotate".to_owned(),
            seconds: 1,
            argument: Argument::PasswordHash,
            commands: Vec::new(),
            built_in: None,
        };
        let start = GATE.find("is_password_hash() {").expect("the gate has a function of this name");
        let end = start + GATE[start..].find("\n}\n").expect("it ends") + 3;
        for (text, valid) in cases {
            assert_eq!(is_valid_argument(&action, Some(&text)), valid, "here: {text:?}");
            let script = format!("set -fu\n{}is_password_hash \"$1\"", &GATE[start..end]);
            let status = std::process::Command::new("sh").args(["-c", &script, "sh", &text]).status().unwrap();
            assert_eq!(status.success(), valid, "in the gate: {text:?}");
        }
        assert!(!is_valid_argument(&action, None));
        // An id, a name and a hash, with blanks between them.
        assert!(36 + 1 + "rotate".len() + 1 + good.len() <= MOST_REQUEST_BYTES);
    }
}
