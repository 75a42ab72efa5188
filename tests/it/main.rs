//! Every test that goes through a front door: HTTP, the command line, a real Postgres, a real torrent client. One binary,
//! one Postgres server for all, a database of its own for each test.

#![allow(clippy::print_stdout, reason = "a test says what it saw")]

mod support;

mod access;
mod accounts;
mod approvals;
mod audit;
mod billing;
mod browser;
mod byos;
mod byos_command_line;
mod byos_gate;
mod byos_hosts;
mod crash;
mod digitalocean;
mod drift;
mod http;
mod issuers;
mod killed;
mod lapses;
mod lifecycle;
mod mails;
mod operator_money;
mod pages;
mod payments;
mod payments_gateway;
mod plan_changes;
mod provider_contract;
mod providers;
mod reports;
mod sandbox_droplets;
mod scale;
mod schema;
mod scopes;
mod second_factor;
mod secrets;
mod seedbox_orders;
mod story;
mod trial;
mod usage;
