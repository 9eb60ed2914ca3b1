-- phase: before
-- For how long a license was issued, kept when a rotation brings its end forward: a successor gets all of it.

set local role ledger_owner;

alter table ledger.licenses add column validity interval check (validity > interval '0');

grant update (validity) on ledger.licenses to ledger_service;
grant select (validity) on ledger.licenses to analyst_readonly;

reset role;
