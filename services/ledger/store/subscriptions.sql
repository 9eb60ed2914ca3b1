-- name: lock_user
select risk_pause, risk_pause_reason, trust_version from ledger.users where user_id = $1 for share

-- name: lock_user_for_trust
select trust_version from ledger.users where user_id = $1 for no key update

-- name: set_trust
update ledger.users
   set trust_score = $2, trust_version = $3, risk_pause = $4, risk_pause_reason = $5
 where user_id = $1

-- name: master_owner
select owner_user_id from ledger.masters where master_id = $1

-- name: insert
insert into ledger.subscriptions (subscription_id, user_id, master_id, risk_pause, risk_pause_reason)
values ($1, $2, $3, $4, $5)

-- name: insert_progress
insert into ledger.subscription_progress (subscription_id) values ($1)

-- name: get
select s.subscription_id, s.user_id, s.master_id, s.operator_pause, s.operator_pause_reason, s.risk_pause,
       s.risk_pause_reason, s.version, s.created_at, s.cancelled_at, p.acknowledged_epoch, p.acknowledged_sequence,
       p.sync_state, now() as read_at
  from ledger.subscriptions as s
  join ledger.subscription_progress as p using (subscription_id)
 where s.subscription_id = $1

-- name: lock
select s.subscription_id, s.user_id, s.master_id, s.operator_pause, s.operator_pause_reason, s.risk_pause,
       s.risk_pause_reason, s.version, s.created_at, s.cancelled_at, p.acknowledged_epoch, p.acknowledged_sequence,
       p.sync_state, now() as read_at
  from ledger.subscriptions as s
  join ledger.subscription_progress as p using (subscription_id)
 where s.subscription_id = $1
   for no key update of s

-- name: lock_active_of_user
-- Lock order: users before subscriptions, subscriptions in order of their ids.
select s.subscription_id, s.user_id, s.master_id, s.operator_pause, s.operator_pause_reason, s.risk_pause,
       s.risk_pause_reason, s.version, s.created_at, s.cancelled_at, p.acknowledged_epoch, p.acknowledged_sequence,
       p.sync_state, now() as read_at
  from ledger.subscriptions as s
  join ledger.subscription_progress as p using (subscription_id)
 where s.user_id = $1 and s.cancelled_at is null
 order by s.subscription_id
   for no key update of s

-- name: update_many
update ledger.subscriptions as s
   set operator_pause = c.operator_pause, operator_pause_reason = c.operator_pause_reason,
       risk_pause = c.risk_pause, risk_pause_reason = c.risk_pause_reason, version = c.version
  from unnest($1::uuid[], $2::smallint[], $3::text[], $4::smallint[], $5::text[], $6::bigint[])
       as c (subscription_id, operator_pause, operator_pause_reason, risk_pause, risk_pause_reason, version)
 where s.subscription_id = c.subscription_id

-- name: cancel
update ledger.subscriptions set cancelled_at = $2, cancel_reason = $3, version = $4 where subscription_id = $1

-- name: add_history
insert into ledger.subscription_history (subscription_id, change, old_value, new_value, reason)
select * from unnest($1::uuid[], $2::text[], $3::smallint[], $4::smallint[], $5::text[])

-- name: page
select s.subscription_id, s.user_id, s.master_id, s.operator_pause, s.operator_pause_reason, s.risk_pause,
       s.risk_pause_reason, s.version, s.created_at, s.cancelled_at, p.acknowledged_epoch, p.acknowledged_sequence,
       p.sync_state, now() as read_at
  from ledger.subscriptions as s
  join ledger.subscription_progress as p using (subscription_id)
 where (s.created_at, s.subscription_id) > ($1, $2)
 order by s.created_at, s.subscription_id
 limit $3

-- name: page_of_user
select s.subscription_id, s.user_id, s.master_id, s.operator_pause, s.operator_pause_reason, s.risk_pause,
       s.risk_pause_reason, s.version, s.created_at, s.cancelled_at, p.acknowledged_epoch, p.acknowledged_sequence,
       p.sync_state, now() as read_at
  from ledger.subscriptions as s
  join ledger.subscription_progress as p using (subscription_id)
 where (s.created_at, s.subscription_id) > ($1, $2) and s.user_id = $4
 order by s.created_at, s.subscription_id
 limit $3

-- name: page_of_master
select s.subscription_id, s.user_id, s.master_id, s.operator_pause, s.operator_pause_reason, s.risk_pause,
       s.risk_pause_reason, s.version, s.created_at, s.cancelled_at, p.acknowledged_epoch, p.acknowledged_sequence,
       p.sync_state, now() as read_at
  from ledger.subscriptions as s
  join ledger.subscription_progress as p using (subscription_id)
 where (s.created_at, s.subscription_id) > ($1, $2) and s.master_id = $4
 order by s.created_at, s.subscription_id
 limit $3

-- name: page_of_both
select s.subscription_id, s.user_id, s.master_id, s.operator_pause, s.operator_pause_reason, s.risk_pause,
       s.risk_pause_reason, s.version, s.created_at, s.cancelled_at, p.acknowledged_epoch, p.acknowledged_sequence,
       p.sync_state, now() as read_at
  from ledger.subscriptions as s
  join ledger.subscription_progress as p using (subscription_id)
 where (s.created_at, s.subscription_id) > ($1, $2) and s.user_id = $4 and s.master_id = $5
 order by s.created_at, s.subscription_id
 limit $3

-- name: record_positions
-- Rows are locked in the order of their ids, then written; a position only moves forward.
with given as (
    select * from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::smallint[], $6::text[])
           as g (user_id, master_id, epoch, sequence, sync_state, reason)
), active as materialized (
    select s.subscription_id, g.epoch, g.sequence, g.sync_state, g.reason
      from given as g
      join ledger.subscriptions as s
        on s.user_id = g.user_id and s.master_id = g.master_id and s.cancelled_at is null
), locked as materialized (
    select p.subscription_id, p.acknowledged_epoch, p.acknowledged_sequence, p.sync_state as old_state
      from ledger.subscription_progress as p
     where p.subscription_id in (select subscription_id from active)
     order by p.subscription_id
       for no key update
), news as (
    select l.subscription_id,
           case when (a.epoch, a.sequence) > (l.acknowledged_epoch, l.acknowledged_sequence)
                then a.epoch else l.acknowledged_epoch end as epoch,
           case when (a.epoch, a.sequence) > (l.acknowledged_epoch, l.acknowledged_sequence)
                then a.sequence else l.acknowledged_sequence end as sequence,
           coalesce(a.sync_state, l.old_state) as sync_state, l.old_state, a.reason
      from locked as l
      join active as a using (subscription_id)
     where (a.epoch, a.sequence) > (l.acknowledged_epoch, l.acknowledged_sequence)
        or a.sync_state is distinct from l.old_state and a.sync_state is not null
), written as (
    update ledger.subscription_progress as p
       set acknowledged_epoch = n.epoch, acknowledged_sequence = n.sequence, sync_state = n.sync_state,
           sync_reason = case when n.sync_state <> n.old_state then n.reason else p.sync_reason end,
           sync_changed_at = case when n.sync_state <> n.old_state then now() else p.sync_changed_at end
      from news as n
     where p.subscription_id = n.subscription_id
), noted as (
    insert into ledger.subscription_history (subscription_id, change, old_value, new_value, reason)
    select subscription_id, 'sync', old_state, sync_state, reason from news where sync_state <> old_state
)
select count(*) from locked
