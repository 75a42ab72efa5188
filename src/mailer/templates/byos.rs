//! The words of what is said about customers' own servers. These take plain values: this module knows no connection.

use serde_json::json;

use super::date;
use crate::{
    clock::Time,
    ids::{ConnectionId, UserId},
    mailer::Notice,
};

/// A connection, as far as a mail speaks of it.
#[derive(Debug, Clone, Copy)]
pub struct Server<'a> {
    /// Whose.
    pub user_id: UserId,
    /// Which connection.
    pub id: ConnectionId,
    /// What its owner calls it.
    pub label: &'a str,
    /// Where it is.
    pub host: &'a str,
}

impl Server<'_> {
    fn notice(self, kind: &'static str, key: String, subject: String, body: String) -> Notice<'static> {
        Notice {
            user_id: self.user_id,
            resource_id: None,
            kind,
            idempotency_key: key,
            facts: json!({ "connection_id": self.id }),
            subject,
            body,
        }
    }
}

/// The key was proved.
pub fn connected(server: Server<'_>, fingerprint: &str) -> Notice<'static> {
    let body = format!(
        "Your server \"{}\" ({}) is connected. Its host key is {fingerprint}: compare it with what the line you pasted \
         printed on the server.\n\n\
         What we can do there is what the gate on it lists and nothing else. You can take the connection back at any time, \
         here or by removing our line on the server; that needs nothing from us.\n",
        server.label, server.host
    );
    server.notice(
        "connection_connected",
        format!("connection_connected:{}", server.id),
        format!("{} is connected", server.label),
        body,
    )
}

/// It is not usable any more; `why` is a sentence, `version` makes each occasion one mail.
pub fn trouble(server: Server<'_>, word: &str, why: &str, since: Time) -> Notice<'static> {
    let body = format!(
        "Nothing is sent to your server \"{}\" ({}) any more.\n\nWhat happened, on {}: {why}.\n\n\
         Your page says what to do. Nothing on the server was changed.\n",
        server.label,
        server.host,
        date(since)
    );
    server.notice(
        "connection_trouble",
        format!("connection_trouble:{}:{word}:{since}", server.id),
        format!("{}: the connection needs a look", server.label),
        body,
    )
}

/// The server's log and our record differ.
pub fn log_differs(server: Server<'_>, differences: &[String], key: &str) -> Notice<'static> {
    let list: String = differences.iter().take(20).map(|difference| format!("- {difference}\n")).collect();
    let body = format!(
        "The log on your server \"{}\" ({}) and our own record of what we asked it do not agree:\n\n{list}\n\
         If you did not do this yourself, somebody else may hold our key to your server, or may have changed its log. The key \
         opens the gate alone. Replace it on your page, or revoke the connection.\n",
        server.label, server.host
    );
    server.notice(
        "connection_log_differs",
        format!("connection_log_differs:{}:{key}", server.id),
        format!("{}: its log and our record differ", server.label),
        body,
    )
}

/// The key was replaced.
pub fn rotated(server: Server<'_>, fingerprint: &str, number: i32) -> Notice<'static> {
    let body = format!(
        "Our key to your server \"{}\" ({}) was replaced. The new one is {fingerprint}; it was proved before the old one was \
         removed, and the old one is destroyed.\n",
        server.label, server.host
    );
    server.notice(
        "connection_rotated",
        format!("connection_rotated:{}:{number}", server.id),
        format!("{}: our key was replaced", server.label),
        body,
    )
}

/// It is over; `how` is a sentence.
pub fn revoked(server: Server<'_>, how: &str) -> Notice<'static> {
    let body = format!(
        "The connection to your server \"{}\" ({}) is revoked. {how}\n\n\
         Our private key to it is destroyed. Nothing else on your server was touched; the line on your page that ends in \
         \"remove\" takes away the gate and its user too.\n",
        server.label, server.host
    );
    server.notice(
        "connection_revoked",
        format!("connection_revoked:{}", server.id),
        format!("{}: the connection is revoked", server.label),
        body,
    )
}
