-- Append one event of a publisher, once.
-- KEYS    as in _session.lua
-- ARGV[6] payload (one line of JSON)   ARGV[7] publisher   ARGV[8] its counter for this event
-- ARGV[9] floor: the counter of the event that must have been executed before this one
-- ARGV[10] "status", "result", "cleared" or "other"   ARGV[11] tool call id or ""   ARGV[12] "1" = a terminal status
-- Returns {id, "0" or "1" when it was there already}, or {"GAP"} when the event before it is missing here: a pipeline
-- failed half-way, or this history is not the one that the publisher wrote to. Nothing was stored then.
local publishers = KEYS[5]
local payload, publisher, count, floor = ARGV[6], ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9])
local kind, call_id = ARGV[10], ARGV[11]

-- Drops counters of processes that are gone: a retry comes within publish_timeout, so ten minutes are plenty. Of many
-- short-lived publishers the oldest go earlier: the hash stays bounded, and half of its bound must come between an
-- event and its retry.
local function forget_publishers(held)
  local all, flat = {}, redis.call('HGETALL', publishers)
  for i = 1, #flat, 2 do
    all[#all + 1] = { flat[i], tonumber(string.match(flat[i + 1], '(%d+)$')) }
  end
  table.sort(all, function(a, b) return a[2] < b[2] end)
  local surplus = held >= 1024 and held - 512 or 0
  for i, entry in ipairs(all) do
    if i <= surplus or math.abs(now - entry[2]) > 600000 then redis.call('HDEL', publishers, entry[1]) end
  end
end

local refused = load_state()
if refused then return refused end

local mine = redis.call('HGET', publishers, publisher)
if mine then
  local last, last_id = string.match(mine, '^(%d+) (%S+)')
  last = tonumber(last)
  if count == last then return { last_id, '1' } end
  if count < last then
    local tag = publisher .. ':' .. ARGV[8]
    for _, entry in ipairs(redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1000)) do
      if entry[2][6] == tag then return { entry[1], '1' } end
    end
    return { last_id, '1' } -- it was trimmed since; the nearest id that is known
  end
  if last < floor then return { 'GAP' } end
elseif floor > 0 then
  return { 'GAP' }
else
  local held = redis.call('HLEN', publishers)
  if held >= 256 and held % 128 == 0 then forget_publishers(held) end
end

local id = take_event(payload, publisher .. ':' .. ARGV[8], kind, call_id, ARGV[12] == '1')
redis.call('HSET', publishers, publisher, ARGV[8] .. ' ' .. id .. ' ' .. integer(now))
if not mine then stale = true end
save_state()
return { id, '0' }
