-- What boxes use, as their providers count it. Traffic is kept as what came and went between two looks; a look is a claim of the
-- row by its next_look_at, so that of two that overlap one is written.
create table seedbox_usage (
    resource_id uuid primary key references seedbox_resources,
    next_look_at timestamptz,                  -- null: there is nothing to count any more
    counted_at timestamptz,                    -- the newest look that was answered; null: none was yet
    count_name text,                           -- the provider's name of the count that the two counters belong to
    received_counter bigint check (received_counter >= 0),
    sent_counter bigint check (sent_counter >= 0),
    disk_used_bytes bigint check (disk_used_bytes >= 0),
    disk_total_bytes bigint check (disk_total_bytes >= disk_used_bytes),
    month_began_at timestamptz,                -- the month of the box that the two sums are of
    received_bytes bigint not null default 0 check (received_bytes >= 0),
    sent_bytes bigint not null default 0 check (sent_bytes >= 0),
    last_error text                            -- why the newest look was not answered; null: it was
);
create index on seedbox_usage (next_look_at);

-- By the hour for weeks, by the day for a year: what came and went within it, and the most that lay on the disk.
create table seedbox_usage_hours (
    resource_id uuid not null references seedbox_resources,
    began_at timestamptz not null,
    received_bytes bigint not null check (received_bytes >= 0),
    sent_bytes bigint not null check (sent_bytes >= 0),
    disk_used_bytes bigint not null check (disk_used_bytes >= 0),
    primary key (resource_id, began_at)
);
create index on seedbox_usage_hours (began_at);

create table seedbox_usage_days (like seedbox_usage_hours including all);
alter table seedbox_usage_days add foreign key (resource_id) references seedbox_resources;

insert into seedbox_usage (resource_id, next_look_at)
select id, now() from seedbox_resources where kind = 'managed' and status in ('active', 'suspended');

alter table provision_attempts
    drop constraint provision_attempts_operation_check,
    add constraint provision_attempts_operation_check
        check (operation in ('create', 'suspend', 'resume', 'restart', 'rotate_credentials', 'resize', 'terminate'));

select seedbox_secure(array['seedbox_usage', 'seedbox_usage_hours', 'seedbox_usage_days'], array[]::text[]);
grant insert, update on seedbox_usage to seedplane_app;
grant insert, update, delete on seedbox_usage_hours, seedbox_usage_days to seedplane_app;
