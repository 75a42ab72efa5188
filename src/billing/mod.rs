//! Money: the ledger, the rules, and the workers' side of both.

pub mod adjustments;
pub mod ledger;
pub mod plan_changes;
pub mod refunds;
pub mod reserves;
pub mod rules;
pub mod runway;
pub mod sweep;
pub mod topups;
pub mod upstream_costs;

use rules::{Policy, PriceChange};

use crate::{clock::Time, money::Usd, seedbox::Resource};

/// The change of price the owner of a box was told of, if there is one.
pub fn price_change(resource: &Resource) -> Option<PriceChange> {
    resource
        .next_price_cents
        .zip(resource.next_price_notified_at)
        .map(|(price, notified_at)| PriceChange { price, notified_at: notified_at.0 })
}

/// What the period of a box that begins at `at` costs.
pub fn price_at(resource: &Resource, at: Time, policy: &Policy) -> Usd {
    rules::price_at(resource.price_cents, resource.next_plan_price_cents, price_change(resource), at.0, policy)
}
