-- name: add
insert into ledger.subscription_history (subscription_id, change, old_value, new_value, reason)
select * from unnest($1::uuid[], $2::text[], $3::smallint[], $4::smallint[], $5::text[])

-- name: exists
select true from ledger.subscriptions where subscription_id = $1

-- name: page
select history_id, changed_at, change, old_value, new_value, reason
  from ledger.subscription_history
 where subscription_id = $1 and history_id < $2
 order by history_id desc
 limit $3
