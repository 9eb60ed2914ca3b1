-- name: claim
insert into ledger.idempotency_keys (operation, request_id, body_sha256, result)
values ($1, $2, $3, $4)
on conflict (operation, request_id) do nothing
returning result

-- name: find
select body_sha256, result, created_at, now() - created_at as age
  from ledger.idempotency_keys
 where operation = $1 and request_id = $2
