//! The words of every notice. Money and dates are exact, and each says what happens next and what to do.

use serde_json::{Value, json};

use super::{CREDENTIALS_LINK, Notice};
use crate::{
    billing::rules::Policy,
    clock::Time,
    ids::{AttemptId, ResourceId, UserId},
    money::Usd,
    seedbox::{Plan, Resource, SuspendReason},
};

pub mod accounts;
pub mod byos;
pub mod reports;

/// `3 February 2027, 14:05 UTC`.
pub fn date(time: Time) -> String {
    time.0.strftime("%-d %B %Y, %H:%M UTC").to_string()
}

fn about<'a>(
    resource: &Resource,
    kind: &'a str,
    key: String,
    facts: Value,
    subject: String,
    body: String,
) -> Notice<'a> {
    Notice {
        user_id: resource.user_id,
        resource_id: Some(resource.id),
        kind,
        idempotency_key: key,
        facts,
        subject,
        body,
    }
}

/// The box answers.
pub fn box_ready(resource: &Resource, paid_until: Time) -> Notice<'static> {
    let body = format!(
        "Your seedbox \"{}\" is ready.\n\n\
         Web interface: {}\nLogin name: {}\nPassword: open this one-time link within 3 days:\n{CREDENTIALS_LINK}\n\n\
         It is paid until {}. Then {} is taken from your balance for the next month.\n",
        resource.label,
        resource.web_url.as_deref().unwrap_or("shown on your page"),
        resource.login_name.as_deref().unwrap_or("seed"),
        date(paid_until),
        resource.price_cents,
    );
    let facts = json!({ "paid_until": paid_until, "price_cents": resource.price_cents });
    about(
        resource,
        "box_ready",
        format!("box_ready:{}", resource.id),
        facts,
        format!("{} is ready", resource.label),
        body,
    )
}

/// The box could not be made.
pub fn box_failed(resource: &Resource) -> Notice<'static> {
    let body = format!(
        "We could not make your seedbox \"{}\". The {} set aside for it are back in your balance, to the cent.\n\n\
         Nothing else was charged. You can order again at any time; an operator has been told.\n",
        resource.label, resource.price_cents,
    );
    let facts = json!({ "returned_cents": resource.price_cents });
    about(
        resource,
        "box_failed",
        format!("box_failed:{}", resource.id),
        facts,
        format!("{} could not be made", resource.label),
        body,
    )
}

/// The balance will not last.
pub fn runway(user_id: UserId, key: String, days_left: i64, stops_at: Time, short_by: Usd) -> Notice<'static> {
    let days = if days_left == 1 { "1 day".to_owned() } else { format!("{days_left} days") };
    let body = format!(
        "Your balance lasts {days} more: on {} the next month of a seedbox falls due and is not covered.\n\n\
         Pay in at least {short_by} before then to keep everything running.\n",
        date(stops_at),
    );
    Notice {
        user_id,
        resource_id: None,
        kind: "runway",
        idempotency_key: key,
        facts: json!({ "days_left": days_left, "stops_at": stops_at, "short_by_cents": short_by }),
        subject: format!("Your seedbox balance lasts {days} more"),
        body,
    }
}

/// The price of a box will change.
pub fn price_change(resource: &Resource, key: String, price: Usd, earliest: Time) -> Notice<'static> {
    let body = format!(
        "From the first month that begins on or after {}, \"{}\" costs {price} a month instead of {}.\n\n\
         Until then nothing changes. If you do not want to keep it, let it end with the month that is paid.\n",
        date(earliest),
        resource.label,
        resource.price_cents,
    );
    about(
        resource,
        "price_change",
        key,
        json!({ "price_cents": price, "earliest": earliest }),
        format!("The price of {} changes to {price}", resource.label),
        body,
    )
}

/// A month fell due and the balance does not cover it.
pub fn past_due(resource: &Resource, key: String, short_by: Usd, suspends_at: Time) -> Notice<'static> {
    let body = format!(
        "{} for \"{}\" fell due and your balance does not cover it: {short_by} are missing.\n\n\
         It runs on for now. If nothing is paid in it is suspended, no earlier than {}.\n",
        resource.price_cents,
        resource.label,
        date(suspends_at),
    );
    let facts = json!({ "short_by_cents": short_by, "suspends_at": suspends_at });
    about(resource, "past_due", key, facts, format!("{} is past due", resource.label), body)
}

/// The last warning before a suspension; the suspension waits for it.
pub fn final_warning(resource: &Resource, key: String, short_by: Usd, suspends_at: Time) -> Notice<'static> {
    let body = format!(
        "Final warning: \"{}\" is unpaid and will be suspended, no earlier than {}.\n\n\
         Pay in {short_by} before then and it goes on without a break. Your data is kept for 14 days after a suspension.\n",
        resource.label,
        date(suspends_at),
    );
    let facts = json!({ "short_by_cents": short_by, "suspends_at": suspends_at });
    about(resource, "final_warning", key, facts, format!("Final warning: {} will be suspended", resource.label), body)
}

/// The box is cut off.
pub fn box_suspended(resource: &Resource, reason: SuspendReason, policy: &Policy) -> Notice<'static> {
    let next = match reason {
        SuspendReason::Billing => {
            let days = policy.retention.as_hours() / 24;
            format!(
                "To bring it back, pay in so that your balance covers {} ({} for the days it ran unpaid and {} for a new month).\n\
                 Your data is kept for {days} days from now; after that the box is wiped. You will be told 7, 3 and 1 days before.\n",
                resource.arrears_cents + resource.price_cents,
                resource.arrears_cents,
                resource.price_cents,
            )
        }
        SuspendReason::User => "You asked for it; resume it at any time.\n".to_owned(),
        _ => "Please write to us. A payment does not lift this.\n".to_owned(),
    };
    let body = format!(
        "Your seedbox \"{}\" is suspended (reason: {reason}). Nothing is charged while it is.\n\n{next}",
        resource.label
    );
    let facts =
        json!({ "reason": reason, "arrears_cents": resource.arrears_cents, "price_cents": resource.price_cents });
    let key = format!("box_suspended:{}:{}", resource.id, resource.version);
    about(resource, "box_suspended", key, facts, format!("{} is suspended", resource.label), body)
}

/// The wipe comes nearer.
pub fn wipe_notice(resource: &Resource, key: String, days: i64, not_before: Time, pay: Usd) -> Notice<'static> {
    let left = if days == 1 { "1 day".to_owned() } else { format!("{days} days") };
    let body = format!(
        "\"{}\" has been suspended for non-payment. It and all data on it will be wiped in {left}, no earlier than {}.\n\n\
         To keep it, pay in so that your balance covers {pay}.\n",
        resource.label,
        date(not_before),
    );
    let facts = json!({ "days": days, "not_before": not_before, "pay_cents": pay });
    about(resource, "wipe_notice", key, facts, format!("{} will be wiped in {left}", resource.label), body)
}

/// The box is back.
pub fn box_resumed(resource: &Resource) -> Notice<'static> {
    let until = resource.paid_until.map_or_else(String::new, |until| format!(" It is paid until {}.", date(until)));
    let body = format!("Your seedbox \"{}\" is active again, with the same login as before.{until}\n", resource.label);
    let key = format!("box_resumed:{}:{}", resource.id, resource.version);
    about(
        resource,
        "box_resumed",
        key,
        json!({ "paid_until": resource.paid_until }),
        format!("{} is active again", resource.label),
        body,
    )
}

/// A new password.
pub fn credentials_rotated(resource: &Resource) -> Notice<'static> {
    let body = format!(
        "The password of \"{}\" was replaced. The old one and every open session have ended.\n\n\
         Open this one-time link within 3 days for the new one:\n{CREDENTIALS_LINK}\n",
        resource.label,
    );
    let key = format!("credentials_rotated:{}:{}", resource.id, resource.credentials_version);
    let facts = json!({ "credentials_version": resource.credentials_version });
    about(resource, "credentials_rotated", key, facts, format!("{} has a new password", resource.label), body)
}

/// The box has another plan.
pub fn plan_changed(resource: &Resource, plan: &Plan, attempt: &AttemptId) -> Notice<'static> {
    let until = resource.paid_until.map_or_else(String::new, |until| format!(" It is paid until {}.", date(until)));
    let body = format!(
        "Your seedbox \"{}\" now has the plan {}, with the same data and the same login as before.{until}\n\n\
         From then on a month costs {}. Your statement shows what the change cost, to the cent.\n",
        resource.label, plan.name, plan.price_cents,
    );
    about(
        resource,
        "plan_changed",
        format!("plan_changed:{attempt}"),
        json!({ "plan_id": plan.id, "price_cents": plan.price_cents, "paid_until": resource.paid_until }),
        format!("{} has the plan {}", resource.label, plan.name),
        body,
    )
}

/// The box is gone, with the proof.
pub fn box_terminated(resource: &Resource, certificate: &Value, refund: Usd) -> Notice<'static> {
    let mut lines = String::new();
    for fact in certificate["facts"].as_array().into_iter().flatten() {
        lines.push_str(&format!(
            "- {}: {}\n",
            fact["at"].as_str().unwrap_or_default(),
            fact["fact"].as_str().unwrap_or_default()
        ));
    }
    let money = if refund.is_positive() {
        format!("{refund} of what you had paid for it went back to your balance")
    } else {
        "Nothing of your balance was taken for this, and nothing of what you had paid for it goes back".to_owned()
    };
    let body = format!(
        "Your seedbox \"{}\" has ended and its data is wiped. {money}.\n\nWipe certificate {}:\n{lines}",
        resource.label, resource.id,
    );
    let key = format!("box_terminated:{}", resource.id);
    about(
        resource,
        "box_terminated",
        key,
        certificate.clone(),
        format!("{} is wiped: certificate", resource.label),
        body,
    )
}

/// A payment arrived.
pub fn topup_credited(user_id: UserId, resource_id: Option<ResourceId>, key: String, amount: Usd) -> Notice<'static> {
    Notice {
        user_id,
        resource_id,
        kind: "topup_credited",
        idempotency_key: key,
        facts: json!({ "amount_cents": amount }),
        subject: format!("{amount} received"),
        body: format!("Your payment arrived: {amount} were added to your balance.\n"),
    }
}
