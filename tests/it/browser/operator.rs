//! Who runs the business, against a real trial: one look, a payment that needs a person, a box that is cut off and brought back,
//! the log that proves it.

use reqwest::Method;
use seedplane::accounts::{self, Role};
use seedplane_provisioning::TorrentStance;
use serde_json::json;

use super::Browser;
use crate::{
    support::{World, temporary},
    trial::{Trial, command, said},
};

const PASSWORD: &str = "a long enough password";

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_what_needs_a_person_and_does_it() {
    let arguments = ["--listen", "127.0.0.1:0", "--two-person-rule", "true"];
    let mut trial = Trial::start_with(temporary("operator").join("data"), &arguments);
    for email in ["op@example.org", "second@example.org"] {
        let made = command(&trial.data, &["operator", "create", email], &format!("{PASSWORD}\n"));
        assert!(made.status.success(), "{}", said(&made));
    }

    // A customer with a box, and a payment that came short.
    let buyer = trial.sign_up().await;
    trial.pay(&buyer, 2000, "exact").await;
    let plans = trial.call(Some(&buyer), Method::GET, "/api/seedbox/plans", None).await;
    let order = json!({ "plan_id": plans[0]["id"] });
    trial.call(Some(&buyer), Method::POST, "/api/seedbox/orders", Some(order)).await;
    let boxes = "/api/seedbox/resources";
    let resource = trial.until(&buyer, boxes, |boxes| boxes[0]["status"] == "active").await[0].clone();
    let id = resource["id"].as_str().unwrap();
    trial.pay(&buyer, 1000, "short").await;
    let seen = trial.until(&buyer, "/api/billing/topups", |topups| topups[0]["status"] == "detected").await;
    let short = seen[0].clone();
    trial.press(&short, "never").await;

    let mut operator = Browser::open(&trial.base, "operator").await;
    operator.go("/operator").await;
    operator.fill("#email", "op@example.org").await;
    operator.fill("#password", PASSWORD).await;
    operator.find("main button").await.click().await.unwrap();
    operator.until("Needs a look").await;
    operator.looked_at("overview").await;

    // The payment: what came, and four things to do with it, each with a reason.
    let started = std::time::Instant::now();
    loop {
        operator.go("/operator/payments").await;
        if operator.text().await.contains("Less than the quote came") {
            break;
        }
        assert!(started.elapsed() < crate::support::PATIENCE, "{}", operator.text().await);
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    operator.looked_at("payments").await;
    operator.fill("input[name=reason]", "sent the rest by hand, seen on the chain").await;
    operator.fill("input[name=amount]", "4.00").await;
    operator.press("Credit that sum").await;
    operator.until("Every payment is booked by the rules").await;

    // The box: found, suspended with a reason, refunded, held, brought back.
    operator.go(&format!("/operator/boxes?text={id}")).await;
    operator.until("local").await;
    operator.looked_at("boxes").await;
    operator.press("Small").await;
    operator.until("Operations").await;
    operator.looked_at("box").await;
    operator.press_summary("Suspend").await;
    operator.fill("#suspend-reason", "a complaint is being looked at").await;
    operator.press("Suspend the box").await;
    trial.until(&buyer, boxes, |boxes| boxes[0]["status"] == "suspended").await;
    operator.go(&format!("/operator/boxes/{id}")).await;
    operator.until("suspended").await;
    operator.fill("#resume-reason", "the complaint was withdrawn").await;
    operator.press("Bring the box back").await;
    trial.until(&buyer, boxes, |boxes| boxes[0]["status"] == "active").await;
    operator.go(&format!("/operator/boxes/{id}")).await;
    operator.press_summary("Refund").await;
    operator.fill("#refund-amount", "2.50").await;
    operator.fill("#refund-reason", "for the time it was cut off").await;
    operator.press("Refund").await;
    operator.until("Refund to your balance").await;
    operator.press_summary("End and wipe").await;
    operator.fill("#end-label", "another box").await;
    operator.fill("#end-reason", "tried").await;
    operator.press("Wipe it and end it").await;
    operator.until("nothing was ended").await;

    // The customer: balance, statement, credit.
    operator.press("Customers").await;
    operator.until("Balance").await;
    operator.looked_at("customers").await;
    operator.go(&format!("/operator/boxes/{id}")).await;
    operator.find("dd a[href^='/operator/customers/']").await.click().await.unwrap();
    operator.press_summary("Give credit").await;
    operator.fill("#promotion-amount", "1.00").await;
    operator.fill("#promotion-reason", "sorry for the interruption").await;
    operator.press("Give credit").await;
    operator.until("Promotional credit").await;
    operator.looked_at("customer").await;

    // A payout waits for somebody else, who sees exactly what it comes to; what is done to a box that was ticked does not.
    operator.press_summary("Pay out").await;
    operator.fill("#payout-amount", "2.00").await;
    operator.fill("#payout-reason", "asked for in ticket 7").await;
    operator.press("Set aside for a payout").await;
    operator.until("You asked for it, so another operator decides").await;
    operator.looked_at("approval-asked").await;
    operator.go("/operator/payments").await;
    operator.until("Not to be sent before another operator has approved it").await;
    operator.looked_at("payouts").await;
    operator.go("/operator/boxes").await;
    operator.find("input[name=box]").await.click().await.unwrap();
    operator.find("#mass-action option[value=hold-7]").await.click().await.unwrap();
    operator.press("Go on").await;
    operator.until("It is done at once, to all of them or to none").await;
    operator.looked_at("mass-action").await;
    operator.fill("#mass-reason", "the data centre moves").await;
    operator.press("Do it").await;
    operator.until("It is asked for 1 box").await;
    operator.until("held").await;
    let mut second = Browser::open(&trial.base, "second-operator").await;
    second.go("/operator").await;
    second.fill("#email", "second@example.org").await;
    second.fill("#password", PASSWORD).await;
    second.find("main button").await.click().await.unwrap();
    second.press("1 waits for a second person").await;
    second.until("asked for in ticket 7").await;
    second.looked_at("approvals").await;
    second.press("Look at it and decide").await;
    second.until("leave the customer's balance").await;
    second.looked_at("approval").await;
    second.fill("#decide-reason", "the ticket is theirs").await;
    second.press("Approve it").await;
    second.until("the ticket is theirs").await;
    second.looked_at("approval-decided").await;
    second.close().await;

    // Everything that was done stands in the log, which can be verified.
    operator.press("Audit log").await;
    operator.until("a complaint is being looked at").await;
    operator.press("Verify all of it").await;
    operator.until("signed checkpoints").await;
    operator.looked_at("audit").await;
    operator.go("/operator/plans").await;
    operator.until("are left").await;
    operator.looked_at("plans").await;
    operator.press_summary("Another price").await;
    operator.fill("input[name=price]", "16.00").await;
    operator.fill("input[name=reason]", "electricity costs more").await;
    operator.press("Set this price").await;
    operator.until("$16.00 a month").await;
    operator.press("Providers").await;
    operator.until("allowed by its terms").await;
    operator.looked_at("providers").await;
    operator.press("Drift").await;
    operator.until("Nothing is deleted by itself").await;
    operator.looked_at("drift").await;
    operator.press("Jobs").await;
    operator.until("given up waits for you").await;
    operator.looked_at("jobs").await;
    operator.close().await;
    trial.stop().await;
}

/// What the trial has none of: a provider whose terms forbid torrents, and more boxes than one operator suspends alone.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_says_where_torrents_may_be_sold_and_asks_for_what_reaches_many() {
    let mut world = World::new().await;
    world.two_person_rule = true;
    world.provider.offer(|offered| {
        offered.torrent_stance = TorrentStance::Forbidden;
        offered.sizes[0].regions = vec!["ams".to_owned(), "fra".to_owned()];
    });
    let test = world.start(true).await;
    let person = test.person(Role::Operator).await;
    let mut operator = Browser::open(&test.base, "asking").await;
    operator.go("/operator/approvals").await;
    let email = accounts::email_of(&test.app.pool, person.id).await.unwrap().unwrap();
    operator.fill("#email", &email).await;
    operator.fill("#password", PASSWORD).await;
    operator.find("main button").await.click().await.unwrap();
    operator.until("You are the only operator").await;
    operator.looked_at("alone").await;
    test.person(Role::Operator).await;
    operator.press("Providers").await;
    operator.until("not permitted, nothing is sold").await;
    operator.press_summary("Permit torrents").await;
    operator.looked_at("not-permitted").await;
    operator.fill("input[name=reason]", "written consent of 2026-11-02, ticket 123").await;
    operator.press("Torrents may be sold there").await;
    operator.until("sold by your word").await;
    let buyer = test.customer().await;
    for _ in 0..6 {
        test.active_box(&buyer, 1500).await;
    }
    operator.go("/operator/providers").await;
    operator.press_summary("Take it back").await;
    operator.until("No longer sold: Small").await;
    operator.looked_at("permitted").await;

    // The next month of none of them is covered.
    test.advance(jiff::SignedDuration::from_hours(24 * 10)).await;
    operator.go("/operator").await;
    operator.until("Who runs out of money next").await;
    operator.until("$90.00").await;
    operator.looked_at("runway").await;
    operator.go("/operator/boxes").await;
    for number in 1..=6 {
        let tick = format!("tbody tr:nth-child({number}) input[name=box]");
        operator.find(&tick).await.click().await.unwrap();
    }
    operator.find("#mass-action option[value=suspend-operator]").await.click().await.unwrap();
    operator.looked_at("boxes-ticked").await;
    operator.press("Go on").await;
    operator.until("So many at once wait for another operator").await;
    operator.looked_at("mass-action-asks").await;
    operator.fill("#mass-reason", "the data centre moves").await;
    operator.press("Ask for approval").await;
    operator.until("Waits for somebody else").await;
    operator.looked_at("mass-action-asked").await;
    operator.close().await;
}
