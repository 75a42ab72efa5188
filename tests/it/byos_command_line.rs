//! An owner's command line, `seedplane own-server`: the real binary against a real server, and a real sshd on the stand-in.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use seedplane_provisioning::node::gate;
use serde_json::Value;

use crate::{
    byos::stand_in,
    support::{Person, TestApp, temporary},
    trial::said,
};

/// An owner's machine: a folder with the token, and the binary.
struct Owner {
    token_file: PathBuf,
    url: String,
}

fn token_file(token: &str, mode: u32) -> PathBuf {
    let file = temporary("owner").join("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    file
}

fn binary(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seedplane"));
    command.arg("own-server").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["SEEDPLANE_URL", "SEEDPLANE_TOKEN", "SEEDPLANE_TOKEN_FILE", "DATABASE_URL"] {
        command.env_remove(name);
    }
    command
}

impl Owner {
    fn new(test: &TestApp, person: &Person) -> Self {
        Self { token_file: token_file(&person.token, 0o600), url: test.base.clone() }
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = binary(arguments);
        command.env("SEEDPLANE_URL", &self.url).env("SEEDPLANE_TOKEN_FILE", &self.token_file).spawn().unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.start(arguments).wait_with_output().unwrap()
    }

    /// Runs it, sees that it ends so, and answers with all that it said.
    fn ends(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
        said(&output)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", said(&output)))
    }
}

/// The line to paste, of what `connect` prints; then the rest of it.
fn pasted_line(lines: &mut impl Iterator<Item = String>) -> String {
    lines.find(|line| line.starts_with("f=$(mktemp)")).expect("a line to paste")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_connects_uses_and_revokes_a_server_from_the_command_line() {
    let Some(server) = stand_in(1) else { return };
    let test = TestApp::new().await;
    let person = test.customer().await;
    let owner = Owner::new(&test, &person);
    let port = server.port().to_string();
    let id = tokio::task::block_in_place(|| {
        assert!(owner.ends(&["list"], 0).contains("no server of yours is connected"));

        let mut connecting = owner.start(&[
            "connect",
            "127.0.0.1",
            "--port",
            &port,
            "--label",
            "my box",
            "--wait",
            "--wait-seconds",
            "60",
        ]);
        let mut lines = BufReader::new(connecting.stdout.take().unwrap()).lines().map_while(Result::ok);
        let line = pasted_line(&mut lines);
        // The steps and the fingerprint are there before anything is pasted.
        let shown: Vec<String> = lines.by_ref().take_while(|line| !line.contains("Waiting until")).collect();
        let shown = shown.join("\n");
        let fingerprint = server.host_key_fingerprint().unwrap();
        assert!(shown.contains(&fingerprint), "{shown}");
        assert!(
            shown.contains("  2. It makes the user seedbox-mgr") && shown.contains("remove --connection"),
            "{shown}"
        );
        let pasted = server.run_as_root(&line).unwrap();
        assert!(pasted.status.success() && said(&pasted).contains(&fingerprint), "{}", said(&pasted));
        let rest = lines.collect::<Vec<_>>().join("\n");
        assert!(connecting.wait().unwrap().success(), "{rest}");
        assert!(rest.contains("connected") && rest.contains("Debian"), "{rest}");

        // By its label, its host or its id.
        let shown = owner.json(&["show", "my box"]);
        let id = shown["id"].as_str().unwrap().to_owned();
        assert_eq!(
            (&shown["status"], shown["host_key_fingerprint"].as_str()),
            (&"connected".into(), Some(&*fingerprint))
        );
        assert!(owner.ends(&["show", &id, "--onboarding"], 0).contains(&line));
        assert!(owner.ends(&["list"], 0).contains(&id));
        assert_eq!(owner.ends(&["manifest"], 0).trim_end(), gate::MANIFEST.trim_end());

        let disk = owner.run(&["run", "my box", "disk"]);
        assert!(disk.status.success(), "{}", said(&disk));
        assert!(String::from_utf8_lossy(&disk.stdout).starts_with("$ df -Pk\n"), "{}", said(&disk));
        // What the action ends with is what the command ends with: there is neither sudo nor doas on this server.
        let restart = owner.run(&["run", "my box", "service-restart", "nginx"]);
        let told = owner.json(&["log", "my box"]);
        let sent = told["sent"].as_array().unwrap();
        let newest = sent.iter().find(|command| command["action"] == "service-restart").unwrap();
        let status = newest["exit_status"].as_i64().unwrap();
        assert!(status != 0 && restart.status.code() == i32::try_from(status).ok(), "{status}: {}", said(&restart));
        let again = owner.run(&["command", "my box", newest["id"].as_str().unwrap()]);
        assert_eq!((again.status.code(), &again.stdout), (restart.status.code(), &restart.stdout));
        for wrong in [&["run", "my box", "shell"][..], &["run", "my box", "disk", "; id"], &["run", "my box", "revoke"]]
        {
            let refused = owner.ends(wrong, 255);
            assert!(refused.contains("bad-input, 422") && refused.contains("left untouched: "), "{refused}");
        }

        let old = shown["key_fingerprint"].as_str().unwrap();
        let rotated = owner.ends(&["rotate", "my box"], 0);
        assert!(rotated.contains(&format!("{old} is removed from the server and destroyed")), "{rotated}");
        assert_ne!(owner.json(&["show", &id])["key_fingerprint"], old);

        assert!(owner.ends(&["verify", "127.0.0.1"], 0).contains("connected"));

        // Nothing is agreed to by looking; what was read is agreed to by its digest.
        let read = owner.ends(&["consent", "my box"], 0);
        assert!(read.contains("Nothing was changed") && read.contains("action service-restart 60"), "{read}");
        let (of_gate, of_manifest) = (gate::gate_sha256(), gate::manifest_sha256());
        let agree = |manifest| owner.run(&["consent", &id, "--gate-sha256", of_gate, "--manifest-sha256", manifest]);
        assert!(read.contains(&format!("--gate-sha256 {of_gate} --manifest-sha256 {of_manifest}")), "{read}");
        assert_eq!(agree(of_gate).status.code(), Some(1));
        assert!(said(&agree(of_manifest)).contains("agreed; the server runs this version"));

        assert!(owner.ends(&["run", "my box", "log"], 0).contains(" service-restart nginx "));
        let two = owner.ends(&["log", "my box"], 0);
        assert!(two.contains("The two agree") && two.contains("begin, exit="), "{two}");
        // Its owner rotates the server's log, as the documentation says: that is no difference, and nothing is lost.
        let (log, old_log) = (gate::LOG_PATH, format!("{}.1", gate::LOG_PATH));
        let written = std::fs::read_to_string(server.path(log)).unwrap();
        let (bytes, lines) = (written.len(), written.lines().count());
        assert!((100..125).contains(&(bytes / lines)), "a line is about 110 bytes: {bytes} in {lines}");
        let rotate = format!(
            "chattr -a {log}; mv {log} {old_log} && : >{log} && chown seedbox-mgr:seedbox-mgr {log} && chmod 640 {log} \
             && {{ chattr +a {log} || true; }}"
        );
        assert!(server.run_as_root(&rotate).unwrap().status.success());
        owner.ends(&["run", "my box", "disk"], 0);
        owner.ends(&["run", "my box", "log"], 0);
        let two = owner.ends(&["log", "my box"], 0);
        assert!(two.contains("The two agree") && two.contains("(no line in what was fetched)"), "{two}");

        // Somebody uses our key behind our back.
        let forged = format!("2027-01-01T00:00:00Z {id} {} disk - begin", uuid::Uuid::new_v4());
        assert!(server.run_as_root(&format!("echo '{forged}' >>{}", gate::LOG_PATH)).unwrap().status.success());
        owner.ends(&["run", "my box", "log"], 0);
        let two = owner.ends(&["log", "my box"], 5);
        assert!(two.contains("THEY DIFFER") && two.contains("a request that we did not send: disk"), "{two}");

        server.replace_host_keys().unwrap();
        let frozen = owner.ends(&["run", "my box", "disk"], 255);
        assert!(frozen.contains("host key changed") && frozen.contains("left untouched: nothing was sent"), "{frozen}");
        while owner.json(&["show", "my box"])["changed_host_key_fingerprint"].is_null() {}
        let frozen = owner.ends(&["verify", "my box"], 1);
        assert!(frozen.contains("confirm-host-key"), "{frozen}");
        assert!(owner.ends(&["confirm-host-key", "my box", &fingerprint], 1).contains("nothing was changed"));
        let new = server.host_key_fingerprint().unwrap();
        assert!(owner.ends(&["confirm-host-key", "my box", &new], 0).contains(&new));

        let revoked = owner.ends(&["revoke", "my box"], 0);
        assert!(revoked.contains("verified: locked out at 2"), "{revoked}");
        assert!(!owner.ends(&["list"], 0).contains(&id) && owner.ends(&["list", "--all"], 0).contains(&id));
        let refused = owner.ends(&["run", &id, "disk"], 255);
        assert!(refused.contains("conflict, 409") && refused.contains("next: "), "{refused}");

        // A server that is gone: done, and said not to be proved.
        let pending = owner.json(&["connect", "127.0.0.1", "--port", &port, "--certificate"]);
        assert_eq!((&pending["status"], &pending["access"]), (&"pending".into(), &"certificate".into()));
        server.stop();
        let pending = pending["id"].as_str().unwrap();
        assert!(owner.ends(&["verify", pending], 4).contains("is sshd running there"));
        assert!(owner.ends(&["revoke", pending], 5).contains("NOT verified"));
        id
    });
    let connection = test.get(&person, &format!("/api/byos/connections/{id}")).await;
    assert_eq!(connection["revocation"], "locked_out");
}

/// Answers one request with these lines, and says what it was sent.
fn answers_once(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let read = stream.read(&mut request).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8_lossy(&request[..read]).into_owned()
    });
    (url, answering)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owners_command_line_says_what_is_wrong_and_keeps_the_token_to_itself() {
    let test = TestApp::new().await;
    let (person, stranger) = (test.customer().await, test.customer().await);
    let body = serde_json::json!({ "host": "127.0.0.1", "port": 1 });
    let connection = test.post(&person, "/api/byos/connections", body).await;
    let id = connection["id"].as_str().unwrap().to_owned();
    tokio::task::block_in_place(|| {
        let with = |url: &str, file: &Path, more: &[&str]| {
            let mut command = binary(&["list", "--url", url, "--token-file"]);
            command.arg(file).args(more).output().unwrap()
        };
        let fails = |output: &Output, code: i32, words: &[&str]| {
            assert_eq!(output.status.code(), Some(code), "{}", said(output));
            for part in words.iter().chain(&["left untouched: ", "next: "]) {
                assert!(said(output).contains(part), "'{part}' is not in: {}", said(output));
            }
            assert!(!said(output).contains(&person.token), "the token is shown");
        };
        let good = token_file(&person.token, 0o600);
        assert!(with(&test.base, &good, &[]).status.success());
        assert!(with(&format!("{}/", test.base), &token_file(&person.token, 0o400), &[]).status.success());

        fails(&with(&test.base, &token_file("sp_wrong", 0o600), &[]), 1, &["unauthorized, 401", "/api/auth/tokens"]);
        let other = Owner::new(&test, &stranger);
        for arguments in [
            &["show", &id][..],
            &["verify", &id],
            &["rotate", &id],
            &["consent", &id],
            &["log", &id],
            &["revoke", &id],
            &["confirm-host-key", &id, "SHA256:x"],
        ] {
            fails(&other.run(arguments), 1, &["no such connection, or it is not yours", "not-found, 404"]);
        }
        fails(&other.run(&["run", &id, "disk"]), 255, &["not-found, 404"]);
        fails(&other.run(&["show", "127.0.0.1"]), 2, &["0 of your connections"]);
        let problem: Value = serde_json::from_slice(&other.run(&["show", &id, "--json"]).stderr).unwrap();
        assert_eq!((&problem["type"], &problem["status"]), (&"not-found".into(), &404.into()));

        // Nobody is asked with a token that others may have read, or over a line that others can read.
        for mode in [0o644, 0o640, 0o604] {
            let open = with(&test.base, &token_file(&person.token, mode), &[]);
            fails(&open, 2, &["others on this machine may have read your token", "chmod 600"]);
        }
        fails(&with(&test.base, Path::new("/nonexistent/token"), &[]), 2, &["cannot be read"]);
        fails(&with("http://192.0.2.1:1", &good, &[]), 2, &["plain http to another machine", "--allow-plain-http"]);
        fails(&with(&format!("http://{}@127.0.0.1:1", person.token), &good, &[]), 2, &["cannot be used"]);
        fails(&binary(&["list", "--url", &test.base]).output().unwrap(), 2, &["there is no API token"]);
        fails(
            &binary(&["list"]).env("SEEDPLANE_TOKEN", &person.token).output().unwrap(),
            2,
            &["--url or SEEDPLANE_URL"],
        );
        let from_environment = binary(&["list", "--url", &test.base]).env("SEEDPLANE_TOKEN", &person.token).output();
        assert!(from_environment.unwrap().status.success());

        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        fails(&with(&format!("http://{closed}"), &good, &[]), 3, &["cannot be reached", "nothing was changed"]);
        let redirect =
            "HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let (url, answering) = answers_once(redirect);
        fails(&with(&url, &good, &[]), 3, &["sends us on to http://192.0.2.1/", "not sent there"]);
        answering.join().unwrap();
        let (url, answering) =
            answers_once("HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello");
        fails(&with(&url, &good, &[]), 3, &["is not a Seedplane"]);
        // A proxy of the environment is not given what goes to this machine.
        assert!(answering.join().unwrap().starts_with("GET /api/byos/connections "));
    });
}
