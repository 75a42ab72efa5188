//! The audit log proves that it was not altered, and names what was.

use seedplane::{
    accounts::Role,
    audit::chain::{self, Copy},
};
use sqlx::Executor;

use crate::support::{TestApp, World};

async fn story(test: &TestApp) -> String {
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    test.idle().await;
    chain::seal(&test.app).await.unwrap();
    id
}

/// As somebody who owns the database might: triggers off, a change, triggers on.
async fn tamper(test: &TestApp, statement: &str) {
    let owner = test.world.owner().await;
    let statement = format!("begin; set local session_replication_role = replica; {statement}; commit;");
    owner.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
}

async fn fault(test: &TestApp) -> Option<String> {
    chain::verify(&test.app.pool, Copy::Own(&test.app.checkpoint_file)).await.unwrap().fault
}

#[tokio::test]
async fn an_unaltered_log_verifies_and_each_alteration_is_named() {
    let newest = "select id from seedbox_audit_events where resource_id = '{box}' order by seq desc limit 1";
    let middle =
        "select id from seedbox_audit_events where resource_id = '{box}' and seq = 2 and subject_kind = 'resource'";
    let chain_of = "subject_id = '{box}'";
    for (what, statement, named) in [
        ("a changed byte", format!("update seedbox_audit_events set reason = reason || '!' where id = ({middle})"), "was changed"),
        ("a changed state", format!("update seedbox_audit_events set after = after || '{{\"x\":1}}' where id = ({newest})"), "was changed"),
        ("a removed row", format!("delete from seedbox_audit_events where id = ({middle})"), "was removed"),
        ("a cut tail", format!("delete from seedbox_audit_events where id = ({newest})"), "missing"),
        (
            "a cut tail with its chain set back",
            format!("delete from seedbox_audit_events where id = ({newest});
                     update audit_chains c set (seq, head) = (select e.seq, e.hash from seedbox_audit_events e
                         where e.subject_id = c.subject_id order by e.seq desc limit 1) where {chain_of}"),
            "cut off",
        ),
        (
            "a whole chain gone, and every checkpoint with it",
            "delete from seedbox_audit_events; delete from audit_chains; delete from audit_checkpoint_heads; delete from audit_checkpoints".to_owned(),
            "outside the database",
        ),
    ] {
        let test = TestApp::new().await;
        let id = story(&test).await;
        assert_eq!(fault(&test).await, None, "unaltered, before {what}");
        tamper(&test, &statement.replace("{box}", &id)).await;
        let found = fault(&test).await.unwrap_or_else(|| panic!("{what} was not found"));
        assert!(found.contains(named), "{what}: {found}");
    }
}

#[tokio::test]
async fn a_copy_that_vanished_is_missed_and_its_remaking_is_told() {
    let test = World::new().await.start(false).await;
    let operator = test.person(Role::Operator).await;
    for _ in 0..2 {
        test.customer().await;
        chain::seal(&test.app).await.unwrap();
    }
    let verify = async || test.get(&operator, "/api/operator/audit/verify").await;
    let whole = verify().await;
    assert_eq!((whole["verdict"].as_str(), whole["exported"].as_i64()), (Some("unaltered"), Some(2)), "{whole}");
    assert_eq!(test.get(&operator, "/api/operator/alerts").await, serde_json::json!([]));
    std::fs::remove_file(&test.app.checkpoint_file).unwrap();
    let missing = verify().await;
    assert_eq!(missing["verdict"], "not_proved", "{missing}");
    assert!(missing["fault"].as_str().unwrap().contains("missing or empty"), "{missing}");
    test.customer().await;
    chain::seal(&test.app).await.unwrap();
    assert_eq!(verify().await["verdict"], "unaltered");
    let alerts = test.get(&operator, "/api/operator/alerts").await;
    assert_eq!(alerts[0]["kind"], "audit_copy_remade", "{alerts}");
}
