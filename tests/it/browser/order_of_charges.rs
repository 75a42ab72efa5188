//! Which box is charged first, set by dragging: with a mouse, with a finger, and called off with Escape.

use std::time::Duration;

use fantoccini::{
    Locator,
    actions::{InputSource, KeyAction, KeyActions, MOUSE_BUTTON_LEFT, MouseActions, PointerAction, TouchActions},
    elements::Element,
    key::Key,
};
use seedplane::accounts;
use serde_json::json;

use super::Browser;
use crate::support::TestApp;

/// The boxes, as the page lists them.
async fn listed(browser: &Browser) -> Vec<String> {
    let mut names = Vec::new();
    for link in browser.client.find_all(Locator::Css("#order li a")).await.unwrap() {
        names.push(link.text().await.unwrap());
    }
    names
}

async fn until_listed(browser: &Browser, expected: [&str; 3]) {
    let started = std::time::Instant::now();
    loop {
        // While a page is loaded its rows come and go.
        let rows = browser.client.find_all(Locator::Css("#order li a")).await.unwrap_or_default();
        let mut names = Vec::new();
        for row in rows {
            names.push(row.text().await.unwrap_or_default());
        }
        if names == expected {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{names:?} and not {expected:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The grip of a row, and the row of another.
async fn hold_and_aim(browser: &Browser, held: usize, aim: usize) -> (Element, Element) {
    browser.find(".grip").await;
    browser.client.execute("document.getElementById('order').scrollIntoView()", Vec::new()).await.unwrap();
    let all = async |css| browser.client.find_all(Locator::Css(css)).await.unwrap();
    (all("#order .grip").await.swap_remove(held), all("#order li").await.swap_remove(aim))
}

/// Takes a grip, and moves past the middle of a row in steps, as hands do.
fn from_to<A: InputSource<Action = PointerAction>>(hand: A, (from, to): &(Element, Element), past: f64) -> A {
    let at = |element: &Element, y: f64| PointerAction::MoveToElement {
        element: element.clone(),
        duration: Some(Duration::from_millis(80)),
        x: 0.0,
        y,
    };
    hand.then(at(from, 0.0))
        .then(PointerAction::Down { button: MOUSE_BUTTON_LEFT })
        .then(at(to, 0.0))
        .then(at(to, past))
}

#[tokio::test(flavor = "multi_thread")]
async fn boxes_are_dragged_into_the_order_in_which_they_are_charged() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    test.top_up(&buyer, 6000).await;
    for name in ["Ash", "Birch", "Cedar"] {
        let plan = test.plan_of(name, "small", 1500).await;
        let order = test.post(&buyer, "/api/seedbox/orders", json!({ "plan_id": plan })).await;
        let path = format!("/api/seedbox/resources/{}", order["resource_id"].as_str().unwrap());
        test.until(&buyer, &path, |resource| resource["status"] == "active").await;
    }
    let mut browser = Browser::open(&test.base, "order").await;
    browser.go("/sign-in?next=/seedbox/money").await;
    let email = accounts::email_of(&test.app.pool, buyer.id).await.unwrap().unwrap();
    browser.fill("#email", &email).await;
    browser.fill("#password", "a long enough password").await;
    browser.find("main button").await.click().await.unwrap();
    browser.until("Drag a box by its handle").await;
    assert_eq!(listed(&browser).await, ["Ash", "Birch", "Cedar"]);

    // The last to the top, with a mouse.
    let up = hold_and_aim(&browser, 2, 0).await;
    let drag = from_to(MouseActions::new("mouse".to_owned()), &up, -8.0);
    browser.client.perform_actions(drag.then(PointerAction::Up { button: MOUSE_BUTTON_LEFT })).await.unwrap();
    until_listed(&browser, ["Cedar", "Ash", "Birch"]).await;
    browser.client.release_actions().await.unwrap();
    browser.go("/seedbox/money").await;
    assert_eq!(listed(&browser).await, ["Cedar", "Ash", "Birch"], "it is kept");

    // Called off while the box is in the hand: everything is as it was, and nothing was sent.
    let down = hold_and_aim(&browser, 0, 2).await;
    let drag = from_to(MouseActions::new("mouse".to_owned()), &down, 8.0);
    browser.client.perform_actions(drag).await.unwrap();
    assert_eq!(listed(&browser).await, ["Ash", "Birch", "Cedar"], "it moves with the hand");
    browser.looked_at("dragged").await;
    let keys = KeyActions::new("keys".to_owned());
    let escape =
        keys.then(KeyAction::Down { value: Key::Escape.into() }).then(KeyAction::Up { value: Key::Escape.into() });
    browser.client.perform_actions(escape).await.unwrap();
    assert_eq!(listed(&browser).await, ["Cedar", "Ash", "Birch"]);
    browser.client.release_actions().await.unwrap();
    browser.go("/seedbox/money").await;
    assert_eq!(listed(&browser).await, ["Cedar", "Ash", "Birch"]);

    // With a finger, one down; and with the buttons, as ever.
    let down = hold_and_aim(&browser, 0, 1).await;
    let drag = from_to(TouchActions::new("finger".to_owned()), &down, 8.0);
    browser.client.perform_actions(drag.then(PointerAction::Up { button: MOUSE_BUTTON_LEFT })).await.unwrap();
    until_listed(&browser, ["Ash", "Cedar", "Birch"]).await;
    browser.client.release_actions().await.unwrap();
    browser.find("button[aria-label='Move Birch up']").await.click().await.unwrap();
    until_listed(&browser, ["Ash", "Birch", "Cedar"]).await;
    browser.go("/seedbox/money").await;
    browser.looked_at("money").await;
    let mut kept: Vec<(i64, String)> = test
        .get(&buyer, "/api/seedbox/resources")
        .await
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["priority"].as_i64().unwrap(), one["label"].as_str().unwrap().to_owned()))
        .collect();
    kept.sort();
    assert_eq!(kept, [(1, "Ash".to_owned()), (2, "Birch".to_owned()), (3, "Cedar".to_owned())]);
    browser.close().await;
}
