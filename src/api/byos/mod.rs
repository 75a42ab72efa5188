//! Customers' own servers.

pub mod connections;
