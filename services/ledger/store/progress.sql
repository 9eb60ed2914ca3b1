-- name: record
-- Rows are locked in the order of their ids, then written; a position only moves forward, and so does the number of the
-- full sync that was done. Each change of the sync state becomes a line of the history, at the time when it happened.
with given as (
    select * from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
           with ordinality as g (user_id, master_id, epoch, sequence, full_sync_done, number)
), turns as (
    select * from unnest($6::bigint[], $7::smallint[], $8::text[], $9::timestamptz[])
           with ordinality as t (number, sync_state, reason, changed_at, place)
), active as materialized (
    select s.subscription_id, g.epoch, g.sequence, g.full_sync_done, g.number
      from given as g
      join ledger.subscriptions as s
        on s.user_id = g.user_id and s.master_id = g.master_id and s.cancelled_at is null
), locked as materialized (
    select p.subscription_id, p.acknowledged_epoch, p.acknowledged_sequence, p.sync_state, p.full_sync_asked,
           p.full_sync_done
      from ledger.subscription_progress as p
     where p.subscription_id in (select subscription_id from active)
     order by p.subscription_id
       for no key update
), steps as (
    select l.subscription_id, t.place, t.sync_state as after, t.reason,
           least(coalesce(t.changed_at, now()), now()) as changed_at,
           lag(t.sync_state, 1, l.sync_state) over (partition by l.subscription_id order by t.place) as before
      from turns as t
      join active as a using (number)
      join locked as l using (subscription_id)
), changes as (
    select * from steps where after <> before
), newest as (
    select distinct on (subscription_id) * from changes order by subscription_id, place desc
), news as (
    select l.subscription_id, (a.epoch, a.sequence) > (l.acknowledged_epoch, l.acknowledged_sequence) as is_forward,
           a.epoch, a.sequence, n.after, n.reason, n.changed_at,
           greatest(l.full_sync_done, least(a.full_sync_done, l.full_sync_asked)) as full_sync_done
      from locked as l
      join active as a using (subscription_id)
      left join newest as n using (subscription_id)
     where (a.epoch, a.sequence) > (l.acknowledged_epoch, l.acknowledged_sequence)
        or n.after is not null
        or least(a.full_sync_done, l.full_sync_asked) > l.full_sync_done
), written as (
    update ledger.subscription_progress as p
       set acknowledged_epoch = case when n.is_forward then n.epoch else p.acknowledged_epoch end,
           acknowledged_sequence = case when n.is_forward then n.sequence else p.acknowledged_sequence end,
           sync_state = coalesce(n.after, p.sync_state), sync_reason = coalesce(n.reason, p.sync_reason),
           sync_changed_at = coalesce(n.changed_at, p.sync_changed_at), full_sync_done = n.full_sync_done
      from news as n
     where p.subscription_id = n.subscription_id
), noted as (
    insert into ledger.subscription_history (subscription_id, changed_at, change, old_value, new_value, reason)
    select subscription_id, changed_at, 'sync', before, after, reason from changes order by subscription_id, place
)
select count(*) from locked

-- name: lock_for_full_sync
select s.subscription_id, s.user_id, s.master_id, p.sync_state, p.full_sync_asked > p.full_sync_done as is_due
  from ledger.subscriptions as s
  join ledger.subscription_progress as p using (subscription_id)
 where s.cancelled_at is null and s.subscription_id > $1
   and ($3::uuid is null or s.subscription_id = $3)
   and ($4::uuid is null or s.user_id = $4)
   and ($5::bigint is null or s.master_id = $5)
 order by s.subscription_id
 limit $2
   for no key update of p

-- name: ask_for_full_sync
update ledger.subscription_progress
   set full_sync_asked = full_sync_asked + 1, sync_state = 3, sync_reason = $2, sync_changed_at = now()
 where subscription_id = any($1::uuid[])
returning subscription_id, full_sync_asked
