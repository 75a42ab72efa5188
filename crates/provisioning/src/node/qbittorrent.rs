//! qBittorrent: its configuration file and its web API. Facts measured on 4.5.2 (Debian 12) and 5.1.0 (Debian 13).

use std::{fmt, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha512;

use crate::Credentials;

/// qBittorrent's own number of rounds; it knows no other.
const PBKDF2_ROUNDS: u32 = 100_000;

/// The value of `WebUI\Password_PBKDF2`: a salted hash, which is all that is ever written to a box.
pub fn password_hash(password: &SecretString) -> String {
    let salt: [u8; 16] = rand::random();
    let mut key = [0_u8; 64];
    pbkdf2::pbkdf2_hmac::<Sha512>(password.expose_secret().as_bytes(), &salt, PBKDF2_ROUNDS, &mut key);
    format!("\"@ByteArray({}:{})\"", BASE64_STANDARD.encode(salt), BASE64_STANDARD.encode(key))
}

/// Whether a value of `WebUI\Password_PBKDF2` is that of this password.
pub fn password_matches(hash: &str, password: &SecretString) -> bool {
    let body = hash.trim().strip_prefix("\"@ByteArray(").and_then(|rest| rest.strip_suffix(")\""));
    let Some((salt, key)) = body.and_then(|body| body.split_once(':')) else { return false };
    let (Ok(salt), Ok(expected)) = (BASE64_STANDARD.decode(salt), BASE64_STANDARD.decode(key)) else { return false };
    let mut key = [0_u8; 64];
    pbkdf2::pbkdf2_hmac::<Sha512>(password.expose_secret().as_bytes(), &salt, PBKDF2_ROUNDS, &mut key);
    key[..] == expected[..]
}

/// A login as the client keeps it: of the password, the hash alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub username: String,
    /// What [`password_hash`] makes of the password.
    pub password_hash: String,
}

impl From<&Credentials> for Login {
    fn from(credentials: &Credentials) -> Self {
        Self { username: credentials.username.clone(), password_hash: password_hash(&credentials.password) }
    }
}

/// What differs between boxes in the configuration.
#[derive(Debug, Clone)]
pub struct Configuration<'a> {
    /// The folder for what is downloaded, as the client sees it.
    pub data: &'a str,
    /// The address its web interface listens on.
    pub address: &'a str,
    /// The port of its web interface.
    pub web_port: u16,
    /// The port for other peers.
    pub torrent_port: u16,
    /// How many connections to other peers it keeps at most.
    pub max_connections: u32,
    /// Whether to look for peers by DHT, peer exchange and on the local network.
    pub discovery: bool,
    /// Whether a proxy on the same machine stands before its web interface. What the client counts against an address is
    /// then counted against the one that the proxy names, or one stranger's failed logins would lock everybody out.
    pub proxied: bool,
}

/// The configuration file. It has to be written while the client is stopped: a running one overwrites it when it exits.
pub fn render(configuration: &Configuration<'_>, login: &Login) -> String {
    let Configuration { data, address, web_port, torrent_port, max_connections, discovery, proxied } = configuration;
    let proxy = match proxied {
        true => "WebUI\\ReverseProxySupportEnabled=true\nWebUI\\TrustedReverseProxiesList=127.0.0.1\n",
        false => "",
    };
    let Login { username, password_hash: hash } = login;
    format!(
        "[LegalNotice]\nAccepted=true\n\n\
         [BitTorrent]\nSession\\DefaultSavePath={data}\nSession\\Port={torrent_port}\n{MAX_CONNECTIONS}{max_connections}\n\
         Session\\DHTEnabled={discovery}\nSession\\PeXEnabled={discovery}\nSession\\LSDEnabled={discovery}\n\n\
         [Network]\nPortForwardingEnabled=false\n\n\
         [Preferences]\nWebUI\\Enabled=true\nWebUI\\Address={address}\nWebUI\\Port={web_port}\n{USERNAME}{username}\n{PASSWORD}{hash}\n\
         WebUI\\LocalHostAuth=true\nWebUI\\UseUPnP=false\nWebUI\\CSRFProtection=true\nWebUI\\ClickjackingProtection=true\n\
         WebUI\\HostHeaderValidation=true\nWebUI\\ServerDomains=\"{address};localhost\"\nWebUI\\MaxAuthenticationFailCount=20\n\
         WebUI\\BanDuration=60\nWebUI\\SessionTimeout=3600\n{proxy}"
    )
}

const MAX_CONNECTIONS: &str = "Session\\MaxConnections=";
const USERNAME: &str = "WebUI\\Username=";
const PASSWORD: &str = "WebUI\\Password_PBKDF2=";

/// The same configuration with another login. Everything else, the owner's own settings included, stays.
pub fn with_login(configuration: &str, login: &Login) -> String {
    let Login { username, password_hash: hash } = login;
    let mut lines = Vec::new();
    for line in configuration.lines().filter(|line| !line.starts_with(USERNAME) && !line.starts_with(PASSWORD)) {
        lines.push(line.to_owned());
        if line == "[Preferences]" {
            lines.push(format!("{USERNAME}{username}"));
            lines.push(format!("{PASSWORD}{hash}"));
        }
    }
    lines.join("\n") + "\n"
}

/// The same configuration with another limit of connections. Everything else stays.
pub fn with_max_connections(configuration: &str, max_connections: u32) -> String {
    let mut lines = Vec::new();
    for line in configuration.lines().filter(|line| !line.starts_with(MAX_CONNECTIONS)) {
        lines.push(line.to_owned());
        if line == "[BitTorrent]" {
            lines.push(format!("{MAX_CONNECTIONS}{max_connections}"));
        }
    }
    lines.join("\n") + "\n"
}

/// What a client has received and sent in its life, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transferred {
    /// Received.
    pub received_bytes: u64,
    /// Sent.
    pub sent_bytes: u64,
}

/// The file beside the configuration in which the client keeps what it has transferred. It writes it when it ends, and every
/// quarter of an hour.
pub const STATISTICS_FILE: &str = "qBittorrent-data.conf";

/// Reads [`STATISTICS_FILE`]; `None` if it does not say. The value is a `QVariantHash` as `QDataStream` of Qt 4.0 writes it:
/// <https://doc.qt.io/qt-6/datastreamformat.html>.
pub fn transferred(statistics: &str) -> Option<Transferred> {
    let value = statistics.lines().find_map(|line| line.strip_prefix("AllStats="))?.trim_matches('"');
    let bytes = unescape(value.strip_prefix("@Variant(")?.strip_suffix(')')?)?;
    let mut left = bytes.as_slice();
    const HASH: u32 = 28;
    let mut found = Transferred::default();
    if take_number(&mut left)? != HASH {
        return None;
    }
    for _ in 0..take_number(&mut left)?.min(16) {
        let length = take_number(&mut left)?;
        let name = take(&mut left, length.try_into().ok()?)?;
        let name: Vec<u16> = name.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
        // A signed or an unsigned whole number of 64 bits.
        if !matches!(take_number(&mut left)?, 4 | 5) {
            return None;
        }
        let count = u64::from_be_bytes(take(&mut left, 8)?.try_into().ok()?);
        match String::from_utf16_lossy(&name).as_str() {
            "AlltimeDL" => found.received_bytes = count,
            "AlltimeUL" => found.sent_bytes = count,
            _ => {}
        }
    }
    // More than anybody can move is no count.
    (found.received_bytes.max(found.sent_bytes) < 1 << 62).then_some(found)
}

fn take<'a>(left: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = left.split_at_checked(length)?;
    *left = rest;
    Some(taken)
}

fn take_number(left: &mut &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(take(left, 4)?.try_into().ok()?))
}

/// The bytes of a value in an INI file of Qt: <https://doc.qt.io/qt-6/qsettings.html#Format-enum>.
fn unescape(value: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut left = value.chars().peekable();
    while let Some(character) = left.next() {
        let plain = if character != '\\' {
            u32::from(character)
        } else {
            match left.next()? {
                'a' => 7,
                'b' => 8,
                't' => 9,
                'n' => 10,
                'v' => 11,
                'f' => 12,
                'r' => 13,
                'x' => number_in(&mut left, 16)?,
                '0' => number_in(&mut left, 8).unwrap_or(0),
                quoted @ ('"' | '\'' | '?' | '\\') => u32::from(quoted),
                _ => return None,
            }
        };
        bytes.push(u8::try_from(plain).ok()?);
    }
    Some(bytes)
}

/// The digits that come next.
fn number_in(left: &mut std::iter::Peekable<std::str::Chars<'_>>, radix: u32) -> Option<u32> {
    let mut number = None;
    while let Some(digit) = left.peek().and_then(|next| next.to_digit(radix)) {
        number = Some(number.unwrap_or(0_u32).checked_mul(radix)?.checked_add(digit)?);
        left.next();
    }
    number
}

/// Why the web API did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The login was not accepted.
    #[error("the web interface did not accept the login")]
    BadLogin,
    /// The session is not, or no longer, good.
    #[error("the web interface does not know the session")]
    NoSession,
    /// It does not answer.
    #[error("the web interface does not answer: {0}")]
    Unreachable(String),
    /// It answered something else.
    #[error("the web interface answered {0}")]
    Unexpected(String),
}

/// A session with a box's web interface.
#[derive(Clone)]
pub struct Session {
    http: reqwest::Client,
    base: String,
    cookie: SecretString,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("base", &self.base).finish_non_exhaustive()
    }
}

/// One torrent, as the client reports it.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct TorrentInfo {
    /// Its info hash, in hexadecimal.
    pub hash: String,
    /// Its name.
    pub name: String,
    /// `uploading`, `stalledUP`, `checkingUP`, ...
    pub state: String,
    /// Bytes sent to others.
    pub uploaded: u64,
}

impl Session {
    /// Logs in at `base`, such as `http://127.0.0.1:20000`.
    ///
    /// # Errors
    /// [`ApiError`]. A wrong password is answered with status 200 and `Fails.`: the body is what counts.
    pub async fn login(base: &str, credentials: &Credentials) -> Result<Self, ApiError> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(10))
            .build()
            .map_err(|error| ApiError::Unreachable(error.to_string()))?;
        let base = base.trim_end_matches('/').to_owned();
        let response = http
            .post(format!("{base}/api/v2/auth/login"))
            .header("referer", &base)
            .form(&[("username", credentials.username.as_str()), ("password", credentials.password.expose_secret())])
            .send()
            .await
            .map_err(unreachable)?;
        let cookie = response
            .headers()
            .get("set-cookie")
            .and_then(|cookie| cookie.to_str().ok()?.split(';').next().map(str::to_owned));
        let status = response.status();
        let body = response.text().await.map_err(unreachable)?;
        match cookie {
            Some(cookie) if status.is_success() && body.trim() != "Fails." => {
                Ok(Self { http, base, cookie: SecretString::from(cookie) })
            }
            _ if body.trim() == "Fails."
                || status == reqwest::StatusCode::FORBIDDEN
                || status == reqwest::StatusCode::UNAUTHORIZED =>
            {
                Err(ApiError::BadLogin)
            }
            _ => Err(ApiError::Unexpected(status.to_string())),
        }
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<String, ApiError> {
        let request = request.header("cookie", self.cookie.expose_secret()).header("referer", &self.base);
        let response = request.send().await.map_err(unreachable)?;
        match response.status() {
            status if status.is_success() => response.text().await.map_err(unreachable),
            reqwest::StatusCode::FORBIDDEN => Err(ApiError::NoSession),
            status => Err(ApiError::Unexpected(status.to_string())),
        }
    }

    /// The client's version: also the question whether the session is still good.
    ///
    /// # Errors
    /// [`ApiError::NoSession`] if it is not.
    pub async fn version(&self) -> Result<String, ApiError> {
        self.answer(self.http.get(format!("{}/api/v2/app/version", self.base))).await
    }

    /// Adds a torrent. With `save_path`, the files are looked for there, as the client sees it.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn add_torrent(&self, torrent: &[u8], save_path: Option<&str>) -> Result<(), ApiError> {
        let boundary = format!("seedplane-{:032x}", rand::random::<u128>());
        let mut body = Vec::new();
        if let Some(path) = save_path {
            body.extend(
                format!("--{boundary}\r\nContent-Disposition: form-data; name=\"savepath\"\r\n\r\n{path}\r\n").bytes(),
            );
        }
        body.extend(
            format!(
                "--{boundary}\r\nContent-Disposition: form-data; name=\"torrents\"; filename=\"a.torrent\"\r\n\
                 Content-Type: application/x-bittorrent\r\n\r\n"
            )
            .bytes(),
        );
        body.extend(torrent);
        body.extend(format!("\r\n--{boundary}--\r\n").bytes());
        let request = self
            .http
            .post(format!("{}/api/v2/torrents/add", self.base))
            .header("content-type", format!("multipart/form-data; boundary={boundary}"))
            .body(body);
        match self.answer(request).await?.trim() {
            "Fails." => Err(ApiError::Unexpected("Fails.".to_owned())),
            _ => Ok(()),
        }
    }

    /// The torrents of the box.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn torrents(&self) -> Result<Vec<TorrentInfo>, ApiError> {
        let text = self.answer(self.http.get(format!("{}/api/v2/torrents/info", self.base))).await?;
        serde_json::from_str(&text).map_err(|error| ApiError::Unexpected(error.to_string()))
    }
}

fn unreachable(error: reqwest::Error) -> ApiError {
    ApiError::Unreachable(error.without_url().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(password: &str) -> Credentials {
        Credentials { username: "seed".to_owned(), password: SecretString::from(password.to_owned()) }
    }

    /// As 4.5.2 wrote it.
    const STATISTICS: &str = r"[Stats]
AllStats=@Variant(\0\0\0\x1c\0\0\0\x2\0\0\0\x12\0\x41\0l\0l\0t\0i\0m\0\x65\0\x44\0L\0\0\0\x4\0\0\0\0\0\x1\x3x\0\0\0\x12\0\x41\0l\0l\0t\0i\0m\0\x65\0U\0L\0\0\0\x4\0\0\0\0\0\x1f\x86\x8d)
";

    #[test]
    fn the_client_says_what_it_has_transferred() {
        let expected = Some(Transferred { received_bytes: 66_424, sent_bytes: 2_066_061 });
        assert_eq!(transferred(STATISTICS), expected);
        let quoted = STATISTICS.replace("@Variant(", "\"@Variant(").replace("x8d)", "x8d)\"");
        assert_eq!(transferred(&quoted), expected);
        // Characters above 127 as newer ones write them.
        assert_eq!(transferred(&STATISTICS.replace("\\x86\\x8d", "\u{86}\u{8d}")), expected);
        let negative = STATISTICS.replace("\\x4\\0\\0\\0\\0\\0\\x1f", "\\x4\\xff\\xff\\xff\\xff\\xff\\x1f");
        for wrong in ["", "[Stats]", "AllStats=1", &STATISTICS[..90], &STATISTICS.replace("\\x1c", "\\x1b"), &negative]
        {
            assert_eq!(transferred(wrong), None, "{wrong}");
        }
    }

    proptest::proptest! {
        /// It is a file of the box's owner, who can write anything.
        #[test]
        fn whatever_stands_in_the_statistics_is_read_without_harm(bytes in ".{0,200}", at in 0..200_usize) {
            transferred(&format!("AllStats=@Variant({bytes})"));
            let mut changed = STATISTICS.to_owned();
            if changed.is_char_boundary(at.min(changed.len())) {
                changed.insert_str(at.min(STATISTICS.len()), &bytes);
            }
            transferred(&changed);
        }
    }

    #[test]
    fn the_configuration_holds_a_hash_and_never_the_password() {
        let configuration = Configuration {
            data: "/data",
            address: "127.0.0.1",
            web_port: 20_000,
            torrent_port: 20_001,
            max_connections: 500,
            discovery: false,
            proxied: false,
        };
        let text = render(&configuration, &(&credentials("correct horse battery")).into());
        assert!(!text.contains("correct horse"));
        assert!(text.contains("WebUI\\Password_PBKDF2=\"@ByteArray("));
        let changed = with_login(&(text.clone() + "WebUI\\Locale=de\n"), &(&credentials("another")).into());
        assert_eq!(changed.matches(PASSWORD).count(), 1);
        assert!(changed.contains("WebUI\\Locale=de"), "the owner's own settings stay");
        let larger = with_max_connections(&changed, 2000);
        assert!(larger.contains("[BitTorrent]\nSession\\MaxConnections=2000\n"));
        assert_eq!(larger.matches(MAX_CONNECTIONS).count(), 1);
        let without_limit = |text: &str| -> Vec<String> {
            let kept = text.lines().filter(|line| !line.starts_with(MAX_CONNECTIONS));
            kept.map(str::to_owned).collect()
        };
        assert_eq!(without_limit(&larger), without_limit(&changed), "and nothing else changes");
        assert_ne!(
            text.lines().find(|line| line.starts_with(PASSWORD)),
            changed.lines().find(|line| line.starts_with(PASSWORD))
        );
    }
}
