//! The lifecycle through the API: what its owner, an operator and a stranger can do, and what is written down.

use reqwest::{Method, StatusCode};
use seedplane::accounts::Role;
use seedplane_provisioning::{Error, memory::Verb};
use serde_json::json;

use crate::support::TestApp;

#[tokio::test]
async fn the_only_set_status_is_in_the_lifecycle() {
    fn walk(folder: &std::path::Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                let text = std::fs::read_to_string(&path).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
                for update in text.split("update seedbox_resources").skip(1) {
                    let statement = &update[..update.find("where").unwrap_or(update.len())];
                    if statement.contains("status =") && !path.ends_with("seedbox/lifecycle.rs") {
                        found.push(path.display().to_string());
                    }
                }
            }
        }
    }
    let mut found = Vec::new();
    walk(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.is_empty(), "status is set in {found:?}");
}

#[tokio::test]
async fn a_box_lives_and_every_step_is_written_down() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");

    let login = test.post(&buyer, &format!("{path}/credentials"), json!({})).await;
    assert!(login["password"].as_str().unwrap().len() >= 24);
    let (again, _) = test.call(Some(&buyer), Method::POST, &format!("{path}/credentials"), None).await;
    assert_eq!(again, StatusCode::CONFLICT, "shown once");

    test.post(&buyer, &format!("{path}/suspend"), json!({})).await;
    let suspended = test.until(&buyer, &path, |resource| resource["status"] == "suspended").await;
    assert_eq!(suspended["suspend_reason"], "user");
    let (rotate, _) = test.call(Some(&buyer), Method::POST, &format!("{path}/rotate-credentials"), None).await;
    assert_eq!(rotate, StatusCode::CONFLICT, "a suspended box gets no new password");
    test.post(&buyer, &format!("{path}/resume"), json!({})).await;
    test.until(&buyer, &path, |resource| resource["status"] == "active").await;

    test.post(&buyer, &format!("{path}/rotate-credentials"), json!({})).await;
    test.until(&buyer, &path, |resource| resource["credentials_shown"] == false && resource["operations"] == json!([]))
        .await;
    let fresh = test.post(&buyer, &format!("{path}/credentials"), json!({})).await;
    assert_ne!(fresh["password"], login["password"]);

    let (unconfirmed, _) = test
        .call(Some(&buyer), Method::POST, &format!("{path}/terminate"), Some(json!({ "confirm_label": "no" })))
        .await;
    assert_eq!(unconfirmed, StatusCode::UNPROCESSABLE_ENTITY);
    test.post(&buyer, &format!("{path}/terminate"), json!({ "confirm_label": "Small" })).await;
    let ended = test.until(&buyer, &path, |resource| resource["status"] == "terminated").await;
    assert!(ended["wipe_certificate"]["facts"].as_array().unwrap().len() >= 2);
    test.idle().await;

    let events = test.get(&buyer, &format!("{path}/events")).await;
    let actions: Vec<&str> =
        events.as_array().unwrap().iter().rev().map(|event| event["action"].as_str().unwrap()).collect();
    for expected in [
        "resource.pending",
        "resource.provisioning",
        "resource.active",
        "resource.credentials_shown",
        "resource.suspended",
        "resource.active",
        "resource.credentials_rotated",
        "resource.terminating",
        "resource.terminated",
    ] {
        assert!(actions.contains(&expected), "{expected} is not in {actions:?}");
    }
    let account = test.get(&buyer, "/api/billing/account").await;
    assert!(
        account["available_cents"].as_i64().unwrap() > 1300,
        "ended in its first days: the rest comes back: {account}"
    );
    test.assert_sound().await;
}

#[tokio::test]
async fn what_cannot_be_made_is_refunded_to_the_cent_and_cleaned_up() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    test.world.provider.fail_next(Verb::Create, Error::Refused { why: "no".to_owned() });
    let plan = test.plan(1500).await;
    test.top_up(&buyer, 1700).await;
    let order = test.post(&buyer, "/api/seedbox/orders", json!({ "plan_id": plan })).await;
    let id = order["resource_id"].as_str().unwrap();
    let gone = test
        .until(&buyer, &format!("/api/seedbox/resources/{id}"), |resource| resource["status"] == "terminated")
        .await;
    assert!(gone["wipe_certificate"].is_object());
    test.idle().await;
    let account = test.get(&buyer, "/api/billing/account").await;
    assert_eq!((account["available_cents"].as_i64(), account["reserved_cents"].as_i64()), (Some(1700), Some(0)));
    let order = test.get(&buyer, &format!("/api/seedbox/orders/{}", order["id"].as_str().unwrap())).await;
    assert_eq!(order["status"], "cancelled");
    test.assert_sound().await;
}

#[tokio::test]
async fn a_lost_answer_makes_no_twin() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    test.world.provider.fail_next(Verb::Create, Error::Unknown("lost".to_owned()));
    test.world.provider.fail_next(Verb::Create, Error::transient("busy"));
    let id = test.active_box(&buyer, 1500).await;
    assert_eq!(test.world.provider.machines_made(id.parse().unwrap()), 1);
    test.assert_sound().await;
}

#[tokio::test]
async fn operators_say_why_and_a_hold_beats_them() {
    let test = TestApp::new().await;
    let (buyer, operator) = (test.customer().await, test.person(Role::Operator).await);
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/operator/resources/{id}");
    let silent = json!({ "suspend_reason": "abuse", "reason": " " });
    let (status, _) = test.call(Some(&operator), Method::POST, &format!("{path}/suspend"), Some(silent)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "an operator says why");
    test.post(&operator, &format!("{path}/suspend"), json!({ "suspend_reason": "abuse", "reason": "notice 17" })).await;
    let own = format!("/api/seedbox/resources/{id}");
    let suspended = test.until(&buyer, &own, |resource| resource["status"] == "suspended").await;
    assert_eq!(suspended["suspend_reason"], "abuse");
    let (resume, _) = test.call(Some(&buyer), Method::POST, &format!("{own}/resume"), None).await;
    assert_eq!(resume, StatusCode::CONFLICT, "its owner cannot lift it");
    let until = (test.app.now().0 + jiff::SignedDuration::from_hours(48)).to_string();
    test.post(&operator, &format!("{path}/hold"), json!({ "until": until, "reason": "under discussion" })).await;
    let end = json!({ "confirm_label": "Small", "end_reason": "abuse", "reason": "notice 17" });
    let (held, _) = test.call(Some(&operator), Method::POST, &format!("{path}/terminate"), Some(end.clone())).await;
    assert_eq!(held, StatusCode::CONFLICT, "a hold beats an end");
    test.post(&operator, &format!("{path}/hold"), json!({ "until": null, "reason": "settled" })).await;
    test.post(&operator, &format!("{path}/resume"), json!({ "reason": "settled" })).await;
    test.until(&buyer, &own, |resource| resource["status"] == "active").await;
    test.assert_sound().await;
}

#[tokio::test]
async fn a_stranger_gets_404_everywhere() {
    let test = TestApp::new().await;
    let (buyer, stranger) = (test.customer().await, test.customer().await);
    let id = test.active_box(&buyer, 1500).await;
    let order = test.get(&buyer, "/api/seedbox/orders").await[0]["id"].as_str().unwrap().to_owned();
    let topup = test.get(&buyer, "/api/billing/topups").await[0]["id"].as_str().unwrap().to_owned();
    let token =
        test.post(&buyer, "/api/auth/tokens", json!({ "name": "laptop" })).await["id"].as_str().unwrap().to_owned();
    let connection = test.post(&buyer, "/api/byos/connections", json!({ "host": "box.example" })).await;
    let connection = connection["id"].as_str().unwrap().to_owned();
    let description = test.call(None, Method::GET, "/openapi.json", None).await.1;
    let mut tried = 0;
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let open = operation["security"].as_array().is_some_and(|security| security.contains(&json!({})));
            let url = path.clone();
            let url = if path.ends_with("/upgrade") {
                url.replace("{id}", &id) + "?plan_id=" + &id
            } else if path.contains("/resources/") || path.contains("/nodes/") {
                url.replace("{id}", &id)
            } else if path.contains("/orders/") {
                url.replace("{id}", &order)
            } else if path.contains("/topups/") {
                url.replace("{id}", &topup)
            } else if path.contains("/connections/") {
                url.replace("{id}", &connection).replace("{command_id}", &connection)
            } else {
                url.replace("{id}", &token).replace("{provider}", "memory")
            };
            let body = match path.rsplit('/').next().unwrap() {
                "terminate" if path.contains("operator") => {
                    json!({ "confirm_label": "Small", "end_reason": "abuse", "reason": "x" })
                }
                "terminate" => json!({ "confirm_label": "Small" }),
                "priority" => json!({ "priority": 1 }),
                "upgrade" => json!({ "plan_id": id }),
                "confirm-host-key" => json!({ "fingerprint": "SHA256:x" }),
                "consent" => json!({ "gate_sha256": "x", "manifest_sha256": "x" }),
                "permission" => json!({ "reason": "written consent of 2026-11-02" }),
                "ready" => json!({ "state": "failed", "detail": "x" }),
                "run" => json!({ "action": "disk" }),
                _ => json!({}),
            };
            let method: Method = method.to_uppercase().parse().unwrap();
            let sent = (method != Method::GET).then_some(body);
            if !open {
                let (status, problem) = test.call(None, method.clone(), &url, sent.clone()).await;
                assert_eq!(status, StatusCode::UNAUTHORIZED, "nobody: {method} {path}");
                assert_eq!(problem["type"], "unauthorized", "nobody: {method} {path}");
            }
            if !open && method == Method::GET && !path.contains("{id}") && !path.contains("/operator/") {
                let (_, listed) = test.call(Some(&stranger), method.clone(), &url, None).await;
                let text = listed.to_string();
                for theirs in [&id, &order, &topup, &token, &buyer.id.to_string()] {
                    assert!(!text.contains(theirs.as_str()), "a stranger's {path} shows {theirs}");
                }
            }
            if path.contains("{id}") || path.contains("/operator/") {
                let (status, problem) = test.call(Some(&stranger), method.clone(), &url, sent).await;
                // A node has a token of its own, and a person's is none.
                let (refused, kind) = match path.contains("/nodes/") {
                    true => (StatusCode::UNAUTHORIZED, "unauthorized"),
                    false => (StatusCode::NOT_FOUND, "not-found"),
                };
                assert_eq!(status, refused, "a stranger: {method} {path}");
                assert_eq!(problem["type"], kind, "a stranger: {method} {path}");
                tried += 1;
            }
        }
    }
    assert!(tried >= 20, "only {tried} routes were tried");
    let resource = test.get(&buyer, &format!("/api/seedbox/resources/{id}")).await;
    assert_eq!(resource["status"], "active", "nothing a stranger tried had an effect");
}

#[tokio::test]
async fn two_copies_side_by_side_do_nothing_twice() {
    let world = crate::support::World::new().await;
    world.provider.set_build_polls(2);
    let copies = [world.start(true).await, world.start(true).await];
    let mut boxes = Vec::new();
    for n in 0..12 {
        let (here, there) = (&copies[n % 2], &copies[(n + 1) % 2]);
        let buyer = here.customer().await;
        let plan = here.plan(1500).await;
        // The order waits for the payment, and is paid by whichever copy hears of it first.
        let order = here.post(&buyer, "/api/seedbox/orders", json!({ "plan_id": plan })).await;
        there.top_up(&buyer, 1500).await;
        boxes.push((buyer, order["id"].as_str().unwrap().to_owned()));
    }
    for (n, (buyer, order)) in boxes.iter().enumerate() {
        let copy = &copies[n % 2];
        let order =
            copy.until(buyer, &format!("/api/seedbox/orders/{order}"), |order| order["status"] == "fulfilled").await;
        let path = format!("/api/seedbox/resources/{}", order["resource_id"].as_str().unwrap());
        for copy in &copies {
            // Asked of both at once: one operation, unless the first is over already.
            let (status, problem) =
                copy.call(Some(buyer), Method::POST, &format!("{path}/rotate-credentials"), Some(json!({}))).await;
            assert!([StatusCode::ACCEPTED, StatusCode::CONFLICT].contains(&status), "{status} {problem}");
        }
        copy.until(buyer, &path, |resource| resource["operations"] == json!([])).await;
        copy.post(buyer, &format!("{path}/terminate"), json!({ "confirm_label": "Small" })).await;
        copy.until(buyer, &path, |resource| resource["status"] == "terminated").await;
        let id = order["resource_id"].as_str().unwrap().parse().unwrap();
        assert_eq!(world.provider.machines_made(id), 1);
    }
    copies[0].idle().await;
    let repeated: i64 = sqlx::query_scalar(
        "select count(*) from (
             select resource_id, operation from provision_attempts where status = 'done' and operation in ('create', 'terminate')
             group by 1, 2 having count(*) > 1
             union all
             select subject_id, action from seedbox_audit_events where action in ('resource.active', 'resource.terminated')
             group by 1, 2 having count(*) > 1
             union all
             select user_id, kind from notices where kind in ('box_ready', 'box_terminated') group by 1, 2 having count(*) > 1
         ) twice",
    )
    .fetch_one(&copies[0].app.pool)
    .await
    .unwrap();
    assert_eq!(repeated, 0);
    assert_eq!(world.provider.calls(Verb::Create), 12, "each machine was asked for once");
    assert_eq!(world.provider.calls(Verb::Terminate), 12, "each end was asked for once");
    copies[0].assert_sound().await;
}

#[tokio::test]
async fn an_end_for_abuse_holds_the_balance_and_nothing_is_bought_from_it() {
    let test = TestApp::new().await;
    let (buyer, operator) = (test.customer().await, test.person(Role::Operator).await);
    let (bad, good) = (test.active_box(&buyer, 1500).await, test.active_box(&buyer, 1500).await);
    let (plan, large) = (test.plan(1000).await, test.plan_of("Large", "large", 3000).await);
    test.top_up(&buyer, 5000).await;
    let end = json!({ "confirm_label": "Small", "end_reason": "abuse", "reason": "notice 17" });
    test.post(&operator, &format!("/api/operator/resources/{bad}/terminate"), end).await;
    test.until(&buyer, &format!("/api/seedbox/resources/{bad}"), |resource| resource["status"] == "terminated").await;
    let customer = format!("/api/operator/customers/{}", buyer.id);
    let held: Option<String> =
        sqlx::query_scalar("select payout_hold_reason from seedbox_billing_accounts where user_id = $1")
            .bind(buyer.id.0)
            .fetch_one(&test.app.pool)
            .await
            .unwrap();
    assert_eq!(held.as_deref(), Some("abuse: notice 17"));
    assert_eq!(test.get(&buyer, "/api/billing/account").await["paid_cents"], 5000, "held, not taken");
    let order = json!({ "plan_id": plan });
    for (path, body) in [
        ("/api/seedbox/orders".to_owned(), order.clone()),
        (format!("/api/seedbox/resources/{good}/upgrade"), json!({ "plan_id": large })),
    ] {
        let (status, problem) = test.call(Some(&buyer), Method::POST, &path, Some(body)).await;
        assert_eq!(status, StatusCode::CONFLICT, "{path}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains("held"), "{problem}");
    }
    let release = json!({ "reason": "it was not theirs" });
    test.post(&operator, &format!("{customer}/release-balance"), release).await;
    let order = test.post(&buyer, "/api/seedbox/orders", order).await;
    assert!(order["resource_id"].is_string(), "{order}");
    test.idle().await;
    test.assert_sound().await;
}

/// The one-time links in the mails of the inbox, newest mail first.
async fn links(test: &TestApp) -> Vec<String> {
    let inbox = test.http.get(format!("{}/trial/inbox", test.base)).send().await.unwrap().text().await.unwrap();
    inbox
        .split("href=\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .filter(|url| url.contains("/link/"))
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn a_link_opens_the_password_it_was_made_for_and_no_newer_one() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    test.until_handed("box_ready", 1).await;
    let old = links(&test).await;
    assert_eq!(old.len(), 1, "{old:?}");
    test.post(&buyer, &format!("{path}/rotate-credentials"), json!({})).await;
    test.until_handed("credentials_rotated", 1).await;
    let open = async |url: &str| {
        let answer = test.http.post(url).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    };
    let (status, page) = open(&old[0]).await;
    assert_eq!(status, StatusCode::GONE, "{page}");
    assert!(page.contains("replaced since") && !page.contains("<dt>Password</dt>"), "{page}");
    assert_eq!(test.get(&buyer, &path).await["credentials_shown"], false, "the new password was not used up");
    let new: Vec<String> = links(&test).await.into_iter().filter(|url| !old.contains(url)).collect();
    // Looking opens nothing: mail scanners look too.
    let looked = test.http.get(&new[0]).send().await.unwrap();
    assert_eq!(looked.status(), StatusCode::OK);
    assert!(!looked.text().await.unwrap().contains("<dt>Password</dt>"));
    let (status, page) = open(&new[0]).await;
    assert!(status == StatusCode::OK && page.contains("<dt>Password</dt>"), "{status} {page}");
    assert_eq!(open(&new[0]).await.0, StatusCode::GONE, "once");
    assert_eq!(open(&format!("{}/link/spl_made-up", test.base)).await.0, StatusCode::GONE);
}

#[tokio::test]
async fn cancelling_while_it_is_made_gives_back_every_cent() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    test.world.provider.set_build_polls(u32::MAX);
    let plan = test.plan(1500).await;
    test.top_up(&buyer, 1500).await;
    let order = test.post(&buyer, "/api/seedbox/orders", json!({ "plan_id": plan })).await;
    let path = format!("/api/seedbox/resources/{}", order["resource_id"].as_str().unwrap());
    test.until(&buyer, &path, |resource| resource["status"] == "provisioning").await;
    test.post(&buyer, &format!("{path}/terminate"), json!({ "confirm_label": "Small" })).await;
    let ended = test.until(&buyer, &path, |resource| resource["status"] == "terminated").await;
    assert!(ended["wipe_certificate"].is_object());
    let events = test.get(&buyer, &format!("{path}/events")).await;
    let failed = events.as_array().unwrap().iter().find(|event| event["action"] == "resource.failed").unwrap();
    assert_eq!(failed["after"]["reason"], "cancelled");
    test.idle().await;
    let account = test.get(&buyer, "/api/billing/account").await;
    assert_eq!((account["available_cents"].as_i64(), account["reserved_cents"].as_i64()), (Some(1500), Some(0)));
    let order = test.get(&buyer, &format!("/api/seedbox/orders/{}", order["id"].as_str().unwrap())).await;
    assert_eq!(order["status"], "cancelled");
    test.assert_sound().await;
}

#[tokio::test]
async fn out_of_tries_the_box_is_left_and_an_operator_told_but_a_wipe_is_never_given_up() {
    let test = TestApp::new().await;
    let (buyer, operator) = (test.customer().await, test.person(Role::Operator).await);
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    let fail = |verb, times| {
        for _ in 0..times {
            let at_once = Some(std::time::Duration::from_millis(1));
            test.world.provider.fail_next(verb, Error::Transient { message: "busy".to_owned(), retry_after: at_once });
        }
    };
    let told = async |kind: &str| {
        let alerts = test.get(&operator, "/api/operator/alerts").await;
        assert!(
            alerts.as_array().unwrap().iter().any(|alert| alert["kind"] == kind && alert["subject"] == id),
            "{alerts}"
        );
        let body = json!({ "kind": kind, "subject": id, "reason": "seen" });
        test.post(&operator, "/api/operator/alerts/resolve", body).await;
    };
    let over = |resource: &serde_json::Value| resource["operations"] == json!([]);

    fail(Verb::Suspend, 12);
    test.post(&buyer, &format!("{path}/suspend"), json!({})).await;
    assert_eq!(test.until(&buyer, &path, over).await["status"], "active");
    told("operation_failed").await;
    test.post(&buyer, &format!("{path}/suspend"), json!({})).await;
    test.until(&buyer, &path, |resource| resource["status"] == "suspended").await;

    fail(Verb::Resume, 12);
    test.post(&buyer, &format!("{path}/resume"), json!({})).await;
    assert_eq!(test.until(&buyer, &path, over).await["status"], "suspended");
    told("operation_failed").await;

    fail(Verb::Terminate, 13);
    test.post(&buyer, &format!("{path}/terminate"), json!({ "confirm_label": "Small" })).await;
    test.until(&buyer, &path, |resource| resource["status"] == "terminated").await;
    told("wipe_failing").await;
    assert_eq!(test.world.provider.calls(Verb::Terminate), 14);
    test.assert_sound().await;
}

#[tokio::test]
async fn an_operators_end_gives_back_what_its_reason_says() {
    let test = TestApp::new().await;
    let to = async |at: &str| {
        let at: jiff::Timestamp = at.parse().unwrap();
        test.advance(at.duration_since(test.app.clock.now())).await;
    };
    to("2027-04-01T10:00:00Z").await;
    let operator = test.person(Role::Operator).await;
    let mut boxes = Vec::new();
    for (reason, back) in [("fault", 500), ("operator", 500), ("abuse", 0)] {
        let buyer = test.customer().await;
        boxes.push((test.active_box(&buyer, 1500).await, buyer, reason, back));
    }
    to("2027-04-20T10:00:00Z").await;
    for (id, buyer, reason, back) in &boxes {
        let end = json!({ "confirm_label": "Small", "end_reason": reason, "reason": "decided" });
        test.post(&operator, &format!("/api/operator/resources/{id}/terminate"), end).await;
        let path = format!("/api/seedbox/resources/{id}");
        test.until(buyer, &path, |resource| resource["status"] == "terminated").await;
        assert_eq!(test.get(buyer, "/api/billing/account").await["available_cents"], *back, "{reason}");
    }
    test.assert_sound().await;
}

#[tokio::test]
async fn an_event_names_the_request_it_came_with() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    let request = test.http.post(format!("{}/api/seedbox/resources/{id}/suspend", test.base));
    let request = request.bearer_auth(&buyer.token).header("x-request-id", "ticket-17").json(&json!({}));
    assert_eq!(request.send().await.unwrap().status(), StatusCode::ACCEPTED);
    let named: Vec<String> =
        sqlx::query_scalar("select action from seedbox_audit_events where request_id = 'ticket-17' order by id")
            .fetch_all(&test.app.pool)
            .await
            .unwrap();
    assert_eq!(named, ["resource.suspend_requested"]);
}

#[tokio::test]
async fn the_last_mail_says_what_went_back_to_the_balance() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    test.post(&buyer, &format!("{path}/terminate"), json!({ "confirm_label": "Small" })).await;
    let ended = test.until(&buyer, &path, |resource| resource["status"] == "terminated").await;
    test.until_handed("box_terminated", 1).await;
    let back = test.get(&buyer, "/api/billing/account").await["paid_cents"].as_i64().unwrap();
    assert!(back > 0, "ended in its first days");
    let inbox = test.http.get(format!("{}/trial/inbox", test.base)).send().await.unwrap().text().await.unwrap();
    let words =
        format!("{} of what you had paid for it went back to your balance", seedplane::money::Usd::from_cents(back));
    assert!(inbox.contains(&words), "{words}: {inbox}");
    assert_eq!(ended["wipe_certificate"]["finished_at"], ended["terminated_at"]);
}
