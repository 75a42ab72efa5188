//! Cutting a box off and bringing it back.

use std::time::Duration;

use seedplane_provisioning::{Error as ProviderError, MachineState, ResourceRef, SuspendMode};

use super::{MAX_TRIES, Next, Step, StepError};
use crate::{
    billing::{
        self,
        ledger::{self, Account, Transfer, TransferKind},
        plan_changes, refunds, reserves, rules, upstream_costs,
    },
    clock::Time,
    mailer::{self, templates},
    seedbox::{
        Operation, Status, SuspendReason,
        lifecycle::{self, Transition},
        operations::{self, Outcome},
        repository,
    },
};

impl Step<'_> {
    pub(super) async fn suspend(mut self) -> Result<Next, StepError> {
        let now = self.app.now();
        let reason = SuspendReason::ALL.iter().copied().find(|reason| reason.as_str() == self.reason_word());
        let reason = reason.unwrap_or(SuspendReason::Operator);
        let escalates = self.resource.status == Status::Suspended && self.resource.suspend_reason != Some(reason);
        if self.resource.status != Status::Active && !escalates {
            return self.supersede("the box is not active").await;
        }
        if reason == SuspendReason::Billing {
            let due = self.resource.past_due_since.is_some() && !self.is_held();
            if escalates || !due || !self.is_still_wanted().await? {
                return self.call_off_suspension(escalates).await;
            }
        }
        let Some(resource_ref) = self.resource.resource_ref.clone().map(ResourceRef) else {
            return self.supersede("the box has no machine").await;
        };
        let tries = operations::begin_try(&self.app.pool, self.attempt.id, now).await?;
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
            // What is not there does not run.
            Err(ProviderError::NotFound(_)) => {}
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
            let anchor = self.resource.anchor_at.unwrap_or(self.resource.created_at).0;
            let unpaid = rules::Period::nth(anchor, u32::try_from(self.resource.periods_charged).unwrap_or(0));
            let arrears = rules::arrears(
                &unpaid,
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
                    idempotency_key: format!("arrears:{}:{}", self.resource.id, self.resource.lapse_number),
                    cause: "days of grace".to_owned(),
                    user_id: self.resource.user_id,
                    resource_id: Some(self.resource.id),
                    order_id: None,
                    period: None,
                };
                ledger::book_in(&mut tx, &[transfer], now).await?;
            }
        }
        // Nobody's wish for it to come back outlives a new suspension, but an operator's.
        for other in operations::open_of(&mut *tx, self.resource.id).await? {
            if other.operation == Operation::Resume && !other.actor.starts_with("operator:") {
                let why = format!("the box was suspended in the meantime ({reason})");
                reserves::supersede_in(&mut tx, &other, &self.resource, &why, now).await?;
            }
        }
        if reason == SuspendReason::Abuse {
            repository::hold_payout_in(&mut tx, self.resource.user_id, &self.attempt.reason).await?;
        }
        operations::finish_in(&mut tx, self.attempt.id, Outcome::Done, None, now).await?;
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
                Ok(status) if status.state == MachineState::Gone => {
                    return self.give_up(self.attempt.tries, &ProviderError::NotFound(resource_ref)).await;
                }
                Err(error @ ProviderError::NotFound(_)) => return self.give_up(self.attempt.tries, &error).await,
                Ok(_) => return Ok(Next::Again(Duration::from_millis(200))),
                Err(error) => {
                    operations::note_error(&self.app.pool, self.attempt.id, &error.to_string()).await?;
                    return Ok(Next::Again(Self::backoff(self.attempt.tries, &error)));
                }
            }
        }
        self.supersede("the box was paid for or is held in the meantime").await
    }

    /// Whether who asks for the box to come back may lift what it is suspended for now: an operator anything, a payment what
    /// is unpaid, its owner what its owner asked for.
    fn may_lift(&self) -> bool {
        match self.resource.suspend_reason {
            _ if self.is_by_operator() => true,
            Some(reason @ SuspendReason::Billing) => {
                self.reason_word() == reason.as_str() && self.attempt.actor == "system"
            }
            Some(reason @ SuspendReason::User) => self.reason_word() == reason.as_str(),
            _ => false,
        }
    }

    pub(super) async fn resume(self) -> Result<Next, StepError> {
        let now = self.app.now();
        if self.resource.status != Status::Suspended {
            return self.supersede("the box is not suspended").await;
        }
        if !self.may_lift() {
            return self.supersede("the box is suspended for another reason, which only an operator lifts").await;
        }
        let Some(resource_ref) = self.resource.resource_ref.clone().map(ResourceRef) else {
            return self.supersede("the box has no machine").await;
        };
        let status = self.provider.status(&resource_ref).await;
        match status {
            Ok(status) if status.state == MachineState::Running => self.resumed(status.web_url.as_deref()).await,
            // Asking again brings back nothing, and would set money aside each time.
            Ok(status) if status.state == MachineState::Gone => {
                let tries = operations::begin_try(&self.app.pool, self.attempt.id, now).await?;
                self.give_up(tries, &ProviderError::NotFound(resource_ref)).await
            }
            Ok(status) if status.state == MachineState::Building => Ok(Next::Again(Duration::from_millis(150))),
            Ok(_) => {
                let tries = operations::begin_try(&self.app.pool, self.attempt.id, now).await?;
                match self.provider.resume(&resource_ref).await {
                    Ok(()) if tries < MAX_TRIES => Ok(Next::Again(Duration::from_millis(100))),
                    Ok(()) => {
                        self.after_error(tries, &ProviderError::transient("resumed and still not answering")).await
                    }
                    Err(error) => self.after_error(tries, &error).await,
                }
            }
            Err(error) => {
                let tries = operations::begin_try(&self.app.pool, self.attempt.id, now).await?;
                self.after_error(tries, &error).await
            }
        }
    }

    async fn resumed(mut self, web_url: Option<&str>) -> Result<Next, StepError> {
        let now = self.app.now();
        let cause = self.cause();
        let for_billing = self.reason_word() == SuspendReason::Billing.as_str();
        let n = self.resource.charged_total;
        let (before, idle_month) = (self.resource.clone(), self.idle_month().await?);
        let mut tx = self.app.pool.begin().await?;
        repository::lock_account_in(&mut tx, self.resource.user_id).await?;
        upstream_costs::book_in(&mut tx, &before, idle_month, now).await?;
        let active = Transition { web_url, ..Transition::to(Status::Active).because(&self.attempt.reason) };
        lifecycle::transition_in(&mut tx, &mut self.resource, now, &cause, active).await?;
        if for_billing {
            let paid_until = Time(rules::due(now.0, 1));
            repository::start_billing_in(&mut tx, &mut self.resource, now, paid_until).await?;
            let key = format!("charge:{}:{n}", self.resource.id);
            if let Some(reserve) = reserves::reserve_of(&self.attempt, &self.resource) {
                let arrears = self.attempt.arrears_cents;
                ledger::post_in(&mut tx, &reserve, &key, arrears, (now, paid_until), now).await?;
            }
            plan_changes::take_next_in(&mut tx, self.resource.id, now).await?;
        } else if self.resource.paid_until.is_none_or(|until| until <= now) {
            // The period it was suspended in is over and the days since were not served: a new one starts today. What it owes
            // is not carried into it.
            refunds::close_arrears_in(&mut tx, &mut self.resource, now).await?;
            repository::restart_periods_in(&mut tx, &mut self.resource, now).await?;
        }
        operations::finish_in(&mut tx, self.attempt.id, Outcome::Done, None, now).await?;
        repository::wake_account_in(&mut tx, self.resource.user_id, now).await?;
        mailer::notify_in(&mut tx, templates::box_resumed(&self.resource), now).await?;
        tx.commit().await?;
        Ok(Next::Done)
    }
}
