-- name: open_accounts
-- In order of name, so that two transactions that open the same accounts cannot wait for each other in a circle.
insert into ledger.accounts (name)
select name from unnest($1::text[]) as wanted (name) order by name
on conflict (name) do nothing

-- name: accounts
select name, account_id from ledger.accounts where name = any ($1::text[])

-- name: post
with journal as (
    insert into ledger.journals (idempotency_key, body_sha256, description)
    values ($1, $2, $3)
    on conflict (idempotency_key) do nothing
    returning journal_id, posted_at
), entries as (
    insert into ledger.billing_ledger (journal_id, entry_number, account_id, asset, amount_e8)
    select journal_id, entry_number, account_id, asset, amount_e8
      from journal,
           unnest($4::bigint[], $5::text[], $6::bigint[]) with ordinality
           as entry (account_id, asset, amount_e8, entry_number)
)
select journal_id, posted_at from journal

-- name: find
select journal_id, idempotency_key, body_sha256, description, posted_at
  from ledger.journals
 where idempotency_key = $1

-- name: entries
select e.journal_id, a.name, e.asset, e.amount_e8
  from ledger.billing_ledger as e
  join ledger.accounts as a using (account_id)
 where e.journal_id = any ($1::bigint[])
 order by e.journal_id, e.entry_number

-- name: page
select journal_id, idempotency_key, description, posted_at
  from ledger.journals
 where journal_id > $1
 order by journal_id
 limit $2

-- name: page_of_account
select j.journal_id, j.idempotency_key, j.description, j.posted_at
  from (select distinct e.journal_id
          from ledger.billing_ledger as e
         where e.account_id = (select account_id from ledger.accounts where name = $3) and e.journal_id > $1
         order by e.journal_id
         limit $2) as touched
  join ledger.journals as j using (journal_id)
 order by j.journal_id

-- name: balance
select coalesce(sum(e.amount_e8), 0) as balance_e8, count(e.amount_e8) as entry_count
  from ledger.accounts as a
  left join ledger.billing_ledger as e on e.account_id = a.account_id and e.asset = $2
 where a.name = $1
 group by a.account_id

-- name: balance_at
select coalesce(sum(e.amount_e8) filter (where j.journal_id is not null), 0) as balance_e8,
       count(j.journal_id) as entry_count
  from ledger.accounts as a
  left join ledger.billing_ledger as e on e.account_id = a.account_id and e.asset = $2
  left join ledger.journals as j on j.journal_id = e.journal_id and j.posted_at <= $3
 where a.name = $1
 group by a.account_id

-- name: unbalanced
select journal_id
  from ledger.billing_ledger
 group by journal_id, asset
having sum(amount_e8) <> 0
 order by journal_id
 limit $1

-- name: count_journals
select count(*) from ledger.journals

-- name: totals
select asset, sum(amount_e8) as sum_e8, count(*) as entry_count
  from ledger.billing_ledger
 group by asset
 order by asset
