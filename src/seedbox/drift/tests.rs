use seedplane_provisioning::ResourceRef;

use super::*;

const ONE: Uuid = Uuid::from_u128(1);
const TWO: Uuid = Uuid::from_u128(2);

fn machine(name: &str, id: Uuid) -> Machine {
    Machine { resource_ref: ResourceRef(name.to_owned()), resource_id: id }
}

fn billed(kind: BilledKind, name: &str, id: Option<Uuid>, cost: Option<i64>, made: i64) -> Billed {
    Billed {
        resource_ref: ResourceRef(name.to_owned()),
        resource_id: id,
        kind,
        stopped: false,
        monthly_cost_cents: cost,
        created_at: Some(Timestamp::from_second(made).unwrap()),
    }
}

fn ours(id: Uuid, status: Status, resource_ref: Option<&str>) -> Ours {
    Ours {
        id: ResourceId(id),
        label: "Bob's box".to_owned(),
        status,
        suspend_reason: (status == Status::Suspended).then_some(SuspendReason::Billing),
        resource_ref: resource_ref.map(str::to_owned),
        status_since: Time(Timestamp::from_second(1_000).unwrap()),
    }
}

/// What is found, as kind, subject and cost.
fn found(
    machines: &[Machine],
    billed: &[Billed],
    stopped_costs: bool,
    boxes: &[Ours],
) -> Vec<(DriftKind, String, Option<i64>)> {
    let upstream = Upstream { provider: "cloud", machines, billed, stopped_costs };
    compare(&upstream, boxes).into_iter().map(|one| (one.kind, one.subject, one.monthly_cost_cents)).collect()
}

#[test]
fn every_way_not_to_agree_is_found_with_its_cost() {
    use BilledKind::{Address, Machine as Whole, Snapshot, Volume};
    use DriftKind::{AliveThoughTerminated, CostingWhileFree, MissingUpstream, Twin, UnknownUpstream};
    use Status::{Active, Failed, Pending, Provisioning, Suspended, Terminated, Terminating};
    type Case = (&'static str, Vec<Machine>, Vec<Billed>, bool, Vec<Ours>, Vec<(DriftKind, &'static str, Option<i64>)>);
    let a = || vec![machine("a", ONE)];
    let whole = |name, id, cost, made| billed(Whole, name, Some(id), Some(cost), made);
    let cases: Vec<Case> = vec![
        ("nothing anywhere", vec![], vec![], true, vec![], vec![]),
        ("a box and its machine", a(), vec![whole("a", ONE, 400, 1)], true, vec![ours(ONE, Active, Some("a"))], vec![]),
        ("a machine of nobody", a(), vec![], true, vec![], vec![(UnknownUpstream, "machine:a", None)]),
        (
            "one that only the bill has",
            vec![],
            vec![whole("a", ONE, 400, 1)],
            true,
            vec![],
            vec![(UnknownUpstream, "machine:a", Some(400))],
        ),
        (
            "a tag that names no box",
            vec![],
            vec![billed(Whole, "a", None, Some(400), 1)],
            true,
            vec![],
            vec![(UnknownUpstream, "machine:a", Some(400))],
        ),
        (
            "seen after its end",
            a(),
            vec![whole("a", ONE, 400, 1)],
            true,
            vec![ours(ONE, Terminated, Some("a"))],
            vec![(AliveThoughTerminated, "machine:a", Some(400))],
        ),
        (
            "the box says which is the twin",
            vec![machine("a", ONE), machine("b", ONE)],
            vec![whole("a", ONE, 400, 1), whole("b", ONE, 500, 2)],
            true,
            vec![ours(ONE, Active, Some("b"))],
            vec![(Twin, "machine:a", Some(400))],
        ),
        (
            "the box's own is not there: the older is kept",
            vec![machine("a", ONE), machine("b", ONE)],
            vec![whole("a", ONE, 400, 2), whole("b", ONE, 500, 1)],
            true,
            vec![ours(ONE, Active, Some("c"))],
            vec![(Twin, "machine:a", Some(400))],
        ),
        (
            "twins while it is made",
            vec![machine("a", ONE), machine("b", ONE)],
            vec![],
            true,
            vec![ours(ONE, Provisioning, None)],
            vec![],
        ),
        (
            "a lost machine",
            vec![],
            vec![],
            true,
            vec![ours(ONE, Active, Some("a"))],
            vec![(MissingUpstream, "box:00000000-0000-0000-0000-000000000001", Some(0))],
        ),
        (
            "of a suspended box too",
            vec![],
            vec![],
            true,
            vec![ours(ONE, Suspended, Some("a"))],
            vec![(MissingUpstream, "box:00000000-0000-0000-0000-000000000001", Some(0))],
        ),
        (
            "not yet made, being ended, failed: nothing is missed",
            vec![],
            vec![],
            true,
            vec![ours(ONE, Pending, None), ours(TWO, Provisioning, None)],
            vec![],
        ),
        (
            "nor while it ends",
            vec![],
            vec![],
            true,
            vec![ours(ONE, Terminating, Some("a")), ours(TWO, Failed, Some("b"))],
            vec![],
        ),
        (
            "a machine that is being ended is no orphan",
            a(),
            vec![],
            true,
            vec![ours(ONE, Terminating, Some("a"))],
            vec![],
        ),
        (
            "suspended and billed",
            a(),
            vec![whole("a", ONE, 400, 1)],
            true,
            vec![ours(ONE, Suspended, Some("a"))],
            vec![(CostingWhileFree, "machine:a", Some(400))],
        ),
        (
            "suspended, and nobody says what it costs",
            a(),
            vec![],
            true,
            vec![ours(ONE, Suspended, Some("a"))],
            vec![(CostingWhileFree, "machine:a", None)],
        ),
        (
            "suspended where stopped is free",
            a(),
            vec![whole("a", ONE, 400, 1)],
            false,
            vec![ours(ONE, Suspended, Some("a"))],
            vec![],
        ),
        (
            "suspended on a machine of ours",
            a(),
            vec![whole("a", ONE, 0, 1)],
            true,
            vec![ours(ONE, Suspended, Some("a"))],
            vec![],
        ),
        (
            "a living box's volume",
            a(),
            vec![billed(Volume, "v", Some(ONE), Some(100), 1)],
            true,
            vec![ours(ONE, Active, Some("a"))],
            vec![],
        ),
        (
            "left over by an ended box, by none, by an unnamed one",
            vec![],
            vec![
                billed(Volume, "v", Some(ONE), Some(100), 1),
                billed(Snapshot, "s", Some(TWO), Some(20), 1),
                billed(Address, "1.2.3.4", None, Some(500), 1),
            ],
            true,
            vec![ours(ONE, Terminated, None)],
            vec![
                (CostingWhileFree, "address:1.2.3.4", Some(500)),
                (CostingWhileFree, "snapshot:s", Some(20)),
                (CostingWhileFree, "volume:v", Some(100)),
            ],
        ),
    ];
    for (name, machines, billed, stopped_costs, boxes, expected) in cases {
        let seen = found(&machines, &billed, stopped_costs, &boxes);
        let expected: Vec<_> =
            expected.into_iter().map(|(kind, subject, cost)| (kind, subject.to_owned(), cost)).collect();
        assert_eq!(seen, expected, "{name}");
    }
}

#[test]
fn what_is_proposed_can_be_pasted_whatever_a_box_is_called() {
    let upstream = Upstream { provider: "digitalocean", machines: &[], billed: &[], stopped_costs: true };
    let mut lost = ours(ONE, Status::Active, Some("12"));
    for (label, word) in [
        ("Small", "--confirm Small "),
        ("Bob's box", r"--confirm 'Bob'\''s box' "),
        ("$(reboot)", "--confirm '$(reboot)' "),
        ("\u{1b}[2Jx", "--confirm '[2Jx' "),
        ("", "--confirm '' "),
    ] {
        lost.label = label.to_owned();
        let proposal = &compare(&upstream, std::slice::from_ref(&lost))[0].proposal;
        assert!(proposal.contains(word), "{label:?}: {proposal}");
    }
    let twin = [billed(BilledKind::Volume, "506f", None, Some(100), 1)];
    let upstream = Upstream { billed: &twin, ..upstream };
    assert!(compare(&upstream, &[])[0].proposal.ends_with("`doctl compute volume delete 506f`"));
}
