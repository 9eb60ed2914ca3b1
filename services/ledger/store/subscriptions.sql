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
       p.sync_state, p.sync_reason, p.sync_changed_at, p.full_sync_asked, p.full_sync_done, now() as read_at
  from ledger.subscriptions as s
  join ledger.subscription_progress as p using (subscription_id)
 where s.subscription_id = $1

-- name: get_many
select s.subscription_id, s.user_id, s.master_id, s.operator_pause, s.operator_pause_reason, s.risk_pause,
       s.risk_pause_reason, s.version, s.created_at, s.cancelled_at, p.acknowledged_epoch, p.acknowledged_sequence,
       p.sync_state, p.sync_reason, p.sync_changed_at, p.full_sync_asked, p.full_sync_done, now() as read_at
  from ledger.subscriptions as s
  join ledger.subscription_progress as p using (subscription_id)
 where s.subscription_id = any($1::uuid[])
 order by s.subscription_id

-- name: lock
select s.subscription_id, s.user_id, s.master_id, s.operator_pause, s.operator_pause_reason, s.risk_pause,
       s.risk_pause_reason, s.version, s.created_at, s.cancelled_at, p.acknowledged_epoch, p.acknowledged_sequence,
       p.sync_state, p.sync_reason, p.sync_changed_at, p.full_sync_asked, p.full_sync_done, now() as read_at
  from ledger.subscriptions as s
  join ledger.subscription_progress as p using (subscription_id)
 where s.subscription_id = $1
   for no key update of s

-- name: lock_active_of_user
-- Lock order: users before subscriptions, subscriptions in order of their ids.
select s.subscription_id, s.user_id, s.master_id, s.operator_pause, s.operator_pause_reason, s.risk_pause,
       s.risk_pause_reason, s.version, s.created_at, s.cancelled_at, p.acknowledged_epoch, p.acknowledged_sequence,
       p.sync_state, p.sync_reason, p.sync_changed_at, p.full_sync_asked, p.full_sync_done, now() as read_at
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

-- name: page
select s.subscription_id, s.user_id, s.master_id, s.operator_pause, s.operator_pause_reason, s.risk_pause,
       s.risk_pause_reason, s.version, s.created_at, s.cancelled_at, p.acknowledged_epoch, p.acknowledged_sequence,
       p.sync_state, p.sync_reason, p.sync_changed_at, p.full_sync_asked, p.full_sync_done, now() as read_at
  from ledger.subscriptions as s
  join ledger.subscription_progress as p using (subscription_id)
 where (s.created_at, s.subscription_id) > ($1, $2)
 order by s.created_at, s.subscription_id
 limit $3

-- name: page_of_user
select s.subscription_id, s.user_id, s.master_id, s.operator_pause, s.operator_pause_reason, s.risk_pause,
       s.risk_pause_reason, s.version, s.created_at, s.cancelled_at, p.acknowledged_epoch, p.acknowledged_sequence,
       p.sync_state, p.sync_reason, p.sync_changed_at, p.full_sync_asked, p.full_sync_done, now() as read_at
  from ledger.subscriptions as s
  join ledger.subscription_progress as p using (subscription_id)
 where (s.created_at, s.subscription_id) > ($1, $2) and s.user_id = $4
 order by s.created_at, s.subscription_id
 limit $3

-- name: page_of_master
select s.subscription_id, s.user_id, s.master_id, s.operator_pause, s.operator_pause_reason, s.risk_pause,
       s.risk_pause_reason, s.version, s.created_at, s.cancelled_at, p.acknowledged_epoch, p.acknowledged_sequence,
       p.sync_state, p.sync_reason, p.sync_changed_at, p.full_sync_asked, p.full_sync_done, now() as read_at
  from ledger.subscriptions as s
  join ledger.subscription_progress as p using (subscription_id)
 where (s.created_at, s.subscription_id) > ($1, $2) and s.master_id = $4
 order by s.created_at, s.subscription_id
 limit $3

-- name: page_of_both
select s.subscription_id, s.user_id, s.master_id, s.operator_pause, s.operator_pause_reason, s.risk_pause,
       s.risk_pause_reason, s.version, s.created_at, s.cancelled_at, p.acknowledged_epoch, p.acknowledged_sequence,
       p.sync_state, p.sync_reason, p.sync_changed_at, p.full_sync_asked, p.full_sync_done, now() as read_at
  from ledger.subscriptions as s
  join ledger.subscription_progress as p using (subscription_id)
 where (s.created_at, s.subscription_id) > ($1, $2) and s.user_id = $4 and s.master_id = $5
 order by s.created_at, s.subscription_id
 limit $3
