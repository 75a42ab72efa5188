//! How many SSH sessions of ours one host gets at once, whoever's connections lead there and whatever they are for.
//!
//! A host has [`PLACES`] places: one that looks and everything else share, and one that looks do not take, so that what a person
//! asked for does not stand behind them. A place is a lock in this copy and an advisory lock in Postgres, held by one database
//! connection of the copy: with a copy, or with that connection, its places are free for the others. Where that connection
//! breaks, sessions that are open go on; until they end, other copies can open as many again.
//!
//! A host is an address and a port, since behind one address each port can be another machine. A name with several addresses is
//! its lowest. Nobody waits for a place with a worker in hand but a look of a round, which is no worker's.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

/// How many sessions a host gets at once.
pub const PLACES: usize = 2;

/// The place that looks take.
const SHARED: usize = 0;

/// How many servers one copy looks at at once.
const LOOKS: usize = 32;

/// With how many servers one copy does at once what was asked of them: half of its workers, so that servers that hang leave
/// workers for all the rest.
const ASKED: usize = crate::workers::CONCURRENCY / 2;

/// How long a look of a round waits for the other looks at its host.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often another copy's place is tried for.
const TRY_EVERY: Duration = Duration::from_millis(200);

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A look of a round: it waits for its turn.
    Round,
    /// A look that is a job: it is run again instead of waiting.
    Look,
    /// What was asked for: a command, a rotation, a revocation. It is run again instead of waiting.
    Asked,
}

/// Why there is no place.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// All are taken.
    #[error("as many sessions as a server gets from us at once are open to it already")]
    Busy,
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
}

type Locks = [Arc<tokio::sync::Mutex<()>>; PLACES];

/// The places of all hosts, as one copy sees them.
pub struct Hosts {
    pool: PgPool,
    locks: Mutex<HashMap<SocketAddr, Locks>>,
    shared: Arc<tokio::sync::Mutex<Shared>>,
    looks: Arc<Semaphore>,
    asked: Arc<Semaphore>,
}

impl std::fmt::Debug for Hosts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hosts").finish_non_exhaustive()
    }
}

/// The database connection that holds the places of this copy.
#[derive(Default)]
struct Shared {
    connection: Option<PgConnection>,
    /// Counts up with each one.
    number: u64,
}

impl Shared {
    /// Takes a place before other copies, and says which connection holds it; `None` if one of them has it.
    async fn take(&mut self, pool: &PgPool, key: i64) -> sqlx::Result<Option<u64>> {
        if let Some(connection) = &mut self.connection {
            match Self::try_lock(connection, key).await {
                Ok(taken) => return Ok(taken.then_some(self.number)),
                // It broke while nobody looked, and another one will do. Its end frees what it held.
                Err(error) => {
                    tracing::warn!(%error, "the connection that holds sessions' places broke; another is opened")
                }
            }
            self.connection = None;
        }
        // Not one of the pool's: it is kept for as long as this copy runs.
        let mut connection = pool.acquire().await?.detach();
        let taken = Self::try_lock(&mut connection, key).await?;
        self.connection = Some(connection);
        self.number += 1;
        Ok(taken.then_some(self.number))
    }

    async fn try_lock(connection: &mut PgConnection, key: i64) -> sqlx::Result<bool> {
        sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(key).fetch_one(connection).await
    }

    async fn give_back(&mut self, key: i64, number: u64) {
        let Some(connection) = self.connection.as_mut().filter(|_| self.number == number) else { return };
        let freed = sqlx::query("select pg_advisory_unlock($1)").bind(key).execute(&mut *connection).await;
        if let Err(error) = freed {
            tracing::warn!(%error, "the connection that holds sessions' places broke; all of them are free");
            self.connection = None;
        }
    }
}

/// A place, until it is dropped.
pub struct Place {
    shared: Arc<tokio::sync::Mutex<Shared>>,
    key: i64,
    number: u64,
    _here: OwnedMutexGuard<()>,
    _room: OwnedSemaphorePermit,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (shared, key, number) = (Arc::clone(&self.shared), self.key, self.number);
        // Where there is nothing to run it on this process ends, and the connection with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { shared.lock().await.give_back(key, number).await });
        }
    }
}

fn key_of(host: SocketAddr, place: usize) -> i64 {
    let digest = Sha256::digest(format!("seedplane session {host} {place}").as_bytes());
    let mut key = [0; 8];
    key.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(key)
}

impl Hosts {
    /// For one copy with this pool.
    pub fn new(pool: PgPool) -> Self {
        Self {
            pool,
            locks: Mutex::default(),
            shared: Arc::default(),
            looks: Arc::new(Semaphore::new(LOOKS)),
            asked: Arc::new(Semaphore::new(ASKED)),
        }
    }

    fn locks_of(&self, host: SocketAddr) -> Locks {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if locks.len() > 10_000 {
            locks.retain(|_, of_one| of_one.iter().any(|lock| Arc::strong_count(lock) > 1));
        }
        locks.entry(host).or_default().clone()
    }

    /// Takes a place at one of these addresses' host for a session.
    ///
    /// # Errors
    /// [`HostError::Busy`] at once, or for a round after a minute.
    pub async fn enter(&self, addresses: &[SocketAddr], purpose: Purpose) -> Result<Place, HostError> {
        let Some(host) = addresses.iter().min().copied() else { return Err(HostError::Busy) };
        let locks = self.locks_of(host);
        match purpose {
            Purpose::Round => {
                let turn = tokio::time::timeout(PATIENCE, Arc::clone(&locks[SHARED]).lock_owned());
                let mut here = turn.await.map_err(|_| HostError::Busy)?;
                let room = Arc::clone(&self.looks).acquire_owned().await.map_err(|_| HostError::Busy)?;
                let (mut room, until) = (room, tokio::time::Instant::now() + PATIENCE / 6);
                loop {
                    match self.before_others(host, SHARED, here, room).await? {
                        Ok(place) => return Ok(place),
                        Err(_) if tokio::time::Instant::now() > until => return Err(HostError::Busy),
                        Err(back) => (here, room) = back,
                    }
                    // Copies that try at the same time would go on doing so.
                    let wait = TRY_EVERY / 2 + Duration::from_millis(rand::random::<u8>().into());
                    tokio::time::sleep(wait).await;
                }
            }
            Purpose::Look | Purpose::Asked => {
                let (room, places) = match purpose {
                    Purpose::Asked => (&self.asked, &[1, SHARED][..]),
                    _ => (&self.looks, &[SHARED][..]),
                };
                let mut room = Arc::clone(room).try_acquire_owned().map_err(|_| HostError::Busy)?;
                for place in places {
                    let Ok(here) = Arc::clone(&locks[*place]).try_lock_owned() else { continue };
                    match self.before_others(host, *place, here, room).await? {
                        Ok(place) => return Ok(place),
                        Err((_, back)) => room = back,
                    }
                }
                Err(HostError::Busy)
            }
        }
    }

    /// Takes before other copies a place that is ours in this one, or gives back what was given.
    #[allow(clippy::type_complexity, reason = "what is given back is what was given")]
    async fn before_others(
        &self,
        host: SocketAddr,
        place: usize,
        here: OwnedMutexGuard<()>,
        room: OwnedSemaphorePermit,
    ) -> Result<Result<Place, (OwnedMutexGuard<()>, OwnedSemaphorePermit)>, HostError> {
        let (shared, pool, key) = (Arc::clone(&self.shared), self.pool.clone(), key_of(host, place));
        // On its own, so that a caller who is dropped in between leaves no lock that nobody knows of.
        let taking = tokio::spawn(async move {
            let taken = shared.lock().await.take(&pool, key).await?;
            Ok::<_, sqlx::Error>(match taken {
                Some(number) => Ok(Place { shared, key, number, _here: here, _room: room }),
                None => Err((here, room)),
            })
        });
        Ok(taking.await.map_err(|_| HostError::Busy)??)
    }
}
