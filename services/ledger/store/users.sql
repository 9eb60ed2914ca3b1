-- name: insert
insert into ledger.users (user_id, email, display_name)
values ($1, $2, $3)

-- name: get
select user_id, email, display_name, trust_score, trust_version, created_at
  from ledger.users
 where user_id = $1

-- name: page
select user_id, email, display_name, trust_score, trust_version, created_at
  from ledger.users
 where (created_at, user_id) > ($1, $2)
 order by created_at, user_id
 limit $3
