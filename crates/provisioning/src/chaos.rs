//! A provider that loses answers, refuses, repeats and delays by a seed: the same seed does the same again.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use uuid::Uuid;

use crate::{
    Billed, Capabilities, Credentials, Error, Machine, MachineSpec, MachineStatus, ProvisioningProvider, ResourceRef,
    Result, SuspendMode, Termination, Usage,
};

/// What happens to a call.
enum Fate {
    Untouched,
    /// Refused before anything is done.
    Refused,
    /// Done, and the answer lost.
    Lost,
    /// Done twice.
    Repeated,
    /// Done a little later.
    Delayed,
}

/// A wrapper around any provider.
#[derive(Debug)]
pub struct Chaos<P> {
    inner: P,
    random: Mutex<StdRng>,
}

impl<P> Chaos<P> {
    /// Trouble for about two calls of five.
    pub fn new(inner: P, seed: u64) -> Self {
        Self { inner, random: Mutex::new(StdRng::seed_from_u64(seed)) }
    }

    /// The provider underneath.
    pub fn inner(&self) -> &P {
        &self.inner
    }

    fn fate(&self) -> Fate {
        match self.random.lock().unwrap_or_else(PoisonError::into_inner).random_range(0..10) {
            0 => Fate::Refused,
            1 => Fate::Lost,
            2 => Fate::Repeated,
            3 => Fate::Delayed,
            _ => Fate::Untouched,
        }
    }

    async fn trouble<T, F: Future<Output = Result<T>>>(&self, call: impl Fn() -> F) -> Result<T> {
        match self.fate() {
            Fate::Untouched => call().await,
            Fate::Refused => Err(Error::transient("refused by chaos")),
            Fate::Lost => {
                call().await?;
                Err(Error::Unknown("the answer was lost by chaos".to_owned()))
            }
            Fate::Repeated => {
                call().await?;
                call().await
            }
            Fate::Delayed => {
                tokio::time::sleep(Duration::from_millis(3)).await;
                call().await
            }
        }
    }
}

#[async_trait]
impl<P: ProvisioningProvider> ProvisioningProvider for Chaos<P> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    async fn capabilities(&self) -> Result<Capabilities> {
        self.trouble(|| self.inner.capabilities()).await
    }

    async fn create(&self, spec: &MachineSpec) -> Result<Machine> {
        self.trouble(|| self.inner.create(spec)).await
    }

    async fn status(&self, resource_ref: &ResourceRef) -> Result<MachineStatus> {
        self.trouble(|| self.inner.status(resource_ref)).await
    }

    async fn suspend(&self, resource_ref: &ResourceRef, mode: SuspendMode) -> Result<()> {
        self.trouble(|| self.inner.suspend(resource_ref, mode)).await
    }

    async fn resume(&self, resource_ref: &ResourceRef) -> Result<()> {
        self.trouble(|| self.inner.resume(resource_ref)).await
    }

    async fn rotate_credentials(&self, resource_ref: &ResourceRef, credentials: &Credentials) -> Result<()> {
        self.trouble(|| self.inner.rotate_credentials(resource_ref, credentials)).await
    }

    async fn restart(&self, resource_ref: &ResourceRef) -> Result<()> {
        self.trouble(|| self.inner.restart(resource_ref)).await
    }

    async fn usage(&self, resource_ref: &ResourceRef) -> Result<Usage> {
        self.trouble(|| self.inner.usage(resource_ref)).await
    }

    async fn resize(&self, resource_ref: &ResourceRef, size: &str) -> Result<()> {
        self.trouble(|| self.inner.resize(resource_ref, size)).await
    }

    async fn terminate(&self, resource_ref: &ResourceRef) -> Result<Termination> {
        self.trouble(|| self.inner.terminate(resource_ref)).await
    }

    async fn list_owned(&self) -> Result<Vec<Machine>> {
        self.trouble(|| self.inner.list_owned()).await
    }

    async fn billed(&self) -> Result<Vec<Billed>> {
        self.trouble(|| self.inner.billed()).await
    }

    fn wipe_method(&self) -> &'static str {
        self.inner.wipe_method()
    }

    async fn find(&self, resource_id: Uuid) -> Result<Option<Machine>> {
        self.trouble(|| self.inner.find(resource_id)).await
    }
}
