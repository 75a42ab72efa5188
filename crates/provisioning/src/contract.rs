//! The promises of [`ProvisioningProvider`](crate::ProvisioningProvider) as functions. Every provider's tests call
//! [`run_all`], which calls all of them: none can be left out silently.

#![allow(clippy::print_stdout, reason = "a test says which promises it held a provider to")]

use std::time::{Duration, Instant};

use async_trait::async_trait;
use uuid::Uuid;

use crate::{
    Credentials, Error, Machine, MachineSpec, MachineState, ProvisioningProvider, ResourceRef, SuspendMode,
    Termination, Usage, node,
};

/// How a test tries what the owner of a box would.
#[async_trait]
pub trait Probe: Send + Sync {
    /// A session with a box.
    type Session: Send + Sync + std::fmt::Debug;
    /// Logs in; why not, if the login is refused or nothing answers.
    async fn login(
        &self,
        machine: &Machine,
        web_url: &str,
        credentials: &Credentials,
    ) -> std::result::Result<Self::Session, String>;
    /// Whether a session still works.
    async fn session_is_good(&self, session: &Self::Session) -> bool;
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

struct Run<'a, P: Probe> {
    provider: &'a dyn ProvisioningProvider,
    probe: &'a P,
    size: String,
    region: Option<String>,
    other_size: Option<String>,
}

/// Calls a verb as the control plane does: again after an error that allows it.
async fn insist<T, F: Future<Output = Result<T, Error>>>(what: &str, call: impl Fn() -> F) -> T {
    let started = Instant::now();
    loop {
        match call().await {
            Ok(value) => return value,
            Err(error @ (Error::Transient { .. } | Error::Unknown(_))) => {
                assert!(started.elapsed() < PATIENCE, "{what} never worked: {error}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

fn new_credentials() -> Credentials {
    Credentials { username: "seed".to_owned(), password: node::random_password() }
}

impl<P: Probe> Run<'_, P> {
    fn spec(&self) -> MachineSpec {
        MachineSpec {
            resource_id: Uuid::now_v7(),
            size: self.size.clone(),
            region: self.region.clone(),
            credentials: new_credentials(),
            maybe_made_at: None,
        }
    }

    async fn create(&self, spec: &MachineSpec) -> Machine {
        insist("create", || self.provider.create(spec)).await
    }

    async fn until(&self, resource_ref: &ResourceRef, state: &MachineState) -> String {
        let started = Instant::now();
        loop {
            let status = insist("status", || self.provider.status(resource_ref)).await;
            if status.state == *state {
                return status.web_url.unwrap_or_default();
            }
            assert!(started.elapsed() < PATIENCE, "waited for {state:?}, it is {:?}", status.state);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn running(&self) -> (MachineSpec, Machine, String) {
        let spec = self.spec();
        let machine = self.create(&spec).await;
        let web_url = self.until(&machine.resource_ref, &MachineState::Running).await;
        (spec, machine, web_url)
    }

    async fn suspend(&self, machine: &Machine, mode: SuspendMode) {
        insist("suspend", || self.provider.suspend(&machine.resource_ref, mode)).await;
        self.until(&machine.resource_ref, &MachineState::Stopped).await;
    }

    async fn end(&self, machine: &Machine) -> usize {
        let started = Instant::now();
        loop {
            match insist("terminate", || self.provider.terminate(&machine.resource_ref)).await {
                Termination::Gone(facts) => return facts.len(),
                Termination::InProgress { retry_after, .. } => tokio::time::sleep(retry_after).await,
            }
            assert!(started.elapsed() < PATIENCE, "terminate never ended");
        }
    }

    async fn twins(&self, id: Uuid) -> usize {
        insist("list_owned", || self.provider.list_owned())
            .await
            .iter()
            .filter(|machine| machine.resource_id == id)
            .count()
    }

    async fn create_is_idempotent(&self) {
        let spec = self.spec();
        let (a, b) = tokio::join!(self.create(&spec), self.create(&spec));
        let c = self.create(&spec).await;
        assert!(a == b && b == c, "the same machine each time");
        // It may be listed late; two of it may never be.
        let started = Instant::now();
        loop {
            let twins = self.twins(spec.resource_id).await;
            let found = insist("find", || self.provider.find(spec.resource_id)).await;
            assert!(twins <= 1, "never a twin");
            if twins == 1 && found.is_some() {
                assert_eq!(found, Some(a.clone()), "it is found by our id");
                break;
            }
            assert!(started.elapsed() < PATIENCE, "it is never listed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.end(&a).await;
    }

    async fn the_delivered_login_works(&self) {
        let (spec, machine, web_url) = self.running().await;
        let wrong = new_credentials();
        assert!(self.probe.login(&machine, &web_url, &wrong).await.is_err(), "a wrong password is refused");
        self.probe.login(&machine, &web_url, &spec.credentials).await.expect("the right one is not");
        self.end(&machine).await;
    }

    async fn suspend_cuts_and_resume_restores(&self) {
        let (spec, machine, web_url) = self.running().await;
        let session = self.probe.login(&machine, &web_url, &spec.credentials).await.expect("the login works");
        for mode in [SuspendMode::Service, SuspendMode::Everything] {
            self.suspend(&machine, mode).await;
            self.suspend(&machine, mode).await;
            assert!(!self.probe.session_is_good(&session).await, "an open session is cut");
            assert!(self.probe.login(&machine, &web_url, &spec.credentials).await.is_err(), "its owner cannot get in");
            let refused = self.provider.rotate_credentials(&machine.resource_ref, &new_credentials()).await;
            assert!(refused.is_err(), "no new password while suspended");
            insist("resume", || self.provider.resume(&machine.resource_ref)).await;
            insist("resume", || self.provider.resume(&machine.resource_ref)).await;
            let web_url = self.until(&machine.resource_ref, &MachineState::Running).await;
            self.probe.login(&machine, &web_url, &spec.credentials).await.expect("the same login after a return");
        }
        self.end(&machine).await;
    }

    async fn rotation_ends_the_old_login(&self) {
        let (spec, machine, web_url) = self.running().await;
        let session = self.probe.login(&machine, &web_url, &spec.credentials).await.expect("the login works");
        let fresh = new_credentials();
        insist("rotate_credentials", || self.provider.rotate_credentials(&machine.resource_ref, &fresh)).await;
        assert!(!self.probe.session_is_good(&session).await, "an old session is dead");
        assert!(self.probe.login(&machine, &web_url, &spec.credentials).await.is_err(), "the old password is dead");
        self.probe.login(&machine, &web_url, &fresh).await.expect("the new one works at once");
        insist("rotate_credentials", || self.provider.rotate_credentials(&machine.resource_ref, &fresh)).await;
        self.probe.login(&machine, &web_url, &fresh).await.expect("safe to repeat");
        self.end(&machine).await;
    }

    async fn restart_keeps_the_login(&self) {
        let (spec, machine, web_url) = self.running().await;
        let session = self.probe.login(&machine, &web_url, &spec.credentials).await.expect("the login works");
        for _ in 0..2 {
            insist("restart", || self.provider.restart(&machine.resource_ref)).await;
            self.probe.login(&machine, &web_url, &spec.credentials).await.expect("the same login, at once");
        }
        assert!(!self.probe.session_is_good(&session).await, "it is another client");
        self.suspend(&machine, SuspendMode::Service).await;
        self.refuses("while suspended", || self.provider.restart(&machine.resource_ref)).await;
        assert_eq!(insist("status", || self.provider.status(&machine.resource_ref)).await.state, MachineState::Stopped);
        self.end(&machine).await;
    }

    async fn usage_is_counted_upwards(&self) {
        let (_, machine, _) = self.running().await;
        let usage = || insist("usage", || self.provider.usage(&machine.resource_ref));
        let (first, second) = (usage().await, usage().await);
        assert!(first.disk_total_bytes > 0 && first.disk_used_bytes <= first.disk_total_bytes, "{first:?}");
        assert!(!first.count.is_empty() && first.count == second.count, "{first:?} {second:?}");
        let counted = |usage: &Usage| (usage.received_bytes, usage.sent_bytes);
        assert!(
            counted(&first).0 <= counted(&second).0 && counted(&first).1 <= counted(&second).1,
            "{first:?} {second:?}"
        );
        self.end(&machine).await;
        assert!(self.provider.usage(&machine.resource_ref).await.is_err(), "nothing is known of what is gone");
    }

    async fn resize_keeps_the_login(&self) {
        let Some(other) = &self.other_size else {
            println!("{}: SKIPPED resize_keeps_the_login, it offers one size only", self.provider.name());
            return;
        };
        let (spec, machine, _) = self.running().await;
        for _ in 0..2 {
            insist("resize", || self.provider.resize(&machine.resource_ref, other)).await;
            let web_url = self.until(&machine.resource_ref, &MachineState::Running).await;
            self.probe.login(&machine, &web_url, &spec.credentials).await.expect("the same login");
        }
        let size = insist("status", || self.provider.status(&machine.resource_ref)).await.size;
        assert!(size.is_none_or(|size| size == *other), "it has the new size");
        self.refuses("an unknown size", || self.provider.resize(&machine.resource_ref, "no-such-size")).await;
        self.until(&machine.resource_ref, &MachineState::Running).await;
        self.suspend(&machine, SuspendMode::Service).await;
        self.refuses("while suspended", || self.provider.resize(&machine.resource_ref, &self.size)).await;
        assert_eq!(insist("status", || self.provider.status(&machine.resource_ref)).await.state, MachineState::Stopped);
        self.end(&machine).await;
    }

    /// Asks until the answer is a refusal; a success is none.
    async fn refuses<T: std::fmt::Debug, F: Future<Output = Result<T, Error>>>(
        &self,
        what: &str,
        call: impl Fn() -> F,
    ) {
        let started = Instant::now();
        loop {
            match call().await {
                Err(Error::Refused { .. }) => return,
                Err(Error::Transient { .. } | Error::Unknown(_)) if started.elapsed() < PATIENCE => {}
                other => panic!("{what}: expected a refusal, not {other:?}"),
            }
        }
    }

    async fn terminate_leaves_nothing(&self) {
        let (spec, machine, web_url) = self.running().await;
        self.suspend(&machine, SuspendMode::Everything).await;
        assert!(self.end(&machine).await >= 2, "gone is seen twice");
        self.end(&machine).await;
        self.until(&machine.resource_ref, &MachineState::Gone).await;
        assert_eq!(self.twins(spec.resource_id).await, 0, "nothing carries our tag any more");
        assert!(self.probe.login(&machine, &web_url, &spec.credentials).await.is_err(), "nothing answers");
    }

    async fn what_is_not_there_is_said_so(&self) {
        let nowhere = ResourceRef("no-such-machine".to_owned());
        self.until(&nowhere, &MachineState::Gone).await;
        let is_missing = |result: Result<(), Error>| !matches!(result, Ok(()));
        assert!(is_missing(self.provider.suspend(&nowhere, SuspendMode::Service).await), "nothing to suspend");
        assert!(is_missing(self.provider.resume(&nowhere).await), "nothing to resume");
        assert!(is_missing(self.provider.restart(&nowhere).await), "nothing to restart");
        assert!(is_missing(self.provider.usage(&nowhere).await.map(drop)), "nothing to count");
        let found = insist("find", || self.provider.find(Uuid::now_v7())).await;
        assert_eq!(found, None);
    }
}

/// Holds a provider to every promise, printing the name of each.
///
/// # Panics
/// At the first promise that is not kept.
pub async fn run_all<P: Probe>(provider: &dyn ProvisioningProvider, probe: &P) {
    let capabilities = insist("capabilities", || provider.capabilities()).await;
    let mut sizes = capabilities.sizes.into_iter();
    let first = sizes.next().expect("a provider offers at least one size");
    let region = first.regions.first().cloned();
    let other_size = sizes.find(|size| region.as_ref().is_none_or(|region| size.regions.contains(region)));
    let run = Run { provider, probe, size: first.name, region, other_size: other_size.map(|size| size.name) };
    macro_rules! promises {
        ($($promise:ident),* $(,)?) => {$(
            run.$promise().await;
            println!("{}: {} kept", provider.name(), stringify!($promise));
        )*};
    }
    promises!(
        create_is_idempotent,
        the_delivered_login_works,
        suspend_cuts_and_resume_restores,
        rotation_ends_the_old_login,
        restart_keeps_the_login,
        usage_is_counted_upwards,
        resize_keeps_the_login,
        terminate_leaves_nothing,
        what_is_not_there_is_said_so,
    );
}
