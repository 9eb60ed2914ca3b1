-- name: create_chunks
select ledger.create_chunks('ledger.signal_archive', (now() at time zone 'UTC')::date - 1,
                            (now() at time zone 'UTC')::date + $1::integer)

-- name: drop_chunks
select ledger.drop_chunks('ledger.signal_archive', $1::interval)

-- name: drop_gaps
select ledger.drop_gaps($1::interval, $2::integer)

-- name: purge_idempotency_keys
with old as (
    delete from ledger.idempotency_keys
     where (operation, request_id) in (select operation, request_id from ledger.idempotency_keys
                                        where created_at < now() - $1::interval order by created_at limit $2)
    returning 1
)
select count(*) from old

-- name: purge_history
with old as (
    delete from ledger.subscription_history
     where history_id in (select history_id from ledger.subscription_history
                           where changed_at < now() - $1::interval order by changed_at limit $2)
    returning 1
)
select count(*) from old
