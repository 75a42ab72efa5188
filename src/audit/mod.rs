//! The audit log: who did what to what, why and when, in the same transaction as the change.

pub mod chain;
pub mod events;
