-- phase: before
-- Double entry. A journal and its entries are written in one transaction, sum to zero per asset at its end, and never
-- change; the database enforces it against every role.

set local role ledger_owner;

create table ledger.accounts (
    account_id bigint generated always as identity primary key,
    name text collate "C" not null unique check (name ~ '^[a-z0-9:._-]{1,100}$'),
    opened_at timestamptz not null default now()
);

create table ledger.journals (
    journal_id bigint generated always as identity primary key,
    idempotency_key text collate "C" not null unique check (octet_length(idempotency_key) between 1 and 128),
    body_sha256 bytea not null check (octet_length(body_sha256) = 32),
    description text not null check (char_length(description) between 1 and 200),
    posted_at timestamptz not null default now(),
    -- The transaction that posted it: only that one may add entries.
    posted_in xid8 not null default pg_current_xact_id()
);

create table ledger.billing_ledger (
    journal_id bigint not null references ledger.journals,
    entry_number smallint not null check (entry_number >= 1),
    account_id bigint not null references ledger.accounts,
    asset text collate "C" not null check (asset ~ '^[A-Z0-9]{1,12}$'),
    amount_e8 bigint not null check (amount_e8 <> 0),
    primary key (journal_id, entry_number)
);
create index billing_ledger_account_id_idx on ledger.billing_ledger (account_id, journal_id)
    include (asset, amount_e8);

create function ledger.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'the books are append-only: % on %.% is refused', tg_op, tg_table_schema, tg_table_name
        using errcode = 'restrict_violation', hint = 'post a journal that corrects the other';
end
$$;

create function ledger.check_journal() returns trigger language plpgsql as $$
declare
    entries bigint;
    unbalanced text;
begin
    select sum(of_asset.entries), string_agg(of_asset.asset, ', ' order by of_asset.asset)
           filter (where of_asset.amount_e8 <> 0)
      into entries, unbalanced
      from (select asset, count(*) as entries, sum(amount_e8) as amount_e8
              from ledger.billing_ledger where journal_id = new.journal_id group by asset) as of_asset;
    if entries is null or entries < 2 then
        raise exception 'journal % has fewer than two entries', new.journal_id
            using errcode = 'check_violation', constraint = 'journal_has_entries';
    end if;
    if unbalanced is not null then
        raise exception 'journal % does not sum to zero in %', new.journal_id, unbalanced
            using errcode = 'check_violation', constraint = 'journal_sums_to_zero';
    end if;
    return null;
end
$$;

create function ledger.check_entries() returns trigger language plpgsql as $$
begin
    if exists (select from added join ledger.journals using (journal_id) where posted_in <> pg_current_xact_id()) then
        raise exception 'a posted journal takes no more entries'
            using errcode = 'check_violation', constraint = 'journal_is_closed';
    end if;
    return null;
end
$$;

create constraint trigger journal_sums_to_zero after insert on ledger.journals
    deferrable initially deferred for each row execute function ledger.check_journal();
create trigger journal_is_closed after insert on ledger.billing_ledger
    referencing new table as added for each statement execute function ledger.check_entries();
create trigger journals_append_only before update or delete or truncate on ledger.journals
    for each statement execute function ledger.refuse_change();
create trigger billing_ledger_append_only before update or delete or truncate on ledger.billing_ledger
    for each statement execute function ledger.refuse_change();
create trigger accounts_append_only before update or delete or truncate on ledger.accounts
    for each statement execute function ledger.refuse_change();

grant select, insert on ledger.accounts, ledger.journals, ledger.billing_ledger to ledger_service;
grant select on ledger.accounts, ledger.journals, ledger.billing_ledger to analyst_readonly;

reset role;
