-- What an API token may be used for. Those that exist go on with all that their owner's role has.
alter table api_tokens add scopes text[];
update api_tokens t
set scopes = array['read', 'boxes', 'money', 'servers', 'account']
    || case when u.role = 'customer' then array[]::text[] else array['operator'] end
from users u where u.id = t.user_id;
alter table api_tokens
    alter scopes set not null,
    add constraint api_tokens_scopes_check check (
        cardinality(scopes) > 0 and scopes <@ array['read', 'boxes', 'money', 'servers', 'account', 'operator']);
