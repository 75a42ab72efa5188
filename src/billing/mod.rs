//! Money: the ledger, the rules, and the workers' side of both.

pub mod ledger;
pub mod refunds;
pub mod rules;
pub mod sweep;
pub mod topups;
