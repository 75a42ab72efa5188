//! What a provider goes on costing while a box is suspended: booked on the box when the suspension is over. It is ours to
//! bear: no customer's balance moves, and no statement shows it.

use sqlx::PgConnection;

use super::{
    ledger::{self, Account, Transfer, TransferKind},
    rules,
};
use crate::{clock::Time, money::Usd, seedbox::Resource};

/// Books what `suspended`, as it was before it came back or ended, has cost upstream, at `monthly` a month. Safe to repeat.
///
/// # Errors
/// Those of the database.
pub async fn book_in(connection: &mut PgConnection, suspended: &Resource, monthly: Usd, at: Time) -> sqlx::Result<()> {
    let Some(since) = suspended.suspended_at else { return Ok(()) };
    let amount = rules::idle_cost(monthly, since.0, at.0);
    if !amount.is_positive() {
        return Ok(());
    }
    let transfer = Transfer {
        debit: Account::UpstreamCost,
        credit: Account::UpstreamOwed,
        amount,
        kind: TransferKind::UpstreamCost,
        // One for each suspension.
        idempotency_key: format!("upstream:{}:{}", suspended.id, since.0.as_microsecond()),
        cause: "suspended".to_owned(),
        user_id: suspended.user_id,
        resource_id: Some(suspended.id),
        order_id: None,
        period: Some((since, at)),
    };
    ledger::book_in(connection, &[transfer], at).await?;
    Ok(())
}
