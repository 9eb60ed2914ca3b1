-- name: head
select epoch, sequence from ledger.archive_heads where master_id = $1

-- name: signals
select received_at, archived_at, master_id, epoch, sequence, sent_at_us, kind, position_id, symbol, side, volume_lots_e8,
       price_e8, stop_loss_e8, take_profit_e8, occurred_at_us, order_id, order_type, stop_limit_price_e8, expires_at_us,
       opposite_position_id, comment, magic, raw
  from ledger.signal_archive
 where master_id = $1 and (epoch, sequence) > ($2, $3)
 order by epoch, sequence
 limit $4

-- name: gaps
-- In the order of GapRow's fields.
select master_id, epoch, last_sequence, first_sequence, previous_epoch, reason, note, session_epoch, key_id, received_at,
       is_hole
  from ledger.signal_gaps
 where master_id = $1 and (epoch, last_sequence) > ($2, $3)
 order by epoch, last_sequence, is_hole
 limit $4

-- name: signal
select received_at, archived_at, master_id, epoch, sequence, sent_at_us, kind, position_id, symbol, side, volume_lots_e8,
       price_e8, stop_loss_e8, take_profit_e8, occurred_at_us, order_id, order_type, stop_limit_price_e8, expires_at_us,
       opposite_position_id, comment, magic, raw
  from ledger.signal_archive
 where master_id = $1 and epoch = $2 and sequence = $3

-- name: heads
select master_id, epoch, sequence
  from ledger.archive_heads
 where (epoch, sequence) > (0, 0)
 order by master_id
 limit $1

-- name: signal_count
select coalesce(sum(signal_count), 0)::bigint from ledger.archive_days
