//! Carries out operations on boxes: one step a call, re-reading the world each time, so that a crash between any two
//! lines is repaired by running the step again.
//!
//! No transaction or lock is held over a provider call. What a step writes is fenced by the resource's version; when
//! somebody else wrote first, the step is simply run again.

use std::time::Duration;

use jiff::SignedDuration;
use secrecy::SecretString;
use seedplane_provisioning::{
    Credentials, Error as ProviderError, MachineSpec, MachineState, ProvisioningProvider, ResourceRef, SuspendMode,
    Termination, node,
};
use serde_json::json;
use sqlx::PgConnection;

use super::{Next, StepError};
use crate::{
    app::App,
    audit::events::{self, Actor, Cause, Event, Subject},
    billing::{
        self,
        ledger::{self, Account, Reserve, Transfer, TransferKind},
        rules,
    },
    clock::Time,
    ids::AttemptId,
    mailer::{self, templates},
    money::Usd,
    orders::{self, OrderStatus},
    secrets::SecretPath,
    seedbox::{
        Operation, Resource, Status, SuspendReason,
        lifecycle::{self, Transition},
        repository::{self, Attempt, Outcome},
    },
};

/// After so many refused tries an operation is given up and an operator told.
const MAX_TRIES: i32 = 12;

/// A box that does not answer after this long counts as failed to be made.
const CREATE_DEADLINE: SignedDuration = SignedDuration::from_mins(10);

/// The next step of an operation.
///
/// # Errors
/// Those of the database and the secret store: the job is run again later.
pub async fn operate(app: &App, id: AttemptId) -> Result<Next, StepError> {
    let Some(attempt) = repository::attempt(&app.pool, id).await? else { return Ok(Next::Done) };
    if !attempt.is_open() {
        return Ok(Next::Done);
    }
    let Some(resource) = repository::resource(&app.pool, attempt.resource_id).await? else { return Ok(Next::Done) };
    let provider_name = resource.provider.clone().unwrap_or_default();
    let Some(provider) = app.provider(&provider_name) else {
        let detail = format!("this installation has no provider '{provider_name}'; the box is left as it is");
        repository::alert(&app.pool, "provider_missing", &resource.id.to_string(), &detail, app.now()).await?;
        return Ok(Next::Again(Duration::from_secs(60)));
    };
    let step = Step { app, provider: provider.as_ref(), attempt, resource };
    match step.attempt.operation {
        Operation::Create => step.create().await,
        Operation::Suspend => step.suspend().await,
        Operation::Resume => step.resume().await,
        Operation::RotateCredentials => step.rotate_credentials().await,
        Operation::Terminate => step.terminate().await,
    }
}

struct Step<'a> {
    app: &'a App,
    provider: &'a dyn ProvisioningProvider,
    attempt: Attempt,
    resource: Resource,
}

impl Step<'_> {
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

    async fn supersede(&self, why: &str) -> Result<Next, StepError> {
        let mut tx = self.app.pool.begin().await?;
        repository::lock_account_in(&mut tx, self.resource.user_id).await?;
        self.supersede_in(&mut tx, why).await?;
        tx.commit().await?;
        Ok(Next::Done)
    }

    async fn supersede_in(&self, connection: &mut PgConnection, why: &str) -> Result<(), StepError> {
        let now = self.app.now();
        if self.attempt.operation == Operation::Resume {
            ledger::void_in(connection, &self.resume_reserve(), now).await?;
        }
        repository::finish_attempt_in(connection, self.attempt.id, Outcome::Superseded, Some(why), now).await?;
        Ok(())
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
        repository::note_error(&self.app.pool, self.attempt.id, &error.to_string()).await?;
        let hopeless = matches!(error, ProviderError::Refused { .. } | ProviderError::Auth(_));
        if tries < MAX_TRIES && !hopeless {
            return Ok(Next::Again(Self::backoff(tries, error)));
        }
        let now = self.app.now();
        let mut tx = self.app.pool.begin().await?;
        repository::lock_account_in(&mut tx, self.resource.user_id).await?;
        if self.attempt.operation == Operation::Resume {
            ledger::void_in(&mut tx, &self.resume_reserve(), now).await?;
        }
        repository::finish_attempt_in(&mut tx, self.attempt.id, Outcome::Failed, Some(&error.to_string()), now).await?;
        let event = Event {
            subject: Subject::Resource(self.resource.id),
            action: "resource.operation_failed",
            before: None,
            after: Some(json!({ "operation": self.attempt.operation, "tries": tries, "error": error.to_string() })),
        };
        events::record_in(&mut tx, now, &Cause::system(), event).await?;
        let detail =
            format!("{} failed after {tries} tries: {error}. The box is left as it is.", self.attempt.operation);
        repository::alert(&mut *tx, "operation_failed", &self.resource.id.to_string(), &detail, now).await?;
        tx.commit().await?;
        Ok(Next::Done)
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

    fn order_reserve(&self) -> Option<Reserve> {
        self.resource.order_id.map(|order| Reserve {
            key: format!("reserve:{order}"),
            user_id: self.resource.user_id,
            resource_id: self.resource.id,
            order_id: Some(order),
        })
    }

    fn resume_reserve(&self) -> Reserve {
        Reserve {
            key: format!("resume:{}", self.attempt.id),
            user_id: self.resource.user_id,
            resource_id: self.resource.id,
            order_id: None,
        }
    }

    /// Calls the provider for a machine whose name we know, or finds the name by our id where the answer was lost.
    async fn resource_ref(&self) -> Result<Option<ResourceRef>, ProviderError> {
        if let Some(known) = &self.resource.resource_ref {
            return Ok(Some(ResourceRef(known.clone())));
        }
        Ok(self.provider.find(self.resource.id.0).await?.map(|machine| machine.resource_ref))
    }

    // Create ----------------------------------------------------------------------------------------------------------

    async fn create(mut self) -> Result<Next, StepError> {
        match self.resource.status {
            Status::Pending => {
                self.password().await?;
                let secret_ref = self.app.secrets.reference(&self.secret_path());
                let mut tx = self.app.pool.begin().await?;
                repository::set_secret_in(&mut tx, &mut self.resource, &secret_ref).await?;
                let (cause, provisioning) = (self.cause(), Transition::to(Status::Provisioning));
                lifecycle::transition_in(&mut tx, &mut self.resource, self.app.now(), &cause, provisioning).await?;
                tx.commit().await?;
            }
            Status::Provisioning => {}
            _ => return self.supersede("the box is past being made").await,
        }

        if self.resource.resource_ref.is_none() {
            let tries = repository::begin_try(&self.app.pool, self.attempt.id, self.app.now()).await?;
            let size = match self.resource.plan_id {
                Some(plan) => repository::plan(&self.app.pool, plan).await?.map(|plan| plan.size),
                None => None,
            };
            let spec = MachineSpec {
                resource_id: self.resource.id.0,
                size: size.unwrap_or_default(),
                credentials: Credentials { username: self.login_name(), password: self.password().await? },
            };
            match self.provider.create(&spec).await {
                Ok(machine) => {
                    let mut tx = self.app.pool.begin().await?;
                    repository::set_resource_ref_in(&mut tx, &mut self.resource, &machine.resource_ref.0).await?;
                    let after = Some(json!({ "resource_ref": machine.resource_ref.0, "try": tries }));
                    let event = Event {
                        subject: Subject::Resource(self.resource.id),
                        action: "resource.machine_made",
                        before: None,
                        after,
                    };
                    events::record_in(&mut tx, self.app.now(), &Cause::system(), event).await?;
                    tx.commit().await?;
                }
                Err(error) => {
                    let hopeless =
                        matches!(error, ProviderError::Refused { .. } | ProviderError::Auth(_)) || tries >= MAX_TRIES;
                    if hopeless {
                        return self.create_failed(&error.to_string()).await;
                    }
                    repository::note_error(&self.app.pool, self.attempt.id, &error.to_string()).await?;
                    return Ok(Next::Again(Self::backoff(tries, &error)));
                }
            }
        }

        let resource_ref = ResourceRef(self.resource.resource_ref.clone().expect("set just above"));
        match self.provider.status(&resource_ref).await {
            Ok(status) if status.state == MachineState::Running => self.activate(status.web_url.as_deref()).await,
            Ok(status) => {
                let waited = self.app.now().duration_since(self.resource.status_since.0);
                if status.state == MachineState::Gone || waited > CREATE_DEADLINE {
                    let why = format!(
                        "the machine did not come up in {} minutes (it is {:?})",
                        waited.as_mins(),
                        status.state
                    );
                    return self.create_failed(&why).await;
                }
                // Asked often at first, when a local box is about to answer, and seldom later.
                let wait = if waited.as_secs() < 5 { 100 } else { 2000 };
                Ok(Next::Again(Duration::from_millis(wait)))
            }
            Err(error) => {
                repository::note_error(&self.app.pool, self.attempt.id, &error.to_string()).await?;
                if self.app.now().duration_since(self.resource.status_since.0) > CREATE_DEADLINE {
                    return self.create_failed(&error.to_string()).await;
                }
                Ok(Next::Again(Duration::from_secs(2)))
            }
        }
    }

    async fn activate(mut self, web_url: Option<&str>) -> Result<Next, StepError> {
        let now = self.app.now();
        let cause = self.cause();
        let mut tx = self.app.pool.begin().await?;
        repository::lock_account_in(&mut tx, self.resource.user_id).await?;
        let active = Transition { web_url, ..Transition::to(Status::Active) };
        lifecycle::transition_in(&mut tx, &mut self.resource, now, &cause, active).await?;
        let paid_until = Time(rules::due(now.0, 1));
        repository::start_billing_in(&mut tx, &mut self.resource, now, paid_until).await?;
        if let Some(reserve) = self.order_reserve() {
            let key = format!("charge:{}:0", self.resource.id);
            ledger::post_in(&mut tx, &reserve, &key, Usd::ZERO, (now, paid_until), now).await?;
        }
        if let Some(order) = self.resource.order_id {
            orders::fulfil_in(&mut tx, order, now, &cause).await?;
        }
        repository::finish_attempt_in(&mut tx, self.attempt.id, Outcome::Done, None, now).await?;
        repository::wake_account_in(&mut tx, self.resource.user_id, now).await?;
        mailer::notify_in(&mut tx, templates::box_ready(&self.resource, paid_until), now).await?;
        tx.commit().await?;
        metrics::histogram!("seedplane_provisioning_seconds")
            .record(now.duration_since(self.resource.created_at.0).as_secs_f64());
        Ok(Next::Done)
    }

    /// Nothing was delivered: the money goes back to the cent, and whatever may be there upstream is cleaned up.
    async fn create_failed(mut self, why: &str) -> Result<Next, StepError> {
        let now = self.app.now();
        let mut tx = self.app.pool.begin().await?;
        repository::lock_account_in(&mut tx, self.resource.user_id).await?;
        self.fail_in(&mut tx, why).await?;
        repository::finish_attempt_in(&mut tx, self.attempt.id, Outcome::Failed, Some(why), now).await?;
        repository::request_operation_in(
            &mut tx,
            AttemptId::new(),
            self.resource.id,
            Operation::Terminate,
            "failed",
            now,
            &Cause::system(),
        )
        .await?;
        repository::alert(&mut *tx, "create_failed", &self.resource.id.to_string(), why, now).await?;
        mailer::notify_in(&mut tx, templates::box_failed(&self.resource), now).await?;
        tx.commit().await?;
        Ok(Next::Done)
    }

    /// `provisioning -> failed`, the reserve voided and the order closed, in the caller's transaction.
    async fn fail_in(&mut self, connection: &mut PgConnection, why: &str) -> Result<(), StepError> {
        let now = self.app.now();
        let cause = self.cause();
        lifecycle::transition_in(
            connection,
            &mut self.resource,
            now,
            &cause,
            Transition::to(Status::Failed).because(why),
        )
        .await?;
        if let Some(reserve) = self.order_reserve() {
            ledger::void_in(connection, &reserve, now).await?;
        }
        if let Some(order) = self.resource.order_id {
            orders::close_in(connection, order, OrderStatus::Paid, OrderStatus::Cancelled, why, now, &cause).await?;
        }
        repository::wake_account_in(connection, self.resource.user_id, now).await?;
        Ok(())
    }

    // Suspend ---------------------------------------------------------------------------------------------------------

    async fn suspend(mut self) -> Result<Next, StepError> {
        let now = self.app.now();
        let reason = SuspendReason::ALL.iter().copied().find(|reason| reason.as_str() == self.reason_word());
        let reason = reason.unwrap_or(SuspendReason::Operator);
        let escalates = self.resource.status == Status::Suspended && self.resource.suspend_reason != Some(reason);
        if self.resource.status != Status::Active && !escalates {
            return self.supersede("the box is not active").await;
        }
        if reason == SuspendReason::Billing {
            let held = self.resource.hold_until.is_some_and(|until| until > now);
            if self.resource.past_due_since.is_none() || held || escalates {
                return self.call_off_suspension(escalates).await;
            }
        }
        let Some(resource_ref) = self.resource.resource_ref.clone().map(ResourceRef) else {
            return self.supersede("the box has no machine").await;
        };
        let tries = repository::begin_try(&self.app.pool, self.attempt.id, now).await?;
        let mode = if reason == SuspendReason::Abuse { SuspendMode::Everything } else { SuspendMode::Service };
        let suspended = match self.provider.suspend(&resource_ref, mode).await {
            Ok(()) => self.provider.status(&resource_ref).await,
            Err(error) => Err(error),
        };
        match suspended {
            Ok(status) if matches!(status.state, MachineState::Stopped | MachineState::Gone) => {}
            Ok(status) => {
                let error = ProviderError::transient(format!("asked to stop, it is still {:?}", status.state));
                return self.after_error(tries, &error).await;
            }
            Err(error) => return self.after_error(tries, &error).await,
        }

        let now = self.app.now();
        let cause = self.cause();
        let mut tx = self.app.pool.begin().await?;
        repository::lock_account_in(&mut tx, self.resource.user_id).await?;
        if escalates {
            lifecycle::change_suspend_reason_in(&mut tx, &mut self.resource, reason, now, &cause).await?;
        } else {
            let transition = Transition {
                suspend_reason: Some(reason),
                ..Transition::to(Status::Suspended).because(&self.attempt.reason)
            };
            lifecycle::transition_in(&mut tx, &mut self.resource, now, &cause, transition).await?;
        }
        if reason == SuspendReason::Billing {
            let since = self.resource.past_due_since.unwrap_or(now);
            let arrears = rules::arrears(
                &rules_period(&self.resource),
                billing::price_at(&self.resource, since, &self.app.policy),
                since.0,
                now.0,
                &self.app.policy,
            );
            repository::set_arrears_in(&mut tx, &mut self.resource, arrears).await?;
            if arrears.is_positive() {
                let transfer = Transfer {
                    debit: Account::Receivable(self.resource.id),
                    credit: Account::Revenue,
                    amount: arrears,
                    kind: TransferKind::Arrears,
                    idempotency_key: format!("arrears:{}:{}", self.resource.id, self.resource.charged_total),
                    cause: "days of grace".to_owned(),
                    user_id: self.resource.user_id,
                    resource_id: Some(self.resource.id),
                    order_id: None,
                    period: None,
                };
                ledger::book_in(&mut tx, &[transfer], now).await?;
            }
        }
        if reason == SuspendReason::Abuse {
            repository::hold_payout_in(&mut tx, self.resource.user_id, &self.attempt.reason).await?;
        }
        repository::finish_attempt_in(&mut tx, self.attempt.id, Outcome::Done, None, now).await?;
        repository::wake_account_in(&mut tx, self.resource.user_id, now).await?;
        mailer::notify_in(&mut tx, templates::box_suspended(&self.resource, reason, &self.app.policy), now).await?;
        tx.commit().await?;
        Ok(Next::Done)
    }

    /// Paid for or held in the meantime: what the provider was already asked is undone before the suspension is dropped.
    async fn call_off_suspension(&self, suspended_already: bool) -> Result<Next, StepError> {
        if let (Some(resource_ref), true, false) =
            (&self.resource.resource_ref, self.attempt.tries > 0, suspended_already)
        {
            let resource_ref = ResourceRef(resource_ref.clone());
            let running = match self.provider.resume(&resource_ref).await {
                Ok(()) => self.provider.status(&resource_ref).await,
                Err(error) => Err(error),
            };
            match running {
                Ok(status) if status.state == MachineState::Running => {}
                Ok(_) => return Ok(Next::Again(Duration::from_millis(200))),
                Err(error) => {
                    repository::note_error(&self.app.pool, self.attempt.id, &error.to_string()).await?;
                    return Ok(Next::Again(Self::backoff(self.attempt.tries, &error)));
                }
            }
        }
        self.supersede("the box was paid for or is held in the meantime").await
    }

    // Resume ----------------------------------------------------------------------------------------------------------

    async fn resume(self) -> Result<Next, StepError> {
        let now = self.app.now();
        let for_billing = self.reason_word() == SuspendReason::Billing.as_str();
        if self.resource.status != Status::Suspended {
            return self.supersede("the box is not suspended").await;
        }
        if for_billing && self.resource.suspend_reason != Some(SuspendReason::Billing) {
            return self.supersede("the box is suspended for another reason, which money does not lift").await;
        }
        let Some(resource_ref) = self.resource.resource_ref.clone().map(ResourceRef) else {
            return self.supersede("the box has no machine").await;
        };
        let status = self.provider.status(&resource_ref).await;
        match status {
            Ok(status) if status.state == MachineState::Running => self.resumed(status.web_url.as_deref()).await,
            Ok(status) if status.state == MachineState::Building => Ok(Next::Again(Duration::from_millis(150))),
            Ok(_) => {
                let tries = repository::begin_try(&self.app.pool, self.attempt.id, now).await?;
                match self.provider.resume(&resource_ref).await {
                    Ok(()) if tries < MAX_TRIES => Ok(Next::Again(Duration::from_millis(100))),
                    Ok(()) => {
                        self.after_error(tries, &ProviderError::transient("resumed and still not answering")).await
                    }
                    Err(error) => self.after_error(tries, &error).await,
                }
            }
            Err(error) => {
                let tries = repository::begin_try(&self.app.pool, self.attempt.id, now).await?;
                self.after_error(tries, &error).await
            }
        }
    }

    async fn resumed(mut self, web_url: Option<&str>) -> Result<Next, StepError> {
        let now = self.app.now();
        let cause = self.cause();
        let for_billing = self.reason_word() == SuspendReason::Billing.as_str();
        let n = self.resource.charged_total;
        let mut tx = self.app.pool.begin().await?;
        repository::lock_account_in(&mut tx, self.resource.user_id).await?;
        let active = Transition { web_url, ..Transition::to(Status::Active).because(&self.attempt.reason) };
        lifecycle::transition_in(&mut tx, &mut self.resource, now, &cause, active).await?;
        if for_billing {
            let paid_until = Time(rules::due(now.0, 1));
            repository::start_billing_in(&mut tx, &mut self.resource, now, paid_until).await?;
            let key = format!("charge:{}:{n}", self.resource.id);
            ledger::post_in(&mut tx, &self.resume_reserve(), &key, self.attempt.arrears_cents, (now, paid_until), now)
                .await?;
        } else if self.resource.paid_until.is_none_or(|until| until <= now) {
            // The period it was suspended in is over and the days since were not served: a new one starts today.
            repository::restart_periods_in(&mut tx, &mut self.resource, now).await?;
        }
        repository::finish_attempt_in(&mut tx, self.attempt.id, Outcome::Done, None, now).await?;
        repository::wake_account_in(&mut tx, self.resource.user_id, now).await?;
        mailer::notify_in(&mut tx, templates::box_resumed(&self.resource), now).await?;
        tx.commit().await?;
        Ok(Next::Done)
    }

    // Rotate ----------------------------------------------------------------------------------------------------------

    async fn rotate_credentials(mut self) -> Result<Next, StepError> {
        if self.resource.status != Status::Active {
            return self.supersede("only an active box gets a new password").await;
        }
        let Some(resource_ref) = self.resource.resource_ref.clone().map(ResourceRef) else {
            return self.supersede("the box has no machine").await;
        };
        let tries = repository::begin_try(&self.app.pool, self.attempt.id, self.app.now()).await?;
        let credentials = Credentials { username: self.login_name(), password: self.password().await? };
        if let Err(error) = self.provider.rotate_credentials(&resource_ref, &credentials).await {
            return self.after_error(tries, &error).await;
        }
        let now = self.app.now();
        let old = self.resource.secret_ref.clone();
        let secret_ref = self.app.secrets.reference(&self.secret_path());
        let mut tx = self.app.pool.begin().await?;
        repository::set_secret_in(&mut tx, &mut self.resource, &secret_ref).await?;
        let event = Event {
            subject: Subject::Resource(self.resource.id),
            action: "resource.credentials_rotated",
            before: None,
            after: Some(json!({ "credentials_version": self.resource.credentials_version })),
        };
        events::record_in(&mut tx, now, &self.cause(), event).await?;
        repository::finish_attempt_in(&mut tx, self.attempt.id, Outcome::Done, None, now).await?;
        mailer::notify_in(&mut tx, templates::credentials_rotated(&self.resource), now).await?;
        tx.commit().await?;
        if let Some(old) = old.filter(|old| *old != secret_ref) {
            self.app.secrets.destroy_reference(&old).await?;
        }
        Ok(Next::Done)
    }

    // Terminate -------------------------------------------------------------------------------------------------------

    async fn terminate(mut self) -> Result<Next, StepError> {
        match self.resource.status {
            Status::Terminating => {}
            Status::Terminated => return self.supersede("the box is gone already").await,
            // Not handed to a provider yet: the create's own next step decides whether it is.
            Status::Pending | Status::Provisioning => {
                let mut tx = self.app.pool.begin().await?;
                repository::lock_account_in(&mut tx, self.resource.user_id).await?;
                let now = self.app.now();
                if self.resource.status == Status::Pending {
                    let cause = self.cause();
                    lifecycle::transition_in(
                        &mut tx,
                        &mut self.resource,
                        now,
                        &cause,
                        Transition::to(Status::Provisioning),
                    )
                    .await?;
                }
                self.fail_in(&mut tx, "cancelled").await?;
                self.begin_end_in(&mut tx).await?;
                tx.commit().await?;
            }
            Status::Active | Status::Suspended | Status::Failed => {
                if self.reason_word() == SuspendReason::Billing.as_str() && !self.may_end_for_billing().await? {
                    return self.supersede("the box was paid for or is held in the meantime").await;
                }
                let mut tx = self.app.pool.begin().await?;
                repository::lock_account_in(&mut tx, self.resource.user_id).await?;
                self.begin_end_in(&mut tx).await?;
                tx.commit().await?;
            }
        }

        let tries = repository::begin_try(&self.app.pool, self.attempt.id, self.app.now()).await?;
        let facts = match self.resource_ref().await {
            Ok(None) => {
                json!([{ "fact": "there is no machine with this box's tag at the provider", "at": self.app.now() }])
            }
            Ok(Some(resource_ref)) => match self.provider.terminate(&resource_ref).await {
                Ok(Termination::Gone(facts)) => json!(facts),
                Ok(Termination::InProgress { retry_after }) => return Ok(Next::Again(retry_after)),
                Err(error) => return self.wipe_error(tries, &error).await,
            },
            Err(error) => return self.wipe_error(tries, &error).await,
        };
        self.terminated(facts).await
    }

    /// A wipe is never given up: it costs money and holds somebody's data for as long as it is not done.
    async fn wipe_error(&self, tries: i32, error: &ProviderError) -> Result<Next, StepError> {
        repository::note_error(&self.app.pool, self.attempt.id, &error.to_string()).await?;
        if tries == MAX_TRIES {
            let detail = format!("the wipe has failed {tries} times and goes on being tried: {error}");
            repository::alert(&self.app.pool, "wipe_failing", &self.resource.id.to_string(), &detail, self.app.now())
                .await?;
        }
        Ok(Next::Again(Self::backoff(tries, error)))
    }

    async fn may_end_for_billing(&self) -> Result<bool, StepError> {
        let held = self.resource.hold_until.is_some_and(|until| until > self.app.now());
        let returning = repository::open_attempts(&self.app.pool, self.resource.id)
            .await?
            .iter()
            .any(|attempt| attempt.operation == Operation::Resume);
        Ok(!held && !returning && self.resource.suspend_reason == Some(SuspendReason::Billing))
    }

    /// `-> terminating`, with what the end does to money: arrears nobody will pay, and the refund the rules give.
    async fn begin_end_in(&mut self, connection: &mut PgConnection) -> Result<(), StepError> {
        let now = self.app.now();
        let cause = self.cause();
        let before = self.resource.clone();
        let why = self.attempt.reason.clone();
        lifecycle::transition_in(
            connection,
            &mut self.resource,
            now,
            &cause,
            Transition::to(Status::Terminating).because(&why),
        )
        .await?;
        for other in repository::open_attempts(&mut *connection, self.resource.id).await? {
            if other.id != self.attempt.id {
                if other.operation == Operation::Resume {
                    let reserve = Reserve { key: format!("resume:{}", other.id), ..self.resume_reserve() };
                    ledger::void_in(connection, &reserve, now).await?;
                }
                repository::finish_attempt_in(
                    connection,
                    other.id,
                    Outcome::Superseded,
                    Some("the box is being ended"),
                    now,
                )
                .await?;
            }
        }
        if before.arrears_cents.is_positive() {
            let transfer = Transfer {
                debit: Account::WrittenOff,
                credit: Account::Receivable(self.resource.id),
                amount: before.arrears_cents,
                kind: TransferKind::ArrearsWrittenOff,
                idempotency_key: format!("written_off:{}:{}", self.resource.id, self.resource.charged_total),
                cause: "the box ended".to_owned(),
                user_id: self.resource.user_id,
                resource_id: Some(self.resource.id),
                order_id: None,
                period: None,
            };
            ledger::book_in(connection, &[transfer], now).await?;
            repository::set_arrears_in(connection, &mut self.resource, Usd::ZERO).await?;
        }
        crate::billing::refunds::on_end_in(connection, &before, self.reason_word(), now, &cause, &self.app.policy)
            .await?;
        repository::wake_account_in(connection, self.resource.user_id, now).await?;
        Ok(())
    }

    async fn terminated(mut self, facts: serde_json::Value) -> Result<Next, StepError> {
        let now = self.app.now();
        let certificate = json!({
            "resource_id": self.resource.id,
            "provider": self.resource.provider,
            "method": "every file overwritten, then removed; seen to be gone twice",
            "facts": facts,
            "finished_at": now,
        });
        let mut tx = self.app.pool.begin().await?;
        repository::lock_account_in(&mut tx, self.resource.user_id).await?;
        let transition = Transition {
            wipe_certificate: Some(certificate.clone()),
            ..Transition::to(Status::Terminated).because(&self.attempt.reason)
        };
        let cause = self.cause();
        lifecycle::transition_in(&mut tx, &mut self.resource, now, &cause, transition).await?;
        repository::finish_attempt_in(&mut tx, self.attempt.id, Outcome::Done, None, now).await?;
        repository::wake_account_in(&mut tx, self.resource.user_id, now).await?;
        mailer::notify_in(&mut tx, templates::box_terminated(&self.resource, &certificate), now).await?;
        tx.commit().await?;
        // Those of operations that were not carried out, too.
        self.app.secrets.delete_all(&format!("resource/{}", self.resource.id)).await?;
        Ok(Next::Done)
    }
}

/// The period that is due or running, for proration.
fn rules_period(resource: &Resource) -> rules::Period {
    let anchor = resource.anchor_at.unwrap_or(resource.created_at).0;
    let n = u32::try_from(resource.periods_charged).unwrap_or(0);
    rules::Period { start: rules::due(anchor, n), end: rules::due(anchor, n + 1) }
}
