//! Commands given beside a service that say a lot: providers.

use anyhow::Context;

use crate::{
    accounts,
    api::{
        error::Problem,
        operator::{ProviderView, forbid_torrents, permit_torrents, providers},
    },
    audit::events::{Actor, Cause},
    auth::checked_reason,
    runtime::Beside,
    seedbox::catalogues::FailureKind,
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
