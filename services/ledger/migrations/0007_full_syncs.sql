-- phase: before
-- Full syncs that somebody asked for: numbered for each subscription, so that the end of an earlier one is never taken
-- for the end of a later one.

set local role ledger_owner;

alter table ledger.subscription_progress
    add column full_sync_asked bigint not null default 0 check (full_sync_asked >= 0),
    add column full_sync_done bigint not null default 0 check (full_sync_done >= 0);

grant update (full_sync_asked, full_sync_done) on ledger.subscription_progress to ledger_service;

reset role;
