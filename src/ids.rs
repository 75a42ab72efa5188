//! Typed ids over UUIDv7, so that an order's id cannot be passed where a user's is meant.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! ids {
    ($($(#[doc = $doc:literal])* $name:ident;)*) => {$(
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id, ordered by time.
            #[allow(clippy::new_without_default, reason = "two calls give two ids; a default would hide that")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

ids! {
    /// A person with an account, `users.id` (`auth.users.id` on Supabase).
    UserId;
    /// A signed-in session or an API token.
    SessionId;
    /// One version of a plan.
    PlanId;
    /// An order for a managed box.
    OrderId;
    /// A seedbox, managed or brought along.
    ResourceId;
    /// A connection to a customer's own server.
    ConnectionId;
    /// One command sent to a customer's server: the request id in that server's own log.
    CommandId;
    /// A customer's intention to pay a sum through the gateway.
    TopupId;
    /// One asked-for operation on a resource.
    AttemptId;
    /// One transfer of money.
    TransferId;
}
