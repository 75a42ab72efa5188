-- Sessions on pages that were opened with a token of another issuer: they reach what such a token does, and no more.
alter table sessions add column issued boolean not null default false;
