-- phase: before
-- The archive of signals: partitioned by day of receipt, each position once, with the gaps that are known.

set local role ledger_owner;

-- Zero, empty and absent values of a signal are stored as null. uint64 fields are stored in two's complement.
create table ledger.signal_archive (
    received_at timestamptz not null,
    archived_at timestamptz not null default now(),
    master_id bigint not null,
    epoch bigint not null,
    sequence bigint not null,
    sent_at_us bigint,
    occurred_at_us bigint,
    position_id bigint,
    order_id bigint,
    opposite_position_id bigint,
    volume_lots_e8 bigint,
    price_e8 bigint,
    stop_loss_e8 bigint,
    take_profit_e8 bigint,
    stop_limit_price_e8 bigint,
    expires_at_us bigint,
    magic bigint,
    session_epoch bigint,
    kind smallint,
    side smallint,
    order_type smallint,
    symbol text collate "C",
    comment text collate "C",
    key_id text collate "C",
    -- The signal as it was signed, only where the columns cannot hold all of it (fields of a newer contract).
    raw bytea
) partition by range (received_at);

-- Sequences that will never come, and starts of epochs: first_sequence to last_sequence of previous_epoch are missing
-- (none, when first_sequence is beyond last_sequence), and (epoch, last_sequence) is the position behind them. Only for a
-- start of an epoch do the two epochs differ.
create table ledger.signal_gaps (
    master_id bigint not null,
    epoch bigint not null,
    last_sequence bigint not null,
    first_sequence bigint not null,
    previous_epoch bigint not null,
    -- A GapReason.
    reason smallint not null,
    note text not null default '',
    session_epoch bigint not null default 0,
    key_id text collate "C" not null default '',
    received_at timestamptz not null,
    archived_at timestamptz not null default now(),
    -- Found by the archiver, not declared in the log: what it covers may still come in, and then it counts no more.
    is_hole boolean not null default false,
    primary key (master_id, epoch, last_sequence, is_hole)
);
create index signal_gaps_received_at_idx on ledger.signal_gaps (received_at);

-- Last position archived of each master. Locked by whoever archives that master's signals, which is what makes each
-- position unique over all partitions.
create table ledger.archive_heads (
    master_id bigint primary key,
    epoch bigint not null,
    sequence bigint not null,
    archived_at timestamptz not null default now()
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);

-- How many signals each partition holds, counted in the transactions that add them.
create table ledger.archive_days (
    day date primary key,
    signal_count bigint not null
) with (fillfactor = 50);

-- What could not be archived as it came: the bytes, for a person to look at.
create table ledger.archive_refusals (
    refusal_id bigint generated always as identity primary key,
    stream text not null,
    entry_id text not null,
    -- Index of the run within the entry; -1 for the whole entry.
    run_number integer not null,
    reason text not null,
    detail text not null,
    payload bytea not null,
    refused_at timestamptz not null default now(),
    unique (stream, entry_id, run_number)
);

create function ledger.is_hypertable(relation regclass) returns boolean language plpgsql stable as $$
declare
    found_one boolean := false;
begin
    if exists (select from pg_extension where extname = 'timescaledb') then
        execute 'select exists (select from timescaledb_information.hypertables'
             || ' where format(''%I.%I'', hypertable_schema, hypertable_name)::regclass = $1)'
           into found_one using relation;
    end if;
    return found_one;
end
$$;

-- Makes the daily partitions of a table for the UTC days from first_day to last_day that are not there yet; how many it
-- made. A hypertable makes its own.
create function ledger.create_chunks(relation regclass, first_day date, last_day date) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    one_day date;
    chunk text;
    made integer := 0;
begin
    if last_day - first_day > 400 then
        raise exception 'more than 400 days at once' using errcode = 'program_limit_exceeded';
    end if;
    if ledger.is_hypertable(relation) then
        return 0;
    end if;
    perform pg_advisory_xact_lock(hashtext('ledger.create_chunks'), relation::oid::int);
    one_day := first_day;
    while one_day <= last_day loop
        chunk := format('%s_%s', (select relname from pg_class where oid = relation), to_char(one_day, 'YYYYMMDD'));
        if to_regclass(format('ledger.%I', chunk)) is null then
            -- Attaching takes a weaker lock on the parent than creating the partition in place would.
            execute format('create table ledger.%I (like %s including defaults including constraints'
                        || ' including indexes including storage)', chunk, relation);
            execute format('alter table %s attach partition ledger.%I for values from (%L) to (%L)', relation, chunk,
                           to_char(one_day, 'YYYY-MM-DD 00:00:00+00'),
                           to_char(one_day + 1, 'YYYY-MM-DD 00:00:00+00'));
            made := made + 1;
        end if;
        one_day := one_day + 1;
    end loop;
    return made;
end
$$;

-- Drops the partitions of a table whose newest row is older than older_than; their names. As TimescaleDB's function of
-- the same name, to which it passes on for a hypertable.
create function ledger.drop_chunks(relation regclass, older_than interval) returns setof text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    chunk record;
    edge timestamptz := now() - older_than;
begin
    if older_than < interval '1 day' then
        raise exception 'refusing to drop what is younger than a day' using errcode = 'invalid_parameter_value';
    end if;
    if ledger.is_hypertable(relation) then
        return query execute 'select drop_chunks::text from public.drop_chunks($1, older_than => $2)'
            using relation, older_than;
    else
        for chunk in
            select child.oid::regclass::text as name,
                   substring(pg_get_expr(child.relpartbound, child.oid) from 'TO \(''([^'']+)''\)')::timestamptz as ends
              from pg_inherits join pg_class as child on child.oid = inhrelid
             where inhparent = relation order by 2
        loop
            if chunk.ends <= edge then
                execute format('drop table %s', chunk.name);
                return next chunk.name;
            end if;
        end loop;
    end if;
    if relation = 'ledger.signal_archive'::regclass then
        delete from ledger.archive_days where (day + 1)::timestamp at time zone 'UTC' <= edge;
    end if;
end
$$;

-- Deletes at most rows_max gaps and refusals older than older_than; how many.
create function ledger.drop_gaps(older_than interval, rows_max integer) returns bigint
language sql security definer set search_path = pg_catalog, pg_temp as $$
    with old_gaps as (
        delete from ledger.signal_gaps where (master_id, epoch, last_sequence, is_hole) in (
            select master_id, epoch, last_sequence, is_hole from ledger.signal_gaps
             where received_at < now() - older_than order by received_at limit rows_max)
        returning 1
    ), old_refusals as (
        delete from ledger.archive_refusals where refusal_id in (
            select refusal_id from ledger.archive_refusals
             where refused_at < now() - older_than order by refusal_id limit rows_max)
        returning 1
    )
    select (select count(*) from old_gaps) + (select count(*) from old_refusals)
$$;

do $$
begin
    if exists (select from pg_extension where extname = 'timescaledb') then
        -- A partitioned table cannot become a hypertable.
        create table ledger.signal_archive_plain (like ledger.signal_archive including all);
        drop table ledger.signal_archive;
        alter table ledger.signal_archive_plain rename to signal_archive;
        perform public.create_hypertable('ledger.signal_archive', 'received_at', chunk_time_interval => interval '1 day',
                                         create_default_indexes => false);
    end if;
end
$$;
alter table ledger.signal_archive add primary key (master_id, epoch, sequence, received_at);

revoke all on function ledger.create_chunks, ledger.drop_chunks, ledger.drop_gaps from public;
grant execute on function ledger.create_chunks, ledger.drop_chunks, ledger.drop_gaps to ledger_service;

grant select, insert on ledger.signal_archive, ledger.signal_gaps, ledger.archive_refusals to ledger_service;
grant select, insert, update on ledger.archive_heads, ledger.archive_days to ledger_service;
grant select on ledger.signal_archive, ledger.signal_gaps, ledger.archive_heads, ledger.archive_days,
    ledger.archive_refusals to analyst_readonly;

reset role;
