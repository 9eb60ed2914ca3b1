-- name: make_heads
insert into ledger.archive_heads (master_id, epoch, sequence)
select master_id, 0, 0 from unnest($1::bigint[]) as wanted (master_id) order by master_id
on conflict (master_id) do nothing

-- name: lock_heads
-- In order of master_id, so that two archivers cannot wait for each other in a circle.
select master_id, epoch, sequence
  from ledger.archive_heads
 where master_id = any ($1::bigint[])
 order by master_id
   for no key update

-- name: set_heads
update ledger.archive_heads as h
   set epoch = n.epoch, sequence = n.sequence, archived_at = now()
  from unnest($1::bigint[], $2::bigint[], $3::bigint[]) as n (master_id, epoch, sequence)
 where h.master_id = n.master_id

-- name: count_days
insert into ledger.archive_days as d (day, signal_count)
select * from unnest($1::date[], $2::bigint[])
on conflict (day) do update set signal_count = d.signal_count + excluded.signal_count

-- name: stored
select sequence, kind, position_id, symbol, side, volume_lots_e8, price_e8, stop_loss_e8, take_profit_e8, occurred_at_us,
       order_id, order_type, stop_limit_price_e8, expires_at_us, opposite_position_id, comment, magic, raw
  from ledger.signal_archive
 where master_id = $1 and epoch = $2 and sequence between $3 and $4

-- name: declared_gaps
-- Gaps that the log itself declared; a hole that the archiver found is no word against a signal.
select first_sequence, last_sequence
  from ledger.signal_gaps
 where master_id = $1 and previous_epoch = $2 and last_sequence >= $3 and first_sequence <= $4 and not is_hole

-- name: add_gaps
insert into ledger.signal_gaps (master_id, epoch, last_sequence, first_sequence, previous_epoch, reason, note,
                                session_epoch, key_id, received_at, is_hole)
select * from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::smallint[], $7::text[],
                     $8::bigint[], $9::text[], $10::timestamptz[], $11::boolean[])
on conflict (master_id, epoch, last_sequence, is_hole) do nothing
returning 1

-- name: stored_gap
select first_sequence, previous_epoch, reason
  from ledger.signal_gaps
 where master_id = $1 and epoch = $2 and last_sequence = $3 and not is_hole

-- name: add_refusals
insert into ledger.archive_refusals (stream, entry_id, run_number, reason, detail, payload)
select $1, * from unnest($2::text[], $3::integer[], $4::text[], $5::text[], $6::bytea[])
on conflict (stream, entry_id, run_number) do nothing
returning reason

-- name: create_chunks
select ledger.create_chunks('ledger.signal_archive', $1::date, $2::date)
