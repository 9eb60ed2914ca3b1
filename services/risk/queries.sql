-- Every statement of the risk service. Lock order: detector_lease, user_sums, trust_state, each by user_no.

-- name: user_numbers
-- The numbers of users that are known.
select user_id, user_no from risk.subscribers where user_id = any($1::uuid[])

-- name: add_user
insert into risk.subscribers (user_id) values ($1) on conflict (user_id) do nothing

-- name: store_outcomes
-- Stores one user's batch in one statement and returns the event keys that were not stored. An event of another chunk
-- is looked up because uniqueness ends at a chunk's border.
with incoming as materialized (
    select
        i.event_key, i.body_key, i.master_id, i.epoch, i.sequence, i.reason, i.price_e8, i.latency_us,
        i.occurred_at, (i.occurred_at at time zone 'UTC')::date as occurred_on, i.event_id
    from unnest(
        $3::bigint[], $4::bigint[], $5::bigint[], $6::int[], $7::bigint[], $8::smallint[], $9::bigint[],
        $10::bigint[], $11::timestamptz[], $12::text[]
    ) as i (event_key, body_key, master_id, epoch, sequence, reason, price_e8, latency_us, occurred_at, event_id)
),
batch as materialized (
    select nextval('risk.outcome_batches') as batch_id
),
stored as (
    insert into risk.outcomes (
        reported_at, occurred_at, event_key, body_key, sequence, master_id, price_e8, latency_us, batch_id, epoch,
        user_no, occurred_on, reason
    )
    select
        now(), i.occurred_at, i.event_key, i.body_key, i.sequence, i.master_id, i.price_e8, i.latency_us,
        b.batch_id, i.epoch, $1::int, i.occurred_on, i.reason
    from incoming i
    cross join batch b
    where not exists (
        select from risk.outcomes o
        where
            o.user_no = $1 and o.event_key = i.event_key and o.occurred_on <> i.occurred_on
            and o.occurred_on between $13::date and $14::date
    )
    on conflict do nothing
    returning event_key
),
logged as (
    insert into risk.protection_logs (
        reported_at, occurred_at, user_id, master_id, epoch, sequence, event_id, reason, price_e8, latency_us
    )
    select
        now(), i.occurred_at, $2::uuid, i.master_id, i.epoch, i.sequence, i.event_id, ($15::text[])[i.reason],
        i.price_e8, i.latency_us
    from incoming i
    join stored s using (event_key)
    where i.reason > 0
),
queued as (
    insert into risk.pending_batches (batch_id, user_no, reported_at, violations, master_ids, epochs, sequences)
    select
        b.batch_id, $1, now(), 0, array_agg(i.master_id), array_agg(i.epoch), array_agg(i.sequence)
    from incoming i
    join stored s using (event_key)
    cross join batch b
    group by b.batch_id
)
select i.event_key from incoming i where i.event_key not in (select s.event_key from stored s)

-- name: stored_bodies
-- Of events that could not be stored: which had been, and with what body.
select o.event_key, o.body_key
from unnest($2::bigint[]) as i (event_key)
join risk.outcomes o on o.user_no = $1 and o.event_key = i.event_key
where o.occurred_on between $3::date and $4::date

-- name: store_violations
with kept as (
    insert into risk.integrity_violations (reported_at, user_no, conflicts, doubled, unmatched)
    values (now(), $1::int, $2::int, $3::int, $4::int)
)
insert into risk.pending_batches (batch_id, user_no, reported_at, violations, master_ids, epochs, sequences)
values (nextval('risk.outcome_batches'), $1, now(), $2::int + $3::int, '{}', '{}', '{}')

-- name: ensure_chunks
select risk.ensure_chunks($1::text::regclass, $2::date, $3::date, $4::int)

-- name: drop_chunks
select risk.drop_chunks($1::text::regclass, $2::interval)

-- name: get_trust
select t.version, t.score, t.level, t.decided_at, s.user_id
from risk.trust_state t
join risk.subscribers s using (user_no)
where s.user_id = $1

-- name: list_at_risk
-- Lowest first; ($2, $3) is the last row of the page before.
select t.version, t.score, t.level, t.decided_at, s.user_id, t.user_no
from risk.trust_state t
join risk.subscribers s using (user_no)
where t.score < $1 and (t.score, t.user_no) > ($2::double precision, $3::int)
order by t.score, t.user_no
limit $4

-- name: get_decision
select
    d.user_no, d.user_id, d.version, d.kind, d.score, d.level, d.decided_at, d.previous_score, d.previous_level,
    d.is_fresh, d.weight, d.exposure, d.excess, d.violations, d.signals, d.rejected, d.rejection, d.selectivity,
    d.integrity, d.rejection_lower_bound, d.model_version, d.fencing_token, d.explanation, d.evidence
from risk.trust_state t
join risk.subscribers s using (user_no)
join risk.trust_decisions d on d.user_no = t.user_no and d.version = t.version and d.decided_at = t.decided_at
where s.user_id = $1

-- name: list_decisions
-- A user's history, newest first.
select
    d.user_no, d.user_id, d.version, d.kind, d.score, d.level, d.decided_at, d.previous_score, d.previous_level,
    d.is_fresh, d.weight, d.exposure, d.excess, d.violations, d.signals, d.rejected, d.rejection, d.selectivity,
    d.integrity, d.rejection_lower_bound, d.model_version, d.fencing_token, d.explanation, d.evidence
from risk.trust_decisions d
join risk.subscribers s using (user_no)
where s.user_id = $1
order by d.version desc
limit $2

-- name: lock_check
select pg_try_advisory_lock($1::bigint)

-- name: wait_for_check
select pg_advisory_xact_lock($1::bigint)

-- name: hold_fence
-- Keeps the next leader from taking over until this transaction ends; no row when it has taken over.
select fencing_token from risk.detector_lease where $1::bigint is null or fencing_token = $1 for key share

-- name: detector_state
select s.reference_at, s.scored_at, s.rebuilt_at, s.last_check_at, s.last_check_duration_ms, l.fencing_token, now() as now
from risk.detector_state s
cross join risk.detector_lease l

-- name: pending_batches
select count(*) as batches, coalesce(max(batch_id), 0)::bigint as newest from risk.pending_batches

-- name: next_batches
-- The oldest batches up to number $3: up to $1 outcomes of the oldest $2 batches, and always one.
select batch_id
from (
    select batch_id, sum(cardinality(sequences)) over (order by batch_id) - cardinality(sequences) as before
    from (
        select batch_id, sequences from risk.pending_batches where batch_id <= $3 order by batch_id limit $2
    ) oldest
) counted
where before < $1

-- name: fold_outcomes
-- Adds the batches $1 to the users' sums. For each signal that they touch, everybody's contribution is computed from
-- what was folded before and from all that is folded now, and the difference is added: a report changes what peers'
-- rejections of the same signal count. Batches that are visible but still wait are left out of both.
with touched as materialized (
    select distinct t.master_id, t.epoch, t.sequence
    from risk.pending_batches b
    cross join unnest(b.master_ids, b.epochs, b.sequences) as t (master_id, epoch, sequence)
    where b.batch_id = any($1::bigint[])
),
waiting as materialized (
    select b.batch_id from risk.pending_batches b where b.batch_id <> all($1::bigint[])
),
reports as (
    -- A user's first report on a signal counts.
    select distinct on (o.master_id, o.epoch, o.sequence, o.user_no)
        o.master_id, o.epoch, o.sequence, o.user_no, o.reported_at, o.reason, o.batch_id = any($1) as is_new
    from touched t
    cross join lateral (
        select x.master_id, x.epoch, x.sequence, x.user_no, x.reported_at, x.reason, x.batch_id, x.event_key
        from risk.outcomes x
        where x.master_id = t.master_id and x.sequence = t.sequence and x.epoch = t.epoch and x.reason <> 6
        -- Keeps the planner from turning this into a join of everything.
        offset 0
    ) o
    where o.batch_id not in (select w.batch_id from waiting w)
    order by o.master_id, o.epoch, o.sequence, o.user_no, is_new, o.reported_at, o.event_key
),
counted as (
    select
        r.user_no, r.reported_at, r.reason, r.is_new,
        case when r.reason > 0 then 1 else 0 end as rejected,
        count(*) over signal as users,
        count(*) filter (where r.reason > 0) over signal as rejections,
        count(*) filter (where not r.is_new) over signal as users_before,
        count(*) filter (where r.reason > 0 and not r.is_new) over signal as rejections_before
    from reports r
    window signal as (partition by r.master_id, r.epoch, r.sequence)
),
weighed as (
    select
        c.user_no, c.is_new, c.rejected,
        power(2.0::double precision, date_part('epoch', c.reported_at - $2::timestamptz) / $3::double precision) as weight,
        ($6::double precision[])[c.reason + 1] as reason_weight,
        1.0 - (c.rejections - c.rejected + $4::double precision * $5::double precision) / (c.users - 1 + $5) as unexcused,
        case
            when c.is_new then 0.0
            else 1.0 - (c.rejections_before - c.rejected + $4 * $5) / (c.users_before - 1 + $5)
        end as unexcused_before
    from counted c
    left join risk.user_sums u using (user_no)
    where c.reported_at > coalesce(u.forgets_until, '-infinity')
)
insert into risk.user_sums as u (user_no, weight, exposure, excess, signals, rejected, evidence_at)
select
    w.user_no,
    coalesce(sum(w.weight) filter (where w.is_new), 0.0),
    sum(w.weight * (w.unexcused - w.unexcused_before)),
    sum(w.weight * w.reason_weight * (w.unexcused - w.unexcused_before)),
    count(*) filter (where w.is_new),
    count(*) filter (where w.is_new and w.rejected = 1),
    now()
from weighed w
group by w.user_no
order by w.user_no
on conflict (user_no) do update set
    weight = u.weight + excluded.weight,
    exposure = u.exposure + excluded.exposure,
    excess = u.excess + excluded.excess,
    signals = u.signals + excluded.signals,
    rejected = u.rejected + excluded.rejected,
    evidence_at = excluded.evidence_at

-- name: fold_violations
insert into risk.user_sums as u (user_no, violations, evidence_at)
select
    b.user_no,
    sum(b.violations * power(2.0::double precision, date_part('epoch', b.reported_at - $2::timestamptz) / $3::double precision)),
    now()
from risk.pending_batches b
left join risk.user_sums s using (user_no)
where b.batch_id = any($1::bigint[]) and b.violations > 0 and b.reported_at > coalesce(s.forgets_until, '-infinity')
group by b.user_no
order by b.user_no
on conflict (user_no) do update set
    violations = u.violations + excluded.violations,
    evidence_at = excluded.evidence_at

-- name: drop_folded
delete from risk.pending_batches where batch_id = any($1::bigint[])

-- name: clear_sums
update risk.user_sums
set weight = 0, exposure = 0, excess = 0, violations = 0, signals = 0, rejected = 0

-- name: clear_pending
-- In a repeatable-read transaction: exactly the batches whose outcomes the rebuild sees.
delete from risk.pending_batches

-- name: rebuild_outcomes
-- All sums from all stored outcomes: the same computation as fold_outcomes with nothing folded before.
with reports as (
    select distinct on (o.master_id, o.epoch, o.sequence, o.user_no)
        o.master_id, o.epoch, o.sequence, o.user_no, o.reported_at, o.reason
    from risk.outcomes o
    where o.reason <> 6
    order by o.master_id, o.epoch, o.sequence, o.user_no, o.reported_at, o.event_key
),
counted as (
    select
        r.user_no, r.reported_at, r.reason,
        case when r.reason > 0 then 1 else 0 end as rejected,
        count(*) over signal as users,
        count(*) filter (where r.reason > 0) over signal as rejections
    from reports r
    window signal as (partition by r.master_id, r.epoch, r.sequence)
),
weighed as (
    select
        c.user_no, c.rejected,
        power(2.0::double precision, date_part('epoch', c.reported_at - $1::timestamptz) / $2::double precision) as weight,
        ($5::double precision[])[c.reason + 1] as reason_weight,
        1.0 - (c.rejections - c.rejected + $3::double precision * $4::double precision) / (c.users - 1 + $4) as unexcused
    from counted c
    left join risk.user_sums u using (user_no)
    where c.reported_at > coalesce(u.forgets_until, '-infinity')
)
insert into risk.user_sums as u (user_no, weight, exposure, excess, signals, rejected)
select
    w.user_no,
    sum(w.weight),
    sum(w.weight * w.unexcused),
    sum(w.weight * w.reason_weight * w.unexcused),
    count(*),
    sum(w.rejected)
from weighed w
group by w.user_no
order by w.user_no
on conflict (user_no) do update set
    weight = excluded.weight,
    exposure = excluded.exposure,
    excess = excluded.excess,
    signals = excluded.signals,
    rejected = excluded.rejected

-- name: rebuild_violations
insert into risk.user_sums as u (user_no, violations)
select
    v.user_no,
    sum(
        (v.conflicts + v.doubled)
        * power(2.0::double precision, date_part('epoch', v.reported_at - $1::timestamptz) / $2::double precision)
    )
from risk.integrity_violations v
left join risk.user_sums s using (user_no)
where v.reported_at > coalesce(s.forgets_until, '-infinity')
group by v.user_no
order by v.user_no
on conflict (user_no) do update set violations = excluded.violations

-- name: set_rebuilt
update risk.detector_state set reference_at = $1, rebuilt_at = now()

-- name: candidates
-- Users whose score may have changed: touched since the last scoring, never scored, not at the top, or due to be stored
-- again. A page by user_no.
select
    u.user_no, s.user_id, u.weight, u.exposure, u.excess, u.violations, u.signals, u.rejected,
    u.evidence_at > d.scored_at as is_fresh,
    t.version, t.score, t.level, t.decided_at, t.checked_score
from risk.user_sums u
join risk.subscribers s using (user_no)
cross join risk.detector_state d
left join risk.trust_state t using (user_no)
where
    u.user_no > $2::int
    and (
        t.user_no is null or u.evidence_at > d.scored_at or t.checked_score < 100 or t.level <> 'good'
        or t.score < 100 or t.decided_at < $1::timestamptz
    )
order by u.user_no
limit $3

-- name: totals
select count(*) as users, coalesce(sum(signals), 0)::bigint as outcomes from risk.user_sums

-- name: evidence
-- The user's heaviest rejections: of the newest $3, those with the largest share in the rejection term.
with mine as (
    select o.master_id, o.epoch, o.sequence, o.reported_at, o.reason
    from risk.outcomes o
    left join risk.user_sums u using (user_no)
    where
        o.user_no = $1 and o.reason between 1 and 5 and o.reported_at > coalesce(u.forgets_until, '-infinity')
    order by o.reported_at desc, o.sequence desc
    limit $3
),
compared as (
    select
        m.master_id, m.epoch, m.sequence, m.reported_at, m.reason,
        (p.rejections + $6::double precision * $7::double precision) / (p.users + $7) as peer_rate
    from mine m
    cross join lateral (
        select
            count(distinct o.user_no) as users,
            count(distinct o.user_no) filter (where o.reason > 0) as rejections
        from risk.outcomes o
        where
            o.master_id = m.master_id and o.sequence = m.sequence and o.epoch = m.epoch
            and o.user_no <> $1 and o.reason <> 6
    ) p
)
select
    c.master_id, c.epoch, c.sequence, c.reported_at, c.reason, c.peer_rate,
    power(2.0::double precision, date_part('epoch', c.reported_at - $4::timestamptz) / $5::double precision)
    * ($8::double precision[])[c.reason + 1] * (1.0 - c.peer_rate) as weight
from compared c
order by weight desc, c.master_id, c.epoch, c.sequence
limit $2

-- name: insert_decisions
insert into risk.trust_decisions (
    decided_at, user_no, user_id, version, kind, score, level, previous_score, previous_level, is_fresh, weight, exposure,
    excess, violations, signals, rejected, rejection, selectivity, integrity, rejection_lower_bound, model_version,
    fencing_token, explanation, evidence
)
select
    $1::timestamptz, d.user_no, d.user_id, d.version, $2::text, d.score, d.level, d.previous_score, d.previous_level,
    d.is_fresh, d.weight, d.exposure, d.excess, d.violations, d.signals, d.rejected, d.rejection, d.selectivity,
    d.integrity, d.rejection_lower_bound, $3::text, $4::bigint, d.explanation, d.evidence::jsonb
from unnest(
    $5::int[], $6::uuid[], $7::bigint[], $8::double precision[], $9::text[], $10::double precision[], $11::text[],
    $12::boolean[], $13::double precision[], $14::double precision[], $15::double precision[], $16::double precision[],
    $17::bigint[], $18::bigint[], $19::double precision[], $20::double precision[], $21::double precision[],
    $22::double precision[], $23::text[], $24::text[]
) as d (
    user_no, user_id, version, score, level, previous_score, previous_level, is_fresh, weight, exposure, excess,
    violations, signals, rejected, rejection, selectivity, integrity, rejection_lower_bound, explanation, evidence
)

-- name: put_states
-- The new standing of users with a new decision.
insert into risk.trust_state as t (user_no, version, score, level, decided_at, checked_score)
select d.user_no, d.version, d.score, d.level, $1::timestamptz, d.score
from unnest($2::int[], $3::bigint[], $4::double precision[], $5::text[]) as d (user_no, version, score, level)
order by d.user_no
on conflict (user_no) do update set
    version = excluded.version,
    score = excluded.score,
    level = excluded.level,
    decided_at = excluded.decided_at,
    checked_score = excluded.checked_score

-- name: put_checked_scores
-- What the next check's hysteresis needs of users whose decision stands.
update risk.trust_state t
set checked_score = d.score
from unnest($1::int[], $2::double precision[]) as d (user_no, score)
where t.user_no = d.user_no

-- name: set_scored
update risk.detector_state set scored_at = now()

-- name: set_checked
update risk.detector_state set last_check_at = now(), last_check_duration_ms = $1

-- name: unapplied
-- Pauses first: a cheater must not wait behind heartbeats.
select t.user_no, s.user_id, t.version, t.score, t.level, d.explanation
from risk.trust_state t
join risk.subscribers s using (user_no)
join risk.trust_decisions d on d.user_no = t.user_no and d.version = t.version and d.decided_at = t.decided_at
where t.applied_version < t.version
order by t.level in ('close_only', 'paused') desc, t.user_no
limit $1

-- name: set_applied
-- Never lower: a slower process may have sent an older decision.
update risk.trust_state t
set applied_version = a.version
from unnest($1::int[], $2::bigint[]) as a (user_no, version)
where t.user_no = a.user_no and t.applied_version < a.version

-- name: repair_version
-- Stores the same decision again under a version above the one that ledger has seen; only while it is the latest.
with moved as (
    update risk.trust_state set version = $3::bigint, decided_at = now() where user_no = $1::int and version = $2::bigint
    returning user_no
)
insert into risk.trust_decisions (
    decided_at, user_no, user_id, version, kind, score, level, previous_score, previous_level, is_fresh, weight, exposure,
    excess, violations, signals, rejected, rejection, selectivity, integrity, rejection_lower_bound, model_version,
    fencing_token, explanation, evidence
)
select
    now(), d.user_no, d.user_id, $3, 'repair', d.score, d.level, d.previous_score, d.previous_level, d.is_fresh,
    d.weight, d.exposure, d.excess, d.violations, d.signals, d.rejected, d.rejection, d.selectivity, d.integrity,
    d.rejection_lower_bound, d.model_version, d.fencing_token, d.explanation, d.evidence
from moved m
join risk.trust_decisions d on d.user_no = m.user_no and d.version = $2

-- name: state_for_update
select t.version, t.score, t.level, t.decided_at, t.checked_score
from risk.trust_state t
where t.user_no = $1
for update

-- name: forget_outcomes
-- By the clock, not by the transaction's start: a check that ran in between must not be newer.
insert into risk.user_sums as u (user_no, forgets_until) values ($1, clock_timestamp())
on conflict (user_no) do update set
    weight = 0, exposure = 0, excess = 0, violations = 0, signals = 0, rejected = 0,
    forgets_until = clock_timestamp(), evidence_at = clock_timestamp()

-- name: insert_override
insert into risk.overrides (user_no, version, score, operator_name, reason, previous_score, previous_level)
values ($1, $2, $3, $4, $5, $6, $7)

-- name: users_by_level
select t.level, count(*) as users from risk.trust_state t group by t.level

-- name: users_by_score
select b.bound, (select count(*) from risk.trust_state t where t.score <= b.bound) as users
from unnest($1::double precision[]) as b (bound)

-- name: try_lead
select pg_try_advisory_lock($1::bigint)

-- name: raise_token
update risk.detector_lease
set fencing_token = fencing_token + 1, holder = $1, acquired_at = now(), renewed_at = now()
returning fencing_token

-- name: renew_lease
update risk.detector_lease set renewed_at = now() where fencing_token = $1 returning fencing_token
