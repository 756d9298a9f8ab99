-- Common head of every script; Python puts it in front. Layout 1.
--
-- Two releases of this package may run side by side: a script is called by its SHA-1, so each release brings its
-- own, and `layout` in the state hash says how the keys are to be read. A change that an older release would
-- misread raises LAYOUT; an older release then refuses with an error instead of corrupting the session.
--
-- KEYS[1] events (stream)   KEYS[2] state (hash)      KEYS[3] channel   KEYS[4] calls (hash)
-- KEYS[5] publishers (hash) KEYS[6] closed (string)
-- ARGV[1] retention, ms     ARGV[2] retained events   ARGV[3] retained bytes
-- ARGV[4] session TTL, ms   ARGV[5] "SPUBLISH" or "PUBLISH"
local LAYOUT = 1
local CALLS_MAX = 256 -- unfinished tool calls that a snapshot shows; more means an agent that never finishes them

local events, state, channel, calls = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local retention, max_events, max_bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local ttl, publish_command = tonumber(ARGV[4]), ARGV[5]

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local tip, tip_ms, tip_seq, bytes, touched, deadline
local dirty = false -- the head has to be written back
local stale = false -- lifetimes have to be renewed: once a second is enough, they are half of a publish's cost

local function integer(n) return string.format('%.0f', n) end

-- ISO 8601 of Unix milliseconds; civil date from days as in Howard Hinnant's "chrono-Compatible Low-Level Date Algorithms".
local function iso(ms)
  local days, rest = math.floor(ms / 86400000), ms % 86400000
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%03dZ', year, month, doy - math.floor((153 * mp + 2) / 5) + 1,
    math.floor(rest / 3600000), math.floor(rest / 60000) % 60, math.floor(rest / 1000) % 60, rest % 1000)
end

-- Reads the session's head. Returns an error reply when a newer release wrote it.
local function load_state()
  local s = redis.call('HMGET', state, 'layout', 'tip', 'bytes', 'touched', 'deadline')
  if s[1] and tonumber(s[1]) > LAYOUT then
    return redis.error_reply('LAYOUT session was written by a newer agent-sse (layout ' .. s[1] .. '), upgrade this one')
  end
  tip = s[2]
  if not tip then
    -- The state was lost but the Stream was not (an eviction): ids must still grow.
    local last = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)
    tip = last[1] and last[1][1] or '0-0'
  end
  local ms, seq = string.match(tip, '^(%d+)%-(%d+)$')
  tip_ms, tip_seq = tonumber(ms), tonumber(seq)
  bytes, touched, deadline = tonumber(s[3] or 0), tonumber(s[4] or 0), tonumber(s[5] or 0)
  stale = now - touched >= 1000 or now < touched
  return nil
end

-- Removes the oldest events while there are too many or too large ones, with `aged` also those past their retention;
-- keeps `bytes` true. One event always stays.
local function trim(length, aged)
  local oldest = now - retention
  while length > 1 do
    local over = length > max_events or bytes > max_bytes
    if not (over or aged) then return end
    local want = over and math.max(1, math.min(32, length - max_events)) or 32
    local entries = redis.call('XRANGE', events, '-', '+', 'COUNT', want)
    local gone = 0
    for _, entry in ipairs(entries) do
      over = length - gone > max_events or bytes > max_bytes
      local late = aged and tonumber(string.match(entry[1], '^%d+')) < oldest
      if length - gone <= 1 or not (over or late) then break end
      gone, bytes = gone + 1, bytes - #entry[2][2]
    end
    length = length - gone
    if gone > 0 then redis.call('XTRIM', events, 'MAXLEN', length) end
    if gone < #entries then return end
  end
end

-- Renews the lifetime of everything but the Stream, which lives by its last event.
local function renew()
  local lifetime = integer(math.max(ttl, retention + 2000, deadline - now + retention)) -- never before the Stream
  for _, i in ipairs({ 2, 4, 5, 7, 8, 9, 12 }) do
    if KEYS[i] then redis.call('PEXPIRE', KEYS[i], lifetime) end
  end
end

-- Appends one event: the Stream, the tip, the channel. Returns its id.
local function append(payload, tag)
  local length = redis.call('XLEN', events)
  if length == 0 then bytes, stale = 0, true end -- it expired
  local prev = tip
  if tip_ms == 0 then -- a session's first event: a closed one of the same name may have used this millisecond
    local ms, seq = string.match(redis.call('GET', KEYS[6]) or '0-0', '^(%d+)%-(%d+)$')
    tip_ms, tip_seq = tonumber(ms), tonumber(seq)
  end
  if now > tip_ms then tip_ms, tip_seq = now, 0 else tip_seq = tip_seq + 1 end
  tip = integer(tip_ms) .. '-' .. integer(tip_seq)
  redis.call('XADD', events, tip, 'd', payload, 'p', prev, 'k', tag)
  bytes, length, dirty = bytes + #payload, length + 1, true
  if stale or length > max_events or bytes > max_bytes then trim(length, stale) end
  redis.call(publish_command, channel, tip .. ' ' .. prev .. ' ' .. payload)
  return tip
end

-- Keeps the snapshot's tool calls: the latest status of each unfinished one, and of the last finished one.
local function record_status(call_id, id, payload, terminal)
  local before = redis.call('HSTRLEN', calls, call_id)
  local size = -before
  if terminal then
    if before > 0 then redis.call('HDEL', calls, call_id) end
    redis.call('HSET', state, 'last', payload)
  else
    local value = id .. ' ' .. payload
    redis.call('HSET', calls, call_id, value)
    size = size + #value
  end
  if before == 0 then stale = true end
  local count = redis.call('HLEN', calls)
  local total = count == 0 and 0 or redis.call('HINCRBY', state, 'calls_bytes', size)
  if count == 0 then redis.call('HSET', state, 'calls_bytes', 0) end
  if count <= 1 or (count <= CALLS_MAX and total <= max_bytes) then return end
  local all, flat = {}, redis.call('HGETALL', calls)
  for i = 1, #flat, 2 do
    local ms, seq = string.match(flat[i + 1], '^(%d+)%-(%d+) ')
    all[#all + 1] = { flat[i], #flat[i + 1], tonumber(ms), tonumber(seq) }
  end
  table.sort(all, function(a, b) return a[3] < b[3] or (a[3] == b[3] and a[4] < b[4]) end)
  for i = 1, #all - 1 do -- the oldest half, so that this is rare
    if #all - i < CALLS_MAX / 2 and total <= max_bytes / 2 then break end
    redis.call('HDEL', calls, all[i][1])
    total = total - all[i][2]
  end
  redis.call('HSET', state, 'calls_bytes', integer(total))
end

-- Appends a publisher's event, and changes the snapshot by it. Returns its id.
local function take_event(payload, tag, kind, call_id, terminal)
  local id = append(payload, tag)
  if kind == 'status' then
    record_status(call_id, id, payload, terminal)
  elseif kind == 'result' then
    redis.call('HSET', state, 'result', payload, 'result_call', call_id)
  elseif kind == 'cleared' then
    if call_id == '' or redis.call('HGET', state, 'result_call') == call_id then
      redis.call('HDEL', state, 'result', 'result_call')
    end
  end
  return id
end

-- Writes the head back if it changed, and renews what has to live on.
local function save_state()
  if not dirty then return end
  if stale then touched = now end
  redis.call('HSET', state, 'layout', LAYOUT, 'tip', tip, 'bytes', integer(bytes), 'touched', integer(touched),
    'deadline', integer(deadline))
  if stale then
    redis.call('PEXPIRE', events, integer(math.max(retention, deadline - now + retention) + 1000))
    renew()
  end
end
