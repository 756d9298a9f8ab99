-- Register the owner of a session; an owner is set once.
-- KEYS    as in _session.lua
-- ARGV[6] owner, or "" for none
-- Returns "ok" or "owned".
local refused = load_state()
if refused then return refused end
local owner = redis.call('HGET', state, 'owner')
if owner and owner ~= ARGV[6] then return 'owned' end
if ARGV[6] ~= '' then redis.call('HSET', state, 'owner', ARGV[6]) end
redis.call('HSET', state, 'layout', LAYOUT, 'tip', tip)
renew() -- not just the TTL: a request may have a later deadline
return 'ok'
