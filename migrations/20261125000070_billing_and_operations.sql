-- What billing, payments and operations need to keep apart: one lapse from the next, one dip of a balance from the next,
-- one resolution of a payment from the next; and who could not be settled.

-- A lapse begins when a month cannot be paid and ends when it is paid or the months start anew. Its number is in the keys of
-- its notices and of what it makes the box owe, so that each lapse is told and booked for itself.
alter table seedbox_resources add column lapse_number integer not null default 0 check (lapse_number >= 0);

alter table seedbox_billing_accounts
    add column runway_dip integer not null default 0,      -- in the keys of the runway notices: how often the balance lasted again
    add column sweep_failures integer not null default 0;  -- in a row; an account that fails is put off, and stops nobody else
