//! The text that makes a seedbox of a fresh Debian 12 or 13: cloud-init reads it at the first start.
//!
//! It stays readable on the machine, so nothing in it is of use a second time: see [`Enrolment`].

use std::io::Write as _;

use base64::{Engine, prelude::BASE64_STANDARD};
use flate2::{Compression, GzBuilder};
use secrecy::ExposeSecret;
use uuid::Uuid;

use super::{
    access::Enrolment,
    gate, image,
    qbittorrent::{self, Configuration},
};
use crate::{Credentials, Error, Result};

/// The most bytes that it may have. Providers take 32 KiB (Hetzner) or 64 KiB (DigitalOcean).
pub const LIMIT: usize = 24 * 1024;

/// What differs between nodes.
#[derive(Debug)]
pub struct UserData<'a> {
    /// The box.
    pub resource_id: Uuid,
    /// What the node is told of the control plane.
    pub enrolment: &'a Enrolment,
    /// The login of its web interface; the text has a hash of the password.
    pub credentials: &'a Credentials,
    /// How many connections to other peers it keeps at most.
    pub max_connections: u32,
    /// The port for other peers.
    pub torrent_port: u16,
}

/// A file on the node.
struct File<'a> {
    path: &'a str,
    mode: &'a str,
    content: String,
    /// Long texts that nobody has to read here are packed.
    packed: bool,
}

fn only(what: &str, text: &str, most: usize, allowed: &[u8]) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || allowed.contains(&byte);
    if (1..=most).contains(&text.len()) && text.bytes().all(fits) {
        return Ok(());
    }
    Err(Error::Refused {
        why: format!("{what} cannot stand in user-data: it has characters that could mean something there"),
    })
}

/// The user-data of a node.
///
/// # Errors
/// [`Error::Refused`] if something has characters that could mean something else in it; nothing was made.
pub fn render(data: &UserData<'_>) -> Result<String> {
    let UserData { resource_id, enrolment, credentials, max_connections, torrent_port } = data;
    let token = enrolment.ready_token.expose_secret();
    let domain = enrolment.domain.as_deref().unwrap_or_default();
    only("the address to report to", &enrolment.ready_url, 300, b":/._-[]")?;
    only("the token", token, 200, b"_-")?;
    only("the login name", &credentials.username, 60, b"._-")?;
    if !domain.is_empty() {
        only("the domain", domain, 200, b".-")?;
    }
    if !gate::is_ed25519_key(&enrolment.management_key) {
        return Err(Error::Refused { why: "the management key is no Ed25519 public key".to_owned() });
    }

    let configuration = Configuration {
        data: "/srv/seedbox/data",
        address: "127.0.0.1",
        web_port: 8080,
        torrent_port: *torrent_port,
        max_connections: *max_connections,
        discovery: true,
        proxied: true,
    };
    let client = qbittorrent::render(&configuration, &(*credentials).into());
    let keys = format!(
        "restrict,command=\"{} {resource_id}\" ssh-ed25519 {} seedplane-{resource_id}\n",
        gate::GATE_PATH,
        enrolment.management_key
    );
    let text = |path, mode, content: &str| File { path, mode, content: content.to_owned(), packed: false };
    let packed = |path, mode, content: &str| File { path, mode, content: content.to_owned(), packed: true };
    let files = [
        text(
            "/etc/seedplane/node.env",
            "0600",
            &format!("SEEDPLANE_READY_URL='{}'\nSEEDPLANE_READY_TOKEN='{token}'\n", enrolment.ready_url),
        ),
        text(
            "/etc/seedplane/node.conf",
            "0600",
            &format!("RESOURCE_ID='{resource_id}'\nDOMAIN='{domain}'\nTORRENT_PORT='{torrent_port}'\n"),
        ),
        text("/etc/seedplane/qBittorrent.conf", "0600", &client),
        text("/etc/seedplane/authorized_keys", "0600", &keys),
        text("/etc/sudoers.d/seedplane", "0440", &image::sudo_rules()),
        text("/etc/ssh/sshd_config.d/10-seedplane.conf", "0600", SSHD),
        text("/etc/fail2ban/jail.d/seedplane.local", "0644", FAIL2BAN),
        text("/etc/apt/apt.conf.d/52seedplane-upgrades", "0644", UPGRADES),
        text("/etc/systemd/system/seedplane-state.service", "0644", STATE_UNIT),
        packed("/etc/systemd/system/seedbox.service", "0644", image::UNIT),
        packed("/etc/nftables.conf", "0755", image::FIREWALL),
        text("/etc/systemd/system/nftables.service.d/seedplane.conf", "0644", FIREWALL_UNIT),
        packed(gate::GATE_PATH, "0755", gate::GATE),
        packed(gate::MANIFEST_PATH, "0644", image::MANIFEST),
        // Anybody may read it; the gate does not start what its own user could not.
        packed("/usr/sbin/seedplane-node", "0755", image::NODE),
        packed("/usr/local/lib/seedplane/install", "0700", image::INSTALL),
        packed("/usr/local/lib/seedplane/ready", "0700", image::READY),
    ];
    let written: String = files.iter().map(write).collect();
    let text = image::USER_DATA.replace("@NAME@", &format!("seedbox-{resource_id}")).replace("@FILES@\n", &written);
    if text.len() > LIMIT {
        return Err(Error::Refused { why: format!("the user-data has {} bytes, more than {LIMIT}", text.len()) });
    }
    Ok(text)
}

/// A file as cloud-init's `write_files` has it.
fn write(file: &File<'_>) -> String {
    let File { path, mode, content, packed } = file;
    let mut text = format!("  - path: {path}\n    permissions: \"{mode}\"\n");
    if *packed {
        // Always the same bytes for the same content.
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        let done = gzip.write_all(content.as_bytes()).and_then(|()| gzip.finish());
        let body = BASE64_STANDARD.encode(done.expect("memory takes everything"));
        return text + &format!("    encoding: gz+b64\n    content: {body}\n");
    }
    text += "    content: |\n";
    for line in content.lines() {
        let indent = if line.is_empty() { "" } else { "      " };
        text += &format!("{indent}{line}\n");
    }
    text
}

/// Nobody but the gate's user, with a key, to the gate. Who opens connections without end takes the places of nobody else.
const SSHD: &str = "\
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowUsers seedbox-mgr
AllowTcpForwarding no
AllowAgentForwarding no
X11Forwarding no
PermitTunnel no
PermitUserEnvironment no
MaxAuthTries 3
LoginGraceTime 30
MaxStartups 60:30:120
PerSourceMaxStartups 5
";

const FAIL2BAN: &str = "\
[DEFAULT]
backend = systemd
banaction = nftables-multiport
[sshd]
enabled = true
maxretry = 6
bantime = 1h
";

const UPGRADES: &str = "\
APT::Periodic::Update-Package-Lists \"1\";
APT::Periodic::Unattended-Upgrade \"1\";
Unattended-Upgrade::Automatic-Reboot \"true\";
Unattended-Upgrade::Automatic-Reboot-Time \"04:30\";
";

/// The firewall is loaded closed, and then opened for what is not suspended: by its own unit, also where [`STATE_UNIT`] is not
/// active.
const FIREWALL_UNIT: &str = "\
[Service]
ExecStartPost=-/usr/sbin/seedplane-node apply
ExecReload=-/usr/sbin/seedplane-node apply
";

/// The same once more before anything listens: the firewall's unit may come up before the disk that holds the state.
const STATE_UNIT: &str = "\
[Unit]
Description=Closes what is suspended
After=nftables.service
Before=caddy.service seedbox.service
PartOf=nftables.service
ReloadPropagatedFrom=nftables.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/seedplane-node apply
ExecReload=/usr/sbin/seedplane-node apply
[Install]
WantedBy=multi-user.target
";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::SecretString;

    use super::*;

    fn enrolment() -> Enrolment {
        Enrolment {
            ready_url: "https://panel.example.net/api/nodes/0199f000-0000-7000-8000-000000000001/ready".to_owned(),
            ready_token: SecretString::from("ab".repeat(32)),
            management_key: "AAAAC3NzaC1lZDI1NTE5AAAAINQGrvfW8wFb4qI6JCCJKRiCesZcBoZRUzVCG7NMXBAS".to_owned(),
            domain: Some("boxes.example.net".to_owned()),
        }
    }

    fn render_with(enrolment: &Enrolment, username: &str) -> Result<String> {
        let credentials =
            Credentials { username: username.to_owned(), password: SecretString::from("correct horse battery staple") };
        render(&UserData {
            resource_id: Uuid::from_u128(1),
            enrolment,
            credentials: &credentials,
            max_connections: 500,
            torrent_port: 51_413,
        })
    }

    #[test]
    fn it_is_short_and_holds_no_password() {
        let text = render_with(&enrolment(), "seed").unwrap();
        assert!(text.starts_with("#cloud-config\n") && text.is_ascii() && !text.contains("correct horse"));
        assert!(!text.contains('@') || !text.contains("@FILES@"), "every placeholder is filled in");
        assert!(text.len() < LIMIT, "{} bytes", text.len());
        for line in [
            "      SEEDPLANE_READY_TOKEN='abab",
            "      WebUI\\ReverseProxySupportEnabled=true",
            "      WebUI\\Username=seed",
        ] {
            assert!(text.contains(line), "{line}");
        }
    }

    /// Words as they come, mixed with characters that mean something to YAML, to a shell or to both.
    fn value() -> impl Strategy<Value = String> {
        prop_oneof![
            3 => "[a-zA-Z0-9._-]{1,20}",
            1 => "[a-z0-9:/._\\[\\]-]{1,30}",
            1 => "[a-z]{0,5}['\"\\\\$`;&|<>(){}#!*?~%@\n\r\t ]{1,3}[a-z:]{0,5}",
            1 => "\\PC{0,20}",
        ]
    }

    proptest! {
        /// Whatever is in the values: it is refused, or the text is that of other values line for line, save for the lines
        /// that hold them, which hold them whole and alone.
        #[test]
        fn no_value_breaks_out(url in value(), token in value(), name in value(), domain in value()) {
            let told = Enrolment {
                ready_url: url.clone(),
                ready_token: SecretString::from(token.clone()),
                domain: Some(domain.clone()),
                ..enrolment()
            };
            let Ok(text) = render_with(&told, &name) else { return Ok(()) };
            let usual = render_with(&enrolment(), "seed").unwrap();
            prop_assert_eq!(text.lines().count(), usual.lines().count());
            let expected = [
                format!("      SEEDPLANE_READY_URL='{url}'"),
                format!("      SEEDPLANE_READY_TOKEN='{token}'"),
                format!("      DOMAIN='{domain}'"),
                format!("      WebUI\\Username={name}"),
            ];
            let harmless = |value: &str| !value.contains(['\'', '"', '\\', '$', '`', '\n', '\r', ' ', ';', '#']);
            prop_assert!([&url, &token, &domain, &name].iter().all(|value| harmless(value)));
            for (line, usual) in text.lines().zip(usual.lines()) {
                let salted = line.starts_with("      WebUI\\Password_PBKDF2=\"@ByteArray(");
                prop_assert!(line == usual || salted || expected.iter().any(|expected| expected == line), "{}", line);
            }
            for line in expected {
                prop_assert_eq!(text.lines().filter(|found| *found == line).count(), 1, "{}", line);
            }
        }
    }

    #[test]
    fn what_could_mean_something_else_is_refused() {
        for value in ["", "a'b", "a\nb", "a b", "a\"b", "a$b", "a`b", "a\\b", "a;b", "a#b", "ä", "a\0b"] {
            let told = |change: fn(&mut Enrolment, String)| {
                let mut enrolment = enrolment();
                change(&mut enrolment, value.to_owned());
                render_with(&enrolment, "seed")
            };
            assert!(told(|to, value| to.ready_url = value).is_err(), "url {value:?}");
            assert!(told(|to, value| to.ready_token = SecretString::from(value)).is_err(), "token {value:?}");
            assert!(told(|to, value| to.management_key = value).is_err(), "key {value:?}");
            assert!(value.is_empty() || told(|to, value| to.domain = Some(value)).is_err(), "domain {value:?}");
            assert!(render_with(&enrolment(), value).is_err(), "name {value:?}");
        }
    }
}
