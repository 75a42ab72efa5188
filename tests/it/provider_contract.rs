//! Every provider keeps the same promises: `contract::run_all` on each.

use async_trait::async_trait;
use seedplane::demo::seeding;
use seedplane_provisioning::{
    Credentials, Machine, MachineSpec, MachineState, ProvisioningProvider, SuspendMode, Termination,
    chaos::Chaos,
    contract::{self, Probe},
    local::{LocalConfig, LocalProvider},
    memory::{MemoryProvider, MemorySession},
    node::{self, qbittorrent::Session},
};

struct InMemory(MemoryProvider);

#[async_trait]
impl Probe for InMemory {
    type Session = MemorySession;

    async fn login(
        &self,
        machine: &Machine,
        _web_url: &str,
        credentials: &Credentials,
    ) -> Result<MemorySession, String> {
        self.0.login(machine.resource_id, credentials).ok_or_else(|| "refused".to_owned())
    }

    async fn session_is_good(&self, session: &MemorySession) -> bool {
        self.0.session_is_good(*session)
    }
}

struct Web;

#[async_trait]
impl Probe for Web {
    type Session = Session;

    async fn login(&self, _machine: &Machine, web_url: &str, credentials: &Credentials) -> Result<Session, String> {
        Session::login(web_url, credentials).await.map_err(|error| error.to_string())
    }

    async fn session_is_good(&self, session: &Session) -> bool {
        session.version().await.is_ok()
    }
}

#[tokio::test]
async fn in_memory() {
    let provider = MemoryProvider::new();
    provider.set_build_polls(3);
    contract::run_all(&provider, &InMemory(provider.clone())).await;
}

#[tokio::test]
async fn under_chaos() {
    for seed in 0..50 {
        let provider = MemoryProvider::new();
        println!("seed {seed}");
        contract::run_all(&Chaos::new(provider.clone(), seed), &InMemory(provider)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn real_boxes_on_this_machine() {
    let folder = crate::support::temporary("boxes");
    let provider = LocalProvider::new(LocalConfig::new(folder.clone())).unwrap();
    contract::run_all(&provider, &Web).await;
    provider.stop_all().await;
    let left = std::fs::read_dir(&folder)
        .unwrap()
        .flatten()
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .count();
    assert_eq!(left, 0, "nothing is left in {}", folder.display());
}

fn small() -> MachineSpec {
    MachineSpec {
        resource_id: uuid::Uuid::now_v7(),
        size: "small".to_owned(),
        region: None,
        credentials: Credentials { username: "seed".to_owned(), password: node::random_password() },
        maybe_made_at: None,
    }
}

/// Two control planes on one machine, each with its own folder: what one does to its boxes leaves the other's alone.
#[tokio::test(flavor = "multi_thread")]
async fn control_planes_on_one_machine_leave_each_other_alone() {
    let mut sides = Vec::new();
    for name in ["one", "other"] {
        let provider = LocalProvider::new(LocalConfig::new(crate::support::temporary(name))).unwrap();
        let spec = small();
        let machine = provider.create(&spec).await.unwrap();
        let url = until(&provider, &machine, MachineState::Running).await;
        let session = Session::login(&url, &spec.credentials).await.unwrap();
        sides.push((provider, machine, session));
    }
    let [(one, mine, _), (other, theirs, session)] = &sides[..] else { unreachable!("two were made") };
    one.suspend(&mine.resource_ref, SuspendMode::Service).await.unwrap();
    one.terminate(&mine.resource_ref).await.unwrap();
    one.stop_all().await;
    one.start_all().await.unwrap();
    session.version().await.expect("the other's box was never stopped: the session is still good");
    other.terminate(&theirs.resource_ref).await.unwrap();
}

/// Waits until a box is in a state; its address.
async fn until(provider: &LocalProvider, machine: &Machine, state: MachineState) -> String {
    let started = std::time::Instant::now();
    loop {
        let status = provider.status(&machine.resource_ref).await.unwrap();
        if status.state == state {
            return status.web_url.unwrap_or_default();
        }
        assert!(started.elapsed() < crate::support::PATIENCE, "{machine:?} is {:?}, not {state:?}", status.state);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn boxes_come_back_after_a_restart_and_suspended_ones_do_not() {
    let folder = crate::support::temporary("restart");
    let provider = LocalProvider::new(LocalConfig::new(folder.clone())).unwrap();
    let mut made = Vec::new();
    for _ in 0..2 {
        let spec = small();
        let machine = provider.create(&spec).await.unwrap();
        until(&provider, &machine, MachineState::Running).await;
        made.push((machine, spec.credentials));
    }
    let [(runs, login), (suspended, _)] = &made[..] else { unreachable!("two were made") };
    provider.suspend(&suspended.resource_ref, SuspendMode::Service).await.unwrap();
    let kept = folder.join(runs.resource_id.to_string()).join("data/kept");
    std::fs::write(&kept, "mine").unwrap();
    provider.stop_all().await;
    drop(provider);

    let provider = LocalProvider::new(LocalConfig::new(folder.clone())).unwrap();
    provider.start_all().await.unwrap();
    let url = until(&provider, runs, MachineState::Running).await;
    assert!(Session::login(&url, login).await.is_ok(), "the same login");
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), "mine");
    until(&provider, suspended, MachineState::Stopped).await;
    for (machine, _) in &made {
        while let Termination::InProgress { retry_after, .. } = provider.terminate(&machine.resource_ref).await.unwrap()
        {
            tokio::time::sleep(retry_after).await;
        }
    }
    assert_eq!(provider.list_owned().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_box_counts_what_it_sent() {
    let folder = crate::support::temporary("counted");
    let provider = LocalProvider::new(LocalConfig::new(folder.join("boxes"))).unwrap();
    let spec = small();
    let machine = provider.create(&spec).await.unwrap();
    let web_url = until(&provider, &machine, MachineState::Running).await;
    let machine = machine.resource_ref;
    let session = Session::login(&web_url, &spec.credentials).await.unwrap();
    let before = provider.usage(&machine).await.unwrap();
    assert_eq!((before.received_bytes, before.sent_bytes), (0, 0));
    let own = folder.join("boxes").join(spec.resource_id.to_string());
    let Some(sent) = seeding::seed(&session, &own.join("data"), &folder.join("fetched")).await.unwrap() else {
        println!("SKIPPED a_real_box_counts_what_it_sent: aria2c is not on this machine");
        return;
    };
    // The client writes down what it has transferred when it ends.
    provider.restart(&machine).await.unwrap();
    let after = provider.usage(&machine).await.unwrap();
    assert!((sent..sent * 2).contains(&after.sent_bytes), "{after:?}");
    assert!((sent..sent * 2).contains(&after.disk_used_bytes), "{after:?}");
    assert!(after.disk_total_bytes > after.disk_used_bytes && after.count == before.count, "{after:?}");

    // What its owner puts in the place of the client's own file is not followed, nor waited for.
    let statistics = own.join("profile/qBittorrent/config/qBittorrent-data.conf");
    provider.suspend(&machine, SuspendMode::Service).await.unwrap();
    std::fs::remove_file(&statistics).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &statistics).unwrap();
    assert_eq!(provider.usage(&machine).await.unwrap().sent_bytes, 0);
    std::fs::remove_file(&statistics).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&statistics).status().unwrap().success());
    assert_eq!(provider.usage(&machine).await.unwrap().sent_bytes, 0);
    assert!(matches!(provider.terminate(&machine).await.unwrap(), Termination::Gone(_)));
    provider.stop_all().await;
}
