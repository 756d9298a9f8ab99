-- Append one event that its client names by a key, once: the same key again gives the first one's id.
-- KEYS    as in _permissions.lua, and KEYS[14] once (hash: digest of a key → "<digest of its event> <id> <ms>")
-- ARGV[8] payload (one line of JSON)   ARGV[9] digest of the key   ARGV[10] digest of the event as it came
-- ARGV[11] "status", "result", "cleared" or "other"   ARGV[12] tool call id or ""   ARGV[13] "1" = a terminal status
-- Returns {id, "0" or "1" when it was there already}, or {"conflict"} when the key belongs to another event.
local KEPT = 1024 -- keys of a session that are remembered at least, while the events of that time can be replayed
local once, key, digest = KEYS[14], ARGV[9], ARGV[10]

local function forget_keys()
  local all, flat = {}, redis.call('HGETALL', once)
  for i = 1, #flat, 2 do
    all[#all + 1] = { flat[i], tonumber(string.match(flat[i + 1], '(%d+)$')) or 0 }
  end
  table.sort(all, function(a, b) return a[2] < b[2] end)
  for i, entry in ipairs(all) do
    if i <= #all - KEPT or now - entry[2] > retention then redis.call('HDEL', once, entry[1]) end
  end
end

local refused = load_state()
if refused then return refused end
local before, id = string.match(redis.call('HGET', once, key) or '', '^(%S+) (%S+) ')
if before and before ~= digest then return { 'conflict' } end
if before then return { id, '1' } end

local held = redis.call('HLEN', once)
if held >= 2 * KEPT then forget_keys() end
id = take_event(ARGV[8], '', ARGV[11], ARGV[12], ARGV[13] == '1')
redis.call('HSET', once, key, digest .. ' ' .. id .. ' ' .. integer(now))
redis.call('PEXPIRE', once, integer(retention))
save_state()
return { id, '0' }
