-- The agent of tool calls takes what cancellations there are for them.
-- KEYS    as in _permissions.lua
-- ARGV[8], ARGV[9] and so on: tool call ids
-- Returns for each of them {"reason", "by"} as JSON, or "".
local refused = load_state()
if refused then return refused end
local found = {}
for i = 8, #ARGV do
  local field = 'c:' .. ARGV[i]
  found[#found + 1] = redis.call('HGET', requests, field) or ''
  redis.call('HDEL', requests, field)
  redis.call('ZREM', due, field)
end
return found
