//! Droplets and what belongs to them, and how they look at a moment.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::node::Node;

/// A size on offer: slug, memory in MB, processors, disk in GB, US dollars a month as the API writes them, cents a month.
pub(super) struct Size {
    pub(super) slug: &'static str,
    pub(super) memory: u32,
    pub(super) vcpus: u32,
    pub(super) disk: u32,
    pub(super) transfer: f32,
    pub(super) monthly: f64,
    pub(super) hourly: f64,
    pub(super) monthly_cents: i64,
    pub(super) regions: &'static [&'static str],
    pub(super) available: bool,
}

/// Binary fractions with the noise that the real API's have.
pub(super) const SIZES: [Size; 4] = [
    Size {
        slug: "s-1vcpu-1gb",
        memory: 1024,
        vcpus: 1,
        disk: 25,
        transfer: 1.0,
        monthly: 6.0,
        hourly: 0.008_930_000_476_539_135,
        monthly_cents: 600,
        regions: &["ams3", "fra1", "nyc3"],
        available: true,
    },
    Size {
        slug: "s-2vcpu-2gb",
        memory: 2048,
        vcpus: 2,
        disk: 60,
        transfer: 3.0,
        monthly: 18.0,
        hourly: 0.026_790_000_498_294_83,
        monthly_cents: 1800,
        regions: &["ams3", "fra1", "nyc3"],
        available: true,
    },
    Size {
        slug: "s-4vcpu-8gb",
        memory: 8192,
        vcpus: 4,
        disk: 160,
        transfer: 5.0,
        monthly: 48.000_000_1,
        hourly: 0.071_429_997_682_571_41,
        monthly_cents: 4800,
        regions: &["fra1"],
        available: true,
    },
    Size {
        slug: "s-8vcpu-16gb",
        memory: 16384,
        vcpus: 8,
        disk: 320,
        transfer: 6.0,
        monthly: 96.0,
        hourly: 0.142_859_995_365_142_82,
        monthly_cents: 9600,
        regions: &[],
        available: false,
    },
];

/// The places droplets can be.
pub(super) const REGIONS: [(&str, &str); 3] =
    [("ams3", "Amsterdam 3"), ("fra1", "Frankfurt 1"), ("nyc3", "New York 3")];

pub(super) fn size(slug: &str) -> Option<&'static Size> {
    SIZES.iter().find(|size| size.slug == slug)
}

/// A droplet that was ever accepted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Droplet {
    /// Its number.
    pub id: u64,
    /// The name it was given.
    pub name: String,
    /// The slug of its size.
    pub size: String,
    /// The slug of its place.
    pub region: String,
    /// The tags it was given.
    pub tags: Vec<String>,
    /// The text it was started with.
    pub user_data: String,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// Its public address, which it has from the beginning and shows later.
    pub address: IpAddr,
    pub(super) image: String,
    pub(super) visible_at: Timestamp,
    pub(super) listed_at: Timestamp,
    pub(super) tagged_at: Timestamp,
    pub(super) address_at: Timestamp,
    pub(super) active_at: Timestamp,
    pub(super) booted_at: Timestamp,
    /// When it vanishes without having been destroyed: it could not be placed.
    pub(super) vanishes_at: Option<Timestamp>,
    pub(super) locked_until: Timestamp,
    pub(super) power: bool,
    pub(super) destroyed_at: Option<Timestamp>,
    pub(super) gone_at: Option<Timestamp>,
    /// The disk it has, in GB: a new size leaves it as it is.
    pub(super) disk: u32,
    pub(super) node: Node,
}

impl Droplet {
    /// Whether it exists and costs: whether it is seen or not, and on or off.
    pub fn costs_at(&self, at: Timestamp) -> bool {
        self.destroyed_at.is_none_or(|destroyed| destroyed > at)
            && self.vanishes_at.is_none_or(|vanishes| vanishes > at)
    }

    /// Whether it is off.
    pub fn is_off(&self) -> bool {
        !self.power
    }

    pub(super) fn bill_micros(&self, at: Timestamp) -> i64 {
        let end = [self.destroyed_at, self.vanishes_at, Some(at)].into_iter().flatten().min().unwrap_or(at);
        let seconds = end.duration_since(self.created_at).as_secs().max(60);
        let monthly_micros = size(&self.size).map_or(0, |size| size.monthly_cents * 10_000);
        // A month is 672 hours, and no month costs more than one.
        monthly_micros * seconds / (672 * 3600)
    }

    pub(super) fn is_seen(&self, at: Timestamp) -> bool {
        at >= self.visible_at
            && self.gone_at.is_none_or(|gone| gone > at)
            && self.vanishes_at.is_none_or(|gone| gone > at)
    }

    pub(super) fn is_listed(&self, at: Timestamp) -> bool {
        self.is_seen(at) && at >= self.listed_at
    }

    pub(super) fn shows_tags(&self, at: Timestamp) -> bool {
        self.is_listed(at) && at >= self.tagged_at
    }

    pub(super) fn status(&self, at: Timestamp) -> &'static str {
        if at < self.active_at {
            "new"
        } else if self.power {
            "active"
        } else {
            "off"
        }
    }

    /// Whether its node runs.
    pub(super) fn is_up(&self, at: Timestamp) -> bool {
        self.costs_at(at) && self.power && at >= self.booted_at
    }

    pub(super) fn destroy(&mut self, at: Timestamp, lag: SignedDuration) {
        if self.destroyed_at.is_none() {
            self.destroyed_at = Some(at);
            self.gone_at = Some(at + lag);
        }
    }

    pub(super) fn json(&self, at: Timestamp) -> Value {
        let size = size(&self.size).expect("only sizes on offer are accepted");
        let networks = if at < self.address_at {
            json!({ "v4": [], "v6": [] })
        } else {
            json!({
                "v4": [
                    { "ip_address": "10.110.0.5", "netmask": "255.255.240.0", "gateway": "10.110.0.1", "type": "private" },
                    { "ip_address": self.address.to_string(), "netmask": "255.255.240.0", "gateway": "198.18.0.1", "type": "public" },
                ],
                "v6": [],
            })
        };
        let tags = if at < self.tagged_at { Vec::new() } else { self.tags.clone() };
        json!({
            "id": self.id,
            "name": self.name,
            "memory": size.memory,
            "vcpus": size.vcpus,
            "disk": self.disk,
            "disk_info": [{ "type": "local", "size": { "amount": self.disk, "unit": "gib" } }],
            "locked": at < self.locked_until || at < self.active_at,
            "status": self.status(at),
            "kernel": null,
            "created_at": seconds(self.created_at),
            "features": ["private_networking"],
            "backup_ids": [],
            "next_backup_window": null,
            "snapshot_ids": [],
            "image": image(&self.image),
            "volume_ids": [],
            "size": size.json(),
            "size_slug": size.slug,
            "networks": networks,
            "region": region(&self.region),
            "tags": tags,
            "vpc_uuid": "760e09ef-dc84-11e8-981e-3cfdfeaae000",
        })
    }
}

impl Size {
    pub(super) fn json(&self) -> Value {
        json!({
            "slug": self.slug,
            "memory": self.memory,
            "vcpus": self.vcpus,
            "disk": self.disk,
            "transfer": self.transfer,
            "price_monthly": self.monthly,
            "price_hourly": self.hourly,
            "regions": self.regions,
            "available": self.available,
            "description": "Basic",
            "disk_info": [{ "type": "local", "size": { "amount": self.disk, "unit": "gib" } }],
        })
    }
}

/// Times as the API writes them: in whole seconds.
pub(super) fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub(super) fn region(slug: &str) -> Value {
    let name = REGIONS.iter().find(|(one, _)| *one == slug).map_or("", |(_, name)| name);
    let sizes: Vec<_> =
        SIZES.iter().filter(|size| size.available && size.regions.contains(&slug)).map(|size| size.slug).collect();
    json!({
        "name": name,
        "slug": slug,
        "features": ["backups", "ipv6", "metadata", "install_agent", "storage", "image_transfer"],
        "available": true,
        "sizes": sizes,
    })
}

/// The images droplets can be made from.
pub(super) const IMAGES: [(&str, &str, u64); 2] =
    [("debian-12-x64", "12 x64", 129_211_873), ("debian-13-x64", "13 x64", 195_932_981)];

fn image(slug: &str) -> Value {
    let (slug, name, id) = IMAGES.iter().find(|(one, ..)| *one == slug).unwrap_or(&IMAGES[0]);
    let regions: Vec<_> = REGIONS.iter().map(|(slug, _)| *slug).collect();
    json!({
        "id": id,
        "name": name,
        "type": "base",
        "distribution": "Debian",
        "slug": slug,
        "public": true,
        "regions": regions,
        "created_at": "2024-06-14T16:06:19Z",
        "min_disk_size": 7,
        "size_gigabytes": 1.5,
        "description": format!("Debian {name}"),
        "tags": [],
        "status": "available",
    })
}

/// What was asked of a droplet and takes its time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Action {
    pub(super) id: u64,
    pub(super) kind: String,
    pub(super) droplet: u64,
    pub(super) region: String,
    pub(super) started_at: Timestamp,
    pub(super) visible_at: Timestamp,
    pub(super) ends_at: Timestamp,
    pub(super) fails: bool,
    /// What it does when it ends; `None` once that is done.
    pub(super) effect: Option<Effect>,
}

/// What an action does to its droplet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Effect {
    Nothing,
    Power(bool),
    Size(String),
}

impl Action {
    pub(super) fn json(&self, at: Timestamp) -> Value {
        let ended = at >= self.ends_at;
        json!({
            "id": self.id,
            "status": match (ended, self.fails) {
                (false, _) => "in-progress",
                (true, true) => "errored",
                (true, false) => "completed",
            },
            "type": self.kind,
            "started_at": seconds(self.started_at),
            "completed_at": ended.then(|| seconds(self.ends_at)),
            "resource_id": self.droplet,
            "resource_type": "droplet",
            "region": region(&self.region),
            "region_slug": self.region,
        })
    }
}

/// A volume or a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) droplet: u64,
    pub(super) tags: Vec<String>,
    pub(super) created_at: Timestamp,
}

impl Kept {
    pub(super) fn volume(&self) -> Value {
        json!({
            "id": self.id,
            "droplet_ids": [self.droplet],
            "name": self.name,
            "description": "",
            "size_gigabytes": 10,
            "created_at": seconds(self.created_at),
            "region": region("fra1"),
            "filesystem_type": "ext4",
            "filesystem_label": "",
            "tags": self.tags,
        })
    }

    pub(super) fn snapshot(&self) -> Value {
        json!({
            "id": self.id,
            "name": self.name,
            "created_at": seconds(self.created_at),
            "regions": ["fra1"],
            "min_disk_size": 25,
            "size_gigabytes": 2.34,
            "resource_id": self.droplet.to_string(),
            "resource_type": "droplet",
            "tags": self.tags,
        })
    }
}
