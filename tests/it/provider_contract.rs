//! Every provider follows the same contract. The providers themselves are tested in their crate; this holds the ones that
//! the control plane runs on to it once more, through its own dependency.

use async_trait::async_trait;
use seedplane_provisioning::{
    Credentials, Machine,
    chaos::Chaos,
    contract::{self, Probe},
    local::{LocalConfig, LocalProvider},
    memory::{MemoryProvider, MemorySession},
    node::qbittorrent::Session,
};

struct InMemory(MemoryProvider);

#[async_trait]
impl Probe for InMemory {
    type Session = MemorySession;

    async fn login(&self, machine: &Machine, _web_url: &str, credentials: &Credentials) -> Option<MemorySession> {
        self.0.login(machine.resource_id, credentials)
    }

    async fn session_is_good(&self, session: &MemorySession) -> bool {
        self.0.session_is_good(*session)
    }
}

struct Web;

#[async_trait]
impl Probe for Web {
    type Session = Session;

    async fn login(&self, _machine: &Machine, web_url: &str, credentials: &Credentials) -> Option<Session> {
        Session::login(web_url, credentials).await.ok()
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
