//! The nouns of the product: what a seedbox is, and the plan it was bought by.

use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    clock::Time,
    ids::{ConnectionId, OrderId, PlanId, ResourceId, UserId},
    money::Usd,
};

pub mod catalogues;
pub mod drift;
pub mod fleet;
pub mod lifecycle;
pub mod operations;
pub mod permissions;
pub mod plans;
pub mod repository;

/// A text column with a closed set of values, the same words in SQL, JSON and Rust.
macro_rules! words {
    ($(#[$attribute:meta])* $name:ident { $($(#[doc = $doc:literal])* $variant:ident = $word:literal,)* }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ::serde::Serialize, ::serde::Deserialize, sqlx::Type, ::utoipa::ToSchema)]
        #[sqlx(type_name = "text")]
        pub enum $name {$(
            $(#[doc = $doc])*
            #[serde(rename = $word)]
            #[sqlx(rename = $word)]
            $variant,
        )*}

        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word for it in SQL, JSON and prose.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use words;

words! {
    /// What has been observed of a resource. The moves between them are in [`lifecycle`].
    Status {
        /// Paid for, or its key proved; nothing asked of a provider yet.
        Pending = "pending",
        /// A provider has been asked.
        Provisioning = "provisioning",
        /// It answers and its owner can log in.
        Active = "active",
        /// The provider confirmed that it is cut off; see [`SuspendReason`].
        Suspended = "suspended",
        /// It could not be made, or its owner cancelled while it was made.
        Failed = "failed",
        /// Being wiped.
        Terminating = "terminating",
        /// Gone, with a wipe certificate.
        Terminated = "terminated",
    }
}

words! {
    /// Why a resource is suspended. Only `billing` lifts itself after a top-up.
    SuspendReason {
        /// Not paid for: the service is cut, the data stays readable where the provider can.
        Billing = "billing",
        /// Abuse: everything is cut.
        Abuse = "abuse",
        /// An operator's decision.
        Operator = "operator",
        /// The provider did it.
        Upstream = "upstream",
        /// Its owner asked for it.
        User = "user",
    }
}

words! {
    /// What can be asked of a provider for a resource.
    Operation {
        /// Make the machine.
        Create = "create",
        /// Cut it off, keep its data.
        Suspend = "suspend",
        /// Bring it back.
        Resume = "resume",
        /// Stop the client and start it again.
        Restart = "restart",
        /// Replace its password.
        RotateCredentials = "rotate_credentials",
        /// Give it the size of another plan.
        Resize = "resize",
        /// Wipe and delete it.
        Terminate = "terminate",
    }
}

words! {
    /// Why no box can be made of a plan now.
    Unavailable {
        /// The provider does not accept our access.
        AccessRefused = "access_refused",
        /// Nobody has read yet what the provider offers.
        UnknownProvider = "unknown_provider",
        /// The provider's terms do not allow torrents, and the operator has not recorded a permission.
        NotPermitted = "not_permitted",
    }
}

impl Unavailable {
    /// For people, as the end of a sentence.
    pub fn words(self) -> &'static str {
        match self {
            Self::AccessRefused => "its provider does not accept our access, which an operator has been told of",
            Self::NotPermitted => {
                "the terms of its provider do not allow torrents by themselves, and no permission of it is on record"
            }
            Self::UnknownProvider => {
                "it is not known what its provider offers, because nobody has been able to ask it yet"
            }
        }
    }
}

/// One version of a plan.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Plan {
    /// This version's id: what an order names.
    pub id: PlanId,
    /// What stays the same over versions: `small`.
    pub code: String,
    /// Counts up with each change of price or content.
    pub version: i32,
    /// For people.
    pub name: String,
    /// For people, a sentence.
    pub description: String,
    /// Price of a month, in US cents.
    pub price_cents: Usd,
    /// The provider that makes it.
    pub provider: String,
    /// The provider's name of the size.
    pub size: String,
    /// The provider's name of the place; `null` where it has one place only.
    pub region: Option<String>,
    /// Disk for the customer's data, in GB (10^9 bytes).
    pub disk_gb: i32,
    /// Whether it is offered.
    pub on_sale: bool,
    /// Why it cannot be ordered now although it is offered; `null` where it can.
    pub unavailable: Option<Unavailable>,
}

/// A seedbox: a row of `seedbox_resources`.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct Resource {
    pub id: ResourceId,
    pub user_id: UserId,
    pub kind: String,
    pub order_id: Option<OrderId>,
    pub connection_id: Option<ConnectionId>,
    pub plan_id: Option<PlanId>,
    pub label: String,
    pub status: Status,
    pub status_since: Time,
    pub status_reason: Option<String>,
    pub suspend_reason: Option<SuspendReason>,
    pub version: i64,
    pub provider: Option<String>,
    pub resource_ref: Option<String>,
    pub web_url: Option<String>,
    pub login_name: Option<String>,
    pub secret_ref: Option<String>,
    pub credentials_version: i32,
    pub credentials_shown_version: i32,
    pub price_cents: Usd,
    pub next_price_cents: Option<Usd>,
    pub next_price_notified_at: Option<Time>,
    pub priority: i32,
    pub anchor_at: Option<Time>,
    pub periods_charged: i32,
    pub charged_total: i32,
    pub paid_until: Option<Time>,
    pub activated_at: Option<Time>,
    pub past_due_since: Option<Time>,
    pub suspended_at: Option<Time>,
    pub arrears_cents: Usd,
    pub hold_until: Option<Time>,
    pub ends_at_period_end: bool,
    pub next_plan_id: Option<PlanId>,
    pub next_plan_price_cents: Option<Usd>,
    pub lapse_number: i32,
    pub terminated_at: Option<Time>,
    pub wipe_certificate: Option<serde_json::Value>,
    pub created_at: Time,
}
