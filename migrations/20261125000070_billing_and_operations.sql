-- What billing, payments and operations need to keep apart: one lapse from the next, one dip of a balance from the next,
-- one resolution of a payment from the next; and who could not be settled.

-- A lapse begins when a month cannot be paid and ends when it is paid or the months start anew. Its number is in the keys of
-- its notices and of what it makes the box owe, so that each lapse is told and booked for itself.
alter table seedbox_resources add column lapse_number integer not null default 0 check (lapse_number >= 0);

alter table seedbox_billing_accounts
    add column runway_dip integer not null default 0,      -- in the keys of the runway notices: how often the balance lasted again
    add column sweep_failures integer not null default 0;  -- in a row; an account that fails is put off, and stops nobody else

-- When the gateway last said anything about a payment, how often in a row it did not, and until when it asked to be left
-- alone: whether the gateway fails is asked of these, and one payment that always fails holds nobody up.
alter table topup_intents
    add column last_answered_at timestamptz,
    add column failures integer not null default 0,
    add column ask_not_before timestamptz,
    add column resolutions integer not null default 0;     -- how often an operator resolved it: in the keys of what that booked
create index topup_intents_answered on topup_intents (last_answered_at) where last_answered_at is not null;

-- As before, and: the account's row is taken before the payment's, as everywhere; a payment that was resolved waits again
-- when it has a new reason to, or more came since; what is no news is not recorded again.
create or replace function topup_apply(
    p_topup uuid, p_version bigint, p_status text, p_received numeric, p_credit_cents bigint, p_excess_cents bigint,
    p_held_cents bigint, p_unresolved text, p_polls_done integer, p_next_poll_at timestamptz, p_at timestamptz
) returns boolean language plpgsql as $$
declare
    before topup_intents;
    intent topup_intents;
    news boolean;
begin
    if p_credit_cents + p_excess_cents + p_held_cents > 0 then
        perform from seedbox_billing_accounts where user_id = (select user_id from topup_intents where id = p_topup) for update;
    end if;
    select * into before from topup_intents where id = p_topup for update;
    if not found or before.version <> p_version then
        return false;
    end if;
    news := p_unresolved is not null
        and (p_unresolved is distinct from before.unresolved_reason or p_received > coalesce(before.received_crypto, 0));
    update topup_intents set
        status = p_status,
        version = version + 1,
        received_crypto = coalesce(p_received, received_crypto),
        detected_at = case when p_received > 0 then coalesce(detected_at, p_at) else detected_at end,
        credited_at = case when p_credit_cents > 0 then p_at else credited_at end,
        credited_cents = credited_cents + p_credit_cents + p_excess_cents,
        held_cents = held_cents + p_held_cents,
        forwarded_at = case when p_status = 'forwarded' then coalesce(forwarded_at, p_at) else forwarded_at end,
        unresolved_reason = coalesce(p_unresolved, unresolved_reason),
        resolved_at = case when news then null else resolved_at end,
        polls_done = p_polls_done,
        next_poll_at = p_next_poll_at,
        last_error = null
    where id = p_topup
    returning * into intent;

    if p_credit_cents + p_excess_cents + p_held_cents > 0 then
        update seedbox_billing_accounts set next_sweep_at = least(next_sweep_at, p_at) where user_id = intent.user_id;
        insert into ledger_transfers (id, debit_account_id, credit_account_id, amount_cents, kind, idempotency_key, cause, user_id, created_at)
        select gen_random_uuid(), ledger_house_account('gateway'), part.account, part.cents, part.kind, part.key,
            'payment ' || intent.payment_id, intent.user_id, p_at
        from (values
            ('topup', p_credit_cents, ledger_account_of(intent.user_id, 'paid'), 'coinpay:' || intent.payment_id),
            ('topup_excess', p_excess_cents, ledger_account_of(intent.user_id, 'paid'), 'coinpay:' || intent.payment_id || ':excess'),
            ('topup_held', p_held_cents, ledger_house_account('held'), 'coinpay:' || intent.payment_id || ':held')
        ) part (kind, cents, account, key)
        where part.cents > 0;
        perform enqueue_job('settle_account', json_build_object('user_id', intent.user_id),
            'settle_account:' || intent.user_id, null);
    end if;

    if p_status <> before.status or p_credit_cents + p_excess_cents + p_held_cents > 0 or news then
        perform audit_record('topup', p_topup, p_at, 'system', 'topup.' || p_status, null, '', null,
            jsonb_build_object('status', before.status),
            jsonb_strip_nulls(jsonb_build_object('status', p_status, 'payment_id', intent.payment_id, 'user_id', intent.user_id,
                'credited_cents', p_credit_cents, 'excess_cents', p_excess_cents, 'held_cents', p_held_cents,
                'unresolved_reason', p_unresolved)));
    end if;
    return true;
end $$;

-- As before, and: while a balance is held after abuse nothing is bought from it. Answers 'held' then.
create or replace function order_pay(p_order uuid, p_resource uuid, p_attempt uuid, p_at timestamptz, p_actor text, p_request text)
returns text language plpgsql as $$
declare
    o seedbox_orders;
    plan seedbox_plans;
    held text;
    promotional bigint;
    paid bigint;
    from_promotional bigint;
begin
    select * into strict o from seedbox_orders where id = p_order;
    select payout_hold_reason into held from seedbox_billing_accounts where user_id = o.user_id for update;
    select * into strict o from seedbox_orders where id = p_order for update;
    if o.status <> 'awaiting_payment' then
        return 'not_awaiting';
    end if;
    if o.expires_at <= p_at then
        return 'expired';
    end if;
    if held is not null then
        return 'held';
    end if;
    select balance_cents into strict promotional from ledger_accounts where id = ledger_account_of(o.user_id, 'promotional');
    select balance_cents into strict paid from ledger_accounts where id = ledger_account_of(o.user_id, 'paid');
    if promotional + paid < o.price_cents then
        return 'short';
    end if;
    select * into strict plan from seedbox_plans where id = o.plan_id;

    from_promotional := least(promotional, o.price_cents);
    insert into ledger_transfers (id, debit_account_id, credit_account_id, amount_cents, kind, idempotency_key, cause, user_id, order_id, created_at)
    select gen_random_uuid(), ledger_account_of(o.user_id, part.kind), ledger_account_of(o.user_id, 'reserved'), part.cents,
        'reserve', 'reserve:' || o.id || ':' || part.kind, 'order ' || o.id, o.user_id, o.id, p_at
    from (values ('promotional', from_promotional), ('paid', o.price_cents - from_promotional)) part (kind, cents)
    where part.cents > 0;

    update seedbox_orders set status = 'paid', paid_at = p_at where id = o.id;
    insert into seedbox_resources (id, user_id, kind, order_id, plan_id, label, status, status_since, provider, login_name,
        price_cents, created_at)
    values (p_resource, o.user_id, 'managed', o.id, o.plan_id, plan.name, 'pending', p_at, plan.provider, 'seed', o.price_cents, p_at);
    insert into provision_attempts (id, resource_id, operation, actor, requested_at)
    values (p_attempt, p_resource, 'create', p_actor, p_at);

    perform audit_record('order', o.id, p_at, p_actor, 'order.paid', p_resource, '', p_request,
        jsonb_build_object('status', 'awaiting_payment'),
        jsonb_build_object('status', 'paid', 'price_cents', o.price_cents, 'promotional_cents', from_promotional));
    perform audit_record('resource', p_resource, p_at, p_actor, 'resource.pending', p_resource, '', p_request, null,
        jsonb_build_object('status', 'pending', 'order_id', o.id, 'plan_id', o.plan_id, 'price_cents', o.price_cents));
    perform enqueue_job('operate', json_build_object('attempt_id', p_attempt), 'operate:' || p_attempt, 'resource:' || p_resource);
    return 'paid';
end $$;

-- The newest time that was sealed: a clock that shows less has gone back.
create index audit_checkpoints_at on audit_checkpoints (at);

-- Who is past due, for the report of those whom no warning reaches.
create index seedbox_resources_past_due on seedbox_resources (past_due_since) where past_due_since is not null;

-- When a round that must not be begun by every copy at every tick was begun last, in the system's time.
create table worker_rounds (
    name text primary key,
    begun_at timestamptz not null
);
select seedbox_secure(array['worker_rounds'], array[]::text[]);
grant insert, update on worker_rounds to seedplane_app;

-- An operator has looked at a clock that went back and says that it is right now: checkpoints up to this one, which a clock
-- that was ahead may have sealed in the future, no longer say what the time is.
create table clock_corrections (
    last_checkpoint bigint primary key,
    corrected_at timestamptz not null
);
select seedbox_secure(array['clock_corrections'], array[]::text[]);
grant insert on clock_corrections to seedplane_app;
