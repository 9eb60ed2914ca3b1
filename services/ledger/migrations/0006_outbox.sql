-- phase: before
-- Changes that the other services must hear of, written in the transactions that make them.

set local role ledger_owner;

create table ledger.outbox (
    outbox_id bigint generated always as identity primary key,
    -- Given by the one publisher when it first sees the row: transactions commit in another order than they draw
    -- outbox_ids, and readers skip an event whose id is below one they have seen.
    event_id bigint unique,
    created_at timestamptz not null default now(),
    -- A serialized execution.ledger.v1.LedgerEvent without event_id and occurred_at.
    payload bytea not null
);
create sequence ledger.event_id_seq owned by ledger.outbox.event_id;

grant select, insert, update, delete on ledger.outbox to ledger_service;
grant usage on sequence ledger.event_id_seq to ledger_service;
grant select on ledger.outbox to analyst_readonly;

reset role;
