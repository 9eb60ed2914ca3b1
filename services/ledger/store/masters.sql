-- name: next_id
select nextval('ledger.masters_master_id_seq')

-- name: owner_exists
select true from ledger.users where user_id = $1

-- name: insert
insert into ledger.masters
       (master_id, owner_user_id, display_name, account_mode, signals_per_second_max, signal_age_us_max)
values ($1, $2, $3, $4, $5, $6)

-- name: get
select master_id, owner_user_id, display_name, account_mode, signals_per_second_max, signal_age_us_max, created_at
  from ledger.masters
 where master_id = $1

-- name: page
select master_id, owner_user_id, display_name, account_mode, signals_per_second_max, signal_age_us_max, created_at
  from ledger.masters
 where master_id > $1
 order by master_id
 limit $2

-- name: lock
-- Keys of one master change one at a time.
select now() as read_at, (select count(*) from ledger.signing_keys as k where k.master_id = m.master_id) as key_count
  from ledger.masters as m
 where m.master_id = $1
   for no key update of m

-- name: insert_key
insert into ledger.signing_keys (master_id, key_id, sealed_secret, sealing_key_id)
values ($1, $2, $3, $4)

-- name: get_key
select sealed_secret, sealing_key_id, expires_at, revoked_at
  from ledger.signing_keys
 where master_id = $1 and key_id = $2

-- name: end_older_keys
update ledger.signing_keys
   set expires_at = least(expires_at, $3::timestamptz)
 where master_id = $1 and key_id <> $2 and revoked_at is null and (expires_at is null or expires_at > $3)
returning key_id, expires_at

-- name: revoke_key
update ledger.signing_keys
   set revoked_at = now()
 where master_id = $1 and key_id = $2 and revoked_at is null
returning expires_at

-- name: authorize
select m.master_id, m.owner_user_id, m.display_name, m.account_mode, m.signals_per_second_max, m.signal_age_us_max,
       m.created_at, m.suspended_at,
       k.sealed_secret, k.sealing_key_id, k.expires_at as key_expires_at, k.revoked_at as key_revoked_at,
       l.license_id, l.user_id as license_user_id, l.expires_at as license_expires_at,
       l.revoked_at as license_revoked_at, now() as read_at,
       coalesce(h.epoch, 0) as archived_epoch, coalesce(h.sequence, 0) as archived_sequence
  from ledger.masters as m
  join ledger.signing_keys as k on k.master_id = m.master_id and k.key_id = $2
  join ledger.licenses as l on l.token_sha256 = $3
  left join ledger.archive_heads as h on h.master_id = m.master_id
 where m.master_id = $1
