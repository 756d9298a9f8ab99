-- Take permission requests that nobody has answered for a while; each goes to one process, until its lease ends.
-- KEYS[1] unanswered (sorted set: "<session> <request>" by ms)   KEYS[2] attempts (hash: how often each was taken)
-- ARGV[1] ms after which a request is due   ARGV[2] lease, ms   ARGV[3] requests at most
-- Returns {now in ms, ms until the next one is due or -1, "<session> <request>", attempt, …}.
local unanswered, attempts = KEYS[1], KEYS[2]
local ATTEMPTS_MAX = 100000 -- what is more is left over from requests that were cut off; then all counts begin anew
local ATTEMPTS_SECONDS = 86400 -- longer than any pause between two attempts

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local after = tonumber(ARGV[1])

local function integer(n) return string.format('%.0f', n) end

if redis.call('HLEN', attempts) > ATTEMPTS_MAX then redis.call('DEL', attempts) end
local taken = {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', unanswered, '-inf', integer(now - after), 'LIMIT', 0, ARGV[3])) do
  redis.call('ZADD', unanswered, integer(now + tonumber(ARGV[2]) - after), member)
  taken[#taken + 1] = member
  taken[#taken + 1] = redis.call('HINCRBY', attempts, member, 1)
end
if #taken > 0 then redis.call('EXPIRE', attempts, ATTEMPTS_SECONDS) end
local first = redis.call('ZRANGE', unanswered, 0, 0, 'WITHSCORES')
local rest = first[2] and math.max(0, tonumber(first[2]) + after - now) or -1
return { integer(now), integer(rest), unpack(taken) }
