//! Stopping, starting and resizing a droplet.

use std::time::Duration;

use jiff::SignedDuration;
use reqwest::Method;
use serde_json::{Value, json};

use super::{DigitalOcean, Droplet, Failure, SUSPENDED_TAG, Target, path_of, wire};
use crate::{Error, Result, SuspendMode, node::image};

/// A node that does not answer a suspension for so long is powered off instead.
const POWER_OFF_AFTER: SignedDuration = SignedDuration::from_secs(60);

/// A droplet that still runs so long after it was asked to shut down is powered off: its system may ignore the request.
const SHUTDOWN_WITHIN: SignedDuration = SignedDuration::from_secs(60);

fn again(message: &str) -> Error {
    Error::Transient { message: message.to_owned(), retry_after: Some(Duration::from_secs(5)) }
}

impl DigitalOcean {
    pub(super) async fn suspend_droplet(&self, target: Target, droplet: &Droplet, mode: SuspendMode) -> Result<()> {
        match droplet.status.as_str() {
            // Off, nobody reaches it; marked, it does not come back but by a resume.
            "off" => return self.mark_suspended(droplet).await,
            "active" => {}
            other => return Err(again(&format!("the droplet is '{other}' and cannot be stopped yet"))),
        }
        let word = match mode {
            SuspendMode::Service => image::SUSPEND_SERVICE,
            SuspendMode::Everything => image::SUSPEND_EVERYTHING,
        };
        let error = match self.have_node(target, droplet, image::SUSPEND, Some(word)).await {
            Ok(()) => {
                self.memory().unreachable.remove(&droplet.id);
                return Ok(());
            }
            Err(error) => error,
        };
        let now = self.now();
        let since = *self.memory().unreachable.entry(droplet.id).or_insert(now);
        if now.duration_since(since) < POWER_OFF_AFTER {
            return Err(error);
        }
        tracing::warn!(droplet = droplet.id, %error, "the node does not suspend its box; the droplet is powered off");
        self.mark_suspended(droplet).await?;
        self.act(droplet, &json!({ "type": "power_off" })).await?;
        self.memory().unreachable.remove(&droplet.id);
        Ok(())
    }

    pub(super) async fn resume_droplet(&self, target: Target, droplet: &Droplet) -> Result<()> {
        match droplet.status.as_str() {
            "active" => {}
            "off" => self.act(droplet, &json!({ "type": "power_on" })).await?,
            other => return Err(again(&format!("the droplet is '{other}' and cannot be started"))),
        }
        self.have_node(target, droplet, image::RESUME, None).await?;
        if droplet.has_tag(SUSPENDED_TAG) {
            self.tag(Method::DELETE, droplet).await?;
        }
        Ok(())
    }

    /// Another size: only a stopped droplet takes one, and its disk stays as it is, so that the way back is open.
    pub(super) async fn resize_droplet(&self, target: Target, droplet: &Droplet, size: &str) -> Result<()> {
        let refused = |why: String| Err(Error::Refused { why });
        let off = droplet.status == "off";
        if droplet.has_tag(SUSPENDED_TAG) {
            return refused("a suspended box is not resized".to_owned());
        }
        if droplet.size_slug == size {
            if off {
                self.act(droplet, &json!({ "type": "power_on" })).await?;
            }
            self.memory().shutting_down.remove(&droplet.id);
            return Ok(());
        }
        let Some(wanted) = self.sizes().await?.into_iter().find(|one| one.slug == size) else {
            return refused(format!("DigitalOcean has no size '{size}'; the box was left as it is"));
        };
        if wanted.disk < droplet.disk {
            let (disk, less) = (droplet.disk, wanted.disk);
            return refused(format!(
                "a droplet's disk cannot shrink: it has {disk} GB and '{size}' has {less}; the box was left as it is"
            ));
        }
        if !off {
            let answer = self.ask_node(target, droplet, image::STATUS, None).await?;
            if answer.value("suspended") != Some("no") {
                return refused("a suspended box is not resized".to_owned());
            }
            self.shut_down(droplet).await?;
        }
        let resized = self.act(droplet, &json!({ "type": "resize", "size": size, "disk": false })).await;
        match resized {
            // Refused, it is put back as it was.
            Err(error @ (Error::Refused { .. } | Error::NoCapacity(_))) => {
                self.act(droplet, &json!({ "type": "power_on" })).await?;
                refused(format!("{error}; the box was left as it is"))
            }
            Err(error) => Err(error),
            Ok(()) => {
                self.memory().shutting_down.remove(&droplet.id);
                self.act(droplet, &json!({ "type": "power_on" })).await
            }
        }
    }

    /// Stops a droplet as its system would like it, or without asking where the system does not listen. `Ok` means off.
    async fn shut_down(&self, droplet: &Droplet) -> Result<()> {
        let now = self.now();
        let asked = self.memory().shutting_down.get(&droplet.id).copied();
        match asked {
            Some(at) if now.duration_since(at) >= SHUTDOWN_WITHIN => {
                return self.act(droplet, &json!({ "type": "power_off" })).await;
            }
            Some(_) => {}
            None => {
                self.act(droplet, &json!({ "type": "shutdown" })).await?;
                self.memory().shutting_down.insert(droplet.id, now);
            }
        }
        // That the action is completed says that the request was made, not that it was followed.
        match self.droplet(droplet.id).await? {
            Some(now) if now.status == "off" => Ok(()),
            _ => Err(again("the droplet is shutting down")),
        }
    }

    async fn mark_suspended(&self, droplet: &Droplet) -> Result<()> {
        if droplet.has_tag(SUSPENDED_TAG) {
            return Ok(());
        }
        match self.client.change::<Value>(Method::POST, "/v2/tags", Some(&json!({ "name": SUSPENDED_TAG }))).await {
            // It is there already.
            Ok(_) | Err(Failure::NotDone(Error::Refused { .. })) => {}
            Err(failure) => return Err(failure.into_error()),
        }
        self.tag(Method::POST, droplet).await
    }

    async fn tag(&self, method: Method, droplet: &Droplet) -> Result<()> {
        let body = json!({ "resources": [{ "resource_id": droplet.id.to_string(), "resource_type": "droplet" }] });
        let path = format!("/v2/tags/{SUSPENDED_TAG}/resources");
        self.client.change::<Value>(method, &path, Some(&body)).await.map(drop).map_err(Failure::into_error)
    }

    /// Asks for an action and waits a while for its end; `Ok` only once it is completed.
    async fn act(&self, droplet: &Droplet, body: &Value) -> Result<()> {
        if droplet.locked {
            return Err(again("another event of the droplet is under way"));
        }
        let path = format!("{}/actions", path_of(droplet.id));
        let asked = self.client.change::<wire::OneAction>(Method::POST, &path, Some(body)).await;
        let mut action = asked.map_err(Failure::into_error)?.action;
        let kind = body["type"].as_str().unwrap_or_default();
        for _ in 0..=self.settings.polls {
            match action.status.as_str() {
                "completed" => return Ok(()),
                "errored" => return Err(again(&format!("DigitalOcean's '{kind}' of the droplet failed"))),
                _ => tokio::time::sleep(self.settings.poll_every).await,
            }
            match self.client.get::<wire::OneAction>(&format!("/v2/actions/{}", action.id), &[]).await {
                Ok(seen) => action = seen.action,
                // Not to be seen yet.
                Err(Failure::NotFound) => {}
                Err(failure) => return Err(failure.into_error()),
            }
        }
        Err(again(&format!("DigitalOcean's '{kind}' of the droplet is still under way")))
    }
}
