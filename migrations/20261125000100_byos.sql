-- Bring your own server: what is known of a connection, the moves it can make, and every command that was sent over it.

alter table byos_connections
    add column version bigint not null default 1,                -- the fence of every write
    add column status_since timestamptz not null,
    add column access text not null default 'key' check (access in ('key', 'certificate')),  -- certificate: the key is our authority's
    add column key_number integer not null default 1 check (key_number > 0),  -- counts up with each rotation
    add column next_public_key text,                             -- a rotation that is under way
    add column next_secret_ref text,
    add column rotation_error text,                              -- what went wrong with it last
    add column host_key text,                                    -- pinned at the first contact: `ssh-ed25519 AAAA...`
    add column seen_host_key text,                               -- a changed one, which waits for the owner's word
    add column seen_host_key_fingerprint text,
    add column consented_gate_sha256 text not null,              -- what the owner agreed to
    add column consented_manifest_sha256 text not null,
    add column gate_sha256 text,                                 -- what the server said it runs
    add column manifest_sha256 text,
    add column server_version text,
    add column os_name text,
    add column latency_ms integer check (latency_ms >= 0),
    add column next_probe_at timestamptz,                        -- null: not looked at any more
    add column last_probe_at timestamptz,
    add column probe_failures integer not null default 0 check (probe_failures >= 0),
    add column refused_since timestamptz,                        -- since when the pinned server refuses our key
    add column last_error_kind text,
    add column last_error text,
    add column server_log text,                                  -- the newest lines of the server's own log
    add column server_log_at timestamptz,
    add column log_differences integer,                          -- lines that do not agree with our record, at that time
    add column revoke_requested_at timestamptz,
    add column revocation text check (revocation in ('locked_out', 'unverified', 'by_owner')),
    add column locked_out_at timestamptz,                        -- when a login with our key was seen to be refused
    add column revoked_at timestamptz,
    add constraint byos_connections_rotation check ((next_public_key is null) = (next_secret_ref is null)),
    add constraint byos_connections_certificate check (access = 'key' or next_public_key is null),
    add constraint byos_connections_revoked check ((status = 'revoked') = (revoked_at is not null)),
    add constraint byos_connections_public_key check (public_key like 'ssh-ed25519 AAAA%' and next_public_key like 'ssh-ed25519 AAAA%');
create index byos_connections_revoking on byos_connections (revoke_requested_at)
    where revoke_requested_at is not null and status <> 'revoked';
create index byos_connections_due on byos_connections (next_probe_at) where next_probe_at is not null;

-- The same pairs as `src/byos/connections.rs`; a test compares the two over all pairs.
create function byos_connection_allows(old_status text, new_status text) returns boolean
language sql immutable as $$
    select (old_status, new_status) in (
        ('pending', 'connected'),
        ('pending', 'revoked'),
        ('connected', 'error'),
        ('connected', 'revoked'),
        ('error', 'connected'),
        ('error', 'revoked'))
$$;

create function byos_connections_guard() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' then
        if new.status <> 'pending' then
            raise exception 'a connection starts as pending, not as %', new.status using errcode = 'check_violation';
        end if;
        return new;
    end if;
    if new.status <> old.status and not byos_connection_allows(old.status, new.status) then
        raise exception 'a connection does not go % -> % (connection %)', old.status, new.status, old.id
            using errcode = 'check_violation';
    end if;
    if (new.user_id, new.host, new.port, new.access) is distinct from (old.user_id, old.host, old.port, old.access) then
        raise exception 'whose connection % is, where it leads and how we log in does not change', old.id using errcode = 'check_violation';
    end if;
    if new.version <= old.version then
        raise exception 'a change of connection % must raise its version', old.id using errcode = 'check_violation';
    end if;
    return new;
end $$;
create trigger byos_connections_guard before insert or update on byos_connections
    for each row execute function byos_connections_guard();

-- Every command that was sent to a server, written before it was sent: its id is the request id in the server's own log.
create table byos_commands (
    id uuid primary key,
    connection_id uuid not null references byos_connections,
    action text not null check (length(action) between 1 and 40),
    argument text check (length(argument) between 1 and 120),
    actor text not null,
    status text not null default 'requested' check (status in ('requested', 'sent', 'done', 'refused', 'failed')),
    requested_at timestamptz not null,
    sent_at timestamptz,                       -- from here on the server may have it in its log
    finished_at timestamptz,
    exit_status integer,
    output text check (length(output) <= 262144),
    error text
);
create index on byos_commands (connection_id, requested_at desc);
create index byos_commands_waiting on byos_commands (requested_at) where status in ('requested', 'sent');
create index byos_commands_old on byos_commands (requested_at);

select seedbox_secure(array['byos_commands'], array['byos_connection_allows', 'byos_connections_guard']);
grant insert, update, delete on byos_commands to seedplane_app;
