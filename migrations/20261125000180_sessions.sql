-- What opened a session, from where, and when it was last used (to five minutes): so that its owner knows it again.
alter table sessions
    add user_agent text check (length(user_agent) <= 200),
    add address text check (length(address) <= 64),
    add last_used_at timestamptz;

-- Since when the password is what it is: what was asked for before then is good no longer. Null for the first one.
alter table users add password_changed_at timestamptz;
