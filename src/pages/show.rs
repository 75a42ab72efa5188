//! How states, money and time are shown: a word, a colour and an icon for each state, exact sums, exact dates.

use std::fmt;

use askama::filters::HtmlSafe;

use crate::{
    approvals::{Approval, ApprovalStatus},
    audit::events::RecordedEvent,
    billing::{
        ledger::{StatementLine, TransferKind},
        topups::{TopupStatus, TopupView},
    },
    byos::{commands::CommandStatus, connections::ConnectionStatus},
    clock::Time,
    ids::UserId,
    mailer::templates::date,
    orders::OrderStatus,
    reports::{Outcome, ReportKind},
    seedbox::{Operation, Resource, Status, SuspendReason},
};

/// A time for people, and exactly for programs.
#[derive(Debug, Clone, Copy)]
pub(super) struct When(pub(super) Time);

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<time datetime=\"{}\">{}</time>", self.0, date(self.0))
    }
}

impl HtmlSafe for When {}

/// How long something has been going on; the page counts on by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Since {
    pub(super) start: Time,
    pub(super) now: Time,
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.now.duration_since(self.start.0).as_secs();
        write!(f, "<span class=\"number\" data-since=\"{}\">{}</span>", self.start, clock(seconds))
    }
}

impl HtmlSafe for Since {}

/// How long is left; the page counts on by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Until {
    pub(super) end: Time,
    pub(super) now: Time,
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.end.duration_since(self.now.0).as_secs();
        write!(f, "<span class=\"number\" data-until=\"{}\">{}</span>", self.end, clock(seconds))
    }
}

impl HtmlSafe for Until {}

fn clock(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        48.. => format!("{} days", hours / 24),
        1..48 => format!("{hours}:{minutes:02}:{rest:02}"),
        _ => format!("{minutes}:{rest:02}"),
    }
}

/// An amount of data for people, in powers of 1,000 as disks are sold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bytes(pub(super) i64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut tenths, mut unit) = (i128::from(self.0.max(0)) * 10, 0);
        const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
        while tenths >= 10_000 && unit + 1 < UNITS.len() {
            (tenths, unit) = (tenths / 1_000, unit + 1);
        }
        match unit {
            0 => write!(f, "{} B", tenths / 10),
            _ if tenths < 1_000 => write!(f, "{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]),
            _ => write!(f, "{} {}", tenths / 10, UNITS[unit]),
        }
    }
}

impl HtmlSafe for Bytes {}

/// A state: its word, colour and icon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Badge {
    /// `good`, `wait`, `warn`, `bad` or `off`.
    pub(super) tone: &'static str,
    pub(super) word: &'static str,
}

impl fmt::Display for Badge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let icon = match self.tone {
            "good" => "<path d=\"M3 8.5l3.2 3.2L13 5\"/>",
            "wait" => "<circle cx=\"8\" cy=\"8\" r=\"6\"/><path d=\"M8 4.5V8l2.5 1.5\"/>",
            "warn" => "<path d=\"M8 2.5l6 11H2z\"/><path d=\"M8 6.5v3.2M8 11.6v.4\"/>",
            "bad" => "<circle cx=\"8\" cy=\"8\" r=\"6\"/><path d=\"M5.8 5.8l4.4 4.4M10.2 5.8l-4.4 4.4\"/>",
            _ => "<circle cx=\"8\" cy=\"8\" r=\"6\"/><path d=\"M5 8h6\"/>",
        };
        write!(
            f,
            "<span class=\"state {}\"><svg viewBox=\"0 0 16 16\" fill=\"none\" stroke=\"currentColor\" stroke-width=\"2\" \
             stroke-linecap=\"round\" stroke-linejoin=\"round\" aria-hidden=\"true\">{icon}</svg>{}</span>",
            self.tone, self.word
        )
    }
}

impl HtmlSafe for Badge {}

const fn badge(tone: &'static str, word: &'static str) -> Badge {
    Badge { tone, word }
}

/// How a box is, in its owner's words.
pub(super) fn box_badge(resource: &Resource) -> Badge {
    match (resource.status, resource.suspend_reason) {
        (Status::Pending, _) => badge("wait", "Being made"),
        (Status::Provisioning, _) => badge("wait", "Being made"),
        (Status::Active, _) if resource.past_due_since.is_some() => badge("warn", "Running, past due"),
        (Status::Active, _) => badge("good", "Running"),
        (Status::Suspended, Some(SuspendReason::User)) => badge("off", "Paused by you"),
        (Status::Suspended, Some(SuspendReason::Billing)) => badge("bad", "Suspended, unpaid"),
        (Status::Suspended, _) => badge("bad", "Suspended"),
        (Status::Failed, _) => badge("bad", "Could not be made"),
        (Status::Terminating, _) => badge("wait", "Being wiped"),
        (Status::Terminated, _) => badge("off", "Ended and wiped"),
    }
}

/// How a box in a list is, in an operator's words.
pub(super) fn listed_badge(status: Status, reason: Option<SuspendReason>, past_due: bool) -> Badge {
    match (status, reason) {
        (Status::Active, _) if past_due => badge("warn", "past due"),
        (Status::Suspended, Some(SuspendReason::Billing)) => badge("bad", "suspended, unpaid"),
        (Status::Suspended, Some(SuspendReason::Abuse)) => badge("bad", "suspended, abuse"),
        (Status::Suspended, Some(SuspendReason::User)) => badge("off", "paused by its owner"),
        _ => status_badge(status),
    }
}

/// A status, as operators know it.
pub(super) fn status_badge(status: Status) -> Badge {
    let tone = match status {
        Status::Active => "good",
        Status::Pending | Status::Provisioning | Status::Terminating => "wait",
        Status::Suspended => "warn",
        Status::Failed => "bad",
        Status::Terminated => "off",
    };
    badge(tone, status.as_str())
}

/// How a provider is.
pub(super) fn provider_badge(access_refused: bool, failing: bool) -> Badge {
    match (access_refused, failing) {
        (true, _) => badge("bad", "refuses our access"),
        (false, true) => badge("warn", "failing"),
        (false, false) => badge("good", "answers"),
    }
}

/// Where an approval stands, for who asked and for others.
pub(super) fn approval_badge(approval: &Approval, mine: bool, now: Time) -> Badge {
    match approval.status {
        ApprovalStatus::Waiting if approval.is_open(now) && mine => badge("wait", "waits for somebody else"),
        ApprovalStatus::Waiting if approval.is_open(now) => badge("warn", "waits for a second person"),
        ApprovalStatus::Waiting | ApprovalStatus::Expired => badge("off", "not decided in time"),
        ApprovalStatus::Approved => badge("good", "approved"),
        ApprovalStatus::Refused => badge("bad", "refused"),
        ApprovalStatus::Withdrawn => badge("off", "withdrawn"),
    }
}

/// Why a payment waits for an operator.
pub(super) fn unresolved_words(reason: &str) -> &'static str {
    match reason {
        "underpaid" => "Less than the quote came",
        "paid_late" => "It came after the quote, in a coin whose price moves",
        "excess_held" => "More than the quote came",
        "excess_claimed" => "A webhook says that more than the quote came",
        "failed_after_confirmed" => "The gateway called it failed after it was credited",
        _ => "It does not fit the rules",
    }
}

/// Where an order stands.
pub(super) fn order_badge(status: OrderStatus) -> Badge {
    match status {
        OrderStatus::AwaitingPayment => badge("warn", "Waits for payment"),
        OrderStatus::Paid => badge("wait", "Paid, being made"),
        OrderStatus::Fulfilled => badge("good", "Delivered"),
        OrderStatus::Expired => badge("off", "Expired"),
        OrderStatus::Cancelled => badge("off", "Cancelled"),
    }
}

/// Where a top-up stands.
pub(super) fn topup_badge(topup: &TopupView) -> Badge {
    match topup.status {
        _ if topup.unresolved_reason.is_some() => badge("warn", "With an operator"),
        TopupStatus::Created => badge("wait", "Asking for a quote"),
        TopupStatus::Pending => badge("wait", "Waits for payment"),
        TopupStatus::Detected if topup.missing.is_some_and(|missing| !missing.is_zero()) => {
            badge("warn", "Partly received")
        }
        TopupStatus::Detected => badge("wait", "Confirming"),
        TopupStatus::Expired => badge("off", "Quote ended"),
        TopupStatus::Failed => badge("bad", "Failed"),
        TopupStatus::Confirmed | TopupStatus::Forwarded => badge("good", "Credited"),
    }
}

/// How a connection to somebody's own server is.
pub(super) fn connection_badge(status: ConnectionStatus, revoking: bool) -> Badge {
    match status {
        ConnectionStatus::Revoked => badge("off", "Revoked"),
        _ if revoking => badge("wait", "Being revoked"),
        ConnectionStatus::Pending => badge("wait", "Waits for the line"),
        ConnectionStatus::Connected => badge("good", "Connected"),
        ConnectionStatus::Error => badge("bad", "Not usable"),
    }
}

/// What came of a command.
pub(super) fn command_badge(status: CommandStatus, exit_status: Option<i32>) -> Badge {
    match (status, exit_status) {
        (CommandStatus::Requested, _) => badge("wait", "Asked for"),
        (CommandStatus::Sent, _) => badge("wait", "Sent"),
        (CommandStatus::Done, Some(0)) => badge("good", "Done"),
        (CommandStatus::Done, Some(69)) => badge("off", "Not there"),
        (CommandStatus::Done, Some(124)) => badge("warn", "Took too long"),
        (CommandStatus::Done, _) => badge("warn", "Done, with an error"),
        (CommandStatus::Refused, _) => badge("bad", "Refused"),
        (CommandStatus::Failed, _) => badge("bad", "Failed"),
    }
}

/// What is being done to a box.
pub(super) fn operation_words(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "Making the box",
        Operation::Suspend => "Pausing the box",
        Operation::Resume => "Bringing the box back",
        Operation::Restart => "Restarting the torrent client",
        Operation::RotateCredentials => "Replacing the password",
        Operation::Resize => "Changing the size",
        Operation::Terminate => "Wiping the box",
    }
}

/// A line of a statement, explained.
pub(super) fn transfer_words(line: &StatementLine) -> String {
    let what = match line.kind {
        TransferKind::Topup => "Payment received",
        TransferKind::TopupExcess => "More than the quote received",
        TransferKind::TopupHeld => "Received above the quote, with an operator for review",
        TransferKind::HeldRelease => "Reviewed and added to your balance",
        TransferKind::Promotion => "Promotional credit",
        TransferKind::Reserve => "Set aside until it is delivered",
        TransferKind::Post => "Delivered: what was set aside is spent",
        TransferKind::Void => "Not delivered: what was set aside is back",
        TransferKind::Charge => "Month charged",
        TransferKind::Arrears => "Days of grace, owed",
        TransferKind::ArrearsPaid => "Days of grace, paid",
        TransferKind::ArrearsWrittenOff => "Days of grace, written off",
        TransferKind::Refund => "Refund to your balance",
        TransferKind::PayoutReserve => "Set aside for a payout",
        TransferKind::Payout => "Paid out",
        TransferKind::PayoutVoid => "Payout called off: the sum is back",
        TransferKind::UpstreamCost => "Cost of ours",
    };
    match (line.period_start, line.period_end) {
        (Some(start), Some(end)) => format!("{what}: {} to {}", day(start), day(end)),
        _ => what.to_owned(),
    }
}

/// `3 February 2027`.
pub(super) fn day(time: Time) -> String {
    time.0.strftime("%-d %B %Y").to_string()
}

/// An event of a box's history in its owner's words.
pub(super) struct EventView {
    pub(super) at: When,
    pub(super) what: String,
    pub(super) who: &'static str,
    pub(super) reason: String,
}

/// Who did something, as its owner is told: people who work for the operator are not named.
pub(super) fn actor_words(actor: &str, owner: UserId) -> &'static str {
    match actor.split_once(':') {
        Some(("operator", _)) => "an operator",
        Some(("user", id)) if id == owner.to_string() => "you",
        Some(("user", _)) => "somebody else",
        _ => "the system",
    }
}

/// What happened, in words.
pub(super) fn event_view(event: &RecordedEvent, owner: UserId) -> EventView {
    let what = match event.action.as_str() {
        "resource.pending" => "Paid for",
        "resource.provisioning" => "Being made",
        "resource.active" => "Running",
        "resource.suspended" => "Suspended",
        "resource.failed" => "Could not be made",
        "resource.terminating" => "Being wiped",
        "resource.terminated" => "Wiped",
        "resource.machine_made" => "The machine was made",
        "resource.node_reported" => "The machine reported itself",
        "resource.credentials_shown" => "The password was shown",
        "resource.restarted" => "The torrent client was restarted",
        "resource.credentials_rotated" => "The password was replaced",
        "resource.end_at_period_end_set" => "The end at the end of the month was set or taken back",
        "resource.next_plan_set" => "The plan of the next month was set",
        "resource.plan_changed" => "The plan was changed",
        "resource.priority_set" => "Its place in the order of charges was set",
        "resource.past_due" => "A month could not be paid",
        "resource.refunded" => "A charge was refunded",
        "resource.operation_failed" => "Something that was asked for could not be done",
        "resource.suspend_reason_changed" => "The reason of the suspension was changed",
        "resource.create_requested" => "A machine was asked for",
        "resource.suspend_requested" => "A suspension was asked for",
        "resource.resume_requested" => "Its return was asked for",
        "resource.restart_requested" => "A restart was asked for",
        "resource.rotate_credentials_requested" => "A new password was asked for",
        "resource.resize_requested" => "Another size was asked for",
        "resource.terminate_requested" => "Its end was asked for",
        other => &sentence(&other.trim_start_matches("resource.").replace(['_', '.'], " ")),
    };
    EventView {
        at: When(event.at),
        what: what.to_owned(),
        who: actor_words(&event.actor, owner),
        // The word of a rule is in what happened already; a reason is what somebody wrote.
        reason: if event.reason.contains(' ') { event.reason.clone() } else { String::new() },
    }
}

/// What came of a report, or that it is open.
pub(super) fn report_badge(outcome: Option<Outcome>) -> Badge {
    let (tone, word) = match outcome {
        None => ("warn", "Open"),
        Some(Outcome::ActedOn) => ("good", "Acted on"),
        Some(Outcome::NotOurs) => ("off", "Not ours"),
        Some(Outcome::Rejected) => ("off", "Rejected"),
    };
    Badge { tone, word }
}

/// What a report is about.
pub(super) fn report_words(kind: ReportKind) -> &'static str {
    match kind {
        ReportKind::Copyright => "Notice of infringement",
        ReportKind::Attack => "Attacks",
        ReportKind::Spam => "Unwanted mail",
        ReportKind::Malware => "Malware or phishing",
        ReportKind::Other => "Something else",
    }
}

/// A code as words.
fn sentence(words: &str) -> String {
    let mut characters = words.chars();
    characters.next().map(|first| first.to_uppercase().to_string() + characters.as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_told_as_a_clock_and_long_times_in_days() {
        let cases =
            [(-5, "0:00"), (0, "0:00"), (65, "1:05"), (3_605, "1:00:05"), (172_799, "47:59:59"), (172_800, "2 days")];
        for (seconds, expected) in cases {
            assert_eq!(clock(seconds), expected);
        }
    }

    #[test]
    fn data_is_told_in_the_unit_that_fits() {
        let cases = [
            (-1, "0 B"),
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (99_949, "99.9 kB"),
            (100_000, "100 kB"),
            (2_000_000, "2.0 MB"),
            (50_000_000_000, "50.0 GB"),
            (999_999_999_999, "999 GB"),
            (i64::MAX, "9223 PB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Bytes(bytes).to_string(), expected);
        }
    }

    #[test]
    fn nobody_who_works_for_the_operator_is_named() {
        let owner = UserId::new();
        assert_eq!(actor_words(&format!("user:{owner}"), owner), "you");
        assert_eq!(actor_words(&format!("user:{}", UserId::new()), owner), "somebody else");
        assert_eq!(actor_words(&format!("operator:{owner}"), owner), "an operator");
        assert_eq!(actor_words("system", owner), "the system");
    }
}
