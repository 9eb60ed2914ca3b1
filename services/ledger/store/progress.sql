-- name: record
-- Rows are locked in the order of their ids, then written; a position only moves forward, and so does the number of the
-- full sync that was done. Each change of the sync state becomes a line of the history, at the time when it happened.
-- A change that comes late, behind what another process has recorded, is history only, there and back: being in step at a
-- place before something was missed, missing something before it was healed, beginning a full sync before one was done.
-- Sync states: 1 synced, 2 degraded, 3 resyncing. Places are arrays of epoch and sequence, which compare as such.
with given as (
    select * from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
           with ordinality as g (user_id, master_id, epoch, sequence, full_sync_done, number)
), turns as (
    select number, sync_state, reason, least(coalesce(changed_at, now()), now()) as changed_at, ordinal,
           case when epoch > 0 then array[epoch, sequence] end as place
      from unnest($6::bigint[], $7::smallint[], $8::text[], $9::timestamptz[], $10::bigint[], $11::bigint[])
           with ordinality as t (number, sync_state, reason, changed_at, epoch, sequence, ordinal)
), active as materialized (
    select s.subscription_id, g.epoch, g.sequence, g.full_sync_done, g.number
      from given as g
      join ledger.subscriptions as s
        on s.user_id = g.user_id and s.master_id = g.master_id and s.cancelled_at is null
), locked as materialized (
    select p.subscription_id, p.acknowledged_epoch, p.acknowledged_sequence, p.sync_state, p.sync_reason,
           p.sync_changed_at, p.full_sync_asked, p.full_sync_done, p.synced_at,
           array[p.synced_epoch, p.synced_sequence] as synced, array[p.degraded_epoch, p.degraded_sequence] as degraded
      from ledger.subscription_progress as p
     where p.subscription_id in (select subscription_id from active)
     order by p.subscription_id
       for no key update
), judged as (
    select l.subscription_id, l.sync_state as stored, t.sync_state as after, t.reason, t.changed_at, t.ordinal, t.place,
           coalesce(case t.sync_state when 1 then t.place < l.degraded
                                      when 2 then t.place <= l.synced and t.changed_at < l.synced_at
                                      when 3 then t.changed_at < l.synced_at end, false) as is_late
      from turns as t
      join active as a using (number)
      join locked as l using (subscription_id)
), steps as (
    select *, lag(after, 1, stored) over (partition by subscription_id order by ordinal) as before
      from judged
     where not is_late
), changes as (
    select subscription_id, changed_at, before, after, reason, ordinal from steps where after <> before
), newest as (
    select distinct on (subscription_id) * from changes order by subscription_id, ordinal desc
), late as (
    select j.subscription_id, j.ordinal, line.*
      from judged as j
      join locked as l using (subscription_id)
     cross join lateral (values (1, j.changed_at, j.stored, j.after, j.reason),
                                (2, greatest(j.changed_at, l.sync_changed_at), j.after, j.stored, l.sync_reason))
           as line (half, changed_at, before, after, reason)
     where j.is_late and j.after <> j.stored
), reached as (
    select subscription_id, max(place) filter (where after = 1) as synced, max(place) filter (where after = 2) as degraded,
           max(changed_at) filter (where after = 1) as synced_at
      from judged
     group by subscription_id
), news as (
    select l.subscription_id, (a.epoch, a.sequence) > (l.acknowledged_epoch, l.acknowledged_sequence) as is_forward,
           a.epoch, a.sequence, n.after, n.reason, n.changed_at, greatest(l.synced, r.synced) as synced,
           greatest(l.degraded, r.degraded) as degraded, greatest(l.synced_at, r.synced_at) as synced_at,
           greatest(l.full_sync_done, least(a.full_sync_done, l.full_sync_asked)) as full_sync_done
      from locked as l
      join active as a using (subscription_id)
      left join newest as n using (subscription_id)
      left join reached as r using (subscription_id)
     where (a.epoch, a.sequence) > (l.acknowledged_epoch, l.acknowledged_sequence)
        or r.subscription_id is not null
        or least(a.full_sync_done, l.full_sync_asked) > l.full_sync_done
), written as (
    update ledger.subscription_progress as p
       set acknowledged_epoch = case when n.is_forward then n.epoch else p.acknowledged_epoch end,
           acknowledged_sequence = case when n.is_forward then n.sequence else p.acknowledged_sequence end,
           sync_state = coalesce(n.after, p.sync_state), sync_reason = coalesce(n.reason, p.sync_reason),
           sync_changed_at = coalesce(n.changed_at, p.sync_changed_at), full_sync_done = n.full_sync_done,
           synced_epoch = n.synced[1], synced_sequence = n.synced[2], synced_at = n.synced_at,
           degraded_epoch = n.degraded[1], degraded_sequence = n.degraded[2]
      from news as n
     where p.subscription_id = n.subscription_id
), noted as (
    insert into ledger.subscription_history (subscription_id, changed_at, change, old_value, new_value, reason)
    select subscription_id, changed_at, 'sync', before, after, reason
      from (select subscription_id, changed_at, before, after, reason, 1 as part, ordinal, half from late
            union all
            select subscription_id, changed_at, before, after, reason, 2, ordinal, 1 from changes) as lines
     order by subscription_id, part, ordinal, half
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
