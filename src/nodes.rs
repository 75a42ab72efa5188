//! The nodes on machines elsewhere: the keys and tokens they are given, what they report, and the way to them.
//!
//! A provider asks for all of it through [`NodeAccess`] and holds none of it itself.

use std::{fmt::Write as _, net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::SignedDuration;
use rand::RngExt;
use russh::keys::PrivateKey;
use secrecy::{ExposeSecret, SecretString};
use seedplane_provisioning::{
    Error as ProviderError,
    node::{
        access::{Enrolment, NodeAccess, NodeAnswer, NodeReport},
        gate, image,
    },
};
use seedplane_simulators::digitalocean::Simulator;
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::{
    audit::events::{self, Cause, Event, Subject},
    byos::{
        keys,
        ssh::{Login, Session, SshError, Target},
    },
    clock::{Clock, Time},
    ids::{AttemptId, ResourceId},
    jobs::{self, Job},
    secrets::{SecretPath, SecretStore},
};

/// How long a new node's token is good.
const TOKEN_LASTS: SignedDuration = SignedDuration::from_mins(30);

/// How much longer than the gate's own limit an answer is waited for.
const GRACE: Duration = Duration::from_secs(10);

/// A login to a node, for one action.
pub struct NodeLogin {
    /// The id that stands in its `authorized_keys`.
    pub resource_id: Uuid,
    /// Where it is.
    pub address: IpAddr,
    /// The host key it reported, `ssh-ed25519 AAAA…`.
    pub host_key: String,
    /// Our key to it.
    pub key: PrivateKey,
}

/// How an action gets to a node.
#[async_trait]
pub trait NodeChannel: Send + Sync + std::fmt::Debug {
    /// Has the node do it.
    ///
    /// # Errors
    /// As [`NodeAccess::run`].
    async fn run(&self, login: NodeLogin, action: &str, argument: Option<&str>) -> Result<NodeAnswer, ProviderError>;
}

/// Over SSH, to the gate.
#[derive(Debug, Clone, Copy)]
pub struct SshChannel {
    /// The port of the nodes' sshd.
    pub port: u16,
    /// Whether addresses that are not the internet's are connected to.
    pub allow_private: bool,
}

#[async_trait]
impl NodeChannel for SshChannel {
    async fn run(&self, login: NodeLogin, action: &str, argument: Option<&str>) -> Result<NodeAnswer, ProviderError> {
        let target = Target {
            host: login.address.to_string(),
            port: self.port,
            pinned: Some(login.host_key),
            allow_private: self.allow_private,
        };
        let limit = image::actions().iter().find(|known| known.name == action).map_or(30, |known| known.seconds);
        let session = Session::open(&target, Login::Key(login.key)).await.map_err(|error| match error {
            SshError::HostKeyChanged { .. } | SshError::Refused { .. } | SshError::Address(_) => {
                ProviderError::Auth(format!("the node at {}: {error}", login.address))
            }
            other => ProviderError::transient(other),
        })?;
        let mut request = format!("{} {action}", Uuid::now_v7());
        if let Some(argument) = argument {
            let _infallible = write!(request, " {argument}");
        }
        let answer = session.run(&request, Duration::from_secs(limit.into()) + GRACE).await;
        session.close().await;
        let answer = answer.map_err(|error| ProviderError::Unknown(error.to_string()))?;
        match answer.exit_status {
            Some(gate::EXIT_REFUSED) => Err(ProviderError::Refused { why: answer.complaint.trim().to_owned() }),
            Some(gate::EXIT_TIMED_OUT) => {
                Err(ProviderError::Unknown(format!("the node did not finish '{action}' within {limit} s")))
            }
            Some(exit_code) => Ok(NodeAnswer { exit_code, output: answer.output + &answer.complaint }),
            None => Err(ProviderError::Unknown("the node did not say how it went".to_owned())),
        }
    }
}

/// To the nodes of the stand-in for DigitalOcean, which are in this process.
#[async_trait]
impl NodeChannel for Simulator {
    async fn run(&self, login: NodeLogin, action: &str, argument: Option<&str>) -> Result<NodeAnswer, ProviderError> {
        self.ask_node(login.address, action, argument)
    }
}

/// The control plane's way to its nodes.
#[derive(Debug)]
pub struct Nodes {
    /// Where what they were told and reported is.
    pub pool: PgPool,
    /// Where their keys and tokens are.
    pub secrets: Arc<dyn SecretStore>,
    /// The source of "now".
    pub clock: Clock,
    /// How they reach us, without a slash at the end.
    pub public_url: String,
    /// The domain that their names are under, if there is one.
    pub domain: Option<String>,
    /// How actions get to them.
    pub channel: Arc<dyn NodeChannel>,
}

fn path(resource_id: Uuid, what: &str) -> SecretPath {
    SecretPath::new(format!("resource/{resource_id}/node-{what}")).expect("ids and words make a secret path")
}

fn later(error: impl std::fmt::Display) -> ProviderError {
    ProviderError::transient(error)
}

fn new_token() -> SecretString {
    let bytes: [u8; 32] = rand::rng().random();
    SecretString::from(hex::encode(bytes))
}

fn digest(bytes: &[u8]) -> Vec<u8> {
    Sha256::digest(bytes).to_vec()
}

impl Nodes {
    fn enrolment(&self, resource_id: Uuid, token: SecretString, management_key: &str) -> Enrolment {
        Enrolment {
            ready_url: format!("{}/api/nodes/{resource_id}/ready", self.public_url),
            ready_token: token,
            management_key: management_key.to_owned(),
            domain: self.domain.clone(),
        }
    }
}

#[async_trait]
impl NodeAccess for Nodes {
    async fn enrol(&self, resource_id: Uuid) -> Result<Enrolment, ProviderError> {
        let token = self.secrets.get_or_put(&path(resource_id, "token"), new_token()).await.map_err(later)?;
        let key = keys::make_at(self.secrets.as_ref(), &path(resource_id, "key")).await.map_err(later)?;
        let management_key = keys::body(&key.public_key);
        let now = Time(self.clock.now());
        sqlx::query!(
            "insert into seedbox_nodes (resource_id, attempt_id, management_key, secret_ref, token_sha256, token_expires_at, created_at)
             select $1, id, $2, $3, $4, $5, $6 from provision_attempts
             where resource_id = $1 and operation = 'create' order by requested_at limit 1
             on conflict (resource_id) do nothing",
            resource_id,
            management_key,
            key.secret_ref,
            digest(token.expose_secret().as_bytes()),
            Time(now.0 + TOKEN_LASTS),
            now,
        )
        .execute(&self.pool)
        .await
        .map_err(later)?;
        Ok(self.enrolment(resource_id, token, management_key))
    }

    async fn report(&self, resource_id: Uuid) -> Result<Option<NodeReport>, ProviderError> {
        let node = sqlx::query!(
            r#"select failure, host_key, web_url, reported_at as "reported_at!: Time" from seedbox_nodes
               where resource_id = $1 and state <> 'awaited'"#,
            resource_id
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(later)?;
        Ok(node.map(|node| NodeReport {
            failure: node.failure,
            host_key: node.host_key,
            web_url: node.web_url,
            at: node.reported_at.0,
        }))
    }

    async fn run(
        &self,
        resource_id: Uuid,
        address: IpAddr,
        action: &str,
        argument: Option<&str>,
    ) -> Result<NodeAnswer, ProviderError> {
        let node = sqlx::query!("select secret_ref, host_key from seedbox_nodes where resource_id = $1", resource_id)
            .fetch_optional(&self.pool)
            .await
            .map_err(later)?;
        let (Some(secret_ref), Some(host_key)) = node.map_or((None, None), |node| (node.secret_ref, node.host_key))
        else {
            return Err(ProviderError::transient("the node has not reported its host key"));
        };
        let key = keys::private(self.secrets.as_ref(), &secret_ref).await.map_err(|error| match error {
            keys::KeyError::Secrets(error) => later(error),
            other => ProviderError::Auth(other.to_string()),
        })?;
        self.channel.run(NodeLogin { resource_id, address, host_key, key }, action, argument).await
    }

    async fn forget(&self, resource_id: Uuid) -> Result<(), ProviderError> {
        let known = sqlx::query_scalar!("select secret_ref from seedbox_nodes where resource_id = $1", resource_id)
            .fetch_optional(&self.pool)
            .await
            .map_err(later)?;
        if known.flatten().is_none() {
            return Ok(());
        }
        for what in ["token", "key"] {
            let reference = self.secrets.reference(&path(resource_id, what));
            self.secrets.destroy_reference(&reference).await.map_err(later)?;
        }
        sqlx::query!("update seedbox_nodes set secret_ref = null where resource_id = $1", resource_id)
            .execute(&self.pool)
            .await
            .map_err(later)?;
        Ok(())
    }
}

/// What a node says of itself when it is set up, or could not be.
#[derive(Debug, Clone)]
pub struct Report {
    /// Why it is not ready.
    pub failure: Option<String>,
    /// `ssh-ed25519 AAAA…`.
    pub host_key: Option<String>,
    /// Where its web interface answers.
    pub web_url: Option<String>,
    /// The fingerprint of the certificate it made itself.
    pub certificate_sha256: Option<String>,
}

/// What came of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Written down, or the same one as before.
    Yes,
    /// No node of this name has that token.
    Stranger,
    /// The token was good once.
    Expired,
    /// The node has reported something else.
    Already,
}

/// Writes down what a node reports, once, and has the box looked at again at once.
///
/// # Errors
/// Those of the database.
pub async fn hear(
    pool: &PgPool,
    resource_id: ResourceId,
    token: &str,
    raw: &[u8],
    report: &Report,
    at: Time,
) -> sqlx::Result<Heard> {
    let mut tx = pool.begin().await?;
    let node = sqlx::query!(
        r#"select attempt_id as "attempt_id: AttemptId", token_sha256, token_expires_at, state, report_sha256
           from seedbox_nodes where resource_id = $1 for update"#,
        resource_id.0
    )
    .fetch_optional(&mut *tx)
    .await?;
    // Compared with something in every case, in the same time.
    let expected = node.as_ref().map_or(vec![0; 32], |node| node.token_sha256.clone());
    let fits = bool::from(digest(token.as_bytes()).ct_eq(&expected));
    let Some(node) = node.filter(|_| fits) else { return Ok(Heard::Stranger) };
    let came = digest(raw);
    if node.state != "awaited" {
        let same = node.report_sha256.is_some_and(|known| known == came);
        return Ok(if same { Heard::Yes } else { Heard::Already });
    }
    if node.token_expires_at <= at {
        return Ok(Heard::Expired);
    }
    let state = if report.failure.is_some() { "failed" } else { "ready" };
    sqlx::query!(
        "update seedbox_nodes set state = $2, failure = $3, host_key = $4, web_url = $5, certificate_sha256 = $6,
             report_sha256 = $7, reported_at = $8
         where resource_id = $1",
        resource_id.0,
        state,
        report.failure,
        report.host_key,
        report.web_url,
        report.certificate_sha256,
        came,
        at,
    )
    .execute(&mut *tx)
    .await?;
    let event = Event {
        subject: Subject::Resource(resource_id),
        action: "resource.node_reported",
        before: None,
        after: Some(json!({
            "state": state, "failure": report.failure, "host_key": report.host_key, "web_url": report.web_url,
            "certificate_sha256": report.certificate_sha256,
        })),
    };
    events::record_in(&mut tx, at, &Cause::system(), event).await?;
    let open = sqlx::query_scalar!(
        r#"select exists (select from provision_attempts where id = $1 and status in ('requested', 'running')) as "open!""#,
        node.attempt_id.0
    )
    .fetch_one(&mut *tx)
    .await?;
    if open {
        jobs::enqueue_in(&mut tx, Job::Operate { attempt: node.attempt_id, resource: resource_id }).await?;
    }
    tx.commit().await?;
    Ok(Heard::Yes)
}

/// The name of this installation at providers that several may share.
///
/// # Errors
/// Those of the database.
pub async fn fleet(pool: &PgPool) -> sqlx::Result<String> {
    let id = sqlx::query_scalar!("select id from installation").fetch_one(pool).await?;
    Ok(id.to_string())
}
