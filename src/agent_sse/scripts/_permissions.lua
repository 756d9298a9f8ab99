-- Common part of the scripts that touch permission requests; comes after _session.lua.
--
-- KEYS[7] requests (hash)  KEYS[8] queue (sorted set: open requests by order)
-- KEYS[9] due (sorted set: when a request has to be settled or erased, ms)   KEYS[10] wake (channel)
-- KEYS[12] grants (hash)   KEYS[13] audit (stream)
-- ARGV[6] how long the audit is kept, ms   ARGV[7] how many of its entries
--
-- requests holds, for a request R: `R` its record as JSON, `e:R` the permission_request event, `o:R` what to append
-- when its agent is lost, `m:R` what the audit says of it, `s:R` the JSON Schema that edits have to fit, `x:R` how it
-- was answered beyond yes and no, and `k:<digest>` the request that an idempotency key belongs to; `c:<call id>` is a
-- cancellation that the call's agent has not taken yet. In a record: n order,
-- st pending|approved|denied|expired|cancelled, tool/call/reason/by JSON fragments, cid the plain tool call id,
-- deadline, lease and at (ms), shown (ms, 0 = never), key, digest, to (the waiter that was handed the approval, or LOST),
-- and what an older release does not write: risk, gt and ga (digests of server and tool, and of these and the parameters:
-- what a grant covers), ans (digest of the whole answer).
-- In the state hash: `shown` the open presented requests, `cleared` when the last presented one was settled (ms),
-- `prior` which one that was.
-- grants holds a remembered answer as JSON under its id, and its id under `t:<gt>` or `a:<ga>`.
-- due holds, beside requests and their `c:<call id>`, `l:<call id>`: the lease of a call that an agent runs, and
-- `h:<call id>`: when a call that was handed its approval has to have begun.
local LOST = 'lost' -- who an approval was handed to whose agent did not take it in time: nobody
local GAP = 1000 -- ms between a clear and the next presentation; the guide's component needs it
local requests, queue, due, wake = KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local grants, audit = KEYS[12], KEYS[13]
-- Both ends of a remembered answer's text; what is between comes from agents, and may say anything.
local GRANT_START, GRANT_END = '^{"approved":(%l+),"reason":("[^\n]*"),\n', '"key":"([^"]*)","n":(%d+)}$'

local RISKS = { low = 1, medium = 2, high = 3 }

local STRINGS = { 'st', 'tool', 'call', 'cid', 'reason', 'by', 'key', 'digest', 'to' }
local NUMBERS = { 'n', 'deadline', 'lease', 'shown' }

local function is_record(r)
  if type(r) ~= 'table' then return false end
  for _, name in ipairs(STRINGS) do if type(r[name]) ~= 'string' then return false end end
  for _, name in ipairs(NUMBERS) do if type(r[name]) ~= 'number' then return false end end
  return r.st == 'pending' or type(r.at) == 'number'
end

local function shown_list()
  local ids = {}
  for id in string.gmatch(redis.call('HGET', state, 'shown') or '', '%S+') do ids[#ids + 1] = id end
  return ids
end

local function unlist(id)
  local before, left = shown_list(), {}
  for _, other in ipairs(before) do if other ~= id then left[#left + 1] = other end end
  if #left < #before then redis.call('HSET', state, 'shown', table.concat(left, ' ')) end
end

-- Erases a request.
local function forget(id)
  redis.call('HDEL', requests, id, 'e:' .. id, 'o:' .. id, 'm:' .. id, 's:' .. id, 'x:' .. id)
  redis.call('ZREM', queue, id)
  redis.call('ZREM', due, id)
  unlist(id)
end

-- Returns a request's record. One that was lost (an eviction takes whole keys) or that is none of ours is forgotten:
-- it is no approval, and no other request may wait behind it.
local function load_request(id)
  if string.find(id, ':', 1, true) then return nil end -- a field of another kind; clients may send any id
  local is_json, r = pcall(cjson.decode, redis.call('HGET', requests, id) or '')
  if is_json and is_record(r) then return r end
  forget(id)
  return nil
end

local function save_request(id, r) redis.call('HSET', requests, id, cjson.encode(r)) end

local function shown_ids()
  local ids = {}
  for _, id in ipairs(shown_list()) do if load_request(id) then ids[#ids + 1] = id end end
  return ids
end

local function schedule(id, r)
  local at = r.deadline
  if r.key == '' and r.lease < at then at = r.lease end -- a keyed request outlives its waiter
  redis.call('ZADD', due, integer(at), id)
end

-- A keyed answer waits for a restarted agent at least until the deadline that the agent was given.
local function schedule_erasure(id, r)
  local kept = r.key ~= '' and math.max(r.at, r.deadline) or r.at
  redis.call('ZADD', due, integer(kept + retention), id)
end

-- Appends to the audit, which has bounds of its own. The entry's id tells its time.
local function record(entry)
  redis.call('XADD', audit, 'MAXLEN', '~', ARGV[7], '*', 'd', entry)
  redis.call('PEXPIRE', audit, ARGV[6])
end

-- The agent is gone: say for it what became of the tool call, so that no card stays for ever.
local function append_orphan(id, r)
  local status, result = string.match(redis.call('HGET', requests, 'o:' .. id) or '', '^([^\n]+)\n([^\n]+)$')
  if not status or redis.call('HEXISTS', calls, r.cid) == 0 then return end
  local tail = '"timestamp":"' .. iso(now) .. '"}}'
  local status_id = append(status .. tail, '')
  record_status(r.cid, status_id, status .. tail, true)
  append(result .. tail, '')
  redis.call('HSET', state, 'result', result .. tail, 'result_call', r.cid)
end

local function names_of(id, r)
  return '"request_id":"' .. id .. '","tool_call_id":' .. r.call .. ',"tool_name":' .. r.tool
end

-- The only way out of `pending`. `reason` and `by` are JSON fragments; `how` is answer, grant, expiry, withdrawal, cancel
-- or lease; `more` is what else the answer said, as `"name":value` fragments, or "", and `kept` what the audit keeps of it.
local function settle(id, r, outcome, reason, by, how, more, kept)
  local lost = r.lease <= now
  r.st, r.reason, r.by, r.at = outcome, reason, by, now
  save_request(id, r)
  redis.call('ZREM', queue, id)
  schedule_erasure(id, r)
  local told = more == '' and '' or ',' .. more
  local names = names_of(id, r)
  if how == 'answer' then
    append('{"type":"permission_response_result","data":{"success":true,"request_id":"' .. id .. '","approved":'
      .. (outcome == 'approved' and 'true' or 'false') .. ',"reason":' .. reason .. told
      .. ',"timestamp":"' .. iso(now) .. '"}}', '')
  end
  if r.shown > 0 then
    append('{"type":"permission_cleared","data":{' .. names .. ',"outcome":"' .. outcome .. '","reason":' .. reason
      .. ',"resolved_by":' .. by .. told .. ',"timestamp":"' .. iso(now) .. '"}}', '')
    unlist(id)
    redis.call('HSET', state, 'cleared', integer(now), 'prior', id)
  end
  record('{"kind":"decision",' .. names .. ',' .. (redis.call('HGET', requests, 'm:' .. id) or '') .. '"outcome":"'
    .. outcome .. '","by":"' .. how .. '","resolved_by":' .. by .. ',"reason":' .. reason
    .. (kept and kept ~= '' and ',' .. kept or told) .. '}')
  if more ~= '' then redis.call('HSET', requests, 'x:' .. id, '{' .. more .. '}') end
  redis.call('HDEL', requests, 'e:' .. id, 'm:' .. id, 's:' .. id) -- nobody shows it any more
  if outcome ~= 'approved' then
    if lost then append_orphan(id, r) end
    redis.call('HDEL', requests, 'o:' .. id)
  elseif redis.call('HEXISTS', requests, 'o:' .. id) == 1 then
    -- An approval waits for its agent; when that never takes it, the sweep has to close the call's card.
    redis.call('ZADD', due, integer(math.max(now, r.lease, r.key ~= '' and r.deadline or 0)), id)
  end
  redis.call(publish_command, wake, id)
end

-- Settles `r` if its time is over.
local function settle_overdue(id, r)
  if r.st ~= 'pending' then return end
  if now >= r.deadline then
    settle(id, r, 'expired', r.shown > 0 and '"timeout"' or '"never_presented"', '"timeout"', 'expiry', '')
  elseif r.key == '' and now >= r.lease then
    settle(id, r, 'cancelled', '"agent_lost"', '"lease"', 'lease', '')
  end
end

-- What is decided on must not be overdue, even when so much is that the sweep has not come to it.
local function load_settled(id)
  local r = load_request(id)
  if r then settle_overdue(id, r) end
  return r
end

-- How long after its agent's last sign of life a running call counts as lost, ms; agents give one every 2 s.
local function call_lease(waiter_lease) return math.max(2 * tonumber(waiter_lease), 10000) end

-- The latest status of an unfinished call, or nil.
local function call_payload(cid) return string.match(redis.call('HGET', calls, cid) or '', '^%S+ (.*)$') end

-- Says for an agent that is gone what became of its call.
local function close_call(cid, payload, status, why)
  local at = '"timestamp":"' .. iso(now) .. '"}}'
  payload = string.gsub(payload, '"status":"[a-z_]+"', '"status":"' .. status .. '"', 1)
  payload = string.gsub(payload, '"timestamp":"[^"]*"}}$', at)
  record_status(cid, append(payload, ''), payload, true)
  local is_json, event = pcall(cjson.decode, payload)
  local tool = is_json and cjson.encode(event.data.tool_name) or '""'
  local result = '{"type":"tool_result","data":{"tool_name":' .. tool .. ',"tool_call_id":' .. cjson.encode(cid)
    .. ',"result":null,"success":false,"error":"' .. why .. '",' .. at
  append(result, '')
  redis.call('HSET', state, 'result', result, 'result_call', cid)
end

-- The agent of a cancelled call has not taken the cancellation: it is gone.
local function close_cancelled(field)
  local cid = string.sub(field, 3)
  local reason = redis.call('HGET', requests, field)
  redis.call('HDEL', requests, field)
  redis.call('ZREM', due, field)
  local payload = call_payload(cid)
  if payload and reason then close_call(cid, payload, 'cancelled', 'cancelled by the user; the agent does not answer') end
end

-- The agent of a call has not renewed its lease, or not begun what it was handed the approval for: it is gone.
-- A call that waits for permission and was handed nothing is left to the rules of its request.
local function close_lost(member)
  redis.call('ZREM', due, member)
  local cid, handed = string.sub(member, 3), string.sub(member, 1, 2) == 'h:'
  local payload = call_payload(cid)
  local status = string.match(payload or '', '"status":"([a-z_]+)"')
  if not status or handed ~= (status == 'waiting_permission') then return end
  if status == 'executing' then
    close_call(cid, payload, 'failed', 'the agent was lost while the tool ran')
  else
    close_call(cid, payload, 'cancelled', 'the agent was lost before the tool could run')
  end
end

local CLOSING = { ['c:'] = close_cancelled, ['l:'] = close_lost, ['h:'] = close_lost }

-- Settles what is overdue and erases what was settled long ago, a bounded number at a time. Every permission script
-- begins with it.
local function sweep()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', integer(now), 'LIMIT', 0, 100)) do
    local close = CLOSING[string.sub(id, 1, 2)]
    if close then close(id) end
    local r = not close and load_request(id)
    if r and r.st == 'approved' and redis.call('HEXISTS', requests, 'o:' .. id) == 1 then
      append_orphan(id, r)
      redis.call('HDEL', requests, 'o:' .. id)
      r.to = LOST -- the user is told that it does not run
      record('{"kind":"lapse",' .. names_of(id, r) .. ',"by":"lease","resolved_by":"lease","reason":"agent_lost"}')
      save_request(id, r)
      schedule_erasure(id, r)
    elseif r and r.st ~= 'pending' then
      forget(id)
      if r.key ~= '' and redis.call('HGET', requests, 'k:' .. r.key) == id then
        redis.call('HDEL', requests, 'k:' .. r.key)
      end
    elseif r then
      settle_overdue(id, r)
    end
  end
end

-- Milliseconds since the last presented request was settled.
local function since_cleared()
  local cleared = tonumber(redis.call('HGET', state, 'cleared') or 0)
  if cleared > now then -- the clock went back: count the gap from here, not from a time that may be hours away
    redis.call('HSET', state, 'cleared', integer(now))
    return 0
  end
  return now - cleared
end

-- Shows `id` if it is its turn. Returns the milliseconds after which to ask again, or -1: wait to be woken.
local function present_in_turn(id, r, concurrency)
  local shown = shown_ids()
  if r.shown > 0 or #shown >= concurrency then return -1 end
  for _, other in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
    if other == id then break end
    local before = load_request(other)
    if before and before.shown == 0 and before.lease > now then return -1 end -- alive and first; a dead one is passed over
  end
  local rest = GAP - since_cleared()
  if rest > 0 then return rest end
  append(redis.call('HGET', requests, 'e:' .. id), '')
  r.shown = now
  save_request(id, r)
  shown[#shown + 1] = id
  redis.call('HSET', state, 'shown', table.concat(shown, ' '))
  if #shown < concurrency then redis.call(publish_command, wake, id) end -- there is room for the next one too
  return -1
end

local function shown_events()
  local payloads = {}
  for _, id in ipairs(shown_ids()) do
    local payload = redis.call('HGET', requests, 'e:' .. id)
    if payload then payloads[#payloads + 1] = payload end
  end
  return payloads
end

-- {code, request id, tool JSON, call JSON, state, reason JSON, by JSON, what else was answered as JSON or ""}
local function verdict(code, id, r)
  return { code, id, r.tool, r.call, r.st, r.reason, r.by, redis.call('HGET', requests, 'x:' .. id) or '' }
end

-- Whether a remembered answer holds at a risk: a yes only up to the risk at which it was given. What is before that in
-- its text are texts of JSON, whose quotes are escaped, so the first match is its own.
local function holds_at(text, risk)
  if string.match(text, GRANT_START) ~= 'true' then return true end
  local given = RISKS[string.match(text, '"risk_level":"(%l+)"') or 'low'] or 0
  return (RISKS[risk] or 4) <= given
end

-- Returns the id and the text of the remembered answer that covers `r`, the one for these parameters before the one for
-- the tool. What is critical is asked each time.
local function covering(r)
  if (r.risk or '') == '' or r.risk == 'critical' then return nil end
  for _, field in ipairs({ 'a:' .. r.ga, 't:' .. r.gt }) do
    local grant = redis.call('HGET', grants, field)
    local text = grant and redis.call('HGET', grants, grant)
    if text and holds_at(text, r.risk) then return grant, text end
  end
  return nil
end

-- Settles `r` by a remembered answer.
local function settle_by_grant(id, r, grant, text)
  local approved, reason = string.match(text, GRANT_START)
  settle(id, r, approved == 'true' and 'approved' or 'denied', reason or '""', '"grant:' .. grant .. '"', 'grant',
    '"grant_id":"' .. grant .. '"')
end
