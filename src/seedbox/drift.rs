//! Where our rows and what is upstream do not agree: what costs money for nothing, what is lost. A pure comparison; whoever asks
//! for it looks again at what it finds, and nothing is ever deleted for it.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use seedplane_provisioning::{Billed, BilledKind, Machine};
use uuid::Uuid;

use super::{Status, SuspendReason, words};
use crate::{clock::Time, ids::ResourceId};

pub mod findings;

words! {
    /// What does not agree.
    DriftKind {
        /// A machine with our tag, and no such box.
        UnknownUpstream = "unknown_upstream",
        /// A second machine of one box.
        Twin = "twin",
        /// A box that runs or is suspended, and has no machine.
        MissingUpstream = "missing_upstream",
        /// A machine of a box that has ended.
        AliveThoughTerminated = "alive_though_terminated",
        /// What costs money and brings none: the machine of a suspended box, a volume, snapshot or address of no box that lives.
        CostingWhileFree = "costing_while_free",
    }
}

/// A box of ours, as far as it is compared.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct Ours {
    pub id: ResourceId,
    pub label: String,
    pub status: Status,
    pub suspend_reason: Option<SuspendReason>,
    pub resource_ref: Option<String>,
    pub status_since: Time,
}

/// What a provider said.
#[derive(Debug, Clone, Copy)]
pub struct Upstream<'a> {
    /// Its name.
    pub provider: &'a str,
    /// Every machine with our tag.
    pub machines: &'a [Machine],
    /// Everything with our tag that we are billed for.
    pub billed: &'a [Billed],
    /// Whether a stopped machine goes on costing.
    pub stopped_costs: bool,
}

/// One thing that does not agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What does not agree.
    pub kind: DriftKind,
    /// What it is about: the same at every look.
    pub subject: String,
    /// The provider's name of it; `None` where nothing is there.
    pub resource_ref: Option<String>,
    /// Our id, in its tag or of the box.
    pub resource_id: Option<Uuid>,
    /// What a month of it costs, in US cents; `None` if the provider does not say.
    pub monthly_cost_cents: Option<i64>,
    /// Since when, where that is known.
    pub since: Option<Time>,
    /// What was found, as a sentence.
    pub detail: String,
    /// What to do about it, as sentences, with the exact command or route.
    pub proposal: String,
}

impl Finding {
    /// The alert that an operator gets for it, by kind and subject. A suspended box that costs is no surprise, and a lost machine
    /// has an alert of its own.
    pub fn alert(&self, provider: &str) -> Option<(&'static str, String)> {
        alert(provider, self.kind, &self.subject, self.resource_ref.as_deref())
    }
}

/// As [`Finding::alert`], of a finding that is over.
pub(crate) fn alert(
    provider: &str,
    kind: DriftKind,
    subject: &str,
    resource_ref: Option<&str>,
) -> Option<(&'static str, String)> {
    let resource_ref = resource_ref?;
    match kind {
        DriftKind::UnknownUpstream | DriftKind::AliveThoughTerminated => {
            Some(("orphan_machine", format!("{provider}:{resource_ref}")))
        }
        DriftKind::Twin => Some(("twin_machine", format!("{provider}:{resource_ref}"))),
        DriftKind::CostingWhileFree if !subject.starts_with("machine:") => {
            Some(("upstream_leftover", format!("{provider}:{subject}")))
        }
        DriftKind::CostingWhileFree | DriftKind::MissingUpstream => None,
    }
}

/// One machine, by both of the provider's lists.
#[derive(Debug, Clone, Default)]
struct Seen {
    id: Option<Uuid>,
    monthly_cost_cents: Option<i64>,
    created_at: Option<Timestamp>,
}

/// Compares what a provider said with our boxes there: `ours` holds every box there that has not ended, and those that have whose
/// id is upstream. Sorted by kind and subject.
pub fn compare(upstream: &Upstream<'_>, ours: &[Ours]) -> Vec<Finding> {
    let boxes: HashMap<Uuid, &Ours> = ours.iter().map(|one| (one.id.0, one)).collect();
    let mut machines: BTreeMap<&str, Seen> = BTreeMap::new();
    for machine in upstream.machines {
        machines.entry(&machine.resource_ref.0).or_default().id = Some(machine.resource_id);
    }
    for billed in upstream.billed.iter().filter(|billed| billed.kind == BilledKind::Machine) {
        let seen = machines.entry(&billed.resource_ref.0).or_default();
        seen.id = seen.id.or(billed.resource_id);
        (seen.monthly_cost_cents, seen.created_at) = (billed.monthly_cost_cents, billed.created_at);
    }
    let mut found = Vec::new();
    let mut of_box: BTreeMap<Uuid, Vec<&str>> = BTreeMap::new();
    for (&resource_ref, seen) in &machines {
        match seen.id.and_then(|id| boxes.get(&id)) {
            None => found.push(unknown(upstream, resource_ref, seen)),
            Some(ours) if ours.status == Status::Terminated => {
                found.push(alive(upstream, resource_ref, seen, ours));
            }
            Some(ours) => of_box.entry(ours.id.0).or_default().push(resource_ref),
        }
    }
    for ours in ours {
        let here = of_box.get(&ours.id.0).map(Vec::as_slice).unwrap_or_default();
        let settled = matches!(ours.status, Status::Active | Status::Suspended);
        let own = ours.resource_ref.as_deref();
        let kept = own.filter(|own| here.contains(own)).or_else(|| {
            here.iter().copied().min_by_key(|&one| (machines[one].created_at.unwrap_or(Timestamp::MAX), one))
        });
        // While a box is made or ended its provider clears away what is too much.
        if settled {
            let twins = here.iter().filter(|&&one| Some(one) != kept);
            found.extend(twins.map(|&twin| second(upstream, twin, &machines[twin], ours, kept)));
        }
        match kept {
            None if settled && own.is_some_and(|own| !machines.contains_key(own)) => {
                found.push(missing(upstream, ours));
            }
            Some(kept) if ours.status == Status::Suspended && upstream.stopped_costs => {
                found.extend(idle(kept, &machines[kept], ours));
            }
            _ => {}
        }
    }
    for billed in upstream.billed.iter().filter(|billed| billed.kind != BilledKind::Machine) {
        let owner = billed.resource_id.and_then(|id| boxes.get(&id));
        if owner.is_none_or(|owner| owner.status == Status::Terminated) {
            found.push(leftover(upstream, billed, owner.copied()));
        }
    }
    found.sort_by(|one, other| (one.kind, &one.subject).cmp(&(other.kind, &other.subject)));
    found.dedup_by(|one, other| (one.kind, &one.subject) == (other.kind, &other.subject));
    found
}

fn of_machine(kind: DriftKind, resource_ref: &str, seen: &Seen, detail: String, proposal: String) -> Finding {
    Finding {
        kind,
        subject: format!("machine:{resource_ref}"),
        resource_ref: Some(resource_ref.to_owned()),
        resource_id: seen.id,
        monthly_cost_cents: seen.monthly_cost_cents,
        since: seen.created_at.map(Time),
        detail,
        proposal,
    }
}

fn unknown(upstream: &Upstream<'_>, resource_ref: &str, seen: &Seen) -> Finding {
    let provider = upstream.provider;
    let box_named = match seen.id {
        Some(id) => format!("there is no box {id} here"),
        None => "its tag names no box".to_owned(),
    };
    of_machine(
        DriftKind::UnknownUpstream,
        resource_ref,
        seen,
        format!(
            "'{provider}' has the machine {resource_ref} with our tag, and {box_named}. It may hold somebody's data"
        ),
        format!(
            "Look whether another installation uses the same account, or a database was put back from a copy. If it is nobody's: \
             {}",
            deletion(provider, BilledKind::Machine, resource_ref)
        ),
    )
}

fn alive(upstream: &Upstream<'_>, resource_ref: &str, seen: &Seen, ours: &Ours) -> Finding {
    let provider = upstream.provider;
    let mut finding = of_machine(
        DriftKind::AliveThoughTerminated,
        resource_ref,
        seen,
        format!(
            "box {} ended at {} and was seen to be gone, and '{provider}' has its machine {resource_ref} again. It may hold its \
             owner's data, which was certified to be wiped",
            ours.id, ours.status_since
        ),
        format!("Look at it, then {}", deletion(provider, BilledKind::Machine, resource_ref)),
    );
    finding.since = Some(ours.status_since);
    finding
}

fn second(upstream: &Upstream<'_>, resource_ref: &str, seen: &Seen, ours: &Ours, kept: Option<&str>) -> Finding {
    let (provider, kept) = (upstream.provider, kept.unwrap_or_default());
    of_machine(
        DriftKind::Twin,
        resource_ref,
        seen,
        format!("'{provider}' has two machines of box {}: it runs on {kept}, and {resource_ref} is too much", ours.id),
        format!(
            "See that the box's web address leads to {kept}, then {}",
            deletion(provider, BilledKind::Machine, resource_ref)
        ),
    )
}

fn missing(upstream: &Upstream<'_>, ours: &Ours) -> Finding {
    Finding {
        kind: DriftKind::MissingUpstream,
        subject: format!("box:{}", ours.id),
        resource_ref: None,
        resource_id: Some(ours.id.0),
        monthly_cost_cents: Some(0),
        since: None,
        detail: format!(
            "box {} is {}, and '{}' has no machine of it ({})",
            ours.id,
            ours.status,
            upstream.provider,
            ours.resource_ref.as_deref().unwrap_or("never named")
        ),
        proposal: format!(
            "Bring the machine back at the provider and resume the box (POST /api/operator/resources/{}/resume), or end it, which \
             gives back what was not served: {}",
            ours.id,
            ending(ours, "fault")
        ),
    }
}

/// The machine of a suspended box, where it costs.
fn idle(resource_ref: &str, seen: &Seen, ours: &Ours) -> Option<Finding> {
    if seen.monthly_cost_cents == Some(0) {
        return None;
    }
    let why = ours.suspend_reason.map_or("suspended", SuspendReason::as_str);
    let proposal = match ours.suspend_reason {
        Some(SuspendReason::Billing) => {
            format!(
                "It comes back when it is paid for and ends by itself when it is not. To end it now: {}",
                ending(ours, "operator")
            )
        }
        _ => format!(
            "Resume it (POST /api/operator/resources/{}/resume), or end it: {}",
            ours.id,
            ending(ours, "operator")
        ),
    };
    let mut finding = of_machine(
        DriftKind::CostingWhileFree,
        resource_ref,
        seen,
        format!(
            "box {} is suspended ({why}) and not charged, and its stopped machine {resource_ref} costs on",
            ours.id
        ),
        proposal,
    );
    finding.since = Some(ours.status_since);
    Some(finding)
}

fn leftover(upstream: &Upstream<'_>, billed: &Billed, owner: Option<&Ours>) -> Finding {
    let (what, provider) = (noun(billed.kind), upstream.provider);
    let whose = match (owner, billed.resource_id) {
        (Some(ended), _) => format!("box {} ended at {}", ended.id, ended.status_since),
        (None, Some(id)) => format!("there is no box {id} here"),
        (None, None) => "its tag names no box".to_owned(),
    };
    Finding {
        kind: DriftKind::CostingWhileFree,
        subject: format!("{what}:{}", billed.resource_ref),
        resource_ref: Some(billed.resource_ref.0.clone()),
        resource_id: billed.resource_id,
        monthly_cost_cents: billed.monthly_cost_cents,
        since: billed.created_at.map(Time),
        detail: format!("'{provider}' bills the {what} {} with our tag, and {whose}", billed.resource_ref),
        proposal: format!(
            "Look whether somebody's data is on it, then {}",
            deletion(provider, billed.kind, &billed.resource_ref.0)
        ),
    }
}

fn noun(kind: BilledKind) -> &'static str {
    match kind {
        BilledKind::Machine => "machine",
        BilledKind::Volume => "volume",
        BilledKind::Snapshot => "snapshot",
        BilledKind::Address => "address",
    }
}

/// How an operator deletes something at a provider.
fn deletion(provider: &str, kind: BilledKind, resource_ref: &str) -> String {
    let name = match kind {
        BilledKind::Machine => "droplet",
        BilledKind::Volume => "volume",
        BilledKind::Snapshot => "snapshot",
        BilledKind::Address => "reserved-ip",
    };
    match provider {
        "digitalocean" => format!("delete it: `doctl compute {name} delete {}`", quoted(resource_ref)),
        _ => format!("delete the {} {resource_ref} at the provider", noun(kind)),
    }
}

/// How an operator ends a box.
fn ending(ours: &Ours, end_reason: &str) -> String {
    format!(
        "`seedplane operator terminate {} --confirm {} --end-reason {end_reason} --reason ... --operator you@...`",
        ours.id,
        quoted(&ours.label)
    )
}

/// One word for a shell, whatever is in it: a label is its owner's text, and this is to be copied into a terminal.
fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    let shown: String = text.chars().filter(|one| !one.is_control()).collect();
    format!("'{}'", shown.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests;
