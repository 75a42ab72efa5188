//! Making a box, and what happens when it cannot be made.

use std::time::Duration;

use jiff::Timestamp;
use seedplane_provisioning::{Credentials, Error as ProviderError, MachineSpec, MachineState, ResourceRef};
use serde_json::json;
use sqlx::PgConnection;

use super::{MAX_TRIES, Next, Step, StepError};
use crate::{
    alerts,
    audit::events::{self, Cause, Event, Subject},
    billing::{
        ledger::{self, Reserve},
        rules,
    },
    clock::Time,
    ids::AttemptId,
    mailer::{self, templates},
    money::Usd,
    orders::{self, OrderStatus},
    seedbox::{
        Operation, Status, catalogues,
        lifecycle::{self, Transition},
        operations::{self, Outcome},
        plans, repository,
    },
    usage,
};

impl Step<'_> {
    fn order_reserve(&self) -> Option<Reserve> {
        self.resource.order_id.map(|order| Reserve {
            key: format!("reserve:{order}"),
            user_id: self.resource.user_id,
            resource_id: self.resource.id,
            order_id: Some(order),
        })
    }

    pub(super) async fn create(mut self) -> Result<Next, StepError> {
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
            let tries = operations::begin_try(&self.app.pool, self.attempt.id, self.app.now()).await?;
            let plan = match self.resource.plan_id {
                Some(plan) => plans::find(&self.app.pool, plan).await?,
                None => None,
            };
            let (size, region) = plan.map(|plan| (plan.size, plan.region)).unwrap_or_default();
            let (asked_at, unknown) = (self.attempt.asked_at, self.attempt.outcome_unknown);
            let spec = MachineSpec {
                resource_id: self.resource.id.0,
                size,
                region,
                credentials: Credentials { username: self.login_name(), password: self.password().await? },
                maybe_made_at: asked_at.filter(|_| unknown).map(|at| at.0),
            };
            // As long as one may come to light the provider asks for none, and that time is not begun anew.
            if !unknown || self.is_settled(asked_at).await? {
                operations::note_asking(&self.app.pool, self.attempt.id, Time(Timestamp::now())).await?;
            }
            let made = self.provider.create(&spec).await;
            if let Err(error) = &made
                && !matches!(error, ProviderError::Unknown(_))
            {
                operations::note_asked(&self.app.pool, self.attempt.id, asked_at, unknown).await?;
            }
            match made {
                Ok(machine) => {
                    let mut tx = self.app.pool.begin().await?;
                    let asked_at = operations::last_asked(&mut *tx, self.resource.id).await?;
                    operations::note_asked(&mut *tx, self.attempt.id, asked_at, false).await?;
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
                    catalogues::note_made(&self.app.pool, self.provider.name(), self.app.now()).await?;
                }
                Err(error) => {
                    if matches!(error, ProviderError::Auth(_)) {
                        let name = self.provider.name();
                        catalogues::note_failure(&self.app.pool, name, &error, true, self.app.now()).await?;
                    }
                    let refused = matches!(error, ProviderError::Refused { .. } | ProviderError::Auth(_));
                    // What may take long is tried for as long as it may take.
                    let waited = self.app.now().duration_since(self.resource.status_since.0);
                    if refused || (tries >= MAX_TRIES && waited >= self.ready_within().await?) {
                        return self.create_failed(&error.to_string()).await;
                    }
                    operations::note_error(&self.app.pool, self.attempt.id, &error.to_string()).await?;
                    return Ok(Next::Again(Self::backoff(tries, &error)));
                }
            }
        }

        let resource_ref = ResourceRef(self.resource.resource_ref.clone().expect("set just above"));
        let waited = self.app.now().duration_since(self.resource.status_since.0);
        let late = waited > self.ready_within().await?;
        let pause = catalogues::offered(&self.app.pool, self.provider.name())
            .await?
            .map_or(2, |known| known.look_every_seconds);
        let status = match self.provider.status(&resource_ref).await {
            Ok(status) => status,
            Err(error) => {
                operations::note_error(&self.app.pool, self.attempt.id, &error.to_string()).await?;
                if late {
                    return self.create_failed(&error.to_string()).await;
                }
                return Ok(Next::Again(Duration::from_secs(pause.into())));
            }
        };
        match status.state {
            MachineState::Running => return self.activate(status.web_url.as_deref()).await,
            MachineState::Failed(why) => return self.create_failed(&why).await,
            MachineState::Gone => {
                let asked_at = operations::last_asked(&self.app.pool, self.resource.id).await?;
                if self.is_settled(asked_at).await? {
                    return self.create_failed("the provider no longer has the machine: it could not be placed").await;
                }
            }
            _ => {}
        }
        if late {
            let why = format!("the machine did not come up in {} minutes (it is {:?})", waited.as_mins(), status.state);
            return self.create_failed(&why).await;
        }
        // Asked often at first, when a local box is about to answer, and seldom later.
        let wait = if pause <= 2 && waited.as_secs() < 5 { 100 } else { u64::from(pause) * 1000 };
        Ok(Next::Again(Duration::from_millis(wait)))
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
        usage::begin_in(&mut tx, self.resource.id, now).await?;
        operations::finish_in(&mut tx, self.attempt.id, Outcome::Done, None, now).await?;
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
        operations::finish_in(&mut tx, self.attempt.id, Outcome::Failed, Some(why), now).await?;
        operations::request_in(
            &mut tx,
            AttemptId::new(),
            self.resource.id,
            Operation::Terminate,
            "failed",
            now,
            &Cause::system(),
        )
        .await?;
        alerts::raise(&mut *tx, "create_failed", &self.resource.id.to_string(), why, now).await?;
        mailer::notify_in(&mut tx, templates::box_failed(&self.resource), now).await?;
        tx.commit().await?;
        Ok(Next::Done)
    }

    /// `provisioning -> failed`, the reserve voided and the order closed, in the caller's transaction.
    pub(super) async fn fail_in(&mut self, connection: &mut PgConnection, why: &str) -> Result<(), StepError> {
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
}
