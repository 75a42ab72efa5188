//! Commands given beside a service that say a lot: providers, and what does not agree with them.

use std::time::{Duration, Instant};

use anyhow::Context;

use crate::{
    accounts,
    api::{
        error::Problem,
        operator::{DriftReport, ProviderView, drift_report, forbid_torrents, permit_torrents, providers},
    },
    audit::events::{Actor, Cause},
    auth::checked_reason,
    config::Settings,
    runtime::{self, Beside},
    seedbox::{
        catalogues::{self, Catalogue, FailureKind},
        drift::findings::Filter,
    },
    workers::reconciler,
};

/// Who does it, for the audit log.
#[derive(Debug, clap::Args)]
pub struct Who {
    /// The operator's address, as in `operator create`
    #[arg(long = "operator", value_name = "EMAIL")]
    pub email: String,
}

impl Who {
    /// What an audit event says of an operator's command.
    ///
    /// # Errors
    /// That there is no such operator, or no reason.
    pub async fn cause(&self, app: &Beside, reason: &str) -> anyhow::Result<Cause> {
        let id = accounts::operator_by_email(&app.pool, &self.email)
            .await?
            .with_context(|| format!("{} is no operator; `seedplane operator create` makes one", self.email))?;
        let reason = checked_reason(reason).map_err(said)?;
        Ok(Cause { actor: Actor::Operator(id), reason, request_id: None })
    }
}

/// `seedplane operator reset-second-factor`; what to print.
///
/// # Errors
/// What was wrong, and what to do.
pub async fn reset_second_factor(
    settings: &Settings,
    app: &Beside,
    email: &str,
    reason: &str,
    by: &Who,
) -> anyhow::Result<String> {
    let cause = by.cause(app, reason).await?;
    let user = accounts::by_email(&app.pool, email)
        .await?
        .with_context(|| format!("there is no account with the address {email}; nothing was changed"))?;
    // Where the store is on another machine, the secret stays there: without its row it opens nothing.
    let here = settings.vault.is_some() || runtime::must_be_installed(settings, "keystore").is_ok();
    let secrets = if here { Some(runtime::open_secrets(settings).await?) } else { None };
    let had = accounts::reset_second_factor(&app.pool, secrets.as_deref(), user, app.now(), &cause).await?;
    anyhow::ensure!(had, "{email} has no second factor; nothing was changed");
    Ok(format!(
        "{email} has no second factor any more and is signed out everywhere: sign in with the password, and set up another"
    ))
}

fn said(problem: Problem) -> anyhow::Error {
    anyhow::anyhow!(problem.detail)
}

/// `seedplane provider`.
#[derive(Debug, clap::Subcommand)]
pub enum ProviderCommand {
    /// List the providers: whether they answer, what they offer and cost, and where torrents may be sold
    List,
    /// Record that torrents may be sold at a provider whose terms do not allow them by themselves
    Permit(PlaceOptions),
    /// Take that back: new sales stop, boxes stay as they are
    Forbid(PlaceOptions),
}

/// A provider, or one of its regions.
#[derive(Debug, clap::Args)]
pub struct PlaceOptions {
    /// The provider's name
    provider: String,
    /// Only in this region; everywhere if left out
    #[arg(long)]
    region: Option<String>,
    /// On what ground, 10 characters or more: "written consent of 2026-11-02, ticket 123"
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    operator: Who,
}

/// Carries out `seedplane provider`; what to print.
///
/// # Errors
/// What was wrong, and what to do.
pub async fn provider(app: &Beside, command: ProviderCommand) -> anyhow::Result<String> {
    let (change, options) = match command {
        ProviderCommand::List => {
            let known = providers(&app.pool).await.map_err(said)?;
            if known.is_empty() {
                return Ok(
                    "no provider was looked at yet; `seedplane up`, `serve` and `work` do at their start".to_owned()
                );
            }
            return Ok(known.iter().map(describe).collect::<Vec<_>>().join("\n"));
        }
        ProviderCommand::Permit(options) => (true, options),
        ProviderCommand::Forbid(options) => (false, options),
    };
    let cause = options.operator.cause(app, &options.reason).await?;
    let (name, region, now) = (options.provider.as_str(), options.region.as_deref(), app.now());
    let changed = match change {
        true => permit_torrents(&app.pool, now, name, region, &cause).await,
        false => forbid_torrents(&app.pool, now, name, region, &cause).await,
    };
    Ok(describe(&changed.map_err(said)?))
}

/// A provider in some lines.
fn describe(provider: &ProviderView) -> String {
    let health = match (provider.failure, &provider.error, provider.failing_since) {
        (Some(kind), Some(error), Some(since)) => {
            let what = match kind {
                FailureKind::Access => "ACCESS REFUSED, nothing is sold",
                FailureKind::CreateAccess => "MAKES NO MACHINES FOR US, nothing is sold",
                FailureKind::Failing => "FAILING",
            };
            format!("{what} since {since}: {error}")
        }
        _ => format!("answers (looked at {})", provider.looked_at),
    };
    let mut lines = vec![format!("{}  {health}", provider.provider)];
    let boxes = provider.boxes;
    let stopped = if provider.stopped_costs == Some(true) { "; stopped ones cost their full price" } else { "" };
    lines.push(format!(
        "    boxes: {} active, {} suspended, {} others{stopped}",
        boxes.active, boxes.suspended, boxes.others
    ));
    match &provider.warning {
        None => lines.push("    torrents: allowed by its terms".to_owned()),
        Some(warning) if provider.permissions.is_empty() => lines.push(format!(
            "    torrents: NOT PERMITTED, nothing is sold: {warning}. With its consent: `seedplane provider permit {}`",
            provider.provider
        )),
        Some(warning) => lines.push(format!("    torrents: {warning}")),
    }
    for permission in &provider.permissions {
        lines.push(format!(
            "    permitted {}: {} ({}, {})",
            permission.region.as_ref().map_or_else(|| "everywhere".to_owned(), |region| format!("in {region}")),
            permission.reason,
            permission.permitted_by,
            permission.permitted_at
        ));
    }
    for size in &provider.sizes {
        let regions = if size.regions.is_empty() { String::new() } else { format!("  {}", size.regions.join(" ")) };
        lines.push(format!(
            "    {:<24} {:>6} GB  {:>9} a month{regions}",
            size.name,
            size.disk_gb,
            size.monthly_cost_cents.to_string()
        ));
    }
    lines.join("\n")
}

/// `seedplane drift`.
#[derive(Debug, clap::Args)]
pub struct DriftOptions {
    /// At this provider alone
    #[arg(long)]
    provider: Option<String>,
    /// Print it as JSON, as `GET /api/operator/drift` answers
    #[arg(long)]
    json: bool,
    /// Have a worker look at every provider first
    #[arg(long)]
    now: bool,
}

/// How long `seedplane drift --now` waits for a worker.
const PATIENCE: Duration = Duration::from_secs(120);

/// Carries out `seedplane drift`; what to print, and whether nothing drifts (`Some(true)`), something does, or it cannot be known.
///
/// # Errors
/// What was wrong, and what to do.
pub async fn drift(app: &Beside, options: &DriftOptions) -> anyhow::Result<(String, Option<bool>)> {
    if options.now {
        look_now(app).await?;
    }
    let filter = Filter { provider: options.provider.as_deref(), ..Filter::default() };
    let report = drift_report(&app.pool, app.now(), filter).await?;
    let known =
        !report.looks.is_empty() && report.looks.iter().all(|look| look.error.is_none() && look.compared_at.is_some());
    let clean = if report.count > 0 { Some(false) } else { known.then_some(true) };
    let text = if options.json { serde_json::to_string_pretty(&report)? } else { table(&report) };
    Ok((text, clean))
}

/// Has a worker look at every provider, and waits until it has.
async fn look_now(app: &Beside) -> anyhow::Result<()> {
    let before = catalogues::all(&app.pool).await?;
    reconciler::ask_for_look(&app.pool).await?;
    let started = Instant::now();
    let is_done = |now: &Catalogue| {
        let Some(before) = before.iter().find(|before| before.provider == now.provider) else {
            return now.compared_at.is_some();
        };
        let failed = now.failure.is_some() || now.billing_error.is_some();
        now.compared_at != before.compared_at || (failed && (now.looked_at != before.looked_at || now.access_refused()))
    };
    loop {
        let known = catalogues::all(&app.pool).await?;
        if !known.is_empty() && known.iter().all(is_done) {
            return Ok(());
        }
        anyhow::ensure!(
            started.elapsed() < PATIENCE,
            "no worker has looked in {} seconds. Start one (`seedplane work` or `seedplane up`), or ask without --now for what \
             the last look found",
            PATIENCE.as_secs()
        );
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// A report as a table, each finding with what to do.
fn table(report: &DriftReport) -> String {
    let mut lines = Vec::new();
    for finding in &report.findings {
        let cost = finding.monthly_cost_cents.map_or_else(
            || "cost unknown".to_owned(),
            |cents| format!("{} a month", crate::money::Usd::from_cents(cents)),
        );
        lines.push(format!(
            "{:<24} {:<14} {cost:>18}  since {}",
            finding.kind.as_str(),
            finding.provider,
            finding.since
        ));
        lines.push(format!("    {}", finding.detail));
        lines.push(format!("    -> {}", finding.proposal));
    }
    if report.findings.len() < usize::try_from(report.count).unwrap_or(0) {
        lines.push(format!("... and {} more, which cost less", report.count - report.findings.len() as i64));
    }
    let unknown = match report.without_cost {
        0 => String::new(),
        some => format!(", and {some} of unknown cost"),
    };
    lines.push(match report.count {
        0 => "no drift was found".to_owned(),
        count => format!("{count} found, together {} a month{unknown}", report.total_monthly_cost_cents),
    });
    if report.looks.is_empty() {
        lines.push("NOTHING IS KNOWN: no provider was looked at yet".to_owned());
    }
    for look in &report.looks {
        let age = match (look.compared_at, look.age_seconds) {
            (Some(at), Some(seconds)) => format!("compared {seconds} seconds ago, at {at}"),
            _ => "NEVER COMPARED".to_owned(),
        };
        let error = look.error.as_ref().map(|error| format!("; THE NEWEST LOOK FAILED: {error}")).unwrap_or_default();
        lines.push(format!("{}: {age}{error}", look.provider));
    }
    // What others wrote, labels and errors, does not move the cursor.
    lines.join("\n").chars().filter(|one| *one == '\n' || !one.is_control()).collect()
}
