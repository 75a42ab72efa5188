-- Whose month begins next, for the list of those who run out of money.
create index seedbox_resources_paid_until on seedbox_resources (paid_until) where status = 'active' and kind = 'managed';
