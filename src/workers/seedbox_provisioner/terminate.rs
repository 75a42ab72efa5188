//! The end of a box: what it does to money, the wipe, the certificate.

use std::time::Duration;

use seedplane_provisioning::{Error as ProviderError, Termination};
use serde_json::json;
use sqlx::PgConnection;

use super::{MAX_TRIES, Next, Step, StepError};
use crate::{
    alerts,
    billing::{refunds, reserves, sweep, upstream_costs},
    mailer::{self, templates},
    money::Usd,
    seedbox::{
        Operation, Status, SuspendReason,
        lifecycle::{self, Transition},
        operations::{self, Outcome},
        repository,
    },
};

/// A provider says when it saw something by the system's clock; a certificate has one clock, which in a trial is ahead of it.
fn in_our_time(mut facts: serde_json::Value, ahead: jiff::SignedDuration) -> serde_json::Value {
    for fact in facts.as_array_mut().into_iter().flatten() {
        if let Some(at) = fact["at"].as_str().and_then(|at| at.parse::<jiff::Timestamp>().ok()) {
            fact["at"] = json!(at + ahead);
        }
    }
    facts
}

impl Step<'_> {
    pub(super) async fn terminate(mut self) -> Result<Next, StepError> {
        // What was never delivered is cleaned up all the same.
        let under_way = matches!(self.resource.status, Status::Failed | Status::Terminating | Status::Terminated);
        if self.is_held() && !under_way {
            return self.supersede("an operator holds the box; ask again when the hold is over").await;
        }
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
                self.begin_end_in(&mut tx, Usd::ZERO).await?;
                tx.commit().await?;
            }
            Status::Active | Status::Suspended | Status::Failed => {
                let idle_month = self.idle_month().await?;
                let mut tx = self.app.pool.begin().await?;
                repository::lock_account_in(&mut tx, self.resource.user_id).await?;
                // Asked for by the rules: unpaid for too long, or as its owner wished and may have taken back.
                let by_rules = self.attempt.actor == "system" && self.resource.status != Status::Failed;
                if by_rules && !sweep::still_wanted_in(&mut tx, self.app, &self.resource, Operation::Terminate).await? {
                    tx.rollback().await?;
                    let why = "the rules no longer end the box: money came or is on its way, its owner took it back, or an \
                               interlock holds it";
                    return self.supersede(why).await;
                }
                self.begin_end_in(&mut tx, idle_month).await?;
                tx.commit().await?;
            }
        }

        let tries = operations::begin_try(&self.app.pool, self.attempt.id, self.app.now()).await?;
        // A machine that was asked for a moment ago may be there and not to be seen yet.
        let asked_at = operations::last_asked(&self.app.pool, self.resource.id).await?;
        let settled = self.is_settled(asked_at).await?;
        let (facts, wait) = match self.resource_ref().await {
            Ok(None) => {
                let fact = "there is no machine with this box's tag at the provider";
                (json!([{ "fact": fact, "at": self.app.now() }]), None)
            }
            Ok(Some(resource_ref)) => match self.provider.terminate(&resource_ref).await {
                Ok(Termination::Gone(facts)) => (in_our_time(json!(facts), self.app.clock.offset()), None),
                Ok(Termination::InProgress { retry_after, facts }) => {
                    (in_our_time(json!(facts), self.app.clock.offset()), Some(retry_after))
                }
                Err(error) => return self.wipe_error(tries, &error).await,
            },
            Err(error) => return self.wipe_error(tries, &error).await,
        };
        match wait {
            None if !settled => Ok(Next::Again(Duration::from_secs(5))),
            None => {
                let facts = operations::add_facts(&self.app.pool, self.attempt.id, &facts).await?;
                self.terminated(facts).await
            }
            Some(wait) => {
                operations::add_facts(&self.app.pool, self.attempt.id, &facts).await?;
                Ok(Next::Again(wait))
            }
        }
    }

    /// A wipe is never given up: it costs money and holds somebody's data for as long as it is not done.
    async fn wipe_error(&self, tries: i32, error: &ProviderError) -> Result<Next, StepError> {
        operations::note_error(&self.app.pool, self.attempt.id, &error.to_string()).await?;
        if tries == MAX_TRIES {
            let detail = format!("the wipe has failed {tries} times and goes on being tried: {error}");
            alerts::raise(&self.app.pool, "wipe_failing", &self.resource.id.to_string(), &detail, self.app.now())
                .await?;
        }
        Ok(Next::Again(Self::backoff(tries, error)))
    }

    /// `-> terminating`, with what the end does to money: arrears nobody will pay, and the refund the rules give.
    /// `idle_month` is what a month of it has cost upstream while it was suspended.
    async fn begin_end_in(&mut self, connection: &mut PgConnection, idle_month: Usd) -> Result<(), StepError> {
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
        for other in operations::open_of(&mut *connection, self.resource.id).await? {
            if other.id != self.attempt.id {
                reserves::supersede_in(connection, &other, &self.resource, "the box is being ended", now).await?;
            }
        }
        upstream_costs::book_in(connection, &before, idle_month, now).await?;
        refunds::write_off_arrears_in(connection, &mut self.resource, "the box ended", now).await?;
        if self.reason_word() == SuspendReason::Abuse.as_str() {
            repository::hold_payout_in(connection, self.resource.user_id, &why).await?;
        }
        refunds::on_end_in(connection, &before, self.reason_word(), now, &cause, &self.app.policy).await?;
        repository::wake_account_in(connection, self.resource.user_id, now).await?;
        Ok(())
    }

    async fn terminated(mut self, facts: serde_json::Value) -> Result<Next, StepError> {
        // Those of operations that were not carried out, too; and first, because nobody comes back to a box that has ended.
        self.app.secrets.delete_all(&format!("resource/{}", self.resource.id)).await?;
        let now = self.app.now();
        let certificate = json!({
            "resource_id": self.resource.id,
            "provider": self.resource.provider,
            "method": self.provider.wipe_method(),
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
        if self.reason_word() == SuspendReason::Abuse.as_str() {
            // An end that its owner had begun and an operator took over, too.
            repository::hold_payout_in(&mut tx, self.resource.user_id, &self.attempt.reason).await?;
        }
        operations::finish_in(&mut tx, self.attempt.id, Outcome::Done, None, now).await?;
        repository::wake_account_in(&mut tx, self.resource.user_id, now).await?;
        let refund = crate::billing::refunds::of_end(&mut tx, &self.resource).await?;
        mailer::notify_in(&mut tx, templates::box_terminated(&self.resource, &certificate, refund), now).await?;
        tx.commit().await?;
        Ok(Next::Done)
    }
}
