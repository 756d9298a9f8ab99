-- Answer or withdraw a request; exactly one way out of `pending` wins.
-- KEYS    as in _permissions.lua
-- ARGV[6] "answer" or "withdraw"   ARGV[7] request id, or "" for the presented one   ARGV[8] "1" = approved
-- ARGV[9] reason (JSON)            ARGV[10] who (JSON)
-- Returns {code, …verdict}: resolved, repeated, conflict, gone, just_replaced; or {code}: unknown, nothing, ambiguous.
local refused = load_state()
if refused then return refused end
sweep()
local mode, id, wanted = ARGV[6], ARGV[7], ARGV[8] == '1' and 'approved' or 'denied'

local function answer(r, late)
  if r.st == 'pending' then
    if mode == 'withdraw' then
      settle(id, r, 'cancelled', ARGV[9], ARGV[10], false)
    else
      settle(id, r, wanted, ARGV[9], ARGV[10], true)
    end
    return verdict('resolved', id, r)
  end
  if r.st == 'expired' or r.st == 'cancelled' then return verdict('gone', id, r) end
  return verdict(r.st == wanted and 'repeated' or late, id, r)
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
