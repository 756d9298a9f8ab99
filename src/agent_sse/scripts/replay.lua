-- Read the events after a cursor, and tell whether the history after it is complete.
-- KEYS    as in _session.lua
-- ARGV[6] cursor "<ms>-<seq>"   ARGV[7] events at most   ARGV[8] bytes at most (one event is always returned)
-- Returns {"ok", tip, tip of the closed session or "", id, payload, id, payload, …}, or {"expired" | "lost", tip, …}.
-- Complete means: the cursor is an entry, or the next entry's `prev`, or the tip.
local cursor, count, limit = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])

local refused = load_state()
if refused then return refused end

local function below(other) -- whether the cursor is an older id than `other`
  local ms, seq = string.match(cursor, '^(%d+)%-(%d+)$')
  local other_ms, other_seq = string.match(other, '^(%d+)%-(%d+)$')
  ms, other_ms = tonumber(ms), tonumber(other_ms)
  return ms < other_ms or (ms == other_ms and tonumber(seq) < tonumber(other_seq))
end

local closed = redis.call('GET', KEYS[6]) or ''
local length = redis.call('XLEN', events)
if length > 0 and bytes > 0 then count = math.max(1, math.min(count, math.floor(limit * length / bytes))) end
local entries = redis.call('XRANGE', events, cursor, '+', 'COUNT', count + 1)
local first = entries[1]
local from = 1
if first and first[1] == cursor then
  from = 2
elseif not (first and first[2][4] == cursor) and cursor ~= tip then
  local oldest = redis.call('XRANGE', events, '-', '+', 'COUNT', 1)[1]
  local age = now - tonumber(string.match(cursor, '^%d+'))
  -- Before what is kept, or older than anything may be: it went with time. Otherwise it should have been here; also
  -- between the first event and the one that it says was before it, where this history never had anything.
  local expired = age > retention or below(oldest and oldest[2][4] or tip)
  return { expired and 'expired' or 'lost', tip, closed }
end
-- The event that the tip names was deleted. (A cursor above the tip is an entry here: an append that failed half-way.)
if from > #entries and below(tip) then return { 'lost', tip, closed } end
local reply, size = { 'ok', tip, closed }, 0
for i = from, math.min(#entries, from + count - 1) do
  local payload = entries[i][2][2]
  size = size + #payload
  if i > from and size > limit then break end
  reply[#reply + 1] = entries[i][1]
  reply[#reply + 1] = payload
end
return reply
