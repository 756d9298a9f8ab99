-- Read which sessions may have new audit entries; those whose audit has expired are let go.
-- KEYS[1] audited (sorted set: session by the ms until which entries may come)
-- ARGV[1] ms, the least of those that are asked for   ARGV[2] how long an audit is kept, ms   ARGV[3] sessions at most
-- Returns {now in ms, session, …}.
local audited = KEYS[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZREMRANGEBYSCORE', audited, '-inf', string.format('%.0f', now - tonumber(ARGV[2])))
local reply = redis.call('ZRANGEBYSCORE', audited, ARGV[1], '+inf', 'LIMIT', 0, ARGV[3])
table.insert(reply, 1, string.format('%.0f', now))
return reply
