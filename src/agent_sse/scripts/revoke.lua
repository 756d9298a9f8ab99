-- Forget a remembered answer.
-- KEYS    as in _permissions.lua
-- ARGV[8] grant id   ARGV[9] who (JSON)
-- Returns the remembered answer as JSON, or "" when there is none of that id.
local refused = load_state()
if refused then return refused end
local grant = ARGV[8]
local text = not string.find(grant, ':', 1, true) and redis.call('HGET', grants, grant)
if not text then return '' end
local key = string.match(text, GRANT_END)
redis.call('HDEL', grants, grant)
if key and redis.call('HGET', grants, key) == grant then redis.call('HDEL', grants, key) end
record('{"kind":"revocation","grant_id":"' .. grant .. '","resolved_by":' .. ARGV[9] .. ',"grant":' .. text .. '}')
return text
