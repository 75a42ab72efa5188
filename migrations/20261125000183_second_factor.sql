-- The second factor: codes of an authenticator app. Its secret is in the secret store; here is where.
create table second_factors (
    user_id uuid primary key references users on delete cascade,
    secret_ref text not null,
    created_at timestamptz not null,
    confirmed_at timestamptz,                  -- null until a code proved that the app has it
    last_step bigint                           -- the time step of the last code that was used: none is good twice
);

-- What replaces a code when the app is gone, once each. Of 80 random bits, so that the hash tells nothing.
create table recovery_codes (
    user_id uuid not null references users on delete cascade,
    code_hash bytea not null check (octet_length(code_hash) = 32),
    created_at timestamptz not null,
    used_at timestamptz,
    primary key (user_id, code_hash)
);

-- Whether it was opened with a second factor, or made in such a session.
alter table sessions add second_factor boolean not null default false;
alter table api_tokens add second_factor boolean not null default false;

select seedbox_secure(array['second_factors', 'recovery_codes'], array[]::text[]);
grant insert, update, delete on second_factors, recovery_codes to seedplane_app;
