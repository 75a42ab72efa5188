-- Plans say in which region their boxes are made, and what a provider offers is kept here: handlers read it, workers renew it.

alter table seedbox_plans add column region text check (length(region) between 1 and 60);  -- null: the provider has one place

create table provider_catalogues (
    provider text primary key,
    capabilities jsonb,                        -- as they were read last; null: never
    read_at timestamptz,
    looked_at timestamptz not null,            -- the newest look, whatever came of it
    failing_since timestamptz,                 -- null: the newest look succeeded
    error_kind text check (error_kind in ('access', 'create_access', 'failing')),
    error text,
    check ((failing_since is null) = (error_kind is null) and (error_kind is null) = (error is null)),
    check ((capabilities is null) = (read_at is null))
);

-- Why no box can be made of a plan at this provider now; null: it can.
create function seedbox_unavailable(p_provider text, p_region text) returns text language sql stable as $$
    select case
        when catalogue.error_kind in ('access', 'create_access') then 'access_refused'
        when catalogue.capabilities is null then 'unknown_provider'
    end
    from (select p_provider as name) asked left join provider_catalogues catalogue on catalogue.provider = asked.name
$$;

-- As before, and: an order whose box cannot be made now stays unpaid. Answers 'unavailable' then.
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
    if seedbox_unavailable(plan.provider, plan.region) is not null then
        return 'unavailable';
    end if;

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

select seedbox_secure(array['provider_catalogues'], array['seedbox_unavailable']);
grant insert, update on provider_catalogues to seedplane_app;
