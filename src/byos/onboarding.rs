//! What an owner is shown to connect a server: one line to paste, and the same in readable steps.

use seedplane_provisioning::node::gate;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    broker::gate_command,
    certificates,
    connections::{Access, Connection},
    keys,
    ssh::LOGIN,
};

/// The path at which everybody can read and fetch the installer.
pub const INSTALLER_PATH: &str = "/byos/install.sh";

/// How to connect a server, and how to undo it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Onboarding {
    /// To paste into a shell on the server, as root or as somebody who may use sudo.
    pub line: String,
    /// What the line does, step by step.
    pub steps: Vec<String>,
    /// The line that undoes it, which needs nothing from us.
    pub remove_line: String,
    /// Where the installer can be read before it is run.
    pub installer_url: String,
    /// Its SHA-256: the line runs nothing else.
    pub installer_sha256: String,
    /// Of the gate that it installs.
    pub gate_sha256: String,
    /// Of the manifest that it installs: what `GET /api/byos/manifest` shows, byte for byte.
    pub manifest_sha256: String,
    /// The only line it adds to `authorized_keys`.
    pub authorized_keys_line: String,
}

/// The only line of ours in the server's `authorized_keys`.
pub fn authorized_keys_line(connection: &Connection) -> String {
    let trusted = match connection.access {
        Access::Key => String::new(),
        Access::Certificate => format!("cert-authority,principals=\"{}\",", certificates::principal(connection.id)),
    };
    format!(
        "restrict,{trusted}command=\"{}\" {} seedplane-{}",
        gate_command(connection.id),
        connection.public_key,
        connection.id
    )
}

fn line(public_url: &str, arguments: &str) -> String {
    let (url, digest) = (format!("{public_url}{INSTALLER_PATH}"), gate::install_sha256());
    format!(
        "f=$(mktemp) && {{ curl -fsSL {url} -o \"$f\" || wget -qO \"$f\" {url}; }} && echo \"{digest}  $f\" | sha256sum -c - && \
         $(command -v sudo) sh \"$f\" {arguments}; rm -f \"$f\""
    )
}

/// How to connect the server of a connection.
pub fn of(connection: &Connection, public_url: &str) -> Onboarding {
    let (id, key) = (connection.id, keys::body(&connection.public_key));
    let authorized_keys_line = authorized_keys_line(connection);
    let certified = connection.access == Access::Certificate;
    let lets_in = if certified {
        "It lets in certificates of our authority that name this connection, each good for five minutes, and nothing else. It"
    } else {
        "It"
    };
    let steps = vec![
        format!("It fetches {public_url}{INSTALLER_PATH} and stops unless its SHA-256 is {}.", gate::install_sha256()),
        format!("It makes the user {LOGIN}: no password, not root, home /var/lib/{LOGIN}."),
        format!(
            "It writes the gate to /usr/local/lib/seedplane/gate (SHA-256 {}) and the list of what the gate runs to \
             /usr/local/lib/seedplane/manifest (SHA-256 {}). Both belong to root; {LOGIN} cannot change them.",
            gate::gate_sha256(),
            gate::manifest_sha256()
        ),
        "Where the server has sudo or doas, it allows that user to restart, and to read the log of, the services that the \
         manifest names, and nothing else. Put --without-restart right after the key to leave that out."
            .to_owned(),
        format!("{lets_in} adds one line to /var/lib/{LOGIN}/.ssh/authorized_keys: {authorized_keys_line}"),
        "It prints the fingerprints of the server's own SSH keys. Compare them with the one shown here: if they are the \
         same, nobody is between us."
            .to_owned(),
        "Everything we do is written to /var/log/seedplane-gate.log on the server.".to_owned(),
    ];
    Onboarding {
        line: line(
            public_url,
            &format!("add --connection {id} --{} {key}", if certified { "authority" } else { "key" }),
        ),
        steps,
        remove_line: line(public_url, &format!("remove --connection {id}")),
        installer_url: format!("{public_url}{INSTALLER_PATH}"),
        installer_sha256: gate::install_sha256().to_owned(),
        gate_sha256: gate::gate_sha256().to_owned(),
        manifest_sha256: gate::manifest_sha256().to_owned(),
        authorized_keys_line,
    }
}
