-- A user cancels a tool call: its open permission requests are withdrawn, and its agent is told to stop it.
-- KEYS    as in _permissions.lua
-- ARGV[8] tool call id   ARGV[9] reason (JSON)   ARGV[10] who (JSON)   ARGV[11] ms that its agent has to take it
-- Returns "withdrawn" (it waited for permission), "cancelling", "not_cancellable" (its agent does not listen for
-- cancellations) or "unknown" (no such call, or it is over).
local refused = load_state()
if refused then return refused end
sweep()
local cid, withdrawn = ARGV[8], false
for _, id in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
  local r = load_settled(id)
  if r and r.st == 'pending' and r.cid == cid then
    settle(id, r, 'cancelled', ARGV[9], ARGV[10], 'cancel', '')
    withdrawn = true
  end
end
local reply = withdrawn and 'withdrawn' or 'unknown'
local payload = string.match(redis.call('HGET', calls, cid) or '', '^%S+ (.*)$')
if payload and not withdrawn then
  local is_json, event = pcall(cjson.decode, payload)
  if is_json and event.data.details.cancellable == true then
    redis.call('HSET', requests, 'c:' .. cid, '{"reason":' .. ARGV[9] .. ',"by":' .. ARGV[10] .. '}')
    redis.call('ZADD', due, integer(now + tonumber(ARGV[11])), 'c:' .. cid)
    redis.call(publish_command, wake, 'c:' .. cid)
    reply, dirty, stale = 'cancelling', true, true
  else
    reply = 'not_cancellable'
  end
end
if reply == 'withdrawn' or reply == 'cancelling' then
  record('{"kind":"cancellation","tool_call_id":' .. cjson.encode(cid) .. ',"resolved_by":' .. ARGV[10] .. ',"reason":'
    .. ARGV[9] .. '}')
end
save_state()
return reply
