-- A waiter says that it is alive, presents its request when it is its turn, and learns the decision.
-- KEYS    as in _permissions.lua
-- ARGV[8] request id   ARGV[9] waiter   ARGV[10] lease, ms   ARGV[11] requests presented at a time
-- Returns {"pending", ms after which to ask again or -1, "1" when it is presented or "0", ms until its deadline},
-- {"settled", request id, tool, call, state, reason, by, more}, {"taken"} when another waiter has the approval,
-- {"lost"} when it was not taken in time, or {"unknown"}.
local refused = load_state()
if refused then return refused end
sweep()
local id, waiter = ARGV[8], ARGV[9]
local r = load_settled(id)
local reply
if not r then
  reply = { 'unknown' }
elseif r.st == 'pending' then
  r.lease = now + tonumber(ARGV[10])
  save_request(id, r)
  schedule(id, r)
  local again = present_in_turn(id, r, tonumber(ARGV[11]))
  reply = { 'pending', again, r.shown > 0 and '1' or '0', math.max(0, r.deadline - now) }
elseif r.st == 'approved' and r.to == LOST then
  reply = { 'lost' }
elseif r.st == 'approved' and r.to ~= '' and r.to ~= waiter then
  reply = { 'taken' }
else
  if r.st == 'approved' and r.to == '' then
    r.to = waiter
    save_request(id, r)
    if redis.call('HDEL', requests, 'o:' .. id) == 1 then
      schedule_erasure(id, r)
      -- From here on the agent's own leases tell whether it lives: its first one is this.
      local until_begun = integer(now + call_lease(ARGV[10]))
      redis.call('ZADD', due, until_begun, 'h:' .. r.cid, until_begun, 'l:' .. r.cid)
    end
  end
  reply = verdict('settled', id, r)
end
save_state()
return reply
