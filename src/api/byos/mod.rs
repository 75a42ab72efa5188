//! Customers' own servers.

pub mod connections;
pub(crate) mod view;
