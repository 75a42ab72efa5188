-- Whether the operator may sell torrent boxes at a provider whose terms do not allow them by themselves: who looked into it, when
-- and on what ground. Revoking stops new sales; boxes stay as they are.
create table provider_permissions (
    id uuid primary key,
    provider text not null,
    region text check (length(region) between 1 and 60),       -- null: everywhere at the provider
    reason text not null check (length(reason) between 10 and 1000),
    permitted_at timestamptz not null,
    permitted_by text not null,
    revoked_at timestamptz,
    revoked_by text,
    revoke_reason text check (length(revoke_reason) between 10 and 1000),
    check ((revoked_at is null) = (revoked_by is null) and (revoked_at is null) = (revoke_reason is null))
);
create unique index provider_permissions_one on provider_permissions (provider, coalesce(region, '')) where revoked_at is null;

-- As before, and: not without the operator's permission where the provider's terms do not allow torrents.
create or replace function seedbox_unavailable(p_provider text, p_region text) returns text language sql stable as $$
    select case
        when catalogue.error_kind in ('access', 'create_access') then 'access_refused'
        when catalogue.capabilities is null then 'unknown_provider'
        when catalogue.capabilities ->> 'torrent_stance' is distinct from 'allowed' and not exists (
            select from provider_permissions permission
            where permission.provider = p_provider and permission.revoked_at is null
              and (permission.region is null or permission.region = p_region)) then 'not_permitted'
    end
    from (select p_provider as name) asked left join provider_catalogues catalogue on catalogue.provider = asked.name
$$;

select seedbox_secure(array['provider_permissions'], array['seedbox_unavailable']);
grant insert, update on provider_permissions to seedplane_app;
