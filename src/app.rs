//! What every part of the running application shares.

use std::{collections::BTreeMap, sync::Arc};

use seedplane_provisioning::ProvisioningProvider;
use sqlx::PgPool;
use tokio::sync::watch;

use crate::{
    accounts::issuers::Issuer,
    billing::rules::Policy,
    brand::Brand,
    byos::hosts::Hosts,
    clock::{Clock, Time},
    mailer::Mailer,
    payments::PaymentGateway,
    secrets::SecretStore,
};

/// The application: cheap to clone, the same in handlers, workers and tests.
#[derive(Debug, Clone)]
pub struct App {
    /// Connections on which the application is `seedplane_app`.
    pub pool: PgPool,
    /// The source of "now".
    pub clock: Clock,
    /// Where machines come from, by name.
    pub providers: Arc<BTreeMap<&'static str, Arc<dyn ProvisioningProvider>>>,
    /// Where money comes in.
    pub gateway: Arc<dyn PaymentGateway>,
    /// Where passwords and keys are.
    pub secrets: Arc<dyn SecretStore>,
    /// Who takes mails.
    pub mailer: Arc<dyn Mailer>,
    /// Whose tokens are taken beside ours.
    pub issuer: Option<Arc<Issuer>>,
    /// The numbers of the business rules.
    pub policy: Arc<Policy>,
    /// How people reach us, without a slash at the end.
    pub public_url: Arc<str>,
    /// Whether this is the trial: a sandbox gateway, an inbox page and a clock that can be moved.
    pub trial: bool,
    /// Whether payouts and what is done to many at once need the approval of a second operator.
    pub two_person_rule: bool,
    /// Whether customers' servers may have addresses that are not the internet's.
    pub allow_private_servers: bool,
    /// The addresses that customers' servers see us come from, as `source-address` in certificates; any if not said.
    pub byos_source_address: Option<Arc<str>>,
    /// How many sessions are open to customers' servers.
    pub hosts: Arc<Hosts>,
    /// The folder beside the database where audit checkpoints are exported.
    pub checkpoint_file: Arc<std::path::Path>,
    /// What the public pages say of the operator.
    pub brand: Arc<Brand>,
    /// Becomes true when the service is told to stop.
    pub stopping: watch::Receiver<bool>,
}

impl App {
    /// The time now, as the database holds it.
    pub fn now(&self) -> Time {
        Time(self.clock.now())
    }

    /// The provider of this name, if this installation has it.
    pub fn provider(&self, name: &str) -> Option<&Arc<dyn ProvisioningProvider>> {
        self.providers.get(name)
    }
}
