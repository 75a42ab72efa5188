-- What takes a second person: what was asked for, by whom and why, and exactly what will happen to whom, as it was when it was
-- asked. Decided once, by somebody else; carried out with that.
create table operator_approvals (
    id uuid primary key,
    kind text not null check (kind in ('payout', 'blast_limit', 'plan_price', 'mass_action')),
    subject text not null check (length(subject) between 1 and 200), -- what it is about: one of a kind and subject waits at a time
    request jsonb not null,                    -- what is carried out
    summary text not null check (length(summary) between 1 and 500),
    effects jsonb not null,                    -- what will happen, to whom and what it costs, for people
    asked_by uuid not null references users,
    reason text not null check (length(reason) between 1 and 1000),
    asked_at timestamptz not null,
    expires_at timestamptz not null check (expires_at > asked_at),
    status text not null default 'waiting' check (status in ('waiting', 'approved', 'refused', 'withdrawn', 'expired')),
    decided_by uuid references users,
    decision_reason text check (length(decision_reason) between 1 and 1000),
    decided_at timestamptz,
    check ((status = 'waiting') = (decided_at is null)),
    check ((status in ('approved', 'refused', 'withdrawn')) = (decided_by is not null)),
    check ((decided_by is null) = (decision_reason is null)),
    constraint operator_approvals_by_somebody_else check (status not in ('approved', 'refused') or decided_by <> asked_by),
    constraint operator_approvals_withdrawn_by_who_asked check (status <> 'withdrawn' or decided_by = asked_by),
    constraint operator_approvals_in_time check (status <> 'approved' or decided_at < expires_at)
);
create unique index operator_approvals_one_waits on operator_approvals (kind, subject) where status = 'waiting';
create index operator_approvals_waiting on operator_approvals (expires_at) where status = 'waiting';
create index operator_approvals_decided on operator_approvals (decided_at desc) where status <> 'waiting';

-- What was asked for stays as it was asked, who asks and decides runs the business, and a decision stands.
create function operator_approvals_guard() returns trigger language plpgsql as $$
declare
    decision text[] := array['status', 'decided_by', 'decision_reason', 'decided_at'];
    person uuid := new.asked_by;
begin
    if tg_op = 'INSERT' then
        if new.status <> 'waiting' then
            raise exception 'an approval begins by waiting for somebody' using errcode = 'check_violation';
        end if;
    else
        if old.status <> 'waiting' then
            raise exception 'the approval % is % already', old.id, old.status using errcode = 'check_violation';
        end if;
        if to_jsonb(new) - decision <> to_jsonb(old) - decision then
            raise exception 'what the approval % is of cannot be changed', old.id using errcode = 'check_violation';
        end if;
        person := new.decided_by;
    end if;
    if person is not null and not exists (select from users where id = person and role in ('operator', 'owner')) then
        raise exception '% does not run this business', person using errcode = 'check_violation';
    end if;
    return new;
end $$;
create trigger operator_approvals_guard before insert or update on operator_approvals
    for each row execute function operator_approvals_guard();

-- A payout that needs an approval is not sent without it, whatever the application asks.
alter table payouts add column approval_id uuid references operator_approvals;

create function payouts_guard() returns trigger language plpgsql as $$
begin
    if new.approval_id is distinct from old.approval_id then
        raise exception 'what the payout % needs cannot be changed', old.id using errcode = 'check_violation';
    end if;
    if new.status = 'sent' and new.approval_id is not null
        and not exists (select from operator_approvals where id = new.approval_id and status = 'approved') then
        raise exception 'the payout % was not approved', old.id using errcode = 'check_violation';
    end if;
    return new;
end $$;
create trigger payouts_guard before update on payouts for each row execute function payouts_guard();

select seedbox_secure(array['operator_approvals'], array['operator_approvals_guard', 'payouts_guard']);
grant insert, update on operator_approvals to seedplane_app;
