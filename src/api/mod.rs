//! The JSON API. Handlers check, write intent in one transaction and answer; only workers talk to providers and gateways.

pub mod auth;
pub mod billing;
pub mod byos;
pub mod error;
pub mod idempotency;
pub mod nodes;
pub mod operator;
pub mod seedbox;
pub mod terms;
pub mod trial;
pub mod webhooks;
