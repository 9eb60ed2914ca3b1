#!lua name=ecp_ingest_v2

-- What the front door does to the log, each call atomic. All keys are of one shard and lie in one cluster slot:
-- the stream, and the hashes heads, snapshots and meta (see services/common/log.py). Numbers stay below 2^53.
--
-- The name holds the version, so that processes of two versions can work side by side while one replaces the other.

local OK, DUPLICATE, MOVED, FENCED, CONFLICT = 0, 1, 2, 3, 4

local function whole(number)
  return string.format('%.0f', number)
end

-- A head is 'epoch sequence session_epoch digest snapshot_epoch snapshot_sequence'.
local function parse_head(value)
  if not value then return nil end
  local epoch, sequence, session, digest, snapshot_epoch, snapshot_sequence =
    string.match(value, '^(%d+) (%d+) (%d+) (%S+) (%d+) (%d+)$')
  return {
    epoch = tonumber(epoch), sequence = tonumber(sequence), session = tonumber(session), digest = digest,
    snapshot_epoch = tonumber(snapshot_epoch), snapshot_sequence = tonumber(snapshot_sequence),
  }
end

local function format_head(head)
  return string.format('%.0f %.0f %.0f %s %.0f %.0f', head.epoch, head.sequence, head.session, head.digest,
    head.snapshot_epoch, head.snapshot_sequence)
end

local function add(stream, entries_max, payload)
  if entries_max == '0' then
    return redis.call('XADD', stream, '*', 'b', payload)
  end
  return redis.call('XADD', stream, 'MAXLEN', '~', entries_max, '*', 'b', payload)
end

-- Protobuf, as much of it as markers need.

local function varint(number)
  local bytes = {}
  while number >= 128 do
    local low = number % 128
    bytes[#bytes + 1] = string.char(low + 128)
    number = (number - low) / 128
  end
  bytes[#bytes + 1] = string.char(number)
  return table.concat(bytes)
end

local function number_field(tag, number)
  if number == 0 then return '' end
  return string.char(tag) .. varint(number)
end

local function bytes_field(tag, bytes)
  return string.char(tag) .. varint(#bytes) .. bytes
end

-- LogBatch{runs: LogRun{…}} of a run that stands at one position; `record` is the encoded oneof.
local function marker(master, head, received_at_us, key_id, record)
  local run = number_field(0x08, master) .. number_field(0x10, head.epoch) .. number_field(0x18, head.sequence)
    .. number_field(0x20, head.sequence) .. number_field(0x28, received_at_us) .. number_field(0x30, head.session)
    .. (key_id == '' and '' or bytes_field(0x3a, key_id)) .. record
  return bytes_field(0x0a, run)
end

local function epoch_start(previous_epoch, previous_sequence, reason)
  local position = number_field(0x08, previous_epoch) .. number_field(0x10, previous_sequence)
  return bytes_field(0x52, bytes_field(0x0a, position) .. number_field(0x10, reason))
end

local function is_behind(head, epoch, sequence)
  return epoch > head.epoch or (epoch == head.epoch and sequence > head.sequence)
end

local MASTER_LOST, LOG_LOST = 2, 3
local SNAPSHOT_STORED = '\90\0'  -- LogRun.snapshot = 11, empty

-- open: begins a session of one master.
-- KEYS stream, heads, meta. ARGV entries_max, master_id, key_id, received_at_us, acknowledged epoch, acknowledged
-- sequence, begin_epoch (0 or 1), log id to use if the log has none, number of shards, archived epoch, archived sequence.
-- Returns the new head, the log id, and 1 if an epoch began because history was lost; or an error when the log is of
-- another number of shards.
--
-- What is archived only counts where the master itself does not remember: with its outbox intact it sends again what was
-- archived and never acknowledged (a failover loses such a tail), and no epoch is due. But whatever begins an epoch, it lies
-- above all that is archived, so that no position is given twice.
local function open(keys, args)
  local stream, heads, meta = keys[1], keys[2], keys[3]
  local entries_max, field, key_id, received_at_us = args[1], args[2], args[3], tonumber(args[4])
  local seen_epoch, seen_sequence, begin = tonumber(args[5]), tonumber(args[6]), args[7] == '1'
  local archived_epoch, archived_sequence = tonumber(args[10]), tonumber(args[11])

  if redis.call('HEXISTS', meta, 'log_id') == 0 then redis.call('HSETNX', meta, 'shards', args[9]) end
  redis.call('HSETNX', meta, 'log_id', args[8])
  local shards = redis.call('HGET', meta, 'shards') or '1'
  if shards ~= args[9] then return redis.error_reply('SHARDS the log is of ' .. shards .. ' shards') end
  local time = redis.call('TIME')
  -- By the clock, so that sessions from before a loss of the heads stay older than all later ones.
  local session = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

  local head = parse_head(redis.call('HGET', heads, field))
  local known = head ~= nil
  if not known then
    head = { epoch = 0, sequence = 0, session = 0, digest = '-', snapshot_epoch = 0, snapshot_sequence = 0 }
  end
  if session <= head.session then session = head.session + 1 end
  head.session = session

  local log_lost = is_behind(head, seen_epoch, seen_sequence)
  local remembers = seen_epoch > 0 and not begin
  if not remembers and is_behind(head, archived_epoch, archived_sequence) then log_lost = true end
  local begins = log_lost or (known and begin)
  if begins then
    local previous_epoch, previous_sequence = head.epoch, head.sequence
    head.epoch = math.max(head.epoch, seen_epoch, archived_epoch) + 1
    head.sequence = math.max(head.sequence, seen_sequence, remembers and 0 or archived_sequence)
    head.digest = '-'
    local record = epoch_start(previous_epoch, previous_sequence, log_lost and LOG_LOST or MASTER_LOST)
    add(stream, entries_max, marker(tonumber(field), head, received_at_us, key_id, record))
  elseif not known then
    head.epoch = 1
  end
  local value = format_head(head)
  redis.call('HSET', heads, field, value)
  return { value, redis.call('HGET', meta, 'log_id'), begins and 1 or 0 }
end

-- append: adds the runs of many sessions as one entry.
-- KEYS stream, heads. ARGV entries_max, then for each session: master_id, session_epoch, first sequence, last sequence,
-- digest of the last signal or '-', serialized runs.
-- Returns for each session: OK, or {code, last sequence in the log (-1: none)}. The runs of a session are taken all or none.
local function append(keys, args)
  local fields = {}
  for i = 2, #args, 6 do fields[#fields + 1] = args[i] end
  local values = redis.call('HMGET', keys[2], unpack(fields))

  local answers, payloads, moved = {}, {}, {}
  for n = 1, #fields do
    local i = n * 6 - 4
    local epoch, sequence, session, digest, rest = string.match(values[n] or '', '^(%d+) (%d+) (%d+) (%S+)( .+)$')
    local last = tonumber(sequence or -1)
    if not epoch then
      answers[n] = { MOVED, -1 }
    elseif session ~= args[i + 1] then
      answers[n] = { FENCED, last }
    elseif tonumber(args[i + 2]) == last + 1 then
      answers[n] = OK
      payloads[#payloads + 1] = args[i + 5]
      moved[#moved + 1] = fields[n]
      moved[#moved + 1] = epoch .. ' ' .. args[i + 3] .. ' ' .. session .. ' ' .. args[i + 4] .. rest
    elseif tonumber(args[i + 3]) > last then
      answers[n] = { MOVED, last }
    elseif tonumber(args[i + 3]) == last and digest ~= '-' and args[i + 4] ~= '-' and digest ~= args[i + 4] then
      answers[n] = { CONFLICT, last }
    else
      -- Written again, so that a WAIT or WAITAOF behind this call also covers the append that it repeats.
      redis.call('HSET', keys[2], fields[n], values[n])
      answers[n] = { DUPLICATE, last }
    end
  end
  if #payloads > 0 then
    add(keys[1], args[1], table.concat(payloads))
    redis.call('HSET', keys[2], unpack(moved))
  end
  return answers
end

-- snapshot: stores a master's snapshot and says so in the log.
-- KEYS stream, heads, snapshots. ARGV entries_max, master_id, session_epoch, received_at_us, key_id, epoch and sequence
-- that it is as of, serialized Snapshot.
-- Returns OK; DUPLICATE when a newer one is there; or FENCED or MOVED (the log does not reach so far).
local function snapshot(keys, args)
  local field, key_id = args[2], args[5]
  local epoch, sequence = tonumber(args[6]), tonumber(args[7])
  local head = parse_head(redis.call('HGET', keys[2], field))
  if not head then return MOVED end
  if whole(head.session) ~= args[3] then return FENCED end
  if epoch ~= head.epoch or sequence > head.sequence then return MOVED end
  if head.snapshot_epoch == epoch and head.snapshot_sequence > sequence then return DUPLICATE end
  head.snapshot_epoch, head.snapshot_sequence = epoch, sequence
  redis.call('HSET', keys[3], field, args[8])
  add(keys[1], args[1], marker(tonumber(field), head, tonumber(args[4]), key_id, SNAPSHOT_STORED))
  redis.call('HSET', keys[2], field, format_head(head))
  return OK
end

redis.register_function('ecp_ingest_v2_open', open)
redis.register_function('ecp_ingest_v2_append', append)
redis.register_function('ecp_ingest_v2_snapshot', snapshot)
