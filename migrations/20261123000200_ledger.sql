-- Money: double entry, one immutable row a transfer. Balances follow from the rows by trigger, so nothing but a transfer
-- can move one. House accounts keep no balance: no row is shared by two customers.

create table seedbox_billing_accounts (
    user_id uuid primary key references users,
    next_sweep_at timestamptz not null,
    runway_notice_days integer,                -- the lowest runway threshold said in this dip; null above all of them
    payout_hold_reason text,                   -- abuse: the unspent balance waits for an operator
    created_at timestamptz not null
);
create index seedbox_billing_accounts_next_sweep on seedbox_billing_accounts (next_sweep_at, user_id);

create table ledger_accounts (
    id uuid primary key,
    kind text not null,
    user_id uuid references users,
    resource_id uuid references seedbox_resources,
    -- +1: grows when credited (what we owe, what we earned). -1: grows when debited (what we have, what is owed to us).
    sign smallint not null check (sign in (1, -1)),
    balance_cents bigint check (balance_cents >= 0),
    check (case kind
        when 'paid' then sign = 1 and user_id is not null and resource_id is null and balance_cents is not null
        when 'promotional' then sign = 1 and user_id is not null and resource_id is null and balance_cents is not null
        when 'reserved' then sign = 1 and user_id is not null and resource_id is null and balance_cents is not null
        when 'receivable' then sign = -1 and user_id is not null and resource_id is not null and balance_cents is not null
        else kind in ('gateway', 'revenue', 'promotion_cost', 'held', 'payouts', 'written_off', 'upstream_cost')
            and user_id is null and resource_id is null and balance_cents is null
    end)
);
create unique index ledger_accounts_of_user on ledger_accounts (user_id, kind) where user_id is not null and resource_id is null;
create unique index ledger_accounts_of_resource on ledger_accounts (resource_id, kind) where resource_id is not null;
create unique index ledger_accounts_of_house on ledger_accounts (kind) where user_id is null;

insert into ledger_accounts (id, kind, sign) values
    ('00000000-0000-7000-8000-000000000001', 'gateway', -1),
    ('00000000-0000-7000-8000-000000000002', 'revenue', 1),
    ('00000000-0000-7000-8000-000000000003', 'promotion_cost', -1),
    ('00000000-0000-7000-8000-000000000004', 'held', 1),
    ('00000000-0000-7000-8000-000000000005', 'payouts', -1),
    ('00000000-0000-7000-8000-000000000006', 'written_off', -1),
    ('00000000-0000-7000-8000-000000000007', 'upstream_cost', -1);

create table ledger_transfers (
    id uuid primary key,
    debit_account_id uuid not null references ledger_accounts,
    credit_account_id uuid not null references ledger_accounts,
    amount_cents bigint not null check (amount_cents > 0),
    kind text not null check (kind in (
        'topup', 'topup_excess', 'topup_held', 'held_release', 'promotion', 'reserve', 'post', 'void', 'charge', 'arrears',
        'arrears_paid', 'arrears_written_off', 'refund', 'payout_reserve', 'payout', 'payout_void', 'upstream_cost')),
    idempotency_key text not null unique check (length(idempotency_key) between 1 and 200),
    cause text not null,
    user_id uuid references users,             -- whose statement it stands on
    resource_id uuid references seedbox_resources,
    order_id uuid references seedbox_orders,
    period_start timestamptz,
    period_end timestamptz,
    created_at timestamptz not null,
    check (debit_account_id <> credit_account_id),
    check ((period_start is null) = (period_end is null) and period_start < period_end)
);
create index on ledger_transfers (user_id, created_at, id);
create index on ledger_transfers (resource_id) where resource_id is not null;
create index on ledger_transfers (debit_account_id);
create index on ledger_transfers (credit_account_id);

create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '% is append-only: % is refused; correct with a new row', tg_table_name, lower(tg_op)
        using errcode = 'insufficient_privilege';
end $$;
create trigger ledger_transfers_append_only before update or delete or truncate on ledger_transfers
    for each statement execute function refuse_change();

-- Runs as the owner: the application may add transfers, not touch balances.
create function ledger_apply_transfers() returns trigger language plpgsql security definer set search_path = public, pg_temp as $$
begin
    update ledger_accounts a
    set balance_cents = a.balance_cents + a.sign * moved.cents
    from (
        select account_id, sum(cents)::bigint as cents
        from (
            select credit_account_id as account_id, amount_cents as cents from added
            union all
            select debit_account_id, -amount_cents from added
        ) halves
        group by account_id
    ) moved
    where a.id = moved.account_id and a.balance_cents is not null;
    return null;
end $$;
create trigger ledger_apply_transfers after insert on ledger_transfers
    referencing new table as added for each statement execute function ledger_apply_transfers();

-- A customer's accounts come with the person.
create function seedbox_billing_account_open(of_user uuid, at timestamptz) returns void
language sql security definer set search_path = public, pg_temp as $$
    insert into seedbox_billing_accounts (user_id, next_sweep_at, created_at) values (of_user, at, at);
    insert into ledger_accounts (id, kind, user_id, sign, balance_cents)
    select gen_random_uuid(), kind, of_user, 1, 0 from unnest(array['paid', 'promotional', 'reserved']) kind;
$$;

create function ledger_receivable_of(of_resource uuid) returns uuid
language plpgsql security definer set search_path = public, pg_temp as $$
declare
    account uuid;
begin
    select id into account from ledger_accounts where resource_id = of_resource and kind = 'receivable';
    if account is null then
        insert into ledger_accounts (id, kind, user_id, resource_id, sign, balance_cents)
        select gen_random_uuid(), 'receivable', r.user_id, r.id, -1, 0 from seedbox_resources r where r.id = of_resource
        on conflict do nothing;
        select id into strict account from ledger_accounts where resource_id = of_resource and kind = 'receivable';
    end if;
    return account;
end $$;

create function ledger_account_of(of_user uuid, of_kind text) returns uuid language sql stable as $$
    select id from ledger_accounts where user_id = of_user and kind = of_kind and resource_id is null
$$;

create function ledger_house_account(of_kind text) returns uuid language sql stable as $$
    select id from ledger_accounts where kind = of_kind and user_id is null
$$;

-- Money that leaves: reserved when it is decided, sent by hand, closed with the transaction's id or called off.
create table payouts (
    id uuid primary key,
    user_id uuid not null references users,
    amount_cents bigint not null check (amount_cents > 0),
    status text not null default 'reserved' check (status in ('reserved', 'sent', 'voided')),
    lots jsonb not null,                       -- the payments it is taken from, oldest first, with the sum of each
    transaction_id text check (length(transaction_id) between 1 and 200),
    created_at timestamptz not null,
    closed_at timestamptz,
    check ((status = 'sent') = (transaction_id is not null)),
    check ((status = 'reserved') = (closed_at is null))
);
create index on payouts (user_id, created_at desc);
create index payouts_open on payouts (created_at) where status = 'reserved';

-- Payments ------------------------------------------------------------------------------------------------------------

create table topup_intents (
    id uuid primary key,
    user_id uuid not null references users,
    order_id uuid references seedbox_orders,
    amount_cents bigint not null check (amount_cents > 0),
    coin text not null,
    status text not null default 'created'
        check (status in ('created', 'pending', 'detected', 'expired', 'failed', 'confirmed', 'forwarded')),
    version bigint not null default 1,
    gateway_attempt integer not null default 1,
    payment_id text unique,
    address text,
    expected_crypto numeric check (expected_crypto > 0),
    amount_to_pay numeric check (amount_to_pay > 0),   -- expected, rounded up to the token's decimals: what people see
    quoted_total_cents bigint,                 -- with the network fee
    received_crypto numeric,
    pay_page_url text,
    quoted_at timestamptz,
    expires_at timestamptz,
    detected_at timestamptz,
    credited_at timestamptz,
    credited_cents bigint not null default 0 check (credited_cents >= 0),
    held_cents bigint not null default 0 check (held_cents >= 0),
    forwarded_at timestamptz,
    unresolved_reason text check (unresolved_reason in ('underpaid', 'paid_late', 'failed_after_confirmed', 'excess_held', 'excess_claimed')),
    resolved_at timestamptz,
    looked_at timestamptz,                     -- when somebody looking at it last made us ask the gateway
    polls_done integer not null default 0,
    next_poll_at timestamptz,
    last_error text,
    last_error_at timestamptz,
    created_at timestamptz not null
);
create index on topup_intents (user_id, created_at desc);
create index topup_intents_to_open on topup_intents (created_at) where status = 'created';
create index topup_intents_not_forwarded on topup_intents (credited_at) where status = 'confirmed' and forwarded_at is null;
create index topup_intents_failing on topup_intents (last_error_at) where last_error is not null;
create index topup_intents_to_poll on topup_intents (next_poll_at) where next_poll_at is not null;
create index topup_intents_unresolved on topup_intents (created_at) where unresolved_reason is not null and resolved_at is null;

-- Every verified webhook, as it came. A repeat of the same bytes is one row.
create table gateway_events (
    id uuid primary key,
    gateway text not null,
    payment_id text not null,
    kind text not null,
    raw text not null,
    raw_hash bytea not null unique,
    orphan boolean not null,                   -- no intent of ours carries this payment
    received_at timestamptz not null
);
create index on gateway_events (payment_id);
create trigger gateway_events_append_only before update or delete or truncate on gateway_events
    for each statement execute function refuse_change();
