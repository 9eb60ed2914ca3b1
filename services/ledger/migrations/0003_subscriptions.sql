-- phase: before
-- Who follows whom, who is paused and by whom, and how far each subscriber has come.

set local role ledger_owner;

create table ledger.subscriptions (
    subscription_id uuid primary key,
    user_id uuid not null references ledger.users,
    master_id bigint not null references ledger.masters,
    -- Operators and risk pause independently (each a PauseScope); the stricter one counts.
    operator_pause smallint not null default 0 check (operator_pause between 0 and 2),
    operator_pause_reason text not null default '',
    risk_pause smallint not null default 0 check (risk_pause between 0 and 2),
    risk_pause_reason text not null default '',
    version bigint not null default 1 check (version >= 1),
    created_at timestamptz not null default now(),
    cancelled_at timestamptz,
    cancel_reason text not null default ''
);
create unique index subscriptions_one_active on ledger.subscriptions (user_id, master_id)
    include (subscription_id) where cancelled_at is null;
create index subscriptions_created_at_idx on ledger.subscriptions (created_at, subscription_id);
create index subscriptions_user_id_idx on ledger.subscriptions (user_id, created_at, subscription_id);
create index subscriptions_master_id_idx on ledger.subscriptions (master_id, created_at, subscription_id);

-- Written about twice a second for each busy subscriber, hence apart, narrow, and with room for updates in place.
create table ledger.subscription_progress (
    subscription_id uuid primary key references ledger.subscriptions,
    acknowledged_epoch bigint not null default 0 check (acknowledged_epoch >= 0),
    acknowledged_sequence bigint not null default 0 check (acknowledged_sequence >= 0),
    sync_state smallint not null default 0 check (sync_state between 0 and 3),
    sync_reason text not null default '',
    sync_changed_at timestamptz not null default now()
) with (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02);

-- Each transition with its time and reason.
create table ledger.subscription_history (
    history_id bigint generated always as identity primary key,
    subscription_id uuid not null references ledger.subscriptions,
    changed_at timestamptz not null default now(),
    -- created, pause, cancelled: values are PauseScopes; sync: values are SyncStates.
    change text not null check (change in ('created', 'pause', 'cancelled', 'sync')),
    old_value smallint not null,
    new_value smallint not null,
    reason text not null
);
create index subscription_history_subscription_id_idx on ledger.subscription_history (subscription_id, history_id);
create index subscription_history_changed_at_idx on ledger.subscription_history (changed_at);

grant select, insert on ledger.subscriptions, ledger.subscription_progress to ledger_service;
grant update (operator_pause, operator_pause_reason, risk_pause, risk_pause_reason, version, cancelled_at, cancel_reason)
    on ledger.subscriptions to ledger_service;
grant update (acknowledged_epoch, acknowledged_sequence, sync_state, sync_reason, sync_changed_at)
    on ledger.subscription_progress to ledger_service;
grant select, insert, delete on ledger.subscription_history to ledger_service;
grant select on ledger.subscriptions, ledger.subscription_progress, ledger.subscription_history to analyst_readonly;

reset role;
