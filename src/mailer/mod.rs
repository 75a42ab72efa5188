//! What is said to people: notices, written once each in the transaction that makes them true, and handed to a mailer by
//! a worker. When a mail was handed over is a fact that the rules depend on, so it is written down.

use std::{fmt, path::PathBuf, time::Duration};

use async_trait::async_trait;
use jiff::SignedDuration;
use lettre::{
    AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    message::{
        Mailbox, MultiPart,
        header::{HeaderName, HeaderValue},
    },
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor, PgPool};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use crate::{
    accounts, alerts,
    brand::Brand,
    clock::{Clock, Time},
    ids::{ResourceId, UserId},
    jobs::{self, Job},
    seedbox::plans,
};

pub mod html;
pub mod templates;

/// Where a mail's text gets its one-time link: the link is made when the mail is handed over, so that the database never
/// holds what opens it.
pub const CREDENTIALS_LINK: &str = "{{credentials link}}";

/// The same for the link with which a forgotten password is replaced.
pub const RESET_LINK: &str = "{{reset link}}";

/// After so many refusals of one mail an operator is told; it goes on being tried, seldom.
const UNDELIVERABLE_AFTER: i32 = 8;

/// How many mails one call hands over at most.
const MAILS_A_CALL: usize = 100;

/// A mailer that takes longer than this for one mail has not taken it.
const SENDING_TAKES_AT_MOST: Duration = Duration::from_secs(60);

/// For how long a mail is one worker's: longer than handing it over may take.
const CLAIM: SignedDuration = SignedDuration::from_mins(2);

/// How long a one-time link opens.
const LINK_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 3);

/// A notice to one person.
#[derive(Debug, Clone)]
pub struct Notice<'a> {
    /// To whom.
    pub user_id: UserId,
    /// About which resource.
    pub resource_id: Option<ResourceId>,
    /// Which notice: `box_ready`, `runway`, `final_warning`.
    pub kind: &'a str,
    /// Says it once: a notice with the same key is not said again.
    pub idempotency_key: String,
    /// The numbers and dates it states.
    pub facts: Value,
    /// The mail's subject.
    pub subject: String,
    /// The mail's text.
    pub body: String,
}

/// Writes a notice, its mail and the job that hands it over, in the caller's transaction. False if it was said before.
///
/// # Errors
/// Those of the database.
pub async fn notify_in(connection: &mut PgConnection, notice: Notice<'_>, at: Time) -> sqlx::Result<bool> {
    let id = sqlx::query_scalar!(
        "insert into notices (id, user_id, resource_id, kind, idempotency_key, facts, created_at)
         values ($1, $2, $3, $4, $5, $6, $7) on conflict (idempotency_key) do nothing returning id",
        Uuid::now_v7(),
        notice.user_id.0,
        notice.resource_id.map(|id| id.0),
        notice.kind,
        notice.idempotency_key,
        notice.facts,
        at,
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(id) = id else { return Ok(false) };
    sqlx::query!(
        "insert into mail_outbox (id, user_id, notice_id, subject, body, created_at, next_try_at) values ($1, $2, $3, $4, $5, $6, $6)",
        Uuid::now_v7(),
        notice.user_id.0,
        id,
        notice.subject,
        notice.body,
        at,
    )
    .execute(&mut *connection)
    .await?;
    jobs::enqueue_in(connection, Job::SendMail(Some(notice.user_id))).await?;
    Ok(true)
}

/// Writes a mail to somebody who has no account, and the job that hands it over, in the caller's transaction.
///
/// # Errors
/// Those of the database.
pub async fn write_in(
    connection: &mut PgConnection,
    address: &str,
    subject: &str,
    body: &str,
    at: Time,
) -> sqlx::Result<()> {
    sqlx::query!(
        "insert into mail_outbox (id, address, subject, body, created_at, next_try_at) values ($1, $2, $3, $4, $5, $5)",
        Uuid::now_v7(),
        address,
        subject,
        body,
        at,
    )
    .execute(&mut *connection)
    .await?;
    jobs::enqueue_in(connection, Job::SendMail(None)).await
}

/// Takes mails.
#[async_trait]
pub trait Mailer: Send + Sync + fmt::Debug {
    /// Hands a mail over. `Ok` means that it was accepted.
    ///
    /// # Errors
    /// What went wrong, for the log; it will be tried again.
    async fn send(&self, id: Uuid, to: &str, subject: &str, body: SecretString) -> Result<(), String>;

    /// The folder the trial's inbox page reads; `None` for a mailer that sends for real.
    fn inbox(&self) -> Option<&std::path::Path> {
        None
    }
}

/// Sends by SMTP: the text, and the same words as HTML.
#[derive(Debug)]
pub struct SmtpMailer {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    letterhead: html::Letterhead,
}

impl SmtpMailer {
    /// What is wrong with the URL or the address, without repeating the URL; nothing is connected to.
    pub fn check(url: &SecretString, from: &str) -> Vec<String> {
        let url = AsyncSmtpTransport::<Tokio1Executor>::from_url(url.expose_secret())
            .map(drop)
            .map_err(|_| "SMTP_URL is not an smtp:// or smtps:// URL".to_owned());
        let from =
            from.parse::<Mailbox>().map(drop).map_err(|error| format!("MAIL_FROM is not an e-mail address: {error}"));
        [url, from].into_iter().filter_map(Result::err).collect()
    }

    /// A mailer for an `smtp://` or `smtps://` URL, which may hold a user and a password; its mails bear the operator's name.
    ///
    /// # Errors
    /// What is wrong with the URL or the address, without repeating the URL.
    pub fn new(url: &SecretString, from: &str, brand: &Brand) -> Result<Self, String> {
        let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(url.expose_secret())
            .map_err(|_| "SMTP_URL is not an smtp:// or smtps:// URL".to_owned())?
            .timeout(Some(Duration::from_secs(20)))
            .build();
        let from = from.parse().map_err(|error| format!("MAIL_FROM is not an e-mail address: {error}"))?;
        Ok(Self { transport, from, letterhead: html::Letterhead::new(brand) })
    }
}

#[async_trait]
impl Mailer for SmtpMailer {
    async fn send(&self, id: Uuid, to: &str, subject: &str, body: SecretString) -> Result<(), String> {
        let to: Mailbox = to.parse().map_err(|error| format!("not an e-mail address: {error}"))?;
        let text = body.expose_secret();
        // A subject is one line, whatever the name of a box in it has.
        let subject = subject.split_whitespace().collect::<Vec<_>>().join(" ");
        let html = self.letterhead.html(&subject, text).map_err(|error| error.to_string())?;
        let message = Message::builder()
            .from(self.from.clone())
            .to(to)
            .subject(subject)
            .message_id(Some(format!("<{id}@seedplane>")))
            // The time of the world: to mail servers a date of the trial's clock, which can be moved, looks forged.
            .date_now()
            // No out-of-office note answers it.
            .raw_header(HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned()))
            .multipart(MultiPart::alternative_plain_html(text.to_owned(), html))
            .map_err(|error| error.to_string())?;
        self.transport.send(message).await.map(drop).map_err(|error| error.to_string())
    }
}

/// The trial's mailer: a folder that the inbox page shows.
#[derive(Debug)]
pub struct InboxMailer {
    folder: PathBuf,
}

impl InboxMailer {
    /// Mails land in `folder`, which is made if need be, readable by us alone.
    ///
    /// # Errors
    /// Those of making the folder.
    pub fn new(folder: PathBuf) -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self { folder })
    }
}

#[async_trait]
impl Mailer for InboxMailer {
    async fn send(&self, id: Uuid, to: &str, subject: &str, body: SecretString) -> Result<(), String> {
        let text = format!("To: {to}\nSubject: {subject}\n\n{}\n", body.expose_secret());
        let (temporary, path) = (self.folder.join(format!(".{id}")), self.folder.join(format!("{id}.txt")));
        let write = async {
            let mut file = tokio::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)
                .await?;
            file.write_all(text.as_bytes()).await?;
            file.sync_all().await?;
            tokio::fs::rename(&temporary, &path).await
        };
        write.await.map_err(|error| error.to_string())
    }

    fn inbox(&self) -> Option<&std::path::Path> {
        Some(&self.folder)
    }
}

/// Hands over what waits, at most 100 mails a call. True if there may be more.
///
/// # Errors
/// Those of the database; a mail that the mailer refuses is tried again later, with longer and longer pauses.
pub async fn send_waiting(pool: &PgPool, mailer: &dyn Mailer, public_url: &str, clock: &Clock) -> sqlx::Result<bool> {
    for _ in 0..MAILS_A_CALL {
        if !send_next(pool, mailer, public_url, clock).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Hands over the mail that has waited longest. False if none waits.
async fn send_next(pool: &PgPool, mailer: &dyn Mailer, public_url: &str, clock: &Clock) -> sqlx::Result<bool> {
    let at = Time(clock.now());
    // Claimed by moving the next try forward, so that no lock is held while the mailer is at work: one by one, and for longer
    // than handing it over may take, so that two workers do not hand over the same mail. A crash in between repeats the mail
    // under the same message id.
    let mail = sqlx::query!(
        r#"update mail_outbox m set tries = m.tries + 1, next_try_at = $2
           where m.id = (
               select id from mail_outbox where handed_at is null and next_try_at <= $1
               order by next_try_at limit 1 for update skip locked)
           returning m.id, m.subject, m.body, m.user_id as "user_id: UserId", m.notice_id, m.tries, m.created_at as "created_at: Time",
               coalesce(m.address, (select email from users u where u.id = m.user_id)) as "email!",
               (select resource_id from notices n where n.id = m.notice_id) as resource_id"#,
        at,
        Time(at.0 + CLAIM),
    )
    .fetch_optional(pool)
    .await?;
    let Some(mail) = mail else { return Ok(false) };
    let mut body = mail.body;
    if let Some(user) = mail.user_id
        && body.contains(CREDENTIALS_LINK)
    {
        let (token, hash) = accounts::new_token("spl");
        sqlx::query!(
            "insert into one_time_links (token_hash, user_id, resource_id, purpose, created_at, expires_at, credentials_version)
             values ($1, $2, $3, 'credentials', $4, $5, (select credentials_version from seedbox_resources where id = $3))",
            &hash,
            user.0,
            mail.resource_id as _,
            at,
            Time(at.0 + LINK_LIFETIME),
        )
        .execute(pool)
        .await?;
        body = body.replace(CREDENTIALS_LINK, &format!("{public_url}/link/{}", token.expose_secret()));
    }
    if let Some(user) = mail.user_id
        && body.contains(RESET_LINK)
    {
        let token = accounts::open_reset(pool, user, mail.created_at, at).await?;
        body = body.replace(RESET_LINK, &format!("{public_url}/reset/{}", token.expose_secret()));
    }
    let sent = tokio::time::timeout(
        SENDING_TAKES_AT_MOST,
        mailer.send(mail.id, &mail.email, &mail.subject, SecretString::from(body)),
    )
    .await
    .unwrap_or_else(|_| Err(format!("the mailer did not answer within {} seconds", SENDING_TAKES_AT_MOST.as_secs())));
    // When it was handed over, not when its turn came: warnings count from here.
    let at = Time(clock.now());
    match sent {
        Ok(()) => {
            // The notice first: when it was handed over is what the rules ask.
            sqlx::query!(
                "with handed as (update mail_outbox set handed_at = $2, last_error = null where id = $1 returning notice_id)
                 update notices set handed_at = coalesce(handed_at, $2) where id in (select notice_id from handed)",
                mail.id,
                at
            )
            .execute(pool)
            .await?;
            if let Some(notice) = mail.notice_id {
                plans::price_was_told(pool, notice, at).await?;
                sqlx::query!(
                    "update seedbox_billing_accounts set next_sweep_at = least(next_sweep_at, $2) where user_id = $1",
                    mail.user_id.map(|user| user.0),
                    at
                )
                .execute(pool)
                .await?;
            }
        }
        // A stranger's address is in no log, and what it does not take says nothing of the mailer.
        Err(_) if mail.user_id.is_none() && mail.tries >= UNDELIVERABLE_AFTER => {
            tracing::warn!(mail = %mail.id, tries = mail.tries, "a mail to somebody without an account was given up");
            sqlx::query!("delete from mail_outbox where id = $1", mail.id).execute(pool).await?;
        }
        Err(error) => {
            let error = if mail.user_id.is_some() { error } else { "the mailer did not take it".to_owned() };
            tracing::warn!(mail = %mail.id, tries = mail.tries, error, "the mailer did not take a mail");
            if let Some(user) = mail.user_id
                && mail.tries == UNDELIVERABLE_AFTER
            {
                let detail = format!("'{}' was refused {} times: {error}", mail.subject, mail.tries);
                alerts::raise(pool, "mail_undeliverable", &user.to_string(), &detail, at).await?;
            }
            let pause = SignedDuration::from_mins(1 << mail.tries.clamp(1, 9).saturating_sub(1));
            sqlx::query!(
                "update mail_outbox set last_error = left($2, 500), next_try_at = $3 where id = $1",
                mail.id,
                error,
                Time(at.0 + pause)
            )
            .execute(pool)
            .await?;
        }
    }
    Ok(true)
}

/// Whether the mailer is failing: a mail has waited for more than 15 minutes in spite of being tried, and none that was
/// written after it has been handed over. A mailbox that takes nothing is not a mailer that fails, and an address that anybody
/// may type into a form says nothing at all.
///
/// # Errors
/// Those of the database.
pub async fn is_failing(executor: impl PgExecutor<'_>, at: Time) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"select exists (
               select from mail_outbox waiting where handed_at is null and tries > 1 and last_error is not null and user_id is not null
               and created_at < $1::timestamptz - interval '15 minutes'
               and not exists (select from mail_outbox later where later.handed_at > waiting.created_at)) as "failing!""#,
        at
    )
    .fetch_one(executor)
    .await
}
