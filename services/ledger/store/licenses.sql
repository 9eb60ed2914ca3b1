-- name: insert
insert into ledger.licenses (license_id, user_id, token_sha256, expires_at, rotated_from)
values ($1, $2, $3, now() + $4, $5)

-- name: user_exists
select true from ledger.users where user_id = $1

-- name: get
select license_id, user_id, issued_at, expires_at, revoked_at, rotated_from,
       coalesce(validity, expires_at - issued_at) as validity, now() as read_at
  from ledger.licenses
 where license_id = $1

-- name: lock
select license_id, user_id, issued_at, expires_at, revoked_at, rotated_from,
       coalesce(validity, expires_at - issued_at) as validity, now() as read_at
  from ledger.licenses
 where license_id = $1
   for no key update

-- name: set_expiry
update ledger.licenses
   set expires_at = $2, validity = coalesce(validity, expires_at - issued_at)
 where license_id = $1

-- name: revoke
update ledger.licenses set revoked_at = now(), revoked_reason = $2 where license_id = $1

-- name: page
select license_id, user_id, issued_at, expires_at, revoked_at, rotated_from,
       coalesce(validity, expires_at - issued_at) as validity, now() as read_at
  from ledger.licenses
 where user_id = $1 and (issued_at, license_id) < ($2, $3)
 order by issued_at desc, license_id desc
 limit $4

-- name: authenticate
select l.license_id, l.user_id, l.expires_at, l.revoked_at, now() as read_at,
       s.subscription_ids, s.master_ids, s.pauses, s.versions,
       s.full_syncs_due
  from ledger.licenses as l
 cross join lateral (
       select array_agg(subscription_id order by master_id) as subscription_ids,
              array_agg(master_id order by master_id) as master_ids,
              array_agg(greatest(operator_pause, risk_pause) order by master_id) as pauses,
              array_agg(version order by master_id) as versions,
              array_agg(case when full_sync_asked > full_sync_done then full_sync_asked else 0 end order by master_id)
                  as full_syncs_due
         from ledger.subscriptions
         join ledger.subscription_progress using (subscription_id)
        where user_id = l.user_id and cancelled_at is null
       ) as s
 where l.token_sha256 = $1
