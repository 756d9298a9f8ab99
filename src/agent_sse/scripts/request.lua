-- Create a permission request, or attach to the one that an idempotency key belongs to.
-- KEYS    as in _permissions.lua
-- ARGV[8] request id   ARGV[9] tool name (JSON)   ARGV[10] tool call id (JSON)   ARGV[11] tool call id (plain)
-- ARGV[12] timeout, ms ARGV[13] lease, ms         ARGV[14] digest of the idempotency key, or ""
-- ARGV[15] digest of tool and parameters          ARGV[16] the event up to its timestamp
-- ARGV[17] what to append when the agent is lost (two such heads, a line each), or ""
-- ARGV[18] open requests that the session may have
-- ARGV[19] risk level   ARGV[20] digest of server and tool   ARGV[21] digest of server, tool and parameters
-- ARGV[22] what the audit says of it, as `"name":value,` fragments   ARGV[23] JSON Schema that edits have to fit, or ""
-- Returns {"ok", request id, deadline in ms, state, now in ms}, {"conflict"} or {"full", open requests}.
local refused = load_state()
if refused then return refused end
sweep()
local id, key = ARGV[8], ARGV[14]

local existing = load_request(id) -- this call is a retry whose first reply was lost
if not existing and key ~= '' then
  local other = redis.call('HGET', requests, 'k:' .. key)
  local r = other and load_settled(other)
  if r and r.digest ~= ARGV[15] then
    save_state()
    return { 'conflict' }
  end
  -- An expired or withdrawn request gave no answer: the key asks anew. Otherwise it is the same question.
  if r and r.st ~= 'expired' and r.st ~= 'cancelled' then id, existing = other, r end
end
if existing then
  save_state()
  return { 'ok', id, integer(existing.deadline), existing.st, integer(now) }
end

local r = {
  n = redis.call('HINCRBY', state, 'asked', 1), st = 'pending', tool = ARGV[9], call = ARGV[10], cid = ARGV[11],
  deadline = now + tonumber(ARGV[12]), lease = now + tonumber(ARGV[13]), shown = 0, key = key, digest = ARGV[15],
  reason = 'null', by = 'null', to = '', risk = ARGV[19], gt = ARGV[20], ga = ARGV[21],
}
local grant, text = covering(r)
local open = redis.call('ZCARD', queue)
if not grant and open >= tonumber(ARGV[18]) then
  save_state()
  return { 'full', open }
end
save_request(id, r)
redis.call('HSET', requests, 'e:' .. id,
  ARGV[16] .. '"timestamp":"' .. iso(now) .. '","expires_at":"' .. iso(r.deadline) .. '"}}')
redis.call('HSET', requests, 'm:' .. id, ARGV[22])
if ARGV[23] ~= '' then redis.call('HSET', requests, 's:' .. id, ARGV[23]) end
if ARGV[17] ~= '' then redis.call('HSET', requests, 'o:' .. id, ARGV[17]) end
if key ~= '' then redis.call('HSET', requests, 'k:' .. key, id) end
redis.call('ZADD', queue, r.n, id)
redis.call('ZREM', due, 'h:' .. r.cid) -- the call of that id waits again
schedule(id, r)
deadline, dirty, stale = math.max(deadline, r.deadline), true, true
if grant then settle_by_grant(id, r, grant, text) end
save_state()
return { 'ok', id, integer(r.deadline), r.st, integer(now) }
