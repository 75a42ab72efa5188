//! Seedplane: the control plane for seedboxes.
//!
//! Modules, from the ground up; each uses only those above it in this list (ARCHITECTURE.md draws it).

pub mod brand; // what the public pages say of the operator
pub mod clock; // the only source of "now"
pub mod ids; // typed ids over UUIDv7
pub mod money; // whole cents

pub mod accounts; // people, sessions, API tokens
pub mod alerts; // what an operator has to look at
pub mod audit; // the append-only log and its seals
pub mod jobs; // what runs in the background, enqueued in transactions
pub mod payments; // gateways: create, ask, verify
pub mod postgres; // the embedded database
pub mod secrets; // passwords and keys, outside the database

pub mod seedbox; // resources, plans, the guarded lifecycle

pub mod billing; // the ledger, the rules, the sweep, top-ups
pub mod mailer; // notices, templates, the outbox

pub mod orders; // where money meets boxes
pub mod reports; // complaints about what boxes do
pub mod terms; // which terms somebody accepted
pub mod usage; // what boxes use

pub mod app; // what everything shares
pub mod approvals; // what one operator asks for and another one approves
pub mod byos; // customers' own servers: keys, connections, what is asked of them
pub mod nodes; // the nodes on machines elsewhere: keys, reports, the way to them
pub mod workers; // the background

pub mod api; // JSON
pub mod auth; // who may call
pub mod pages; // HTML

pub mod listener; // takes connections
pub mod router; // every route on one screen

pub mod own_server; // the command line of owners, over the public API

pub mod config; // settings
pub mod demo; // the whole story, told over the API
pub mod sandbox_droplets; // a second provider for the trial

pub mod runtime; // puts it all together

pub mod commands; // what is asked on the command line beside a service
