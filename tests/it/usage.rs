//! What a box uses, and another start of its client.

use jiff::SignedDuration;
use reqwest::{Method, StatusCode};
use seedplane::{usage, workers::reconciler};
use seedplane_provisioning::{Error, memory::Verb};
use serde_json::{Value, json};

use crate::support::{Person, TestApp, World};

const GB: u64 = 1_000_000_000;

struct Counted {
    test: TestApp,
    buyer: Person,
    id: String,
}

impl Counted {
    /// A box that was looked at once.
    async fn new(test: TestApp) -> Self {
        let buyer = test.customer().await;
        let id = test.active_box(&buyer, 1500).await;
        let counted = Self { test, buyer, id };
        counted.test.until(&counted.buyer, &counted.path("usage"), |usage| usage["now"].is_object()).await;
        counted
    }

    fn path(&self, what: &str) -> String {
        format!("/api/seedbox/resources/{}/{what}", self.id)
    }

    fn move_bytes(&self, received: u64, sent: u64, disk: u64) {
        self.test.world.provider.use_up(self.id.parse().unwrap(), |usage| {
            usage.received_bytes += received;
            usage.sent_bytes += sent;
            usage.disk_used_bytes = disk;
        });
    }

    /// What is known after the next look.
    async fn after(&self, wait: SignedDuration) -> Value {
        self.test.world.clock.set_offset(self.test.world.clock.offset() + wait);
        let now = self.test.app.now().to_string();
        let path = self.path("usage");
        let recent = |usage: &Value| usage["now"]["counted_at"].as_str().is_some_and(|at| *at >= *now);
        self.test.until(&self.buyer, &path, recent).await["now"].clone()
    }
}

fn traffic(usage: &Value) -> (i64, i64) {
    (usage["received_bytes"].as_i64().unwrap(), usage["sent_bytes"].as_i64().unwrap())
}

#[tokio::test]
async fn what_a_box_uses_is_counted_by_the_month_the_day_and_the_hour() {
    let counted = Counted::new(TestApp::new().await).await;
    let quarter = SignedDuration::from_mins(16);
    counted.move_bytes(3 * GB, GB, 2 * GB);
    let seen = counted.after(quarter).await;
    assert_eq!(traffic(&seen), (3_000_000_000, 1_000_000_000), "{seen}");
    assert_eq!((&seen["disk_used_bytes"], &seen["disk_total_bytes"]), (&json!(2 * GB), &json!(50 * GB)));
    let resource = counted.test.get(&counted.buyer, counted.path("").trim_end_matches('/')).await;
    assert_eq!(seen["resets_at"], resource["paid_until"], "it counts anew with the next month");

    // The machine was started again: its counters begin at nothing.
    counted.test.world.provider.use_up(counted.id.parse().unwrap(), |usage| {
        (usage.received_bytes, usage.sent_bytes, usage.count) = (500, 0, "second".to_owned());
    });
    assert_eq!(traffic(&counted.after(quarter).await), (3_000_000_500, 1_000_000_000));

    // A look that is not answered changes nothing that is known, and says so.
    let error = Error::transient("the node does not answer: 203.0.113.7");
    counted.test.world.provider.fail_next(Verb::Usage, error);
    counted.test.world.clock.set_offset(counted.test.world.clock.offset() + quarter);
    let failing =
        counted.test.until(&counted.buyer, &counted.path("usage"), |usage| usage["now"]["is_failing"] == true).await;
    assert_eq!(traffic(&failing["now"]), (3_000_000_500, 1_000_000_000));
    assert!(!failing.to_string().contains("203.0.113.7"), "why is an operator's to know: {failing}");

    counted.move_bytes(0, 2 * GB, GB);
    assert_eq!(counted.after(quarter).await["is_failing"], false);
    let hours = counted.test.get(&counted.buyer, &counted.path("usage?hours=true&days=2")).await;
    let days = counted.test.get(&counted.buyer, &counted.path("usage")).await;
    for spans in [&hours["spans"], &days["spans"]] {
        let sum =
            |name: &str| -> i64 { spans.as_array().unwrap().iter().map(|span| span[name].as_i64().unwrap()).sum() };
        assert_eq!((sum("received_bytes"), sum("sent_bytes")), (3_000_000_500, 3_000_000_000), "{spans}");
        let most = spans.as_array().unwrap().iter().map(|span| span["disk_used_bytes"].as_u64().unwrap()).max();
        assert_eq!(most, Some(2 * GB), "the most that lay there");
    }
    assert!(hours["spans"].as_array().unwrap().len() >= days["spans"].as_array().unwrap().len());

    // A new month counts from nothing; the days stay.
    counted.test.top_up(&counted.buyer, 1500).await;
    counted.move_bytes(7, 8, GB);
    let seen = counted.after(SignedDuration::from_hours(24 * 32)).await;
    assert_eq!(traffic(&seen), (7, 8), "{seen}");
    let days = counted.test.get(&counted.buyer, &counted.path("usage?days=60")).await;
    assert!(days["spans"].as_array().unwrap().len() >= 2, "{days}");
    for wrong in ["usage?days=0", "usage?days=401", "usage?weeks=1"] {
        let (status, _) = counted.test.call(Some(&counted.buyer), Method::GET, &counted.path(wrong), None).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{wrong}");
    }

    // What is too old goes; what it adds up to stays.
    let owner = counted.test.world.owner().await;
    let kept = async || -> (i64, i64) {
        let count = "select (select count(*) from seedbox_usage_hours), (select count(*) from seedbox_usage_days)";
        sqlx::query_as(count).fetch_one(&owner).await.unwrap()
    };
    let (hours, days) = kept().await;
    let later = counted.test.app.now().0 + SignedDuration::from_hours(24 * 36);
    usage::forget(&counted.test.app.pool, later.into()).await.unwrap();
    assert!(hours > 0 && kept().await == (0, days));
    usage::forget(&counted.test.app.pool, (later + usage::DAYS_KEPT).into()).await.unwrap();
    assert_eq!(kept().await, (0, 0));
}

#[tokio::test]
async fn of_two_looks_at_once_one_counts() {
    let world = World::new().await;
    let counted = Counted::new(world.start(true).await).await;
    counted.test.idle().await;
    let still = World::start(&counted.test.world, false).await;
    let now = still.app.now();
    let later = seedplane::clock::Time(now.0 + SignedDuration::from_mins(20));
    let first = usage::claim(&still.app.pool, later, 10).await.unwrap();
    assert_eq!(first.len(), 1);
    assert!(usage::claim(&still.app.pool, later, 10).await.unwrap().is_empty(), "nobody else has it meanwhile");
    // The first one took so long that the box was due again.
    let much_later = seedplane::clock::Time(later.0 + SignedDuration::from_mins(20));
    let second = usage::claim(&still.app.pool, much_later, 10).await.unwrap();
    counted.move_bytes(100, 100, 0);
    let provider = still.app.provider("memory").unwrap();
    let seen = provider.usage(&first[0].resource_ref).await.unwrap();
    assert!(usage::record(&still.app.pool, &second[0], &seen, much_later).await.unwrap());
    assert!(!usage::record(&still.app.pool, &first[0], &seen, much_later).await.unwrap(), "the older look is void");
    let known = counted.test.get(&counted.buyer, &counted.path("usage")).await;
    assert_eq!(traffic(&known["now"]), (100, 100));
}

#[tokio::test]
async fn what_is_not_running_is_not_asked() {
    let counted = Counted::new(TestApp::new().await).await;
    let path = format!("/api/seedbox/resources/{}", counted.id);
    counted.test.post(&counted.buyer, &format!("{path}/suspend"), json!({})).await;
    counted.test.until(&counted.buyer, &path, |resource| resource["status"] == "suspended").await;
    counted.test.idle().await;
    let calls = || counted.test.world.provider.calls(Verb::Usage);
    let before = calls();
    counted.test.world.clock.set_offset(counted.test.world.clock.offset() + SignedDuration::from_mins(40));
    reconciler::count_usage(&counted.test.app).await.unwrap();
    assert_eq!(calls(), before, "a suspended box is left alone");
    counted.test.post(&counted.buyer, &format!("{path}/terminate"), json!({ "confirm_label": "Small" })).await;
    counted.test.until(&counted.buyer, &path, |resource| resource["status"] == "terminated").await;
    counted.test.world.clock.set_offset(counted.test.world.clock.offset() + SignedDuration::from_mins(40));
    reconciler::count_usage(&counted.test.app).await.unwrap();
    let left: i64 = sqlx::query_scalar("select count(*) from seedbox_usage where next_look_at is not null")
        .fetch_one(&counted.test.world.owner().await)
        .await
        .unwrap();
    assert_eq!((calls(), left), (before, 0), "and one that ended for ever");
}

#[tokio::test]
async fn a_restart_ends_sessions_and_keeps_the_login() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    let path = format!("/api/seedbox/resources/{id}");
    let shown = test.post(&buyer, &format!("{path}/credentials"), json!({})).await;
    let login = seedplane_provisioning::Credentials {
        username: shown["login_name"].as_str().unwrap().to_owned(),
        password: shown["password"].as_str().unwrap().to_owned().into(),
    };
    let (provider, machine) = (&test.world.provider, id.parse().unwrap());
    let session = provider.login(machine, &login).unwrap();
    test.post(&buyer, &format!("{path}/restart"), json!({})).await;
    let over = |resource: &Value| resource["operations"] == json!([]);
    test.until(&buyer, &path, over).await;
    assert!(!provider.session_is_good(session) && provider.login(machine, &login).is_some());
    let events = test.get(&buyer, &format!("{path}/events")).await;
    let restarted = events.as_array().unwrap().iter().find(|event| event["action"] == "resource.restarted").unwrap();
    assert!(restarted["actor"].as_str().unwrap().starts_with("user:"), "{restarted}");

    // Busy at first: tried again by itself.
    provider.fail_next(Verb::Restart, Error::transient("busy"));
    test.post(&buyer, &format!("{path}/restart"), json!({})).await;
    test.until(&buyer, &path, over).await;
    assert_eq!(provider.calls(Verb::Restart), 3);

    test.post(&buyer, &format!("{path}/suspend"), json!({})).await;
    test.until(&buyer, &path, |resource| resource["status"] == "suspended").await;
    let (status, problem) = test.call(Some(&buyer), Method::POST, &format!("{path}/restart"), Some(json!({}))).await;
    assert_eq!(status, StatusCode::CONFLICT, "{problem}");
    test.assert_sound().await;
}
