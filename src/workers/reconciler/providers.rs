//! Looks at the providers: what they offer, whether they accept our access, and which machines they have, compared with our
//! boxes.

use std::{collections::HashSet, time::Duration};

use jiff::SignedDuration;
use seedplane_provisioning::{
    Capabilities, Error as ProviderError, Machine, MachineState, ProvisioningProvider, ResourceRef,
};
use uuid::Uuid;

use crate::{
    alerts,
    app::App,
    billing::rules,
    clock::Time,
    ids::ResourceId,
    seedbox::{catalogues, repository},
    workers::{StepError, seedbox_provisioner},
};

/// How often the providers are asked for their machines, in the system's time.
const PROVIDERS_EVERY: SignedDuration = SignedDuration::from_mins(5);

/// How long what a provider offers counts as known.
const CATALOGUE_EVERY: SignedDuration = SignedDuration::from_hours(1);

/// How many machines of a provider are looked at one by one in a round, at most.
const LOOKS_A_ROUND: usize = 100;

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

/// Compares our boxes with the machines that the providers say they have, every few minutes of the system's time, whatever
/// the number of copies.
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

/// A box of ours, to be compared.
struct Ours {
    id: ResourceId,
    resource_ref: Option<String>,
}

/// One provider: machines that nobody pays for, and boxes whose machine is gone. Either is looked at once more by itself
/// before it is believed. No transaction is open during a call.
///
/// # Errors
/// Those of the database.
pub async fn compare_with(app: &App, name: &str, provider: &dyn ProvisioningProvider) -> Result<(), StepError> {
    let read = read_catalogue(app, name, provider).await?;
    let listed = match read {
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
    report_orphans(app, name, provider, &machines).await?;

    let listed: HashSet<Uuid> = machines.iter().map(|machine| machine.resource_id).collect();
    let (mut after, mut fleet, mut gone) = (Uuid::nil(), 0_u32, Vec::new());
    loop {
        let batch = sqlx::query_as!(
            Ours,
            "select id, resource_ref from seedbox_resources
             where id > $1 and provider = $2 and status in ('active', 'suspended') order by id limit 500",
            after,
            name,
        )
        .fetch_all(&app.pool)
        .await?;
        let Some(last) = batch.last() else { break };
        after = last.id.0;
        fleet += u32::try_from(batch.len()).unwrap_or(u32::MAX);
        for ours in batch {
            if listed.contains(&ours.id.0) || gone.len() >= LOOKS_A_ROUND {
                continue;
            }
            let Some(resource_ref) = ours.resource_ref.map(ResourceRef) else { continue };
            if provider.status(&resource_ref).await.is_ok_and(|status| status.state == MachineState::Gone) {
                gone.push(ours.id);
            }
        }
    }
    let count = u32::try_from(gone.len()).unwrap_or(u32::MAX);
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
    for id in gone {
        let mut tx = app.pool.begin().await?;
        if let Some(resource) = repository::resource(&mut *tx, id).await? {
            repository::lock_account_in(&mut tx, resource.user_id).await?;
            seedbox_provisioner::report_gone_in(&mut tx, &resource, now).await?;
        }
        tx.commit().await?;
    }
    Ok(())
}

/// Machines that carry our tag and belong to no box that lives: they cost money, and may hold somebody's data.
async fn report_orphans(
    app: &App,
    name: &str,
    provider: &dyn ProvisioningProvider,
    machines: &[Machine],
) -> Result<(), StepError> {
    let mut looked_at = 0;
    for batch in machines.chunks(500) {
        let ids: Vec<Uuid> = batch.iter().map(|machine| machine.resource_id).collect();
        let living: HashSet<Uuid> = sqlx::query_scalar!(
            r#"select id as "id!: Uuid" from seedbox_resources where id = any($1) and status <> 'terminated'"#,
            &ids
        )
        .fetch_all(&app.pool)
        .await?
        .into_iter()
        .collect();
        for machine in batch {
            if living.contains(&machine.resource_id) || looked_at >= LOOKS_A_ROUND {
                continue;
            }
            looked_at += 1;
            // Listed just before it was wiped, it is no orphan.
            let status = provider.status(&machine.resource_ref).await;
            if status.is_ok_and(|status| status.state == MachineState::Gone) {
                continue;
            }
            let detail = format!(
                "'{name}' has the machine {} with our tag, and there is no box {} or it has ended. It costs money and may hold \
                 somebody's data; nothing was done to it. Look at it, and delete it at the provider",
                machine.resource_ref, machine.resource_id
            );
            alerts::raise(&app.pool, "orphan_machine", &format!("{name}:{}", machine.resource_ref), &detail, app.now())
                .await?;
        }
    }
    Ok(())
}
