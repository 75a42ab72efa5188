-- What a one-time link opens is one password: of which version it is. A rotation makes every link from before it dead.
alter table one_time_links add column credentials_version integer;

-- What a webhook said had come, where the gateway itself does not tell any more. Nothing is ever booked on it.
alter table topup_intents add column claimed_crypto numeric check (claimed_crypto > 0);

-- Quotes that are open are asked about every few seconds: only until the gateway confirms does it tell how much came.
create index topup_intents_watched on topup_intents (looked_at) where status in ('pending', 'detected');

-- Sign-ins that were tried, by the hash of the account and of the address they came from; forgotten after a month.
create table sign_in_attempts (
    id uuid primary key,
    account_hash bytea not null check (octet_length(account_hash) = 32),
    address_hash bytea not null check (octet_length(address_hash) = 32),
    succeeded boolean not null,
    at timestamptz not null
);
create index on sign_in_attempts (account_hash, at);
create index on sign_in_attempts (address_hash, at);
create index on sign_in_attempts (at);

-- What is forgotten is found by its age.
create index on sessions (expires_at);
create index on one_time_links (expires_at);

select seedbox_secure(array['sign_in_attempts'], array[]::text[]);
grant insert, update, delete on sign_in_attempts to seedplane_app;
