//! What DigitalOcean's API says, as far as we read it. A value that this version does not know is kept as it is, and a field
//! that is not read may be missing: an answer is never unreadable for what we do not need.

use std::net::IpAddr;

use jiff::Timestamp;
use rust_decimal::{Decimal, RoundingStrategy};
use serde::Deserialize;
use uuid::Uuid;

/// A droplet.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Droplet {
    pub(super) id: u64,
    pub(super) name: String,
    /// `new`, `active`, `off`, `archive`; there is none for one that is being deleted.
    pub(super) status: String,
    /// An event is running; actions are refused for as long.
    #[serde(default)]
    pub(super) locked: bool,
    #[serde(default)]
    pub(super) created_at: Option<Timestamp>,
    #[serde(default)]
    pub(super) size_slug: String,
    /// In GB.
    #[serde(default)]
    pub(super) disk: u64,
    #[serde(default)]
    pub(super) tags: Option<Vec<String>>,
    #[serde(default)]
    networks: Networks,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Networks {
    #[serde(default)]
    v4: Vec<Network>,
}

#[derive(Debug, Clone, Deserialize)]
struct Network {
    ip_address: String,
    #[serde(rename = "type", default)]
    kind: String,
}

impl Droplet {
    /// Its public address, once it has one.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.networks.v4.iter().find(|network| network.kind == "public")?.ip_address.parse().ok()
    }

    pub(super) fn has_tag(&self, tag: &str) -> bool {
        has_tag(self.tags.as_deref(), tag)
    }

    /// Our id, by its tag or, as long as tags are not to be seen yet, by its name.
    pub(super) fn resource_id(&self) -> Option<Uuid> {
        let tagged = self.tags.iter().flatten().find_map(|tag| tag.strip_prefix(BOX_TAG)?.parse().ok());
        tagged.or_else(|| self.name.to_lowercase().strip_prefix(NAME)?.parse().ok())
    }
}

/// Before a box's id in the tag that a machine and everything beside it carries.
pub(super) const BOX_TAG: &str = "seedbox:";

/// Before a box's id in the name of its droplet.
pub(super) const NAME: &str = "seedbox-";

pub(super) fn has_tag(tags: Option<&[String]>, tag: &str) -> bool {
    // The first spelling of a tag that was ever used is the one that is shown.
    tags.unwrap_or_default().iter().any(|one| one.eq_ignore_ascii_case(tag))
}

#[derive(Debug, Deserialize)]
pub(super) struct OneDroplet {
    pub(super) droplet: Droplet,
}

/// An action: a power change, a new size.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Action {
    pub(super) id: u64,
    /// `in-progress`, `completed`, `errored`.
    pub(super) status: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct OneAction {
    pub(super) action: Action,
}

/// A size of droplets and its price.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Size {
    pub(super) slug: String,
    /// In GB.
    pub(super) disk: u64,
    price_monthly: serde_json::Number,
    #[serde(default)]
    pub(super) regions: Vec<String>,
    #[serde(default)]
    pub(super) available: bool,
    #[serde(default)]
    pub(super) gpu_info: Option<serde_json::Value>,
}

impl Size {
    /// The price of a month in US cents. The API has it as a binary fraction with noise behind the second place.
    pub(super) fn monthly_cents(&self) -> Option<i64> {
        let text = self.price_monthly.to_string();
        let dollars = text.parse::<Decimal>().or_else(|_| Decimal::from_scientific(&text)).ok()?;
        let cents = dollars.checked_mul(Decimal::ONE_HUNDRED)?;
        cents.round_dp_with_strategy(0, RoundingStrategy::MidpointAwayFromZero).try_into().ok()
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct OneAccount {
    pub(super) account: Account,
}

/// The account that the token is for.
#[derive(Debug, Deserialize)]
pub(super) struct Account {
    /// `active`, `warning`, `locked`.
    #[serde(default)]
    pub(super) status: String,
    #[serde(default)]
    pub(super) status_message: String,
}

/// Something that outlives its droplet and goes on costing unless it is named.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Associated {
    pub(super) id: String,
    #[serde(default)]
    pub(super) name: String,
}

/// What would outlive a droplet.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AssociatedResources {
    pub(super) reserved_ips: Vec<Associated>,
    pub(super) snapshots: Vec<Associated>,
    pub(super) volumes: Vec<Associated>,
    pub(super) volume_snapshots: Vec<Associated>,
}

/// How far a destruction with associated resources is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct DestroyStatus {
    pub(super) completed_at: Option<Timestamp>,
    pub(super) failures: u64,
}

/// A volume or a snapshot, of which we read the same.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Kept {
    /// A string, or a number in some lists of snapshots.
    pub(super) id: serde_json::Value,
    #[serde(default)]
    pub(super) tags: Option<Vec<String>>,
    #[serde(default)]
    pub(super) created_at: Option<Timestamp>,
}

impl Kept {
    pub(super) fn id(&self) -> String {
        self.id.as_str().map_or_else(|| self.id.to_string(), str::to_owned)
    }

    pub(super) fn resource_id(&self) -> Option<Uuid> {
        self.tags.iter().flatten().find_map(|tag| tag.strip_prefix(BOX_TAG)?.parse().ok())
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct OneVolume {
    pub(super) volume: Kept,
}

#[derive(Debug, Deserialize)]
pub(super) struct OneSnapshot {
    pub(super) snapshot: Kept,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_whole_cents_whatever_noise_they_come_with() {
        for (price, cents) in
            [("5", 500), ("7.2", 720), ("4.99999988079071", 500), ("6e0", 600), ("0.0074", 1), ("1.005", 101)]
        {
            let text = format!(r#"{{"slug":"s","disk":25,"price_monthly":{price}}}"#);
            let size: Size = serde_json::from_str(&text).unwrap();
            assert_eq!(size.monthly_cents(), Some(cents), "{price}");
        }
    }

    #[test]
    fn a_droplet_is_read_with_what_is_new_and_without_what_is_missing() {
        let droplet: Droplet = serde_json::from_str(
            r#"{"id":7,"name":"Seedbox-0199f000-0000-7000-8000-000000000001","status":"thawing","locked":true,"novel":{"a":1},
                "tags":null,"networks":{"v4":[{"ip_address":"10.0.0.2","type":"private"},{"ip_address":"203.0.113.7","type":"public"}]}}"#,
        )
        .unwrap();
        assert_eq!(droplet.address(), Some("203.0.113.7".parse().unwrap()));
        assert_eq!(droplet.resource_id().unwrap().to_string(), "0199f000-0000-7000-8000-000000000001");
        let tagged: Droplet = serde_json::from_str(
            r#"{"id":7,"name":"x","status":"new","tags":["seedbox:0199f000-0000-7000-8000-000000000002","Seedplane:A"]}"#,
        )
        .unwrap();
        assert!(tagged.address().is_none() && tagged.has_tag("seedplane:a"));
        assert_eq!(tagged.resource_id().unwrap().to_string(), "0199f000-0000-7000-8000-000000000002");
    }
}
