//! Who may do what: every route there is, API and pages, tried by nobody, by another customer, by support and by an operator,
//! on things that belong to somebody else. What each is answered is written down in `access.txt`; a route without a line there
//! fails the test. `PRINT=1` prints the table as it is, to be read before it is believed.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::{Client, Method, StatusCode, redirect::Policy};
use secrecy::{ExposeSecret, SecretString};
use seedplane::{
    accounts::{self, Role, SignIn},
    ids::UserId,
    pages,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Person, TestApp, World};

const WRITTEN_DOWN: &str = include_str!("access.txt");

/// The things of their owner that the routes are tried on.
struct Things {
    ids: BTreeMap<&'static str, String>,
    owner: UserId,
    plan: String,
}

async fn things(test: &TestApp) -> Things {
    let owner = test.customer().await;
    let resource = test.active_box(&owner, 1500).await;
    let plan = test.get(&owner, &format!("/api/seedbox/resources/{resource}")).await["plan_id"].clone();
    let order = test.post(&owner, "/api/seedbox/orders", json!({ "plan_id": plan })).await;
    let topup = test.post(&owner, "/api/billing/topups", json!({ "amount_cents": 500 })).await;
    let token = test.post(&owner, "/api/auth/tokens", json!({ "name": "mine" })).await;
    let server = test.post(&owner, "/api/byos/connections", json!({ "host": "203.0.113.7" })).await;
    let report = json!({
        "kind": "attack", "name": "x", "email": "x@example.org", "location": "x", "details": "x", "accurate": "yes",
    });
    let sent = test.http.post(format!("{}/abuse", test.base)).form(&report).send().await.unwrap();
    assert!(sent.status().is_success());
    let reports = test.get(&test.person(Role::Operator).await, "/api/operator/reports").await;
    let text = |value: &Value| value["id"].as_str().unwrap().to_owned();
    let ids = BTreeMap::from([
        ("resource", resource),
        ("order", text(&order)),
        ("topup", text(&topup)),
        ("token", text(&token)),
        ("server", text(&server)),
        ("report", text(&reports[0])),
    ]);
    test.idle().await;
    Things { ids, owner: owner.id, plan: plan.as_str().unwrap().to_owned() }
}

impl Things {
    /// A path with the owner's things in it.
    fn fill(&self, path: &str) -> String {
        let of = |word: &str| self.ids[word].clone();
        let id = match path {
            _ if path.contains("/resources/") || path.contains("/boxes/") || path.contains("/nodes/") => of("resource"),
            _ if path.contains("/orders/") => of("order"),
            _ if path.contains("/topups/") || path.contains("/payments/") => of("topup"),
            _ if path.contains("/tokens/") => of("token"),
            _ if path.contains("/connections/") || path.contains("/servers/") => of("server"),
            _ if path.contains("/reports/") => of("report"),
            _ if path.contains("/customers/") => self.owner.to_string(),
            _ => Uuid::nil().to_string(),
        };
        path.replace("{id}", &id)
            .replace("{command_id}", &Uuid::nil().to_string())
            .replace("{token}", "spl_nobody")
            .replace("{version}", "0")
            .replace("{name}", "app.css")
    }

    /// Everything that a form or a body may hold, so that nobody is refused for what they left out.
    fn body(&self, path: &str) -> Value {
        let new = Uuid::now_v7();
        if !path.starts_with("/api/") {
            return json!({
                "form_id": new, "plan_id": self.plan, "when": "later", "amount": "5", "host": "203.0.113.8", "port": "22",
                "label": "x", "access": "key", "action": "disk", "fingerprint": "SHA256:x", "gate_sha256": "x",
                "manifest_sha256": "x", "days": "1", "reason": "tried", "suspend_reason": "operator", "end_reason": "operator",
                "confirm_label": "x", "id": "1", "kind": "x", "subject": "x", "order": "x", "terms": "x",
                "email": format!("{new}@example.org"), "password": "a wrong password", "current": "a wrong password",
                "new": "a long enough password", "name": "x", "scope": "read",
                "code": "x", "price": "1", "provider": "nowhere", "size": "x", "disk_gb": "1", "outcome": "rejected",
            });
        }
        let reason = "tried";
        match path {
            "/api/auth/sign-in" | "/api/auth/sign-up" => {
                json!({ "email": "nobody@example.org", "password": "a wrong" })
            }
            "/api/auth/password" => json!({ "current_password": "a wrong one", "new_password": "a long enough one" }),
            "/api/auth/password-reset" => json!({ "email": format!("{new}@example.org") }),
            "/api/auth/password-reset/complete" => json!({ "token": "x", "new_password": "a long enough one" }),
            "/api/auth/totp" => json!({ "password": "a wrong one", "code": "000000" }),
            "/api/auth/totp/confirm" => json!({ "code": "000000" }),
            "/api/auth/tokens" => json!({ "name": "tried" }),
            "/api/seedbox/orders" => json!({ "plan_id": Uuid::nil() }),
            "/api/billing/topups" => json!({ "amount_cents": 1 }),
            "/api/byos/connections" => json!({ "host": "not a host" }),
            "/api/trial/clock" => json!({ "seconds": 0 }),
            "/api/operator/alerts/resolve" => json!({ "kind": "x", "subject": "x", "reason": reason }),
            "/api/operator/plans" => json!({}),
            "/api/operator/mass-actions" => {
                json!({ "change": { "action": "resume" }, "resource_ids": [], "reason": reason })
            }
            "/api/operator/reports/{id}/close" => json!({ "outcome": "rejected", "reason": reason }),
            _ if path.ends_with("/upgrade") => json!({ "plan_id": self.plan }),
            _ if path.starts_with("/api/seedbox/") && path.ends_with("/terminate") => json!({ "confirm_label": "x" }),
            _ if path.ends_with("/priority") => json!({ "priority": 2 }),
            _ if path.ends_with("/confirm-host-key") => json!({ "fingerprint": "x" }),
            _ if path.ends_with("/consent") => json!({ "gate_sha256": "x", "manifest_sha256": "x" }),
            _ if path.ends_with("/run") => json!({ "action": "disk" }),
            _ if path.ends_with("/hold") => json!({ "until": null, "reason": reason }),
            _ if path.contains("/operator/") && path.ends_with("/suspend") => {
                json!({ "suspend_reason": "operator", "reason": reason })
            }
            _ if path.contains("/operator/resources") && path.ends_with("/terminate") => {
                json!({ "confirm_label": "x", "end_reason": "operator", "reason": reason })
            }
            _ if path.ends_with("/refund") || path.ends_with("/promotion") || path.ends_with("/payouts") => {
                json!({ "amount_cents": 1, "reason": reason })
            }
            _ if path.ends_with("/resolve") => json!({ "resolution": { "dismiss": {} }, "reason": reason }),
            _ if path.ends_with("/sent") => json!({ "transaction_id": "0x1", "reason": reason }),
            _ if path.contains("/operator/") => json!({ "reason": reason }),
            _ => json!({}),
        }
    }
}

/// Every route: of the API by its description, of the pages by their list.
async fn routes(test: &TestApp) -> BTreeSet<(String, String)> {
    let description = test.call(None, Method::GET, "/openapi.json", None).await.1;
    let mut routes = BTreeSet::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys().filter(|name| !name.starts_with('x') && *name != "parameters")
        {
            routes.insert((path.clone(), method.to_uppercase()));
        }
    }
    routes.extend(pages::listed().into_iter().map(|(method, path)| (path.to_owned(), method.to_string())));
    routes
}

/// Somebody new with a session, which is good for pages and the API alike.
async fn signed_in(test: &TestApp, role: Role) -> Person {
    let person = test.person(role).await;
    let email = accounts::email_of(&test.app.pool, person.id).await.unwrap().unwrap();
    let password = SecretString::from("a long enough password");
    let sign_in = SignIn { email: &email, password, code: None, from: "test", user_agent: None };
    let opened = accounts::sign_in(&test.app, sign_in).await.unwrap();
    Person { id: person.id, token: opened.token.expose_secret().to_owned() }
}

async fn try_it(
    http: &Client,
    test: &TestApp,
    things: &Things,
    route: &(String, String),
    who: Option<&Person>,
) -> StatusCode {
    let (path, method) = route;
    let is_page = !path.starts_with("/api/");
    let query = match path.as_str() {
        "/seedbox/order" => format!("?plan={}", things.plan),
        "/api/operator/customers" => "?email=nobody@example.org".to_owned(),
        "/api/seedbox/resources/{id}/upgrade" if method == "GET" => format!("?plan_id={}", things.plan),
        _ => String::new(),
    };
    let url = format!("{}{}{query}", test.base, things.fill(path));
    // Each from an address of their own: limits are tried elsewhere.
    let from = std::net::Ipv6Addr::from(rand::random::<u128>()).to_string();
    let mut request = http.request(method.parse().unwrap(), url).header("x-forwarded-for", from);
    if let Some(person) = who {
        request = match is_page {
            true => request.header("cookie", format!("seedplane-session={}", person.token)),
            false => request.bearer_auth(&person.token),
        };
    }
    if method != "GET" && (method != "DELETE" || path == "/api/auth/totp") {
        let body = things.body(path);
        request = if is_page { request.form(&body) } else { request.json(&body) };
    }
    request.send().await.unwrap().status()
}

#[tokio::test]
async fn everybody_is_answered_what_is_written_down() {
    let world = World::new().await;
    let first = world.start(true).await;
    let things = things(&first).await;
    drop(first);
    // Nothing is carried out while it is tried: what one may do does not depend on who came before.
    let test = world.start(false).await;
    let http = Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
    let mut people = vec![None];
    for role in [Role::Customer, Role::Support, Role::Operator] {
        people.push(Some((role, signed_in(&test, role).await)));
    }
    let written: BTreeMap<(String, String), Vec<String>> = WRITTEN_DOWN
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .map(|line| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            ((words[1].clone(), words[0].clone()), words[2..].to_vec())
        })
        .collect();
    let mut wrong = Vec::new();
    let mut table = String::new();
    let routes = routes(&test).await;
    assert!(routes.len() > 120, "{}", routes.len());
    for route in &routes {
        let mut answered = Vec::new();
        for person in &mut people {
            let status = try_it(&http, &test, &things, route, person.as_ref().map(|(_, person)| person)).await;
            answered.push(status.as_u16().to_string());
            // Whoever has ended their own session by it comes again.
            if let Some((role, person)) = person {
                let good = accounts::authenticate(&test.app.pool, &person.token, test.app.now()).await.unwrap();
                if good.is_none() {
                    *person = signed_in(&test, *role).await;
                }
            }
        }
        table.push_str(&format!("{:6} {:58} {}\n", route.1, route.0, answered.join(" ")));
        match written.get(route) {
            None => wrong.push(format!("{} {} is not written down: {}", route.1, route.0, answered.join(" "))),
            Some(expected) if *expected != answered => wrong.push(format!(
                "{} {}: written down {}, answered {}",
                route.1,
                route.0,
                expected.join(" "),
                answered.join(" ")
            )),
            Some(_) => {}
        }
    }
    for route in written.keys().filter(|route| !routes.contains(route)) {
        wrong.push(format!("{} {} is written down and is no route", route.1, route.0));
    }
    if std::env::var_os("PRINT").is_some() {
        println!("{table}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // What somebody else tried has changed nothing of its owner's.
    let owner_events: i64 = sqlx::query_scalar(
        "select count(*) from seedbox_audit_events where resource_id = $1 and actor like 'user:%' and actor <> 'user:' || $2::text",
    )
    .bind(Uuid::parse_str(&things.ids["resource"]).unwrap())
    .bind(things.owner.0)
    .fetch_one(&test.app.pool)
    .await
    .unwrap();
    assert_eq!(owner_events, 0);
}
