-- What a server with open streams does for a session at every heartbeat: compare, settle, repeat, renew, count.
-- KEYS    as in _permissions.lua, and KEYS[11] streams (hash: process → "<open streams> <until, ms>")
-- ARGV[8] process   ARGV[9] its open streams of this session   ARGV[10] lease of that count, ms
-- Returns {tip, tip of the closed session or "", ms until something is due or -1, {presented payload, …}}.
local streams = KEYS[11]
local refused = load_state()
if refused then return refused end
sweep()
save_state()
renew()
if tonumber(ARGV[9]) > 0 then
  redis.call('HSET', streams, ARGV[8], ARGV[9] .. ' ' .. integer(now + tonumber(ARGV[10])))
  redis.call('PEXPIRE', streams, ARGV[10])
else
  redis.call('HDEL', streams, ARGV[8])
end
local counts = redis.call('HGETALL', streams)
for i = 1, #counts, 2 do -- of processes that were killed; #counts is the number of processes
  if tonumber(string.match(counts[i + 1], '%d+$')) < now then redis.call('HDEL', streams, counts[i]) end
end
local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
local rest = first[2] and math.max(0, tonumber(first[2]) - now) or -1
return { tip, redis.call('GET', KEYS[6]) or '', rest, shown_events() }
