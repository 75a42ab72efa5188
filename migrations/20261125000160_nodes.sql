-- What tells the machines of this installation from those of others at a provider that several may share.
create table installation (
    id uuid primary key default gen_random_uuid(),
    only_one boolean not null default true unique check (only_one)
);
insert into installation default values;

-- The node on a machine elsewhere: what it was told, and what it reported. Its private key and its token are in the secret store.
create table seedbox_nodes (
    resource_id uuid primary key references seedbox_resources,
    attempt_id uuid not null references provision_attempts,     -- the attempt to make the box that the token is good for
    management_key text not null,                               -- the public half, as its gate lets it in
    secret_ref text,                                            -- where the private half is; null once it is destroyed
    token_sha256 bytea not null check (length(token_sha256) = 32),
    token_expires_at timestamptz not null,
    state text not null default 'awaited' check (state in ('awaited', 'ready', 'failed')),
    failure text check (length(failure) <= 200),
    host_key text check (length(host_key) <= 200),
    web_url text check (length(web_url) <= 300),
    certificate_sha256 text check (length(certificate_sha256) <= 100),
    report_sha256 bytea check (length(report_sha256) = 32),     -- of the report as it came: the same one again is no other
    reported_at timestamptz,
    created_at timestamptz not null,
    check ((state = 'awaited') = (reported_at is null))
);

alter table provision_attempts
    -- create: when the provider was last asked to make a machine, by the system's clock, and whether nobody knows what came of it
    add asked_at timestamptz,
    add outcome_unknown boolean not null default false,
    -- terminate: what was done and seen so far, for the certificate
    add facts jsonb not null default '[]' check (jsonb_typeof(facts) = 'array' and jsonb_array_length(facts) <= 500);

select seedbox_secure(array['installation', 'seedbox_nodes'], array[]::text[]);
grant insert, update on seedbox_nodes to seedplane_app;
