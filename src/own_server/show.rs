//! What an owner is shown, for people.

use std::{
    fmt::Write as _,
    io::{IsTerminal, Write as _},
};

use serde_json::Value;

use super::client::Failure;

/// Writes to standard output. Somebody who stops reading wants no more.
pub(super) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _nobody_reads_on =
        out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
}

/// A text of somebody else's as it can stand on a terminal, which obeys some characters.
pub(super) fn plain(text: &str) -> String {
    let tame = |letter: char| if letter.is_control() && letter != '\n' && letter != '\t' { '\u{fffd}' } else { letter };
    text.chars().map(tame).collect()
}

/// What a server printed: as it came to a program, tamed on a terminal.
pub(super) fn output(text: &str) {
    let text = if std::io::stdout().is_terminal() { plain(text) } else { text.to_owned() };
    let text = text.strip_suffix('\n').unwrap_or(&text);
    if !text.is_empty() {
        say(text);
    }
}

/// What a server complained of, to standard error.
pub(super) fn complaint(text: &str) {
    let _nobody_reads = writeln!(std::io::stderr().lock(), "{}", plain(text));
}

/// Says on standard error what went wrong.
pub(super) fn failure(failure: &Failure, json: bool) {
    let text = if json {
        failure.json().to_string()
    } else {
        let answered = failure.status.map(|status| format!(", {status}")).unwrap_or_default();
        let head = format!("seedplane: {} ({}{answered})", failure.what, failure.kind);
        plain(&format!("{head}\n  left untouched: {}\n  next: {}", failure.untouched, failure.next))
    };
    let _nobody_reads = writeln!(std::io::stderr().lock(), "{text}");
}

/// A text without its quotes; a dash for what is not there.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => plain(text),
        other => other.to_string(),
    }
}

/// A time to the second, in UTC.
pub(super) fn time(value: &Value) -> String {
    value.as_str().and_then(|text| text.get(..19)).map_or_else(|| "-".to_owned(), |text| text.replace('T', " "))
}

/// One line of a list.
pub(super) fn one_line(connection: &Value) -> String {
    let mut line = format!(
        "{}  {:<9} {} ({}:{})",
        text(&connection["id"]),
        text(&connection["status"]),
        text(&connection["label"]),
        text(&connection["host"]),
        text(&connection["port"])
    );
    if !connection["last_seen_at"].is_null() {
        let _ = write!(line, ", seen {}", time(&connection["last_seen_at"]));
    }
    if let Some(count) = connection["log_differences"].as_i64().filter(|count| *count > 0) {
        let _ = write!(line, ", {count} log lines differ");
    }
    if !connection["last_error"].is_null() {
        let _ = write!(line, "\n    {}", text(&connection["last_error"]["detail"]));
    }
    line
}

/// Everything of a connection that an owner looks for.
pub(super) fn connection(connection: &Value) -> String {
    let mut lines = vec![one_line(&without_error(connection))];
    let mut add = |name: &str, value: String| {
        if value != "-" {
            lines.push(format!("  {name:<21} {value}"));
        }
    };
    add("why", text(&connection["status_reason"]));
    add("since", time(&connection["status_since"]));
    add("last error", text(&connection["last_error"]["detail"]));
    add("server's host key", text(&connection["host_key_fingerprint"]));
    add("changed host key", text(&connection["changed_host_key_fingerprint"]));
    add("our key", format!("{} ({})", text(&connection["key_fingerprint"]), text(&connection["access"])));
    add("server", text(&connection["os_name"]));
    add("its sshd", text(&connection["server_version"]));
    let latency = connection["latency_ms"].as_i64().map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms to log in"));
    add("latency", latency);
    add("looked at", time(&connection["last_probe_at"]));
    add("looked at next", time(&connection["next_probe_at"]));
    let gate = &connection["gate"];
    add(
        "gate",
        match (gate["is_agreed"].as_bool(), gate["is_current"].as_bool()) {
            (Some(true), Some(true)) => "the version that you agreed to, and the newest".to_owned(),
            (Some(true), _) => "the version that you agreed to; `own-server consent` shows a newer one".to_owned(),
            (Some(false), _) => {
                "NOT the version that you agreed to: nothing is sent. See `own-server consent`".to_owned()
            }
            (None, _) => "-".to_owned(),
        },
    );
    add("logs compared", time(&connection["log_compared_at"]));
    add("log differences", text(&connection["log_differences"]));
    if connection["rotating"] == true {
        add("our key", "is being replaced".to_owned());
    }
    add("rotation trouble", text(&connection["rotation_error"]));
    if connection["revoking"] == true {
        add("revocation", "is under way".to_owned());
    }
    if connection["status"] == "revoked" {
        add("revoked", format!("{}; {}", time(&connection["revoked_at"]), proof(connection)));
    }
    lines.join("\n")
}

fn without_error(connection: &Value) -> Value {
    let mut connection = connection.clone();
    connection["last_error"] = Value::Null;
    connection
}

/// What proves that a connection is over.
pub(super) fn proof(connection: &Value) -> String {
    let at = time(&connection["locked_out_at"]);
    match connection["revocation"].as_str() {
        Some("locked_out") => {
            format!("verified: locked out at {at} UTC, when the server refused our key; our private key is destroyed")
        }
        Some("by_owner") => format!(
            "our line was removed on the server, which refused our key, last at {at} UTC; our private key is destroyed"
        ),
        _ => "NOT verified on the server, which could not be reached. Our private key is destroyed, so nobody can log in with it; \
              remove our line on the server when you can"
            .to_owned(),
    }
}

/// How to connect a server.
pub(super) fn onboarding(connection: &Value) -> String {
    let onboarding = &connection["onboarding"];
    let mut told = format!(
        "Paste this line on {}, as root or as somebody who may use sudo:\n\n{}\n\nWhat it does, and all it does:\n",
        text(&connection["host"]),
        text(&onboarding["line"])
    );
    for (number, step) in onboarding["steps"].as_array().into_iter().flatten().enumerate() {
        let _ = writeln!(told, "  {}. {}", number + 1, text(step));
    }
    let _ = write!(
        told,
        "\nThe script can be read at {} (SHA-256 {}).\nTo undo it, without us:\n\n{}\n\n{}",
        text(&onboarding["installer_url"]),
        text(&onboarding["installer_sha256"]),
        text(&onboarding["remove_line"]),
        fingerprint(connection)
    );
    told
}

/// The host key to compare, or why there is none yet.
pub(super) fn fingerprint(connection: &Value) -> String {
    match connection["host_key_fingerprint"].as_str() {
        Some(fingerprint) => format!(
            "The server shows us this host key: {}\nThe line prints the server's own: they must be the same.",
            plain(fingerprint)
        ),
        None => format!(
            "The server's host key is not known yet: {}\n`seedplane own-server show {}` shows it once the server was reached.",
            match &connection["last_error"]["detail"] {
                Value::String(detail) => plain(detail),
                _ => "it was not reached yet.".to_owned(),
            },
            text(&connection["id"])
        ),
    }
}

/// What came of a command, in a few words.
pub(super) fn outcome(command: &Value) -> String {
    match (command["status"].as_str(), command["exit_status"].as_i64()) {
        (Some("done"), Some(status)) => format!("done, exit {status}"),
        (status, _) => status.unwrap_or("-").to_owned(),
    }
}

/// Our record beside the server's own log, oldest first.
pub(super) fn two_logs(commands: &Value, logs: &Value) -> String {
    let mut told =
        String::from("what we sent (UTC)    action                       answer         the server's own log\n");
    for command in commands.as_array().into_iter().flatten().rev() {
        let argument = command["argument"].as_str().map(|argument| format!(" {argument}")).unwrap_or_default();
        let lines: Vec<&Value> = logs["server"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|line| line["request_id"] == command["id"])
            .collect();
        let there = match (lines.first(), command["sent_at"].is_null()) {
            (Some(first), _) => {
                let outcomes: Vec<String> = lines.iter().map(|line| text(&line["outcome"])).collect();
                format!("{} {}", text(&first["at"]), outcomes.join(", "))
            }
            (None, true) => "(was not sent)".to_owned(),
            (None, false) => "(no line in what was fetched)".to_owned(),
        };
        let asked: String = plain(&format!("{}{argument}", text(&command["action"]))).chars().take(28).collect();
        let _ = writeln!(told, "{:<20}  {asked:<28} {:<14} {there}", time(&command["requested_at"]), outcome(command));
    }
    let differences: Vec<&Value> = logs["differences"].as_array().into_iter().flatten().collect();
    if logs["fetched_at"].is_null() {
        told.push_str(
            "The server's own log was not fetched yet: it is every hour, and by `own-server run <connection> log`.",
        );
    } else if differences.is_empty() {
        let _ = write!(told, "The two agree, as of {} UTC.", time(&logs["fetched_at"]));
    } else {
        let _ = write!(told, "THEY DIFFER, as of {} UTC:", time(&logs["fetched_at"]));
        for one in differences {
            let _ = write!(told, "\n  - {}", difference(one));
        }
    }
    told
}

fn difference(difference: &Value) -> String {
    let line = &difference["line"];
    match difference["kind"].as_str() {
        Some("not_ours") => format!(
            "{}: the server's log has a request that we did not send: {} {} ({}, {}). Somebody else may hold our key: revoke",
            text(&line["at"]),
            text(&line["action"]),
            text(&line["argument"]),
            text(&line["outcome"]),
            text(&line["request_id"])
        ),
        Some("other") => format!(
            "{}: we asked for '{}', and the server's log has '{} {}' ({})",
            text(&line["at"]),
            text(&difference["asked"]),
            text(&line["action"]),
            text(&line["argument"]),
            text(&line["request_id"])
        ),
        _ => format!(
            "we asked for '{}' ({}) and got an answer, and the server's log has no line of it: its log was altered",
            text(&difference["asked"]),
            text(&difference["command_id"])
        ),
    }
}
