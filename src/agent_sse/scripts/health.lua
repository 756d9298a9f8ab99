-- Read what the health endpoint tells of a session.
-- KEYS    as in tick.lua
-- Returns {tip, retained events, {process, "<open streams> <until>", …}, {"1" when presented or "0", payload, …}, now in ms,
-- open requests, {remembered answer, …}}. Payloads and answers end where they would be larger than a session's retained
-- bytes.
local refused = load_state()
if refused then return refused end
sweep()
save_state()
local pending, size = {}, 0
for _, id in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
  local r = load_request(id)
  local payload = redis.call('HGET', requests, 'e:' .. id)
  if r and payload then
    size = size + #payload
    if size > max_bytes then break end
    pending[#pending + 1] = r.shown > 0 and '1' or '0'
    pending[#pending + 1] = payload
  end
end
local remembered, flat = {}, redis.call('HGETALL', grants)
for i = 1, #flat, 2 do
  if not string.find(flat[i], ':', 1, true) then
    size = size + #flat[i + 1]
    if size > max_bytes then break end
    remembered[#remembered + 1] = flat[i + 1]
  end
end
return { tip, redis.call('XLEN', events), redis.call('HGETALL', KEYS[11]), pending, integer(now),
  redis.call('ZCARD', queue), remembered }
