-- Read, at one moment, what a client without a usable cursor has to see.
-- KEYS    as in _permissions.lua
-- Returns {tip, tip of the closed session or "", last finished status or "", result or "", {call id, "<event id> <payload>", …}, {presented payload, …}, now in ms}.
local refused = load_state()
if refused then return refused end
sweep()
save_state()
local s = redis.call('HMGET', state, 'last', 'result')
return { tip, redis.call('GET', KEYS[6]) or '', s[1] or '', s[2] or '', redis.call('HGETALL', calls), shown_events(), integer(now) }
