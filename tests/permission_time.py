"""Time for permission requests without waiting: what Redis' clock is compared with moves, not the clock."""

from __future__ import annotations

from collections.abc import Collection

import redis.asyncio as redis

from agent_sse.keys import Keyspace

_PASS_TIME = """
local ms, wake, dead = tonumber(ARGV[1]), ARGV[2] == '1', {}
for i = 3, #ARGV do dead[ARGV[i]] = true end
local flat = redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do
  local id = flat[i]
  if not string.find(id, '^%l:') then
    local is_json, r = pcall(cjson.decode, flat[i + 1])
    if not is_json or type(r) ~= 'table' or not r.shown then r = nil end -- a test's malformed record
    if r then
      local deadline = r.deadline
      r.deadline = deadline - ms
      if dead[id] then r.lease = r.lease - ms end
      if r.shown > 0 then r.shown = r.shown - ms end
      if r.at then r.at = r.at - ms end
      redis.call('HSET', KEYS[1], id, cjson.encode(r))
      local due = tonumber(redis.call('ZSCORE', KEYS[2], id) or nil)
      if due then
        local moves = r.st ~= 'pending' or due == deadline or dead[id]
        redis.call('ZADD', KEYS[2], string.format('%.0f', moves and due - ms or math.min(due, r.deadline)), id)
      end
    end
  end
end
for id in pairs(dead) do
  local due = string.find(id, '^%l:') and tonumber(redis.call('ZSCORE', KEYS[2], id) or nil)
  if due then redis.call('ZADD', KEYS[2], string.format('%.0f', due - ms), id) end
end
local cleared = redis.call('HGET', KEYS[3], 'cleared')
if cleared then redis.call('HSET', KEYS[3], 'cleared', string.format('%.0f', tonumber(cleared) - ms)) end
local tip = redis.call('HGET', KEYS[3], 'tip') or '0-0'
if wake then redis.call('PUBLISH', KEYS[4], 'later') end
return tip
"""


async def let_time_pass(
    client: redis.Redis, session: str, ms: int, *, dead: Collection[str] = (), wake: bool = True
) -> str:
    """Let a session's permission requests grow older, as if Redis' clock had gone on by ``ms``, without waiting.

    Waiters renew their leases meanwhile, but for the requests in ``dead``, where `l:` with a call's id stands for the
    lease of a running call. With ``wake``, waiters look
    again at once. Returns the id of the last event before.
    """
    keys = Keyspace("agent_sse").session(session)
    tip = await client.eval(_PASS_TIME, 4, keys.requests, keys.due, keys.state, keys.wake, ms, int(wake), *dead)
    return str(tip.decode())
