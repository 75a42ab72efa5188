-- The trial's links that sign somebody in once: printed at the end of `seedplane demo`.
alter table one_time_links
    drop constraint one_time_links_purpose_check,
    add constraint one_time_links_purpose_check check (purpose in ('credentials', 'password_reset', 'sign_in'));
