//! What goes wrong, by chance or by a script.

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: it is answered as it should be.
    None,
    /// Refused by a proxy in front, with a page of HTML; nothing is done.
    BadGateway,
    /// Refused by the API with a 500; nothing is done.
    ServerError,
    /// Refused with 429 and a `retry-after`: too many in a minute.
    Burst,
    /// Refused with 429 and no `retry-after`: too many in an hour.
    Hourly,
    /// Done, and the connection breaks before the answer is whole.
    Lost,
    /// Done, and a proxy in front answers with a page of HTML that it took too long.
    GatewayTimeout,
    /// Done twice, and the second answer is given: a proxy in front tried again.
    Doubled,
}

/// How often what goes wrong, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// A request: one of the [`Fault`]s.
    pub request: u32,
    /// A droplet that was accepted vanishes before it is up.
    pub placement: u32,
    /// An action ends as `errored`.
    pub action: u32,
    /// A droplet's system does not follow a shutdown.
    pub deaf: u32,
    /// A node is not set up and says so.
    pub node: u32,
    /// A call to a node is not answered.
    pub unreachable: u32,
}

impl Faults {
    /// Nothing goes wrong.
    pub const NONE: Self = Self { request: 0, placement: 0, action: 0, deaf: 0, node: 0, unreachable: 0 };

    /// A day on which much does.
    pub const BAD_DAY: Self = Self { request: 250, placement: 50, action: 100, deaf: 100, node: 30, unreachable: 150 };
}

/// The faults of requests, each as likely as another.
pub(super) const OF_REQUESTS: [Fault; 7] = [
    Fault::BadGateway,
    Fault::ServerError,
    Fault::Burst,
    Fault::Hourly,
    Fault::Lost,
    Fault::GatewayTimeout,
    Fault::Doubled,
];
