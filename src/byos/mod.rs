//! Bring your own server: a customer adds our public key, one pair a connection, to their server, where a gate lets it do
//! what its manifest lists and nothing else. We never hold a customer's private key.

pub mod address;
pub mod broker;
pub mod certificates;
pub mod commands;
pub mod connections;
pub mod hosts;
pub mod keys;
pub mod onboarding;
pub mod ssh;
