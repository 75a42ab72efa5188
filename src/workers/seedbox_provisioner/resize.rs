//! The size of another plan.

use seedplane_provisioning::{Error as ProviderError, MachineState, ResourceRef};

use super::{Next, Step, StepError};
use crate::{
    billing::{ledger, plan_changes},
    clock::Time,
    mailer::{self, templates},
    money::Usd,
    seedbox::{
        Plan, Status,
        operations::{self, Outcome},
        plans, repository,
    },
};

impl Step<'_> {
    pub(super) async fn resize(self) -> Result<Next, StepError> {
        if self.resource.status != Status::Active {
            return self.supersede("only an active box is resized").await;
        }
        let plan = match self.attempt.plan_id {
            Some(plan) => plans::find(&self.app.pool, plan).await?,
            None => None,
        };
        let (Some(plan), Some(resource_ref)) = (plan, self.resource.resource_ref.clone().map(ResourceRef)) else {
            return self.supersede("there is no such plan or no machine").await;
        };
        let tries = operations::begin_try(&self.app.pool, self.attempt.id, self.app.now()).await?;
        let resized = match self.provider.resize(&resource_ref, &plan.size).await {
            Ok(()) => self.provider.status(&resource_ref).await,
            Err(error) => Err(error),
        };
        match resized {
            Ok(status) if status.state == MachineState::Running => self.resized(&plan).await,
            Ok(status) => {
                let error = ProviderError::transient(format!("resized, it does not answer yet: {:?}", status.state));
                self.after_error(tries, &error).await
            }
            Err(error) => self.after_error(tries, &error).await,
        }
    }

    async fn resized(mut self, plan: &Plan) -> Result<Next, StepError> {
        let now = self.app.now();
        let cause = self.cause();
        let mut tx = self.app.pool.begin().await?;
        repository::lock_account_in(&mut tx, self.resource.user_id).await?;
        // A downgrade changed plan and price when its month began.
        if self.reason_word() == plan_changes::UPGRADE {
            let until = self.resource.paid_until.map_or(now, |until| Time(until.0.max(now.0)));
            let key =
                format!("charge:{}:{}:upgrade-{}", self.resource.id, self.resource.charged_total - 1, self.attempt.id);
            let reserve = plan_changes::reserve(self.attempt.id, &self.resource);
            ledger::post_in(&mut tx, &reserve, &key, Usd::ZERO, (now, until), now).await?;
            plans::switch_in(&mut tx, &mut self.resource, plan, now, &cause).await?;
        }
        operations::finish_in(&mut tx, self.attempt.id, Outcome::Done, None, now).await?;
        repository::wake_account_in(&mut tx, self.resource.user_id, now).await?;
        mailer::notify_in(&mut tx, templates::plan_changed(&self.resource, plan, &self.attempt.id), now).await?;
        tx.commit().await?;
        Ok(Next::Done)
    }
}
