//! The connector: one SSH session to a customer's server, with its host key pinned and a deadline over everything.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use russh::{
    ChannelMsg, Disconnect, Names, Preferred, client,
    keys::{
        Certificate, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate,
        ssh_key::{Algorithm, PublicKey},
    },
};

use super::{
    address::{self, AddressError},
    hosts::Place,
};

/// The account on the server: locked, and not root.
pub const LOGIN: &str = "seedbox-mgr";

/// How long connecting and logging in may take.
const LOGIN_WITHIN: Duration = Duration::from_secs(12);

/// How much of a command's output is kept, in bytes; the rest is read and dropped.
const MOST_OUTPUT: usize = 192 * 1024;

/// How much is read at all, in bytes, before the command is cut off.
const MOST_READ: usize = 16 * 1024 * 1024;

/// A server and what is known of it.
#[derive(Debug, Clone)]
pub struct Target {
    /// A name or an address.
    pub host: String,
    /// The port of its sshd.
    pub port: u16,
    /// Its host key, `ssh-ed25519 AAAA...`; `None` at the first contact.
    pub pinned: Option<String>,
    /// Whether addresses that are not the internet's are connected to.
    pub allow_private: bool,
}

impl Target {
    fn timed_out(&self) -> SshError {
        SshError::TimedOut { host: self.host.clone(), port: self.port }
    }

    /// The addresses to connect to, looked up now.
    ///
    /// # Errors
    /// [`SshError`], within 12 seconds.
    pub async fn addresses(&self) -> Result<Vec<SocketAddr>, SshError> {
        let looking = address::resolve(&self.host, self.port, self.allow_private);
        Ok(tokio::time::timeout(LOGIN_WITHIN, looking).await.map_err(|_| self.timed_out())??)
    }
}

/// What was seen of a server that was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its host key, `ssh-ed25519 AAAA...`.
    pub host_key: String,
    /// `SHA256:...`.
    pub host_key_fingerprint: String,
    /// What it says of itself: `SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3`.
    pub server_version: String,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// The address is not one to connect to.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Nothing listens there.
    #[error(
        "port {port} of {host} refused the connection: is sshd running there, and on this port? On the server, try \
         `ss -ltn | grep ':{port}'`"
    )]
    PortClosed {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
    /// It cannot be reached.
    #[error("{host} cannot be reached on port {port}: {why}. Is it on, and does its firewall let us in?")]
    Unreachable {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// What the system said.
        why: String,
    },
    /// It did not answer in time.
    #[error(
        "{host} did not answer on port {port} within {} s. Is it on, and does its firewall let us in?", LOGIN_WITHIN.as_secs()
    )]
    TimedOut {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
    /// Its host key is another one than before. Nothing was sent.
    #[error(
        "the server's host key changed: it was {expected}, it is {}. Nothing was sent to it. If you installed it anew, or \
         changed its keys, say so; if not, somebody may be between us and your server", .seen.host_key_fingerprint
    )]
    HostKeyChanged {
        /// What was pinned.
        expected: String,
        /// What it showed.
        seen: Box<Seen>,
    },
    /// It does not take our key.
    #[error(
        "the server does not accept our key for the user {LOGIN}: the line was not pasted yet, or it was removed. Paste it \
         as root on the server; run it again if you did"
    )]
    Refused {
        /// The server that refused.
        seen: Box<Seen>,
    },
    /// It speaks SSH otherwise than we do.
    #[error("{host} did not answer as an SSH server does: {why}")]
    Protocol {
        /// The host.
        host: String,
        /// What went wrong.
        why: String,
    },
}

impl SshError {
    /// A word for it, stable for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Address(AddressError::NotFound { .. } | AddressError::NotAHost) => "name_not_found",
            Self::Address(AddressError::NotPublic { .. }) => "address_not_allowed",
            Self::PortClosed { .. } => "port_closed",
            Self::Unreachable { .. } => "unreachable",
            Self::TimedOut { .. } => "timed_out",
            Self::HostKeyChanged { .. } => "host_key_changed",
            Self::Refused { .. } => "key_refused",
            Self::Protocol { .. } => "not_ssh",
        }
    }

    /// What was seen of the server, where it was reached.
    pub fn seen(&self) -> Option<&Seen> {
        match self {
            Self::HostKeyChanged { seen, .. } | Self::Refused { seen } => Some(seen),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
struct Observed {
    host_key: Option<PublicKey>,
    server_version: String,
}

/// Takes the pinned key or, at the first contact, any; remembers what it saw.
#[derive(Debug)]
struct Pin {
    pinned: Option<PublicKey>,
    observed: Arc<Mutex<Observed>>,
}

impl client::Handler for Pin {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        // Certificates are not asked for, so a plain key is what comes.
        let PublicKeyOrCertificate::PublicKey { key, .. } = key else { return Ok(false) };
        let accepted = self.pinned.as_ref().is_none_or(|pinned| pinned.key_data() == key.key_data());
        if let Ok(mut observed) = self.observed.lock() {
            observed.host_key = Some(key.clone());
        }
        Ok(accepted)
    }

    async fn kex_done(
        &mut self,
        _shared_secret: Option<&[u8]>,
        _names: &Names,
        session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        let version = String::from_utf8_lossy(session.remote_sshid());
        let version = version.trim().chars().filter(|letter| !letter.is_control()).take(120).collect();
        if let Ok(mut observed) = self.observed.lock() {
            observed.server_version = version;
        }
        Ok(())
    }
}

/// What we log in with.
#[derive(Debug)]
pub enum Login {
    /// A key that the server has a line for.
    Key(PrivateKey),
    /// A certificate, and the key it is over; the session ends with it.
    Certificate {
        /// The key.
        key: PrivateKey,
        /// The certificate.
        certificate: Box<Certificate>,
        /// How long it is good from now on.
        lasts: Duration,
    },
}

/// How long the server may take to end a session that we have left.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// What a session is over: leaving it ends it on the server too.
struct Open {
    handle: client::Handle<Pin>,
    /// The same socket once more, to see when the server has closed it.
    socket: Option<tokio::net::TcpStream>,
    /// Held until the server has ended the session.
    place: Option<Place>,
}

impl Open {
    async fn leave(self) {
        let Self { handle, socket, place } = self;
        let ended = async {
            let _it_may_be_gone = handle.disconnect(Disconnect::ByApplication, "", "").await;
            let _however_it_ended = handle.await;
            if let Some(mut socket) = socket {
                let mut rest = [0; 4096];
                while tokio::io::AsyncReadExt::read(&mut socket, &mut rest).await.is_ok_and(|read| read > 0) {}
            }
        };
        let _a_server_that_lingers = tokio::time::timeout(LEAVE_WITHIN, ended).await;
        drop(place);
    }
}

/// A session that is logged in. Dropping it leaves it too, behind the caller's back.
pub struct Session {
    open: Option<Open>,
    /// The server.
    pub seen: Seen,
    /// How long connecting and logging in took.
    pub latency: Duration,
    /// When it ends, with the certificate that opened it.
    ends_at: Option<tokio::time::Instant>,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let (Some(open), Ok(runtime)) = (self.open.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(open.leave());
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its exit status; `None` if the server did not say.
    pub exit_status: Option<u32>,
    /// What it printed, at most 192 KiB of it, with what is no text replaced.
    pub output: String,
    /// What it complained of.
    pub complaint: String,
}

/// Why a command has no answer: whether it ran is not known.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It took too long.
    #[error("the server did not finish within {0} s; whether it did what was asked is not known")]
    TimedOut(u64),
    /// The connection broke.
    #[error("the connection broke: {0}; whether the server did what was asked is not known")]
    Broken(String),
}

/// The kinds of host key to ask for: the pinned one's first, so that a server with several shows the one we know.
fn preferred(pinned: Option<&PublicKey>) -> Preferred {
    let mut preferred = Preferred::default();
    if let Some(pinned) = pinned {
        let is_the_pinned = |algorithm: &Algorithm| match (algorithm, pinned.algorithm()) {
            (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
            (one, other) => *one == other,
        };
        let mut algorithms = preferred.key.to_vec();
        algorithms.sort_by_key(|algorithm| !is_the_pinned(algorithm));
        preferred.key = algorithms.into();
    }
    preferred
}

fn openssh(key: &PublicKey) -> String {
    let mut key = key.clone();
    key.set_comment("");
    key.to_openssh().map(|text| text.trim().to_owned()).unwrap_or_default()
}

impl Session {
    /// Connects to a server, checks that it is the one that was pinned, and logs in.
    ///
    /// # Errors
    /// [`SshError`], within 12 seconds whatever the other side does.
    pub async fn open(target: &Target, login: Login) -> Result<Self, SshError> {
        let addresses = target.addresses().await?;
        Self::open_at(target, &addresses, login, None).await
    }

    /// The same at addresses that were looked up, in a place that is held until the server has ended the session.
    ///
    /// # Errors
    /// [`SshError`], within 12 seconds whatever the other side does.
    pub async fn open_at(
        target: &Target,
        addresses: &[SocketAddr],
        login: Login,
        place: Option<Place>,
    ) -> Result<Self, SshError> {
        match tokio::time::timeout(LOGIN_WITHIN, Self::connect(target, addresses, login, place)).await {
            Ok(opened) => opened,
            Err(_) => Err(target.timed_out()),
        }
    }

    async fn connect(
        target: &Target,
        addresses: &[SocketAddr],
        login: Login,
        place: Option<Place>,
    ) -> Result<Self, SshError> {
        let started = Instant::now();
        let (host, port) = (target.host.clone(), target.port);
        let unusable =
            |error: std::io::Error| SshError::Unreachable { host: host.clone(), port, why: error.to_string() };
        let (stream, socket) = twice(reach(&host, port, addresses).await?).map_err(unusable)?;
        let protocol = |why: String| SshError::Protocol { host: host.clone(), why };
        let pinned = match &target.pinned {
            Some(text) => Some(PublicKey::from_openssh(text).map_err(|error| protocol(error.to_string()))?),
            None => None,
        };
        let observed = Arc::new(Mutex::new(Observed::default()));
        let config = client::Config { preferred: preferred(pinned.as_ref()), nodelay: true, ..Default::default() };
        let handler = Pin { pinned: pinned.clone(), observed: Arc::clone(&observed) };
        let connected = client::connect_stream(Arc::new(config), stream, handler).await;
        let seen = {
            let observed = observed.lock().map_err(|_| protocol("it was cut off".to_owned()))?;
            observed.host_key.as_ref().map(|key| Seen {
                host_key: openssh(key),
                host_key_fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
                server_version: observed.server_version.clone(),
            })
        };
        let mut handle = match (connected, &pinned, &seen) {
            (Ok(handle), ..) => handle,
            (Err(russh::Error::UnknownKey), Some(pinned), Some(seen)) => {
                let expected = pinned.fingerprint(HashAlg::Sha256).to_string();
                return Err(SshError::HostKeyChanged { expected, seen: Box::new(seen.clone()) });
            }
            (Err(error), ..) => return Err(protocol(error.to_string())),
        };
        let seen = seen.ok_or_else(|| protocol("it showed no host key".to_owned()))?;
        let (ends_at, answered) = match login {
            Login::Key(key) => {
                let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
                (None, handle.authenticate_publickey(LOGIN, key).await)
            }
            Login::Certificate { key, certificate, lasts } => (
                Some(tokio::time::Instant::now() + lasts),
                handle.authenticate_openssh_cert(LOGIN, Arc::new(key), *certificate).await,
            ),
        };
        match answered {
            Ok(result) if result.success() => {
                let open = Some(Open { handle, socket, place });
                Ok(Self { open, seen, latency: started.elapsed(), ends_at })
            }
            Ok(_) => {
                Open { handle, socket, place }.leave().await;
                Err(SshError::Refused { seen: Box::new(seen) })
            }
            Err(error) => Err(protocol(error.to_string())),
        }
    }

    /// Runs one command and reads its answer, with a deadline.
    ///
    /// # Errors
    /// [`CommandError`]; the command may have run.
    pub async fn run(&self, command: &str, within: Duration) -> Result<Answer, CommandError> {
        let broken = |error: russh::Error| CommandError::Broken(error.to_string());
        let left = self.ends_at.map(|at| at.saturating_duration_since(tokio::time::Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(CommandError::Broken("the certificate of this session has ended".to_owned()));
        }
        let within = left.map_or(within, |left| left.min(within));
        let work = async {
            let open = self.open.as_ref().ok_or_else(|| CommandError::Broken("it was left".to_owned()))?;
            let mut channel = open.handle.channel_open_session().await.map_err(broken)?;
            channel.exec(true, command).await.map_err(broken)?;
            let (mut output, mut complaint, mut exit_status, mut read) = (Vec::new(), Vec::new(), None, 0);
            // To the end of the channel: the exit status may come before the last of the output.
            while let Some(message) = channel.wait().await {
                let (data, into, most) = match &message {
                    ChannelMsg::Data { data } => (data, &mut output, MOST_OUTPUT),
                    ChannelMsg::ExtendedData { data, .. } => (data, &mut complaint, 4096),
                    ChannelMsg::ExitStatus { exit_status: status } => {
                        exit_status = Some(*status);
                        continue;
                    }
                    _ => continue,
                };
                read += data.len();
                if read > MOST_READ {
                    return Err(CommandError::Broken(format!("it sent more than {MOST_READ} bytes")));
                }
                into.extend_from_slice(&data[..data.len().min(most.saturating_sub(into.len()))]);
            }
            if exit_status.is_none() && output.is_empty() && complaint.is_empty() {
                return Err(CommandError::Broken("it was closed without an answer".to_owned()));
            }
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace('\0', "\u{fffd}");
            Ok(Answer { exit_status, output: text(output), complaint: text(complaint) })
        };
        tokio::time::timeout(within, work).await.unwrap_or(Err(CommandError::TimedOut(within.as_secs())))
    }

    /// Says good-bye, and waits a moment for the server to end the session.
    pub async fn close(mut self) {
        if let Some(open) = self.open.take() {
            open.leave().await;
        }
    }
}

/// A socket, and the same one once more where the system has a handle left.
fn twice(
    stream: tokio::net::TcpStream,
) -> Result<(tokio::net::TcpStream, Option<tokio::net::TcpStream>), std::io::Error> {
    let stream = stream.into_std()?;
    let again = stream.try_clone().and_then(tokio::net::TcpStream::from_std).ok();
    Ok((tokio::net::TcpStream::from_std(stream)?, again))
}

/// A connection to the first of the addresses that takes one.
async fn reach(host: &str, port: u16, addresses: &[SocketAddr]) -> Result<tokio::net::TcpStream, SshError> {
    let mut last = None;
    for address in addresses {
        match tokio::net::TcpStream::connect(address).await {
            Ok(stream) => {
                let _only_slower_without = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => last = Some(error),
        }
    }
    let host = host.to_owned();
    Err(match last {
        Some(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => SshError::PortClosed { host, port },
        other => SshError::Unreachable {
            host,
            port,
            why: other.map_or_else(|| "it has no address".to_owned(), |error| error.to_string()),
        },
    })
}
