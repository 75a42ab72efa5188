//! Settings, read once: flags, then the environment, then one TOML file, then the defaults. Unknown names are refused, and
//! everything that is wrong is said at once.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret, SecretString};
use seedplane_provisioning::digitalocean;

use crate::{accounts::issuers, brand::Brand, mailer::SmtpMailer, secrets::vault};

mod brand;

/// The names of the settings, `SEEDPLANE_LISTEN` as an environment variable and `listen` in the file; secrets have no flag,
/// because a process's arguments can be read by everybody on the machine.
const NAMES: &[(&str, &str)] = &[
    ("SEEDPLANE_LISTEN", "listen"),
    ("SEEDPLANE_METRICS_LISTEN", "metrics-listen"),
    ("SEEDPLANE_PUBLIC_URL", "public-url"),
    ("SEEDPLANE_DATA_DIR", "data-dir"),
    ("SEEDPLANE_POSTGRES_BIN", "postgres-bin"),
    ("SEEDPLANE_PRODUCTION", "production"),
    ("SEEDPLANE_TWO_PERSON_RULE", "two-person-rule"),
    ("SEEDPLANE_BYOS_ALLOW_PRIVATE", "byos-allow-private"),
    ("SEEDPLANE_BYOS_SOURCE_ADDRESS", "byos-source-address"),
    ("SEEDPLANE_NODE_DOMAIN", "node-domain"),
    ("SEEDPLANE_JWT_ISSUER", "jwt-issuer"),
    ("SEEDPLANE_JWT_AUDIENCE", "jwt-audience"),
    ("SEEDPLANE_JWT_JWKS_URL", "jwt-jwks-url"),
    ("SEEDPLANE_JWT_SIGN_IN_URL", "jwt-sign-in-url"),
    ("SEEDPLANE_BRAND_NAME", "brand-name"),
    ("SEEDPLANE_BRAND_COLOUR", "brand-colour"),
    ("SEEDPLANE_BRAND_LOGO", "brand-logo"),
    ("SEEDPLANE_CONTACT_EMAIL", "contact-email"),
    ("SEEDPLANE_LEGAL_ENTITY", "legal-entity"),
    ("SEEDPLANE_DMCA_AGENT", "dmca-agent"),
    ("SEEDPLANE_TERMS_FILE", "terms-file"),
    ("SEEDPLANE_PRIVACY_FILE", "privacy-file"),
    ("SEEDPLANE_SANDBOX_DROPLETS", "sandbox-droplets"),
    ("DATABASE_URL", "database-url"),
    ("COINPAYPORTAL_API_KEY", "coinpayportal-api-key"),
    ("COINPAYPORTAL_BUSINESS_ID", "coinpayportal-business-id"),
    ("COINPAYPORTAL_WEBHOOK_SECRET", "coinpayportal-webhook-secret"),
    ("COINPAYPORTAL_API_URL", "coinpayportal-api-url"),
    ("SMTP_URL", "smtp-url"),
    ("MAIL_FROM", "mail-from"),
    ("VAULT_ADDR", "vault-addr"),
    ("VAULT_TOKEN", "vault-token"),
    ("VAULT_ROLE_ID", "vault-role-id"),
    ("VAULT_SECRET_ID", "vault-secret-id"),
    ("VAULT_MOUNT", "vault-mount"),
    ("VAULT_NAMESPACE", "vault-namespace"),
    ("DIGITALOCEAN_TOKEN", "digitalocean-token"),
    ("DIGITALOCEAN_API_URL", "digitalocean-api-url"),
    ("DIGITALOCEAN_IMAGE", "digitalocean-image"),
];

/// What stands in examples where a secret should.
const PLACEHOLDERS: &[&str] =
    &["changeme", "change-me", "change_me", "example", "placeholder", "your", "todo", "secret_here", "xxxx", "..."];

/// Environment variables of ours that are not settings; the last three are for `seedplane own-server`.
const NOT_SETTINGS: &[&str] = &[
    "SEEDPLANE_CONFIG",
    "SEEDPLANE_LOG",
    "SEEDPLANE_LOG_FORMAT",
    "SEEDPLANE_URL",
    "SEEDPLANE_TOKEN",
    "SEEDPLANE_TOKEN_FILE",
];

/// Access to CoinPayPortal.
#[derive(Debug, Clone)]
pub struct CoinPayPortalSettings {
    /// `cp_live_...`.
    pub api_key: SecretString,
    /// Our business there.
    pub business_id: uuid::Uuid,
    /// `whsecret_...`.
    pub webhook_secret: SecretString,
    /// `https://coinpayportal.com/api` unless set otherwise.
    pub api_url: String,
}

/// How mail goes out.
#[derive(Debug, Clone)]
pub struct SmtpSettings {
    /// `smtps://user:password@host`.
    pub url: SecretString,
    /// The sender's address.
    pub from: String,
}

/// Access to DigitalOcean.
#[derive(Debug, Clone)]
pub struct DigitalOceanSettings {
    /// `dop_v1_...`, with the scopes that `docs/providers.md` lists.
    pub token: SecretString,
    /// `https://api.digitalocean.com` unless set otherwise.
    pub api_url: String,
    /// The image of new droplets, `debian-12-x64` unless set otherwise.
    pub image: String,
}

/// Whether a host is this machine to whoever says it, so that nobody else can mean us by it.
pub(crate) fn is_this_machine(host: Option<&str>) -> bool {
    let host = host.unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_lowercase();
    let address = host.parse::<std::net::IpAddr>();
    host.is_empty()
        || host == "localhost"
        || host.ends_with(".localhost")
        || address.is_ok_and(|address| address.is_loopback() || address.is_unspecified())
}

impl CoinPayPortalSettings {
    /// What is not good enough for real money.
    fn weaknesses(&self, problems: &mut Vec<String>) {
        let key = self.api_key.expose_secret();
        let digits = key.strip_prefix("cp_live_").unwrap_or_default();
        if digits.len() < 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) || all_the_same(digits) {
            problems.push("COINPAYPORTAL_API_KEY is not a live key: `cp_live_` and 32 hexadecimal digits".to_owned());
        }
        if self.business_id.is_nil() {
            problems.push("COINPAYPORTAL_BUSINESS_ID is all zeros; copy it from the gateway's dashboard".to_owned());
        }
        let secret = self.webhook_secret.expose_secret();
        let random = secret.strip_prefix("whsecret_").unwrap_or(secret);
        if random.len() < 32 || all_the_same(random) {
            problems.push(
                "COINPAYPORTAL_WEBHOOK_SECRET is too weak: whoever guesses it can send us webhooks. It has 32 characters or more"
                    .to_owned(),
            );
        }
        let url = reqwest::Url::parse(&self.api_url);
        if !url.is_ok_and(|url| url.scheme() == "https" && !is_this_machine(url.host_str())) {
            problems.push(format!(
                "production needs an https:// COINPAYPORTAL_API_URL of the gateway; it is {}",
                self.api_url
            ));
        }
    }
}

fn all_the_same(text: &str) -> bool {
    text.bytes().all(|byte| Some(byte) == text.bytes().next())
}

impl SmtpSettings {
    /// Passwords and one-time links do not cross a network in the clear.
    fn weaknesses(&self, problems: &mut Vec<String>) {
        let Ok(url) = reqwest::Url::parse(self.url.expose_secret()) else { return };
        let encrypted =
            url.scheme() == "smtps" || url.query_pairs().any(|(name, value)| name == "tls" && value == "required");
        if !encrypted && !is_this_machine(url.host_str()) {
            problems.push(
                "SMTP_URL is smtp:// to another machine: mails, and the password, would cross the network in the clear. Use \
                 smtps://, or `?tls=required`"
                    .to_owned(),
            );
        }
    }
}

/// Everything that can be set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the API and the pages listen.
    pub listen: SocketAddr,
    /// Where metrics are served; nowhere if not set.
    pub metrics_listen: Option<SocketAddr>,
    /// How people reach us, without a slash at the end; `http://<listen>` if not set.
    pub public_url: String,
    /// The folder of the embedded database, the keystore and the trial's boxes.
    pub data_dir: PathBuf,
    /// Where Postgres' binaries are, if not in the usual places.
    pub postgres_bin: Option<PathBuf>,
    /// A database of the operator's; embedded if not set.
    pub database_url: Option<SecretString>,
    /// The real gateway; the sandbox if not set.
    pub coinpayportal: Option<CoinPayPortalSettings>,
    /// Real mail; the inbox page if not set.
    pub smtp: Option<SmtpSettings>,
    /// Vault or OpenBao for the secrets; the keystore in the data folder if not set.
    pub vault: Option<vault::Settings>,
    /// Whose tokens are taken beside ours; nobody's if not set.
    pub issuer: Option<issuers::Settings>,
    /// Refuse everything that is only good for a trial.
    pub production: bool,
    /// Whether payouts and what is done to many at once need a second operator; outside a trial if not set.
    pub two_person_rule: Option<bool>,
    /// Whether customers' own servers may have private addresses; only in a trial if not set.
    pub byos_allow_private: Option<bool>,
    /// The addresses or networks that customers' servers see us come from, with commas between.
    pub byos_source_address: Option<String>,
    /// Droplets to sell; no such provider if not set.
    pub digitalocean: Option<DigitalOceanSettings>,
    /// The domain under which a node with the address 203.0.113.7 is `203-0-113-7.<domain>`; reached by their addresses if not
    /// set.
    pub node_domain: Option<String>,
    /// What the public pages say of the operator.
    pub brand: Brand,
    /// Sell droplets of a stand-in for DigitalOcean, which are boxes on this machine; only in a trial.
    pub sandbox_droplets: bool,
}

/// What was given on the command line: these beat the environment and the file.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(
    next_help_heading = "Settings (each also as an environment variable, or in the file by the name of its flag)"
)]
pub struct Flags {
    /// A TOML file with settings [env: SEEDPLANE_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to listen for the API and the pages [env: SEEDPLANE_LISTEN] [default: 127.0.0.1:8080]
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Where to serve metrics; a private address [env: SEEDPLANE_METRICS_LISTEN]
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    pub metrics_listen: Option<String>,
    /// How people reach this installation [env: SEEDPLANE_PUBLIC_URL] [default: http://<listen>]
    #[arg(long, global = true, value_name = "URL")]
    pub public_url: Option<String>,
    /// Where the embedded database, the keystore and the trial's boxes are [env: SEEDPLANE_DATA_DIR] [default:
    /// $XDG_STATE_HOME/seedplane, or /var/lib/seedplane for root]
    #[arg(long, global = true, value_name = "FOLDER")]
    pub data_dir: Option<String>,
    /// Where Postgres' binaries are [env: SEEDPLANE_POSTGRES_BIN]
    #[arg(long, global = true, value_name = "FOLDER")]
    pub postgres_bin: Option<String>,
    /// Refuse sandbox parts and weak settings [env: SEEDPLANE_PRODUCTION]
    #[arg(long, global = true, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub production: Option<String>,
    /// Payouts, and what is done to many at once, need the approval of a second operator [env: SEEDPLANE_TWO_PERSON_RULE]
    /// [default: outside a trial]
    #[arg(long, global = true, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub two_person_rule: Option<String>,
    /// Connect to customers' own servers at private addresses too [env: SEEDPLANE_BYOS_ALLOW_PRIVATE] [default: in a trial
    /// only]
    #[arg(long, global = true, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub byos_allow_private: Option<String>,
    /// The addresses or networks that customers' own servers see us come from, with commas between: our certificates are good
    /// from there alone [env: SEEDPLANE_BYOS_SOURCE_ADDRESS]
    #[arg(long, global = true, value_name = "ADDRESS[/BITS],...")]
    pub byos_source_address: Option<String>,
    /// The domain under which the machine with the address 203.0.113.7 is 203-0-113-7.<domain>, by a wildcard of yours
    /// [env: SEEDPLANE_NODE_DOMAIN] [default: machines are reached by address, with a certificate of their own]
    #[arg(long, global = true, value_name = "DOMAIN")]
    pub node_domain: Option<String>,
    /// In a trial, sell droplets of a stand-in for DigitalOcean too: boxes on this machine [env: SEEDPLANE_SANDBOX_DROPLETS]
    #[arg(long, global = true, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub sandbox_droplets: Option<String>,
}

/// What is wrong with the settings: a sentence each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsError(pub Vec<String>);

impl std::fmt::Display for SettingsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the settings cannot be used; nothing was started")?;
        for problem in &self.0 {
            write!(f, "\n  - {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingsError {}

/// The data folder of somebody who set none: under the XDG state directory; for root, where the user that Postgres is run
/// as can get to it, which root's home is not.
fn default_data_dir(environment: &BTreeMap<String, String>) -> PathBuf {
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0);
    if root {
        return PathBuf::from("/var/lib/seedplane");
    }
    let set = |name: &str| environment.get(name).filter(|value| Path::new(value).is_absolute());
    match (set("XDG_STATE_HOME"), set("HOME")) {
        (Some(state), _) => Path::new(state).join("seedplane"),
        (None, Some(home)) => Path::new(home).join(".local/state/seedplane"),
        (None, None) => PathBuf::from("/var/lib/seedplane"),
    }
}

fn read_file(path: &Path, problems: &mut Vec<String>) -> BTreeMap<&'static str, String> {
    let mut values = BTreeMap::new();
    let table = match std::fs::read_to_string(path) {
        Ok(text) => match text.parse::<toml::Table>() {
            Ok(table) => table,
            Err(error) => {
                // The parser's own words may quote the line, and the line may hold a secret.
                let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
                problems.push(format!("{} is not TOML (line {line}): {}", path.display(), error.message()));
                return values;
            }
        },
        Err(error) => {
            problems.push(format!("the settings file {} cannot be read: {error}", path.display()));
            return values;
        }
    };
    for (key, value) in table {
        let Some((name, _)) = NAMES.iter().find(|(_, in_file)| *in_file == key) else {
            problems.push(format!("{} has '{key}', which is no setting", path.display()));
            continue;
        };
        match value {
            toml::Value::String(text) => _ = values.insert(*name, text),
            toml::Value::Boolean(flag) => _ = values.insert(*name, flag.to_string()),
            _ => problems.push(format!("'{key}' in {} must be a text or true or false", path.display())),
        }
    }
    values
}

impl Settings {
    /// Reads the settings of this process.
    ///
    /// # Errors
    /// [`SettingsError`] with everything that is wrong.
    pub fn load(flags: &Flags) -> Result<Self, SettingsError> {
        Self::read(
            flags,
            &std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
        )
    }

    /// Reads the settings from what is given.
    ///
    /// # Errors
    /// [`SettingsError`] with everything that is wrong.
    pub fn read(flags: &Flags, environment: &BTreeMap<String, String>) -> Result<Self, SettingsError> {
        let mut problems = Vec::new();
        for name in environment.keys() {
            let ours = ["SEEDPLANE_", "COINPAYPORTAL_", "DIGITALOCEAN_"].iter().any(|start| name.starts_with(start));
            if ours && !NAMES.iter().any(|(known, _)| known == name) && !NOT_SETTINGS.contains(&name.as_str()) {
                problems.push(format!("{name} is no setting; `seedplane --help` lists them"));
            }
        }
        let file = flags.config.clone().or_else(|| environment.get("SEEDPLANE_CONFIG").map(PathBuf::from));
        let in_file = file.map(|path| read_file(&path, &mut problems)).unwrap_or_default();
        let get = |name: &str, flag: &Option<String>| -> Option<String> {
            flag.clone()
                .or_else(|| environment.get(name).cloned())
                .or_else(|| in_file.get(name).cloned())
                .filter(|value| !value.is_empty())
        };

        let mut address = |name: &str, flag: &Option<String>| -> Option<SocketAddr> {
            let text = get(name, flag)?;
            let parsed = text.parse();
            if parsed.is_err() {
                problems
                    .push(format!("{name} is '{text}', which is not an address with a port such as 127.0.0.1:8080"));
            }
            parsed.ok()
        };
        let listen = address("SEEDPLANE_LISTEN", &flags.listen).unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8080)));
        let metrics_listen = address("SEEDPLANE_METRICS_LISTEN", &flags.metrics_listen);
        let public_url = get("SEEDPLANE_PUBLIC_URL", &flags.public_url).unwrap_or_else(|| format!("http://{listen}"));
        let public_url = public_url.trim_end_matches('/').to_owned();
        if reqwest::Url::parse(&public_url).is_err() || !public_url.starts_with("http") {
            problems.push(format!("SEEDPLANE_PUBLIC_URL is '{public_url}', which is not an http:// or https:// URL"));
        }
        let data_dir =
            get("SEEDPLANE_DATA_DIR", &flags.data_dir).map_or_else(|| default_data_dir(environment), PathBuf::from);
        let mut switch = |name: &str, flag: &Option<String>| match get(name, flag).as_deref() {
            None => None,
            Some("false") => Some(false),
            Some("true") => Some(true),
            Some(other) => {
                problems.push(format!("{name} is '{other}'; it is true or false"));
                None
            }
        };
        let production = switch("SEEDPLANE_PRODUCTION", &flags.production).unwrap_or(false);
        let sandbox_droplets = switch("SEEDPLANE_SANDBOX_DROPLETS", &flags.sandbox_droplets).unwrap_or(false);
        let two_person_rule = switch("SEEDPLANE_TWO_PERSON_RULE", &flags.two_person_rule);
        let byos_allow_private = switch("SEEDPLANE_BYOS_ALLOW_PRIVATE", &flags.byos_allow_private);
        let database_url = get("DATABASE_URL", &None).map(SecretString::from);
        if database_url.as_ref().is_some_and(|url| !url.expose_secret().starts_with("postgres")) {
            problems.push("DATABASE_URL is not a postgres:// URL".to_owned());
        }
        let coinpayportal = Self::coinpayportal(&get, &mut problems);
        let smtp = match (get("SMTP_URL", &None), get("MAIL_FROM", &None)) {
            (Some(url), Some(from)) => {
                let smtp = SmtpSettings { url: SecretString::from(url), from };
                problems.extend(SmtpMailer::check(&smtp.url, &smtp.from));
                Some(smtp)
            }
            (None, None) => None,
            _ => {
                problems.push("SMTP_URL and MAIL_FROM go together; one of them is missing".to_owned());
                None
            }
        };
        let byos_source_address = get("SEEDPLANE_BYOS_SOURCE_ADDRESS", &flags.byos_source_address);
        let is_network = |text: &str| {
            let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
            let most = address.parse::<std::net::IpAddr>().map(|address| if address.is_ipv4() { 32 } else { 128 });
            most.is_ok_and(|most| bits.is_none_or(|bits| bits.parse::<u8>().is_ok_and(|bits| bits <= most)))
        };
        if let Some(list) = byos_source_address.as_ref().filter(|list| !list.split(',').all(is_network)) {
            problems.push(format!(
                "SEEDPLANE_BYOS_SOURCE_ADDRESS is '{list}'; it is addresses or networks with commas between"
            ));
        }
        let vault = Self::vault(&get, &mut problems);
        let issuer =
            ["ISSUER", "AUDIENCE", "JWKS_URL", "SIGN_IN_URL"].map(|name| get(&format!("SEEDPLANE_JWT_{name}"), &None));
        let issuer = issuers::Settings::read(issuer).unwrap_or_else(|problem| {
            problems.push(problem);
            None
        });
        let digitalocean = Self::digitalocean(&get, &public_url, &mut problems);
        let node_domain = get("SEEDPLANE_NODE_DOMAIN", &flags.node_domain);
        let is_domain = |text: &String| {
            text.len() <= 200
                && text.contains('.')
                && text.split('.').all(|label| {
                    !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                })
        };
        if let Some(domain) = node_domain.as_ref().filter(|domain| !is_domain(domain)) {
            problems.push(format!("SEEDPLANE_NODE_DOMAIN is '{domain}', which is no domain such as boxes.example.net"));
        }
        let brand = brand::read(&get, &mut problems);
        if coinpayportal.is_some() && smtp.is_none() && !production {
            problems.push(
                "COINPAYPORTAL_* takes real money, so that SMTP_URL and MAIL_FROM are needed: the warnings before a box stops \
                 would reach nobody"
                    .to_owned(),
            );
        }
        if sandbox_droplets && (production || coinpayportal.is_some()) {
            problems.push(
                "SEEDPLANE_SANDBOX_DROPLETS is for a trial: with SEEDPLANE_PRODUCTION or a real gateway somebody would pay for \
                 droplets that do not exist. DIGITALOCEAN_TOKEN sells real ones"
                    .to_owned(),
            );
        }
        if production {
            problems.extend(brand::missing(&brand));
            if database_url.is_none() {
                problems.push("production needs DATABASE_URL: the embedded database lives on one machine".to_owned());
            }
            if coinpayportal.is_none() {
                problems.push("production needs COINPAYPORTAL_API_KEY, _BUSINESS_ID and _WEBHOOK_SECRET: the sandbox gateway takes no real money".to_owned());
            }
            if smtp.is_none() {
                problems.push("production needs SMTP_URL and MAIL_FROM: nobody reads the inbox page".to_owned());
            }
            if !public_url.starts_with("https://") {
                problems.push(format!("production needs an https:// SEEDPLANE_PUBLIC_URL; it is {public_url}"));
            } else if reqwest::Url::parse(&public_url).is_ok_and(|url| is_this_machine(url.host_str())) {
                problems.push(format!("production needs a SEEDPLANE_PUBLIC_URL that others reach; it is {public_url}"));
            }
            let secret = |secret: &SecretString| secret.expose_secret().to_owned();
            let given = [
                ("DATABASE_URL", database_url.as_ref().map(secret)),
                ("COINPAYPORTAL_API_KEY", coinpayportal.as_ref().map(|gateway| secret(&gateway.api_key))),
                ("COINPAYPORTAL_WEBHOOK_SECRET", coinpayportal.as_ref().map(|gateway| secret(&gateway.webhook_secret))),
                ("SMTP_URL", smtp.as_ref().map(|smtp| secret(&smtp.url))),
                ("MAIL_FROM", smtp.as_ref().map(|smtp| smtp.from.clone())),
                ("SEEDPLANE_PUBLIC_URL", Some(public_url.clone())),
                ("SEEDPLANE_JWT_ISSUER", issuer.as_ref().map(|issuer| issuer.issuer.clone())),
                ("SEEDPLANE_JWT_JWKS_URL", issuer.as_ref().map(|issuer| issuer.jwks_url.clone())),
                ("SEEDPLANE_CONTACT_EMAIL", brand.contact_email.clone()),
                ("SEEDPLANE_LEGAL_ENTITY", brand.legal_entity.clone()),
                ("SEEDPLANE_DMCA_AGENT", brand.dmca_agent.clone()),
                ("DIGITALOCEAN_TOKEN", digitalocean.as_ref().map(|provider| secret(&provider.token))),
            ];
            for (name, value) in given {
                let value = value.unwrap_or_default().to_lowercase();
                if let Some(placeholder) = PLACEHOLDERS.iter().find(|placeholder| value.contains(**placeholder)) {
                    problems.push(format!(
                        "{name} holds '{placeholder}', as an example does; production needs the real one"
                    ));
                }
            }
            if let Some(gateway) = &coinpayportal {
                gateway.weaknesses(&mut problems);
            }
            if let Some(smtp) = &smtp {
                smtp.weaknesses(&mut problems);
            }
        }
        if !problems.is_empty() {
            return Err(SettingsError(problems));
        }
        let postgres_bin = get("SEEDPLANE_POSTGRES_BIN", &flags.postgres_bin).map(PathBuf::from);
        Ok(Self {
            listen,
            metrics_listen,
            public_url,
            data_dir,
            postgres_bin,
            database_url,
            coinpayportal,
            smtp,
            vault,
            issuer,
            production,
            two_person_rule,
            byos_allow_private,
            byos_source_address,
            digitalocean,
            node_domain,
            brand,
            sandbox_droplets,
        })
    }

    fn digitalocean(
        get: &impl Fn(&str, &Option<String>) -> Option<String>,
        public_url: &str,
        problems: &mut Vec<String>,
    ) -> Option<DigitalOceanSettings> {
        let api_url = get("DIGITALOCEAN_API_URL", &None);
        let image = get("DIGITALOCEAN_IMAGE", &None);
        let Some(token) = get("DIGITALOCEAN_TOKEN", &None) else {
            if api_url.is_some() || image.is_some() {
                problems.push("DIGITALOCEAN_API_URL or _IMAGE is set without DIGITALOCEAN_TOKEN".to_owned());
            }
            return None;
        };
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            problems.push("DIGITALOCEAN_TOKEN has characters that no token has; copy it again".to_owned());
        }
        let api_url = api_url.unwrap_or_else(|| digitalocean::API_URL.to_owned());
        let here = |url: &str| reqwest::Url::parse(url).is_ok_and(|url| is_this_machine(url.host_str()));
        match reqwest::Url::parse(&api_url) {
            Ok(url) if url.scheme() == "https" || is_this_machine(url.host_str()) => {}
            _ => problems.push(format!("DIGITALOCEAN_API_URL is '{api_url}'; it is an https:// URL")),
        }
        if here(public_url) && !here(&api_url) {
            problems.push(format!(
                "DIGITALOCEAN_TOKEN makes machines that report to SEEDPLANE_PUBLIC_URL when they are ready, and nobody else \
                 reaches {public_url}: set it to the URL that this installation has on the internet"
            ));
        }
        let image = image.unwrap_or_else(|| "debian-12-x64".to_owned());
        Some(DigitalOceanSettings { token: SecretString::from(token), api_url, image })
    }

    fn vault(
        get: &impl Fn(&str, &Option<String>) -> Option<String>,
        problems: &mut Vec<String>,
    ) -> Option<vault::Settings> {
        let secret = |name: &str| get(name, &None).map(SecretString::from);
        let (token, role_id, secret_id) = (secret("VAULT_TOKEN"), secret("VAULT_ROLE_ID"), secret("VAULT_SECRET_ID"));
        let login = match (token, role_id, secret_id) {
            (Some(token), None, None) => Some(vault::Login::Token(token)),
            (None, Some(role_id), Some(secret_id)) => Some(vault::Login::AppRole { role_id, secret_id }),
            (None, None, None) => None,
            _ => {
                problems.push(
                    "Vault takes VAULT_TOKEN, or VAULT_ROLE_ID and VAULT_SECRET_ID together; they are set in part or both"
                        .to_owned(),
                );
                return None;
            }
        };
        match (get("VAULT_ADDR", &None), login) {
            (Some(address), Some(login)) => Some(vault::Settings {
                address,
                login,
                mount: get("VAULT_MOUNT", &None).unwrap_or_else(|| "secret".to_owned()),
                namespace: get("VAULT_NAMESPACE", &None),
            }),
            (None, None) => None,
            (Some(_), None) => {
                problems.push("VAULT_ADDR is set without VAULT_TOKEN, or VAULT_ROLE_ID and VAULT_SECRET_ID".to_owned());
                None
            }
            (None, Some(_)) => {
                problems.push("a login for Vault is set without VAULT_ADDR".to_owned());
                None
            }
        }
    }

    fn coinpayportal(
        get: &impl Fn(&str, &Option<String>) -> Option<String>,
        problems: &mut Vec<String>,
    ) -> Option<CoinPayPortalSettings> {
        let names = ["COINPAYPORTAL_API_KEY", "COINPAYPORTAL_BUSINESS_ID", "COINPAYPORTAL_WEBHOOK_SECRET"];
        let values = names.map(|name| get(name, &None));
        let api_url = get("COINPAYPORTAL_API_URL", &None);
        if values.iter().all(Option::is_none) && api_url.is_none() {
            return None;
        }
        let mut missing = String::new();
        for (name, _) in names.iter().zip(&values).filter(|(_, value)| value.is_none()) {
            let _ = write!(missing, " {name}");
        }
        if !missing.is_empty() {
            problems.push(format!("CoinPayPortal is set in part; missing:{missing}"));
        }
        let [api_key, business_id, webhook_secret] = values;
        let business_id = business_id?;
        let Ok(business_id) = business_id.parse() else {
            problems.push("COINPAYPORTAL_BUSINESS_ID is not a UUID".to_owned());
            return None;
        };
        Some(CoinPayPortalSettings {
            api_key: SecretString::from(api_key?),
            business_id,
            webhook_secret: SecretString::from(webhook_secret?),
            api_url: api_url.unwrap_or_else(|| "https://coinpayportal.com/api".to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVE: &[(&str, &str)] = &[
        ("SEEDPLANE_PRODUCTION", "true"),
        ("SEEDPLANE_PUBLIC_URL", "https://boxes.seedplane.net"),
        ("DATABASE_URL", "postgres://seedplane@db.internal/seedplane"),
        ("COINPAYPORTAL_API_KEY", "cp_live_0123456789abcdef0123456789abcdef"),
        ("COINPAYPORTAL_BUSINESS_ID", "b198c6dc-4c3b-4a54-994c-a750c1a580cd"),
        ("COINPAYPORTAL_WEBHOOK_SECRET", "whsecret_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"),
        ("SMTP_URL", "smtps://us:pw@mail.seedplane.net"),
        ("MAIL_FROM", "Seedplane <boxes@seedplane.net>"),
        ("SEEDPLANE_BRAND_NAME", "Harbour"),
        ("SEEDPLANE_CONTACT_EMAIL", "help@seedplane.net"),
        ("SEEDPLANE_LEGAL_ENTITY", "Harbour Ltd, 1 Quay Street, Dublin"),
        ("SEEDPLANE_DMCA_AGENT", "A. Agent, Harbour Ltd, dmca@seedplane.net"),
        // Any text does: what it says is the operator's business.
        ("SEEDPLANE_TERMS_FILE", concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")),
        ("SEEDPLANE_PRIVACY_FILE", concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")),
    ];

    fn read(environment: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Settings::read(&Flags::default(), &environment).map_err(|error| error.0)
    }

    /// The settings of [`LIVE`] with some changed; without those that are empty.
    fn live_but(changes: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
        let mut settings: BTreeMap<&str, &str> = LIVE.iter().copied().collect();
        settings.extend(changes.iter().copied());
        read(&settings.into_iter().filter(|(_, value)| !value.is_empty()).collect::<Vec<_>>())
    }

    #[test]
    fn without_settings_it_is_a_trial() {
        let settings = read(&[("HOME", "/home/somebody")]).unwrap();
        assert!(!settings.production && settings.coinpayportal.is_none() && settings.database_url.is_none());
        assert_eq!(settings.public_url, "http://127.0.0.1:8080");
    }

    #[test]
    fn each_weakness_is_refused_in_production_and_said() {
        assert!(live_but(&[]).is_ok(), "{:?}", live_but(&[]).err());
        for (name, value, said) in [
            ("SEEDPLANE_PUBLIC_URL", "http://boxes.seedplane.net", "https:// SEEDPLANE_PUBLIC_URL"),
            ("SEEDPLANE_PUBLIC_URL", "https://localhost", "that others reach"),
            ("SEEDPLANE_PUBLIC_URL", "https://127.0.0.1:8443", "that others reach"),
            ("SEEDPLANE_PUBLIC_URL", "https://[::1]", "that others reach"),
            ("SEEDPLANE_PUBLIC_URL", "https://seedplane.example.org", "as an example does"),
            ("DATABASE_URL", "", "production needs DATABASE_URL"),
            ("DATABASE_URL", "postgres://seedplane:changeme@db/seedplane", "DATABASE_URL holds 'changeme'"),
            ("COINPAYPORTAL_API_KEY", "cp_test_0123456789abcdef0123456789abcdef", "not a live key"),
            ("COINPAYPORTAL_API_KEY", "cp_live_0123", "not a live key"),
            ("COINPAYPORTAL_API_KEY", "cp_live_00000000000000000000000000000000", "not a live key"),
            ("COINPAYPORTAL_API_KEY", "cp_live_your_api_key", "COINPAYPORTAL_API_KEY holds 'your'"),
            ("COINPAYPORTAL_BUSINESS_ID", "00000000-0000-0000-0000-000000000000", "all zeros"),
            ("COINPAYPORTAL_BUSINESS_ID", "7", "not a UUID"),
            ("COINPAYPORTAL_BUSINESS_ID", "", "missing: COINPAYPORTAL_BUSINESS_ID"),
            ("COINPAYPORTAL_WEBHOOK_SECRET", "whsecret_short", "too weak"),
            ("COINPAYPORTAL_API_URL", "http://127.0.0.1:9/api", "COINPAYPORTAL_API_URL"),
            ("SMTP_URL", "smtp://us:pw@mail.seedplane.net:587", "in the clear"),
            ("SMTP_URL", "ftp://mail.seedplane.net", "not an smtp://"),
            ("SMTP_URL", "", "go together"),
            ("SEEDPLANE_SANDBOX_DROPLETS", "true", "is for a trial"),
            ("MAIL_FROM", "nobody", "MAIL_FROM is not an e-mail address"),
            ("SEEDPLANE_BRAND_NAME", "", "production needs SEEDPLANE_BRAND_NAME"),
            ("SEEDPLANE_BRAND_COLOUR", "green", "such as #17624a"),
            ("SEEDPLANE_BRAND_LOGO", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "neither a PNG nor an SVG"),
            ("SEEDPLANE_CONTACT_EMAIL", "nobody", "not an e-mail address"),
            ("SEEDPLANE_CONTACT_EMAIL", "help@example.org", "as an example does"),
            ("SEEDPLANE_LEGAL_ENTITY", "Your company", "as an example does"),
            ("SEEDPLANE_DMCA_AGENT", "", "the agent for notices"),
            ("SEEDPLANE_TERMS_FILE", "", "production needs SEEDPLANE_TERMS_FILE"),
            ("SEEDPLANE_TERMS_FILE", "/nowhere/terms.txt", "cannot be read"),
            ("SEEDPLANE_PRIVACY_FILE", "", "production needs SEEDPLANE_PRIVACY_FILE"),
        ] {
            let problems = live_but(&[(name, value)]).err().unwrap_or_else(|| panic!("{name}={value} was taken"));
            assert!(problems.iter().any(|problem| problem.contains(said)), "{name}={value}: {problems:?}");
            assert!(value.is_empty() || !name.contains("SECRET") || problems.iter().all(|said| !said.contains(value)));
        }
        for taken in
            [("SMTP_URL", "smtp://us:pw@mail.seedplane.net:587?tls=required"), ("SMTP_URL", "smtp://localhost:25")]
        {
            assert!(live_but(&[taken]).is_ok(), "{taken:?}: {:?}", live_but(&[taken]).err());
        }
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let problems = live_but(&[
            ("SEEDPLANE_LISTEN", "8080"),
            ("SEEDPLANE_LISTENS", "x"),
            ("COINPAYPORTAL_API_KEY", "key"),
            ("MAIL_FROM", "nobody"),
            ("VAULT_ADDR", "https://vault.internal"),
            ("DIGITALOCEAN_TOKEN", "dop_v1_0 "),
            ("DIGITALOCEAN_TOKENS", "x"),
            ("SEEDPLANE_NODE_DOMAIN", "boxes"),
            ("SEEDPLANE_JWT_ISSUER", "https://id.seedplane.net"),
        ])
        .unwrap_err();
        for said in [
            "SEEDPLANE_LISTEN is '8080'",
            "SEEDPLANE_LISTENS is no setting",
            "not a live key",
            "MAIL_FROM",
            "VAULT_ADDR is set without VAULT_TOKEN",
            "DIGITALOCEAN_TOKEN has characters",
            "DIGITALOCEAN_TOKENS is no setting",
            "SEEDPLANE_NODE_DOMAIN is 'boxes'",
            "SEEDPLANE_JWT_JWKS_URL go together",
        ] {
            assert!(problems.iter().any(|problem| problem.contains(said)), "{said}: {problems:?}");
        }
        assert!(problems.iter().all(|problem| !problem.contains("dop_v1_0")), "no secret is repeated");
    }

    #[test]
    fn the_two_person_rule_is_said_or_left_to_what_it_runs_as() {
        let set =
            |value: &str| live_but(&[("SEEDPLANE_TWO_PERSON_RULE", value)]).map(|settings| settings.two_person_rule);
        assert_eq!((set(""), set("false"), set("true")), (Ok(None), Ok(Some(false)), Ok(Some(true))));
        assert!(set("maybe").unwrap_err().iter().any(|problem| problem.contains("it is true or false")));
    }

    #[test]
    fn machines_elsewhere_need_a_way_back() {
        let local = [("SEEDPLANE_PRODUCTION", ""), ("SEEDPLANE_PUBLIC_URL", ""), ("DIGITALOCEAN_TOKEN", "dop_v1_0")];
        let problems = live_but(&local).unwrap_err();
        assert!(
            problems.iter().any(|problem| problem.contains("nobody else reaches http://127.0.0.1:8080")),
            "{problems:?}"
        );
        assert!(live_but(&[("DIGITALOCEAN_TOKEN", "dop_v1_0")]).is_ok());
        let alone = live_but(&[("DIGITALOCEAN_API_URL", "https://api.digitalocean.com")]).unwrap_err();
        assert!(alone.iter().any(|problem| problem.contains("without DIGITALOCEAN_TOKEN")), "{alone:?}");
    }

    #[test]
    fn real_money_needs_real_mail() {
        let problems = live_but(&[("SEEDPLANE_PRODUCTION", ""), ("SMTP_URL", ""), ("MAIL_FROM", "")]).unwrap_err();
        assert!(problems.iter().any(|problem| problem.contains("takes real money")), "{problems:?}");
        let problems = live_but(&[("SEEDPLANE_PRODUCTION", ""), ("SEEDPLANE_SANDBOX_DROPLETS", "true")]).unwrap_err();
        assert!(problems.iter().any(|problem| problem.contains("droplets that do not exist")), "{problems:?}");
    }
}
