//! How a provider whose machines are elsewhere reaches the node that runs on one: what a new node is told, what it reports,
//! and what it does by name.
//!
//! Keys, tokens and connections belong to the control plane; a provider asks it for them through [`NodeAccess`].

use std::{fmt, net::IpAddr};

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::SecretString;
use uuid::Uuid;

use crate::Result;

/// What a new node is told of the control plane. It stands in the machine's user-data, where everybody on the machine may be
/// able to read it for as long as the machine lives: nothing here is of use a second time.
#[derive(Debug, Clone)]
pub struct Enrolment {
    /// Where the node reports that it is ready, by POST: `https://…/api/nodes/{resource_id}/ready`.
    pub ready_url: String,
    /// What it shows there: good once, for this attempt to make the box, and for half an hour.
    pub ready_token: SecretString,
    /// The base64 body of the Ed25519 public key that the node's gate lets in.
    pub management_key: String,
    /// The domain under which a node with the address 203.0.113.7 is `203-0-113-7.<domain>`; without one its web interface is
    /// reached by its address, with a certificate that the node makes itself.
    pub domain: Option<String>,
}

/// What a node reported of itself, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReport {
    /// Why it did not become ready; `None` if it did: its firewall is up, its proxy is up and its web interface answers.
    pub failure: Option<String>,
    /// Its SSH host key, as `ssh-ed25519 AAAA…`.
    pub host_key: Option<String>,
    /// Where its web interface answers.
    pub web_url: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// What came of an action on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAnswer {
    /// The exit code of the gate: see [`gate`](super::gate).
    pub exit_code: u32,
    /// What it printed.
    pub output: String,
}

impl NodeAnswer {
    /// The value of a line `<name> <value>` of the output.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
    }
}

/// The control plane's way to its nodes. Everything is safe to repeat.
#[async_trait]
pub trait NodeAccess: Send + Sync + fmt::Debug {
    /// What the node of this box is told: made at the first call, the same at every later one.
    ///
    /// # Errors
    /// [`Error::Transient`](crate::Error::Transient) if it cannot be made now.
    async fn enrol(&self, resource_id: Uuid) -> Result<Enrolment>;

    /// What the node of this box reported; `None` as long as it has not.
    ///
    /// # Errors
    /// [`Error::Transient`](crate::Error::Transient) if that cannot be found out now.
    async fn report(&self, resource_id: Uuid) -> Result<Option<NodeReport>>;

    /// Has the node at this address do what its manifest has under this name, over a session to the host key it reported.
    ///
    /// # Errors
    /// [`Error::Transient`](crate::Error::Transient) if it cannot be reached, [`Error::Unknown`](crate::Error::Unknown) if it was
    /// reached and no answer came, [`Error::Refused`](crate::Error::Refused) if the gate refused it,
    /// [`Error::Auth`](crate::Error::Auth) if it has another host key or does not let us in.
    async fn run(&self, resource_id: Uuid, address: IpAddr, action: &str, argument: Option<&str>)
    -> Result<NodeAnswer>;

    /// Destroys the key and the token of a node that is gone.
    ///
    /// # Errors
    /// [`Error::Transient`](crate::Error::Transient) if that cannot be done now.
    async fn forget(&self, resource_id: Uuid) -> Result<()>;
}
