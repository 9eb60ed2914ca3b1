-- name: add
with added as (
    insert into ledger.outbox (payload) select unnest($1::bytea[]) returning 1
)
select count(*), (select pg_notify('ledger_outbox', '')) from added

-- name: number
with unseen as (
    select outbox_id from ledger.outbox where event_id is null order by outbox_id limit $1
), numbered as (
    select outbox_id, nextval('ledger.event_id_seq') as event_id
      from (select outbox_id from unseen order by outbox_id) as in_order
)
update ledger.outbox as o
   set event_id = numbered.event_id
  from numbered
 where o.outbox_id = numbered.outbox_id
   -- Asked again when the row was locked: a former leader may just have numbered it.
   and o.event_id is null

-- name: oldest
select event_id, created_at, payload
  from ledger.outbox
 where event_id is not null
 order by event_id
 limit $1

-- name: forget
delete from ledger.outbox where event_id is not null and event_id <= $1

-- name: backlog
select count(*) as events, coalesce(extract(epoch from now() - min(created_at)), 0)::float8 as age_seconds
  from ledger.outbox
