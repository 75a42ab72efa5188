-- Resets of passwords that were asked for, whether or not there is such an account. The address is kept until a worker has
-- looked for its account; the hashes for as long as they limit how often is asked.
create table password_reset_requests (
    id uuid primary key,
    account_hash bytea not null check (octet_length(account_hash) = 32),
    address_hash bytea not null check (octet_length(address_hash) = 32),
    email text check (length(email) <= 254),
    at timestamptz not null
);
create index on password_reset_requests (account_hash, at);
create index on password_reset_requests (address_hash, at);
create index on password_reset_requests (at);

alter table one_time_links
    drop constraint one_time_links_purpose_check,
    add constraint one_time_links_purpose_check check (purpose in ('credentials', 'password_reset'));
create index one_time_links_resets on one_time_links (user_id) where purpose = 'password_reset' and used_at is null;

select seedbox_secure(array['password_reset_requests'], array[]::text[]);
grant insert, update, delete on password_reset_requests to seedplane_app;
