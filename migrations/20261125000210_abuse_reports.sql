-- Notices of infringement and other complaints, as somebody without an account sent them. Everything in them is a stranger's
-- word: it is kept as it came, shown to operators alone, and nothing is done because of it but what an operator does.
create table abuse_reports (
    id uuid primary key,
    form_id uuid not null unique,              -- of the form that was sent, so that one form makes one report
    reference text not null unique check (reference ~ '^R-[0-9A-Z]{4}-[0-9A-Z]{4}$'),
    kind text not null check (kind in ('copyright', 'attack', 'spam', 'malware', 'other')),
    name text not null check (length(name) between 1 and 200),
    email text not null check (length(email) between 3 and 254),
    address text not null check (length(address) <= 500),
    telephone text not null check (length(telephone) <= 50),
    rights_holder text not null check (length(rights_holder) <= 200),
    work text not null check (length(work) <= 2000),
    location text not null check (length(location) between 1 and 2000),
    details text not null check (length(details) <= 1000),
    signature text not null check (length(signature) <= 200),
    sender_hash bytea not null check (octet_length(sender_hash) = 32),  -- of the network address it came from
    created_at timestamptz not null,
    closed_at timestamptz,
    closed_by uuid references users,
    outcome text check (outcome in ('acted_on', 'not_ours', 'rejected')),
    close_reason text check (length(close_reason) between 1 and 1000),
    resource_id uuid references seedbox_resources,  -- the box that was acted on
    -- What 17 U.S.C. 512(c)(3) asks of a notice; both statements are made by signing it.
    check (kind <> 'copyright' or (rights_holder <> '' and work <> '' and address <> '' and signature <> '')),
    check ((closed_at is null) = (outcome is null)),
    check ((closed_at is null) = (close_reason is null)),
    check ((closed_at is null) = (closed_by is null)),
    check ((outcome is not distinct from 'acted_on') = (resource_id is not null))
);
create index abuse_reports_open on abuse_reports (id) where closed_at is null;
create index abuse_reports_open_of_email on abuse_reports (email) where closed_at is null;
create index on abuse_reports (sender_hash, created_at);
create index on abuse_reports (resource_id) where resource_id is not null;

-- A mail to somebody who has no account goes to an address; every other to a person, at the address they have by then.
alter table mail_outbox
    alter column user_id drop not null,
    add column address text check (length(address) between 3 and 254),
    add check ((user_id is null) <> (address is null));

select seedbox_secure(array['abuse_reports'], array[]::text[]);
grant insert on abuse_reports to seedplane_app;
-- What was sent stays as it came: only its end is written.
grant update (closed_at, closed_by, outcome, close_reason, resource_id) on abuse_reports to seedplane_app;
grant delete on mail_outbox to seedplane_app;
