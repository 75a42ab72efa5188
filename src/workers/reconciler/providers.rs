//! Looks at the providers: what they offer, whether they accept our access, and which machines they have, compared with our
//! boxes.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use jiff::SignedDuration;
use seedplane_provisioning::{
    Billed, Capabilities, Error as ProviderError, Machine, MachineState, ProvisioningProvider, ResourceRef,
};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    alerts,
    app::App,
    billing::rules,
    clock::Time,
    ids::ResourceId,
    jobs::{self, Job},
    seedbox::{
        Status, catalogues,
        drift::{self, DriftKind, Finding, Ours, Upstream, findings},
        repository,
    },
    workers::{StepError, seedbox_provisioner},
};

/// How often the providers are asked for their machines, in the system's time.
const PROVIDERS_EVERY: SignedDuration = SignedDuration::from_mins(5);

/// How long what a provider offers counts as known.
const CATALOGUE_EVERY: SignedDuration = SignedDuration::from_hours(1);

/// How many machines of a provider are looked at one by one in a round, at most.
const LOOKS_A_ROUND: usize = 100;

/// How many alerts of drift a round raises, at most: the rest is in the list.
const ALERTS_A_ROUND: usize = 100;

/// The alert of a provider that does not say what it bills.
const BILLING_UNREAD: &str = "provider_billing_unread";

/// What a provider bills may be unknown for so long before an operator is told.
const BILLING_UNREAD_AFTER: SignedDuration = SignedDuration::from_mins(30);

/// How long a process that starts waits for a provider.
const PATIENCE_AT_START: Duration = Duration::from_secs(15);

/// Looks at each provider once, before orders are taken: a token that is wrong is said now, and a right one put in its place
/// counts from here on.
///
/// # Errors
/// Those of the database. A provider that fails is a warning.
pub async fn look_at_start(app: &App) -> sqlx::Result<()> {
    for known in catalogues::all(&app.pool).await? {
        if app.provider(&known.provider).is_none() && !known.access_refused() {
            let error = ProviderError::Auth("the settings of this copy name no access to it".to_owned());
            tracing::warn!(provider = known.provider, "no orders are taken for its plans: {error}");
            catalogues::note_failure(&app.pool, &known.provider, &error, false, app.now()).await?;
        }
    }
    for (name, provider) in app.providers.iter() {
        let looking = async {
            let capabilities = provider.capabilities().await?;
            // Prices may be open to everybody; the machines are ours alone.
            provider.list_owned().await?;
            Ok::<Capabilities, ProviderError>(capabilities)
        };
        let looked = tokio::time::timeout(PATIENCE_AT_START, looking).await.unwrap_or_else(|_| {
            Err(ProviderError::transient(format!("no answer in {} seconds", PATIENCE_AT_START.as_secs())))
        });
        match looked {
            Ok(capabilities) => catalogues::note_success(&app.pool, name, Some(&capabilities), true, app.now()).await?,
            Err(error) => {
                let refused = matches!(error, ProviderError::Auth(_));
                let what = if refused {
                    "its access is refused: no orders are taken for its plans until the settings have the right token"
                } else {
                    "it could not be looked at; it is tried again every few minutes"
                };
                tracing::warn!(provider = name, %error, "provider '{name}': {what}");
                catalogues::note_failure(&app.pool, name, &error, false, app.now()).await?;
            }
        }
    }
    Ok(())
}

/// What the provider offers, if it is time to read that again.
async fn read_catalogue(
    app: &App,
    name: &str,
    provider: &dyn ProvisioningProvider,
) -> Result<Result<Option<Capabilities>, ProviderError>, StepError> {
    let known = catalogues::find(&app.pool, name).await?;
    let fresh = known.is_some_and(|known| {
        let age = known.read_at.map(|at| app.now().duration_since(at.0));
        known.failure.is_none() && known.capabilities.is_some() && age.is_some_and(|age| age < CATALOGUE_EVERY)
    });
    Ok(if fresh { Ok(None) } else { provider.capabilities().await.map(Some) })
}

/// Compares our boxes with what the providers say they have, every few minutes of the system's time, whatever the number of
/// copies.
///
/// # Errors
/// Those of the database.
pub async fn look_at_providers(app: &App) -> Result<(), StepError> {
    let now = Time(jiff::Timestamp::now());
    let mine = sqlx::query_scalar!(
        r#"insert into worker_rounds (name, begun_at) values ('look_at_providers', $1)
           on conflict (name) do update set begun_at = $1 where worker_rounds.begun_at <= $2
           returning true as "mine!""#,
        now,
        Time(now.0 - PROVIDERS_EVERY),
    )
    .fetch_optional(&app.pool)
    .await?;
    if mine.is_none() {
        return Ok(());
    }
    for (name, provider) in app.providers.iter() {
        compare_with(app, name, provider.as_ref()).await?;
    }
    Ok(())
}

/// Has every provider looked at by the next worker, however new the last look is.
///
/// # Errors
/// Those of the database.
pub async fn ask_for_look(pool: &PgPool) -> sqlx::Result<()> {
    let mut tx = pool.begin().await?;
    sqlx::query!("update worker_rounds set begun_at = 'epoch' where name = 'look_at_providers'")
        .execute(&mut *tx)
        .await?;
    jobs::enqueue_in(&mut tx, Job::LookAtProviders).await?;
    tx.commit().await
}

/// Compares one provider with our boxes: what does not agree is kept for the operator, machines of nobody raise an alert, and
/// boxes whose machine is gone are suspended. What depends on one machine is looked at once more by itself before it is
/// believed. No transaction is open during a call, and nothing is ever deleted here.
///
/// # Errors
/// Those of the database.
pub async fn compare_with(app: &App, name: &str, provider: &dyn ProvisioningProvider) -> Result<(), StepError> {
    let listed = match read_catalogue(app, name, provider).await? {
        Ok(capabilities) => provider.list_owned().await.map(|machines| (capabilities, machines)),
        Err(error) => Err(error),
    };
    let machines = match listed {
        Ok((capabilities, machines)) => {
            catalogues::note_success(&app.pool, name, capabilities.as_ref(), false, app.now()).await?;
            machines
        }
        Err(error) => {
            tracing::warn!(provider = name, %error, "the provider could not be looked at; nothing was compared");
            catalogues::note_failure(&app.pool, name, &error, false, app.now()).await?;
            return Ok(());
        }
    };
    // Read apart: a token that may not see volumes still makes boxes.
    let (billed, billing_error) = match provider.billed().await {
        Ok(billed) => (billed, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let known = catalogues::find(&app.pool, name).await?;
    let capabilities = known.as_ref().and_then(|known| known.capabilities.as_ref());
    let ours = load(app, name, &machines, &billed).await?;
    let upstream = Upstream {
        provider: name,
        machines: &machines,
        billed: &billed,
        stopped_costs: capabilities.is_some_and(|capabilities| capabilities.stopped_costs),
    };
    let mut found = drift::compare(&upstream, &ours);
    if billing_error.is_some() {
        found.retain(|finding| finding.kind != DriftKind::CostingWhileFree);
    }
    let found = look_again(provider, found, &ours).await;

    let now = app.now();
    let mut tx = app.pool.begin().await?;
    let looked = findings::replace_in(&mut tx, name, &found, billing_error.as_deref(), now).await?;
    for over in &looked.over {
        if let Some((kind, subject)) = drift::alert(name, over.kind, &over.subject, over.resource_ref.as_deref()) {
            alerts::resolve_in(&mut tx, kind, &subject, now).await?;
        }
    }
    for (finding, is_new) in found.iter().zip(&looked.is_new).take(ALERTS_A_ROUND) {
        // What a box leaves may take a moment to go after it.
        let passing = *is_new && finding.kind == DriftKind::CostingWhileFree;
        if let Some((kind, subject)) = finding.alert(name).filter(|_| !passing) {
            let detail = format!("{}. Nothing was done to it. {}", finding.detail, finding.proposal);
            alerts::raise(&mut *tx, kind, &subject, &detail, now).await?;
        }
    }
    let compared_at = known.and_then(|known| known.compared_at);
    match billing_error {
        None => {
            alerts::resolve_in(&mut tx, BILLING_UNREAD, name, now).await?;
        }
        Some(error) if compared_at.is_none_or(|at| now.duration_since(at.0) >= BILLING_UNREAD_AFTER) => {
            let detail = format!(
                "what '{name}' bills us for could not be read: {error}. Lost and unknown machines are still found; volumes, \
                 snapshots and what suspended boxes cost are not. Look whether the token may read all of them"
            );
            alerts::raise(&mut *tx, BILLING_UNREAD, name, &detail, now).await?;
        }
        Some(error) => tracing::warn!(provider = name, error, "what the provider bills could not be read"),
    }
    tx.commit().await?;
    suspend_lost(app, name, &found, &ours).await
}

/// Our boxes at a provider that have not ended, and those that have of what is upstream.
async fn load(app: &App, name: &str, machines: &[Machine], billed: &[Billed]) -> sqlx::Result<Vec<Ours>> {
    let mut ours: Vec<Ours> = Vec::new();
    loop {
        let after = ours.last().map_or(Uuid::nil(), |last| last.id.0);
        let batch = findings::living(&app.pool, name, after).await?;
        if batch.is_empty() {
            break;
        }
        ours.extend(batch);
    }
    let living: HashSet<Uuid> = ours.iter().map(|one| one.id.0).collect();
    let named =
        machines.iter().map(|machine| machine.resource_id).chain(billed.iter().filter_map(|one| one.resource_id));
    let others: Vec<Uuid> = named.filter(|id| !living.contains(id)).collect();
    for some in others.chunks(500) {
        ours.extend(findings::ended(&app.pool, name, some).await?);
    }
    Ok(ours)
}

/// Asks for single machines: one that was listed just before it was wiped is no orphan, and one that a list left out is not
/// lost.
async fn look_again(provider: &dyn ProvisioningProvider, found: Vec<Finding>, ours: &[Ours]) -> Vec<Finding> {
    let names: HashMap<Uuid, &str> =
        ours.iter().filter_map(|one| Some((one.id.0, one.resource_ref.as_deref()?))).collect();
    let gone = async |resource_ref: &str| {
        let looked = provider.status(&ResourceRef(resource_ref.to_owned())).await;
        looked.is_ok_and(|status| status.state == MachineState::Gone)
    };
    let (mut looks, mut lost) = (0, 0);
    let mut kept = Vec::with_capacity(found.len());
    for finding in found {
        let stands = match (finding.kind, &finding.resource_ref) {
            (DriftKind::MissingUpstream, _) => {
                let name = finding.resource_id.and_then(|id| names.get(&id));
                let stands = lost < LOOKS_A_ROUND && matches!(name, Some(name) if gone(name).await);
                lost += usize::from(stands);
                stands
            }
            (DriftKind::CostingWhileFree, _) | (_, None) => true,
            (_, Some(_)) if looks >= LOOKS_A_ROUND => true,
            (_, Some(resource_ref)) => {
                looks += 1;
                !gone(resource_ref).await
            }
        };
        if stands {
            kept.push(finding);
        }
    }
    kept
}

/// Has boxes suspended whose machine is gone, unless so many are at once that the provider is not believed.
async fn suspend_lost(app: &App, name: &str, found: &[Finding], ours: &[Ours]) -> Result<(), StepError> {
    let lost: Vec<ResourceId> = found
        .iter()
        .filter(|finding| finding.kind == DriftKind::MissingUpstream)
        .filter_map(|finding| finding.resource_id.map(ResourceId))
        .collect();
    let settled = ours.iter().filter(|one| matches!(one.status, Status::Active | Status::Suspended)).count();
    let (count, fleet) = (u32::try_from(lost.len()).unwrap_or(u32::MAX), u32::try_from(settled).unwrap_or(u32::MAX));
    let now = app.now();
    if count > 0 && !rules::within_blast_limit(count - 1, fleet, &app.policy) {
        // A provider that has lost a part of its fleet at once has more likely lost its memory, or we our access to it.
        let detail = format!(
            "'{name}' says that {count} of {fleet} boxes have no machine. Nothing was done about any of them: look at the \
             provider and at our access to it; boxes whose machine is really gone are suspended (`upstream`) or ended (`fault`) \
             by you"
        );
        alerts::raise(&app.pool, "provider_lost_machines", name, &detail, now).await?;
        return Ok(());
    }
    for id in lost {
        let mut tx = app.pool.begin().await?;
        if let Some(resource) = repository::resource(&mut *tx, id).await? {
            repository::lock_account_in(&mut tx, resource.user_id).await?;
            seedbox_provisioner::report_gone_in(&mut tx, &resource, now).await?;
        }
        tx.commit().await?;
    }
    Ok(())
}
