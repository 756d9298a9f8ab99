-- Answer or withdraw a request; exactly one way out of `pending` wins.
-- KEYS    as in _permissions.lua
-- ARGV[8] "answer" or "withdraw"   ARGV[9] request id, or "" for the presented one   ARGV[10] "1" = approved
-- ARGV[11] reason (JSON)            ARGV[12] who (JSON)   ARGV[13] digest of the whole answer, or "" of a plain one
-- ARGV[14] what else it says, as `"name":value` fragments, or ""
-- ARGV[15] "" for once, or "t" or "a": remember it for the tool, or for the tool with these parameters
-- ARGV[16] id of the grant that it makes then   ARGV[17] what the audit keeps of ARGV[14]
-- Returns {code, …verdict}: resolved, repeated, conflict, gone, just_replaced, critical; or {code}: unknown, nothing,
-- ambiguous.
local refused = load_state()
if refused then return refused end
sweep()
local mode, id, wanted = ARGV[8], ARGV[9], ARGV[10] == '1' and 'approved' or 'denied'

local GRANTS_MAX = 100 -- of a session; the oldest go

local function drop_grants(room)
  local all, flat = {}, redis.call('HGETALL', grants)
  for i = 1, #flat, 2 do
    local key, n = string.match(flat[i + 1], GRANT_END)
    if n then all[#all + 1] = { flat[i], key, tonumber(n) } end
  end
  table.sort(all, function(a, b) return a[3] < b[3] end)
  for i = 1, #all - room do redis.call('HDEL', grants, all[i][1], all[i][2]) end
end

-- Remembers the answer to `r`, which is settled, and gives it to what waits for the same.
local function remember(r, about)
  local grant, kind = ARGV[16], ARGV[15]
  local key = kind .. ':' .. (kind == 't' and r.gt or r.ga)
  local before = redis.call('HGET', grants, key)
  if before then redis.call('HDEL', grants, before) end
  drop_grants(GRANTS_MAX - 1)
  local text = '{"approved":' .. (wanted == 'approved' and 'true' or 'false') .. ',"reason":' .. ARGV[11]
    .. ',\n"grant_id":"' .. grant .. '","tool_name":' .. r.tool .. ',' .. about
    .. '"covers":"' .. (kind == 't' and 'tool' or 'arguments') .. '","granted_by":' .. ARGV[12]
    .. ',"request_id":"' .. id .. '","granted_at":"' .. iso(now) .. '","key":"' .. key
    .. '","n":' .. integer(redis.call('HINCRBY', state, 'granted', 1)) .. '}'
  redis.call('HSET', grants, grant, text, key, grant)
  dirty, stale = true, true -- a new key: it gets its lifetime
  for _, other in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
    local waiting = load_settled(other)
    if waiting and waiting.st == 'pending' then
      local found, found_text = covering(waiting)
      if found == grant then settle_by_grant(other, waiting, found, found_text) end
    end
  end
end

local function answer(r, late)
  if r.st == 'pending' then
    if mode == 'withdraw' then
      settle(id, r, 'cancelled', ARGV[11], ARGV[12], 'withdrawal', '')
    elseif ARGV[15] ~= '' and ((r.risk or '') == '' or r.risk == 'critical') then
      return { 'critical' }
    else
      local about = redis.call('HGET', requests, 'm:' .. id) or ''
      r.ans = ARGV[13]
      settle(id, r, wanted, ARGV[11], ARGV[12], 'answer', ARGV[14], ARGV[17])
      if ARGV[15] ~= '' then remember(r, about) end
    end
    return verdict('resolved', id, r)
  end
  if r.st == 'expired' or r.st == 'cancelled' then return verdict('gone', id, r) end
  return verdict((r.st == wanted and (r.ans or '') == ARGV[13]) and 'repeated' or late, id, r)
end

-- Without an id: the one that is presented; but until it could have been read, a click is meant for the one before it.
local function pick()
  for _, other in ipairs(shown_ids()) do load_settled(other) end
  local shown = shown_ids()
  if #shown > 1 then return 'ambiguous' end
  local current = shown[1] and load_request(shown[1])
  local prior = redis.call('HGET', state, 'prior')
  local before = prior and load_request(prior)
  if before then
    -- With several presented at a time one may be left that was there before; its card was not the one on top.
    local replaced = since_cleared() < GAP
    if current then
      replaced = replaced or (now >= current.shown and now - current.shown < GAP)
    else
      replaced = replaced or redis.call('ZCARD', queue) > 0
    end
    if replaced then return prior, before, 'just_replaced' end
  end
  if not current then return 'nothing' end
  return shown[1], current, 'conflict'
end

local reply
if id ~= '' then
  local r = load_settled(id)
  reply = r and answer(r, 'conflict') or { 'unknown' }
else
  local found, r, late = pick()
  if r then
    id = found
    reply = answer(r, late)
  else
    reply = { found }
  end
end
save_state()
return reply
