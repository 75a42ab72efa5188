//! A new password.

use seedplane_provisioning::{Credentials, ResourceRef};
use serde_json::json;

use super::{Next, Step, StepError};
use crate::{
    app::App,
    audit::events::{self, Event, Subject},
    ids::ResourceId,
    mailer::{self, templates},
    seedbox::{
        Status,
        operations::{self, Outcome},
        repository,
    },
};

impl Step<'_> {
    pub(super) async fn rotate_credentials(mut self) -> Result<Next, StepError> {
        if self.resource.status != Status::Active {
            return self.supersede("only an active box gets a new password").await;
        }
        let Some(resource_ref) = self.resource.resource_ref.clone().map(ResourceRef) else {
            return self.supersede("the box has no machine").await;
        };
        let tries = operations::begin_try(&self.app.pool, self.attempt.id, self.app.now()).await?;
        let credentials = Credentials { username: self.login_name(), password: self.password().await? };
        if let Err(error) = self.provider.rotate_credentials(&resource_ref, &credentials).await {
            return self.after_error(tries, &error).await;
        }
        let now = self.app.now();
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
        operations::finish_in(&mut tx, self.attempt.id, Outcome::Done, None, now).await?;
        mailer::notify_in(&mut tx, templates::credentials_rotated(&self.resource), now).await?;
        tx.commit().await?;
        destroy_spent_passwords(self.app, self.resource.id).await?;
        Ok(Next::Done)
    }
}

/// Destroys the passwords of a box that open nothing any more: all but its present one, and those of operations that are open.
pub(super) async fn destroy_spent_passwords(app: &App, id: ResourceId) -> Result<(), StepError> {
    // Listed first: what belongs to an operation that ends meanwhile is the present one when the box is read.
    let kept = app.secrets.list(&format!("resource/{id}")).await?;
    let open = operations::open_of(&app.pool, id).await?;
    let resource = repository::resource(&app.pool, id).await?;
    let Some(present) = resource.and_then(|resource| resource.secret_ref) else { return Ok(()) };
    let present = app.secrets.resolve(&present)?;
    for path in kept {
        let name = path.to_string();
        let Some((_, attempt)) = name.rsplit_once("/password-") else { continue };
        if path != present && open.iter().all(|one| one.id.to_string() != attempt) {
            app.secrets.delete(&path).await?;
        }
    }
    Ok(())
}
