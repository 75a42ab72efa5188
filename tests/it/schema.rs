//! What the database itself refuses, on stock Postgres and on one laid out like Supabase's.

use seedplane::{
    runtime,
    seedbox::{Status, lifecycle::MOVES},
};
use sqlx::{Connection, Executor, PgConnection};

use crate::support::{self, TestApp};

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

fn refused(result: Result<sqlx::postgres::PgQueryResult, sqlx::Error>, what: &str) -> String {
    match result {
        Ok(_) => panic!("{what} was not refused"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn applies_to_stock_and_supabase_and_anon_reads_nothing() {
    for supabase in [false, true] {
        let url = support::empty_database().await;
        let mut owner = connect(&url).await;
        if supabase {
            owner
                .execute(
                    "create schema auth;
                     create table auth.users (id uuid primary key, email text);
                     do $$ declare r text; begin
                         foreach r in array array['anon', 'authenticated', 'service_role'] loop
                             if not exists (select from pg_roles where rolname = r) then
                                 begin execute format('create role %I nologin', r); exception when duplicate_object then null; end;
                             end if;
                         end loop;
                     end $$;
                     grant usage on schema public to anon, authenticated, service_role;
                     alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
                     alter default privileges in schema public grant all on functions to anon, authenticated, service_role;
                     create table public.of_somebody_else (id int);",
                )
                .await
                .unwrap();
        }
        runtime::migrate(&url).await.unwrap();
        runtime::migrate(&url).await.unwrap();
        if !supabase {
            continue;
        }
        let tables: Vec<String> = sqlx::query_scalar(
            "select tablename from pg_tables where schemaname = 'public' and tablename not in ('of_somebody_else', '_sqlx_migrations')",
        )
        .fetch_all(&mut owner)
        .await
        .unwrap();
        assert!(tables.len() >= 24, "{tables:?}");
        for role in ["anon", "authenticated"] {
            owner.execute(sqlx::AssertSqlSafe(format!("set role {role}"))).await.unwrap();
            for table in &tables {
                for attempt in [
                    format!("select * from {table} limit 1"),
                    format!("truncate {table} cascade"),
                    format!("delete from {table}"),
                ] {
                    refused(owner.execute(sqlx::AssertSqlSafe(attempt.clone())).await, &format!("{role}: {attempt}"));
                }
            }
            refused(
                owner.execute("select order_pay(null, null, null, now(), 'system', null)").await,
                "anon paying an order",
            );
            owner.execute("reset role").await.unwrap();
        }
        let open: Vec<String> = sqlx::query_scalar(
            "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' and not relrowsecurity
             and relname not in ('of_somebody_else', '_sqlx_migrations')",
        )
        .fetch_all(&mut owner)
        .await
        .unwrap();
        assert!(open.is_empty(), "without row-level security: {open:?}");
        let others: bool = sqlx::query_scalar("select relrowsecurity from pg_class where relname = 'of_somebody_else'")
            .fetch_one(&mut owner)
            .await
            .unwrap();
        assert!(!others, "somebody else's table was touched");
    }
}

#[tokio::test]
async fn the_guard_in_sql_and_in_rust_allow_the_same_moves() {
    let mut owner = connect(&support::database().await).await;
    for from in Status::ALL {
        for to in Status::ALL {
            let in_sql: bool = sqlx::query_scalar("select seedbox_lifecycle_allows($1, $2)")
                .bind(from.as_str())
                .bind(to.as_str())
                .fetch_one(&mut owner)
                .await
                .unwrap();
            assert_eq!(in_sql, from.can_become(*to), "{from} -> {to}");
        }
    }
    assert_eq!(MOVES.len(), 9);
}

#[tokio::test]
async fn money_and_history_cannot_be_changed_by_anybody() {
    let test = TestApp::new().await;
    let buyer = test.customer().await;
    let id = test.active_box(&buyer, 1500).await;
    test.idle().await;
    let owner = test.world.owner().await;
    for table in
        ["ledger_transfers", "seedbox_audit_events", "gateway_events", "audit_checkpoints", "audit_checkpoint_heads"]
    {
        for statement in
            [format!("update {table} set id = id"), format!("delete from {table}"), format!("truncate {table} cascade")]
        {
            if table == "audit_checkpoint_heads" && statement.starts_with("update") {
                continue;
            }
            for pool in [&test.app.pool, &owner] {
                refused(pool.execute(sqlx::AssertSqlSafe(statement.clone())).await, &statement);
            }
        }
    }
    for statement in [
        "update ledger_accounts set balance_cents = 1000000",
        "insert into seedbox_audit_events (subject_kind, subject_id, seq, at, actor, action, previous_hash, hash) values ('user', gen_random_uuid(), 1, now(), 'system', 'x', repeat('x', 32)::bytea, repeat('x', 32)::bytea)",
        "update audit_chains set head = head",
        "set session authorization default; alter table ledger_transfers disable trigger all",
    ] {
        refused(test.app.pool.execute(statement).await, statement);
    }
    let statement = format!(
        "insert into ledger_transfers (id, debit_account_id, credit_account_id, amount_cents, kind, idempotency_key, cause, created_at)
         values (gen_random_uuid(), ledger_account_of('{}', 'paid'), ledger_house_account('revenue'), 1, 'charge', 'x', 'x', now())",
        buyer.id
    );
    let error = refused(test.app.pool.execute(sqlx::AssertSqlSafe(statement)).await, "a balance below zero");
    assert!(error.contains("balance_cents"), "{error}");
    for (what, statement) in [
        ("a move that does not exist", format!("update seedbox_resources set status = 'pending', version = version + 1 where id = '{id}'")),
        ("a change without a new version", format!("update seedbox_resources set label = 'x' where id = '{id}'")),
        (
            "a resource without a paid order",
            format!("insert into seedbox_resources (id, user_id, kind, order_id, status_since, created_at)
                     select gen_random_uuid(), user_id, kind, order_id, now(), now() from seedbox_resources where id = '{id}'"),
        ),
        (
            "a box without a proved connection",
            format!("insert into seedbox_resources (id, user_id, kind, connection_id, status_since, created_at)
                     values (gen_random_uuid(), '{}', 'byos', gen_random_uuid(), now(), now())", buyer.id),
        ),
    ] {
        refused(owner.execute(sqlx::AssertSqlSafe(statement)).await, what);
    }
    test.assert_sound().await;
}

#[tokio::test]
async fn a_login_that_owns_nothing_serves_and_cannot_become_the_owner() {
    let url = support::database().await;
    let mut owner = connect(&url).await;
    let login = format!("login_{}", uuid::Uuid::new_v4().simple());
    for statement in [format!("create role {login} login"), format!("grant seedplane_app to {login}")] {
        owner.execute(sqlx::AssertSqlSafe(statement)).await.unwrap();
    }
    let own = url.replacen("seedplane@", &format!("{login}@"), 1);
    assert_ne!(own, url);
    runtime::prepare(&own).await.unwrap();
    let pool = runtime::application_pool(own.parse().unwrap(), 1).await.unwrap();
    pool.execute("select count(*) from users").await.unwrap();
    for statement in [
        "reset role; alter table ledger_transfers disable trigger all",
        "set session authorization default; delete from ledger_transfers",
        "set role seedplane",
    ] {
        refused(pool.execute(statement).await, statement);
    }
    owner
        .execute("delete from _sqlx_migrations where version = (select max(version) from _sqlx_migrations)")
        .await
        .unwrap();
    let error = runtime::prepare(&own).await.unwrap_err().to_string();
    assert!(error.contains("seedplane migrate"), "{error}");
    owner.execute(sqlx::AssertSqlSafe(format!("revoke seedplane_app from {login}"))).await.unwrap();
    let error = runtime::prepare(&own).await.unwrap_err().to_string();
    assert!(error.contains("member of seedplane_app"), "{error}");
}
