-- The agent of tool calls renews their leases, and takes what cancellations there are for them.
-- KEYS    as in _permissions.lua
-- ARGV[8] a waiter's lease, ms   ARGV[9] number of calls that it runs   then these calls' ids, and those of calls that have ended
-- Returns for each running call {"reason", "by"} as JSON, "", or nil when the session has no such call.
local refused = load_state()
if refused then return refused end
local until_lost, running = integer(now + call_lease(ARGV[8])), tonumber(ARGV[9])
local found, leased = {}, false
for i = 10, 9 + running do
  local field = 'c:' .. ARGV[i]
  local said = redis.call('HGET', requests, field)
  if said then
    redis.call('HDEL', requests, field)
    redis.call('ZREM', due, field)
  end
  -- Only of what is there: a closed session stays erased.
  local known = redis.call('HEXISTS', calls, ARGV[i]) == 1
  found[#found + 1] = said or (known and '')
  if known then
    redis.call('ZADD', due, until_lost, 'l:' .. ARGV[i])
    leased = true
  end
end
for i = 10 + running, #ARGV do
  -- While its end is not published the lease stays, and closes the card should it never be.
  if redis.call('HEXISTS', calls, ARGV[i]) == 0 then redis.call('ZREM', due, 'l:' .. ARGV[i], 'h:' .. ARGV[i]) end
end
if leased and redis.call('PTTL', due) < 0 then renew() end -- a new key: it gets its lifetime
return found
