//! Carries out operations on boxes: one step a call, re-reading the world each time, so that a crash between any two
//! lines is repaired by running the step again.
//!
//! No transaction or lock is held over a provider call. What a step writes is fenced by the resource's version; when
//! somebody else wrote first, the step is simply run again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use seedplane_provisioning::{Error as ProviderError, ProvisioningProvider, ResourceRef, node};
use serde_json::json;
use sqlx::PgConnection;

use super::{Next, StepError};
use crate::{
    alerts,
    app::App,
    audit::events::{self, Actor, Cause, Event, Subject},
    billing::{ledger, reserves, sweep},
    clock::Time,
    ids::AttemptId,
    money::Usd,
    secrets::SecretPath,
    seedbox::{
        Operation, Resource, Status, SuspendReason, catalogues,
        operations::{self, Attempt, Outcome},
        plans, repository,
    },
};

/// After so many refused tries an operation is given up and an operator told.
const MAX_TRIES: i32 = 12;

/// The next step of an operation.
///
/// # Errors
/// Those of the database and the secret store: the job is run again later.
pub async fn operate(app: &App, id: AttemptId) -> Result<Next, StepError> {
    let Some(attempt) = operations::find(&app.pool, id).await? else { return Ok(Next::Done) };
    if !attempt.is_open() {
        if attempt.operation == Operation::RotateCredentials {
            // Asked once more: whoever carried it out may have died before the old password was destroyed.
            rotate::destroy_spent_passwords(app, attempt.resource_id).await?;
        }
        return Ok(Next::Done);
    }
    let Some(resource) = repository::resource(&app.pool, attempt.resource_id).await? else { return Ok(Next::Done) };
    let provider_name = resource.provider.clone().unwrap_or_default();
    let Some(provider) = app.provider(&provider_name) else {
        let detail = format!("this installation has no provider '{provider_name}'; the box is left as it is");
        alerts::raise(&app.pool, "provider_missing", &resource.id.to_string(), &detail, app.now()).await?;
        return Ok(Next::Again(Duration::from_secs(60)));
    };
    let step = Step { app, provider: provider.as_ref(), attempt, resource };
    match step.attempt.operation {
        Operation::Create => step.create().await,
        Operation::Suspend => step.suspend().await,
        Operation::Resume => step.resume().await,
        Operation::Restart => step.restart().await,
        Operation::RotateCredentials => step.rotate_credentials().await,
        Operation::Resize => step.resize().await,
        Operation::Terminate => step.terminate().await,
    }
}

mod create;
mod resize;
mod restart;
mod rotate;
mod suspend;
mod terminate;

struct Step<'a> {
    app: &'a App,
    provider: &'a dyn ProvisioningProvider,
    attempt: Attempt,
    resource: Resource,
}

impl Step<'_> {
    /// Whether an operator asked for it, whose decision beats everybody else's.
    fn is_by_operator(&self) -> bool {
        self.attempt.actor.starts_with("operator:")
    }

    fn is_held(&self) -> bool {
        self.resource.hold_until.is_some_and(|until| until > self.app.now())
    }

    fn cause(&self) -> Cause {
        let actor = match self.attempt.actor.split_once(':') {
            Some(("operator", id)) => id.parse().map(|id| Actor::Operator(crate::ids::UserId(id))),
            Some(("user", id)) => id.parse().map(|id| Actor::User(crate::ids::UserId(id))),
            _ => Ok(Actor::System),
        };
        let actor = actor.unwrap_or(Actor::System);
        let reason = match (&actor, self.attempt.reason.as_str()) {
            (Actor::Operator(_), "") => "asked by an operator".to_owned(),
            (_, reason) => reason.to_owned(),
        };
        Cause { actor, reason, request_id: None }
    }

    /// The first word of the attempt's reason: a [`SuspendReason`] or the reason of an end.
    fn reason_word(&self) -> &str {
        self.attempt.reason.split(':').next().unwrap_or_default()
    }

    /// Whether the rules, asked again, still want what was asked for on their behalf.
    async fn is_still_wanted(&self) -> Result<bool, StepError> {
        let mut tx = self.app.pool.begin().await?;
        repository::lock_account_in(&mut tx, self.resource.user_id).await?;
        let wanted = sweep::still_wanted_in(&mut tx, self.app, &self.resource, self.attempt.operation).await?;
        tx.commit().await?;
        Ok(wanted)
    }

    async fn supersede(&self, why: &str) -> Result<Next, StepError> {
        let mut tx = self.app.pool.begin().await?;
        repository::lock_account_in(&mut tx, self.resource.user_id).await?;
        reserves::supersede_in(&mut tx, &self.attempt, &self.resource, why, self.app.now()).await?;
        repository::wake_account_in(&mut tx, self.resource.user_id, self.app.now()).await?;
        tx.commit().await?;
        Ok(Next::Done)
    }

    /// Waits longer after each try, up to a minute, or as long as the provider asks.
    fn backoff(tries: i32, error: &ProviderError) -> Duration {
        if let ProviderError::Transient { retry_after: Some(wait), .. } = error {
            return (*wait).min(Duration::from_secs(600));
        }
        Duration::from_millis(500 * (1 << tries.clamp(0, 7)))
    }

    /// After a provider's error: again later, or given up with an alert and the resource left where it is.
    async fn after_error(&self, tries: i32, error: &ProviderError) -> Result<Next, StepError> {
        operations::note_error(&self.app.pool, self.attempt.id, &error.to_string()).await?;
        let hopeless = matches!(error, ProviderError::Refused { .. } | ProviderError::Auth(_));
        if tries < MAX_TRIES && !hopeless {
            return Ok(Next::Again(Self::backoff(tries, error)));
        }
        self.give_up(tries, error).await
    }

    /// Ends the operation with an alert, what it set aside given back and the resource left where it is.
    async fn give_up(&self, tries: i32, error: &ProviderError) -> Result<Next, StepError> {
        let now = self.app.now();
        let mut tx = self.app.pool.begin().await?;
        repository::lock_account_in(&mut tx, self.resource.user_id).await?;
        operations::finish_in(&mut tx, self.attempt.id, Outcome::Failed, Some(&error.to_string()), now).await?;
        if let Some(reserve) = reserves::reserve_of(&self.attempt, &self.resource) {
            ledger::void_in(&mut tx, &reserve, now).await?;
        }
        let event = Event {
            subject: Subject::Resource(self.resource.id),
            action: "resource.operation_failed",
            before: None,
            after: Some(json!({ "operation": self.attempt.operation, "tries": tries, "error": error.to_string() })),
        };
        events::record_in(&mut tx, now, &Cause::system(), event).await?;
        let detail =
            format!("{} failed after {tries} tries: {error}. The box is left as it is.", self.attempt.operation);
        alerts::raise(&mut *tx, "operation_failed", &self.resource.id.to_string(), &detail, now).await?;
        if matches!(error, ProviderError::NotFound(_)) {
            report_gone_in(&mut tx, &self.resource, now).await?;
        }
        tx.commit().await?;
        Ok(Next::Done)
    }

    /// How long a new machine of this provider may take to answer: ten minutes where that was never read.
    async fn ready_within(&self) -> Result<SignedDuration, StepError> {
        let known = catalogues::offered(&self.app.pool, self.provider.name()).await?;
        Ok(SignedDuration::from_secs(known.map_or(600, |known| known.ready_within_seconds.into())))
    }

    /// Whether a machine that was asked for then, by the system's clock, would be seen by now.
    async fn is_settled(&self, asked_at: Option<Time>) -> Result<bool, StepError> {
        let Some(asked_at) = asked_at else { return Ok(true) };
        let known = catalogues::offered(&self.app.pool, self.provider.name()).await?;
        let settles = SignedDuration::from_secs(known.map_or(0, |known| known.settles_within_seconds.into()));
        Ok(Timestamp::now().duration_since(asked_at.0) >= settles)
    }

    fn secret_path(&self) -> SecretPath {
        SecretPath::new(format!("resource/{}/password-{}", self.resource.id, self.attempt.id))
            .expect("ids and words make a secret path")
    }

    /// The password of this operation: made on its first step, found again on every later one.
    async fn password(&self) -> Result<SecretString, StepError> {
        Ok(self.app.secrets.get_or_put(&self.secret_path(), node::random_password()).await?)
    }

    fn login_name(&self) -> String {
        self.resource.login_name.clone().unwrap_or_else(|| "seed".to_owned())
    }

    /// What a month of this box costs upstream while it is suspended; nothing where it is not, or where stopped machines cost
    /// nothing. A provider that does not say now is no reason to keep a box from its owner: an operator books it then.
    async fn idle_month(&self) -> Result<Usd, StepError> {
        let gone = self.resource.suspend_reason == Some(SuspendReason::Upstream);
        if self.resource.suspended_at.is_none() || gone {
            return Ok(Usd::ZERO);
        }
        let capabilities = match self.provider.capabilities().await {
            Ok(capabilities) => capabilities,
            Err(error) => {
                let detail = format!("what this box cost upstream while it was suspended was not booked: {error}");
                let (id, now) = (self.resource.id.to_string(), self.app.now());
                alerts::raise(&self.app.pool, "upstream_cost_unknown", &id, &detail, now).await?;
                return Ok(Usd::ZERO);
            }
        };
        let plan = match self.resource.plan_id {
            Some(plan) => plans::find(&self.app.pool, plan).await?,
            None => None,
        };
        let size = plan.and_then(|plan| capabilities.sizes.into_iter().find(|size| size.name == plan.size));
        Ok(size
            .filter(|_| capabilities.stopped_costs)
            .map_or(Usd::ZERO, |size| Usd::from_cents(size.monthly_cost_cents)))
    }

    /// Calls the provider for a machine whose name we know, or finds the name by our id where the answer was lost.
    async fn resource_ref(&self) -> Result<Option<ResourceRef>, ProviderError> {
        if let Some(known) = &self.resource.resource_ref {
            return Ok(Some(ResourceRef(known.clone())));
        }
        Ok(self.provider.find(self.resource.id.0).await?.map(|machine| machine.resource_ref))
    }
}

/// Tells an operator that the machine of a box is gone, and asks for the box to be suspended for it: what is not served is not
/// charged, and no payment tries to bring it back. What an operator suspended stays as it is.
///
/// # Errors
/// Those of the database.
pub async fn report_gone_in(connection: &mut PgConnection, resource: &Resource, at: Time) -> sqlx::Result<()> {
    let detail = "the provider no longer has the machine of this box. Its service is cut and nothing is charged; bring the \
                  machine back and resume the box, or end it (`fault` gives back what was not served)";
    alerts::raise(&mut *connection, "machine_gone", &resource.id.to_string(), detail, at).await?;
    let lapses = matches!(resource.suspend_reason, None | Some(SuspendReason::Billing | SuspendReason::User));
    if lapses && matches!(resource.status, Status::Active | Status::Suspended) {
        let reason = format!("{}: the provider no longer has the machine", SuspendReason::Upstream);
        let (attempt, cause) = (AttemptId::new(), Cause::system());
        operations::request_in(connection, attempt, resource.id, Operation::Suspend, &reason, at, &cause).await?;
    }
    Ok(())
}
