-- Who may do what. Tables and functions are named one by one: the database may hold other people's.

-- Row-level security with a policy for the application alone, and nothing for the roles that Supabase shows to browsers.
-- A later migration that adds a table ends with a call of this and the grants that `seedplane_app` needs.
create function seedbox_secure(tables text[], functions text[]) returns void language plpgsql as $$
declare
    name text;
    signature regprocedure;
    exposed text;
    others text[] := array(select rolname from pg_roles where rolname in ('anon', 'authenticated'));
begin
    foreach name in array tables loop
        execute format('alter table public.%I enable row level security', name);
        execute format('create policy application on public.%I to seedplane_app using (true) with check (true)', name);
        execute format('revoke all on public.%I from public', name);
        execute format('grant select on public.%I to seedplane_app', name);
        foreach exposed in array others loop
            execute format('revoke all on public.%I from %I', name, exposed);
        end loop;
    end loop;
    foreach name in array functions loop
        for signature in select oid from pg_proc where pronamespace = 'public'::regnamespace and proname = name loop
            execute format('revoke all on function %s from public', signature);
            execute format('grant execute on function %s to seedplane_app', signature);
            foreach exposed in array others loop
                execute format('revoke all on function %s from %I', signature, exposed);
            end loop;
        end loop;
    end loop;
end $$;

select seedbox_secure(
    array['users', 'sessions', 'api_tokens', 'idempotency_keys', 'seedbox_plans', 'seedbox_orders', 'byos_connections',
        'seedbox_resources', 'provision_attempts', 'holds', 'notices', 'mail_outbox', 'one_time_links', 'operator_alerts',
        'trial_clock', 'seedbox_billing_accounts', 'ledger_accounts', 'ledger_transfers', 'payouts', 'topup_intents', 'gateway_events',
        'seedbox_audit_events', 'audit_chains', 'audit_checkpoints', 'audit_checkpoint_heads'],
    array['seedbox_lifecycle_allows', 'seedbox_resources_guard', 'seedbox_orders_guard', 'refuse_change',
        'ledger_apply_transfers', 'seedbox_billing_account_open', 'ledger_receivable_of', 'ledger_account_of',
        'ledger_house_account', 'audit_field', 'audit_event_hash', 'audit_record', 'enqueue_job', 'topup_apply', 'order_pay']);
revoke all on function seedbox_secure(text[], text[]) from public;

-- The migrations' own record is nobody else's business either.
do $$
declare
    exposed text;
begin
    if to_regclass('public._sqlx_migrations') is not null then
        alter table public._sqlx_migrations enable row level security;
        -- The application sees which version it runs on.
        create policy application on public._sqlx_migrations for select to seedplane_app using (true);
        grant select on public._sqlx_migrations to seedplane_app;
        for exposed in select rolname from pg_roles where rolname in ('anon', 'authenticated') loop
            execute format('revoke all on public._sqlx_migrations from %I', exposed);
            execute format('revoke all on function public.seedbox_secure(text[], text[]) from %I', exposed);
        end loop;
    end if;
end $$;

grant usage on schema public to seedplane_app;
grant insert, update on users, sessions, api_tokens, seedbox_plans, seedbox_orders, byos_connections, seedbox_resources,
    provision_attempts, holds, notices, mail_outbox, one_time_links, operator_alerts, trial_clock, payouts, topup_intents,
    idempotency_keys to seedplane_app;
grant delete on sessions, idempotency_keys, one_time_links to seedplane_app;
grant update on seedbox_billing_accounts to seedplane_app;
grant update (sealed_seq) on audit_chains to seedplane_app;
-- Append-only: added to, never changed. Balances and chains move by functions that run as the owner.
grant insert on ledger_transfers, gateway_events, audit_checkpoints, audit_checkpoint_heads to seedplane_app;
