-- Create a permission request, or attach to the one that an idempotency key belongs to.
-- KEYS    as in _permissions.lua
-- ARGV[6] request id   ARGV[7] tool name (JSON)   ARGV[8] tool call id (JSON)   ARGV[9] tool call id (plain)
-- ARGV[10] timeout, ms ARGV[11] lease, ms         ARGV[12] digest of the idempotency key, or ""
-- ARGV[13] digest of tool and parameters          ARGV[14] the event up to its timestamp
-- ARGV[15] what to append when the agent is lost (two such heads, a line each), or ""
-- ARGV[16] open requests that the session may have
-- Returns {"ok", request id, deadline in ms}, {"conflict"} or {"full", open requests}.
local refused = load_state()
if refused then return refused end
sweep()
local id, key = ARGV[6], ARGV[12]

local existing = load_request(id) -- this call is a retry whose first reply was lost
if not existing and key ~= '' then
  local other = redis.call('HGET', requests, 'k:' .. key)
  local r = other and load_settled(other)
  if r and r.digest ~= ARGV[13] then
    save_state()
    return { 'conflict' }
  end
  -- An expired or withdrawn request gave no answer: the key asks anew. Otherwise it is the same question.
  if r and r.st ~= 'expired' and r.st ~= 'cancelled' then id, existing = other, r end
end
if existing then
  save_state()
  return { 'ok', id, integer(existing.deadline) }
end

local open = redis.call('ZCARD', queue)
if open >= tonumber(ARGV[16]) then
  save_state()
  return { 'full', open }
end
local r = {
  n = redis.call('HINCRBY', state, 'asked', 1), st = 'pending', tool = ARGV[7], call = ARGV[8], cid = ARGV[9],
  deadline = now + tonumber(ARGV[10]), lease = now + tonumber(ARGV[11]), shown = 0, key = key, digest = ARGV[13],
  reason = 'null', by = 'null', to = '',
}
save_request(id, r)
redis.call('HSET', requests, 'e:' .. id,
  ARGV[14] .. '"timestamp":"' .. iso(now) .. '","expires_at":"' .. iso(r.deadline) .. '"}}')
if ARGV[15] ~= '' then redis.call('HSET', requests, 'o:' .. id, ARGV[15]) end
if key ~= '' then redis.call('HSET', requests, 'k:' .. key, id) end
redis.call('ZADD', queue, r.n, id)
schedule(id, r)
deadline, dirty, stale = math.max(deadline, r.deadline), true, true
save_state()
return { 'ok', id, integer(r.deadline) }
