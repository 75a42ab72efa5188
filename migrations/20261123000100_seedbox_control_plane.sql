-- The tables of the control plane. Runs on stock Postgres 15+ and on a database laid out like Supabase's.
--
-- Two roles: the owner, who runs migrations, and `seedplane_app`, which the running application becomes on every
-- connection. What the application must not be able to do is not granted to `seedplane_app`, and is refused by triggers
-- to the owner too. Row-level security is on everywhere with a policy for `seedplane_app` alone.

do $$
begin
    if not exists (select from pg_roles where rolname = 'seedplane_app') then
        create role seedplane_app nologin noinherit;
    end if;
    execute format('grant seedplane_app to %I', current_user);
end $$;

-- People --------------------------------------------------------------------------------------------------------------

create table users (
    id uuid primary key,                       -- auth.users.id on Supabase
    email text not null check (length(email) between 3 and 254 and email = lower(email)),
    password_hash text,                        -- argon2id; null once erased or where another issuer signs people in
    role text not null default 'customer' check (role in ('customer', 'support', 'operator', 'owner')),
    created_at timestamptz not null,
    unique (email)
);

create table sessions (
    id uuid primary key,
    user_id uuid not null references users on delete cascade,
    token_hash bytea not null unique check (octet_length(token_hash) = 32),  -- sha256 of the token; the token is nowhere
    created_at timestamptz not null,
    expires_at timestamptz not null,
    revoked_at timestamptz
);
create index on sessions (user_id);

create table api_tokens (
    id uuid primary key,
    user_id uuid not null references users on delete cascade,
    name text not null check (length(name) between 1 and 80),
    token_hash bytea not null unique check (octet_length(token_hash) = 32),
    created_at timestamptz not null,
    expires_at timestamptz,
    revoked_at timestamptz
);
create index on api_tokens (user_id);

-- A POST that carried an Idempotency-Key, and what it was answered. Answers that hold a secret are not kept.
create table idempotency_keys (
    user_id uuid not null references users on delete cascade,
    key text not null check (length(key) between 1 and 255),
    request_hash bytea not null,
    response_status smallint,
    response_body text,
    created_at timestamptz not null,
    primary key (user_id, key)
);
create index on idempotency_keys (created_at);

-- Plans and orders ----------------------------------------------------------------------------------------------------

create table seedbox_plans (
    id uuid primary key,
    code text not null check (code ~ '^[a-z0-9][a-z0-9-]{0,39}$'),
    version integer not null check (version > 0),
    name text not null check (length(name) between 1 and 80),
    description text not null default '',
    price_cents bigint not null check (price_cents > 0),
    provider text not null,
    size text not null,
    disk_gb integer not null check (disk_gb > 0),
    on_sale boolean not null default true,
    created_at timestamptz not null,
    unique (code, version)
);
-- At most one version of a plan can be ordered.
create unique index seedbox_plans_one_on_sale on seedbox_plans (code) where on_sale;

create table seedbox_orders (
    id uuid primary key,
    user_id uuid not null references users,
    plan_id uuid not null references seedbox_plans,
    price_cents bigint not null check (price_cents > 0),
    status text not null default 'awaiting_payment'
        check (status in ('awaiting_payment', 'paid', 'fulfilled', 'expired', 'cancelled')),
    created_at timestamptz not null,
    expires_at timestamptz not null,
    paid_at timestamptz,
    fulfilled_at timestamptz,
    closed_at timestamptz,
    close_reason text
);
create index on seedbox_orders (user_id, created_at desc);
create index seedbox_orders_awaiting on seedbox_orders (expires_at) where status = 'awaiting_payment';

create table byos_connections (
    id uuid primary key,
    user_id uuid not null references users,
    label text not null check (length(label) between 1 and 80),
    host text not null,
    port integer not null check (port between 1 and 65535),
    status text not null default 'pending' check (status in ('pending', 'connected', 'revoked', 'error')),
    status_reason text,
    public_key text not null,
    secret_ref text not null,                  -- where the private key is; never the key
    host_key_fingerprint text,
    connected_at timestamptz,
    last_seen_at timestamptz,
    created_at timestamptz not null
);
create index on byos_connections (user_id);

-- Resources -----------------------------------------------------------------------------------------------------------

create table seedbox_resources (
    id uuid primary key,
    user_id uuid not null references users,
    kind text not null check (kind in ('managed', 'byos')),
    order_id uuid unique references seedbox_orders,
    connection_id uuid unique references byos_connections,
    plan_id uuid references seedbox_plans,
    label text not null default '' check (length(label) <= 80),
    status text not null default 'pending'
        check (status in ('pending', 'provisioning', 'active', 'suspended', 'failed', 'terminating', 'terminated')),
    status_since timestamptz not null,
    status_reason text,
    suspend_reason text check (suspend_reason in ('billing', 'abuse', 'operator', 'upstream', 'user')),
    version bigint not null default 1,         -- the fence of every write
    provider text,
    resource_ref text,
    web_url text,
    login_name text,
    secret_ref text,                           -- where the password is; never the password
    credentials_version integer not null default 0,
    credentials_shown_version integer not null default 0,
    price_cents bigint not null default 0 check (price_cents >= 0),
    next_price_cents bigint check (next_price_cents > 0),
    next_price_notified_at timestamptz,
    priority integer not null default 1 check (priority between 1 and 1000),
    anchor_at timestamptz,                     -- the first date; every due date is computed from it
    periods_charged integer not null default 0 check (periods_charged >= 0),
    charged_total integer not null default 0 check (charged_total >= 0),  -- n of charge:<resource>:<n>; never reset
    paid_until timestamptz,
    activated_at timestamptz,
    past_due_since timestamptz,
    suspended_at timestamptz,
    arrears_cents bigint not null default 0 check (arrears_cents >= 0),
    hold_until timestamptz,
    ends_at_period_end boolean not null default false,
    next_plan_id uuid references seedbox_plans,  -- the owner's choice from the next month on: a cheaper plan
    next_plan_price_cents bigint check (next_plan_price_cents > 0),
    terminated_at timestamptz,
    wipe_certificate jsonb,
    created_at timestamptz not null,
    check ((kind = 'managed') = (order_id is not null)),
    check ((kind = 'byos') = (connection_id is not null)),
    check ((status = 'suspended') = (suspend_reason is not null)),
    check ((next_plan_id is null) = (next_plan_price_cents is null)),
    check (status not in ('active', 'suspended') or kind = 'byos' or resource_ref is not null)
);
create index on seedbox_resources (user_id);
create index seedbox_resources_moving on seedbox_resources (status_since) where status in ('pending', 'provisioning', 'terminating');

-- The lifecycle guard: the same pairs as `src/seedbox/lifecycle.rs`; a test compares the two over all pairs.
create function seedbox_lifecycle_allows(old_status text, new_status text) returns boolean
language sql immutable as $$
    select (old_status, new_status) in (
        ('pending', 'provisioning'),
        ('provisioning', 'active'),
        ('active', 'suspended'),
        ('suspended', 'active'),
        ('provisioning', 'failed'),
        ('active', 'terminating'),
        ('suspended', 'terminating'),
        ('failed', 'terminating'),
        ('terminating', 'terminated'))
$$;

create function seedbox_resources_guard() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' then
        if new.status <> 'pending' then
            raise exception 'a resource starts as pending, not as %', new.status using errcode = 'check_violation';
        end if;
        if new.kind = 'managed' and not exists (
            select from seedbox_orders o where o.id = new.order_id and o.user_id = new.user_id and o.status = 'paid'
        ) then
            raise exception 'no resource without a paid order (order %)', new.order_id using errcode = 'check_violation';
        end if;
        if new.kind = 'byos' and not exists (
            select from byos_connections c
            where c.id = new.connection_id and c.user_id = new.user_id and c.status = 'connected'
        ) then
            raise exception 'no resource without a proved connection (connection %)', new.connection_id
                using errcode = 'check_violation';
        end if;
        return new;
    end if;
    if new.status <> old.status and not seedbox_lifecycle_allows(old.status, new.status) then
        raise exception 'the lifecycle has no move % -> % (resource %)', old.status, new.status, old.id
            using errcode = 'check_violation';
    end if;
    if (new.user_id, new.kind, new.order_id, new.connection_id) is distinct from
       (old.user_id, old.kind, old.order_id, old.connection_id) then
        raise exception 'whose resource % is, and what it came from, does not change', old.id using errcode = 'check_violation';
    end if;
    if new.version <= old.version then
        raise exception 'a change of resource % must raise its version', old.id using errcode = 'check_violation';
    end if;
    return new;
end $$;
create trigger seedbox_resources_guard before insert or update on seedbox_resources
    for each row execute function seedbox_resources_guard();

create function seedbox_orders_guard() returns trigger language plpgsql as $$
begin
    if new.status <> old.status and (old.status, new.status) not in (
        ('awaiting_payment', 'paid'), ('awaiting_payment', 'expired'), ('awaiting_payment', 'cancelled'), ('paid', 'fulfilled'),
        ('paid', 'cancelled'))
    then
        raise exception 'an order does not go % -> % (order %)', old.status, new.status, old.id using errcode = 'check_violation';
    end if;
    if (new.user_id, new.price_cents, new.plan_id) is distinct from (old.user_id, old.price_cents, old.plan_id) then
        raise exception 'the buyer, plan and price of order % do not change', old.id using errcode = 'check_violation';
    end if;
    return new;
end $$;
create trigger seedbox_orders_guard before update on seedbox_orders
    for each row execute function seedbox_orders_guard();

-- Operations asked of a provider: what was asked, by whom, and how it went. The row comes before the call.
create table provision_attempts (
    id uuid primary key,
    resource_id uuid not null references seedbox_resources,
    operation text not null check (operation in ('create', 'suspend', 'resume', 'rotate_credentials', 'resize', 'terminate')),
    reason text not null default '',
    actor text not null,
    status text not null default 'requested' check (status in ('requested', 'running', 'done', 'failed', 'superseded')),
    tries integer not null default 0,
    last_error text,
    arrears_cents bigint not null default 0,   -- resume: what was reserved for arrears
    plan_id uuid references seedbox_plans,     -- resize: the plan it is resized for
    requested_at timestamptz not null,
    started_at timestamptz,
    finished_at timestamptz
);
create index on provision_attempts (resource_id, requested_at);
create index provision_attempts_by_rule on provision_attempts (requested_at)
    where actor = 'system' and operation in ('suspend', 'terminate');
create unique index provision_attempts_one_open on provision_attempts (resource_id, operation)
    where status in ('requested', 'running');

create table holds (
    id uuid primary key,
    resource_id uuid not null references seedbox_resources,
    reason text not null check (length(reason) between 1 and 1000),
    placed_by text not null,
    placed_at timestamptz not null,
    until timestamptz not null,
    released_at timestamptz
);
create index holds_open on holds (resource_id) where released_at is null;

-- Notices and mail ----------------------------------------------------------------------------------------------------

-- What was said to whom about what, once each. `handed_at` is when the mailer accepted it: the time that counts.
create table notices (
    id uuid primary key,
    user_id uuid not null references users,
    resource_id uuid references seedbox_resources,
    kind text not null,
    idempotency_key text not null unique,
    facts jsonb not null default '{}',
    created_at timestamptz not null,
    handed_at timestamptz
);
create index on notices (user_id, created_at desc);

create table mail_outbox (
    id uuid primary key,
    user_id uuid not null references users,
    notice_id uuid references notices,
    subject text not null,
    body text not null,
    created_at timestamptz not null,
    next_try_at timestamptz not null,
    tries integer not null default 0,
    handed_at timestamptz,
    last_error text
);
create index mail_outbox_waiting on mail_outbox (next_try_at) where handed_at is null;
create index on mail_outbox (handed_at);
create index on mail_outbox (user_id, created_at desc);

-- One-time links in mails: the token's hash, what it opens, until when.
create table one_time_links (
    token_hash bytea primary key check (octet_length(token_hash) = 32),
    user_id uuid not null references users,
    resource_id uuid references seedbox_resources,
    purpose text not null check (purpose in ('credentials')),
    created_at timestamptz not null,
    expires_at timestamptz not null,
    used_at timestamptz
);

-- Operator alerts: something a person must look at, once each until resolved.
create table operator_alerts (
    id uuid primary key,
    kind text not null,
    subject text not null,
    detail text not null,
    created_at timestamptz not null,
    resolved_at timestamptz
);
create unique index operator_alerts_open on operator_alerts (kind, subject) where resolved_at is null;

-- The trial's clock: how far it is ahead of the system's.
create table trial_clock (
    only_row boolean primary key default true check (only_row),
    offset_microseconds bigint not null default 0 check (offset_microseconds >= 0)
);
