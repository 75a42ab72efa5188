//! People who sign in elsewhere: tokens (JWTs) of one issuer, such as a Supabase project, are taken when it is configured.
//!
//! What a key is for is said by the key, never by the token: its type pins the algorithm, and only asymmetric ones are taken.
//! Keys come from the issuer's key set (JWKS), which is kept for a while and fetched again for a key that is not in it, at
//! most once a minute whoever asks.

use std::{collections::HashMap, sync::RwLock, time::Duration};

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::Mutex, time::Instant};
use uuid::Uuid;

use super::{Credential, Principal, Role, Scopes, check_email};
use crate::{
    app::App,
    audit::events::{self, Actor, Cause, Event, Subject},
    clock::Time,
    config::is_this_machine,
    ids::UserId,
};

/// How far clocks may be apart.
const LEEWAY: i64 = 30;
/// The largest key set that is read, in bytes, and how many keys of it.
const LARGEST_KEY_SET: usize = 256 * 1024;
const MOST_KEYS: usize = 100;
/// How long fetching the key set may take.
const FETCHING_TAKES_AT_MOST: Duration = Duration::from_secs(5);

/// Whose tokens are taken.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What `iss` of a token says.
    pub issuer: String,
    /// What `aud` of a token says, or one of what it says.
    pub audience: String,
    /// Where the issuer's keys are.
    pub jwks_url: String,
    /// Where people sign in at the issuer, to be sent on to `/sign-in/elsewhere` with `#access_token=…`.
    pub sign_in_url: Option<String>,
    /// How long the key set is good without being fetched again.
    pub keys_are_fresh_for: Duration,
    /// How long it goes on being used when it cannot be fetched.
    pub keys_are_good_for: Duration,
    /// How often it is fetched at most.
    pub fetched_every: Duration,
}

impl Settings {
    /// Settings with the usual times.
    pub fn new(issuer: String, audience: String, jwks_url: String) -> Self {
        Self {
            issuer,
            audience,
            jwks_url,
            sign_in_url: None,
            keys_are_fresh_for: Duration::from_secs(600),
            keys_are_good_for: Duration::from_secs(3600),
            fetched_every: Duration::from_secs(60),
        }
    }

    /// From `SEEDPLANE_JWT_ISSUER`, `_AUDIENCE` and `_JWKS_URL`: all of them or none; and `_SIGN_IN_URL`, if there is one.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read(given: [Option<String>; 4]) -> Result<Option<Self>, String> {
        let (issuer, audience, jwks_url, sign_in_url) = match given {
            [None, None, None, None] => return Ok(None),
            [Some(issuer), Some(audience), Some(jwks_url), sign_in_url] => (issuer, audience, jwks_url, sign_in_url),
            _ => {
                return Err(
                    "SEEDPLANE_JWT_ISSUER, SEEDPLANE_JWT_AUDIENCE and SEEDPLANE_JWT_JWKS_URL go together; some of \
                            them are missing"
                        .to_owned(),
                );
            }
        };
        let good = |url: &str| {
            reqwest::Url::parse(url).is_ok_and(|url| {
                let scheme = url.scheme() == "https" || (url.scheme() == "http" && is_this_machine(url.host_str()));
                scheme && url.username().is_empty() && url.password().is_none()
            })
        };
        if sign_in_url.as_deref().is_some_and(|url| !good(url)) {
            return Err("SEEDPLANE_JWT_SIGN_IN_URL is not an https:// URL without a user in it".to_owned());
        }
        if !good(&jwks_url) {
            return Err(
                "SEEDPLANE_JWT_JWKS_URL is not an https:// URL without a user in it: whoever can change the keys on \
                        their way signs in as anybody"
                    .to_owned(),
            );
        }
        Ok(Some(Self { sign_in_url, ..Self::new(issuer, audience, jwks_url) }))
    }
}

/// Why a token was not taken.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// It is not good.
    #[error("the token is not taken: {0}. Nothing was done; sign in again where it comes from")]
    Refused(&'static str),
    /// Somebody else here has its e-mail address.
    #[error(
        "there is an account with the e-mail address of this token already, and it is another person's as far as can be told: \
         nothing was made and nothing was merged. Sign in to that account with its password, or use another address where the \
         token comes from"
    )]
    EmailOfAnother,
    /// The issuer's keys cannot be had.
    #[error("the keys of the token's issuer cannot be read at the moment; nothing was done. Try again in a minute")]
    Unavailable,
    /// The database failed.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// A key, and what it is for.
#[derive(Clone)]
struct Key {
    algorithm: Algorithm,
    decoding: DecodingKey,
}

struct KeySet {
    keys: HashMap<String, Key>,
    fetched_at: Instant,
}

/// The issuer whose tokens are taken, with its keys.
pub struct Issuer {
    settings: Settings,
    http: reqwest::Client,
    keys: RwLock<Option<KeySet>>,
    /// When fetching was last tried; held while it is.
    tried: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What of a token's claims is read. Numbers are read as integers: what else reads them is told of them as texts.
#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    exp: i64,
    nbf: Option<i64>,
    sub: String,
    email: Option<String>,
    // At the top, where the issuer writes it. Supabase's `user_metadata` is written by its users.
    email_verified: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

/// Whether a bearer token looks like a JWT. Tokens of ours have no dots.
pub fn looks_like_jwt(token: &str) -> bool {
    token.split('.').count() == 3
}

impl Issuer {
    /// Nothing is fetched yet.
    ///
    /// # Errors
    /// Those of making an HTTP client.
    pub fn new(settings: Settings) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(FETCHING_TAKES_AT_MOST)
            .user_agent(concat!("seedplane/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { settings, http, keys: RwLock::new(None), tried: Mutex::new(None) })
    }

    /// A key that is kept: it, and whether the set is fresh.
    fn kept(&self, id: &str) -> (Option<Key>, bool) {
        let keys = self.keys.read().expect("nobody panics with the keys");
        let Some(set) = keys.as_ref() else { return (None, false) };
        let age = set.fetched_at.elapsed();
        let key = set.keys.get(id).filter(|_| age < self.settings.keys_are_good_for).cloned();
        (key, age < self.settings.keys_are_fresh_for)
    }

    async fn key(&self, id: &str) -> Result<Key, IssuerError> {
        if let (Some(key), true) = self.kept(id) {
            return Ok(key);
        }
        let mut tried = self.tried.lock().await;
        // Somebody else may have fetched it meanwhile.
        if let (Some(key), true) = self.kept(id) {
            return Ok(key);
        }
        if tried.is_none_or(|tried| tried.elapsed() >= self.settings.fetched_every) {
            *tried = Some(Instant::now());
            match self.fetch().await {
                Ok(keys) => {
                    let set = KeySet { keys, fetched_at: Instant::now() };
                    *self.keys.write().expect("nobody panics with the keys") = Some(set);
                }
                Err(error) => tracing::warn!(error, "the key set of the issuer cannot be read"),
            }
        }
        match self.kept(id) {
            (Some(key), _) => Ok(key),
            (None, true) => Err(IssuerError::Refused("it is signed with a key that its issuer does not show")),
            (None, false) => Err(IssuerError::Unavailable),
        }
    }

    async fn fetch(&self) -> Result<HashMap<String, Key>, String> {
        let said = |error: reqwest::Error| error.without_url().to_string();
        let mut response = self.http.get(&self.settings.jwks_url).send().await.map_err(said)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(format!("it answered {}", response.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(said)? {
            if body.len() + chunk.len() > LARGEST_KEY_SET {
                return Err(format!("it is larger than {LARGEST_KEY_SET} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(&body).map_err(|_| "it is not a JSON object with `keys`".to_owned())?;
        Ok(set.keys.into_iter().take(MOST_KEYS).filter_map(usable).collect())
    }

    /// Whose a token is: what it claims, if it is good at `now`.
    async fn verify(&self, token: &str, now: Time) -> Result<Claims, IssuerError> {
        let refused = IssuerError::Refused;
        let header = jsonwebtoken::decode_header(token).map_err(|_| refused("it cannot be read"))?;
        if header.crit.is_some() {
            return Err(refused("its header asks for more than is understood here"));
        }
        let id = header.kid.ok_or(refused("it does not name its key"))?;
        let key = self.key(&id).await?;
        let mut validation = Validation::new(key.algorithm);
        // What it claims is compared here: the library compares times with the system's clock, and reads no numbers that are
        // kept as they were written, which is how this program keeps them.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &key.decoding, &validation)
            .map_err(|error| match error.kind() {
                jsonwebtoken::errors::ErrorKind::Json(_) => refused(
                    "it lacks one of the claims `iss`, `aud`, `exp` and `sub`, or has another kind of value there",
                ),
                _ => refused("it is not signed with the key it names"),
            })?
            .claims;
        let seconds = now.0.as_second();
        let ours = match &claims.aud {
            Audience::One(audience) => *audience == self.settings.audience,
            Audience::Several(audiences) => audiences.contains(&self.settings.audience),
        };
        if claims.iss != self.settings.issuer {
            return Err(refused("it is of another issuer"));
        }
        if !ours {
            return Err(refused("it is for another audience"));
        }
        if claims.exp.saturating_add(LEEWAY) <= seconds {
            return Err(refused("it has expired"));
        }
        if claims.nbf.is_some_and(|from| from.saturating_sub(LEEWAY) > seconds) {
            return Err(refused("it is not good yet"));
        }
        Ok(claims)
    }

    /// What people know it by: its host, or what `iss` says where that is no URL.
    pub fn name(&self) -> &str {
        let issuer = self.settings.issuer.as_str();
        let host = issuer.split_once("://").map_or(issuer, |(_, rest)| rest);
        host.split('/').next().unwrap_or(issuer)
    }

    /// Where people sign in there.
    pub fn sign_in_url(&self) -> Option<&str> {
        self.settings.sign_in_url.as_deref()
    }

    /// Who a token belongs to. Whoever is not known yet gets an account by the id that the token says, as a customer.
    ///
    /// # Errors
    /// [`IssuerError`]; nothing is made then.
    pub async fn authenticate(&self, app: &App, token: &str) -> Result<Principal, IssuerError> {
        // Like the issuer's clock, whatever the trial's says.
        let claims = self.verify(token, Time(app.clock.now() - app.clock.offset())).await?;
        let user = claims.sub.parse::<Uuid>().map(UserId);
        let user = user.map_err(|_| IssuerError::Refused("its `sub` is no UUID"))?;
        if !super::exists(&app.pool, user).await? {
            let verified = claims.email_verified == Some(true);
            let email = claims.email.filter(|_| verified).and_then(|email| check_email(&email).ok());
            let email = email.ok_or(IssuerError::Refused(
                "nobody is known here by its `sub`, and it does not say a verified e-mail address (`email`, and \
                 `email_verified` as true) to make an account with",
            ))?;
            self.welcome(app, user, &email).await?;
        }
        // Whatever the account's role is here: what another issuer says makes nobody an operator.
        let role = Role::Customer;
        Ok(Principal {
            user_id: user,
            role,
            credential: Credential::Issued,
            scopes: Scopes::of_role(role),
            second_factor: false,
        })
    }

    /// Makes the account of somebody who comes for the first time.
    async fn welcome(&self, app: &App, user: UserId, email: &str) -> Result<(), IssuerError> {
        let at = app.now();
        let mut tx = app.pool.begin().await?;
        let made = sqlx::query!(
            "insert into users (id, email, role, created_at) values ($1, $2, 'customer', $3) on conflict do nothing",
            user.0,
            email,
            at,
        )
        .execute(&mut *tx)
        .await?;
        if made.rows_affected() == 0 {
            drop(tx);
            // Two first requests at once are one person.
            return if super::exists(&app.pool, user).await? { Ok(()) } else { Err(IssuerError::EmailOfAnother) };
        }
        sqlx::query!("select seedbox_billing_account_open($1, $2)", user.0, at).execute(&mut *tx).await?;
        let cause = Cause { actor: Actor::User(user), reason: String::new(), request_id: None };
        let after = Some(json!({ "role": Role::Customer, "issuer": self.settings.issuer }));
        let event = Event { subject: Subject::User(user), action: "user.signed_up", before: None, after };
        events::record_in(&mut tx, at, &cause, event).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// A key of the set that signatures are verified with, by its id. The others are passed over.
fn usable(key: Value) -> Option<(String, Key)> {
    let key: Jwk = serde_json::from_value(key).ok()?;
    let algorithm = match &key.algorithm {
        AlgorithmParameters::EllipticCurve(parameters) if parameters.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::OctetKeyPair(parameters) if parameters.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        _ => return None,
    };
    let for_another = key.common.key_algorithm.is_some_and(|of| of != algorithm.into());
    let no_signatures = key.common.public_key_use.as_ref().is_some_and(|of| *of != PublicKeyUse::Signature);
    if for_another || no_signatures {
        return None;
    }
    let decoding = DecodingKey::from_jwk(&key).ok()?;
    Some((key.common.key_id?, Key { algorithm, decoding }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_go_together_and_keys_come_over_tls() {
        let some = |text: &str| Some(text.to_owned());
        let read = |url: &str| Settings::read([some("https://id.test"), some("seedplane"), some(url), None]);
        assert!(Settings::read([None, None, None, None]).unwrap().is_none());
        let (x, y, z) = (some("x"), some("y"), some("https://z"));
        for part in [
            [x.clone(), None, None, None],
            [x.clone(), y.clone(), None, None],
            [None, y.clone(), z.clone(), None],
            [None, None, None, z.clone()],
        ] {
            assert!(Settings::read(part).unwrap_err().contains("go together"));
        }
        let at = |url: &str| Settings::read([x.clone(), y.clone(), z.clone(), some(url)]);
        assert_eq!(at("https://id.test/in").unwrap().unwrap().sign_in_url.as_deref(), Some("https://id.test/in"));
        assert!(at("javascript:alert(1)").unwrap_err().contains("SEEDPLANE_JWT_SIGN_IN_URL"));
        for good in ["https://id.test/jwks", "http://127.0.0.1:9/jwks", "http://localhost/jwks"] {
            assert!(read(good).unwrap().is_some(), "{good}");
        }
        for bad in
            ["http://id.test/jwks", "https://us:pw@id.test/jwks", "file:///etc/passwd", "ftp://localhost/x", "jwks"]
        {
            let said = read(bad).unwrap_err();
            assert!(said.contains("https://") && !said.contains("us:pw"), "{bad}: {said}");
        }
    }
}
