-- What a provider goes on costing while a box is suspended is ours to bear: a cost, and until its invoice is paid, owed.
alter table ledger_accounts drop constraint ledger_accounts_check;
alter table ledger_accounts add constraint ledger_accounts_check check (case kind
    when 'paid' then sign = 1 and user_id is not null and resource_id is null and balance_cents is not null
    when 'promotional' then sign = 1 and user_id is not null and resource_id is null and balance_cents is not null
    when 'reserved' then sign = 1 and user_id is not null and resource_id is null and balance_cents is not null
    when 'receivable' then sign = -1 and user_id is not null and resource_id is not null and balance_cents is not null
    else kind in ('gateway', 'revenue', 'promotion_cost', 'held', 'payouts', 'written_off', 'upstream_cost', 'upstream_owed')
        and user_id is null and resource_id is null and balance_cents is null
end);
insert into ledger_accounts (id, kind, sign) values ('00000000-0000-7000-8000-000000000008', 'upstream_owed', 1);
