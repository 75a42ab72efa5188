//! The end of a droplet and of what would outlive it.

use jiff::SignedDuration;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{DigitalOcean, Droplet, Failure, Target, path_of, tag_of, wire};
use crate::{Error, Result, Termination, WipeFact, node::image};

/// A destruction that shows nothing for so long is asked for again.
const ASK_AGAIN_AFTER: SignedDuration = SignedDuration::from_mins(3);

/// How often a node is asked to wipe before its droplet is destroyed without.
const WIPE_TRIES: u32 = 3;

/// The most lines of a node's answer that go into a certificate.
const MOST_FACTS: usize = 20;

/// The longest of them, in characters.
const LONGEST_FACT: usize = 200;

/// What belongs to a box and would outlive its droplet, by the names that the API has for the lists.
#[derive(Debug, Default)]
struct Beside {
    snapshots: Vec<String>,
    volumes: Vec<String>,
    volume_snapshots: Vec<String>,
    /// What is not ours, in words.
    left: Vec<String>,
}

impl Beside {
    fn count(&self) -> usize {
        self.snapshots.len() + self.volumes.len() + self.volume_snapshots.len()
    }
}

impl DigitalOcean {
    /// The next step of an end: everything that is there is asked to go, or is seen to be gone.
    pub(super) async fn destroy_everything(&self, target: Target) -> Result<Termination> {
        let mut facts = Vec::new();
        for look in ["first", "second"] {
            let there = self.everything_of(target).await?;
            if there.is_empty() {
                let (droplet, id) = (target.droplet, target.resource_id);
                facts.push(
                    self.fact(format!("{look} look: droplet {droplet} is not there, nor any with the tag of box {id}")),
                );
                tokio::time::sleep(self.settings.poll_every).await;
                continue;
            }
            for droplet in &there {
                if let Err(error) = self.destroy(target, droplet, &mut facts).await {
                    if facts.is_empty() {
                        return Err(error);
                    }
                    // What was done is kept; what was not is tried again.
                    tracing::warn!(droplet = droplet.id, %error, "the droplet is not destroyed yet");
                }
            }
            return Ok(Termination::InProgress { retry_after: self.settings.poll_every * 2, facts });
        }
        self.nodes.forget(target.resource_id).await?;
        let mut memory = self.memory();
        memory.asked.remove(&target.resource_id);
        memory.destroying.remove(&target.droplet);
        Ok(Termination::Gone(facts))
    }

    /// The droplet that we know and every other of the same box.
    async fn everything_of(&self, target: Target) -> Result<Vec<Droplet>> {
        let mut there = self.look_up(target.resource_id).await?;
        if there.iter().all(|droplet| droplet.id != target.droplet)
            && let Some(known) = self.droplet(target.droplet).await?
            && known.resource_id() == Some(target.resource_id)
        {
            there.push(known);
        }
        Ok(there)
    }

    async fn destroy(&self, target: Target, droplet: &Droplet, facts: &mut Vec<WipeFact>) -> Result<()> {
        let now = self.now();
        let asked = self.memory().destroying.get(&droplet.id).copied();
        if asked.is_some_and(|asked| now.duration_since(asked) < ASK_AGAIN_AFTER) {
            return self.retry_failures(droplet).await;
        }
        if droplet.id == target.droplet && asked.is_none() {
            self.wipe(target, droplet, facts).await?;
        }
        let beside = self.beside(droplet, target.resource_id).await?;
        let path = path_of(droplet.id);
        let accepted = if beside.count() == 0 {
            self.client.change::<Value>(Method::DELETE, &path, None).await
        } else {
            let body = json!({
                "snapshots": beside.snapshots,
                "volumes": beside.volumes,
                "volume_snapshots": beside.volume_snapshots,
            });
            let path = format!("{path}/destroy_with_associated_resources/selective");
            self.client.change::<Value>(Method::DELETE, &path, Some(&body)).await
        };
        match accepted {
            Ok(_) => {}
            Err(Failure::NotFound) => return Ok(()),
            Err(failure) => return Err(failure.into_error()),
        }
        self.memory().destroying.insert(droplet.id, now);
        let (id, count) = (droplet.id, beside.count());
        facts.push(self.fact(format!(
            "DigitalOcean accepted to destroy droplet {id} and {count} volumes and snapshots of this box"
        )));
        facts.extend(beside.left.iter().map(|what| self.fact(format!("not this box's, and left: {what}"))));
        Ok(())
    }

    /// Has the node delete the customer's data. Where it cannot, that is said: the droplet goes all the same.
    async fn wipe(&self, target: Target, droplet: &Droplet, facts: &mut Vec<WipeFact>) -> Result<()> {
        let ready = self.nodes.report(target.resource_id).await?.is_some_and(|report| report.failure.is_none());
        if !ready {
            facts.push(self.fact("the node never became ready: nobody has put data on it".to_owned()));
            return Ok(());
        }
        let unwiped = |facts: &mut Vec<WipeFact>, why: String| {
            facts.push(self.fact(format!("{why}: its files were not deleted before the droplet")));
        };
        if droplet.status != "active" {
            unwiped(facts, format!("the droplet is '{}'", droplet.status));
            return Ok(());
        }
        let mut tries = 1;
        let answer = loop {
            match self.ask_node(target, droplet, image::WIPE, None).await {
                Err(Error::Transient { .. } | Error::Unknown(_)) if tries < WIPE_TRIES => tries += 1,
                other => break other,
            }
            tokio::time::sleep(self.settings.poll_every).await;
        };
        match answer {
            Ok(answer) if answer.exit_code == 0 => {
                let lines = answer.output.lines().filter(|line| !line.is_empty() && !line.starts_with("$ "));
                for line in lines.take(MOST_FACTS) {
                    let said: String = line.chars().filter(|c| !c.is_control()).take(LONGEST_FACT).collect();
                    facts.push(self.fact(format!("the node: {said}")));
                }
            }
            Ok(answer) => unwiped(facts, format!("the node could not wipe (exit code {})", answer.exit_code)),
            Err(error) => unwiped(facts, format!("the node did not answer ({error})")),
        }
        Ok(())
    }

    /// What would outlive a droplet, told apart by whether it carries the box's tag.
    async fn beside(&self, droplet: &Droplet, resource_id: Uuid) -> Result<Beside> {
        let path = format!("{}/destroy_with_associated_resources", path_of(droplet.id));
        let listed: wire::AssociatedResources = match self.client.get(&path, &[]).await {
            Ok(listed) => listed,
            Err(Failure::NotFound) => return Ok(Beside::default()),
            Err(failure) => return Err(failure.into_error()),
        };
        let tag = tag_of(resource_id);
        let mut beside = Beside::default();
        for volume in listed.volumes {
            let found = self.client.get::<wire::OneVolume>(&format!("/v2/volumes/{}", volume.id), &[]).await;
            match self.is_ours(found.map(|one| one.volume), &tag)? {
                Some(true) => beside.volumes.push(volume.id),
                Some(false) => beside.left.push(format!("volume {} ({})", volume.id, volume.name)),
                None => {}
            }
        }
        let snapshots = listed.snapshots.into_iter().map(|one| (one, false));
        for (snapshot, of_volume) in snapshots.chain(listed.volume_snapshots.into_iter().map(|one| (one, true))) {
            let found = self.client.get::<wire::OneSnapshot>(&format!("/v2/snapshots/{}", snapshot.id), &[]).await;
            match self.is_ours(found.map(|one| one.snapshot), &tag)? {
                Some(true) if of_volume => beside.volume_snapshots.push(snapshot.id),
                Some(true) => beside.snapshots.push(snapshot.id),
                Some(false) => beside.left.push(format!("snapshot {} ({})", snapshot.id, snapshot.name)),
                None => {}
            }
        }
        // We reserve no addresses.
        beside.left.extend(listed.reserved_ips.iter().map(|one| format!("reserved address {}", one.name)));
        Ok(beside)
    }

    #[allow(clippy::unused_self, reason = "reads as what it is where it is called")]
    fn is_ours(&self, found: Result<wire::Kept, Failure>, tag: &str) -> Result<Option<bool>> {
        match found {
            Ok(kept) => Ok(Some(wire::has_tag(kept.tags.as_deref(), tag))),
            Err(Failure::NotFound) => Ok(None),
            Err(failure) => Err(failure.into_error()),
        }
    }

    /// What DigitalOcean accepted to destroy and could not is asked for again.
    async fn retry_failures(&self, droplet: &Droplet) -> Result<()> {
        let path = format!("{}/destroy_with_associated_resources", path_of(droplet.id));
        let status: wire::DestroyStatus = match self.client.get(&format!("{path}/status"), &[]).await {
            Ok(status) => status,
            // It was destroyed alone.
            Err(Failure::NotFound) => return Ok(()),
            Err(failure) => return Err(failure.into_error()),
        };
        if status.completed_at.is_none() || status.failures == 0 {
            return Ok(());
        }
        match self.client.change::<Value>(Method::POST, &format!("{path}/retry"), None).await {
            Ok(_) | Err(Failure::NotFound) => Ok(()),
            Err(failure) => Err(failure.into_error()),
        }
    }
}
