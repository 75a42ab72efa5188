//! Another start of the client.

use seedplane_provisioning::ResourceRef;

use super::{Next, Step, StepError};
use crate::{
    audit::events::{self, Event, Subject},
    seedbox::{
        Status,
        operations::{self, Outcome},
    },
};

impl Step<'_> {
    pub(super) async fn restart(self) -> Result<Next, StepError> {
        if self.resource.status != Status::Active {
            return self.supersede("only an active box is restarted").await;
        }
        let Some(resource_ref) = self.resource.resource_ref.clone().map(ResourceRef) else {
            return self.supersede("the box has no machine").await;
        };
        let tries = operations::begin_try(&self.app.pool, self.attempt.id, self.app.now()).await?;
        if let Err(error) = self.provider.restart(&resource_ref).await {
            return self.after_error(tries, &error).await;
        }
        let now = self.app.now();
        let mut tx = self.app.pool.begin().await?;
        let event = Event {
            subject: Subject::Resource(self.resource.id),
            action: "resource.restarted",
            before: None,
            after: None,
        };
        events::record_in(&mut tx, now, &self.cause(), event).await?;
        operations::finish_in(&mut tx, self.attempt.id, Outcome::Done, None, now).await?;
        tx.commit().await?;
        Ok(Next::Done)
    }
}
