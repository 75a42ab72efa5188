//! The billing worker: the rules applied to what is due, and money that came in put to use.

use super::StepError;
use crate::{app::App, approvals, billing::sweep, ids::UserId, orders};

/// Applies the rules to every account that is due, and ends what waited too long for a second person: a payout's money goes
/// back to its balance.
///
/// # Errors
/// Those of the database.
pub async fn sweep(app: &App) -> Result<(), StepError> {
    approvals::expire_due(&app.pool, app.now()).await?;
    let swept = sweep::sweep_due(app).await?;
    if swept > 0 {
        tracing::debug!(swept, "accounts swept");
    }
    Ok(())
}

/// Applies the rules to one account, and pays its waiting orders with what is left: boxes that exist come first.
///
/// # Errors
/// Those of the database.
pub async fn settle(app: &App, user: UserId) -> Result<(), StepError> {
    sweep::settle(app, user).await?;
    orders::pay_awaiting(&app.pool, user, app.now()).await?;
    Ok(())
}
