//! What an API token may be used for, on every route there is.

use reqwest::Method;
use seedplane::accounts::{Needed, Role, Scope, needed};
use serde_json::{Value, json};

use crate::support::{Person, TestApp};

/// What each part of the API needs, written down once more. What no row is for fails the test.
fn expected(method: &Method, path: &str) -> Option<&'static [&'static str]> {
    let reads = method == Method::GET;
    let area: &[(&str, &[&str], &[&str])] = &[
        ("/api/auth/password", &[], &[]),
        ("/api/auth/sessions", &["read", "account"], &["account"]),
        ("/api/auth/sign-out", &[], &["account"]),
        ("/api/auth/tokens", &["read", "account"], &["account"]),
        ("/api/auth/totp", &["read", "account"], &[]),
        ("/api/billing/", &["read", "money"], &["money"]),
        ("/api/byos/", &["read", "servers"], &["servers"]),
        ("/api/operator/", &["operator"], &["operator"]),
        ("/api/seedbox/", &["read", "boxes"], &["boxes"]),
        ("/api/trial/sign-in-links", &[], &[]),
    ];
    let (_, read, write) = area.iter().find(|(start, ..)| path.starts_with(start))?;
    Some(if reads { read } else { write })
}

#[tokio::test]
async fn a_token_reaches_what_its_scopes_are_for_and_nothing_else() {
    let test = TestApp::new().await;
    let owner = test.person(Role::Owner).await;
    let mut tokens = Vec::new();
    for scope in Scope::ALL {
        let made = test.post(&owner, "/api/auth/tokens", json!({ "name": scope, "scopes": [scope] })).await;
        assert_eq!(made["scopes"], json!([scope]));
        tokens.push((scope.as_str(), Person { id: owner.id, token: made["token"].as_str().unwrap().to_owned() }));
    }
    let description = test.call(None, Method::GET, "/openapi.json", None).await.1;
    let (mut tried, mut refused) = (0, 0);
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let open = operation["security"].as_array().is_some_and(|security| security.contains(&json!({})));
            // Nodes and webhooks have credentials of their own, which are no person's.
            if open || path.starts_with("/api/nodes/") || path.starts_with("/api/webhooks/") {
                continue;
            }
            let wanted = expected(&method, path)
                .unwrap_or_else(|| panic!("nothing says which scope {method} {path} needs: write it down here"));
            match needed(&method, path) {
                Some(Needed::OneOf(scopes)) => {
                    let words: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
                    assert_eq!(words, wanted, "{method} {path}");
                }
                Some(Needed::Session) => assert!(wanted.is_empty(), "{method} {path}"),
                None => panic!("no token reaches {method} {path}"),
            }
            for (scope, person) in &tokens {
                // The last thing a token does.
                if path == "/api/auth/sign-out" && *scope == "account" {
                    continue;
                }
                let url = path
                    .replace("{id}", &uuid::Uuid::nil().to_string())
                    .replace("{command_id}", &uuid::Uuid::nil().to_string());
                let url = url.replace("{provider}", "memory");
                let body = (method != Method::GET).then(|| json!({}));
                let (status, answer) = test.call(Some(person), method.clone(), &url, body).await;
                let kind = answer["type"].as_str().unwrap_or_default();
                let reached = !["scope-missing", "session-needed", "unauthorized"].contains(&kind);
                assert_eq!(reached, wanted.contains(scope), "{scope}: {method} {path}: {status} {answer}");
                if !reached {
                    assert_eq!(status, 403, "{scope}: {method} {path}");
                    assert_eq!(kind == "session-needed", wanted.is_empty(), "{method} {path}");
                    let detail = answer["detail"].as_str().unwrap();
                    assert!(wanted.iter().all(|scope| detail.contains(&format!("`{scope}`"))), "{detail}");
                    refused += 1;
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 200 && refused > 100, "{tried} tried, {refused} refused");
    let kept = test.get(&owner, "/api/auth/tokens").await;
    assert_eq!(kept.as_array().unwrap().len(), 1 + tokens.len(), "nothing that was refused had an effect");
}

#[tokio::test]
async fn a_token_makes_no_token_that_may_do_more() {
    let test = TestApp::new().await;
    let (buyer, operator) = (test.customer().await, test.person(Role::Operator).await);
    let make = async |person: &Person, scopes: Value| {
        let body = match scopes {
            Value::Null => json!({ "name": "x" }),
            scopes => json!({ "name": "x", "scopes": scopes }),
        };
        let (status, made) = test.call(Some(person), Method::POST, "/api/auth/tokens", Some(body)).await;
        (status.as_u16(), made)
    };
    let holder = |made: &Value| Person { id: buyer.id, token: made["token"].as_str().unwrap().to_owned() };
    let (_, whole) = make(&buyer, Value::Null).await;
    assert_eq!(whole["scopes"], json!(["read", "boxes", "money", "servers", "account"]), "all that a customer has");
    assert_eq!(make(&operator, Value::Null).await.1["scopes"].as_array().unwrap().len(), Scope::ALL.len());
    let (_, few) = make(&buyer, json!(["account", "read", "read"])).await;
    assert_eq!(few["scopes"], json!(["read", "account"]));
    let few = holder(&few);
    assert_eq!(make(&few, Value::Null).await.1["scopes"], json!(["read", "account"]), "all that it has itself");
    for (person, scopes, status, kind) in [
        (&few, json!(["read", "money"]), 403, "scope-missing"),
        (&buyer, json!(["operator"]), 403, "scope-missing"),
        (&buyer, json!([]), 422, "bad-input"),
        (&buyer, json!(["everything"]), 422, "bad-input"),
    ] {
        let (answered, problem) = make(person, scopes.clone()).await;
        assert_eq!((answered, problem["type"].as_str()), (status, Some(kind)), "{scopes}: {problem}");
    }
    // A customer's token learns nothing of the operators' routes, whatever its scopes.
    let (status, problem) = test.call(Some(&few), Method::GET, "/api/operator/alerts", None).await;
    assert_eq!((status.as_u16(), problem["type"].as_str()), (404, Some("not-found")));
    // What is for everybody is for a token too.
    let (status, _) = test.call(Some(&few), Method::GET, "/api/seedbox/plans", None).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn tokens_from_before_there_were_scopes_go_on_with_all_of_them() {
    use sqlx::{Connection, Executor};
    let mut owner = sqlx::PgConnection::connect(&crate::support::empty_database().await).await.unwrap();
    let mut files: Vec<_> = std::fs::read_dir("migrations").unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    for file in files {
        if file.ends_with("20261125000182_token_scopes.sql") {
            owner
                .execute(
                    "insert into users (id, email, role, created_at) select gen_random_uuid(), r || '@example.org', r, now()
                         from unnest(array['customer', 'support', 'operator', 'owner']) r;
                     insert into api_tokens (id, user_id, name, token_hash, created_at)
                         select gen_random_uuid(), id, 'x', sha256(email::bytea), now() from users;",
                )
                .await
                .unwrap();
        }
        owner.execute(sqlx::AssertSqlSafe(std::fs::read_to_string(file).unwrap())).await.unwrap();
    }
    let kept: Vec<(String, i32)> = sqlx::query_as(
        "select u.role, cardinality(t.scopes) from api_tokens t join users u on u.id = t.user_id order by u.role",
    )
    .fetch_all(&mut owner)
    .await
    .unwrap();
    let kept: Vec<(&str, i32)> = kept.iter().map(|(role, scopes)| (role.as_str(), *scopes)).collect();
    assert_eq!(kept, [("customer", 5), ("operator", 6), ("owner", 6), ("support", 6)]);
}

#[tokio::test]
async fn an_api_token_in_a_cookie_opens_no_page() {
    let test = TestApp::new().await;
    let body = json!({ "email": "somebody@example.org", "password": "a long enough password" });
    let (_, opened) = test.call(None, Method::POST, "/api/auth/sign-up", Some(body)).await;
    let session = opened["token"].as_str().unwrap();
    let buyer = Person { id: seedplane::ids::UserId::new(), token: session.to_owned() };
    let made = test.post(&buyer, "/api/auth/tokens", json!({ "name": "x" })).await;
    let browser = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    for (token, status) in [(session, 200), (made["token"].as_str().unwrap(), 303)] {
        let request =
            browser.get(format!("{}/seedbox", test.base)).header("cookie", format!("seedplane-session={token}"));
        assert_eq!(request.send().await.unwrap().status(), status);
    }
}
