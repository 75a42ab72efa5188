//! A faithful provider without machines: what tests of the control plane run on when no box has to be real.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, btree_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::ExposeSecret;
use uuid::Uuid;

use crate::{
    Billed, BilledKind, Capabilities, Credentials, Error, Machine, MachineSpec, MachineState, MachineStatus,
    ProvisioningProvider, ResourceRef, Result, Size, SuspendMode, Termination, TorrentStance, Usage, WipeFact,
};

/// A verb of the trait, to script what goes wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the verbs are described in the trait")]
pub enum Verb {
    Capabilities,
    Create,
    Status,
    Suspend,
    Resume,
    RotateCredentials,
    Restart,
    Usage,
    Resize,
    Terminate,
    ListOwned,
    Billed,
}

#[derive(Debug, Clone)]
struct Held {
    password: String,
    size: String,
    region: Option<String>,
    sessions_from: u64,
    polls_left: u32,
    stopped: bool,
    usage: Usage,
}

#[derive(Debug, Default)]
struct State {
    boxes: BTreeMap<Uuid, Held>,
    made: HashMap<Uuid, u32>,
    failures: HashMap<Verb, VecDeque<Error>>,
    calls: HashMap<Verb, u32>,
    build_polls: u32,
    offered: Option<Capabilities>,
    sessions: u64,
    leftovers: Vec<Billed>,
}

/// The provider; clones share their machines.
#[derive(Debug, Clone, Default)]
pub struct MemoryProvider {
    state: Arc<Mutex<State>>,
}

/// A session with a box, for [`MemoryProvider::session_is_good`].
#[derive(Debug, Clone, Copy)]
pub struct MemorySession {
    id: Uuid,
    number: u64,
}

impl MemoryProvider {
    /// No machines, and no delay before one runs.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// New machines are seen building this many times before they run.
    pub fn set_build_polls(&self, polls: u32) {
        self.state().build_polls = polls;
    }

    /// Stopped machines go on costing their full price, as with most clouds.
    pub fn set_stopped_costs(&self, costs: bool) {
        self.offer(|offered| offered.stopped_costs = costs);
    }

    /// Changes what it offers: sizes and their regions, its stance, its times.
    pub fn offer(&self, change: impl FnOnce(&mut Capabilities)) {
        change(self.state().offered.get_or_insert_with(capabilities));
    }

    /// The region that a machine was asked for in.
    pub fn region(&self, id: Uuid) -> Option<String> {
        self.state().boxes.get(&id)?.region.clone()
    }

    /// The next call of a verb fails so, and does nothing.
    pub fn fail_next(&self, verb: Verb, error: Error) {
        self.state().failures.entry(verb).or_default().push_back(error);
    }

    /// How often a verb was called.
    pub fn calls(&self, verb: Verb) -> u32 {
        self.state().calls.get(&verb).copied().unwrap_or(0)
    }

    /// How many machines were ever made for a resource: more than one is a twin.
    pub fn machines_made(&self, id: Uuid) -> u32 {
        self.state().made.get(&id).copied().unwrap_or(0)
    }

    /// The machine of a resource is lost, as by a fault upstream.
    pub fn lose(&self, id: Uuid) {
        self.state().boxes.remove(&id);
    }

    /// What a machine says it uses, from now on.
    pub fn use_up(&self, id: Uuid, change: impl FnOnce(&mut Usage)) {
        if let Some(one) = self.state().boxes.get_mut(&id) {
            change(&mut one.usage);
        }
    }

    /// Something beside the machines that costs from now on: a volume, a snapshot, a twin.
    pub fn leave_behind(&self, leftover: Billed) {
        self.state().leftovers.push(leftover);
    }

    /// Logs in to a box, as its owner would.
    pub fn login(&self, id: Uuid, credentials: &Credentials) -> Option<MemorySession> {
        let mut state = self.state();
        state.sessions += 1;
        let number = state.sessions;
        let one = state.boxes.get(&id)?;
        let good = !one.stopped && one.polls_left == 0 && one.password == credentials.password.expose_secret();
        good.then_some(MemorySession { id, number })
    }

    /// Whether a session still works.
    pub fn session_is_good(&self, session: MemorySession) -> bool {
        self.state().boxes.get(&session.id).is_some_and(|one| !one.stopped && session.number > one.sessions_from)
    }

    fn begin(&self, verb: Verb) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        *state.calls.entry(verb).or_default() += 1;
        match state.failures.get_mut(&verb).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(state),
        }
    }
}

/// Name, disk in GB, monthly cost in cents.
const SIZES: [(&str, u32, i64); 2] = [("small", 50, 400), ("large", 500, 1_600)];

/// What it offers unless it is told otherwise.
fn capabilities() -> Capabilities {
    Capabilities {
        sizes: SIZES
            .map(|(name, disk_gb, monthly_cost_cents)| Size {
                name: name.to_owned(),
                disk_gb,
                monthly_cost_cents,
                regions: Vec::new(),
            })
            .to_vec(),
        user_data_limit_bytes: None,
        readable_while_suspended: true,
        stopped_costs: false,
        torrent_stance: TorrentStance::Allowed,
        ready_within_seconds: 600,
        settles_within_seconds: 0,
        look_every_seconds: 2,
    }
}

fn check_size(size: &str) -> Result<()> {
    match SIZES.iter().any(|(name, ..)| *name == size) {
        true => Ok(()),
        false => Err(Error::Refused { why: format!("there is no size '{size}'") }),
    }
}

fn find<'a>(state: &'a mut State, resource_ref: &ResourceRef) -> Result<&'a mut Held> {
    let id: Option<Uuid> = resource_ref.0.strip_prefix("memory-").and_then(|id| id.parse().ok());
    id.and_then(|id| state.boxes.get_mut(&id)).ok_or_else(|| Error::NotFound(resource_ref.clone()))
}

fn machine(id: Uuid) -> Machine {
    Machine { resource_ref: ResourceRef(format!("memory-{id}")), resource_id: id }
}

#[async_trait]
impl ProvisioningProvider for MemoryProvider {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn capabilities(&self) -> Result<Capabilities> {
        let state = self.begin(Verb::Capabilities)?;
        Ok(state.offered.clone().unwrap_or_else(capabilities))
    }

    async fn create(&self, spec: &MachineSpec) -> Result<Machine> {
        let mut state = self.begin(Verb::Create)?;
        check_size(&spec.size)?;
        let polls_left = state.build_polls;
        if let Entry::Vacant(place) = state.boxes.entry(spec.resource_id) {
            let password = spec.credentials.password.expose_secret().to_owned();
            let (size, region) = (spec.size.clone(), spec.region.clone());
            let disk_gb = SIZES.iter().find(|(name, ..)| *name == size).map_or(0, |(_, disk_gb, _)| *disk_gb);
            let usage = Usage {
                disk_used_bytes: 0,
                disk_total_bytes: u64::from(disk_gb) * 1_000_000_000,
                received_bytes: 0,
                sent_bytes: 0,
                count: "first".to_owned(),
            };
            place.insert(Held { password, size, region, sessions_from: 0, polls_left, stopped: false, usage });
            *state.made.entry(spec.resource_id).or_default() += 1;
        }
        Ok(machine(spec.resource_id))
    }

    async fn status(&self, resource_ref: &ResourceRef) -> Result<MachineStatus> {
        let mut state = self.begin(Verb::Status)?;
        let Ok(one) = find(&mut state, resource_ref) else {
            return Ok(MachineStatus { state: MachineState::Gone, web_url: None, since: None, size: None });
        };
        let state = if one.polls_left > 0 {
            one.polls_left -= 1;
            MachineState::Building
        } else if one.stopped {
            MachineState::Stopped
        } else {
            MachineState::Running
        };
        let web_url = Some(format!("memory:{resource_ref}"));
        Ok(MachineStatus { state, web_url, since: None, size: Some(one.size.clone()) })
    }

    async fn suspend(&self, resource_ref: &ResourceRef, _mode: SuspendMode) -> Result<()> {
        let mut state = self.begin(Verb::Suspend)?;
        find(&mut state, resource_ref)?.stopped = true;
        Ok(())
    }

    async fn resume(&self, resource_ref: &ResourceRef) -> Result<()> {
        let mut state = self.begin(Verb::Resume)?;
        let polls_left = state.build_polls;
        let one = find(&mut state, resource_ref)?;
        if one.stopped {
            (one.stopped, one.polls_left) = (false, polls_left);
        }
        Ok(())
    }

    async fn rotate_credentials(&self, resource_ref: &ResourceRef, credentials: &Credentials) -> Result<()> {
        let mut state = self.begin(Verb::RotateCredentials)?;
        let sessions = state.sessions;
        let one = find(&mut state, resource_ref)?;
        if one.stopped {
            return Err(Error::Refused { why: "a suspended box gets no new password".to_owned() });
        }
        one.password = credentials.password.expose_secret().to_owned();
        one.sessions_from = sessions;
        Ok(())
    }

    async fn restart(&self, resource_ref: &ResourceRef) -> Result<()> {
        let mut state = self.begin(Verb::Restart)?;
        let sessions = state.sessions;
        let one = find(&mut state, resource_ref)?;
        if one.stopped {
            return Err(Error::Refused { why: "a suspended box is not restarted".to_owned() });
        }
        one.sessions_from = sessions;
        Ok(())
    }

    async fn usage(&self, resource_ref: &ResourceRef) -> Result<Usage> {
        let mut state = self.begin(Verb::Usage)?;
        Ok(find(&mut state, resource_ref)?.usage.clone())
    }

    async fn resize(&self, resource_ref: &ResourceRef, size: &str) -> Result<()> {
        let mut state = self.begin(Verb::Resize)?;
        check_size(size)?;
        let polls_left = state.build_polls;
        let one = find(&mut state, resource_ref)?;
        if one.stopped {
            return Err(Error::Refused { why: "a suspended box is not resized".to_owned() });
        }
        if one.size != size {
            (one.size, one.polls_left) = (size.to_owned(), polls_left);
        }
        Ok(())
    }

    async fn terminate(&self, resource_ref: &ResourceRef) -> Result<Termination> {
        let mut state = self.begin(Verb::Terminate)?;
        if let Some(id) = resource_ref.0.strip_prefix("memory-").and_then(|id| id.parse().ok()) {
            let id: Uuid = id;
            state.boxes.remove(&id);
        }
        let fact = |fact: &str| WipeFact { fact: fact.to_owned(), at: Timestamp::now() };
        Ok(Termination::Gone(vec![fact("removed from memory"), fact("first look: gone"), fact("second look: gone")]))
    }

    async fn list_owned(&self) -> Result<Vec<Machine>> {
        let state = self.begin(Verb::ListOwned)?;
        Ok(state.boxes.keys().copied().map(machine).collect())
    }

    async fn billed(&self) -> Result<Vec<Billed>> {
        let state = self.begin(Verb::Billed)?;
        let machines = state.boxes.iter().map(|(id, held)| Billed {
            resource_ref: machine(*id).resource_ref,
            resource_id: Some(*id),
            kind: BilledKind::Machine,
            stopped: held.stopped,
            monthly_cost_cents: SIZES.iter().find(|(name, ..)| *name == held.size).map(|(.., cost)| *cost),
            created_at: None,
        });
        Ok(machines.chain(state.leftovers.iter().cloned()).collect())
    }

    fn wipe_method(&self) -> &'static str {
        "removed from memory; seen to be gone twice"
    }
}
