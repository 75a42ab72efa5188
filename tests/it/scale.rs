//! Claims and sweeps go by keys: with many customers, none of them reads a table from end to end.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use seedplane::{
    billing::{runway, sweep},
    mailer,
    workers::{payments, reconciler},
};
use sqlx::{Executor, PgPool, Row};

use crate::support::World;

/// Customers, each with a box, a settled top-up and a mail that was sent.
const CUSTOMERS: i32 = 20_000;

async fn rows_read_in_sequence(pools: [&PgPool; 2]) -> BTreeMap<String, i64> {
    // A connection keeps its counters to itself for up to ten seconds, unless told to write them.
    for pool in pools {
        let mut connections = Vec::new();
        for _ in 0..pool.options().get_max_connections() {
            connections.push(pool.acquire().await.unwrap());
        }
        for connection in &mut connections {
            connection.execute("select pg_stat_force_next_flush()").await.unwrap();
        }
    }
    let [_, pool] = pools;
    sqlx::query("select relname, seq_tup_read from pg_stat_user_tables where schemaname = 'public'")
        .fetch_all(pool)
        .await
        .unwrap()
        .into_iter()
        .map(|row| (row.get::<String, _>(0), row.get::<i64, _>(1)))
        .collect()
}

#[tokio::test]
async fn no_round_of_the_workers_reads_a_whole_table() {
    let world = World::new().await;
    let test = world.start(false).await;
    // Not within the seconds of an hour in which the whole ledger is recomputed on purpose.
    let into_the_hour = test.app.now().as_second() % 3600;
    world.clock.set_offset(SignedDuration::from_secs(3600 + 1800 - into_the_hour));
    let owner = world.owner().await;
    let plan = test.plan(1500).await;
    // As a copy of an installation would be loaded: without the triggers that guard single steps.
    let mut connection = owner.acquire().await.unwrap();
    connection
        .execute(sqlx::AssertSqlSafe(format!(
            "set session_replication_role = replica;
             create temporary table made as select n, gen_random_uuid() as u, gen_random_uuid() as o, gen_random_uuid() as r
                 from generate_series(1, {CUSTOMERS}) n;
             insert into users (id, email, created_at) select u, n || '@example.org', now() from made;
             insert into seedbox_billing_accounts (user_id, next_sweep_at, created_at)
                 select u, now() + interval '20 days', now() from made;
             insert into ledger_accounts (id, kind, user_id, sign, balance_cents)
                 select gen_random_uuid(), kind, u, 1, 0 from made, unnest(array['paid', 'promotional', 'reserved']) kind;
             insert into seedbox_orders (id, user_id, plan_id, price_cents, status, created_at, expires_at)
                 select o, u, '{plan}', 1500, 'fulfilled', now(), now() from made;
             insert into seedbox_resources (id, user_id, kind, order_id, plan_id, label, status, status_since, provider, resource_ref,
                     price_cents, anchor_at, periods_charged, charged_total, paid_until, activated_at, created_at)
                 select r, u, 'managed', o, '{plan}', 'x', 'active', now(), 'memory', 'memory-' || r, 1500, now(), 1, 1,
                     now() + interval '30 days', now(), now() from made;
             insert into provision_attempts (id, resource_id, operation, actor, status, requested_at, finished_at)
                 select gen_random_uuid(), r, 'create', 'system', 'done', now() - interval '9 days', now() from made;
             insert into topup_intents (id, user_id, amount_cents, coin, status, payment_id, credited_at, forwarded_at, created_at)
                 select gen_random_uuid(), u, 1500, 'USDC_POL', 'forwarded', u::text, now(), now(), now() from made;
             insert into notices (id, user_id, kind, idempotency_key, created_at, handed_at)
                 select gen_random_uuid(), u, 'box_ready', 'box_ready:' || r, now(), now() from made;
             insert into mail_outbox (id, user_id, subject, body, created_at, next_try_at, tries, handed_at)
                 select gen_random_uuid(), u, 's', 'b', now(), now(), 1, now() from made;
             update seedbox_billing_accounts set next_sweep_at = now() where user_id in (select u from made where n <= 300);
             set session_replication_role = origin;"
        )))
        .await
        .unwrap();
    drop(connection);
    owner.execute("vacuum analyze").await.unwrap();

    let before = rows_read_in_sequence([&test.app.pool, &owner]).await;
    let swept = sweep::sweep_due(&test.app).await.unwrap();
    assert!(swept >= 300, "{swept} accounts were due");
    payments::poll(&test.app).await.unwrap();
    mailer::send_waiting(&test.app.pool, test.app.mailer.as_ref(), "http://localhost", &test.app.clock).await.unwrap();
    reconciler::reconcile(&test.app).await.unwrap();
    seedplane::audit::chain::seal(&test.app).await.unwrap();
    let after = rows_read_in_sequence([&test.app.pool, &owner]).await;

    nothing_was_read_whole(&before, &after);

    // The overview: no balance covers the next month of anybody, and those are looked at whose month begins next.
    owner
        .execute(
            "set session_replication_role = replica;
             update seedbox_resources set anchor_at = now() - interval '20 days', paid_until = now() + interval '9 days';
             set session_replication_role = origin;",
        )
        .await
        .unwrap();
    owner.execute("vacuum analyze seedbox_resources").await.unwrap();
    let before = rows_read_in_sequence([&test.app.pool, &owner]).await;
    let began = std::time::Instant::now();
    let runways = runway::look(&test.app).await.unwrap();
    println!("the runway of {CUSTOMERS} customers took {:?}", began.elapsed());
    assert!(!runways.complete && runways.next.len() == 10 && runways.customers == 2000, "{runways:?}");
    let after = rows_read_in_sequence([&test.app.pool, &owner]).await;
    nothing_was_read_whole(&before, &after);
}

fn nothing_was_read_whole(before: &BTreeMap<String, i64>, after: &BTreeMap<String, i64>) {
    let whole: Vec<String> = after
        .iter()
        .map(|(table, read)| (table, read - before.get(table).copied().unwrap_or(0)))
        .filter(|(_, read)| *read >= i64::from(CUSTOMERS))
        .map(|(table, read)| format!("{table}: {read} rows"))
        .collect();
    assert!(whole.is_empty(), "read from end to end: {whole:?}");
}
