//! Stand-ins for the services Seedplane talks to. They behave like the real ones, faults included, and serve both the tests
//! and the trial mode. Nothing here moves real money or rents a real machine.

pub mod coinpayportal;
pub mod digitalocean;
pub mod server;
pub mod vault;
