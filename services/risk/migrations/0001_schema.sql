-- phase: before
-- What risk keeps: outcomes, the sums that the trust model is computed from, decisions, and who may decide.
--
-- Times are UTC. Partitions are called chunks, as TimescaleDB calls them: risk.ensure_chunks makes them,
-- risk.drop_chunks removes them, both with the owner's rights because the service may not run DDL.

-- Roles belong to the whole cluster, and another database may be migrated at the same moment.
do $$
declare
    role_name text;
begin
    foreach role_name in array array['risk_owner', 'risk_service', 'analyst_readonly'] loop
        if not exists (select from pg_roles where rolname = role_name) then
            begin
                execute format('create role %I nologin', role_name);
            exception when duplicate_object or unique_violation then
                null;
            end;
        end if;
    end loop;
    -- Whoever migrates must be able to act as the owner; a superuser is already.
    foreach role_name in array array['risk_owner', 'risk_service'] loop
        if not pg_has_role(current_user, role_name, 'member') then
            execute format('grant %I to %I', role_name, current_user);
        end if;
    end loop;
end
$$;

alter schema risk owner to risk_owner;
grant usage on schema risk to risk_service, analyst_readonly;

-- A user as a number of 4 bytes, because outcomes are many.
create table risk.subscribers (
    user_no int generated always as identity primary key,
    user_id uuid not null unique,
    first_seen_at timestamptz not null default now()
);

create sequence risk.outcome_batches;

-- What each user did with each signal. 15,000 rows a second must fit beside everything else on two cores, so keys are
-- 8-byte digests (BLAKE2b, of the event_id and of the whole body) and there are two indexes: one that makes a repeat
-- harmless, one by signal. The date is the event's own, so a repeat meets its first copy in the same chunk.
create table risk.outcomes (
    reported_at timestamptz not null,
    occurred_at timestamptz not null,
    event_key bigint not null,
    body_key bigint not null,
    sequence bigint not null,
    master_id bigint not null,
    price_e8 bigint not null,
    latency_us bigint not null,
    batch_id bigint not null,
    epoch int not null,
    user_no int not null,
    occurred_on date not null,
    -- 0 executed; else execution.risk.v1.ProtectionReason.
    reason smallint not null,
    constraint outcomes_event primary key (user_no, event_key, occurred_on),
    constraint outcomes_signal unique (master_id, sequence, epoch, user_no, occurred_on)
) partition by range (occurred_on);

-- Refusals in full, for people.
create table risk.protection_logs (
    reported_at timestamptz not null,
    occurred_at timestamptz not null,
    user_id uuid not null,
    master_id bigint not null,
    epoch int not null,
    sequence bigint not null,
    event_id text not null,
    reason text not null
        check (reason in ('slippage', 'latency', 'spread', 'price', 'margin', 'filter')),
    price_e8 bigint not null,
    latency_us bigint not null
) partition by range (reported_at);
create index protection_logs_user on risk.protection_logs (user_id, reported_at);

-- Reports that contradict others (conflicts: an event with another body; doubled: a second event on a signal), which
-- lower trust when they are many, and reports on signals that the log does not know (unmatched), which do not: after a
-- failure of the log honest ones look the same.
create table risk.integrity_violations (
    reported_at timestamptz not null,
    user_no int not null,
    conflicts int not null,
    doubled int not null,
    unmatched int not null
) partition by range (reported_at);
create index integrity_violations_user on risk.integrity_violations (user_no, reported_at);

-- Batches that the detector has not folded into the sums yet: a queue, one row per call of ReportOutcomes.
create table risk.pending_batches (
    batch_id bigint primary key,
    user_no int not null,
    reported_at timestamptz not null,
    violations int not null,
    master_ids bigint[] not null,
    epochs int[] not null,
    sequences bigint[] not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
-- Compressing 20 KB costs more than writing it, and it is read once.
alter table risk.pending_batches
    alter column master_ids set storage external,
    alter column epochs set storage external,
    alter column sequences set storage external;

-- The trust model's inputs per user, each weighted by 2 ^ ((reported_at - detector_state.reference_at) / half-life), so
-- that time passing changes no row.
create table risk.user_sums (
    user_no int primary key references risk.subscribers,
    weight double precision not null default 0,
    exposure double precision not null default 0,
    excess double precision not null default 0,
    violations double precision not null default 0,
    signals bigint not null default 0,
    rejected bigint not null default 0,
    evidence_at timestamptz not null default now(),
    -- Reports up to then do not count for this user: an operator said so.
    forgets_until timestamptz not null default '-infinity'
) with (fillfactor = 70);

-- The latest decision on each user.
create table risk.trust_state (
    user_no int primary key references risk.subscribers,
    version bigint not null,
    score double precision not null check (score between 0 and 100),
    level text not null check (level in ('good', 'warn', 'close_only', 'paused')),
    decided_at timestamptz not null,
    -- Score of the latest check, stored as a decision or not: what the next check's hysteresis compares with.
    checked_score double precision not null,
    -- The version that ledger has taken; below `version` something is still to be applied.
    applied_version bigint not null default 0
) with (fillfactor = 70);
create index trust_state_score on risk.trust_state (score, user_no);
create index trust_state_unapplied on risk.trust_state (user_no) where applied_version < version;

-- Every decision with what it was computed from, so that it can be replayed.
create table risk.trust_decisions (
    decided_at timestamptz not null,
    user_no int not null,
    user_id uuid not null,
    version bigint not null,
    kind text not null check (kind in ('check', 'override', 'repair')),
    score double precision not null,
    level text not null,
    -- What the check before saw: the hysteresis compares with it.
    previous_score double precision not null,
    previous_level text not null,
    -- Whether reports that touch the user had come since the check before.
    is_fresh boolean not null,
    weight double precision not null,
    exposure double precision not null,
    excess double precision not null,
    violations double precision not null,
    signals bigint not null,
    rejected bigint not null,
    rejection double precision not null,
    selectivity double precision not null,
    integrity double precision not null,
    rejection_lower_bound double precision not null,
    model_version text not null,
    fencing_token bigint not null,
    explanation text not null,
    evidence jsonb not null,
    constraint trust_decisions_version primary key (user_no, version, decided_at)
) partition by range (decided_at);

-- Who overrode what, and why. Never deleted.
create table risk.overrides (
    override_id bigint generated always as identity primary key,
    user_no int not null references risk.subscribers,
    version bigint not null,
    score double precision not null,
    operator_name text not null,
    reason text not null,
    previous_score double precision not null,
    previous_level text not null,
    overridden_at timestamptz not null default now()
);
create index overrides_user on risk.overrides (user_no, overridden_at);

-- One row each.
create table risk.detector_state (
    only_row boolean primary key default true check (only_row),
    reference_at timestamptz not null default now(),
    scored_at timestamptz not null default 'epoch',
    rebuilt_at timestamptz not null default now(),
    last_check_at timestamptz,
    last_check_duration_ms bigint not null default 0
);
insert into risk.detector_state default values;

-- The leader holds an advisory lock on a connection of its own; each new one raises the token. The token is unique so
-- that raising it waits for transactions that hold the row with FOR KEY SHARE.
create table risk.detector_lease (
    only_row boolean primary key default true check (only_row),
    fencing_token bigint not null unique,
    holder text not null,
    acquired_at timestamptz not null,
    renewed_at timestamptz not null
);
insert into risk.detector_lease (fencing_token, holder, acquired_at, renewed_at) values (0, 'nobody', now(), now());

-- What peers did with each signal; computed, because storing it would cost a write per outcome.
create view risk.signal_stats as
select
    master_id,
    epoch,
    sequence,
    count(distinct user_no) as users,
    count(distinct user_no) filter (where reason <> 0) as rejections,
    min(reported_at) as first_reported_at,
    max(reported_at) as last_reported_at
from risk.outcomes
where reason <> 6
group by master_id, epoch, sequence;

create function risk.ensure_chunks(relation regclass, first_day date, last_day date, days int default 1)
returns setof text
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    -- Aligned on 1970-01-01, so that every caller cuts at the same days.
    chunk_start date := date '1970-01-01' + ((first_day - date '1970-01-01') / days) * days;
    parent text;
    chunk text;
begin
    if days < 1 or last_day < first_day or last_day - first_day > 800 then
        raise exception 'ensure_chunks: % to % by % days is not a sensible range', first_day, last_day, days;
    end if;
    select c.relname into parent
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where c.oid = relation and c.relkind = 'p' and n.nspname = 'risk';
    if parent is null then
        raise exception 'ensure_chunks: % is not a partitioned table of risk', relation;
    end if;
    while chunk_start <= last_day loop
        chunk := parent || '_' || to_char(chunk_start, 'YYYYMMDD');
        if to_regclass(format('risk.%I', chunk)) is null then
            -- Two processes may start at once; the loser finds the chunk there.
            perform pg_advisory_xact_lock(hashtext('risk.ensure_chunks'));
            execute format(
                'create table if not exists risk.%I partition of %s for values from (%L) to (%L)',
                chunk, relation, chunk_start, chunk_start + days
            );
            return next 'risk.' || chunk;
        end if;
        chunk_start := chunk_start + days;
    end loop;
end
$$;

-- The same shape as TimescaleDB's: drops chunks that hold nothing younger than `older_than`, and returns their names.
create function risk.drop_chunks(relation regclass, older_than interval)
returns setof text
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    chunk record;
begin
    if older_than < interval '1 day' then
        raise exception 'drop_chunks: refusing to drop what is younger than a day';
    end if;
    if not exists (
        select
        from pg_class c
        join pg_namespace n on n.oid = c.relnamespace
        where c.oid = relation and c.relkind = 'p' and n.nspname = 'risk'
    ) then
        raise exception 'drop_chunks: % is not a partitioned table of risk', relation;
    end if;
    for chunk in
        select format('%I.%I', n.nspname, c.relname) as name
        from pg_inherits i
        join pg_class c on c.oid = i.inhrelid
        join pg_namespace n on n.oid = c.relnamespace
        where
            i.inhparent = relation
            and substring(pg_get_expr(c.relpartbound, c.oid) from $re$TO \('([^']+)'\)$re$)::timestamptz
            <= now() - older_than
        order by c.relname
    loop
        execute 'drop table ' || chunk.name;
        return next chunk.name;
    end loop;
end
$$;

revoke all on function risk.ensure_chunks (regclass, date, date, int) from public;
revoke all on function risk.drop_chunks (regclass, interval) from public;

do $$
declare
    object record;
begin
    for object in
        select c.oid::regclass as name, c.relkind
        from pg_class c
        where
            c.relnamespace = 'risk'::regnamespace
            and c.relkind in ('r', 'p', 'v', 'S')
            and c.relname <> 'schema_migrations'
            -- The sequences of identity columns follow their tables.
            and not (
                c.relkind = 'S'
                and exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'i')
            )
    loop
        execute format(
            'alter %s %s owner to risk_owner',
            case object.relkind when 'v' then 'view' when 'S' then 'sequence' else 'table' end,
            object.name
        );
    end loop;
end
$$;
alter function risk.ensure_chunks (regclass, date, date, int) owner to risk_owner;
alter function risk.drop_chunks (regclass, interval) owner to risk_owner;

grant select, insert on risk.subscribers, risk.outcomes, risk.protection_logs, risk.integrity_violations,
    risk.trust_decisions, risk.overrides to risk_service;
grant select, insert, update on risk.user_sums, risk.trust_state to risk_service;
grant select, insert, delete on risk.pending_batches to risk_service;
grant select, update on risk.detector_state, risk.detector_lease to risk_service;
grant select on risk.signal_stats to risk_service;
grant usage on sequence risk.outcome_batches to risk_service;
grant execute on function risk.ensure_chunks (regclass, date, date, int) to risk_service;
grant execute on function risk.drop_chunks (regclass, interval) to risk_service;
grant select on risk.subscribers, risk.outcomes, risk.protection_logs, risk.integrity_violations, risk.user_sums,
    risk.trust_state, risk.trust_decisions, risk.overrides, risk.detector_state, risk.detector_lease, risk.signal_stats
    to analyst_readonly;

-- Late reports are taken for some days; a week ahead bridges one without a leader.
select risk.ensure_chunks('risk.outcomes', (now() at time zone 'UTC')::date - 8, (now() at time zone 'UTC')::date + 7);
select risk.ensure_chunks('risk.protection_logs', (now() at time zone 'UTC')::date, (now() at time zone 'UTC')::date + 7);
select risk.ensure_chunks('risk.integrity_violations', (now() at time zone 'UTC')::date, (now() at time zone 'UTC')::date + 7);
select risk.ensure_chunks('risk.trust_decisions', (now() at time zone 'UTC')::date, (now() at time zone 'UTC')::date + 21, 7);
