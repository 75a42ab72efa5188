//! Runs named actions of the gate on customers' servers, each written down before it is sent. Together with the workers,
//! the only thing that reaches a customer's server.

use std::{net::SocketAddr, time::Duration};

use jiff::Timestamp;
use russh::keys::PrivateKey;
use seedplane_provisioning::node::gate;
use serde_json::json;

use super::{
    certificates,
    commands::{self, CommandStatus, Finished},
    connections::{self, Access, Connection},
    hosts::{HostError, Place, Purpose},
    keys,
    ssh::{Answer, CommandError, Login, Session, SshError, Target},
};
use crate::{
    app::App,
    audit::events::Cause,
    ids::{CommandId, ConnectionId},
    secrets,
};

/// How much longer than the gate's own limit an answer is waited for.
const MARGIN: Duration = Duration::from_secs(10);

/// The exit status with which the gate refuses.
pub const REFUSED: u32 = 126;

/// Why nothing could be asked of a server, or the answer was lost.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// There is no session.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The answer was lost.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// What answers is not the gate.
    #[error(
        "what the server runs for our key is not the gate, so nothing is asked of it (it answered: {said}). Paste the line \
         again as root on the server; if you had put our key into authorized_keys by hand, take it out"
    )]
    NotTheGate {
        /// The beginning of what it said.
        said: String,
    },
    /// The gate refused.
    #[error("the gate on the server refused: {0}")]
    Refused(String),
    /// The action did not succeed.
    #[error("the gate's '{action}' ended with status {status}: {said}")]
    Failed {
        /// Which action.
        action: &'static str,
        /// Its exit status.
        status: u32,
        /// What it said.
        said: String,
    },
    /// The server has as many sessions of ours as it gets; nothing was asked of it.
    #[error("as many sessions as a server gets from us at once are open to it already; nothing was sent")]
    Busy,
    /// There is no private key to log in with.
    #[error(transparent)]
    Key(#[from] keys::KeyError),
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
}

impl BrokerError {
    /// A word for it, stable for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ssh(error) => error.kind(),
            Self::Command(CommandError::TimedOut(_)) => "timed_out",
            Self::Command(CommandError::Broken(_)) => "connection_broke",
            Self::NotTheGate { .. } => "not_restricted",
            Self::Refused(_) => "gate_refused",
            Self::Failed { .. } => "action_failed",
            Self::Busy => "busy",
            Self::Key(_) => "no_private_key",
            Self::Database(_) => "database_failed",
        }
    }

    /// Whether it is about this installation and not about the server.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Busy | Self::Database(_) | Self::Key(keys::KeyError::Secrets(_)))
    }
}

impl From<HostError> for BrokerError {
    fn from(error: HostError) -> Self {
        match error {
            HostError::Busy => Self::Busy,
            HostError::Database(error) => Self::Database(error),
        }
    }
}

impl From<secrets::Error> for BrokerError {
    fn from(error: secrets::Error) -> Self {
        Self::Key(error.into())
    }
}

/// What the gate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Of the gate's file on the server.
    pub gate_sha256: String,
    /// Of the manifest's.
    pub manifest_sha256: String,
}

fn read_hello(output: &str) -> Option<Hello> {
    let mut lines = output.lines();
    if lines.next()?.trim_end() != "seedplane-gate 1" {
        return None;
    }
    let mut digest = |name: &str| {
        let digest = lines.next()?.strip_prefix(name)?.trim().to_owned();
        (digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(digest)
    };
    Some(Hello { gate_sha256: digest("gate ")?, manifest_sha256: digest("manifest ")? })
}

/// A text's beginning, on one line.
fn beginning(text: &str) -> String {
    let line: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).take(160).collect();
    line.trim().to_owned()
}

/// A certificate for one login, written down before it is used.
async fn certify(app: &App, connection: &Connection, authority: &PrivateKey) -> Result<Login, BrokerError> {
    // The server holds it against its own clock, and not against that of a trial.
    let now = Timestamp::now();
    let source = app.byos_source_address.as_deref();
    let issued = certificates::issue(authority, connection.id, &gate_command(connection.id), source, now)?;
    let mut database = app.pool.acquire().await?;
    let after = json!({
        "serial": issued.serial.to_string(), "principal": certificates::principal(connection.id),
        "valid_until": issued.valid_until.to_string(), "source_address": source,
    });
    let action = "connection.certificate_issued";
    connections::record_in(&mut database, connection, action, after, app.now(), &Cause::system()).await?;
    let lasts = Duration::try_from(issued.valid_until.duration_since(now)).unwrap_or_default();
    Ok(Login::Certificate { key: issued.key, certificate: Box::new(issued.certificate), lasts })
}

/// What sshd starts for a connection, whatever is asked: the same words in our line and in our certificates.
pub fn gate_command(connection: ConnectionId) -> String {
    format!("{} {connection}", gate::GATE_PATH)
}

/// A place for one session at a connection's server.
#[derive(Debug)]
pub struct Way {
    addresses: Vec<SocketAddr>,
    place: Place,
}

fn target(app: &App, connection: &Connection) -> Target {
    Target {
        host: connection.host.clone(),
        port: connection.ssh_port(),
        pinned: connection.host_key.clone(),
        allow_private: app.allow_private_servers,
    }
}

impl Way {
    /// Looks the server up and takes a place there.
    ///
    /// # Errors
    /// [`BrokerError`]; [`BrokerError::Busy`] where there is none.
    pub async fn find(app: &App, connection: &Connection, purpose: Purpose) -> Result<Self, BrokerError> {
        let addresses = target(app, connection).addresses().await?;
        let place = app.hosts.enter(&addresses, purpose).await?;
        Ok(Self { addresses, place })
    }
}

/// A session to the gate on one server.
pub struct Line<'a> {
    app: &'a App,
    connection: &'a Connection,
    /// The session below.
    pub session: Session,
}

impl std::fmt::Debug for Line<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("session", &self.session).finish_non_exhaustive()
    }
}

impl<'a> Line<'a> {
    /// Logs in with the key behind `secret_ref`, for something that was asked for.
    ///
    /// # Errors
    /// [`BrokerError`]; nothing was asked of the server.
    pub async fn open(app: &'a App, connection: &'a Connection, secret_ref: &str) -> Result<Self, BrokerError> {
        let way = Way::find(app, connection, Purpose::Asked).await?;
        Self::open_on(way, app, connection, secret_ref).await
    }

    /// The same in a place that was taken.
    ///
    /// # Errors
    /// [`BrokerError`]; nothing was asked of the server.
    pub async fn open_on(
        way: Way,
        app: &'a App,
        connection: &'a Connection,
        secret_ref: &str,
    ) -> Result<Self, BrokerError> {
        let key = keys::private(app.secrets.as_ref(), secret_ref).await?;
        let login = match connection.access {
            Access::Key => Login::Key(key),
            Access::Certificate => certify(app, connection, &key).await?,
        };
        let target = target(app, connection);
        let session = Session::open_at(&target, &way.addresses, login, Some(way.place)).await?;
        Ok(Self { app, connection, session })
    }

    /// Sends a command that is written down as sent already, and writes what came of it.
    ///
    /// # Errors
    /// [`BrokerError`]; whether the server did it is not known after some, and written so.
    pub async fn send(&self, id: CommandId, action: &str, argument: Option<&str>) -> Result<Answer, BrokerError> {
        let answered = self.exchange(id, action, argument).await;
        self.finish(id, &answered).await?;
        Ok(answered?)
    }

    /// Sends a command that is written down as sent already. What came of it is for [`Self::finish`] to write.
    ///
    /// # Errors
    /// [`CommandError`]; whether the server did it is not known.
    pub async fn exchange(&self, id: CommandId, action: &str, argument: Option<&str>) -> Result<Answer, CommandError> {
        let seconds = gate::actions().iter().find(|known| known.name == action).map_or(10, |known| known.seconds);
        let argument = argument.map(|argument| format!(" {argument}")).unwrap_or_default();
        let within = Duration::from_secs(u64::from(seconds)) + MARGIN;
        self.session.run(&format!("{id} {action}{argument}"), within).await
    }

    /// Writes what came of a command.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn finish(&self, id: CommandId, answered: &Result<Answer, CommandError>) -> sqlx::Result<()> {
        let why = answered.as_ref().err().map(ToString::to_string);
        let how = match answered {
            Ok(answer) => {
                let complaint = answer.complaint.trim();
                let refused = answer.exit_status == Some(REFUSED);
                Finished {
                    status: if refused { CommandStatus::Refused } else { CommandStatus::Done },
                    exit_status: answer.exit_status.and_then(|status| i32::try_from(status).ok()),
                    output: Some(&answer.output),
                    error: (!complaint.is_empty()).then_some(complaint),
                }
            }
            Err(_) => {
                Finished { status: CommandStatus::Failed, exit_status: None, output: None, error: why.as_deref() }
            }
        };
        commands::finish(&self.app.pool, id, how, self.app.now()).await
    }

    /// Writes down and sends a command of our own.
    async fn ask(&self, action: &'static str, argument: Option<&str>) -> Result<Answer, BrokerError> {
        let id = CommandId::new();
        commands::sending(&self.app.pool, id, self.connection.id, action, argument, self.app.now()).await?;
        self.send(id, action, argument).await
    }

    /// Like [`Self::ask`], where only success will do.
    async fn must(&self, action: &'static str, argument: Option<&str>) -> Result<Answer, BrokerError> {
        let answer = self.ask(action, argument).await?;
        match answer.exit_status {
            Some(0) => Ok(answer),
            Some(REFUSED) => Err(BrokerError::Refused(beginning(&answer.complaint))),
            status => Err(BrokerError::Failed {
                action,
                status: status.unwrap_or(255),
                said: beginning(&format!("{} {}", answer.complaint, answer.output)),
            }),
        }
    }

    /// Asks the gate what it is: also the proof that our key leads to it and not to a shell.
    ///
    /// # Errors
    /// [`BrokerError::NotTheGate`] where something else answers.
    pub async fn hello(&self) -> Result<Hello, BrokerError> {
        let answer = self.ask("hello", None).await?;
        let said = || beginning(&format!("{} {}", answer.output, answer.complaint));
        match read_hello(&answer.output) {
            Some(hello) if answer.exit_status == Some(0) => Ok(hello),
            _ if answer.exit_status == Some(REFUSED) && answer.complaint.starts_with("seedplane-gate: ") => {
                Err(BrokerError::Refused(beginning(&answer.complaint)))
            }
            _ => Err(BrokerError::NotTheGate { said: said() }),
        }
    }

    /// The facts of the machine.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn facts(&self) -> Result<String, BrokerError> {
        Ok(self.ask("facts", None).await?.output)
    }

    /// The newest lines of the server's own log of this connection.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn log(&self) -> Result<String, BrokerError> {
        Ok(self.must("log", None).await?.output)
    }

    /// Adds a key for this connection beside the present one.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn add_key(&self, public_key: &str) -> Result<(), BrokerError> {
        self.must("key-add", Some(keys::body(public_key))).await.map(drop)
    }

    /// Removes a key of this connection; the last one is not removed so.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn remove_key(&self, public_key: &str) -> Result<(), BrokerError> {
        self.must("key-remove", Some(keys::body(public_key))).await.map(drop)
    }

    /// Removes every key of this connection.
    ///
    /// # Errors
    /// [`BrokerError`].
    pub async fn revoke(&self) -> Result<(), BrokerError> {
        self.must("revoke", None).await.map(drop)
    }

    /// Says good-bye.
    pub async fn close(self) {
        self.session.close().await;
    }
}

/// The name of the operating system among the facts of a machine.
pub fn os_name(facts: &str) -> Option<String> {
    let line = facts.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    let name = beginning(line.trim().trim_matches('"'));
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_gate_says_hello_as_the_gate_does() {
        let digest = "a1".repeat(32);
        let good = format!("seedplane-gate 1\ngate {digest}\nmanifest {digest}\n");
        assert_eq!(read_hello(&good), Some(Hello { gate_sha256: digest.clone(), manifest_sha256: digest.clone() }));
        for bad in [
            String::new(),
            "sh: 1: 0193: not found".to_owned(),
            format!("seedplane-gate 2\ngate {digest}\nmanifest {digest}\n"),
            format!("seedplane-gate 1\ngate {digest}\n"),
            format!("seedplane-gate 1\ngate {}\nmanifest {digest}\n", &digest[1..]),
            format!("seedplane-gate 1\nmanifest {digest}\ngate {digest}\n"),
        ] {
            assert_eq!(read_hello(&bad), None, "{bad}");
        }
    }

    #[test]
    fn the_name_of_the_system_is_read_from_the_facts() {
        let facts =
            "$ uname -srm\nLinux 6.1 x86_64\n$ cat /etc/os-release\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(os_name(facts).as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
        assert_eq!(os_name("PRETTY_NAME=\"\"\n"), None);
        assert_eq!(os_name(""), None);
    }
}
