//! Real boxes on this machine in place of what would run on droplets: what a droplet's node is meant to be, its box is made.

use std::{sync::Arc, time::Duration};

use seedplane_provisioning::{
    Error, MachineState, ProvisioningProvider, ResourceRef, Result, SuspendMode, Termination,
    local::LocalProvider,
    node::{access::NodeAnswer, image, qbittorrent::Login},
};
use uuid::Uuid;

use super::{
    Droplet, Simulator,
    node::{Node, Suspended},
};

/// The pause between two looks at all droplets.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// The size of every box: what a droplet's size would change cannot be had here.
const SIZE: &str = "small";

/// The boxes of a stand-in's droplets. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Boxes {
    simulator: Simulator,
    local: LocalProvider,
    /// Held by whoever changes a box or what it is meant to be: half of a change is not followed.
    turn: Arc<tokio::sync::Mutex<()>>,
}

fn box_of(node: &Node) -> ResourceRef {
    ResourceRef(node.id.to_string())
}

impl Boxes {
    /// The boxes that `local` makes for the droplets of `simulator`.
    pub fn new(simulator: Simulator, local: LocalProvider) -> Self {
        Self { simulator, local, turn: Arc::default() }
    }

    /// Lets boxes follow their droplets, for as long as it is polled.
    pub async fn run(&self) {
        let mut pause = LOOK_EVERY;
        loop {
            let mut failed = false;
            for Droplet { id, .. } in self.simulator.droplets().into_iter().filter(|droplet| !droplet.node.cleared) {
                let _turn = self.turn.lock().await;
                let Some(droplet) = self.simulator.inner().droplets.get(&id).cloned() else { continue };
                if let Err(error) = self.follow(&droplet).await {
                    failed = true;
                    tracing::warn!(droplet = id, %error, "the box of a sandbox droplet does not follow it yet");
                }
            }
            // A box that cannot be had is not asked for all the time.
            pause = if failed { (pause * 2).min(Duration::from_secs(30)) } else { LOOK_EVERY };
            tokio::time::sleep(pause).await;
        }
    }

    async fn follow(&self, droplet: &Droplet) -> Result<()> {
        let (now, node) = (self.simulator.now(), &droplet.node);
        let machine = box_of(node);
        if !droplet.costs_at(now) {
            self.local.terminate(&machine).await?;
            return self.change(droplet.id, |node| node.cleared = true);
        }
        if node.wiped {
            return Ok(());
        }
        let state = self.local.status(&machine).await?.state;
        if !droplet.is_up(now) {
            return match state {
                MachineState::Running | MachineState::Building => {
                    self.local.suspend(&machine, SuspendMode::Service).await
                }
                _ => Ok(()),
            };
        }
        match (state, node.suspended) {
            (MachineState::Gone, _) => {
                let login = Login { username: node.username.clone(), password_hash: node.password_hash.clone() };
                self.local.install(node.id, SIZE, login).await.map(drop)
            }
            (MachineState::Stopped, Suspended::No) => self.local.resume(&machine).await,
            (MachineState::Running, Suspended::No) if !node.reported => {
                let url = self.local.status(&machine).await?.web_url.unwrap_or_default();
                if self.simulator.report_over_http(node, droplet.address, &url).await {
                    self.change(droplet.id, |node| node.reported = true)?;
                }
                Ok(())
            }
            (MachineState::Running | MachineState::Building, Suspended::Service | Suspended::Everything) => {
                self.local.suspend(&machine, mode(node.suspended)).await
            }
            _ => Ok(()),
        }
    }

    /// Has the node of a box do something by name, and its box with it.
    ///
    /// # Errors
    /// That no droplet of the box is up, or that its box here does not do it; it may be asked again.
    pub async fn ask(&self, resource_id: Uuid, action: &str, argument: Option<&str>) -> Result<NodeAnswer> {
        let _turn = self.turn.lock().await;
        let (now, tag) = (self.simulator.now(), format!("seedbox:{resource_id}"));
        let mut up = self.simulator.droplets().into_iter().filter(|one| one.is_up(now) && one.tags.contains(&tag));
        let droplet = up.next().ok_or_else(|| Error::transient("the droplet does not answer"))?;
        let machine = box_of(&droplet.node);
        // What the node comes to is tried on a copy: it has become so once its box has.
        let mut node = droplet.node.clone();
        let mut answer = node.act(action, argument);
        match action {
            _ if answer.exit_code != 0 => return Ok(answer),
            image::STATUS if droplet.node.answers() => {
                let answers = self.local.status(&machine).await?.state == MachineState::Running;
                if !answers {
                    answer.output = answer.output.replace("answers yes", "answers no");
                }
                return Ok(answer);
            }
            image::SUSPEND => self.local.suspend(&machine, mode(node.suspended)).await?,
            image::USAGE => {
                let usage = self.local.usage(&machine).await?;
                answer.output = format!(
                    "rx_bytes_since_boot {}\ntx_bytes_since_boot {}\nboot_id {}\ndata_bytes {}\ndisk_free_bytes {}\n",
                    usage.received_bytes,
                    usage.sent_bytes,
                    usage.count,
                    usage.disk_used_bytes,
                    usage.disk_total_bytes - usage.disk_used_bytes,
                );
                return Ok(answer);
            }
            image::RESTART => self.local.restart(&machine).await?,
            image::RESUME => self.local.resume(&machine).await?,
            image::ROTATE => {
                let login = Login { username: node.username.clone(), password_hash: node.password_hash.clone() };
                self.local.set_login(droplet.node.id, login).await?;
            }
            image::WIPE => {
                if let Termination::Gone(facts) = self.local.terminate(&machine).await? {
                    answer.output = facts.into_iter().map(|fact| fact.fact + "\n").collect();
                }
            }
            _ => return Ok(answer),
        }
        self.change(droplet.id, |kept| *kept = node)?;
        Ok(answer)
    }

    fn change(&self, droplet: u64, change: impl FnOnce(&mut Node)) -> Result<()> {
        if let Some(droplet) = self.simulator.inner().droplets.get_mut(&droplet) {
            change(&mut droplet.node);
        }
        self.simulator.save().map_err(|error| Error::transient(format!("the stand-in cannot write: {error}")))
    }
}

fn mode(suspended: Suspended) -> SuspendMode {
    match suspended {
        Suspended::Everything => SuspendMode::Everything,
        Suspended::No | Suspended::Service => SuspendMode::Service,
    }
}
