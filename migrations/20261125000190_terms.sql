-- The terms that were shown, word for word, and who accepted which: an acceptance names a version, and the version its text.
create table terms_versions (
    version text primary key check (version ~ '^[0-9a-f]{12}$'),  -- the beginning of the text's sha256
    body text not null check (length(body) between 1 and 200000),
    first_accepted_at timestamptz not null
);

create table terms_acceptances (
    user_id uuid not null references users on delete cascade,
    version text not null references terms_versions,
    accepted_at timestamptz not null,
    primary key (user_id, version)
);

select seedbox_secure(array['terms_versions', 'terms_acceptances'], array[]::text[]);
grant select, insert on terms_versions, terms_acceptances to seedplane_app;
