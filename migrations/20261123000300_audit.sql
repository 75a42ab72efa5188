-- The audit log: append-only, one hash chain a subject, so that unrelated writers never wait for each other. A background
-- job seals the heads of all chains in a signed checkpoint.

create table seedbox_audit_events (
    id bigint generated always as identity primary key,
    subject_kind text not null,
    subject_id uuid not null,
    seq bigint not null check (seq > 0),
    at timestamptz not null,
    actor text not null check (actor ~ '^(system|(operator|user|node):[0-9a-f-]{36})$'),
    action text not null check (length(action) between 1 and 80),
    resource_id uuid,
    reason text not null default '' check (length(reason) <= 2000),
    request_id text,
    before jsonb,
    after jsonb,
    previous_hash bytea not null check (octet_length(previous_hash) = 32),
    hash bytea not null check (octet_length(hash) = 32),
    unique (subject_id, seq),
    -- An operator says why.
    check (actor not like 'operator:%' or reason <> '')
);
create index on seedbox_audit_events (resource_id) where resource_id is not null;
create trigger seedbox_audit_events_append_only before update or delete or truncate on seedbox_audit_events
    for each statement execute function refuse_change();

create table audit_chains (
    subject_id uuid primary key,
    seq bigint not null,
    head bytea not null,
    sealed_seq bigint not null default 0
);
create index audit_chains_unsealed on audit_chains (subject_id) where seq > sealed_seq;

create table audit_checkpoints (
    id bigint primary key,
    at timestamptz not null,
    chains bigint not null,
    digest bytea not null,                     -- sha256 over the previous digest and every head below
    signature bytea not null,                  -- Ed25519 over the digest
    public_key bytea not null
);
create table audit_checkpoint_heads (
    checkpoint_id bigint not null references audit_checkpoints,
    subject_id uuid not null,
    seq bigint not null,
    head bytea not null,
    primary key (checkpoint_id, subject_id)
);
create trigger audit_checkpoints_append_only before update or delete or truncate on audit_checkpoints
    for each statement execute function refuse_change();
create trigger audit_checkpoint_heads_append_only before update or delete or truncate on audit_checkpoint_heads
    for each statement execute function refuse_change();

-- One field of a hashed row: absent is `-`, present is its length in bytes, a colon and the bytes. No two rows are alike.
create function audit_field(value text) returns bytea language sql immutable as $$
    select case when value is null then '-'::bytea
                else convert_to(octet_length(value)::text || ':' || value, 'UTF8') end
$$;

-- The hash of one event. `audit/chain.rs` computes the same from the stored columns; a test compares them.
create function audit_event_hash(
    previous bytea, subject_kind text, subject_id uuid, seq bigint, at timestamptz, actor text, action text, resource_id uuid,
    reason text, request_id text, before jsonb, after jsonb
) returns bytea language sql immutable as $$
    select sha256(
        'seedplane audit event 1'::bytea || previous
        || audit_field(subject_kind) || audit_field(subject_id::text) || audit_field(seq::text)
        || audit_field((extract(epoch from at) * 1000000)::bigint::text)
        || audit_field(actor) || audit_field(action) || audit_field(resource_id::text)
        || audit_field(reason) || audit_field(request_id) || audit_field(before::text) || audit_field(after::text))
$$;

-- The only writer. Runs as the owner, so that the application can add to a chain and nothing else.
create function audit_record(
    p_subject_kind text, p_subject_id uuid, p_at timestamptz, p_actor text, p_action text, p_resource_id uuid, p_reason text,
    p_request_id text, p_before jsonb, p_after jsonb
) returns void language plpgsql security definer set search_path = public, pg_temp as $$
declare
    chain audit_chains;
    new_hash bytea;
begin
    select * into chain from audit_chains where subject_id = p_subject_id for update;
    if not found then
        insert into audit_chains (subject_id, seq, head)
        values (p_subject_id, 0, sha256('seedplane audit chain 1:'::bytea || convert_to(p_subject_id::text, 'UTF8')))
        on conflict do nothing;
        select * into strict chain from audit_chains where subject_id = p_subject_id for update;
    end if;
    new_hash := audit_event_hash(chain.head, p_subject_kind, p_subject_id, chain.seq + 1, p_at, p_actor, p_action,
        p_resource_id, p_reason, p_request_id, p_before, p_after);
    insert into seedbox_audit_events (subject_kind, subject_id, seq, at, actor, action, resource_id, reason, request_id,
        before, after, previous_hash, hash)
    values (p_subject_kind, p_subject_id, chain.seq + 1, p_at, p_actor, p_action, p_resource_id, p_reason, p_request_id,
        p_before, p_after, chain.head, new_hash);
    update audit_chains set seq = chain.seq + 1, head = new_hash where subject_id = p_subject_id;
end $$;
