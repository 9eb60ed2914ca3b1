-- phase: before
-- Up to where in its master's log a subscription was in step and when, and where it last missed something: by these a
-- record that comes late, because its process could not reach the ledger sooner, is told from one that says what is.

set local role ledger_owner;

alter table ledger.subscription_progress
    add column synced_epoch bigint not null default 0 check (synced_epoch >= 0),
    add column synced_sequence bigint not null default 0 check (synced_sequence >= 0),
    add column synced_at timestamptz not null default '-infinity',
    add column degraded_epoch bigint not null default 0 check (degraded_epoch >= 0),
    add column degraded_sequence bigint not null default 0 check (degraded_sequence >= 0);

grant update (synced_epoch, synced_sequence, synced_at, degraded_epoch, degraded_sequence)
    on ledger.subscription_progress to ledger_service;

reset role;
