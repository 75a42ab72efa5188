-- Where our rows and what is upstream do not agree, as each look at a provider found it: what costs money for nothing, what is lost.

alter table provider_catalogues
    add column compared_at timestamptz,        -- the newest look that compared everything
    add column billing_error text;             -- why what is billed could not be read at the newest look; null: it could

create table drift_findings (
    id uuid primary key,
    provider text not null,
    kind text not null check (kind in ('unknown_upstream', 'twin', 'missing_upstream', 'alive_though_terminated', 'costing_while_free')),
    subject text not null,                     -- what it is about, the same at every look
    resource_ref text,                         -- the provider's name of it; null: nothing is there
    resource_id uuid,                          -- our id in its tag, whether there is such a box or not
    monthly_cost_cents bigint,                 -- null: the provider does not say
    since timestamptz,                         -- where it is known; otherwise it was seen first at first_seen_at
    detail text not null,
    proposal text not null,
    first_seen_at timestamptz not null,
    last_seen_at timestamptz not null,
    resolved_at timestamptz                    -- the look that did not find it any more
);
create unique index drift_findings_one on drift_findings (provider, kind, subject) where resolved_at is null;
create index drift_findings_resolved on drift_findings (resolved_at desc) where resolved_at is not null;

select seedbox_secure(array['drift_findings'], array[]::text[]);
grant insert, update on drift_findings to seedplane_app;
