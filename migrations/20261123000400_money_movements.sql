-- The movements of money that a customer waits for, each one statement and so one round trip.

-- Adds a job in the caller's transaction. A job with the same key that waits is replaced; one that runs gets a successor.
create function enqueue_job(p_identifier text, p_payload json, p_key text, p_queue text, p_run_at timestamptz default null)
returns void language plpgsql as $$
begin
    perform graphile_worker.add_jobs(array[(jsonb_populate_record(null::graphile_worker.job_spec, jsonb_build_object(
        'identifier', p_identifier, 'payload', p_payload::jsonb, 'job_key', p_key, 'queue_name', p_queue, 'run_at', p_run_at)))]);
end $$;

-- Writes what the gateway said about a payment, and books it. False: somebody else wrote first, look again.
create function topup_apply(
    p_topup uuid, p_version bigint, p_status text, p_received numeric, p_credit_cents bigint, p_excess_cents bigint,
    p_held_cents bigint, p_unresolved text, p_polls_done integer, p_next_poll_at timestamptz, p_at timestamptz
) returns boolean language plpgsql as $$
declare
    intent topup_intents;
    earlier text;
begin
    select status into earlier from topup_intents where id = p_topup;
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
        polls_done = p_polls_done,
        next_poll_at = p_next_poll_at,
        last_error = null
    where id = p_topup and version = p_version
    returning * into intent;
    if not found then
        return false;
    end if;

    if p_credit_cents + p_excess_cents + p_held_cents > 0 then
        -- The account's row first: everything that moves this customer's money takes it before anything else.
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

    if p_status <> earlier or p_credit_cents + p_excess_cents + p_held_cents > 0 or p_unresolved is not null then
        perform audit_record('topup', p_topup, p_at, 'system', 'topup.' || p_status, null, '', null,
            jsonb_build_object('status', earlier),
            jsonb_strip_nulls(jsonb_build_object('status', p_status, 'payment_id', intent.payment_id, 'user_id', intent.user_id,
                'credited_cents', p_credit_cents, 'excess_cents', p_excess_cents, 'held_cents', p_held_cents,
                'unresolved_reason', p_unresolved)));
    end if;
    return true;
end $$;

-- Pays an order from the balance, whole or not at all: promotional credit first. The money is reserved, not earned: it is
-- posted when the box is active and voided when it can't be made.
-- Answers 'paid', 'short', 'expired' or 'not_awaiting'.
create function order_pay(p_order uuid, p_resource uuid, p_attempt uuid, p_at timestamptz, p_actor text, p_request text)
returns text language plpgsql as $$
declare
    o seedbox_orders;
    plan seedbox_plans;
    promotional bigint;
    paid bigint;
    from_promotional bigint;
begin
    select * into strict o from seedbox_orders where id = p_order;
    perform from seedbox_billing_accounts where user_id = o.user_id for update;
    select * into strict o from seedbox_orders where id = p_order for update;
    if o.status <> 'awaiting_payment' then
        return 'not_awaiting';
    end if;
    if o.expires_at <= p_at then
        return 'expired';
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
